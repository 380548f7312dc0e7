"""The study of synthesised attention runs, on scikit-learn's digits and, where it is there, on av_mnist."""

import json
import os
from pathlib import Path

import pytest
import torch

from helpers.scripts import run_script, script_module

RUNS = ["stock", "dense", "random", "hardened"]


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    with script_module("stt_images") as module:
        yield module


def test_blur_is_a_mean_and_leaves_a_plain_image_alone(script):
    pixels = torch.rand(2, 1, 9, 9)
    assert torch.allclose(script.blurred(torch.full_like(pixels, 0.3), 1.5), torch.full_like(pixels, 0.3))
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    blurred = script.blurred(point, 1.5)
    assert blurred.sum() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(blurred, blurred.transpose(2, 3))
    assert 0 < blurred[0, 0, 10, 12] < blurred[0, 0, 10, 10] < 0.2


def test_occlusion_blackens_one_square_of_each_image(script):
    pixels = torch.ones(5, 1, 8, 8)
    occluded = script.occluded(pixels, 3, torch.Generator().manual_seed(0))
    assert (occluded == 0).sum((1, 2, 3)).tolist() == [9] * 5
    assert (pixels == 1).all(), "the images themselves stay as they are"
    for image in occluded[:, 0]:
        rows, columns = (image == 0).nonzero().T
        assert rows.max() - rows.min() == columns.max() - columns.min() == 2


def test_disturbances_are_the_same_for_every_run_and_in_range(script):
    images = script.Images(torch.rand(4, 1, 8, 8), torch.arange(4))
    for condition in script.CONDITIONS:
        once, again = (script.disturbed(images, condition).pixel_values for _ in range(2))
        assert torch.equal(once, again)
        assert torch.equal(once, images.pixel_values) == (condition == "clean")
        assert once.min() >= 0 and once.max() <= 1


@pytest.fixture(scope="module")
def data():
    has_av_mnist = Path(os.environ.get("HF_LAM_DATA", "/nonexistent"), "av_mnist").is_dir()
    return ["digits", "av_mnist"] if has_av_mnist else ["digits"]


@pytest.fixture(scope="module")
def study(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("stt")
    process = run_script("stt_images", "--quick", "--output_dir", folder, "--data", *data)
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


@pytest.mark.slow
def test_every_run_is_measured(study, data):
    folder, printed = study
    results = json.loads((folder / "results.json").read_text())["results"]
    assert [(result["data"], result["run"]) for result in results] == [(d, run) for d in data for run in RUNS]
    for result in results:
        assert list(result["accuracy"]) == ["clean", "noise", "blur", "occlusion"]
        assert all(0 <= value <= 1 for value in result["accuracy"].values())
        assert (result["fit"] is not None) == (result["run"] == "hardened")
    for start in range(0, len(results), 4):
        stock, dense, random, hardened = results[start : start + 4]
        assert hardened["accuracy_before"] == stock["accuracy_before"], "a mixture starts as the original"
        assert dense["parameters"] == hardened["parameters"] < stock["parameters"]
        assert dense["flops"] == hardened["flops"] < stock["flops"]
        assert random["synthesis_flops"] < dense["synthesis_flops"]
        assert sum(hardened["fit"]["kl_after"]) < sum(hardened["fit"]["kl_before"])
    table = (folder / "results.md").read_text()
    assert table in printed


@pytest.mark.slow
def test_a_second_start_goes_on_where_the_first_stopped(study):
    folder, _ = study
    before = json.loads((folder / "results.json").read_text())["results"]
    (folder / "runs" / "digits-dense-seed0.json").unlink()
    process = run_script("stt_images", "--quick", "--output_dir", folder, "--data", "digits")
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("done before") == 3
    after = json.loads((folder / "results.json").read_text())["results"]
    for one, other in zip(before, after, strict=False):
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rate", "1e-6"], "made with another learning_rate"),
        (["--data", "av_mnist", "--data_dir", "/nonexistent"], "has no train.parquet"),
        (["--data", "cifar"], "unknown ['cifar']"),
        (["--runs", "best"], "unknown ['best']"),
    ],
)
def test_bad_arguments_are_exit_code_2_before_any_work(study, script, arguments, message, capsys):
    folder, _ = study
    data = [] if "--data" in arguments else ["--data", "digits"]
    assert script.main(["--quick", "--output_dir", str(folder), *data, *arguments]) == 2
    assert message in capsys.readouterr().err
