# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""A learned temperature for every head: softmax( exp(t) · Q Kᵀ / sqrt(D) ) V, with t = 0 at the start.

A head with t > 0 looks at fewer tokens, one with t < 0 at more.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hf_lam import Host, LayerInput, Mechanism, MechanismConfig, Picture, ScoreChange, register_mechanism


@dataclass(frozen=True)
class HeadTemperatureConfig(MechanismConfig):
    """A learned temperature for every head.

    Args:
        shared: one temperature for all heads of a layer.
    """

    shared: bool = False

    # What is added to the scores is divided by the temperature, too.
    order = 1
    title = "Learned temperature"

    def __post_init__(self) -> None:
        if not isinstance(self.shared, bool):
            raise ValueError(f"HeadTemperatureConfig: shared must be True or False, got {self.shared!r}.")


class HeadTemperatures(Mechanism):
    """The temperatures of one encoder."""

    factor_name = "inverse temperature"
    logged = ("inverse_temperature",)

    def __init__(self, config: HeadTemperatureConfig, host: Host) -> None:
        super().__init__(config, host)
        # One for each layer, as DDP wants it under gradient checkpointing.
        for layer in range(host.num_layers):
            self.register_parameter(f"t_{layer}", nn.Parameter(torch.empty(1 if config.shared else host.num_heads)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            init.zeros_(parameter)

    def factor_of(self, layer: int) -> Tensor:
        return self.get_parameter(f"t_{layer}").exp()

    def change_scores(self, given: LayerInput) -> ScoreChange:
        return ScoreChange(factor=self.factor_of(given.layer).view(1, -1, 1, 1))

    def count_flops(self, layer: int, batch: int, length: int) -> int:
        return 0  # exponentials, which are no multiply-adds

    def list_facts(self, layer: int) -> dict[str, Any]:
        factor = self.factor_of(layer).detach()
        # With FSDP every process has a part.
        factor = factor.full_tensor() if hasattr(factor, "full_tensor") else factor
        return {"inverse_temperature": factor.tolist()}

    def draw(self) -> Picture:
        facts = [self.list_facts(layer) for layer, _ in enumerate(self.parameters())]
        values = torch.tensor([fact["inverse_temperature"] for fact in facts])
        return Picture("By what every head multiplies its scores.", values, "layer", "head", "exp(t)", neutral=1.0)


register_mechanism("head_temperature", HeadTemperatureConfig, HeadTemperatures)
