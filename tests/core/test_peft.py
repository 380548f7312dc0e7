"""LoRA on top of mechanisms, with PEFT."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    RobertaForSequenceClassification,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
)

import hf_lam
from helpers.checkpointing import checkpoint_activations
from helpers.hosts import first_output, make_inputs, make_model, max_difference, mechanisms, perturb_mechanisms
from helpers.lam_models import make_lam, make_samples, stacked
from hf_lam import LamConfig
from hf_lam.modeling.injection_hf_lam import mechanism_of

SHARED = LamConfig(scope="shared", rank=2)
# Stock class, host, target modules, mechanisms.
CASES: dict[str, tuple[Any, str, list[str], Any]] = {
    "bert": (BertForSequenceClassification, "bert", ["query", "value"], LamConfig()),
    "bert_shared": (BertForSequenceClassification, "bert", ["query", "value"], SHARED),
    "vit": (ViTForImageClassification, "vit", ["q_proj", "v_proj"], LamConfig(source="embeddings")),
    "videomae": (VideoMAEForVideoClassification, "videomae", ["query", "value"], LamConfig()),
    "roberta_injected": (RobertaForSequenceClassification, "roberta", ["query", "value"], LamConfig()),
    "bert_bottleneck": (BertForSequenceClassification, "bert", ["query", "value"], mechanisms("bottleneck", "bert")),
    "bert_mixture": (BertForSequenceClassification, "bert", ["value", "dense"], mechanisms("mixture", "bert")),
    "bert_pure": (BertForSequenceClassification, "bert", ["value", "dense"], mechanisms("dense", "bert")),
    "videomae_pure": (VideoMAEForVideoClassification, "videomae", ["value"], mechanisms("random", "videomae")),
    "vit_lam_and_views": (ViTForImageClassification, "vit", ["q_proj", "v_proj"], mechanisms("shared_lam", "vit")),
}


def make_base(case: str) -> Any:
    stock_class, host, _, lam = CASES[case]
    if not case.endswith("_injected"):
        return make_lam(stock_class, host, lam)
    model = hf_lam.inject(make_model(stock_class, host, initializer_range=0.2), lam)
    perturb_mechanisms(model)
    return model


def with_two_adapters(stock: Any, host: str, *configs: Any) -> tuple[Any, peft.PeftModel]:
    """A model, and around it two adapters, of which the second one is active and has no mechanisms of its own."""
    model = hf_lam.convert(make_model(stock, host), *configs).eval()
    perturb_mechanisms(model)
    targets = CASES[host][2]
    first = peft.LoraConfig(r=4, target_modules=targets, modules_to_save=["hf_lam"])
    wrapped = peft.get_peft_model(model, first, adapter_name="with")
    wrapped.add_adapter("without", peft.LoraConfig(r=4, target_modules=targets))
    for parameter in model.base_model.hf_lam.modules_to_save.parameters():
        parameter.data += 1
    wrapped.set_adapter("without")
    return model, wrapped.eval()


def disable(wrapped: peft.PeftModel) -> None:
    wrapped.set_adapter("with")
    wrapped.base_model.disable_adapter_layers()


LEFT: dict[str, Any] = {
    "another adapter": lambda wrapped: None,
    "disabled": disable,
    "deleted": lambda wrapped: wrapped.delete_adapter("with"),
}


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("mechanism", ["per_layer", "shared", "mixture"])
def test_without_a_copy_of_its_own_an_adapter_has_the_original(mechanism: str, left: str, tmp_path: Path) -> None:
    model, wrapped = with_two_adapters(ViTForImageClassification, "vit", *mechanisms(mechanism, "vit"))
    LEFT[left](wrapped)
    inputs = make_inputs("vit")
    original = model.vit.hf_lam.original_module
    assert hf_lam.mechanism_parameters(model) == list(original.parameters())
    hf_lam.save_mechanism(model, tmp_path)
    assert hf_lam.cost(model).mechanism_parameters == sum(parameter.numel() for parameter in original.parameters())
    stock = hf_lam.load_mechanism(make_model(ViTForImageClassification, "vit"), tmp_path).eval()
    if left != "another adapter":  # whose LoRA starts as the identity
        wrapped.base_model.disable_adapter_layers()
    assert max_difference(first_output(stock, inputs), first_output(wrapped, inputs)) < 1e-6


@pytest.mark.parametrize("left", LEFT)
def test_views_are_set_in_the_original_and_in_every_copy(left: str) -> None:
    model, wrapped = with_two_adapters(ViTForImageClassification, "vit", *mechanisms("half", "vit"))
    LEFT[left](wrapped)
    views = hf_lam.LocomtConfig(segments=[["top", {"rectangle": [0, 0, 2, 4]}], ["rest", {"rectangle": [2, 0, 2, 4]}]])
    hf_lam.set_views(model, views)
    fresh = hf_lam.convert(make_model(ViTForImageClassification, "vit"), views).eval()
    inputs = make_inputs("vit")
    for adapter in wrapped.peft_config:
        wrapped.set_adapter(adapter)
        assert max_difference(first_output(wrapped, inputs), first_output(fresh, inputs)) < 1e-6
    assert model.config.hf_lam == fresh.config.hf_lam


NOT_VIEWS: dict[str, Any] = {
    "another kind": LamConfig(),
    "another grid": hf_lam.LocomtConfig(segments=[["all", {"frames": [0, 4]}]]),
    "a table of another shape": hf_lam.LocomtConfig(views=[["self"] * 4]),
    "an unknown segment": hf_lam.LocomtConfig(views="nobody>else"),
    "a bottleneck": hf_lam.LocomtConfig(views="self", bottleneck_tokens=2),
    "token types": hf_lam.LocomtConfig(segments="token_type_ids"),
    "a configuration that takes nothing": hf_lam.LocomtConfig(views="self"),
}


@pytest.mark.parametrize("left", ["another adapter", "disabled"])
@pytest.mark.parametrize("name", NOT_VIEWS)
def test_views_that_cannot_be_set_change_nothing(name: str, left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, wrapped = with_two_adapters(ViTForImageClassification, "vit", *mechanisms("half", "vit"))
    LEFT[left](wrapped)
    inputs = make_inputs("vit")
    before, block = first_output(wrapped, inputs), copy.deepcopy(model.config.hf_lam)
    modules = list(model.modules())
    if name == "a configuration that takes nothing":

        def refuse(*_: Any) -> None:
            raise ValueError("no")

        monkeypatch.setattr(type(model.config), "__setattr__", refuse)
    with pytest.raises((ValueError, TypeError)):
        hf_lam.set_views(model, NOT_VIEWS[name])
    monkeypatch.undo()
    assert torch.equal(first_output(wrapped, inputs), before)
    assert model.config.hf_lam == block
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))


def add_lora(model: Any, targets: list[str]) -> peft.PeftModel:
    config = peft.LoraConfig(r=4, target_modules=targets, modules_to_save=["hf_lam", "classifier"])
    return peft.get_peft_model(model, config)


def train(model: Any, host: str, steps: int = 3) -> list[float]:
    batch = stacked(make_samples(model.get_base_model(), host, 8))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def outputs_of(model: Any, host: str) -> torch.Tensor:
    with torch.no_grad():
        return first_output(model, make_inputs(host, token_types=True))


@pytest.mark.parametrize("case", CASES)
def test_lora_trains_the_masks_saves_reloads_and_merges(case: str, tmp_path: Path) -> None:
    _, host, targets, _ = CASES[case]
    model = add_lora(make_base(case), targets)
    wrapper = model.get_base_model().base_model.hf_lam
    copies = dict(wrapper.modules_to_save["default"].named_parameters())
    originals = {name: tensor.clone() for name, tensor in wrapper.original_module.named_parameters()}
    assert all(tensor.requires_grad for tensor in copies.values())
    losses = train(model, host)
    assert losses[-1] < losses[0]

    # Every mask moved, and the outputs depend on the trained copy and on nothing else.
    assert all(not torch.equal(tensor, originals[name]) for name, tensor in copies.items())
    assert all(torch.equal(tensor, originals[name]) for name, tensor in wrapper.original_module.named_parameters())
    trained = outputs_of(model, host)
    with torch.no_grad():
        wrapper.original_module.requires_grad_(False).apply(lambda m: [p.zero_() for p in m.parameters()])
        assert torch.equal(outputs_of(model, host), trained)
        untrained = copy.deepcopy(model)
        for name, tensor in untrained.get_base_model().base_model.hf_lam.modules_to_save["default"].named_parameters():
            tensor.copy_(originals[name])
        assert max_difference(outputs_of(untrained, host), trained) > 1e-3

    model.save_pretrained(tmp_path / "adapter")
    reloaded = peft.PeftModel.from_pretrained(make_base(case), tmp_path / "adapter")
    assert torch.equal(outputs_of(reloaded, host), trained)

    merged = reloaded.merge_and_unload()
    assert type(merged) is type(make_base(case))
    torch.testing.assert_close(outputs_of(merged, host), trained, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["bert", "videomae", "bert_pure"])
def test_a_merged_model_is_an_ordinary_one(case: str, tmp_path: Path) -> None:
    _, host, targets, _ = CASES[case]
    model = add_lora(make_base(case), targets)
    train(model, host, steps=2)
    merged = model.merge_and_unload()
    expected = outputs_of(merged, host)
    merged.save_pretrained(tmp_path)
    assert torch.equal(outputs_of(type(merged).from_pretrained(tmp_path), host), expected)
    assert hf_lam.mechanism_parameters(merged)


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non_reentrant"])
@pytest.mark.parametrize(
    "case", ["bert", "bert_shared", "vit", "roberta_injected", "bert_bottleneck", "bert_mixture", "bert_pure"]
)
def test_gradient_checkpointing_with_lora(case: str, use_reentrant: bool) -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        _, host, targets, _ = CASES[case]
        model = add_lora(make_base(case), targets).train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
        if checkpointing:
            checkpoint_activations(model, use_reentrant)
            model.enable_input_require_grads()
        model(**stacked(make_samples(model.get_base_model(), host, 4))).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, checkpointed = gradients(False), gradients(True)
    assert any("hf_lam" in name for name in plain) and any("lora_A" in name for name in plain)
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in plain.values())
    for name, gradient in plain.items():
        # A mixture runs the chunked path first, without gradients, and the eager one when it is recomputed.
        torch.testing.assert_close(
            checkpointed[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_trained_copy_of_the_masks_can_be_kept_alone(tmp_path: Path) -> None:
    _, host, targets, _ = CASES["bert"]
    model = add_lora(make_base("bert"), targets)
    train(model, host)
    trained = model.get_base_model().base_model.hf_lam.modules_to_save["default"]
    assert {id(p) for p in hf_lam.mechanism_parameters(model)} == {id(p) for p in trained.parameters()}
    hf_lam.save_mechanism(model, tmp_path)
    loaded = hf_lam.load_mechanism(make_model(BertForSequenceClassification, host), tmp_path)
    for name, tensor in loaded.bert.hf_lam.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name])


@pytest.mark.parametrize("name", ["half", "annealing"])
def test_lora_over_views_that_have_nothing_to_train(name: str, tmp_path: Path) -> None:
    def make() -> Any:
        return make_lam(BertForSequenceClassification, "bert", mechanisms(name, "bert"))

    config = peft.LoraConfig(r=4, target_modules=["query", "value"], modules_to_save=["classifier"])
    model = peft.get_peft_model(make(), config)
    assert not [key for key, parameter in model.named_parameters() if "hf_lam" in key and parameter.requires_grad]
    losses = train(model, "bert")
    assert losses[-1] < losses[0]
    trained = outputs_of(model, "bert")
    model.save_pretrained(tmp_path)
    reloaded = peft.PeftModel.from_pretrained(make(), tmp_path)
    assert torch.equal(outputs_of(reloaded, "bert"), trained)
    merged = reloaded.merge_and_unload()
    torch.testing.assert_close(outputs_of(merged, "bert"), trained, rtol=0, atol=1e-5)
    with_full_views = hf_lam.set_views(merged, hf_lam.LocomtConfig())
    assert max_difference(outputs_of(with_full_views, "bert"), trained) > 1e-3


def test_the_penalty_of_a_trained_copy_is_the_one_that_counts(tmp_path: Path) -> None:
    model = make_lam(ViTForImageClassification, "vit", (*mechanisms("annealing", "vit"), LamConfig()))
    model = add_lora(model, ["q_proj", "v_proj"])
    before = outputs_of(model, "vit")
    mechanism_of(model.get_base_model().vit, "locomt").penalty.fill_(50.0)
    annealed = outputs_of(model, "vit")
    assert max_difference(annealed, before) > 1e-3
    merged = model.merge_and_unload()
    assert torch.equal(outputs_of(merged, "vit"), annealed)
    hf_lam.set_views(merged, hf_lam.LocomtConfig(views="half"))
    assert max_difference(outputs_of(merged, "vit"), annealed) < 1e-4


def test_new_views_reach_every_copy_of_the_mechanisms() -> None:
    model = make_model(BertForSequenceClassification, "bert", initializer_range=0.5)
    hf_lam.inject(model, hf_lam.LocomtConfig(segments=[["a", 5], ["b", 6]], views="self"))
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], modules_to_save=["hf_lam"])).eval()
    before = tuned(**make_inputs("bert")).logits
    hf_lam.set_views(tuned, hf_lam.LocomtConfig(segments=[["a", 2], ["b", 9]], views="self"))
    logits = tuned(**make_inputs("bert")).logits
    assert max_difference(logits, before) > 1e-4
    with tuned.disable_adapter():
        assert torch.equal(tuned(**make_inputs("bert")).logits, logits)
