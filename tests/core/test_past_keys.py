"""Keys and values before the tokens (`past_key_values`), as prefix tuning has them."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor
from transformers import BertForSequenceClassification, BertModel, DynamicCache

from helpers.hosts import make_host, make_inputs, make_model, max_difference, mechanisms, perturb_mechanisms
from hf_lam import LamConfig, LocomtConfig, MechanismConfig, SttConfig, calibrate_views, convert, cost, inject
from hf_lam.modeling.attention_pass_hf_lam import refuse_past
from hf_lam.modeling.locomt_attention_hf_lam import attend_annealed, attend_eager, attend_with_weights
from hf_lam.modeling.locomt_blocks_hf_lam import attend_blocks
from hf_lam.modeling.locomt_layout_hf_lam import Layout, fixed_layout, sample_layout
from hf_lam.modeling.locomt_views_hf_lam import parse_view
from hf_lam.visualization import plot_attention

PAST = 3
SPANS = [["a", 5], ["b", 6]]
# What transformers calls past_key_values from 5.24 on.
CACHE = "cache" if "cache" in inspect.signature(BertModel.forward).parameters else "past_key_values"
# What leaves a model as it was, and so has to leave it with a prefix, too.
IDENTITIES: dict[str, tuple[Any, ...]] = {
    "mask": (LamConfig(),),
    "mask_of_low_rank": (LamConfig(rank=2, per_head=True),),
    "mask_of_embeddings": (LamConfig(scope="shared"),),
    "added_mask": (LamConfig(combine="add", depth=3),),
    "full_views": (LocomtConfig(),),
    "annealing": (LocomtConfig(views="half", annealing=True),),
    "both": (LamConfig(), LocomtConfig()),
}
# What a text has, with and without padding, and in more tokens than one.
TEXTS = {"padded": slice(None), "whole": slice(0, 1)}


def make_past(layers: int = 3, batch: int = 2, seed: int = 3) -> DynamicCache:
    generator = torch.Generator().manual_seed(seed)
    cache = DynamicCache()
    for layer in range(layers):
        cache.update(*torch.randn(2, batch, 4, PAST, 8, generator=generator).unbind(), layer)
    return cache


def with_past(text: str = "padded", token_types: bool = True) -> dict[str, Any]:
    inputs: dict[str, Any] = {k: v[TEXTS[text]] for k, v in make_inputs("bert", token_types=token_types).items()}
    batch = len(inputs["input_ids"])
    inputs["attention_mask"] = torch.cat([torch.ones(batch, PAST, dtype=torch.long), inputs["attention_mask"]], 1)
    return {**inputs, CACHE: make_past(batch=batch)}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", IDENTITIES)
def test_the_identity_stays_the_identity(name: str, text: str, implementation: str) -> None:
    model = make_host("bert")
    model.set_attn_implementation(implementation)
    expected = model(**with_past(text)).last_hidden_state
    assert max_difference(expected, model(**{**with_past(text), CACHE: None, **no_past(text)})[0]) > 1e-2
    inject(model, *IDENTITIES[name])
    assert max_difference(model(**with_past(text)).last_hidden_state, expected) < 1e-5
    weights = model(**with_past(text), output_attentions=True).attentions
    assert weights[0].shape[2:] == (11, PAST + 11) and max_difference(weights[0].sum(-1), torch.ones(())) < 1e-5


def no_past(text: str) -> dict[str, Tensor]:
    return {"attention_mask": make_inputs("bert")["attention_mask"][TEXTS[text]]}


@pytest.mark.parametrize("name", ["per_head", "half", "directed", "explicit", "annealing", "lam", "bottleneck"])
def test_fast_paths_are_the_reference(name: str) -> None:
    model = inject(make_host("bert"), *mechanisms(name, "bert"))
    perturb_mechanisms(model)
    fast = model(**with_past()).last_hidden_state
    mapped = model(**with_past(), output_attentions=True).last_hidden_state
    model.set_attn_implementation("eager")
    reference = model(**with_past()).last_hidden_state
    assert max_difference(fast, reference) < 1e-5 and max_difference(mapped, reference) < 1e-5
    # Every token is seen still, and the prefix is.
    changed = with_past()
    changed["input_ids"][0, -1] += 1
    assert max_difference(model(**changed).last_hidden_state[0, 0], reference[0, 0]) > 1e-6
    other = {**with_past(), CACHE: make_past(seed=4)}
    assert ((model(**other).last_hidden_state - reference).abs().amax(-1)[0] > 1e-4).all()


def test_an_added_mask_leaves_the_scores_of_the_prefix_as_they_are() -> None:
    """One that is the same for all tokens of a row moves weight between them and the prefix, and not among either."""
    model = inject(make_host("bert", num_hidden_layers=1), LamConfig(combine="add"))
    torch.nn.init.constant_(model.hf_lam.lam[0].out_bias, -1.5)
    host = make_host("bert", num_hidden_layers=1)
    host.set_attn_implementation("eager")
    (stock,) = host(**with_past("whole"), output_attentions=True).attentions
    (masked,) = model(**with_past("whole"), output_attentions=True).attentions
    expected = torch.cat([stock[..., :PAST], stock[..., PAST:] * math.exp(-1.5)], -1)
    assert max_difference(masked, expected / expected.sum(-1, keepdim=True)) < 1e-5


def test_a_mask_leaves_the_scores_of_the_prefix_as_they_are() -> None:
    """With `M = 0` no token is preferred to another, and what the prefix gets hangs on its own scores alone."""
    model = inject(make_host("bert", num_hidden_layers=1), LamConfig())
    for parameter in model.hf_lam.parameters():
        torch.nn.init.zeros_(parameter)
    host = make_host("bert", num_hidden_layers=1)
    host.set_attn_implementation("eager")
    (stock,) = host(**with_past("whole"), output_attentions=True).attentions
    (masked,) = model(**with_past("whole"), output_attentions=True).attentions
    ratios = masked[..., :PAST] / stock[..., :PAST]  # one number in every row: the same scores, another sum
    assert max_difference(ratios, ratios[..., :1]) < 1e-4
    assert max_difference(masked[..., PAST:], masked[..., PAST : PAST + 1]) < 1e-6


@pytest.mark.parametrize("config", [SttConfig("dense"), SttConfig("random"), SttConfig()], ids=str)
def test_synthesised_attention_refuses_them_by_name(config: SttConfig) -> None:
    model = inject(make_host("bert"), config)
    with pytest.raises(ValueError, match=r"3 keys .*past_key_values.*prefix tuning.*no place on the grid.*SttConfig"):
        model(**with_past())


def test_a_pattern_or_replacement_that_says_nothing_refuses_them() -> None:
    class Pattern(MechanismConfig):
        change = "pattern"

    class Scores(MechanismConfig):
        pass

    refuse_past({"scores": Scores()}, PAST)
    with pytest.raises(ValueError, match="Pattern cannot be used"):
        refuse_past({"scores": Scores(), "pattern": Pattern()}, PAST)


# --- PEFT ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(CACHE == "cache", reason="PEFT 0.21 calls the cache of transformers 5.24 past_key_values")
@pytest.mark.parametrize("name", ["mask", "full_views", "both"])
def test_prefix_tuning_is_that_of_the_stock_model(name: str) -> None:
    def tuned(*configs: Any) -> Any:
        model = make_model(BertForSequenceClassification, "bert")
        model = convert(model, *configs) if configs else model
        prefix = get_peft_model(model, PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)).eval()
        torch.manual_seed(5)
        torch.nn.init.normal_(prefix.prompt_encoder["default"].embedding.weight)
        return prefix

    inputs = make_inputs("bert", token_types=True)
    stock, model = tuned(), tuned(*IDENTITIES[name])
    assert max_difference(model(**inputs).logits, stock(**inputs).logits) < 1e-5
    gradients = []
    for peft_model in (stock, model):
        peft_model(**inputs).logits.square().sum().backward()
        gradients.append(peft_model.prompt_encoder["default"].embedding.weight.grad)
    assert max_difference(*gradients) < 1e-5 and gradients[0].abs().max() > 1e-4


# --- costs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["per_layer", "half", "directed", "explicit"])
def test_costs_hold_the_prefix(name: str) -> None:
    model = make_host("bert")
    stock = cost(model, with_past())
    assert stock.agrees and stock.attention["full"] == 3 * 4 * 4 * 8 * 2 * 11 * (PAST + 11)
    inject(model, *mechanisms(name, "bert"))
    report = cost(model, with_past())
    without = cost(model, {**with_past(), CACHE: None, **no_past("padded")})
    assert report.agrees and report.attention["full"] == stock.attention["full"]
    if "own" in report.attention:
        queries = sum(report.segments.values())
        assert report.attention["own"] - without.attention["own"] == 3 * 4 * 4 * 8 * 2 * queries * PAST


def test_pictures_show_the_tokens_alone() -> None:
    model = inject(make_host("bert"), LamConfig())
    perturb_mechanisms(model)
    figure = plot_attention(model, with_past(), sample=1)
    shapes = {panel.images[0].get_array().shape for panel in figure.axes if panel.images}
    assert shapes == {(7, 7)}  # the second sample has 7 tokens


# --- the functions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("configs", [(LocomtConfig(segments=SPANS),), (LamConfig(), LocomtConfig(segments=SPANS))])
def test_views_are_calibrated_to_what_is_left_beside_the_prefix(configs: tuple[Any, ...]) -> None:
    model = inject(make_host("bert", initializer_range=0.5), *configs)
    maps = model(**with_past("whole"), output_attentions=True).attentions
    batches = [with_past("whole")]
    config, report = calibrate_views(model, batches, 0.8)
    mass = torch.tensor(report.mass_of_pairs)
    for layer, weights in enumerate(maps):
        between = weights[0, :, :, PAST:]
        for i, rows in enumerate((slice(0, 5), slice(5, 11))):
            for j, keys in enumerate((slice(0, 5), slice(5, 11))):
                assert max_difference(mass[layer, :, i, j], between[:, rows, keys].sum((1, 2)) / 11) < 1e-5
    assert report.total < 0.99 and report.full_cost == 11 * (PAST + 11)
    # What the table costs is what `cost` counts.
    inject(calibrated := make_host("bert"), config)
    layers = cost(calibrated, with_past("whole")).layers
    assert [sum(layer.formula["own"]) for layer in layers] == [4 * 8 * sum(row) for row in report.cost]


LAYOUTS = {
    "in order": Layout((4, 0, 3)),
    "apart": fixed_layout(torch.tensor([2, 0, 1, 0, 2, 1, 1]), (2, 3, 2)),
    "by sample": sample_layout(torch.tensor([[0, 2, 1, 0, 2, 2, 0], [1, 1, 2, 0, 1, 2, 1]]), 3),
}
VIEWS = [parse_view(view, ["a", "b", "c"]) for view in ("self", "cross:a-b", "full", "a>c", "self:b")]


def make_padding(kind: str | None, keys: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(1)
    if kind is None:
        return None
    seen = torch.rand(2, 1, 7 if kind == "by query" else 1, keys, generator=generator) > 0.3
    return torch.where(seen, 0.5, -float("inf")) if kind == "additive" else seen


@pytest.mark.parametrize("change", [None, "factor", "addend"])
@pytest.mark.parametrize("padding", [None, "by key", "by query", "additive"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_are_the_formula(layout: str, padding: str | None, change: str | None) -> None:
    keys = PAST + 7
    query, key, value = (torch.randn(2, 5, n, 8, requires_grad=True) for n in (7, keys, keys))
    inputs = [query, key, value]
    options: dict[str, Any] = {"attention_mask": make_padding(padding, keys)}
    if change is not None:
        options[change] = torch.rand(2, 1, 7, keys).requires_grad_()
        inputs.append(options[change])
    given = (query, key, value, LAYOUTS[layout], VIEWS)
    outputs = [attend(*given, **options) for attend in (attend_eager, attend_blocks)]
    gradients = [torch.autograd.grad(out, inputs, torch.ones_like(out)) for out in outputs]
    assert max_difference(*outputs) < 1e-5
    assert all(max_difference(*pair) < 1e-5 for pair in zip(*gradients, strict=True))
    annealed, _ = attend_annealed(*given, **options, penalty=torch.tensor(80.0))
    assert max_difference(annealed, outputs[0]) < 1e-4
    if padding is None and change is None:
        weights = attend_with_weights(*given)[1]
        alone = torch.softmax(query @ key.mT * 8**-0.5, -1)
        assert max_difference(weights[:, 2], alone[:, 2]) < 1e-6  # the full view
        assert (weights[..., :PAST] > 0).all()
