"""ViewAnnealingCallback under transformers' `Trainer`: from the original model to attention views without a jump."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    ViTForImageClassification,
)

import hf_lam
from helpers.hosts import first_output, make_inputs, make_model, max_difference, perturb_mechanisms
from helpers.lam_models import assert_same_weights, make_samples, make_trainer, stacked, weights_of
from hf_lam import LamConfig, LocomtConfig
from hf_lam.modeling.injection_hf_lam import injected_encoders, injection_of, mechanism_of
from hf_lam.training import ViewAnnealingCallback, penalty_at

STOCK: dict[str, Any] = {"bert": BertForSequenceClassification, "vit": ViTForImageClassification}
BLIND = "cross:type_0-type_1"  # leaves samples with one token type without keys
ONE_WAY = "top_left>top_right"  # leaves three quadrants without keys
# Host, mechanisms.
CASES: dict[str, tuple[str, list[Any]]] = {
    "bert": ("bert", [LocomtConfig(views="half", annealing=True)]),
    "bert_blind": ("bert", [LocomtConfig(views=BLIND, annealing=True)]),
    "bert_lam": ("bert", [LamConfig(per_head=True), LocomtConfig(views="round_robin", annealing=True)]),
    "vit": ("vit", [LocomtConfig(views="random(1)", annealing=True)]),
    "vit_blind": ("vit", [LocomtConfig(views=ONE_WAY, annealing=True)]),
    "vit_lam": ("vit", [LamConfig(scope="shared"), LocomtConfig(views="half", annealing=True)]),
}


def make_annealing(case: str, seed: int = 0, sharp: float = 0.2) -> Any:
    host, configs = CASES[case]
    model = hf_lam.convert(make_model(STOCK[host], host, seed=seed, initializer_range=sharp), *configs)
    if len(configs) > 1:
        perturb_mechanisms(model, seed=seed + 2)
        mechanism_of(only_encoder(model), "locomt").penalty.zero_()
    return model


def inputs_of(host: str, count: int = 4, seed: int = 1) -> dict[str, torch.Tensor]:
    """BERT's last sample has one token type only."""
    inputs = make_inputs(host, batch=count, seed=seed)
    if host == "bert":
        inputs["token_type_ids"] = torch.zeros(count, 11, dtype=torch.long)
        for sample in range(count - 1):
            inputs["token_type_ids"][sample, 2 + sample % 4 : 7] = 1
    return inputs


def samples_of(model: Any, host: str) -> list[dict[str, Any]]:
    samples = make_samples(model, host, 16)
    if host == "bert":
        for sample, types in zip(samples, inputs_of("bert", 16)["token_type_ids"], strict=True):
            sample["token_type_ids"] = types
    return samples


def annealing_trainer(model: Any, host: str, folder: Path, *callbacks: TrainerCallback, **arguments: Any) -> Trainer:
    samples = samples_of(model, host)
    options = {"samples": samples, "more": {"eval_dataset": samples}, "learning_rate": 1e-3}
    return make_trainer(model, folder, *callbacks, **{**options, **arguments})


def only_encoder(model: Any) -> Any:
    (base,) = injected_encoders(model)
    return base


def is_annealing(model: Any) -> bool:
    return injection_of(only_encoder(model)).configs["locomt"].annealing


def outputs(model: Any, host: str) -> torch.Tensor:
    training = model.training
    with torch.no_grad():
        output = first_output(model.eval(), inputs_of(host))
    model.train(training)
    return output


class Watcher(TrainerCallback):
    """The penalty that the forward passes of each step see, None after the switch; and the weights after each step."""

    def __init__(self) -> None:
        self.penalties: dict[int, float | None] = {}
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        base = only_encoder(kwargs["model"])
        annealing = injection_of(base).configs["locomt"].annealing
        self.penalties[state.global_step] = mechanism_of(base, "locomt").penalty.item() if annealing else None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights[state.global_step] = {
            name: tensor for name, tensor in weights_of(kwargs["model"]).items() if not name.endswith("penalty")
        }


class Killer(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("killed")


def test_penalty_grows_from_nothing_to_its_maximum() -> None:
    steps = [penalty_at(step / 100, 0.1, 0.6, 20.0) for step in range(101)]
    assert steps == sorted(steps)
    assert set(steps[:11]) == {0.0} and set(steps[60:]) == {20.0}
    assert steps[35] == pytest.approx(10.0)
    assert all(low < high for low, high in pairwise(steps[10:61]))
    assert penalty_at(0.4) == pytest.approx(15.0)
    assert penalty_at(0.0) == 0 and penalty_at(0.8) == penalty_at(1.0) == 30.0


@pytest.mark.parametrize("case", CASES)
def test_starts_as_the_original_model(case: str) -> None:
    host, configs = CASES[case]
    model = make_annealing(case)
    assert is_annealing(model)
    before = hf_lam.convert(make_model(STOCK[host], host, initializer_range=0.2), *configs[:-1], LocomtConfig())
    if len(configs) > 1:
        perturb_mechanisms(before, seed=2)
    assert max_difference(outputs(model, host), outputs(before, host)) < 1e-5
    mechanism_of(only_encoder(model), "locomt").penalty.fill_(30.0)
    assert max_difference(outputs(model, host), outputs(before, host)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_outputs_do_not_jump_at_the_switch(case: str, tmp_path: Path) -> None:
    host, _ = CASES[case]
    jumps = []

    class Jump(TrainerCallback):
        def __init__(self, when: str) -> None:
            self.when = when

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model = kwargs["model"]
            if self.when == "before" and is_annealing(model) and state.global_step == 4:
                mechanism_of(only_encoder(model), "locomt").penalty.fill_(30.0)  # the end of the schedule
                jumps.append(outputs(model, host))
            elif self.when == "after" and state.global_step == 4:
                assert not is_annealing(model)
                jumps.append(outputs(model, host))

    model = make_annealing(case)
    callback = ViewAnnealingCallback(end=4 / 6)
    annealing_trainer(model, host, tmp_path, Jump("before"), callback, Jump("after")).train()
    assert len(jumps) == 2
    assert max_difference(*jumps) < 1e-4


@pytest.mark.parametrize("case", ["bert", "vit_lam"])
def test_follows_its_schedule_and_saves_a_plain_model(case: str, tmp_path: Path) -> None:
    host, _ = CASES[case]
    model = make_annealing(case)
    views = injection_of(only_encoder(model)).configs["locomt"].views
    watcher = Watcher()
    trainer = annealing_trainer(model, host, tmp_path, ViewAnnealingCallback(start=1 / 6, end=5 / 6), watcher)
    trainer.train()
    expected = {0: 0.0, 1: 0.0, 2: 7.5, 3: 15.0, 4: 22.5, 5: None}
    assert watcher.penalties == {step: p if p is None else pytest.approx(p) for step, p in expected.items()}
    logged = {entry["step"]: entry["attention_view_penalty"] for entry in trainer.state.log_history if "loss" in entry}
    assert logged == pytest.approx({1: 0.0, 2: 7.5, 3: 15.0, 4: 22.5, 5: 30.0, 6: 30.0})

    assert not is_annealing(model)
    trainer.save_model(str(tmp_path / "final"))
    block = json.loads((tmp_path / "final" / "config.json").read_text())["hf_lam"]["locomt"]
    assert (block["annealing"], block["views"]) == (False, views)
    loaded = type(model).from_pretrained(tmp_path / "final")
    assert not any("penalty" in name for name in loaded.state_dict())
    assert max_difference(outputs(loaded, host), outputs(model, host)) < 1e-6
    # The block form, and not full attention.
    hf_lam.set_views(loaded, LocomtConfig())
    assert max_difference(outputs(loaded, host), outputs(model, host)) > 1e-3


def test_switches_with_the_last_step_if_asked(tmp_path: Path) -> None:
    model = make_annealing("vit")
    watcher = Watcher()
    annealing_trainer(
        model, "vit", tmp_path, ViewAnnealingCallback(end=1.0), watcher, save_strategy="steps", save_steps=6
    ).train()
    assert watcher.penalties[5] == pytest.approx(25.0)
    assert not is_annealing(model)
    block = json.loads((tmp_path / "checkpoint-6" / "config.json").read_text())["hf_lam"]["locomt"]
    assert block["annealing"] is False


@pytest.mark.slow
def test_checkpoints_on_the_way_load_with_the_same_outputs(tmp_path: Path) -> None:
    case: dict[int, torch.Tensor] = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            case[state.global_step] = outputs(kwargs["model"], "bert")

    model = make_annealing("bert")
    callbacks = (ViewAnnealingCallback(), Keep())
    annealing_trainer(model, "bert", tmp_path, *callbacks, save_strategy="steps", save_steps=1).train()
    for step in (2, 5):
        loaded = type(model).from_pretrained(tmp_path / f"checkpoint-{step}")
        assert is_annealing(loaded) == (step < 5)
        if step < 5:
            assert mechanism_of(only_encoder(loaded), "locomt").penalty.item() == pytest.approx(30 * (step / 6) / 0.8)
        assert max_difference(outputs(loaded, "bert"), case[step]) < 1e-6


@pytest.mark.parametrize("step", [2, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", ["bert_lam", pytest.param("vit", marks=pytest.mark.slow)])
def test_resumed_equals_uninterrupted(case: str, step: int, tmp_path: Path) -> None:
    """Killed before and after the switch, which comes with step 5."""
    host, _ = CASES[case]
    uninterrupted = Watcher()
    trainer = annealing_trainer(make_annealing(case), host, tmp_path / "whole", ViewAnnealingCallback(), uninterrupted)
    trainer.train()

    folder = tmp_path / "killed"
    saving = {"save_strategy": "steps", "save_steps": step}
    with pytest.raises(RuntimeError, match="killed"):
        # Killed in the step after, once the checkpoint is complete.
        annealing_trainer(
            make_annealing(case), host, folder, ViewAnnealingCallback(), Killer(step + 1), **saving
        ).train()
    resumed = Watcher()
    model = make_annealing(case, seed=1)
    annealing_trainer(model, host, folder, ViewAnnealingCallback(), resumed).train(resume_from_checkpoint=True)
    assert sorted(resumed.penalties) == list(range(step, 6))
    assert resumed.penalties == {step: uninterrupted.penalties[step] for step in resumed.penalties}
    for after, weights in resumed.weights.items():
        assert_same_weights(weights, uninterrupted.weights[after])
    assert max_difference(outputs(model, host), outputs(trainer.model, host)) == 0


def test_resumes_a_model_loaded_from_a_checkpoint_after_the_switch(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 5}
    model = make_annealing("vit")
    annealing_trainer(model, "vit", tmp_path, ViewAnnealingCallback(), **saving).train()
    loaded = type(model).from_pretrained(tmp_path / "checkpoint-5")
    checkpoint = str(tmp_path / "checkpoint-5")
    annealing_trainer(loaded, "vit", tmp_path, ViewAnnealingCallback()).train(resume_from_checkpoint=checkpoint)
    assert max_difference(outputs(loaded, "vit"), outputs(model, "vit")) == 0


def test_anneals_the_active_copy_of_a_peft_model(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, target_modules=["query", "value"], modules_to_save=["hf_lam", "classifier"])
    base = make_annealing("bert_lam")
    model = peft.get_peft_model(base, config)
    watcher = Watcher()
    annealing_trainer(model, "bert", tmp_path, ViewAnnealingCallback(), watcher).train()
    assert watcher.penalties[2] == pytest.approx(12.5) and watcher.penalties[5] is None
    expected = outputs(model, "bert")
    merged = model.merge_and_unload()
    assert max_difference(outputs(merged, "bert"), expected) < 1e-4
    merged.save_pretrained(tmp_path / "merged")
    loaded = type(base).from_pretrained(tmp_path / "merged")
    assert not is_annealing(loaded)
    assert max_difference(outputs(loaded, "bert"), expected) < 1e-4


def test_finds_the_encoder_in_a_wrapped_model() -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module = module

    model = make_annealing("vit")
    state = type("State", (), {"global_step": 3, "max_steps": 6})()
    callback = ViewAnnealingCallback(end=1.0)
    callback.on_train_begin(None, state, None, model=Wrapped(model))
    assert mechanism_of(only_encoder(model), "locomt").penalty.item() == pytest.approx(15.0)
    state.global_step = 6
    callback.on_step_end(None, state, None, model=Wrapped(model))
    assert not is_annealing(model)


@pytest.mark.slow
def test_says_that_the_best_checkpoint_was_not_evaluated_with_the_views(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_annealing("vit")
    options = {
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,
        "learning_rate": 1e-2,
    }
    trainer = annealing_trainer(model, "vit", tmp_path, ViewAnnealingCallback(end=1.0), **options)
    library = logging.getLogger("hf_lam")
    library.propagate = True
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.best_global_step < 6
    assert "before the attention views were reached" in caplog.text
    assert not is_annealing(model)


def test_evaluation_before_training_is_left_alone(tmp_path: Path) -> None:
    trainer = annealing_trainer(make_annealing("vit"), "vit", tmp_path, ViewAnnealingCallback())
    metrics = trainer.evaluate()
    assert "attention_view_penalty" not in metrics


@pytest.mark.parametrize("start, end", [(-0.1, 0.5), (0.5, 0.5), (0.6, 0.5), (0.0, 1.1), (0.0, float("nan"))])
def test_bad_fractions(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=f"got start={start}, end={end}"):
        ViewAnnealingCallback(start=start, end=end)


@pytest.mark.parametrize("penalty", [0, -1.0, float("inf"), float("nan")])
def test_bad_penalties(penalty: float) -> None:
    with pytest.raises(ValueError, match=f"positive and finite, got {penalty}"):
        ViewAnnealingCallback(max_penalty=penalty)


@pytest.mark.parametrize("configs", [[LocomtConfig(views="half")], [LamConfig()], None])
def test_models_without_annealing_views(configs: Any, tmp_path: Path) -> None:
    model = make_model(ViTForImageClassification, "vit")
    if configs:
        model = hf_lam.convert(model, *configs)
    trainer = annealing_trainer(model, "vit", tmp_path, ViewAnnealingCallback())
    with pytest.raises(ValueError, match="annealing=True"):
        trainer.train()


def test_gradients_reach_the_queries_while_annealing() -> None:
    model = make_annealing("vit")
    mechanism_of(only_encoder(model), "locomt").penalty.fill_(5.0)
    model(**stacked(samples_of(model, "vit"))).loss.backward()
    names = [name for name, _ in model.named_parameters() if "q_proj" in name]
    assert names
    assert all(model.get_parameter(name).grad.abs().max() > 0 for name in names)
