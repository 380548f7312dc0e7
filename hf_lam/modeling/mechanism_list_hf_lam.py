# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The mechanisms that there are: importing a file registers what is in it.

The copy of this file in a model's folder also imports the mechanisms from elsewhere that the model has.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from .lam_hf_lam import LamConfig
from .locomt_hf_lam import LocomtConfig
from .stt_hf_lam import SttConfig

__all__ = ["LamConfig", "LocomtConfig", "SttConfig"]
