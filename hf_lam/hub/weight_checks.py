"""Checks of the weights of a repository against its configuration, from the headers of the files alone."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..modeling import modeling_hf_lam, modeling_hf_lam_fusion
from ..modeling.configuration_hf_lam import HfLamBertConfig, HfLamVideoMAEConfig, HfLamViTConfig
from ..modeling.configuration_hf_lam_fusion import HfLamFusionConfig
from .file_checks import entries
from .repository_files import Finding, RepositoryFiles, StoredTensor, UnreadableError, leaves_folder

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_CONFIGS: dict[str, Any] = {
    config.model_type: config for config in (HfLamBertConfig, HfLamViTConfig, HfLamVideoMAEConfig, HfLamFusionConfig)
}
# What a configuration may not make the model that is built here do, and does not need for its shapes.
_NOT_FOR_SHAPES = re.compile(r"auto_map|custom_pipelines|quantization_config|transformers_weights|.*_implementation")
# No configuration may make the check slow: its sizes are bound by those of the tensors in the file, and by these.
_MOST_LAYERS = 1000
_MOST_TOKENS = 65_536


def check_weights(files: RepositoryFiles, configs: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Finding]]:
    """The files that loading reads weights from, and findings: files that are damaged, and tensors that do not fit."""
    headers, findings = _read_headers(files)
    config = configs.get("config.json")
    loaded, stored, more = _loaded_tensors(files, configs, headers)
    findings += more
    findings += [
        Finding("weights", name, "is not among the weights that are loaded") for name in headers if name not in loaded
    ]
    if not isinstance(config, dict):
        return loaded, [*findings, Finding("config", "config.json", "is missing, or is no configuration")]
    if "quantization_config" in config:
        message = "the weights are quantized, which verify cannot compare with the configuration"
        return loaded, [*findings, Finding("config", "config.json", message)]
    if refusal := _other_model(config):
        return loaded, [*findings, Finding("config", "config.json", refusal)]
    if not stored:
        return loaded, findings
    model, refusal = _build(config, stored)
    if model is None:
        return loaded, [*findings, Finding("config", "config.json", refusal)]
    return loaded, findings + _compare(model, stored, loaded[0])


def _read_headers(files: RepositoryFiles) -> tuple[dict[str, dict[str, StoredTensor]], list[Finding]]:
    headers, findings = {}, []
    for name in files.sizes:
        if name.lower().endswith(".safetensors"):
            try:
                headers[name] = files.tensors(name)
            except UnreadableError as error:
                findings.append(Finding("weights", name, str(error)))
    return headers, findings


def _loaded_tensors(
    files: RepositoryFiles, configs: Mapping[str, Any], headers: Mapping[str, dict[str, StoredTensor]]
) -> tuple[tuple[str, ...], dict[str, StoredTensor], list[Finding]]:
    """Which files `from_pretrained` takes, and the tensors in them."""
    config = configs.get("config.json")
    explicit = config.get("transformers_weights") if isinstance(config, dict) else None
    candidates = [explicit] if explicit is not None else [WEIGHTS, INDEX]
    name = next((name for name in candidates if isinstance(name, str) and name in files.sizes), None)
    if name is None:
        wanted = " or ".join(map(repr, candidates))
        return (), {}, [Finding("weights", "", f"has no weights: there is no {wanted}")]
    if not name.endswith(".index.json"):
        if name.endswith(".safetensors"):
            return (name,), dict(headers.get(name, {})), []
        return (name,), {}, [Finding("weights", name, "is loaded as weights, and is not safetensors")]
    index = configs.get(name)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        return (name,), {}, [Finding("weights", name, "has no weight_map from tensors to files")]
    findings = []
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if leaves_folder(shard):
            findings.append(Finding("path", name, f"weight_map names {shard!r}, which is not in the repository"))
        elif shard not in files.sizes:
            findings.append(Finding("weights", name, f"weight_map names {shard!r}, which is not here"))
        elif not shard.endswith(".safetensors"):
            findings.append(Finding("weights", name, f"weight_map names {shard!r}, which is not safetensors"))
    stored: dict[str, StoredTensor] = {}
    for shard in shards:
        for key, tensor in headers.get(shard, {}).items():
            if weight_map.get(key) != shard:
                findings.append(Finding("weights", shard, f"holds {key}, for which the index names another file"))
            stored[key] = tensor
    findings += [
        Finding("weights", shard, f"lacks {key}, which the index promises")
        for key, shard in weight_map.items()
        if shard in headers and key not in headers[shard]
    ]
    return (name, *(shard for shard in shards if shard in files.sizes)), stored, findings


def _other_model(config: dict[str, Any]) -> str:
    """Why a configuration is not that of a model of hf_lam; empty if it is."""
    kind, names = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str) or kind not in _CONFIGS:
        return f"is of model type {kind!r}; those of hf_lam are {', '.join(_CONFIGS)}"
    classes = tuple(_CONFIGS[kind].auto_classes.values())
    if not isinstance(names, list) or len(names) != 1 or names[0] not in classes:
        return f"architectures is {names!r}, not one of {', '.join(classes)}"
    return ""


def _build(config: dict[str, Any], stored: Mapping[str, StoredTensor]) -> tuple[Any, str]:
    """The model of a configuration without its weights; or None and why not."""
    config_class, (name,) = _CONFIGS[config["model_type"]], config["architectures"]
    if absurd := _absurd_sizes(config, stored):
        return None, absurd
    model_class = getattr(modeling_hf_lam, name, None) or getattr(modeling_hf_lam_fusion, name)
    # The parts that a configuration does not mention; see `_is_optional`.
    structure = {"use_mask_token": True} if name == "HfLamViTModel" else {}
    try:
        made = config_class.from_dict(_without(copy.deepcopy(config), _NOT_FOR_SHAPES))
        with torch.device("meta"):
            model = model_class(made, **structure)
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
    layers = min(_MOST_LAYERS, len(stored))
    for key, value in entries(config):
        numbers = [value] if not isinstance(value, list) else value
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int):
                continue
            if re.search(r"layers$|blocks$|depths?$", key) and number > layers:
                return f"{key} is {number}, but there are {len(stored)} tensors in all"
            if abs(number) > most:
                return f"{key} is {number}, but the largest axis of a tensor has {largest}"
    for part in (config, *(value for _, value in entries(config) if isinstance(value, dict))):
        tokens = 1.0
        for axes, patches in (("image_size", "patch_size"), ("num_frames", "tubelet_size")):
            sizes, patch = _numbers(part.get(axes)), _numbers(part.get(patches))
            for axis, size in enumerate(sizes * 2 if axes == "image_size" and len(sizes) == 1 else sizes):
                tokens *= size / max(1, patch[min(axis, len(patch) - 1)] if patch else 1)
        if tokens > _MOST_TOKENS:
            return f"image_size and patch_size make {tokens:.0f} tokens; verify builds models of {_MOST_TOKENS}"
    return ""


def _numbers(value: Any) -> list[float]:
    return [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, (int, float))]


def _compare(model: Any, stored: dict[str, StoredTensor], file: str) -> list[Finding]:
    """Findings for tensors that are missing, too many, or of another shape or kind than those of `model`."""
    expected = nn.Module.state_dict(model)
    present: dict[str, Any] = dict(stored)
    # It looks at names only.
    modeling_hf_lam._rename_legacy_keys(model, present, "")
    problems = []
    if len(present) < len(stored):
        problems.append(f"{len(stored) - len(present)} tensors are there twice, under an old name and a new one")
    for name, tensor in present.items():
        if name not in expected:
            problems.append(f"{name} with shape {list(tensor.shape)} is no tensor of {type(model).__name__}")
            continue
        wanted = expected[name]
        if tuple(wanted.shape) != tensor.shape:
            problems.append(f"{name} has shape {list(tensor.shape)}, but the configuration says {list(wanted.shape)}")
        elif wanted.is_floating_point() != tensor.dtype.startswith(("F", "BF")):
            problems.append(f"{name} is stored as {tensor.dtype}, but is {wanted.dtype} in the model")
    twins: dict[int, set[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        twins.setdefault(id(tensor), set()).add(name)
    for names in [*twins.values(), *({name} for name, _ in model.named_buffers())]:
        wanted_names = sorted(names & set(expected))
        if wanted_names and not names & set(present) and not all(_is_optional(model, name) for name in names):
            name = wanted_names[0]
            problems.append(f"{name} with shape {list(expected[name].shape)} is missing")
    return [Finding("weights", file, problem) for problem in problems]


def _is_optional(model: Any, name: str) -> bool:
    """Whether loading does without: an encoder's pooler and mask token, which no configuration mentions."""
    return model.base_model is model and name.startswith(("pooler.", "embeddings.mask_token"))
