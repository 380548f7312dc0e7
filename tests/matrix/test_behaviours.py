"""Behaviours × hosts × mechanisms: what holds for every combination, and what is refused.

A row is a host (`columns.HOSTS`), a column is a mechanism or several together (`columns.MECHANISMS`), the example
mechanisms among them. `REFUSED` lists the pairs that cannot be attached, and `reason_to_skip` says where a behaviour
has no meaning or is not tried, which shows as skipped; everything else must hold.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hf_lam
from helpers.checkpointing import checkpoint_activations, keep_activations
from hf_lam import convert, cost, freeze_host, inject, load_mechanism, mechanism_parameters, remove, save_mechanism
from hf_lam.modeling.injection_hf_lam import injected_encoders, injection_of, list_changes
from hf_lam.modeling.layers_hf_lam import container_of
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES
from matrix.columns import HOSTS, MECHANISMS

NO_GRID = "one grid"
REFUSED: dict[tuple[str, str], str] = {
    **{
        ("fusion", name): NO_GRID
        for name in ("stt_mixture", "stt_dense", "stt_random", "stt+lam_add", "stt+lam+views")
    },
    ("fusion", "distance_bias"): NO_GRID,
    ("fusion", "temperature+distance+lam"): NO_GRID,
}
PAIRS = [(host, name) for host in HOSTS for name in MECHANISMS if (host, name) not in REFUSED]

TOLERANCE = 1e-5


def attach(host: str, name: str, *, moved: bool = True) -> tuple[Any, dict[str, Any]]:
    """A host with mechanisms, and inputs.

    moved: with weights and schedules away from where they start, so that they take part.
    """
    model = inject(HOSTS[host].make(), *MECHANISMS[name].configs())
    if moved:
        move(model)
    return model, HOSTS[host].inputs()


def move(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    for base in injected_encoders(model):
        for parameter in container_of(base).parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter)
        for buffer_name, buffer in container_of(base).named_buffers():
            if buffer_name.endswith(("penalty", "mixing")):
                buffer.fill_(0.4)


def hidden(model: Any, inputs: dict[str, Any], **options: Any) -> Tensor:
    return model(**inputs, **options).last_hidden_state


def difference(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max())


def gradients(model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    model.train().zero_grad()
    # transformers' BERT makes a cache in training unless told not to, which checkpointing then switches off.
    if "input_ids" in inputs and "pixel_values" not in inputs:
        inputs = {**inputs, "use_cache": False}
    hidden(model, inputs).square().sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and "pooler" not in n}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # Some, such as those of the keys' biases, are rounding around zero.
        scale = gradient.abs().max().clamp(min=0.1)
        assert float((found[name] - gradient).abs().max() / scale) < tolerance, name


# --- the behaviours --------------------------------------------------------------------------------------------------


def changes_what_it_says(host: str, name: str, tmp_path: Path) -> None:
    stock, inputs = HOSTS[host].make(), HOSTS[host].inputs()
    expected = hidden(stock, inputs)
    model, _ = attach(host, name, moved=False)
    found = difference(hidden(model, inputs), expected)
    if MECHANISMS[name].changes:
        assert found > 1e-5 and list_changes(model)
    else:
        assert found < TOLERANCE and not list_changes(model)


def takes_part(host: str, name: str, tmp_path: Path) -> None:
    stock = HOSTS[host].make()
    model, inputs = attach(host, name)
    if name != "views_full":
        assert difference(hidden(model, inputs), hidden(stock, inputs)) > 1e-4


def comes_off(host: str, name: str, tmp_path: Path) -> None:
    stock = HOSTS[host].make()
    model, inputs = attach(host, name)
    if MECHANISMS[name].replaces:
        with pytest.raises(ValueError, match="no query and key projections any more"):
            remove(model)
        return
    hidden(model, inputs)
    remove(model)
    assert torch.equal(hidden(model, inputs), hidden(stock, inputs))
    assert model.state_dict().keys() == stock.state_dict().keys()
    left = [key for module in model.modules() for key in module.__dict__ if "hf_lam" in key]
    assert not left and not any(module._forward_pre_hooks for module in model.modules())


def returns_its_maps(host: str, name: str, tmp_path: Path) -> None:
    model, inputs = attach(host, name)
    outputs = model(**inputs, output_attentions=True)
    assert len(outputs.attentions) == model.config.num_hidden_layers
    assert difference(outputs.last_hidden_state, hidden(model, inputs)) < TOLERANCE
    for weights in outputs.attentions:
        assert weights.shape[:2] == (2, model.config.num_attention_heads)
        sums = weights.sum(-1)
        if name not in ("views_annealing", "stt+lam+views"):  # rows that see nothing fade while annealing
            assert (((sums - 1).abs() < 1e-4) | (sums.abs() < 1e-6)).all()


def leaves_padding_out(host: str, name: str, tmp_path: Path) -> None:
    model, inputs = attach(host, name)
    mask = inputs["attention_mask"]
    length = int(mask[1].sum())
    # Whatever stands in the padding, and alone without it.
    other = {**inputs, "input_ids": torch.where(mask.bool(), inputs["input_ids"], 7)}
    outputs = hidden(model, inputs)
    assert difference(hidden(model, other)[1, :length], outputs[1, :length]) < TOLERANCE
    if any(config.exact_tokens for config in injection_of(injected_encoders(model)[0]).configs.values()):
        return
    alone = {key: value[1:2] for key, value in inputs.items()}
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        if key in alone:
            alone[key] = alone[key][:, :length]
    found = hidden(model, alone)
    assert difference(found[0, :length], outputs[1, :length]) < TOLERANCE


def gives_the_same_gradients_under_checkpointing(host: str, name: str, tmp_path: Path) -> None:
    model, inputs = attach(host, name)
    expected = gradients(model, inputs)
    for use_reentrant in (False, True):
        checkpoint_activations(model, use_reentrant)
        assert_same_gradients(gradients(model, inputs), expected)
        keep_activations(model)


def gets_gradients(host: str, name: str, tmp_path: Path) -> None:
    model, inputs = attach(host, name)
    freeze_host(model)
    found = gradients(model, inputs)
    parameters = {id(parameter) for parameter in mechanism_parameters(model)}
    names = {n for n, p in model.named_parameters() if id(p) in parameters}
    assert set(found) == names
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in found.values())


def is_the_same_eager_and_fast(host: str, name: str, tmp_path: Path) -> None:
    model, inputs = attach(host, name)
    expected, expected_gradients = hidden(model, inputs), gradients(model, inputs)
    model.eval().set_attn_implementation("eager")
    assert difference(hidden(model, inputs), expected) < TOLERANCE
    assert_same_gradients(gradients(model, inputs), expected_gradients, 1e-4)


def copies_and_pickles(host: str, name: str, tmp_path: Path) -> None:
    model, inputs = attach(host, name)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    expected = hidden(model, inputs)
    for twin in twins:
        assert torch.equal(hidden(twin, inputs), expected)
        for parameter in mechanism_parameters(twin):
            parameter.data.zero_()
        assert torch.equal(hidden(model, inputs), expected)
        if not MECHANISMS[name].replaces:
            remove(twin)
    assert torch.equal(hidden(model, inputs), expected)


def keeps_its_mechanisms_alone(host: str, name: str, tmp_path: Path) -> None:
    model, inputs = attach(host, name)
    save_mechanism(model, tmp_path / "mechanism")
    again = load_mechanism(HOSTS[host].make(), tmp_path / "mechanism")
    assert torch.equal(hidden(again, inputs), hidden(model, inputs))


def costs_what_it_says(host: str, name: str, tmp_path: Path) -> None:
    model, inputs = attach(host, name)
    expected = hidden(model, inputs)
    report = cost(model, inputs)
    assert report.agrees
    assert report.mechanism_parameters == sum(p.numel() for p in mechanism_parameters(model))
    assert torch.equal(hidden(model, inputs), expected)


def runs_in_half_precision(host: str, name: str, tmp_path: Path) -> None:
    model, inputs = attach(host, name)
    expected = hidden(model, inputs)
    model.to(torch.bfloat16)
    halved = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in inputs.items()}
    found = hidden(model, halved).float()
    assert found.isfinite().all() and difference(found, expected) < 0.2 * float(expected.abs().max())


def trains_a_copy_under_peft(host: str, name: str, tmp_path: Path) -> None:
    import peft

    model, inputs = attach(host, name)
    projections = ("query", "q_proj", "value", "v_proj")
    targets = [n for n, m in model.named_modules() if n.endswith(projections) and isinstance(m, nn.Linear)]
    config = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=["hf_lam"])
    adapted = peft.get_peft_model(model, config)
    expected = hidden(adapted, inputs)
    copies = [p for n, p in adapted.named_parameters() if ".modules_to_save." in n]
    for parameter in copies:
        parameter.data += 0.3 * torch.randn_like(parameter)
    changed = hidden(adapted, inputs)
    if copies:
        assert difference(changed, expected) > 1e-5
    with adapted.disable_adapter():
        assert difference(hidden(adapted, inputs), expected) < TOLERANCE


def saves_and_loads(host: str, name: str, tmp_path: Path) -> None:
    """Whole, with its code beside it; `test_travel.py` and the cross-version check load it where hf_lam is not."""
    from transformers import AutoModel

    converted = _converted(host, name)
    move(converted)
    inputs = HOSTS[host].inputs()
    converted.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again).__name__ == type(converted).__name__
    assert torch.equal(hidden(again, inputs), hidden(converted, inputs))
    assert all((tmp_path / file).is_file() for file in TRAVELLING_FILES)


def _converted(host: str, name: str) -> Any:
    stock = HOSTS[host].make()
    configs = MECHANISMS[name].configs()
    if host != "fusion":
        return convert(stock, *configs)
    inject(stock, *configs)
    return stock


def compiles_whole(host: str, name: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    model, inputs = attach(host, name)
    expected = hidden(model, inputs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert difference(compiled(**inputs).last_hidden_state, expected) < TOLERANCE


def exports(host: str, name: str, tmp_path: Path) -> None:
    model, inputs = attach(host, name)
    expected = hidden(model, inputs)
    program = torch.export.export(model, (), inputs, strict=False)
    assert difference(program.module()(**inputs).last_hidden_state, expected) < TOLERANCE


QUICK: list[Callable[[str, str, Path], None]] = [
    changes_what_it_says,
    takes_part,
    comes_off,
    returns_its_maps,
    leaves_padding_out,
    gives_the_same_gradients_under_checkpointing,
    gets_gradients,
    is_the_same_eager_and_fast,
    copies_and_pickles,
    keeps_its_mechanisms_alone,
    costs_what_it_says,
    runs_in_half_precision,
    trains_a_copy_under_peft,
]
SLOW: list[Callable[[str, str, Path], None]] = [saves_and_loads, compiles_whole, exports]


def reason_to_skip(behaviour: Callable[..., None], host: str, name: str) -> str | None:
    """Why a behaviour has no meaning, or is not tried, somewhere; None if it must hold."""
    row = HOSTS[host]
    if behaviour is leaves_padding_out and not row.padding:
        return "takes no padding"
    if behaviour is gets_gradients and name in ("views_full", "views_half", "views_annealing"):
        return "with these views has no parameters"
    if behaviour is compiles_whole and host not in ("bert", "fusion"):
        return "is not compiled with everything: bert and fusion are"
    if behaviour is exports and host not in ("vit", "fusion"):
        return "is not exported with everything: vit and fusion are"
    return None


# What `make test` tries: every behaviour on these hosts with these mechanisms. The rest of the table is slow.
QUICK_HOSTS = ("bert", "vit", "fusion")
QUICK_MECHANISMS = ("lam", "views_half", "stt_dense", "stt+lam+views", "temperature+distance+lam", "head_temperature")


def cases(behaviours: list[Callable[..., None]], is_slow: bool) -> list[Any]:
    return [
        pytest.param(
            behaviour,
            host,
            name,
            id=f"{behaviour.__name__}-{host}-{name}",
            marks=_marks(behaviour, host, name, is_slow),
        )
        for behaviour in behaviours
        for host, name in PAIRS
    ]


def _marks(behaviour: Callable[..., None], host: str, name: str, is_slow: bool) -> list[Any]:
    is_slow = is_slow or host not in QUICK_HOSTS or name not in QUICK_MECHANISMS
    reason = reason_to_skip(behaviour, host, name)
    return [
        *([pytest.mark.slow] if is_slow else []),
        *([] if reason is None else [pytest.mark.skip(reason=f"{host} {reason}")]),
    ]


@pytest.mark.parametrize(("behaviour", "host", "name"), [*cases(QUICK, False), *cases(SLOW, True)])
def test_behaviour(behaviour: Callable[..., None], host: str, name: str, tmp_path: Path) -> None:
    behaviour(host, name, tmp_path)


@pytest.mark.parametrize(("host", "name"), REFUSED)
def test_what_cannot_be_attached_is_refused_and_leaves_the_host_as_it_was(host: str, name: str) -> None:
    model, inputs = HOSTS[host].make(), HOSTS[host].inputs()
    expected, names = hidden(model, inputs), list(model.state_dict())
    with pytest.raises(ValueError, match=REFUSED[host, name]):
        inject(model, *MECHANISMS[name].configs())
    assert torch.equal(hidden(model, inputs), expected) and list(model.state_dict()) == names
    assert not injected_encoders(model)


def test_the_table_has_every_mechanism_that_there_is() -> None:
    attached = {config.name for column in MECHANISMS.values() for config in column.configs()}
    assert attached == set(hf_lam.modeling.mechanism_registry_hf_lam.mechanism_names())
