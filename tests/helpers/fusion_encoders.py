"""Encoders that a fusion model can have, by modality: tiny, with random weights, and inputs for them.

`docs/fusion.md` says what is a row here; `tests/fusion/test_fusion_encoders.py` shows that every row holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from helpers.families import (
    FAMILIES,
    SHORT,
    SIZES,
    TEXT,
    VOCABULARY,
    Family,
    find_class,
    randomize,
    sound,
    text,
    text_pair,
)

# What stock encoders call what a fusion model calls by the modality.
_NAMES = {
    "text": {},
    "image": {"pixel_attention_mask": "image_mask"},
    "video": {"pixel_values": "video_values", "pixel_values_videos": "video_values"},
    "audio": {
        **dict.fromkeys(("input_values", "input_features", "pixel_values"), "audio_values"),
        "attention_mask": "audio_mask",
    },
}
# Mel frames of the two sounds for Whisper, of which its window has 40: one number is odd.
WINDOW = (32, 21)


@dataclass(frozen=True)
class FusionEncoder:
    """One row of the table.

    title: what people call it.
    modality: "text", "image", "video" or "audio".
    model: the stock class of the encoder.
    config: the stock class of its configuration.
    options: of a tiny one.
    inputs: a batch of two as the stock encoder takes it; padded in the second sample where there is a mask.
    tokens: how many tokens there are of each sample.
    cut: whether layers of its own can be left out (`own_layers`).
    taken: whether fusion layers can start from its layers (`fusion_from`).
    size: the sides of an image that the encoder takes besides the one that it was made for; None if it takes no other.
    row: the shape of the input in the table, after the batch.
    mask: what says what is padding, in the table.
    """

    title: str
    modality: str
    model: str
    config: str
    options: dict[str, Any]
    inputs: Callable[[], dict[str, Tensor]]
    tokens: tuple[int, int]
    row: str
    mask: str = "–"
    cut: bool = True
    taken: bool = False
    size: tuple[int, int] | None = None

    def make_config(self, **options: Any) -> Any:
        return find_class(self.config)(**{**self.options, **options})

    def make(self, seed: int = 0, **options: Any) -> Any:
        """The stock encoder in eval mode, all of whose parameters are random."""
        config = self.make_config(**options)
        torch.default_generator.manual_seed(seed)
        return randomize(find_class(self.model, self.config)(config))

    def rename(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a fusion model calls inputs of the stock encoder."""
        names = _NAMES[self.modality]
        return {names.get(name, name): value for name, value in inputs.items()}

    def batch(self) -> dict[str, Tensor]:
        """The inputs as a fusion model takes them, with numbers where there is padding."""
        inputs = self.rename(self.inputs())
        mask = inputs.get(f"{self.modality}_mask")
        if mask is not None:
            values = next(value for value in inputs.values() if value.is_floating_point())
            place = mask if values.dim() == 2 else mask[:, None] if self.model == "WhisperEncoder" else mask[..., None]
            values[:] = torch.where(place.bool(), values, 3.0)
        return inputs

    def alone(self, index: int) -> dict[str, Tensor]:
        """A sample of the inputs by itself, without padding, as the stock encoder takes it."""
        inputs = {name: value[index : index + 1] for name, value in self.inputs().items()}
        mask = next((value for name, value in inputs.items() if name.endswith("attention_mask")), None)
        if mask is None:
            return inputs
        length, padded = int(mask.sum()), mask.shape[1]
        return {
            name: value.narrow(value.shape.index(padded, 1), 0, length) if padded in value.shape[1:] else value
            for name, value in inputs.items()
        }

    def run_alone(self, encoder: Any, index: int) -> Tensor:
        """What the stock encoder makes of a sample by itself, `(tokens, width)`."""
        inputs = self.alone(index)
        if self.model == "WhisperEncoder":
            return _run_short_window(self, encoder, inputs["input_features"])[0]
        options = {"skip_predictor": True} if self.model == "VJEPA2Model" else {}
        return encoder(**inputs, **options).last_hidden_state[0]


def _run_short_window(row: FusionEncoder, encoder: Any, values: Tensor) -> Tensor:
    """What a Whisper encoder for sounds of just that length makes of one."""
    tokens = (values.shape[2] + 1) // 2
    short = row.make(max_source_positions=tokens)
    weights = dict(encoder.named_parameters())
    weights["embed_positions.weight"] = weights["embed_positions.weight"][:tokens]
    # The encoder insists on twice as many frames as positions; its convolutions take any number.
    short.config.__dict__["max_source_positions"] = values.shape[2] / 2
    return torch.func.functional_call(short, weights, (values,)).last_hidden_state


def _row(name: str, modality: str, row: str, **more: Any) -> FusionEncoder:
    family: Family = FAMILIES[name]
    options = {**family.options, **more.pop("options", {})}
    options.pop("apply_spec_augment", None)  # as in a checkpoint
    known: dict[str, Any] = {
        "title": family.title,
        "inputs": family.inputs,
        "tokens": (family.tokens, family.short or family.tokens),
        **more,
    }
    return FusionEncoder(
        modality=modality, model=family.model, config=family.config, options=options, row=row, **known
    )


def _text(name: str, **more: Any) -> FusionEncoder:
    return _row(name, "text", "L", mask="`attention_mask`", **more)


def _other_text(title: str, name: str, inputs: Any = text, **more: Any) -> FusionEncoder:
    known = {key: more.pop(key) for key in ("cut", "taken") if key in more}
    sizes = {"vocab_size": VOCABULARY, "pad_token_id": 1, "max_position_embeddings": 40, **SIZES}
    return FusionEncoder(
        title, "text", f"{name}Model", f"{name}Config", {**sizes, **more}, inputs, (TEXT, SHORT), "L",
        "`attention_mask`", **known,
    )  # fmt: skip


def _image(name: str, size: tuple[int, int] | None = (24, 12), **more: Any) -> FusionEncoder:
    row = "channels, height, width" + (" of any size" if size else "")
    return _row(name, "image", row, size=size, **more)


def _sound(name: str, title: str | None = None, **more: Any) -> FusionEncoder:
    return _row(
        name, "audio", "samples", mask="`audio_mask` over samples", title=title or FAMILIES[name].title, **more
    )


_GROUP = {"feat_extract_norm": "group", "do_stable_layer_norm": False}


def window() -> dict[str, Tensor]:
    """Sounds shorter than Whisper's window, the second one padded."""
    values = torch.randn(2, 16, WINDOW[0], generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(WINDOW[0]) < torch.tensor(WINDOW)[:, None]).long()
    return {"input_features": values, "attention_mask": mask}


def _spectrogram() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))}


ENCODERS: dict[str, FusionEncoder] = {
    # text
    "bert": _text("bert", taken=True),
    "roberta": _text("roberta", taken=True),
    "xlm_roberta": _text("xlm_roberta", taken=True),
    "electra": _text("electra", taken=True, options={"embedding_size": 32}),
    "camembert": _text("camembert", taken=True),
    "distilbert": _text("distilbert", taken=True),
    "modernbert": _text("modernbert"),
    "eurobert": _text("eurobert"),
    "nomic_bert": _text("nomic_bert"),
    "gte": _text("gte"),
    "jina_embeddings_v3": _text("jina_embeddings_v3"),
    "esm": _text("esm"),
    "ernie": _text("ernie", taken=True),
    "data2vec_text": _text("data2vec_text", taken=True),
    "roberta_prelayernorm": _text("roberta_prelayernorm"),
    "clip_text": _text("clip_text"),
    "siglip_text": _text("siglip_text", taken=True),
    "mpnet": _other_text("MPNet", "MPNet"),
    "roformer": _other_text("RoFormer", "RoFormer", text_pair),
    "deberta_v2": _other_text(
        "DeBERTa-v2 and -v3", "DebertaV2", relative_attention=True, position_buckets=4, pos_att_type=["p2c", "c2p"]
    ),
    "albert": _other_text("ALBERT", "Albert", text_pair, cut=False, embedding_size=16),
    # images
    "vit": _image("vit", taken=True),
    "deit": _image("deit", taken=True),
    "beit": _image("beit"),
    "dinov2": _image("dinov2"),
    "dinov2_with_registers": _image("dinov2_with_registers"),
    "dinov3_vit": _image("dinov3_vit"),
    "ijepa": _image("ijepa", taken=True),
    "vit_msn": _image("vit_msn", taken=True),
    "clip_vision": _image("clip_vision", taken=True),
    "siglip_vision": _image("siglip_vision", taken=True),
    "siglip2_vision": _row(
        "siglip2_vision", "image", "patches, numbers", mask="`image_mask`, `spatial_shapes`", taken=True
    ),
    "aimv2_vision": _image("aimv2_vision", None),
    "mlcd": _image("mlcd"),
    "radio": _image("radio"),
    "internvl_vision": _image("internvl_vision"),
    "pixio": _image("pixio", taken=True),
    # videos
    "videomae": _row("videomae", "video", "frames, channels, height, width", taken=True,
                     options={"use_mean_pooling": False}),
    "vivit": _row("vivit", "video", "frames, channels, height, width", taken=True),
    "vjepa2": _row("vjepa2", "video", "any number of frames, channels, height, width"),
    # sound
    "ast": _row("ast", "audio", "frames, mel bins", taken=True),
    "vit_spectrogram": _row(
        "vit", "audio", "channels, height, width", title="ViT, on spectrograms", taken=True, inputs=_spectrogram,
        options={"num_channels": 1},
    ),
    "whisper": _row(
        "whisper", "audio", "mel bins, frames", inputs=window, tokens=(16, 11), mask="`audio_mask` over frames"
    ),
    "wav2vec2": _sound("wav2vec2", "wav2vec 2.0, layer norm"),
    "wav2vec2_group": _sound("wav2vec2", "wav2vec 2.0, group norm", options=_GROUP),
    "hubert": _sound("hubert", "HuBERT, layer norm"),
    "hubert_group": _sound("hubert", "HuBERT, group norm", options=_GROUP),
    "data2vec_audio": _sound("data2vec_audio"),
    "unispeech": _sound("unispeech"),
    "wav2vec2_bert": _row("wav2vec2_bert", "audio", "frames, numbers", mask="`audio_mask` over frames"),
}  # fmt: skip

_SPEECH = ENCODERS["wav2vec2"].options
for _key, _title, _name in (
    ("unispeech_sat", "UniSpeech-SAT", "UniSpeechSat"),
    ("wavlm", "WavLM", "WavLM"),
):
    ENCODERS[_key] = FusionEncoder(
        _title, "audio", f"{_name}Model", f"{_name}Config", _SPEECH, sound, (19, 13), "samples",
        "`audio_mask` over samples",
    )  # fmt: skip
