"""Pictures of masks and views: what they show, that the model is left alone, and the errors."""

import sys
from itertools import pairwise

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

from hf_lam.visualization._drawing import MOST_CELLS, choose_names, diverging_colours, draw_matrix
from hf_lam.visualization._figure import NotebookFigure
from hf_lam.visualization._image import in_colour
from hf_lam.visualization._samples import describe_model, group_layers

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
        model = hf_lam.convert(ViTForImageClassification(config), LamConfig(**options))
        perturb_mechanisms(model)
        return model

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
    assert figure.get_suptitle() == "Learnable attention masks of HfLamViTForImageClassification"
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
def test_an_untrained_mask_is_a_number(images, options):
    config = ViTConfig(image_size=8, patch_size=2, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    model = hf_lam.inject(ViTForImageClassification(config), LamConfig(**options))
    neutral = 0.0 if options.get("combine") == "add" else 1.0
    for figure in (plot_masks(model, images), plot_mask_on_image(model, images)):
        (panel,) = figure.axes
        assert not panels_of(figure) and "nearly constant" in figure.get_suptitle()
        assert [label.get_text() for label in panel.get_yticklabels()] == ["layer 0", "layer 1"]
        assert panel.lines[1].get_xdata() == pytest.approx([neutral, neutral], abs=1e-6)


def test_masks_of_one_colour_are_numbers_and_one_among_others_says_so(vit, images):
    model = vit()
    with torch.no_grad():
        for name, parameter in model.vit.hf_lam.named_parameters():
            parameter.mul_(0.0)
            if name.endswith("out_bias"):
                parameter.fill_(0.8)
    (panel,) = plot_masks(model, images).axes
    values = [float(mask[0].mean()) for mask in learned_masks(model, images)]
    assert panel.lines[1].get_xdata() == pytest.approx(values) and values[0] != pytest.approx(1, abs=0.1)
    torch.nn.init.normal_(model.vit.hf_lam.lam[1].out_weight, std=5.0)
    torch.nn.init.normal_(model.vit.hf_lam.lam[1].in_bias, std=5.0)
    titles = [panel.get_title() for panel in panels_of(plot_masks(model, images))]
    assert titles == [f"layer 0: about {values[0]:.2f}", "layer 1", f"layer 2: about {values[2]:.2f}"]


def test_neighbouring_layers_of_a_deep_model_come_together(images):
    config = ViTConfig(image_size=8, patch_size=2, hidden_size=16, num_hidden_layers=9, num_attention_heads=2)
    model = hf_lam.inject(ViTForImageClassification(config), LamConfig())
    perturb_mechanisms(model)
    masks = [mask[0, 0] for mask in learned_masks(model, images)]
    panels = panels_of(plot_masks(model, images))
    titles = ["layers 0–1", "layer 2", "layers 3–4", "layer 5", "layers 6–7", "layer 8"]
    assert [panel.get_title() for panel in panels] == titles
    torch.testing.assert_close(drawn(panels[0]), (masks[0] + masks[1]) / 2)
    assert len(panels_of(plot_masks(model, images, layers=range(9)))) == 9
    assert [list(group) for group in group_layers(None, 12, 4)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_padding_is_cut_off_and_tokens_are_named():
    config = RobertaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = hf_lam.inject(RobertaModel(config), LamConfig())
    perturb_mechanisms(model)
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [5, 6, 1, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }
    panel = panels_of(plot_masks(model, inputs, sample=1, tokens=["a", "b", "<pad>", "<pad>"]))[0]
    assert drawn(panel).shape == (2, 2)
    assert [label.get_text() for label in panel.get_xticklabels()] == ["a", "b"]
    with pytest.raises(ValueError, match="all 4 tokens"):
        plot_masks(model, inputs, tokens=["a", "b"])


def test_of_a_long_text_the_tokens_that_stand_out_are_named():
    salience = torch.full((200,), 0.1)
    salience[[17, 18, 90]] = torch.tensor([5.0, 4.0, 3.0])
    chosen = choose_names(salience, 2.6)
    assert {17, 90} <= set(chosen) and 18 not in chosen, "no two where there is room for one"
    assert 12 < len(chosen) < 30 and min(b - a for a, b in pairwise(chosen)) >= 200 / 30
    assert choose_names(salience[:20], 2.6) == list(range(20))


def test_of_more_cells_than_can_be_seen_neighbours_are_averaged():
    panel = NotebookFigure().subplots()
    matrix = torch.rand(3 * MOST_CELLS, 2 * MOST_CELLS)
    draw_matrix(panel, matrix, diverging_colours([matrix], 0.5))
    expected = matrix.reshape(MOST_CELLS, 3, MOST_CELLS, 2).mean(dim=(1, 3))
    torch.testing.assert_close(drawn(panel), expected)
    assert (panel.get_xlim(), panel.get_ylim()) == ((-0.5, 2 * MOST_CELLS - 0.5), (3 * MOST_CELLS - 0.5, -0.5))


def test_a_picture_names_the_repository_and_no_folder_of_this_machine(tmp_path, monkeypatch):
    model = ViTModel(ViTConfig(image_size=8, patch_size=2, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "here").mkdir(parents=True)
    for name, said in (("me/vit-lam", " (me/vit-lam)"), (str(tmp_path), ""), ("me/here", ""), ("", "")):
        model.config._name_or_path = name
        assert describe_model(model) == f"ViTModel{said}"


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
    panels = panels_of(figure)
    assert [panel.get_title() for panel in panels[:LAYERS]] == [f"layer {index}" for index in range(LAYERS)]
    for index, mask in enumerate(learned_masks(model, images)):
        patches = mask[0, 0, 0, 1:].reshape(4, 4)
        torch.testing.assert_close(drawn(panels[LAYERS + index]), patches)
        strongest, weakest = outlined(panels[index])
        assert (strongest, weakest) == ([most(patches)], [most(-patches)])
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


def find_legend(figure):
    of_panels = (panel.get_legend() for panel in figure.axes)
    (legend,) = [*figure.legends, *filter(None, of_panels)]
    return legend


def legend_of(figure, letters=True):
    texts = [text.get_text() for text in find_legend(figure).get_texts()]
    return [text.partition("  ")[2] for text in texts] if letters else texts


def letters_of(figure):
    """The legend's entry for the letter in every cell of the only panel."""
    (panel,) = panels_of(figure)
    legend = find_legend(figure)
    names = dict(text.get_text().split("  ") for text in legend.get_texts())
    rows, columns = panel.images[0].get_array().shape
    cells = iter(panel.texts)
    return [[names[next(cells).get_text()] for _ in range(columns)] for _ in range(rows)]


def colour_names(figure):
    """The legend's entry for every cell of the only panel."""
    (panel,) = panels_of(figure)
    legend = find_legend(figure)
    colours = [patch.get_facecolor() for patch in legend.get_patches()]
    names = dict(zip(colours, legend_of(figure), strict=True))
    image = panel.images[0]
    colours = image.cmap(image.norm(image.get_array()))
    return [[names[tuple(colour)] for colour in row] for row in colours]


def test_every_head_has_the_colour_of_its_view():
    table = [["self", "a>b", "self:a"], ["self", "cross:a-b", "a>b"]]
    figure = plot_views(LocomtConfig(segments=SPANS, views=table))
    assert legend_of(figure) == ["self", "a>b", "self:a", "cross:a-b"]
    assert colour_names(figure) == letters_of(figure) == table
    assert figure.get_suptitle() == "Attention views"


def test_two_names_of_a_view_are_one_view():
    config = LocomtConfig(segments=SPANS, views=[["self:b+self:a", "self"]])
    assert legend_of(plot_views(config)) == ["self:b+self:a"]
    figure = plot_view_blocks(config)
    assert [panel.get_title() for panel in panels_of(figure)] == ["A  self:b+self:a\n2 heads"]


def test_views_of_a_model(vit, images):
    model = hf_lam.inject(ViTModel(vit().config), LocomtConfig(views="random(2)"))
    assert colour_names(plot_views(model)) == model.config.hf_lam["locomt"]["views"]


def test_the_names_of_views_do_not_cover_a_long_title(vit):
    model = hf_lam.inject(ViTModel(vit().config), LocomtConfig(views="half"))
    model.__class__ = type("AModelWithAVeryLongNameForSequenceClassification", (ViTModel,), {})
    figure = plot_views(model)
    figure.draw_without_rendering()
    assert not figure._suptitle.get_window_extent().overlaps(find_legend(figure).get_window_extent())


@pytest.mark.parametrize("number", [11, 60])
def test_many_views_have_different_colours(number):
    segments = [[f"s{index}", 1] for index in range(8)]
    views = [f"s{index // 8}>s{index % 8}" for index in range(number)]
    figure = plot_views(LocomtConfig(segments=segments, views=[views]))
    assert colour_names(figure) == letters_of(figure) == [views]


def test_block_patterns():
    figure = plot_view_blocks(LocomtConfig(segments=SPANS, views=[["self", "a>b", "self"]]))
    first, second = panels_of(figure)
    assert [first.get_title(), second.get_title()] == ["A  self\n2 heads", "B  a>b\n1 head"]
    assert drawn(first).int().tolist() == [[1, 1, 0, 0, 0]] * 2 + [[0, 0, 1, 1, 1]] * 3
    # Segment b sees nothing.
    assert drawn(second).int().tolist() == [[0, 0, 1, 1, 1]] * 2 + [[2] * 5] * 3
    assert not first.patches
    assert [(hatched.get_y(), hatched.get_height()) for hatched in second.patches] == [(1.5, 3)]
    assert [label.get_text() for label in first.get_xticklabels()] == ["a (2)", "b (3)"]
    assert [label.get_text() for label in first.get_yticklabels()] == ["a (2)", "b (3)"]
    assert list(first.get_xticks()) == [0.5, 3.0]
    assert legend_of(figure, letters=False) == ["not seen", "seen", "query that sees nothing"]


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
        titles = [f"layer {layer}" for layer in range(LAYERS)]
        assert [panel.get_title() for panel in panels] == titles + [""] * LAYERS
        assert [panel.get_ylabel() for panel in panels[::LAYERS]] == ["rows", "columns"]
        for index, panel in enumerate(panels):
            expected = axes[index % LAYERS][index // LAYERS][1]
            assert expected.shape == (4, 5, 4)
            torch.testing.assert_close(drawn(panel), expected.mean(0) if head is None else expected[head])
        assert [label.get_text() for label in panels[0].get_yticklabels()] == ["prefix", "0", "1", "2", "3"]
        assert len({panel.images[0].norm for panel in panels}) == 1, "one scale for all panels"


def test_random_maps_are_drawn_for_every_sample():
    model, inputs = with_stt("videomae", "random"), make_inputs("videomae")
    panels = panels_of(plot_synthetic_maps(model, inputs, sample=1, head=0))
    assert [panel.get_ylabel() for panel in panels[::LAYERS]] == ["steps", "rows", "columns"]
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


def test_many_layers_come_together_or_take_several_lines():
    model = hf_lam.inject(make_host("vit", num_hidden_layers=8), SttConfig(variant="random"))
    axes = synthetic_axes(model, make_inputs("vit"))
    panels = panels_of(plot_synthetic_maps(model, make_inputs("vit")))
    groups = ["layers 0–1", "layer 2", "layer 3", "layers 4–5", "layer 6", "layer 7"]
    assert [panel.get_title() for panel in panels] == groups + [""] * 6
    torch.testing.assert_close(drawn(panels[6]), (axes[0][1][0] + axes[1][1][0]).mean(0) / 2)
    panels = panels_of(plot_synthetic_maps(model, make_inputs("vit"), layers=range(8)))
    titles = [*(f"layer {layer}" for layer in range(6)), *[""] * 6, "layer 6", "layer 7", "", ""]
    assert [panel.get_title() for panel in panels] == titles
    torch.testing.assert_close(drawn(panels[-1]), axes[7][1][0].mean(0))


def most(patches):
    """The numbers of the tenth of the patches with the largest values."""
    return sorted(patches.flatten().topk(max(1, round(patches.numel() / 10))).indices.tolist())


def outlined(panel, size=4):
    """The patches, of so many along a side, that each outline runs around; an outline of nothing is an empty list."""
    found = []
    for lines in panel.collections:
        corners = [tuple(map(tuple, segment.tolist())) for segment in lines.get_segments()]
        side = (panel.images[0].get_array().shape[0]) / size
        inside = []
        for number in range(size * size):
            row, column = divmod(number, size)
            middle = ((column + 0.5) * side - 0.5, (row + 0.5) * side - 0.5)
            # A ray to the left crosses an odd number of vertical lines.
            crossed = [a for a, b in corners if a[0] == b[0] < middle[0] and a[1] < middle[1] < b[1]]
            if len(crossed) % 2:
                inside.append(number)
        found.append([inside])
    return found


@pytest.mark.parametrize("head", [None, 1])
@pytest.mark.parametrize(("query", "token"), [((2, 3), 1 + 11), (12, 12), (0, 0), (None, None)])
def test_where_a_patch_looks_below_the_image(query, token, head):
    model, inputs = with_stt("vit"), make_inputs("vit")
    figure = plot_map_on_image(model, inputs, query=query, sample=1, head=head)
    panels = panels_of(figure)
    images, maps = panels[:LAYERS], panels[LAYERS:]
    weights = [layer[1].mean(0) if head is None else layer[1, head] for layer in attentions_of(model, inputs)]
    rows = [layer.mean(0) if token is None else layer[token] for layer in weights]
    lowest = min(float(row[1:].min()) for row in rows)
    for index, (image, panel, row) in enumerate(zip(images, maps, rows, strict=True)):
        assert image.get_title() == f"layer {index}, {100 * float(row[1:].sum()):.0f} %"
        torch.testing.assert_close(drawn(panel), row[1:].reshape(4, 4))
        assert panel.images[0].norm.vmin == pytest.approx(lowest), "colours begin at the smallest weight"
        assert drawn(image).shape == (16, 16, 3)
        assert outlined(image) == [[most(row[1:])]]
        frame = [(11.5, 7.5, 4, 4)] if token == 12 else []
        assert [patch.get_bbox().bounds for patch in image.patches] == frame


@pytest.mark.parametrize(
    ("mean", "deviation"), [((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), (None, None)]
)
def test_an_image_keeps_its_colours(mean, deviation):
    colours = torch.rand(3, 6, 6)
    colours[:, 0, 0], colours[:, 0, 1] = 0, 1
    given = colours
    if mean is not None:
        given = (colours - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    torch.testing.assert_close(in_colour(given), colours)
    # Whatever else there is, it is shown, and grey is grey.
    other = in_colour(torch.randn(1, 6, 6) * 100)
    assert other.shape == (3, 6, 6) and float(other.min()) == 0 and float(other.max()) == 1
    assert torch.equal(other[0], other[2])


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
