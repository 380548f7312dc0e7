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
    HubertConfig,
    HubertModel,
    NomicBertConfig,
    NomicBertModel,
    PreTrainedModel,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
    VivitConfig,
    VivitModel,
    YolosConfig,
    YolosModel,
)
from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from helpers.hosts import SIZES, make_host, make_model, max_difference
from hf_lam import LamConfig, LocomtConfig, SttConfig, convert, cost, inject, remove, set_views
from hf_lam.flops import example_inputs
from hf_lam.modeling.hosts_hf_lam import HostTokens, read_tokens

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
    "rectangles": (LocomtConfig(segments=LEFT_AND_RIGHT, views="self"),),
    "spans": (LocomtConfig(segments=[["a", 5], ["b", 12]], views="self"),),
    "annealing": (LocomtConfig(segments=LEFT_AND_RIGHT, views="half", annealing=True),),
    "bottleneck": (LocomtConfig(segments=LEFT_AND_RIGHT, views="self", bottleneck_tokens=2),),
    "synthesised": (SttConfig("dense"),),
    "random": (SttConfig("random"),),
    "mixture": (SttConfig(),),
    "on_one_axis": (SttConfig(grid=[16]),),
    "in_line": (SttConfig(grid=[17], prefix_tokens=0),),
    "on_three_axes": (SttConfig("dense", grid=[2, 2, 4]),),
    "with_low_rank": (LamConfig(rank=2), LocomtConfig(segments=LEFT_AND_RIGHT, views="cross")),
}
# … and what is not.
FREE: dict[str, tuple[Any, ...]] = {
    "low_rank": (LamConfig(rank=2),),
    "quadrants": (LocomtConfig(),),
    "annealing": (LocomtConfig(views="half", annealing=True),),
    "both": (LocomtConfig(), LamConfig(rank=2)),
}


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


@pytest.mark.parametrize("name", ["mask", "rectangles", "mixture"])
@pytest.mark.parametrize("host", [host for host in IMAGES if host != "vit"])
def test_on_other_hosts(host: str, name: str) -> None:
    model = IMAGES[host]()
    options = interpolating(model)
    model(torch.randn(1, 3, 8, 32), **options)
    inject(model, *TIED[name])
    with pytest.raises(ValueError, match="a grid of 2 × 8 patches"):
        model(pixel_values=torch.randn(1, 3, 8, 32), **options)


# They add no positions to their tokens.
SMALL = {"image_size": 16, "patch_size": 4}
WITHOUT_POSITIONS: dict[str, tuple[Any, int]] = {
    "dinov3": (lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZES, **SMALL, num_register_tokens=4)), 5),
    "beit": (lambda: BeitModel(BeitConfig(**SIZES, **SMALL)), 1),
}


@pytest.mark.parametrize("host", WITHOUT_POSITIONS)
def test_hosts_whose_tokens_have_no_positions(host: str) -> None:
    make, first = WITHOUT_POSITIONS[host]
    length = first + 16
    halves = [["a", length - 8], ["b", 8]]
    for config in (
        LamConfig(),
        LamConfig(max_length=length),
        LocomtConfig(segments=halves, views="self"),
        LocomtConfig(segments=LEFT_AND_RIGHT, views="self"),
        SttConfig(),
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
    convert(stock, LamConfig(), LocomtConfig(LEFT_AND_RIGHT, views="half")).save_pretrained(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a grid of 8 × 2 patches, but LamConfig was made for 4 × 4"):
        model(torch.randn(1, 3, 32, 8), interpolate_pos_encoding=True)


@pytest.mark.parametrize("name", ["mask", "mixture"])
def test_spectrograms_on_their_side_are_refused(name: str) -> None:
    model = make_host("ast")
    turned = torch.randn(1, 16, 32)
    model(turned)  # as many patches
    inject(model, *TIED[name])
    with pytest.raises(ValueError, match=r"input_values of shape \(1, 16, 32\) has a grid of 8 × 4 .* for 4 × 8"):
        model(turned)


def make_vivit() -> PreTrainedModel:
    return VivitModel(VivitConfig(**SIZES, image_size=16, num_frames=4, tubelet_size=[2, 4, 4])).eval()


@pytest.mark.parametrize("name", ["mask", "mixture"])
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


SIX_BY_SIX: dict[str, tuple[Any, str]] = {
    "mask": (LamConfig(max_length=37), r"LamConfig\(max_length=17\)"),
    "shared_mask": (LamConfig(scope="shared", max_length=37), r"LamConfig\(max_length=17\)"),
    "mixture": (SttConfig(grid=[6, 6]), r"SttConfig\(grid=\[4, 4\]\)"),
    "mixture_on_one_axis": (SttConfig(grid=[36]), "Resize them"),
    "rectangles": (
        LocomtConfig([["a", {"rectangle": [0, 0, 6, 1]}], ["b", {"rectangle": [0, 1, 6, 5]}]], "half", annealing=True),
        "part",
    ),
    "spans": (LocomtConfig([["a", 19], ["b", 18]], "half", annealing=True), "part"),
}


@pytest.mark.parametrize("name", SIX_BY_SIX)
def test_what_is_made_for_larger_images_takes_no_smaller_ones(name: str) -> None:
    config, advice = SIX_BY_SIX[name]
    model = inject(make_host("vit"), config)
    pixels = torch.randn(1, 3, 24, 24)
    expected = make_host("vit")(pixels, interpolate_pos_encoding=True).last_hidden_state
    assert max_difference(model(pixels, interpolate_pos_encoding=True).last_hidden_state, expected) < 1e-5
    for size, grid in (((16, 16), "4 × 4"), ((16, 36), "4 × 9")):
        with pytest.raises(
            ValueError,
            match=f"a grid of {grid} patches, but .* was made for 6 × 6.*{advice if size == (16, 16) else ''}",
        ):
            model(torch.randn(1, 3, *size), interpolate_pos_encoding=True)


def test_mechanisms_for_inputs_of_two_sizes_do_not_go_together() -> None:
    larger = LocomtConfig(
        segments=[["a", {"rectangle": [0, 0, 5, 2]}], ["b", {"rectangle": [0, 2, 5, 3]}]], views="self"
    )
    for other in (LamConfig(), SttConfig()):
        model = IMAGES["dinov2"]()
        with pytest.raises(ValueError, match=r"4 × 4.* no input of Dinov2Model has both|5 × 5.* has both"):
            inject(model, other, larger)
        inject(model, other, LocomtConfig())  # full: a place does not matter
        with pytest.raises(ValueError, match=r"no input of Dinov2Model has both"):
            set_views(model, larger)
        set_views(model, LocomtConfig(views="self"))
        assert model(torch.randn(1, 3, 16, 16)).last_hidden_state.isfinite().all()


def test_a_mask_for_a_number_of_tokens_that_is_no_square_checks_the_number() -> None:
    model = inject(make_host("vit"), LamConfig(max_length=41))
    assert model(torch.randn(1, 3, 16, 40), interpolate_pos_encoding=True).last_hidden_state.shape[1] == 41
    with pytest.raises(ValueError, match=r"17 tokens, but .* each of 41 places on a grid.*max_length=17.*rank=8"):
        model(torch.randn(1, 3, 16, 16))


def test_no_mask_is_advised_that_would_be_for_another_grid() -> None:
    model = inject(make_host("vit"), SttConfig(), LamConfig(max_length=17))
    for size in ((8, 8), (8, 32)):
        with pytest.raises(ValueError, match="was made for 4 × 4") as raised:
            model(torch.randn(1, 3, *size), interpolate_pos_encoding=True)
        assert "max_length=17" not in str(raised.value)


# --- sound -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [LamConfig(), SttConfig(), LocomtConfig()], ids=lambda config: config.name)
def test_sound_of_any_length_says_how_many_tokens_it_makes(config: Any) -> None:
    model = HubertModel(HubertConfig(**{**SIZES, "hidden_size": 16, "num_conv_pos_embeddings": 4,
                                        "num_conv_pos_embedding_groups": 2, "conv_dim": (4,) * 7})).eval()  # fmt: skip
    with pytest.raises(
        ValueError, match=r"It makes 49 tokens of one second of sound at 16 kHz, and 499 of ten seconds\. Give"
    ):
        inject(model, config)
    assert model(torch.zeros(1, 16000)).last_hidden_state.shape[1] == 49
    inject(model, LamConfig(max_length=49))
    assert example_inputs(model)["input_values"].shape == (1, 49 * 320 + 80)
    assert cost(model).tokens == 49


# --- siblings --------------------------------------------------------------------------------------------------------


def test_tokens_after_the_grid_leave_no_grid() -> None:
    model = YolosModel(YolosConfig(**SIZES, image_size=[16, 16], patch_size=4, num_detection_tokens=3)).eval()
    pixels = torch.randn(1, 3, 16, 16)
    expected = model(pixels).last_hidden_state
    with pytest.raises(ValueError, match=r"YolosModel has no segments of its own \(0 token types, grid none\)"):
        inject(model, LocomtConfig())
    inject(model, LamConfig(), LocomtConfig(segments=[["a", 17], ["b", 3]]))
    assert max_difference(model(pixels).last_hidden_state, expected) < 1e-5


def test_an_encoder_whose_class_says_that_its_input_is_text() -> None:
    sizes = {
        key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    config = Idefics2VisionConfig(**sizes, image_size=16, patch_size=4)
    model = Idefics2VisionTransformer(config).eval()
    assert model.main_input_name == "input_ids"
    pixels = torch.randn(2, 3, 16, 12)
    expected = model(pixels).last_hidden_state
    inject(model, LocomtConfig())
    assert max_difference(model(pixels).last_hidden_state, expected) < 1e-5
    lengths = {"top_left": 2, "top_right": 4, "bottom_left": 2, "bottom_right": 4}
    assert cost(model, {"pixel_values": pixels}).segments == lengths
    assert cost(model).tokens == 16


# --- token types -----------------------------------------------------------------------------------------------------


def test_token_types_reach_the_layers_of_an_encoder_that_runs_them_itself() -> None:
    model = NomicBertModel(NomicBertConfig(**SIZES, vocab_size=99, pad_token_id=0, max_position_embeddings=40)).eval()
    ids, mask = torch.randint(3, 90, (2, 12)), torch.ones(2, 12, dtype=torch.long)
    types = torch.tensor([[0] * 5 + [1] * 7, [0] * 9 + [1] * 3])
    expected = model(ids, token_type_ids=types).last_hidden_state
    inject(model, LocomtConfig())
    assert max_difference(model(ids, token_type_ids=types).last_hidden_state, expected) < 1e-5
    remove(model)
    inject(model, LocomtConfig(views="self"))
    both = model(ids, token_type_ids=types).last_hidden_state
    assert max_difference(model(ids[1:], mask[1:], types[1:]).last_hidden_state[0], both[1]) < 1e-5
    # The first type sees nothing of the second.
    assert max_difference(model(ids[:1, :5]).last_hidden_state[0], both[0, :5]) < 1e-5
    assert max_difference(both, expected) > 1e-3


@pytest.mark.parametrize("config", [LamConfig(), SttConfig()], ids=str)
def test_a_short_text_is_not_another_place(config: Any) -> None:
    model, ids = make_host("bert"), torch.tensor([[5, 6, 7]])
    expected = model(ids).last_hidden_state
    inject(model, config)
    assert max_difference(model(ids).last_hidden_state, expected) < 1e-5


# --- what hosts say --------------------------------------------------------------------------------------------------

GRIDS: dict[str, Any] = {
    "dinov2": HostTokens("Dinov2Model", 17, 1, (4, 4)),
    "registers": HostTokens("Dinov2WithRegistersModel", 20, 4, (4, 4)),
    "clip": HostTokens("CLIPVisionModel", 17, 1, (4, 4)),
}


@pytest.mark.parametrize("host", GRIDS)
def test_the_grid_of_the_size_that_a_host_is_configured_for(host: str) -> None:
    assert read_tokens(IMAGES[host]()) == GRIDS[host]


def test_the_grid_of_a_number_of_tokens() -> None:
    square, other = HostTokens("X", 17, 1, (4, 4)), HostTokens("X", 9, 1, (2, 4))
    video, sound = HostTokens("X", 33, 1, (2, 4, 4), 2), HostTokens("X", 20, 0, (20,))
    assert [square.grid_of(n) for n in (None, 17, 26, 18, 1, 0)] == [(4, 4), (4, 4), (5, 5), (), (), ()]
    assert [other.grid_of(n) for n in (None, 9, 17)] == [(2, 4), (2, 4), ()]
    assert [video.grid_of(n) for n in (None, 33, 49, 34)] == [(2, 4, 4), (2, 4, 4), (3, 4, 4), ()]
    assert [sound.grid_of(n) for n in (None, 20, 7)] == [(20,), (20,), (7,)]
    assert HostTokens("X", 40).grid_of(40) == ()
