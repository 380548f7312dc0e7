"""docs/serving.md beyond the blocks that run with the other pages, and the benchmark of its table."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import hf_lam
from helpers.documents import blocks_of
from helpers.families import FAMILIES
from helpers.hosts import perturb_mechanisms
from helpers.processes import ROOT
from helpers.small_classifiers import save_text
from hf_lam import LamConfig, SttConfig

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("serving_benchmark", ROOT / "benchmarks" / "serving.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    yield module


def test_weights_in_int8_by_onnxruntime(serving: ModuleType, tmp_path: Path) -> None:
    """With those of the mechanism and without, the answers are near the model's."""
    import onnx

    family = FAMILIES["bert"]
    model = family.make("SequenceClassification")
    hf_lam.inject(model, LamConfig())
    perturb_mechanisms(model)
    hf_lam.export(model.eval(), tmp_path / "out")
    with torch.no_grad():
        expected = model(**family.inputs()).logits
    for mechanism, of_masks in ((True, 1), (False, 0)):
        path = serving.quantize_onnx(tmp_path / "out", mechanism=mechanism)
        products = [node.op_type for node in onnx.load(path).graph.node].count("MatMulInteger")
        # Queries, keys, values, outputs and the two of the feed-forward layer; the pooler and the head. Of a mask, the
        # first layer: the weights of the second are cut to the length of the input, so they are no constant.
        assert products == (6 + of_masks) * model.config.num_hidden_layers + 2
        answer = serving.in_onnxruntime(path, lambda inputs: inputs, threads=1)
        difference = (torch.from_numpy(answer(family.inputs())) - expected).abs().max()
        assert 0 < difference < 0.1 * expected.abs().max()


def test_the_benchmark(serving: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way but those that compile answers as the model does, and the table has all of them."""
    monkeypatch.setattr(serving, "compiled", lambda model, prepare: serving.partial(serving.run, model, prepare))
    monkeypatch.setattr(serving, "find_spec", lambda _: None)
    save_text(tmp_path / "stock")
    save_text(tmp_path / "lam", LamConfig(rank=2))
    rows = pd.DataFrame({"sentence": ["a good film", "bad", "a long bad film"] * 2})
    rows.to_parquet(tmp_path / "validation.parquet")
    monkeypatch.setattr(serving, "MAX_TOKENS", 24)
    (tmp_path / "work").mkdir()
    folders = ["--stock", tmp_path / "stock", "--lam", tmp_path / "lam", "--data_dir", tmp_path]
    folders += ["--work", tmp_path / "work", "--json", tmp_path / "figures.json"]
    sizes = ["--batch", 2, "--samples", 6, "--timed", 1, "--rounds", 1, "--warmup", 0, "--threads", 1]
    found = serving.main(["texts", *map(str, (*folders, *sizes))])
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["ways"] == found
    for way, figures in found.items():
        for figure in figures.values():
            assert figure["ms"] > 0
            limit = 0.2 if "int8" in way or way == "bf16" else 1e-4
            assert figure.get("difference", 0) < limit, way


def test_int8_by_torchao_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines run, and change the linear layers of the host alone."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    (block,) = [each for each in blocks_of("docs/serving.md") if "quantize_(" in each.text]
    for config, family in ((LamConfig(), "bert"), (SttConfig("dense"), "vit")):
        model = FAMILIES[family].make()
        hf_lam.inject(model, config)
        perturb_mechanisms(model)
        own = {name for name, _ in model.named_parameters() if "hf_lam" in name}
        with torch.no_grad():
            expected = model(**FAMILIES[family].inputs())[0]
        namespace: dict[str, Any] = {"model": model}
        exec(block.text, namespace)
        with torch.no_grad():
            found = namespace["model"](**FAMILIES[family].inputs())[0]
        assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()
        kinds = {name: type(parameter) for name, parameter in model.named_parameters()}
        assert {kinds[name] for name in own} == {nn.Parameter}
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        assert linear and all(type(module.weight) is not nn.Parameter for module in linear)
