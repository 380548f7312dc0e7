"""The cost of a model: FLOPs of its attention by formula and as counted, layer by layer and head by head."""

from .costing import cost
from .inputs import example_inputs
from .report import FLOPS_PER_PAIR, CostReport, LayerCost

__all__ = ["FLOPS_PER_PAIR", "CostReport", "LayerCost", "cost", "example_inputs"]
