"""Hosts of several families whose weights are quantized, and where they are placed: as for stock models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import BitsAndBytesConfig, TorchAoConfig

from helpers.families import FAMILIES
from helpers.hosts import perturb_mechanisms
from hf_lam import LamConfig, SttConfig, convert, inject, mechanism_parameters

HOSTS = {"roberta": None, "modernbert": "SequenceClassification", "dinov2": None, "whisper": "AudioClassification"}


def save_stock(name: str, folder: Path) -> str:
    FAMILIES[name].make(HOSTS[name]).save_pretrained(folder / "stock")
    return str(folder / "stock")


def load(name: str, folder: str | Path, **options: Any) -> Any:
    head = HOSTS[name]
    auto = getattr(transformers, "AutoModel" if head is None else f"AutoModelFor{head}")
    return auto.from_pretrained(folder, **options).eval()


def output(name: str, model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**FAMILIES[name].inputs())[0].float()


def quantization(kind: str) -> Any:
    if kind == "torchao":
        torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
        return TorchAoConfig(torchao.Int8WeightOnlyConfig())
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    return BitsAndBytesConfig(load_in_8bit=True)


@pytest.mark.parametrize(
    ("name", "mechanism"), [(name, LamConfig(rank=2)) for name in HOSTS] + [("dinov2", SttConfig())]
)
@pytest.mark.parametrize("kind", ["torchao", "bitsandbytes"])
def test_a_quantized_host(kind: str, name: str, mechanism: Any, tmp_path: Path) -> None:
    if kind == "bitsandbytes" and name not in ("roberta", "dinov2"):
        pytest.skip("one of texts and one of images")
    source = save_stock(name, tmp_path)
    stock = load(name, source, quantization_config=quantization(kind))
    expected = output(name, stock)
    assert not torch.equal(expected, output(name, load(name, source)))
    auto = "AutoModel" if HOSTS[name] is None else f"AutoModelFor{HOSTS[name]}"
    model = convert(source, mechanism, auto_class=auto, quantization_config=quantization(kind)).eval()
    # A mixture with nothing and a mask of ones round as products of half precision do, where those are used.
    torch.testing.assert_close(output(name, model), expected, rtol=0, atol=1e-5 if kind == "torchao" else 1e-3)
    assert {parameter.dtype for parameter in mechanism_parameters(model)} == {torch.float32}
    perturb_mechanisms(model, scale=1.0)
    moved = output(name, model)
    assert (moved - expected).abs().max() > 1e-4
    model.save_pretrained(tmp_path / "ours")
    again = load(name, tmp_path / "ours")
    assert type(again) is type(model) and again.is_quantized
    torch.testing.assert_close(output(name, again), moved, rtol=0, atol=1e-6)
    assert {type(parameter) for parameter in mechanism_parameters(again)} == {torch.nn.Parameter}


def test_mechanisms_of_a_quantized_model_train() -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = FAMILIES["roberta"].make()
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    expected = output("roberta", model)
    inject(model, LamConfig())
    torch.testing.assert_close(output("roberta", model), expected, rtol=0, atol=1e-5)
    model(**FAMILIES["roberta"].inputs())[0].square().mean().backward()
    assert all(parameter.grad is not None for parameter in mechanism_parameters(model))


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("options", [{"device_map": "auto"}, {"device_map": {"": "cpu"}}, {"dtype": torch.bfloat16}])
def test_where_and_in_what_precision_a_model_is_loaded(options: Any, name: str, tmp_path: Path) -> None:
    source = save_stock(name, tmp_path)
    auto = "AutoModel" if HOSTS[name] is None else f"AutoModelFor{HOSTS[name]}"
    model = convert(source, LamConfig(rank=2), auto_class=auto, **options).eval()
    stock = load(name, source, **options)
    assert getattr(model, "hf_device_map", None) == getattr(stock, "hf_device_map", None)
    assert {parameter.dtype for parameter in model.parameters()} == {options.get("dtype", torch.float32)}
    perturb_mechanisms(model)
    inputs = {
        key: value.to(model.dtype) if value.is_floating_point() else value
        for key, value in FAMILIES[name].inputs().items()
    }
    model.save_pretrained(tmp_path / "ours")
    with torch.no_grad():
        found, moved = (x(**inputs)[0] for x in (load(name, tmp_path / "ours", **options), model))
        original = stock(**inputs)[0]
    torch.testing.assert_close(found, moved, rtol=0, atol=1e-6)
    assert not torch.equal(moved, original)
