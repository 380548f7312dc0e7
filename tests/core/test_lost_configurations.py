"""What was saved with mechanisms does not load without them unnoticed, whatever became of `config.json`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTForImageClassification

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


# --- stock configurations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "configs",
    [(LamConfig(),), (LocomtConfig(views="half"),), (SttConfig("dense"),), (LamConfig(rank=1), LocomtConfig())],
)
def test_the_configuration_of_the_stock_class_beside_mechanisms(configs: Any, tmp_path: Path) -> None:
    inject(make_model(ViTForImageClassification, "vit"), *configs).save_pretrained(tmp_path / "model")
    make_model(ViTForImageClassification, "vit").config.save_pretrained(tmp_path / "model")
    for load in (
        lambda: HfLamViTForImageClassification.from_pretrained(tmp_path / "model"),
        lambda: convert(tmp_path / "model", SttConfig(synthesizer="factorized_random")),
    ):
        with pytest.raises(RuntimeError, match="was saved with mechanisms"):
            load()
    with pytest.raises(ValueError, match="was saved with hf_lam mechanisms"):
        HfLamFusionModel.from_modality_pretrained(image=tmp_path / "model")
