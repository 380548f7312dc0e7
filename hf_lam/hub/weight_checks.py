"""Checks of the weights of a repository against its configuration, from the headers of the files alone."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..modeling.configuration_hf_lam import PREFIX, block_in
from ..modeling.configuration_hf_lam_fusion import HfLamFusionConfig
from ..modeling.hosts_facts_hf_lam import COMPLETE_STRUCTURE, COMPOSED, OPTIONAL_PARTS, is_composed
from ..modeling.mechanism_registry_hf_lam import mechanism_names
from ..modeling.modeling_hf_lam import rename_legacy_keys
from ..modeling.weight_names_hf_lam import is_mark
from .buildable import class_names_of, config_class_of, few_modules, is_ours, model_class_of
from .file_checks import entries
from .repository_files import Finding, RepositoryFiles, StoredTensor, UnreadableError, leaves_folder

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# What a configuration may not make the model that is built here do, and does not need for its shapes.
_NOT_FOR_SHAPES = re.compile(r"auto_map|custom_pipelines|quantization_config|transformers_weights|.*_implementation")
# No configuration may make the check slow: its sizes are bound by those of the tensors in the file, and by these.
_MOST_LAYERS = 1000
_MOST_LAYERS_WITHOUT_WEIGHTS = 100
_MOST_MODULES = 100_000
_MOST_SHARDS = 1000
_MOST_TOKENS = 65_536


def check_weights(
    files: RepositoryFiles,
    configs: Mapping[str, Any],
    earlier: Sequence[Finding],
    file_of: Callable[[str], str | None],
    parts: Collection[str],
) -> tuple[tuple[str, ...], list[Finding]]:
    """The files that loading reads weights from, and findings: files that are damaged, and tensors that do not fit.

    Args:
        files: files of the repository.
        configs: its JSON files, those that can be read.
        earlier: findings of earlier checks. No model is built from a configuration that reaches out, and a file that
            cannot be read is not reported again.
        file_of: the file of the repository that registers a mechanism from elsewhere, by its name; None if none does.
        parts: files of weights of other parts; see `check_parts`.
    """
    unread = {finding.file for finding in earlier if finding.kind in ("config", "size")} - set(configs)
    config = configs.get("config.json")
    loaded, stored, findings = _loaded_tensors(files, configs, unread)
    if not unread & set(loaded):
        findings += [
            Finding("weights", name, "is not among the weights that are loaded")
            for name in files.sizes
            if name.lower().endswith(".safetensors") and name not in loaded and name not in parts
        ]
    if "config.json" in unread:
        return loaded, findings
    if not isinstance(config, dict):
        return loaded, [*findings, Finding("config", "config.json", "is missing, or is no configuration")]
    if any(key == "quantization_config" for key, _ in entries(config)):
        message = "the weights are quantized, which verify cannot compare with the configuration"
        return loaded, [*findings, Finding("config", "config.json", message)]
    if refusal := _other_model(config):
        return loaded, [*findings, Finding("config", "config.json", refusal)]
    if any(finding.kind in ("repository", "path", "key") and finding.file == "config.json" for finding in earlier):
        return loaded, findings
    config, foreign = _without_foreign(config, file_of)
    findings += [
        Finding(
            "foreign",
            "config.json",
            f"has the mechanism {name!r}, which is not of hf_lam but comes from {file}; its weights are not looked at",
        )
        for name, file in foreign.items()
    ]
    model, refusal = _build(config, stored)
    if model is None:
        return loaded, [*findings, Finding("config", "config.json", refusal)]
    return loaded, findings + (_compare(model, stored, loaded[0], list(foreign)) if stored else [])


def check_parts(files: RepositoryFiles, folders: Collection[str]) -> tuple[tuple[str, ...], list[Finding]]:
    """The weights of the modules of sentence-transformers in these folders, and findings for damaged ones."""
    names = [name for folder in sorted(folders) if folder and (name := f"{folder}/{WEIGHTS}") in files.sizes]
    return tuple(names), _read_headers(files, names)[1]


def _without_foreign(
    config: dict[str, Any], file_of: Callable[[str], str | None]
) -> tuple[dict[str, Any], dict[str, str]]:
    """A configuration without the mechanisms that only the code beside it knows, and their files by their names."""
    block = block_in(config)
    unknown = [name for name in block if name not in mechanism_names()] if isinstance(block, dict) else []
    foreign = {name: file for name in unknown if (file := file_of(name)) is not None}
    if not foreign:
        return config, {}
    kept = {"hf_lam": {name: value for name, value in block.items() if name not in foreign}}
    if config.get("hf_lam") is block:
        return {**config, **kept}, foreign
    return {**config, "encoder": {**config["encoder"], **kept}}, foreign


def _loaded_tensors(
    files: RepositoryFiles, configs: Mapping[str, Any], unread: Collection[str]
) -> tuple[tuple[str, ...], dict[str, StoredTensor], list[Finding]]:
    """The files that `from_pretrained` takes, and the tensors in them."""
    config = configs.get("config.json")
    explicit = config.get("transformers_weights") if isinstance(config, dict) else None
    candidates = [explicit] if explicit is not None else [WEIGHTS, INDEX]
    name = next((name for name in candidates if isinstance(name, str) and name in files.sizes), None)
    if name is None:
        wanted = " or ".join(map(repr, candidates))
        return (), {}, [Finding("weights", "", f"has no weights: there is no {wanted}")]
    if name in unread:
        return (name,), {}, []
    if not name.endswith(".index.json"):
        if name.endswith(".safetensors"):
            headers, findings = _read_headers(files, [name])
            return (name,), headers.get(name, {}), findings
        return (name,), {}, [Finding("weights", name, "is loaded as weights, and is not safetensors")]
    index = configs.get(name)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        return (name,), {}, [Finding("weights", name, "has no weight_map from tensors to files")]
    findings = []
    shards = sorted(set(weight_map.values()))
    if len(shards) > _MOST_SHARDS:
        message = f"weight_map names {len(shards)} files; verify reads {_MOST_SHARDS}"
        return (name,), {}, [Finding("size", name, message)]
    if not shards:
        findings.append(Finding("weights", name, "has an empty weight_map, so that no tensor would be loaded"))
    for shard in shards:
        if leaves_folder(shard):
            findings.append(Finding("path", name, f"weight_map names {shard!r}, which is not in the repository"))
        elif shard not in files.sizes:
            findings.append(Finding("weights", name, f"weight_map names {shard!r}, which is not here"))
        elif not shard.endswith(".safetensors"):
            findings.append(Finding("weights", name, f"weight_map names {shard!r}, which is not safetensors"))
    present = [shard for shard in shards if shard in files.sizes]
    headers, more = _read_headers(files, [shard for shard in present if shard.endswith(".safetensors")])
    findings += more
    stored: dict[str, StoredTensor] = {}
    for shard, tensors in headers.items():
        for key, tensor in tensors.items():
            if weight_map.get(key) != shard:
                findings.append(Finding("weights", shard, f"holds {key}, for which the index names another file"))
            stored[key] = tensor
    findings += [
        Finding("weights", shard, f"lacks {key}, which the index promises")
        for key, shard in weight_map.items()
        if shard in headers and key not in headers[shard]
    ]
    return (name, *present), stored, findings


def _read_headers(
    files: RepositoryFiles, names: Iterable[str]
) -> tuple[dict[str, dict[str, StoredTensor]], list[Finding]]:
    headers, findings = {}, []
    for name in names:
        try:
            tensors = files.tensors(name)
        except UnreadableError as error:
            findings.append(Finding("weights", name, str(error)))
            continue
        if not tensors:
            findings.append(Finding("weights", name, "holds no tensors"))
        headers[name] = tensors
    return headers, findings


def _other_model(config: dict[str, Any]) -> str:
    """Why a configuration is not that of a model of hf_lam; empty if it is."""
    kind, names = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str) or not is_ours(kind) or config_class_of(kind) is None:
        return f"is of model type {kind!r}, which is none of hf_lam or none that verify builds"
    classes = class_names_of(kind)
    if not isinstance(names, list) or len(names) != 1 or names[0] not in classes:
        return f"architectures is {names!r}, not one of {', '.join(sorted(classes))}"
    parts = {key: value for key, value in config.items() if key != "model_type"}
    encoder = parts.get("encoder")
    if kind.removeprefix(PREFIX) in COMPOSED and isinstance(encoder, dict) and is_ours(encoder.get("model_type")):
        # The one that has the mechanisms is of a class of ours.
        parts["encoder"] = {**encoder, "model_type": encoder["model_type"].removeprefix(PREFIX)}
    for key, value in entries(parts):
        if key == "model_type" and (is_ours(value) or config_class_of(value) is None):
            return f"has an encoder of type {value!r}, which verify does not build"
    return _replaced_part(config)


def _replaced_part(config: dict[str, Any]) -> str:
    """The key that would take the place of a method or a class attribute; empty if none would.

    transformers sets every key of a configuration on it. (`attribute_map`, which would rename others, is a finding of
    its own.)
    """
    for part in (config, *(value for _, value in entries(config) if isinstance(value, dict))):
        kind = part.get("model_type")
        if not isinstance(kind, str):
            continue
        config_class = config_class_of(kind)
        own = {field.name for field in dataclasses.fields(config_class)} | {"model_type", "attribute_map"}
        for key in part:
            if key not in own and not isinstance(getattr(config_class, key, property()), property):
                return f"{key} would replace a part of {config_class.__name__}"
    return ""


def _build(config: dict[str, Any], stored: Mapping[str, StoredTensor]) -> tuple[Any, str]:
    """The model of a configuration without its weights; or None and why not."""
    config_class, (name,) = config_class_of(config["model_type"]), config["architectures"]
    if absurd := _absurd_sizes(config, stored):
        return None, absurd
    # The parts that a configuration does not mention; see `_is_optional`.
    structure = COMPLETE_STRUCTURE.get(name.removeprefix("HfLam"), {})
    try:
        # Whatever it says, no kernel is looked for.
        made = config_class.from_dict(_without(copy.deepcopy(config), _NOT_FOR_SHAPES), attn_implementation="eager")
        with torch.device("meta"), few_modules(min(_MOST_MODULES, 1000 + 20 * len(stored))):
            model = model_class_of(name)(made, **structure)
        model.tie_weights()
    except Exception as error:  # A made-up configuration can fail in any way, in transformers too.
        return None, f"is refused: {type(error).__name__}: {' '.join(str(error).split())}"
    return model, ""


def _without(value: Any, keys: re.Pattern[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, keys) for key, item in value.items() if not keys.fullmatch(key)}
    return [_without(item, keys) for item in value] if isinstance(value, list) else value


def _absurd_sizes(config: dict[str, Any], stored: Mapping[str, StoredTensor]) -> str:
    """Why a configuration cannot be that of the stored tensors, without building anything; empty if it can."""
    largest = max((size for tensor in stored.values() for size in tensor.shape), default=0)
    most = max(_MOST_TOKENS, 64 * largest)
    layers = min(_MOST_LAYERS, len(stored)) if stored else _MOST_LAYERS_WITHOUT_WEIGHTS
    for part, sizes in _parts(config):
        for key, value in part.items():
            # The values of a dictionary are parts of their own, and ids of tokens make nothing large.
            if sizes is not None and (key not in sizes or isinstance(value, dict) or re.search(r"_ids?$", key)):
                continue
            for number in _integers(value):
                if re.search(r"layers$|blocks$|depths?$", key) and number > layers:
                    return f"{key} is {_shown(number)}, but there are {len(stored)} tensors in all"
                if abs(number) > most:
                    return f"{key} is {_shown(number)}, but the largest axis of a tensor has {largest}"
        tokens = 1.0
        for axes, patches in (("image_size", "patch_size"), ("num_frames", "tubelet_size")):
            lengths, patch = _numbers(part.get(axes)), _numbers(part.get(patches))
            for axis, length in enumerate(lengths * 2 if axes == "image_size" and len(lengths) == 1 else lengths):
                tokens *= length / max(1, patch[min(axis, len(patch) - 1)] if patch else 1)
        if tokens > _MOST_TOKENS:
            return f"image_size and patch_size make {tokens:.0f} tokens; verify builds models of {_MOST_TOKENS}"
    return ""


def _parts(config: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Collection[str] | None]]:
    """The configuration of the model, of its encoders, features and mechanisms, with the keys that size them.

    Other keys are the user's own, such as a seed or a time; None is for all keys.
    """
    for part in (config, *(value for _, value in entries(config) if isinstance(value, dict))):
        kind = part.get("model_type")
        if isinstance(kind, str):
            config_class = config_class_of(kind)
            common = {option.name for option in dataclasses.fields(PreTrainedConfig)}
            own = {option.name for option in dataclasses.fields(config_class)} - common
            yield part, own | set(config_class.attribute_map) | {"num_labels"}
        if kind == HfLamFusionConfig.model_type and isinstance(part.get("features"), dict):
            yield from ((options, None) for options in part["features"].values() if isinstance(options, dict))
        block = part.get("hf_lam")
        if isinstance(block, dict):
            yield from ((mechanism, None) for mechanism in block.values() if isinstance(mechanism, dict))


def _shown(number: int) -> str:
    return str(number) if abs(number) < 10**20 else f"a number of {len(str(abs(number)))} digits"


def _integers(value: Any) -> Iterator[int]:
    """The integers in nested lists and dictionaries."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, (dict, list)):
            waiting += current.values() if isinstance(current, dict) else current
        elif isinstance(current, int) and not isinstance(current, bool):
            yield current


def _numbers(value: Any) -> list[float]:
    numbers = [
        number for number in (value if isinstance(value, list) else [value]) if isinstance(number, (int, float))
    ]
    return [number for number in numbers if abs(number) < 2**63]


def _compare(model: Any, stored: dict[str, StoredTensor], file: str, foreign: Sequence[str]) -> list[Finding]:
    """Findings for tensors that are missing, too many, or of another shape or kind than those of `model`.

    foreign: mechanisms that the model should have, and has not. They may also do without parts of it, so that with
        them nothing is said to be missing.
    """
    expected = nn.Module.state_dict(model)
    problems = []
    present: dict[str, torch.Tensor] = {}
    try:
        present = {name: _without_values(tensor) for name, tensor in stored.items()}
        before = sum(tensor.numel() for tensor in present.values())
        rename_legacy_keys(model, present, "")
        lost = before - sum(tensor.numel() for tensor in present.values())
        if lost:
            problems.append(f"tensors are there twice, under an old name and a new one: {lost} numbers too many")
    except Exception as error:  # Shapes can be made up, and then conversions can fail in any way.
        problems.append(f"the tensors cannot be converted: {' '.join(str(error).split())}")
    for name, tensor in present.items():
        if name not in expected and any(f".hf_lam.{mechanism}." in f".{name}" for mechanism in foreign):
            continue
        if name not in expected:
            problems.append(f"{name} with shape {list(tensor.shape)} is no tensor of {type(model).__name__}")
            continue
        wanted = expected[name]
        if wanted.shape != tensor.shape:
            problems.append(f"{name} has shape {list(tensor.shape)}, but the configuration says {list(wanted.shape)}")
        elif wanted.is_floating_point() != tensor.is_floating_point():
            kind = stored[name].dtype if name in stored else "another kind"
            problems.append(f"{name} is stored as {kind}, but is {wanted.dtype} in the model")
    twins: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        twins.setdefault(id(parameter), set()).add(name)
    for names in [] if foreign else [*twins.values(), *({name} for name, _ in model.named_buffers())]:
        wanted_names = sorted(names & set(expected))
        if wanted_names and not names & set(present) and not all(_is_optional(model, name) for name in names):
            name = wanted_names[0]
            problems.append(f"{name} with shape {list(expected[name].shape)} is missing")
    return [Finding("weights", file, problem) for problem in problems]


def _without_values(tensor: StoredTensor) -> torch.Tensor:
    """A tensor of the same shape, and of some dtype of the same kind."""
    dtype = torch.float32 if tensor.dtype.startswith(("F", "BF")) else torch.int64
    return torch.empty(tensor.shape, dtype=dtype, device="meta")


def _is_optional(model: Any, name: str) -> bool:
    """Whether loading does without: an encoder's pooler and mask token, which no configuration mentions, and marks."""
    encoder = "encoder." if is_composed(model.config) else ""
    return is_mark(name) or (
        model.base_model is model and name.removeprefix(encoder).removeprefix("embeddings.").startswith(OPTIONAL_PARTS)
    )
