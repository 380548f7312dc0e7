"""What was saved with mechanisms does not load without them unnoticed, whatever became of `config.json`."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import RobertaForSequenceClassification, ViTForImageClassification

from helpers.door import AVERAGE, open_door
from helpers.fusion_models import make_fusion
from helpers.hosts import CONFIGS, first_output, make_host, make_inputs, make_model
from hf_lam import (
    HfLamBertConfig,
    HfLamBertModel,
    HfLamFusionModel,
    HfLamViTConfig,
    HfLamViTForImageClassification,
    LamConfig,
    LocomtConfig,
    SttConfig,
    convert,
    inject,
    load_mechanism,
    remove,
    save_mechanism,
    verify,
)

MARK = "hf_lam.locomt.mark"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


LOSSES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no block": lambda config: config.pop("hf_lam"),
    "none": lambda config: config.update(hf_lam=None),
    "an empty block": lambda config: config.update(hf_lam={}),
    "a version alone": lambda config: config.update(hf_lam={"version": "0.1.0"}),
    "another mechanism": lambda config: config.update(hf_lam={"lam": {}}),
}
MODELS: dict[str, Callable[[], Any]] = {
    "views": lambda: convert(make_host("bert"), LocomtConfig(views="half")),
    "views of a head": lambda: convert(make_model(ViTForImageClassification, "vit"), LocomtConfig(views="self")),
    "lam and views": lambda: convert(make_host("vit"), LamConfig(), LocomtConfig(views="half")),
    "annealing": lambda: convert(make_host("vit"), LocomtConfig(views="half", annealing=True)),
    "bottleneck": lambda: convert(make_host("vit"), LocomtConfig(views="self", bottleneck_tokens=2)),
    "frozen random map": lambda: convert(make_host("vit"), SttConfig("random", frozen=True)),
    "fusion": lambda: make_fusion(("text", "image"), hf_lam="half"),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_weights_that_were_saved_with_mechanisms_say_so(name: str, loss: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    if name == "fusion":
        model.save_pretrained(tmp_path, max_shard_size="20KB")
        assert (tmp_path / "model.safetensors.index.json").is_file()
    else:
        model.save_pretrained(tmp_path)
    rewrite(tmp_path, LOSSES[loss])
    with pytest.raises(RuntimeError, match="was saved with mechanisms"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("lost", [["views"], ["segments"], ["annealing"], None], ids=str)
def test_a_block_that_lost_options_is_not_filled_up_with_defaults(lost: list[str] | None, tmp_path: Path) -> None:
    model = convert(make_host("vit"), LocomtConfig(views="half"))
    model.save_pretrained(tmp_path)

    def lose(config: dict[str, Any]) -> None:
        options = config["hf_lam"]["locomt"]
        for name in lost or list(options):
            del options[name]

    rewrite(tmp_path, lose)
    with pytest.raises(ValueError, match=r"'locomt' lacks .*without them it would be another model"):
        type(model).from_pretrained(tmp_path)
    assert HfLamViTConfig(hf_lam={"locomt": {}}).hf_lam["locomt"]["views"] == "full"  # written by hand


def test_one_of_two_is_missed_too(tmp_path: Path) -> None:
    model = convert(make_host("vit"), LamConfig(rank=2), LocomtConfig(views="half"))
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda config: config["hf_lam"].pop("locomt"))
    with pytest.raises(RuntimeError, match=r"was saved with mechanisms \(locomt\)"):
        type(model).from_pretrained(tmp_path)


def test_a_mechanism_of_ones_own_without_weights_is_missed(tmp_path: Path) -> None:
    with open_door() as load_file:
        config = load_file(AVERAGE).UniformAverageConfig()
        model = convert(make_host("vit"), config)
        assert [name for name in model.state_dict() if ".hf_lam." in f".{name}"] == [f"hf_lam.{config.name}.mark"]
        model.save_pretrained(tmp_path)
        type(model).from_pretrained(tmp_path)
        rewrite(tmp_path, LOSSES["no block"])
        with pytest.raises(RuntimeError, match="was saved with mechanisms"):
            type(model).from_pretrained(tmp_path)


def test_a_state_dict_says_it_as_well(tmp_path: Path) -> None:
    model = convert(make_host("bert"), LocomtConfig(views="half"))
    state = model.state_dict()
    plain = HfLamBertModel(HfLamBertConfig(**CONFIGS["bert"]().to_dict() | {"model_type": "hf_lam_bert"}))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        plain.load_state_dict(state)
    with pytest.raises(RuntimeError, match="was saved with mechanisms"):
        HfLamBertModel.from_pretrained(None, config=plain.config, state_dict=state)
    # Through other tools, which keep tensors, and not what else a file says.
    model.save_pretrained(tmp_path)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors", metadata={"format": "pt"})
    rewrite(tmp_path, LOSSES["no block"])
    with pytest.raises(RuntimeError, match="was saved with mechanisms"):
        HfLamBertModel.from_pretrained(tmp_path)


def test_mechanisms_can_be_replaced_on_purpose(tmp_path: Path) -> None:
    model = convert(make_model(ViTForImageClassification, "vit"), LocomtConfig(views="half"))
    model.save_pretrained(tmp_path)
    for block in (None, LamConfig(), LocomtConfig(views="self")):
        loaded, info = type(model).from_pretrained(tmp_path, hf_lam=block, output_loading_info=True)
        assert not info["unexpected_keys"]
        assert set(loaded.config.hf_lam or {}) == (set() if block is None else {"version", block.name})
    # It must have been there to be replaced.
    rewrite(tmp_path, LOSSES["no block"])
    with pytest.raises(RuntimeError, match="was saved with mechanisms"):
        type(model).from_pretrained(tmp_path, hf_lam=LamConfig())


def test_verify_finds_it(tmp_path: Path) -> None:
    model = convert(make_host("bert"), LocomtConfig(views="half"))
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, LOSSES["no block"])
    assert any(MARK in finding.message for finding in verify(tmp_path).findings)


# --- folders without marks -------------------------------------------------------------------------------------------


def without_marks(file: Path) -> None:
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.endswith(".mark")}
    save_file(tensors, file, metadata={"format": "pt"})


def test_older_folders_load(tmp_path: Path) -> None:
    model = convert(make_host("vit"), LamConfig(), LocomtConfig(views="half"))
    model.save_pretrained(tmp_path / "model")
    save_mechanism(model, tmp_path / "mechanism")
    without_marks(tmp_path / "model" / "model.safetensors")
    without_marks(tmp_path / "mechanism" / "mechanism_model.safetensors")
    inputs = make_inputs("vit")
    loaded, info = type(model).from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"]
    type(model).from_pretrained(tmp_path / "model")
    for again in (loaded, load_mechanism(make_host("vit"), tmp_path / "mechanism")):
        assert torch.equal(first_output(again, inputs), first_output(model, inputs))
        assert int(again.state_dict()[MARK]) == 1
    state = {name: tensor for name, tensor in model.state_dict().items() if name != MARK}
    convert(make_host("vit"), LamConfig(), LocomtConfig()).load_state_dict(state)
    assert not [finding for finding in verify(tmp_path / "model").findings if finding.kind == "weights"]


# --- stock classes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    from transformers.utils import logging as library

    library.warning_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("hf_lam"), "propagate", True)
    caplog.set_level(logging.WARNING)
    return caplog


@pytest.mark.parametrize(
    "configs",
    [(LamConfig(),), (LocomtConfig(views="half"),), (SttConfig("dense"),), (LamConfig(rank=1), LocomtConfig())],
)
def test_saving_an_injected_model_says_what_is_lost(
    configs: Any, tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    model = inject(make_model(ViTForImageClassification, "vit"), *configs)
    model.save_pretrained(tmp_path / "model")
    names = ", ".join(config.name for config in configs)
    assert f"WITHOUT the mechanisms of hf_lam that this model has ({names})" in warnings.text
    assert "save_mechanism" in warnings.text
    warnings.clear()
    model.save_pretrained(tmp_path / "model")
    assert not warnings.text  # once a model; `Trainer` saves it again and again
    inject(make_model(ViTForImageClassification, "vit"), *configs).save_pretrained(tmp_path / "model")
    assert "WITHOUT" in warnings.text
    # hf_lam's own loaders notice what stock classes do not.
    for load in (
        lambda: HfLamViTForImageClassification.from_pretrained(tmp_path / "model"),
        lambda: convert(tmp_path / "model", SttConfig(synthesizer="factorized_random")),
    ):
        with pytest.raises(RuntimeError, match="was saved with mechanisms"):
            load()
    with pytest.raises(ValueError, match="was saved with hf_lam mechanisms"):
        HfLamFusionModel.from_modality_pretrained(image=tmp_path / "model")


def test_the_encoder_inside_says_it_too(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    model = inject(make_model(RobertaForSequenceClassification, "roberta"), LamConfig())
    model.roberta.save_pretrained(tmp_path)
    assert "writes a RobertaModel" in warnings.text


def test_others_save_in_silence(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    removed = remove(inject(make_host("roberta"), LocomtConfig(segments=[["a", 4], ["b", 7]], views="self")))
    assert "save_pretrained" not in removed.__dict__
    removed.save_pretrained(tmp_path / "removed")
    MODELS["views"]().save_pretrained(tmp_path / "converted")
    adapted = inject(make_host("roberta"), LamConfig())
    lora = peft.LoraConfig(target_modules=["query"], modules_to_save=["hf_lam"])
    peft.get_peft_model(adapted, lora).save_pretrained(tmp_path / "adapted")
    assert "WITHOUT" not in warnings.text


def test_a_model_that_watches_its_saving_can_be_copied(tmp_path: Path) -> None:
    model = inject(make_host("roberta"), LamConfig())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        remove(model if other is model else other)
        other.save_pretrained(tmp_path)
        assert not any("hf_lam" in name for name in load_file(tmp_path / "model.safetensors"))
    assert any("hf_lam" in name for name in model.state_dict())
