"""Moments and highlights: what the losses are, and what a model finds."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nan

from helpers.fusion_heads import LENGTH, SHORT, head_config, head_inputs, make_head, moment_labels, take
from helpers.outputs import outputs_of
from hf_lam import HfLamFusionConfig, HfLamFusionForMomentRetrieval
from hf_lam.modeling.fusion_features_hf_lam import sinusoidal_positions
from hf_lam.modeling.moment_losses_hf_lam import (
    Matched,
    generalized_iou,
    label_loss,
    match,
    moment_losses,
    saliency_loss,
    span_losses,
    windows_of,
)
from hf_lam.modeling.moment_options_hf_lam import MomentOptions

# --- windows ---------------------------------------------------------------------------------------------------------


def test_a_window_is_half_its_width_around_its_center() -> None:
    windows = windows_of(torch.tensor([[0.5, 1.0], [0.3, 0.2]]))
    torch.testing.assert_close(windows, torch.tensor([[0.0, 1.0], [0.2, 0.4]]))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0.0, 0.2], [0.0, 0.3], 2 / 3),
        ([0.0, 0.2], [0.0, 1.0], 0.2),
        ([0.5, 1.0], [0.0, 0.3], -0.2),  # a fifth of the stretch is covered by neither
        ([0.5, 1.0], [0.0, 0.5], 0.0),  # they touch
        ([0.1, 0.4], [0.1, 0.4], 1.0),
        ([0.2, 0.2], [0.1, 0.4], 0.0),  # no length
    ],
)
def test_generalized_overlap(first: list[float], second: list[float], expected: float) -> None:
    a, b = torch.tensor([first]), torch.tensor([second])
    torch.testing.assert_close(generalized_iou(a, b), torch.tensor([expected]))
    torch.testing.assert_close(generalized_iou(b, a), torch.tensor([expected]))


def test_generalized_overlap_has_a_gradient_everywhere() -> None:
    windows = torch.tensor([[0.2, 0.2], [0.0, 0.1], [0.3, 0.7]], requires_grad=True)
    generalized_iou(windows, torch.tensor([[0.2, 0.2], [0.5, 0.6], [0.3, 0.7]])).sum().backward()
    assert windows.grad is not None and windows.grad.isfinite().all()


# --- matching and losses ---------------------------------------------------------------------------------------------

# Three queries; of the first sample two windows are true, of the second one.
SPANS = torch.tensor([[[0.2, 0.2], [0.7, 0.2], [0.5, 0.9]], [[0.1, 0.1], [0.5, 0.4], [0.9, 0.1]]])
LABELS = torch.tensor([[[0.7, 0.3], [0.2, 0.1]], [[0.5, 0.5], [nan, nan]]])


def test_each_true_window_has_one_query() -> None:
    matched = match(torch.zeros(2, 3, 2), SPANS, LABELS, MomentOptions())
    pairs = sorted(zip(*(x.tolist() for x in matched), strict=True))
    assert pairs == [(0, 0, 1), (0, 1, 0), (1, 1, 0)]


def test_what_is_likelier_to_be_a_window_wins_where_both_fit() -> None:
    spans = torch.full((1, 3, 2), 0.5)
    logits = torch.tensor([[[0.0, 0.0], [5.0, 0.0], [0.0, 0.0]]])
    assert match(logits, spans, torch.tensor([[[0.5, 0.5]]]), MomentOptions()).query.tolist() == [1]
    indifferent = MomentOptions(set_cost_class=0.0)
    assert match(logits, spans, torch.tensor([[[0.5, 0.5]]]), indifferent).query.tolist() == [0]


def test_losses_by_hand() -> None:
    matched = match(torch.zeros(2, 3, 2), SPANS, LABELS, MomentOptions())
    distance, overlap = span_losses(SPANS, LABELS, matched)
    torch.testing.assert_close(distance, torch.tensor((0.1 + 0 + 0.1 + 0 + 0.1 + 0) / 6))
    torch.testing.assert_close(overlap, torch.tensor((1 / 3 + 1 / 2 + 1 / 5) / 3))
    # All logits are equal: every query costs log 2, and the three without a window a tenth of it.
    loss = label_loss(torch.zeros(2, 3, 2), matched, 0.1)
    torch.testing.assert_close(loss, torch.tensor(2.0).log() * (3 + 0.1 * 3) / 6)


def test_a_batch_without_windows_has_a_loss_and_a_gradient() -> None:
    logits, spans = torch.zeros(1, 3, 2, requires_grad=True), torch.rand(1, 3, 2, requires_grad=True)
    labels = torch.full((1, 2, 2), nan)
    losses = moment_losses([(logits, spans)], labels, torch.zeros(1, 4), None, MomentOptions())
    assert losses["loss_span"] == losses["loss_giou"] == 0
    losses["loss"].backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        # The best clip (label 9) is 0.4 above the worst (label 1); of the pairs with others, one in four misses 0.1.
        ([0.5, 0.1, 0.0, -0.3], [9.0, 1.0, -1.0, -1.0], 0.0 + 0.1 / 4),
        ([0.0, 0.0, 0.0, 0.0], [9.0, 1.0, -1.0, -1.0], 0.2 + 0.2),
        ([0.0, 0.5, 0.0, 0.0], [9.0, 1.0, -1.0, -1.0], 0.7 + (0.2 + 0.2 + 0 + 0) / 4),
        ([0.0, 0.3, 9.0, 9.0], [9.0, 1.0, nan, nan], 0.5 + 0.5),  # no other clip: the first twice
        ([0.0, 0.0, 0.0, 0.0], [-1.0, -1.0, -1.0, -1.0], 0.0),  # nothing relevant
    ],
)
def test_loss_of_scores(scores: list[float], labels: list[float], expected: float) -> None:
    found = saliency_loss(torch.tensor([scores]), torch.tensor([labels]), 0.2)
    torch.testing.assert_close(found, torch.tensor(expected))
    # A sample of which nobody said anything does not count.
    both = saliency_loss(torch.tensor([scores, scores]), torch.tensor([labels, [nan] * 4]), 0.2)
    torch.testing.assert_close(both, torch.tensor(expected))


def test_the_loss_is_the_weighted_sum_of_all_layers() -> None:
    options = MomentOptions()
    layers = [(torch.randn(2, 3, 2), torch.rand(2, 3, 2)) for _ in range(2)]
    scores, labels = torch.randn(2, 4), torch.tensor([[3.0, 1, -1, -1], [-1, 2, -1, nan]])
    losses = moment_losses(layers, LABELS, scores, labels, options)
    expected = losses["loss_saliency"]
    for suffix in ("", "_0"):
        expected = expected + 10 * losses[f"loss_span{suffix}"] + losses[f"loss_giou{suffix}"]
        expected = expected + 4 * losses[f"loss_label{suffix}"]
    torch.testing.assert_close(losses["loss"], expected)
    alone = moment_losses(layers[1:], LABELS, scores, None, options)
    assert set(alone) == {"loss", "loss_span", "loss_giou", "loss_label"}
    torch.testing.assert_close(alone["loss_span"], losses["loss_span"])


def test_without_scipy_the_loss_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        match(torch.zeros(2, 3, 2), SPANS, LABELS, MomentOptions())


# --- the model -------------------------------------------------------------------------------------------------------


def test_transforms_that_hide_values_are_refused_by_the_loss_of_windows() -> None:
    spans, logits, labels = torch.rand(1, 4, 2), torch.randn(1, 4, 2), torch.rand(1, 1, 2)
    with pytest.raises(NotImplementedError, match=r"by their values.*use backward\(\)"):
        torch.func.grad(lambda x: match(logits, x, labels, MomentOptions()).query.sum() + x.sum())(spans)


def test_a_sample_alone_is_as_in_a_batch() -> None:
    model, inputs = make_head("moments", "lam_half"), head_inputs()
    together, alone = outputs_of(model, inputs), outputs_of(model, take(inputs, 1, SHORT))
    assert (together["pred_spans"][1] - alone["pred_spans"][0]).abs().max() < 1e-5
    assert (together["saliency_scores"][1, :SHORT] - alone["saliency_scores"][0]).abs().max() < 1e-5


def test_the_places_of_clips_matter_to_the_decoder_alone_where_features_have_none() -> None:
    features = {"clips": {"size": 5, "positions": None}, "sound": {"size": 7, "positions": None}}
    model, inputs = make_head("moments", features=features), head_inputs()
    turned = {k: v.flip(1) if k.startswith(("clips", "sound")) and v.dim() == 3 else v for k, v in inputs.items()}
    one = {key: value[:1] for key, value in inputs.items()}
    other = {key: value[:1] for key, value in turned.items()}
    first, second = outputs_of(model, one), outputs_of(model, other)
    torch.testing.assert_close(first["saliency_scores"], second["saliency_scores"].flip(1))
    assert (first["pred_spans"] - second["pred_spans"]).abs().max() > 1e-4


def test_a_clip_has_one_place_in_all_modalities() -> None:
    """Also where one of them lacks a clip before it; class tokens are no clips."""
    features = {"clips": {"size": 5, "class_tokens": 1}, "sound": {"size": 7, "class_tokens": 1}}
    model, inputs = make_head("moments", features=features), head_inputs()
    inputs["sound_mask"][0, 2] = 0
    outputs = model.fusion(**inputs, output_modality_states=True)
    of_text, *of_streams = model._clip_positions(outputs, model.in_step(outputs)[1]).split(LENGTH, dim=1)
    expected = sinusoidal_positions(torch.tensor([0, 0, 1, 2, 3, 4]), 32)
    assert not of_text.any()
    for places in of_streams:
        torch.testing.assert_close(places[0], expected)


def test_queries_start_apart() -> None:
    torch.manual_seed(0)
    model = HfLamFusionForMomentRetrieval(head_config()).eval()
    assert model.decoder.queries.weight.std() > 0.8
    spans = outputs_of(model, head_inputs())["pred_spans"]
    assert (spans[:, 0] - spans[:, 1]).abs().max() > 1e-4


@pytest.mark.slow
def test_it_learns_to_find_windows_and_to_score_clips() -> None:
    model, inputs, labels = make_head("moments"), head_inputs(), moment_labels()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    torch.manual_seed(0)
    model.train()
    for _ in range(150):
        optimizer.zero_grad()
        model(**inputs, **labels).loss.backward()
        optimizer.step()
    found = model.eval().post_process(model(**inputs), top_k=1)
    for sample, (moments, scores) in enumerate(found):
        true = windows_of(labels["span_labels"][sample]) * 2.0 * len(scores)
        window = torch.tensor([moments[0].start, moments[0].end])
        assert generalized_iou(window, true[~true.isnan().any(1)]).max() > 0.7
        assert int(scores.argmax()) == 2


def test_every_layer_has_a_loss_unless_it_is_said_otherwise() -> None:
    inputs, labels = head_inputs(), moment_labels()
    names = set(make_head("moments")(**inputs, **labels).loss_dict)
    assert {"loss_span", "loss_span_0", "loss_giou_0", "loss_label_0", "loss_saliency"} <= names
    last = make_head("moments", moments={"aux_loss": False})(**inputs, **labels).loss_dict
    assert set(last) == {"loss_span", "loss_giou", "loss_label", "loss_saliency"}
    assert set(make_head("moments")(**inputs, saliency_labels=labels["saliency_labels"]).loss_dict) == {
        "loss_saliency"
    }


@pytest.mark.parametrize("names", [["span_labels"], ["saliency_labels"], ["span_labels", "saliency_labels"]])
@pytest.mark.parametrize("moments", [{"lw_saliency": 0.0}, {"aux_loss": False}, {"dec_layers": 1}])
def test_every_parameter_has_a_gradient_whatever_labels_there_are(moments: dict[str, Any], names: list[str]) -> None:
    model = make_head("moments", moments=moments)
    labels = moment_labels()
    model(**head_inputs(), **{name: labels[name] for name in names}).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_batch_without_clips_has_a_loss() -> None:
    model, inputs = make_head("moments", combine="concat"), head_inputs()
    query = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    outputs = model(**query, span_labels=torch.full((2, 1, 2), nan), saliency_labels=torch.zeros(2, 0))
    outputs.loss.backward()
    assert outputs.loss_dict["loss_saliency"] == 0 and outputs.loss > 0
    assert all(len(found.saliency) == 0 for found in model.post_process(outputs))


def test_padding_has_no_label() -> None:
    model, inputs, labels = make_head("moments"), head_inputs(), moment_labels()
    expected = model(**inputs, **labels).loss
    labels["saliency_labels"][1, SHORT:] = 9.0
    torch.testing.assert_close(model(**inputs, **labels).loss, expected)


# --- inference -------------------------------------------------------------------------------------------------------


def query_model(**options: Any) -> Any:
    features = {"video": 5, "words": 7}
    return make_head("moments", text_config=None, features=features, label_modalities=["video"], **options)


def test_retrieve_from_one_video() -> None:
    model = query_model(moments={"num_queries": 4, "clip_length": 3.0})
    clips, words = torch.randn(LENGTH, 5), torch.randn(3, 7)
    found = model.retrieve(clips, words, top_k=2)
    assert len(found.moments) == 2 and found.saliency.shape == (LENGTH,)
    assert found.moments[0].score >= found.moments[1].score
    assert all(0 <= moment.start <= moment.end <= 3.0 * LENGTH for moment in found.moments)
    outputs = outputs_of(model, {"video_features": clips[None], "words_features": words[None]})
    best = outputs["logits"][0].softmax(-1)[:, 0].argmax()
    window = windows_of(outputs["pred_spans"][0, best]).clamp(0, 1) * 3.0 * LENGTH
    torch.testing.assert_close(torch.tensor(found.moments[0][:2]), window)
    assert len(model.retrieve(clips, words).moments) == 4
    from_arrays = model.retrieve({"video": clips.numpy()}, {"words_features": words[None]}, top_k=2)
    assert from_arrays.moments == found.moments
    model.train().fusion.eval()
    assert model.retrieve(np.asarray(clips), words, top_k=2).moments == found.moments
    assert model.training and model.decoder.training and not model.fusion.training


def test_retrieve_by_a_text() -> None:
    model = make_head("moments")
    given: list[Any] = []

    def processor(text: list[str], return_tensors: str) -> dict[str, Tensor]:
        given.append((text, return_tensors))
        return {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}

    clips = {"clips": torch.randn(4, 5), "sound": torch.randn(4, 7)}
    found = model.retrieve(clips, "a dog barks", processor=processor)
    assert given == [(["a dog barks"], "pt")]
    assert found.moments == model.retrieve(clips, processor(["a dog barks"], "pt")).moments
    with pytest.raises(ValueError, match="needs the processor"):
        model.retrieve(clips, "a dog barks")
    with pytest.raises(ValueError, match=r"the vectors \['clips', 'sound'\]"):
        model.retrieve(clips["clips"], "a dog barks", processor=processor)
    with pytest.raises(ValueError, match="no such vectors"):
        model.retrieve(clips, torch.randn(2, 7))
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        model.retrieve(clips, "a dog barks", processor=processor, top_k=0)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 3}, "moments may have .*num_queries"),
        ({"num_queries": 0}, "num_queries must be an integer from 1"),
        ({"dec_layers": True}, "dec_layers must be an integer from 1"),
        ({"eos_coef": -1.0}, "eos_coef must be a finite number"),
        ({"span_loss_coef": float("nan")}, "span_loss_coef must be a finite number"),
        ({"dropout": 1.0}, "dropout must be a number from 0 to below 1"),
        ({"clip_length": 0}, "clip_length must be more than 0"),
        ({"aux_loss": 1}, "aux_loss must be True or False"),
        (3, "moments may have"),
    ],
)
def test_options_that_are_none(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HfLamFusionConfig(features={"clips": 5}, hidden_size=8, num_attention_heads=2, moments=options)


def test_something_must_be_left_for_the_query() -> None:
    config = HfLamFusionConfig(features={"clips": 5, "words": 7}, hidden_size=8, num_attention_heads=2)
    with pytest.raises(ValueError, match="none is left for the query"):
        HfLamFusionForMomentRetrieval(config)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"span_labels": torch.zeros(2, 3)}, r"span_labels must be of shape \(2, windows, 2\)"),
        ({"span_labels": torch.zeros(3, 1, 2)}, r"span_labels must be of shape \(2, windows, 2\)"),
        ({"saliency_labels": torch.zeros(2, LENGTH + 1)}, rf"saliency_labels must be of shape \(2, {LENGTH}\)"),
    ],
)
def test_labels_of_another_shape(labels: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_head("moments")(**head_inputs(), **labels)


def test_the_options_are_those_of_the_field() -> None:
    """Moment-DETR's, by its names."""
    options = MomentOptions()
    assert (options.num_queries, options.dec_layers, options.clip_length) == (10, 2, 2.0)
    assert (options.span_loss_coef, options.giou_loss_coef, options.label_loss_coef) == (10, 1, 4)
    assert (options.set_cost_span, options.set_cost_giou, options.set_cost_class) == (10, 1, 4)
    assert (options.eos_coef, options.lw_saliency, options.saliency_margin, options.aux_loss) == (0.1, 1, 0.2, True)


def test_matched_indices_of_nothing_are_empty() -> None:
    found = match(torch.zeros(1, 2, 2), torch.rand(1, 2, 2), torch.full((1, 1, 2), nan), MomentOptions())
    assert isinstance(found, Matched) and all(len(part) == 0 for part in found)
