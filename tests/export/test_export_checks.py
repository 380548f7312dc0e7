"""What export refuses before it does anything, the batches it tries, and how it compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import VideoMAEForPreTraining

import hf_lam
from helpers.command_line import error_line, run_main
from helpers.families import FAMILIES
from helpers.fusion_heads import make_head
from helpers.fusion_models import make_fusion
from helpers.hosts import make_model
from hf_lam import LamConfig, LocomtConfig
from hf_lam.exporting import writing
from hf_lam.exporting.batches import Axis, Sizes, batches_for
from hf_lam.exporting.checking import Trial, compare_outputs, default_tolerance
from hf_lam.hub.buildable import saved_class_of

TINY = {"num_hidden_layers": 1}


@pytest.fixture(scope="module")
def vit() -> Any:
    return FAMILIES["vit"].make("ImageClassification")


@pytest.mark.parametrize("architectures", [None, ["HfLamFusionModel"], ["os.system", "HfLamFusionModel"]])
def test_a_model_is_of_the_class_that_its_configuration_names(architectures: list[str] | None) -> None:
    config = make_fusion(("text", "image")).config
    config.architectures = architectures
    assert saved_class_of(config) is hf_lam.HfLamFusionModel


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"format": "tflite"}, ValueError, "format must be one of onnx, torch, got 'tflite'"),
        ({"tolerance": 0}, ValueError, "tolerance must be a number above 0, got 0"),
        ({"tolerance": float("nan")}, ValueError, "tolerance must be a number above 0, got nan"),
        ({"dtype": "float32"}, ValueError, "a model is exported as it is"),
        (
            {"inputs": ["input_ids"]},
            ValueError,
            r"inputs \['input_ids'\]; those that can be made for it are pixel_val",
        ),
        ({"inputs": []}, ValueError, "cannot be exported with the inputs"),
    ],
)
def test_options_that_cannot_be(vit: Any, tmp_path: Path, options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        hf_lam.export(vit, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_be(vit: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"needs a transformers model .*, got Linear"):
        hf_lam.export(torch.nn.Linear(2, 2), tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model.float\(\)"):
        hf_lam.export(FAMILIES["vit"].make().bfloat16(), tmp_path / "out")
    pretraining = make_model(VideoMAEForPreTraining, "videomae", decoder_num_hidden_layers=1)
    with pytest.raises(ValueError, match="it needs bool_masked_pos"):
        hf_lam.export(pretraining, tmp_path / "out", "torch")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="is not empty"):
        hf_lam.export(vit, tmp_path / "full")


def test_a_missing_package_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "find_spec", lambda name: None if name == "onnxscript" else name)
    FAMILIES["vit"].make_config().save_pretrained(tmp_path / "model")  # whose weights are never looked for
    code, _, err = run_main("export", tmp_path / "model", "--output_dir", tmp_path / "out")
    assert code == 2
    assert error_line(err) == 'error: ONNX needs onnxscript. Run `pip install "hf-lam[export]"`.'
    assert not (tmp_path / "out").exists()


def test_no_files_for_a_program_that_differs(vit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with the program: here its outputs are those of the model plus a little."""

    def run(path: Path, trials: list[Trial]) -> list[dict[str, torch.Tensor]]:
        assert path.is_file()
        return [
            {name: value + 1e-3 * (trial.sizes.batch > 1) for name, value in trial.expected.items()}
            for trial in trials
        ]

    monkeypatch.setattr(writing, "run_torch", run)
    vit.train()
    with pytest.raises(RuntimeError, match=r"logits .* up to 0\.001 away .* with a batch of 2: .* at most 0.0001"):
        hf_lam.export(vit, tmp_path / "out", "torch")
    assert not list(tmp_path.iterdir())
    assert vit.training
    report = hf_lam.export(vit, tmp_path / "out", "torch", tolerance=0.5)
    assert 9e-4 < report.largest_difference < 1.1e-3 and report.tolerance == 0.5
    assert json.loads(json.dumps(report.to_dict()))["inputs"] == {"pixel_values": ["batch", 3, 16, 16]}


# --- batches ---------------------------------------------------------------------------------------------------------


def test_the_lengths_that_are_tried() -> None:
    assert Axis(2, 40).tried == (2, 21, 40)
    assert Axis(2, None).tried == (2, 257, 512)
    assert Axis(2, 8192).tried == (2, 257, 512)
    assert Axis(1, 1).tried == (1, 1, 1)
    assert Axis(8, None, 28, 4).tried == (8, 12, 28)


@pytest.mark.parametrize(
    ("make", "axes"),
    [
        (lambda: hf_lam.inject(FAMILIES["bert"].make("TokenClassification"), LamConfig()), {"text": (2, 40)}),
        (lambda: FAMILIES["bert"].make("MultipleChoice"), {"text": (2, 40), "choices": (2, 4)}),
        # Spans are of exactly as many tokens.
        (lambda: hf_lam.inject(FAMILIES["roberta"].make(), *FAMILIES["roberta"].configs("views")), {}),
        (lambda: hf_lam.inject(FAMILIES["vit"].make(), LamConfig()), {}),
        (lambda: FAMILIES["dinov3_vit"].make(), {"height": (8, None), "width": (8, None)}),
        (lambda: hf_lam.inject(FAMILIES["dinov3_vit"].make(), LocomtConfig(views="half")), {}),
        (lambda: FAMILIES["whisper"].make(), {}),
        (
            lambda: make_head("generation"),
            {"text": (2, 40), "clips": (1, None), "sound": (1, None), "written": (1, 32)},
        ),
        (lambda: make_fusion(as_features=("video",), **TINY), {"text": (2, 40), "video": (1, 8)}),
    ],
)
def test_what_may_differ(make: Any, axes: dict[str, tuple[int, int | None]]) -> None:
    batches = batches_for(make())
    assert {name: (axis.shortest, axis.longest) for name, axis in batches.axes.items()} == axes
    _, found = batches.find_axes()
    assert all(of_input[0] == ("batch", 0) for of_input in found.values())
    assert {axis for of_input in found.values() for axis, _ in of_input.values()} == {"batch", *axes}


def test_padding_of_every_kind() -> None:
    inputs = batches_for(make_fusion(as_features=("video",), **TINY)).make(Sizes(3, {"text": 9, "video": 5}, True))
    text = ["input_ids", "attention_mask", "token_type_ids"]
    assert list(inputs) == [*text, "pixel_values", "video_features", "video_mask", "audio_values"]
    assert inputs["attention_mask"].sum(1).tolist() == [9, 7, 5]
    assert inputs["video_mask"].sum(1).tolist() == [5, 0, 3]  # one has no vectors at all
    assert (inputs["video_features"][inputs["video_mask"] == 0] == 0).all()
    assert inputs["token_type_ids"].unique().tolist() == [0, 1]


def test_arguments_that_are_asked_for() -> None:
    model = make_fusion(as_features=("image", "video"), **TINY)
    names = ["video_features", "video_mask", "video_positions", "has_image", "image_features"]
    inputs = batches_for(model, names).make(Sizes(4, {"image": 3, "video": 5}, False))
    assert list(inputs) == names
    assert inputs["video_positions"].shape == (4, 5) and inputs["video_positions"].is_floating_point()
    assert inputs["has_image"].dtype == torch.bool and inputs["has_image"].tolist() == [True, False, True, True]
    # A batch has names, too.
    assert batches_for(model, {"image_features": None}).names == ("image_features",)


# --- comparing -------------------------------------------------------------------------------------------------------


def test_the_difference_is_a_share_of_the_largest_number() -> None:
    trial = Trial(Sizes(2, {"text": 3}, True), {}, {"logits": torch.tensor([[-20.0, 1.0], [0.0, float("-inf")]])})
    off = {"logits": torch.tensor([[-20.0, 1.0], [0.001, float("-inf")]])}
    largest, share = compare_outputs([trial], [off], 1e-4)
    assert largest == pytest.approx(0.001) and share == pytest.approx(0.001 / 20)
    for value in (float("nan"), 5.0):
        wrong = {"logits": torch.tensor([[-20.0, 1.0], [0.0, value]])}
        with pytest.raises(RuntimeError, match=r"logits .* inf away .* a batch of 2, text 3, padded"):
            compare_outputs([trial], [wrong], 1e-4)
    with pytest.raises(RuntimeError, match="inf away"):
        compare_outputs([trial], [{"logits": torch.zeros(2, 1)}], 1e-4)


def test_the_tolerance_follows_the_dtype() -> None:
    assert default_tolerance(torch.float32) == pytest.approx(1e-4)
    assert default_tolerance(torch.float16) == pytest.approx(0.01, rel=0.05)
