"""Every row of the table of encoders: what a fusion model makes of it, and what it refuses."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from fusion.write_table import PAGE, write_page
from helpers.fusion_encoders import ENCODERS, FusionEncoder
from helpers.fusion_models import lacking
from helpers.hosts import max_difference
from helpers.processes import run_code
from hf_lam import HfLamFusionModel
from hf_lam.modeling.fusion_encoders_hf_lam import find_layers

# Besides the modality with an encoder, one of vectors, so that samples can lack the first.
CLIPS = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(3))
BESIDE: dict[str, Any] = {
    "features": {"clips": 8},
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "num_hidden_layers": 1,
}
# One row of each kind; the others are slow tests.
KINDS = (
    *("bert", "modernbert", "clip_text", "albert", "vit", "dinov2", "dinov3_vit", "siglip2_vision"),
    *("videomae", "vjepa2", "ast", "whisper", "wav2vec2", "hubert_group", "data2vec_audio", "wav2vec2_bert"),
)

of_each_kind = pytest.mark.parametrize(
    "name", [pytest.param(key, marks=[] if key in KINDS else pytest.mark.slow) for key in ENCODERS]
)


def make_alone(row: FusionEncoder, source: Any) -> Any:
    return HfLamFusionModel.from_modality_pretrained(**{row.modality: source}, baseline="late")


def make_beside(row: FusionEncoder, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return HfLamFusionModel.from_modality_pretrained(**{row.modality: row.make()}, **{**BESIDE, **options})


def untrained(model: Any) -> list[str]:
    """The parameters without a gradient; but for those that stock encoders keep as they are (Whisper's positions)."""
    parameters = dict(model.named_parameters())
    return [path for path in lacking(model) if parameters[path].requires_grad]


def weights_like(hidden_states: Tensor) -> Tensor:
    """Random, so that no gradient vanishes behind a norm."""
    return torch.randn(hidden_states.shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ENCODERS)
def test_a_sample_gets_in_a_batch_what_the_stock_encoder_makes_of_it_alone(name: str, attention: str) -> None:
    row = ENCODERS[name]
    source = row.make()
    if attention == "eager":
        source.set_attn_implementation("eager")
    model = make_alone(row, source)
    outputs = model(**row.batch())
    assert tuple(outputs.token_mask.sum(1).tolist()) == row.tokens
    ours = [outputs.last_hidden_state[index, outputs.token_mask[index].bool()] for index in range(2)]
    theirs = [row.run_alone(source, index) for index in range(2)]
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.shape == expected.shape and max_difference(mine, expected) < 1e-5
    for tokens in (ours, theirs):
        sum((weights_like(each) * each).sum() for each in tokens).backward()
    assert untrained(model) == []
    if row.model == "WhisperEncoder":
        return  # the short encoder is another one each time: its gradients are not the source's
    expected_gradients = dict(source.named_parameters())
    encoder = model.modality_model(row.modality)
    for path, parameter in encoder.named_parameters():
        if not parameter.requires_grad:
            continue
        expected = expected_gradients[path].grad
        assert max_difference(parameter.grad, expected) <= 1e-5 * max(1.0, float(expected.abs().max())), path


@of_each_kind
def test_it_takes_its_place_in_a_fusion_model(name: str, tmp_path: Path) -> None:
    row = ENCODERS[name]
    model, inputs = make_beside(row), row.batch()
    has = {f"has_{row.modality}": torch.tensor([True, False])}
    outputs = model(**inputs, **has, clips_features=CLIPS)
    first = model(**{key: value[:1] for key, value in inputs.items()}, clips_features=CLIPS[:1])
    second = model(clips_features=CLIPS[1:])
    for index, alone in enumerate((first, second)):
        assert max_difference(outputs.pooler_output[index], alone.pooler_output[0]) < 1e-5

    # Every parameter has a gradient, whatever a batch has, so that processes of one training agree.
    for given in ({**inputs, **has}, {}):
        model.zero_grad()
        model.train()(**given, clips_features=CLIPS).pooler_output.square().sum().backward()
        assert untrained(model) == []
    model.eval()

    half = copy.deepcopy(model).bfloat16()(**inputs, **has, clips_features=CLIPS)
    assert (
        half.pooler_output.dtype == torch.bfloat16 and max_difference(half.pooler_output, outputs.pooler_output) < 0.2
    )

    model.save_pretrained(tmp_path)
    again, info = HfLamFusionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(again(**inputs, **has, clips_features=CLIPS).pooler_output, outputs.pooler_output)


# --- layers ----------------------------------------------------------------------------------------------------------


@of_each_kind
def test_its_own_layers_can_be_cut_or_that_is_refused(name: str) -> None:
    row = ENCODERS[name]
    source = row.make()
    if not row.cut:
        with pytest.raises(
            ValueError, match=rf"own_layers\['{row.modality}'\]=1: the layers of {row.model} cannot be"
        ):
            HfLamFusionModel.from_modality_pretrained(
                **{row.modality: source}, baseline="late", own_layers={row.modality: 1}
            )
        return
    model = HfLamFusionModel.from_modality_pretrained(
        **{row.modality: source}, baseline="late", own_layers={row.modality: 1}
    )
    encoder = model.modality_model(row.modality)
    # The last layer of the source is left out of it by hand.
    layers = find_layers(source) or source.encoder.layer
    handle = layers[-1].register_forward_hook(keep_input, with_kwargs=True)
    expected = row.run_alone(source, 0) if row.model != "WhisperEncoder" else None
    handle.remove()
    found = model(**row.batch())
    ours = found.last_hidden_state[0, found.token_mask[0].bool()]
    assert len(find_layers(encoder) or encoder.encoder.layer) == 1 and encoder.config.num_hidden_layers == 1
    if expected is not None:
        assert max_difference(ours, expected) < 1e-5


def keep_input(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """What a layer got, in the place of what it gives."""
    hidden_states = args[0] if args else kwargs["hidden_states"]
    return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states


@of_each_kind
def test_fusion_layers_start_from_its_layers_or_that_is_refused(name: str) -> None:
    row = ENCODERS[name]
    source = row.make()
    options = {"fusion_from": row.modality, "own_layers": {row.modality: 1 if row.cut else 2}, "num_hidden_layers": 1}
    if not row.taken:
        with pytest.raises(ValueError, match=rf"fusion_from='{row.modality}'"):
            HfLamFusionModel.from_modality_pretrained(**{row.modality: source}, **options)
        return
    model = HfLamFusionModel.from_modality_pretrained(**{row.modality: source}, **options)
    outputs = model(**row.batch())
    for index in range(2):
        ours = outputs.last_hidden_state[index, outputs.token_mask[index].bool()]
        if row.model != "CLIPVisionModel":  # whose last norm only the pooled output goes through
            assert max_difference(ours, row.run_alone(source, index)) < 1e-5


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [key for key, row in ENCODERS.items() if row.size])
def test_images_of_another_size(name: str) -> None:
    row = ENCODERS[name]
    source = row.make()
    model = make_alone(row, source)
    values = torch.randn(2, 3, *row.size, generator=torch.Generator().manual_seed(5))  # type: ignore[misc]
    arguments = inspect.signature(type(source).forward).parameters
    options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in arguments else {}
    outputs = model(pixel_values=values)
    assert outputs.last_hidden_state.shape[1] != row.tokens[0]
    assert max_difference(outputs.last_hidden_state, source(values, **options).last_hidden_state) < 1e-5
    with pytest.raises(ValueError, match=r"pixel_values of the image has 3 × 16 pixels: less than one patch.*4 × 4"):
        model(pixel_values=torch.zeros(2, 3, 3, 16))


def test_what_an_encoder_does_not_take_is_refused_by_name() -> None:
    def model_of(name: str) -> Any:
        return make_alone(ENCODERS[name], ENCODERS[name].make())

    cases: list[tuple[str, dict[str, Tensor], str]] = [
        (
            "aimv2_vision",
            {"pixel_values": torch.zeros(2, 3, 24, 24)},
            r"\(batch, 3, 16, 16\).*Aimv2VisionModel.*24, 24",
        ),
        ("radio", {"pixel_values": torch.zeros(2, 3, 18, 16)}, "18 × 16 pixels: no whole number of patches.*4 × 4"),
        ("vit", {"pixel_values": torch.zeros(2, 1, 16, 16)}, r"\(batch, 3, any number, any number\)"),
        (
            "vit",
            {"pixel_values": torch.zeros(2, 3, 16, 16), "image_mask": torch.ones(2, 16)},
            "takes no mask.*has_image",
        ),
        (
            "vit",
            {"pixel_values": torch.zeros(2, 3, 16, 16), "spatial_shapes": torch.ones(2, 2)},
            "spatial_shapes was given.*ViTModel takes images",
        ),
        (
            "siglip2_vision",
            {"pixel_values": torch.zeros(2, 15, 48)},
            "15 patches, which are no square.*spatial_shapes",
        ),
        (
            "siglip2_vision",
            {"pixel_values": torch.zeros(2, 16, 48), "spatial_shapes": torch.ones(2, 3, dtype=torch.long)},
            r"spatial_shapes must be of shape \(2, 2\)",
        ),
        ("videomae", {"video_values": torch.zeros(2, 8, 3, 16, 16)}, r"\(batch, 4, 3, 16, 16\)"),
        ("whisper", {"audio_values": torch.zeros(2, 16, 42)}, r"\(batch, 16, at most 40\).*WhisperEncoder.*42"),
        (
            "whisper",
            {"audio_values": torch.zeros(2, 16, 20), "audio_mask": torch.ones(2, 16)},
            r"audio_mask.*\(2, 20\)",
        ),
        ("wav2vec2", {"audio_values": torch.zeros(2, 16, 42)}, r"\(batch, any number\)"),
        (
            "wav2vec2",
            {"audio_values": torch.zeros(2, 400), "audio_mask": torch.ones(2, 19)},
            r"audio_mask.*\(2, 400\)",
        ),
        ("ast", {"audio_values": torch.zeros(2, 32, 16), "audio_mask": torch.ones(2, 32)}, "takes no mask.*has_audio"),
    ]
    for name, inputs, message in cases:
        with pytest.raises(ValueError, match=message):
            model_of(name)(**inputs)


def test_videos_of_any_length_where_positions_turn() -> None:
    row = ENCODERS["vjepa2"]
    source = row.make()
    model = make_alone(row, source)
    for frames in (1, 2, 8):
        values = torch.randn(2, frames, 3, 16, 16)
        expected = source(values, skip_predictor=True).last_hidden_state
        assert max_difference(model(video_values=values).last_hidden_state, expected) < 1e-5


def test_patches_without_a_shape_are_a_square() -> None:
    row = ENCODERS["siglip2_vision"]
    model = make_alone(row, row.make())
    values = torch.randn(2, 16, 48)
    shapes = torch.tensor([[4, 4]] * 2)
    expected = model(pixel_values=values, spatial_shapes=shapes, image_mask=torch.ones(2, 16, dtype=torch.long))
    assert torch.equal(model(pixel_values=values).pooler_output, expected.pooler_output)
    # The shapes alone say which patches there are.
    shapes = torch.tensor([[4, 4], [2, 5]])
    assert model(pixel_values=values, spatial_shapes=shapes).token_mask.sum(1).tolist() == [16, 10]


# --- sounds ----------------------------------------------------------------------------------------------------------

SOUNDS = ("whisper", "wav2vec2", "wav2vec2_group", "hubert_group", "data2vec_audio", "wavlm", "wav2vec2_bert")


@pytest.mark.parametrize("name", SOUNDS)
def test_where_padding_stands_changes_nothing(name: str) -> None:
    row = ENCODERS[name]
    model = make_alone(row, row.make())
    inputs = row.batch()
    dim = 2 if name == "whisper" else 1
    length = inputs["audio_mask"][1].sum()
    by = inputs["audio_mask"].shape[1] - int(length)
    # The second sound is padded on the left.
    values, mask = inputs["audio_values"].clone(), inputs["audio_mask"].clone()
    values[1], mask[1] = values[1].roll(by, dim - 1), mask[1].roll(by, 0)
    expected, found = model(**inputs), model(audio_values=values, audio_mask=mask)
    assert torch.equal(found.token_mask, expected.token_mask)
    assert max_difference(found.pooler_output, expected.pooler_output) < 1e-5
    # And it is padded further.
    further = (0, 0, 0, 5) if name == "wav2vec2_bert" else (0, 5)
    values = torch.nn.functional.pad(inputs["audio_values"], further, value=3.0)
    longer = model(audio_values=values, audio_mask=torch.nn.functional.pad(inputs["audio_mask"], (0, 5)))
    assert max_difference(longer.pooler_output, expected.pooler_output) < 1e-5


@pytest.mark.parametrize("name", ["wav2vec2", "hubert_group", "data2vec_audio", "whisper"])
def test_the_shortest_sounds(name: str) -> None:
    row = ENCODERS[name]
    model = make_alone(row, row.make())
    values = torch.randn((2, 16, 9) if name == "whisper" else (2, 300), generator=torch.Generator().manual_seed(6))
    mask = torch.zeros(2, values.shape[-1], dtype=torch.long)
    mask[0], mask[1, :1] = 1, 1
    outputs = model(audio_values=values, audio_mask=mask)
    alone = model(audio_values=values[1:, ..., :1])
    assert outputs.token_mask[1].sum() == 1 and alone.last_hidden_state.shape[1] == 1
    assert max_difference(outputs.last_hidden_state[1, :1], alone.last_hidden_state[0]) < 1e-5


def test_a_window_without_a_mask_is_whispers_own() -> None:
    row = ENCODERS["whisper"]
    source = row.make()
    values = torch.randn(2, 16, 40)
    for training in (False, True):
        model = make_alone(row, source.train(training)).train(training)
        assert torch.equal(model(audio_values=values).last_hidden_state, source(values).last_hidden_state)


NO_DROPOUT = {f"{name}_dropout": 0.0 for name in ("hidden", "attention", "activation", "feat_proj", "conformer_conv")}


def test_convolutions_are_checkpointed_and_frozen_as_those_of_the_encoder() -> None:
    row = ENCODERS["wav2vec2_group"]
    model, inputs = make_alone(row, row.make(**NO_DROPOUT)), row.batch()
    encoder = model.modality_model("audio")
    gradients = []
    for reentrant in (None, False, True):
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        model.train()(**inputs).pooler_output.square().sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert max_difference(gradients[0], gradients[1]) < 1e-6 and max_difference(gradients[0], gradients[2]) < 1e-6
    encoder.freeze_feature_encoder()
    assert not any(parameter.requires_grad for parameter in encoder.feature_extractor.parameters())
    model.zero_grad()
    model(**inputs).pooler_output.square().sum().backward()
    assert untrained(model) == []


@pytest.mark.parametrize("name", ["wav2vec2", "data2vec_audio", "wav2vec2_bert"])
def test_nothing_is_hidden_in_training(name: str) -> None:
    """SpecAugment needs a vector that is trained only where it is drawn."""
    row = ENCODERS[name]
    source = row.make(mask_time_prob=0.9, mask_time_length=2, **NO_DROPOUT)
    model = make_alone(row, source)
    inputs = row.batch()
    expected = model(**inputs).last_hidden_state
    assert torch.equal(model.train()(**inputs).last_hidden_state, expected)
    assert [path for path, _ in model.named_parameters() if "masked_spec_embed" in path] == []


# --- what is written of them -----------------------------------------------------------------------------------------


def test_the_page_is_what_the_table_says() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == write_page(), "renew docs/fusion.md: PYTHONPATH=tests python -m fusion.write_table"


# The code is the same in every folder, and imported once: the folders take their turns in one place.
LOADER = """
import os
import shutil
import sys
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
root = sys.argv[1]
for name, inputs, expected in torch.load(f"{root}/cases.pt"):
    place = f"{root}/now"
    shutil.rmtree(place, ignore_errors=True)
    os.rename(f"{root}/{name}", place)
    model, info = transformers.AutoModel.from_pretrained(place, trust_remote_code=True, output_loading_info=True)
    assert type(model).__module__.startswith("transformers_modules."), (name, type(model))
    assert not any(info.values()), (name, info)
    with torch.no_grad():
        found = model(**inputs).pooler_output
    assert (found - expected).abs().max() <= 1e-5, name
    print("loaded", name)
assert not [name for name, module in sys.modules.items() if module and name.partition(".")[0] == "hf_lam"]
"""


@pytest.mark.slow
def test_every_encoder_loads_without_hf_lam(tmp_path: Path) -> None:
    cases = []
    for name, row in ENCODERS.items():
        model, inputs = make_beside(row), {**row.batch(), "clips_features": CLIPS}
        with torch.no_grad():
            cases.append((name, inputs, model(**inputs).pooler_output))
        model.save_pretrained(tmp_path / name)
    torch.save(cases, tmp_path / "cases.pt")
    printed = run_code(LOADER, tmp_path, hf_lam=False, environment={"HF_MODULES_CACHE": str(tmp_path / "cache")})
    assert printed.count("loaded") == len(cases)


class _ByName(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model(**inputs).last_hidden_state


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whisper", "wav2vec2_group", "data2vec_audio", "wav2vec2_bert"])
def test_sounds_of_any_length_are_exported_once(name: str) -> None:
    row = ENCODERS[name]
    model = make_alone(row, row.make())
    inputs, time = row.batch(), 2 if name == "whisper" else 1
    auto = torch.export.Dim.AUTO
    shapes = {"audio_values": {0: auto, time: auto}, "audio_mask": {0: auto, 1: auto}}
    program = torch.export.export(_ByName(model), (inputs,), dynamic_shapes={"inputs": shapes})
    values, mask = (torch.cat([value, value[:1]]) for value in (inputs["audio_values"], inputs["audio_mask"]))
    values = nn.functional.pad(values, (0, 0, 0, 6) if name == "wav2vec2_bert" else (0, 6))
    others = {"audio_values": values, "audio_mask": nn.functional.pad(mask, (0, 6), value=1)}
    assert max_difference(program.module()(others), model(**others).last_hidden_state) < 1e-5


# One of each kind of input and of attention.
PROGRAMS = (
    "modernbert",
    "deberta_v2",
    "siglip2_vision",
    "dinov3_vit",
    "vit",
    "vjepa2",
    "videomae",
    "whisper",
    "wav2vec2",
    "ast",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_exported_and_compiled_once_for_batches_of_any_size(name: str) -> None:
    """With samples that lack the modality, and one of a batch alone."""
    row = ENCODERS[name]
    model = make_beside(row).requires_grad_(False)

    def batch(size: int) -> dict[str, Tensor]:
        places = torch.arange(size)
        inputs = {key: value[places % 2] for key, value in row.batch().items()}
        return {**inputs, f"has_{row.modality}": places % 4 != 3, "clips_features": CLIPS[places % 2]}

    inputs = batch(4)
    shapes = {key: {0: torch.export.Dim.AUTO} for key in inputs}
    run = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False).module()
    for size in (5, 1):
        found = run(**batch(size)).pooler_output
        assert max_difference(found, model(**batch(size)).pooler_output) < 1e-5, size
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for size in (6, 7, 9):
        assert max_difference(compiled(**batch(size)).pooler_output, model(**batch(size)).pooler_output) < 1e-5, size
    assert len(counter.graphs) == 1
