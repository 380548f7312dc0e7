"""Modalities of vectors: what is their own, beside what they share with encoders (`test_fusion.py`)."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import helpers.common_behaviours as common
import hf_lam
from helpers.fusion_models import lacking
from helpers.hosts import CONFIGS, make_host, max_difference, perturb_mechanisms
from helpers.lam_models import weights_of
from hf_lam import (
    HfLamFusionConfig,
    HfLamFusionForSequenceClassification,
    HfLamFusionModel,
    LamConfig,
    LocomtConfig,
)
from hf_lam.modeling.fusion_features_hf_lam import FeatureOptions, sinusoidal_positions

SIZES: dict[str, int] = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "num_labels": 3,
}
# What a modality of vectors can be.
KINDS: dict[str, dict[str, Any]] = {
    "sinusoidal": {"size": 10},
    "learned": {"size": 10, "positions": "learned", "max_length": 9},
    "without": {"size": 10, "positions": None},
    "bare": {"size": 16, "positions": None, "norm": False, "project": False},
}


def make(features: Any, head: bool = True, seed: int = 0, **config: Any) -> Any:
    """A tiny model of vectors in eval mode, all of whose parameters are random."""
    torch.manual_seed(seed)
    model_class: Any = HfLamFusionForSequenceClassification if head else HfLamFusionModel
    model = model_class(HfLamFusionConfig(features=features, **{**SIZES, "initializer_range": 0.2, **config})).eval()
    if model.config.hf_lam is not None:
        perturb_mechanisms(model)
    return model


def vectors(batch: int = 2, length: int = 6, size: int = 10, seed: int = 1) -> Tensor:
    return torch.randn(batch, length, size, generator=torch.Generator().manual_seed(seed))


# --- positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_padding_may_stand_anywhere_and_hold_anything(kind: str, side: str) -> None:
    model = make({"clips": KINDS[kind]}, head=False)
    values = vectors(size=KINDS[kind]["size"])
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, {"left": slice(0, 2), "right": slice(4, 6), "middle": slice(2, 4)}[side]] = 0
    alone = model(clips_features=values[1:][mask[1:].bool()][None]).pooler_output
    values[mask == 0] = float("nan")
    found = model(clips_features=values.requires_grad_(), clips_mask=mask).pooler_output
    assert max_difference(found[1:], alone) < 1e-5
    found.square().mul(torch.arange(16)).sum().backward()
    assert lacking(model) == []
    gradient = values.grad
    assert gradient is not None and gradient[mask == 0].abs().max() == 0 and gradient[mask == 1].abs().min() > 0


def test_positions_are_counted_unless_they_are_given() -> None:
    for kind in ("sinusoidal", "learned"):
        model = make({"clips": KINDS[kind]}, head=False)
        values = vectors()
        counted = torch.arange(6).expand(2, -1)
        expected = model(clips_features=values).last_hidden_state
        assert torch.equal(model(clips_features=values, clips_positions=counted).last_hidden_state, expected)
        # Only where they lie says which vector is which.
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        shuffled = model(clips_features=values[:, order], clips_positions=counted[:, order]).last_hidden_state
        assert max_difference(shuffled, expected[:, order]) < 1e-5
        assert max_difference(model(clips_features=values[:, order]).last_hidden_state, expected[:, order]) > 1e-3


def test_sinusoidal_positions_may_be_seconds() -> None:
    model = make({"clips": 10}, head=False)
    values, seconds = vectors(), torch.tensor([[0.0, 1.5, 2.25, 4, 7.5, 1e4], [3.0, 3.5, 9, 9.5, 11, 12.125]])
    found = model(clips_features=values, clips_positions=seconds).last_hidden_state
    assert max_difference(model(clips_features=values, clips_positions=seconds + 0.5).last_hidden_state, found) > 1e-3
    # What stands at padding is not read.
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    expected = model(clips_features=values, clips_mask=mask, clips_positions=seconds).pooler_output
    seconds[1, 3:] = float("nan")
    assert torch.equal(model(clips_features=values, clips_mask=mask, clips_positions=seconds).pooler_output, expected)
    learned = make({"clips": KINDS["learned"]}, head=False)
    places = torch.tensor([[0, 1, 2, 3, 4, 8], [5, 6, 7, -100, 1000, -1]])
    assert learned(clips_features=values, clips_mask=mask, clips_positions=places).pooler_output.isfinite().all()


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_sinusoidal_positions_are_those_of_the_paper(size: int) -> None:
    found = sinusoidal_positions(torch.tensor([[0, 3, 50]]), size)
    assert found.shape == (1, 3, size)
    half = (size + 1) // 2
    for column in range(size):
        frequency = 10_000 ** (-(column % half) / max(half - 1, 1))
        wave = torch.sin if column < half else torch.cos
        assert max_difference(found[0, :, column], wave(torch.tensor([0.0, 3, 50]) * frequency)) < 1e-5


# --- what is taken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_vectors_may_have_any_dtype(dtype: torch.dtype) -> None:
    model = make({"clips": 10})
    values = (vectors() * 4).to(dtype)
    assert torch.equal(model(clips_features=values).logits, model(clips_features=values.float()).logits)


def test_late_fusion_of_vectors_as_they_are_has_weights_in_its_head_alone() -> None:
    as_it_is = {"size": 8, "project": False, "norm": False, "positions": None}
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_labels": 3}
    config = hf_lam.HfLamFusionConfig(features={"a": as_it_is, "b": as_it_is}, baseline="late", **sizes)
    model = hf_lam.HfLamFusionForSequenceClassification(config).eval()
    assert not list(model.base_model.parameters())
    vectors = [torch.randn(2, 5, 8), torch.randn(2, 3, 8)]
    logits = model(a_features=vectors[0], b_features=vectors[1]).logits
    pooled = torch.stack([x.mean(1) for x in vectors]).mean(0)
    torch.testing.assert_close(logits, model.classifier(pooled))


def test_one_vector_a_sample_and_modalities_in_any_order() -> None:
    features = {"summary": {"size": 10, "class_tokens": 1}, "clips": 10}
    model = make(features, pooling={"summary": "cls"})
    values = {"summary_features": vectors(length=1), "clips_features": vectors(length=4, seed=2)}
    other = make(features, pooling={"summary": "cls"}, modalities=["clips", "summary"])
    other.load_state_dict(model.state_dict())
    assert max_difference(other(**values).logits, model(**values).logits) < 1e-5
    assert model.fusion(**values).modality_ids.tolist() == [0, 1, 1, 1, 1]
    assert other.fusion(**values).modality_ids.tolist() == [0, 0, 0, 0, 1]


def test_a_batch_without_any_vector_lacks_the_modality() -> None:
    """As a collator pads a batch in which every sample has none."""
    model = make({"clips": 10, "sound": 10})
    values = vectors()
    empty = {"clips_features": torch.zeros(2, 0, 10), "clips_mask": torch.zeros(2, 0, dtype=torch.long)}
    assert torch.equal(model(sound_features=values, **empty).logits, model(sound_features=values).logits)
    with pytest.raises(ValueError, match=r"no modality was given.*clips_features \(clips\), sound_features"):
        model(**empty)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_class_tokens_are_the_first_vectors_that_count(count: int) -> None:
    model = make({"clips": {"size": 10, "class_tokens": count}}, head=False)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 1, 0]])
    outputs = model(clips_features=vectors(3), clips_mask=mask)
    for states, there, pooled in zip(outputs.last_hidden_state, mask.bool(), outputs.pooler_output, strict=True):
        assert max_difference(pooled, states[there][:count].mean(0)) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"clips_features": vectors(size=9)},
            r"clips_features must be of shape \(batch, vectors, 10\), got \(2, 6, 9",
        ),
        (
            {"clips_features": vectors()[:, 0]},
            r"got \(2, 10\)\. For one vector a sample, give features\.unsqueeze\(1\)",
        ),
        ({"clips_features": vectors(length=10)}, "clips_features must have at most 9 vectors, got 10"),
        ({"clips_mask": torch.ones(2, 5)}, r"clips_mask is for the clips.*\(2, 6\), as clips_features.*got \(2, 5\)"),
        ({"clips_positions": torch.ones(1, 6).long()}, r"clips_positions is for the clips.*got \(1, 6\)"),
        ({"clips_positions": torch.ones(2, 6)}, "clips_positions must be whole numbers.*float32"),
        (
            {"sound_positions": torch.ones(2, 6)},
            r"sound_positions was given, but features\['sound'\] has positions=No",
        ),
        ({"has_clips": torch.ones(3)}, r"has_clips must be of shape \(2,\), got \(3,\)"),
        (
            {"clips_features": None, "clips_mask": torch.ones(2, 6)},
            "clips_mask of the clips was given without clips_f",
        ),
        ({"sound_features": vectors(3)}, r"different batch sizes: \{'clips': 2, 'sound': 3\}"),
        (
            {"audio_values": vectors()},
            r"no audio that takes audio_values.*\['clips', 'sound'\], which take clips_feat",
        ),
        (
            {"clips_mask": torch.tensor([[1] * 6, [0] * 6]), "has_sound": torch.tensor([1, 0])},
            r"samples \[1\] of the batch have no modality at all",
        ),
    ],
)
def test_bad_vectors_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    model = make({"clips": KINDS["learned"], "sound": KINDS["without"]})
    with pytest.raises(ValueError, match=message):
        model(**{"clips_features": vectors(), "sound_features": vectors(seed=2), **change})


def test_arguments_of_other_vectors_are_refused() -> None:
    model = make({"clips": 10})
    with pytest.raises(TypeError, match=r"takes no sound_features; its modalities are \['clips'\]"):
        model(clips_features=vectors(), sound_features=vectors())
    with pytest.raises(TypeError, match="clips_features must be a tensor, got list"):
        model(clips_features=vectors().tolist())


def test_a_dense_mask_needs_the_most_vectors() -> None:
    with pytest.raises(ValueError, match=r"how many tokens its clips has at most.*rank=8.*max_length"):
        make({"sound": KINDS["learned"], "clips": 10}, hf_lam=LamConfig())


# --- half precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_one_number", [False, True])
def test_extreme_vectors_in_half_precision(dtype: torch.dtype, is_one_number: bool) -> None:
    """Larger than half precision reaches, or without any variance; the norm is in single precision."""
    model = make({"clips": 10, "sound": 10})
    values = vectors() * 1e6
    if is_one_number:
        values[0] = 0
        values[1, :3] = 7e4
    inputs = {"clips_features": values, "sound_features": vectors(seed=2), "has_clips": torch.tensor([1, 0])}
    expected = model(**inputs).logits
    outputs = model.to(dtype)(**inputs, labels=torch.tensor([0, 2]))
    assert max_difference(outputs.logits.float(), expected) < 0.05
    outputs.loss.backward()
    assert lacking(model) == []


# --- the signature ---------------------------------------------------------------------------------------------------


def test_the_forward_of_a_model_names_its_features() -> None:
    """`Trainer`, `torch.export` and completion read it there; a class has no features of its own."""
    plain = list(inspect.signature(HfLamFusionForSequenceClassification.forward).parameters)
    model = make({"clips": 10, "audio": 4})
    own = ["clips_features", "clips_mask", "clips_positions", "has_clips", "audio_features", "audio_positions"]
    bound = inspect.signature(model.forward).parameters
    assert set(bound) == {*plain[1:], *own} and list(bound)[: len(plain) - 2] == plain[1:-1]
    assert list(bound)[-1] == plain[-1] and not set(own) & set(plain)
    assert list(inspect.signature(make({"sound": 3}).forward).parameters)[-2] == "has_sound"
    assert "clips_features" in inspect.signature(model.fusion.forward).parameters
    with_views = make({"clips": 10, "audio": 4}, hf_lam=LocomtConfig(views="half"), head=False)
    assert "clips_features" in inspect.signature(with_views.forward).parameters
    for other in (copy.deepcopy(model.forward), pickle.loads(pickle.dumps(model.forward))):
        assert other.__self__ is not model and set(inspect.signature(other).parameters) == set(bound)
    assert model.forward.__name__ == "forward" and model.forward.__doc__ == type(model).forward.__doc__


def test_the_stock_trainer_keeps_the_columns_of_features(tmp_path: Path) -> None:
    model = make({"clips": 10, "sound": 10})
    before = weights_of(model)
    samples = [
        {
            "clips_features": vectors(1, seed=i)[0],
            "sound_features": vectors(1, seed=i + 9)[0],
            "labels": i % 3,
            "id": i,
        }
        for i in range(8)
    ]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True
    )
    trainer = Trainer(model, arguments, train_dataset=samples, eval_dataset=samples)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    moved = {name for name, tensor in weights_of(model).items() if not torch.equal(tensor, before[name])}
    assert {name for name in moved if name.startswith(("fusion.clips_", "fusion.sound_"))}


# --- what transformers asks of every class ---------------------------------------------------------------------------


class VectorSubject(common.Subject):
    """A fusion model of vectors alone, without a head; the same without mechanisms in place of a stock model."""

    def __init__(self) -> None:
        self.name, self.head = "fusion", None
        self.family: Any = SimpleNamespace(make=lambda head: self.make(), short=None, kind="fusion", composite=None)
        self.stock = self.make()
        self.inputs = {
            "clips_features": vectors(),
            "clips_mask": torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]]),
            "sound_features": vectors(seed=2),
        }

    def make(self, **options: Any) -> Any:
        return make({"clips": KINDS["learned"], "sound": KINDS["sinusoidal"]}, head=False, hidden_size=32, **options)

    def convert(self, seed: int = 0) -> Any:
        return self.make(seed=seed, hf_lam=(LamConfig(rank=2), LocomtConfig(views="half")))


@pytest.mark.parametrize(
    "asked",
    [
        *common.OF_EVERY_MODEL,
        common.returns_attentions,
        common.returns_hidden_states,
        common.retains_gradients_of_what_it_returns,
    ],
)
def test_common(asked: Callable[[common.Subject, Path], None], tmp_path: Path) -> None:
    asked(VectorSubject(), tmp_path)


# --- with everything around ------------------------------------------------------------------------------------------


def test_features_beside_checkpoints() -> None:
    options = {"features": {"clips": {"size": 10, "positions": "learned", "max_length": 6}}, "num_hidden_layers": 1}
    text = make_host("bert")
    model = HfLamFusionModel.from_modality_pretrained(text=text, fusion_from="text", **options)
    assert model.config.modalities == ["text", "clips"] and not model.training
    assert torch.equal(model.text_model.embeddings.word_embeddings.weight, text.embeddings.word_embeddings.weight)
    ids = torch.arange(5, 11)[None]
    outputs = model(input_ids=ids, clips_features=vectors(1))
    assert outputs.last_hidden_state.shape == (1, 12, 32)
    with pytest.raises(ValueError, match="features cannot be called text"):
        HfLamFusionModel.from_modality_pretrained(text=text, features={"text": 10})
    # With vectors alone there is no checkpoint to start from.
    named = HfLamFusionModel.from_modality_pretrained(text=text, features={"image": 10})
    assert named(image_features=vectors(1)).last_hidden_state.shape == (1, 6, 32)


def test_input_embeddings_are_those_of_the_text_or_what_projects_the_first_vectors() -> None:
    model = make({"clips": 10})
    assert model.get_input_embeddings() is model.fusion.clips_projection
    model.set_input_embeddings(nn.Linear(10, 16))
    assert model.get_input_embeddings() is model.fusion.clips_projection
    both = make({"clips": 10}, text_config=CONFIGS["bert"](num_hidden_layers=1), modalities=["clips", "text"])
    both.resize_token_embeddings(both.config.text_config.vocab_size + 3)
    assert both.get_input_embeddings() is both.fusion.text_model.embeddings.word_embeddings
    model.enable_input_require_grads()
    model.requires_grad_(False)
    assert model(clips_features=vectors()).logits.requires_grad


def test_lora_on_what_projects_vectors(tmp_path: Path) -> None:
    def base() -> Any:
        return make({"clips": 10, "sound": KINDS["learned"]}, hf_lam=LamConfig(rank=2))

    config = peft.LoraConfig(
        r=2, target_modules=["clips_projection", "q_proj"], modules_to_save=["sound_positions", "classifier"]
    )
    model = peft.get_peft_model(base(), config)
    assert "clips_features" in inspect.signature(model.get_base_model().forward).parameters
    inputs = {"clips_features": vectors(), "sound_features": vectors(seed=2)}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        model(**inputs, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(tmp_path)
    trained = model(**inputs).logits
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path).eval()
    assert torch.equal(loaded(**inputs).logits, trained)
    assert max_difference(loaded.merge_and_unload()(**inputs).logits, trained) < 1e-4


def test_transforms_of_torch_func() -> None:
    """Per-sample gradients, with `vmap`, of a model with padding and missing modalities."""
    model = make({"clips": 10, "sound": KINDS["learned"]}, hf_lam=LocomtConfig(views="half"))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    inputs = {
        "clips_features": vectors(3),
        "clips_mask": torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0], [0] * 6]),
        "sound_features": vectors(3, seed=2),
        "has_sound": torch.tensor([1, 0, 1]).bool(),
    }
    labels = torch.tensor([0, 1, 2])

    def loss(weights: dict[str, Tensor], sample: dict[str, Tensor], label: Tensor) -> Tensor:
        batch = {key: value[None] for key, value in sample.items()}
        logits = torch.func.functional_call(model, weights, (), batch).logits
        return nn.functional.cross_entropy(logits, label[None])

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, inputs, labels)
    for i in range(3):
        model.zero_grad()
        alone = {key: value[i : i + 1] for key, value in inputs.items()}
        model(**alone, labels=labels[i : i + 1]).loss.backward()
        for name, parameter in model.named_parameters():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert max_difference(found[name][i], expected) < 1e-5, (i, name)


def test_parts_may_lie_on_several_devices_or_wait_on_the_cpu(tmp_path: Path) -> None:
    """accelerate hands to each module what it is called with; a module among it would be moved."""
    from accelerate import cpu_offload, dispatch_model

    model = make({"clips": 10, "sound": KINDS["learned"]}, hf_lam=LamConfig(rank=2)).requires_grad_(False)
    inputs = {"clips_features": vectors(), "sound_features": vectors(seed=2)}
    expected = model(**inputs).logits
    assert torch.equal(dispatch_model(copy.deepcopy(model), {"": "cpu"})(**inputs).logits, expected)
    offloaded = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert next(offloaded.fusion.clips_projection.parameters()).is_meta
    assert torch.equal(offloaded(**inputs).logits, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_options_and_weights_are_saved(kind: str, tmp_path: Path, poisoned_empty: None) -> None:
    model = make({"clips": KINDS[kind], "self": {"size": 10, "dropout": 0.25}}, hf_lam=LocomtConfig(views="half"))
    inputs = {"clips_features": vectors(size=KINDS[kind]["size"]), "self_features": vectors(seed=2)}
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.features == model.config.features and loaded.config.features["self"]["dropout"] == 0.25
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert loaded.num_parameters() == model.num_parameters() == sum(p.numel() for p in model.parameters())
    assert loaded.fusion.modality_model("clips").config == FeatureOptions(**KINDS[kind])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("size", [4, 400])
def test_projected_vectors_start_as_large_as_positions(size: int) -> None:
    model = make({"clips": {"size": size, "positions": None}}, head=False, initializer_range=0.02, hidden_size=64)
    found = model.clips_projection(model.clips_model(vectors(8, size=size), torch.float32))
    assert 0.8 < found.std() < 1.25 and model.clips_projection.bias.abs().max() == 0
    assert model.encoder.layers[0].fc1.weight.std() < 0.03


def test_dropout_is_after_the_positions_and_in_training_only() -> None:
    model = make({"clips": {"size": 10, "dropout": 0.5}}, head=False, num_hidden_layers=0)
    values = vectors()
    quiet = model(clips_features=values).last_hidden_state
    noisy = model.train()(clips_features=values).last_hidden_state
    kept = noisy != 0
    assert 0.3 < kept.float().mean() < 0.7 and max_difference(noisy[kept], 2 * quiet[kept]) < 1e-5


def test_mechanisms_come_and_go() -> None:
    model = make({"clips": 10, "sound": 10})
    inputs = {"clips_features": vectors(), "sound_features": vectors(seed=2)}
    plain = model(**inputs).logits
    hf_lam.inject(model, LocomtConfig(views=[["clips>sound", "self", "full", "sound>clips"]] * 2))
    assert max_difference(model(**inputs).logits, plain) > 1e-3
    assert torch.equal(hf_lam.remove(model)(**inputs).logits, plain)
