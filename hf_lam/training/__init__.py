"""Additions to transformers' `Trainer`."""

from __future__ import annotations

from .annealing import SttAnnealingCallback, ViewAnnealingCallback, penalty_at
from .callbacks import ReportingCallback
from .caption_metrics import Bleu, ExactMatch, RougeL, caption_metrics
from .collators import FusionCollator
from .feature_caching import cache_features
from .feature_models import load_trained_fusion
from .mechanism_logging import MechanismLoggingCallback
from .metrics import (
    F1,
    Accuracy,
    MeanAveragePrecision,
    classification_metrics,
    regression_metrics,
    retrieval_metrics,
)
from .moment_metrics import HighlightDetection, MomentRetrieval, clip_scores, submission_metrics
from .trainer import HfLamTrainer, HfLamTrainingArguments

__all__ = [
    "F1",
    "Accuracy",
    "Bleu",
    "ExactMatch",
    "FusionCollator",
    "HfLamTrainer",
    "HfLamTrainingArguments",
    "HighlightDetection",
    "MeanAveragePrecision",
    "MechanismLoggingCallback",
    "MomentRetrieval",
    "ReportingCallback",
    "RougeL",
    "SttAnnealingCallback",
    "ViewAnnealingCallback",
    "cache_features",
    "caption_metrics",
    "classification_metrics",
    "clip_scores",
    "load_trained_fusion",
    "penalty_at",
    "regression_metrics",
    "retrieval_metrics",
    "submission_metrics",
]
