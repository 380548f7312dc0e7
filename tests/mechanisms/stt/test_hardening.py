"""harden: from a mixture at λ = 1 to the pure STT with the same outputs, and without queries and keys."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
    ViTModel,
)

import hf_lam
from helpers.hosts import BASES, CONVERTIBLE, first_output, make_host, make_inputs, make_model, max_difference
from hf_lam import LamConfig, LocomtConfig, SttConfig, harden
from hf_lam.modeling.injection_hf_lam import injected_encoders, injection_of, mechanism_of
from hf_lam.stt.hardening import mixing_of

SYNTHESIZERS = ("dense", "random", "factorized_dense", "factorized_random")
HEADS: dict[str, type[PreTrainedModel]] = {
    "bert": BertForSequenceClassification,
    "vit": ViTForImageClassification,
    "videomae": VideoMAEForVideoClassification,
}
# Host, its changes, options of the mixture, tokens of a text.
GRIDS: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "text_4x5": ("bert", {}, {"grid": [4, 5]}, 20),
    "text_2x3x3": ("bert", {}, {"grid": [2, 3, 3]}, 18),
    "text_prefix": ("bert", {}, {"prefix_tokens": 1}, 11),
    "text_4x5_prefix": ("bert", {}, {"grid": [4, 5], "prefix_tokens": 2}, 22),
    "text_8x2_prefix": ("bert", {}, {"grid": [8, 2], "prefix_tokens": 1}, 17),
    "vit_line": ("vit", {}, {"grid": [17], "prefix_tokens": 0}, 0),
    "vit_2x2x4": ("vit", {}, {"grid": [2, 2, 4]}, 0),
    "vit_row": ("vit", {"image_size": [4, 16]}, {}, 0),
    "videomae_flat": ("videomae", {}, {"grid": [2, 4]}, 0),
}


def only_encoder(model: nn.Module) -> Any:
    (base,) = injected_encoders(model)
    return base


def set_mixing(model: nn.Module, value: float | torch.Tensor) -> None:
    """value: one for all, or `(layers, H)`."""
    for layer, synthesizer in enumerate(mechanism_of(only_encoder(model), "stt")):
        synthesizer.mixing.data.copy_(value[layer] if isinstance(value, torch.Tensor) else torch.tensor(value))


def randomise_synthesizers(model: nn.Module, scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(2)
    for synthesizer in mechanism_of(only_encoder(model), "stt"):
        for name, tensor in (*synthesizer.named_parameters(), *synthesizer.named_buffers()):
            if name != "mixing":
                tensor.data += scale * torch.randn(tensor.shape, generator=generator).to(tensor)


def make_mixture(
    stock: type[PreTrainedModel], host: str, *others: Any, mixing: float = 1.0, changes: Any = None, **options: Any
) -> Any:
    """A converted tiny model with sharp attention and random synthesizers."""
    model = make_model(stock, host, initializer_range=0.2, **(changes or {}))
    model = hf_lam.convert(model, SttConfig(**options), *others)
    randomise_synthesizers(model)
    set_mixing(model, mixing)
    return model


def inputs_of(host: str, length: int = 11) -> dict[str, torch.Tensor]:
    """Of text, every second sample is padded by 4."""
    if host != "bert":
        return make_inputs(host)
    attention_mask = torch.ones(2, length, dtype=torch.long)
    attention_mask[1, -4:] = 0
    return {"input_ids": torch.arange(2, 2 + 2 * length).view(2, length), "attention_mask": attention_mask}


def outputs(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Without what stands at padding, which no one reads."""
    with torch.no_grad():
        output = first_output(model, inputs)
    mask = inputs.get("attention_mask")
    return output if mask is None or output.dim() < 3 else output[mask.bool()]


def has_query_or_key(names: Any) -> bool:
    return any(part in name for name in names for part in (".query.", ".key.", "q_proj", "k_proj", "q_bias", "k_bias"))


def assert_same_after_hardening(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    before = outputs(model, inputs)
    set_mixing(model, 0.0)
    assert max_difference(outputs(model, inputs), before) > 1e-3  # the map matters here
    set_mixing(model, 1.0)
    assert harden(model) is model
    assert max_difference(outputs(model, inputs), before) < 1e-5


@pytest.mark.parametrize("synthesizer", SYNTHESIZERS)
@pytest.mark.parametrize("host", HEADS)
def test_outputs_stay(host: str, synthesizer: str, tmp_path: Path) -> None:
    model = make_mixture(HEADS[host], host, synthesizer=synthesizer)
    inputs = inputs_of(host)
    assert has_query_or_key(model.state_dict())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert_same_after_hardening(model, inputs)
    expected = outputs(model, inputs)

    assert sum(parameter.numel() for parameter in model.parameters()) < parameters
    for names in (dict(model.named_parameters()), model.state_dict()):
        assert not has_query_or_key(names)
        assert not any(name.endswith("mixing") for name in names)
    block = only_encoder(model).config.hf_lam["stt"]
    assert (block["variant"], block.get("synthesizer"), block.get("train_mixing", False)) == (synthesizer, None, False)
    assert injection_of(only_encoder(model)).configs["stt"].variant == synthesizer
    assert all(layer.config.variant == synthesizer for layer in mechanism_of(only_encoder(model), "stt"))

    model.save_pretrained(tmp_path)
    assert not has_query_or_key(load_file(tmp_path / "model.safetensors"))
    assert json.loads((tmp_path / "config.json").read_text())["hf_lam"]["stt"]["variant"] == synthesizer
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert max_difference(outputs(loaded, inputs), expected) < 1e-6
    assert loaded.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("synthesizer", ["dense", "factorized_random"])
@pytest.mark.parametrize("case", GRIDS)
def test_outputs_stay_on_other_grids(case: str, synthesizer: str) -> None:
    host, changes, options, length = GRIDS[case]
    inputs = inputs_of(host, length)
    if case == "vit_row":
        inputs = {"pixel_values": torch.randn(2, 3, 4, 16)}
    if synthesizer == "factorized_random":
        options = {**options, "rank": 2}
    assert_same_after_hardening(
        make_mixture(BASES[host], host, changes=changes, synthesizer=synthesizer, **options), inputs
    )


@pytest.mark.parametrize("stock, host", CONVERTIBLE.items())
def test_every_class_is_hardened(stock: type[PreTrainedModel], host: str) -> None:
    model = make_mixture(stock, host)
    inputs = inputs_of(host)
    before = outputs(model, inputs)
    harden(model)
    assert not has_query_or_key(model.state_dict())
    assert max_difference(outputs(model, inputs), before) < 1e-5


def test_attention_maps_stay() -> None:
    model = make_mixture(ViTModel, "vit")
    before = model(**make_inputs("vit"), output_attentions=True).attentions
    after = harden(model)(**make_inputs("vit"), output_attentions=True).attentions
    assert len(before) == len(after) == 3
    for left, right in zip(before, after, strict=True):
        assert max_difference(left, right) < 1e-5


def test_gradients_of_what_is_left_stay() -> None:
    model = make_mixture(ViTForImageClassification, "vit")
    batch = {**make_inputs("vit"), "labels": torch.tensor([0, 1])}
    model(**batch).loss.backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    harden(model)(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, before[name], atol=1e-5, rtol=1e-4)


def test_training_mode_requires_grad_and_implementation_stay() -> None:
    model = make_mixture(ViTForImageClassification, "vit").train()
    hf_lam.freeze_host(model)
    model.set_attn_implementation("eager")
    harden(model)
    assert model.training and all(module.training for module in model.modules())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".hf_lam." in name}
    assert model.config._attn_implementation == "eager"


def test_a_deep_copy_is_hardened_alone() -> None:
    model = make_mixture(ViTModel, "vit")
    inputs = make_inputs("vit")
    before = outputs(model, inputs)
    twin = harden(copy.deepcopy(model))
    assert has_query_or_key(model.state_dict()) and not has_query_or_key(twin.state_dict())
    assert model.config.hf_lam["stt"]["variant"] == "mixture"
    assert max_difference(outputs(model, inputs), before) == 0
    assert max_difference(outputs(twin, inputs), before) < 1e-5


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    base = only_encoder(model)
    return tensors, dict(injection_of(base).configs), copy.deepcopy(getattr(base.config, "hf_lam", None))


def assert_unchanged(model: nn.Module, before: tuple[Any, ...]) -> None:
    tensors, configs, block = before
    after = model.state_dict()
    assert after.keys() == tensors.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in tensors.items())
    assert injection_of(only_encoder(model)).configs == configs
    assert getattr(only_encoder(model).config, "hf_lam", None) == block


def test_says_how_far_it_is() -> None:
    model = make_mixture(BertModel, "bert")
    mixing = torch.ones(3, 4)
    mixing[1, 2], mixing[2, 0] = 0.25, 0.75
    set_mixing(model, mixing)
    before = snapshot(model)
    expected = (
        r"2 of 12 heads of HfLamBertModel .* lowest λ is 0\.25 \(layer 1, head 2\), the mean 0\.9167.*force=True"
    )
    with pytest.raises(ValueError, match=expected):
        harden(model)
    assert_unchanged(model, before)
    assert torch.equal(mixing_of(only_encoder(model)), mixing)


@pytest.mark.parametrize("value", [0.0, 0.5, 1 - 1e-6, float("nan")])
def test_anything_short_of_one_is_refused(value: float) -> None:
    model = make_mixture(ViTModel, "vit", mixing=value)
    with pytest.raises(ValueError, match="12 of 12 heads"):
        harden(model)
    assert has_query_or_key(model.state_dict())


def test_force_goes_there_at_once() -> None:
    model, at_one = (make_mixture(BertModel, "bert", mixing=mixing) for mixing in (0.3, 1.0))
    inputs = inputs_of("bert")
    before = outputs(model, inputs)
    harden(model, force=True)
    assert max_difference(outputs(model, inputs), before) > 1e-3
    assert max_difference(outputs(model, inputs), outputs(at_one, inputs)) < 1e-5


def test_trained_mixing() -> None:
    model = make_mixture(ViTForImageClassification, "vit", mixing=0.9, train_mixing=True)
    inputs = make_inputs("vit")
    with pytest.raises(ValueError, match=r"lowest λ is 0\.9"):
        harden(model)
    set_mixing(model, 1.5)  # beyond the end it counts as 1
    before = outputs(model, inputs)
    harden(model)
    assert not any("mixing" in name for name, _ in model.named_parameters())
    assert model.config.hf_lam["stt"].get("train_mixing", False) is False
    assert max_difference(outputs(model, inputs), before) < 1e-5


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_host("vit"),
        lambda: hf_lam.inject(make_host("vit"), LamConfig()),
        lambda: hf_lam.inject(make_host("vit"), SttConfig(variant="dense")),
        lambda: harden(make_mixture(ViTModel, "vit")),
        lambda: nn.Linear(2, 2),
    ],
    ids=["stock", "lam", "pure", "hardened", "linear"],
)
def test_models_without_a_mixture(make: Any) -> None:
    with pytest.raises(ValueError, match="no mixture to harden"):
        harden(make())


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("other", [LamConfig(), LocomtConfig(views="half")], ids=["lam", "locomt"])
def test_scores_that_others_need_are_not_dropped(other: Any, force: bool) -> None:
    model = make_mixture(ViTModel, "vit", other)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"no scores that {type(other).__name__}"):
        harden(model, force=force)
    assert_unchanged(model, before)


def test_an_injected_model_and_its_mechanism_file(tmp_path: Path) -> None:
    model = hf_lam.inject(make_host("deit", initializer_range=0.2), SttConfig())
    randomise_synthesizers(model)
    set_mixing(model, 1.0)
    inputs = make_inputs("deit")
    assert_same_after_hardening(model, inputs)
    with pytest.raises(ValueError, match="no query and key projections any more"):
        hf_lam.remove(model)
    hf_lam.save_mechanism(model, tmp_path)
    loaded = hf_lam.load_mechanism(make_host("deit", initializer_range=0.2), tmp_path)
    assert not has_query_or_key(loaded.state_dict())
    assert max_difference(outputs(loaded, inputs), outputs(model, inputs)) < 1e-6


def test_under_peft_with_the_copy_that_was_trained(tmp_path: Path) -> None:
    base = make_mixture(ViTForImageClassification, "vit", mixing=0.0)
    config = peft.LoraConfig(r=4, target_modules=["v_proj"], modules_to_save=["hf_lam", "classifier"])
    model = peft.get_peft_model(base, config)
    set_mixing(model, 1.0)  # of the copy; the original stays at 0
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1
    randomise_synthesizers(model, 0.2)
    inputs = make_inputs("vit")
    assert_same_after_hardening(model, inputs)
    expected = outputs(model, inputs)
    assert not any("mixing" in name or "q_proj" in name or "k_proj" in name for name in model.state_dict())
    merged = model.merge_and_unload()
    assert max_difference(outputs(merged, inputs), expected) < 1e-5
    merged.save_pretrained(tmp_path)
    loaded = type(base).from_pretrained(tmp_path)
    assert max_difference(outputs(loaded, inputs), expected) < 1e-5


def test_a_new_optimizer_trains_what_is_left() -> None:
    model = make_mixture(ViTForImageClassification, "vit")
    old = torch.optim.AdamW(model.parameters(), lr=1e-2)
    harden(model).train()
    new = torch.optim.AdamW(model.parameters(), lr=1e-2)
    count = [sum(len(group["params"]) for group in optimizer.param_groups) for optimizer in (old, new)]
    assert count[0] - count[1] == 3 * 4  # weight and bias of a query and a key in each layer
    batch = {**make_inputs("vit"), "labels": torch.tensor([0, 1])}
    losses = []
    for _ in range(5):
        loss = model(**batch).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        new.step()
        new.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("host", HEADS)
def test_costs_fall(host: str) -> None:
    model = make_mixture(HEADS[host], host)
    inputs = inputs_of(host)
    mixture, stock = hf_lam.cost(model, inputs), hf_lam.cost(make_model(HEADS[host], host), inputs)
    pure = hf_lam.cost(harden(model), inputs)
    assert (mixture.forward_kind, pure.forward_kind) == ("full", "own")
    assert pure.agrees
    batch, tokens, layers, width = 2, pure.tokens, 3, 32
    projections = 2 * 2 * batch * tokens * width * width * layers
    assert (
        stock.flops - stock.forward_attention - (pure.flops - pure.forward_attention - pure.synthesis) == projections
    )
    # One axis has one product of the size of each of the two that it replaces; two have less.
    assert pure.forward_attention <= stock.forward_attention // 2
    assert pure.synthesis == mixture.synthesis > 0
    assert pure.parameters < mixture.parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = make_mixture(ViTModel, "vit").to(dtype)
    inputs = {"pixel_values": make_inputs("vit")["pixel_values"].to(dtype)}
    before = outputs(model, inputs)
    after = outputs(harden(model), inputs)
    assert after.dtype == dtype and after.isfinite().all()
    assert max_difference(after, before) < (0.05 if dtype == torch.bfloat16 else 0.01)


def test_adapters_on_what_would_be_dropped_are_merged_first() -> None:
    model = hf_lam.inject(make_host("vit"), SttConfig())
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    for layer in mechanism_of(model, "stt"):
        layer.mixing.fill_(1)
    with pytest.raises(ValueError, match=r"q_proj of ViTModel carry an adapter of PEFT.*merge_and_unload"):
        hf_lam.harden(adapted)
    expected = first_output(adapted, make_inputs("vit"))
    merged = hf_lam.harden(adapted.merge_and_unload())
    assert max_difference(first_output(merged, make_inputs("vit")), expected) < 1e-5


def test_the_advice_fits_how_the_mixing_is_moved() -> None:
    with pytest.raises(ValueError, match=r"mean 0\. Train on with SttAnnealingCallback, or"):
        hf_lam.harden(hf_lam.inject(make_host("vit"), SttConfig()))
    with pytest.raises(ValueError, match=r"mean 0\. Train on, or pass force=True"):
        hf_lam.harden(hf_lam.inject(make_host("vit"), SttConfig(train_mixing=True)))
