"""Families of encoders: tiny stock models with random weights, inputs for them, and what each of them can carry.

The table host × mechanism × head of `docs/hosts.md` is made from `FAMILIES` and `REFUSED`; `tests/hosts/` shows that
every cell of it holds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from hf_lam import LamConfig, LocomtConfig, SttConfig

# What a table calls segments, and the name of one of them.
SEGMENTS = {"token types": "type_0", "quadrants": "top_left", "early and late": "early"}

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
VOCABULARY = 61


@dataclass(frozen=True)
class Family:
    """One row of the table.

    title: what people call it.
    kind: "text", "image", "video" or "audio".
    model: the stock class of the encoder.
    config: the stock class of its configuration.
    options: of a tiny one.
    inputs: a batch of two; padded in the second sample where the host takes padding.
    even: a batch of one size, where `inputs` has several: what is tied to places takes no other.
    tokens: how many tokens the encoder makes of a sample, prefix tokens included.
    heads: the tasks there are classes for, as transformers' Auto classes call them ("SequenceClassification").
    of_heads: options that a head needs besides.
    composite: the configuration of the heads where it is another one, made from that of the encoder.
    segments: those that attention views have on this host by themselves, of `SEGMENTS`; None without any.
    length: whether the host says how many tokens there are at most.
    without: mechanisms that it cannot carry (of `MECHANISMS`), with words of the reason.
    padding: the input that says what is padding, or None.
    short: tokens of the second sample, where it is padded.
    lacks: what the stock model cannot do, and with mechanisms cannot either: be pickled ("pickle"), be checkpointed
        ("checkpointing") or be with `use_reentrant=True` ("reentrant"), leave padding out of its convolutions
        ("padding").
    note: what else the table says.
    """

    title: str
    kind: str
    model: str
    config: str
    options: dict[str, Any]
    inputs: Callable[[], dict[str, Tensor]]
    tokens: int
    heads: tuple[str, ...] = ()
    of_heads: dict[str, dict[str, Any]] = field(default_factory=dict)
    composite: Callable[[Any], Any] | None = None
    segments: str | None = "quadrants"
    length: bool = True
    without: dict[str, str] = field(default_factory=dict)
    padding: str | None = None
    short: int | None = None
    lacks: tuple[str, ...] = ()
    even: Callable[[], dict[str, Tensor]] | None = None
    note: str | None = None

    def stock_class(self, head: str | None = None) -> type[PreTrainedModel]:
        """The stock class of a head; of the encoder without one."""
        name = self.model if head is None else self.head_class_name(head)
        return find_class(name, self.config)

    def head_class_name(self, head: str) -> str:
        auto = getattr(transformers, f"AutoModelFor{head}")
        names = auto._model_mapping._model_mapping[self.make_config(head).model_type]
        return names if isinstance(names, str) else names[0]

    def make_config(self, head: str | None = None) -> Any:
        labels = 2 if head is not None and head.endswith("QuestionAnswering") else 3
        more = {} if head is None else {"num_labels": labels, **self.of_heads.get(head, {})}
        config = find_class(self.config)(**{**self.options, **more})
        return config if head is None or self.composite is None else self.composite(config)

    def make(self, head: str | None = None, seed: int = 0) -> PreTrainedModel:
        """A stock model in eval mode, all of whose parameters are random: biases too, which start at zero."""
        torch.default_generator.manual_seed(seed)
        return randomize(self.stock_class(head)(self.make_config(head)))

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """The names of what it can carry."""
        return tuple(name for name in MECHANISMS if name not in self.without)

    def inputs_for(self, mechanism: str) -> dict[str, Tensor]:
        """Inputs that the encoder takes with that mechanism."""
        is_tied = mechanism in ("lam", "stt_mixture", "stt_dense")
        return self.even() if self.even is not None and is_tied else self.inputs()

    def configs(self, mechanism: str) -> tuple[Any, ...]:
        """What is attached: without options where the host says enough of its tokens."""
        return MECHANISMS[mechanism](self)


def find_class(name: str, config: str | None = None) -> Any:
    """A class of transformers, exported or beside a configuration; a skip where this version does not have it."""
    found = getattr(transformers, name, None)
    if found is None and config is not None:
        module = find_class(config).__module__.replace("configuration_", "modeling_")
        found = getattr(importlib.import_module(module), name, None)
    if found is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return found


def randomize(model: PreTrainedModel) -> Any:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data += 0.08 * torch.randn_like(parameter)
    return model.eval()


# --- the mechanisms --------------------------------------------------------------------------------------------------


def _lam(family: Family) -> LamConfig:
    return LamConfig() if family.length else LamConfig(max_length=family.tokens)


def _views(family: Family, **options: Any) -> LocomtConfig:
    halves = [["first", family.tokens // 2], ["second", family.tokens - family.tokens // 2]]
    return LocomtConfig(segments=None if family.segments is not None else halves, views="half", **options)


def _stt(family: Family, variant: str) -> SttConfig:
    return SttConfig(variant) if family.length else SttConfig(variant, grid=[family.tokens], prefix_tokens=0)


MECHANISMS: dict[str, Callable[[Family], tuple[Any, ...]]] = {
    "lam_rank": lambda family: (LamConfig(rank=3),),
    "lam": lambda family: (_lam(family),),
    "views": lambda family: (_views(family),),
    "annealing": lambda family: (_views(family, annealing=True),),
    "lam+views": lambda family: (LamConfig(rank=2, per_head=True), _views(family)),
    "stt_mixture": lambda family: (_stt(family, "mixture"),),
    "stt_dense": lambda family: (_stt(family, "dense"),),
}


# --- inputs ----------------------------------------------------------------------------------------------------------

TEXT, SHORT = 12, 8


def text(batch: int = 2, **more: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    attention_mask = torch.ones(batch, TEXT, dtype=torch.long)
    attention_mask[1::2, SHORT:] = 0
    input_ids = torch.randint(5, VOCABULARY, (batch, TEXT), generator=generator)
    return {"input_ids": input_ids, "attention_mask": attention_mask, **more}


def text_pair() -> dict[str, Tensor]:
    return text(token_type_ids=torch.tensor([[0] * 5 + [1] * 7, [0] * 3 + [1] * 9]))


def prompt() -> dict[str, Tensor]:
    """Text that ends with a token that CLIP looks for."""
    inputs = text()
    inputs["input_ids"][0, -1] = inputs["input_ids"][1, SHORT - 1] = VOCABULARY - 1
    return inputs


def page() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    corner = torch.randint(0, 20, (2, TEXT, 2), generator=generator)
    return text(bbox=torch.cat([corner, corner + torch.randint(1, 20, (2, TEXT, 2), generator=generator)], -1))


def page_pair() -> dict[str, Tensor]:
    return page() | text_pair()


def _floats(name: str, *shape: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))}


image = _floats("pixel_values", 3, 16, 16)
video = _floats("pixel_values", 4, 3, 16, 16)


def naflex() -> dict[str, Tensor]:
    """Patches of two images of different shapes, as SigLIP 2 takes them."""
    values = torch.randn(2, 16, 4 * 4 * 3, generator=torch.Generator().manual_seed(1))
    shapes = torch.tensor([[4, 4], [2, 5]])
    mask = (torch.arange(16) < shapes.prod(-1, keepdim=True)).long()
    return {"pixel_values": values, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def square() -> dict[str, Tensor]:
    """The same, both of one shape."""
    return naflex() | {
        "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]] * 2),
    }


def frames() -> dict[str, Tensor]:
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, 13:] = 0
    return _floats("input_features", 20, 16)() | {"attention_mask": mask}


def sound() -> dict[str, Tensor]:
    values = torch.randn(2, 400, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 400, dtype=torch.long)
    mask[1, 280:] = 0
    return {"input_values": values * mask, "attention_mask": mask}


# --- the families ----------------------------------------------------------------------------------------------------

# Why some cannot do without queries and keys.
_FUSED = "has no query and key projections of its own"
_CAUSAL = "its tokens see earlier ones only"
_BIASED = "it adds a bias to the scores"


def _text(title: str, name: str, heads: str, inputs: Any = text, config: str | None = None, **more: Any) -> Family:
    known = {"segments": None, "without": {}, "length": True, "model": f"{name}Model", "lacks": (), "note": None}
    known |= {key: more.pop(key) for key in list(known) if key in more}
    sizes = {"vocab_size": VOCABULARY, "pad_token_id": 1, "max_position_embeddings": 40, **SIZES}
    heads_of = tuple(_TEXT_HEADS[letter] for letter in heads)
    return Family(
        title, "text", known.pop("model"), config or f"{name}Config", {**sizes, **more}, inputs, TEXT, heads_of,
        padding="attention_mask", short=SHORT, **known,
    )  # fmt: skip


_TEXT_HEADS = {
    "s": "SequenceClassification",
    "t": "TokenClassification",
    "q": "QuestionAnswering",
    "m": "MaskedLM",
    "c": "MultipleChoice",
    "n": "NextSentencePrediction",
    "p": "PreTraining",
    "d": "DocumentQuestionAnswering",
}

_IMAGE = {**SIZES, "image_size": 16, "patch_size": 4}
# A grid of 4 × 4 patches.
_PATCHES = 16


def _image(title: str, name: str, heads: tuple[str, ...] = (), prefix: int = 1, **more: Any) -> Family:
    known = {"without": {}, "model": f"{name}Model", "composite": None, "of_heads": {}, "inputs": image, "lacks": ()}
    known |= {key: more.pop(key) for key in list(known) if key in more}
    options, inputs, model = {**_IMAGE, **more}, known.pop("inputs"), known.pop("model")
    return Family(title, "image", model, f"{name}Config", options, inputs, _PATCHES + prefix, heads, **known)


_SPEECH = {
    **SIZES,
    "vocab_size": 30,
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
    "tdnn_dim": (16, 16),
    "tdnn_kernel": (3, 1),
    "tdnn_dilation": (1, 1),
    "xvector_output_dim": 16,
    "layerdrop": 0.0,
    "apply_spec_augment": False,  # which draws from numpy
}
_SOUND = 19


def _speech(title: str, name: str, heads: tuple[str, ...], lacks: str = "pickle", **more: Any) -> Family:
    of_heads = more.pop("of_heads", {})
    return Family(
        title, "audio", f"{name}Model", f"{name}Config", {**_SPEECH, **more}, sound, _SOUND, heads,
        segments=None, length=False, padding="attention_mask", short=13, lacks=(lacks,), of_heads=of_heads,
    )  # fmt: skip


def _clip(vision: Any) -> Any:
    text_options = {**SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": 40}
    name = type(vision).__name__.replace("VisionConfig", "")
    return find_class(f"{name}Config")(text_config=text_options, vision_config=vision.to_dict(), num_labels=3)


_TASKS = ("AudioClassification", "CTC", "AudioFrameClassification", "AudioXVector")
_PRETRAINED = {
    "PreTraining": {
        "num_codevectors_per_group": 4,
        "codevector_dim": 16,
        "proj_codevector_dim": 16,
        "num_negatives": 2,
    }
}

FAMILIES: dict[str, Family] = {
    # text
    "bert": _text("BERT", "Bert", "stqmcnp", text_pair, segments="token types"),
    "roberta": _text("RoBERTa", "Roberta", "stqmc"),
    "xlm_roberta": _text("XLM-RoBERTa", "XLMRoberta", "stqmc"),
    "electra": _text("ELECTRA", "Electra", "stqmcp", text_pair, segments="token types", embedding_size=16),
    "camembert": _text("CamemBERT", "Camembert", "stqmc"),
    "distilbert": _text("DistilBERT", "DistilBert", "stqmc", hidden_dim=37),
    "modernbert": _text(
        "ModernBERT", "ModernBert", "stqmc", local_attention=6, global_attn_every_n_layers=2,
        without={"stt_dense": _FUSED},
    ),
    "eurobert": _text(
        "EuroBERT", "EuroBert", "stm", num_key_value_heads=2, without={"stt_dense": "heads × head size = hidden size"}
    ),
    "nomic_bert": _text("NomicBERT", "NomicBert", "stm", text_pair, segments="token types"),
    "gte": _text("GTE", "Gte", "stm"),
    "jina_embeddings_v3": _text("Jina embeddings v3", "JinaEmbeddingsV3", "stqm"),
    "esm": _text("ESM-2", "Esm", "stm", position_embedding_type="rotary", token_dropout=True, mask_token_id=4),
    "ernie": _text("ERNIE", "Ernie", "stqmcnp", text_pair, segments="token types"),
    "data2vec_text": _text("data2vec-text", "Data2VecText", "stqmc"),
    "roberta_prelayernorm": _text("RoBERTa-PreLayerNorm", "RobertaPreLayerNorm", "stqmc"),
    "layoutlm": _text(
        "LayoutLM", "LayoutLM", "stdm", page_pair, segments="token types", max_2d_position_embeddings=64
    ),
    "clip_text": _text(
        "CLIP's text encoder", "CLIPText", "", prompt, eos_token_id=VOCABULARY - 1, projection_dim=16,
        without={"stt_dense": _CAUSAL},
    ),
    "siglip_text": _text("SigLIP's text encoder", "SiglipText", "", projection_size=32),
    "layoutlmv3": _text(
        "LayoutLMv3", "LayoutLMv3", "stq", page, visual_embed=False, coordinate_size=6, shape_size=4,
        max_2d_position_embeddings=64, lacks=("checkpointing",), without={"stt_dense": _BIASED},
        note="refused with transformers 5.18, where it computes its attention itself",
    ),
    # images
    "vit": _image("ViT", "ViT", ("ImageClassification", "MaskedImageModeling"), encoder_stride=4),
    "deit": _image("DeiT", "DeiT", ("ImageClassification", "MaskedImageModeling"), prefix=2, encoder_stride=4),
    "beit": _image(
        "BEiT", "Beit", ("ImageClassification", "SemanticSegmentation"), use_relative_position_bias=True,
        without={"stt_dense": _BIASED},
        of_heads={
            "SemanticSegmentation": {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "pool_scales": [1, 2]}
        },
    ),
    "dinov2": _image("DINOv2", "Dinov2", ("ImageClassification",)),
    "dinov2_with_registers": _image(
        "DINOv2 with registers", "Dinov2WithRegisters", ("ImageClassification",), prefix=4, num_register_tokens=3
    ),
    "dinov3_vit": _image("DINOv3", "DINOv3ViT", prefix=3, num_register_tokens=2),
    "ijepa": _image("I-JEPA", "IJepa", ("ImageClassification",), prefix=0),
    "vit_msn": _image("ViT-MSN", "ViTMSN", ("ImageClassification",)),
    "clip_vision": _image("CLIP's image encoder", "CLIPVision", ("ImageClassification",), composite=_clip),
    "siglip_vision": _image("SigLIP's image encoder", "SiglipVision", ("ImageClassification",), 0, composite=_clip),
    "siglip2_vision": Family(
        "SigLIP 2's image encoder", "image", "Siglip2VisionModel", "Siglip2VisionConfig",
        {**SIZES, "patch_size": 4, "num_patches": 16}, naflex, 16, ("ImageClassification",),
        composite=_clip, even=square,
        padding="pixel_attention_mask", short=10,
    ),
    "aimv2_vision": _image("AIMv2", "Aimv2Vision", prefix=0),
    "mlcd": _image("MLCD", "MLCDVision", lacks=("reentrant",)),
    "radio": _image("RADIO", "Radio", prefix=3, num_cls_tokens=2, num_registers=1, max_img_size=16, mlp_ratio=1.5),
    "internvl_vision": _image("InternVL's image encoder", "InternVLVision", image_size=[16, 16], patch_size=[4, 4]),
    "pixio": _image("Pixio", "Pixio", prefix=2, n_cls_tokens=2, mlp_ratio=2),
    # videos
    "videomae": Family(
        "VideoMAE", "video", "VideoMAEModel", "VideoMAEConfig", {**_IMAGE, "num_frames": 4, "patch_size": 8}, video,
        8, ("VideoClassification", "PreTraining"), segments="early and late",
        of_heads={
            "PreTraining": {
                "decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1,
                "decoder_intermediate_size": 16,
            }
        },
    ),
    "vivit": Family(
        "ViViT", "video", "VivitModel", "VivitConfig",
        {**SIZES, "image_size": 16, "num_frames": 4, "tubelet_size": [2, 8, 8]}, video, 9, ("VideoClassification",),
        segments="early and late",
    ),
    "vjepa2": Family(
        "V-JEPA 2", "video", "VJEPA2Model", "VJEPA2Config",
        {
            "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 1.5,
            "crop_size": 16, "patch_size": 8, "frames_per_clip": 4, "tubelet_size": 2, "num_pooler_layers": 1,
            "pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1, "pred_mlp_ratio": 1.0,
        },
        _floats("pixel_values_videos", 4, 3, 16, 16), 8, ("VideoClassification",), segments="early and late",
    ),
    # sound
    "ast": Family(
        "AST", "audio", "ASTModel", "ASTConfig",
        {**SIZES, "num_mel_bins": 16, "max_length": 32, "patch_size": 4, "frequency_stride": 4, "time_stride": 4},
        _floats("input_values", 32, 16), 34, ("AudioClassification",),
    ),
    "wav2vec2": _speech("wav2vec 2.0", "Wav2Vec2", (*_TASKS, "PreTraining"), of_heads=_PRETRAINED),
    "hubert": _speech("HuBERT", "Hubert", _TASKS[:2]),
    "data2vec_audio": _speech(
        "data2vec-audio", "Data2VecAudio", _TASKS, "padding", conv_pos_kernel_size=3, num_conv_pos_embeddings=2
    ),
    "unispeech": _speech(
        "UniSpeech", "UniSpeech", (*_TASKS[:2], "PreTraining"), of_heads=_PRETRAINED, num_ctc_classes=30
    ),
    "wav2vec2_bert": Family(
        "Wav2Vec2-BERT", "audio", "Wav2Vec2BertModel", "Wav2Vec2BertConfig",
        {**_SPEECH, "feature_projection_input_dim": 16}, frames, 20, _TASKS, padding="attention_mask", short=13,
        segments=None, length=False, without={"stt_dense": _BIASED},
    ),
    "whisper": Family(
        "Whisper's encoder", "audio", "WhisperEncoder", "WhisperConfig",
        {
            "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4,
            "encoder_ffn_dim": 37, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 32,
            "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 8, "classifier_proj_size": 16,
            "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2,
        },
        _floats("input_features", 16, 40), 20, ("AudioClassification",), segments="early and late",
    ),
}  # fmt: skip
