"""Mechanisms from elsewhere in two processes, with gloo on the CPU: DDP and FSDP2 give what one process gives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel
from transformers import BertForSequenceClassification, ViTForImageClassification

from helpers.checkpointing import checkpoint_activations
from helpers.distributed_worker import shard, train_loop, write
from helpers.door import DISTANCE, TEMPERATURE, open_door
from helpers.hosts import make_model, perturb_mechanisms
from helpers.lam_models import assert_same_weights, changed_names, weights_of
from helpers.processes import run_in_group, run_process
from hf_lam import LamConfig, convert
from hf_lam.modeling.injection_hf_lam import mechanism_of

# The host, and the `use_reentrant` of gradient checkpointing, `None` for none.
CASES: dict[str, tuple[Any, str, bool | None]] = {
    "bert": (BertForSequenceClassification, "bert", None),
    "bert-reentrant": (BertForSequenceClassification, "bert", True),
    "vit-checkpointed": (ViTForImageClassification, "vit", False),
}
WRAPPERS = {
    "ddp": DistributedDataParallel,
    "together": lambda model: shard(model, mechanisms_apart=False),
    "apart": lambda model: shard(model, mechanisms_apart=True),
}


def make(name: str) -> Any:
    stock_class, host, use_reentrant = CASES[name]
    with open_door() as load:
        configs = load(TEMPERATURE).HeadTemperatureConfig(), load(DISTANCE).DistanceBiasConfig()
        model = convert(make_model(stock_class, host, initializer_range=0.2), *configs, LamConfig(rank=2))
    perturb_mechanisms(model)
    model = model.train().double()
    if use_reentrant is not None:
        checkpoint_activations(model, use_reentrant)
    return model


def gathered(model: Any) -> dict[str, torch.Tensor]:
    return {
        name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        for name, tensor in model.state_dict().items()
    }


def work(folder: Path) -> None:
    for name, (_, host, _) in CASES.items():
        for way, wrap in WRAPPERS.items():
            model = make(name)
            losses = train_loop(model, host, wrap)
            facts = [mechanism_of(model.base_model, "head_temperature").list_facts(layer) for layer in range(3)]
            values = torch.tensor([fact["inverse_temperature"] for fact in facts])
            write(folder / f"{name}-{way}.safetensors", {**gathered(model), "losses": losses, "facts": values})


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run_process([*launcher, __file__, str(folder)])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", WRAPPERS)
@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(name: str, way: str, two_processes: Path) -> None:
    model = make(name)
    before = weights_of(model)
    losses = train_loop(model, CASES[name][1])
    # The class token of an image has no distance to any, and is all that counts of the last layer.
    trained = {key for key, _ in model.named_parameters() if ".hf_lam." in key} - {"vit.hf_lam.distance_bias.slopes_2"}
    assert trained <= changed_names(before, weights_of(model))
    found = load_file(two_processes / f"{name}-{way}.safetensors")
    exponents = torch.stack(list(mechanism_of(model.base_model, "head_temperature").parameters()))
    torch.testing.assert_close(found.pop("facts"), exponents.detach().exp().float())
    assert_same_weights(found, {**weights_of(model), "losses": losses}, tolerance=1e-10)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_in_group(lambda: work(Path(sys.argv[1])))
