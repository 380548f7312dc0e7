"""What models cost: formula against count, on real forward passes, and numbers worked out by hand."""

import copy
import json
from dataclasses import replace
from math import prod

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForMultipleChoice,
    BertModel,
    ViTForImageClassification,
)

import hf_lam
from helpers.hosts import BASES, first_output, make_host, make_inputs, make_model
from hf_lam import LamConfig, LocomtConfig, SttConfig
from hf_lam.flops import cost, example_inputs
from hf_lam.modeling.locomt_views_hf_lam import bottleneck_cost
from hf_lam.modeling.stt_config_hf_lam import SYNTHESIZERS
from hf_lam.modeling.stt_synthesizers_hf_lam import count_products

SPANS = [["a", 12], ["b", 20]]
SCALE = 4 * 8  # of a tiny host, whose heads have 8 features


def counted_by_torch(model, inputs):
    """FLOPs of the whole model, and of its batched matrix products, with nothing of ours in between."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops(), counter.get_flop_counts()["Global"][torch.ops.aten.bmm]


def with_views(host="bert", *others, **options):
    if host in ("bert", "roberta"):
        options = {"segments": SPANS, **options}
    return hf_lam.inject(make_host(host), LocomtConfig(**options), *others)


def assert_exact(report):
    """Formula and count, head by head and layer by layer. `agrees` is what the command reports, so it is no help."""
    for layer in report.layers:
        assert layer.formula == layer.counted
        assert layer.forward == sum(layer.formula[report.forward_kind])
        assert layer.added == layer.added_formula
    assert report.agrees


def test_numbers_worked_out_by_hand():
    table = [["self"] * 4, ["cross:a-b", "a>b", "self:b", "full"], ["full"] * 4]
    report = cost(with_views(views=table))
    assert_exact(report)
    assert report.segments == {"a": 12, "b": 20}
    assert report.layers[0].formula == {
        "full": (SCALE * 32 * 32,) * 4,
        "self": (SCALE * (12 * 12 + 20 * 20),) * 4,
        "bottleneck": (SCALE * (16 * 16 + 24 * 24),) * 4,
        "own": (SCALE * (12 * 12 + 20 * 20),) * 4,
    }
    assert report.layers[1].formula["own"] == (SCALE * 480, SCALE * 240, SCALE * 400, SCALE * 1024)
    assert report.layers[1].views == ("cross:a-b", "a>b", "self:b", "full")
    assert report.attention["own"] == SCALE * (4 * 544 + (480 + 240 + 400 + 1024) + 4 * 1024)
    assert (report.batch_size, report.tokens, report.head_size, report.forward_kind) == (1, 32, 8, "own")


def test_a_global_segment_sees_all_in_every_view():
    report = cost(with_views("vit", views="half"), bottleneck_tokens=1)
    assert report.segments == {"cls": 1, "top_left": 4, "top_right": 4, "bottom_left": 4, "bottom_right": 4}
    of_cls = 1 + 2 * 16
    assert report.layers[0].formula == {
        "full": (SCALE * 17 * 17,) * 4,
        "self": (SCALE * (of_cls + 4 * 16),) * 4,
        "bottleneck": (SCALE * (1 + 2 * 20 + 4 * 25),) * 4,
        "own": (SCALE * (of_cls + 4 * 16),) * 2 + (SCALE * (of_cls + 2 * 16),) * 2,
    }
    assert_exact(report)


@pytest.mark.parametrize("host", BASES)
@pytest.mark.parametrize("views", ["full", "half", "random(3)", "low_self(1, 5)"])
@pytest.mark.parametrize("lam", [None, LamConfig(), LamConfig(per_head=True, rank=3, scope="shared")])
def test_formula_and_count_agree_with_views(host, views, lam):
    report = cost(with_views(host, *([] if lam is None else [lam]), views=views))
    assert_exact(report)
    assert report.forward_kind == "own"
    assert (report.mechanism_parameters > 0) == (lam is not None)


@pytest.mark.parametrize("host", BASES)
@pytest.mark.parametrize("lam", [None, LamConfig(), LamConfig(rank=3), LamConfig(scope="shared", per_head=True)])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_formula_and_count_agree_without_views(host, lam, implementation):
    model = make_host(host, attn_implementation=implementation)
    report = cost(model if lam is None else hf_lam.inject(model, lam))
    assert_exact(report)
    assert set(report.attention) == {"full"}
    assert report.segments is None
    assert all(layer.views is None for layer in report.layers)


@pytest.mark.parametrize("host", BASES)
def test_a_stock_model_is_what_torch_counts(host):
    model = make_host(host)
    inputs = make_inputs(host)
    report = cost(model, inputs)
    assert (report.flops, report.forward_attention) == counted_by_torch(model, inputs)
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert report.mechanism_parameters == 0


def test_full_views_cost_what_the_stock_model_costs():
    model, viewed = make_host("vit"), with_views("vit", views="full")
    stock, full = cost(model), cost(viewed)
    assert full.attention["own"] == full.attention["full"] == stock.attention["full"]
    assert full.flops == stock.flops


def test_views_save_attention_and_nothing_else():
    full, half = cost(with_views(views="full")), cost(with_views(views="half"))
    assert full.flops - half.flops == full.attention["own"] - half.attention["own"] > 0


def test_the_ordering_of_the_paper():
    report = cost(with_views(views="random(1)"), bottleneck_tokens=2)
    totals = report.attention
    assert report.layers[0].formula["bottleneck"][0] == SCALE * bottleneck_cost([12, 20], 2)
    assert totals["own"] < totals["self"] < totals["bottleneck"] < totals["full"]


def test_token_types_count_what_the_batch_is_padded_to():
    model = hf_lam.inject(make_host("bert"), LocomtConfig(views="round_robin"))
    inputs = make_inputs("bert")
    inputs["token_type_ids"] = torch.tensor([[0] * 4 + [1] * 7, [0] * 6 + [1] * 5])
    report = cost(model, inputs)
    assert_exact(report)
    assert (report.tokens, report.segments) == (11, {"type_0": 6, "type_1": 7})
    assert report.layers[0].formula["full"] == (2 * SCALE * 11 * 11,) * 4
    assert report.layers[0].formula["own"] == (2 * SCALE * (36 + 49), 2 * SCALE * 84) * 2


def test_a_model_with_a_bottleneck():
    report = cost(with_views(views="self", bottleneck_tokens=3), bottleneck_tokens=5)
    assert_exact(report)
    assert (report.tokens, report.segments) == (32, {"a": 12, "b": 20})
    assert report.layers[0].formula["own"] == (SCALE * (15 * 15 + 23 * 23),) * 4
    assert report.layers[0].formula["bottleneck"] == (SCALE * (17 * 17 + 25 * 25),) * 4
    assert report.layers[0].formula["full"] == (SCALE * 32 * 32,) * 4
    assert report.mechanism_parameters == 3 * 32


def test_views_that_are_annealed_still_cost_all():
    report = cost(with_views(views="self", annealing=True))
    assert_exact(report)
    assert report.forward_kind == "full"
    assert report.attention["own"] < report.forward_attention == report.attention["full"]


def test_the_reference_implementation_is_not_what_views_cost():
    model = hf_lam.inject(make_host("bert", attn_implementation="eager"), LocomtConfig(segments=SPANS, views="self"))
    assert_exact(cost(model))
    assert model.config._attn_implementation == "eager"


def test_flops_grow_with_the_batch():
    model = with_views("videomae", views="half")
    one, three = cost(model), cost(model, example_inputs(model, 3))
    assert three.batch_size == 3
    assert three.flops == 3 * one.flops
    assert three.attention == {kind: 3 * flops for kind, flops in one.attention.items()}


def test_a_layer_that_runs_again_and_again_counts_every_time():
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 37, "embedding_size": 8}
    model = AlbertModel(AlbertConfig(vocab_size=99, num_hidden_layers=3, max_position_embeddings=40, **sizes))
    report = cost(model)
    assert len(report.layers) == 3
    assert_exact(report)


def test_the_model_is_left_as_it_was():
    model = make_model(ViTForImageClassification, "vit", num_labels=2)
    hf_lam.inject(model, LocomtConfig(views="half"), LamConfig())
    inputs = make_inputs("vit")
    expected = first_output(model, inputs)
    model.train()
    model.vit.layernorm.eval()
    modes = [module.training for module in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()

    def assert_unchanged():
        assert [module.training for module in model.modules()] == modes
        assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
        assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        assert torch.is_grad_enabled()

    cost(model)
    assert_unchanged()
    with pytest.raises(ValueError, match="a grid of"):
        cost(model, {"pixel_values": torch.zeros(1, 3, 8, 8)})
    assert_unchanged()
    assert torch.equal(first_output(model.eval(), inputs), expected)


def test_example_inputs_fill_the_model():
    bert = example_inputs(make_host("bert"), 2)
    assert bert["input_ids"].shape == (2, 40)
    assert bert["token_type_ids"].sum(1).tolist() == [20, 20]
    assert example_inputs(with_views())["input_ids"].shape == (1, 32)
    # Its positions begin after the padding's.
    assert example_inputs(make_host("roberta"))["input_ids"].shape == (1, 38)
    short = hf_lam.inject(make_host("bert"), LamConfig(max_length=9))
    assert example_inputs(short)["input_ids"].shape == (1, 9)
    assert example_inputs(make_host("vit"))["pixel_values"].shape == (1, 3, 16, 16)
    assert example_inputs(make_host("videomae"))["pixel_values"].shape == (1, 4, 3, 16, 16)
    assert example_inputs(make_host("ast").half())["input_values"].dtype == torch.float16


def test_multiple_choice():
    model = hf_lam.convert(make_model(BertForMultipleChoice, "bert"), LocomtConfig(views="half"))
    assert_exact(cost(model))


# --- synthesised attention -------------------------------------------------------------------------------------------

# Grid and prefix tokens of the tiny hosts; text as long as `make_inputs` makes it.
GRIDS = {"vit": ((4, 4), 1), "deit": ((4, 4), 2), "videomae": ((2, 2, 2), 0), "bert": ((11,), 0)}


def with_stt(host, variant="dense", *others, **options):
    return hf_lam.inject(make_host(host), SttConfig(variant=variant, **options), *others)


def test_products_worked_out_by_hand():
    assert count_products([5]) == 25
    assert count_products([4, 3]) == 12 * 7
    assert count_products([2, 3, 4]) == 24 * 9
    # A prefix token sums up 12 places, then the 3 that are left.
    assert count_products([4, 3], 2) == 12 * 7 + 2 * (12 + 3)


@pytest.mark.parametrize(
    ("host", "variant"),
    [*((h, v) for h in ("vit", "videomae", "bert") for v in SYNTHESIZERS), ("deit", "dense"), ("deit", "random")],
)
def test_a_synthesised_map_costs_its_mode_products_and_nothing_for_queries_and_keys(host, variant):
    stock = make_host(host)
    inputs = {name: x for name, x in make_inputs(host, batch=3).items() if name != "attention_mask"}
    before, report = cost(stock, inputs), cost(with_stt(host, variant), inputs)
    assert_exact(report)
    grid, prefix = GRIDS[host]
    assert (report.grid, report.tokens, report.forward_kind) == (grid, prod(grid) + prefix, "own")
    assert (report.synthesizer, report.segments, report.batch_size) == (variant, None, 3)
    own = 3 * 2 * 8 * count_products(grid, prefix)
    assert report.layers[0].formula == {"full": (3 * SCALE * report.tokens**2,) * 4, "own": (own,) * 4}
    assert report.forward_attention == 3 * 4 * own
    assert (report.synthesis > 0) == (variant != "random")
    assert sum(layer.synthesis for layer in report.layers) == report.synthesis

    linear = 3 * 2 * report.tokens * 32 * 32
    attention = before.forward_attention - report.forward_attention
    assert report.flops == before.flops - 3 * 2 * linear - attention + report.synthesis
    names = (".query.", ".key.", ".q_proj.", ".k_proj.")
    dropped = [p.numel() for name, p in stock.named_parameters() if any(part in name for part in names)]
    assert len(dropped) >= 3 * 2
    assert report.parameters == before.parameters - sum(dropped) + report.mechanism_parameters


def test_synthesis_worked_out_by_hand():
    # `W1` of 8 rows, `W2` of one row for every place and head, for 1 prefix token and 4 places of each of two axes.
    of_axis = 5 * (32 * 8 + 8 * 4 * 4)
    shares = 17 * 32 * 4
    assert cost(with_stt("vit", "dense")).layers[0].synthesis == 2 * (2 * of_axis + shares)
    # The prefix token's row and 4 more, of rank 3, for 4 heads.
    assert cost(with_stt("vit", "factorized_random", rank=3)).layers[0].synthesis == 2 * 2 * 4 * 5 * 3 * 4
    # The grid's rows alone, and vectors of 2 and 2 in place of 4.
    factorized = cost(with_stt("videomae", "factorized_dense", factors=[[1, 2]] * 3)).layers[0].synthesis
    assert factorized == 2 * 3 * 2 * (32 * 8 + 8 * 4 * 3)


@pytest.mark.parametrize(("host", "synthesizer"), [*zip(GRIDS, SYNTHESIZERS, strict=True), ("vit", "random")])
def test_a_mixture_costs_the_dot_products_and_its_synthesis(host, synthesizer):
    inputs = make_inputs(host)
    before, pure = cost(make_host(host), inputs), cost(with_stt(host, synthesizer), inputs)
    report = cost(with_stt(host, "mixture", synthesizer=synthesizer), inputs)
    assert_exact(report)
    assert (report.forward_kind, set(report.attention)) == ("full", {"full"})
    assert report.forward_attention == before.forward_attention
    assert (report.grid, report.synthesizer, report.synthesis) == (pure.grid, synthesizer, pure.synthesis)
    assert report.flops == before.flops + report.synthesis


@pytest.mark.parametrize("lam", [None, LamConfig(scope="shared", rank=2)])
def test_a_mixture_with_views_costs_its_views(lam):
    views = LocomtConfig(views="half")
    others = () if lam is None else (lam,)
    expected = cost(hf_lam.inject(make_host("vit"), views, *others))
    report = cost(with_stt("vit", "mixture", views, *others))
    assert_exact(report)
    assert report.forward_kind == "own"
    assert report.attention == expected.attention
    assert report.flops == expected.flops + report.synthesis
    assert report.synthesis == cost(with_stt("vit")).synthesis


def test_hardening_takes_the_dot_products_away():
    model = with_stt("vit", "mixture")
    mixed = cost(model)
    report = cost(hf_lam.harden(model, force=True))
    assert_exact(report)
    assert report.to_dict() == cost(with_stt("vit")).to_dict()
    assert (mixed.synthesizer, mixed.grid) == (report.synthesizer, report.grid) == ("dense", (4, 4))
    # The projections, their biases, and λ, which is a buffer.
    assert mixed.parameters - report.parameters == 3 * 2 * (32 * 32 + 32)


@pytest.mark.parametrize(
    ("options", "features"),
    [({}, 8), ({"grid": [11]}, 8), ({"prefix_tokens": 2}, 9), ({"grid": [2, 5], "prefix_tokens": 1}, 9)],
)
def test_padding_is_divided_out_unless_there_is_one_axis_alone(options, features):
    inputs = make_inputs("bert")
    model = with_stt("bert", **options)
    report = cost(model, inputs)
    assert_exact(report)
    prefix = options.get("prefix_tokens", 0)
    grid = options.get("grid", [11 - prefix])
    grid = grid if len(grid) > 1 else [11 - prefix]
    assert report.layers[0].formula["own"] == (2 * 2 * features * count_products(grid, prefix),) * 4
    del inputs["attention_mask"]
    report = cost(model, inputs)
    assert_exact(report)
    assert report.layers[0].formula["own"] == (2 * 2 * 8 * count_products(grid, prefix),) * 4


def test_a_map_that_is_asked_for_or_formed_by_the_reference_is_not_what_it_costs():
    expected = cost(with_stt("vit")).to_dict()
    for options in ({"attn_implementation": "eager"}, {"output_attentions": True, "attn_implementation": "eager"}):
        model = hf_lam.inject(make_host("vit", **options), SttConfig(variant="dense"))
        assert cost(model).to_dict() == expected
        attentions = model(**make_inputs("vit"), output_attentions=True).attentions
        assert attentions[0].shape == (2, 4, 17, 17)
        assert model.config._attn_implementation == "eager"


def test_example_inputs_fill_the_grid():
    assert example_inputs(with_stt("bert"))["input_ids"].shape == (1, 40)
    assert example_inputs(with_stt("bert", grid=[9]))["input_ids"].shape == (1, 9)
    assert example_inputs(with_stt("bert", grid=[3, 4], prefix_tokens=2))["input_ids"].shape == (1, 14)
    assert example_inputs(with_stt("roberta"))["input_ids"].shape == (1, 38)
    for options in ({}, {"grid": [9]}, {"grid": [3, 4], "prefix_tokens": 2}):
        assert_exact(cost(with_stt("bert", **options)))


def test_on_text_a_dense_map_can_cost_more_than_dot_products():
    model = BertModel(BertConfig(vocab_size=9, num_hidden_layers=1))
    stock = cost(model)
    report = cost(hf_lam.inject(model, SttConfig(variant="dense")))
    assert report.tokens == 512
    products = report.attention["own"] + report.synthesis
    assert products / report.attention["full"] == 1.0625
    # But not with the projections of queries and keys, which it does without.
    assert report.flops < stock.flops


def test_as_json():
    report = cost(with_views(views="half"), bottleneck_tokens=2)
    written = json.loads(json.dumps(report.to_dict()))
    assert written["segments"] == {"a": 12, "b": 20}
    assert written["layers"][1]["formula"]["own"] == list(report.layers[1].formula["own"])
    assert written["layers"][1]["views"] == ["self", "self", "cross:a-b", "cross:a-b"]
    assert written["attention"] == report.attention
    assert (written["forward_attention"], written["agrees"]) == (report.forward_attention, True)
    assert (written["synthesis"], written["synthesizer"], written["grid"]) == (0, None, None)
    written = json.loads(json.dumps(cost(with_stt("vit")).to_dict()))
    assert (written["synthesizer"], written["grid"]) == ("dense", [4, 4])
    assert written["synthesis"] == 3 * written["layers"][0]["synthesis"] > 0


def test_a_count_that_differs_is_seen():
    report = cost(with_views(views="half"))
    first, *rest = report.layers
    assert not replace(report, layers=(replace(first, forward=first.forward + 1), *rest)).agrees
    counted = {**first.counted, "self": (0, *first.counted["self"][1:])}
    assert not replace(report, layers=(replace(first, counted=counted), *rest)).agrees


def test_errors():
    with pytest.raises(TypeError, match=r"needs a transformers model.*got Linear"):
        cost(torch.nn.Linear(2, 2))
    for tokens in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"bottleneck_tokens must be an integer of at least 1, got {tokens}"):
            cost(make_host("bert"), bottleneck_tokens=tokens)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        example_inputs(make_host("bert"), 0)
    endless = make_host("bert")
    endless.config.__dict__["max_position_embeddings"] = None  # which its own check would refuse
    endless.embeddings.position_embeddings = None
    with pytest.raises(ValueError, match="how long its texts get; give inputs"):
        cost(endless)
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    with pytest.raises(ValueError, match="is a decoder"):
        cost(BertModel(BertConfig(**sizes, is_decoder=True)))
