"""What `register_mechanism` refuses, and says; nothing is registered then."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import hf_lam
from helpers.door import DISTANCE, TEMPERATURE, LoadFile, open_door
from helpers.hosts import first_output, make_host, make_inputs, max_difference
from helpers.processes import fresh_environment, run_process
from hf_lam import LamConfig, LearnableAttentionMask, inject, register_mechanism
from hf_lam.modeling.mechanism_checks_hf_lam import check_behaviour, check_classes
from hf_lam.modeling.mechanism_registry_hf_lam import (
    config_class_of,
    file_of,
    is_own_file,
    mechanism_class_of,
    mechanism_names,
)

BUILT_IN = ["lam", "locomt", "stt"]
CONVERTED = ("bert", "vit", "videomae")

# A mechanism that passes; the tests change a line or two.
SOURCE = """
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hf_lam import LayerInput, Mechanism, MechanismConfig, ScoreChange, register_mechanism


@dataclass(frozen=True)
class GainConfig(MechanismConfig):
    start: float = 1.0


class Gain(Mechanism):
    def __init__(self, config: GainConfig, host: Any) -> None:
        super().__init__(config, host)
        self.gain = nn.Parameter(torch.empty(host.num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.constant_(self.gain, self.config.start)

    def change_scores(self, given: LayerInput) -> ScoreChange:
        return ScoreChange(factor=self.gain.view(1, -1, 1, 1))


register_mechanism("gain", GainConfig, Gain)
"""
OPTION = "    start: float = 1.0\n"
START = "\n    start: float = 1.0"
CHANGE = "ScoreChange(factor=self.gain.view(1, -1, 1, 1))"
METHOD = f"""
    def change_scores(self, given: LayerInput) -> ScoreChange:
        return {CHANGE}
"""
RESET = """
    def reset_parameters(self) -> None:
        init.constant_(self.gain, self.config.start)
"""
CALL = 'register_mechanism("gain", GainConfig, Gain)'


def write(folder: Path, *edits: tuple[str, str], name: str = "gain") -> Path:
    source = SOURCE
    for old, new in edits:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    path = folder / f"{name}.py"
    path.write_text(source, encoding="utf-8")
    return path


def also(line: str) -> tuple[str, str]:
    """Another import."""
    return "from typing import Any\n", f"from typing import Any\n{line}\n"


def named(name: str) -> tuple[str, str]:
    return CALL, f"register_mechanism({name}, GainConfig, Gain)"


REFUSED: dict[str, tuple[list[tuple[str, str]], type[Exception], str]] = {
    # --- the name ---
    "capital letters": ([named("'Gain'")], ValueError, "lower-case letters, digits and _.*got 'Gain'"),
    "a digit first": ([named("'2gain'")], ValueError, "got '2gain'"),
    "a hyphen": ([named("'a-gain'")], ValueError, "got 'a-gain'"),
    "a dot": ([named("'a.gain'")], ValueError, "got 'a.gain'"),
    "a line break": ([named("'gain\\n'")], ValueError, r"got 'gain\\n'"),
    "no letters": ([named("''")], ValueError, "got ''"),
    "no text": ([named("None")], ValueError, "got None"),
    "a key of the block": ([named("'version'")], ValueError, "got 'version'"),
    "a module's method": ([named("'forward'")], ValueError, "nothing that a torch module has.*got 'forward'"),
    "a module's attribute": ([named("'training'")], ValueError, "got 'training'"),
    "taken": (
        [named("'lam'")],
        ValueError,
        "'lam' is taken by LamConfig of .*lam_hf_lam.py; choose another for GainConfig of .*gain.py",
    ),
    # --- the classes ---
    "an instance": (
        [(CALL, 'register_mechanism("gain", GainConfig(), Gain)')],
        TypeError,
        "a subclass of MechanismConfig, got GainConfig",
    ),
    "another configuration": ([("GainConfig(MechanismConfig)", "GainConfig")], TypeError, "subclass of Mechanism"),
    "another module": (
        [("class Gain(Mechanism)", "class Gain(nn.Module)"), ("super().__init__(config, host)", "")],
        TypeError,
        "a subclass of Mechanism, got",
    ),
    "the wrong way round": ([(CALL, 'register_mechanism("gain", Gain, GainConfig)')], TypeError, "MechanismConfig"),
    "no dataclass": (
        [("@dataclass(frozen=True)\n", "")],
        TypeError,
        r"GainConfig must be .*@dataclass\(frozen=True\)",
    ),
    "not frozen": ([("(frozen=True)", "")], TypeError, r"GainConfig must be .*@dataclass\(frozen=True\)"),
    # --- the options ---
    "no default": (
        [(OPTION, "    start: float\n")],
        ValueError,
        r"the options \['start'\] of GainConfig need defaults",
    ),
    "a dtype": ([(START, "\n    start: Any = torch.float32")], ValueError, "GainConfig must be JSON values: .*dtype"),
    "a set": (
        [
            ("import dataclass\n", "import dataclass, field\n"),
            (START, "\n    start: Any = field(default_factory=set)"),
        ],
        ValueError,
        "must be JSON values",
    ),
    "a tuple": ([(START, "\n    start: Any = (1.0,)")], ValueError, r"not what its JSON says: .*\(1.0,\).*\[1.0\]"),
    "not a number": ([(START, '\n    start: float = float("nan")')], ValueError, "GainConfig"),
    "a default of its own that it refuses": (
        [(OPTION, f"{OPTION}\n    def __post_init__(self) -> None:\n        raise ValueError('start is wrong')\n")],
        ValueError,
        "start is wrong",
    ),
    # --- the kind of change ---
    "a kind that there is not": (
        [(OPTION, f'{OPTION}    change = "masks"\n')],
        ValueError,
        r"GainConfig.change must be one of \['scores', 'pattern', 'replacement'\], got 'masks'",
    ),
    "no change_scores": ([(METHOD, "")], ValueError, "changes scores, for which Gain must have its own change_scores"),
    "a pattern without begin": (
        [(OPTION, f'{OPTION}    change = "pattern"\n')],
        ValueError,
        "changes pattern, for which Gain must have its own begin",
    ),
    "a replacement without replace_scores": (
        [(OPTION, f'{OPTION}    change = "replacement"\n')],
        ValueError,
        "changes replacement, for which Gain must have its own replace_scores",
    ),
    # --- imports ---
    "a package": ([also("import numpy")], ValueError, r"gain.py, line 4: 'import numpy' needs numpy"),
    "a name of a package": ([also("from numpy import array")], ValueError, "'from numpy import array' needs numpy"),
    "a part of a package": ([also("import numpy.linalg as la")], ValueError, "needs numpy"),
    "one of several": ([also("import math, numpy")], ValueError, "needs numpy"),
    "like torch": (
        [(METHOD, f"{METHOD}\n    def extra_repr(self) -> str:\n        import torchvision\n")],
        ValueError,
        "needs torchvision",
    ),
    "with something else on its line": (
        [also("from hf_lam import LamConfig; ONE = 1.0")],
        ValueError,
        "line 4: 'from hf_lam import LamConfig' needs lines of its own",
    ),
    "after something on its line": (
        [also("if ONE := 1.0: from hf_lam import LamConfig")],
        ValueError,
        "line 4: 'from hf_lam import LamConfig' needs lines of its own",
    ),
    "inside of a function": (
        [
            (
                METHOD,
                f"{METHOD}\n    def extra_repr(self) -> str:\n        import numpy\n\n        return numpy.__name__\n",
            )
        ],
        ValueError,
        "needs numpy",
    ),
    "hf_lam": (
        [also("import hf_lam")],
        ValueError,
        "needs hf_lam itself; write: from hf_lam import the names you use",
    ),
    "a module of hf_lam": ([also("import hf_lam.modeling.lam_hf_lam")], ValueError, "needs hf_lam itself"),
    "a tool of hf_lam": (
        [also("from hf_lam import save_mechanism")],
        ValueError,
        "save_mechanism, which does not travel",
    ),
    "a tool's module": ([also("from hf_lam.parameters import freeze_host")], ValueError, "needs hf_lam itself"),
    "all of hf_lam": ([also("from hf_lam import *")], ValueError, r"imports \*, which does not travel"),
    "a module as a name": ([also("from hf_lam import modeling")], ValueError, "modeling, which does not travel"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path, load_file: LoadFile) -> None:
    edits, kind, message = REFUSED[case]
    with pytest.raises(kind, match=re.compile(message, re.DOTALL)):
        load_file(write(tmp_path, *edits))
    assert mechanism_names() == BUILT_IN


BEHAVIOUR: dict[str, tuple[list[tuple[str, str]], str]] = {
    "a factor other than one": (
        [(START, "\n    start: float = 2.0")],
        r"with its defaults GainConfig changes attention before any training, by up to [\d.]+ on an image encoder. "
        "Start from a factor of 1 and an addend of 0, or say in explain_change why it does not",
    ),
    "no number": (
        [(CHANGE, "ScoreChange(factor=self.gain.view(1, -1, 1, 1).log().log())")],
        "GainConfig changes attention",
    ),
    "an addend": (
        [(CHANGE, "ScoreChange(addend=torch.arange(7.0) * self.gain.view(1, -1, 1, 1))")],
        "changes attention before any training",
    ),
    "a shape that does not broadcast": (
        [(CHANGE, "ScoreChange(factor=self.gain)")],
        r"Gain fails on an image encoder with its defaults: .*broadcast.*2",
    ),
    "a shape that grows": (
        [(CHANGE, "ScoreChange(factor=torch.ones(3, 1, 1, 1, 1))")],
        r"broadcastable to \(2, 2, 7, 7\), got \(3, 1, 1, 1, 1\)",
    ),
    "a tensor alone": ([(CHANGE, "self.gain.view(1, -1, 1, 1)")], "fails on an image encoder.*factor"),
    "nothing": ([(CHANGE, "None")], "fails on an image encoder.*factor"),
    "an error": (
        [(CHANGE, "ScoreChange(factor=given.nothing)")],
        "fails on an image encoder.*AttributeError: .*nothing",
    ),
    "costs that are no count": (
        [
            (
                METHOD,
                f"{METHOD}\n    def count_flops(self, *sizes: int) -> Any:\n        return 0.5\n",
            )
        ],
        "count_flops must return an integer",
    ),
    "a weight that loading leaves out": (
        [("torch.empty(host.num_heads)", "torch.ones(host.num_heads)"), (RESET, "")],
        "Gain has a weight 'gain' that no reset_parameters writes, .*transformers.initialization",
    ),
    "a weight in a list, which loading passes over": (
        [
            (
                "self.gain = nn.Parameter(torch.empty(host.num_heads))",
                "self.gains = nn.ParameterList([torch.ones(2)])",
            ),
            ("init.constant_(self.gain, self.config.start)", "init.ones_(self.gains[0])"),
            ("self.gain.view", "self.gains[0].view"),
        ],
        "Gain has a weight 'gains.0' that no reset_parameters writes",
    ),
    "a layer that loading makes random": (
        [
            (
                "        self.reset_parameters()\n",
                "        self.scale = nn.Linear(8, 1)\n        init.zeros_(self.scale.weight)\n",
            ),
            (CHANGE, "ScoreChange(factor=1 + self.scale(given.hidden_states).unsqueeze(1))"),
        ],
        "GainConfig changes attention before any training",
    ),
    "no encoder that fits": (
        [(OPTION, f"{OPTION}\n    def resolve(self, host: Any) -> Any:\n        raise ValueError('needs a harp')\n")],
        "the defaults of GainConfig fit no encoder: an image encoder: needs a harp; a video encoder: .*; a text "
        "encoder: .*; a fusion model: needs a harp",
    ),
}


@pytest.mark.parametrize("case", BEHAVIOUR)
def test_refused_for_what_it_does(case: str, tmp_path: Path, load_file: LoadFile) -> None:
    edits, message = BEHAVIOUR[case]
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        load_file(write(tmp_path, *edits))
    assert mechanism_names() == BUILT_IN


def test_what_changes_the_outputs_may_say_so(tmp_path: Path, load_file: LoadFile) -> None:
    said = "\n    def explain_change(self, model: str) -> str:\n        return f'{model} is louder at once.'\n"
    module = load_file(write(tmp_path, (OPTION, f"{OPTION}{said}"), (START, "\n    start: float = 2.0")))
    assert mechanism_names() == [*BUILT_IN, "gain"]
    assert module.GainConfig.name == "gain"


def test_registered_once_it_is_found_everywhere(tmp_path: Path, load_file: LoadFile) -> None:
    path = write(tmp_path)
    module = load_file(path)
    assert mechanism_names() == [*BUILT_IN, "gain"]
    assert config_class_of("gain") is module.GainConfig
    assert mechanism_class_of("gain") is module.Gain
    assert file_of("gain") == path and not is_own_file(path)
    with pytest.raises(ValueError, match="there is no mechanism 'pain'; registered are lam, locomt, stt, gain"):
        config_class_of("pain")


def test_nothing_random_is_drawn_and_nothing_changes_while_registering(tmp_path: Path, load_file: LoadFile) -> None:
    before = torch.get_rng_state()
    load_file(
        write(tmp_path, ("init.constant_(self.gain, self.config.start)", "torch.rand(3); init.ones_(self.gain)"))
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_it_registers_in_the_context_of_any_device_and_without_gradients(
    device: str, tmp_path: Path, load_file: LoadFile
) -> None:
    with torch.device(device), torch.inference_mode():
        load_file(write(tmp_path))
    assert mechanism_names() == [*BUILT_IN, "gain"]


# --- the file --------------------------------------------------------------------------------------------------------


def test_classes_in_two_files_are_refused(tmp_path: Path, load_file: LoadFile) -> None:
    text = SOURCE.replace(CALL, "")
    (tmp_path / "gain.py").write_text(text)
    load_file(tmp_path / "gain.py")
    (tmp_path / "options.py").write_text(text)
    options = load_file(tmp_path / "options.py")
    gain = load_file(tmp_path / "gain.py")
    with pytest.raises(
        ValueError, match=r"Gain is defined in .*gain.py, and its configuration in .*options.py; put both"
    ):
        register_mechanism("gain", options.GainConfig, gain.Gain)
    assert mechanism_names() == BUILT_IN


def test_a_file_beside_it_is_refused(tmp_path: Path, load_file: LoadFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "gain_helpers.py").write_text("ONE = 1.0\n")
    with pytest.raises(ValueError, match="'from gain_helpers import ONE' needs gain_helpers"):
        load_file(write(tmp_path, also("from gain_helpers import ONE")))
    assert mechanism_names() == BUILT_IN


@pytest.mark.parametrize("line", ["from .helpers import ONE", "from . import helpers", "from ..music import ONE"])
def test_relative_imports_are_refused(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("orchestra", "orchestra.music", "orchestra.music.helpers"):
        sys.modules.pop(name, None)
    package = tmp_path / "orchestra" / "music"
    package.mkdir(parents=True)
    (tmp_path / "orchestra" / "__init__.py").touch()
    (package / "__init__.py").write_text("ONE = 1.0\n")
    (package / "helpers.py").write_text("ONE = 1.0\n")
    write(package, also(line))
    with pytest.raises(ValueError, match=f"{re.escape(line)}' imports a file that does not travel"):
        importlib.import_module("orchestra.music.gain")
    assert mechanism_names() == BUILT_IN


def test_in_a_package_it_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "band"
    package.mkdir()
    (package / "__init__.py").touch()
    write(package)
    importlib.import_module("band.gain")
    assert file_of("gain") == package / "gain.py"


@pytest.mark.parametrize("name", ["a-gain", "2gain", "lam_hf_lam", "modeling_hf_lam"])
def test_names_of_files_that_cannot_lie_beside_ours(name: str, tmp_path: Path, load_file: LoadFile) -> None:
    with pytest.raises(ValueError, match=f"{name}.py cannot lie beside the files of hf_lam"):
        load_file(write(tmp_path, name=name))
    assert mechanism_names() == BUILT_IN


def test_a_class_of_no_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook: the code is there, and no file that could travel."""
    notebook = ModuleType("a_notebook")
    monkeypatch.setitem(sys.modules, "a_notebook", notebook)
    with pytest.raises(
        ValueError, match=r"is defined in no file .*Put it into a Python file of its own and import that"
    ):
        exec(compile(SOURCE, "<ipython-input-1>", "exec", dont_inherit=True), vars(notebook))
    assert mechanism_names() == BUILT_IN


@pytest.mark.slow
@pytest.mark.parametrize("way", ["-c", "stdin"])
def test_a_class_from_the_command_line_is_refused(way: str) -> None:
    source = SOURCE.replace(CALL, f"try:\n    {CALL}\nexcept ValueError as error:\n    print('refused:', error)")
    arguments = ["-c", source] if way == "-c" else ["-"]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=source,
        env=fresh_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "refused: Gain is defined in no file" in done.stdout, done.stderr[-2000:]


@pytest.mark.slow
def test_a_file_that_is_run_itself_registers(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        (CALL, f'{CALL}\nfrom hf_lam.modeling.mechanism_registry_hf_lam import file_of\nprint(file_of("gain"))'),
    )
    assert run_process([sys.executable, str(path)]).strip() == str(path)


def test_a_line_of_its_docstring_that_begins_like_an_import_is_refused(tmp_path: Path, load_file: LoadFile) -> None:
    # transformers looks for the files that belong to one with a regular expression, in docstrings too.
    text = "\nclass Gain(Mechanism):\n"
    with pytest.raises(ValueError, match=r"line \d+: 'from .nowhere import Nothing' reads like an import"):
        load_file(write(tmp_path, (text, f'{text}    """Like\n\n    from .nowhere import Nothing\n    """\n\n')))
    assert mechanism_names() == BUILT_IN


# --- again -----------------------------------------------------------------------------------------------------------


def test_reloading_replaces(tmp_path: Path, load_file: LoadFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path)
    module = load_file(path)
    first = module.GainConfig
    path.write_text(SOURCE.replace("start: float = 1.0", "start: float = 1.0\n    more: int = 0"))
    importlib.invalidate_caches()
    reloaded = importlib.reload(module)
    assert reloaded.GainConfig is not first
    assert config_class_of("gain") is reloaded.GainConfig
    assert mechanism_names() == [*BUILT_IN, "gain"]
    inject(make_host("vit"), reloaded.GainConfig(more=3))
    with pytest.raises(ValueError, match=r"expected a mechanism configuration .*GainConfig"):
        inject(make_host("vit"), first())


def test_a_reload_that_fails_keeps_what_there_was(tmp_path: Path, load_file: LoadFile) -> None:
    path = write(tmp_path)
    first = load_file(path).GainConfig
    write(tmp_path, (START, "\n    start: float = 2.0"))
    with pytest.raises(ValueError, match="changes attention"):
        load_file(path)
    assert config_class_of("gain") is first
    inject(make_host("vit"), first())


def test_the_same_name_in_another_file_is_taken(tmp_path: Path, load_file: LoadFile) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = load_file(write(tmp_path / "one"))
    other = write(tmp_path / "two", ("GainConfig(MechanismConfig)", "LoudConfig(MechanismConfig)"), name="loud")
    other.write_text(other.read_text().replace("GainConfig", "LoudConfig"))
    with pytest.raises(ValueError, match=r"'gain' is taken by GainConfig of .*; choose another for LoudConfig"):
        load_file(other)
    assert config_class_of("gain") is first.GainConfig


def test_the_built_in_ones_cannot_be_replaced(tmp_path: Path, load_file: LoadFile) -> None:
    """Not even by classes of the same name."""
    path = write(tmp_path, named("'lam'"))
    path.write_text(path.read_text().replace("GainConfig", "LamConfig"))
    with pytest.raises(ValueError, match="'lam' is taken"):
        load_file(path)
    assert config_class_of("lam") is LamConfig


# --- what registers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_ones_do_what_they_say(name: str) -> None:
    check_classes(name, config_class_of(name), mechanism_class_of(name))
    check_behaviour(config_class_of(name), mechanism_class_of(name))
    assert is_own_file(file_of(name))


@pytest.mark.parametrize(
    "options", [{"variant": v} for v in ("dense", "random", "factorized_dense", "factorized_random")]
)
def test_a_built_in_replacement_does_what_it_says(options: dict[str, Any]) -> None:
    default = config_class_of("stt")

    @dataclass(frozen=True)
    class Pure(default):  # type: ignore[misc, valid-type]
        variant: str = options["variant"]

    check_classes("pure", Pure, mechanism_class_of("stt"))
    check_behaviour(Pure, mechanism_class_of("stt"))


@pytest.mark.parametrize("path", [TEMPERATURE, DISTANCE], ids=lambda path: path.stem)
def test_the_examples_register_and_are_short(path: Path, load_file: LoadFile) -> None:
    load_file(path)
    assert mechanism_names() == [*BUILT_IN, path.stem]
    lines = path.read_text().splitlines()
    assert len(lines) <= 80
    imports = [line for line in lines if line.startswith("from hf_lam")]
    assert len(imports) == 1 and imports[0].startswith("from hf_lam import ")


def test_a_variant_of_a_built_in_one(tmp_path: Path, load_file: LoadFile) -> None:
    path = tmp_path / "halved_lam.py"
    path.write_text('''
"""A learnable attention mask of half the strength."""

from dataclasses import dataclass

from hf_lam import LamConfig, LayerInput, ScoreChange, register_mechanism
from hf_lam.modeling.lam_hf_lam import LearnableAttentionMasks


@dataclass(frozen=True)
class HalvedLamConfig(LamConfig):
    pass


class HalvedMasks(LearnableAttentionMasks):
    def change_scores(self, given: LayerInput) -> ScoreChange:
        return ScoreChange(factor=(1 + super().change_scores(given).factor) / 2)


register_mechanism("halved_lam", HalvedLamConfig, HalvedMasks)
''')
    module = load_file(path)
    model, inputs = make_host("vit"), make_inputs("vit")
    original = first_output(model, inputs)
    inject(model, module.HalvedLamConfig(per_head=True))
    assert max_difference(first_output(model, inputs), original) < 1e-5
    assert isinstance(model.hf_lam.halved_lam[0], LearnableAttentionMask)
    assert config_class_of("lam") is LamConfig and LamConfig.name == "lam"
    assert module.HalvedLamConfig.name == "halved_lam"


# --- names of weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["attention", "layer", "layers", "query", "key", "value", "output", "dense", "intermediate", "mlp"]
)
def test_names_of_weights_that_transformers_renames(name: str, tmp_path: Path, load_file: LoadFile) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace("self.gain", f"self.{name}"))
    with pytest.raises(ValueError, match=f"Gain has a weight '{name}', and transformers renames .*Give the attribute"):
        load_file(path)
    assert mechanism_names() == BUILT_IN


def _words_renamed() -> set[str]:
    """Every word in the names that transformers renames in checkpoints of our hosts, or renames to."""
    words: set[str] = set()
    for host in ("bert", "vit", "ViTModel", "videomae"):
        for transform in get_checkpoint_conversion_mapping(host) or ():
            for pattern in (*transform.source_patterns, *transform.target_patterns):
                words |= set(re.findall(r"[A-Za-z_]\w*", re.sub(r"\\[a-zA-Z]", " ", pattern)))
    return words


def _comes_back(host: str, config: Any, name: str, folder: Path) -> bool:
    """Whether a weight of a model is the same after saving and loading."""
    model = hf_lam.convert(make_host(host), config)
    getattr(model.hf_lam.gain, name).data.uniform_(1, 2)
    model.save_pretrained(folder)
    try:
        again = type(model).from_pretrained(folder)
    except RuntimeError:
        return False
    return torch.equal(getattr(again.hf_lam.gain, name), getattr(model.hf_lam.gain, name))


@pytest.mark.slow
def test_no_name_of_a_weight_passes_that_a_checkpoint_would_lose(tmp_path: Path) -> None:
    """Each word of transformers' renames as the name of a weight: it is refused, or comes back from a folder."""
    words = sorted(_words_renamed() | {"gamma", "beta", "weight_g", "weight_v", "weight", "bias", "LayerNorm"})
    assert len(words) > 10
    lost = []
    for word in words:
        path = write(tmp_path)
        path.write_text(path.read_text().replace("self.gain", f"self.{word}"))
        with open_door() as load:
            try:
                config = load(path).GainConfig()
            except ValueError as error:
                assert "transformers renames" in str(error)
                continue
            lost += [(word, host) for host in CONVERTED if not _comes_back(host, config, word, tmp_path / "model")]
    assert not lost
