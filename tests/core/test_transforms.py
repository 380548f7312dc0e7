"""Derivatives by other ways than `backward`: the transforms of `torch.func`, forward mode, several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, linearize, vmap

from helpers.hosts import first_output, make_host, make_inputs, max_difference, mechanisms, perturb_mechanisms
from hf_lam import inject
from hf_lam.modeling.functional import lam_attention, locomt_attention, stt_attention
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


@pytest.mark.parametrize("name", ["per_layer", "half", "shared_lam"])
def test_second_derivatives_are_refused_by_fast_attention_and_right_in_the_reference(name: str) -> None:
    model = make_injected("vit", name)
    pixels = images("vit").requires_grad_()

    def differentiate_twice() -> Tensor:
        (gradient,) = torch.autograd.grad(model(pixels).last_hidden_state.square().sum(), pixels, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), pixels)[0]

    with pytest.raises(NotImplementedError, match=r"no second derivatives.*attn_implementation='eager'"):
        differentiate_twice()
    model.set_attn_implementation("eager")
    twice, along = differentiate_twice(), torch.randn_like(pixels)

    def gradient_norm(at: Tensor) -> Tensor:
        leaf = at.detach().requires_grad_()
        return torch.autograd.grad(model(leaf).last_hidden_state.square().sum(), leaf)[0].square().sum()

    difference = (gradient_norm(pixels + 1e-5 * along) - gradient_norm(pixels - 1e-5 * along)) / 2e-5
    torch.testing.assert_close((twice * along).sum(), difference, rtol=1e-5, atol=1e-6)


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
