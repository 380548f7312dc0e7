"""What transformers' own common tests (`ModelTesterMixin`) ask of a model class, asked of `HfLam…` classes.

Each function is one question about a `Subject`, with a folder to save to.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from helpers.families import FAMILIES, Family
from helpers.family_labels import labelled
from helpers.hosts import perturb_mechanisms
from helpers.outputs import distance, outputs_of
from hf_lam import LamConfig, convert, mechanism_parameters

TOLERANCE = 1e-5


class Subject:
    """A converted model whose mechanisms have moved, its stock original, and inputs."""

    def __init__(self, name: str, head: str | None) -> None:
        self.name, self.head = name, head
        self.family: Family = FAMILIES[name]
        self.stock = self.family.make(head)
        self.inputs = self.family.inputs_for("lam") if head is None else labelled(self.family, head)
        self.configs = self.family.configs("lam") if head is None else (LamConfig(rank=3),)

    @property
    def auto(self) -> Any:
        return AutoModel if self.head is None else getattr(transformers, f"AutoModelFor{self.head}")

    def convert(self, seed: int = 0) -> Any:
        model = convert(self.family.make(self.head, seed=seed), *self.configs)
        perturb_mechanisms(model)
        return model

    def outputs(self, model: Any, **options: Any) -> dict[str, Tensor]:
        return outputs_of(model, self.inputs, **options)

    def assert_same(self, left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
        assert distance(self.family, left, right) < TOLERANCE


def loss_of(outputs: Any) -> Tensor:
    if outputs.get("loss") is not None:
        return outputs.loss
    return next(value for value in outputs.values() if isinstance(value, Tensor)).square().mean()


# --- what is asked ---------------------------------------------------------------------------------------------------


def is_determined_by_its_weights(subject: Subject, folder: Path) -> None:
    model = subject.convert()
    first, second = subject.outputs(model), subject.outputs(model)
    assert all(torch.equal(first[key], second[key]) for key in first)


def saves_and_loads(subject: Subject, folder: Path) -> None:
    model = subject.convert()
    model.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder)
    subject.assert_same(subject.outputs(loaded), subject.outputs(model))
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert not loaded.training


def saves_in_shards_and_by_hand(subject: Subject, folder: Path) -> None:
    model = subject.convert()
    expected = subject.outputs(model)
    model.save_pretrained(folder / "shards", max_shard_size="20KB")
    assert (folder / "shards" / "model.safetensors.index.json").is_file()
    subject.assert_same(subject.outputs(subject.auto.from_pretrained(folder / "shards")), expected)
    torch.save(model.state_dict(), folder / "weights.pt")
    other = subject.convert(seed=5)
    assert not any(other.load_state_dict(torch.load(folder / "weights.pt")))
    subject.assert_same(subject.outputs(other), expected)


def says_what_a_checkpoint_lacks(subject: Subject, folder: Path) -> None:
    """A host weight or a mask without a value is an error; a head's is listed, and drawn."""
    model = subject.convert()
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    own = {id(parameter) for parameter in mechanism_parameters(model)}
    mask = next(name for name, parameter in model.named_parameters() if id(parameter) in own)
    del tensors[mask]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == {mask}
    with pytest.raises(RuntimeError, match=mask.replace(".", r"\.")):
        type(model).from_pretrained(folder)


def gives_new_heads_the_values_of_its_class(subject: Subject, folder: Path) -> None:
    base = convert(subject.family.make(), *subject.family.configs("lam_rank"))
    base.save_pretrained(folder)
    loaded, info = subject.auto.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] and not any("hf_lam" in name for name in info["missing_keys"])
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())


def is_made_on_meta(subject: Subject, folder: Path) -> None:
    model = subject.convert()
    with torch.device("meta"):
        empty, stock = type(model)(model.config), type(subject.stock)(subject.stock.config)
    # wav2vec 2.0 draws one of its parameters on the CPU.
    elsewhere = {name for name, parameter in stock.named_parameters() if not parameter.is_meta}
    assert {name for name, parameter in empty.named_parameters() if not parameter.is_meta} == elsewhere
    assert empty.state_dict().keys() == model.state_dict().keys()


def draws_all_its_weights(subject: Subject, folder: Path) -> None:
    """What is built is what is built on meta and then initialised: nothing is left empty."""
    config = subject.convert().config
    torch.manual_seed(0)
    model = type(subject.convert())(config)
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all() and parameter.abs().max() < 100, name


def keeps_only_parameters_and_buffers(subject: Subject, folder: Path) -> None:
    model = subject.convert().to("meta")
    for module in model.modules():
        loose = [key for key, value in vars(module).items() if isinstance(value, Tensor) and not value.is_meta]
        assert not loose, (type(module), loose)


def returns_attentions(subject: Subject, folder: Path) -> None:
    """Those that the stock model returns with eager attention alone."""
    subject.stock.set_attn_implementation("eager")
    expected = subject.stock(**subject.inputs, output_attentions=True).attentions
    model = subject.convert()
    found = model(**subject.inputs, output_attentions=True).attentions
    assert [weights.shape for weights in found] == [weights.shape for weights in expected]
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    if subject.family.composite is None:
        assert len(model(**subject.inputs).attentions) == len(found)


def returns_hidden_states(subject: Subject, folder: Path) -> None:
    expected = subject.stock(**subject.inputs, output_hidden_states=True).hidden_states
    found = subject.convert()(**subject.inputs, output_hidden_states=True).hidden_states
    assert [state.shape for state in found] == [state.shape for state in expected]


def retains_gradients_of_what_it_returns(subject: Subject, folder: Path) -> None:
    model = subject.convert()
    outputs = model(**subject.inputs, output_hidden_states=True, output_attentions=True)
    states = [outputs.hidden_states[0], outputs.attentions[0]]
    for state in states:
        state.retain_grad()
    loss_of(outputs).backward()
    assert all(state.grad is not None for state in states)


def returns_tuples_too(subject: Subject, folder: Path) -> None:
    model = subject.convert()
    with torch.no_grad():
        named, plain = model(**subject.inputs), model(**subject.inputs, return_dict=False)
    assert isinstance(plain, tuple)
    expected = [value for value in named.to_tuple() if isinstance(value, Tensor)]
    found = [value for value in plain if isinstance(value, Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def takes_embeddings(subject: Subject, folder: Path) -> None:
    model = subject.convert()
    embeddings = model.get_input_embeddings()(subject.inputs["input_ids"])
    given = {key: value for key, value in subject.inputs.items() if key != "input_ids"}
    expected = subject.outputs(model)
    if subject.name == "roberta":  # which counts its positions by the ids
        stock = outputs_of(subject.stock, {**given, "inputs_embeds": embeddings})
        found = outputs_of(model, {**given, "inputs_embeds": embeddings})
        assert found.keys() == stock.keys() and all(value.isfinite().all() for value in found.values())
    else:
        subject.assert_same(outputs_of(model, {**given, "inputs_embeds": embeddings}), expected)


def resizes_its_vocabulary(subject: Subject, folder: Path) -> None:
    model = subject.convert()
    expected = model.base_model(**FAMILIES[subject.name].inputs()).last_hidden_state
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 7)
    assert model.config.vocab_size == size + 7 == model.get_input_embeddings().weight.shape[0]
    torch.testing.assert_close(model.base_model(**FAMILIES[subject.name].inputs()).last_hidden_state, expected)
    model.save_pretrained(folder)
    loaded = subject.auto.from_pretrained(folder)
    assert loaded.get_input_embeddings().weight.shape[0] == size + 7
    if subject.head == "MaskedLM":
        assert loaded.get_output_embeddings().weight.shape[0] == size + 7


def ties_what_its_host_ties(subject: Subject, folder: Path) -> None:
    model = subject.convert()
    assert model.all_tied_weights_keys == subject.stock.all_tied_weights_keys
    model.save_pretrained(folder)
    loaded, info = subject.auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    for one, other in loaded.all_tied_weights_keys.items():
        assert loaded.get_parameter(one) is loaded.get_parameter(other)


def loads_without_ties(subject: Subject, folder: Path) -> None:
    model = subject.convert()
    config = type(model.config)(**{**model.config.to_dict(), "tie_word_embeddings": False})
    untied = type(model)(config).eval()
    untied.save_pretrained(folder)
    loaded = subject.auto.from_pretrained(folder)
    assert not any(value for value in loaded.all_tied_weights_keys.values())
    subject.assert_same(subject.outputs(loaded), subject.outputs(untied))


def trains(subject: Subject, folder: Path) -> None:
    """Every parameter that gets a gradient in the stock model gets one, and the mechanisms do."""
    torch.manual_seed(0)
    loss_of(subject.stock.train()(**subject.inputs)).backward()
    torch.manual_seed(0)
    model = subject.convert().train()
    loss_of(model(**subject.inputs)).backward()
    found = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert found >= {name for name, parameter in subject.stock.named_parameters() if parameter.grad is not None}
    assert all(parameter.grad is not None for parameter in mechanism_parameters(model))


def takes_each_problem_type(subject: Subject, folder: Path) -> None:
    model = subject.convert()
    for problem, labels in (
        ("single_label_classification", torch.tensor([0, 2])),
        ("multi_label_classification", torch.tensor([[0.0, 1, 1], [1, 0, 0]])),
    ):
        model.config.problem_type = problem
        loss = model(**{**subject.inputs, "labels": labels}).loss
        loss.backward()
        assert loss.isfinite()


def takes_what_its_host_takes(subject: Subject, folder: Path) -> None:
    model = subject.convert()
    stock = list(inspect.signature(type(subject.stock).forward).parameters)
    ours = [name for name in inspect.signature(type(model).forward).parameters if name in stock]
    assert ours == stock
    assert model.main_input_name == subject.stock.main_input_name
    assert type(model)._no_split_modules == type(subject.stock)._no_split_modules
    if subject.family.kind == "text":
        assert type(model.get_input_embeddings()) is type(subject.stock.get_input_embeddings())


def loads_with_other_shapes_if_told_to(subject: Subject, folder: Path) -> None:
    subject.convert().save_pretrained(folder)
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched|shape"):
        subject.auto.from_pretrained(folder, num_labels=7)
    loaded = subject.auto.from_pretrained(folder, num_labels=7, ignore_mismatched_sizes=True)
    assert loaded.config.num_labels == 7
    assert {
        value.shape[-1] for key, value in outputs_of(loaded, subject.family.inputs()).items() if key == "logits"
    } == {7}


def loads_in_another_dtype(subject: Subject, folder: Path) -> None:
    model = subject.convert()
    model.save_pretrained(folder)
    loaded = subject.auto.from_pretrained(folder, dtype=torch.bfloat16)
    stock = subject.family.make(subject.head).to(torch.bfloat16)
    kept = {name for name, parameter in stock.named_parameters() if parameter.dtype != torch.bfloat16}
    found = {name for name, parameter in loaded.named_parameters() if parameter.dtype != torch.bfloat16}
    assert found == kept
    halved = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in subject.inputs.items()}
    assert all(value.isfinite().all() for value in outputs_of(loaded, halved).values())


def is_the_same_eager_and_with_sdpa(subject: Subject, folder: Path) -> None:
    model = subject.convert()
    model.save_pretrained(folder)
    expected = subject.outputs(model)
    for implementation in ("eager", "sdpa"):
        loaded = subject.auto.from_pretrained(folder, attn_implementation=implementation)
        assert loaded.config._attn_implementation == implementation
        subject.assert_same(subject.outputs(loaded), expected)


def keeps_its_configuration(subject: Subject, folder: Path) -> None:
    config = subject.convert().config
    config.save_pretrained(folder)
    again = type(config).from_pretrained(folder)
    assert json.loads(again.to_json_string()) == json.loads(config.to_json_string())
    assert isinstance(config, type(subject.stock.config))


def is_spread_over_devices(subject: Subject, folder: Path) -> None:
    """What `device_map` does, with layers that wait on the disk."""
    model = subject.convert()
    expected = subject.outputs(model)
    model.save_pretrained(folder / "model", max_shard_size="20KB")
    whole = subject.auto.from_pretrained(folder / "model", device_map={"": "cpu"})
    subject.assert_same(subject.outputs(whole), expected)


def compiles(subject: Subject, folder: Path) -> None:
    """Without a graph break where the stock model does."""
    inputs = {key: value for key, value in subject.inputs.items() if not key.endswith("labels")}
    torch._dynamo.reset()
    with torch.no_grad():
        try:
            torch.compile(subject.stock, fullgraph=True, backend="eager")(**inputs)
        except Exception as error:
            pytest.skip(f"the stock model does not compile whole: {type(error).__name__}")
        torch._dynamo.reset()
        model = subject.convert()
        found = torch.compile(model, fullgraph=True, backend="eager")(**inputs)
    found = {key: value for key, value in found.items() if isinstance(value, Tensor) and value.is_floating_point()}
    subject.assert_same(found, outputs_of(model, inputs))


def exports(subject: Subject, folder: Path) -> None:
    inputs = {key: value for key, value in subject.inputs.items() if not key.endswith("labels")}
    try:
        torch.export.export(subject.stock, (), inputs, strict=False)
    except Exception as error:
        pytest.skip(f"the stock model cannot be exported: {type(error).__name__}")
    model = subject.convert()
    program = torch.export.export(model, (), inputs, strict=False)
    subject.assert_same(outputs_of(program.module(), inputs), outputs_of(model, inputs))


# What is asked of a model whatever it is for.
OF_EVERY_MODEL: list[Callable[[Subject, Path], None]] = [
    is_determined_by_its_weights,
    saves_and_loads,
    saves_in_shards_and_by_hand,
    says_what_a_checkpoint_lacks,
    is_made_on_meta,
    draws_all_its_weights,
    keeps_only_parameters_and_buffers,
    returns_tuples_too,
    trains,
    takes_what_its_host_takes,
    loads_in_another_dtype,
    is_the_same_eager_and_with_sdpa,
    keeps_its_configuration,
    is_spread_over_devices,
    ties_what_its_host_ties,
]
