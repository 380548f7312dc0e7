"""The trainable parts of synthesised attention: what they compute, how they start, and how λ stays in its range."""

import copy
import io
import math
import pickle
import re

import pytest
import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from helpers.hosts import host_record
from hf_lam import SttConfig
from hf_lam.modeling.hosts_hf_lam import HostTokens
from hf_lam.modeling.stt_attention_hf_lam import stt_attention, synthetic_map
from hf_lam.modeling.stt_config_hf_lam import SYNTHESIZERS
from hf_lam.modeling.stt_synthesizers_hf_lam import (
    AttentionSynthesizer,
    DenseAxis,
    DenseShares,
    RandomAxis,
    RandomShares,
)

VIT = HostTokens("ViTModel", 197, prefix=1, grid=(14, 14))
VIDEOMAE = HostTokens("VideoMAEModel", 1568, grid=(8, 14, 14), frames_per_step=2)
BERT = HostTokens("BertModel", 512, token_types=2)
UNKNOWN = HostTokens("RoFormerModel", None)

HEADS, HIDDEN, BATCH = 2, 6, 3
GRID = (3, 4)


def make(variant: str = "dense", grid: tuple[int, ...] = GRID, prefix: int = 1, **options: object) -> nn.Module:
    config = SttConfig(variant, grid=list(grid), prefix_tokens=prefix, **options)
    return AttentionSynthesizer(config.resolve(host_record(UNKNOWN, head_size=HIDDEN // HEADS)), HIDDEN, HEADS)


def make_tokens(grid: tuple[int, ...] = GRID, prefix: int = 1, batch: int = BATCH) -> Tensor:
    return torch.randn(batch, prefix + math.prod(grid), HIDDEN)


def perturb(module: nn.Module) -> None:
    """Numbers as after training, so that nothing is zero or alike."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))


# --- resolving ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "options", "grid", "prefix"),
    [
        (VIT, {}, [14, 14], 1),
        (VIT, {"grid": [7, 28]}, [7, 28], 1),
        # For inputs of another size.
        (VIT, {"grid": [16, 16]}, [16, 16], 1),
        (VIT, {"grid": [13, 17]}, [13, 17], 1),
        (VIT, {"grid": [256]}, [256], 1),
        (VIDEOMAE, {"grid": [16, 14, 14]}, [16, 14, 14], 0),
        (VIDEOMAE, {"grid": [4, 196]}, [4, 196], 0),
        (VIT, {"grid": [197], "prefix_tokens": 0}, [197], 0),
        (VIT, {"grid": [195], "prefix_tokens": 2}, [195], 2),
        (VIDEOMAE, {}, [8, 14, 14], 0),
        (VIDEOMAE, {"grid": [8, 196]}, [8, 196], 0),
        (BERT, {}, [512], 0),
        (BERT, {"grid": [128]}, [128], 0),
        (BERT, {"prefix_tokens": 1}, [511], 1),
        (BERT, {"grid": [8, 16], "prefix_tokens": 1}, [8, 16], 1),
        (UNKNOWN, {"grid": [64]}, [64], 0),
        (UNKNOWN, {"grid": [8, 8], "prefix_tokens": 2}, [8, 8], 2),
    ],
)
def test_resolve_finds_the_grid(tokens: HostTokens, options: dict, grid: list[int], prefix: int) -> None:
    resolved = SttConfig("random", **options).resolve(host_record(tokens, head_size=64))
    assert (resolved.grid, resolved.prefix_tokens) == (grid, prefix)
    assert resolved.resolve(host_record(tokens, head_size=64)) == resolved


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (
            VIT,
            {"grid": [195]},
            r"\[195\] with 1 prefix tokens makes 196 tokens, and ViTModel has 197: 1 before a grid of",
        ),
        (
            VIT,
            {"grid": [2, 2, 40]},
            r"makes 161 tokens, and ViTModel has 197: 1 before a grid of \[14, 14\]. Leave both",
        ),
        (VIT, {"prefix_tokens": 0}, "with 0 prefix tokens makes 196 tokens, and ViTModel has 197"),
        (VIDEOMAE, {"grid": [16, 97]}, r"makes 1552 tokens, and VideoMAEModel has 1568"),
        (VIDEOMAE, {"prefix_tokens": 1}, r"makes 1569 tokens, and VideoMAEModel has 1568"),
        (BERT, {"grid": [513]}, "makes 513 tokens, and BertModel takes at most 512. Leave both out"),
        (BERT, {"grid": [512], "prefix_tokens": 1}, "makes 513 tokens, and BertModel takes at most 512"),
        (BERT, {"prefix_tokens": 512}, r"the grid \[0\] with 512 prefix tokens"),
        (UNKNOWN, {}, r"RoFormerModel does not say how many tokens it has. Give SttConfig\(grid="),
    ],
)
def test_resolve_says_with_numbers_what_does_not_fit(tokens: HostTokens, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SttConfig(**options).resolve(host_record(tokens, head_size=64))


def test_resolve_fills_in_the_sizes_of_the_variant() -> None:
    for variant in ("dense", "factorized_dense"):
        assert SttConfig(variant).resolve(host_record(VIT, head_size=64)).bottleneck_size == 64
        assert SttConfig(variant, bottleneck_size=5).resolve(host_record(VIT, head_size=64)).bottleneck_size == 5
    assert SttConfig("mixture").resolve(host_record(VIT, head_size=64)).bottleneck_size == 64
    assert SttConfig("random").resolve(host_record(VIT, head_size=64)).bottleneck_size is None
    assert SttConfig("factorized_random").resolve(host_record(VIT, head_size=64)).rank == 8
    assert SttConfig("mixture", "factorized_random", rank=3).resolve(host_record(VIT, head_size=64)).rank == 3
    video = host_record(VIDEOMAE, head_size=64)
    assert SttConfig("factorized_dense").resolve(video).factors == [[2, 4], [2, 7], [2, 7]]
    assert SttConfig("factorized_dense", grid=[36, 13, 1]).resolve(host_record(UNKNOWN, head_size=64)).factors == [
        [6, 6],
        [1, 13],
        [1, 1],
    ]
    given = SttConfig("factorized_dense", factors=[[1, 14], [7, 2]])
    assert given.resolve(host_record(VIT, head_size=64)).factors == [[1, 14], [7, 2]]
    for factors in ([[1, 14]], [[2, 8], [2, 7]]):
        with pytest.raises(ValueError, match=r"factors must be .* for grid=\[14, 14\]"):
            SttConfig("factorized_dense", factors=factors).resolve(host_record(VIT, head_size=64))


# --- what the variants compute -----------------------------------------------------------------------------------


def written_out(axis: DenseAxis, rows: Tensor) -> Tensor:
    """`W2 · relu(W1 · x̄)`, one row of `W2` for every head and place."""
    hidden = torch.einsum("wd,brd->brw", axis.in_weight, rows) + axis.in_bias
    weight, bias = axis.out_weight.view(HEADS, -1, hidden.shape[-1]), axis.out_bias.view(HEADS, -1)
    return torch.einsum("hnw,brw->bhrn", weight, hidden.clamp(min=0)) + bias[:, None]


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("grid", [(5,), (3, 4), (2, 3, 4), (1, 3), (3, 1)])
def test_dense_is_the_formula_over_the_means_of_the_other_axes(
    grid: tuple[int, ...], padded: bool, prefix: int
) -> None:
    synthesis = make(grid=grid, prefix=prefix)
    perturb(synthesis)
    tokens = make_tokens(grid, prefix)
    is_token = None
    if padded:
        is_token = torch.rand(tokens.shape[:2]) > 0.3
        is_token[0] = False
        tokens = torch.where(is_token.unsqueeze(-1), tokens, 100.0)
    logits = synthesis(tokens, grid, is_token)
    assert logits.mixing is None
    counted = torch.ones(tokens.shape[:2]) if is_token is None or len(grid) == 1 else is_token.float()
    counted, x = counted[:, prefix:].view(BATCH, *grid), tokens[:, prefix:].view(BATCH, *grid, HIDDEN)
    names = "tuv"[: len(grid)]
    for axis, (module, found, places) in enumerate(zip(synthesis.axes, logits.axes, grid, strict=True)):
        total = torch.einsum(f"b{names},b{names}d->b{names[axis]}d", counted, x)
        number = torch.einsum(f"b{names}->b{names[axis]}", counted)[..., None].clamp(min=1)
        rows = torch.cat([tokens[:, :prefix], total / number], dim=1)
        assert found.shape == (BATCH, HEADS, prefix + places, places)
        torch.testing.assert_close(found, written_out(module, rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", SYNTHESIZERS)
@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("grid", [(5,), (3, 4), (2, 3, 4)])
def test_shapes_and_rows_of_one(variant: str, prefix: int, grid: tuple[int, ...]) -> None:
    synthesis = make(variant, grid, prefix)
    perturb(synthesis)
    logits = synthesis(make_tokens(grid, prefix), grid)
    batch = BATCH if synthesis.is_dense else 1
    assert [tuple(x.shape) for x in logits.axes] == [(batch, HEADS, prefix + n, n) for n in grid]
    axes, shares = logits.weights()
    assert (shares is not None) == (prefix > 0)
    tensors = axes if shares is None else [*axes, shares]
    for weights in tensors:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    log_axes, log_shares = logits.log_weights()
    for logs, weights in zip([*log_axes, log_shares], [*axes, shares], strict=True):
        assert (logs is None) == (weights is None)
        if logs is not None:
            torch.testing.assert_close(logs.exp(), weights)
    whole = synthetic_map(axes, shares)
    assert whole.shape == (batch, HEADS, *[prefix + math.prod(grid)] * 2)
    torch.testing.assert_close(whole.sum(-1), torch.ones(whole.shape[:-1]))
    if not synthesis.is_dense:  # parameters of its own for every row; a dense one's depends on what its token holds
        rows = whole[0, 0].double()
        assert (torch.cdist(rows, rows) + torch.eye(len(rows)) > 1e-4).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_normalised_in_fp32(dtype: torch.dtype) -> None:
    synthesis = make().to(dtype)
    axes, shares = synthesis(make_tokens().to(dtype), GRID).weights()
    log_axes, log_shares = synthesis(make_tokens().to(dtype), GRID).log_weights()
    assert {x.dtype for x in (*axes, shares, *log_axes, log_shares)} == {torch.float32}


def test_slices_of_padding_get_no_weight() -> None:
    synthesis = make(prefix=0)
    perturb(synthesis)
    is_token = torch.ones(BATCH, *GRID, dtype=torch.bool)
    is_token[0, :, 2:] = False  # two columns of padding
    is_token[1, 1, 1] = False  # one place, which empties no row and no column
    is_token[2] = False
    logits = synthesis(make_tokens(prefix=0), GRID, is_token.flatten(1))
    rows, columns = logits.weights()[0]
    assert (columns[0, ..., 2:] == 0).all() and (columns[0, ..., :2] > 0).all()
    assert (rows[:2] > 0).all() and (columns[1] > 0).all()
    assert (rows[2] == 0).all() and (columns[2] == 0).all()
    for weights, logarithms in zip((rows, columns), logits.log_weights()[0], strict=True):
        torch.testing.assert_close(weights[:2].sum(-1), torch.ones(weights[:2].shape[:-1]))
        assert logarithms.isfinite().all()
        torch.testing.assert_close(logarithms.exp()[weights > 0], weights[weights > 0])
    (rows.sum() + columns.sum() + sum(x.sum() for x in logits.log_weights()[0])).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in synthesis.parameters())


def test_rows_of_factorized_dense_are_products_of_two_vectors() -> None:
    synthesis = make("factorized_dense", (6, 4), factors=[[2, 3], [4, 1]])
    perturb(synthesis)
    tokens = make_tokens((6, 4))
    for module, found, (s, t) in zip(synthesis.axes, synthesis(tokens, (6, 4)).axes, [(2, 3), (4, 1)], strict=True):
        assert module.out_bias.numel() == HEADS * (s + t)
        tiles = found.unflatten(-1, (s, t))
        assert (torch.linalg.matrix_rank(tiles.detach(), rtol=1e-4) == 1).all()
    grid = tokens[:, 1:].view(BATCH, 6, 4, HIDDEN)
    both = written_out(synthesis.axes[0], torch.cat([tokens[:, :1], grid.mean(2)], dim=1))
    by_hand = torch.einsum("bhrs,bhrt->bhrst", both[..., :2], both[..., 2:]).reshape(BATCH, HEADS, 7, 6)
    torch.testing.assert_close(synthesis(tokens, (6, 4)).axes[0], by_hand, rtol=1e-4, atol=1e-4)


def test_every_weight_of_factorized_dense_gets_a_gradient_at_once() -> None:
    synthesis = make("factorized_dense", (6, 4))
    value = torch.randn(BATCH, HEADS, 25, 2)
    axes, shares = synthesis(make_tokens((6, 4)), (6, 4)).weights()
    stt_attention(value, axes, prefix_shares=shares).square().sum().backward()
    for name, parameter in synthesis.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_factorized_dense_starts_where_one_factor_leaves_the_other_free() -> None:
    axis = DenseAxis(HIDDEN, HEADS, 4, (2, 3), 0.02)
    logits = axis(torch.zeros(1, 5, HIDDEN))
    assert (logits == 0).all()
    logits.sum().backward()
    # Five rows, times the two entries of the first factor; with both factors at 0 there would be no gradient.
    assert torch.equal(axis.out_bias.grad.view(HEADS, -1), torch.tensor([0.0, 0.0, 10.0, 10.0, 10.0]).repeat(HEADS, 1))


@pytest.mark.parametrize("rank", [1, 2])
def test_factorized_random_has_its_rank(rank: int) -> None:
    synthesis = make("factorized_random", (6, 7), rank=rank)
    for found, module in zip(synthesis(make_tokens((6, 7)), (6, 7)).axes, synthesis.axes, strict=True):
        assert (torch.linalg.matrix_rank(found.detach(), rtol=1e-5) == rank).all()
        by_hand = torch.einsum("hir,hjr->hij", module.row_logits, module.column_logits)
        torch.testing.assert_close(found[0], by_hand)


@pytest.mark.parametrize("variant", ["random", "factorized_random"])
def test_random_is_the_same_for_all_inputs_and_dense_is_not(variant: str) -> None:
    synthesis = make(variant)
    first, second = (synthesis(make_tokens(), GRID).weights() for _ in range(2))
    for a, b in zip((*first[0], first[1]), (*second[0], second[1]), strict=True):
        assert torch.equal(a, b) and a.shape[0] == 1
    dense = make()
    first, second = (dense(make_tokens(), GRID).weights() for _ in range(2))
    assert all((a != b).any() for a, b in zip((*first[0], first[1]), (*second[0], second[1]), strict=True))


@pytest.mark.parametrize("variant", ["random", "factorized_random"])
def test_what_is_frozen_is_saved_and_not_trained(variant: str) -> None:
    frozen, trained = make(variant, frozen=True), make(variant)
    assert not list(frozen.parameters())
    assert dict(frozen.named_buffers()).keys() == dict(trained.named_parameters()).keys()
    assert frozen.state_dict().keys() == trained.state_dict().keys() and len(frozen.state_dict()) > 2
    trained.load_state_dict(frozen.state_dict())
    tokens = make_tokens()
    for a, b in zip(frozen(tokens, GRID).weights()[0], trained(tokens, GRID).weights()[0], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("variant", SYNTHESIZERS)
def test_a_shorter_text_takes_the_first_part(variant: str) -> None:
    synthesis = make(variant, (12,), prefix=0)
    perturb(synthesis)
    tokens = make_tokens((12,), prefix=0)
    (whole,), (part,) = synthesis(tokens, (12,)).axes, synthesis(tokens[:, :5], (5,)).axes
    assert part.shape[2:] == (5, 5)
    torch.testing.assert_close(part, whole[:, :, :5, :5])


@pytest.mark.parametrize("variant", SYNTHESIZERS)
def test_a_shorter_text_keeps_the_rows_of_its_prefix(variant: str) -> None:
    synthesis = make(variant, (12,), prefix=2)
    perturb(synthesis)
    tokens = make_tokens((12,), prefix=2)
    whole, part = synthesis(tokens, (12,)), synthesis(tokens[:, :7], (5,))
    torch.testing.assert_close(part.axes[0], whole.axes[0][:, :, :7, :5])
    torch.testing.assert_close(part.shares, whole.shares[:, :, :7])


# --- how they start ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["dense", "factorized_dense"])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_an_untrained_dense_map_is_nearly_the_plain_mean(variant: str, prefix: int) -> None:
    synthesis = make(variant, prefix=prefix)
    axes, shares = synthesis(make_tokens(prefix=prefix), GRID).weights()
    length = prefix + 12
    whole = synthetic_map(axes, shares)
    # Logits of some 0.02 · 6 ** 0.5 for a share and less for an axis.
    assert (whole * length - 1).abs().max() < 0.4 and 0 < whole.std() * length < 0.1


@pytest.mark.parametrize("variant", ["random", "factorized_random"])
def test_random_logits_start_with_variance_one(variant: str) -> None:
    for logits in make(variant, (40, 50)).eval()(make_tokens((40, 50)), (40, 50)).axes:
        assert 0.7 < logits.std() < 1.4


@pytest.mark.parametrize("prefix", [1, 3])
def test_shares_start_at_the_plain_means(prefix: int) -> None:
    dense = DenseShares(HIDDEN, HEADS, prefix, 12, 0.02)
    logits = dense(torch.zeros(1, prefix + 12, HIDDEN))
    assert logits.shape == (1, HEADS, prefix + 12, 1 + prefix) and (logits[..., 0] == 0).all()
    mean = torch.tensor([12.0, *[1.0] * prefix]) / (prefix + 12)
    torch.testing.assert_close(logits.softmax(-1), mean.expand_as(logits))
    drawn = RandomShares(64, prefix, 12, frozen=False)(prefix + 12)
    assert drawn.shape == (1, 64, prefix + 12, 1 + prefix) and (drawn[..., 0] == 0).all()
    assert abs(drawn[..., 1:].mean() + math.log(12)) < 0.2


@pytest.mark.parametrize("variant", SYNTHESIZERS)
@pytest.mark.parametrize("train_mixing", [False, True])
def test_reset_parameters_writes_everything(variant: str, train_mixing: bool) -> None:
    synthesis = make("mixture", synthesizer=variant, train_mixing=train_mixing)
    tensors = [*synthesis.parameters(), *synthesis.buffers()]
    with torch.no_grad():
        for tensor in tensors:
            tensor.fill_(float("nan"))
    for module in synthesis.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(tensor.isfinite().all() for tensor in tensors) and (synthesis.mixing == 0).all()


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize(
    ("variant", "frozen"),
    [*((variant, False) for variant in SYNTHESIZERS), ("random", True), ("factorized_random", True)],
)
def test_nothing_is_left_unwritten(variant: str, frozen: bool) -> None:
    synthesis = make("mixture", synthesizer=variant, frozen=frozen)
    assert all(tensor.isfinite().all() for tensor in synthesis.state_dict().values())


# --- λ -----------------------------------------------------------------------------------------------------------


def mixing_of(synthesis: nn.Module) -> Tensor:
    return synthesis(make_tokens(), GRID).mixing


@pytest.mark.parametrize("train_mixing", [False, True])
def test_lambda_starts_at_zero_and_is_a_buffer_or_a_parameter(train_mixing: bool) -> None:
    synthesis = make("mixture", train_mixing=train_mixing)
    assert torch.equal(mixing_of(synthesis), torch.zeros(HEADS))
    assert ("mixing" in dict(synthesis.named_parameters())) == train_mixing
    assert ("mixing" in dict(synthesis.named_buffers())) != train_mixing
    assert "mixing" in synthesis.state_dict()
    assert "mixing" not in make().state_dict() and mixing_of(make()) is None


def test_a_trained_lambda_is_clamped_and_its_gradient_leads_inwards_only() -> None:
    numbers = [-0.3, 0.0, 0.4, 1.0, 1.7]
    for sign, passes in ((1.0, [0, 0, 1, 1, 1]), (-1.0, [1, 1, 1, 0, 0])):
        config = SttConfig("mixture", "random", grid=[3], prefix_tokens=0, train_mixing=True)
        synthesis = AttentionSynthesizer(config, 10, 5)
        with torch.no_grad():
            synthesis.mixing.copy_(torch.tensor(numbers))
        mixing = synthesis(torch.randn(1, 3, 10), (3,)).mixing
        assert torch.equal(mixing, torch.tensor([0.0, 0.0, 0.4, 1.0, 1.0]))
        mixing.backward(torch.full((5,), 2.0 * sign))
        # Descent goes against the gradient: a positive one would push λ below 0, a negative one above 1.
        assert torch.equal(synthesis.mixing.grad, 2.0 * sign * torch.tensor(passes))


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_a_lambda_that_was_pushed_out_comes_back(end: float) -> None:
    synthesis = make("mixture", train_mixing=True)
    with torch.no_grad():
        synthesis.mixing.fill_(0.5)
    optimizer = torch.optim.SGD([synthesis.mixing], lr=0.3)

    def descend(target: float, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (mixing_of(synthesis) - target).square().sum().backward()
            optimizer.step()

    # One step overshoots far beyond the end, and more of them go no further.
    descend(end + (end - 0.5) * 10, 1)
    outside = synthesis.mixing.detach().clone()
    assert ((outside < 0) | (outside > 1)).all()
    descend(end + (end - 0.5) * 10, 5)
    assert torch.equal(synthesis.mixing.detach(), outside)
    descend(0.25, 60)
    torch.testing.assert_close(synthesis.mixing.detach(), torch.full((HEADS,), 0.25))


# --- as a module -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", SYNTHESIZERS)
def test_deepcopy_and_pickle(variant: str) -> None:
    synthesis = make("mixture", synthesizer=variant, train_mixing=True)
    saved = io.BytesIO()
    torch.save(synthesis, saved)
    saved.seek(0)
    tokens = make_tokens()
    expected = synthesis(tokens, GRID)
    copies = [copy.deepcopy(synthesis), pickle.loads(pickle.dumps(synthesis)), torch.load(saved, weights_only=False)]
    for other in copies:
        assert other.config == synthesis.config and other.state_dict().keys() == synthesis.state_dict().keys()
        assert all(torch.equal(a, b) for a, b in zip(other(tokens, GRID).axes, expected.axes, strict=True))
        with torch.no_grad():
            other.mixing.fill_(1.0)
        assert (synthesis.mixing == 0).all()


@pytest.mark.parametrize("variant", SYNTHESIZERS)
def test_no_name_is_one_that_transformers_renames(variant: str) -> None:
    names = list(make("mixture", synthesizer=variant).state_dict())
    # Unanchored patterns of hosts: see the conversion mappings of BERT, ViT and VideoMAE.
    words = ["layers", "layer", "attention", "query", "key", "output", "dense", "mlp", "fc1", "fc2", "gamma", "beta"]
    patterns = [re.escape(word) for word in words]
    for host in ("bert", "vit", "videomae"):
        for renaming in get_checkpoint_conversion_mapping(host) or []:
            patterns += (
                [renaming.source_patterns] if isinstance(renaming.source_patterns, str) else (renaming.source_patterns)
            )
    assert names and not [(name, pattern) for name in names for pattern in patterns if re.search(pattern, name)]


@pytest.mark.parametrize("variant", SYNTHESIZERS)
def test_no_tool_that_looks_for_linear_layers_finds_one(variant: str) -> None:
    assert not [m for m in make("mixture", synthesizer=variant).modules() if isinstance(m, (nn.Linear, nn.Conv1d))]


def test_extra_repr_shows_the_options() -> None:
    shown = repr(make("mixture", synthesizer="factorized_random"))
    assert "variant=mixture, synthesizer=factorized_random, grid=[3, 4], prefix_tokens=1, rank=8" in shown
    assert "None" not in shown and "frozen" not in shown


def test_random_axis_of_fewer_places() -> None:
    axis = RandomAxis(HEADS, 2, 7, rank=3, frozen=False)
    torch.testing.assert_close(axis(4), axis(7)[:, :, :6, :4])
