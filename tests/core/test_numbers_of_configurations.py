"""Every value of a `config.json` is replaced by nonsense: it is refused by its name, or does what stock does."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from helpers.fusion_models import fusion_config
from helpers.hosts import CONFIGS, make_host
from hf_lam import (
    HfLamBertConfig,
    HfLamBertForSequenceClassification,
    HfLamFusionConfig,
    HfLamFusionForSequenceClassification,
    HfLamVideoMAEConfig,
    HfLamVideoMAEForVideoClassification,
    HfLamViTConfig,
    HfLamViTForImageClassification,
    LamConfig,
    LocomtConfig,
    SttConfig,
    inject,
    load_mechanism,
    save_mechanism,
)

QUICK: list[Any] = ["x", 0, None, 2**63]
NONSENSE: list[Any] = ["x", {}, [], -1, 0, 1.5, None, True, "true", "false", 2**63, 10**9, math.nan, math.inf, -1.0]
HUGE = [2**63, 10**9, 10**400]

HOSTS: dict[str, tuple[Any, Any]] = {
    "bert": (HfLamBertConfig, HfLamBertForSequenceClassification),
    "vit": (HfLamViTConfig, HfLamViTForImageClassification),
    "videomae": (HfLamVideoMAEConfig, HfLamVideoMAEForVideoClassification),
}
CONFIGURATIONS: dict[str, tuple[Any, Any, Any]] = {
    host: (
        config_class(**CONFIGS[host]().to_dict() | {"model_type": config_class.model_type}, hf_lam=block),
        cls,
        stock,
    )
    for host, block, (config_class, cls), stock in (
        ("bert", [LamConfig(max_length=40, bottleneck_size=4), LocomtConfig()], HOSTS["bert"], CONFIGS["bert"]),
        ("vit", SttConfig(synthesizer="factorized_dense", grid=[4, 4], prefix_tokens=1), HOSTS["vit"], CONFIGS["vit"]),
        ("videomae", LamConfig(rank=2), HOSTS["videomae"], CONFIGS["videomae"]),
    )
}


def scalars(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in nested dictionaries that is neither one nor a list."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from scalars(item, (*path, key))
    elif not isinstance(value, list):
        yield path


def replaced(config: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return config


def outcome(config_class: Any, model_class: Any, config: dict[str, Any]) -> str:
    """What becomes of a configuration: the name of an error, or `""` for a model."""
    try:
        with torch.device("meta"):
            model_class(config_class.from_dict(config))
    except Exception as error:
        return type(error).__name__
    return ""


# What an error calls some keys.
OTHER_NAMES = {
    "views": "view ",
    "type_vocab_size": "token types",
    "pad_token_id": "Padding_idx",
    "add_cross_attention": "cross attention",
}


def is_named(error: Exception, path: tuple[Any, ...]) -> bool:
    name = str(path[-1])
    is_right_kind = isinstance(error, (ValueError, TypeError, StrictDataclassError)) or name == "pad_token_id"
    return is_right_kind and (name in str(error) or OTHER_NAMES.get(name, name) in str(error))


each = pytest.mark.parametrize(
    "nonsense", [QUICK, pytest.param(NONSENSE, marks=pytest.mark.slow)], ids=["some", "all"]
)


@pytest.mark.slow
@each
@pytest.mark.parametrize("host", CONFIGURATIONS)
def test_encoders(host: str, nonsense: list[Any]) -> None:
    config, model_class, _ = CONFIGURATIONS[host]
    stored = json.loads(config.to_json_string(use_diff=False))
    stock_model = next(kind for kind in model_class.__mro__ if kind.__module__.startswith("transformers.models."))
    stock_config = stock_model.config_class
    strange = []
    for path in scalars(stored):
        for value in nonsense:
            changed = replaced(stored, path, value)
            try:
                with torch.device("meta"):
                    model_class(type(config).from_dict(changed))
            except Exception as error:
                stock = {key: item for key, item in changed.items() if key not in ("hf_lam", "model_type")}
                if not is_named(error, path) and outcome(stock_config, stock_model, stock) != type(error).__name__:
                    strange.append((path, value, repr(error)))
    assert not strange


@pytest.mark.slow
@each
def test_fusion_models(nonsense: list[Any]) -> None:
    config = fusion_config(("text", "image"), 1, hf_lam=LocomtConfig(), classifier_dropout=0.1, pooling="mean")
    stored = json.loads(config.to_json_string(use_diff=False))
    common = set(json.loads(type(config).__mro__[2]().to_json_string(use_diff=False))) - {"hidden_size"}
    strange = []
    for path in scalars(stored):
        if path[0] in common or (path[0] in ("image_config", "text_config") and len(path) > 1 and path[-1] in common):
            continue  # transformers' own, in every configuration
        for value in nonsense:
            try:
                with torch.device("meta"):
                    HfLamFusionForSequenceClassification(HfLamFusionConfig.from_dict(replaced(stored, path, value)))
            except Exception as error:
                if not is_named(error, path) and not isinstance(error, AttributeError):
                    strange.append((path, value, repr(error)))
    assert not strange


FIELDS = {
    "hidden_size": [*HUGE, "x", {}, [], -1, 0, 1.5, True, math.nan],
    "num_hidden_layers": [*HUGE, "x", {}, [], -1, 1.5, None, True, 10**6],
    "num_attention_heads": [*HUGE, "x", 0, 2.0, False],
    "intermediate_size": [*HUGE, "x", 0, -3, math.inf],
    "hidden_act": ["x", {}, ["gelu"], None, 3, True],
    "norm_first": ["false", "true", 1, 0, None, [], math.nan],
    "hidden_dropout_prob": ["x", [], {}, None, -1.0, 1.5, True, math.nan, math.inf, 10**400],
    "attention_probs_dropout_prob": ["x", {}, -1.0, 2, None, False, math.nan],
    "layer_norm_eps": ["x", {}, None, -1.0, True, math.nan, math.inf],
    "initializer_range": ["x", [], None, -0.1, True, math.nan, math.inf],
    "classifier_dropout": ["x", {}, [], -1.0, 2, True, math.nan],
    "combine": ["x", [], {}, None, 1],
    "pooling": ["x", [], 1.5, True, {"text": []}, {"smell": "cls"}],
    "num_labels": [*HUGE, "x", [], 1.5, None, -1],
    "hf_lam": [1, 1.5, True, math.nan, {"locomt": 3}, {"version": {}}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FIELDS.items() for value in values])
def test_a_field_of_a_fusion_model(name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        fusion_config(("text", "image"), **{name: value})
    if name not in ("combine", "pooling"):  # which belong together with others
        config = fusion_config(("text", "image"))
        with pytest.raises((ValueError, TypeError), match=name):
            setattr(config, name, value)


@pytest.mark.parametrize(
    "make", [HfLamViTConfig, HfLamBertConfig, lambda **options: fusion_config(("text",), **options)]
)
def test_numbers_of_numpy_are_numbers(make: Any) -> None:
    assert make(num_labels=np.int64(3)).num_labels == 3


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize(
    "make",
    [
        lambda n: LamConfig(rank=n),
        lambda n: LamConfig(bottleneck_size=n),
        lambda n: LamConfig(max_length=n),
        lambda n: LocomtConfig(segments=[["a", n], ["b", 3]]),
        lambda n: LocomtConfig(segments=[["a", {"length": n, "global": True}], ["b", 3]]),
        lambda n: LocomtConfig(segments=[["a", {"rectangle": [0, 0, n, n]}]]),
        lambda n: LocomtConfig(segments=[["a", {"frames": [0, n]}]]),
        lambda n: LocomtConfig(segments=[["a", {"token_type": n}]]),
        lambda n: LocomtConfig(views="self", bottleneck_tokens=n),
        lambda n: SttConfig(grid=[n]),
        lambda n: SttConfig(grid=[4, 4], prefix_tokens=n),
        lambda n: SttConfig("factorized_random", rank=n),
        lambda n: SttConfig("dense", bottleneck_size=n),
        lambda n: SttConfig("factorized_dense", factors=[[n, 1]]),
        lambda n: HfLamBertConfig(num_hidden_layers=n),
        lambda n: HfLamBertConfig(vocab_size=n),
        lambda n: HfLamBertConfig(num_labels=n),
        lambda n: HfLamViTConfig(image_size=[n, n]),
        lambda n: HfLamVideoMAEConfig(num_frames=n),
        lambda n: HfLamFusionConfig(text_config={"model_type": "bert", "num_hidden_layers": n}),
        lambda n: HfLamFusionConfig(text_config={"model_type": "bert", "num_labels": n}),
        lambda n: HfLamFusionConfig(image_config=CONFIGS["vit"](intermediate_size=n)),
        lambda n: fusion_config(("text", "image"), intermediate_size=n),
    ],
)
def test_numbers_without_a_model(make: Any, value: int) -> None:
    with pytest.raises(ValueError, match="10,000"):
        make(value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            LocomtConfig(segments=[["a", {"rectangle": [0, 0, 10**7, 10**7]}]]),
            "no model has more than 10,000,000 tokens",
        ),
        (SttConfig(grid=[10**7, 10**7]), "makes 100000000000001 tokens"),
    ],
    ids=["locomt", "stt"],
)
def test_grids_that_no_model_has_are_not_walked_through(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inject(make_host("vit"), config)


@pytest.mark.parametrize("version", ["x", "", {}, [], 1, 0.1, True, None, "1.0; rm", "0.1.0" + 5000 * ".0", math.nan])
def test_a_version_is_a_version(version: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="version"):
        HfLamBertConfig(hf_lam={"version": version, "lam": {}})
    save_mechanism(inject(make_host("vit"), LamConfig()), tmp_path)
    file = tmp_path / "mechanism_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hf_lam_version": version}))
    with pytest.raises(ValueError, match="hf_lam_version"):
        load_mechanism(make_host("vit"), tmp_path)


@pytest.mark.parametrize("version", ["0.1.0", "1.2", "0.1.0.dev", "2.0.0rc1", "1.0.0+local.2", "0.2.0.dev3"])
def test_what_releases_are_called(version: str) -> None:
    block = {"version": version, "lam": LamConfig().to_dict()}
    assert HfLamBertConfig(hf_lam=block).hf_lam["version"] == version
