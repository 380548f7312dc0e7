"""Attention with and without the learnable mask: the weights are exact, and the pictures show them as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hf_lam
from helpers.fusion_models import make_fusion, make_fusion_inputs
from helpers.hosts import SIZES, make_host, make_inputs, mechanisms, perturb_mechanisms
from hf_lam import LamConfig, LocomtConfig, SttConfig, mechanism_parameters
from hf_lam.visualization import (
    attention_with_and_without_mask,
    learned_masks,
    plot_attention,
    plot_attention_on_image,
)

pytest.importorskip("matplotlib")

HALF = LocomtConfig(views="half")
# Every kind of mask, then views, annealed views and mixtures with synthesised attention.
CASES = [
    *(("bert", name) for name in ("per_layer", "per_head", "embeddings", "shared", "rank", "shared_rank_per_head")),
    *((host, name) for host in ("vit", "videomae") for name in ("per_head", "shared_rank_per_head")),
    *((host, name) for host in ("bert", "vit") for name in ("lam", "shared_lam", "mixture_lam", "mixture_all")),
    ("videomae", "lam"),
]


def with_mask(host, *configs, perturb=True, **config):
    """A tiny host with sharp attention, and masks far from 1."""
    options = {"attn_implementation": "eager", "initializer_range": 0.2, **config}
    model = hf_lam.inject(make_host(host, **options), *configs)
    if perturb:
        perturb_mechanisms(model)
    return model


def inputs_of(host):
    return make_inputs(host, token_types=host == "bert")


def attentions_of(model, inputs):
    with torch.no_grad():
        return model(**inputs, output_attentions=True).attentions


def far_apart(left, right):
    return float((left - right).abs().max()) > 1e-2


@pytest.mark.parametrize(("host", "name"), CASES)
def test_the_first_of_each_pair_is_what_the_model_returns(host, name):
    model, inputs = with_mask(host, *mechanisms(name, host)), inputs_of(host)
    pairs = attention_with_and_without_mask(model, inputs)
    for (with_it, without), expected in zip(pairs, attentions_of(model, inputs), strict=True):
        torch.testing.assert_close(with_it, expected)
        assert with_it.shape == without.shape == expected.shape
        assert with_it.dtype == without.dtype == torch.float32
        assert far_apart(with_it, without)
        if name != "mixture_all":  # a query that sees nothing fades out while views are annealed
            for weights in (with_it, without):
                sums = weights.sum(-1)
                torch.testing.assert_close(sums, (sums > 0.5).float())


def without_masks(model, *others):
    """The same weights in a model that never had masks."""
    config = type(model.config).from_dict({**model.config.to_dict(), "hf_lam": None})
    plain = type(model)._from_config(config, attn_implementation="eager").eval()
    if others:
        hf_lam.inject(plain, *others)
    theirs = model.state_dict()
    assert {name for name in theirs if name not in plain.state_dict()} == {
        name for name in theirs if name.startswith("hf_lam.lam.")
    }
    plain.load_state_dict(theirs, strict=False)
    return plain


@pytest.mark.parametrize(
    ("host", "others"),
    [
        ("bert", ()),
        ("vit", ()),
        ("bert", (HALF,)),
        ("videomae", (HALF,)),
        ("bert", (LocomtConfig(views="half", annealing=True),)),
        ("vit", (SttConfig(),)),
        ("bert", (SttConfig(),)),
        ("vit", (SttConfig(synthesizer="random"), HALF)),
    ],
)
@pytest.mark.parametrize("combine", ["multiply", "add"])
def test_the_second_is_the_same_layer_of_a_model_without_masks(host, others, combine):
    lam = LamConfig(per_head=True, combine=combine)
    model, inputs = with_mask(host, lam, *others, num_hidden_layers=1), inputs_of(host)
    ((with_it, without),) = attention_with_and_without_mask(model, inputs)
    (expected,) = attentions_of(without_masks(model, *others), inputs)
    torch.testing.assert_close(without, expected)
    assert far_apart(with_it, expected)
    if any(isinstance(config, LocomtConfig) and not config.annealing for config in others):
        assert torch.equal(with_it > 0, without > 0)


@pytest.mark.parametrize("combine, neutral", [("multiply", 1.0), ("add", 0.0)])
@pytest.mark.parametrize("others", [(), (HALF,), (SttConfig(),)])
def test_an_untrained_mask_changes_nothing(others, combine, neutral):
    model = with_mask("vit", LamConfig(combine=combine), *others, perturb=False)
    inputs = inputs_of("vit")
    assert all(torch.equal(mask, torch.full_like(mask, neutral)) for mask in learned_masks(model, inputs))
    for with_it, without in attention_with_and_without_mask(model, inputs):
        torch.testing.assert_close(with_it, without, rtol=0, atol=1e-7)


def test_the_mask_is_left_out_of_one_layer_at_a_time():
    """The scores are those of the model with its masks: log of the weights, up to a constant a row."""
    model, inputs = with_mask("vit", LamConfig()), inputs_of("vit")
    masks = learned_masks(model, inputs)
    for (with_it, without), mask in zip(attention_with_and_without_mask(model, inputs), masks, strict=True):
        # Centred scores s − mean(s) follow from the weights without the mask; a row's mean c is the only unknown.
        scores = without.double().log()
        product = with_it.double().log() - scores * mask
        # product = c · (M − 1) + constant of the row: two unknowns, 17 equations.
        design = torch.stack([mask.double(), torch.ones_like(mask.double())], dim=-1).expand(*product.shape, 2)
        solution = torch.linalg.lstsq(design, product.unsqueeze(-1)).solution
        assert float((design @ solution - product.unsqueeze(-1)).abs().max()) < 1e-3


@pytest.mark.parametrize("name", ["lam", "lam_shared_rank", "lam_half"])
def test_fusion(name):
    model, inputs = make_fusion(("text", "image"), hf_lam=name), make_fusion_inputs(("text", "image"))
    model.set_attn_implementation("eager")
    pairs = attention_with_and_without_mask(model, inputs)
    assert len(pairs) == 2
    for (with_it, without), expected in zip(pairs, attentions_of(model, inputs), strict=True):
        torch.testing.assert_close(with_it, expected)
        assert far_apart(with_it, without)
        assert not with_it[1, :, :, 7:11].any(), "padding of the text"
        assert torch.equal(with_it > 0, without > 0)


def test_half_precision_is_no_excuse():
    model, inputs = with_mask("vit", LamConfig()).to(torch.bfloat16), inputs_of("vit")
    inputs = {name: x.bfloat16() for name, x in inputs.items()}
    for with_it, without in attention_with_and_without_mask(model, inputs):
        for weights in (with_it, without):
            assert weights.dtype == torch.float32
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


@pytest.mark.parametrize("implementation", ["sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_any_implementation_gives_the_same(implementation):
    models = [with_mask("bert", LamConfig(), attn_implementation=name) for name in ("eager", implementation)]
    expected, found = (attention_with_and_without_mask(model, inputs_of("bert")) for model in models)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)


def test_looking_leaves_the_model_as_it_was():
    model, inputs = with_mask("vit", LamConfig()), inputs_of("vit")
    expected = model(**inputs)[0]
    hooks = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())
    model.train()
    pairs = attention_with_and_without_mask(model, inputs)
    assert not pairs[0][0].requires_grad
    with pytest.raises(ValueError, match="a grid of"):
        attention_with_and_without_mask(model, {"pixel_values": torch.zeros(1, 3, 8, 8)})
    assert model.training
    assert hooks == sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())
    assert all(parameter.grad is None for parameter in mechanism_parameters(model))
    torch.testing.assert_close(model.eval()(**inputs)[0], expected)


@pytest.mark.parametrize("configs", [(), (HALF,), (SttConfig(variant="dense"),)])
def test_only_models_with_masks_have_something_to_compare(configs):
    model = make_host("vit")
    if configs:
        hf_lam.inject(model, *configs)
    for look in (attention_with_and_without_mask, plot_attention, plot_attention_on_image):
        with pytest.raises(ValueError, match=r"learnable attention masks in one encoder.*has them in 0"):
            look(model, make_inputs("vit"))


# --- pictures --------------------------------------------------------------------------------------------------------


def panels_of(figure):
    return [axes for axes in figure.axes if axes.images and axes.get_label() != "<colorbar>"]


def drawn(panel):
    return torch.from_numpy(np.asarray(panel.images[0].get_array(), dtype=np.float32))


@pytest.mark.parametrize("head", [None, 2])
def test_columns_are_without_with_and_the_difference(head):
    model, inputs = with_mask("bert", LamConfig()), inputs_of("bert")
    pairs = attention_with_and_without_mask(model, inputs)
    names = [f"t{index}" for index in range(7)] + ["pad"] * 4
    figure = plot_attention(model, inputs, sample=1, head=head, layers=[2, 0], tokens=names)
    panels = panels_of(figure)
    assert len(panels) == 6
    assert figure.get_suptitle().startswith(
        f"Attention of BertModel, {'mean over heads' if head is None else 'head 2'}"
    )
    assert [panel.get_ylabel().partition("\n")[0] for panel in panels[::3]] == ["layer 2", "layer 0"]
    assert [panel.get_title() for panel in panels[:3]] == ["without the mask", "with the mask", "difference"]
    for row, layer in enumerate((2, 0)):
        with_it, without = (x[1].mean(0) if head is None else x[1, head] for x in pairs[layer])
        for column, expected in enumerate((without, with_it, with_it - without)):
            torch.testing.assert_close(drawn(panels[3 * row + column]), expected[:7, :7])
    # Names of keys are below the last row.
    assert [label.get_text() for label in panels[4].get_xticklabels()] == names[:7]
    assert not panels[1].get_xticklabels() and not panels[4].get_yticklabels()
    assert [label.get_text() for label in panels[0].get_yticklabels()] == names[:7]


def test_colours_of_attention():
    figure = plot_attention(with_mask("vit", LamConfig()), inputs_of("vit"))
    panels = panels_of(figure)
    columns = [panels[column::3] for column in range(3)]
    weights, differences = ({panel.images[0].norm for panel in part} for part in (columns[0] + columns[1], columns[2]))
    assert len(weights) == len(differences) == 1, "one scale each"
    assert weights.pop().vmin == 0
    norm = differences.pop()
    assert norm(0.0) == pytest.approx(0.5)
    red, blue = (panels[2].images[0].cmap(norm(value)) for value in (norm.vmax, norm.vmin))
    assert red[0] > red[2], "more weight with the mask is red"
    assert blue[2] > blue[0]


def test_one_large_weight_does_not_hide_the_others():
    from hf_lam.visualization._drawing import diverging_colours, weight_colours

    values = torch.full((40, 40), 0.1)
    values[0, 0] = -0.9
    assert diverging_colours([values], 0, 0.98).norm.vmax == pytest.approx(0.1)
    assert diverging_colours([values], 0).norm.vmax == pytest.approx(0.9)
    assert weight_colours([values.abs()], 0.98).norm.vmax == pytest.approx(0.1)
    assert weight_colours([values.abs()]).norm.vmax == pytest.approx(0.9)
    sparse = torch.zeros(40, 40)
    sparse[0, 0] = 0.5
    assert weight_colours([sparse], 0.98).norm.vmax == 0.5


def test_neighbouring_layers_of_deep_models_come_together():
    model, inputs = with_mask("vit", LamConfig(scope="shared", rank=2), num_hidden_layers=5), inputs_of("vit")
    panels = panels_of(plot_attention(model, inputs))
    titles = [panel.get_ylabel().partition("\n")[0] for panel in panels[::3]]
    assert titles == ["layers 0–1", "layers 2–3", "layer 4"]
    pairs = attention_with_and_without_mask(model, inputs)
    expected = (pairs[2][0][0].mean(0) + pairs[3][0][0].mean(0)) / 2
    torch.testing.assert_close(drawn(panels[4]), expected)
    images = panels_of(plot_attention_on_image(model, inputs))[:4]
    assert [panel.get_title() for panel in images] == ["layers 0–1", "layer 2", "layer 3", "layer 4"]


def test_a_mask_that_changes_nothing_says_so():
    model = with_mask("vit", LamConfig(), perturb=False)
    assert "changes next to nothing" in plot_attention(model, inputs_of("vit")).get_supxlabel()


def test_fusion_names_its_modalities_and_leaves_out_what_is_absent():
    model, inputs = make_fusion(("text", "image"), hf_lam="lam_half"), make_fusion_inputs(("text", "image"))
    panels = panels_of(plot_attention(model, inputs, sample=1))
    assert drawn(panels[0]).shape == (24, 24)
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["text (7)", "image (17)"]
    inputs["has_image"] = torch.tensor([True, False])
    assert drawn(panels_of(plot_attention(model, inputs, sample=1))[0]).shape == (7, 7)


@pytest.mark.parametrize("query", [0, 6])
def test_attention_on_the_image(query):
    model, inputs = with_mask("vit", LamConfig()), inputs_of("vit")
    figure = plot_attention_on_image(model, inputs, query=query, sample=1, head=3, layers=[0, 2])
    panels = panels_of(figure)
    pairs = attention_with_and_without_mask(model, inputs)
    assert [panel.get_title() for panel in panels] == ["layer 0", "layer 2", *[""] * 4]
    assert [panels[line].get_ylabel() for line in (2, 4)] == ["with the mask", "without the mask"]
    for place, layer in enumerate((0, 2)):
        assert drawn(panels[place]).shape == (16, 16, 3), "the image in its colours"
        assert len(panels[place].patches) == bool(query), "a patch that looks has a frame"
        for side in (0, 1):
            expected = pairs[layer][side][1, 3, query, 1:].reshape(4, 4)
            torch.testing.assert_close(drawn(panels[2 + 2 * side + place]), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": 2}, "sample must be from 0 to 1"),
        ({"head": SIZES["num_attention_heads"]}, "head must be from 0 to 3, got 4"),
        ({"layers": [3]}, r"layers must be numbers from 0 to 2, at least one, got \[3\]"),
        ({"layers": [-1]}, "layers must be numbers from 0 to 2"),
        ({"layers": []}, "at least one"),
    ],
)
def test_bad_choices_are_named(options, message):
    model, inputs = with_mask("vit", LamConfig()), inputs_of("vit")
    for plot in (plot_attention, plot_attention_on_image):
        with pytest.raises(ValueError, match=message):
            plot(model, inputs, **options)


def test_other_bad_choices_are_named():
    model, inputs = with_mask("vit", LamConfig()), inputs_of("vit")
    with pytest.raises(ValueError, match="all 17 tokens of the sequence, got 1"):
        plot_attention(model, inputs, tokens=["a"])
    with pytest.raises(ValueError, match="query must be a token from 0 to 16, got 17"):
        plot_attention_on_image(model, inputs, query=17)
    with pytest.raises(ValueError, match="use plot_attention"):
        plot_attention_on_image(with_mask("videomae", LamConfig(rank=2)), inputs_of("videomae"))
