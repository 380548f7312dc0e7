"""A model has one hash however often it is loaded: `Dataset.map` looks its results up by it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets.fingerprint import Hasher
from transformers import ViTForImageClassification

from helpers.fusion_models import make_fusion
from helpers.hosts import first_output, make_host, make_inputs, make_model, mechanisms, perturb_mechanisms
from hf_lam import LamConfig, convert, inject, load_mechanism, save_mechanism

NAMES = ["per_layer", "bottleneck", "shared_lam", "mixture"]


@pytest.mark.parametrize("name", NAMES)
def test_two_loads_of_a_folder(name: str, tmp_path: Path) -> None:
    convert(make_model(ViTForImageClassification, "vit"), *mechanisms(name, "vit")).save_pretrained(tmp_path)
    from hf_lam import HfLamViTForImageClassification

    first, second = (HfLamViTForImageClassification.from_pretrained(tmp_path) for _ in range(2))
    assert Hasher.hash(first) == Hasher.hash(second)
    # It says what the model is.
    with torch.no_grad():
        next(iter(second.parameters())).add_(1)
    assert Hasher.hash(first) != Hasher.hash(second)


@pytest.mark.parametrize("host", ["bert", "roberta", "videomae", "ast"])
def test_two_injected_models(host: str, tmp_path: Path) -> None:
    trained = inject(make_host(host), LamConfig(rank=2))
    perturb_mechanisms(trained)
    save_mechanism(trained, tmp_path)
    first, second = (load_mechanism(make_host(host), tmp_path) for _ in range(2))
    assert Hasher.hash(first) == Hasher.hash(second)


@pytest.mark.parametrize("mechanism", ["half", "lam"])
def test_fusion_models(mechanism: str, tmp_path: Path) -> None:
    model: Any = make_fusion(("text", "image"), hf_lam=mechanism)
    model.save_pretrained(tmp_path)
    assert len({Hasher.hash(type(model).from_pretrained(tmp_path)) for _ in range(2)}) == 1


def test_a_function_with_a_model(tmp_path: Path) -> None:
    convert(make_host("bert"), *mechanisms("half", "bert")).save_pretrained(tmp_path)

    def make() -> Any:
        from hf_lam import HfLamBertModel

        model = HfLamBertModel.from_pretrained(tmp_path)
        return lambda batch: model(**batch)

    assert Hasher.hash(make()) == Hasher.hash(make())


@pytest.mark.parametrize("name", ["shared", "bottleneck"])
def test_hooks_of_others_live_beside_ours(name: str) -> None:
    model, inputs = convert(make_host("vit"), *mechanisms(name, "vit")).eval(), make_inputs("vit")
    perturb_mechanisms(model)
    calls: list[str] = []
    for module in (model, model.layers[0], model.layers[0].attention):
        module.register_forward_pre_hook(lambda *_: calls.append("before"), prepend=True)
        module.register_forward_hook(lambda *_: calls.append("after"))
    expected = first_output(model, inputs)
    assert len(calls) == 6
    again = pickle.loads(pickle.dumps(convert(make_host("vit"), *mechanisms(name, "vit")).eval()))
    perturb_mechanisms(again)
    assert torch.equal(first_output(again, inputs), expected)
