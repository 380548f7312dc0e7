"""`verify`: is it safe to load a repository with `trust_remote_code=True`? Answered without running any of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id
from transformers.utils import HF_MODULES_CACHE

from ..modeling.configuration_hf_lam import block_in
from ..result_tables import Readable, ResultTable
from .buildable import config_class_of
from .code_checks import Code, check_auto_maps, check_code, closure, released_code, targets_of
from .file_checks import check_kinds, check_references, read_configs
from .finite_weights import check_finite
from .key_checks import check_keys, unsaid
from .known_keys import MODELS
from .repository_files import (
    Finding,
    HubFiles,
    LocalFiles,
    ModelFiles,
    RepositoryFiles,
    hub_host,
    models_in,
)
from .sentence_modules import check_modules, is_read, modules_in, parts_in
from .tokenizer_files import check_tokenizers
from .weight_checks import check_parts, check_weights

__all__ = ["Finding", "Verification", "verify"]

# Models in one repository, each of which costs what one does.
_MOST_MODELS = 16
# Findings of one kind in one file that are told one by one.
_SHOWN = 20


@dataclass(frozen=True)
class Verification(Readable):
    """The result of `verify`.

    source: the folder or the repository id that was asked about.
    revision: the commit that was looked at; None for a folder.
    version: release of hf_lam whose code it is, byte for byte; None if it is the code of none, or if there is code
        from elsewhere.
    code: the SHA-256 of each Python file.
    imports: the packages that the code imports besides its own files, those of Python too.
    hosts: the hosts that loading it with `trust_remote_code=True` would reach, as far as its files tell; the Hub
        sends large files from storage hosts of its own besides.
    reads: the files of the repository that loading a model, a tokenizer or a processor reads.
    writes: the folders on this machine that loading writes to.
    findings: problems that were found; empty if all is well.
    """

    source: str
    revision: str | None
    version: str | None
    code: dict[str, str]
    imports: tuple[str, ...]
    hosts: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether there are no findings."""
        return not self.findings

    def tables(self) -> tuple[ResultTable, ...]:
        """The tables that a notebook shows: what is wrong, and what loading would touch."""
        from .verification_tables import verification_table

        return (verification_table(self),)

    def __str__(self) -> str:
        from .verification_tables import verification_text

        return verification_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values, and `passed`."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()} | {
            "passed": self.passed
        }


def verify(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    weights: bool = False,
) -> Verification:
    """Check a repository before you trust its code. None of it is run, and nothing is unpickled.

    `verify` reads the contents of the files and checks that

    - every Python file is byte for byte that of one released hf_lam, and that all files are there which loading needs;
    - in the files that transformers, sentence-transformers and PEFT read while they load, every key at every depth is
      known to name no code and no place elsewhere;
    - the weights are safetensors, whole, and those of the model that the configuration describes;
    - tokenizers are whole and have no more tokens than the model;
    - the modules of sentence-transformers have their options and weights;
    - there are no pickles, programs, files of unknown kinds, or paths and links that leave the repository.

    Whatever `verify` does not know is a finding too: keys and modules that are in no table, mechanisms from elsewhere,
    whose code is in no release, classes of processors and encoders of fusion models that were not looked through, and
    files that are too large to be read.

    A model that passes and is loaded with `trust_remote_code=True` at the commit that was checked therefore runs only
    the code of the release, of transformers and of the libraries, and reads nothing from elsewhere. The check does not
    tell you what the model computes: weights may be wrong or trained to harm, labels may be swapped, a vocabulary may
    mean other words, and a prompt or a chat template may say what it likes.

    A folder in the repository with a configuration, and code or weights beside it, is checked as a model of its own;
    the modules of sentence-transformers that its `modules.json` lists belong to it. In a repository on the Hub, files
    that nothing here reads, such as pictures, are judged by their names.

    Args:
        source: a folder, or the id of a model repository on the Hub. From the Hub, small files are downloaded into the
            usual cache, and only the headers of weights.
        weights: whether to read all weights besides, a slice at a time and into no file, and find NaN and infinity.
        revision: branch, tag or commit of a repository. The commit that it stands for is checked and returned; give it
            to `from_pretrained` to load exactly that.
        token: token for the Hub, as in huggingface_hub.

    Returns:
        A `Verification`; its `passed` says whether there are no findings.

    Raises:
        ValueError: if `source` is neither a folder nor a repository, if there is no such revision, or for a `revision`
            of a folder.
        huggingface_hub.errors.HfHubHTTPError: for any other refusal of the Hub. Errors of the network are as they are
            in huggingface_hub.

    Examples:
        >>> from hf_lam import LamConfig, convert, verify
        >>> convert("bert-base-uncased", LamConfig(rank=8)).save_pretrained("bert-lam")
        >>> verify("bert-lam").passed
        True
    """
    files = _files_of(source, revision, token)
    modules = modules_in(files)
    folders = models_in(files, parts_in(modules))
    # sentence-transformers once had the model in a folder, and in the root only the list of its modules.
    in_folders = any(folder and modules.get(folder) in MODELS for folder in folders)
    lists_models = in_folders and "config.json" not in files.sizes
    released = released_code()
    models = [
        _look_at(ModelFiles(files, folder, folders), released, bool(folder) or not lists_models, weights)
        for folder in folders[:_MOST_MODELS]
    ]
    # After they were looked at, which may find files that cannot be read.
    findings = list(files.findings)
    if len(folders) > _MOST_MODELS:
        findings.append(Finding("size", "", f"holds {len(folders)} models; verify looks at {_MOST_MODELS}"))
    findings += [finding for model in models for finding in model.findings]
    hosts = {host for model in models for host in model.code.hosts}
    if isinstance(files, HubFiles) or any(finding.kind in ("repository", "key") for finding in findings):
        hosts.add(hub_host())
    with_code = [model.code for model in models if model.is_model]
    versions = {None if code.foreign else code.version for code in with_code}
    return Verification(
        source=os.fspath(source),
        revision=files.revision,
        version=None if None in versions else with_code[0].version,
        code=dict(sorted((model.files.named(name), x) for model in models for name, x in model.code.hashes.items())),
        imports=tuple(sorted({name for model in models for name in model.code.imports})),
        hosts=tuple(sorted(hosts)),
        reads=tuple(sorted({model.files.named(name) for model in models for name in model.reads})),
        writes=_writes(files, any(model.run for model in models)),
        findings=_summed_up(findings),
    )


class _Model(NamedTuple):
    """The findings about one model of a repository; `findings` name the files as they are in the repository.

    is_model: whether there is one. In the root may be a list of the modules of sentence-transformers alone.
    run: the Python files that loading runs.
    reads: the files that loading reads.
    """

    files: ModelFiles
    is_model: bool
    code: Code
    run: set[str]
    reads: set[str]
    findings: list[Finding]


def _look_at(
    files: ModelFiles, released: Mapping[str, Mapping[str, str]], is_model: bool, are_weights_read: bool
) -> _Model:
    configs, findings = read_configs(files)
    config = configs.get("config.json")
    named = _named_version(config)
    modules = modules_in(files)
    code = check_code(files, released, named)
    if is_model or code.hashes:
        findings += code.findings
    findings += check_auto_maps(files, configs, code)
    findings += check_references(configs)
    findings += check_kinds(files)
    strange_keys = check_keys(configs, modules, config_class_of, is_model)
    parts, part_findings = check_parts(files, parts_in(modules))
    loaded: tuple[str, ...] = ()
    if is_model:
        loaded, weight_findings = check_weights(files, configs, findings + strange_keys, code.file_of, parts)
        findings += weight_findings
    findings += part_findings + check_modules(files, configs, modules) + unsaid(strange_keys, findings)
    findings += check_tokenizers(files, configs, config)
    if are_weights_read:
        findings += check_finite(files, [name for name in (*loaded, *parts) if name.endswith(".safetensors")])
    if named is not None and code.version is not None and named != code.version:
        message = f"was written by hf_lam {named}, but the code is that of {code.version}"
        findings.append(Finding("config", "config.json", message))
    run = closure(targets_of(configs), code)[0]
    reads = {*loaded, *parts, *run} | {name for name in files.sizes if is_read(name, modules)}
    findings = [replace(found, file=files.named(found.file)) for found in findings]
    return _Model(files, is_model, code, run, reads, findings)


def _files_of(source: str | os.PathLike[str], revision: str | None, token: str | bool | None) -> LocalFiles | HubFiles:
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"verify takes a folder or the id of a repository on the Hub, got {type(source).__name__}.")
    if os.path.isdir(source):
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} has no meaning for the folder {str(source)!r}; it is for a repository on the "
                "Hub."
            )
        return LocalFiles(source)
    try:
        if not isinstance(source, str):
            raise HFValidationError("a path")
        validate_repo_id(source)
    except HFValidationError as error:
        raise ValueError(
            f"{os.fspath(source)!r} is neither a folder here nor the id of a repository on the Hub, such as "
            "'user/model'."
        ) from error
    return HubFiles(source, revision, token)


def _summed_up(findings: list[Finding]) -> tuple[Finding, ...]:
    """Each finding once, and of many of one kind in one file the first."""
    counts: Counter[tuple[str, str]] = Counter()
    shown = []
    for finding in dict.fromkeys(findings):
        counts[finding.kind, finding.file] += 1
        if counts[finding.kind, finding.file] <= _SHOWN:
            shown.append(finding)
    for (kind, file), count in counts.items():
        if count > _SHOWN:
            shown.append(Finding(kind, file, f"and {count - _SHOWN} more of this kind"))
    return tuple(shown)


def _named_version(config: Any) -> str | None:
    block = block_in(config) if isinstance(config, dict) else None
    version = block.get("version") if isinstance(block, Mapping) else None
    return version if isinstance(version, str) else None


def _writes(files: RepositoryFiles, has_code: bool) -> tuple[str, ...]:
    places = [str(Path(HF_MODULES_CACHE, "transformers_modules"))] if has_code else []
    if isinstance(files, HubFiles):
        places.append(str(Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=files.repo_id, repo_type="model"))))
    return tuple(places)
