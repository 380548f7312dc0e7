# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""`HfLam…` models: transformers' own BERT, ViT and VideoMAE classes with mechanisms attached.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from .configuration_hf_lam import HfLamBertConfig, HfLamVideoMAEConfig, HfLamViTConfig
from .hosts_facts_hf_lam import CONVERSIONS, OPTIONAL_PARTS
from .injection_hf_lam import injected_encoders, injection_of, plan_injection
from .layers_hf_lam import explain_heads, explain_layers, explain_number_of_layers
from .mechanism_hf_lam import MARK
from .mechanism_registry_hf_lam import block_of
from .saving_hf_lam import saving
from .travelling_hf_lam import copy_code

# What of `from_pretrained` says where a folder is.
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download", "proxies")
# What of `save_pretrained` is for a push.
_PUSH_OPTIONS = ("private", "revision", "create_pr", "commit_message", "commit_description")


class HfLamMixin(PreTrainedModel):
    """What every `HfLam…` class adds to its transformers class: mechanisms from the configuration, strict loading."""

    config_class: Any

    # The loss of these heads is a plain mean over the batch. Saying so makes `Trainer` divide it by the accumulation
    # steps; the stock classes take `num_items_in_batch` and ignore it, which multiplies their gradients.
    accepts_loss_kwargs = False

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        # Not `isinstance`: the configuration may come from another copy of this code in the same process.
        if getattr(config, "model_type", None) != self.config_class.model_type:
            raise TypeError(
                f"{type(self).__name__} needs a {self.config_class.__name__}, got {type(config).__name__} with "
                f"model_type={getattr(config, 'model_type', None)!r}. To convert a stock model use "
                "hf_lam.convert(model, ...)."
            )
        _register_conversions()
        super().__init__(config, *args, **kwargs)
        if config.hf_lam is not None:
            plan_injection(self, config.hf_lam).apply()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show what the host's class takes, which `__init__` above hands on."""
        super().__init_subclass__(**kwargs)
        host = next(kind for kind in cls.__mro__ if not issubclass(kind, HfLamMixin))
        if cls.__init__ is HfLamMixin.__init__ and "forward" in host.__dict__:  # not a mixin, nor somebody's own class

            @functools.wraps(host.__init__)
            def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
                HfLamMixin.__init__(self, *args, **kwargs)

            cls.__init__ = __init__  # type: ignore[method-assign]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, for `HfLam…` checkpoints and for stock ones, which start with fresh mechanisms.

        Raises:
            RuntimeError: if the checkpoint leaves weights of the encoder (but for a pooler or a mask token, which
                stock checkpoints may lack) or some weights of its mechanisms without a value, or if its mechanisms
                are not those of the configuration. transformers would only warn and go on with random weights. With
                `output_loading_info` the caller gets the lists instead.
        """
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        marks = {name for name in info["unexpected_keys"] if is_mark(name)}
        if marks and _is_replaced(cls, pretrained_model_name_or_path, kwargs):
            info["unexpected_keys"] -= marks
        if output_loading_info:
            return model, info
        _check_mechanisms_fit(model, info, pretrained_model_name_or_path or "state_dict")
        if pretrained_model_name_or_path is not None:
            _check_nothing_is_missing(model, info["missing_keys"], pretrained_model_name_or_path)
        return model

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:
        injected_encoders(self)  # what was saved has followed the layers that there are
        rename_legacy_keys(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As in transformers, with the code of the whole model family beside the weights.

        With `push_to_hub=True`, what was saved is pushed as by `hf_lam.push`, if hf_lam was imported.

        Raises:
            ValueError: if the model has mechanisms that would not load again as they are: in an encoder inside of it,
                or in layers that were changed in a way that its configuration or the mechanisms cannot follow. Nothing
                is written then.
        """
        own: list[Any] = [base for base in injected_encoders(self) if base is self.base_model]
        if len(own) < len(injected_encoders(self)):
            raise ValueError(
                f"{type(self).__name__} has mechanisms in an encoder inside of it, for which its configuration has no "
                "place. Call hf_lam.remove on that encoder, or keep its mechanisms with hf_lam.save_mechanism."
            )
        problems = [explain_layers(base) or explain_heads(base) for base in own]
        for problem in problems or [explain_number_of_layers(self.base_model)]:
            if problem is not None:
                raise ValueError(problem)
        folder = Path(save_directory)
        configs = injection_of(own[0]).configs if own else {}
        # What is saved is what the model has, whatever has been written into its configuration since it was made.
        self.config.hf_lam = block_of(configs)
        push = _push_of_package() if push_to_hub else None
        options: dict[str, Any] = {}
        if push is not None:
            if args or kwargs.get("variant") is not None:
                raise ValueError(
                    "with push_to_hub=True, give options by their names, and no variant: AutoModel needs its name."
                )
            options = {name: kwargs.pop(name) for name in _PUSH_OPTIONS if name in kwargs}
            repo_id = kwargs.pop("repo_id", folder.resolve().name)
        pushes = push_to_hub and push is None
        # Where transformers pushes what it has saved, and where every process writes to one folder, it is that folder.
        is_whole = is_main_process and not pushes and not kwargs.get("distributed_checkpoint")
        with saving(folder) if is_whole else nullcontext(folder) as place:
            if is_main_process:
                # Before the configuration is saved, which lists what the folder holds. One that was loaded from a
                # repository may lie there without its siblings; this file never does.
                copy_code(Path(__file__).parent, place, configs)
            super().save_pretrained(place, is_main_process, state_dict, pushes, *args, **kwargs)
        if push is not None and is_main_process:
            options |= {name: kwargs[name] for name in ("token", "max_shard_size") if name in kwargs}
            # Other weights than the model's own are in the folder alone.
            push(self if state_dict is None else folder, repo_id, tags=self.model_tags or (), **options)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:  # type: ignore[override]
        """As in transformers; where hf_lam was imported, by `hf_lam.push`, whose arguments it then takes as well.

        Returns:
            The commit, a `huggingface_hub.CommitInfo`; None for a dry run.
        """
        push = _push_of_package()
        if push is None:
            return super().push_to_hub(repo_id, **kwargs)  # type: ignore[arg-type]
        given = kwargs.pop("tags", None) or ()
        tags = [*(self.model_tags or ()), *([given] if isinstance(given, str) else given)]
        return push(self, repo_id, tags=tags, **kwargs).commit

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        # A stock checkpoint has an encoder and no mechanisms: that is expected, not a finding. One that has only some
        # of their weights is damaged, and one without the encoder is something else.
        super()._adjust_missing_and_unexpected_keys(loading_info)
        # Folders that were saved before there were marks have none.
        loading_info.missing_keys -= {name for name in loading_info.missing_keys if is_mark(name)}
        own = {name for name in self.state_dict() if _is_of_mechanism(name) and not is_mark(name)}
        encoder = {name for name, _ in self.named_parameters() if name.startswith(_encoder_prefix(self))} - own
        if own <= loading_info.missing_keys and not encoder <= loading_info.missing_keys:
            loading_info.missing_keys -= own
        # Attention without scores has no use for its host's queries and keys.
        dropped = tuple(f"{name}." for name in _dropped_projections(self))
        if dropped:
            loading_info.unexpected_keys -= {name for name in loading_info.unexpected_keys if name.startswith(dropped)}


class TokenLossMixin(HfLamMixin):
    """For heads whose loss is a mean over labelled tokens, which differ in number from batch to batch.

    `Trainer` passes the count over all accumulated and parallel batches as `num_items_in_batch`; the mean is rescaled
    to it, so that a step does not depend on how its batch was split.
    """

    accepts_loss_kwargs = True


@functools.cache
def _register_conversions() -> None:
    """Let transformers rename the weights of our classes like those of their hosts.

    Checkpoints keep names of older transformers releases and are renamed while loading, but for classes outside of
    transformers only if they are registered.
    Done with the first model, since making transformers' table takes longer than importing hf_lam; with `overwrite`,
    because several copies of this file may be loaded in one process.
    """
    for ours, stock in CONVERSIONS.items():
        mapping = get_checkpoint_conversion_mapping(stock)
        if mapping is not None:
            register_checkpoint_conversion_mapping(ours, mapping, overwrite=True)


def _token_loss(forward: Any) -> Any:
    names = list(inspect.signature(forward).parameters)[1:]

    @functools.wraps(forward)
    def forward_with_token_loss(self: Any, *args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        outputs = forward(self, *args, **kwargs)
        labels = (dict(zip(names, args, strict=False)) | kwargs).get("labels")
        if num_items_in_batch is None or labels is None:
            return outputs
        labelled = (labels != -100).sum()
        # The mean over no labelled token is NaN, but the part of such a batch in the whole is 0.
        loss = torch.where(labelled > 0, outputs[0], 0.0) * (labelled / num_items_in_batch)
        if isinstance(outputs, tuple):
            return (loss, *outputs[1:])
        outputs.loss = loss
        return outputs

    return forward_with_token_loss


def _is_of_mechanism(name: str) -> bool:
    return name.startswith("hf_lam.") or ".hf_lam." in name


def is_mark(name: str) -> bool:
    """Whether a tensor only says that a mechanism without weights of its own was there, which older files do not."""
    return _is_of_mechanism(name) and name.rpartition(".")[2] == MARK


def _dropped_projections(model: nn.Module) -> list[str]:
    """The names of the projections that the identity has replaced, for attention without scores."""
    names = {module: name for name, module in model.named_modules()}
    return [
        f"{names[attention]}.{child}"
        for base in injected_encoders(model)
        if injection_of(base).replacement is not None
        for attention in injection_of(base).attentions
        for child, module in attention.named_children()
        if isinstance(module, nn.Identity)
    ]


def _push_of_package() -> Any:
    """`hf_lam.push`, which writes the card, where the package was imported; this file must not need it."""
    return getattr(sys.modules.get("hf_lam"), "push", None)


def _is_replaced(model_class: Any, source: Any, options: dict[str, Any]) -> bool:
    """Whether mechanisms are asked for in place of those in a folder's own configuration."""
    if source is None or not {"hf_lam", "baseline"} & options.keys():
        return False
    of_hub = {key: options[key] for key in HUB_OPTIONS if key in options}
    saved, _ = model_class.config_class.get_config_dict(source, **of_hub)
    return bool(saved.get("hf_lam"))


def _encoder_prefix(model: PreTrainedModel) -> str:
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def _check_nothing_is_missing(model: Any, missing: Any, source: str | os.PathLike[str]) -> None:
    encoder = [
        name
        for name in missing
        if name.startswith(_encoder_prefix(model)) and not any(part in name for part in OPTIONAL_PARTS)
    ]
    if encoder:
        shown = ", ".join(sorted(encoder)[:5]) + (", …" if len(encoder) > 5 else "")
        raise RuntimeError(
            f"{str(source)!r} leaves {len(encoder)} weights of {type(model).__name__} without a value: {shown}. It is "
            "not a checkpoint of this model, or it is damaged."
        )


def _check_mechanisms_fit(model: Any, info: Any, source: str | os.PathLike[str]) -> None:
    mismatched = {name for name, *_ in info["mismatched_keys"]}
    misfits = sorted(name for name in mismatched | set(info["unexpected_keys"]) if _is_of_mechanism(name))
    if misfits:
        names = sorted({f".{name}".partition(".hf_lam.")[2].partition(".")[0] for name in misfits})
        shown = repr(model.config.hf_lam)
        shown = shown if len(shown) <= 300 else f"{shown[:300]}…"
        raise RuntimeError(
            f"{str(source)!r} was saved with mechanisms ({', '.join(names)}) of which the configuration says nothing, "
            f"or something else: it has hf_lam={shown}, and the weights have {misfits[0]}. Load it with the "
            'configuration it was saved with (the key "hf_lam" of its config.json, or from_pretrained(..., '
            "hf_lam=...)); to change its mechanisms, call hf_lam.remove(model) and hf_lam.inject(model, ...) "
            "afterwards, and to leave out layers, take them out of the loaded model."
        )


def rename_legacy_keys(module: Any, state_dict: dict[str, torch.Tensor], prefix: str, *unused: Any) -> None:
    """Let `load_state_dict` read the files that `save_pretrained` writes, whose names may be those of older releases.

    `Trainer` restores checkpoints and the best model with `load_state_dict(strict=False)` on the file as written, and
    would silently restore none of the renamed weights.
    """
    expected = {prefix + name for name in nn.Module.state_dict(module, keep_vars=True)}
    foreign = [key for key in state_dict if key.startswith(prefix) and key not in expected]
    if not foreign:
        return
    transforms = get_model_conversion_mapping(module)
    for key in foreign:
        renamed = key.removeprefix(prefix)
        for transform in transforms:
            renamed, _ = transform.rename_source_key(renamed)
        if prefix + renamed in expected:
            state_dict[prefix + renamed] = state_dict.pop(key)


class HfLamBertModel(HfLamMixin, BertModel):
    config_class = HfLamBertConfig


class HfLamBertForSequenceClassification(HfLamMixin, BertForSequenceClassification):
    config_class = HfLamBertConfig


class HfLamBertForTokenClassification(TokenLossMixin, BertForTokenClassification):
    config_class = HfLamBertConfig
    forward = _token_loss(BertForTokenClassification.forward)


class HfLamBertForQuestionAnswering(HfLamMixin, BertForQuestionAnswering):
    config_class = HfLamBertConfig


class HfLamBertForMaskedLM(TokenLossMixin, BertForMaskedLM):
    config_class = HfLamBertConfig
    forward = _token_loss(BertForMaskedLM.forward)


class HfLamBertForMultipleChoice(HfLamMixin, BertForMultipleChoice):
    config_class = HfLamBertConfig


class HfLamViTModel(HfLamMixin, ViTModel):
    config_class = HfLamViTConfig


class HfLamViTForImageClassification(HfLamMixin, ViTForImageClassification):
    config_class = HfLamViTConfig


class HfLamViTForMaskedImageModeling(HfLamMixin, ViTForMaskedImageModeling):
    config_class = HfLamViTConfig


class HfLamVideoMAEModel(HfLamMixin, VideoMAEModel):
    config_class = HfLamVideoMAEConfig


class HfLamVideoMAEForVideoClassification(HfLamMixin, VideoMAEForVideoClassification):
    config_class = HfLamVideoMAEConfig
