"""`hf-lam demo`, at reduced size, and the command line around it."""

import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from transformers import AutoImageProcessor, AutoModelForImageClassification
from typer.testing import CliRunner

import hf_lam
from hf_lam import cli
from hf_lam import demo as demo_module
from hf_lam.demo import DemoSettings, accuracy_on, check_output, load_data, logits_in_fresh_process, run_demo
from hf_lam.demo import folder as folder_module
from hf_lam.demo import saving as saving_module
from hf_lam.demo import tour as tour_module
from hf_lam.flops import cost
from hf_lam.modeling.locomt_views_hf_lam import parse_view, view_cost

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The result of a short demo, its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    console = Console(record=True, width=100, file=io.StringIO())
    result = run_demo(folder, DemoSettings(epochs=2, more_epochs=1), console)
    return result, folder, console.export_text()


@pytest.mark.slow
def test_conversion_and_the_fresh_process_give_the_same_logits(finished):
    result, _, _ = finished
    assert result.conversion_difference <= 1e-5
    assert result.reload_difference <= 1e-5
    assert result.passed


@pytest.mark.slow
def test_the_table_has_the_model_before_and_after(finished):
    result, _, printed = finished
    converted = [f"ViT with {name}, trained on" for name in ("LAM", "LoCoMT", "STT")]
    assert [row.model for row in result.rows] == ["ViT", "ViT, trained on", *converted]
    assert all(0.1 < row.test_accuracy <= 1 for row in result.rows)
    stock, _, lam, locomt, stt = result.rows
    assert stock.parameters_added == locomt.parameters_added == 0
    assert locomt.parameters == stock.parameters
    # Per layer: 16 × 64 + 16 of the hidden layer and 17 × 16 + 17 of the output.
    assert lam.parameters_added == lam.parameters - stock.parameters == 4 * (16 * 64 + 16 + 17 * 16 + 17)
    # Per layer: no queries and keys, 64 × 64 + 64 each. For both axes 16 × 64 + 16 of the hidden layer and
    # 16 × 16 + 16 of the output, and 4 × 64 + 4 for the shares of [CLS].
    made = 2 * (16 * 64 + 16 + 16 * 16 + 16) + 4 * 64 + 4
    assert stt.parameters_added == stt.parameters - stock.parameters == 4 * (made - 2 * (64 * 64 + 64))
    for row in result.rows:
        assert row.model in printed
        assert f"{100 * row.test_accuracy:.1f} %" in printed
        assert f"{100 * row.attention_flops:.1f} %" in printed
    assert f"{lam.parameters_added:,}" in printed
    assert "training loss" in printed
    *_, loading, _, _, inspecting, converting, comparing = printed.strip().splitlines()
    assert "trust_remote_code=True" in loading
    following = [line.split()[:2] for line in (inspecting, converting, comparing)]
    assert following == [["hf-lam", "inspect"], ["hf-lam", "convert"], ["hf-lam", "compare"]]


@pytest.mark.slow
def test_the_attention_flops_are_those_of_the_views_that_were_saved(finished):
    result, folder, printed = finished
    *others, locomt, _ = result.rows
    assert [row.attention_flops for row in others] == [1, 1, 1]
    stored = json.loads((folder / "locomt" / "config.json").read_text())["hf_lam"]["locomt"]
    names = [name for name, _ in stored["segments"]]
    assert names == ["cls", "top_left", "top_right", "bottom_left", "bottom_right"]
    views = [parse_view(view, names, [True] + 4 * [False]) for row in stored["views"] for view in row]
    assert len(views) == 4 * 4
    # [CLS], and four quadrants of 2 × 2 patches.
    cost = sum(view_cost(view, [1, 4, 4, 4, 4]) for view in views)
    assert locomt.attention_flops == pytest.approx(cost / (16 * 17**2), abs=1e-4)
    assert 0.3 < locomt.attention_flops <= result.settings.budget
    # What attention without any preference would keep with these views.
    uniform = sum(view_cost(view, [0, 4, 4, 4, 4]) for view in views) / (16 * 16**2)
    assert uniform < result.attention_mass < 1
    assert f"{100 * result.attention_mass:.1f} % of the attention" in printed


@pytest.mark.slow
def test_the_attention_flops_of_synthesised_attention_include_its_synthesis(finished):
    result, folder, _ = finished
    model = hf_lam.HfLamViTForImageClassification.from_pretrained(folder / "stt")
    stored = json.loads((folder / "stt" / "config.json").read_text())["hf_lam"]["stt"]
    assert (stored["variant"], stored["grid"], stored["prefix_tokens"]) == ("dense", [4, 4], 1)
    assert not any(name in key for key in model.state_dict() for name in ("q_proj", "k_proj", ".query.", ".key."))
    report = cost(model)
    assert result.rows[-1].attention_flops == pytest.approx(
        (report.attention["own"] + report.synthesis) / report.attention["full"], abs=1e-4
    )


@pytest.mark.slow
def test_the_mixture_is_the_same_when_it_is_hardened(finished):
    result, _, printed = finished
    assert result.hardening_difference <= 1e-5
    assert "hf_lam.harden(model): no queries and keys" in printed
    found = re.search(r"KL divergence ([\d.]+) before, ([\d.]+) after 10 epochs of 256 images", printed)
    assert float(found[2]) < float(found[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conversion_difference", "hardening_difference", "reload_difference"])
def test_any_difference_of_logits_is_a_failure(finished, name):
    result, _, _ = finished
    assert result.passed
    assert not replace(result, **{name: 2e-5}).passed


@pytest.mark.slow
def test_the_folder_is_complete_and_loads(finished):
    result, folder, _ = finished
    present = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert present == result.files
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "demo.json"} <= set(present)
    assert {"configuration_hf_lam.py", "modeling_hf_lam.py"} <= set(present)
    for inner in ("locomt", "stt"):
        names = {f"{inner}/{name}" for name in ("config.json", "model.safetensors", "modeling_hf_lam.py")}
        assert names <= set(present)
    assert not list(folder.parent.glob(".*")), "nothing is left beside the folder"
    assert hf_lam.__version__ in (folder / "README.md").read_text()
    assert hf_lam.verify(folder).findings == ()

    digits = load_data(seed=0)
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor(Image.open(folder / "digit.png"), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels[0], digits.test.pixel_values[0])
    for row, place in zip(result.rows[2:], (folder, folder / "locomt", folder / "stt"), strict=True):
        model = AutoModelForImageClassification.from_pretrained(place)
        assert isinstance(model, hf_lam.HfLamViTForImageClassification)
        assert accuracy_on(model, digits.test) == pytest.approx(row.test_accuracy, abs=1e-4)


@pytest.mark.slow
def test_the_pictures_are_pictures(finished):
    _, folder, _ = finished
    for name in ("masks.png", "masks_on_digit.png", "views.png", "synthetic_maps.png", "synthetic_map_on_digit.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 500
            assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24)) > 50


@pytest.mark.slow
def test_the_summary_is_stored(finished):
    result, folder, _ = finished
    assert json.loads((folder / "demo.json").read_text()) == json.loads(json.dumps(result.to_dict()))


@pytest.mark.slow
def test_it_replaces_an_earlier_demo_and_nothing_else(finished, tmp_path, monkeypatch):
    _, folder, _ = finished
    check_output(folder)
    check_output(tmp_path / "new")
    check_output(tmp_path)

    mine = tmp_path / "thesis.txt"
    mine.write_text("mine")
    monkeypatch.setattr(tour_module, "load_data", lambda seed: pytest.fail("work was begun"))
    with pytest.raises(ValueError, match=r"not written by an earlier demo: it holds thesis\.txt"):
        run_demo(tmp_path, console=Console(quiet=True))
    with pytest.raises(ValueError, match="is a file"):
        run_demo(mine, console=Console(quiet=True))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    (tmp_path / "demo.json").write_text((folder / "demo.json").read_text())
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        check_output(tmp_path)
    mine.unlink()
    for inner in ("stt", "locomt"):
        (tmp_path / inner).mkdir()
        (tmp_path / inner / "notes.txt").write_text("mine")
        with pytest.raises(ValueError, match=rf"it holds {inner}/notes\.txt"):
            check_output(tmp_path)


def test_an_earlier_demo_is_replaced(tmp_path):
    partial, output = tmp_path / "partial", tmp_path / "out"
    old, new = ["old.png", "locomt/old.py", "stt/old.py", "both.py"], ["both.py", "locomt/new.py", "stt/new.py"]
    for folder, names in ((output, old), (partial, new)):
        for inner in ("locomt", "stt"):
            (folder / inner).mkdir(parents=True)
        for name in names:
            (folder / name).write_text(folder.name)
        (folder / "demo.json").write_text(json.dumps({"files": [*names, "demo.json"]}))
    folder_module.publish(partial, output)
    left = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert left == {"both.py", "locomt/new.py", "stt/new.py", "demo.json"}
    assert (output / "both.py").read_text() == "partial"


def test_an_interrupted_demo_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(seed):
        raise KeyboardInterrupt

    monkeypatch.setattr(tour_module, "load_data", interrupt)
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "out", console=Console(quiet=True))
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_a_folder_that_does_not_load_is_an_error_with_the_reason(tmp_path):
    with pytest.raises(RuntimeError, match=r"did not load in a fresh process(.|\n)*none'"):
        logits_in_fresh_process(tmp_path / "none", torch.zeros(1, 3, 8, 8), tmp_path)


def test_the_fresh_process_cannot_import_hf_lam(tmp_path):
    script = saving_module.FRESH_PROCESS.split("folder, pixels")[0] + "import hf_lam"
    # In the checkout, where hf_lam can be found even without being installed.
    root = os.path.dirname(os.path.dirname(hf_lam.__file__))
    process = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert process.returncode != 0
    assert "hf_lam is refused" in process.stderr


def test_the_split_is_fixed_by_the_seed_and_stratified():
    digits, again, other = load_data(0), load_data(0), load_data(1)
    assert torch.equal(digits.test.labels, again.test.labels)
    assert not torch.equal(digits.test.labels, other.test.labels)
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1257, 270, 270)
    assert digits.train.pixel_values.shape[1:] == (3, 8, 8)
    for images in (digits.train, digits.validation, digits.test):
        share = torch.bincount(images.labels, minlength=10) / len(images)
        assert ((share > 0.08) & (share < 0.12)).all()


# --- The command line ------------------------------------------------------------------------------------------------


def run_main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["hf-lam", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    captured = capsys.readouterr()
    return exit_info.value.code, captured.out, captured.err


@pytest.mark.slow
def test_json_is_all_there_is_on_stdout(finished, monkeypatch, capsys, tmp_path):
    result, _, _ = finished

    def run(output, settings):
        assert settings.seed == 3
        Console().print("progress")
        print("a library's print")
        return result

    monkeypatch.setattr(demo_module, "run_demo", run)
    code, out, err = run_main(monkeypatch, capsys, "demo", "--json", "--seed", "3", "--output", str(tmp_path / "out"))
    assert code == 0
    assert json.loads(out)["passed"] is True
    assert "progress" in err and "a library's print" in err


@pytest.mark.slow
def test_differing_logits_are_exit_code_1(finished, monkeypatch, capsys, tmp_path):
    result, _, _ = finished
    object.__setattr__(broken := type(result)(**vars(result)), "reload_difference", 0.5)
    monkeypatch.setattr(demo_module, "run_demo", lambda *arguments: broken)
    code, _, _ = run_main(monkeypatch, capsys, "demo", "--output", str(tmp_path / "out"))
    assert code == 1


def test_a_folder_in_use_is_exit_code_2_and_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    code, out, err = run_main(monkeypatch, capsys, "demo", "--output", str(tmp_path))
    assert code == 2
    assert out == ""
    assert err.startswith("error: ") and "thesis.txt" in err and len(err.splitlines()) == 1


def test_missing_packages_are_exit_code_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tour_module.importlib.util, "find_spec", lambda name: None)
    code, _, err = run_main(monkeypatch, capsys, "demo", "--output", str(tmp_path / "out"))
    assert code == 2
    assert 'pip install "hf-lam[viz]"' in err


def test_a_wrong_option_is_exit_code_2(monkeypatch, capsys):
    code, _, err = run_main(monkeypatch, capsys, "demo", "--seed", "-1")
    assert code == 2
    assert "--seed" in err


def test_version_and_help():
    runner = CliRunner()
    version = runner.invoke(cli.app, ["--version"])
    assert (version.exit_code, version.stdout.strip()) == (0, f"hf-lam {hf_lam.__version__}")
    assert "demo" in runner.invoke(cli.app, ["--help"]).stdout


def test_the_entry_point_is_this_command():
    try:
        scripts = importlib.metadata.distribution("hf-lam").entry_points
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("hf-lam is not installed")
    assert scripts["hf-lam"].load() is cli.main
