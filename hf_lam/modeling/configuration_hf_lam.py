# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The hosts' configurations that carry mechanisms, and with them the code of the model.

This file travels: it is copied into every saved model folder, next to its siblings, and must not need the `hf_lam`
package. Only `torch`, `transformers`, the standard library and sibling modules may be imported here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .families_hf_lam import find_type, list_families, list_heads, name_config
from .hosts_facts_hf_lam import COMPOSED

# Registers the mechanisms, in this order.
from .mechanism_list_hf_lam import __all__ as _registered  # noqa: F401
from .mechanism_registry_hf_lam import configs_in, mechanism_block
from .option_checks_hf_lam import check_host_option
from .travelling_hf_lam import copy_code
from .version_hf_lam import __version__

# What our model types begin with; the rest is the stock one.
PREFIX = "hf_lam_"


class HfLamConfigMixin:
    """The common part of the configurations: the validated `hf_lam` key, and code that travels with the model.

    host_model_type: `model_type` of the stock checkpoints that the models load; None if there are none.
    code_suffix: suffix of the two files that hold the configuration and the models.
    auto_classes: the models, by the Auto class that loads them.
    alternatives: further models for an Auto class, which chooses by `architectures`.
    """

    model_type: ClassVar[str]
    base_config_key: ClassVar[str]
    host_model_type: ClassVar[str | None]
    code_suffix: ClassVar[str] = ""
    auto_classes: ClassVar[dict[str, str]]
    alternatives: ClassVar[dict[str, list[str]]] = {}
    architectures: Any
    hf_lam: Any

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "hf_lam":
            value = mechanism_block(value)
        elif name == "num_labels" and not isinstance(value, Integral):  # numpy's, too
            raise ValueError(f"{type(self).__name__}: num_labels must be an integer, got {value!r}.")
        check_host_option(type(self).__name__, name, value)
        super().__setattr__(name, value)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read as transformers does, and accept the `config.json` of a stock host as it is."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
        # Of a model with two towers, transformers takes the part that a tower's configuration asks for.
        part = config_dict.get(cls.base_config_key) if cls.base_config_key else None
        if isinstance(part, dict) and config_dict.get("model_type") != cls.model_type:
            config_dict = {"model_type": cls.host_model_type, **part}
        found = config_dict.get("model_type", cls.model_type)
        if found not in (cls.model_type, cls.host_model_type) and config_class_of(found) is not cls:
            expected = " or ".join(repr(kind) for kind in (cls.host_model_type, cls.model_type) if kind is not None)
            raise ValueError(
                f"{cls.__name__} loads checkpoints of model type {expected}, but "
                f"{str(pretrained_model_name_or_path)!r} is of type {found!r}. hf_lam.convert(folder_or_id, ...) "
                "finds the class of any encoder."
            )
        if found != cls.model_type:
            # A stock auto_map or architecture would point the saved copy at classes it is not made of.
            config_dict = {k: v for k, v in config_dict.items() if k not in ("auto_map", "architectures")}
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Save `config.json` and, beside it, the code of the model family and an `auto_map` that names it.

        transformers would write into `auto_map` only the one class that was saved, so `AutoModel` would fail on a
        folder saved from a task head. Every model saved by transformers or `Trainer` passes through here.
        """
        folder = Path(save_directory)
        copy_code(Path(__file__).parent, folder, configs_in(self.hf_lam))
        if self.hf_lam is not None:
            self.hf_lam = self.hf_lam | {"version": __version__}
        # Of the class: what was loaded from a file may have a key of that name.
        suffix, classes = type(self).code_suffix, dict(type(self).auto_classes)
        for auto, others in type(self).alternatives.items():
            classes[auto] = next((name for name in self.architectures or () if name in others), classes[auto])
        family = {"AutoConfig": f"configuration_hf_lam{suffix}.{type(self).__name__}"}
        family |= {auto: f"modeling_hf_lam{suffix}.{name}" for auto, name in classes.items()}
        # A process that loaded a configuration alone has only this file, and can only write what it has.
        self.auto_map = {
            auto: name for auto, name in family.items() if (folder / f"{name.split('.')[0]}.py").is_file()
        }
        for name in getattr(self, "sub_configs", {}):
            part = getattr(self, name, None)
            if part is None:
                continue
            # transformers leaves out where a model was loaded from, but not for the configurations inside of it.
            if os.path.exists(getattr(part, "_name_or_path", None) or ""):
                part._name_or_path = ""
            vars(part).pop("auto_map", None)  # the code that lies here is named for the whole
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)  # type: ignore[misc]


class HfLamComposedConfigMixin(HfLamConfigMixin):
    """The common part of models made of any encoder and any decoder (`VisionEncoderDecoderModel`).

    The encoder's configuration is one of ours, and has the mechanisms: `hf_lam` is the encoder's. That of the decoder
    is one of transformers'.

    decoder_lam: options of learnable masks on the decoder's cross-attention, such as `{"rank": 8}`; None for none.
    """

    # For transformers before 5.19: it must not try to make one without arguments.
    has_no_defaults_at_init: ClassVar[bool] = True
    encoder: Any
    decoder: Any
    decoder_lam: Any

    def __post_init__(self, **kwargs: Any) -> None:
        block = kwargs.pop("hf_lam", None)
        # Up to 5.18 they are no fields.
        given = {name: kwargs.pop(name, getattr(self, name, None)) for name in ("encoder", "decoder")}
        lacking = [name for name, config in given.items() if config is None]
        if lacking:
            raise ValueError(
                f"{type(self).__name__} needs the configuration of an encoder and a decoder, and has no "
                f"{' and no '.join(lacking)}."
            )
        self.encoder = _as_ours(given["encoder"], type(self).__name__)
        decoder = given["decoder"]
        self.decoder = AutoConfig.for_model(**decoder) if isinstance(decoder, Mapping) else decoder
        if block is not None:
            self.hf_lam = block
        # Not the host's own, which up to 5.18 wants dictionaries.
        PreTrainedConfig.__post_init__(self, **kwargs)  # type: ignore[arg-type]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "decoder_lam" and value is not None:
            from .cross_lam_hf_lam import check_cross_lam  # most models have no decoder

            value = check_cross_lam(value)
        super().__setattr__(name, value)

    @property
    def hf_lam(self) -> Any:
        """The mechanisms of the encoder, by their names; None for none."""
        return self.encoder.hf_lam

    @hf_lam.setter
    def hf_lam(self, block: Any) -> None:
        self.encoder.hf_lam = block


def block_in(saved: Mapping[str, Any]) -> Any:
    """The mechanisms in a configuration as it is saved; None for none."""
    is_composed = str(saved.get("model_type")).removeprefix(PREFIX) in COMPOSED
    part = saved.get("encoder") if is_composed else saved
    return part.get("hf_lam") if isinstance(part, Mapping) else None


def _as_ours(config: Any, owner: str) -> Any:
    """The configuration of an encoder, a dictionary or one of transformers', as the `HfLam…` one of its family."""
    is_mapping = isinstance(config, Mapping)
    model_type = str(config.get("model_type") if is_mapping else config.model_type)
    kind = config_class_of(model_type)
    if kind is None:
        raise ValueError(
            f"the encoder of {owner} is of type {model_type!r}, of which no Auto class of transformers loads one."
        )
    if not is_mapping and getattr(config, "hf_lam", NotImplemented) is not NotImplemented:
        return config
    options = dict(config) if is_mapping else config.to_dict()
    # A folder that it came from has nothing to do with where it is now.
    left_out = ("model_type", "auto_map", "architectures")
    return kind(**{name: value for name, value in options.items() if name not in left_out})


def config_class_of(model_type: str) -> Any:
    """The configuration class of a family of encoders, made when it is first asked for.

    Args:
        model_type: transformers' or ours: `"modernbert"` or `"hf_lam_modernbert"`.

    Returns:
        A subclass of `HfLamConfigMixin` and of transformers' class; None if transformers has no such family.
    """
    stock_type = model_type.removeprefix(PREFIX)
    name = name_config(stock_type)
    if name is None:
        return None
    ours = f"HfLam{name}"
    return globals().get(ours) or globals().setdefault(
        ours, _make_config_class(CONFIG_MAPPING[stock_type], stock_type)
    )


def _make_config_class(stock: type[Any], key: str) -> type[Any]:
    name = f"HfLam{stock.__name__}"
    heads = {auto: [f"HfLam{head}" for head in names] for auto, names in list_heads(key).items()}
    mixin, field = (HfLamComposedConfigMixin, "decoder_lam") if key in COMPOSED else (HfLamConfigMixin, "hf_lam")
    options = {
        "__module__": __name__,
        "__qualname__": name,
        "__doc__": f'A `{stock.__name__}` with the mechanisms of the model as `hf_lam`: `{{"lam": {{"rank": 8}}}}`.',
        "__annotations__": {field: Any},
        field: None,
        "model_type": f"{PREFIX}{stock.model_type}",
        "host_model_type": stock.model_type,
        "auto_classes": {auto: names[0] for auto, names in heads.items()},
        "alternatives": {auto: names[1:] for auto, names in heads.items() if names[1:]},
    }
    return type(name, (mixin, stock), options)


def __getattr__(name: str) -> Any:
    """`HfLamModernBertConfig` and the like: the class of any family of encoders, made when it is asked for."""
    is_ours = name.startswith("HfLam") and name.endswith("Config")
    model_type = find_type(name.removeprefix("HfLam")) if is_ours else None
    made = None if model_type is None else config_class_of(model_type)
    if made is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return made


def __dir__() -> list[str]:
    return sorted({*globals(), *(f"HfLam{name_config(model_type)}" for model_type in list_families())})
