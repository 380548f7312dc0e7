"""Fusion models with everything around them: saving, loading, compiling, checkpointing, PEFT, `Trainer`."""

from __future__ import annotations

import copy
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import hf_lam
from helpers.checkpointing import checkpoint_activations, keep_activations
from helpers.fusion_models import MODALITIES, arguments_of, make_fusion, make_fusion_inputs
from helpers.hosts import max_difference, perturb_mechanisms
from helpers.lam_models import assert_same_weights, make_trainer, weights_of
from helpers.processes import run_code
from hf_lam import (
    HfLamFusionForSequenceClassification,
    HfLamFusionModel,
    LamConfig,
    LocomtConfig,
    mechanism_parameters,
)
from hf_lam.training import ViewAnnealingCallback

slow = pytest.mark.slow
# Given as vectors, where a test has some in place of encoders.
VECTORS = ("text", "audio")
SAVED = ["none", "lam_half", "bottleneck", "annealing"]


def batches(vectors: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """What a model may be called with: other text lengths, missing modalities, in the batch and in one sample."""
    inputs = make_fusion_inputs(as_features=vectors)
    some = {"has_image": torch.tensor([True, False]), "has_text": torch.tensor([False, True])}
    without_image = {key: value for key, value in inputs.items() if key not in arguments_of("image")}
    audio = {key: value for key, value in inputs.items() if key in arguments_of("audio")}
    return [inputs, with_text(inputs, 8), with_text(without_image, 9), audio, {**inputs, **some}]


def with_text(inputs: dict[str, Any], length: int) -> dict[str, Any]:
    return {key: x[:, :length] if key in arguments_of("text") else x for key, x in inputs.items()}


# --- saving and loading ----------------------------------------------------------------------------------------------

LOADER = """
import sys
import torch
import transformers

root = sys.argv[1]
for name, auto_class, inputs, expected, pooled in torch.load(f"{root}/cases.pt"):
    for auto in {"AutoModel", auto_class}:
        model = getattr(transformers, auto).from_pretrained(f"{root}/{name}", trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        if auto == "AutoModel":
            assert torch.equal(model(**inputs).pooler_output, pooled), name
        if auto == auto_class:
            assert torch.equal(model(**inputs)[0], expected), name
            for again in ("again", "once-more"):
                model.save_pretrained(f"{root}/{name}-{again}")
                model = type(model).from_pretrained(f"{root}/{name}-{again}")
                assert torch.equal(model(**inputs)[0], expected), (name, again)
    print("loaded", name)
assert not [name for name, module in sys.modules.items() if module and name.partition(".")[0] == "hf_lam"]
"""


@pytest.mark.slow
def test_heads_and_bases_travel_without_hf_lam(tmp_path: Path) -> None:
    cases = []
    for name, head, vectors in (("lam_half", True, ()), ("bottleneck", True, VECTORS), ("annealing", False, ())):
        model = make_fusion(head=head, hf_lam=name, norm_first=name != "bottleneck", as_features=vectors)
        model.requires_grad_(False).save_pretrained(tmp_path / name)
        inputs = batches(vectors)[-1]
        pooled = model.base_model(**inputs).pooler_output
        auto_class = "AutoModelForSequenceClassification" if head else "AutoModel"
        cases.append((name, auto_class, inputs, model(**inputs)[0], pooled))
    torch.save(cases, tmp_path / "cases.pt")
    assert run_code(LOADER, tmp_path, hf_lam=False).count("loaded") == len(cases)


@pytest.mark.slow
def test_the_installed_package_and_a_changed_copy_work_side_by_side(tmp_path: Path) -> None:
    model, inputs = make_fusion(hf_lam="lam_half"), make_fusion_inputs()
    model.save_pretrained(tmp_path)
    changed = tmp_path / "locomt_hf_lam.py"
    changed.write_text(changed.read_text() + "# another version\n")
    name = "modeling_hf_lam_fusion.HfLamFusionForSequenceClassification"
    other = get_class_from_dynamic_module(name, str(tmp_path)).from_pretrained(tmp_path)
    assert type(other) is not type(model)
    for _ in range(2):
        assert torch.equal(other(**inputs).logits, model(**inputs).logits)
    hf_lam.remove(other)
    assert max_difference(other(**inputs).logits, model(**inputs).logits) > 1e-3


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("vectors", [(), pytest.param(VECTORS, marks=pytest.mark.slow)], ids=["encoders", "mixed"])
def test_nothing_is_left_to_uninitialised_memory(
    name: str, vectors: tuple[str, ...], tmp_path: Path, poisoned_empty: None
) -> None:
    model, inputs = make_fusion(hf_lam=name, as_features=vectors), make_fusion_inputs(as_features=vectors)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is HfLamFusionModel
    assert torch.equal(base(**inputs).pooler_output, model.fusion(**inputs).pooler_output)


@pytest.mark.parametrize("head", [True, False])
def test_a_checkpoint_is_restored_from_its_file_as_written(head: bool, tmp_path: Path) -> None:
    model = make_fusion(head=head, hf_lam="lam_half")
    model.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() != model.state_dict().keys()  # names of older releases of transformers
    other = make_fusion(head=head, hf_lam="lam_half", seed=1)
    report = other.load_state_dict(written, strict=False)
    assert not report.missing_keys and not report.unexpected_keys
    assert_same_weights(weights_of(other), weights_of(model))


@pytest.mark.parametrize("part", ["image_model", "fusion.encoder", "projection", "hf_lam"])
@pytest.mark.parametrize("model_class", [HfLamFusionForSequenceClassification, HfLamFusionModel])
def test_a_checkpoint_with_a_hole_is_refused(model_class: Any, part: str, tmp_path: Path) -> None:
    make_fusion(hf_lam="lam_half").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[next(key for key in weights if part in key)]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="leaves 1 weights"):
        model_class.from_pretrained(tmp_path)


def test_mechanisms_can_be_given_while_loading_but_not_lost(tmp_path: Path) -> None:
    plain, inputs = make_fusion(), make_fusion_inputs()
    plain.save_pretrained(tmp_path / "plain")
    block = {"lam": {"scope": "shared"}, "locomt": {"views": "full"}}
    loaded = type(plain).from_pretrained(tmp_path / "plain", hf_lam=block)
    assert torch.allclose(loaded(**inputs).logits, plain(**inputs).logits, atol=1e-4)
    perturb_mechanisms(loaded)
    assert max_difference(loaded(**inputs).logits, plain(**inputs).logits) > 1e-3
    loaded.save_pretrained(tmp_path / "masked")
    for other in (None, {"lam": {}}, {"lam": {"rank": 2}}):
        with pytest.raises(RuntimeError, match="hf_lam"):
            type(plain).from_pretrained(tmp_path / "masked", hf_lam=other)


def test_copies_are_independent() -> None:
    model, inputs = make_fusion(hf_lam="lam_half"), make_fusion_inputs()
    expected = model(**inputs).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(**inputs).logits, expected)
        for parameter in mechanism_parameters(other):
            parameter.data.zero_()
        assert max_difference(other(**inputs).logits, expected) > 1e-3
    assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("vectors", [(), pytest.param(VECTORS, marks=pytest.mark.slow)], ids=["encoders", "mixed"])
def test_threads_do_not_see_each_others_batches(vectors: tuple[str, ...]) -> None:
    model = make_fusion(hf_lam="lam_half", as_features=vectors).requires_grad_(False)
    expected = [model(**batch).logits for batch in batches(vectors)]
    found: list[Any] = [None] * len(expected)

    def run(i: int, batch: dict[str, Any]) -> None:
        found[i] = torch.stack([model(**batch).logits for _ in range(5)])

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(batches(vectors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for logits, wanted in zip(found, expected, strict=True):
        assert torch.equal(logits, wanted.expand_as(logits))


# --- compiling, checkpointing -----------------------------------------------------------------------------


def gradients(
    model: Any, several: list[dict[str, Any]], use_reentrant: bool | None = None, run: Callable[..., Any] | None = None
) -> dict[str, torch.Tensor]:
    """Gradients of one backward after a forward of every batch."""
    model.train().zero_grad()
    if use_reentrant is not None:
        checkpoint_activations(model, use_reentrant)
    run = model if run is None else run
    sum(run(**batch).last_hidden_state.square().sum() for batch in several).backward()
    keep_activations(model)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, gradient in expected.items():
        scale = gradient.abs().max().clamp(min=1e-2)
        assert (found[name] - gradient).abs().max() / scale < 1e-4, name


@pytest.mark.parametrize("use_reentrant", [None, False, True])
@pytest.mark.parametrize("name", ["none", "lam_shared_rank", "lam_embeddings", "lam_half", "bottleneck"])
@pytest.mark.parametrize("vectors", [(), pytest.param(VECTORS, marks=pytest.mark.slow)], ids=["encoders", "mixed"])
def test_two_forwards_then_one_backward(name: str, use_reentrant: bool | None, vectors: tuple[str, ...]) -> None:
    model = make_fusion(head=False, hf_lam=name, as_features=vectors)
    several = batches(vectors)[2:4]
    single = [gradients(model, [batch]) for batch in several]
    expected = {key: single[0][key] + single[1][key] for key in single[0]}
    assert_same_gradients(gradients(model, several, use_reentrant), expected)


@slow
def test_compiled_without_a_graph_break() -> None:
    torch._dynamo.reset()
    model = make_fusion(("image", "audio"), head=False, hf_lam="half", num_hidden_layers=1).requires_grad_(False)
    inputs = make_fusion_inputs(("image", "audio"))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert max_difference(compiled(**inputs).last_hidden_state, model(**inputs).last_hidden_state) < 1e-5


@slow
def test_compiled_with_checkpointing() -> None:
    torch._dynamo.reset()
    model = make_fusion(("text", "image"), head=False, hf_lam="lam_embeddings", num_hidden_layers=1)
    several = [make_fusion_inputs(("text", "image"), seed=seed) for seed in (1, 2)]
    expected = gradients(model, several)
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same_gradients(gradients(model, several, use_reentrant=False, run=run), expected)


@slow
def test_compiled_with_inductor() -> None:
    torch._dynamo.reset()
    model = make_fusion(("text", "image"), hf_lam="lam_half", num_hidden_layers=1).requires_grad_(False)
    inputs = make_fusion_inputs(("text", "image"))
    assert max_difference(torch.compile(model, fullgraph=True)(**inputs).logits, model(**inputs).logits) < 1e-4


# --- PEFT, and mechanisms on their own -------------------------------------------------------------------------------


def test_lora_with_mechanisms_saves_loads_and_merges(tmp_path: Path) -> None:
    inputs = make_fusion_inputs()

    def make() -> Any:
        return make_fusion(hf_lam="lam_half")

    config = peft.LoraConfig(
        r=4, target_modules=r".*\.encoder\.layers\.\d+\.attention\.[qv]_proj", modules_to_save=["hf_lam", "classifier"]
    )
    model = peft.get_peft_model(make(), config)
    adapted = {key for key, _ in model.named_parameters() if "lora_" in key}
    assert adapted and not [key for key in adapted if ".fusion.encoder.layers." not in key]
    before = model(**inputs).logits
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    copies = model.get_base_model().fusion.hf_lam.modules_to_save["default"]
    start = weights_of(copies)
    for _ in range(3):
        model.train()(**inputs, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(not torch.equal(tensor, start[key]) for key, tensor in copies.named_parameters())
    trained = model.eval()(**inputs).logits
    assert max_difference(trained, before) > 1e-2
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make(), tmp_path)
    assert torch.equal(loaded(**inputs).logits, trained)
    merged = loaded.merge_and_unload()
    assert type(merged) is HfLamFusionForSequenceClassification
    assert max_difference(merged(**inputs).logits, trained) < 1e-4


def test_mechanisms_are_saved_and_loaded_alone(tmp_path: Path) -> None:
    model, inputs = make_fusion(hf_lam="lam_half"), make_fusion_inputs()
    expected = model(**inputs).logits
    hf_lam.save_mechanism(model, tmp_path)
    host = hf_lam.remove(copy.deepcopy(model))
    assert host.config.hf_lam is None
    plain = host(**inputs).logits
    assert max_difference(plain, expected) > 1e-3
    assert torch.equal(hf_lam.load_mechanism(host, tmp_path)(**inputs).logits, expected)
    hf_lam.inject(hf_lam.remove(host), LamConfig())
    assert max_difference(host(**inputs).logits, plain) < 1e-4
    with pytest.raises(ValueError, match="modalities"):
        hf_lam.load_mechanism(make_fusion(("image", "audio")), tmp_path)
    with pytest.raises(ValueError, match="trained on a 'fusion'"):
        hf_lam.load_mechanism(make_fusion().fusion.text_model, tmp_path)


def test_only_mechanisms_and_head_train() -> None:
    model = hf_lam.freeze_host(make_fusion(hf_lam="lam_half"), train_head=True)
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    own = {key for key, _ in model.named_parameters() if ".hf_lam." in key}
    assert own and trained == own | {"classifier.weight", "classifier.bias"}
    model.train()(**batches()[2], labels=torch.tensor([0, 1])).loss.backward()
    assert {key for key, parameter in model.named_parameters() if parameter.grad is not None} == trained


@pytest.mark.parametrize("model", ["loaded", "folder"])
def test_convert_says_what_to_call_instead(model: str, tmp_path: Path) -> None:
    fusion: Any = make_fusion(head=False)
    fusion.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"already a hf_lam_fusion.*hf_lam\.inject"):
        hf_lam.convert(fusion if model == "loaded" else str(tmp_path), LamConfig())


# --- calibration -----------------------------------------------------------------------------------------------------


def test_calibration_measures_what_the_attention_maps_show() -> None:
    model = make_fusion(head=False, hf_lam="full", initializer_range=0.5)
    count = len(MODALITIES)
    mass, products = torch.zeros(2, 4, count, count, dtype=torch.float64), torch.zeros(count, count)
    rows = samples = 0
    for batch in batches():
        with torch.no_grad():
            outputs = model(**batch, output_attentions=True)
        rows += int(outputs.token_mask.sum())
        samples += len(outputs.token_mask)
        ids = torch.nn.functional.one_hot(outputs.modality_ids, count)
        lengths = ids.sum(0).float()
        # What a sample lacks is computed all the same, if others have it.
        products += len(outputs.token_mask) * torch.outer(lengths, lengths)
        for layer, maps in enumerate(outputs.attentions):
            seen = maps.double() * outputs.token_mask[:, None, :, None]
            mass[layer] += torch.einsum("bhqk,qi,kj->hij", seen, ids.double(), ids.double())
    config, report = hf_lam.calibrate_views(model, batches(), budget=0.5)
    assert report.segments == list(MODALITIES) and report.samples == samples
    torch.testing.assert_close(torch.tensor(report.mass_of_pairs).double(), mass / rows, atol=1e-5, rtol=0)
    assert report.full_cost == pytest.approx(float(products.sum()) / samples)
    spent = sum(map(sum, report.cost)) / (report.full_cost * 8)
    assert spent == pytest.approx(report.flops_fraction) and 0 < spent <= 0.5

    before = model(**batches()[0]).last_hidden_state
    hf_lam.set_views(model, config)
    assert max_difference(model(**batches()[0]).last_hidden_state, before) > 1e-3
    made = make_fusion(head=False, hf_lam=(config,), initializer_range=0.5)
    for batch in batches():
        assert torch.equal(made(**batch).last_hidden_state, model(**batch).last_hidden_state)


# --- Trainer ---------------------------------------------------------------------------------------------------------


def make_samples(count: int = 12) -> list[dict[str, Any]]:
    """Samples of all modalities, of which some have no image."""
    inputs = make_fusion_inputs(batch=count)
    inputs |= {"has_image": torch.arange(count) % 3 != 0, "labels": torch.arange(count) % 3}
    return [{key: tensor[i] for key, tensor in inputs.items()} for i in range(count)]


@slow
def test_trainer_resumes_where_it_stopped(tmp_path: Path) -> None:
    def make(folder: str, **arguments: Any) -> Any:
        options = {"samples": make_samples(), "save_strategy": "steps", "save_steps": 2, "max_steps": 4, **arguments}
        return make_trainer(make_fusion(hf_lam="lam_half"), tmp_path / folder, **options)

    whole = make("whole")
    start = weights_of(whole.model)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert (checkpoint / "modeling_hf_lam_fusion.py").is_file()
    shutil.copytree(checkpoint, tmp_path / "resumed" / "checkpoint-2")
    resumed = make("resumed")
    resumed.model.load_state_dict({key: torch.zeros_like(tensor) for key, tensor in start.items()})
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert_same_weights(weights_of(resumed.model), weights_of(whole.model))
    metrics = whole.evaluate(make_samples())
    assert metrics["eval_loss"] == pytest.approx(resumed.evaluate(make_samples())["eval_loss"])


def test_views_are_annealed_by_the_trainer(tmp_path: Path) -> None:
    model, inputs = make_fusion(hf_lam="annealing", perturb=False), make_fusion_inputs()
    full = hf_lam.remove(copy.deepcopy(model))
    assert max_difference(model(**inputs).logits, full(**inputs).logits) < 1e-4
    make_trainer(model, tmp_path, ViewAnnealingCallback(), samples=make_samples(), max_steps=4).train()
    # At the end the views are what they anneal to.
    assert model.config.hf_lam["locomt"]["annealing"] is False
    annealed = model.eval()(**inputs).logits
    hf_lam.set_views(model, LocomtConfig(views="half"))
    assert torch.equal(model(**inputs).logits, annealed)
    assert max_difference(hf_lam.remove(model)(**inputs).logits, annealed) > 1e-3
