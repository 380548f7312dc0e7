"""Checks of the JSON files that loading reads against the tables of what is known to be harmless in them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from transformers import PreTrainedConfig

from .known_keys import CONFIG, FILES, MODELS, MODULES, NEVER, NUMBERS_IN_LISTS, ROUTERS
from .repository_files import Finding

# What a configuration may have where its class has a field.
_PLAIN = (NUMBERS_IN_LISTS, str, [str])
_FIELD = (_PLAIN, {"*": (_PLAIN, {"*": _PLAIN})})
# Judged where more is known: by the weights, and by what a model of hf_lam is.
_JUDGED = frozenset({"quantization_config", "attribute_map", "configuration_files", "transformers_weights"})
_LONGEST_VALUE = 200


def check_keys(
    configs: Mapping[str, Any], modules: Mapping[str, str], class_of: Callable[[Any], Any], is_model: bool
) -> list[Finding]:
    """Findings for files, keys and values that are not known to be harmless, at every depth.

    Args:
        configs: the JSON files that can be read, by their paths.
        modules: the classes of the modules of sentence-transformers, by their folders.
        class_of: the class of a configuration by its `model_type`; None if it is of no model that hf_lam has or takes.
        is_model: whether `config.json` is that of a model that `check_weights` looks at, which names what is no model.
    """
    findings = []
    for name, content in configs.items():
        folder, _, base = name.rpartition("/")
        base = base.lower()  # some file systems do not tell capitals
        if reason := _first(NEVER, base):
            findings.append(Finding("repository", name, reason))
        elif base == "config.json":
            kind = modules.get(folder)
            if kind is not None and kind not in MODELS:
                wanted = FILES["router_config.json"] if kind in ROUTERS else MODULES[kind]
                found = _strange(content, wanted, "")
            else:
                found = _strange_config(content, class_of, "", is_model and not folder)
            findings += [Finding("key", name, message) for message in found]
        elif (wanted := _first(FILES, base)) is not None:
            findings += [Finding("key", name, message) for message in _strange(content, wanted, "")]
    return findings


def unsaid(findings: Iterable[Finding], earlier: Iterable[Finding]) -> list[Finding]:
    """The `findings` about keys that `earlier` does not mention; both begin with the name of the key."""
    said = {(finding.file, _key_of(finding)) for finding in earlier}
    return [finding for finding in findings if (finding.file, _key_of(finding)) not in said]


def _key_of(finding: Finding) -> str:
    return re.split(r"[ :]", finding.message, maxsplit=1)[0].rpartition(".")[2]


def _first(table: Mapping[Any, Any], name: str) -> Any:
    """Look up a name in a table: under the name itself, or under the first pattern that fits."""
    if name in table and "*" not in name:
        return table[name]
    for key, value in table.items():
        if key.fullmatch(name) if isinstance(key, re.Pattern) else "*" in key and fnmatchcase(name, key):
            return value
    return None


def _strange_config(config: Any, class_of: Callable[[Any], Any], path: str, is_model: bool) -> Iterator[str]:
    """Find what is not known in the configuration of a model, and in those of its encoders."""
    if not isinstance(config, dict):
        if not is_model:
            yield "is no configuration that is known here"
        return
    known = class_of(config.get("model_type"))
    if known is None or (path and known.sub_configs):
        if not is_model:
            yield f"model_type is {config.get('model_type')!r}, which verify does not know"
        return
    origin = config.get("_name_or_path") or config.get("name_or_path")
    if path and origin and config.get("auto_map"):
        # `from_config` takes the code of an encoder from where it says to be from.
        yield f"{path}auto_map would be looked for in {_shown(origin)}"
    fields = {field.name for cls in (known, PreTrainedConfig) for field in dataclasses.fields(cls)}
    fields |= {*known.attribute_map, *known.sub_configs}
    for key, value in config.items():
        if key in _JUDGED or key.endswith("_implementation"):
            continue
        if isinstance(value, dict) and key in fields and "model_type" in value:
            # An encoder of another type, or with encoders of its own, is named where the model is not built.
            yield from _strange_config(value, class_of, f"{path}{key}.", True)
        elif key in CONFIG or key in fields:
            yield from _strange(value, CONFIG.get(key, _FIELD), f"{path}{key}")
        elif not _fits(value, NUMBERS_IN_LISTS):
            yield f"{path}{key} is not known to be harmless: {_shown(value)}"


def _strange(value: Any, wanted: Any, path: str) -> Iterator[str]:
    """Find what is not as a table says: the path of each value, and why; see `known_keys`."""
    if isinstance(wanted, tuple):
        if any(_fits(value, one) for one in wanted):
            return
        # Of a value of the right shape, what is in it is told.
        shapes = [one for one in wanted if isinstance(one, (dict, list)) and isinstance(value, type(one))]
        if len(shapes) == 1:
            yield from _strange(value, shapes[0], path)
        else:
            yield f"{path or 'it'} is {_shown(value)}, which is not known to be harmless"
    elif isinstance(wanted, dict):
        if not isinstance(value, dict):
            yield f"{path or 'it'} is {_shown(value)}, not an object"
            return
        for key, item in value.items():
            place = f"{path}.{key}" if path else key
            inner = _first(wanted, key)
            if inner is None:
                yield f"{place} is not known to be harmless: {_shown(item)}"
            else:
                yield from _strange(item, inner, place)
    elif isinstance(wanted, list):
        if not isinstance(value, list):
            yield f"{path or 'it'} is {_shown(value)}, not a list"
            return
        for index, item in enumerate(value):
            yield from _strange(item, wanted[0], f"{path}[{index}]")
    elif not _fits(value, wanted):
        yield f"{path or 'it'} is {_shown(value)}, which is not known to be harmless"


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, type):
        if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
            return wanted is type(value) and wanted is bool
        return isinstance(value, wanted)
    if isinstance(wanted, tuple):
        return any(_fits(value, one) for one in wanted)
    if isinstance(wanted, re.Pattern):
        return isinstance(value, str) and wanted.fullmatch(value) is not None
    if isinstance(wanted, frozenset):
        return isinstance(value, str) and value in wanted
    if isinstance(wanted, (dict, list)):
        return next(_strange(value, wanted, ""), None) is None
    return type(value) is type(wanted) and value == wanted


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return "a value that is nested too deep"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
