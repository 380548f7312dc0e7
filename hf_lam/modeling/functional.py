"""The attention functions under their public address; the files behind it have names that are unique when copied."""

from .lam_attention_hf_lam import lam_attention
from .locomt_attention_hf_lam import locomt_attention
from .stt_attention_hf_lam import stt_attention

__all__ = ["lam_attention", "locomt_attention", "stt_attention"]
