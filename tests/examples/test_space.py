"""examples/space: what the demo app computes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from helpers.scripts import EXAMPLES, script_module
from helpers.small_classifiers import save_image, save_sound, save_text, save_with_code, text_host
from hf_lam import LamConfig, LocomtConfig, SttConfig

HALVES = "first and second half"


@pytest.fixture(scope="module")
def shelf() -> Iterator[ModuleType]:
    with script_module("space/shelf") as module:
        yield module


@pytest.fixture(scope="module")
def maps(shelf: ModuleType) -> Iterator[ModuleType]:
    with script_module("space/maps") as module:
        yield module


@pytest.fixture(scope="module")
def view_budget(shelf: ModuleType) -> Iterator[ModuleType]:
    with script_module("space/view_budget") as module:
        yield module


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_a_text_is_read_and_cut_to_what_the_model_takes(shelf: ModuleType, tmp_path: Path) -> None:
    loaded = shelf.load(str(save_text(tmp_path, LamConfig())))
    sample = loaded.prepare(" a good film ")
    assert loaded.kind == "text" and sample.tokens == ["[CLS]", "a", "good", "film", "[SEP]"] and not sample.notes
    longer = loaded.prepare("film " * 50)
    assert len(longer.tokens) == 24 and "52 tokens; the first 24" in longer.notes[0]
    for text, said in ((" ", "no sentence"), (None, "no sentence"), ("film " * 201, "1,004 letters; at most 1,000")):
        with pytest.raises(ValueError, match=said):
            loaded.prepare(text)


def test_a_text_for_views_of_spans_is_padded_to_them(shelf: ModuleType, tmp_path: Path) -> None:
    views = LocomtConfig(segments=[["first", 4], ["second", 8]], views="self")
    loaded = shelf.load(str(save_text(tmp_path, views)))
    assert loaded.prepare("a good film").inputs["input_ids"].shape == (1, 12)


def test_pictures_and_sounds_are_read(shelf: ModuleType, tmp_path: Path) -> None:
    images = shelf.load(str(save_image(tmp_path / "image", LamConfig())))
    picture = Image.new("RGB", (30, 20))
    assert images.kind == "image" and images.prepare(picture).inputs["pixel_values"].shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="no picture"):
        images.prepare(None)
    sounds = shelf.load(str(save_sound(tmp_path / "sound")))
    sound = {"array": np.zeros(1500, np.float32) + 0.1, "sampling_rate": 100}
    sample = sounds.prepare(sound)
    assert sounds.kind == "audio" and sample.inputs["input_values"].shape == (1, 1000)
    assert sample.notes == ("The sound has 15.0 seconds; the model gets the first 10.",)
    for nothing, said in ((None, "no sound"), ({"array": np.zeros(0, np.float32), "sampling_rate": 100}, "waveform")):
        with pytest.raises(ValueError, match=said):
            sounds.prepare(nothing)


@pytest.mark.parametrize(("paper", "ink"), [("white", "black"), ("black", "white")])
def test_a_drawing_becomes_light_strokes_in_the_middle_of_black(paper: str, ink: str, shelf: ModuleType) -> None:
    drawing = Image.new("RGB", (100, 100), paper)
    drawing.paste(ink, (5, 10, 15, 50))
    found = np.asarray(shelf.strokes_of({"background": None, "layers": [], "composite": drawing}))
    assert found.shape == (44, 44)
    rows, columns = np.nonzero(found > 127)
    assert (found[rows, columns] == 255).all() and len(rows) == 400
    assert (rows.min(), columns.min()) == (2, 17) and found[0].max() == 0
    for nothing in (None, {"composite": None}, Image.new("RGBA", (9, 9)), Image.new("RGB", (9, 9), paper)):
        with pytest.raises(ValueError, match="Nothing is drawn"):
            shelf.strokes_of(nothing)


# --- models ----------------------------------------------------------------------------------------------------------


def test_visitors_choose_no_folders_of_the_machine(shelf: ModuleType, tmp_path: Path) -> None:
    assert shelf.check_source(f" {tmp_path} ", is_own_machine=True) == str(tmp_path)
    assert shelf.check_source("user/model", is_own_machine=False) == "user/model"
    for path in (str(tmp_path), "/no/such/folder", "~/model", "../model"):
        with pytest.raises(ValueError, match="not for its visitors"):
            shelf.check_source(path, is_own_machine=False)
    with pytest.raises(ValueError, match="There is no model"):
        shelf.check_source(" ", is_own_machine=True)
    assert all(map(shelf.is_loopback, ("127.0.0.1", "::1", "localhost")))
    assert not any(map(shelf.is_loopback, ("0.0.0.0", "192.168.0.2", "example.org")))


def test_code_of_a_model_runs_only_where_it_is_trusted(shelf: ModuleType, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = str(save_with_code(tmp_path / "model", marker))
    assert shelf.needs_code(folder)
    with pytest.raises(ValueError, match="needs code of its own"):
        shelf.load(folder)
    assert not marker.exists()
    loaded = shelf.load(folder, trust=True)
    assert type(loaded.model).__name__ == "MarkedModel" and loaded.kind == "text" and marker.exists()


def test_models_of_hf_lam_load_without_their_code(shelf: ModuleType, tmp_path: Path) -> None:
    folder = save_text(tmp_path, LamConfig())
    assert not shelf.needs_code(str(folder))
    # It would run if it were loaded.
    (folder / "modeling_hf_lam.py").write_text("raise RuntimeError('ran')")
    assert type(shelf.load(str(folder)).model).__name__ == "HfLamBertForSequenceClassification"


def test_what_is_no_model_of_this_app_is_refused(shelf: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        shelf.load(str(tmp_path))
    text_host().save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="no tokenizer, image processor"):
        shelf.load(str(tmp_path / "bare"))
    # Weights that would have to be unpickled.
    folder = save_text(tmp_path / "pickled")
    torch.save(text_host().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        shelf.load(str(folder))


def test_the_models_used_last_stay(shelf: ModuleType, tmp_path: Path) -> None:
    folders = [str(save_text(tmp_path / name, LamConfig())) for name in "abc"]
    models = shelf.Shelf(tmp_path, most=2)
    first, second = models.take(folders[0]), models.take(folders[1])
    assert models.take(folders[0]) is first
    models.take(folders[2])
    assert models.take(folders[0]) is first and models.take(folders[1]) is not second


# --- maps and views --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mechanism", "captions"),
    [
        (
            LamConfig(),
            [
                "without the learnable mask, with it",
                "where the first token looks",
                "layer by layer",
                "patches of an image",
            ],
        ),
        (LocomtConfig(views="half"), ["attend to which", "tokens see which"]),
        (SttConfig(), ["framed patch", "rows look"]),
    ],
)
def test_every_mechanism_has_its_maps(
    mechanism: Any, captions: list[str], shelf: ModuleType, maps: ModuleType, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    loaded = shelf.load(str(save_image(tmp_path, mechanism)))
    html = maps.draw_maps(loaded, loaded.prepare(Image.new("RGB", (16, 16), "grey")))
    found = re.findall(r'<img src="data:image/png;base64,[\w+/=]+" alt="([^"]+)">', html)
    assert len(found) == len(captions)
    for caption, part in zip(found, captions, strict=True):
        assert part in caption or part.capitalize() in caption


def test_a_model_without_mechanisms_has_no_maps_and_captions_are_escaped(
    shelf: ModuleType, maps: ModuleType, tmp_path: Path
) -> None:
    loaded = shelf.load(str(save_text(tmp_path)))
    with pytest.raises(ValueError, match=r"hf_lam\.convert"):
        maps.draw_maps(loaded, loaded.prepare("a film"))
    assert '"><script' not in maps.figures([(b"", '"><script>')])


@pytest.mark.parametrize(
    "mechanisms", [(), (LamConfig(),), (LocomtConfig(segments=[["a", 4], ["b", 8]], views="self"),)]
)
def test_views_are_compared_with_the_original(
    mechanisms: tuple[Any, ...], shelf: ModuleType, view_budget: ModuleType, tmp_path: Path
) -> None:
    loaded = shelf.load(str(save_text(tmp_path, *mechanisms)))
    sample = loaded.prepare("a good film " * 5)
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    segments = view_budget.list_segments(loaded)[0]
    # Full views are the original, unless that has others.
    full = view_budget.compare_views(loaded, sample, segments, "full", 1.0)
    stock = shelf.ask(loaded.model, sample.inputs)
    assert torch.equal(full.before.pooled, stock.pooled) and full.flops_fraction == 1
    assert (full.cosine > 1 - 1e-6) is (segments == HALVES)
    fractions = []
    for budget in (0.7, 0.85, 1.0):
        found = view_budget.compare_views(loaded, sample, segments, view_budget.CALIBRATED, budget)
        assert found.flops_fraction <= budget and 0 < found.kept <= 1 + 1e-6
        fractions.append(found.flops_fraction)
    assert fractions == sorted(fractions) and fractions[0] < fractions[-1]
    found = view_budget.compare_views(loaded, sample, segments, "self", 1.0)
    rows = {row[0]: row[1:] for row in found.tables()[0].rows}
    assert found.cosine < 1 - 1e-4 or segments == view_budget.OWN
    assert rows["FLOPs of the attention"][1] == f"{found.of_after.forward_attention:,}"
    assert found.has_same_label is (found.before.label == found.after.label)
    assert len(found.pictures()) == 2 and all(data.startswith(b"\x89PNG") for data, _ in found.pictures())
    assert all(torch.equal(weight, before[name]) for name, weight in loaded.model.state_dict().items())


def test_images_are_cut_and_views_that_do_not_fit_are_refused(
    shelf: ModuleType, view_budget: ModuleType, tmp_path: Path
) -> None:
    loaded = shelf.load(str(save_image(tmp_path, LamConfig())))
    sample = loaded.prepare(Image.new("RGB", (16, 16), "grey"))
    assert view_budget.list_segments(loaded) == ["quadrants", "left and right", "top and bottom"]
    assert "cross:left-right" in view_budget.list_views(loaded, "left and right")
    found = view_budget.compare_views(loaded, sample, "left and right", "cross:left-right", 1.0)
    assert {view for row in found.of_after.layers for view in row.views} == {"cross:left-right"}
    for segments, views, budget, said in (
        ("left and right", "cross:left-rihgt", 1.0, "rihgt"),
        ("left and right", view_budget.CALIBRATED, 0.1, "no table meets"),
        ("thirds", "self", 1.0, "segments must be one of"),
    ):
        with pytest.raises(ValueError, match=said):
            view_budget.compare_views(loaded, sample, segments, views, budget)


# --- what is bundled -------------------------------------------------------------------------------------------------


def test_the_data_are_balanced_and_always_the_same() -> None:
    with script_module("space/bundled_data") as data:
        texts, moods = data.make_sentences()
        assert len(texts) == len(set(texts)) and moods.count(0) == moods.count(1)
        assert {"dull", "not"} <= set(data.make_words())
        sounds, pitches = data.make_sounds(6)
        assert pitches == [0, 1, 2, 0, 1, 2]
        for first, second in zip(sounds, data.make_sounds(6)[0], strict=True):
            assert np.array_equal(first, second) and len(first) == 16000
        # Where most of the sound is, in Hz: low, high, and between the two.
        middles = [
            float((np.abs(np.fft.rfft(sound)) ** 2 @ np.arange(8001)) / (np.abs(np.fft.rfft(sound)) ** 2).sum())
            for sound in sounds[:3]
        ]
        assert middles[0] < middles[2] < middles[1]


def test_the_folder_is_that_of_a_space() -> None:
    header = (EXAMPLES / "space" / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    options = yaml.safe_load(header)
    assert options["sdk"] == "gradio" and (EXAMPLES / "space" / options["app_file"]).is_file()
    # Limits of the Hub.
    assert len(options["short_description"]) <= 60
    pins = (EXAMPLES.parent / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(rf"^gradio=={re.escape(options['sdk_version'])}\b", pins, re.M)


@pytest.mark.slow
def test_bundled_models_answer_their_examples(
    shelf: ModuleType, maps: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = Image.new("L", (280, 280), "white")
    bar.paste("black", (120, 40, 160, 240))
    with script_module("space/bundled") as bundled:
        models = shelf.Shelf(tmp_path)
        examples = {"text": "wonderful", "image": bar, "audio": str(bundled.example_sound(tmp_path))}
        for name in ("sentences", "digits-stt", "sounds"):  # the other digits are drawn on the page
            loaded = models.take(name)
            sample = loaded.prepare(examples[loaded.kind])
            assert "<figure" in maps.draw_maps(loaded, sample)
            label = shelf.ask(loaded.model, sample.inputs).label
            assert label == {"text": "good", "image": label, "audio": "rising"}[loaded.kind]
            # What is in the folder is not made again.
            monkeypatch.setitem(bundled.BUNDLED, name, None)
            assert bundled.prepare_bundled(name, tmp_path).is_dir()
