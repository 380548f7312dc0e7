"""Attach mechanisms to a model of somebody else's class, in place, and take them off any model."""

from __future__ import annotations

from typing import Any, TypeVar

from transformers import PreTrainedModel
from transformers.utils import logging

from .modeling.changes_hf_lam import Changes
from .modeling.cross_lam_hf_lam import decoders_with_masks, remove_cross_lam
from .modeling.injection_hf_lam import Plan, injected_encoders, list_changes, plan_injection, remove_mechanisms
from .modeling.mechanism_registry_hf_lam import mechanism_block
from .modeling.modeling_hf_lam import rename_legacy_keys, travelling_class_of

logger = logging.get_logger(__name__)

ModelT = TypeVar("ModelT", bound=PreTrainedModel)


def inject(model: ModelT, *configs: Any) -> ModelT:
    """Attach mechanisms to a transformers encoder, in place.

    Args:
        model: an encoder, or a task model on top of one, whose attention goes through transformers' attention
            interface (BERT, ModernBERT, ViT, DINOv3, VideoMAE, Whisper's encoder and many more).
        *configs: mechanisms to attach, one of each kind: `LamConfig()`, `LocomtConfig()`, `SttConfig()`, or registered
            ones of your own.

    Returns:
        The same model. With the defaults its outputs are unchanged; what changes them at once is logged. A pure STT
        drops the query and key projections for good. Its class stays the stock one; `save_pretrained` (and with it
        `push_to_hub` and `Trainer`) writes the `HfLam…` class of the same kind, with the mechanisms and their code. It
        refuses where there is none, as for classes of your own, which is logged: keep the mechanisms with
        `save_mechanism` then.

    Raises:
        TypeError: if `model` is not a transformers model.
        ValueError: if the host cannot take the mechanism, with the reason, or already has one. The model is unchanged.

    Examples:
        >>> from hf_lam import LamConfig, inject
        >>> from transformers import AutoModel
        >>> model = inject(AutoModel.from_pretrained("bert-base-uncased"), LamConfig(rank=8))
        >>> type(model).__name__
        'BertModel'
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"inject needs a transformers model (a PreTrainedModel), got {type(model).__name__}.")
    attach(plan_injection(model, mechanism_block(configs)))
    for change in list_changes(model):
        logger.warning(change)
    # Said now, and not at the first checkpoint of a training.
    if not hasattr(type(model), "host_class") and travelling_class_of(type(model)) is None:
        logger.warning(
            f"There is no HfLam class for {type(model).__name__}, so its save_pretrained will refuse to write it with "
            "these mechanisms. Keep them with hf_lam.save_mechanism(model, folder)."
        )
    return model


def remove(model: ModelT) -> ModelT:
    """Take all mechanisms off a model again, in place; its outputs are those of the host alone.

    So are masks on the cross-attention of a decoder (`decoder_lam`).

    Raises:
        ValueError: if the model has none, or a pure STT, for which it gave up its query and key projections. The model
            is unchanged.

    Examples:
        >>> from hf_lam import LamConfig, inject, remove
        >>> from transformers import AutoModel
        >>> model = inject(AutoModel.from_pretrained("bert-base-uncased"), LamConfig(rank=8))
        >>> any("hf_lam" in name for name, _ in remove(model).named_parameters())
        False
    """
    decoders = decoders_with_masks(model)
    if injected_encoders(model) or not decoders:
        remove_mechanisms(model)
    for base in decoders:
        remove_cross_lam(base)
    for part in model.modules() if decoders else ():
        config: Any = getattr(part, "config", None)
        if getattr(config, "decoder_lam", None) is not None:
            config.decoder_lam = None
    return model


def attach(plan: Plan) -> None:
    """Apply a plan to a model whose class knows nothing of mechanisms.

    `load_state_dict` reads what `save_pretrained` writes from then on: `Trainer` restores checkpoints so.
    """
    plan.apply()
    changes = Changes(plan.injection.undo)
    for module in dict.fromkeys((plan.model, plan.base)):
        changes.hook_load(module, rename_legacy_keys)
