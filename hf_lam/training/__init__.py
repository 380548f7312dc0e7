"""What hf_lam adds to transformers' `Trainer`."""

from __future__ import annotations

from .callbacks import ReportingCallback, SttAnnealingCallback, ViewAnnealingCallback, penalty_at
from .collators import FusionCollator
from .mechanism_logging import MechanismLoggingCallback
from .metrics import F1, Accuracy, MeanAveragePrecision, classification_metrics
from .trainer import HfLamTrainer, HfLamTrainingArguments

__all__ = [
    "F1",
    "Accuracy",
    "FusionCollator",
    "HfLamTrainer",
    "HfLamTrainingArguments",
    "MeanAveragePrecision",
    "MechanismLoggingCallback",
    "ReportingCallback",
    "SttAnnealingCallback",
    "ViewAnnealingCallback",
    "classification_metrics",
    "penalty_at",
]
