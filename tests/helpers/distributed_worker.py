"""What `test_distributed.py` runs in two processes, and in one to compare.

    torchrun --nproc_per_node 2 distributed_worker.py ddp|fsdp|trainer FOLDER

The first process writes the results of every case to FOLDER.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    Trainer,
    TrainingArguments,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from helpers.checkpointing import checkpoint_activations
from helpers.fusion_heads import head_inputs, make_head, text_labels, token_labels
from helpers.fusion_models import make_fusion, make_fusion_inputs
from helpers.hosts import mechanisms, set_mixing
from helpers.lam_models import make_lam, make_samples, stacked, weights_of
from helpers.processes import run_in_group
from hf_lam import LamConfig

PER_LAYER, SHARED, LOW_RANK = LamConfig(), LamConfig(scope="shared"), LamConfig(scope="shared", rank=2, per_head=True)
STEPS, BATCH = 3, 8

# Stock class, host, mechanisms, and the `use_reentrant` of gradient checkpointing, `None` for none.
LOOP_CASES: dict[str, tuple[Any, str, Any, bool | None]] = {
    "per_layer": (BertForSequenceClassification, "bert", PER_LAYER, None),
    "per_layer-checkpointed": (BertForSequenceClassification, "bert", PER_LAYER, False),
    "shared": (BertForSequenceClassification, "bert", SHARED, None),
    "shared-checkpointed": (BertForSequenceClassification, "bert", SHARED, False),
    "shared-reentrant": (BertForSequenceClassification, "bert", SHARED, True),
    "embeddings-checkpointed": (ViTForImageClassification, "vit", LamConfig(source="embeddings"), False),
    "vit-per_layer": (ViTForImageClassification, "vit", PER_LAYER, None),
    "vit-shared-checkpointed": (ViTForImageClassification, "vit", LOW_RANK, False),
    "videomae-shared": (VideoMAEForVideoClassification, "videomae", SHARED, None),
    "bert-token_types": (BertForSequenceClassification, "bert", mechanisms("half", "bert"), None),
    "bert-lam_and_views-checkpointed": (BertForSequenceClassification, "bert", mechanisms("lam", "bert"), False),
    "vit-bottleneck": (ViTForImageClassification, "vit", mechanisms("bottleneck", "vit"), None),
    "videomae-annealing-reentrant": (
        VideoMAEForVideoClassification,
        "videomae",
        mechanisms("annealing", "videomae"),
        True,
    ),
    "vit-dense-checkpointed": (ViTForImageClassification, "vit", mechanisms("dense", "vit"), False),
    "videomae-random": (VideoMAEForVideoClassification, "videomae", mechanisms("random", "videomae"), None),
    "bert-mixture-reentrant": (BertForSequenceClassification, "bert", mechanisms("mixture_trained", "bert"), True),
    # Where a mixture starts: its synthesizer takes part, with a gradient of zero.
    "bert-mixture_at_zero": (BertForSequenceClassification, "bert", mechanisms("mixture_all", "bert"), None),
    "vit-mixture_at_zero": (ViTForImageClassification, "vit", mechanisms("mixture", "vit"), None),
}
TRAINER_CASES: dict[str, tuple[Any, str, Any]] = {
    "bert": (BertForSequenceClassification, "bert", PER_LAYER),
    "bert_masked_lm": (BertForMaskedLM, "bert", SHARED),
    "bert_tokens": (BertForTokenClassification, "bert", PER_LAYER),
    "vit": (ViTForImageClassification, "vit", SHARED),
    "videomae": (VideoMAEForVideoClassification, "videomae", PER_LAYER),
    "bert_views": (BertForMaskedLM, "bert", mechanisms("lam", "bert")),
    "bert_mixture": (BertForMaskedLM, "bert", mechanisms("mixture", "bert")),
    "vit_dense": (ViTForImageClassification, "vit", mechanisms("dense", "vit")),
    "vit_views": (ViTForImageClassification, "vit", mechanisms("half", "vit")),
}

# Mechanisms of a fusion model, the `use_reentrant` of gradient checkpointing, `None` for none, and the modalities that
# are given as vectors.
FUSION_CASES: dict[str, tuple[str, bool | None, tuple[str, ...]]] = {
    "fusion-none": ("none", None, ()),
    "fusion-lam_half": ("lam_half", None, ("image", "video")),
    "fusion-lam_embeddings-checkpointed": ("lam_embeddings", False, ()),
    "fusion-bottleneck-reentrant": ("bottleneck", True, ("text", "image")),
}


# Heads of fusion models that lack in one process what they compare, label or write about.
HEAD_CASES = ("token", "embedding", "generation")


def make_loop_model(name: str) -> Any:
    stock_class, host, lam, use_reentrant = LOOP_CASES[name]
    model = make_lam(stock_class, host, lam).train().double()
    if name.endswith("mixture_at_zero"):
        set_mixing(model, 0.0)
    if use_reentrant is not None:
        checkpoint_activations(model, use_reentrant)
    return model


def train_loop(model: Any, host: str, wrap: Callable[[Any], nn.Module] = lambda model: model) -> torch.Tensor:
    """A few steps of plain SGD on the share of this process; returns the loss of each whole batch.

    In fp64, so that what differs cannot be rounding.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    samples = make_samples(model, host, STEPS * BATCH)
    for sample in samples:
        if "pixel_values" in sample:
            sample["pixel_values"] = sample["pixel_values"].double()
    network = wrap(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
    losses = []
    for step in range(STEPS):
        loss = network(**stacked(samples[step * BATCH + rank : (step + 1) * BATCH : world])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    total = torch.stack(losses)
    if world > 1:
        dist.all_reduce(total)
    return total / world


def make_fusion_loop_model(name: str) -> Any:
    hf_lam, use_reentrant, vectors = FUSION_CASES[name]
    model = make_fusion(hf_lam=hf_lam, as_features=vectors).train().double()
    if use_reentrant is not None:
        checkpoint_activations(model, use_reentrant)
    return model


def fusion_shares(step: int, vectors: tuple[str, ...]) -> list[dict[str, torch.Tensor]]:
    """What the two processes see in a step: one text and images, which one sample lacks, the other only audio."""
    batch = BATCH // 2
    has_image = torch.arange(batch) != step
    shares = [
        {**make_fusion_inputs(("text", "image"), batch, 2 * step, vectors), "has_image": has_image},
        make_fusion_inputs(("audio",), batch, 2 * step + 1, vectors),
    ]
    for share in shares:
        share["labels"] = torch.arange(batch) % 3
    return [{key: x.double() if x.is_floating_point() else x for key, x in share.items()} for share in shares]


def make_head_loop_model(head: str) -> Any:
    return make_head(head, "lam_half").double()


def head_shares(head: str, step: int) -> list[dict[str, torch.Tensor]]:
    """What the two processes see in a step: the first has nothing of one side, or nothing that has labels."""
    batch = BATCH // 2
    shares = [head_inputs(batch, 2 * step + rank) for rank in range(2)]
    texts = ("input_ids", "attention_mask")
    shares[0] = {key: value for key, value in shares[0].items() if (key in texts) == (head != "embedding")}
    if head == "token":
        labels = token_labels(batch, seed=step)
        shares[0]["labels"], shares[1]["labels"] = labels[:, :0], labels
    elif head == "generation":
        for rank, share in enumerate(shares):
            share["labels"] = text_labels(batch, seed=2 * step + rank)
    shares[1]["has_text"] = torch.arange(batch) != step
    return [{key: x.double() if x.is_floating_point() else x for key, x in share.items()} for share in shares]


def train_head(model: Any, head: str, wrap: Callable[[Any], nn.Module] = lambda model: model) -> torch.Tensor:
    """As `train_fusion`, with a head of `HEAD_CASES`."""
    return train_shares(wrap(model), partial(head_shares, head))


def train_fusion(model: Any, wrap: Callable[[Any], nn.Module] = lambda model: model) -> torch.Tensor:
    """`train_loop` for processes whose batches have different modalities; one process alone sees both batches."""
    vectors = tuple(model.config.features or ())
    return train_shares(wrap(model), lambda step: fusion_shares(step, vectors))


def train_shares(network: nn.Module, shares_of: Callable[[int], list[dict[str, torch.Tensor]]]) -> torch.Tensor:
    """`train_loop` on what the processes see in each step."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for step in range(STEPS):
        shares = shares_of(step)
        if dist.is_initialized():
            shares = [shares[dist.get_rank()]]
        loss = torch.stack([network(**share).loss for share in shares]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    total = torch.stack(losses)
    if dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total


def shard(model: Any, mechanisms_apart: bool) -> nn.Module:
    """FSDP2: each layer is a group of its own, the rest the root's; with `mechanisms_apart` the masks are one more."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module, mesh=mesh)
    if mechanisms_apart:
        fully_shard(model.base_model.hf_lam, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def make_trainer(name: str, folder: Path, **arguments: Any) -> Trainer:
    stock_class, host, lam = TRAINER_CASES[name]
    model = make_lam(stock_class, host, lam)
    args = TrainingArguments(
        output_dir=str(folder / name),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_steps=1,
        max_steps=STEPS,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        seed=3,
        **arguments,
    )
    return Trainer(model=model, args=args, train_dataset=make_samples(model, host, 2 * BATCH))


def train_with_trainer(name: str, folder: Path, **arguments: Any) -> dict[str, torch.Tensor]:
    trainer = make_trainer(name, folder, **arguments)
    trainer.train()
    losses = torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    return {**weights_of(trainer.accelerator.unwrap_model(trainer.model)), "losses": losses}


def run_ddp(folder: Path) -> None:
    for name, case in LOOP_CASES.items():
        model = make_loop_model(name)
        losses = train_loop(model, case[1], DistributedDataParallel)
        write(folder / f"{name}.safetensors", {**weights_of(model), "losses": losses})
    for name in FUSION_CASES:
        model = make_fusion_loop_model(name)
        losses = train_fusion(model, DistributedDataParallel)
        for parameter in model.parameters():
            first = parameter.detach().clone()
            dist.broadcast(first, src=0)
            assert torch.equal(first, parameter), name
        write(folder / f"{name}.safetensors", {**weights_of(model), "losses": losses})


def run_fsdp(folder: Path) -> None:
    for name, case in LOOP_CASES.items():
        for mechanisms_apart in (False, True):
            model = make_loop_model(name)
            losses = train_loop(model, case[1], lambda model, apart=mechanisms_apart: shard(model, apart))
            save_gathered(model, losses, folder / f"{name}-{'apart' if mechanisms_apart else 'together'}")
    for name in FUSION_CASES:
        model = make_fusion_loop_model(name)
        losses = train_fusion(model, lambda model: shard(model, mechanisms_apart=False))
        save_gathered(model, losses, folder / name)
    for head in HEAD_CASES:
        model = make_head_loop_model(head)
        losses = train_head(model, head, lambda model: shard(model, mechanisms_apart=False))
        save_gathered(model, losses, folder / head)
    # Every process runs every encoder, also where nothing needs its gradient; else they would wait for each other.
    model = make_fusion_loop_model(next(iter(FUSION_CASES)))
    model.fusion.image_model.requires_grad_(False)
    train_fusion(model, lambda model: shard(model, mechanisms_apart=False))
    with torch.no_grad():
        model.eval()(**fusion_shares(0, ())[dist.get_rank()])


def save_gathered(model: Any, losses: torch.Tensor, target: Path) -> None:
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        model.save_pretrained(target, state_dict=weights)
        write(target / "losses.safetensors", {"losses": losses})


def run_trainer(folder: Path) -> None:
    for name in TRAINER_CASES:
        write(folder / f"{name}.safetensors", train_with_trainer(name, folder, per_device_train_batch_size=BATCH // 2))


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    if dist.get_rank() == 0:
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)


def main(mode: str, folder: str) -> None:
    torch.set_num_threads(1)
    assert os.environ["WORLD_SIZE"] == "2"
    run = {"ddp": run_ddp, "fsdp": run_fsdp, "trainer": run_trainer}[mode]
    run_in_group(lambda: run(Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
