"""What the fusion model computes: mechanisms on several modalities, missing ones, pooling, and bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hf_lam
from helpers.fusion_models import (
    FUSION_CONFIGS,
    LENGTHS,
    MODALITIES,
    arguments_of,
    lacking,
    make_fusion,
    make_fusion_inputs,
)
from helpers.hosts import make_host, max_difference, perturb_mechanisms
from hf_lam import HfLamFusionModel, LamConfig
from hf_lam.modeling.configuration_hf_lam_fusion import INPUT_NAMES, feature_arguments
from hf_lam.modeling.weight_names_hf_lam import is_mark

# Modalities that are given as vectors in place of their encoders: what holds for one holds for the other.
MIXED = ("text", "video")
by_vectors = pytest.mark.parametrize(
    "vectors", [(), pytest.param(MIXED, marks=pytest.mark.slow), MODALITIES], ids=["encoders", "mixed", "vectors"]
)
CASES = [
    *(pytest.param(name, (), id=name) for name in FUSION_CONFIGS),
    *(pytest.param(name, MIXED, id=f"{name}-mixed") for name in ("directed", "bottleneck", "lam_embeddings")),
    *(pytest.param(name, MODALITIES, id=f"{name}-vectors") for name in ("none", "lam_half")),
]
by_mechanism_and_vectors = pytest.mark.parametrize(("name", "vectors"), CASES)
SUBSETS = [("text",), ("image",), ("video", "audio"), ("text", "video"), MODALITIES]


def without(inputs: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """The inputs of the other modalities."""
    left_out = {key for name in names for key in arguments_of(name)}
    return {key: value for key, value in inputs.items() if key not in left_out}


def sample(inputs: dict[str, Tensor], index: int, text_length: int = 11) -> dict[str, Tensor]:
    """One sample alone, its text cut to its own length."""
    alone = {key: value[index : index + 1] for key, value in inputs.items()}
    return {key: value[:, :text_length] if key in arguments_of("text") else value for key, value in alone.items()}


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def presence(**has: list[int]) -> dict[str, Tensor]:
    return {f"has_{name}": torch.tensor(flags).bool() for name, flags in has.items()}


# --- mechanisms ------------------------------------------------------------------------------------------------------


@by_mechanism_and_vectors
def test_eager_and_fast_attention_agree(name: str, vectors: tuple[str, ...]) -> None:
    """Values and all gradients, in double precision, with padding and missing modalities."""
    model = make_fusion(hf_lam=name, as_features=vectors).double()
    inputs = make_fusion_inputs(as_features=vectors)
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    inputs |= presence(image=[1, 0], text=[0, 1])
    found = []
    for implementation in ("sdpa", "eager"):
        # Of the fusion layers: the encoders' own eager attention has a softmax in single precision.
        model.set_attn_implementation({"": implementation})
        assert model.config._attn_implementation == implementation
        model.zero_grad()
        outputs = model(**inputs, labels=torch.tensor([0, 2]))
        outputs.loss.backward()
        found.append((outputs.logits.detach(), gradients(model)))
    (fast, fast_gradients), (eager, eager_gradients) = found
    assert (fast - eager).abs().max() < 1e-10
    for key, gradient in fast_gradients.items():
        assert (gradient - eager_gradients[key]).abs().max() < 1e-10, key
        assert gradient.abs().max() > 0 or "hf_lam" not in key, key


@pytest.mark.parametrize("mechanism", [(LamConfig(),), (LamConfig(scope="shared", rank=2),), "full", "annealing"])
def test_mechanisms_start_from_the_model_without_them(mechanism: Any) -> None:
    plain = make_fusion()
    model = make_fusion(hf_lam=mechanism, perturb=False)
    model.load_state_dict(plain.state_dict(), strict=False)
    inputs = {**make_fusion_inputs(), **presence(audio=[1, 0])}
    expected = plain(**inputs).logits
    assert max_difference(model(**inputs).logits, expected) < 1e-5
    if mechanism != "full":
        perturb_mechanisms(model)
        assert max_difference(model(**inputs).logits, expected) > 1e-3


# What each head of `fusion_models.DIRECTED` lets see what, by hand: queries, then keys.
EVERY = "TIVA"
SEEN = [
    [{"T": "I"}, {m: m for m in EVERY}, dict.fromkeys(EVERY, EVERY), {"A": "A", "V": "T"}],
    [{"A": "I", "T": "T"}, {"I": "A"}, {"T": "V", "V": "T"}, {"T": "TA", "I": "I", "V": "V", "A": "A"}],
]


def dense_masks(inputs: dict[str, Tensor]) -> list[Tensor]:
    """`(B, H, L, L)` for each layer, True where a query sees a key."""
    is_text = inputs.get("attention_mask", inputs.get("text_mask"))
    assert is_text is not None
    is_token = torch.cat([is_text.bool(), torch.ones(2, 17 + 8 + 34, dtype=torch.bool)], dim=1)
    owner = [letter for letter, length in zip(EVERY, LENGTHS.values(), strict=True) for _ in range(length)]
    tables = [
        torch.tensor([[[key in seen.get(query, "") for key in owner] for query in owner] for seen in layer])
        for layer in SEEN
    ]
    return [table[None] & is_token[:, None, None, :] for table in tables]


@pytest.mark.parametrize("norm_first", [True, False])
@by_vectors
def test_views_are_dense_masks_by_modality(norm_first: bool, vectors: tuple[str, ...]) -> None:
    model = make_fusion(hf_lam="directed", head=False, norm_first=norm_first, as_features=vectors)
    plain = make_fusion(head=False, norm_first=norm_first, as_features=vectors)
    plain.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if not is_mark(name)})
    plain.set_attn_implementation("eager")
    inputs = make_fusion_inputs(as_features=vectors)
    for layer, mask in zip(plain.encoder.layers, dense_masks(inputs), strict=True):
        # Heads without any key give zeros in both.
        layer.attention.register_forward_pre_hook(lambda _, args, mask=mask: (args[0], mask))
    outputs = model(**inputs)
    is_token = outputs.token_mask
    difference = (outputs.last_hidden_state - plain(**inputs).last_hidden_state)[is_token]
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("name", ["lam", "lam_embeddings"])
@by_vectors
def test_columns_of_a_dense_mask_stay_with_their_modality(name: str, vectors: tuple[str, ...]) -> None:
    model = make_fusion(hf_lam=name, head=False, as_features=vectors)
    seen: list[list[int]] = []
    for mask in model.hf_lam.lam:
        mask.register_forward_pre_hook(lambda _, args: seen.append(args[1].tolist()))
        assert mask.max_length == 40 + 17 + 8 + 34
    inputs = make_fusion_inputs(as_features=vectors)
    model(**without(sample(inputs, 1, text_length=7), "image"))
    expected = [*range(7), *range(40 + 17, 40 + 17 + 8 + 34)]
    assert seen == [expected] * 2
    # A column's weights are read by the tokens of this place alone.
    before = model(**without(inputs, "image")).last_hidden_state
    for mask in model.hf_lam.lam:
        for unused in (slice(11, 40), slice(40, 57)):
            mask.out_weight.data[:, unused] = 9.0
            mask.out_bias.data[:, unused] = 9.0
    assert torch.equal(model(**without(inputs, "image")).last_hidden_state, before)
    mask.out_bias.data[:, 57] += 1.0
    assert max_difference(model(**without(inputs, "image")).last_hidden_state, before) > 1e-4


def test_the_bottleneck_averages_over_the_modalities_that_a_sample_has() -> None:
    model = make_fusion(hf_lam="bottleneck", head=False, num_hidden_layers=3)
    inputs = {**make_fusion_inputs(), **presence(image=[1, 0], video=[0, 1])}
    given: list[Tensor] = []
    made: list[Tensor] = []
    first, second = model.encoder.layers[:2]
    first.register_forward_hook(lambda layer, args, output: made.append(output), prepend=True)
    second.register_forward_pre_hook(lambda layer, args: given.append(args[0]))
    hidden_states = model(**inputs, output_hidden_states=True).hidden_states
    updated = made[0][:, -8:].unflatten(1, (4, 2))
    for index, has in enumerate(([0, 1, 3], [0, 2, 3])):
        expected = updated[index, has].mean(0)
        found = given[0][index, -8:].unflatten(0, (4, 2))
        assert max_difference(found, expected.expand(4, -1, -1)) < 1e-6
    assert [state.shape[1] for state in hidden_states] == [70, 70, 70, 70]


# --- samples alone and in batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "vectors", "combine"),
    [
        *((*case.values, "mean") for case in CASES),
        *(("lam_half", vectors, "concat") for vectors in ((), MIXED)),
        ("late", MODALITIES, "mean"),
    ],
)
def test_a_sample_gives_the_same_alone_and_in_a_batch(name: str, vectors: tuple[str, ...], combine: str) -> None:
    """Whatever else the batch holds: longer texts, modalities that the sample does not have, however that is said."""
    pooling = {"image": "mean", "text": "mean"} if combine == "concat" else None
    mechanism = {"num_hidden_layers": 0} if name == "late" else {"hf_lam": name}
    model = make_fusion(combine=combine, pooling=pooling, as_features=vectors, **mechanism)
    inputs = make_fusion_inputs(batch=4, as_features=vectors)
    full = model(**inputs).logits
    assert max_difference(model(**sample(inputs, 1, text_length=7)).logits, full[1:2]) < 1e-5

    flags = presence(image=[1, 0, 0, 1], video=[1, 1, 0, 0], audio=[0, 1, 0, 1], text=[1, 1, 1, 0])
    mixed = model(**inputs, **flags).logits
    has = [("text", "image", "video"), ("text", "video", "audio"), ("text",), ("image", "audio")]
    for index, names in enumerate(has):
        missing = [modality for modality in MODALITIES if modality not in names]
        alone = sample(inputs, index, text_length=7 if index % 2 else 11)
        assert max_difference(model(**without(alone, *missing)).logits, mixed[index : index + 1]) < 1e-5, names
    assert max_difference(mixed, full) > 1e-2  # a model that never looked would pass too

    mask = "text_mask" if "text" in vectors else "attention_mask"
    row = inputs[mask].clone()
    row[3] = 0
    assert max_difference(model(**{**inputs, **flags, mask: row}).logits, mixed) < 1e-6
    del flags["has_text"]
    assert max_difference(model(**{**inputs, mask: row}, **flags).logits, mixed) < 1e-6


@pytest.mark.parametrize("name", ["none", "directed", "bottleneck", "lam_half", "annealing"])
@by_vectors
def test_what_stands_in_for_a_missing_modality_is_not_read(name: str, vectors: tuple[str, ...]) -> None:
    model = make_fusion(hf_lam=name, as_features=vectors)
    inputs = make_fusion_inputs(batch=3, as_features=vectors)
    if "text" not in vectors:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    flags = presence(text=[0, 1, 1], image=[1, 0, 1], video=[1, 1, 0], audio=[1, 1, 0])
    expected = model(**inputs, **flags).logits
    fill = {"text": (0, -100), "image": (1, float("nan")), "video": (2, float("inf")), "audio": (2, -float("nan"))}
    for modality, (index, value) in fill.items():
        inputs[feature_arguments(modality).values if modality in vectors else INPUT_NAMES[modality]][index] = value
    inputs["text_mask" if "text" in vectors else "attention_mask"][0] = 0
    outputs = model(**inputs, **flags, labels=torch.tensor([0, 1, 2]))
    assert max_difference(outputs.logits, expected) < 1e-6
    outputs.loss.backward()
    assert lacking(model) == []


def test_token_types_of_a_missing_text_are_not_read() -> None:
    model = make_fusion(num_hidden_layers=1)
    inputs = {**make_fusion_inputs(), **presence(text=[0, 1])}
    types = torch.zeros_like(inputs["input_ids"])
    expected = model(**inputs, token_type_ids=types).logits
    types[0] = -1
    assert max_difference(model(**inputs, token_type_ids=types).logits, expected) < 1e-6


@pytest.mark.parametrize("name", ["none", "directed", "bottleneck", "lam_half", "late"])
@by_vectors
def test_every_parameter_has_a_gradient_whatever_the_batch_holds(name: str, vectors: tuple[str, ...]) -> None:
    """Data parallel training waits for all of them in every process, and processes may see other modalities."""
    mechanism = {"num_hidden_layers": 0} if name == "late" else {"hf_lam": name}
    model = make_fusion(as_features=vectors, **mechanism)
    inputs = make_fusion_inputs(as_features=vectors)
    for subset in SUBSETS:
        model.zero_grad()
        part = without(inputs, *(set(MODALITIES) - set(subset)))
        model(**part, labels=torch.tensor([0, 2])).loss.backward()
        assert lacking(model) == [], subset
        for modality in MODALITIES:
            own = [p for n, p in model.fusion.named_parameters() if n.startswith(f"{modality}_")]
            assert any(p.grad.abs().max() > 0 for p in own) == (bool(own) and modality in subset), (subset, modality)


@by_vectors
def test_gradients_of_a_batch_are_those_of_its_samples(vectors: tuple[str, ...]) -> None:
    """A missing modality adds nothing to them, whether the batch lacks it or the sample."""
    model = make_fusion(hf_lam="half", as_features=vectors)
    inputs = make_fusion_inputs(as_features=vectors)
    labels = torch.tensor([0, 2])
    model(**inputs, **presence(audio=[1, 0], text=[0, 1]), labels=labels).loss.backward()
    of_batch = gradients(model)
    model.zero_grad()
    (model(**without(sample(inputs, 0), "text"), labels=labels[:1]).loss / 2).backward()
    (model(**without(sample(inputs, 1, 7), "audio"), labels=labels[1:]).loss / 2).backward()
    for name, gradient in gradients(model).items():
        assert max_difference(gradient, of_batch[name]) < 1e-5, name


@by_vectors
def test_encoders_can_be_frozen(vectors: tuple[str, ...]) -> None:
    model = make_fusion(hf_lam="lam_half", as_features=vectors)
    for name in MODALITIES:
        model.fusion.modality_model(name).requires_grad_(False)
    model.fusion.video_projection.requires_grad_(False)
    inputs = make_fusion_inputs(as_features=vectors)
    model(**without(inputs, "video", "audio"), labels=torch.tensor([0, 2])).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    hf_lam.freeze_host(model, train_head=True)
    model.zero_grad()
    model(**without(inputs, "text"), labels=torch.tensor([0, 2])).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


# --- pooling, heads, outputs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", ["mean", "concat"])
@pytest.mark.parametrize("pooling", [None, "mean", {"text": "mean", "audio": "mean"}])
@pytest.mark.parametrize("vectors", [(), ("text", "audio")])
def test_pooling(combine: str, pooling: Any, vectors: tuple[str, ...]) -> None:
    model = make_fusion(head=False, combine=combine, pooling=pooling, as_features=vectors)
    flags = presence(text=[1, 0], image=[0, 1])
    outputs = model(**without(make_fusion_inputs(as_features=vectors), "video"), **flags)
    hidden = outputs.last_hidden_state
    expected = torch.zeros(2, 4, 32)
    # Sample 0 has its whole text, the second none; the image is in the second alone.
    is_mean = (
        dict.fromkeys(MODALITIES, True)
        if pooling == "mean"
        else {"image": False, **dict.fromkeys(("text", "audio"), pooling)}
    )
    expected[0, 0] = hidden[0, :11].mean(0) if is_mean["text"] else hidden[0, 0]
    expected[1, 1] = hidden[1, 11:28].mean(0) if is_mean["image"] else hidden[1, 11]
    expected[:, 3] = hidden[:, 28:].mean(1) if is_mean["audio"] else hidden[:, 28:30].mean(1)
    expected = expected.flatten(1) if combine == "concat" else expected.sum(1) / 2
    assert max_difference(outputs.pooler_output, expected) < 1e-6


def test_mean_pooling_leaves_padding_out() -> None:
    model = make_fusion(("text",), head=False, pooling="mean")
    outputs = model(**make_fusion_inputs(("text",)))
    assert max_difference(outputs.pooler_output[1], outputs.last_hidden_state[1, :7].mean(0)) < 1e-6


@pytest.mark.parametrize(
    ("options", "labels", "loss"),
    [
        ({}, torch.tensor([0, 2]), nn.functional.cross_entropy),
        ({"problem_type": "single_label_classification"}, torch.tensor([1, 2]), nn.functional.cross_entropy),
        ({}, torch.tensor([[0.0, 1, 1], [1, 0, 1]]), nn.functional.binary_cross_entropy_with_logits),
        (
            {"problem_type": "multi_label_classification"},
            torch.tensor([[0.0, 1, 1], [1, 0, 0]]),
            nn.functional.binary_cross_entropy_with_logits,
        ),
        ({"num_labels": 1}, torch.tensor([0.5, -2.0]), lambda x, y: nn.functional.mse_loss(x.squeeze(1), y)),
        ({"problem_type": "regression"}, torch.tensor([[0.5, 1, 2], [0, 1, -3]]), nn.functional.mse_loss),
    ],
)
def test_losses_are_those_of_the_problem(options: dict[str, Any], labels: Tensor, loss: Any) -> None:
    model = make_fusion(("text", "image"), num_hidden_layers=1, **options)
    inputs = make_fusion_inputs(("text", "image"))
    outputs = model(**inputs, labels=labels)
    assert outputs.logits.shape == (2, options.get("num_labels", 3))
    assert max_difference(outputs.loss, loss(outputs.logits, labels)) < 1e-6
    assert model(**inputs).loss is None


@pytest.mark.parametrize("name", ["none", "directed", "lam", "annealing"])
def test_attention_maps_and_hidden_states(name: str) -> None:
    model = make_fusion(hf_lam=name)
    inputs = {**without(make_fusion_inputs(), "video"), **presence(image=[1, 0])}
    if name == "none":  # the fast attention of transformers has no maps
        model.set_attn_implementation("eager")
    plain = model(**inputs)
    assert plain.attentions is None and plain.hidden_states is None
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert max_difference(outputs.logits, plain.logits) < 1e-5
    length = 11 + 17 + 34
    assert [state.shape for state in outputs.hidden_states] == [(2, length, 32)] * 3
    assert [weights.shape for weights in outputs.attentions] == [(2, 4, length, length)] * 2
    base = model.fusion(**inputs, output_hidden_states=True)
    assert torch.equal(base.hidden_states[-1], base.last_hidden_state)
    mask = base.token_mask.bool()
    assert mask.tolist() == [[True] * length, [True] * 7 + [False] * 21 + [True] * 34]
    assert base.modality_ids.tolist() == [0] * 11 + [1] * 17 + [3] * 34
    for weights in outputs.attentions:
        assert weights.masked_select(~mask[:, None, None, :]).abs().max() == 0
        rows = weights.sum(-1)
        # A view may leave a query without keys: its row is 0, or while annealing e^-penalty.
        blind = {"directed": 0.0, "annealing": math.exp(-2.0)}.get(name, 1.0)
        assert (((rows - 1).abs() < 1e-5) | ((rows - blind).abs() < 1e-5)).all()


@pytest.mark.parametrize("head", [True, False])
def test_tuples(head: bool) -> None:
    model = make_fusion(hf_lam="half", head=head)
    inputs = make_fusion_inputs()
    outputs = model(**inputs, output_attentions=True)
    as_tuple = model(**inputs, output_attentions=True, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(outputs)
    assert torch.equal(as_tuple[0], outputs[0])
    model.config.return_dict = False
    as_tuple = model(**inputs)
    assert isinstance(as_tuple, tuple) and max_difference(as_tuple[0], outputs[0]) < 1e-5


# --- bad input -------------------------------------------------------------------------------------------------------

INPUTS = make_fusion_inputs()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_values": INPUTS["video_values"][:1]}, r"different batch sizes: \{.*'video': 1, 'audio': 2\}"),
        ({"video_values": INPUTS["video_values"][:, :3]}, r"video_values of the video.*\(batch, 4, 3, 16, 16\).*3, 3"),
        (
            {"pixel_values": torch.zeros(2, 1, 16, 16)},
            r"pixel_values of the image.*\(batch, 3, .*got \(2, 1, 16, 16\)",
        ),
        ({"pixel_values": torch.zeros(2, 16, 16)}, r"pixel_values of the image.*got \(2, 16, 16\)"),
        ({"audio_values": torch.zeros(2, 31, 16)}, r"audio_values of the audio.*\(batch, 32, 16\).*\(2, 31, 16\)"),
        (
            {"input_ids": torch.ones(2, 41, dtype=torch.long), "attention_mask": None},
            r"input_ids of the text.*at most 40\).*, got \(2, 41\)",
        ),
        ({"input_ids": torch.ones(11, dtype=torch.long), "attention_mask": None}, "batch sizes.*'text': 11"),
        (
            {"attention_mask": torch.ones(2, 9)},
            r"attention_mask is for the text.*\(2, 11\).*, got \(2, 9\)",
        ),
        (
            {"token_type_ids": torch.ones(2, 9)},
            r"token_type_ids is for the text.*\(2, 11\).*, got \(2, 9\)",
        ),
        ({"input_ids": None}, "attention_mask of the text was given without input_ids"),
        (
            {"pixel_values": None, "has_image": torch.ones(2).bool()},
            "has_image of the image was given without pixel_values",
        ),
        ({"has_audio": torch.ones(3).bool()}, r"has_audio must be of shape \(2,\), got \(3,\)"),
        ({"has_audio": torch.ones(2, 1).bool()}, r"has_audio must be of shape \(2,\), got \(2, 1\)"),
        (dict.fromkeys(INPUTS), r"no modality was given.*input_ids \(text\), pixel_values \(image\)"),
        (
            {"attention_mask": INPUTS["attention_mask"] * 0, **presence(image=[1, 0], video=[1, 0], audio=[1, 0])},
            r"samples \[1\] of the batch have no modality at all",
        ),
    ],
)
@pytest.mark.parametrize("head", [True, False])
def test_bad_input_is_refused_by_name(change: dict[str, Any], message: str, head: bool) -> None:
    with pytest.raises(ValueError, match=message):
        make_fusion(head=head, num_hidden_layers=1)(**{**INPUTS, **change})


@pytest.mark.parametrize("head", [True, False])
def test_arguments_that_the_model_does_not_know_are_refused(head: bool) -> None:
    model = make_fusion(head=head, num_hidden_layers=1)
    with pytest.raises(TypeError, match="takes no input_values; input_values is audio_values here"):
        model(**without(INPUTS, "audio"), input_values=INPUTS["audio_values"])
    with pytest.raises(TypeError, match="takes no depth_values"):
        model(**INPUTS, depth_values=INPUTS["pixel_values"])
    with pytest.raises(TypeError, match="has_image must be a tensor, got list"):
        model(**INPUTS, has_image=[True, False])
    with pytest.raises(ValueError, match="the batch has no samples"):
        model(pixel_values=INPUTS["pixel_values"][:0])
    model(**INPUTS, inputs_embeds=None, output_attentions=False)


def test_padding_on_the_left_is_not_pooled() -> None:
    model = make_fusion(("text",), num_hidden_layers=1)
    attention_mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    input_ids = torch.arange(10, 20).view(2, 5)
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
    input_ids[0, :2] = 50
    assert max_difference(model(input_ids=input_ids, attention_mask=attention_mask).logits, logits) < 1e-5
    input_ids[0, 2] = 50
    assert max_difference(model(input_ids=input_ids, attention_mask=attention_mask).logits[:1], logits[:1]) > 1e-2


def test_mechanisms_of_an_encoder_are_not_saved_as_those_of_the_fusion_layers(tmp_path: Path) -> None:
    model = make_fusion(("text", "image"), num_hidden_layers=1)
    hf_lam.inject(model.fusion.text_model, LamConfig())
    with pytest.raises(ValueError, match="mechanisms in an encoder inside of it"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_what_a_checkpoint_behind_the_fusion_layers_leaves_out_is_logged(fusion_log: pytest.LogCaptureFixture) -> None:
    options = {"image": make_host("vit"), "fusion_from": "image", "own_layers": {"image": 1}}
    HfLamFusionModel.from_modality_pretrained(**options, num_hidden_layers=1)
    assert "of the 3 layers of the image checkpoint, the first 1 are its own and the last 1" in fusion_log.text
    fusion_log.clear()
    HfLamFusionModel.from_modality_pretrained(**options, num_hidden_layers=2)
    assert "layers" not in fusion_log.text


def test_inputs_follow_the_dtype_of_the_encoders() -> None:
    model = make_fusion(("image", "audio")).to(torch.bfloat16)
    assert model(pixel_values=INPUTS["pixel_values"]).logits.dtype == torch.bfloat16


def test_a_modality_that_the_model_does_not_have_is_refused_by_name() -> None:
    model = make_fusion(("text", "image"), num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"this model has no video that takes video_values.*\['text', 'image'\]"):
        model(**without(INPUTS, "audio"))
    with pytest.raises(ValueError, match="no audio"):
        model(input_ids=INPUTS["input_ids"], has_audio=torch.ones(2).bool())
    with pytest.raises(ValueError, match="no text that takes attention_mask"):
        make_fusion(("image",))(pixel_values=INPUTS["pixel_values"], attention_mask=torch.ones(2, 5))


def test_texts_are_as_long_as_their_positions_last() -> None:
    """RoBERTa counts positions from two on."""
    model = HfLamFusionModel.from_modality_pretrained(text=make_host("roberta"), num_hidden_layers=1)
    longest = torch.full((1, 38), 5)
    assert model(input_ids=longest).last_hidden_state.isfinite().all()
    with pytest.raises(ValueError, match=r"input_ids of the text must be of shape.*at most 38"):
        model(input_ids=torch.full((1, 39), 5))


# --- half precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["none", "directed", "bottleneck", "lam_half"])
@by_vectors
def test_half_precision(name: str, dtype: torch.dtype, vectors: tuple[str, ...]) -> None:
    model = make_fusion(hf_lam=name, as_features=vectors)
    inputs = {**make_fusion_inputs(as_features=vectors), **presence(image=[1, 0], text=[0, 1])}
    expected = model(**inputs).logits
    model = model.to(dtype)
    # Pixels in another precision are the user's to convert, as everywhere in transformers.
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    outputs = model(**half, labels=torch.tensor([0, 2]))
    assert outputs.logits.dtype == dtype
    assert max_difference(outputs.logits, expected) < (0.3 if dtype is torch.bfloat16 else 0.04)
    outputs.loss.backward()
    assert lacking(model) == []
