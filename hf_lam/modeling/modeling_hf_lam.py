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
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import PrefixChange, WeightConverter, WeightRenaming, rename_source_key

from .configuration_hf_lam import config_class_of
from .families_hf_lam import find_class, has_decoder, list_families, list_heads
from .host_attention_hf_lam import find_encoder
from .hosts_facts_hf_lam import DECODER_WEIGHTS, ENCODER_ALONE, ENCODER_PREFIXES, OPTIONAL_PARTS, TOKEN_HEADS
from .injection_hf_lam import injected_encoders, injection_of, plan_injection
from .layers_hf_lam import explain_heads, explain_layers, explain_number_of_layers
from .mechanism_hf_lam import MARK
from .mechanism_registry_hf_lam import block_of
from .saving_hf_lam import saving
from .stock_saving_hf_lam import SAVING, watch_saving
from .travelling_hf_lam import copy_code

# What of `from_pretrained` says where a folder is.
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download", "proxies")
# What of `save_pretrained` is for a push.
_PUSH_OPTIONS = ("private", "revision", "create_pr", "commit_message", "commit_description")


class HfLamMixin(PreTrainedModel):
    """What every `HfLam…` class adds to its transformers class: mechanisms from the configuration, strict loading.

    host_class: that class of transformers.
    """

    config_class: Any
    host_class: ClassVar[Any] = None

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
        _register_conversions(self.host_class, self.config_class)
        with _LeavingWithoutValues() if torch.get_default_device().type == "meta" else nullcontext():
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
        # The encoder of a model with a decoder has other names there, and others alone. They are not written again.
        prefixes = _encoder_prefixes(cls)
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
        _register_conversions(self.host_class, self.config_class)  # one that was unpickled was not built here
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
        _register_conversions(self.host_class, self.config_class)  # one that was unpickled was not built here
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
        # What is saved is what the model has, whatever has been written into its configuration since it was made.
        self.config.hf_lam = block_of(configs)
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
        with saving(folder) if is_whole else nullcontext(folder) as place, _leaving_unfused(self):
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
        missing = {name for name in loading_info.missing_keys if not is_mark(name)}
        loading_info.missing_keys = missing
        if any(map(_is_of_mechanism, missing)):
            parameters = [name for name, _ in self.named_parameters()]
            buffers = (name for name, _ in self.named_buffers())
            own = {name for name in (*parameters, *buffers) if _is_of_mechanism(name) and not is_mark(name)}
            prefix = _host_prefix(self)
            encoder = (name for name in parameters if name.startswith(prefix) and name not in own)
            if own <= missing and any(name not in missing for name in encoder):
                loading_info.missing_keys = missing - own
        # Attention without scores has no use for its host's queries and keys.
        if loading_info.unexpected_keys:
            dropped = tuple(f"{name}." for name in _dropped_projections(self))
            loading_info.unexpected_keys -= {name for name in loading_info.unexpected_keys if name.startswith(dropped)}


class _LeavingWithoutValues(TorchFunctionMode):
    """While this lasts, tensors on "meta" are not initialised: there are no values, and torch takes its time for that.

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
    """For heads whose loss is a mean over labelled tokens, which differ in number from batch to batch.

    `Trainer` passes the count over all accumulated and parallel batches as `num_items_in_batch`; the mean is rescaled
    to it, so that a step does not depend on how its batch was split.
    """

    accepts_loss_kwargs = True


@functools.cache
def _register_conversions(stock: Any, config_class: Any) -> None:
    """Let transformers rename the weights of the class of ours for a stock one, and of its model type, like that's.

    Checkpoints keep names of older transformers releases and are renamed while loading, but for classes outside of
    transformers only if they are registered. transformers looks for the name of a class first and for the model type
    where there is none, and so it does for ours.
    Done with the first model, since making transformers' table takes longer than importing hf_lam; with `overwrite`,
    because several copies of this file may be loaded in one process.
    """
    if stock is None:  # not the class of a family
        return
    names = {f"HfLam{stock.__name__}": stock.__name__, config_class.model_type: config_class.host_model_type}
    for ours, theirs in names.items():
        mapping = get_checkpoint_conversion_mapping(theirs)
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


def _is_optional(name: str) -> bool:
    return any(part in name for part in OPTIONAL_PARTS)


def is_mark(name: str) -> bool:
    """Whether a tensor only says that a mechanism without weights of its own was there, which older files do not."""
    return _is_of_mechanism(name) and name.rpartition(".")[2] == MARK


def _dropped_projections(model: nn.Module) -> list[str]:
    """The names of the projections that the identity has replaced, for attention without scores."""
    without = [base for base in injected_encoders(model) if injection_of(base).replacement is not None]
    names = {module: name for name, module in model.named_modules()} if without else {}
    return [
        f"{names[attention]}.{child}"
        for base in without
        for attention in injection_of(base).attentions
        for child, module in attention.named_children()
        if isinstance(module, nn.Identity)
    ]


def has_fused_weights(model_class: Any) -> bool:
    """Whether tensors of a class of ours are stored as one in the files of its host."""
    _register_conversions(model_class.host_class, model_class.config_class)
    names = (model_class.__name__, model_class.config_class.model_type)
    return any(isinstance(c, WeightConverter) for n in names for c in get_checkpoint_conversion_mapping(n) or ())


@contextmanager
def _leaving_unfused(model: Any) -> Iterator[None]:
    """While this lasts, what is left of tensors that would be stored as one is stored as it is."""
    dropped = _dropped_projections(model)
    if not dropped:
        yield
        return
    before = vars(model).get("_weight_conversions")
    used = before
    if used is None:
        # As in `save_pretrained`: whether there was such a prefix is known of a model that was loaded alone.
        used = [c for c in get_model_conversion_mapping(model, add_legacy=False) if not isinstance(c, PrefixChange)]
    model._weight_conversions = [
        conversion
        for conversion in used
        if not isinstance(conversion, WeightConverter)
        or not any(pattern in name for pattern in conversion.target_patterns for name in dropped)
    ]
    try:
        yield
    finally:
        model._weight_conversions = before


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
    differing = [name for name, tensor in new.items() if sizes.get(name) != tensor.shape and not _is_optional(name)]
    differing += [name for name in has if name not in new]
    if differing:
        raise ValueError(
            f"the layers of {type(model).__name__} were changed, and it would not load again as it is, so nothing was "
            f"saved: in their new places they have other parts ({differing[0]}). Keep the layers at which the host "
            "differs, such as the first one."
        )


def _encoder_prefixes(model_class: Any) -> dict[str, str]:
    """What the names of an encoder's weights begin with in other files of a family with a decoder, and in this class.

    A checkpoint holds the decoder, too, and an encoder may have been saved alone, for a head to start from.
    """
    if model_class.host_class is None:
        return {}
    kind = model_class.config_class.host_model_type
    if not has_decoder(kind):
        return {}
    is_encoder = model_class.host_class.__name__ in list_heads(kind)["AutoModel"]
    return dict.fromkeys(ENCODER_PREFIXES, "") if is_encoder else {ENCODER_ALONE: "encoder."}


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


def _host_prefix(model: Any) -> str:
    """What the names of weights begin with that are not of a head, which is trained anew for a task."""
    if model.host_class is not None:
        encoders = list_heads(model.config_class.host_model_type).get("AutoModel", ())
        if model.host_class.__name__ in encoders:
            return ""
    encoder = find_encoder(model)
    path = next(path for path, module in model.named_modules() if module is encoder)
    return f"{path.partition('.')[0]}." if path else ""


def _check_nothing_is_missing(model: Any, missing: Any, source: str | os.PathLike[str]) -> None:
    prefix = _host_prefix(model)
    encoder = [name for name in missing if name.startswith(prefix) and not _is_optional(name)]
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

    Several tensors may be one there, and the other way round. `Trainer` restores checkpoints and the best model with
    `load_state_dict(strict=False)` on the file as written, and would silently restore none of these weights.
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
    if any(stock.__name__ in heads.get(auto, ()) for auto in TOKEN_HEADS):
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
