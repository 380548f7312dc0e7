"""Saved folders carry their code: loaded in a fresh process in which hf_lam cannot be imported."""

from __future__ import annotations

import ast
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, BertForSequenceClassification, BertModel, VideoMAEModel, ViTModel

import hf_lam
from helpers.hosts import (
    CONVERTIBLE,
    STT_CONFIGS,
    first_output,
    make_inputs,
    make_model,
    mechanisms,
    perturb_mechanisms,
)
from helpers.processes import run_code
from hf_lam import HfLamBertModel, LamConfig, LocomtConfig, convert, mechanism_parameters, remove
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES

MODELING = Path(hf_lam.__file__).parent / "modeling"

LOADER = """
import sys
import torch
import transformers

root = sys.argv[1]
for name, auto_class, inputs, expected in torch.load(f"{root}/cases.pt"):
    folder = f"{root}/{name}"
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    for auto in {"AutoModel", auto_class}:
        model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        if auto == auto_class:
            torch.testing.assert_close(model(**inputs)[0], expected, atol=1e-6, rtol=0)
            model.save_pretrained(f"{root}/{name}-again")
            again = getattr(transformers, auto).from_pretrained(f"{root}/{name}-again", trust_remote_code=True)
            torch.testing.assert_close(again(**inputs)[0], expected, atol=1e-6, rtol=0)
    print("loaded", name, type(config).__name__)
assert not [name for name, module in sys.modules.items() if module and name.partition(".")[0] == "hf_lam"]
"""


NAMES = ["shared_rank_per_head", "half", "bottleneck", "per_layer", "lam", "annealing", *STT_CONFIGS]


@pytest.mark.slow
@pytest.mark.parametrize(
    "saved",
    [
        [(BertForSequenceClassification, "lam"), (ViTModel, "bottleneck"), (VideoMAEModel, "mixture_all")],
        pytest.param(list(zip(itertools.cycle(CONVERTIBLE), NAMES, strict=False)), marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_classes_and_mechanisms_load_without_hf_lam(saved: list[tuple[Any, str]], tmp_path: Path) -> None:
    cases = []
    for stock, name in saved:
        host = CONVERTIBLE[stock]
        model = convert(make_model(stock, host), *mechanisms(name, host))
        perturb_mechanisms(model)
        inputs = make_inputs(host, token_types=True)
        auto_class = next(auto for auto, our in model.config.auto_classes.items() if our == type(model).__name__)
        if "MultipleChoice" in stock.__name__:
            inputs = {key: tensor.unsqueeze(1) for key, tensor in inputs.items()}
        case = f"{stock.__name__}-{name}"
        model.save_pretrained(tmp_path / case)
        cases.append((case, auto_class, inputs, model(**inputs)[0].detach()))
    torch.save(cases, tmp_path / "cases.pt")
    printed = run_code(LOADER, tmp_path, hf_lam=False)
    assert printed.count("loaded") == len(saved)


SAVE_FOREIGN = """
import sys
import torch
from transformers import BertForSequenceClassification, ViTModel
from helpers.foreign_mechanism import HeadFactorConfig
from helpers.hosts import make_inputs
from helpers.lam_models import make_lam
from hf_lam import LamConfig, LocomtConfig

root, cases = sys.argv[1], []
for stock, host, configs in (
    (BertForSequenceClassification, "bert", (HeadFactorConfig(),)),
    (ViTModel, "vit", (LamConfig(), LocomtConfig(views="half"), HeadFactorConfig(most=1.5))),
):
    model, inputs = make_lam(stock, host, configs), make_inputs(host, token_types=True)
    model.save_pretrained(f"{root}/{host}")
    auto_class = next(auto for auto, our in model.config.auto_classes.items() if our == type(model).__name__)
    cases.append((host, auto_class, inputs, model(**inputs)[0].detach()))
    assert (model.base_model.hf_lam.head_factor.factors - 1).abs().max() > 0.1
torch.save(cases, f"{root}/cases.pt")
"""

# `helpers`, where the original file is, cannot be imported.
LOAD_FOREIGN = (
    "import sys\nsys.modules['helpers'] = None\n"
    + LOADER
    + """
from transformers.dynamic_module_utils import get_class_from_dynamic_module
for name, auto_class, inputs, expected in torch.load(f"{root}/cases.pt"):
    model = getattr(transformers, auto_class).from_pretrained(f"{root}/{name}-again", trust_remote_code=True)
    mechanism = type(model.base_model.hf_lam.head_factor)
    assert mechanism.__module__.startswith("transformers_modules."), mechanism
    assert mechanism.__module__.endswith(".foreign_mechanism"), mechanism
    assert set(model.config.hf_lam) >= {"version", "head_factor"}
    model.base_model.hf_lam.head_factor.factors.data.fill_(0.5)
    assert (model(**inputs)[0] - expected).abs().max() > 1e-3
"""
)


@pytest.mark.slow
def test_a_mechanism_from_elsewhere_travels_with_its_code(tmp_path: Path) -> None:
    run_code(SAVE_FOREIGN, tmp_path)
    written = {host: tmp_path / host / "foreign_mechanism.py" for host in ("bert", "vit")}
    for file in written.values():
        assert "from .mechanism_hf_lam import" in file.read_text()
        assert "from hf_lam" not in file.read_text()
    printed = run_code(LOAD_FOREIGN, tmp_path, hf_lam=False, environment={"HF_MODULES_CACHE": str(tmp_path / "cache")})
    assert printed.count("loaded") == 2
    for host, file in written.items():
        for name in ("foreign_mechanism.py", "mechanism_list_hf_lam.py", "LICENSE-hf_lam.txt"):
            assert (tmp_path / f"{host}-again" / name).read_bytes() == (file.parent / name).read_bytes(), name


@pytest.mark.slow
def test_a_configuration_loaded_alone_saves_what_it_needs_to_load_again(tmp_path: Path) -> None:
    model = convert(make_model(BertModel, "bert"), *mechanisms("lam", "bert"))
    model.save_pretrained(tmp_path / "model")
    code = """
import sys, transformers
config = transformers.AutoConfig.from_pretrained(sys.argv[1] + "/model", trust_remote_code=True)
table = config.hf_lam["locomt"]["views"]
config.save_pretrained(sys.argv[1] + "/config")
again = transformers.AutoConfig.from_pretrained(sys.argv[1] + "/config", trust_remote_code=True)
assert type(again).__module__.startswith("transformers_modules.")
assert again.hf_lam == config.hf_lam and len(table) == 3 and len(table[0]) == 4
print("again")
"""
    assert "again" in run_code(code, tmp_path, hf_lam=False, environment={"HF_MODULES_CACHE": str(tmp_path / "cache")})


@pytest.mark.slow
def test_the_installed_package_and_two_pushed_models_work_side_by_side(tmp_path: Path) -> None:
    inputs = make_inputs("vit")
    expected = {}
    for name, seed in (("one", 1), ("two", 2)):
        configs = LamConfig(scope="shared"), LocomtConfig(views=f"random({seed})")
        model = convert(make_model(ViTModel, "vit", seed=seed), *configs)
        perturb_mechanisms(model, seed=seed)
        model.save_pretrained(tmp_path / name)
        expected[name] = first_output(model, inputs)
    # Another version of the code: the same, but for a comment in the files with operators.
    for name in ("lam_chunked_hf_lam.py", "locomt_blocks_hf_lam.py"):
        changed = tmp_path / "two" / name
        changed.write_text(changed.read_text() + "# another version\n")
    code = """
import sys, torch, transformers
root = sys.argv[1]
inputs, expected = torch.load(f"{root}/cases.pt")
import hf_lam
from helpers.checkpointing import checkpoint_activations, keep_activations
local = hf_lam.HfLamViTModel.from_pretrained(f"{root}/one")
hub = {}
for name in expected:
    # An installed class registered with the Auto classes goes first, so ask for the repository's own class.
    hub[name] = transformers.dynamic_module_utils.get_class_from_dynamic_module(
        "modeling_hf_lam.HfLamViTModel", f"{root}/{name}"
    ).from_pretrained(f"{root}/{name}")
assert len({type(model) for model in (local, *hub.values())}) == 3
for round in range(2):
    assert torch.equal(local(**inputs)[0], expected["one"])
    for name, model in hub.items():
        assert torch.equal(model(**inputs)[0], expected[name])
        checkpoint_activations(model, False)
        model.train()(**inputs)[0].sum().backward()
        assert all(p.grad is not None for p in hf_lam.mechanism_parameters(model))
        keep_activations(model)
        model.eval()
hf_lam.remove(hub["two"])
hub["two"](**inputs)
assert torch.equal(hub["one"](**inputs)[0], expected["one"])
print("side by side")
"""
    torch.save((inputs, {name: output.detach() for name, output in expected.items()}), tmp_path / "cases.pt")
    assert "side by side" in run_code(code, tmp_path)


def test_travelling_code_imports_only_torch_transformers_and_siblings() -> None:
    allowed = {"torch", "transformers", *sys.stdlib_module_names}
    for name in TRAVELLING_FILES:
        for node in ast.walk(ast.parse((MODELING / name).read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed, name
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                assert f"{node.module}.py" in TRAVELLING_FILES, (name, node.module)
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] in allowed, (name, node.module)


def test_every_file_of_modeling_travels() -> None:
    assert {file.name for file in MODELING.glob("*.py")} - {"__init__.py", "functional.py"} == set(TRAVELLING_FILES)
    assert not [folder for folder in MODELING.iterdir() if folder.is_dir() and folder.name != "__pycache__"]


@pytest.mark.slow
def test_an_older_transformers_is_refused_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import importlib.metadata, sys
version = importlib.metadata.version
import transformers
from transformers import BertConfig, ViTConfig, VideoMAEConfig
importlib.metadata.version = lambda name: "5.17.0" if name == "transformers" else version(name)
sys.path.insert(0, sys.argv[1])
try:
    import modeling.configuration_hf_lam
except ImportError as error:
    print(error)
"""
    assert "5.18.0" in run_code(code, MODELING.parent)


def test_with_hf_lam_imported_a_folder_gives_the_installed_class(tmp_path: Path) -> None:
    model = convert(make_model(BertModel, "bert"), LamConfig())
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, HfLamBertModel)
    assert len(mechanism_parameters(loaded)) == 12
    remove(loaded)
