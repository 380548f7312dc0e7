"""Derivatives by other ways than `backward`: the transforms of `torch.func`, forward mode, several at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, linearize, stack_module_state, vmap

from helpers.attention import small_parts
from helpers.hosts import first_output, make_host, make_inputs, max_difference, mechanisms, perturb_mechanisms
from hf_lam import inject
from hf_lam.modeling.functional import lam_attention, locomt_attention, stt_attention
from hf_lam.modeling.lam_attention_hf_lam import changed_attention
from hf_lam.modeling.locomt_views_hf_lam import parse_view

# Every fast path: the masks, the blocks, both, the annealed scores, the mode products, and what a mixture adds.
NAMES = [
    "per_layer",
    "shared_rank_per_head",
    "add",
    "non_negative_rank",
    "half",
    "lam",
    "annealing",
    "dense",
    "mixture_trained",
    "mixture_views",
]
IMAGES = [("vit", name) for name in NAMES if name not in ("lam", "annealing")] + [("videomae", "half")]


def slow(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


def make_injected(host: str, name: str) -> nn.Module:
    model = inject(make_host(host), *mechanisms(name, host)).double()
    perturb_mechanisms(model)
    return model


def images(host: str) -> Tensor:
    (pixels,) = make_inputs(host).values()
    return pixels.double()


@pytest.fixture(params=[*IMAGES, ("vit", "annealing"), ("vit", "shared_lam")], ids="-".join)
def case(request: Any) -> Iterator[tuple[nn.Module, Tensor]]:
    yield make_injected(*request.param), images(request.param[0])


def tangents_by(way: str, run: Callable[[Tensor], Tensor], at: Tensor, along: Tensor) -> Tensor:
    """`J v` in one of the ways that torch has."""
    if way == "jvp":
        return jvp(run, (at,), (along,))[1]
    if way == "linearize":
        return linearize(run, at)[1](along)
    if way == "jacfwd":
        return jacfwd(lambda t: run(at + t * along))(torch.zeros((), dtype=at.dtype))
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(run(forward_ad.make_dual(at, along))).tangent


@pytest.mark.parametrize("way", ["jvp", slow("linearize"), "jacfwd", "forward_ad"])
def test_forward_mode_is_backward_turned_round(case: tuple[nn.Module, Tensor], way: str) -> None:
    model, pixels = case

    def run(values: Tensor) -> Tensor:
        return model(values).last_hidden_state

    along, back = torch.randn_like(pixels), torch.randn_like(run(pixels))
    tangent = tangents_by(way, run, pixels, along)
    leaf = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(run(leaf), leaf, back)
    torch.testing.assert_close((tangent * back).sum(), (gradient * along).sum(), rtol=1e-8, atol=1e-10)
    assert tangent.abs().max() > 1e-3


def test_gradients_of_every_sample(case: tuple[nn.Module, Tensor]) -> None:
    model, pixels = case
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, parameters, (sample[None],)).last_hidden_state.square().sum()

    of_samples = vmap(grad(loss), (None, 0))(parameters, pixels)
    for index, sample in enumerate(pixels):
        model.zero_grad()
        model(sample[None]).last_hidden_state.square().sum().backward()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                torch.testing.assert_close(of_samples[name][index], parameter.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_products_with_a_hessian(case: tuple[nn.Module, Tensor]) -> None:
    """Forward over reverse, reverse over reverse, and by autograd of the gradients."""
    model, pixels = case

    def loss(pixels: Tensor) -> Tensor:
        return model(pixels).last_hidden_state.square().sum()

    along = torch.randn_like(pixels)
    leaf = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (expected,) = torch.autograd.grad((gradient * along).sum(), leaf)
    torch.testing.assert_close(jvp(grad(loss), (pixels,), (along,))[1], expected, rtol=1e-8, atol=1e-9)
    found = grad(lambda pixels: (grad(loss)(pixels) * along).sum())(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    assert expected.abs().max() > 1e-3


def test_several_models_at_once(case: tuple[nn.Module, Tensor]) -> None:
    model, pixels = case
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data *= 1.1
    # As torch's page on ensembles does: the model that is called has no weights.
    empty = copy.deepcopy(model).to("meta")

    def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return functional_call(empty, (parameters, buffers), (pixels,)).last_hidden_state

    found = vmap(run)(*stack_module_state([model, other]))
    for output, each in zip(found, (model, other), strict=True):
        torch.testing.assert_close(output, each(pixels).last_hidden_state, rtol=1e-9, atol=1e-10)


def test_rows_of_a_jacobian_at_once(case: tuple[nn.Module, Tensor]) -> None:
    model, pixels = case

    def run(scale: Tensor) -> Tensor:
        return model(pixels * scale).last_hidden_state[0, 0, :4]

    one = torch.ones((), dtype=pixels.dtype)
    rows = torch.autograd.functional.jacobian(run, one)
    torch.testing.assert_close(torch.autograd.functional.jacobian(run, one, vectorize=True), rows)
    torch.testing.assert_close(jacrev(run)(one), rows)


@pytest.mark.parametrize("name", ["per_layer", "add", "non_negative_deep", "directed", "lam", "dense", "mixture_all"])
def test_padded_texts_with_token_types(name: str) -> None:
    model = make_injected("bert", name)
    inputs = make_inputs("bert", token_types=True)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
        batch = {key: value if value.dim() == 2 else value[None] for key, value in inputs.items()}
        return functional_call(model, parameters, (), batch).last_hidden_state.square().sum()

    loss(parameters, inputs).backward()
    expected = {key: parameter.grad for key, parameter in parameters.items() if parameter.grad is not None}
    whole = grad(loss)(parameters, inputs)
    for key, gradient in expected.items():
        torch.testing.assert_close(whole[key], gradient, rtol=1e-6, atol=1e-9, msg=key)
    if name in ("directed", "lam"):  # which samples differ in: stock attention, too, cannot batch a padding mask
        return
    one_by_one = vmap(grad(loss), (None, 0))(parameters, {key: inputs[key] for key in ("input_ids", "token_type_ids")})
    assert all(one_by_one[key].shape == (2, *gradient.shape) for key, gradient in expected.items())


@pytest.mark.parametrize(
    ("host", "name"), [("vit", "per_layer"), ("vit", "half"), ("vit", "shared_lam"), ("bert", "directed")]
)
def test_second_derivatives_are_those_of_the_reference(host: str, name: str) -> None:
    model, inputs = make_injected(host, name), make_inputs(host, token_types=host == "bert")
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    parameters = list(model.parameters())

    def differentiate(times: int) -> list[Tensor]:
        value = first_output(model, inputs).square().sum()
        for _ in range(times):
            gradients = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
            found = [x for x in gradients if x is not None]
            value = sum(x.square().sum() for x in found)  # type: ignore[assignment]
        return [x.detach() for x in found]

    fast = differentiate(2)
    model.set_attn_implementation("eager")
    for found, expected in zip(fast, differentiate(2), strict=True):
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(found / scale, expected / scale, rtol=1e-9, atol=1e-11)


# --- the functions ---------------------------------------------------------------------------------------------------


def attend_with(function: str, implementation: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if function == "lam":
        mask = torch.linspace(0.5, 1.5, 49).double().view(1, 1, 7, 7)
        return lam_attention(query, key, value, mask, implementation=implementation)
    if function == "locomt":
        views = [parse_view(view, ["a", "b"]) for view in ("self", "cross:a-b")]
        return locomt_attention(query, key, value, [3, 4], views, implementation=implementation)
    axes = [query[..., 1:4, :3].softmax(-1), key[..., 2:4, :2].softmax(-1)]
    return stt_attention(value[..., :6, :], axes, implementation=implementation)


@pytest.mark.parametrize("function", ["lam", "locomt", "stt"])
def test_what_auto_chooses_has_tangents_and_batches(function: str) -> None:
    query, key, value = torch.randn(3, 2, 2, 7, 8, dtype=torch.double).unbind()

    def attend(implementation: str) -> Callable[[Tensor], Tensor]:
        return lambda x: attend_with(function, implementation, x, key * 2, x * value)

    tangent = jvp(attend("auto"), (query,), (key,))[1]
    torch.testing.assert_close(tangent, jvp(attend("eager"), (query,), (key,))[1])
    plain = (attend("auto")(query + 1e-6 * key) - attend("auto")(query - 1e-6 * key)) / 2e-6
    torch.testing.assert_close(tangent, plain, rtol=1e-6, atol=1e-7)
    assert tangent.abs().max() > 1e-2
    many = torch.stack([query, 2 * query])
    torch.testing.assert_close(vmap(attend("auto"))(many), torch.stack([attend("eager")(x) for x in many]))


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("is_padded", [False, True])
def test_second_derivatives_of_changed_scores(dropout_p: float, is_padded: bool) -> None:
    query, key, value = (torch.randn(2, 2, 3, 2, dtype=torch.double, requires_grad=True) for _ in range(3))
    factor, addend = (torch.randn(1, heads, 3, 3, dtype=torch.double, requires_grad=True) for heads in (2, 1))
    padding = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 0, 0]]).bool()[None, None] if is_padded else None

    def attend(query: Tensor, key: Tensor, value: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
        torch.manual_seed(0)
        options: Any = {"attention_mask": padding, "dropout_p": dropout_p, "implementation": "chunked"}
        # One input is computed of another one.
        return changed_attention(query, key + query, value, factor=factor, addend=addend, **options)

    with small_parts(chunk=8, rows=2):  # each of which draws its own dropout
        assert torch.autograd.gradgradcheck(attend, (query, key, value, factor, addend), fast_mode=True)


@pytest.mark.parametrize("is_padded", [False, True])
def test_second_and_third_derivatives_of_blocks(is_padded: bool) -> None:
    query, key, value = (torch.randn(1, 2, 5, 2, dtype=torch.double, requires_grad=True) for _ in range(3))
    views = [parse_view(view, ["a", "b"]) for view in ("self", "a>b")]
    padding = torch.tensor([1, 1, 0, 0, 0]).bool() if is_padded else None

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return locomt_attention(query, key + query, value, [2, 3], views, attention_mask=padding)

    def differentiate(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.autograd.grad(attend(query, key, value).square().sum(), query, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(attend, (query, key, value), fast_mode=True)
    if not is_padded:
        assert torch.autograd.gradgradcheck(differentiate, (query, key, value), fast_mode=True)


def test_kernels_asked_for_by_name_say_what_they_cannot() -> None:
    query, key, value = torch.randn(3, 2, 2, 7, 8, dtype=torch.double).unbind()
    with pytest.raises(ValueError, match=r'"chunked" has no forward-mode derivatives.*implementation="eager"'):
        jvp(lambda x: attend_with("lam", "chunked", x, key, value), (query,), (query,))
    with pytest.raises(NotImplementedError, match="forward AD"):  # torch's own words for its fused attention
        jvp(lambda x: attend_with("locomt", "blocks", x, key, value), (query,), (query,))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["per_layer", "half"])
def test_transforms_inside_a_compiled_program(name: str) -> None:
    model = make_injected("vit", name)
    pixels = images("vit")

    def norms(pixels: Tensor) -> Tensor:
        return vmap(grad(lambda sample: first_output(model, {"pixel_values": sample[None]}).square().sum()))(pixels)

    compiled = torch.compile(norms, backend="aot_eager")
    assert max_difference(compiled(pixels), norms(pixels)) < 1e-6
