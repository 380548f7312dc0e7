"""`verify` for fusion models: vectors, heads and encoders that it passes, and options that make a finding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.fusion_decoders import family_config
from helpers.fusion_encoders import ENCODERS
from helpers.fusion_heads import decoder_config
from helpers.fusion_models import fusion_config
from helpers.fusion_vectors import make_vector_fusion
from helpers.verification import WEIGHTS, edit, told
from hf_lam import (
    HfLamFusionConfig,
    HfLamFusionForConditionalGeneration,
    HfLamFusionForEmbedding,
    HfLamFusionForMomentRetrieval,
    HfLamFusionForSequenceClassification,
    HfLamFusionForTokenClassification,
    HfLamFusionModel,
    HfLamFusionProcessor,
)
from hf_lam.hub import weight_checks
from hf_lam.hub.verification import verify

TWO = ("text", "image")


def with_encoder(name: str) -> Any:
    row = ENCODERS[name]
    encoder = {f"{row.modality}_config": row.make_config()}
    options = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    return HfLamFusionModel(HfLamFusionConfig(**encoder, features={"clips": 6}, **options))


MADE: dict[str, Callable[[], Any]] = {
    "vectors": lambda: make_vector_fusion(hf_lam="lam_shared_rank"),
    "vectors_base": lambda: make_vector_fusion(HfLamFusionModel, hf_lam="half"),
    "vectors_and_encoders": lambda: make_vector_fusion(encoders=TWO, hf_lam="bottleneck"),
    "tokens": lambda: make_vector_fusion(HfLamFusionForTokenClassification, TWO, "half", label_modalities=["words"]),
    "embedding": lambda: HfLamFusionForEmbedding(fusion_config(hf_lam="half", contrast=[["text"], ["audio"]])),
    "moments": lambda: make_vector_fusion(
        HfLamFusionForMomentRetrieval, hf_lam="lam_shared_rank", label_modalities=["clips"]
    ),
    "writer": lambda: make_vector_fusion(
        HfLamFusionForConditionalGeneration, TWO, "half", decoder=decoder_config(), decoder_lam={"rank": 2}
    ),
    "writer_of_bart": lambda: make_vector_fusion(
        HfLamFusionForConditionalGeneration, hf_lam="lam_shared_rank", decoder=family_config("bart")
    ),
    "regression": lambda: HfLamFusionForSequenceClassification(fusion_config(TWO, problem_type="regression")),
    "late": lambda: make_vector_fusion(num_hidden_layers=0),
    **{name: lambda name=name: with_encoder(name) for name in ("whisper", "wav2vec2", "siglip2_vision", "vjepa2")},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model of `MADE`, saved once. It must not be changed."""
    root = tmp_path_factory.mktemp("fusion")

    def folder_of(name: str) -> Path:
        if not (root / name).is_dir():
            MADE[name]().save_pretrained(root / name)
        return root / name

    return folder_of


@pytest.mark.parametrize("name", MADE)
def test_models_of_any_kind_pass(made: Callable[[str], Path], name: str) -> None:
    assert verify(made(name), weights=True).findings == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_passes(name: str, tmp_path: Path) -> None:
    with_encoder(name).save_pretrained(tmp_path)
    assert verify(tmp_path).findings == ()


@pytest.mark.parametrize(
    ("features", "kind"),
    [
        ({"clips": {"size": 10**12}}, "config"),
        ({"clips": {"size": 10**7}}, "config"),
        ({"clips": {"size": 20, "positions": "learned", "max_length": 10**7}}, "config"),
        ({"clips": {"size": 20, "class_tokens": 10**8}}, "config"),
        ({"clips": {"size": True}}, "key"),
        ({"clips": {"size": 20.5}}, "key"),
        ({"clips": {"size": 20, "dropout": float("nan")}}, "key"),
        ({"clips": {"size": 20, "dropout": 7}}, "config"),
        ({"clips": {"size": 20, "norm": {"a": {"b": "c"}}}}, "key"),
        ({"clips": {"size": 20, "positions": "rotary"}}, "key"),
        ({"clips": {"size": 20, "code": "evil/repo--modeling.py"}}, "key"),
        ({"clips": {"size": 20, "model_type": "llava"}}, "key"),
        ({"clips": [20]}, "key"),
        ({"clips": None}, "key"),
        ({"cl.ips": {"size": 20}}, "config"),
        ({"../clips": {"size": 20}}, "config"),
        ({"__class__": {"size": 20}}, "config"),
        ({"modality": {"size": 20}}, "config"),
        ({f"f{index}": {"size": 20} for index in range(3000)}, "config"),
        ([["clips", 20]], "key"),
        ("clips", "key"),
        # Those of another model than the weights'.
        ({"clips": {"size": 21}}, "weights"),
        ({"clips": {"size": 20, "positions": None}}, "weights"),
    ],
)
def test_features_that_are_none_or_of_another_model(
    made: Callable[[str], Path], features: Any, kind: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made("vectors"), tmp_path / "model"))
    options = json.loads((folder / "config.json").read_text())
    if isinstance(features, dict) and set(features) == {"clips"} and isinstance(features["clips"], dict):
        features = {**options["features"], "clips": {**options["features"]["clips"], **features["clips"]}}
    edit(folder / "config.json", features=features)
    found = verify(folder)
    assert not found.passed
    assert kind in {finding.kind for finding in found.findings}, found.findings


@pytest.mark.parametrize("size", ["size", "max_length"])
def test_nothing_is_built_of_vectors_that_no_tensor_has(
    made: Callable[[str], Path], size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(made("vectors"), tmp_path / "model"))
    features = json.loads((folder / "config.json").read_text())["features"]
    edit(folder / "config.json", features={**features, "clips": {**features["clips"], size: 9_000_000}})
    monkeypatch.setattr(weight_checks, "model_class_of", lambda *_: pytest.fail("it was built"))
    assert any(f"{size} is 9000000" in finding.message for finding in verify(folder).findings)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tokens", {"label_modalities": "words"}),
        ("tokens", {"label_modalities": ["words", "../x"]}),
        ("tokens", {"label_modalities": {"words": 1}}),
        ("embedding", {"contrast": [["text"], ["text"]]}),
        ("embedding", {"contrast": [["text"], [["audio"]]]}),
        ("embedding", {"contrast": "text"}),
        ("embedding", {"projection_dim": 10**12}),
        ("embedding", {"projection_dim": 511}),
        ("embedding", {"projection_dim": "512"}),
        ("embedding", {"logit_scale_init_value": float("inf")}),
    ],
)
def test_options_of_heads_that_are_none(
    made: Callable[[str], Path], name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made(name), tmp_path / "model"))
    edit(folder / "config.json", **changes)
    assert {finding.kind for finding in verify(folder).findings} & {"key", "config", "weights"}


def test_weights_of_vectors_and_heads_are_compared(made: Callable[[str], Path], tmp_path: Path) -> None:
    for name, key in (("vectors", "fusion.clips_projection.weight"), ("embedding", "projection.weight")):
        folder = Path(shutil.copytree(made(name), tmp_path / name))
        tensors = load_file(folder / WEIGHTS)
        save_file({**tensors, key: torch.zeros(3, 5)}, folder / WEIGHTS, {"format": "pt"})
        assert told(verify(folder)) == [("weights", WEIGHTS)]
        del tensors[key]
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
        assert "is missing" in verify(folder).findings[0].message


def test_a_processor_of_vectors(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("vectors"), tmp_path / "model"))
    features = {"clips": {"size": 20, "mean": [0.5] * 20, "std": 2.0, "max_length": 9}, "words": 12, "summary": 32}
    HfLamFusionProcessor(features=features).save_pretrained(folder)
    assert verify(folder).findings == ()
    written = json.loads((folder / "processor_config.json").read_text())["features"]
    for options in ({"code": "x"}, {"mean": ["x"]}, {"mean": float("nan")}, {"positions": "rotary"}, {"size": "20"}):
        edit(folder / "processor_config.json", features={**written, "clips": {**written["clips"], **options}})
        assert told(verify(folder)) == [("key", "processor_config.json")]
