"""Checkpoints that encoders come from: what is read when, and which part of a checkpoint is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SEWConfig,
    SEWModel,
    SwinConfig,
    SwinModel,
    T5Config,
    T5Model,
    TimesformerConfig,
    TimesformerModel,
    VitDetConfig,
    VitDetModel,
    ViTMAEConfig,
    ViTMAEModel,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerModel,
    Wav2Vec2ForCTC,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
)

from helpers.families import FAMILIES, SIZES
from helpers.fusion_encoders import ENCODERS
from helpers.hosts import make_host, make_inputs, max_difference
from hf_lam import HfLamBertModel, HfLamFusionModel, LamConfig, convert

_TEXT: dict[str, Any] = {"vocab_size": 61, "max_position_embeddings": 40, **SIZES}
_SPEECH = {**FAMILIES["wav2vec2"].options, "apply_spec_augment": True}

# What no fusion model can have, and what is said of it.
REFUSED: dict[str, tuple[str, type[PreTrainedModel], Any, str]] = {
    "decoder": ("text", GPT2Model, GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4), "see only what comes"),
    "is_decoder": ("text", BertModel, BertConfig(**_TEXT, is_decoder=True), "is_decoder=True"),
    "both": (
        "text", T5Model, T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4),
        "T5Config, and it is for a model with a decoder",
    ),
    "another modality": ("image", BertModel, BertConfig(**_TEXT), "BertModel, which takes input_ids"),
    "random tokens": (
        "image", ViTMAEModel, ViTMAEConfig(**SIZES, image_size=16, patch_size=4), "drops tokens at random"
    ),
    "adapter": (
        "audio", FAMILIES["wav2vec2"].stock_class(),
        FAMILIES["wav2vec2"].stock_class().config_class(**_SPEECH, add_adapter=True), "add_adapter.*see padding",
    ),
    "conformer": (
        "audio", Wav2Vec2ConformerModel, Wav2Vec2ConformerConfig(**_SPEECH), "convolutions in its layers see padding"
    ),
    "convolutions": ("image", ResNetModel, ResNetConfig(), "ResNetConfig without hidden_size"),
    "a map": (
        "image", VitDetModel, VitDetConfig(**{**SIZES, "image_size": 16, "patch_size": 4}), "map of features"
    ),
    "frames apart": (
        "video", TimesformerModel, TimesformerConfig(**SIZES, image_size=16, patch_size=4, num_frames=4),
        "frames of a video apart",
    ),
    "more inputs": (
        "text", Blip2QFormerModel, Blip2QFormerConfig(**_TEXT), "also needs query_embeds"
    ),
    "squeezed": ("audio", SEWModel, SEWConfig(**_SPEECH, squeeze_factor=2), "squeeze_factor.*averages"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_so_before_weights_are_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modality, _, config, message = REFUSED[name]
    config.save_pretrained(tmp_path)
    forbid_reading(monkeypatch)
    with pytest.raises(ValueError, match=rf"{modality}.*({message})"):
        HfLamFusionModel.from_modality_pretrained(**{modality: tmp_path})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"own_layers": {"text": 3}}, r"own_layers\['text'\]=3.*from 0 to 2"),
        ({"own_layers": {"image": 1}}, r"own_layers\['image'\]=1.*not given"),
        ({"fusion_from": "image"}, "fusion_from='image' must be one of"),
        ({"fusion_from": "text", "num_hidden_layers": 3}, "'text' has 2 layers, but there are 3"),
        (
            {"fusion_from": "text", "hidden_size": 64, "num_hidden_layers": 1},
            r"cannot start from the text.*\(64, 64\)",
        ),
        ({"pooling": "sum"}, "pooling of text"),
        ({"features": {"clips": 0}}, "features"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_weights_are_read(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BertConfig(**_TEXT).save_pretrained(tmp_path)
    forbid_reading(monkeypatch)
    with pytest.raises(ValueError, match=message):
        HfLamFusionModel.from_modality_pretrained(text=tmp_path, **options)


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("weights are read")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(read))
    monkeypatch.setattr(AutoModel, "from_pretrained", classmethod(read))


def test_stages_are_used_whole_and_not_cut(tmp_path: Path) -> None:
    sizes = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    torch.manual_seed(0)
    source = SwinModel(SwinConfig(image_size=16, patch_size=2, **sizes)).eval()
    values = torch.randn(2, 3, 16, 16)
    model = HfLamFusionModel.from_modality_pretrained(image=source, baseline="late", num_attention_heads=4)
    assert torch.equal(model(pixel_values=values).last_hidden_state, source(values).last_hidden_state)
    with pytest.raises(ValueError, match=r"'image'\]=1: the layers of SwinModel cannot be cut.*used whole"):
        HfLamFusionModel.from_modality_pretrained(image=source, own_layers={"image": 1}, num_attention_heads=4)


def test_a_model_of_two_encoders_gives_the_one_of_the_modality(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 1}
    torch.manual_seed(0)
    source = CLIPModel(
        CLIPConfig(
            text_config={**sizes, "vocab_size": 99, "eos_token_id": 98},
            vision_config={**sizes, "image_size": 16, "patch_size": 4},
        )
    ).eval()
    source.save_pretrained(tmp_path)
    ids, values = torch.randint(2, 99, (2, 9)), torch.randn(2, 3, 16, 16)
    for given in (source, tmp_path):
        model = HfLamFusionModel.from_modality_pretrained(text=given, image=given, baseline="late")
        outputs = model(input_ids=ids, pixel_values=values).last_hidden_state
        assert max_difference(outputs[:, :9], source.text_model(input_ids=ids).last_hidden_state) < 1e-6
        assert torch.equal(outputs[:, 9:], source.vision_model(values).last_hidden_state)


@pytest.mark.parametrize("kind", [WhisperForConditionalGeneration, WhisperForAudioClassification])
def test_a_model_with_a_decoder_gives_its_encoder(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = kind(ENCODERS["whisper"].make_config()).eval()
    source.save_pretrained(tmp_path)
    values = torch.randn(2, 16, 40)
    encoder = source.encoder if kind is WhisperForAudioClassification else source.model.encoder
    for given in (source, tmp_path):
        model = HfLamFusionModel.from_modality_pretrained(audio=given, baseline="late")
        assert torch.equal(model(audio_values=values).last_hidden_state, encoder(values).last_hidden_state)


def test_a_model_for_speech_gives_its_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    row = ENCODERS["wav2vec2_group"]
    source = Wav2Vec2ForCTC(row.make_config()).eval()
    source.save_pretrained(tmp_path)
    values = row.inputs()["input_values"]
    for given in (source, tmp_path):
        model = HfLamFusionModel.from_modality_pretrained(audio=given, baseline="late")
        assert max_difference(model(audio_values=values).last_hidden_state, source.wav2vec2(values)[0]) < 1e-6


def test_a_folder_of_sentence_transformers_gives_its_transformer(tmp_path: Path) -> None:
    source = make_host("bert")
    modules = [
        {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    source.save_pretrained(tmp_path / "0_Transformer")
    model = HfLamFusionModel.from_modality_pretrained(text=tmp_path, baseline="late")
    inputs = make_inputs("bert")
    assert torch.equal(model(**inputs).last_hidden_state, source(**inputs).last_hidden_state)
    (tmp_path / "modules.json").unlink()
    with pytest.raises((OSError, ValueError), match=r"config\.json|model_type"):
        HfLamFusionModel.from_modality_pretrained(text=tmp_path)


def test_a_folder_of_hf_lam_without_mechanisms_is_its_host(tmp_path: Path) -> None:
    source = make_host("bert")
    HfLamBertModel.from_pretrained(_saved(source, tmp_path / "stock")).save_pretrained(tmp_path / "plain")
    model = HfLamFusionModel.from_modality_pretrained(text=tmp_path / "plain", baseline="late")
    inputs = make_inputs("bert")
    assert torch.equal(model(**inputs).last_hidden_state, source(**inputs).last_hidden_state)
    assert type(model.config.text_config) is BertConfig
    convert(make_host("bert"), LamConfig()).save_pretrained(tmp_path / "lam")
    with pytest.raises(ValueError, match="text checkpoint has hf_lam mechanisms"):
        HfLamFusionModel.from_modality_pretrained(text=tmp_path / "lam")


def _saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def test_a_checkpoint_without_weights_of_the_encoder_is_refused(tmp_path: Path) -> None:
    source = make_host("bert")
    weights = {key: value for key, value in source.state_dict().items() if "layer.2.output" not in key}
    source.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"text checkpoint does not have 4 weights of BertModel.*layer\.2\.output"):
        HfLamFusionModel.from_modality_pretrained(text=tmp_path)
    # The layers that it does have are enough.
    HfLamFusionModel.from_modality_pretrained(text=tmp_path, own_layers={"text": 2})


def test_features_come_beside_checkpoints() -> None:
    model = HfLamFusionModel.from_modality_pretrained(
        text=make_host("bert"), features={"clips": 8}, modalities=["clips", "text"], num_hidden_layers=1
    )
    assert model.config.modalities == ["clips", "text"]
    alone = HfLamFusionModel.from_modality_pretrained(
        features={"clips": 8}, hidden_size=32, num_attention_heads=4, num_hidden_layers=1
    )
    assert alone.config.modalities == ["clips"] and not alone.training
