"""Segments that are parts of the grid: they follow the size of the input, and are rectangles at every one."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BeitConfig,
    BeitModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    InternVLVisionConfig,
    InternVLVisionModel,
    PreTrainedModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    ViTForImageClassification,
    VJEPA2Config,
    VJEPA2Model,
    WhisperConfig,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionTransformer
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from helpers.hosts import SIZES, data_folder, make_host, make_model, max_difference
from hf_lam import (
    LamConfig,
    LocomtConfig,
    SttConfig,
    calibrate_views,
    convert,
    cost,
    fit_synthesizers,
    harden,
    inject,
    remove,
    set_views,
)
from hf_lam.modeling.injection_hf_lam import injected_encoders, injection_of, mechanism_of
from hf_lam.modeling.locomt_hf_lam import AttentionViews
from hf_lam.modeling.locomt_segments_hf_lam import follow_each_other, place

SMALL: dict[str, Any] = {"image_size": 28, "patch_size": 4}  # 7 × 7
PATCHES: dict[str, Any] = {
    "num_patches": 16,
    "patch_size": 2,
    **{key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
}


def make_dinov2(seed: int = 0, **options: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    return Dinov2Model(Dinov2Config(**{**SIZES, **SMALL, **options})).eval()


def make_siglip2() -> PreTrainedModel:
    torch.manual_seed(0)
    return Siglip2VisionModel(Siglip2VisionConfig(**PATCHES)).eval()


def quadrants(rows: int, columns: int) -> list[Any]:
    top, left = rows // 2, columns // 2
    return [
        ["top_left", {"rectangle": [0, 0, top, left]}],
        ["top_right", {"rectangle": [0, left, top, columns - left]}],
        ["bottom_left", {"rectangle": [top, 0, rows - top, left]}],
        ["bottom_right", {"rectangle": [top, left, rows - top, columns - left]}],
    ]


def run(model: PreTrainedModel, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients of all parameters."""
    output = model(pixels).last_hidden_state
    output.square().mean().backward()
    return output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# --- where an edge lies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5, 14, 16, 37, 39])
def test_an_edge_lies_at_the_nearest_boundary(size: int) -> None:
    assert place((1, 2), size) == size // 2
    assert (place((0, 1), size), place((1, 1), size)) == (0, size)
    for ratio in ((1, 3), (2, 3), (1, 4), (3, 4), (37, 100)):
        exact = Fraction(*ratio) * size
        assert abs(place(ratio, size) - exact) <= Fraction(1, 2)
        assert place(ratio, torch.tensor([size, 1])).tolist() == [place(ratio, size), place(ratio, 1)]


def test_what_follows_each_other_is_known_without_looking_at_every_place() -> None:
    assert follow_each_other([((0, 2), (0, 3)), ((2, 2), (0, 3)), ((2, 4), (0, 3))], (4, 3))
    assert follow_each_other([((0, 1), (0, 2)), ((0, 1), (2, 3))], (1, 3))
    assert not follow_each_other([((0, 4), (0, 1)), ((0, 4), (1, 3))], (4, 3))
    assert not follow_each_other([((2, 4), (0, 3)), ((0, 2), (0, 3))], (4, 3))
    assert follow_each_other([((0, 1), (0, 2), (0, 2)), ((1, 3), (0, 2), (0, 2))], (3, 2, 2))


# --- at every size, what rectangles of that size give ----------------------------------------------------------------

WITH: dict[str, tuple[Any, ...]] = {
    "half": (LocomtConfig(views="half"),),
    "cross": (LocomtConfig(views="cross"),),
    "bottleneck": (LocomtConfig(views="self", bottleneck_tokens=2),),
    "annealing": (LocomtConfig(views="half", annealing=True),),
    "lam": (LocomtConfig(views="half"), LamConfig(rank=2, init="normal")),
}


@pytest.mark.parametrize(
    "size", [(7, 7), (5, 5), (4, 6), (9, 3), (1, 6), (2, 1)], ids=lambda size: f"{size[0]}x{size[1]}"
)
@pytest.mark.parametrize("name", WITH)
def test_parts_are_rectangles_at_every_size(name: str, size: tuple[int, int]) -> None:
    views, *others = WITH[name]
    pixels = torch.randn(2, 3, 4 * size[0], 4 * size[1])
    if min(size) < 2:  # some of them are empty, which a rectangle cannot be
        assert inject(make_dinov2(), *WITH[name])(pixels).last_hidden_state.isfinite().all()
        return
    model, same = make_dinov2(), make_dinov2()
    torch.manual_seed(1)
    inject(model, views, *others)
    torch.manual_seed(1)
    inject(same, LocomtConfig(quadrants(*size), views.views, views.annealing, views.bottleneck_tokens), *others)
    (output, gradients), (expected, wanted) = run(model, pixels), run(same, pixels)
    assert torch.equal(output, expected)
    assert gradients.keys() == wanted.keys() and all(torch.equal(gradients[key], wanted[key]) for key in wanted)
    model.set_attn_implementation("eager")
    assert max_difference(model(pixels).last_hidden_state, expected) < 1e-5


def test_a_mixture_beside_parts_says_its_size() -> None:
    model = inject(make_dinov2(), LocomtConfig(views="half"), SttConfig(grid=[5, 4]))
    assert model(torch.randn(1, 3, 20, 16)).last_hidden_state.isfinite().all()
    with pytest.raises(
        ValueError, match=r"7 × 7 patches, but SttConfig was made for 5 × 4.*SttConfig\(grid=\[7, 7\]\)"
    ):
        model(torch.randn(1, 3, 28, 28))


def test_thirds_and_what_is_left() -> None:
    thirds = [["sky", {"part": [0, 0, 0.3333, 1]}], ["ground", {"part": [0.3333, 0, 0.6667, 1]}]]
    model = inject(make_dinov2(), LocomtConfig(thirds, "self"))
    for rows, sky in ((7, 2), (6, 2), (5, 2), (4, 1)):
        segments = cost(model, {"pixel_values": torch.zeros(1, 3, 4 * rows, 12)}).segments
        assert segments == {"cls": 1, "sky": 3 * sky, "ground": 3 * (rows - sky)}


@pytest.mark.parametrize("host", ["dinov2", "dinov3", "beit", "vjepa2"])
def test_full_views_change_nothing_at_any_size(host: str) -> None:
    make = {
        "dinov2": make_dinov2,
        "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZES, **SMALL, num_register_tokens=4)).eval(),
        "beit": lambda: BeitModel(BeitConfig(**SIZES, **SMALL)).eval(),
        "vjepa2": make_vjepa2,
    }[host]
    options = {"skip_predictor": True} if host == "vjepa2" else {}
    for shape in ((3, 28, 28), (3, 20, 36)):
        model, pixels = make(), torch.randn(2, *((4,) if host == "vjepa2" else ()), *shape)
        expected = model(pixels, **options).last_hidden_state
        inject(model, LocomtConfig())
        assert max_difference(model(pixels, **options).last_hidden_state, expected) < 1e-5


# --- videos and sound ------------------------------------------------------------------------------------------------


def make_vjepa2() -> PreTrainedModel:
    torch.manual_seed(0)
    predictor = {"pred_hidden_size": 48, "pred_num_attention_heads": 4, "pred_num_hidden_layers": 1}
    encoder = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2}
    sizes = {"crop_size": 16, "patch_size": 4, "frames_per_clip": 4, "tubelet_size": 2}
    return VJEPA2Model(VJEPA2Config(**predictor, **encoder, **sizes)).eval()


def test_videos_of_more_frames_and_other_sizes() -> None:
    model = inject(make_vjepa2(), LocomtConfig(views="self"))
    for frames, (rows, columns), early in ((4, (4, 4), 1), (10, (4, 4), 2), (6, (2, 5), 1), (1, (4, 4), 0)):
        video = torch.randn(1, frames, 3, 4 * rows, 4 * columns)
        steps = max(1, frames // 2)
        assert cost(model, {"pixel_values_videos": video, "skip_predictor": True}).segments == {
            "early": early * rows * columns,
            "late": (steps - early) * rows * columns,
        }
    frames = [["early", {"frames": [0, 2]}], ["late", {"frames": [2, 8]}]]
    model = inject(make_vjepa2(), LocomtConfig(frames, "half"))
    assert model(torch.randn(1, 8, 3, 8, 20), skip_predictor=True).last_hidden_state.shape[1] == 4 * 2 * 5
    with pytest.raises(ValueError, match="a grid of 2 × 4 × 4 patches, but LocomtConfig was made for 4 × any × any"):
        model(torch.randn(1, 4, 3, 16, 16), skip_predictor=True)


def test_sound_of_one_length_has_an_early_and_a_late_half() -> None:
    sizes = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 37}
    config = WhisperConfig(**sizes, vocab_size=99, num_mel_bins=8, max_source_positions=15, pad_token_id=0)
    model, sound = WhisperEncoder(config).eval(), torch.randn(2, 8, 30)
    expected = model(sound).last_hidden_state
    inject(model, LocomtConfig())
    assert cost(model).segments == {"early": 7, "late": 8}
    assert max_difference(model(sound).last_hidden_state, expected) < 1e-5


# --- a grid of its own for every sample ------------------------------------------------------------------------------


def make_patches(shapes: list[tuple[int, int]], length: int) -> dict[str, Tensor]:
    mask = torch.arange(length) < torch.tensor(shapes).prod(1, keepdim=True)
    return {
        "pixel_values": torch.randn(len(shapes), length, 12),
        "pixel_attention_mask": mask.long(),
        "spatial_shapes": torch.tensor(shapes),
    }


@pytest.mark.parametrize("name", WITH)
def test_a_sample_alone_is_what_it_is_in_a_batch(name: str) -> None:
    model = inject(make_siglip2(), *WITH[name])
    shapes = [(4, 4), (3, 5), (2, 9), (1, 7), (5, 3)]
    batch = make_patches(shapes, 20)
    together = model(**batch).last_hidden_state
    for sample, (rows, columns) in enumerate(shapes):
        alone = {key: value[sample : sample + 1] for key, value in batch.items()}
        for key in ("pixel_values", "pixel_attention_mask"):
            alone[key] = alone[key][:, : rows * columns]
        assert max_difference(model(**alone).last_hidden_state[0], together[sample, : rows * columns]) < 1e-5
    is_patch = batch["pixel_attention_mask"].bool()
    model.set_attn_implementation("eager")
    assert max_difference(model(**batch).last_hidden_state[is_patch], together[is_patch]) < 1e-5


def test_samples_are_cut_where_rectangles_of_their_size_are() -> None:
    model = inject(make_siglip2(), LocomtConfig(views="half"))
    same = inject(make_siglip2(), LocomtConfig(quadrants(3, 5), "half"))
    batch = make_patches([(3, 5), (3, 5)], 15)
    assert max_difference(model(**batch).last_hidden_state, same(**batch).last_hidden_state) < 1e-5
    with pytest.raises(ValueError, match=r"an image of pixel_values has a grid of 5 × 3 patches, but .* for 3 × 5"):
        same(**make_patches([(3, 5), (5, 3)], 15))


def test_padding_makes_no_segment_longer_than_it_must() -> None:
    model = inject(make_siglip2(), LocomtConfig(views="self"))
    segments = cost(model, make_patches([(4, 4), (1, 1)], 16)).segments
    assert segments is not None and sum(segments.values()) == 17  # 4 each; one of the small image's is the fifth
    assert max(segments.values()) == 5


# --- where the size of the input is not known ------------------------------------------------------------------------


def test_an_encoder_alone_reads_the_number_of_its_tokens() -> None:
    model = DINOv3ViTModel(DINOv3ViTConfig(**SIZES, **SMALL, num_register_tokens=4)).eval()
    whole = inject(DINOv3ViTModel(model.config).eval(), LocomtConfig(views="half"))
    whole.load_state_dict(model.state_dict(), strict=False)
    inject(model.model, LocomtConfig(views="half"))
    for size in (28, 36):
        pixels = torch.randn(1, 3, size, size)
        assert torch.equal(model(pixels).last_hidden_state, whole(pixels).last_hidden_state)
    assert whole(torch.randn(1, 3, 28, 20)).last_hidden_state.shape[1] == 5 + 35
    with pytest.raises(ValueError, match=r"called with 40 tokens, and LocomtConfig needs to know their grid.* 7 × 7"):
        model(torch.randn(1, 3, 28, 20))


# Their forward takes any keyword argument, but gives none to the layers.
KEEPING_KEYWORDS: dict[str, Any] = {
    "internvl": lambda: InternVLVisionModel(InternVLVisionConfig(**SIZES, image_size=[16, 16], patch_size=[4, 4])),
    "idefics3": lambda: Idefics3VisionTransformer(Idefics3VisionConfig(**SIZES, **SMALL)),
    "smolvlm": lambda: SmolVLMVisionTransformer(SmolVLMVisionConfig(**SIZES, **SMALL)),
}


@pytest.mark.parametrize("size", [(8, 32), (24, 20)], ids=str)
@pytest.mark.parametrize("host", KEEPING_KEYWORDS)
def test_hosts_that_keep_keyword_arguments_to_themselves_are_told_the_grid(host: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = KEEPING_KEYWORDS[host]().eval()
    twin = copy.deepcopy(model)
    inject(model, LocomtConfig(views="half"))
    inject(twin, LocomtConfig(segments=quadrants(size[0] // 4, size[1] // 4), views="half"))
    pixels = torch.randn(2, 3, *size)
    result = model(pixels, output_hidden_states=True)
    assert torch.equal(result.last_hidden_state, twin(pixels).last_hidden_state)
    assert len(result.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(model.forward(pixels).last_hidden_state, result.last_hidden_state)
    stock = KEEPING_KEYWORDS[host]().eval()
    stock.load_state_dict(remove(model).state_dict())
    assert torch.equal(model(pixels).last_hidden_state, stock(pixels).last_hidden_state)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_they_are_told_after_layers_were_cut() -> None:
    model = KEEPING_KEYWORDS["internvl"]().eval()
    inject(model, LocomtConfig(views="half"))
    model.encoder.layer = model.encoder.layer[:1]
    model.config.num_hidden_layers = 1
    twin = inject(remove(copy.deepcopy(model)), LocomtConfig(segments=quadrants(2, 8), views="half"))
    pixels = torch.randn(2, 3, 8, 32)
    assert torch.equal(model(pixels).last_hidden_state, twin(pixels).last_hidden_state)


def test_the_innermost_model_that_gets_pixels_is_asked() -> None:
    head = inject(Dinov2ForImageClassification(Dinov2Config(**SIZES, **SMALL)).eval(), LocomtConfig(views="half"))
    pixels = torch.randn(1, 3, 20, 28)
    assert head(pixels).logits.isfinite().all()
    assert head.dinov2(pixels).last_hidden_state.shape[1] == 1 + 35


# --- a model that has them -------------------------------------------------------------------------------------------


def test_a_converted_model_keeps_them(tmp_path: Any) -> None:
    model = convert(make_model(ViTForImageClassification, "vit"), LocomtConfig(views="half"), LamConfig(rank=2))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert loaded.config.hf_lam["locomt"]["segments"][1] == ["top_left", {"part": [0.0, 0.0, 0.5, 0.5]}]
    pixels = torch.randn(2, 3, 24, 8)
    options = {"interpolate_pos_encoding": True}
    assert max_difference(loaded(pixels, **options).logits, model.eval()(pixels, **options).logits) < 1e-6


def test_views_are_calibrated_on_the_size_that_comes_in() -> None:
    model = inject(make_dinov2(), LocomtConfig())
    batch = {"pixel_values": torch.randn(3, 3, 20, 24)}
    config, report = calibrate_views(model, [batch], budget=0.6)
    assert report.full_cost == 31**2 and 0 < report.flops_fraction <= 0.6
    set_views(model, config)
    counted = cost(model, batch)
    assert counted.segments == {"cls": 1, "top_left": 6, "top_right": 6, "bottom_left": 9, "bottom_right": 9}
    assert cost(model).tokens == 50
    own = [sum(layer.formula["own"]) for layer in counted.layers]
    full = [sum(layer.formula["full"]) for layer in counted.layers]
    assert sum(own) / sum(full) == pytest.approx(report.flops_fraction)


def test_views_of_samples_with_grids_of_their_own_are_calibrated_without_padding() -> None:
    model = inject(make_siglip2(), LocomtConfig())
    batch = make_patches([(4, 4), (2, 2), (3, 5)], 20)
    _, report = calibrate_views(model, [batch])
    assert report.full_cost == pytest.approx((16**2 + 4**2 + 15**2) / 3)
    assert 0 < report.kept <= report.total <= 1 + 1e-6


def test_a_mixture_for_another_size_is_fitted_and_hardened_there() -> None:
    model, batch = inject(make_dinov2(), SttConfig(grid=[5, 4])), {"pixel_values": torch.randn(2, 3, 20, 16)}
    fit_synthesizers(model, [batch], epochs=2)
    for synthesizer in model.hf_lam.stt:
        synthesizer.mixing.data.fill_(1)
    expected = model(**batch).last_hidden_state
    assert max_difference(harden(model)(**batch).last_hidden_state, expected) < 1e-5
    with pytest.raises(ValueError, match="7 × 7 patches, but SttConfig was made for 5 × 4"):
        model(torch.randn(1, 3, 28, 28))


def test_a_model_card_says_that_they_follow_the_input() -> None:
    model = inject(make_dinov2(), LocomtConfig(views="half"))
    (base,) = injected_encoders(model)
    injection = injection_of(base)
    (limit,) = injection.configs["locomt"].list_limits(injection.host)
    assert "top_left, top_right, bottom_left, bottom_right) are parts of the input, whatever its size" in limit
    rectangles = LocomtConfig(quadrants(5, 5)).resolve(injection.host)
    (limit,) = rectangles.list_limits(injection.host)
    assert "cut for inputs of 5 × 5 patches. The model refuses another size" in limit


def test_examples_are_of_the_size_that_mechanisms_say() -> None:
    for configs, tokens in (
        ((LocomtConfig(quadrants(5, 6), "half"),), 31),
        ((SttConfig(grid=[2, 3]),), 7),
        ((LamConfig(max_length=26), LocomtConfig(views="half")), 26),
        ((LamConfig(rank=2), LocomtConfig(views="half")), 50),
    ):
        assert cost(inject(make_dinov2(), *configs)).tokens == tokens
    # ViT has to be asked to interpolate its positions.
    assert cost(inject(make_host("vit"), LocomtConfig(quadrants(5, 6), "half"))).tokens == 31


def test_parts_need_no_tensors() -> None:
    (base,) = injected_encoders(inject(make_dinov2(), LocomtConfig(views="half")))
    views: AttentionViews = mechanism_of(base, "locomt")
    assert set(views.state_dict()) == {"mark"}


# --- the real one ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dinov2_small_at_the_size_of_its_processor() -> None:
    model = Dinov2Model.from_pretrained(data_folder("models/dinov2-small"), dtype=torch.float32).eval()
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model(pixels).last_hidden_state
        for configs in ((LocomtConfig(),), (SttConfig(grid=[16, 16]),), (LamConfig(max_length=257),)):
            inject(model, *configs)
            assert max_difference(model(pixels).last_hidden_state, expected) < 1e-4 * expected.abs().max()
            remove(model)
    inject(model, LocomtConfig(views="half"))
    assert cost(model).segments == {
        "cls": 1,
        "top_left": 18 * 18,
        "top_right": 18 * 19,
        "bottom_left": 19 * 18,
        "bottom_right": 19 * 19,
    }
    config, report = calibrate_views(model, [{"pixel_values": pixels}])
    assert report.full_cost == 257**2 and report.flops_fraction <= 0.5
    same = LocomtConfig(quadrants(16, 16), views=config.views)
    with torch.no_grad():
        found = set_views(model, config)(pixels).last_hidden_state
        assert torch.equal(set_views(model, same)(pixels).last_hidden_state, found)


@pytest.mark.slow
def test_compiled_for_one_size_and_then_for_all() -> None:
    torch._dynamo.reset()
    model = inject(make_dinov2(num_hidden_layers=1), LocomtConfig(views="half"))
    compiled = []

    def count(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    program = torch.compile(model, backend=count, fullgraph=True)
    with torch.no_grad():
        numbers = []
        for size in (28, 20, 24, 36, 28):
            pixels = torch.randn(2, 3, size, size)
            for _ in range(2):
                assert max_difference(program(pixels).last_hidden_state, model(pixels).last_hidden_state) < 1e-5
            numbers.append(len(compiled))
    assert numbers[0] == 1 and numbers[1:] == numbers[1:2] * 4  # for one size, and then for all
    exported = torch.export.export(model, (), {"pixel_values": pixels}).module()
    assert max_difference(exported(pixel_values=pixels).last_hidden_state, model(pixels).last_hidden_state) < 1e-5
