"""What hf_lam adds to transformers' `Trainer`."""

from __future__ import annotations

from .callbacks import SttAnnealingCallback, ViewAnnealingCallback, penalty_at

__all__ = ["SttAnnealingCallback", "ViewAnnealingCallback", "penalty_at"]
