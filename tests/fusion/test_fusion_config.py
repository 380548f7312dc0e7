"""HfLamFusionConfig: what it takes, what it makes of it, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BertConfig, Dinov2Config, PreTrainedConfig

import hf_lam
from helpers.fusion_models import FUSION_CONFIGS, HOSTS, MODALITIES, fusion_config, make_fusion
from helpers.hosts import CONFIGS
from hf_lam import (
    HfLamBertConfig,
    HfLamFusionConfig,
    HfLamFusionForSequenceClassification,
    HfLamFusionModel,
    LamConfig,
    LocomtConfig,
    SttConfig,
)

LAM = {"version": hf_lam.__version__, "lam": LamConfig().to_dict()}


def test_the_first_modality_sets_the_sizes_that_are_left_out() -> None:
    encoders = {"text_config": CONFIGS["bert"](), "video_config": CONFIGS["videomae"](hidden_size=24)}
    config = HfLamFusionConfig(**encoders)
    assert config.modalities == ["text", "video"]
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (32, 4, 128)
    assert (config.num_hidden_layers, config.norm_first, config.combine, config.hf_lam) == (4, True, "mean", None)
    assert config.image_config is None
    assert HfLamFusionConfig(modalities=["video", "text"], **encoders).hidden_size == 24


def test_the_encoders_configurations_are_copies() -> None:
    text = CONFIGS["bert"]()
    config = HfLamFusionConfig(text_config=text)
    text.vocab_size = 7
    assert config.text_config.vocab_size == 99


def test_the_order_of_the_modalities_is_that_of_the_sequence() -> None:
    model = make_fusion(("audio", "text"), head=False)
    assert model.config.modalities == ["audio", "text"]
    inputs = {"input_ids": torch.ones(1, 5, dtype=torch.long), "audio_values": torch.randn(1, 32, 16)}
    assert model(**inputs).modality_ids.tolist() == [0] * 34 + [1] * 5


def tiny(model_type: str) -> PreTrainedConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    return AutoConfig.for_model(model_type, **sizes, image_size=16, patch_size=4, vocab_size=99)


ENCODERS = {"text_config": CONFIGS["bert"](), "image_config": CONFIGS["vit"]()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_config": None, "image_config": None}, "at least one modality"),
        ({"text_config": 3}, "text_config must be a configuration or a dictionary, got int"),
        ({"image_config": {"hidden_size": 4}}, "image_config has the model type 'None'"),
        ({"audio_config": {"model_type": "wavelets"}}, "audio_config has the model type 'wavelets'"),
        ({"text_config": HfLamBertConfig()}, "text_config is of type 'hf_lam_bert'"),
        ({"video_config": PreTrainedConfig()}, "video_config is a PreTrainedConfig without hidden_size"),
        ({"modalities": ["text"]}, r"modalities must list \['text', 'image'\].*got \['text'\]"),
        ({"modalities": ["text", "image", "image"]}, "modalities must list"),
        ({"modalities": ["text", "smell"]}, "got.*smell"),
        ({"modalities": "text"}, "got 'text'"),
        ({"hidden_size": 30}, "hidden_size=30 must be a multiple of num_attention_heads=4"),
        ({"hidden_size": 0}, "hidden_size must be an integer of at least 1 and at most 10,000,000, got 0"),
        ({"num_attention_heads": 2.0}, r"num_attention_heads.*got 2\.0"),
        ({"intermediate_size": -3}, "intermediate_size.*got -3"),
        ({"num_hidden_layers": -1}, "num_hidden_layers.*at least 0 and .* got -1"),
        ({"num_hidden_layers": True}, "num_hidden_layers.*got True"),
        ({"pooling": "max"}, "pooling of text must be 'cls' or 'mean', got 'max'"),
        ({"pooling": {"image": "max"}}, "pooling of image.*got 'max'"),
        ({"pooling": {"audio": "mean"}}, "pooling must be.*audio"),
        ({"pooling": 3}, "pooling must be.*got 3"),
        ({"combine": "sum"}, "combine must be 'mean' or 'concat', got 'sum'"),
        ({"baseline": "none"}, "baseline must be one of full, self, bottleneck, late, got 'none'"),
        ({"baseline": "self", "hf_lam": LAM}, r"baseline='self'.*leave out hf_lam.*\['lam'\]"),
        ({"num_hidden_layers": 0, "hf_lam": LAM}, "hf_lam has no meaning with num_hidden_layers=0"),
        ({"baseline": "late", "hf_lam": LAM}, "baseline='late'"),
        ({"hf_lam": SttConfig()}, "SttConfig needs tokens on one grid"),
        ({"hf_lam": {"variant": "dense"}}, "SttConfig needs tokens on one grid"),
        ({"hf_lam": {"wavelets": {}}}, "unknown keys.*wavelets"),
        ({"depth_config": CONFIGS["vit"]()}, "has no depth_config; its modalities are text, image, video, audio"),
        ({"hidden_act": "wavy"}, "hidden_act='wavy'"),
        ({"baseline": "self", "num_hidden_layers": 0}, "baseline='self' needs fusion layers"),
    ],
)
def test_nonsense_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HfLamFusionConfig(**{**ENCODERS, **options})


# Names that are none: paths, code, other people's attributes, arguments that something else has.
NAMES = ["cl.ips", "cl/ips", "../clips", "__class__", "_clips", "Clips", "clips ", "clips\n", "", "1", "ünder"]
NAMES += ["base", "modality", "input"]


@pytest.mark.parametrize("name", [*NAMES, 3, None])
def test_features_are_not_called_anything(name: Any) -> None:
    with pytest.raises(ValueError, match=f"features cannot be called {re.escape(repr(name))}"):
        HfLamFusionConfig(**ENCODERS, features={name: 6})


@pytest.mark.parametrize(("name", "encoder"), [("text", "text"), ("image", "image"), ("attention", "text")])
def test_features_are_not_called_what_an_encoder_has(name: str, encoder: str) -> None:
    encoders = {f"{encoder}_config": ENCODERS[f"{encoder}_config"]}
    with pytest.raises(ValueError, match=f"features cannot be called {name} beside encoders"):
        HfLamFusionConfig(**encoders, features={name: 6})
    # Without it they may.
    others = {key: config for key, config in ENCODERS.items() if key not in encoders}
    assert HfLamFusionConfig(**others, features={name: 6}).modalities[-1] == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 10**12}, "size must be an integer of at least 1 and at most 10,000,000, got 1000000000000"),
        ({"size": True}, "size must be an integer.*got True"),
        ({"size": 6.0}, r"size must be an integer.*got 6\.0"),
        ({"size": -1}, "got -1"),
        ({"size": None}, "size.*got None"),
        ({"size": 6, "max_length": 10**9}, "max_length must be an integer.*got 1000000000"),
        ({"size": 6, "max_length": False}, "got False"),
        ({"size": 6, "class_tokens": -1}, "class_tokens must be an integer of at least 0"),
        ({"size": 6, "max_length": 2, "class_tokens": 3}, "class_tokens=3 are more than max_length=2"),
        ({"size": 6, "dropout": float("nan")}, "dropout must be a number from 0 to below 1, got nan"),
        ({"size": 6, "dropout": 1}, "dropout must be"),
        ({"size": 6, "dropout": True}, "dropout must be.*got True"),
        ({"size": 6, "dropout": "x"}, "dropout must be.*got 'x'"),
        ({"size": 6, "norm": {"a": {"b": "c"}}}, "norm must be True or False"),
        ({"size": 6, "project": 1}, "project must be True or False, got 1"),
        ({"size": 6, "project": False}, "size 6 cannot have project=False: the fusion layers are 32 wide"),
        ({"size": 6, "positions": "rotary"}, "positions must be one of sinusoidal, learned, or None, got 'rotary'"),
        ({"size": 6, "positions": "learned"}, "learned positions need max_length"),
        ({"size": 6, "auto_map": {}}, r"features\['clips'\] must have a size, and may have"),
        ({"max_length": 6}, "must have a size"),
        ([6], "must have a size"),
        (None, "must have a size"),
        (0, "must have a size"),
        (True, "must have a size"),
    ],
)
def test_options_of_features_that_are_none(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HfLamFusionConfig(**ENCODERS, features={"clips": options})


@pytest.mark.parametrize("features", ["clips", 3, [["clips", 6]], True])
def test_features_that_are_no_table(features: Any) -> None:
    with pytest.raises(ValueError, match="features must have the options of each modality by its name"):
        HfLamFusionConfig(**ENCODERS, features=features)


def test_features_are_written_down_whole_and_read_again(tmp_path: Path) -> None:
    config = HfLamFusionConfig(features={"clips": 6, "words": {"size": 3}}, hidden_size=32, num_attention_heads=4)
    assert config.features["clips"]["positions"] == "sinusoidal"
    assert HfLamFusionConfig(**config.to_dict()).features == config.features
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_dict()["features"] == config.features
    assert HfLamFusionConfig(**ENCODERS, features={}).features is None
    with pytest.raises(ValueError, match="hidden_size must be given where no modality has an encoder"):
        HfLamFusionConfig(features={"clips": 6})


def test_stt_is_refused_when_it_is_set_and_when_it_is_injected() -> None:
    model = make_fusion(("text", "image"), head=False)
    with pytest.raises(ValueError, match="one grid"):
        model.config.hf_lam = SttConfig()
    with pytest.raises(ValueError, match="SttConfig needs tokens on one grid"):
        hf_lam.inject(model, SttConfig())
    assert model.config.hf_lam is None and not hasattr(model, "hf_lam")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_config": CONFIGS["vit"]()}, "text_config is for ViTModel, which takes pixel_values.*takes input_ids"),
        ({"image_config": CONFIGS["bert"]()}, "image_config is for BertModel, which takes input_ids.*image"),
        ({"image_config": AutoConfig.for_model("wav2vec2")}, "image_config is for Wav2Vec2Model.*that is no image"),
        ({"text_config": CONFIGS["bert"](is_decoder=True)}, "text_config is a BertConfig with is_decoder=True"),
        ({"text_config": tiny("gpt2")}, "text_config is for GPT2Model, whose tokens see only what comes before"),
        ({"image_config": tiny("vit_mae")}, r"image_config is for ViTMAEModel.*mask_ratio=0\.75"),
        ({"video_config": CONFIGS["vit"]()}, r"video_config is for ViTModel.*\(batch, 3, .*\); that is no video"),
        (
            {"text_config": AutoConfig.for_model("t5")},
            "text_config is a T5Config, and .* a model with a decoder",
        ),
        ({"hf_lam": LocomtConfig(segments=[["text", 5], ["image", 17]])}, r"modalities \['text', 'image'\]"),
        ({"hf_lam": LocomtConfig(views="text>sound")}, "sound"),
        ({"hf_lam": LocomtConfig(views=[["self"] * 4])}, "1"),
        ({"hf_lam": LamConfig(max_length=20)}, r"max_length=20.*\[40, 17\]"),
        (
            {"hf_lam": [LamConfig(), LocomtConfig(views="self", bottleneck_tokens=2)]},
            "bottleneck_tokens=2.*Leave out LamConfig",
        ),
    ],
)
def test_what_only_the_models_show_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    config = HfLamFusionConfig(**{**ENCODERS, **options})
    with pytest.raises(ValueError, match=message):
        HfLamFusionModel(config)


def test_a_baseline_is_one_switch_of_a_saved_model_too(tmp_path: Path) -> None:
    model = make_fusion(("text", "image"), hf_lam=LocomtConfig(views="half"))
    model.save_pretrained(tmp_path)
    assert model.config.baseline is None
    for baseline in ("full", "self", "bottleneck"):
        again, info = HfLamFusionForSequenceClassification.from_pretrained(
            tmp_path, baseline=baseline, output_loading_info=True
        )
        assert again.config.baseline == baseline
        assert not info["unexpected_keys"]
        assert HfLamFusionConfig.from_pretrained(tmp_path, baseline=baseline).baseline == baseline
    config = model.config.as_baseline("late")
    assert config.baseline == "late"
    with pytest.raises(ValueError, match="baseline='full' needs fusion layers"):
        config.baseline = "full"


def test_cls_pooling_needs_a_class_token() -> None:
    with pytest.raises(ValueError, match=r"pooling of video cannot be 'cls': VideoMAEModel has no such token.*'mean'"):
        make_fusion(("text", "video"), pooling="cls")
    model = make_fusion(head=False, pooling={"text": "mean"})
    assert model.pooling == {"text": "mean", "image": "cls", "video": "mean", "audio": "cls"}
    assert make_fusion(head=False, pooling="mean").pooling == dict.fromkeys(MODALITIES, "mean")


@pytest.mark.parametrize(
    ("baseline", "layers", "block"),
    [
        ("full", 2, None),
        ("self", 2, {"locomt": {"views": "self"}}),
        ("bottleneck", 2, {"locomt": {"views": "self", "bottleneck_tokens": 4}}),
        ("late", 0, None),
    ],
)
def test_a_baseline_is_written_down_as_what_it_means(baseline: str, layers: int, block: Any) -> None:
    plain = fusion_config(hf_lam="lam_half", num_labels=7, pooling={"text": "mean"})
    before = plain.to_dict()
    other = plain.as_baseline(baseline)
    expected = fusion_config(num_labels=7, pooling={"text": "mean"}, num_hidden_layers=layers, hf_lam=block)
    assert other.to_dict() == expected.to_dict()
    assert plain.to_dict() == before
    config = fusion_config(baseline=baseline, num_labels=7, pooling={"text": "mean"})
    assert config.to_dict() == other.to_dict()
    assert "baseline" not in config.to_dict()
    with pytest.raises(ValueError, match="baseline must be one of"):
        plain.as_baseline("nothing")


@pytest.mark.parametrize("name", FUSION_CONFIGS)
def test_a_config_survives_json_and_a_folder(name: str, tmp_path: Path) -> None:
    config = fusion_config(
        MODALITIES[::-1],
        hf_lam=name,
        pooling={"image": "mean"},
        combine="concat",
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
        problem_type="multi_label_classification",
        num_labels=2,
    )
    from_json = HfLamFusionConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
    config.save_pretrained(tmp_path)
    from_folder = HfLamFusionConfig.from_pretrained(tmp_path)
    for other in (from_json, from_folder):
        assert other.modalities == list(MODALITIES[::-1])
        assert other.id2label == {0: "cat", 1: "dog"} and other.num_labels == 2
        assert other.hf_lam == config.hf_lam
        for modality in MODALITIES:
            assert type(other.modality_config(modality)) is type(config.modality_config(modality))
    assert from_json.to_dict() == {key: value for key, value in config.to_dict().items() if key != "auto_map"}
    assert from_folder.to_dict() == config.to_dict()


def test_encoders_can_be_dictionaries() -> None:
    config = fusion_config()
    again = HfLamFusionConfig(
        **{f"{name}_config": config.modality_config(name).to_dict() for name in MODALITIES},
        **{key: getattr(config, key) for key in ("hidden_size", "intermediate_size", "num_hidden_layers")},
        initializer_range=config.initializer_range,
        num_labels=3,
    )
    assert again.to_dict() == config.to_dict()
    # What a model type has by default is left out of its dictionary.
    assert (
        HfLamFusionConfig(text_config={"model_type": "bert"}).text_config.to_dict()
        == BertConfig(use_cache=False).to_dict()
    )


def test_the_model_writes_down_the_table_of_views() -> None:
    """Also into the configuration of a task model, so that a preset drawn at random is the same when it is loaded."""
    for head in (True, False):
        model = make_fusion(hf_lam="random", head=head)
        views = model.config.hf_lam["locomt"]["views"]
        assert [len(row) for row in views] == [4, 4] and {view for row in views for view in row} - {"self"}
        assert model.config.hf_lam["locomt"]["segments"] == [[name, {"modality": name}] for name in MODALITIES]


@pytest.mark.parametrize("requested", ["eager", "sdpa"])
def test_the_attention_implementation_reaches_the_encoders(requested: str) -> None:
    assert set(HfLamFusionConfig.sub_configs) == {*(f"{name}_config" for name in MODALITIES), "decoder"}
    model = make_fusion(hf_lam="half")
    model.set_attn_implementation("sdpa" if requested == "eager" else "eager")
    model.set_attn_implementation(requested)
    base = model.base_model
    found = {name: base.modality_model(name).config._attn_implementation for name in MODALITIES}
    assert {"fusion": model.config._attn_implementation, **found} == dict.fromkeys(["fusion", *MODALITIES], requested)
    model = HfLamFusionForSequenceClassification._from_config(fusion_config(), attn_implementation=requested)
    assert {model.base_model.modality_model(name).config._attn_implementation for name in MODALITIES} | {
        model.config._attn_implementation
    } == {requested}


def test_other_encoders_fit_where_they_say_their_sizes() -> None:
    dinov2 = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=16, patch_size=4)
    model = HfLamFusionModel(HfLamFusionConfig(image_config=dinov2, num_hidden_layers=1)).eval()
    assert model(pixel_values=torch.randn(2, 3, 16, 16)).last_hidden_state.shape == (2, 17, 32)
    assert model.pooling == {"image": "cls"}


def test_errors_name_the_classes_they_are_about() -> None:
    with pytest.raises(TypeError, match=re.escape("HfLamFusionModel needs a HfLamFusionConfig, got BertConfig")):
        HfLamFusionModel(CONFIGS[HOSTS["text"]]())


def test_a_saved_configuration_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    config = fusion_config(("text", "image"))
    config.text_config._name_or_path = str(tmp_path)
    config.image_config._name_or_path = "user/vit"
    config.save_pretrained(tmp_path / "saved")
    stored = (tmp_path / "saved" / "config.json").read_text()
    assert str(tmp_path) not in stored
    assert "user/vit" in stored
