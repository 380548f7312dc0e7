# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""`HfLam…` models: transformers' own classes of encoders, and of heads on them, with mechanisms attached.

There is one for each; it is made when it is asked for, as a subclass of transformers' class.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from .configuration_hf_lam import block_in, config_class_of
from .cross_lam_hf_lam import NAME as CROSS_LAM
from .cross_lam_hf_lam import add_cross_lam, decoders_with_masks, read_cross_lam
from .families_hf_lam import find_class, has_decoder, list_families, list_heads
from .host_attention_hf_lam import encoder_side_of, find_encoder
from .hosts_facts_hf_lam import COMPOSED, DECODER_WEIGHTS, TOKEN_HEADS
from .hosts_hf_lam import read_tokens
from .injection_hf_lam import injected_encoders, injection_of, plan_injection
from .layers_hf_lam import explain_heads, explain_layers, explain_number_of_layers
from .mechanism_registry_hf_lam import block_of
from .saving_hf_lam import saving
from .stock_saving_hf_lam import SAVING, become_travelling, watch_saving
from .travelling_hf_lam import copy_code
from .weight_names_hf_lam import (
    dropped_projections,
    is_mark,
    is_of_mechanism,
    is_optional,
    leaving_unfused,
    list_encoder_prefixes,
    register_conversions,
)

# What of `from_pretrained` says where a folder is.
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download", "proxies")
# What of `save_pretrained` is for a push.
_PUSH_OPTIONS = ("private", "revision", "create_pr", "commit_message", "commit_description")


class HfLamMixin(PreTrainedModel):
    """The common part of all `HfLam…` classes: mechanisms of the configuration, strict loading.

    host_class: the transformers class that this one adds to.
    """

    config_class: Any
    host_class: ClassVar[Any] = None

    # The loss of these heads is a plain mean over the batch. Saying so makes `Trainer` divide it by the accumulation
    # steps; the stock classes take `num_items_in_batch` and ignore it, which multiplies their gradients.
    accepts_loss_kwargs = False

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        self._check_kind(config)
        register_conversions(self.host_class, self.config_class)
        with _LeavingWithoutValues() if torch.get_default_device().type == "meta" else nullcontext():
            super().__init__(config, *args, **kwargs)
        # The encoder of a model that is made of two has seen to its own.
        if config.hf_lam is not None and not injected_encoders(self):
            plan_injection(self, config.hf_lam).apply()

    @classmethod
    def _check_kind(cls, config: Any) -> None:
        # Not `isinstance`: the configuration may come from another copy of this code in the same process.
        if getattr(config, "model_type", None) != cls.config_class.model_type:
            raise TypeError(
                f"{cls.__name__} needs a {cls.config_class.__name__}, got {type(config).__name__} with "
                f"model_type={getattr(config, 'model_type', None)!r}. To convert a stock model use "
                "hf_lam.convert(model, ...)."
            )

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
        """Load `HfLam…` checkpoints as in transformers, and stock ones, which start with fresh mechanisms.

        Raises:
            RuntimeError: if the checkpoint leaves weights of the encoder (but for a pooler or a mask token, which
                stock checkpoints may lack) or some weights of its mechanisms without a value, or if its mechanisms
                are not those of the configuration. transformers would only warn and go on with random weights. With
                `output_loading_info` the caller gets the lists instead.
        """
        # The encoder of a model with a decoder has other names there, and others alone. They are not written again.
        prefixes = list_encoder_prefixes(cls)
        if prefixes:
            kwargs["key_mapping"] = prefixes | (kwargs.get("key_mapping") or {})
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        if prefixes:
            used = model._weight_conversions or []
            model._weight_conversions = [c for c in used if not set(c.source_patterns) & prefixes.keys()]
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
        _register_names(self)
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
        """Save as in transformers, with the code of the whole model family beside the weights.

        With `push_to_hub=True`, what was saved is pushed as by `hf_lam.push`, if hf_lam was imported.

        Raises:
            ValueError: if the model has mechanisms that would not load again as they are: in an encoder inside of it,
                or in layers that were changed in a way that its configuration or the mechanisms cannot follow. Nothing
                is written then.
        """
        with SAVING:
            # A model of a stock class is one of ours while another thread saves it.
            save = self._save if isinstance(self, HfLamMixin) else self.save_pretrained
            save(save_directory, is_main_process, state_dict, push_to_hub, *args, **kwargs)

    def _save(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool,
        state_dict: dict[str, torch.Tensor] | None,
        push_to_hub: bool,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        _register_names(self)
        encoder = find_encoder(self)
        own: list[Any] = [base for base in injected_encoders(self) if base is encoder]
        if len(own) < len(injected_encoders(self)):
            raise ValueError(
                f"{type(self).__name__} has mechanisms in an encoder inside of it, for which its configuration has no "
                "place. Call hf_lam.remove on that encoder, or keep its mechanisms with hf_lam.save_mechanism."
            )
        problems = [explain_layers(base) or explain_heads(base) for base in own]
        for problem in problems or [explain_number_of_layers(encoder)]:
            if problem is not None:
                raise ValueError(problem)
        folder = Path(save_directory)
        configs = injection_of(own[0]).configs if own else {}
        if encoder_side_of(self) is not self:
            self.config.encoder = encoder_side_of(self).config  # it may have been put in the place of another
        # Save the mechanisms that the model has, whatever has been written into its configuration since.
        self.config.hf_lam = block_of(configs)
        decoder = getattr(self, "decoder", None)
        if hasattr(self.config, "decoder_lam") and isinstance(decoder, PreTrainedModel):
            self.config.decoder_lam = read_cross_lam(decoder)
        _check_configuration(self.config)
        if own and injection_of(own[0]).has_other_layers:
            _check_layers(self)
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
        with saving(folder) if is_whole else nullcontext(folder) as place, leaving_unfused(self):
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
        """Push as in transformers; where hf_lam was imported, by `hf_lam.push`, whose arguments it then takes as well.

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
        missing = {name for name in loading_info.missing_keys if not is_mark(name)}
        loading_info.missing_keys = missing
        if any(map(is_of_mechanism, missing)):
            parameters = [name for name, _ in self.named_parameters()]
            buffers = (name for name, _ in self.named_buffers())
            own = {name for name in (*parameters, *buffers) if is_of_mechanism(name) and not is_mark(name)}
            prefix = _host_prefix(self)
            encoder = (name for name in parameters if name.startswith(prefix) and name not in own)
            if any(name not in missing for name in encoder):
                # Those of an encoder, and those of a decoder.
                for place in {name.partition("hf_lam.")[0] for name in own}:
                    there = {name for name in own if name.partition("hf_lam.")[0] == place}
                    loading_info.missing_keys -= there if there <= missing else set()
        # Attention without scores has no use for its host's queries and keys.
        if loading_info.unexpected_keys:
            dropped = tuple(f"{name}." for name in dropped_projections(self))
            loading_info.unexpected_keys -= {name for name in loading_info.unexpected_keys if name.startswith(dropped)}


class _LeavingWithoutValues(TorchFunctionMode):
    """Skip the initialisation of tensors on "meta" while this lasts: they have no values, and it takes time.

    A mode belongs to one thread; `transformers.initialization.no_init_weights` would hold for all of them.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
            if tensor.is_meta:
                return tensor
        return function(*args, **kwargs)


class TokenLossMixin(HfLamMixin):
    """The common part of heads whose loss is a mean over labelled tokens, which differ in number from batch to batch.

    `Trainer` passes the count over all accumulated and parallel batches as `num_items_in_batch`; the mean is rescaled
    to it, so that a step does not depend on how its batch was split.
    """

    accepts_loss_kwargs = True


class ComposedMixin(TokenLossMixin):
    """The common part of models made of any encoder and any decoder (`VisionEncoderDecoderModel`).

    The encoder is an `HfLam…` model, which has the mechanisms; the decoder is one of transformers'.
    """

    encoder: Any
    decoder: Any

    def __init__(self, config: Any = None, encoder: Any = None, decoder: Any = None) -> None:
        """Make the model as in transformers: of a configuration, or of an encoder and a decoder.

        A stock encoder becomes the `HfLam…` one of its kind. Mechanisms that it has stay, whatever `config` says.

        Raises:
            TypeError: for a configuration of something else.
            ValueError: with neither, or for an encoder of which there is no `HfLam…` class.
        """
        if config is not None:
            self._check_kind(config)
            if not isinstance(config, self.config_class):
                # It is of another copy of this code, and the host insists on its own class.
                config.__class__ = self.config_class
        elif encoder is None or decoder is None:
            raise ValueError(f"{type(self).__name__} needs a configuration, or an encoder and a decoder.")
        if encoder is not None and not hasattr(type(encoder), "host_class"):
            become_travelling(encoder, travelling_class_of)
        if config is None:
            config = self.config_class.from_encoder_decoder_configs(encoder.config, decoder.config)
        if encoder is None:
            stock = find_class(config.encoder.auto_classes["AutoModel"].removeprefix("HfLam"))
            encoder = travelling_class_of(stock)._from_config(config.encoder)
        elif own := injected_encoders(encoder):
            config.hf_lam = block_of(injection_of(own[0]).configs)
        super().__init__(config, encoder, decoder)
        if config.decoder_lam is not None and not decoders_with_masks(self.decoder):
            self.add_decoder_lam(config.decoder_lam)

    def add_decoder_lam(self, options: Any) -> None:
        """Put learnable masks on the decoder's cross-attention, in place; the outputs stay what they are.

        options: those of `LamConfig`, such as `{"rank": 8}`.

        Raises:
            ValueError: for options that have no meaning there, or a decoder that cannot have them.
        """
        config: Any = self.config
        before, config.decoder_lam = config.decoder_lam, options
        try:
            add_cross_lam(self.decoder, config.decoder_lam, read_tokens(find_encoder(self), self.encoder))
        except ValueError:
            config.decoder_lam = before
            raise

    @classmethod
    def from_encoder_decoder_pretrained(
        cls,
        encoder_pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        decoder_pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        *model_args: Any,
        hf_lam: Any = None,
        decoder_lam: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Load as in transformers, from an encoder with mechanisms or a stock one.

        Args:
            encoder_pretrained_model_name_or_path: a folder or an id on the Hub; `encoder_model` is a loaded one.
            decoder_pretrained_model_name_or_path: a folder or an id on the Hub of the decoder; `decoder_model` is a
                loaded one.
            *model_args: positional arguments for loading the encoder.
            hf_lam: the mechanisms of a stock encoder, such as `{"stt": {"variant": "dense"}}`.
            decoder_lam: options of learnable masks on the decoder's cross-attention, such as `{"rank": 8}`.
            **kwargs: options of both, whose names begin with `encoder_` and `decoder_`, and of the configuration.

        Returns:
            The model, in evaluation mode. Cross-attention that the decoder had not starts from random weights.

        Raises:
            ValueError: if mechanisms cannot be attached, or `hf_lam` is given and the encoder has some.
        """
        made = cls.host_class.from_encoder_decoder_pretrained(
            encoder_pretrained_model_name_or_path, decoder_pretrained_model_name_or_path, *model_args, **kwargs
        )
        if hf_lam is not None and injected_encoders(made):
            raise ValueError(f"the encoder has mechanisms already; leave out hf_lam={hf_lam!r}.")
        options = {name: value for name, value in made.config.to_dict().items() if name != "model_type"}
        config = cls.config_class(**options, decoder_lam=decoder_lam)
        if hf_lam is not None:
            config.hf_lam = hf_lam
        return cls(config, made.encoder, made.decoder).eval()


def _register_names(model: Any) -> None:
    """Register the conversions of weight names for a model that was unpickled, or is ours only while it is saved."""
    for part in model.modules():
        if isinstance(part, HfLamMixin):
            register_conversions(part.host_class, part.config_class)


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


def _check_configuration(config: Any) -> None:
    """Raises a `ValueError` for a configuration that would not load again, as where options no longer fit together."""
    try:
        config.validate()
        type(config).from_dict(json.loads(config.to_json_string()))
    except Exception as error:
        raise ValueError(
            f"the configuration of this model would not load again, so nothing was saved: {error} Set the options "
            "that this names to what the model is."
        ) from error


def _check_layers(model: Any) -> None:
    """Raises a `ValueError` for a model whose layers lack parts that those of a new one in their places have."""
    with torch.device("meta"):
        new = type(model)(copy.deepcopy(model.config)).state_dict()
    has = model.state_dict()
    sizes = {name: tensor.shape for name, tensor in has.items()}
    differing = [name for name, tensor in new.items() if sizes.get(name) != tensor.shape and not is_optional(name)]
    differing += [name for name in has if name not in new]
    if differing:
        raise ValueError(
            f"the layers of {type(model).__name__} were changed, and it would not load again as it is, so nothing was "
            f"saved: in their new places they have other parts ({differing[0]}). Keep the layers at which the host "
            "differs, such as the first one."
        )


def _push_of_package() -> Any:
    """`hf_lam.push`, which writes the card, where the package was imported; this file must not need it."""
    return getattr(sys.modules.get("hf_lam"), "push", None)


def _is_replaced(model_class: Any, source: Any, options: dict[str, Any]) -> bool:
    """Whether mechanisms are asked for in place of those in a folder's own configuration."""
    if source is None or not {"hf_lam", "baseline"} & options.keys():
        return False
    of_hub = {key: options[key] for key in HUB_OPTIONS if key in options}
    saved, _ = model_class.config_class.get_config_dict(source, **of_hub)
    return bool(block_in(saved))


def _host_prefix(model: Any) -> str:
    """The beginning of the names of weights that are not of a head, which is trained anew for a task."""
    if model.host_class is not None:
        encoders = list_heads(model.config_class.host_model_type).get("AutoModel", ())
        if model.host_class.__name__ in encoders:
            return ""
    encoder = find_encoder(model)
    path = next(path for path, module in model.named_modules() if module is encoder)
    return f"{path.partition('.')[0]}." if path else ""


def _check_nothing_is_missing(model: Any, missing: Any, source: str | os.PathLike[str]) -> None:
    prefix = _host_prefix(model)
    encoder = [name for name in missing if name.startswith(prefix) and not is_optional(name)]
    if encoder:
        shown = ", ".join(sorted(encoder)[:5]) + (", …" if len(encoder) > 5 else "")
        raise RuntimeError(
            f"{str(source)!r} leaves {len(encoder)} weights of {type(model).__name__} without a value: {shown}. It is "
            "not a checkpoint of this model, or it is damaged."
        )


def _check_mechanisms_fit(model: Any, info: Any, source: str | os.PathLike[str]) -> None:
    mismatched = {name for name, *_ in info["mismatched_keys"]}
    misfits = sorted(name for name in mismatched | set(info["unexpected_keys"]) if is_of_mechanism(name))
    if misfits:
        names = sorted({f".{name}".partition(".hf_lam.")[2].partition(".")[0] for name in misfits})
        key = "decoder_lam" if names == [CROSS_LAM] else "hf_lam"
        shown = repr(getattr(model.config, key))
        shown = shown if len(shown) <= 300 else f"{shown[:300]}…"
        change = "hf_lam.remove(model)" + (" and hf_lam.inject(model, ...)" if key == "hf_lam" else "")
        raise RuntimeError(
            f"{str(source)!r} was saved with mechanisms ({', '.join(names)}) of which the configuration says nothing, "
            f"or something else: it has {key}={shown}, and the weights have {misfits[0]}. Load it with the "
            f'configuration it was saved with (the key "{key}" of its config.json, or from_pretrained(..., '
            f"{key}=...)); to change its mechanisms, call {change} afterwards, and to leave out layers, take them out "
            "of the loaded model."
        )


def rename_legacy_keys(module: Any, state_dict: dict[str, torch.Tensor], prefix: str, *unused: Any) -> None:
    """Let `load_state_dict` read the files that `save_pretrained` writes, whose names may be those of older releases.

    Several tensors may be one there, and the other way round. `Trainer` restores checkpoints and the best model with
    `load_state_dict(strict=False)` on the file as written, and would silently restore none of these weights.

    It is in this file because it is a hook of models with mechanisms: who unpickles one imports what saves it whole.
    """
    expected = dict.fromkeys(nn.Module.state_dict(module, keep_vars=True))
    foreign = [key for key in state_dict if key.startswith(prefix) and key.removeprefix(prefix) not in expected]
    if not foreign:
        return
    transforms = get_model_conversion_mapping(module)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    found: dict[str, tuple[WeightConverter, list[str]]] = {}
    for key in foreign:
        name, pattern = rename_source_key(
            key.removeprefix(prefix), renamings, converters, module.base_model_prefix, expected
        )
        if name not in expected:
            continue
        if pattern is None:
            state_dict[prefix + name] = state_dict.pop(key)
        else:
            if name not in found:
                found[name] = copy.deepcopy(next(c for c in converters if pattern in c.source_patterns)), []
            tensor: Any = state_dict[key]
            found[name][0].add_tensor(name, key, pattern, tensor)
            found[name][1].append(key)
    for name, (converter, keys) in found.items():
        if set(converter.collected_tensors) == set(converter.source_patterns):
            for key in keys:
                del state_dict[key]
            for target, tensor in converter.convert(name, model=module, config=module.config).items():
                state_dict[prefix + target] = tensor[0] if isinstance(tensor, list) else tensor


# --- the classes -----------------------------------------------------------------------------------------------------


def travelling_class_of(stock: type[Any]) -> Any:
    """The `HfLam…` class of an encoder of transformers, or of a head on one, made when it is first asked for.

    Returns:
        A subclass of `HfLamMixin` and of `stock`; None if `stock` is not a class that an Auto class of transformers
        loads. Whether mechanisms can be attached to it shows when it is built.
    """
    if find_class(stock.__name__) is not stock:
        return None
    name = f"HfLam{stock.__name__}"
    return globals().get(name) or globals().setdefault(name, _make_class(stock))


def _make_class(stock: type[Any]) -> type[Any]:
    name = f"HfLam{stock.__name__}"
    config_class = config_class_of(stock.config_class.model_type)
    heads = list_heads(config_class.host_model_type)
    options: dict[str, Any] = {
        "__module__": __name__,
        "__qualname__": name,
        "__doc__": f"transformers' `{stock.__name__}` with the mechanisms that its configuration names.",
        "config_class": config_class,
        "host_class": stock,
    }
    if has_decoder(config_class.host_model_type):
        ignored = getattr(stock, "_keys_to_ignore_on_load_unexpected", None) or []
        options["_keys_to_ignore_on_load_unexpected"] = [*ignored, *DECODER_WEIGHTS]
    mixin = HfLamMixin
    if config_class.host_model_type in COMPOSED:
        mixin = ComposedMixin
        options["forward"] = _token_loss(stock.forward)
    elif any(stock.__name__ in heads.get(auto, ()) for auto in TOKEN_HEADS):
        mixin = TokenLossMixin
        options["forward"] = _token_loss(stock.forward)
    return type(name, (mixin, stock), options)


def __getattr__(name: str) -> Any:
    """`HfLamModernBertModel` and the like: the class of any encoder or head on one, made when it is asked for."""
    stock = find_class(name.removeprefix("HfLam")) if name.startswith("HfLam") else None
    made = None if stock is None else travelling_class_of(stock)
    if made is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return made


def __dir__() -> list[str]:
    stock = {name for kind in list_families() for names in list_heads(kind).values() for name in names}
    return sorted({*globals(), *(f"HfLam{name}" for name in stock)})


watch_saving(travelling_class_of)
