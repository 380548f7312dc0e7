"""hf_lam: attention mechanisms from research, in the transformers models people already use.

Importing it imports neither torch nor transformers: a name is imported when it is used, and transformers' Auto classes
know those of hf_lam from when they are imported themselves.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from .modeling.version_hf_lam import __version__
from .registering import register

# The names below again, for whoever reads the types.
if TYPE_CHECKING:
    from .comparing import compare
    from .conversion import convert
    from .exporting import export
    from .flops import cost
    from .hub import push, verify
    from .injecting import inject, remove
    from .inspecting import inspect
    from .locomt.calibration import calibrate_views
    from .locomt.fronts import calibrate_front
    from .locomt.views import set_views
    from .mechanism_files import load_mechanism, save_mechanism
    from .mechanism_options import import_mechanism
    from .modeling.configuration_hf_lam import (
        HfLamBertConfig,
        HfLamVideoMAEConfig,
        HfLamVisionEncoderDecoderConfig,
        HfLamViTConfig,
    )
    from .modeling.configuration_hf_lam_fusion import HfLamFusionConfig
    from .modeling.functional import lam_attention, locomt_attention, stt_attention
    from .modeling.hosts_hf_lam import Host
    from .modeling.lam_hf_lam import LearnableAttentionMask
    from .modeling.mechanism_hf_lam import (
        Attention,
        LayerInput,
        Mechanism,
        MechanismConfig,
        MechanismPart,
        PassStart,
        Picture,
        ScoreChange,
    )
    from .modeling.mechanism_list_hf_lam import LamConfig, LocomtConfig, SttConfig
    from .modeling.mechanism_registry_hf_lam import register_mechanism
    from .modeling.modeling_hf_lam import (
        HfLamBertForMaskedLM,
        HfLamBertForMultipleChoice,
        HfLamBertForQuestionAnswering,
        HfLamBertForSequenceClassification,
        HfLamBertForTokenClassification,
        HfLamBertModel,
        HfLamVideoMAEForVideoClassification,
        HfLamVideoMAEModel,
        HfLamVisionEncoderDecoderModel,
        HfLamViTForImageClassification,
        HfLamViTForMaskedImageModeling,
        HfLamViTModel,
    )
    from .modeling.modeling_hf_lam_fusion import (
        HfLamFusionForConditionalGeneration,
        HfLamFusionForEmbedding,
        HfLamFusionForMomentRetrieval,
        HfLamFusionForSequenceClassification,
        HfLamFusionForTokenClassification,
        HfLamFusionModel,
    )
    from .modeling.processing_hf_lam import HfLamFusionProcessor
    from .parameters import freeze_host, mechanism_parameters, print_trainable_parameters
    from .stt.attention2d import SttAttention2d
    from .stt.fitting import fit_synthesizers
    from .stt.hardening import harden

__all__ = [
    "Attention",
    "HfLamBertConfig",
    "HfLamBertForMaskedLM",
    "HfLamBertForMultipleChoice",
    "HfLamBertForQuestionAnswering",
    "HfLamBertForSequenceClassification",
    "HfLamBertForTokenClassification",
    "HfLamBertModel",
    "HfLamFusionConfig",
    "HfLamFusionForConditionalGeneration",
    "HfLamFusionForEmbedding",
    "HfLamFusionForMomentRetrieval",
    "HfLamFusionForSequenceClassification",
    "HfLamFusionForTokenClassification",
    "HfLamFusionModel",
    "HfLamFusionProcessor",
    "HfLamViTConfig",
    "HfLamViTForImageClassification",
    "HfLamViTForMaskedImageModeling",
    "HfLamViTModel",
    "HfLamVideoMAEConfig",
    "HfLamVideoMAEForVideoClassification",
    "HfLamVideoMAEModel",
    "HfLamVisionEncoderDecoderConfig",
    "HfLamVisionEncoderDecoderModel",
    "Host",
    "LamConfig",
    "LayerInput",
    "LearnableAttentionMask",
    "LocomtConfig",
    "Mechanism",
    "MechanismConfig",
    "MechanismPart",
    "PassStart",
    "Picture",
    "ScoreChange",
    "SttAttention2d",
    "SttConfig",
    "__version__",
    "calibrate_front",
    "calibrate_views",
    "compare",
    "convert",
    "cost",
    "export",
    "fit_synthesizers",
    "freeze_host",
    "harden",
    "import_mechanism",
    "inject",
    "inspect",
    "lam_attention",
    "load_mechanism",
    "locomt_attention",
    "mechanism_parameters",
    "print_trainable_parameters",
    "push",
    "register_mechanism",
    "remove",
    "save_mechanism",
    "set_views",
    "stt_attention",
    "verify",
]

# Where the names are, but those of models and configurations (`_module_of`).
_NAMES = {
    "comparing": ("compare",),
    "conversion": ("convert",),
    "exporting": ("export",),
    "flops": ("cost",),
    "hub": ("push", "verify"),
    "injecting": ("inject", "remove"),
    "locomt.calibration": ("calibrate_views",),
    "locomt.fronts": ("calibrate_front",),
    "locomt.views": ("set_views",),
    "inspecting": ("inspect",),
    "mechanism_files": ("load_mechanism", "save_mechanism"),
    "mechanism_options": ("import_mechanism",),
    "modeling.functional": ("lam_attention", "locomt_attention", "stt_attention"),
    "modeling.hosts_hf_lam": ("Host",),
    "modeling.lam_hf_lam": ("LearnableAttentionMask",),
    "modeling.mechanism_hf_lam": (
        "Attention",
        "LayerInput",
        "Mechanism",
        "MechanismConfig",
        "MechanismPart",
        "PassStart",
        "Picture",
        "ScoreChange",
    ),
    "modeling.mechanism_list_hf_lam": ("LamConfig", "LocomtConfig", "SttConfig"),
    "modeling.mechanism_registry_hf_lam": ("register_mechanism",),
    "modeling.processing_hf_lam": ("HfLamFusionProcessor",),
    "parameters": ("freeze_host", "mechanism_parameters", "print_trainable_parameters"),
    "stt.attention2d": ("SttAttention2d",),
    "stt.fitting": ("fit_synthesizers",),
    "stt.hardening": ("harden",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, or a module of this package."""
    module = _module_of(name)
    if module is not None:
        # hf_lam's own mechanisms register before those of a file that imports the door.
        importlib.import_module(".modeling.mechanism_list_hf_lam", __name__)
        found = getattr(importlib.import_module(f".{module}", __name__), name, None)
        if found is not None:
            globals()[name] = found
            return found
    elif not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(_no_such_name(name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _module_of(name: str) -> str | None:
    """The module, below this one, that a public name is in; None if it is no such name."""
    if name in _MODULES or not name.startswith("HfLam"):
        return _MODULES.get(name)
    kind = "configuration" if name.endswith("Config") else "modeling"
    return f"modeling.{kind}_hf_lam{'_fusion' if name.startswith('HfLamFusion') else ''}"


def _no_such_name(name: str) -> str:
    from difflib import get_close_matches

    module = _module_of(name) if name.startswith("HfLam") else None
    known = __all__ if module is None else dir(importlib.import_module(f".{module}", __name__))
    # The classes of two families are alike in all but a few letters; capitals are what people get wrong (ModernBERT).
    names = {other.lower(): other for other in known}
    close = [names[other] for other in get_close_matches(name.lower(), names, 1, 0.7 if module is None else 0.95)]
    return f"module {__name__!r} has no attribute {name!r}" + (f". Did you mean {close[0]!r}?" if close else "")


register()
