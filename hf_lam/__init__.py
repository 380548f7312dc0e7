"""hf_lam: attention mechanisms from research, in the transformers models people already use."""

from __future__ import annotations

from transformers import AutoConfig, AutoProcessor
from transformers.models.auto import modeling_auto

from .conversion import convert
from .flops import cost
from .hub import push, verify
from .locomt.calibration import calibrate_views
from .locomt.views import set_views
from .mechanism_files import load_mechanism, save_mechanism
from .mechanism_options import import_mechanism
from .modeling.configuration_hf_lam import HfLamBertConfig, HfLamVideoMAEConfig, HfLamViTConfig
from .modeling.configuration_hf_lam_fusion import HfLamFusionConfig
from .modeling.functional import lam_attention, locomt_attention, stt_attention
from .modeling.hosts_hf_lam import Host
from .modeling.injection_hf_lam import inject, remove
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
    HfLamViTForImageClassification,
    HfLamViTForMaskedImageModeling,
    HfLamViTModel,
)
from .modeling.modeling_hf_lam_fusion import HfLamFusionForSequenceClassification, HfLamFusionModel
from .modeling.processing_hf_lam import HfLamFusionProcessor
from .modeling.version_hf_lam import __version__
from .parameters import freeze_host, mechanism_parameters
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
    "HfLamFusionForSequenceClassification",
    "HfLamFusionModel",
    "HfLamFusionProcessor",
    "HfLamViTConfig",
    "HfLamViTForImageClassification",
    "HfLamViTForMaskedImageModeling",
    "HfLamViTModel",
    "HfLamVideoMAEConfig",
    "HfLamVideoMAEForVideoClassification",
    "HfLamVideoMAEModel",
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
    "calibrate_views",
    "convert",
    "cost",
    "fit_synthesizers",
    "freeze_host",
    "harden",
    "import_mechanism",
    "inject",
    "lam_attention",
    "load_mechanism",
    "locomt_attention",
    "mechanism_parameters",
    "push",
    "register_mechanism",
    "remove",
    "save_mechanism",
    "set_views",
    "stt_attention",
    "verify",
]

for _config_class in (HfLamBertConfig, HfLamViTConfig, HfLamVideoMAEConfig, HfLamFusionConfig):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
    for _auto_name, _model_name in _config_class.auto_classes.items():
        getattr(modeling_auto, _auto_name).register(_config_class, globals()[_model_name], exist_ok=True)
AutoProcessor.register(HfLamFusionConfig, HfLamFusionProcessor, exist_ok=True)
