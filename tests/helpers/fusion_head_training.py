"""Training of fusion models with each of the heads, in this process or, started by torchrun, in several.

torchrun --nproc_per_node=2 fusion_head_training.py FOLDER
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started by path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainingArguments

from helpers.fusion_heads import LENGTH, SHORT, head_inputs, make_head, token_labels
from helpers.processes import run_in_group
from hf_lam.training import HfLamTrainer


def samples(labels: Tensor | None, batch: int = 8) -> list[dict[str, Any]]:
    """Of `head_inputs`, in two lengths; every pair of neighbours has one."""
    inputs = head_inputs(batch)
    rows = []
    for index in range(batch):
        length = LENGTH if index % 4 < 2 else SHORT
        row = {key: value[index][:length] for key, value in inputs.items()}
        row = {key: torch.ones_like(value) if key.endswith("_mask") else value for key, value in row.items()}
        if labels is not None:
            row["labels"] = labels[index] if labels.dim() == 1 else labels[index][:length]
        rows.append(row)
    return rows


def pad(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of rows of several lengths."""
    batch = {}
    for key, value in rows[0].items():
        padding = 0.0
        if key == "labels":
            padding = math.nan if value.is_floating_point() else -100
        values = [torch.as_tensor(row[key]) for row in rows]
        batch[key] = (
            nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=padding)
            if value.dim()
            else torch.stack(values)
        )
    return batch


def labels_for(kind: str) -> Tensor | None:
    generator = torch.Generator().manual_seed(3)
    if kind == "embedding":
        return None
    if kind == "sequence":
        return torch.arange(8) % 3
    if kind == "token":
        labels = token_labels(8)
        labels[1::2] = torch.randint(0, 3, (4, LENGTH), generator=generator)
        labels[0, 1:] = -100
        return labels
    numbers = torch.rand(8, LENGTH, generator=generator)
    numbers[0, 1:] = math.nan
    return numbers


KINDS = {"sequence": ("sequence", {}), "token": ("token", {}), "embedding": ("embedding", {})}
KINDS["token numbers"] = ("token", {"num_labels": 1, "problem_type": "regression"})


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults = {
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "train_sampling_strategy": "sequential",
    }
    return TrainingArguments(str(folder), **{**defaults, **options})


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def train_head(kind: str, folder: Path, size: int, steps: int = 1) -> dict[str, Tensor]:
    """How far the weights moved in one step of `steps` batches of `size` in each process."""
    head, options = KINDS[kind]
    model = without_dropout(make_head(head, "lam", **options))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = HfLamTrainer(
        model,
        arguments(folder, per_device_train_batch_size=size, gradient_accumulation_steps=steps),
        train_dataset=samples(labels_for(kind)),
        data_collator=pad,
    )
    trainer.train()
    trained = trainer.accelerator.unwrap_model(trainer.model)
    return {name: parameter.detach() - before[name] for name, parameter in trained.named_parameters()}


def train_all(folder: Path) -> None:
    for kind in KINDS:
        moved = train_head(kind, folder / kind, 4)
        if dist.get_rank() == 0:
            save_file(moved, folder / f"{kind}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_in_group(lambda: train_all(Path(sys.argv[1])))
