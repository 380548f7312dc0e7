"""Pictures of masks and views: what they show, that the model is left alone, and the errors."""

import sys

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

import hf_lam
from hf_lam import LamConfig, LocomtConfig
from hf_lam.visualization import learned_masks, plot_mask_on_image, plot_masks, plot_view_blocks, plot_views

pytest.importorskip("matplotlib")

LAYERS, HEADS, TOKENS = 3, 2, 17


@pytest.fixture
def vit():
    def make(**options):
        torch.manual_seed(0)
        config = ViTConfig(
            image_size=8,
            patch_size=2,
            hidden_size=16,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=16,
            num_labels=2,
        )
        return hf_lam.convert(ViTForImageClassification(config), LamConfig(init="normal", **options))

    return make


@pytest.fixture
def images():
    return {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}


def panels_of(figure):
    return [axes for axes in figure.axes if axes.images and axes.get_label() != "<colorbar>"]


def drawn(panel):
    return torch.from_numpy(np.asarray(panel.images[0].get_array(), dtype=np.float32))


@pytest.mark.parametrize("source", ["layer_input", "embeddings"])
def test_one_panel_a_layer_shows_the_mask_of_that_layer(vit, images, source):
    model = vit(source=source)
    embeddings = model.vit(**images, output_hidden_states=True).hidden_states[0]
    figure = plot_masks(model, images, sample=1)
    panels = panels_of(figure)
    assert [panel.get_title() for panel in panels] == [f"layer {index}" for index in range(LAYERS)]
    assert all(drawn(panel).shape == (TOKENS, TOKENS) for panel in panels)
    if source == "embeddings":
        for index, panel in enumerate(panels):
            expected = model.vit.hf_lam("mask", embeddings, index)[1, 0]
            torch.testing.assert_close(drawn(panel), expected.detach())


def test_a_shared_mask_is_one_panel(vit, images):
    panels = panels_of(plot_masks(vit(scope="shared"), images))
    assert [panel.get_title() for panel in panels] == ["all layers"]


def test_heads_are_shown_one_by_one_or_as_their_mean(vit, images):
    model = vit(per_head=True, rank=3)
    first_mask = learned_masks(model, images)[0]
    assert first_mask.shape == (2, HEADS, TOKENS, TOKENS)
    torch.testing.assert_close(drawn(panels_of(plot_masks(model, images))[0]), first_mask[0].mean(0))
    torch.testing.assert_close(drawn(panels_of(plot_masks(model, images, head=1))[0]), first_mask[0, 1])


def test_colours_are_centred_at_one(vit, images):
    figure = plot_masks(vit(), images)
    norms = {panel.images[0].norm for panel in panels_of(figure)}
    assert len(norms) == 1, "one scale for all layers"
    assert norms.pop()(1.0) == pytest.approx(0.5)


def test_an_untrained_mask_is_white(images):
    config = ViTConfig(image_size=8, patch_size=2, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = hf_lam.inject(ViTForImageClassification(config), LamConfig())
    image = panels_of(plot_masks(model, images))[0].images[0]
    assert np.allclose(image.norm(image.get_array()), 0.5)


def test_padding_is_cut_off_and_tokens_are_named():
    config = RobertaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = hf_lam.inject(RobertaModel(config), LamConfig(init="normal"))
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [5, 6, 1, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }
    panel = panels_of(plot_masks(model, inputs, sample=1, tokens=["a", "b", "<pad>", "<pad>"]))[0]
    assert drawn(panel).shape == (2, 2)
    assert [label.get_text() for label in panel.get_xticklabels()] == ["a", "b"]
    with pytest.raises(ValueError, match="all 4 tokens"):
        plot_masks(model, inputs, tokens=["a", "b"])


def test_the_model_is_left_as_it_was(vit, images):
    model = vit().train()
    model.vit.layernorm.eval()
    plot_masks(model, images)
    assert model.training
    assert not model.vit.layernorm.training
    assert not model.vit.hf_lam._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="image size"):
        plot_masks(model, {"pixel_values": torch.zeros(1, 3, 16, 16)})
    assert not model.vit.hf_lam._forward_hooks
    assert model.training


def test_masks_on_the_image(vit, images):
    model = vit()
    figure = plot_mask_on_image(model, images, query=0)
    titles = [panel.get_title() for panel in panels_of(figure)]
    assert titles == ["input", *(f"layer {index}" for index in range(LAYERS))]
    assert all(panel.images[0].get_array().shape[:2] == (8, 8) for panel in panels_of(figure))
    with pytest.raises(ValueError, match="query must be a token from 0 to 16, got 17"):
        plot_mask_on_image(model, images, query=17)


def test_text_has_no_patches():
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = hf_lam.inject(BertModel(config), LamConfig(max_length=8))
    inputs = {"input_ids": torch.tensor([[5, 6]]), "pixel_values": torch.zeros(1, 3, 8, 8)}
    with pytest.raises(ValueError, match="use plot_masks"):
        plot_mask_on_image(_Only(model, "input_ids"), inputs)


class _Only(torch.nn.Module):
    """A model around a model that takes only some of the inputs."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name, self.config = model, name, model.config

    def forward(self, **inputs):
        return self.model(inputs[self.name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": 2}, "sample must be from 0 to 1"),
        ({"sample": -1}, "sample must be from 0 to 1"),
        ({"head": 0}, "the same for all heads"),
    ],
)
def test_bad_choices_are_named(vit, images, options, message):
    with pytest.raises(ValueError, match=message):
        plot_masks(vit(), images, **options)


def test_a_head_that_does_not_exist(vit, images):
    with pytest.raises(ValueError, match="head must be from 0 to 1, got 2"):
        plot_masks(vit(per_head=True), images, head=2)


def test_a_model_without_masks(images):
    with pytest.raises(ValueError, match=r"has them in 0\. Use hf_lam.convert or hf_lam.inject"):
        plot_masks(BertModel(BertConfig(vocab_size=30, hidden_size=12, num_hidden_layers=1)), images)


def test_without_matplotlib_the_error_says_what_to_install(vit, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "hf-lam\[viz\]"'):
        plot_masks(vit(), images)


# --- Views -----------------------------------------------------------------------------------------------------------

GLOBAL = [["g", {"length": 1, "global": True}], ["a", 2], ["b", 3]]
SPANS = [["a", 2], ["b", 3]]


def legend_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def colour_names(figure):
    """The legend's entry for every cell of the only panel."""
    (panel,) = panels_of(figure)
    (legend,) = figure.legends
    colours = [patch.get_facecolor() for patch in legend.get_patches()]
    names = dict(zip(colours, legend_of(figure), strict=True))
    image = panel.images[0]
    colours = image.cmap(image.norm(image.get_array()))
    return [[names[tuple(colour)] for colour in row] for row in colours]


def test_every_head_has_the_colour_of_its_view():
    table = [["self", "a>b", "self:a"], ["self", "cross:a-b", "a>b"]]
    figure = plot_views(LocomtConfig(segments=SPANS, views=table))
    assert legend_of(figure) == ["self", "a>b", "self:a", "cross:a-b"]
    assert colour_names(figure) == table


def test_two_names_of_a_view_are_one_view():
    config = LocomtConfig(segments=SPANS, views=[["self:b+self:a", "self"]])
    assert legend_of(plot_views(config)) == ["self:b+self:a"]
    figure = plot_view_blocks(config)
    assert [panel.get_title() for panel in panels_of(figure)] == ["self:b+self:a\n2 heads"]


def test_views_of_a_model(vit, images):
    model = hf_lam.inject(ViTModel(vit().config), LocomtConfig(views="random(2)"))
    assert colour_names(plot_views(model)) == model.config.hf_lam["locomt"]["views"]


@pytest.mark.parametrize("number", [11, 25])
def test_many_views_have_different_colours(number):
    segments = [[f"s{index}", 1] for index in range(8)]
    views = [f"s{index // 5}>s{index % 5}" for index in range(number)]
    assert colour_names(plot_views(LocomtConfig(segments=segments, views=[views]))) == [views]


def test_block_patterns():
    figure = plot_view_blocks(LocomtConfig(segments=SPANS, views=[["self", "a>b", "self"]]))
    first, second = panels_of(figure)
    assert [first.get_title(), second.get_title()] == ["self\n2 heads", "a>b\n1 head"]
    assert drawn(first).int().tolist() == [[1, 1, 0, 0, 0]] * 2 + [[0, 0, 1, 1, 1]] * 3
    # Segment b sees nothing.
    assert drawn(second).int().tolist() == [[0, 0, 1, 1, 1]] * 2 + [[2] * 5] * 3
    assert [label.get_text() for label in first.get_xticklabels()] == ["a (2)", "b (3)"]
    assert [label.get_text() for label in first.get_yticklabels()] == ["a (2)", "b (3)"]
    assert list(first.get_xticks()) == [0.5, 3.0]
    assert legend_of(figure) == ["not seen", "seen", "query that sees nothing"]


def test_a_global_segment_is_seen_by_all():
    (panel,) = panels_of(plot_view_blocks(LocomtConfig(segments=GLOBAL, views=[["self:a"]])))
    assert drawn(panel).int().tolist() == [[1] * 6] + [[1, 1, 1, 0, 0, 0]] * 2 + [[1] + [0] * 5] * 3


def test_block_patterns_of_a_model_are_what_its_heads_see(images):
    model = ViTModel(ViTConfig(image_size=8, patch_size=2, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    hf_lam.inject(model.eval(), LocomtConfig(views=[["self", "top_left>bottom_right"]]))
    model.set_attn_implementation("eager")
    attentions = model(**images, output_attentions=True).attentions[0][0]
    order = model.hf_lam.locomt.segment_ids.argsort(stable=True)
    for panel, weights in zip(panels_of(plot_view_blocks(model)), attentions, strict=True):
        assert torch.equal(drawn(panel) == 1, weights[order][:, order] > 0)


def test_block_patterns_know_rectangles_and_bottlenecks():
    halves = [["up", {"rectangle": [0, 0, 1, 3]}], ["down", {"rectangle": [1, 0, 2, 3]}]]
    (panel,) = panels_of(plot_view_blocks(LocomtConfig(segments=halves, views=[["self"]])))
    assert [label.get_text() for label in panel.get_xticklabels()] == ["up (3)", "down (6)"]
    bottleneck = LocomtConfig(segments=GLOBAL, views=[["self"]], bottleneck_tokens=4)
    (panel,) = panels_of(plot_view_blocks(bottleneck))
    assert [label.get_text() for label in panel.get_xticklabels()] == ["g (1)", "a (6)", "b (7)"]


def test_token_types_need_lengths():
    model = BertModel(BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    hf_lam.inject(model, LocomtConfig(views="half"))
    assert legend_of(plot_views(model)) == ["self", "cross:type_0-type_1"]
    with pytest.raises(ValueError, match=r"\['type_0', 'type_1'\] have is not known here; give lengths"):
        plot_view_blocks(model)
    first, _ = panels_of(plot_view_blocks(model, lengths=[1, 2]))
    assert drawn(first).int().tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 1]]
    # A segment without tokens is no key: its queries' partners see nothing.
    _, second = panels_of(plot_view_blocks(model, lengths=[0, 2]))
    assert drawn(second).int().tolist() == [[2, 2], [2, 2]]
    for lengths in ([3], [1, 2, 3], [-1, 3], [0, 0]):
        with pytest.raises(ValueError, match="one number of tokens for each of the segments"):
            plot_view_blocks(model, lengths=lengths)


@pytest.mark.parametrize("plot", [plot_views, plot_view_blocks])
def test_pictures_of_views_say_what_they_need(plot, vit, monkeypatch):
    with pytest.raises(ValueError, match=r"attention views in one encoder.*has them in 0.*LocomtConfig"):
        plot(vit())
    for config in (LocomtConfig(), LocomtConfig(segments=SPANS, views="half")):
        with pytest.raises(ValueError, match="no table of views yet"):
            plot(config)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "hf-lam\[viz\]"'):
        plot(LocomtConfig(segments=SPANS, views=[["self"]]))


def test_lengths_that_are_known_cannot_be_given():
    with pytest.raises(ValueError, match=r"lengths=\[4, 1\] was given, but the segments .* have \[2, 3\] tokens"):
        plot_view_blocks(LocomtConfig(segments=SPANS, views=[["self"]]), lengths=[4, 1])


def test_views_alone_are_no_masks(vit, images):
    model = hf_lam.inject(ViTModel(vit().config), LocomtConfig(views="self"))
    for plot in (learned_masks, plot_masks, plot_mask_on_image):
        with pytest.raises(ValueError, match=r"learnable attention masks in one encoder.*has them in 0\. Use hf_lam"):
            plot(model, images)
