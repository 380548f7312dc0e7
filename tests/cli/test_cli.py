"""The command line as a whole, and `hf-lam cost` on saved folders."""

import io
import json
import re
import shlex
from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from rich.console import Console
from safetensors import SafetensorError
from transformers import AutoConfig, BertForSequenceClassification
from typer.main import get_command
from typer.testing import CliRunner

import hf_lam
from helpers.command_line import cells, error_line, run_main
from helpers.hosts import make_host, make_model
from hf_lam import LamConfig, LocomtConfig, SttConfig, cli, flops
from hf_lam.cli import common
from hf_lam.cli.common import EXIT_CODES
from hf_lam.hub import PushError

COMMANDS = ["convert", "inspect", "cost", "export", "push", "verify", "demo"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    table = [["self", "self", "self", "cross:a-b"], ["self"] * 4, ["a>b", "self", "a>b", "full"]]
    views = LocomtConfig(segments=[["a", 12], ["b", 20]], views=table)
    classifier = make_model(BertForSequenceClassification, "bert")
    hf_lam.convert(classifier, views, LamConfig()).save_pretrained(root / "views")
    make_host("vit").save_pretrained(root / "stock")
    hf_lam.convert(make_host("vit"), SttConfig(variant="dense")).save_pretrained(root / "stt")
    hf_lam.convert(make_host("bert"), SttConfig(synthesizer="random")).save_pretrained(root / "mixture")
    (root / "empty").mkdir()
    return root


def run(*arguments):
    return run_main("cost", *arguments)


def test_the_table(folders):
    code, out, _ = run(folders / "views")
    assert code == 0
    lines = out.splitlines()
    header = next(line for line in lines if "own/full" in line)
    assert cells(header) == ["layer", "views", "full", "self", "bottleneck", "own", "own/full", "counted"]
    first = next(line for line in lines if cells(line)[0] == "0")
    own = 32 * (3 * 544 + 480)
    assert cells(first) == [
        "0",
        "3 self, 1 cross:a-b",
        f"{4 * 32 * 1024 / 1e9:.4g}",
        f"{4 * 32 * 544 / 1e9:.4g}",
        f"{4 * 32 * (256 + 576) / 1e9:.4g}",
        f"{own / 1e9:.4g}",
        f"{own / (4 * 32 * 1024):.3f}",
        f"{own / 1e9:.4g}",
    ]
    last = next(line for line in lines if cells(line)[0] == "2")
    assert cells(last)[1] == "2 a>b, 1 self, 1 full"
    assert any(cells(line)[0] == "all" for line in lines)
    assert "segments a 12, b 20" in out
    assert "formula and count are equal" in out
    assert "of them of hf_lam" in out


def test_a_stock_model_has_full_attention_only(folders):
    code, out, _ = run(folders / "stock")
    assert code == 0
    assert cells(next(line for line in out.splitlines() if "layer" in line)) == ["layer", "full", "counted"]
    assert "segments" not in out


def test_synthesised_attention_has_its_synthesis_beside_its_products(folders):
    code, out, _ = run(folders / "stt")
    assert code == 0
    lines = out.splitlines()
    assert cells(next(line for line in lines if "layer" in line)) == [
        "layer",
        "full",
        "own",
        "own/full",
        "counted",
        "synthesis",
    ]
    # A grid of 4 × 4 after [CLS], and heads of 8 features.
    full, own = 4 * 4 * 8 * 17**2, 4 * 2 * 8 * (16 * 8 + 20)
    synthesis = 2 * (2 * 5 * (32 * 8 + 8 * 16) + 17 * 32 * 4)
    expected = [f"{full / 1e9:.4g}", f"{own / 1e9:.4g}", f"{own / full:.3f}", f"{own / 1e9:.4g}"]
    assert cells(next(line for line in lines if cells(line)[0] == "0")) == ["0", *expected, f"{synthesis / 1e9:.4g}"]
    assert cells(next(line for line in lines if cells(line)[0] == "all"))[-1] == f"{3 * synthesis / 1e9:.4g}"
    assert "synthesised attention: dense, on a grid of 4×4 after 1 prefix token; " in out
    assert f"{(own + synthesis) / full:.3f} of full" in out
    assert "formula and count are equal" in out


def test_a_mixture_has_full_attention_and_its_synthesis(folders):
    code, out, _ = run(folders / "mixture")
    assert code == 0
    assert cells(next(line for line in out.splitlines() if "layer" in line)) == [
        "layer",
        "full",
        "counted",
        "synthesis",
    ]
    assert "synthesised attention: random, on a grid of 40; counted and synthesis are 1.000 of full" in out


def test_json_of_synthesised_attention(folders):
    code, out, _ = run(folders / "stt", "--json")
    assert code == 0
    expected = flops.cost(hf_lam.HfLamViTModel.from_pretrained(folders / "stt")).to_dict()
    assert json.loads(out) == json.loads(json.dumps(expected))


def test_json_is_the_report(folders):
    code, out, _ = run(folders / "views", "--json", "--batch-size", "3", "--bottleneck-tokens", "2")
    assert code == 0
    report = json.loads(out)
    assert (report["batch_size"], report["bottleneck_tokens"], report["agrees"]) == (3, 2, True)
    model = hf_lam.HfLamBertModel.from_pretrained(folders / "views")
    expected = flops.cost(model, flops.example_inputs(model, 3), bottleneck_tokens=2).to_dict()
    assert report == json.loads(json.dumps(expected))


def test_a_count_that_differs_is_a_failed_check(folders, monkeypatch):
    monkeypatch.setattr(flops.CostReport, "agrees", False)
    code, out, _ = run(folders / "views")
    assert code == cli.CHECK_FAILED
    assert "formula and count DIFFER" in out


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_a_model_is_one_line(folders, name):
    code, out, err = run(folders / name)
    assert (code, out) == (cli.WRONG_USE, "")
    assert name in error_line(err)


@pytest.mark.parametrize("options", [["--batch-size", "0"], ["--bottleneck-tokens", "0"], []])
def test_wrong_options(folders, options):
    code, out, err = run(*([folders / "stock"] if options else []), *options)
    assert (code, out) == (cli.WRONG_USE, "")
    assert err


def test_cost_of_a_revision_is_that_of_the_revision(folders, monkeypatch):
    asked = []
    read = AutoConfig.from_pretrained

    def from_pretrained(source, **options):
        asked.append(options.pop("revision"))
        return read(source, **options)

    monkeypatch.setattr(AutoConfig, "from_pretrained", from_pretrained)
    assert run(folders / "stock", "--revision", "v1")[0] == 0
    assert asked == ["v1"]


# --- Help ------------------------------------------------------------------------------------------------------------


def help_of(*command):
    return " ".join(CliRunner().invoke(cli.app, [*command, "--help"]).stdout.split())


def test_the_overview_has_the_commands_and_the_exit_codes():
    overview = help_of()
    assert "Attention mechanisms from research in Hugging Face transformers" in overview
    assert all(f"│ {name} " in overview for name in COMMANDS)
    assert all(f"{code} {meaning}" in overview for code, meaning in EXIT_CODES.items())
    assert sorted(EXIT_CODES) == [0, cli.CHECK_FAILED, cli.WRONG_USE, cli.NETWORK_FAILED] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_and_exit_codes(name):
    text = help_of(name)
    examples, codes = text.split(" Exit codes ")
    assert f" Examples $ hf-lam {name} " in examples
    assert "--json" in examples
    positions = [f" {codes}".index(f" {code} ") for code in EXIT_CODES]
    assert positions == sorted(positions)
    assert "--token" not in text


def test_help_is_in_full_sentences():
    group = get_command(cli.app)
    texts, arguments = {"hf-lam": group.help}, {}
    for name, command in group.commands.items():
        texts[name] = command.help
        for parameter in command.params:
            kind = arguments if parameter.param_type_name == "argument" else texts
            kind[f"{name} {parameter.opts[0]}"] = parameter.help
    assert len(texts) > len(group.commands) * 2 and len(arguments) > len(group.commands)
    # Beside today's click, the lowest typer loses the help of all arguments.
    if any(arguments.values()):
        texts |= arguments
    assert not [name for name, text in texts.items() if not re.fullmatch(r"[A-Z].*[.]", text or "", re.DOTALL)]


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_command_lines_that_work(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.png").touch()
    command = get_command(cli.app).commands[name]
    examples = [line.partition("$ hf-lam ")[2] for line in command.epilog.splitlines() if "$ " in line]
    assert len(examples) >= 2
    for example in examples:
        called, *arguments = shlex.split(example.partition(" && ")[0])
        assert called == name
        command.make_context(name, arguments)


# --- Errors ----------------------------------------------------------------------------------------------------------

ANSWER = SimpleNamespace(status_code=403, headers={}, request=SimpleNamespace(url="u", method="GET"))


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("no such option"), cli.WRONG_USE),
        (TypeError("not a model"), cli.WRONG_USE),
        (ImportError("no matplotlib"), cli.WRONG_USE),
        (RuntimeError("damaged"), cli.CHECK_FAILED),
        (OSError("disk full"), cli.CHECK_FAILED),
        (SafetensorError("header too large"), cli.CHECK_FAILED),
        (PushError("the Hub refused"), cli.NETWORK_FAILED),
        (HfHubHTTPError("403 Forbidden", response=ANSWER), cli.NETWORK_FAILED),
        (GatedRepoError("ask for access", response=ANSWER), cli.NETWORK_FAILED),
        (OfflineModeIsEnabled("offline"), cli.NETWORK_FAILED),
        (TimeoutError("slow"), cli.NETWORK_FAILED),
        (HTTPError("connection refused"), cli.NETWORK_FAILED),
        (RepositoryNotFoundError("no such repository", response=ANSWER), cli.WRONG_USE),
        (RevisionNotFoundError("no such revision", response=ANSWER), cli.WRONG_USE),
        # As transformers wraps them, and this program once more.
        (caused(OSError("offline"), LocalEntryNotFoundError("not cached")), cli.NETWORK_FAILED),
        (caused(ValueError("not read"), caused(OSError("x"), HTTPError("refused"))), cli.NETWORK_FAILED),
        (caused(OSError("no model"), RepositoryNotFoundError("none", response=ANSWER)), cli.WRONG_USE),
        (caused(PushError("401"), RepositoryNotFoundError("none", response=ANSWER)), cli.NETWORK_FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_errors_are_one_line_and_an_exit_code(error, code, folders, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(flops, "cost", fail)
    found, out, err = run(folders / "stock", "--json")
    assert (found, out) == (code, "")
    assert error_line(err) == f"error: {error}"


def test_a_message_of_several_lines_becomes_one_without_the_token(folders, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("first\n  Authorization: Bearer hf_secret\n\nlast")

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(flops, "cost", fail)
    code, _, err = run(folders / "stock")
    assert code == cli.CHECK_FAILED
    assert error_line(err) == "error: first Authorization: Bearer (token) last"


def test_a_fault_of_the_program_is_not_made_to_look_like_one_of_its_use(folders, monkeypatch):
    monkeypatch.setattr(flops, "cost", lambda *arguments, **options: {}["missing"])
    with pytest.raises(KeyError):
        run(folders / "stock")


def test_a_repository_that_is_not_in_the_cache_is_a_matter_of_the_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, out, err = run("no-such-user/no-such-model")
    assert (code, out) == (cli.NETWORK_FAILED, "")
    assert "no-such-user/no-such-model" in error_line(err)


def test_the_libraries_are_left_as_they_were(folders):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    _, _, err = run(folders / "stock")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    # Nothing but plain lines where stderr is no terminal.
    assert err.splitlines() == [f"Counting the FLOPs of {folders / 'stock'} …"]


def test_a_terminal_gets_a_spinner_in_place_of_lines(folders, monkeypatch):
    shown = []
    monkeypatch.setattr(Console, "status", lambda self, what: shown.append(what) or nullcontext())
    with mock.patch.object(common.sys, "stderr", Terminal()) as terminal, common.working("Loading"):
        assert shown == ["Loading"]
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("size", "text"), [(417, "417 B"), (1200, "1.2 kB"), (438_000_000, "438.0 MB"), (2**33, "8.6 GB")]
)
def test_sizes(size, text):
    assert common.size_of(size) == text
