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
from helpers.hosts import make_host, make_inputs, perturb_mechanisms
from helpers.processes import run_code
from hf_lam import LamConfig, LocomtConfig, SttConfig
from hf_lam.modeling.injection_hf_lam import injected_encoders, injection_of
from hf_lam.modeling.mechanism_hf_lam import LayerInput, PassStart
from hf_lam.visualization import (
    learned_masks,
    plot_map_on_image,
    plot_mask_on_image,
    plot_masks,
    plot_synthetic_maps,
    plot_view_blocks,
    plot_views,
    synthetic_axes,
    synthetic_maps,
)

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


@pytest.mark.parametrize("combine", ["multiply", "add"])
@pytest.mark.parametrize("source", ["layer_input", "embeddings"])
def test_one_panel_a_layer_shows_the_mask_of_that_layer(vit, images, source, combine):
    model = vit(source=source, combine=combine)
    embeddings = model.vit(**images, output_hidden_states=True).hidden_states[0]
    figure = plot_masks(model, images, sample=1)
    panels = panels_of(figure)
    assert [panel.get_title() for panel in panels] == [f"layer {index}" for index in range(LAYERS)]
    assert all(drawn(panel).shape == (TOKENS, TOKENS) for panel in panels)
    if source == "embeddings":
        for index, panel in enumerate(panels):
            given = LayerInput(index, embeddings, None, embeddings, None)
            change = model.vit.hf_lam("lam", "change_scores", given)
            expected = (change.addend if combine == "add" else change.factor)[1, 0]
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


@pytest.mark.parametrize("combine, centre", [("multiply", 1.0), ("add", 0.0)])
def test_colours_are_centred_at_what_changes_nothing(vit, images, combine, centre):
    model = vit(combine=combine)
    norms = {panel.images[0].norm for panel in panels_of(plot_masks(model, images))}
    assert len(norms) == 1, "one scale for all layers"
    assert norms.pop()(centre) == pytest.approx(0.5)


@pytest.mark.parametrize("options", [{}, {"combine": "add"}, {"non_negative": True}], ids=str)
def test_an_untrained_mask_is_white(images, options):
    config = ViTConfig(image_size=8, patch_size=2, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = hf_lam.inject(ViTForImageClassification(config), LamConfig(**options))
    image = panels_of(plot_masks(model, images))[0].images[0]
    assert np.allclose(image.norm(image.get_array()), 0.5)
    on_image = drawn(panels_of(plot_mask_on_image(model, images))[1])
    assert (on_image.amax(-1) - on_image.amin(-1)).max() < 0.02, "grey, without red or blue"


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
    assert not injection_of(model.vit).observers
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="a grid of"):
        plot_masks(model, {"pixel_values": torch.zeros(1, 3, 16, 16)})
    assert not model.vit.hf_lam._forward_hooks
    assert not injection_of(model.vit).observers
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
    monkeypatch.delitem(sys.modules, "hf_lam.visualization._figure", raising=False)
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
    order = model.hf_lam.locomt.layout(PassStart(None, None, (4, 4))).order[0]
    for panel, weights in zip(panels_of(plot_view_blocks(model)), attentions, strict=True):
        assert torch.equal(drawn(panel) == 1, weights[order][:, order] > 0)
    # Parts of the grid are of an image of the configured size unless said otherwise.
    (first, _) = panels_of(plot_view_blocks(model, lengths=[1, 1, 2, 3, 6]))
    assert drawn(first).shape == (13, 13)


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
    monkeypatch.delitem(sys.modules, "hf_lam.visualization._figure", raising=False)
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


# --- Synthetic maps --------------------------------------------------------------------------------------------------


def with_stt(host, variant="dense", *others, **options):
    """A tiny host with synthesised attention far from where it starts, and eager so that it returns its weights."""
    model = hf_lam.inject(make_host(host, attn_implementation="eager"), SttConfig(variant=variant, **options), *others)
    perturb_mechanisms(model)
    return model


def with_mixing(model, value):
    for base in injected_encoders(model):
        for synthesizer in base.hf_lam.stt:
            synthesizer.mixing.fill_(value)
    return model


def attentions_of(model, inputs):
    with torch.no_grad():
        return model(**inputs, output_attentions=True).attentions


@pytest.mark.parametrize("variant", ["dense", "random"])
@pytest.mark.parametrize("host", ["vit", "videomae", "bert"])
def test_synthetic_maps_are_the_attentions_of_a_pure_model(host, variant):
    model, inputs = with_stt(host, variant), make_inputs(host)
    maps = synthetic_maps(model, inputs)
    expected = attentions_of(model, inputs)
    assert len(maps) == LAYERS
    for found, weights in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, weights)
        torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
    assert not torch.allclose(maps[0], maps[1], atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"grid": [2, 5], "prefix_tokens": 1}])
def test_padding_gets_nothing_of_a_synthetic_map(options):
    model, inputs = with_stt("bert", **options), make_inputs("bert")
    for found, weights in zip(synthetic_maps(model, inputs), attentions_of(model, inputs), strict=True):
        torch.testing.assert_close(found, weights)
        assert not found[1, :, :, 7:].any()


@pytest.mark.parametrize("host", ["vit", "bert"])
@pytest.mark.parametrize("others", [(), (LamConfig(),)])
def test_the_maps_of_a_mixture_are_those_that_it_mixes_in(host, others):
    model, inputs = with_stt(host, "mixture", *others), make_inputs(host)
    maps = synthetic_maps(with_mixing(model, 0.3), inputs)
    if not others:
        expected = synthetic_maps(hf_lam.harden(with_mixing(model, 1.0)), inputs)
        # The layers before it change what a dense map is made from; the first has none.
        torch.testing.assert_close(maps[0], expected[0])
    assert all(torch.allclose(found.sum(-1), torch.ones(())) for found in maps)


@pytest.mark.parametrize(("host", "prefix"), [("vit", 1), ("deit", 2), ("videomae", 0)])
def test_the_axes_multiply_to_the_map(host, prefix):
    model, inputs = with_stt(host), make_inputs(host)
    axes, maps = synthetic_axes(model, inputs)[1], synthetic_maps(model, inputs)[1]
    product = axes[0][0, 2, prefix:]
    for axis in axes[1:]:
        product = torch.kron(product, axis[0, 2, prefix:])
    on_grid = maps[0, 2, prefix:, prefix:]
    torch.testing.assert_close(on_grid / on_grid.sum(-1, keepdim=True), product)


def test_a_panel_for_every_layer_and_axis_shows_its_matrix():
    model, inputs = with_stt("vit"), make_inputs("vit")
    axes = synthetic_axes(model, inputs)
    for head in (None, 2):
        panels = panels_of(plot_synthetic_maps(model, inputs, sample=1, head=head))
        titles = [f"layer {layer}, {axis}" for axis in ("rows", "columns") for layer in range(LAYERS)]
        assert [panel.get_title() for panel in panels] == titles
        for index, panel in enumerate(panels):
            expected = axes[index % LAYERS][index // LAYERS][1]
            assert expected.shape == (4, 5, 4)
            torch.testing.assert_close(drawn(panel), expected.mean(0) if head is None else expected[head])
        assert [label.get_text() for label in panels[0].get_yticklabels()] == ["prefix", "0", "1", "2", "3"]
        assert len({panel.images[0].norm for panel in panels}) == 1, "one scale for all panels"


def test_random_maps_are_drawn_for_every_sample():
    model, inputs = with_stt("videomae", "random"), make_inputs("videomae")
    panels = panels_of(plot_synthetic_maps(model, inputs, sample=1, head=0))
    assert [panel.get_title() for panel in panels[::LAYERS]] == ["layer 0, steps", "layer 0, rows", "layer 0, columns"]
    torch.testing.assert_close(drawn(panels[0]), synthetic_axes(model, inputs)[0][0][0, 0])


def test_on_text_the_panel_is_the_map_without_padding():
    model, inputs = with_stt("bert"), make_inputs("bert")
    names = [f"t{index}" for index in range(7)] + ["pad"] * 4
    panels = panels_of(plot_synthetic_maps(model, inputs, sample=1, tokens=names, head=3))
    assert [panel.get_title() for panel in panels] == ["layer 0", "layer 1", "layer 2"]
    for panel, weights in zip(panels, attentions_of(model, inputs), strict=True):
        torch.testing.assert_close(drawn(panel), weights[1, 3, :7, :7])
    assert [label.get_text() for label in panels[0].get_xticklabels()] == names[:7]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == names[:7]
    with pytest.raises(ValueError, match="all 11 tokens of the sequence, got 2"):
        plot_synthetic_maps(model, inputs, tokens=["a", "b"])


def test_prefix_tokens_of_text_have_rows_alone():
    model, inputs = with_stt("bert", prefix_tokens=1), make_inputs("bert")
    names = [f"t{index}" for index in range(11)]
    panel = panels_of(plot_synthetic_maps(model, inputs, sample=1, tokens=names))[0]
    assert drawn(panel).shape == (7, 6)
    assert [label.get_text() for label in panel.get_xticklabels()] == names[1:7]
    assert [label.get_text() for label in panel.get_yticklabels()] == names[:7]
    torch.testing.assert_close(drawn(panel).sum(1), torch.ones(7))


def test_many_layers_take_several_lines_and_no_empty_panels():
    model = hf_lam.inject(make_host("vit", num_hidden_layers=8), SttConfig(variant="random"))
    panels = panels_of(plot_synthetic_maps(model, make_inputs("vit")))
    first = [f"layer {layer}, {axis}" for axis in ("rows", "columns") for layer in range(6)]
    assert [panel.get_title() for panel in panels] == [*first, *(f"layer {n}, {a}" for a in AXES for n in (6, 7))]
    for panel in panels[-2:]:
        layer = int(panel.get_title()[6])
        torch.testing.assert_close(drawn(panel), synthetic_axes(model, make_inputs("vit"))[layer][1][0].mean(0))


AXES = ("rows", "columns")


@pytest.mark.parametrize("head", [None, 1])
@pytest.mark.parametrize(("query", "token"), [((2, 3), 1 + 11), (12, 12), (0, 0), (None, None)])
def test_where_a_patch_looks_on_the_image(query, token, head):
    model, inputs = with_stt("vit"), make_inputs("vit")
    figure = plot_map_on_image(model, inputs, query=query, sample=1, head=head)
    first, *panels = panels_of(figure)
    weights = [layer[1].mean(0) if head is None else layer[1, head] for layer in attentions_of(model, inputs)]
    rows = [layer.mean(0) if token is None else layer[token] for layer in weights]
    grey = drawn(first)
    top = max(float(row[1:].max()) for row in rows)
    from matplotlib import colormaps

    for index, (panel, row) in enumerate(zip(panels, rows, strict=True)):
        assert panel.get_title() == f"layer {index}, {100 * float(row[1:].sum()):.0f} %"
        colours = torch.from_numpy(colormaps["cool"]((row[1:].reshape(4, 4) / top).numpy())[..., :3])
        enlarged = colours.repeat_interleave(4, 0).repeat_interleave(4, 1).float()
        torch.testing.assert_close(drawn(panel), enlarged * (0.5 + 0.5 * grey[..., None]), atol=1e-2, rtol=0)
    assert [patch.get_bbox().bounds for patch in first.patches] == ([(11.5, 7.5, 4, 4)] if token == 12 else [])


@pytest.mark.slow
def test_the_pictures_of_maps_are_saved_as_png_and_svg(tmp_path):
    model, inputs = with_stt("vit"), make_inputs("vit")
    for figure in (plot_synthetic_maps(model, inputs), plot_map_on_image(model, inputs, query=(0, 0))):
        for name, start in (("map.png", b"\x89PNG"), ("map.svg", b"<?xml")):
            figure.savefig(tmp_path / name)
            assert (tmp_path / name).read_bytes().startswith(start)


def test_bad_choices_of_maps_are_named(monkeypatch):
    model, inputs = with_stt("vit"), make_inputs("vit")
    for plot in (plot_synthetic_maps, plot_map_on_image):
        with pytest.raises(ValueError, match="sample must be from 0 to 1"):
            plot(model, inputs, sample=2)
        with pytest.raises(ValueError, match="head must be from 0 to 3, got 4"):
            plot(model, inputs, head=4)
        with pytest.raises(ValueError, match=r"synthesised attention in one encoder.*has them in 0.*SttConfig"):
            plot(make_host("vit"), inputs)
    for query in (17, -1):
        with pytest.raises(ValueError, match=f"query must be a token from 0 to 16, got {query}"):
            plot_map_on_image(model, inputs, query=query)
    for query in ((4, 0), (0, -1), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"query must be \(row, column\) of one of the 4 × 4 patches"):
            plot_map_on_image(model, inputs, query=query)
    with pytest.raises(ValueError, match="this grid has 2 axes; leave tokens out"):
        plot_synthetic_maps(model, inputs, tokens=["a"] * 17)
    with pytest.raises(ValueError, match="use plot_synthetic_maps"):
        plot_map_on_image(with_stt("videomae"), make_inputs("videomae"))
    monkeypatch.delitem(sys.modules, "hf_lam.visualization._figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "hf-lam\[viz\]"'):
        plot_synthetic_maps(model, inputs)


def test_looking_at_maps_leaves_the_model_as_it_was():
    model, inputs = with_stt("vit", "mixture"), make_inputs("vit")
    expected = model(**inputs)[0]
    hooks = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())
    model.train()
    synthetic_maps(model, inputs)
    synthetic_axes(model, inputs)
    with pytest.raises(ValueError, match="made for"):
        synthetic_maps(model, {"pixel_values": torch.zeros(1, 3, 8, 8)})
    assert model.training
    assert hooks == sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(model.eval()(**inputs)[0], expected)


def test_a_single_head_can_be_asked_for():
    model, inputs = (
        hf_lam.inject(make_host("vit", num_attention_heads=1), SttConfig(variant="dense")),
        make_inputs("vit"),
    )
    perturb_mechanisms(model)
    panels = panels_of(plot_synthetic_maps(model, inputs, sample=1, head=0))
    by_layer = synthetic_axes(model, inputs)
    expected = [axes[axis][1, 0] for axis in range(2) for axes in by_layer]
    assert len(panels) == len(expected) == 2 * LAYERS
    for panel, weights in zip(panels, expected, strict=True):
        torch.testing.assert_close(drawn(panel), weights)
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)


@pytest.mark.slow
def test_it_can_be_imported_before_anything_else():
    run_code("import hf_lam.visualization")
