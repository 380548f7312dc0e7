"""What hf_lam adds to transformers' `Trainer`."""

from __future__ import annotations

from .callbacks import ViewAnnealingCallback, penalty_at

__all__ = ["ViewAnnealingCallback", "penalty_at"]
