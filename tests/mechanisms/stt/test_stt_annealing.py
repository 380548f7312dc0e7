"""SttAnnealingCallback under transformers' `Trainer`: from dot products to synthesised attention without a jump."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import BertForSequenceClassification, Trainer, TrainerCallback, ViTForImageClassification

import hf_lam
from helpers.checkpointing import checkpointing_arguments
from helpers.hosts import first_output, make_inputs, make_model, max_difference
from helpers.lam_models import assert_same_weights, make_samples, make_trainer, stacked, weights_of
from hf_lam import LamConfig, LocomtConfig, SttConfig
from hf_lam.modeling.injection_hf_lam import injected_encoders, mechanism_of
from hf_lam.stt.hardening import mixing_of
from hf_lam.training import SttAnnealingCallback

STOCK: dict[str, Any] = {"bert": BertForSequenceClassification, "vit": ViTForImageClassification}
SYNTHESIZERS = ("dense", "random", "factorized_dense", "factorized_random")


def make_mixture(host: str, *others: Any, seed: int = 0, **options: Any) -> Any:
    model = make_model(STOCK[host], host, seed=seed, initializer_range=0.2)
    return hf_lam.convert(model, SttConfig(**options), *others)


def stt_trainer(model: Any, host: str, folder: Path, *callbacks: TrainerCallback, **arguments: Any) -> Trainer:
    samples = make_samples(make_model(STOCK[host], host), host, 16)
    options = {"samples": samples, "more": {"eval_dataset": samples}, "learning_rate": 1e-3}
    return make_trainer(model, folder, *callbacks, **{**options, **arguments})


def only_mixing(model: Any) -> float:
    """`λ`, which must be the same in every layer and head."""
    (base,) = injected_encoders(model)
    mixing = mixing_of(base)
    assert mixing.shape == (3, 4)
    assert mixing.min() == mixing.max()
    return mixing[0, 0].item()


def outputs(model: Any, host: str) -> torch.Tensor:
    training = model.training
    with torch.no_grad():
        output = first_output(model.eval(), make_inputs(host, batch=4))
    model.train(training)
    return output


class Watcher(TrainerCallback):
    """`λ` in the forward passes of each step, and the weights after it."""

    def __init__(self) -> None:
        self.mixing: dict[int, float] = {}
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.mixing[state.global_step] = only_mixing(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights[state.global_step] = weights_of(kwargs["model"])


class Killer(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("killed")


@pytest.mark.parametrize("host, synthesizer", [("bert", "dense"), ("vit", "factorized_random"), ("vit", "dense")])
def test_follows_its_schedule_and_hardens(host: str, synthesizer: str, tmp_path: Path) -> None:
    model = make_mixture(host, synthesizer=synthesizer)
    stock = outputs(make_model(STOCK[host], host, initializer_range=0.2), host)
    assert max_difference(outputs(model, host), stock) < 1e-5
    watcher = Watcher()
    trainer = stt_trainer(model, host, tmp_path, SttAnnealingCallback(start=1 / 6, end=5 / 6), watcher)
    trainer.train()
    expected = {0: 0.0, 1: 0.0, 2: 0.25, 3: 0.5, 4: 0.75, 5: 1.0}
    assert watcher.mixing == pytest.approx(expected)
    assert watcher.mixing[0] == 0.0 and watcher.mixing[5] == 1.0 == only_mixing(model)
    logged = {entry["step"]: entry["attention_mixing"] for entry in trainer.state.log_history if "loss" in entry}
    assert logged == pytest.approx({1: 0.0, 2: 0.25, 3: 0.5, 4: 0.75, 5: 1.0, 6: 1.0})

    before = outputs(model, host)
    hf_lam.harden(model)
    assert max_difference(outputs(model, host), before) < 1e-5
    trainer.save_model(str(tmp_path / "final"))
    loaded = type(model).from_pretrained(tmp_path / "final")
    assert loaded.config.hf_lam["stt"]["variant"] == synthesizer
    assert max_difference(outputs(loaded, host), before) < 1e-5


@pytest.mark.parametrize("steps, end", [(7, 0.8), (3, 1.0), (10, 0.3), (1, 1.0)])
def test_ends_at_exactly_one(steps: int, end: float, tmp_path: Path) -> None:
    model = make_mixture("vit")
    watcher = Watcher()
    stt_trainer(model, "vit", tmp_path, SttAnnealingCallback(end=end), watcher, max_steps=steps).train()
    values = [*watcher.mixing.values(), only_mixing(model)]
    assert values == pytest.approx([min(1, step / steps / end) for step in range(steps + 1)])
    assert values == sorted(values) and (values[0], values[-1]) == (0.0, 1.0)
    hf_lam.harden(model)


@pytest.mark.parametrize("synthesizer", SYNTHESIZERS)
def test_synthesizers_learn_once_mixing_has_begun(synthesizer: str, tmp_path: Path) -> None:
    model = make_mixture("vit", synthesizer=synthesizer)
    watcher = Watcher()
    stt_trainer(model, "vit", tmp_path, SttAnnealingCallback(start=1 / 3), watcher, weight_decay=0.0).train()
    own = [name for name, parameter in model.named_parameters() if ".hf_lam." in name]
    assert own

    def moved(first: int, last: int) -> set[str]:
        return {n for n in own if not torch.equal(watcher.weights[first][n], watcher.weights[last][n])}

    assert moved(1, 3) == set()  # λ = 0 in the first three steps
    assert moved(3, 6) == set(own)


@pytest.mark.slow
@pytest.mark.parametrize(
    "host, others, step",
    [pytest.param("bert", (), 2, marks=pytest.mark.slow), ("vit", (LamConfig(per_head=True),), 5)],
    ids=["bert", "vit_lam"],
)
def test_resumed_equals_uninterrupted(host: str, others: tuple[Any, ...], step: int, tmp_path: Path) -> None:
    """Killed before and after `λ` has reached 1, which it does with step 5."""
    uninterrupted = Watcher()
    trainer = stt_trainer(make_mixture(host, *others), host, tmp_path / "whole", SttAnnealingCallback(), uninterrupted)
    trainer.train()

    folder = tmp_path / "killed"
    with pytest.raises(RuntimeError, match="killed"):
        # Killed in the step after, once the checkpoint is complete.
        stt_trainer(
            make_mixture(host, *others),
            host,
            folder,
            SttAnnealingCallback(),
            Killer(step + 1),
            save_strategy="steps",
            save_steps=step,
        ).train()
    resumed = Watcher()
    model = make_mixture(host, *others, seed=1)
    stt_trainer(model, host, folder, SttAnnealingCallback(), resumed).train(resume_from_checkpoint=True)
    assert resumed.mixing == {step: uninterrupted.mixing[step] for step in range(step, 6)}
    for after, weights in resumed.weights.items():
        assert_same_weights(weights, uninterrupted.weights[after])
    assert max_difference(outputs(model, host), outputs(trainer.model, host)) == 0


@pytest.mark.slow
def test_checkpoints_on_the_way_hold_their_mixing(tmp_path: Path) -> None:
    case: dict[int, torch.Tensor] = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            case[state.global_step] = outputs(kwargs["model"], "bert")

    model = make_mixture("bert")
    callbacks = (SttAnnealingCallback(), Keep())
    stt_trainer(model, "bert", tmp_path, *callbacks, save_strategy="steps", save_steps=1).train()
    for step, mixing in ((2, 2 / 6 / 0.5), (5, 1.0)):
        loaded = type(model).from_pretrained(tmp_path / f"checkpoint-{step}")
        assert only_mixing(loaded) == pytest.approx(mixing)
        assert max_difference(outputs(loaded, "bert"), case[step]) < 1e-6
    with pytest.raises(ValueError, match=r"lowest λ is 0\.6667"):
        hf_lam.harden(type(model).from_pretrained(tmp_path / "checkpoint-2"))


def trained(folder: Path, host: str = "vit", *, freeze: bool = False, **arguments: Any) -> dict[str, torch.Tensor]:
    model = make_mixture(host)
    if freeze:
        hf_lam.freeze_host(model)
    watcher = Watcher()
    options = {"learning_rate": 1e-2, "optim": "sgd", "lr_scheduler_type": "constant", **arguments}
    stt_trainer(model, host, folder, SttAnnealingCallback(), watcher, **options).train()
    assert list(watcher.mixing.values()) == pytest.approx([min(1, step / 6 / 0.5) for step in range(6)])
    return weights_of(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "host, reentrant, freeze",
    [("bert", False, False), ("vit", True, False), ("bert", True, True), ("vit", False, True)],
)
def test_gradient_checkpointing_changes_nothing(host: str, reentrant: bool, freeze: bool, tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", host, freeze=freeze)
    checkpointed = trained(
        tmp_path / "checkpointed",
        host,
        freeze=freeze,
        **checkpointing_arguments(reentrant),
    )
    assert_same_weights(plain, checkpointed, 1e-6)


@pytest.mark.slow
def test_accumulated_batches_share_their_steps_mixing(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", per_device_train_batch_size=8)
    parts = trained(tmp_path / "parts", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert_same_weights(whole, parts, 1e-5)


def test_fitted_synthesizers_start_there(tmp_path: Path) -> None:
    model = make_mixture("vit")
    samples = [make_inputs("vit", batch=8)]
    cold = outputs(model, "vit")
    report = hf_lam.fit_synthesizers(model, samples, epochs=3)
    assert max(after / before for before, after in zip(report.kl_before, report.kl_after, strict=True)) < 1
    assert max_difference(outputs(model, "vit"), cold) == 0
    fitted = weights_of(model)
    watcher = Watcher()
    stt_trainer(model, "vit", tmp_path, SttAnnealingCallback(start=0.5, end=1.0), watcher).train()
    assert all(torch.equal(watcher.weights[1][name], fitted[name]) for name in fitted if "hf_lam" in name)
    hf_lam.harden(model)


def test_anneals_the_active_copy_of_a_peft_model(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, target_modules=["value"], modules_to_save=["hf_lam", "classifier"])
    base = make_mixture("bert")
    model = peft.get_peft_model(base, config)
    watcher = Watcher()
    stt_trainer(model, "bert", tmp_path, SttAnnealingCallback(), watcher).train()
    assert watcher.mixing[2] == pytest.approx(2 / 6 / 0.5) and watcher.mixing[5] == 1.0
    expected = outputs(model, "bert")
    merged = model.merge_and_unload()
    assert max_difference(outputs(merged, "bert"), expected) < 1e-4
    assert max_difference(outputs(hf_lam.harden(merged), "bert"), expected) < 1e-4


def test_finds_the_encoder_in_a_wrapped_model() -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module = module

    model = make_mixture("vit")
    state = type("State", (), {"global_step": 3, "max_steps": 6})()
    callback = SttAnnealingCallback(end=1.0)
    callback.on_train_begin(None, state, None, model=Wrapped(model))
    assert only_mixing(model) == 0.5
    state.global_step = 6
    callback.on_step_end(None, state, None, model=Wrapped(model))
    assert only_mixing(model) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("end, warns", [(1.0, True), (1 / 6, False)])
def test_says_that_the_best_checkpoint_is_too_early(
    end: float, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,  # the first one
        "learning_rate": 1e-2,
    }
    model = make_mixture("vit")
    trainer = stt_trainer(model, "vit", tmp_path, SttAnnealingCallback(end=end), **options)
    library = logging.getLogger("hf_lam")
    library.propagate = True
    with caplog.at_level(logging.WARNING):
        trainer.train()
    best = trainer.state.best_global_step
    assert best < 6
    assert ("before λ reached 1" in caplog.text) == warns
    assert only_mixing(model) == pytest.approx(min(1, best / 6 / end))
    if warns:
        with pytest.raises(ValueError, match="12 of 12 heads"):
            hf_lam.harden(model)
    else:
        hf_lam.harden(model)


def test_evaluations_on_the_way_log_it_but_none_before_training(tmp_path: Path) -> None:
    trainer = stt_trainer(
        make_mixture("vit"), "vit", tmp_path, SttAnnealingCallback(), eval_strategy="steps", eval_steps=2
    )
    assert "attention_mixing" not in trainer.evaluate()
    trainer.train()
    logged = {entry["step"]: entry["attention_mixing"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert logged[2] == pytest.approx(2 / 6 / 0.5) and logged[6] == 1.0


@pytest.mark.parametrize("start, end", [(-0.1, 0.5), (0.5, 0.5), (0.6, 0.5), (0.0, 1.1), (0.0, float("nan"))])
def test_bad_fractions(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=f"got start={start}, end={end}"):
        SttAnnealingCallback(start=start, end=end)


@pytest.mark.parametrize("configs", [(), (LamConfig(),), (SttConfig(variant="dense"),)], ids=["stock", "lam", "pure"])
def test_models_without_a_mixture(configs: Any, tmp_path: Path) -> None:
    model = make_model(ViTForImageClassification, "vit")
    if configs:
        model = hf_lam.convert(model, *configs)
    with pytest.raises(ValueError, match=r"has no mixture.*SttConfig\(variant='mixture'\)"):
        stt_trainer(model, "vit", tmp_path, SttAnnealingCallback()).train()


def test_trained_mixing_is_not_overwritten(tmp_path: Path) -> None:
    model = make_mixture("vit", train_mixing=True)
    with pytest.raises(ValueError, match="trains its λ itself"):
        stt_trainer(model, "vit", tmp_path, SttAnnealingCallback()).train()
    assert only_mixing(model) == 0.0


def test_trained_mixing_moves_by_itself_and_stays_between_its_ends(tmp_path: Path) -> None:
    model = make_mixture("vit", train_mixing=True)
    seen = []

    class Clamped(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (base,) = injected_encoders(kwargs["model"])
            synthesizers: Any = mechanism_of(base, "stt")
            effective = [layer(torch.zeros(1, 17, 32), (4, 4)).mixing.detach() for layer in synthesizers]
            seen.append(torch.stack(effective))

    stt_trainer(model, "vit", tmp_path, Clamped(), max_steps=12, learning_rate=0.3).train()
    every = torch.stack(seen)
    assert every.shape == (12, 3, 4)
    assert every.min() >= 0 and every.max() <= 1
    assert every[-1].max() > 0 and not torch.equal(every[0], every[-1])
    # A large step leads out of the range, and λ still comes back from there.
    raw = torch.stack([layer.mixing.detach() for layer in mechanism_of(injected_encoders(model)[0], "stt")])
    assert ((every == 0) | (every == 1)).any() and raw.isfinite().all()
    left = (every[:-1] == 0) | (every[:-1] == 1)
    assert (left & (every[1:] > 0) & (every[1:] < 1)).any()


def test_gradients_reach_everything_in_between() -> None:
    model = make_mixture("vit", train_mixing=True)
    for synthesizer in mechanism_of(injected_encoders(model)[0], "stt"):
        synthesizer.mixing.data.fill_(0.5)
    model(**stacked(make_samples(make_model(STOCK["vit"], "vit"), "vit", 8))).loss.backward()
    wanted = [name for name, _ in model.named_parameters() if "hf_lam" in name or "q_proj" in name]
    assert any("q_proj" in name for name in wanted) and any("mixing" in name for name in wanted)
    assert all(model.get_parameter(name).grad.abs().max() > 0 for name in wanted)


@pytest.mark.parametrize("other", [LamConfig(), LocomtConfig()], ids=["lam", "locomt"])
def test_a_mixture_that_cannot_be_hardened_is_said_before_training(
    other: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        stt_trainer(make_mixture("vit", other), "vit", tmp_path, SttAnnealingCallback(), max_steps=1).train()
    (warning,) = [record.getMessage() for record in caplog.records if "will refuse it" in record.getMessage()]
    assert type(other).__name__ in warning
