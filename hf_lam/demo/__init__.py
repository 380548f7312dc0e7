"""`hf-lam demo`: the whole path on real data, small enough for two CPU cores."""

from .digits import Images, accuracy_on, load_data
from .folder import check_output
from .results import DemoResult, DemoRow, DemoSettings
from .saving import logits_in_fresh_process
from .tour import run_demo

__all__ = [
    "DemoResult",
    "DemoRow",
    "DemoSettings",
    "Images",
    "accuracy_on",
    "check_output",
    "load_data",
    "logits_in_fresh_process",
    "run_demo",
]
