"""Keep only the mechanisms of a model: a small folder, like an adapter's."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from .injecting import attach
from .modeling.host_attention_hf_lam import find_encoder
from .modeling.injection_hf_lam import injection_of, plan_injection
from .modeling.layers_hf_lam import container_of, explain_layers
from .modeling.mechanism_hf_lam import MARK

# Registers those of hf_lam.
from .modeling.mechanism_list_hf_lam import __all__ as _registered  # noqa: F401
from .modeling.mechanism_registry_hf_lam import (
    block_of,
    file_of,
    is_own_file,
    is_version,
    mechanism_block,
    mechanism_names,
    source_of,
)
from .modeling.saving_hf_lam import staging
from .modeling.version_hf_lam import __version__
from .parameters import only_injected_encoder

CONFIG_FILE = "mechanism_config.json"
WEIGHTS_FILE = "mechanism_model.safetensors"
# A key of the configuration: which file beside it registers a mechanism that is not hf_lam's own.
FILES_KEY = "mechanism_files"


def save_mechanism(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write the mechanisms of `model`, and nothing of its host, to `folder`.

    The folder holds `mechanism_config.json` and `mechanism_model.safetensors`, and the file of a mechanism that is not
    hf_lam's own, as it is. They are written beside their final place and moved there when complete.

    Raises:
        ValueError: if the model does not have mechanisms in exactly one encoder, its layers were changed in a way
            that they cannot follow, or `folder` is a file.

    Examples:
        >>> from hf_lam import LamConfig, convert, save_mechanism
        >>> save_mechanism(convert("bert-base-uncased", LamConfig(rank=8)), "masks")
    """
    base = only_injected_encoder(model)
    problem = explain_layers(base)
    if problem is not None:
        raise ValueError(problem)
    target = Path(folder)
    if target.is_file():
        raise ValueError(f"{str(folder)!r} is a file; save_mechanism needs a folder.")
    configs = injection_of(base).configs
    contents = {
        "hf_lam_version": __version__,
        "base_model_name_or_path": base.config.name_or_path,
        "host_model_type": _host_type(base),
        "hf_lam": block_of(configs),
    }
    files = {name: file_of(name) for name in configs if name in mechanism_names() and not is_own_file(file_of(name))}
    if files:
        contents[FILES_KEY] = {name: file.name for name, file in files.items()}
    tensors = {name: tensor.contiguous() for name, tensor in container_of(base).state_dict().items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    with staging(target.parent, f".{target.name}.") as partial:
        Path(partial, CONFIG_FILE).write_text(json.dumps(contents, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_file(tensors, Path(partial, WEIGHTS_FILE), metadata={"format": "pt"})
        for name, file in files.items():
            Path(partial, file.name).write_text(source_of(name), encoding="utf-8")
        target.mkdir(exist_ok=True)
        for name in (WEIGHTS_FILE, *(file.name for file in dict.fromkeys(files.values())), CONFIG_FILE):
            shutil.move(Path(partial, name), target / name)


def load_mechanism(host: PreTrainedModel, folder: str | os.PathLike[str]) -> PreTrainedModel:
    """Attach the mechanisms saved in `folder` to `host`, in place, and return it.

    Args:
        host: a model without mechanisms, with the sizes of the one they were trained on.
        folder: folder that `save_mechanism` wrote.

    Raises:
        FileNotFoundError: if the folder lacks one of its two files.
        ValueError: if a file is damaged, the mechanisms do not fit the host, or the host already has some; if one is
            not hf_lam's own, and its file was not imported. The host is unchanged.

    Examples:
        >>> from hf_lam import LamConfig, convert, load_mechanism, save_mechanism
        >>> from transformers import AutoModel
        >>> save_mechanism(convert("bert-base-uncased", LamConfig(rank=8)), "masks")
        >>> model = load_mechanism(AutoModel.from_pretrained("bert-base-uncased"), "masks")
    """
    contents, tensors = _read(Path(folder))
    host_type = _host_type(find_encoder(host))
    if contents.get("host_model_type") != host_type:
        raise ValueError(
            f"the mechanisms in {str(folder)!r} were trained on a {contents.get('host_model_type')!r}, and "
            f"{type(host).__name__} is a {host_type!r}."
        )

    _check_known(Path(folder), contents)
    plan = plan_injection(host, mechanism_block(contents.get("hf_lam")))
    state = plan.container.state_dict()
    # Folders that were saved before there were marks have none.
    tensors |= {name: state[name] for name in state if name.rpartition(".")[2] == MARK and name not in tensors}
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        name = differing[0]
        raise ValueError(
            f"the mechanisms in {str(folder)!r} do not fit {type(host).__name__}: {len(differing)} tensors "
            f"differ, the first is {name!r} with shape {found.get(name)} in the file and {expected.get(name)} for "
            "this host."
        )
    plan.container.load_state_dict(tensors)
    attach(plan)
    return host


def _check_known(folder: Path, contents: dict[str, Any]) -> None:
    """Code from a folder is never run here; the error says which file is to be read and imported."""
    files = contents.get(FILES_KEY) or {}
    for name in sorted(set(files) - set(mechanism_names())):
        raise ValueError(
            f"{str(folder)!r} has a mechanism {name!r} that is not hf_lam's own. Read {str(folder / files[name])!r}, "
            "which registers it, and import it with hf_lam.import_mechanism before loading."
        )


def _host_type(base: Any) -> str:
    return base.config.model_type.removeprefix("hf_lam_")


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{str(folder)!r} has no {name}; it was not written by save_mechanism.")
    try:
        contents = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(folder / CONFIG_FILE)!r} is not valid JSON: {error}") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{str(folder / CONFIG_FILE)!r} must hold a JSON object, got {contents!r}.")
    for key, is_right, wanted in (
        ("hf_lam_version", is_version(contents.get("hf_lam_version", __version__)), "a version of hf_lam"),
        (FILES_KEY, isinstance(contents.get(FILES_KEY, {}), dict), "a dictionary of files"),
    ):
        if not is_right:
            raise ValueError(f"{key} in {str(folder / CONFIG_FILE)!r} must be {wanted}, got {contents[key]!r}.")
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"{str(folder / WEIGHTS_FILE)!r} is damaged: {error}") from error
    return contents, tensors
