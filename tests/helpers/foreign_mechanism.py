"""A mechanism from elsewhere, as somebody would write one: a learned factor on the scores of every head."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from hf_lam import LayerInput, Mechanism, MechanismConfig, ScoreChange, register_mechanism


@dataclass(frozen=True)
class HeadFactorConfig(MechanismConfig):
    """A learned factor on the scores of every head, of at most `most`."""

    most: float = 2.0

    title = "Learned head factors"


class HeadFactors(Mechanism):
    def __init__(self, config: HeadFactorConfig, host: Any) -> None:
        super().__init__(config, host)
        self.factors = nn.Parameter(torch.empty(host.num_layers, host.num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.ones_(self.factors)

    def change_scores(self, given: LayerInput) -> ScoreChange:
        return ScoreChange(factor=self.factors[given.layer].clamp(max=self.config.most).view(1, -1, 1, 1))

    def list_facts(self, layer: int) -> dict[str, Any]:
        return {"sharpness": ["sharp" if factor > 1 else "flat" for factor in self.factors[layer].tolist()]}


register_mechanism("head_factor", HeadFactorConfig, HeadFactors)
