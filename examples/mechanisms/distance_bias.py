# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""A learned bias by distance: softmax( Q Kᵀ / sqrt(D) − Σ_a slope_a · |distance along axis a| ) V.

Text has one axis, an image two, a video three. ALiBi (Press et al., arXiv 2108.12409) has one, and fixed slopes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hf_lam import Host, LayerInput, Mechanism, MechanismConfig, Picture, ScoreChange, register_mechanism


@dataclass(frozen=True)
class DistanceBiasConfig(MechanismConfig):
    """A learned bias by distance on the grid of the tokens.

    Args:
        grid: sizes of its axes, which the host decides; `[]` for a text, which has one axis of any length.
    """

    grid: list[int] | None = None

    title = "Learned distance bias"
    needs_grid = True
    needs_places = True

    def resolve(self, host: Host) -> "DistanceBiasConfig":
        grid = list(host.tokens.grid)
        if self.grid not in (None, grid):
            raise ValueError(f"DistanceBiasConfig: {host.name} has the grid {grid}, got {self.grid!r}. Leave it out.")
        return replace(self, grid=grid)

    @property
    def no_place_for_appended(self) -> str | None:
        return None if self.grid else "which have no place in a text"


class DistanceBias(Mechanism):
    addend_name = "distance bias"

    def __init__(self, config: DistanceBiasConfig, host: Host) -> None:
        super().__init__(config, host)
        self.prefix, axes = host.tokens.prefix, len(host.tokens.grid) or 1
        for layer in range(host.num_layers):
            self.register_parameter(f"slopes_{layer}", nn.Parameter(torch.empty(host.num_heads, axes)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            init.zeros_(parameter)

    def change_scores(self, given: LayerInput) -> ScoreChange:
        slopes = self.get_parameter(f"slopes_{given.layer}")
        distances = self.measure_distances(given.hidden_states.shape[1], slopes.device).to(slopes.dtype)
        return ScoreChange(addend=-(distances @ slopes.mT).permute(2, 0, 1)[None])

    def measure_distances(self, length: int, device: torch.device) -> Tensor:
        """`(L, L, axes)`, from token to token; 0 for those before the grid, such as `[CLS]`, and after it."""
        axes = [torch.arange(size, device=device) for size in self.config.grid or [length]]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
        margin = (self.prefix, length - self.prefix - places.shape[0])
        return nn.functional.pad((places[:, None] - places).abs(), (0, 0, *margin, *margin))

    def count_flops(self, layer: int, batch: int, length: int) -> int:
        return 2 * self.get_parameter(f"slopes_{layer}").numel() * length**2  # once for all samples

    def draw(self) -> Picture:
        values = torch.stack([slopes.detach().flatten().float().cpu() for slopes in self.parameters()])
        return Picture("Slopes of the distance bias.", values, "layer", "head and axis", "slope")


register_mechanism("distance_bias", DistanceBiasConfig, DistanceBias)
