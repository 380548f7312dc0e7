from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from helpers.hosts import LAM_CONFIGS, host_record
from hf_lam import LamConfig, LearnableAttentionMask, LocomtConfig
from hf_lam.modeling.hosts_hf_lam import HostTokens
from hf_lam.modeling.locomt_hf_lam import AttentionViews
from hf_lam.modeling.mechanism_hf_lam import PassStart
from hf_lam.modeling.mechanism_registry_hf_lam import mechanism_block

WIDTH, HEADS, LENGTH = 12, 3, 7


def make_mask(config: LamConfig, max_length: int = 9) -> LearnableAttentionMask:
    return LearnableAttentionMask(config, WIDTH, HEADS, max_length)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAM_CONFIGS)
def test_identity_is_exactly_what_changes_nothing(name: str, dtype: torch.dtype) -> None:
    config = LAM_CONFIGS[name]
    mask = make_mask(config).to(dtype)(torch.randn(2, LENGTH, WIDTH, dtype=dtype))
    assert mask.dtype == dtype
    assert mask.shape == (2, HEADS if config.per_head else 1, LENGTH, LENGTH)
    assert torch.equal(mask, torch.full_like(mask, 0.0 if config.combine == "add" else 1.0))


def hide(module: LearnableAttentionMask, token: torch.Tensor, depth: int) -> torch.Tensor:
    """What the last layer reads, written out."""
    hidden = torch.relu(module.in_weight @ token + module.in_bias)
    for layer in range(depth - 2):
        hidden = torch.relu(module.hidden_weight[layer] @ hidden + module.hidden_bias[layer])
    return hidden


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("per_head", [False, True])
def test_dense_mask_is_the_formula_of_the_paper(per_head: bool, depth: int) -> None:
    module = make_mask(LamConfig(per_head=per_head, bottleneck_size=5, init="normal", depth=depth))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.randn(2, LENGTH, WIDTH)
    mask = module(tokens)
    for head in range(HEADS if per_head else 1):
        for i in range(LENGTH):
            hidden = hide(module, tokens[1, i], depth)
            row = module.out_weight[head] @ hidden + module.out_bias[head]
            torch.testing.assert_close(mask[1, head, i], row[:LENGTH])


@pytest.mark.parametrize("depth", [2, 4])
def test_low_rank_mask_is_a_product_of_factors_of_that_rank(depth: int) -> None:
    module = make_mask(LamConfig(rank=2, bottleneck_size=6, depth=depth))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.randn(1, LENGTH, WIDTH)
    hidden = torch.stack([hide(module, token, depth) for token in tokens[0]])
    rows = hidden @ module.row_weight[0].T + module.row_bias[0]
    columns = hidden @ module.column_weight[0].T + module.column_bias[0]
    mask = module(tokens)[0, 0]
    torch.testing.assert_close(mask, rows @ columns.T)
    assert torch.linalg.matrix_rank(mask) == 2


@pytest.mark.parametrize("rank", [None, 2])
def test_a_non_negative_mask_is_softplus_of_what_the_network_computes(rank: int | None) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"rank": rank, "depth": 3, "bottleneck_size": 16}
    plain, positive = (make_mask(LamConfig(**options, non_negative=choice)) for choice in (False, True))
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter)
    positive.load_state_dict(plain.state_dict())
    tokens = 3 * torch.randn(20, LENGTH, WIDTH)
    mask = positive(tokens)
    shifted = plain(tokens).double() + math.log(math.e - 1)
    torch.testing.assert_close(mask, torch.logaddexp(shifted, torch.zeros_like(shifted)).float())
    assert (plain(tokens) < 0).any() and (mask >= 0).all()


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("options", [{}, {"combine": "add"}, {"non_negative": True}], ids=str)
def test_the_number_of_parameters_says_the_depth(rank: int | None, options: dict[str, Any]) -> None:
    shallow, deep = (
        sum(p.numel() for p in make_mask(LamConfig(rank=rank, bottleneck_size=4, depth=depth, **options)).parameters())
        for depth in (2, 5)
    )
    assert deep - shallow == 3 * (4 * 4 + 4)


def test_a_mask_of_two_layers_has_the_names_that_were_saved_before_there_was_a_depth() -> None:
    assert set(make_mask(LamConfig(combine="add")).state_dict()) == {"in_weight", "in_bias", "out_weight", "out_bias"}
    assert LamConfig.from_dict({"rank": 3}) == LamConfig(rank=3)


def test_what_is_saved_says_later_options_only_where_they_are_chosen() -> None:
    later = {"depth", "combine", "non_negative"}
    assert not later & set(mechanism_block(LamConfig(rank=3))["lam"])
    for options in ({"depth": 3}, {"combine": "add"}, {"non_negative": True}):
        block = mechanism_block(LamConfig(**options))
        assert later <= set(block["lam"])
        assert LamConfig.from_dict(block["lam"]) == LamConfig(**options)
        for name in later:
            lost = {key: value for key, value in block["lam"].items() if key != name}
            with pytest.raises(ValueError, match=rf"'lam' lacks \['{name}'\]"):
                mechanism_block({**block, "lam": lost})


@pytest.mark.parametrize("options", [{}, {"combine": "add"}, {"non_negative": True}, {"depth": 4}], ids=str)
def test_low_rank_factors_do_not_stay_alike_in_training(options: dict[str, Any]) -> None:
    module = make_mask(LamConfig(rank=3, bottleneck_size=16, **options))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(20):
        tokens = torch.randn(4, LENGTH, WIDTH)
        target = 1 + 0.1 * tokens @ tokens.mT
        optimizer.zero_grad()
        (module(tokens) - target.unsqueeze(1)).square().mean().backward()
        optimizer.step()
    mask = module(torch.randn(1, LENGTH, WIDTH))[0, 0]
    assert torch.linalg.matrix_rank(mask - mask.mean(), rtol=1e-4) > 1


@pytest.mark.parametrize("rank", [None, 1, 3])
@pytest.mark.parametrize("options", [{}, {"combine": "add"}, {"non_negative": True}, {"depth": 4}], ids=str)
def test_every_parameter_moves_within_a_few_steps(rank: int | None, options: dict[str, Any]) -> None:
    module = make_mask(LamConfig(rank=rank, bottleneck_size=16, **options))
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    tokens = torch.randn(2, 9, WIDTH)
    for _ in range(3):
        optimizer.zero_grad()
        (module(tokens) * torch.randn(2, 1, 9, 9)).sum().backward()
        optimizer.step()
    assert all(not torch.equal(before[name], parameter) for name, parameter in module.named_parameters())


def test_a_deep_network_keeps_the_size_of_its_signal() -> None:
    """So that its first layer still learns."""
    tokens = torch.randn(8, LENGTH, 64)
    sizes = []
    for depth in (2, 8):
        module = LearnableAttentionMask(LamConfig(depth=depth, bottleneck_size=64), 64, 1, LENGTH)
        torch.nn.init.normal_(module.out_weight)
        sizes.append(module(tokens).std())
    assert 0.2 < sizes[1] / sizes[0] < 5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"depth": 1}, "depth must be an integer from 2 to .*got 1"),
        ({"depth": 2.0}, "depth must be an integer.*got 2.0"),
        ({"depth": True}, "depth must be an integer.*got True"),
        ({"depth": None}, "depth must be an integer.*got None"),
        ({"combine": "sum"}, r"combine must be one of \['multiply', 'add'\], got 'sum'"),
        ({"non_negative": 1}, "non_negative must be True or False"),
        ({"non_negative": True, "combine": "add"}, "non_negative=True has no meaning with combine='add'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LamConfig(**options)


def test_normal_init_is_not_the_identity() -> None:
    assert make_mask(LamConfig(init="normal"))(torch.randn(1, LENGTH, WIDTH)).abs().max() < 0.5
    assert make_mask(LamConfig(init="normal", rank=2))(torch.randn(1, LENGTH, WIDTH)).abs().max() < 0.5
    added = make_mask(LamConfig(init="normal", combine="add", rank=2))(torch.randn(1, LENGTH, WIDTH))
    assert 0 < added.abs().max() < 0.5


def test_a_longer_sequence_names_both_lengths_and_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"12 tokens.*max_length=9.*rank"):
        make_mask(LamConfig())(torch.randn(1, 12, WIDTH))
    assert make_mask(LamConfig(rank=2))(torch.randn(1, 12, WIDTH)).shape[-1] == 12


@pytest.mark.parametrize("name", LAM_CONFIGS)
def test_all_values_are_written(name: str, poisoned_empty: None) -> None:
    assert all(parameter.isfinite().all() for parameter in make_mask(LAM_CONFIGS[name]).parameters())


def make_views(**options) -> AttentionViews:
    config = LocomtConfig(segments=[["a", 2], ["b", 3]], **{"views": [["self"] * HEADS], **options})
    return AttentionViews(config, host_record(HostTokens("BertModel", 5), num_heads=HEADS, head_size=WIDTH // HEADS))


def test_plain_views_have_no_tensors_of_their_own() -> None:
    assert not make_views().state_dict()
    assert set(make_views(annealing=True).state_dict()) == {"penalty"}
    assert set(make_views(bottleneck_tokens=4).state_dict()) == {"bottleneck"}


def test_views_start_without_penalty_and_with_random_bottleneck_tokens(poisoned_empty: None) -> None:
    assert make_views(annealing=True).penalty == 0
    bottleneck = make_views(bottleneck_tokens=4).bottleneck
    assert bottleneck.shape == (4, WIDTH)
    assert 0 < bottleneck.abs().max() < 0.2


def test_every_segment_gets_the_same_bottleneck_tokens() -> None:
    views = make_views(bottleneck_tokens=4)
    tokens = torch.randn(2, 5, WIDTH)
    longer = views.append_tokens(tokens)
    assert longer.shape == (2, 13, WIDTH)
    assert torch.equal(longer[:, :5], tokens)
    assert torch.equal(longer[1, 5:9], views.bottleneck)
    assert torch.equal(longer[1, 9:], views.bottleneck)
    assert views.layout(PassStart(None, None)).lengths == (6, 7)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_layout_of_token_types_follows_each_sample(order: list[int]) -> None:
    config = LocomtConfig(
        [["cls", {"length": 1, "global": True}], *([f"t{t}", {"token_type": t}] for t in order)], [["self"]]
    )
    token_types = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0]])
    tokens = HostTokens("BertModel", 5, token_types=2)
    layout = AttentionViews(config, host_record(tokens)).layout(PassStart(token_types, None))
    first, second = 1 + order.index(0), 1 + order.index(1)
    assert layout.segment_ids.tolist() == [[0, second, second, first, second], [0] + [first] * 4]
    lengths = [1, 0, 0]
    lengths[first], lengths[second] = 4, 3
    assert list(layout.lengths) == lengths
    # Into order and back, every token is itself again.
    tokens = torch.arange(5).expand(2, -1)
    assert torch.equal(tokens.gather(1, layout.order).gather(1, layout.places), tokens)
    assert layout.is_token.sum(1).tolist() == [5, 5]
