"""The file of a mechanism from elsewhere goes with a model, and runs where neither it nor hf_lam can be imported."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

import hf_lam
from helpers.door import AVERAGE, DISTANCE, TEMPERATURE, WINDOW, LoadFile
from helpers.fusion_models import make_fusion, make_fusion_inputs
from helpers.hosts import first_output, make_host, make_inputs, perturb_mechanisms
from helpers.processes import run_code
from hf_lam import LamConfig, LocomtConfig, SttConfig, convert
from hf_lam.modeling.injection_hf_lam import injection_of
from hf_lam.modeling.travelling_hf_lam import ADDED, LIST_FILE, MADE_RELATIVE, make_relative
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES

FILES = (TEMPERATURE, DISTANCE, WINDOW, AVERAGE)

# Neither hf_lam nor the files' modules are to be had.
LOADER = """
import sys
for name in ("head_temperature", "distance_bias", "local_window", "uniform_average", "helpers"):
    sys.modules[name] = None
import torch
import transformers

root = sys.argv[1]
for name, auto_class, inputs, expected, files in torch.load(f"{root}/cases.pt"):
    folder = f"{root}/{name}"
    for auto in ("AutoModel", auto_class):
        model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
    torch.testing.assert_close(model(**inputs)[0], expected, atol=1e-6, rtol=0)
    model.save_pretrained(f"{root}/{name}-again")
    for file in files:
        assert open(f"{folder}/{file}").read() == open(f"{root}/{name}-again/{file}").read(), file
    again = getattr(transformers, auto).from_pretrained(f"{root}/{name}-again", trust_remote_code=True)
    torch.testing.assert_close(again(**inputs)[0], expected, atol=1e-6, rtol=0)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert config.hf_lam == model.config.hf_lam
    config.save_pretrained(f"{root}/{name}-config")
    alone = transformers.AutoConfig.from_pretrained(f"{root}/{name}-config", trust_remote_code=True)
    assert alone.hf_lam == config.hf_lam
    print("loaded", name)
assert not [name for name, module in sys.modules.items() if module and name.partition(".")[0] == "hf_lam"]
"""


@pytest.mark.slow
def test_models_load_without_hf_lam_and_without_the_files(door: Any, tmp_path: Path) -> None:
    made: dict[str, tuple[Any, str, dict[str, Any]]] = {
        "scores": (
            convert(make_host("vit"), door.HeadTemperatureConfig(), door.DistanceBiasConfig()),
            "AutoModel",
            make_inputs("vit"),
        ),
        "all": (
            convert(
                make_host("bert"),
                LamConfig(per_head=True),
                SttConfig(synthesizer="random"),
                LocomtConfig(views="half"),
                door.HeadTemperatureConfig(shared=True),
                door.DistanceBiasConfig(),
            ),
            "AutoModel",
            make_inputs("bert", token_types=True),
        ),
        "pattern": (convert(make_host("vit"), door.LocalWindowConfig(reach=2)), "AutoModel", make_inputs("vit")),
        "replacement": (
            convert(make_host("videomae"), door.UniformAverageConfig()),
            "AutoModel",
            make_inputs("videomae"),
        ),
        "fusion": (
            make_fusion(hf_lam=(door.HeadTemperatureConfig(), LocomtConfig(views="half"))),
            "AutoModelForSequenceClassification",
            make_fusion_inputs(),
        ),
    }
    cases = []
    for name, (model, auto_class, inputs) in made.items():
        perturb_mechanisms(model)
        model.save_pretrained(tmp_path / name)
        own = {file.name for file in (tmp_path / name).glob("*.py")} - set(TRAVELLING_FILES)
        names = model.config.hf_lam.keys() - {"version", "lam", "locomt", "stt"}
        assert own == {f"{foreign}.py" for foreign in names}
        cases.append((name, auto_class, inputs, model(**inputs)[0].detach(), sorted(own | {LIST_FILE})))
    torch.save(cases, tmp_path / "cases.pt")
    printed = run_code(LOADER, tmp_path, hf_lam=False, environment={"HF_MODULES_CACHE": str(tmp_path / "modules")})
    assert printed.count("loaded") == len(cases)


@pytest.mark.slow
def test_beside_hf_lam_a_model_runs_its_own_code(door: Any, tmp_path: Path) -> None:
    model = convert(make_host("vit"), door.HeadTemperatureConfig(), LamConfig())
    perturb_mechanisms(model)
    model.save_pretrained(tmp_path / "model")
    inputs = make_inputs("vit")
    torch.save((inputs, first_output(model, inputs).detach()), tmp_path / "cases.pt")
    code = """
import sys, torch, transformers
root = sys.argv[1]
inputs, expected = torch.load(f"{root}/cases.pt")
model = transformers.AutoModel.from_pretrained(f"{root}/model", trust_remote_code=True)
import hf_lam
from hf_lam.modeling.mechanism_list_hf_lam import LamConfig
from hf_lam.modeling.mechanism_registry_hf_lam import mechanism_names
# Two copies of the code, each with a table of its own.
assert mechanism_names() == ["lam", "locomt", "stt"]
assert torch.equal(model(**inputs)[0], expected)
assert len(hf_lam.mechanism_parameters(model)) > 12
assert hf_lam.cost(model, inputs).agrees
hf_lam.freeze_host(model)
model.train()(**inputs)[0].sum().backward()
assert all(parameter.grad is not None for parameter in hf_lam.mechanism_parameters(model))
hf_lam.remove(model)
print("beside")
"""
    assert "beside" in run_code(code, tmp_path)


def test_where_it_is_registered_the_installed_class_loads_the_folder(temperature: ModuleType, tmp_path: Path) -> None:
    model = convert(make_host("vit"), temperature.HeadTemperatureConfig(shared=True))
    perturb_mechanisms(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is hf_lam.HfLamViTModel
    assert type(injection_of(loaded).configs["head_temperature"]) is temperature.HeadTemperatureConfig
    assert torch.equal(first_output(loaded, make_inputs("vit")), first_output(model, make_inputs("vit")))


@pytest.mark.slow
def test_where_it_is_not_registered_the_error_says_what_to_do(tmp_path: Path, load_file: LoadFile) -> None:
    convert(make_host("vit"), load_file(TEMPERATURE).HeadTemperatureConfig()).save_pretrained(tmp_path)
    run = """
import sys, hf_lam, transformers
try:
    transformers.AutoModel.from_pretrained(sys.argv[1])
except ValueError as error:
    print(error)
"""
    said = run_code(run, tmp_path)
    assert "unknown keys ['head_temperature']" in said and "import" in said and "trust_remote_code=True" in said


def test_without_its_mechanism_a_model_leaves_the_file_behind(temperature: ModuleType, tmp_path: Path) -> None:
    convert(make_host("vit"), LamConfig()).save_pretrained(tmp_path)
    assert not (tmp_path / "head_temperature.py").exists()
    assert ADDED not in (tmp_path / LIST_FILE).read_text()


def test_a_folder_that_is_saved_into_again_lists_what_the_model_has(temperature: ModuleType, tmp_path: Path) -> None:
    convert(make_host("vit"), temperature.HeadTemperatureConfig()).save_pretrained(tmp_path)
    listed = (tmp_path / LIST_FILE).read_text()
    assert listed.count("from .head_temperature import") == 1
    model = hf_lam.HfLamViTModel.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert (tmp_path / LIST_FILE).read_text() == listed
    convert(make_host("vit"), LamConfig()).save_pretrained(tmp_path)
    assert ADDED not in (tmp_path / LIST_FILE).read_text()


@pytest.mark.slow
def test_two_mechanisms_of_one_file(tmp_path: Path, load_file: LoadFile) -> None:
    source = TEMPERATURE.read_text()
    twin = source.partition("@dataclass")[2].replace("HeadTemperature", "Warmth").replace("head_temperature", "warmth")
    path = tmp_path / "both.py"
    path.write_text(f"{source}\n\n@dataclass{twin}")
    module = load_file(path)
    model = convert(make_host("vit"), module.HeadTemperatureConfig(), module.WarmthConfig())
    model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / LIST_FILE).read_text().count("from .both import") == 1
    code = "import sys, transformers; transformers.AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)"
    run_code(code, tmp_path / "model", hf_lam=False)


def test_two_files_of_one_name_do_not_overwrite_each_other(tmp_path: Path, load_file: LoadFile) -> None:
    source = TEMPERATURE.read_text()
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "mine.py").write_text(source)
    other = source.replace("HeadTemperature", "Warmth").replace("head_temperature", "warmth")
    (tmp_path / "two" / "mine.py").write_text(other)
    configs = load_file(tmp_path / "one" / "mine.py").HeadTemperatureConfig()
    with pytest.raises(
        ValueError, match=r"two/mine.py has the name of .*one/mine.py, which registered 'head_temperat"
    ):
        load_file(tmp_path / "two" / "mine.py")
    convert(make_host("vit"), configs).save_pretrained(tmp_path / "model")
    assert "HeadTemperatureConfig" in (tmp_path / "model" / "mine.py").read_text()


def test_what_travels_is_what_runs(tmp_path: Path, load_file: LoadFile) -> None:
    """Also where the file has been edited, moved or deleted since it was imported."""
    path = tmp_path / "head_temperature.py"
    path.write_text(TEMPERATURE.read_text())
    model = convert(make_host("vit"), load_file(path).HeadTemperatureConfig())
    model.save_pretrained(tmp_path / "before")
    path.write_text("raise RuntimeError\n")
    model.save_pretrained(tmp_path / "edited")
    path.unlink()
    model.save_pretrained(tmp_path / "deleted")
    for name in ("edited", "deleted"):
        assert (tmp_path / name / path.name).read_text() == (tmp_path / "before" / path.name).read_text()


# --- rewriting -------------------------------------------------------------------------------------------------------

REWRITTEN = {
    "from hf_lam import ScoreChange\n": "from .mechanism_hf_lam import ScoreChange\n",
    "from hf_lam import ScoreChange as Change, register_mechanism\n": (
        "from .mechanism_hf_lam import ScoreChange as Change\n"
        "from .mechanism_registry_hf_lam import register_mechanism\n"
    ),
    "from hf_lam import (\n    LamConfig,  # the mask\n    ScoreChange,\n)\n": (
        "from .lam_hf_lam import LamConfig\nfrom .mechanism_hf_lam import ScoreChange\n"
    ),
    "from hf_lam.modeling.padding_hf_lam import valid_tokens, allowed as seen\n": (
        "from .padding_hf_lam import valid_tokens, allowed as seen\n"
    ),
    "def run():\n    from hf_lam import ScoreChange\n    return ScoreChange\n": (
        "def run():\n    from .mechanism_hf_lam import ScoreChange\n    return ScoreChange\n"
    ),
    "from .mechanism_hf_lam import ScoreChange\n": "from .mechanism_hf_lam import ScoreChange\n",
    "from torch import Tensor\nimport torch  # not hf_lam\n": "from torch import Tensor\nimport torch  # not hf_lam\n",
    '"""from hf_lam import ScoreChange"""\nx = "é"; y = 1\nfrom hf_lam import ScoreChange\nz = 2\n': (
        '"""from hf_lam import ScoreChange"""\nx = "é"; y = 1\nfrom .mechanism_hf_lam import ScoreChange\nz = 2\n'
    ),
}


@pytest.mark.parametrize("source", REWRITTEN)
def test_imports_become_those_of_siblings(source: str) -> None:
    expected = REWRITTEN[source] if REWRITTEN[source] == source else MADE_RELATIVE + REWRITTEN[source]
    assert make_relative(source) == expected
    assert make_relative(make_relative(source)) == expected


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_but_imports_is_rewritten(path: Path) -> None:
    def rest(source: str) -> list[str]:
        return [ast.dump(node) for node in ast.parse(source).body if not isinstance(node, ast.ImportFrom)]

    assert rest(make_relative(path.read_text())) == rest(path.read_text())
    comments = [line for line in path.read_text().splitlines() if line.strip().startswith("#")]
    comments.insert(0, MADE_RELATIVE.strip())
    assert [line for line in make_relative(path.read_text()).splitlines() if line.strip().startswith("#")] == comments


def test_a_classifier_finds_its_class(temperature: ModuleType, tmp_path: Path) -> None:
    stock = make_host("bert")
    stock.save_pretrained(tmp_path / "stock")
    model = convert(
        tmp_path / "stock", temperature.HeadTemperatureConfig(), auto_class=AutoModelForSequenceClassification
    )
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(first_output(loaded, make_inputs("bert")), first_output(model, make_inputs("bert")))
