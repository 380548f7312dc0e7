"""Checks of the files of a repository that are neither code nor weights: of what kind they are and what they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from .repository_files import Finding, RepositoryFiles, UnreadableError, leaves_folder

HARMLESS = re.compile(
    r"\.(json|jsonl|md|rst|txt|csv|tsv|yaml|yml|bib|cff|jinja|model|png|jpg|jpeg|gif|webp|svg|safetensors|py)"
)
HARMLESS_NAMES = re.compile(
    r"\.gitattributes|\.gitignore|(LICENSE|NOTICE|COPYING|README|AUTHORS)(-\w+)?|.*\.tfevents\.[\w.-]+"
)
PICKLES = re.compile(r"\.(bin|pt|pth|pkl|pickle|ckpt|joblib|npy|npz|dill|cloudpickle|p)")
OTHER_WEIGHTS = re.compile(r"\.(h5|hdf5|keras|msgpack|onnx|tflite|pb|gguf|ggml|ot|mlmodel|pte|pt2)")
BINARIES = re.compile(r"\.(py[cod]|so|dll|dylib|exe|o|a|lib|whl|egg|jar|class|wasm|com|bat|msi)")
_EXECUTABLE_HEADS = (
    b"\x7fELF",
    b"MZ",
    b"\xfe\xed\xfa\xce",
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
)
# What a pickle needs to call something when it is read.
_CALLING_OPCODES = re.compile(r"GLOBAL|STACK_GLOBAL|INST|OBJ|NEWOBJ|NEWOBJ_EX|REDUCE|BUILD|EXT[124]|PERSID|BINPERSID")

# Large and without anything that names code.
_PLAIN_DATA = ("tokenizer.json", "vocab.json")


def suffix_of(name: str) -> str:
    base = name.rpartition("/")[2]
    return "." + base.rpartition(".")[2].lower() if "." in base else ""


def check_kinds(files: RepositoryFiles) -> list[Finding]:
    """Findings for pickles, other weights, compiled code and files of an unknown kind, by their names and contents."""
    findings = []
    for name in files.sizes:
        found = check_name(name)
        findings += _check_contents(files, name) if found is None else [found]
    return findings


def check_name(name: str) -> Finding | None:
    """The finding for a pickle, other weights, compiled code or a file of an unknown kind, as far as its name says."""
    suffix = suffix_of(name)
    if PICKLES.fullmatch(suffix):
        return Finding("pickle", name, f"{suffix} files hold pickles, which run code when they are read")
    if OTHER_WEIGHTS.fullmatch(suffix):
        return Finding("weights", name, f"{suffix} files are not safetensors")
    if BINARIES.fullmatch(suffix):
        return Finding("binary", name, f"{suffix} files hold compiled code or commands")
    if not HARMLESS.fullmatch(suffix) and not HARMLESS_NAMES.fullmatch(name.rpartition("/")[2]):
        return Finding("file", name, "is of a kind that no hf_lam repository needs")
    return None


def _check_contents(files: RepositoryFiles, name: str) -> list[Finding]:
    head = files.beginning(name, 65536)
    if head is None:
        return []
    if suffix_of(name) == ".safetensors":
        try:
            # The length of the header, which comes first, can look like the beginning of a pickle.
            files.tensors(name)
            return []
        except UnreadableError:
            pass
    if is_pickle(head):
        return [Finding("pickle", name, "holds a pickle, whatever its name says")]
    if head.startswith(b"PK\x03\x04"):
        return [Finding("pickle", name, "is a zip archive, as torch.save makes them around a pickle")]
    if head.startswith(b"\x93NUMPY"):
        return [Finding("pickle", name, "is a numpy file, which can hold a pickle")]
    if head.startswith(_EXECUTABLE_HEADS) or (head.startswith(b"#!") and suffix_of(name) != ".py"):
        return [Finding("binary", name, "is a program")]
    return []


def is_pickle(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a pickle of any protocol. They are read, not run."""
    import pickletools  # Here: transformers does not load it, and importing hf_lam loads nothing more.

    names: list[str] = []
    has_ended = False
    try:
        for opcode, _, _ in pickletools.genops(head):
            names.append(opcode.name)
        has_ended = True
    except Exception:  # Whatever the bytes are: what was read before is what counts.
        pass
    if names[:1] == ["PROTO"] and head[1] <= 5:
        return has_ended or len(names) > 3
    # Protocols 0 and 1 have no mark; many a text begins with a letter that is an opcode.
    return has_ended and any(map(_CALLING_OPCODES.fullmatch, names))


def read_configs(files: RepositoryFiles) -> tuple[dict[str, Any], list[Finding]]:
    """Every JSON file that transformers could read as a configuration, and findings for what is none."""
    configs, findings = {}, []
    for name in files.sizes:
        base = name.rpartition("/")[2]
        if suffix_of(name) != ".json" or base in _PLAIN_DATA:
            continue
        try:
            configs[name] = json.loads(files.read(name).decode("utf-8"))
        except UnreadableError as error:
            findings.append(Finding("size", name, str(error)))
        except (ValueError, RecursionError) as error:
            findings.append(Finding("config", name, f"is not JSON: {error}"))
    return configs, findings


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested dictionaries and lists."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            yield from current.items()
            waiting += current.values()
        elif isinstance(current, list):
            waiting += current


def check_references(configs: dict[str, Any]) -> list[Finding]:
    """Findings for what makes loading read from elsewhere: other repositories, and paths out of the folder."""
    findings = []
    for name, config in configs.items():
        base = name.rpartition("/")[2]
        for key, value in entries(config):
            if key.endswith("_file") or key in ("transformers_weights", "init_inputs"):
                findings += [
                    Finding("path", name, f"{key} is {path!r}, which is not in the repository")
                    for path in (value if isinstance(value, list) else [value])
                    if isinstance(path, str) and leaves_folder(path)
                ]
            if key in ("configuration_files", "fast_tokenizer_files") and value:
                findings.append(Finding("config", name, f"{key} lets other files take the place of the usual ones"))
            if key.endswith("_implementation"):
                kernels = [value] if isinstance(value, str) else [kernel for _, kernel in entries(value)]
                findings += [
                    Finding("repository", name, f"{key}: the code of the kernel {kernel!r} would be loaded")
                    for kernel in kernels
                    if isinstance(kernel, str) and "/" in kernel
                ]
            if key in ("use_pretrained_backbone", "use_timm_backbone") and value:
                findings.append(Finding("repository", name, f"{key}: weights of another repository would be loaded"))
            if key == "model_type" and isinstance(value, str) and value.startswith("timm"):
                findings.append(Finding("repository", name, f"model_type {value!r} takes its model from timm"))
        if base == "adapter_config.json":
            origin = config.get("base_model_name_or_path") if isinstance(config, dict) else None
            findings.append(Finding("repository", name, f"is PEFT's, which would load the model {origin!r}"))
    return findings
