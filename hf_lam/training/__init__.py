"""What hf_lam adds to transformers' `Trainer`."""

from __future__ import annotations

from .callbacks import SttAnnealingCallback, ViewAnnealingCallback, penalty_at
from .collators import FusionCollator

__all__ = ["FusionCollator", "SttAnnealingCallback", "ViewAnnealingCallback", "penalty_at"]
