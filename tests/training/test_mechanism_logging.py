"""MechanismLoggingCallback: what it logs, that it reaches the reporters, and that it leaves the training alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    TrainerCallback,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
)

import hf_lam
from helpers.door import TEMPERATURE, open_door
from helpers.fusion_models import make_fusion, make_fusion_inputs
from helpers.hosts import make_host, make_inputs, make_model, mechanisms, perturb_mechanisms
from helpers.lam_models import SHORT_RUN, assert_same_weights, make_lam, make_samples, make_trainer, weights_of
from helpers.processes import run_process
from hf_lam import LamConfig, LocomtConfig, SttConfig
from hf_lam.modeling.injection_hf_lam import injected_encoders, injection_of, mechanism_of
from hf_lam.training import (
    HfLamTrainer,
    HfLamTrainingArguments,
    MechanismLoggingCallback,
    SttAnnealingCallback,
    ViewAnnealingCallback,
)
from hf_lam.visualization import learned_masks

STOCK: dict[str, Any] = {"bert": BertForSequenceClassification, "vit": ViTForImageClassification}
OURS = ("lam/", "stt/", "locomt/", "mechanism_")


def hf_lam_trainer(model: Any, folder: Path, *callbacks: TrainerCallback, samples: Any, **arguments: Any) -> Any:
    """`make_trainer`, but for the class."""
    changes = {"output_dir": str(folder), "max_steps": 3, "learning_rate": 5e-5}
    return HfLamTrainer(
        model=model,
        args=HfLamTrainingArguments(**{**SHORT_RUN, **changes, **arguments}),
        train_dataset=samples,
        callbacks=list(callbacks),
    )


def begin(callback: MechanismLoggingCallback, model: Any) -> None:
    nothing: Any = None
    callback.on_train_begin(nothing, nothing, nothing, model=model)


def logged(model: Any, inputs: Any = None) -> dict[str, float]:
    """What a training log of `model` gets."""
    callback = MechanismLoggingCallback(inputs)
    begin(callback, model)
    state: Any = None
    return callback.entries(state, {"loss": 1.0}, model=model)


def spread(masks: torch.Tensor, is_token: torch.Tensor) -> float:
    """By hand, sample by sample."""
    kept = [mask[:, real][:, :, real].double().flatten() for mask, real in zip(masks, is_token, strict=True)]
    values = torch.cat(kept)
    return ((values - values.mean()) ** 2).mean().sqrt().item()


@pytest.mark.parametrize("name", ["per_layer", "per_head", "embeddings", "shared", "shared_rank_per_head", "add"])
@pytest.mark.parametrize("host", ["bert", "vit"])
def test_spread_of_masks_over_real_tokens(host: str, name: str) -> None:
    model = make_lam(STOCK[host], host, mechanisms(name, host))
    inputs = make_inputs(host, batch=4)
    masks = learned_masks(model, inputs)
    is_token = inputs["attention_mask"].bool() if host == "bert" else torch.ones(4, 17, dtype=torch.bool)
    expected = {f"lam/mask_spread/layer_{i}": spread(mask, is_token) for i, mask in enumerate(masks)}
    if name.startswith("shared"):
        expected = {"lam/mask_spread": spread(masks[0], is_token)}
    assert logged(model, inputs) == pytest.approx(expected, rel=1e-5)
    assert min(expected.values()) > 1e-3 and len(set(expected.values())) == len(expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_counts_in_no_form_of_attention(attention: str) -> None:
    model = make_lam(STOCK["bert"], "bert")
    model.set_attn_implementation(attention)
    inputs = make_inputs("bert", batch=2)
    found = logged(model, inputs)
    # What is in the place of padding changes nothing.
    other = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 5)}
    assert logged(model, other) == pytest.approx(found, rel=1e-5)
    whole = logged(model, {"input_ids": inputs["input_ids"]})
    assert abs(whole["lam/mask_spread/layer_0"] - found["lam/mask_spread/layer_0"]) > 1e-4


def test_a_mask_starts_without_spread() -> None:
    model = hf_lam.convert(make_model(STOCK["vit"], "vit"), LamConfig(rank=2))
    assert logged(model, make_inputs("vit")) == {f"lam/mask_spread/layer_{i}": 0.0 for i in range(3)}


def test_a_fusion_model_leaves_out_what_samples_lack() -> None:
    model = make_fusion(("text", "image"), hf_lam="lam_half")
    inputs = make_fusion_inputs(("text", "image"))
    inputs["has_image"] = torch.tensor([True, False])
    masks = learned_masks(model, inputs)
    is_token = torch.cat([inputs["attention_mask"].bool(), torch.tensor([[True] * 17, [False] * 17])], dim=1)
    expected: dict[str, float] = {f"lam/mask_spread/layer_{i}": spread(mask, is_token) for i, mask in enumerate(masks)}
    expected |= {f"locomt/views/layer_{i}/{view}": 2 for i in range(2) for view in ("self", "cross:text-image")}
    assert logged(model, inputs) == pytest.approx(expected, rel=1e-5)


def test_mixing_of_every_head() -> None:
    model = make_lam(STOCK["vit"], "vit", (SttConfig(train_mixing=True),))
    for i, synthesizer in enumerate(mechanism_of(injected_encoders(model)[0], "stt")):
        synthesizer.mixing.data = torch.tensor([-0.5, 0.25, 1.5, 0.125 * i])
    values = [[0.0, 0.25, 1.0, 0.125 * i] for i in range(3)]
    expected = {f"stt/mixing/layer_{i}/head_{h}": values[i][h] for i in range(3) for h in range(4)}
    assert logged(model) == expected


def test_there_is_no_mixing_in_a_pure_stt() -> None:
    model = make_lam(STOCK["vit"], "vit", (SttConfig("dense"),))
    assert logged(model) == {}


def test_a_mechanism_of_somebody_else_logs_what_it_names() -> None:
    with open_door() as load_file:
        model = hf_lam.inject(make_host("vit"), load_file(TEMPERATURE).HeadTemperatureConfig(), LocomtConfig())
        perturb_mechanisms(model)
        values = [
            parameter.detach().exp().tolist() for parameter in mechanism_of(model, "head_temperature").parameters()
        ]
        found = logged(model)
    place = "head_temperature/inverse_temperature"
    expected = {f"{place}/layer_{i}/head_{h}": values[i][h] for i in range(3) for h in range(4)}
    assert found == pytest.approx(expected | {f"locomt/views/layer_{i}/full": 4 for i in range(3)})


@pytest.mark.parametrize("annealing", [False, True])
def test_table_of_views(annealing: bool) -> None:
    table = [["self", "self:type_0", "self", "type_0>type_1"], ["full"] * 4, ["self", "self", "self", "full"]]
    model = make_lam(STOCK["bert"], "bert", (LocomtConfig(views=table, annealing=annealing),))
    assert logged(model) == {
        "locomt/views/layer_0/self": 2,
        "locomt/views/layer_0/self:type_0": 1,
        "locomt/views/layer_0/type_0>type_1": 1,
        "locomt/views/layer_1/full": 4,
        "locomt/views/layer_2/self": 3,
        "locomt/views/layer_2/full": 1,
    }


def test_the_table_comes_again_when_it_has_changed() -> None:
    model = make_lam(STOCK["bert"], "bert", (LocomtConfig(views="self"),))
    callback = MechanismLoggingCallback()
    begin(callback, model)
    state: Any = None
    log = lambda: callback.entries(state, {"loss": 1.0}, model=model)  # noqa: E731
    assert log() == {f"locomt/views/layer_{i}/self": 4 for i in range(3)}
    assert log() == {}
    hf_lam.set_views(model, LocomtConfig(views=[["full"] * 4, ["self"] * 4, ["self"] * 4]))
    assert log()["locomt/views/layer_0/full"] == 4
    begin(callback, model)
    assert len(log()) == 3, "a new training begins with the table"


def test_a_model_without_mechanisms() -> None:
    model = make_model(STOCK["vit"], "vit")
    assert logged(model) == {}


def test_a_peft_model_shows_the_copy_that_trains() -> None:
    model = make_lam(STOCK["vit"], "vit", (LamConfig(), SttConfig(train_mixing=True), LocomtConfig(views="half")))
    lora = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["hf_lam", "classifier"])
    wrapped = peft.get_peft_model(model, lora)
    perturb_mechanisms(wrapped, seed=5)
    (base,) = injected_encoders(wrapped)
    for synthesizer in mechanism_of(base, "stt"):
        synthesizer.mixing.data.fill_(0.75)
    inputs = make_inputs("vit", batch=2)
    masks = learned_masks(wrapped, inputs)
    found = logged(wrapped, inputs)
    everything = torch.ones(2, 17, dtype=torch.bool)
    for i, mask in enumerate(masks):
        assert found[f"lam/mask_spread/layer_{i}"] == pytest.approx(spread(mask, everything), rel=1e-5)
    assert {found[f"stt/mixing/layer_{i}/head_{h}"] for i in range(3) for h in range(4)} == {0.75}
    assert found["locomt/views/layer_2/self"] == 2


class Watcher(TrainerCallback):
    """The state of the random numbers and the modes of the modules, after every log."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self.modes: list[list[bool]] = []

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.seen.append(torch.get_rng_state())
        self.modes.append([module.training for module in model.modules()])


def test_the_training_is_the_same_as_without(tmp_path: Path) -> None:
    def run(*callbacks: TrainerCallback) -> tuple[Watcher, Any]:
        dropout = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
        model = make_lam(STOCK["bert"], "bert", (LamConfig(per_head=True), LocomtConfig(views="half")), **dropout)
        watcher = Watcher()
        trainer = make_trainer(model, tmp_path, *callbacks, watcher, max_steps=3)
        trainer.train()
        return watcher, model

    inputs = make_inputs("bert", token_types=True)
    kept = {name: tensor.clone() for name, tensor in inputs.items()}
    with_it, model = run(MechanismLoggingCallback(inputs))
    without, other = run()
    assert_same_weights(weights_of(model), weights_of(other))
    assert len(with_it.seen) == 4 and all(map(torch.equal, with_it.seen, without.seen))
    assert with_it.modes == without.modes and any(with_it.modes[0])
    for left, right in zip(model.modules(), other.modules(), strict=True):
        assert left.__dict__.keys() == right.__dict__.keys()
        assert len(left._forward_pre_hooks) == len(right._forward_pre_hooks)
    assert all(not injection_of(base).observers for base in injected_encoders(model))
    assert all(torch.equal(inputs[name], kept[name]) for name in kept)


def test_nothing_records_gradients_and_a_failure_leaves_the_model_alone() -> None:
    model = make_lam(STOCK["vit"], "vit").train()
    model.vit.layernorm.eval()
    state: Any = torch.get_rng_state()
    callback = MechanismLoggingCallback(make_inputs("vit"))
    begin(callback, model)
    assert torch.equal(torch.get_rng_state(), state)
    callback = MechanismLoggingCallback({"pixel_values": torch.zeros(1, 3, 8, 8)})
    with pytest.raises(ValueError):
        begin(callback, model)
    assert model.training and not model.vit.layernorm.training
    assert all(parameter.grad is None for parameter in model.parameters())
    before = make_lam(STOCK["vit"], "vit")
    counts = [[len(module._forward_pre_hooks) for module in each.modules()] for each in (model, before)]
    assert counts[0] == counts[1]


def test_half_precision_takes_inputs_in_full() -> None:
    # ViT would bring them to its dtype by itself.
    model = make_lam(VideoMAEForVideoClassification, "videomae")
    full = logged(model, make_inputs("videomae"))
    assert logged(model.bfloat16(), make_inputs("videomae")) == pytest.approx(full, rel=0.05)


def test_only_training_logs_get_entries(tmp_path: Path) -> None:
    model = make_lam(STOCK["bert"], "bert")
    samples = make_samples(model, "bert", 8)
    trainer = make_trainer(
        model,
        tmp_path,
        MechanismLoggingCallback(make_inputs("bert")),
        more={"eval_dataset": samples},
        max_steps=4,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    kinds = [("loss" in entry, any(name.startswith(OURS) for name in entry)) for entry in trainer.state.log_history]
    assert kinds.count((True, True)) == 2 and kinds.count((False, False)) == 3 and len(kinds) == 5


@pytest.mark.slow
def test_learning_rate_of_the_mechanisms(tmp_path: Path) -> None:
    def rates(**arguments: Any) -> list[tuple[float, float | None]]:
        model = make_lam(STOCK["vit"], "vit")
        trainer = hf_lam_trainer(
            model,
            tmp_path,
            MechanismLoggingCallback(make_inputs("vit")),
            samples=make_samples(model, "vit", 4),
            **{"max_steps": 4, "warmup_steps": 1, "learning_rate": 1e-3, **arguments},
        )
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        return [(entry["learning_rate"], entry.get("mechanism_learning_rate")) for entry in logs]

    # In the warmup's first step both are 0.
    schedule = [0, 1, 2 / 3, 1 / 3]
    expected = [(pytest.approx(1e-3 * x), pytest.approx(1e-2 * x)) for x in schedule]
    assert rates(mechanism_learning_rate=1e-2) == expected
    assert {own for _, own in rates()} == {None}
    assert {own for _, own in rates(mechanism_learning_rate=1e-3)} == {None}


@pytest.mark.parametrize(
    ("anneal", "configs", "tag"),
    [
        (SttAnnealingCallback, (SttConfig(),), "attention_mixing"),
        (ViewAnnealingCallback, (LocomtConfig(views="half", annealing=True),), "attention_view_penalty"),
        (None, (LamConfig(),), None),
    ],
    ids=["stt", "views", "lam"],
)
def test_tensorboard_gets_what_the_history_has(
    anneal: Any, configs: Any, tag: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    model = make_lam(STOCK["vit"], "vit", configs)
    callbacks = [MechanismLoggingCallback(make_inputs("vit")), *([anneal()] if anneal else [])]
    samples = make_samples(model, "vit", 8)
    trainer = hf_lam_trainer(
        model, tmp_path, *callbacks, samples=samples, report_to=["tensorboard"], mechanism_learning_rate=None
    )
    trainer.train()
    history = trainer.state.log_history
    names = [name for name in history[0] if name.startswith(OURS) or name == tag]
    assert len(names) >= 3 and (tag is None or tag in names)
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    for name in names:
        expected = [(entry["step"], entry[name]) for entry in history if name in entry]
        # The table of views is there once, the rest in every log.
        assert len(expected) == 1 if name.startswith("locomt/") else len(expected) >= 3
        found = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]


def test_masks_need_inputs(tmp_path: Path) -> None:
    model = make_lam(STOCK["vit"], "vit")
    with pytest.raises(ValueError, match=r"give MechanismLoggingCallback\(inputs=...\) a few samples"):
        make_trainer(model, tmp_path, MechanismLoggingCallback()).train()
    with pytest.raises(TypeError, match=r"inputs must be a mapping.*got list"):
        MechanismLoggingCallback([1])  # type: ignore[arg-type]


def test_several_encoders_are_refused() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoders = torch.nn.ModuleList(make_lam(STOCK["vit"], "vit") for _ in range(2))

    with pytest.raises(ValueError, match="Two has hf_lam mechanisms in 2 encoders"):
        begin(MechanismLoggingCallback(make_inputs("vit")), Two())


SHARDED = """
from helpers.processes import run_in_group
from helpers.lam_models import make_lam
from training.test_mechanism_logging import STOCK, logged
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from helpers.hosts import make_inputs
from hf_lam import LamConfig, SttConfig

def work():
    for configs in ((SttConfig(train_mixing=True),), (SttConfig(train_mixing=True), LamConfig())):
        model = make_lam(STOCK["vit"], "vit", configs)
        expected = logged(model, make_inputs("vit"))
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        assert isinstance(model.vit.hf_lam.stt[0].mixing, DTensor)
        assert logged(model, make_inputs("vit")) == expected and len(expected) >= 12

run_in_group(work)
"""


@pytest.mark.slow
def test_parameters_that_fsdp2_has_sharded(tmp_path: Path) -> None:
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run_process([*launch, str(script)])
