"""What happens when hf_lam is imported, and when transformers is, in whatever order."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

import hf_lam
from helpers.processes import run_code, run_process
from hf_lam.importing import when_imported
from hf_lam.modeling.mechanism_registry_hf_lam import file_of, is_own_file, mechanism_names
from hf_lam.modeling.version_hf_lam import OWN_MECHANISMS

COMMANDS = ("convert", "inspect", "cost", "push", "verify", "demo")

# --- once a module has been imported ---------------------------------------------------------------------------------

NAME = "imported_later"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Writes the module `imported_later`, which is forgotten after the test, and so is what waits for it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    finders = list(sys.meta_path)

    def write(code: str) -> None:
        (tmp_path / f"{NAME}.py").write_text(code)
        importlib.invalidate_caches()

    yield write
    sys.modules.pop(NAME, None)
    sys.meta_path[:] = finders


def test_it_is_done_once_when_the_module_has_run(write: Callable[[str], None]) -> None:
    write("value = 1")
    finders, seen = list(sys.meta_path), []
    when_imported(NAME, lambda module: seen.append(module.value))
    assert not seen and NAME not in sys.modules
    module = importlib.import_module(NAME)
    assert seen == [1]
    assert sys.meta_path == finders
    # The module is as it would be otherwise.
    assert type(module.__loader__) is SourceFileLoader and module.__spec__.loader is module.__loader__
    importlib.reload(module)
    assert seen == [1]


def test_it_is_done_now_if_the_module_has_run(write: Callable[[str], None]) -> None:
    write("value = 1")
    importlib.import_module(NAME)
    finders, seen = list(sys.meta_path), []
    when_imported(NAME, seen.append)
    assert seen == [sys.modules[NAME]]
    assert sys.meta_path == finders


def test_looking_for_the_module_does_not_import_it(write: Callable[[str], None]) -> None:
    write("value = 1")
    seen: list[ModuleType] = []
    when_imported(NAME, seen.append)
    spec = importlib.util.find_spec(NAME)
    assert spec is not None and spec.loader is not None
    assert spec.loader.get_source(NAME) == "value = 1"  # type: ignore[attr-defined]
    assert not seen
    importlib.import_module(NAME)
    assert len(seen) == 1


def test_several_wait_for_one_module(write: Callable[[str], None]) -> None:
    write("value = 1")
    seen: list[str] = []
    for who in ("first", "second", "third"):
        when_imported(NAME, lambda module, who=who: seen.append(who))
    importlib.import_module(NAME)
    assert sorted(seen) == ["first", "second", "third"]


def test_a_module_that_fails_is_waited_for_again(write: Callable[[str], None]) -> None:
    write("raise RuntimeError('not yet')")
    seen: list[ModuleType] = []
    when_imported(NAME, seen.append)
    with pytest.raises(RuntimeError, match="not yet"):
        importlib.import_module(NAME)
    assert not seen
    write("value = 'now'")
    importlib.import_module(NAME)
    assert [module.value for module in seen] == ["now"]


def test_what_cannot_be_done_fails_the_import_each_time(write: Callable[[str], None]) -> None:
    write("value = 1")

    def fail(module: ModuleType) -> None:
        raise ValueError("cannot be done")

    when_imported(NAME, fail)
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be done"):
            importlib.import_module(NAME)
        assert NAME not in sys.modules


def test_a_module_that_is_not_there_is_not_there(write: Callable[[str], None]) -> None:
    when_imported(NAME, lambda module: None)
    assert importlib.util.find_spec(NAME) is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(NAME)


@pytest.mark.parametrize("asked", ["before", "meanwhile"])
def test_threads_that_import_it_together_do_it_once(write: Callable[[str], None], asked: str) -> None:
    """Also if it is asked for while another thread is in the middle of the import."""
    write("import threading\nfrom builtins import imported_later_running as running\nrunning()\nvalue = 1")
    began, may_end, seen = threading.Event(), threading.Event(), []

    def running() -> None:
        began.set()
        assert may_end.wait(30)

    import builtins

    builtins.imported_later_running = running  # type: ignore[attr-defined]
    try:
        if asked == "before":
            when_imported(NAME, lambda module: seen.append(module.value))
        threads = [threading.Thread(target=importlib.import_module, args=(NAME,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert began.wait(30)
        if asked == "meanwhile":
            late = threading.Thread(target=when_imported, args=(NAME, lambda module: seen.append(module.value)))
            late.start()
            threads.append(late)
        assert not seen
        may_end.set()
        for thread in threads:
            thread.join(30)
    finally:
        del builtins.imported_later_running  # type: ignore[attr-defined]
    assert seen == [1]


# --- the names of hf_lam ---------------------------------------------------------------------------------------------


def _names_for_types() -> dict[str, str]:
    """The public names by what `hf_lam/__init__.py` tells those who read its types: their modules, below hf_lam."""
    tree = ast.parse(Path(hf_lam.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def _names() -> list[str]:
    return [name for name in hf_lam.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", _names())
def test_every_public_name_is_where_its_types_are(name: str) -> None:
    module = importlib.import_module(f"hf_lam.{_names_for_types()[name]}")
    assert getattr(hf_lam, name) is getattr(module, name)
    assert name in dir(hf_lam)


def test_nothing_else_is_told() -> None:
    assert sorted(_names_for_types()) == sorted(_names())


def test_a_star_imports_them_all() -> None:
    names: dict[str, object] = {}
    exec("from hf_lam import *", names)
    assert set(hf_lam.__all__) <= set(names)


def test_parts_are_there_without_an_import_of_their_own() -> None:
    code = "import hf_lam; print(hf_lam.loading.__name__, hf_lam.modeling.__name__)"
    assert run_code(code).split() == ["hf_lam.loading", "hf_lam.modeling"]


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("injct", "inject"),
        ("LAMConfig", "LamConfig"),
        ("HfLamBertForSequenceClasification", "HfLamBertForSequenceClassification"),
        ("HfLamModernBERTModel", "HfLamModernBertModel"),
        ("HfLamDINOv2Config", "HfLamDinov2Config"),
        ("HfLamBirdConfig", None),
        ("HfLamT5Model", None),
        ("_private", None),
        ("nothing_like_it_at_all", None),
    ],
)
def test_other_names_are_refused(name: str, close: str | None) -> None:
    said = f"Did you mean '{close}'" if close else f"has no attribute '{name}'$"
    with pytest.raises(AttributeError, match=said):
        getattr(hf_lam, name)
    assert not hasattr(hf_lam, name)


# --- what is imported, and when --------------------------------------------------------------------------------------

HEAVY = "[name for name in ('torch', 'transformers', 'huggingface_hub', 'numpy') if name in sys.modules]"


def test_importing_hf_lam_imports_nothing_heavy() -> None:
    code = f"import sys, hf_lam; hf_lam.__version__; dir(hf_lam); print({HEAVY})"
    assert run_code(code).strip() == "[]"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["hf-lam", *sys.argv[1:]]
from hf_lam.cli import main
try:
    main()
finally:
    print({HEAVY})
"""
    said = run_code(code, *arguments).splitlines()
    assert said[-1] == "[]"
    assert len(said) > 1


def test_the_help_names_the_mechanisms() -> None:
    assert [name for name in mechanism_names() if is_own_file(file_of(name))] == list(OWN_MECHANISMS)


# Whatever is imported first, transformers finds a class of each kind.
FINDS = """
import hf_lam
options = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
config = transformers.AutoConfig.for_model("hf_lam_bert", **options, hf_lam={"lam": {}})
assert type(config) is hf_lam.HfLamBertConfig, type(config)
for auto, ours in (("AutoModel", hf_lam.HfLamBertModel), ("AutoModelForMaskedLM", hf_lam.HfLamBertForMaskedLM)):
    assert type(getattr(transformers, auto).from_config(config)) is ours
assert transformers.AutoConfig.for_model("hf_lam_fusion", **FUSION).__class__ is hf_lam.HfLamFusionConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
assert PROCESSOR_MAPPING[hf_lam.HfLamFusionConfig] is hf_lam.HfLamFusionProcessor
assert "first" not in globals() or first == OWN, first
left = [finder for finder in sys.meta_path if type(finder).__module__.startswith("hf_lam")]
assert not left, left
"""
NAMES = "from hf_lam.modeling.mechanism_registry_hf_lam import mechanism_names; first = mechanism_names()"
ORDERS = {
    "hf_lam first": "import hf_lam, transformers",
    "what was imported before": "import transformers; from transformers import AutoConfig, AutoModel; import hf_lam",
    "the door first": f"from hf_lam import register_mechanism; {NAMES}; import transformers",
    "a module of hf_lam first": f"from hf_lam import mechanism_options; {NAMES}; import transformers",
    "in threads": """
from concurrent.futures import ThreadPoolExecutor
import hf_lam, transformers
looks = [(transformers, "AutoModel"), (hf_lam, "HfLamFusionModel"), (transformers, "AutoConfig")]
looks += [(hf_lam, "HfLamBertModel"), (transformers, "AutoProcessor")]
with ThreadPoolExecutor(len(looks)) as pool:
    list(pool.map(lambda look: getattr(*look), looks))
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_transformers_finds_the_classes_in_every_order(order: str) -> None:
    fusion = 'FUSION = {"text_config": {"model_type": "bert"}, "image_config": {"model_type": "vit"}}'
    run_code("\n".join(["import sys", f"OWN = {list(OWN_MECHANISMS)}", fusion, ORDERS[order], FINDS]))


@pytest.mark.slow
def test_a_spawned_worker_finds_them(tmp_path: Path) -> None:
    """A worker that is handed a model has imported of hf_lam only where its class is."""
    script = tmp_path / "spawning.py"
    script.write_text(
        """
import multiprocessing, sys

def work(model):
    from transformers import AutoModel
    return type(AutoModel.from_config(model.config)).__module__

if __name__ == "__main__":
    import hf_lam
    options = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    model = hf_lam.HfLamBertModel(hf_lam.HfLamBertConfig(**options, hf_lam={"lam": {}}))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(work, (model,)))
"""
    )
    assert run_process([sys.executable, str(script)]).strip() == "hf_lam.modeling.modeling_hf_lam"


@pytest.mark.slow
def test_everything_but_the_models_imports_no_host() -> None:
    """And nothing that a host does not import, nor transformers' table of a thousand regular expressions."""
    code = """
import sys
from transformers import AutoModel, AutoProcessor, BertModel, conversion_mapping
before = set(sys.modules)
import hf_lam
for name in hf_lam.__all__:
    if not name.startswith("HfLam"):
        getattr(hf_lam, name)
added = set(sys.modules) - before
others = {name.partition(".")[0] for name in added} - set(sys.stdlib_module_names)
assert others <= {"hf_lam", "transformers"}, others
hosts = [name for name in added if name.startswith("transformers.models.") and ".modeling_" in name]
assert not hosts, hosts
assert conversion_mapping._checkpoint_conversion_mapping_cache is None
"""
    run_code(code)
