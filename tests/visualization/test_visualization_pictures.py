"""All pictures of a model as files: which there are, what is in them, their captions, and that the files are sound."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from transformers import BertConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

import hf_lam
from helpers.fusion_models import make_fusion, make_fusion_inputs
from helpers.hosts import make_host, make_inputs, perturb_mechanisms
from helpers.processes import TESTS
from hf_lam import LamConfig, LocomtConfig, SttConfig, visualization
from hf_lam.modeling.mechanism_hf_lam import Picture
from hf_lam.visualization import pictures, save_pictures

pytest.importorskip("matplotlib")

HALF = LocomtConfig(views="half")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Coarse pictures: most of the time goes into pixels."""
    monkeypatch.setattr(pictures, "DOTS_PER_INCH", 30)


@pytest.fixture
def figures(monkeypatch):
    """The figures behind the files, by their order; nothing is rendered."""
    seen = []

    def keep(figure, format):
        seen.append(figure)
        return b""

    monkeypatch.setattr(pictures, "_as_file", keep)
    return seen


def with_mechanisms(host, *configs, **options):
    model = hf_lam.inject(make_host(host, **{"initializer_range": 0.2, **options}), *configs)
    perturb_mechanisms(model)
    return model


def panels_of(figure):
    return [axes for axes in figure.axes if axes.images and axes.get_label() != "<colorbar>"]


def drawn(panel):
    return torch.from_numpy(np.asarray(panel.images[0].get_array(), dtype=np.float32))


ON_IMAGE = {"masks", "masks_on_image", "attention", "attention_on_image"}


@pytest.mark.parametrize(
    ("host", "configs", "expected", "without_inputs"),
    [
        ("bert", (LamConfig(),), {"masks", "attention"}, set()),
        ("vit", (LamConfig(per_head=True),), ON_IMAGE, set()),
        ("videomae", (LamConfig(rank=2),), {"masks", "attention"}, set()),
        ("vit", (LamConfig(), HALF), {*ON_IMAGE, "views", "view_blocks"}, {"views", "view_blocks"}),
        ("bert", (HALF,), {"views", "view_blocks"}, {"views"}),
        ("vit", (SttConfig("dense"),), {"synthetic_maps", "synthetic_map_on_image"}, set()),
        ("bert", (SttConfig("random"),), {"synthetic_maps"}, set()),
        ("videomae", (SttConfig("random"),), {"synthetic_maps"}, set()),
        ("vit", (SttConfig(), LamConfig()), {*ON_IMAGE, "synthetic_maps", "synthetic_map_on_image"}, set()),
    ],
)
def test_every_mechanism_gets_the_pictures_that_fit(host, configs, expected, without_inputs, figures, tmp_path):
    model, inputs = with_mechanisms(host, *configs, num_hidden_layers=2), make_inputs(host, token_types=host == "bert")
    captions = save_pictures(model, inputs, tmp_path / "a" / "b", prefix="x_", format="svg")
    assert set(captions) == {f"x_{name}.svg" for name in expected}
    assert {file.name for file in (tmp_path / "a" / "b").iterdir()} == set(captions)
    assert len(figures) == len(captions)
    for caption in captions.values():
        assert caption.endswith(".")
        assert "\n" not in caption
        assert "layer by layer" in caption or "Which tokens see which" in caption
    assert set(save_pictures(model, None, tmp_path)) == {f"{name}.png" for name in without_inputs}


@pytest.mark.parametrize("format", ["png", "svg"])
def test_files_are_valid_and_the_same_every_time(format, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would fail
    model, inputs = with_mechanisms("bert", LamConfig(), num_hidden_layers=1), make_inputs("bert")
    captions = save_pictures(model, inputs, tmp_path / "first", format=format)
    assert len(captions) == 2
    assert save_pictures(model, inputs, tmp_path / "second", format=format) == captions
    for name in captions:
        data = (tmp_path / "first" / name).read_bytes()
        assert data == (tmp_path / "second" / name).read_bytes()
        if format == "png":
            assert data.startswith(b"\x89PNG\r\n\x1a\n")
            assert data.endswith(b"IEND\xaeB`\x82")
            assert b"Software" not in data
        else:
            assert ElementTree.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"
            assert b"dc:date" not in data


@pytest.mark.slow
@pytest.mark.parametrize("host", ["bert", "vit"])
def test_a_notebook_shows_every_figure_by_itself(host):
    """Without pyplot, which alone makes Jupyter draw a plain `Figure`; copies by pickle, too."""
    model, inputs = with_mechanisms(host, LamConfig(), HALF, num_hidden_layers=1), make_inputs(host)
    shown = [visualization.plot_masks(model, inputs), visualization.plot_views(model)]
    shown.append(visualization.plot_picture(Picture("caption", torch.rand(3, 4), "layer", "head", "value")))
    if host == "vit":
        shown.append(visualization.plot_attention_on_image(model, inputs, query=3))
    for figure in (*shown, pickle.loads(pickle.dumps(shown[0]))):
        figure.set_dpi(20)
        assert figure._repr_png_().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.slow
def test_another_process_without_a_display_writes_the_same_bytes(tmp_path):
    code = """
import sys, torch, hf_lam
from helpers.hosts import make_host, make_inputs, perturb_mechanisms
from hf_lam import LamConfig, LocomtConfig
from hf_lam.visualization import save_pictures
model = hf_lam.inject(make_host("vit", num_hidden_layers=1), LamConfig(), LocomtConfig())
perturb_mechanisms(model)
for format in ("png", "svg"):
    save_pictures(model, make_inputs("vit"), sys.argv[1], format=format)
assert "matplotlib.pyplot" not in sys.modules
"""
    for name in ("first", "second"):
        run = [sys.executable, "-c", code, str(tmp_path / name)]
        environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
        environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
        subprocess.run(run, check=True, env=environment)
    files = sorted(file.name for file in (tmp_path / "first").iterdir())
    assert len(files) == 12
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.slow
def test_captions_say_what_is_shown(figures, tmp_path):
    model, inputs = with_mechanisms("vit", LamConfig(per_head=True), HALF), make_inputs("vit")
    captions = save_pictures(model, inputs, tmp_path)
    assert captions == {
        "masks.png": "The learnable mask of the 3 layers, layer by layer, mean over heads, for an example of 17 "
        "tokens: white is 1 and leaves an attention score as it is, red strengthens it, blue weakens it.",
        "masks_on_image.png": "The learnable mask of the 3 layers, layer by layer, mean over queries and heads, on "
        "the 4 × 4 patches of an image: red patches have their scores strengthened, blue ones weakened, white "
        "ones left as they are.",
        "attention.png": "Attention of the 3 layers, layer by layer, mean over heads, for an example of 17 tokens: "
        "without the learnable mask, with it, and the difference (red is more weight with the mask, blue is less, "
        "white is the same).",
        "attention_on_image.png": "Where the first token looks in the 3 layers, layer by layer, mean over heads, on "
        "the 4 × 4 patches of an image, with the learnable mask and without it: yellow is much weight, dark blue is "
        "little, and on the image the patches with the most weight with the mask are outlined.",
        "views.png": "The attention view of every head in the 3 layers, layer by layer: which of the segments cls, "
        "top_left, top_right, bottom_left, bottom_right attend to which, with a letter and a colour for each view.",
        "view_blocks.png": captions["view_blocks.png"],
    }
    assert captions["view_blocks.png"].startswith("Which tokens see which under the 3 views, for an example of 17 ")
    shared = with_mechanisms("bert", LamConfig(scope="shared"), num_hidden_layers=1)
    caption = save_pictures(shared, make_inputs("bert"), tmp_path, sample=1)["masks.png"]
    assert caption.startswith("The learnable mask that all layers share, for an example of 7 tokens: white is 1")
    added = with_mechanisms("bert", LamConfig(combine="add"), num_hidden_layers=1)
    assert "white is 0 and leaves" in save_pictures(added, make_inputs("bert"), tmp_path)["masks.png"]
    alone = save_pictures(with_mechanisms("bert", LamConfig(), num_hidden_layers=1), make_inputs("bert"), tmp_path)
    assert alone["masks.png"].startswith("The learnable mask of the only layer, for an example of 11 tokens: ")
    maps = save_pictures(with_mechanisms("vit", SttConfig("dense")), inputs, tmp_path)
    assert "layer by layer, as factors along the axes of the 4 × 4 grid, mean over heads" in maps["synthetic_maps.png"]
    assert maps["synthetic_map_on_image.png"].endswith("titles say how much of it goes to patches at all.")


def test_the_sample_that_was_asked_for_is_drawn(figures, tmp_path):
    model, inputs = with_mechanisms("bert", LamConfig()), make_inputs("bert")
    names = [f"t{index}" for index in range(11)]
    save_pictures(model, inputs, tmp_path, sample=1, tokens=names)
    masks, with_and_without = figures
    pairs = hf_lam.visualization.attention_with_and_without_mask(model, inputs)
    for index, panel in enumerate(panels_of(with_and_without)[1::3]):
        torch.testing.assert_close(drawn(panel), pairs[index][0][1].mean(0)[:7, :7])
    torch.testing.assert_close(
        drawn(panels_of(masks)[2]), hf_lam.visualization.learned_masks(model, inputs)[2][1, 0, :7, :7]
    )
    assert [label.get_text() for label in panels_of(masks)[0].get_xticklabels()] == names[:7]
    with pytest.raises(ValueError, match="sample must be from 0 to 1"):
        save_pictures(model, inputs, tmp_path, sample=2)


@pytest.mark.slow
def test_of_deep_models_neighbouring_layers_are_drawn_together(figures, tmp_path):
    model = with_mechanisms("vit", LamConfig(), num_hidden_layers=7)
    captions = save_pictures(model, make_inputs("vit"), tmp_path)
    assert "of the 7 layers, in 6 groups of neighbours" in captions["masks.png"]
    assert "of the 7 layers, in 4 groups of neighbours" in captions["masks_on_image.png"]
    assert "of the 7 layers, in 3 groups of neighbours" in captions["attention.png"]
    assert "in the 7 layers, in 4 groups of neighbours" in captions["attention_on_image.png"]
    assert [len(panels_of(figure)) for figure in figures] == [6, 4 * 2, 3 * 3, 4 * 3]
    assert all("of ViTModel" in figure.get_suptitle() for figure in figures)
    captions = save_pictures(
        with_mechanisms("vit", SttConfig("random"), num_hidden_layers=7), make_inputs("vit"), tmp_path
    )
    assert "maps of the 7 layers, in 6 groups of neighbours" in captions["synthetic_maps.png"]


def test_nearly_constant_masks_are_said_to_be(figures, tmp_path):
    model = hf_lam.inject(make_host("vit", num_hidden_layers=2), LamConfig())
    captions = save_pictures(model, make_inputs("vit"), tmp_path)
    for name in ("masks.png", "masks_on_image.png"):
        assert "it is nearly constant, and the dashed line is 1 and leaves an attention score" in captions[name]
    assert all("nearly constant" in figure.get_suptitle().replace("\n", " ") for figure in figures[:2])


def test_of_many_views_those_of_the_most_heads_are_drawn(figures, tmp_path):
    names = [f"s{index}" for index in range(4)]
    pairs = [f"{left}>{right}" for left in names for right in names]
    table = [pairs[index : index + 4] for index in range(0, 16, 4)] + [[pairs[15], pairs[15], pairs[14], pairs[0]]]
    views = LocomtConfig(segments=[[name, 3] for name in names], views=table)
    model = with_mechanisms("bert", views, num_hidden_layers=5)
    captions = save_pictures(model, None, tmp_path)
    titles = [panel.get_title() for panel in panels_of(figures[1])]
    assert titles == [
        "A  s0>s0\n2 heads",
        *(f"{letter}  {pair}\n1 head" for letter, pair in zip("BCDEFGHIJ", pairs[1:10], strict=True)),
        "O  s3>s2\n2 heads",
        "P  s3>s3\n3 heads",
    ]
    assert (
        "under 12 of the 16 views, those of the most heads, for 12 tokens in 4 segments" in captions["view_blocks.png"]
    )


def labels_of_blocks(figure):
    return [label.get_text() for label in panels_of(figure)[0].get_yticklabels()]


def test_lengths_of_segments_come_from_the_inputs(figures, tmp_path):
    model, inputs = with_mechanisms("bert", HALF), make_inputs("bert", token_types=True)
    captions = save_pictures(model, inputs, tmp_path, sample=1)
    ones = int(inputs["token_type_ids"][1, :7].sum())
    assert labels_of_blocks(figures[1]) == [f"type_0 ({7 - ones})", f"type_1 ({ones})"]
    assert ", for an example of 7 tokens in 2 segments" in captions["view_blocks.png"]
    save_pictures(model, inputs, tmp_path)
    ones = int(inputs["token_type_ids"][0].sum())
    assert labels_of_blocks(figures[3]) == [f"type_0 ({11 - ones})", f"type_1 ({ones})"]


def test_lengths_of_a_bottleneck_count(figures, tmp_path):
    views = LocomtConfig(views="self", bottleneck_tokens=2)
    inputs = make_inputs("bert", token_types=True)
    save_pictures(with_mechanisms("bert", views), inputs, tmp_path, sample=1)
    ones = int(inputs["token_type_ids"][1, :7].sum())
    assert labels_of_blocks(figures[1]) == [f"type_0 ({9 - ones})", f"type_1 ({2 + ones})"]


def test_fusion(figures, tmp_path):
    modalities = ("text", "image", "audio")
    model, inputs = make_fusion(hf_lam="lam_half"), make_fusion_inputs(modalities)
    inputs["has_image"] = torch.tensor([True, False])
    captions = save_pictures(model, inputs, tmp_path, sample=1)
    assert list(captions) == ["masks.png", "attention.png", "views.png", "view_blocks.png"]
    assert "an example of 41 tokens (7 of text, 34 of audio):" in captions["masks.png"]
    assert labels_of_blocks(figures[3]) == ["text (7)", "image, video (0)", "audio (34)"]
    assert drawn(panels_of(figures[0])[0]).shape == (41, 41)
    save_pictures(make_fusion(hf_lam="bottleneck"), make_fusion_inputs(("text", "image")), tmp_path, sample=1)
    assert labels_of_blocks(figures[5]) == ["text (9)", "image (19)", "video (2)", "audio (2)"]


def test_models_with_nothing_to_draw(tmp_path):
    for model, inputs in ((make_host("vit"), make_inputs("vit")), (make_fusion(num_hidden_layers=0), None)):
        assert save_pictures(model, inputs, tmp_path / "none") == {}
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_mechanisms_of_two_encoders_are_left_out(figures, tmp_path):
    text = BertConfig(**{**make_host("bert").config.to_dict(), "is_decoder": True, "add_cross_attention": True})
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(make_host("vit").config, text)
    model = VisionEncoderDecoderModel(config)
    hf_lam.inject(model.encoder, LamConfig(), LocomtConfig(views="half"))
    inputs = {**make_inputs("vit"), "decoder_input_ids": torch.tensor([[5, 6], [7, 8]])}
    # The encoder's configuration says how images are cut, which that of the whole model holds.
    assert set(save_pictures(model, inputs, tmp_path)) == {
        "masks.png",
        "masks_on_image.png",
        "attention.png",
        "attention_on_image.png",
        "views.png",
        "view_blocks.png",
    }
    both = torch.nn.ModuleDict({"a": with_mechanisms("vit", LamConfig()), "b": with_mechanisms("vit", LamConfig())})
    assert save_pictures(both, make_inputs("vit"), tmp_path) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "jpg"}, "format='jpg' is unknown: choose one of png, svg"),
        ({"format": "PNG"}, "choose one of png, svg"),
        ({"prefix": "../x"}, "prefix='../x' is a path"),
        ({"prefix": "a\\"}, "is a path"),
        ({"sample": -1}, "sample must be from 0 to 1"),
        ({"tokens": ["a"]}, "all 17 tokens of the sequence, got 1"),
    ],
)
def test_bad_choices_write_nothing(options, message, figures, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_pictures(with_mechanisms("vit", HALF, LamConfig()), make_inputs("vit"), tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()
    if "tokens" not in options:
        assert not figures, "before anything is drawn"


def test_inputs_without_tensors_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"tensors that the model is called with, got \['pixel_values'\]"):
        save_pictures(with_mechanisms("vit", LamConfig()), {"pixel_values": [[0.0]]}, tmp_path)


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "hf_lam.visualization._figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "hf-lam\[viz\]"'):
        save_pictures(make_host("vit"), None, tmp_path)


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    model = with_mechanisms("vit", HALF)
    save_pictures(model, None, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full_disk(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_pictures(with_mechanisms("vit", LocomtConfig(views="self")), None, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def noisy_figure():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 2))
    image = np.random.default_rng(0).random((200, 200))
    figure.subplots().imshow(image, interpolation="nearest")
    return figure


@pytest.mark.parametrize("format", ["png", pytest.param("svg", marks=pytest.mark.slow)])
def test_files_with_a_lot_of_detail_get_fewer_colours_and_pixels(format, monkeypatch):
    monkeypatch.setattr(pictures, "DOTS_PER_INCH", 150)
    large = pictures._rendered(noisy_figure(), format, 150)
    few = pictures._in_few_colours(large) if format == "png" else large
    if format == "png":
        assert few.startswith(b"\x89PNG") and len(few) < 0.7 * len(large) and few[16:24] == large[16:24]
        monkeypatch.setattr(pictures, "_LARGEST_FILE", len(few))
        assert pictures._as_file(noisy_figure(), format) == few
    monkeypatch.setattr(pictures, "_LARGEST_FILE", len(few) // 2)
    assert len(few) // 8 < len(pictures._as_file(noisy_figure(), format)) <= len(few) // 2
    # There is a limit, below which nothing could be read.
    monkeypatch.setattr(pictures, "_LARGEST_FILE", 100)
    least = pictures._rendered(noisy_figure(), format, 60)
    assert pictures._as_file(noisy_figure(), format) == (pictures._in_few_colours(least) if format == "png" else least)


def test_very_long_figures_are_no_larger_than_that(monkeypatch):
    from matplotlib.figure import Figure

    monkeypatch.setattr(pictures, "DOTS_PER_INCH", 150)
    data = pictures._as_file(Figure(figsize=(1, 40)), "png")
    assert [int.from_bytes(data[place : place + 4], "big") for place in (16, 20)] == [75, 3000]
