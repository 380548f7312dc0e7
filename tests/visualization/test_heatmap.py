"""The picture that a mechanism gives of itself: its colours, its names, and that it becomes a file of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import hf_lam
from helpers.door import DISTANCE, TEMPERATURE, LoadFile, open_door
from helpers.hosts import make_host, make_inputs, perturb_mechanisms
from hf_lam import LamConfig, LocomtConfig, Picture
from hf_lam.modeling.injection_hf_lam import mechanism_of
from hf_lam.visualization import pictures, plot_picture, save_pictures

pytest.importorskip("matplotlib")


@pytest.fixture
def load_file() -> Iterator[LoadFile]:
    with open_door() as load:
        yield load


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures behind the files, by their order; nothing is rendered."""
    seen: list[Any] = []
    monkeypatch.setattr(pictures, "_as_file", lambda figure, format: seen.append(figure) or b"")
    return seen


def make_picture(values: Any, neutral: float = 0.0, **options: str) -> Picture:
    names = {"caption": "What it is.", "rows": "layer", "columns": "head", "label": "strength"}
    return Picture(values=torch.as_tensor(values), neutral=neutral, **{**names, **options})


def panel_of(figure: Any) -> Any:
    (panel,) = [axes for axes in figure.axes if axes.images and axes.get_label() != "<colorbar>"]
    return panel


def colours_of(picture: Picture) -> np.ndarray:
    """Red, green and blue of every cell."""
    image = panel_of(plot_picture(picture)).images[0]
    return image.to_rgba(image.get_array())[..., :3]


@pytest.mark.parametrize("values", [[[0.5, 1.0, 1.25]], [[1.0, 3.0, 1.5]], [[-1.0, 1.0, 0.0]], [[1.0, 1.0, 1.0]]])
def test_the_neutral_value_is_white_within_the_range(values: list[list[float]]) -> None:
    colours = colours_of(make_picture(values, neutral=1.0))[0]
    for value, (red, _, blue) in zip(values[0], colours, strict=True):
        if value == 1:
            assert min(red, blue) > 0.95
        else:
            assert (red > blue) == (value > 1)


def test_equal_steps_from_the_neutral_value_are_equally_strong() -> None:
    image = panel_of(plot_picture(make_picture([[0.5, 1.0, 4.0]], neutral=1.0))).images[0]
    assert image.norm(1.0) == pytest.approx(0.5)
    assert image.norm(4.0) == pytest.approx(1.0)
    assert image.norm(-2.0) == pytest.approx(0.0)


@pytest.mark.parametrize("values", [[[2.0, 5.0, 3.0]], [[-5.0, -2.0, -4.0]]])
def test_values_on_one_side_of_the_neutral_one_have_the_whole_scale(values: list[list[float]]) -> None:
    image = panel_of(plot_picture(make_picture(values))).images[0]
    assert (image.norm.vmin, image.norm.vmax) == (min(values[0]), max(values[0]))
    brightness = image.to_rgba(image.get_array())[0, :, :3].sum(-1)
    assert brightness.argsort().tolist() == np.argsort(values[0]).tolist()


def test_what_is_not_finite_is_left_out_of_the_scale() -> None:
    infinite = float("inf")
    image = panel_of(plot_picture(make_picture([[1.0, -infinite], [float("nan"), -2.0]]))).images[0]
    assert np.ma.masked_invalid(image.get_array()).mask.tolist() == [[False, True], [True, False]]
    assert image.norm.vmax == 2.0
    plot_picture(make_picture([[infinite, -infinite]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.long])
def test_values_of_any_dtype_are_shown_as_they_are(dtype: torch.dtype) -> None:
    values = torch.tensor([[1, -2, 3], [4, 5, -6]], dtype=dtype)
    values.requires_grad_(dtype.is_floating_point)
    shown = panel_of(plot_picture(make_picture(values))).images[0].get_array()
    assert np.asarray(shown).tolist() == values.tolist()


def test_axes_and_colours_have_names() -> None:
    figure = plot_picture(make_picture(torch.zeros(2, 3), label="a name of the colours that is longer than its bar"))
    panel, bar = panel_of(figure), next(axes for axes in figure.axes if axes.get_label() == "<colorbar>")
    assert (panel.get_ylabel(), panel.get_xlabel()) == ("layer", "head")
    assert bar.get_ylabel() == "a name of the colours that is\nlonger than its bar"
    assert [place for place in panel.get_xticks() if -0.5 <= place <= 2.5] == [0, 1, 2]
    assert [place for place in panel.get_yticks() if -0.5 <= place <= 1.5] == [0, 1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (24, 16), (12, 3000)])
def test_figures_of_any_shape_are_of_a_size_that_can_be_read(shape: tuple[int, int]) -> None:
    figure = plot_picture(make_picture(torch.randn(shape)))
    panel = panel_of(figure)
    width, height = figure.get_size_inches()
    assert 4 <= width <= 11 and 2.5 <= height <= 8
    for places, cells in ((panel.get_xticks(), shape[1]), (panel.get_yticks(), shape[0])):
        inside = [place for place in places if -0.5 <= place <= cells - 0.5]
        assert 1 <= len(inside) <= 14 and all(place == int(place) for place in inside)
    figure.canvas.draw()
    box = panel.get_window_extent()
    assert min(box.width, box.height) >= 0.4 * 150 * min(width, height), "room for the panel itself"


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 4), ()])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"rows and columns, got one of shape"):
        plot_picture(make_picture(torch.zeros(shape)))


# --- among the pictures of a model -----------------------------------------------------------------------------------


def test_a_mechanism_that_draws_itself_gets_a_file(load_file: LoadFile, figures: list[Any], tmp_path: Any) -> None:
    temperature = load_file(TEMPERATURE)
    views = LocomtConfig(views="half")
    model = hf_lam.inject(make_host("vit"), temperature.HeadTemperatureConfig(), views, LamConfig())
    perturb_mechanisms(model)
    mechanism = mechanism_of(model, "head_temperature")
    captions = save_pictures(model, None, tmp_path, prefix="x_")
    assert list(captions) == ["x_views.png", "x_view_blocks.png", "x_head_temperature.png"]
    assert captions["x_head_temperature.png"] == mechanism.draw().caption
    shown = torch.from_numpy(np.asarray(panel_of(figures[2]).images[0].get_array()))
    torch.testing.assert_close(shown, torch.stack(list(mechanism.parameters())).detach().exp())
    of_lam = {f"{name}.png" for name in ("masks", "masks_on_image", "attention", "attention_on_image")}
    captions = save_pictures(model, make_inputs("vit"), tmp_path)
    assert set(captions) == {*of_lam, "views.png", "view_blocks.png", "head_temperature.png"}


def test_its_file_is_a_picture_and_the_same_every_time(load_file: LoadFile, tmp_path: Any) -> None:
    model = hf_lam.inject(make_host("vit"), load_file(DISTANCE).DistanceBiasConfig())
    for folder in ("first", "second"):
        assert list(save_pictures(model, make_inputs("vit"), tmp_path / folder)) == ["distance_bias.png"]
    first, second = ((tmp_path / folder / "distance_bias.png").read_bytes() for folder in ("first", "second"))
    assert first == second and first.startswith(b"\x89PNG")


def test_a_picture_of_a_name_that_is_taken_is_kept_beside_the_other(
    load_file: LoadFile, figures: list[Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hf_lam.inject(make_host("vit"), LocomtConfig(views="half"), load_file(TEMPERATURE).HeadTemperatureConfig())
    monkeypatch.setattr(pictures, "draw_registered", lambda name, example: {"head_temperature": (None, "Another.")})
    captions = save_pictures(model, None, tmp_path)
    assert list(captions) == ["head_temperature.png", "head_temperature_weights.png"]
    assert captions["head_temperature.png"] == "Another."


def test_a_mechanism_of_two_encoders_is_left_out(load_file: LoadFile, tmp_path: Any) -> None:
    config = load_file(TEMPERATURE).HeadTemperatureConfig
    both = torch.nn.ModuleDict({name: hf_lam.inject(make_host("vit"), config()) for name in ("a", "b")})
    assert save_pictures(both, make_inputs("vit"), tmp_path) == {}
