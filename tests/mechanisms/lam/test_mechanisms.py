from __future__ import annotations

import pytest
import torch

from helpers.hosts import LAM_CONFIGS, host_record
from hf_lam import LamConfig, LearnableAttentionMask, LocomtConfig
from hf_lam.modeling.hosts_hf_lam import HostTokens
from hf_lam.modeling.locomt_hf_lam import AttentionViews
from hf_lam.modeling.mechanism_hf_lam import PassStart

WIDTH, HEADS, LENGTH = 12, 3, 7


def make_mask(config: LamConfig, max_length: int = 9) -> LearnableAttentionMask:
    return LearnableAttentionMask(config, WIDTH, HEADS, max_length)


@pytest.mark.parametrize("name", LAM_CONFIGS)
def test_identity_is_exactly_one(name: str) -> None:
    config = LAM_CONFIGS[name]
    mask = make_mask(config)(torch.randn(2, LENGTH, WIDTH))
    assert mask.shape == (2, HEADS if config.per_head else 1, LENGTH, LENGTH)
    assert torch.equal(mask, torch.ones_like(mask))


@pytest.mark.parametrize("per_head", [False, True])
def test_dense_mask_is_the_formula_of_the_paper(per_head: bool) -> None:
    module = make_mask(LamConfig(per_head=per_head, bottleneck_size=5, init="normal"))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.randn(2, LENGTH, WIDTH)
    mask = module(tokens)
    for head in range(HEADS if per_head else 1):
        for i in range(LENGTH):
            hidden = torch.relu(module.in_weight @ tokens[1, i] + module.in_bias)
            row = module.out_weight[head] @ hidden + module.out_bias[head]
            torch.testing.assert_close(mask[1, head, i], row[:LENGTH])


def test_low_rank_mask_is_a_product_of_factors_of_that_rank() -> None:
    module = make_mask(LamConfig(rank=2, bottleneck_size=6))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.randn(1, LENGTH, WIDTH)
    hidden = torch.relu(tokens[0] @ module.in_weight.T + module.in_bias)
    rows = hidden @ module.row_weight[0].T + module.row_bias[0]
    columns = hidden @ module.column_weight[0].T + module.column_bias[0]
    mask = module(tokens)[0, 0]
    torch.testing.assert_close(mask, rows @ columns.T)
    assert torch.linalg.matrix_rank(mask) == 2


def test_low_rank_factors_do_not_stay_alike_in_training() -> None:
    module = make_mask(LamConfig(rank=3))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(20):
        tokens = torch.randn(4, LENGTH, WIDTH)
        target = 1 + 0.1 * tokens @ tokens.mT
        optimizer.zero_grad()
        (module(tokens) - target.unsqueeze(1)).square().mean().backward()
        optimizer.step()
    mask = module(torch.randn(1, LENGTH, WIDTH))[0, 0]
    assert torch.linalg.matrix_rank(mask - mask.mean(), rtol=1e-4) > 1


def test_every_dense_parameter_moves_within_two_steps() -> None:
    module = make_mask(LamConfig())
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    tokens = torch.randn(2, 9, WIDTH)
    for _ in range(2):
        optimizer.zero_grad()
        (module(tokens) * torch.randn(2, 1, 9, 9)).sum().backward()
        optimizer.step()
    assert all(not torch.equal(before[name], parameter) for name, parameter in module.named_parameters())


def test_normal_init_is_not_the_identity() -> None:
    assert make_mask(LamConfig(init="normal"))(torch.randn(1, LENGTH, WIDTH)).abs().max() < 0.5
    assert make_mask(LamConfig(init="normal", rank=2))(torch.randn(1, LENGTH, WIDTH)).abs().max() < 0.5


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
