"""calibrate_views: what it measures against plain attention maps, and what it chooses against every other table."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from transformers import BatchEncoding, BertForSequenceClassification

import hf_lam
from helpers.hosts import first_output, make_host, make_inputs, max_difference, perturb_mechanisms
from hf_lam import LamConfig, LocomtConfig, SttConfig
from hf_lam.locomt import calibration
from hf_lam.locomt.calibration import CalibrationReport, calibrate_views
from hf_lam.locomt.knapsack import choose
from hf_lam.modeling.locomt_views_hf_lam import parse_view, view_cost
from hf_lam.modeling.padding_hf_lam import valid_tokens


def make_batch(host: str, seed: int = 1) -> dict[str, torch.Tensor]:
    inputs = make_inputs(host, batch=3, seed=seed)
    if host == "bert":
        inputs["token_type_ids"] = torch.zeros(3, 11, dtype=torch.long)
        inputs["token_type_ids"][0, 4:] = 1
        inputs["token_type_ids"][1, 2:6] = 1  # the third sample has one segment only
    return inputs


def make_viewed(host: str, *configs: Any, **changes: Any) -> Any:
    """A tiny model with sharp attention."""
    model = hf_lam.inject(make_host(host, initializer_range=0.5, **changes), *(configs or (LocomtConfig(),)))
    if any(isinstance(config, LamConfig) for config in configs):
        perturb_mechanisms(model)
    return model


def segments_of(host: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """By hand: the segment of each token, `(B, L)`."""
    if host == "bert":
        return batch["token_type_ids"]
    if host == "videomae":  # 2 steps of 2 × 2 patches
        return torch.tensor([0] * 4 + [1] * 4).expand(3, -1)
    quadrants = [1 + 2 * (row // 2) + column // 2 for row in range(4) for column in range(4)]
    return torch.tensor([0, *quadrants]).expand(3, -1)  # [CLS] first


def expected_mass(maps: Any, segments: torch.Tensor, valid: torch.Tensor, count: int, first: int) -> torch.Tensor:
    """Row by row; `first` is the first segment that is not global."""
    mass = torch.zeros(len(maps), maps[0].shape[1], count, count, dtype=torch.float64)
    rows = 0
    for sample, of_token in enumerate(segments.tolist()):
        for query, i in enumerate(of_token):
            if not valid[sample, query] or i < first:
                continue
            rows += 1
            for layer, weights in enumerate(maps):
                for key, j in enumerate(of_token):
                    if j >= first:
                        mass[layer, :, i, j] += weights[sample, :, query, key]
    return mass / rows


@pytest.mark.parametrize("views", ["full", "half"])
@pytest.mark.parametrize("host", ["bert", "vit", "videomae"])
def test_mass_is_that_of_the_hosts_own_attention_maps(host: str, views: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_CHUNK", 200)  # a few rows at a time
    stock = make_host(host, initializer_range=0.5)
    stock.set_attn_implementation("eager")
    batches = [make_batch(host, seed) for seed in (1, 2)]
    with torch.no_grad():
        per_batch = [stock(**batch, output_attentions=True).attentions for batch in batches]
    maps = [torch.cat(layers) for layers in zip(*per_batch, strict=True)]
    segments = torch.cat([segments_of(host, batch) for batch in batches])
    valid = torch.cat([batch.get("attention_mask", torch.ones_like(segments[:3])) for batch in batches])
    _, report = calibrate_views(make_viewed(host, LocomtConfig(views=views)), batches, 1.0)
    first = 1 if host == "vit" else 0
    expected = expected_mass(maps, segments, valid, len(report.segments), first)
    assert max_difference(torch.tensor(report.mass_of_pairs), expected) < 1e-5
    assert max_difference(torch.tensor(report.mass_total), expected.sum((2, 3))) < 1e-5
    assert report.samples == 6
    if first == 0:
        assert report.total == pytest.approx(1)
    else:
        assert report.total < 0.99  # some of it lies on [CLS]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_mass_is_that_of_the_learnable_mask_too(implementation: str) -> None:
    lam = LamConfig(per_head=True)
    model = make_viewed("bert", lam, LocomtConfig(views="self"))
    reference = hf_lam.inject(make_host("bert", initializer_range=0.5), lam, LocomtConfig())
    reference.hf_lam.load_state_dict(model.hf_lam.state_dict())
    reference.set_attn_implementation("eager")
    model.set_attn_implementation(implementation)
    batch = make_batch("bert")
    with torch.no_grad():
        maps = reference(**batch, output_attentions=True).attentions
    _, report = calibrate_views(model, [batch])
    expected = expected_mass(maps, batch["token_type_ids"], batch["attention_mask"], 2, 0)
    assert max_difference(torch.tensor(report.mass_of_pairs), expected) < 1e-5


def test_mass_is_that_of_a_mixture_too() -> None:
    mixture = SttConfig(synthesizer="random")
    model = make_viewed("bert", mixture, LocomtConfig(views="self"))
    for synthesizer in model.hf_lam.stt:
        synthesizer.mixing.fill_(0.5)
    reference = hf_lam.inject(make_host("bert", initializer_range=0.5), mixture)
    reference.hf_lam.stt.load_state_dict(model.hf_lam.stt.state_dict())
    batch = make_batch("bert")
    with torch.no_grad():
        maps = reference(**batch, output_attentions=True).attentions
    _, report = calibrate_views(model, [batch])
    expected = expected_mass(maps, batch["token_type_ids"], batch["attention_mask"], 2, 0)
    assert max_difference(torch.tensor(report.mass_of_pairs), expected) < 1e-5


def test_measures_full_attention_while_annealing() -> None:
    batch = make_batch("bert")
    model = make_viewed("bert", LocomtConfig(views="self", annealing=True))
    model.hf_lam.locomt.penalty.fill_(7.0)
    config, report = calibrate_views(model, [batch])
    assert report.mass_of_pairs == calibrate_views(make_viewed("bert"), [batch])[1].mass_of_pairs
    assert config.annealing is False


def test_padding_may_have_any_form() -> None:
    keep = torch.tensor([[True, True, True, False], [True, False, False, False]])
    additive = torch.zeros(2, 1, 1, 4).masked_fill(~keep[:, None, None], torch.finfo(torch.float32).min)
    square = keep[:, None, None, :].expand(2, 1, 4, 4) & torch.ones(4, 4, dtype=torch.bool).tril(1).triu(-1)
    for padding in (keep[:, None, None], additive, additive.expand(2, 1, 4, 4), square):
        assert torch.equal(valid_tokens(padding, 2, 4), keep)


def test_costs_are_means_over_samples_and_count_global_tokens() -> None:
    batch = make_batch("bert")
    config, report = calibrate_views(make_viewed("bert"), [batch], 0.6)
    lengths = [(4, 7), (3, 4), (11, 0)]  # without padding
    assert report.full_cost == pytest.approx(sum((a + b) ** 2 for a, b in lengths) / 3)
    cost = {
        "full": report.full_cost,
        "self": sum(a * a + b * b for a, b in lengths) / 3,
        "cross:type_0-type_1": sum(2 * a * b for a, b in lengths) / 3,
    }
    flat = list(itertools.chain(*report.views))
    assert list(itertools.chain(*report.cost)) == pytest.approx([cost[view] for view in flat])
    assert report.flops_fraction == pytest.approx(sum(cost[view] for view in flat) / (12 * report.full_cost))
    assert report.flops_fraction <= 0.6
    assert config.views == report.views

    _, report = calibrate_views(make_viewed("vit"), [make_batch("vit")], 0.5)
    assert report.full_cost == 17**2
    names = ["cls", "top_left", "top_right", "bottom_left", "bottom_right"]
    views = {view for row in report.views for view in row}
    is_global = [True, False, False, False, False]
    for row, costs in zip(report.views, report.cost, strict=True):
        assert costs == [view_cost(parse_view(view, names, is_global), [1, 4, 4, 4, 4]) for view in row]
    assert len(views) > 1


def test_fixed_segments_cost_their_padding() -> None:
    batch = make_inputs("bert")
    segments = [["a", 5], ["b", 6]]
    _, report = calibrate_views(make_viewed("bert", LocomtConfig(segments=segments)), [batch])
    assert report.full_cost == 11**2
    rows = torch.tensor(report.mass_of_pairs)
    assert rows.sum((2, 3)).allclose(torch.ones(3, 4, dtype=rows.dtype))
    assert max_difference(rows[:, :, 0].sum(-1), torch.full((3, 4), 10 / 18)) < 1e-6  # 5 of 11 and 5 of 7 rows


@pytest.mark.parametrize("host", ["bert", "vit", "videomae"])
def test_the_whole_budget_gives_full_views(host: str) -> None:
    config, report = calibrate_views(make_viewed(host), [make_batch(host)], 1.0)
    assert {view for row in config.views for view in row} == {"full"}
    assert report.kept == pytest.approx(report.total)
    assert report.gap == 0 and report.flops_fraction == 1


@pytest.mark.parametrize("host", ["bert", "vit", "videomae"])
def test_the_table_beats_simple_ones_and_applies(host: str) -> None:
    batch = make_batch(host)
    model = make_viewed(host)
    config, report = calibrate_views(model, [batch], 0.75)
    all_self, at_budget = calibrate_views(model, [batch], 0.75, candidates=["self"])
    assert report.kept > at_budget.kept
    assert report.flops_fraction <= 0.75
    assert report.kept == pytest.approx(sum(map(sum, report.mass_kept)) / 12)
    hf_lam.set_views(model, config)
    changed = first_output(model, batch)
    again = make_host(host, initializer_range=0.5)
    hf_lam.inject(again, LocomtConfig(segments=config.segments, views=config.views))
    assert torch.equal(changed, first_output(again, batch))
    assert all_self.segments == config.segments


def test_what_is_kept_is_the_mass_inside_the_views() -> None:
    batch = make_batch("bert")
    candidates = ["type_0>type_1", "self:type_1", "full"]
    config, report = calibrate_views(make_viewed("bert"), [batch], 0.5, candidates=candidates)
    used = {view for row in config.views for view in row}
    assert used <= set(candidates) and len(used) > 1
    pairs = torch.tensor(report.mass_of_pairs)
    inside = {
        "type_0>type_1": pairs[..., 0, 1],
        "self:type_1": pairs[..., 1, 1],
        "full": pairs.sum((-1, -2)),
    }
    for layer, head in itertools.product(range(3), range(4)):
        kept = inside[config.views[layer][head]][layer, head].item()
        assert report.mass_kept[layer][head] == pytest.approx(kept)


def test_the_model_is_unchanged() -> None:
    batch = make_batch("bert")
    model = make_viewed("bert", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    expected = first_output(model, batch)
    model.train()
    model.encoder.layer[1].eval()
    flags = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    first = calibrate_views(model, [batch])
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert calibrate_views(model, [batch]) == first
    model.eval()
    assert torch.equal(first_output(model, batch), expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_is_unchanged_by_a_batch_that_fails() -> None:
    batch = make_batch("bert")
    model = make_viewed("bert").train()
    expected = first_output(model.eval(), batch)
    model.train()
    with pytest.raises(ValueError, match="input_ids"):
        calibrate_views(model, [batch, {"labels": torch.ones(1)}])
    assert model.training
    assert torch.equal(first_output(model.eval(), batch), expected)


def test_observed_outputs_are_those_of_full_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch("bert")
    with torch.no_grad():
        expected = first_output(make_host("bert", initializer_range=0.5), batch)
    model = make_viewed("bert", LocomtConfig(views="cross"))
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    calibrate_views(model, [batch])
    valid = batch["attention_mask"].bool()
    assert max_difference(seen[0][valid], expected[valid]) < 1e-4
    assert max_difference(first_output(model, batch)[valid], expected[valid]) > 1e-2


def test_takes_what_a_tokenizer_returns_with_labels_and_a_head() -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(make_host("bert").config)
    hf_lam.inject(model, LocomtConfig())
    batch = BatchEncoding({**make_batch("bert"), "labels": torch.tensor([0, 1, 0])})
    config, report = calibrate_views(model, iter([batch]), 0.6)
    assert config.names == report.segments == ["type_0", "type_1"]


def test_half_precision() -> None:
    batch = make_batch("bert")
    single = torch.tensor(calibrate_views(make_viewed("bert"), [batch])[1].mass_of_pairs)
    half = torch.tensor(calibrate_views(make_viewed("bert").bfloat16(), [batch])[1].mass_of_pairs)
    assert max_difference(single, half) < 0.05


def test_report_is_plain_json_and_reads_as_a_table() -> None:
    config, report = calibrate_views(make_viewed("bert"), [make_batch("bert")], 0.6)
    assert CalibrationReport(**json.loads(json.dumps(report.to_dict()))) == report
    lines = str(report).splitlines()
    letters = dict(line.split(",")[0].split(" = ") for line in lines if " = " in line)
    for layer, row in enumerate(config.views):
        (line,) = [line for line in lines if line.startswith(f"    {layer} ")]
        assert [letters[letter] for letter in line.split()[1::2]] == row
        assert line.split()[2::2] == [f"{100 * mass:.0f}" for mass in report.mass_kept[layer]]


# --- choosing --------------------------------------------------------------------------------------------------------


def total(values: Any, choices: Any) -> float:
    return sum(value[choice] for value, choice in zip(values, choices, strict=True))


@settings(max_examples=200, deadline=None)
@given(
    values=st.integers(1, 4).flatmap(
        lambda options: st.lists(
            st.lists(st.floats(0, 1).map(lambda x: round(x, 3)), min_size=options, max_size=options),
            min_size=1,
            max_size=5,
        )
    ),
    data=st.data(),
)
def test_choice_is_within_its_certified_gap_of_the_best(values: list[list[float]], data: Any) -> None:
    options = len(values[0])
    costs = data.draw(st.lists(st.integers(1, 20), min_size=options, max_size=options))
    capacity = data.draw(st.integers(min(costs) * len(values), max(costs) * len(values)))
    choices, upper_bound = choose(values, costs, capacity)
    assert sum(costs[choice] for choice in choices) <= capacity
    best = max(
        total(values, every)
        for every in itertools.product(range(options), repeat=len(values))
        if sum(costs[choice] for choice in every) <= capacity
    )
    assert total(values, choices) <= best + 1e-9 <= upper_bound + 2e-9
    # Exchanges of two heads leave nothing that one or two heads could gain.
    for i, j in itertools.combinations_with_replacement(range(len(values)), 2):
        for at_i, at_j in itertools.product(range(options), repeat=2):
            other = [*choices]
            other[i], other[j] = at_i, at_j
            if sum(costs[choice] for choice in other) <= capacity:
                assert total(values, other) <= total(values, choices) + 1e-9


@pytest.mark.parametrize("lengths", [(128, 128), (1568, 512), (784, 784, 784), (256, 196, 1568), (50, 60, 70, 80)])
def test_large_choices_are_nearly_exact(lengths: tuple[int, ...]) -> None:
    names = [f"s{i}" for i in range(len(lengths))]
    views = [parse_view(view, names) for view in ["full", *LocomtConfig([[n, 1] for n in names]).views_of_the_paper]]
    costs = [view_cost(view, lengths) for view in views]
    draw = random.Random(0)
    for budget in (0.55, 0.6, 0.75, 0.9):
        values = []
        for _ in range(144):
            pairs = {pair: draw.random() ** 3 for pair in views[0]}
            values.append([sum(pairs[pair] for pair in view) / sum(pairs.values()) for view in views])
        capacity = int(budget * 144 * costs[0])
        choices, upper_bound = choose(values, costs, capacity)
        assert sum(costs[choice] for choice in choices) <= capacity
        kept = total(values, choices)
        assert kept <= upper_bound <= kept * 1.005
        if len(lengths) > 2:  # not every head has the same view
            assert len(set(choices)) > 2


@pytest.mark.parametrize("seed", range(10))
def test_the_bound_is_the_optimum_of_the_linear_relaxation(seed: int) -> None:
    draw = random.Random(seed)
    heads, options = draw.randint(1, 12), draw.randint(2, 6)
    values = [[draw.random() for _ in range(options)] for _ in range(heads)]
    costs = [draw.randint(1, 50) for _ in range(options)]
    capacity = draw.randint(min(costs) * heads, max(costs) * heads)
    one_each = [[float(i // options == head) for i in range(heads * options)] for head in range(heads)]
    relaxed = linprog(
        [-value for row in values for value in row],
        A_ub=[costs * heads],
        b_ub=[capacity],
        A_eq=one_each,
        b_eq=[1.0] * heads,
    )
    assert choose(values, costs, capacity)[1] == pytest.approx(-relaxed.fun)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, -0.5, 1.01, float("nan"), "half", True])
def test_bad_budgets(budget: Any) -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\], got"):
        calibrate_views(make_viewed("vit"), [make_batch("vit")], budget)


def test_a_budget_no_table_can_meet_shows_the_numbers() -> None:
    cheapest = view_cost(parse_view("self:a", ["a", "b"]), [1, 7]) / 64
    model = make_viewed("videomae", LocomtConfig(segments=[["a", 1], ["b", 7]]))
    candidates = ["self:a", "full"]
    with pytest.raises(ValueError, match=r"no table meets budget=0.01.*0\.0156"):
        calibrate_views(model, [make_batch("videomae")], 0.01, candidates=candidates)
    config, report = calibrate_views(model, [make_batch("videomae")], cheapest, candidates=candidates)
    assert {view for row in config.views for view in row} == {"self:a"}
    assert report.flops_fraction == cheapest


def test_models_and_batches_that_cannot_be_measured() -> None:
    batch = make_batch("bert")
    with pytest.raises(ValueError, match="in 0 encoders"):
        calibrate_views(make_host("bert"), [batch])
    with pytest.raises(ValueError, match="in 0 encoders"):
        calibrate_views(make_viewed("bert", LamConfig()), [batch])
    two = torch.nn.ModuleList([make_viewed("bert"), make_viewed("bert")])
    with pytest.raises(ValueError, match="in 2 encoders"):
        calibrate_views(two, [batch])
    with pytest.raises(ValueError, match="bottleneck_tokens=2"):
        calibrate_views(make_viewed("vit", LocomtConfig(views="self", bottleneck_tokens=2)), [make_batch("vit")])
    with pytest.raises(ValueError, match="0 samples"):
        calibrate_views(make_viewed("bert"), [])
    with pytest.raises(TypeError, match="str"):
        calibrate_views(make_viewed("bert"), batch)  # one batch in place of several
    with pytest.raises(ValueError, match="add up to 8 tokens, but the sequence has 11"):
        calibrate_views(make_viewed("bert", LocomtConfig(segments=[["a", 4], ["b", 4]])), [make_inputs("bert")])


def test_bad_candidates() -> None:
    model, batches = make_viewed("bert"), [make_batch("bert")]
    with pytest.raises(ValueError, match="'c'"):
        calibrate_views(model, batches, candidates=["self:c"])
    with pytest.raises(ValueError, match="round_robin"):
        calibrate_views(model, batches, candidates=["round_robin"])
    with pytest.raises(ValueError, match="empty"):
        calibrate_views(model, batches, candidates=[])
    with pytest.raises(TypeError, match="list of views"):
        calibrate_views(model, batches, candidates="self")
