"""`hf-lam cost` on saved folders."""

import json
import sys

import pytest
from hosts import make_host, make_model
from transformers import BertForSequenceClassification
from typer.testing import CliRunner

import hf_lam
from hf_lam import LamConfig, LocomtConfig, SttConfig, cli, flops


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


@pytest.fixture
def run(monkeypatch, capsys):
    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", ["hf-lam", "cost", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_main


def cells(line):
    return [cell.strip() for cell in line.strip("│┃ \n").replace("┃", "│").split("│")]


def test_the_table(folders, run):
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


def test_a_stock_model_has_full_attention_only(folders, run):
    code, out, _ = run(folders / "stock")
    assert code == 0
    assert cells(next(line for line in out.splitlines() if "layer" in line)) == ["layer", "full", "counted"]
    assert "segments" not in out


def test_synthesised_attention_has_its_synthesis_beside_its_products(folders, run):
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


def test_a_mixture_has_full_attention_and_its_synthesis(folders, run):
    code, out, _ = run(folders / "mixture")
    assert code == 0
    assert cells(next(line for line in out.splitlines() if "layer" in line)) == [
        "layer",
        "full",
        "counted",
        "synthesis",
    ]
    assert "synthesised attention: random, on a grid of 40; counted and synthesis are 1.000 of full" in out


def test_json_of_synthesised_attention(folders, run):
    code, out, _ = run(folders / "stt", "--json")
    assert code == 0
    expected = flops.cost(hf_lam.HfLamViTModel.from_pretrained(folders / "stt")).to_dict()
    assert json.loads(out) == json.loads(json.dumps(expected))


def test_json_is_the_report(folders, run):
    code, out, _ = run(folders / "views", "--json", "--batch-size", "3", "--bottleneck-tokens", "2")
    assert code == 0
    report = json.loads(out)
    assert (report["batch_size"], report["bottleneck_tokens"], report["agrees"]) == (3, 2, True)
    model = hf_lam.HfLamBertModel.from_pretrained(folders / "views")
    expected = flops.cost(model, flops.example_inputs(model, 3), bottleneck_tokens=2).to_dict()
    assert report == json.loads(json.dumps(expected))


def test_a_count_that_differs_is_a_failed_check(folders, run, monkeypatch):
    monkeypatch.setattr(flops.CostReport, "agrees", False)
    code, out, _ = run(folders / "views")
    assert code == cli.CHECK_FAILED
    assert "formula and count DIFFER" in out


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_a_model_is_one_line(folders, run, name):
    code, out, err = run(folders / name)
    assert (code, out) == (cli.WRONG_USE, "")
    assert err.startswith("error: ") and name in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("options", [["--batch-size", "0"], ["--bottleneck-tokens", "0"], []])
def test_wrong_options(folders, run, options):
    code, out, err = run(*([folders / "stock"] if options else []), *options)
    assert (code, out) == (cli.WRONG_USE, "")
    assert err


def test_help_names_the_command_and_its_exit_codes():
    runner = CliRunner()
    overview = runner.invoke(cli.app, ["--help"]).stdout
    assert "cost" in overview
    assert "Attention mechanisms from research in Hugging Face transformers" in overview
    text = runner.invoke(cli.app, ["cost", "--help"]).stdout
    assert "hf-lam cost ./my-model" in text
    assert all(f"Exit code {code}" in text for code in (0, 1, 2))
