"""Tiny HfLam models whose mechanisms matter, and labelled samples for their heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

import hf_lam
from helpers.hosts import make_inputs, make_model, perturb_mechanisms
from hf_lam import LamConfig
from hf_lam.modeling.injection_hf_lam import encoders_with
from hf_lam.modeling.weight_names_hf_lam import is_mark


def make_lam(
    stock_class: type[PreTrainedModel],
    host: str,
    mechanisms: LamConfig | tuple[Any, ...] | None = None,
    seed: int = 0,
    **config: Any,
) -> Any:
    """A converted tiny model with sharp attention and mechanisms far from the identity, so that losing one shows.

    mechanisms: one `LamConfig`, the default one unless given, or several configurations.
    """
    configs = mechanisms if isinstance(mechanisms, tuple) else (mechanisms or LamConfig(),)
    model = hf_lam.convert(make_model(stock_class, host, seed=seed, **{"initializer_range": 0.2, **config}), *configs)
    perturb_mechanisms(model, seed=seed + 2)
    return model


def make_samples(model: PreTrainedModel, host: str, count: int, seed: int = 1) -> list[dict[str, Any]]:
    """`count` labelled samples for a head. Token labels differ in number from sample to sample, some have none.

    Text has token types if the model has attention views.
    """
    has_views = bool(encoders_with(model, "locomt"))
    inputs = make_inputs(host, batch=count, seed=seed, token_types=has_views)
    generator = torch.Generator().manual_seed(seed + 1)
    task = type(model).__name__.partition("For")[2]
    if task in ("MaskedLM", "TokenClassification"):
        classes = 99 if task == "MaskedLM" else model.config.num_labels
        labels = torch.randint(0, classes, inputs["input_ids"].shape, generator=generator)
        labelled = torch.rand(labels.shape, generator=generator) < torch.linspace(0, 0.9, count)[:, None]
        inputs["labels"] = labels.masked_fill(~labelled, -100)
    elif task == "QuestionAnswering":
        for name in ("start_positions", "end_positions"):
            inputs[name] = torch.randint(0, 7, (count,), generator=generator)
    else:
        inputs["labels"] = torch.randint(0, model.config.num_labels, (count,), generator=generator)
    return [{name: tensor[i] for name, tensor in inputs.items()} for i in range(count)]


def stacked(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    # Marks only say that a mechanism was there.
    state = {name: tensor for name, tensor in model.state_dict().items() if not is_mark(name)}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def assert_same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert left.keys() == right.keys()
    apart = {name: (left[name].double() - right[name].double()).abs().max().item() for name in left}
    assert {name: gap for name, gap in apart.items() if not gap <= tolerance} == {}


def changed_names(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# A run on the CPU that logs every step.
SHORT_RUN: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "seed": 3,
}


def make_trainer(
    model: Any, folder: Path, *callbacks: TrainerCallback, samples: Any = None, more: Any = None, **arguments: Any
) -> Trainer:
    """A short run on the CPU that logs every step; `arguments` go to `TrainingArguments`, `more` to `Trainer`."""
    host = model.config.model_type.removeprefix("hf_lam_")
    return Trainer(
        model=model,
        args=TrainingArguments(**{**SHORT_RUN, "output_dir": str(folder), **arguments}),
        train_dataset=samples or make_samples(model, host, 16),
        callbacks=list(callbacks),
        **(more or {}),
    )
