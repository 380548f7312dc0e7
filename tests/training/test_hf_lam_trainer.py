"""HfLamTrainer: the learning rate of the mechanisms, FLOPs, and the order of the callbacks."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTForImageClassification,
)

import hf_lam
from helpers.fusion_models import make_fusion, make_fusion_inputs
from helpers.hf_lam_trainer import DROPOUT, SGD, make_arguments, make_bert, make_teacher, slow, trainer_of
from helpers.hosts import make_inputs, make_model, mechanisms, set_mixing
from helpers.lam_models import (
    assert_same_weights,
    changed_names,
    make_lam,
    make_samples,
    stacked,
    weights_of,
)
from helpers.processes import run_process
from hf_lam import LamConfig, LocomtConfig, SttConfig, cost, mechanism_parameters
from hf_lam.training import SttAnnealingCallback, ViewAnnealingCallback
from hf_lam.training.trainer import HfLamTrainer, HfLamTrainingArguments


class OnTrainBegin(TrainerCallback):
    def __init__(self, look: Callable[[Any], Any]) -> None:
        self.look = look

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen = self.look(kwargs)


# --- the arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("mechanism_learning_rate", 0.0, "must be positive and finite, got 0.0; leave it out"),
        ("mechanism_learning_rate", math.inf, "mechanism_learning_rate must be positive and finite, got inf"),
        ("distillation_weight", 1.5, "distillation_weight is the share .* between 0 and 1, got 1.5"),
        ("distillation_weight", math.nan, "distillation_weight is the share .* got nan"),
        ("distillation_temperature", 0.0, "distillation_temperature must be positive and finite, got 0.0"),
        ("distillation_temperature", math.inf, "distillation_temperature must be positive and finite, got inf"),
    ],
)
def test_numbers_out_of_range(option: str, value: float, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_arguments(tmp_path, **{option: value})


def test_arguments_from_a_command_line_and_back(tmp_path: Path) -> None:
    command = ["--output_dir", str(tmp_path), "--use_cpu", "--mechanism_learning_rate", "1e-3"]
    (arguments,) = HfArgumentParser(HfLamTrainingArguments).parse_args_into_dataclasses(
        [*command, "--distillation_weight", "0.25"]
    )
    expected = (1e-3, 0.25, 2.0)
    assert expected == (
        arguments.mechanism_learning_rate,
        arguments.distillation_weight,
        arguments.distillation_temperature,
    )
    stored = json.loads(arguments.to_json_string())
    again = HfLamTrainingArguments(**{name: stored[name] for name in ("output_dir", "mechanism_learning_rate")})
    assert again.mechanism_learning_rate == 1e-3
    assert HfLamTrainingArguments(output_dir=str(tmp_path)).mechanism_learning_rate is None
    replaced = dataclasses.replace(arguments, distillation_temperature=3.0)
    assert (replaced.mechanism_learning_rate, replaced.distillation_temperature) == (1e-3, 3.0)
    assert arguments.to_dict()["distillation_weight"] == 0.25


def test_a_plain_model_is_trained_as_by_trainer(tmp_path: Path) -> None:
    def run(trainer_class: type) -> tuple[Any, Any, dict[str, torch.Tensor]]:
        model = make_model(BertForSequenceClassification, "bert", **DROPOUT)
        samples = make_samples(model, "bert", 16)
        trainer = trainer_class(
            model=model,
            args=make_arguments(
                tmp_path, TrainingArguments, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=1
            ),
            train_dataset=samples,
            eval_dataset=samples,
        )
        trainer.train()
        measured = ("runtime", "per_second", "total_flos")
        history = [
            {key: value for key, value in entry.items() if not key.endswith(measured)}
            for entry in trainer.state.log_history
        ]
        return history, torch.get_rng_state(), weights_of(model)

    history, random_state, weights = run(HfLamTrainer)
    expected, expected_state, expected_weights = run(Trainer)
    assert history == expected
    assert len(history) == 5
    assert torch.equal(random_state, expected_state)
    assert_same_weights(weights, expected_weights)


# --- the learning rate of the mechanisms -----------------------------------------------------------------------------


def test_mechanisms_have_groups_of_their_own(tmp_path: Path) -> None:
    model = make_bert()
    trainer = trainer_of(model, tmp_path, mechanism_learning_rate=1e-2, weight_decay=0.1)
    trainer.create_optimizer()
    groups = trainer.create_optimizer().param_groups  # a second time changes nothing
    of_mechanisms = {id(parameter) for parameter in mechanism_parameters(model)}
    assert [(group.get("is_mechanism", False), group["lr"], group["weight_decay"]) for group in groups] == [
        (False, 1e-3, 0.1),
        (False, 1e-3, 0.0),
        (True, 1e-2, 0.1),
        (True, 1e-2, 0.0),
    ]
    found = [{id(parameter) for parameter in group["params"]} for group in groups]
    assert found[2] | found[3] == of_mechanisms
    assert found[0] | found[1] == {id(parameter) for parameter in model.parameters()} - of_mechanisms
    assert sum(map(len, found)) == len(list(model.parameters()))
    decayed = trainer.get_decay_parameter_names(model)
    assert found[0] | found[2] == {id(parameter) for name, parameter in model.named_parameters() if name in decayed}


@pytest.mark.parametrize("optim", ["adamw_torch_fused", slow("sgd"), slow("adafactor")])
def test_the_schedule_scales_both_rates(optim: str, tmp_path: Path) -> None:
    model = hf_lam.freeze_host(make_bert(), train_head=True)
    before = weights_of(model)
    trainer = trainer_of(model, tmp_path, optim=optim, mechanism_learning_rate=1e-2, max_steps=4)
    trainer.train()
    assert trainer.lr_scheduler.base_lrs == [1e-3, 1e-3, 1e-2, 1e-2]
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    assert changed_names(before, weights_of(model)) == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def test_each_parameter_follows_its_rate(tmp_path: Path) -> None:
    def change(**arguments: Any) -> tuple[dict[str, torch.Tensor], set[str]]:
        model = make_bert()
        before = weights_of(model)
        trainer_of(model, tmp_path, **{**SGD, "max_steps": 1, **arguments}).train()
        return {name: tensor - before[name] for name, tensor in weights_of(model).items()}, set(before)

    plain, names = change()
    fast, _ = change(mechanism_learning_rate=0.3)
    for name in names:
        factor = 3.0 if ".hf_lam." in name else 1.0
        torch.testing.assert_close(fast[name], factor * plain[name], rtol=1e-3, atol=1e-7)
    assert any(plain[name].abs().max() > 1e-4 for name in names if ".hf_lam." in name)


def test_groups_that_became_empty_are_dropped(tmp_path: Path) -> None:
    model = hf_lam.freeze_host(make_bert())
    trainer = trainer_of(model, tmp_path, mechanism_learning_rate=1e-2)
    assert [group["is_mechanism"] for group in trainer.create_optimizer().param_groups] == [True, True]


def test_mechanisms_that_peft_copied(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, target_modules=["query"], modules_to_save=["hf_lam", "classifier"])
    model = peft.get_peft_model(make_bert(), config)
    before = weights_of(model)
    trainer = trainer_of(model, tmp_path, make_samples(make_bert(), "bert", 8), mechanism_learning_rate=1e-2)
    trainer.train()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]
        for group in trainer.optimizer.param_groups
        if group.get("is_mechanism")
        for parameter in group["params"]
    }
    assert found == {name for name in names.values() if "hf_lam.modules_to_save.default" in name} != set()
    assert found <= changed_names(before, weights_of(model))
    sample = {name: value[None] for name, value in make_inputs("bert", batch=1).items()}
    assert trainer.state.total_flos == 3 * 8 * cost(model.get_base_model(), {k: v[0] for k, v in sample.items()}).flops


@pytest.mark.slow
def test_resumed_with_groups_equals_uninterrupted(tmp_path: Path) -> None:
    options = {"mechanism_learning_rate": 1e-2, "weight_decay": 0.1, "max_steps": 4, "save_strategy": "steps"}
    uninterrupted = make_bert(**DROPOUT)
    trainer_of(uninterrupted, tmp_path, save_steps=2, **options).train()
    resumed = make_bert(seed=1, **DROPOUT)
    trainer = trainer_of(resumed, tmp_path, save_steps=2, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 4
    assert [group.get("is_mechanism", False) for group in trainer.optimizer.param_groups] == [False] * 2 + [True] * 2
    assert_same_weights(weights_of(resumed), weights_of(uninterrupted))


@pytest.mark.parametrize("case", ["stock", "views", "frozen"])
def test_a_rate_without_mechanisms_that_train(case: str, tmp_path: Path) -> None:
    model = make_bert(lam=mechanisms("half", "bert")) if case == "views" else make_bert()
    if case == "stock":
        model = make_model(BertForSequenceClassification, "bert")
    elif case == "frozen":
        for parameter in mechanism_parameters(model):
            parameter.requires_grad_(False)
    with pytest.raises(ValueError, match=r"mechanism_learning_rate was given, but .* no parameters of mechanisms"):
        trainer_of(model, tmp_path, mechanism_learning_rate=1e-2)


def test_a_rate_with_an_optimizer_of_the_user(tmp_path: Path) -> None:
    model = make_bert()
    more = {"optimizers": (torch.optim.SGD(model.parameters(), lr=0.1), None)}
    with pytest.raises(ValueError, match="mechanism_learning_rate cannot change an optimizer that was given"):
        trainer_of(model, tmp_path, more=more, mechanism_learning_rate=1e-2)
    trainer_of(model, tmp_path, more=more).train()


# --- what training costs ---------------------------------------------------------------------------------------------


def total_flos(trainer: HfLamTrainer) -> float:
    trainer.train()
    return trainer.state.total_flos


@pytest.mark.slow
def test_total_flos_of_images(tmp_path: Path) -> None:
    flops = {}
    for name, lam in {"lam": LamConfig(), "views": mechanisms("half", "vit")}.items():
        model = make_lam(ViTForImageClassification, "vit", lam, num_labels=3)
        flops[name] = total_flos(trainer_of(model, tmp_path, max_steps=3))
        assert flops[name] == 3 * cost(model, make_inputs("vit", batch=1)).flops * 12
    stock = make_model(ViTForImageClassification, "vit")
    flops["stock"] = total_flos(trainer_of(stock, tmp_path, max_steps=3))
    assert flops["views"] < flops["stock"] < flops["lam"]


def test_total_flos_of_texts_of_any_length(tmp_path: Path) -> None:
    model = make_bert()
    lengths = [5, 9, 5, 7]
    batches = [{"input_ids": torch.randint(2, 99, (2, length)), "labels": torch.tensor([0, 2])} for length in lengths]
    trainer = trainer_of(
        model, tmp_path, batches, {"data_collator": lambda samples: samples[0]}, per_device_train_batch_size=1,
        max_steps=4,
    )  # fmt: skip
    expected = sum(cost(model, {"input_ids": batch["input_ids"]}).flops for batch in batches)
    assert total_flos(trainer) == 3 * expected
    assert len(trainer._flops) == 3


def test_total_flos_of_a_fusion_model(tmp_path: Path) -> None:
    model = make_fusion(("text", "image"), hf_lam="half")
    inputs = make_fusion_inputs(("text", "image"), batch=4)
    inputs |= {"has_image": torch.tensor([False, True, True, True]), "labels": torch.tensor([0, 1, 2, 0])}
    samples = [{name: value[i] for name, value in inputs.items()} for i in range(4)]
    trainer = trainer_of(model, tmp_path, samples)
    inputs.pop("labels")
    assert total_flos(trainer) == 3 * 2 * cost(model, inputs).flops


def test_counting_disturbs_nothing(tmp_path: Path) -> None:
    model = make_bert(**DROPOUT).train()
    model.bert.embeddings.eval()
    trainer = trainer_of(model, tmp_path)
    batch = stacked(make_samples(model, "bert", 4))
    model(**batch).loss.backward()
    modes = [module.training for module in model.modules()]
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    random_state = torch.get_rng_state()
    assert trainer.floating_point_ops(batch) == 12 * cost(model, make_inputs("bert", batch=1)).flops
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.slow
def test_views_count_once_they_are_reached(tmp_path: Path) -> None:
    model = make_lam(ViTForImageClassification, "vit", LocomtConfig(views="half", annealing=True), num_labels=3)
    before = cost(model).flops
    trainer = trainer_of(model, tmp_path, more={"callbacks": [ViewAnnealingCallback(end=0.5)]}, max_steps=4)
    total = total_flos(trainer)
    after = cost(model).flops
    assert after < before
    assert total == 3 * 4 * (2 * before + 2 * after)


def test_what_cannot_be_counted_is_left_to_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fails(*args: Any) -> None:
        calls.append(args)
        raise ValueError("unknown attention")

    monkeypatch.setattr("hf_lam.training.trainer.cost", fails)
    model = make_bert()
    trainer = trainer_of(model, tmp_path, per_device_train_batch_size=8)
    expected = 6 * 2 * 8 * 11 * model.num_parameters(exclude_embeddings=True)
    assert total_flos(trainer) == expected
    assert len(calls) == 1


def test_sharded_parameters_are_counted_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_bert()
    trainer = trainer_of(model, tmp_path)
    per_token = cost(model).flops / 40
    monkeypatch.setattr(HfLamTrainer, "_is_sharded", True)
    look = OnTrainBegin(lambda _: dict(trainer._flops))
    trainer.add_callback(look)
    assert total_flos(trainer) == 2 * int(3 * per_token * 4 * 11)
    assert look.seen == trainer._flops == {None: per_token}


# --- two processes ---------------------------------------------------------------------------------------------------


def train_in_parts(folder: Path, mode: str = "") -> None:
    """Four steps without a break, saved in `whole`, and the last two once more from a checkpoint, in `resumed`."""
    processes = 2 if mode else 1
    arguments: dict[str, Any] = {}
    if mode == "fsdp":
        config = {"version": 2, "transformer_layer_cls_to_wrap": "BertLayer", "state_dict_type": "FULL_STATE_DICT"}
        arguments = {"fsdp": True, "fsdp_config": config}
    for name in ("whole", "resumed"):
        model = make_bert(seed=1 if name == "resumed" else 0)
        trainer = trainer_of(
            model,
            folder / "run",
            more={"teacher": make_teacher()},
            max_steps=4,
            per_device_train_batch_size=8 // processes,
            mechanism_learning_rate=1e-2,
            weight_decay=0.1,
            # What is next to no gradient must not become a step of full size, which would be rounding.
            adam_epsilon=1e-3,
            save_strategy="steps",
            save_steps=2,
            **arguments,
        )
        trainer.train(resume_from_checkpoint=str(folder / "run" / "checkpoint-2") if name == "resumed" else None)
        rates = [group["initial_lr"] for group in trainer.optimizer.param_groups]
        assert rates == [1e-3, 1e-3, 1e-2, 1e-2]
        expected = 3 * 32 * cost(make_bert(), make_inputs("bert", batch=1)).flops
        assert trainer.is_fsdp_enabled == (mode == "fsdp")
        if mode == "fsdp":
            expected = 3 * 32 * 11 / 40 * cost(make_bert()).flops
        assert trainer.state.total_flos == pytest.approx(expected, rel=1e-6)
        trainer.save_model(str(folder / name))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_train_and_resume_as_one(mode: str, tmp_path: Path) -> None:
    train_in_parts(tmp_path / "one")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run_process([*launcher, __file__, str(tmp_path / "two"), mode])
    one, two = (
        {name: weights_of(type(make_bert()).from_pretrained(tmp_path / run / name)) for name in ("whole", "resumed")}
        for run in ("one", "two")
    )
    assert_same_weights(one["resumed"], one["whole"])
    assert_same_weights(two["resumed"], two["whole"], tolerance=1e-6)
    assert_same_weights(two["whole"], one["whole"], tolerance=1e-5)
    assert changed_names(weights_of(make_bert()), one["whole"]) == set(one["whole"])


# --- the order of the callbacks --------------------------------------------------------------------------------------


class Reporter(TrainerCallback):
    """Sees the logs as TensorBoard does, which `Trainer` puts before what the user gives."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


@pytest.mark.parametrize("added_later", [False, True])
def test_reporters_see_what_our_callbacks_add(added_later: bool, tmp_path: Path) -> None:
    model = make_bert(lam=(SttConfig(),))
    set_mixing(model, 0.0)
    reporter, annealing = Reporter(), SttAnnealingCallback(end=0.5)
    more = {"callbacks": [reporter] if added_later else [reporter, annealing]}
    trainer = trainer_of(model, tmp_path, more=more, max_steps=4)
    if added_later:
        trainer.add_callback(annealing)
    others = [type(callback) for callback in trainer.callback_handler.callbacks[1:]]
    assert trainer.callback_handler.callbacks[0] is annealing
    plain = Trainer(model, make_arguments(tmp_path), callbacks=[reporter]).callback_handler.callbacks
    assert others == [type(callback) for callback in plain]
    trainer.train()
    assert [logs["attention_mixing"] for logs in reporter.logs if "loss" in logs] == [0.5, 1.0, 1.0, 1.0]


if __name__ == "__main__":
    train_in_parts(Path(sys.argv[1]), sys.argv[2])
