"""Layers that are cut, reordered or copied after mechanisms were attached: the mechanisms follow, or it is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertLayer

from helpers.checkpointing import checkpoint_activations
from helpers.door import TEMPERATURE, open_door
from helpers.fusion_models import make_fusion, make_fusion_inputs
from helpers.hosts import first_output, make_host, make_inputs, mechanisms, perturb_mechanisms
from helpers.injection import assert_no_trace
from hf_lam import (
    LamConfig,
    LocomtConfig,
    convert,
    cost,
    inject,
    load_mechanism,
    mechanism_parameters,
    remove,
    save_mechanism,
    set_views,
)
from hf_lam.modeling.injection_hf_lam import injected_encoders

# Which of three layers are left, in their order.
SURGERIES: dict[str, list[int]] = {
    "last": [2],
    "first": [0, 1],
    "without_the_middle": [0, 2],
    "reversed": [2, 1, 0],
    "doubled": [0, 1, 1, 2, 2],
    "same_copied": [0, 1, 2],
}
MECHANISMS = ["per_layer", "shared", "embeddings", "rank", "half", "annealing", "bottleneck", "shared_lam", "mixture"]


def layers_of(base: Any) -> tuple[Any, str]:
    stack = getattr(base, "encoder", base)
    return stack, "layer" if hasattr(stack, "layer") else "layers"


def change_layers(model: Any, kept: list[int], *, copies: bool = False, tell: bool = True) -> Any:
    base = model.base_model
    stack, name = layers_of(base)
    before = list(getattr(stack, name))
    chosen = [
        before[i] if i not in kept[:place] and not copies else copy.deepcopy(before[i]) for place, i in enumerate(kept)
    ]
    setattr(stack, name, nn.ModuleList(chosen))
    if tell:
        base.config.num_hidden_layers = len(kept)
    return model


def make(host: str, name: str) -> tuple[Any, dict[str, Any]]:
    """A model with mechanisms that are not the identity, differ from layer to layer, and save whole."""
    if host == "fusion":
        model = make_fusion(("text", "image"), num_hidden_layers=3, hf_lam=mechanisms_of_fusion(name), head=False)
        return model.eval(), make_fusion_inputs(("text", "image"))
    model = convert(make_host(host), *mechanisms(name, host)).eval()
    perturb_mechanisms(model)
    return model, make_inputs(host, token_types=True)


def mechanisms_of_fusion(name: str) -> Any:
    return {
        "per_layer": LamConfig(),
        "half": LocomtConfig(views=[["self"] * 4, ["text>image"] * 4, ["full"] * 4]),
        "bottleneck": LocomtConfig(views="self", bottleneck_tokens=2),
        "embeddings": LamConfig(source="embeddings"),
    }[name]


slow = pytest.mark.slow
CASES = [("vit", name) for name in MECHANISMS] + [
    ("bert", "half"),
    ("bert", "bottleneck"),
    ("bert", "per_layer"),
    ("videomae", "mixture"),
    ("videomae", "half"),
    ("fusion", "per_layer"),
    ("fusion", "half"),
    ("fusion", "bottleneck"),
    ("fusion", "embeddings"),
]


def outputs(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return first_output(model, inputs)


# Every case with one surgery, and one case with all; the others are slow.
QUICK = [(*case, surgery) for case, surgery in zip(CASES, 3 * list(SURGERIES), strict=True)]
QUICK += [(*CASES[0], surgery) for surgery in list(SURGERIES)[1:]]
ALL = [(*case, surgery) for case in CASES for surgery in SURGERIES]


@pytest.mark.parametrize(
    ("host", "name", "surgery"), [pytest.param(*case, marks=[] if case in QUICK else slow) for case in ALL]
)
def test_what_is_left_is_saved_and_loads_again(host: str, name: str, surgery: str, tmp_path: Path) -> None:
    model, inputs = make(host, name)
    change_layers(model, SURGERIES[surgery], copies=surgery == "same_copied")
    expected = outputs(model, inputs)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(outputs(loaded, inputs), expected)
    assert torch.equal(outputs(model, inputs), expected)
    assert loaded.config.hf_lam == model.config.hf_lam
    assert {n: p.shape for n, p in loaded.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    # A state of it fits a model whose layers were changed in the same way, and which nobody has looked at since.
    again = change_layers(make(host, name)[0], SURGERIES[surgery], copies=surgery == "same_copied")
    for parameter in again.parameters():
        parameter.data.zero_()
    again.load_state_dict(model.state_dict())
    assert torch.equal(outputs(again, inputs), expected)


@pytest.mark.parametrize("name", ["per_layer", "half", "bottleneck", "mixture", "shared"])
def test_every_way_to_look_at_it_counts_the_layers_that_there_are(name: str, tmp_path: Path) -> None:
    model, inputs = make("vit", name)
    kept = [0, 2]
    fresh = convert(make_host("vit", num_hidden_layers=2), *mechanisms(name, "vit"))
    change_layers(model, kept)
    assert len(mechanism_parameters(model)) == len(mechanism_parameters(fresh))
    assert cost(model).flops == cost(fresh).flops
    expected = outputs(model, inputs)
    assert torch.equal(outputs(copy.deepcopy(model), inputs), expected)
    assert torch.equal(outputs(pickle.loads(pickle.dumps(model)), inputs), expected)
    save_mechanism(model, tmp_path / "mechanism")
    host = change_layers(make_host("vit"), kept).eval()
    assert torch.equal(outputs(load_mechanism(host, tmp_path / "mechanism"), inputs), expected)


def test_views_are_set_for_the_layers_that_there_are() -> None:
    model, inputs = make("vit", "half")
    change_layers(model, [0, 2])
    set_views(model, LocomtConfig(views=[["self"] * 4, ["full"] * 4]))
    host = inject(change_layers(make_host("vit"), [0, 2]), LocomtConfig(views=[["self"] * 4, ["full"] * 4]))
    assert torch.equal(outputs(model, inputs), outputs(host.eval(), inputs))


@pytest.mark.parametrize("host", ["vit", "bert", "videomae"])
@pytest.mark.parametrize("name", ["bottleneck", "shared", "half"])
def test_nothing_stays_on_the_layers_when_it_is_removed(host: str, name: str) -> None:
    kept = [1, 1, 2]
    model = inject(make_host(host), *mechanisms(name, host)).eval()
    inputs = make_inputs(host)
    outputs(change_layers(model, kept), inputs)
    assert_no_trace(remove(model))
    assert torch.equal(outputs(model, inputs), outputs(change_layers(make_host(host), kept), inputs))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_copies_get_what_crosses_layers_under_checkpointing(use_reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model, inputs = make("vit", "shared")
        change_layers(model, [0, 1, 1, 2]).train()
        if checkpointing:
            checkpoint_activations(model, use_reentrant)
        model(**inputs).last_hidden_state.square().sum().backward()
        gradients.append([parameter.grad for parameter in mechanism_parameters(model)])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_a_copy_trains_by_itself_once_it_has_a_number() -> None:
    model, _ = make("vit", "per_layer")
    change_layers(model, [0, 0])
    first, second = (list(mask.parameters()) for mask in injected_encoders(model)[0].hf_lam.lam)
    assert all(torch.equal(a, b) and a is not b for a, b in zip(first, second, strict=True))


# --- refused ---------------------------------------------------------------------------------------------------------


def refuse(model: Any, folder: Path, message: str) -> None:
    for save in (model.save_pretrained, lambda path: save_mechanism(model, path)):
        with pytest.raises(ValueError, match=message):
            save(folder)
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["per_layer", "mixture", "lam"])
@pytest.mark.parametrize("surgery", ["reversed", "last", "doubled"])
def test_a_state_dict_that_is_the_first_look_belongs_to_them(name: str, surgery: str, tmp_path: Path) -> None:
    def make_injected() -> Any:
        model = inject(make_host("bert"), *mechanisms(name, "bert"))
        perturb_mechanisms(model)
        return change_layers(model, SURGERIES[surgery], copies=True)

    model, inputs = make("bert", name)
    change_layers(model, SURGERIES[surgery], copies=True)
    state = torch.compile(model).state_dict()  # as `Trainer` gathers it
    model.save_pretrained(tmp_path, state_dict={key.removeprefix("_orig_mod."): x for key, x in state.items()})
    assert torch.equal(first_output(type(model).from_pretrained(tmp_path), inputs), first_output(model, inputs))
    injected, other = make_injected(), make_injected()
    for parameter in mechanism_parameters(other):
        parameter.data.zero_()
    state = injected.state_dict()
    other.load_state_dict(state)
    assert torch.equal(first_output(other, inputs), first_output(injected, inputs))
    fresh = inject(make_host("bert"), *mechanisms(name, "bert"))
    change_layers(fresh, SURGERIES[surgery], copies=True).load_state_dict(state)
    assert torch.equal(first_output(fresh, inputs), first_output(injected, inputs))


def test_a_model_without_mechanisms_says_how_many_layers_it_has(tmp_path: Path) -> None:
    model = remove(make("vit", "per_layer")[0])
    change_layers(model, [0, 2], tell=False)
    with pytest.raises(ValueError, match="has 2 layers, and its configuration says 3"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    model.config.num_hidden_layers = 2
    model.save_pretrained(tmp_path / "model")
    inputs = make_inputs("vit")
    assert torch.equal(
        first_output(type(model).from_pretrained(tmp_path / "model"), inputs), first_output(model, inputs)
    )


@pytest.mark.parametrize("name", ["per_layer", "half", "bottleneck", "mixture", "shared"])
def test_a_configuration_that_says_another_number(name: str, tmp_path: Path) -> None:
    model, _ = make("vit", name)
    change_layers(model, [0, 2], tell=False)
    refuse(model, tmp_path / "model", r"num_hidden_layers=2")
    model, _ = make("vit", name)
    model.config.num_hidden_layers = 2
    refuse(model, tmp_path / "model", r"has 3 layers, and its configuration says 2")


def test_one_layer_in_two_places(tmp_path: Path) -> None:
    model, _ = make("vit", "per_layer")
    model.layers = nn.ModuleList([model.layers[0], model.layers[0], model.layers[2]])
    refuse(model, tmp_path / "model", r"copies \(copy.deepcopy\)")


def test_layers_without_mechanisms(tmp_path: Path) -> None:
    model, _ = make("bert", "per_layer")
    model.encoder.layer.append(BertLayer(model.config))
    model.config.num_hidden_layers = 4
    refuse(model, tmp_path / "model", "has 1 layers that were put in after")


@pytest.mark.parametrize("kept", [[0, 1], [1, 0, 2], [0, 0, 1]])
def test_mechanisms_that_do_not_say_what_belongs_to_a_layer(kept: list[int], tmp_path: Path) -> None:
    with open_door() as load_file:
        model = convert(make_host("vit"), load_file(TEMPERATURE).HeadTemperatureConfig()).eval()
        perturb_mechanisms(model)
        inputs = make_inputs("vit")
        change_layers(model, kept)
        expected = outputs(model, inputs)
        refuse(model, tmp_path / "model", "HeadTemperatures has weights of which it does not say")
        # It goes on as it was.
        assert torch.equal(outputs(model, inputs), expected)
        remove(model)


@pytest.mark.parametrize("mechanism", ["half", None])
def test_layers_of_an_encoder_inside_a_fusion_model(mechanism: Any, tmp_path: Path) -> None:
    model, inputs = make_fusion(("text", "image"), hf_lam=mechanism).eval(), make_fusion_inputs(("text", "image"))
    text = model.fusion.text_model
    text.encoder.layer = text.encoder.layer[1:]
    with pytest.raises(ValueError, match=r"Set config\.text_config\.num_hidden_layers=1"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    model.config.text_config.num_hidden_layers = 1
    model.save_pretrained(tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model")
    assert torch.equal(outputs(again, inputs), outputs(model, inputs))


@pytest.mark.parametrize("name", ["per_layer", "half", "mixture"])
def test_pruned_heads(name: str, tmp_path: Path) -> None:
    model, _ = make("vit", name)
    attention = model.layers[1].attention
    for projection in ("q_proj", "k_proj", "v_proj"):
        setattr(attention, projection, nn.Linear(32, 16))
    attention.o_proj = nn.Linear(16, 32)
    with pytest.raises(ValueError, match="has 2 heads, and its configuration can only say that all have 4"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_changes_that_nobody_saw_are_not_exported() -> None:
    model, inputs = make("vit", "bottleneck")
    change_layers(model, [0, 1])
    with pytest.raises(Exception, match="call it once before it is compiled or exported"):
        torch.export.export(model, (), inputs, strict=False)
    expected = outputs(model, inputs)
    exported = torch.export.export(model, (), inputs, strict=False).module()
    torch.testing.assert_close(outputs(exported, inputs), expected)


def test_a_bottleneck_does_not_run_where_it_cannot_follow() -> None:
    model, inputs = make("vit", "bottleneck")
    change_layers(model, [0, 1], tell=False)
    with pytest.raises(ValueError, match=r"config\.num_hidden_layers=2"):
        outputs(model, inputs)
