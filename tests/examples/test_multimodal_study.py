"""The study of image and speech runs, and draws its pairs as it says."""

import json

import pytest
import torch

from helpers.hosts import data_folder
from helpers.scripts import run_script, script_module


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    with script_module("multimodal_study") as module:
        yield module


def test_half_of_the_pairs_match_and_the_labels_say_which(script):
    digits = torch.arange(10).repeat(7)
    images, sounds, labels = script.matching_pairs(digits, seed=3, rounds=4)
    assert len(images) == len(sounds) == len(labels) == 4 * len(digits)
    assert (labels == (digits[images] == digits[sounds])).all()
    for part in labels.split(len(digits)):
        assert part.sum() == len(digits) // 2
    assert (sounds.view(4, -1) == torch.arange(len(digits))).all(), "every sound once a round"
    first = labels[: len(digits)].bool()
    assert (images[: len(digits)][first] == sounds[: len(digits)][first]).all(), "what is kept is the data's own pair"
    again = script.matching_pairs(digits, seed=3, rounds=4)
    assert all((a == b).all() for a, b in zip((images, sounds, labels), again, strict=True))
    assert (images != script.matching_pairs(digits, seed=4, rounds=4)[0]).any()


def test_neither_modality_alone_says_anything_about_matching_pairs(script):
    digits = torch.arange(10).repeat(50)
    images, sounds, labels = script.matching_pairs(digits, seed=0, rounds=4)
    for digit in range(10):
        for of_pair in (digits[images], digits[sounds]):
            assert labels[of_pair == digit].float().mean() == pytest.approx(0.5, abs=0.12)


def test_rows_differ_in_what_they_say_they_do(script):
    from hf_lam import HfLamFusionConfig

    study = script.StudyArguments(hidden_size=16)
    costs = {}
    for row, options in script.ROWS.items():
        config = HfLamFusionConfig(
            **{f"{name}_config": script.encoder_config(name, study) for name in script.modalities_of(row)},
            num_hidden_layers=script.LAYERS,
            **options,
        )
        costs[row] = (config.modalities, config.num_hidden_layers, json.dumps(config.hf_lam, sort_keys=True))
    assert costs["image"][0] == ["image"] and costs["audio_lam"][0] == ["audio"]
    assert costs["late"][1] == 0
    both = [cost for row, cost in costs.items() if len(cost[0]) == 2 and row != "calibrated"]
    assert len(set(map(str, both))) == len(both), "no two rows are the same model"


def test_differences_are_taken_seed_by_seed(script):
    def run(row, seed, test):
        return {"task": "digit", "row": row, "seed": seed, "test": test}

    results = [run("full", 0, 0.5), run("full", 1, 0.7), run("lam", 0, 0.51), run("lam", 1, 0.71)]
    lines = script.questions({"digit": script.by_row(results, "digit")})
    assert "| LAM on image + audio (`lam` − `full`) | 1.00 ± 0.00 |" in lines
    assert lines[-1].endswith("|  |"), "what was not run has no figure"


@pytest.mark.slow
def test_quick_study_runs_and_goes_on_where_it_was(script, tmp_path, capsys):
    data = data_folder("av_mnist").parent
    rows = ["image_lam", "late", "full", "mbt", "half", "calibrated", "lam_half"]
    arguments = ["--data_dir", data, "--output_dir", tmp_path, "--quick", "--max_samples", 64, "--hidden_size", 16]

    def start(*more):
        return run_script("multimodal_study", *arguments, *more)

    first = start("--tasks", "match", "--rows", "full")
    assert first.returncode == 0, first.stderr
    whole = start("--rows", *rows)
    assert whole.returncode == 0, whole.stderr
    assert "match, full, seed 0: done before" in whole.stdout
    results = {(r["task"], r["row"]): r for r in json.loads((tmp_path / "results.json").read_text())["results"]}
    assert set(results) == {(task, row) for task in ("digit", "match") for row in rows}
    for task in ("digit", "match"):
        full, calibrated = results[task, "full"], results[task, "calibrated"]
        assert results[task, "late"]["attention_flops"] == 0
        assert calibrated["attention_flops"] <= full["attention_flops"]
        assert results[task, "half"]["attention_flops"] < results[task, "mbt"]["attention_flops"]
        assert full["parameters"] == calibrated["parameters"] == results[task, "half"]["parameters"]
        assert results[task, "lam_half"]["mechanism_parameters"] > 0
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    assert "| lam_half |" in (tmp_path / "results.md").read_text()

    for wrong, said in (
        (["--rows", "full", "--learning_rate", "0.5"], "learning_rate"),
        (["--rows", "fulll"], "fulll"),
    ):
        assert script.main([*map(str, arguments), *wrong]) == 2
        assert said in capsys.readouterr().err
