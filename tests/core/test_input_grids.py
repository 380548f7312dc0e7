"""Mechanisms that are tied to places notice inputs whose tokens lie in others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    BeitModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
    VivitConfig,
    VivitModel,
)

from helpers.hosts import SIZES, make_host, make_model, max_difference
from hf_lam import LamConfig, LocomtConfig, SttConfig, convert, inject

IMAGES: dict[str, Any] = {
    "vit": lambda: make_host("vit"),
    "deit": lambda: make_host("deit"),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, image_size=16, patch_size=4)).eval(),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES, image_size=16, patch_size=4)).eval(),
    "registers": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**SIZES, image_size=16, patch_size=4, num_register_tokens=3)
    ).eval(),
}
LEFT_AND_RIGHT = [["left", {"rectangle": [0, 0, 4, 2]}], ["right", {"rectangle": [0, 2, 4, 2]}]]
# What is tied to places, …
TIED: dict[str, tuple[Any, ...]] = {
    "mask": (LamConfig(),),
    "shared_mask": (LamConfig(scope="shared", per_head=True),),
    "quadrants": (LocomtConfig(views="half"),),
    "rectangles": (LocomtConfig(segments=LEFT_AND_RIGHT, views="self"),),
    "annealing": (LocomtConfig(views="half", annealing=True),),
    "bottleneck": (LocomtConfig(views="self", bottleneck_tokens=2),),
    "synthesised": (SttConfig("dense"),),
    "random": (SttConfig("random"),),
    "mixture": (SttConfig(),),
    "on_one_axis": (SttConfig(grid=[16]),),
    "in_line": (SttConfig(grid=[17], prefix_tokens=0),),
    "on_three_axes": (SttConfig("dense", grid=[2, 2, 4]),),
    "with_low_rank": (LamConfig(rank=2), LocomtConfig(views="cross")),
}
# … and what is not.
FREE: dict[str, tuple[Any, ...]] = {"low_rank": (LamConfig(rank=2),)}


def interpolating(model: PreTrainedModel) -> dict[str, bool]:
    return {} if "Dinov2" in type(model).__name__ else {"interpolate_pos_encoding": True}


# As many patches in another shape, lying and standing; fewer; more.
@pytest.mark.parametrize("size", [(8, 32), (32, 8), (8, 8), (24, 24)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", TIED)
def test_images_of_another_shape_are_refused(name: str, size: tuple[int, int]) -> None:
    model = inject(make_host("vit"), *TIED[name])
    grid = f"{size[0] // 4} × {size[1] // 4}"
    with pytest.raises(ValueError, match=rf"a grid of {grid} patches, but \w+ was made for 4 × 4\. Resize"):
        model(torch.randn(1, 3, *size), interpolate_pos_encoding=True)
    assert model(torch.randn(1, 3, 16, 16)).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("name", ["mask", "quadrants", "mixture"])
@pytest.mark.parametrize("host", [host for host in IMAGES if host != "vit"])
def test_on_other_hosts(host: str, name: str) -> None:
    model = IMAGES[host]()
    options = interpolating(model)
    model(torch.randn(1, 3, 8, 32), **options)
    inject(model, *TIED[name])
    with pytest.raises(ValueError, match="a grid of 2 × 8 patches"):
        model(pixel_values=torch.randn(1, 3, 8, 32), **options)


# They add no positions to their tokens, so they do not say how many there are.
SMALL = {"image_size": 16, "patch_size": 4}
WITHOUT_POSITIONS: dict[str, tuple[Any, int]] = {
    "dinov3": (lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZES, **SMALL, num_register_tokens=4)), 5),
    "beit": (lambda: BeitModel(BeitConfig(**SIZES, **SMALL)), 1),
}


@pytest.mark.parametrize("host", WITHOUT_POSITIONS)
def test_hosts_that_do_not_say_how_many_tokens_there_are(host: str) -> None:
    make, first = WITHOUT_POSITIONS[host]
    length = first + 16
    halves = [["a", length - 8], ["b", 8]]
    for config in (
        LamConfig(max_length=length),
        LocomtConfig(segments=halves, views="self"),
        SttConfig(grid=[4, 4], prefix_tokens=first),
    ):
        model = inject(make().eval(), config)
        assert model(torch.randn(1, 3, 16, 16)).last_hidden_state.shape[1] == length
        with pytest.raises(ValueError, match=r"a grid of 2 × 8 patches, but \w+ was made for 4 × 4"):
            model(torch.randn(1, 3, 8, 32))


def test_tokens_in_a_random_order_have_no_places() -> None:
    model = ViTMAEModel(ViTMAEConfig(**SIZES, image_size=16, patch_size=4, mask_ratio=0.0))
    for config in (LamConfig(), LocomtConfig(views="half"), SttConfig()):
        with pytest.raises(ValueError, match=r"random order \(mask_ratio=0.0\)"):
            inject(model, config)
    assert inject(model, LamConfig(rank=2)) is model


@pytest.mark.parametrize("name", FREE)
def test_what_is_tied_to_no_place_takes_any(name: str) -> None:
    model, pixels = make_host("vit"), torch.randn(1, 3, 8, 24)
    expected = model(pixels, interpolate_pos_encoding=True).last_hidden_state
    inject(model, *FREE[name])
    assert max_difference(model(pixels, interpolate_pos_encoding=True).last_hidden_state, expected) < 1e-5


def test_in_full_views_places_do_not_matter() -> None:
    model, pixels = make_host("vit"), torch.randn(1, 3, 8, 32)
    expected = model(pixels, interpolate_pos_encoding=True).last_hidden_state
    inject(model, LocomtConfig())
    assert max_difference(model(pixels, interpolate_pos_encoding=True).last_hidden_state, expected) < 1e-5


def test_converted_and_loaded_models_notice_them_too(tmp_path: Any) -> None:
    stock = make_model(ViTForImageClassification, "vit")
    convert(stock, LamConfig(), LocomtConfig(views="half")).save_pretrained(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a grid of 8 × 2 patches, but LamConfig was made for 4 × 4"):
        model(torch.randn(1, 3, 32, 8), interpolate_pos_encoding=True)


@pytest.mark.parametrize("name", ["mask", "quadrants", "mixture"])
def test_spectrograms_on_their_side_are_refused(name: str) -> None:
    model = make_host("ast")
    turned = torch.randn(1, 16, 32)
    model(turned)  # as many patches
    inject(model, *(TIED[name] if name != "rectangles" else ()))
    with pytest.raises(ValueError, match=r"input_values of shape \(1, 16, 32\) has a grid of 8 × 4 .* for 4 × 8"):
        model(turned)


def make_vivit() -> PreTrainedModel:
    return VivitModel(VivitConfig(**SIZES, image_size=16, num_frames=4, tubelet_size=[2, 4, 4])).eval()


@pytest.mark.parametrize("name", ["mask", "quadrants"])
def test_videos_of_another_shape_are_refused(name: str) -> None:
    model = inject(make_vivit(), *TIED[name])
    for size, grid in (((4, 3, 8, 32), "2 × 2 × 8"), ((8, 3, 16, 8), "4 × 4 × 2")):
        with pytest.raises(ValueError, match=rf"a grid of {grid} patches, but \w+ was made for 2 × 4 × 4"):
            model(torch.randn(1, *size), interpolate_pos_encoding=True)


# --- made for inputs of another size ---------------------------------------------------------------------------------


def test_a_grid_of_ones_own_is_the_one_that_is_checked() -> None:
    model = inject(make_host("vit"), SttConfig(grid=[2, 8], prefix_tokens=1))
    model(torch.randn(1, 3, 8, 32), interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match="a grid of 4 × 4 patches, but SttConfig was made for 2 × 8"):
        model(torch.randn(1, 3, 16, 16))


def test_a_mask_for_larger_images_takes_no_smaller_ones() -> None:
    model = inject(make_host("vit"), LamConfig(max_length=37))
    pixels = torch.randn(1, 3, 24, 24)
    expected = make_host("vit")(pixels, interpolate_pos_encoding=True).last_hidden_state
    assert max_difference(model(pixels, interpolate_pos_encoding=True).last_hidden_state, expected) < 1e-5
    with pytest.raises(ValueError, match=r"17 tokens, but .* each of 37 places on a grid.*rank=8"):
        model(torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize("config", [LamConfig(), SttConfig()], ids=str)
def test_a_short_text_is_not_another_place(config: Any) -> None:
    model, ids = make_host("bert"), torch.tensor([[5, 6, 7]])
    expected = model(ids).last_hidden_state
    inject(model, config)
    assert max_difference(model(ids).last_hidden_state, expected) < 1e-5
