"""SttAttention2d: the identity at first, an attention over positions once it is trained, at every size it allows."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_lam.modeling.stt_config_hf_lam import SYNTHESIZERS
from hf_lam.stt.attention2d import SttAttention2d

CHANNELS, HEADS, MAX_SIZE = 8, 2, (6, 9)
SIZES = [(6, 9), (5, 7), (1, 1), (1, 9), (6, 1), (3, 3)]


def make(variant: str = "dense", trained: bool = False, **options: Any) -> SttAttention2d:
    block = SttAttention2d(CHANNELS, MAX_SIZE, HEADS, variant, **options)
    if trained:
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.5)
    return block


def formula(block: SttAttention2d, x: Tensor) -> Tensor:
    """`X + W_O · (W_V X ×_1 A_H ×_2 A_W)` in fp64, position by position, for the dense and the random variant."""
    batch, channels, height, width = x.shape
    x = x.double()
    matrices = []
    for axis, module in enumerate(block.synthesis.axes):
        size = (height, width)[axis]
        if block.config.variant == "dense":
            mean = x.mean(3 - axis)  # (B, C, n): over the other axis
            weights = {name: tensor.double() for name, tensor in module.named_parameters()}
            hidden = torch.einsum("wc,bcn->bwn", weights["in_weight"], mean) + weights["in_bias"][:, None]
            logits = torch.einsum("ow,bwn->bno", weights["out_weight"], hidden.clamp(min=0)) + weights["out_bias"]
            logits = logits.view(batch, size, HEADS, -1)[..., :size].permute(0, 2, 1, 3)
        else:
            logits = module.row_logits.double()[None, :, :size, :size].expand(batch, -1, -1, -1)
        exponentials = logits.exp()
        matrices.append(exponentials / exponentials.sum(-1, keepdim=True))

    def convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
        assert conv.bias is not None
        return torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0].double(), x) + conv.bias.double()[:, None, None]

    value = convolved(block.value, x).view(batch, HEADS, channels // HEADS, height, width)
    rows = []
    for i in range(height):
        columns = []
        for j in range(width):
            row, column = matrices[0][:, :, i], matrices[1][:, :, j]
            columns.append(
                sum(
                    row[:, :, None, u] * column[:, :, None, v] * value[..., u, v]
                    for u in range(height)
                    for v in range(width)
                )
            )
        rows.append(torch.stack(columns, dim=-1))
    return x + convolved(block.out, torch.stack(rows, dim=-2).reshape(batch, channels, height, width))


@pytest.mark.parametrize("variant", SYNTHESIZERS)
@pytest.mark.parametrize("size", SIZES)
def test_it_starts_as_the_identity(variant: str, size: tuple[int, int]) -> None:
    x = torch.randn(2, CHANNELS, *size)
    assert torch.equal(make(variant)(x), x)
    for axis, places in zip(make(variant).synthesized(x), size, strict=True):
        assert axis.shape[1:] == (HEADS, places, places)
        torch.testing.assert_close(axis.sum(-1), torch.ones(axis.shape[:-1]))


@pytest.mark.parametrize("implementation", ["auto", "eager", "modes"])
@pytest.mark.parametrize("variant", ["dense", "random"])
@pytest.mark.parametrize("size", [(5, 7), (1, 4), (1, 1)])
def test_is_the_formula(variant: str, size: tuple[int, int], implementation: str) -> None:
    block = make(variant, trained=True, implementation=implementation)
    x = torch.randn(2, CHANNELS, *size, requires_grad=True)
    actual, expected = block(x), formula(block, x)
    assert actual.shape == x.shape and (actual - x).abs().max() > 0.05
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)
    tensors = [x, *block.parameters()]
    grad = torch.randn_like(actual)
    found = torch.autograd.grad(actual, tensors, grad)
    for a, e in zip(found, torch.autograd.grad(expected, tensors, grad.double()), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", SYNTHESIZERS)
@pytest.mark.parametrize("size", SIZES)
def test_modes_are_eager_at_every_size(variant: str, size: tuple[int, int]) -> None:
    eager, modes = make(variant, trained=True, implementation="eager"), make(variant, implementation="modes")
    modes.load_state_dict(eager.state_dict())
    results = []
    for block in (eager, modes):
        torch.manual_seed(1)
        x = torch.randn(2, CHANNELS, *size, requires_grad=True)
        out = block(x)
        grads = torch.autograd.grad(out, [x, *block.parameters()], torch.randn_like(out))
        results.append((out, *grads))
    for a, e in zip(*results, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", SYNTHESIZERS)
def test_it_learns_to_turn_a_map_round(variant: str) -> None:
    """The convolutions alone move nothing between positions; the matrices of the axes can."""
    block = SttAttention2d(2, (4, 5), variant=variant, bottleneck_size=8 if "dense" in variant else None)
    optimizer = torch.optim.Adam(block.parameters(), lr=0.05)
    places = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 4), torch.linspace(-1, 1, 5), indexing="ij"))
    x = places + 0.1 * torch.randn(16, 2, 4, 5)
    target = places.flip(1, 2).expand_as(x)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = (block(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all((tensor != before[name]).any() for name, tensor in block.state_dict().items())


def test_frozen_matrices_stay_as_they_were_drawn() -> None:
    block = make("random", frozen=True)
    before = {name: tensor.clone() for name, tensor in block.synthesis.state_dict().items()}
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    x = torch.randn(2, CHANNELS, 4, 4)
    for _ in range(3):
        optimizer.zero_grad()
        block(x).square().sum().backward()
        optimizer.step()
    assert before and all(torch.equal(before[name], tensor) for name, tensor in block.synthesis.state_dict().items())
    assert not torch.equal(block(x), x)


def test_inside_a_network_nothing_changes_until_it_is_trained() -> None:
    layers = [nn.Conv2d(3, CHANNELS, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(CHANNELS, CHANNELS, 3)]
    plain = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with_it = nn.Sequential(*layers[:3], make(), layers[3], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(4, 3, 11, 17)
    torch.testing.assert_close(with_it(images), plain(images), rtol=0, atol=1e-6)
    optimizer = torch.optim.SGD(with_it.parameters(), lr=0.1)
    for _ in range(2):  # the first step moves W_O, from the second on all the others
        optimizer.zero_grad()
        with_it(images).square().sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in with_it[3].parameters())
    assert (with_it(images) - plain(images)).abs().max() > 1e-5


@pytest.mark.parametrize("variant", SYNTHESIZERS)
def test_state_dict_round_trip(variant: str) -> None:
    block, other = make(variant, trained=True), make(variant)
    saved = io.BytesIO()
    torch.save(block.state_dict(), saved)
    saved.seek(0)
    other.load_state_dict(torch.load(saved))
    x = torch.randn(2, CHANNELS, 5, 7)
    assert torch.equal(other(x), block(x))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_formats(memory_format: torch.memory_format) -> None:
    block = make(trained=True)
    x = torch.randn(2, CHANNELS, 5, 7)
    torch.testing.assert_close(block(x.to(memory_format=memory_format)), block(x))


@pytest.mark.parametrize("variant", ["dense", "random"])
def test_bf16(variant: str) -> None:
    block = make(variant, trained=True)
    x = torch.randn(2, CHANNELS, 5, 7)
    expected = block(x)
    # 8 bits of mantissa, through two convolutions and the synthesis.
    options = {"rtol": 0.0, "atol": 0.05 * expected.abs().max().item()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(block(x).float(), expected, **options)
    half = block.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, **options)
    half.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_a_batch_of_no_samples() -> None:
    for variant in SYNTHESIZERS:
        assert make(variant, trained=True)(torch.randn(0, CHANNELS, 4, 4)).shape == (0, CHANNELS, 4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [pytest.param("dense", marks=pytest.mark.slow), "random"])
def test_compile_is_one_graph(variant: str) -> None:
    torch.compiler.reset()
    block = make(variant, trained=True)
    x = torch.randn(2, CHANNELS, 5, 7)
    actual = torch.compile(block, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(actual, block(x))
    found = torch.autograd.grad(actual.square().sum(), list(block.parameters()))
    for a, e in zip(found, torch.autograd.grad(block(x).square().sum(), list(block.parameters())), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "mixture"}, "variant must be one of .*got 'mixture'"),
        ({"variant": "fast"}, "variant must be one of .*got 'fast'"),
        ({"max_size": 7}, r"max_size must be \(height, width\), got 7"),
        ({"max_size": (7,)}, r"max_size must be \(height, width\), got \(7,\)"),
        ({"max_size": (7, 0)}, r"got \[7, 0\]|got \(7, 0\)"),
        ({"channels": 0}, "channels must be an integer of at least 1, got 0"),
        ({"channels": 8.0}, r"channels must be an integer of at least 1, got 8\.0"),
        ({"num_heads": True}, "num_heads must be an integer of at least 1, got True"),
        ({"num_heads": 3}, "8 channels do not divide into 3 heads"),
        ({"rank": 2}, "rank=2 has no meaning for variant='dense'"),
        ({"variant": "random", "bottleneck_size": 2}, "bottleneck_size=2 has no meaning for variant='random'"),
        ({"frozen": True}, "frozen=True has no meaning for variant='dense'"),
        ({"implementation": "fast"}, "implementation must be one of .*got 'fast'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SttAttention2d(**{"channels": CHANNELS, "max_size": MAX_SIZE, **options})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, CHANNELS, 7, 9), r"the feature map is 7 × 9, but .*max_size=\(6, 9\)"),
        ((2, CHANNELS, 6, 10), "the feature map is 6 × 10"),
        ((2, CHANNELS, 0, 3), "the feature map is 0 × 3, but .* from 1 × 1"),
        ((2, CHANNELS + 1, 5, 5), r"takes feature maps \(B, 8, H, W\), got \(2, 9, 5, 5\)"),
        ((CHANNELS, 5, 5), r"takes feature maps \(B, 8, H, W\), got \(8, 5, 5\)"),
    ],
)
def test_maps_that_do_not_fit_are_refused_with_both_sizes(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()(torch.zeros(shape))
