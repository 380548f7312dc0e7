"""Mechanisms together: the outputs of a model are those of a formula, written down here once more by hand.

softmax( ((1 − λ) · Q Kᵀ · scaling + λ · log P − Σ slope · |distance|) ⊙ M · exp(t), over what the view shows ) V
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from helpers.hosts import make_host, make_inputs, perturb_mechanisms
from helpers.stt_attention import whole_map
from hf_lam import LamConfig, LocomtConfig, SttConfig, inject
from hf_lam.modeling.host_attention_hf_lam import find_attentions
from hf_lam.modeling.injection_hf_lam import injection_of, mechanism_of
from hf_lam.modeling.mechanism_hf_lam import ScoreChange, compose
from hf_lam.modeling.mechanism_registry_hf_lam import order_of_changes

HOSTS = ("bert", "vit", "videomae")
GRIDS: dict[str, tuple[int, ...]] = {"bert": (11,), "vit": (4, 4), "videomae": (2, 2, 2)}
PREFIX = {"bert": 0, "vit": 1, "videomae": 0}
# The segment of every token; None sees, and is seen by, all. BERT's are those of the batch.
SEGMENTS: dict[str, list[int | None]] = {
    "vit": [None, *[int(column >= 1) for _ in range(4) for column in range(4)]],
    "videomae": [*[0] * 3, *[1] * 5],
}
EXTENTS: dict[str, list[Any]] = {
    "bert": [["a", {"token_type": 0}], ["b", {"token_type": 1}]],
    "vit": [["a", {"rectangle": [0, 0, 4, 1]}], ["b", {"rectangle": [0, 1, 4, 3]}]],
    "videomae": [["a", 3], ["b", 5]],
}
SEES: dict[str, Callable[[int, int], bool]] = {
    "self": lambda i, j: i == j,
    "full": lambda i, j: True,
    "cross:a-b": lambda i, j: i != j,
    "a>b+self": lambda i, j: i == j or (i, j) == (0, 1),
}
TABLE = [list(SEES), list(reversed(SEES)), ["full", "self", "self", "a>b+self"]]
NAMES = ("stt", "distance_bias", "lam", "head_temperature", "locomt")


def configs_of(names: tuple[str, ...], host: str, door: Any) -> list[Any]:
    made = {
        "stt": SttConfig(synthesizer="random", train_mixing=True),
        "distance_bias": door.DistanceBiasConfig(),
        "lam": LamConfig(per_head=True),
        "head_temperature": door.HeadTemperatureConfig(),
        "locomt": LocomtConfig(segments=EXTENTS[host], views=TABLE),
    }
    return [made[name] for name in names]


class Formula:
    """Attention as at the top of this file, in one piece, with the weights of a model that was injected."""

    def __init__(self, model: Any, host: str, inputs: dict[str, Tensor]) -> None:
        self.host = host
        self.inputs = inputs
        self.mechanisms = {name: mechanism_of(model, name) for name in injection_of(model).configs}

    def __call__(
        self, layer: int, x: Tensor, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scaling: float
    ) -> Tensor:
        batch, length = x.shape[:2]
        scores = query @ key.transpose(2, 3) * scaling
        if "stt" in self.mechanisms:
            synthesizer = self.mechanisms["stt"][layer]
            share = synthesizer.mixing.view(1, -1, 1, 1)
            scores = (1 - share) * scores + share * self.synthetic_map(synthesizer, allowed).clamp(min=1e-300).log()
        if "distance_bias" in self.mechanisms:
            slopes = self.mechanisms["distance_bias"].get_parameter(f"slopes_{layer}")
            scores = scores - torch.einsum("hd,ijd->hij", slopes, self.distances(length))
        if "lam" in self.mechanisms:
            lam = self.mechanisms["lam"][layer]
            hidden = (x @ lam.in_weight.T + lam.in_bias).clamp(min=0)
            rows = torch.einsum("bid,hjd->bhij", hidden, lam.out_weight) + lam.out_bias[:, None]
            scores = scores * rows[..., :length]
        if "head_temperature" in self.mechanisms:
            scores = scores * self.mechanisms["head_temperature"].get_parameter(f"t_{layer}").exp()[:, None, None]
        seen = allowed.expand(batch, 4, length, length)
        if "locomt" in self.mechanisms:
            seen = seen & self.views(layer, length)
        # A token that sees none gets nothing.
        weights = torch.where(seen, scores, -math.inf).softmax(-1)
        return torch.where(seen.any(-1, keepdim=True), weights, 0.0).nan_to_num() @ value

    def synthetic_map(self, synthesizer: Any, allowed: Tensor) -> Tensor:
        axes = [axis.row_logits for axis in synthesizer.axes]
        if self.host == "bert":
            length = allowed.shape[-1]
            return torch.where(allowed, axes[0][None, :, :length, :length], -math.inf).softmax(-1)
        shares = None if synthesizer.shares is None else synthesizer.shares(17).softmax(-1)
        return whole_map([logits.softmax(-1)[None] for logits in axes], shares)

    def distances(self, length: int) -> Tensor:
        prefix, grid = PREFIX[self.host], GRIDS[self.host]
        places = list(itertools.product(*map(range, grid)))
        found = torch.zeros(length, length, len(grid), dtype=torch.float64)
        for (i, one), (j, other) in itertools.product(enumerate(places), repeat=2):
            found[prefix + i, prefix + j] = torch.tensor([abs(a - b) for a, b in zip(one, other, strict=True)])
        return found

    def views(self, layer: int, length: int) -> Tensor:
        rows = self.inputs["token_type_ids"].tolist() if self.host == "bert" else [SEGMENTS[self.host]]
        return torch.tensor(
            [
                [[[None in (i, j) or SEES[view](i, j) for j in where] for i in where] for view in TABLE[layer]]
                for where in rows
            ]
        )


def run_formula(formula: Callable[..., Tensor], host: str, inputs: dict[str, Tensor]) -> Tensor:
    """A stock model with the formula in place of its attention."""
    stock = make_host(host, initializer_range=0.2).double()
    attentions = find_attentions(stock)
    read: dict[Any, Tensor] = {}

    def enter(module: Any, args: Any, kwargs: Any) -> None:
        read[module] = args[0] if args else kwargs["hidden_states"]

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **_: Any) -> Any:
        allowed = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool) if mask is None else mask
        context = formula(attentions.index(module), read[module], query, key, value, allowed, scaling)
        return context.transpose(1, 2).contiguous(), None

    for module in attentions:
        module.register_forward_pre_hook(enter, with_kwargs=True)
    AttentionInterface.register("by_hand", attend)
    AttentionMaskInterface.register("by_hand", sdpa_mask)
    stock.set_attn_implementation("by_hand")
    return stock(**inputs).last_hidden_state


def double_inputs(host: str) -> dict[str, Tensor]:
    inputs = make_inputs(host, batch=3, token_types=True)
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


@pytest.mark.parametrize("host", [HOSTS[0], *(pytest.param(host, marks=pytest.mark.slow) for host in HOSTS[1:])])
@pytest.mark.parametrize("names", [s for n in range(1, 6) for s in itertools.combinations(NAMES, n)], ids="-".join)
def test_outputs_and_gradients_are_those_of_the_formula(names: tuple[str, ...], host: str, door: Any) -> None:
    inputs = double_inputs(host)
    # In any order of the configurations.
    model = inject(make_host(host, initializer_range=0.2), *reversed(configs_of(names, host, door))).double()
    perturb_mechanisms(model)
    assert injection_of(model).order == [name for name in NAMES if name in names and name != "locomt"]
    parameters = [parameter for name, parameter in model.named_parameters() if "hf_lam" in name]
    expected = run_formula(Formula(model, host, inputs), host, inputs)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    is_trained = [parameter for parameter in parameters if parameter.requires_grad]
    wanted = torch.autograd.grad((expected * weights).sum(), is_trained) if is_trained else ()
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        found = model(**inputs).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
        if is_trained:
            gradients = torch.autograd.grad((found * weights).sum(), is_trained)
            for gradient, by_hand in zip(gradients, wanted, strict=True):
                torch.testing.assert_close(gradient, by_hand, rtol=1e-6, atol=1e-8)
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        torch.testing.assert_close(model(**inputs).last_hidden_state, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("host", ["vit", "videomae"])
@pytest.mark.parametrize("reach", [None, 0, 2])
def test_a_window_of_ones_own_under_changes_of_scores(reach: int | None, host: str, door: Any) -> None:
    inputs = double_inputs(host)
    names = ("stt", "distance_bias", "lam", "head_temperature")
    configs = [*configs_of(names, host, door), door.LocalWindowConfig(reach=reach)]
    model = inject(make_host(host, initializer_range=0.2), *configs).double()
    perturb_mechanisms(model)
    formula = Formula(model, host, inputs)

    def within(
        layer: int, x: Tensor, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, *more: Any
    ) -> Tensor:
        places = torch.arange(x.shape[1])
        near = (places[:, None] - places).abs() <= (x.shape[1] if reach is None else reach)
        return formula(layer, x, query, key, value, allowed & near, *more)

    expected = run_formula(within, host, inputs)
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        torch.testing.assert_close(model(**inputs).last_hidden_state, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("host", HOSTS)
def test_an_average_of_ones_own(host: str, door: Any) -> None:
    inputs = double_inputs(host)
    model = inject(make_host(host, initializer_range=0.2), door.UniformAverageConfig()).double()

    def average(layer: int, x: Tensor, query: Any, key: Any, value: Tensor, allowed: Tensor, scaling: Any) -> Tensor:
        weights = allowed.double().expand(x.shape[0], 4, x.shape[1], -1)
        return weights / weights.sum(-1, keepdim=True) @ value

    expected = run_formula(average, host, inputs)
    torch.testing.assert_close(model(**inputs).last_hidden_state, expected, rtol=0, atol=1e-10)


def test_changes_come_one_after_the_other() -> None:
    scores = torch.randn(2, 3, 5, 5)
    changes = [
        ScoreChange(factor=torch.randn(2, 1, 5, 5)),
        ScoreChange(addend=torch.randn(3, 1, 5)),
        ScoreChange(),
        ScoreChange(factor=torch.randn(3, 5, 1), addend=torch.randn(1, 1, 5, 5)),
        ScoreChange(factor=torch.randn(())),
    ]
    for count in range(len(changes) + 1):
        expected = scores
        for change in changes[:count]:
            expected = expected if change.factor is None else expected * change.factor
            expected = expected if change.addend is None else expected + change.addend
        factor, addend = compose(changes[:count])
        found = scores if factor is None else scores * factor
        torch.testing.assert_close(found if addend is None else found + addend, expected)


def test_the_order_is_that_of_their_numbers_and_then_of_their_names(door: Any) -> None:
    configs = {config.name: config for config in configs_of(NAMES, "vit", door)}
    assert order_of_changes(configs) == ["stt", "distance_bias", "lam", "head_temperature"]
    assert order_of_changes(dict(reversed(configs.items()))) == order_of_changes(configs)
