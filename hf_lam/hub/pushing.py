"""Push a model to the Hub: weights, code, processor, card and pictures in one commit, or nothing."""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, EvalResult, get_token
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..flops import example_inputs
from ..modeling.hosts_facts_hf_lam import is_composed
from ..modeling.version_hf_lam import LIST_FILE, __version__
from .cards import draw_pictures, model_card, saved_class, saved_model, task_of
from .code_checks import MANIFEST, UNRELEASED, released_code, split_list
from .earlier_cards import CARD_FILE, CardContent, card_in, weights_of
from .file_checks import check_name
from .finite_weights import refuse_infinite
from .folders import Measured, as_results, copy_results, load_model, load_processor, measured
from .names import heads_of, looks_like_hub_id
from .processor_checks import try_processor
from .processors import copy_processor, modalities_of
from .remote import Branch, limited_waiting
from .sentence_modules import copy_modules
from .verification import verify

# What an earlier push may have left, in whatever format, and would be loaded in place of what this one brings; besides
# the code of any version.
_WEIGHTS = re.compile(
    r"(model|adapter_model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?|adapter_config\.json|adapter_model\.bin"
    r"|pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?|tf_model\.h5|flax_model\.msgpack|training_args\.bin"
)
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
# The text in the pictures of a text model, unless inputs are given.
_SENTENCE = "The cat that the dog chased sat on the mat."


@dataclass(frozen=True)
class PushReport:
    """The commit that [`push`] made, or would make.

    repo_id, revision: the repository and the branch.
    files: everything that is uploaded: paths in the repository, and bytes.
    deleted: files of the repository that the same commit removes: weights and code of an earlier push.
    notes: notes for the user.
    commit: None for a dry run.
    """

    repo_id: str
    revision: str
    files: dict[str, int]
    deleted: tuple[str, ...]
    notes: tuple[str, ...]
    commit: CommitInfo | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        commit = self.commit
        described = None if commit is None else {"url": commit.commit_url, "oid": commit.oid, "pr_url": commit.pr_url}
        return {**asdict(self), "deleted": list(self.deleted), "notes": list(self.notes), "commit": described}


def push(
    model: PreTrainedModel | str | os.PathLike[str],
    repo_id: str,
    *,
    processor: Any = None,
    metrics: Mapping[str, float] | Sequence[EvalResult] | None = None,
    dataset: str | None = None,
    base_model: str | Sequence[str] | None = None,
    license: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    tags: Sequence[str] | str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    token: str | bool | None = None,
    max_shard_size: int | str = "50GB",
    dry_run: bool = False,
) -> PushReport:
    """Push a model with its code, its processor and its card to the Hub, in one commit.

    Everything is made and checked before anything is sent: the tokenizer or processor is loaded and tried once, and
    weights that are NaN or infinite are refused. Weights of whatever format and code that an earlier push
    left, and that this one does not bring, are deleted by the same commit; other files of the repository stay.
    Sections of the card that is there stay, if its template does not have them (`Data` and `Training` are the run's).

    Args:
        model: an `HfLam…` model, one of transformers with injected mechanisms, or a folder that one was saved in: by
            `save_pretrained`, by `Trainer`, or one of its checkpoints. Of a folder, only the model, its processor,
            what sentence-transformers has beside it, the results of its run and its card are taken, never pickles,
            states of optimizers or logs.
        repo_id: `you/name`, or `name` for your own namespace. It is created unless it exists.
        processor: tokenizer, image processor, feature extractor or processor, saved beside the model; of a folder,
            the one in it unless given.
        metrics: metrics of the model: as `Trainer.evaluate` or `evaluate` return them (`{"eval_accuracy": 0.9}`), or
            huggingface_hub's `EvalResult`s. For a folder, those of its run unless given.
        dataset: data set that `metrics` were measured on: an id on the Hub, or a name.
        base_model: ids on the Hub that the weights come from; unless given, what the model was loaded from, or what
            the card in the folder says.
        license: its identifier on the Hub; that of the base unless given.
        inputs: a batch that the model is called with, for the pictures on the card. Unless given, an empty one of the
            right size, or, with a tokenizer, a sentence.
        tags: further tags of the card.
        private: whether a new repository is private; unless given, as its owner's default.
        revision: branch to push to, made unless it exists; `main` unless given.
        create_pr: open a pull request with the commit.
        commit_message: its first line.
        commit_description: the rest of it.
        token: token for the Hub; unless given, the one that `hf auth login` stored.
        max_shard_size: largest size of a file of weights.
        dry_run: make and check everything, and send nothing.

    Returns:
        The files that were uploaded, and the commit.

    Raises:
        TypeError, ValueError: for what is no model, folder or argument as described, before anything is sent.
        PushError: if the Hub refuses, or cannot be reached. No commit was made then. Temporary failures are retried
            before.

    Examples:
        >>> from hf_lam import LamConfig, convert, push
        >>> model = convert("bert-base-uncased", LamConfig(rank=8))
        >>> report = push(model, "you/bert-lam", metrics={"accuracy": 0.9}, dataset="mine", dry_run=True)
        >>> "model.safetensors" in report.files
        True
    """
    source = None if isinstance(model, PreTrainedModel) else _folder_of(model)
    said = _Said(metrics, dataset, base_model, license, inputs, [tags] if isinstance(tags, str) else tags or [])
    _check_arguments(repo_id, said, revision, create_pr, processor)
    _check_adapters(model)
    loaded: Any = saved_model(model) if source is None else load_model(source)
    _check_model(loaded)
    refuse_infinite(loaded.state_dict())
    beside = load_processor(source, loaded) if source is not None and processor is None else None
    if processor is not None:
        try_processor(processor, loaded.config, "processor")
    hub = Branch(repo_id, revision, create_pr, token, is_needed=not dry_run)
    with tempfile.TemporaryDirectory(prefix="hf-lam-push-") as scratch, limited_waiting():
        notes = hub.look()
        if private is not None and hub.is_private not in (None, private):
            stays = "private" if hub.is_private else "public"
            notes.append(f"The repository stays {stays}; private= is for a new one.")
        folder = Path(scratch)
        if processor is not None:
            processor.save_pretrained(folder)
        elif source is not None:
            copy_processor(source, folder, beside)
            processor = beside
        if source is not None:
            notes += copy_modules(source, folder)
        # After the processor, which brings code of its own: the model's has to be complete.
        loaded.save_pretrained(folder, max_shard_size=max_shard_size)
        notes += _write_card(loaded, processor, source, folder, said, hub)
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        title = commit_message or f"Upload {saved_class(loaded).__name__} with hf_lam {__version__}"
        _refuse_tokens(files, f"{title}\n{commit_description or ''}", token)
        own = {name for code in released_code(MANIFEST).values() for name in code} | UNRELEASED | _foreign_code(hub)
        deleted = tuple(sorted(path for path in hub.files if _is_own(path, own) and path not in files))
        others = filter(None, map(check_name, sorted(set(hub.files) - set(files) - set(deleted))))
        notes += [f"`hf-lam verify` will say: {x.file}: {x.message}." for x in (*verify(folder).findings, *others)]
        commit = None if dry_run else hub.commit(files, deleted, title, commit_description, private)
        opened = None if commit is None else commit.pr_revision
        return PushReport(
            repo_id=hub.repo_id,
            revision=opened or revision or "main",
            files={name: path.stat().st_size for name, path in files.items()},
            deleted=deleted,
            notes=tuple(notes),
            commit=commit,
        )


@dataclass(frozen=True)
class _Said:
    """Facts about the model from the caller; see `push`."""

    metrics: Mapping[str, float] | Sequence[EvalResult] | None
    dataset: str | None
    base_model: str | Sequence[str] | None
    license: str | None
    inputs: Mapping[str, Any] | None
    tags: Sequence[str]


def _write_card(model: Any, processor: Any, source: Path | None, folder: Path, said: _Said, hub: Branch) -> list[str]:
    """Write the card and its pictures into `folder`, where the model is, with what a run has left in `source`.

    Returns:
        Notes for the user about it.
    """
    earlier = _earlier_card(model, source)
    published, notes = hub.card()
    found: list[Measured] = []
    if source is not None:
        found, left_out = copy_results(source, folder, is_described=earlier.weights is not None)
        notes += left_out
    titles = {title for title, _ in earlier.sections}
    kept = [(title, body) for title, body in published.sections if title not in titles]
    if kept:
        notes.append(f"Kept of the card in the repository: {', '.join(title for title, _ in kept)}.")
    bases = _bases(model, said.base_model, earlier, published, hub)
    if not bases and earlier.origin is None and said.base_model is None:
        notes.append("The card names no base model, since that is not known; give base_model=.")
    terms, about_terms = _license(said.license, earlier, published, bases, hub)
    pictures, about_pictures = _draw(model, processor, said.inputs, folder, source, earlier)
    content = CardContent(
        bases=bases,
        license=terms,
        language=earlier.language or published.language,
        datasets=_datasets(earlier, said.dataset),
        tags=[*said.tags, *earlier.tags, *published.tags],
        further={**published.further, **earlier.further},
        sections=[*kept, *earlier.sections],
        weights=weights_of(folder),
        results=_results(said, earlier, found, task_of(model)),
        origin=earlier.origin if said.base_model is None else None,
        data=earlier.data,
        training=earlier.training,
        pictures=pictures,
    )
    card = model_card(model, content, name=hub.repo_id.split("/")[-1], repository=hub.repo_id, processor=processor)
    card.save(folder / CARD_FILE)
    return notes + about_terms + about_pictures


def _is_own(path: str, code: Collection[str]) -> bool:
    return _WEIGHTS.fullmatch(path) is not None or path in code


def _foreign_code(hub: Branch) -> set[str]:
    """The files of mechanisms from elsewhere that an earlier push brought."""
    if LIST_FILE not in hub.files:
        return set()
    try:
        _, foreign = split_list(hub.read(LIST_FILE))
    except (HTTPError, OSError):  # then they stay, and `verify` names them
        return set()
    return set(foreign)


# --- What is checked before anything is done -------------------------------------------------------------------------


def _folder_of(model: Any) -> Path:
    if not isinstance(model, (str, os.PathLike)):
        hint = " Push what merge_and_unload() returns." if hasattr(model, "merge_and_unload") else ""
        raise TypeError(
            f"push takes an HfLam… model or a folder that one was saved in, got {type(model).__name__}.{hint}"
        )
    folder = Path(model).resolve()
    if not (folder / "config.json").is_file():
        found = "has no config.json" if folder.is_dir() else "is no folder"
        if (folder / "adapter_config.json").is_file():
            found += " but adapters; push what merge_and_unload() returns"
        raise ValueError(f"{str(folder)!r} {found}. Give a folder that an HfLam… model was saved in.")
    return folder


def _check_arguments(repo_id: str, said: _Said, revision: str | None, create_pr: bool, processor: Any) -> None:
    for option, given, kinds in (
        ("repo_id", repo_id, str),
        ("dataset", said.dataset, (str, type(None))),
        ("base_model", said.base_model, (str, list, tuple, type(None))),
        ("license", said.license, (str, type(None))),
        ("inputs", said.inputs, (Mapping, type(None))),
        ("tags", said.tags, (list, tuple)),
    ):
        if not isinstance(given, kinds):
            raise TypeError(f"{option} cannot be of type {type(given).__name__}: {given!r}.")
    validate_repo_id(repo_id)
    if revision == "":
        raise ValueError("revision is the name of a branch, got ''; leave it out for the main one.")
    if said.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", said.license):
        raise ValueError(
            f"license must be an identifier of the Hub, such as 'apache-2.0' or 'mit', got {said.license!r}."
        )
    if revision is not None and create_pr and revision != "main":
        raise ValueError(f"a pull request is opened against main; leave out revision={revision!r} or create_pr.")
    if processor is not None and not hasattr(processor, "save_pretrained"):
        raise TypeError(
            f"processor must be a tokenizer or a processor of transformers, got {type(processor).__name__}."
        )
    if isinstance(said.metrics, Mapping):
        for name, value in said.metrics.items():
            if not isinstance(name, str) or not name.strip("_"):
                raise TypeError(f"metrics must have names, such as 'accuracy', got {name!r}.")
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"metrics must be numbers, {name!r} is {value!r}.")
            if not math.isfinite(value):
                raise ValueError(f"metrics must be finite, {name!r} is {value!r}; leave it out.")
    elif said.metrics is not None:
        if isinstance(said.metrics, str) or not all(isinstance(result, EvalResult) for result in said.metrics):
            raise TypeError("metrics must be numbers by their names, or a list of huggingface_hub.EvalResult.")
        for result in said.metrics:
            number = result.metric_value
            is_number = isinstance(number, Real) and not isinstance(number, bool) and math.isfinite(number)
            if not is_number and not isinstance(number, str):
                raise ValueError(f"metrics must be finite numbers, {result.metric_type!r} is {number!r}.")
        if said.dataset is not None:
            raise ValueError(f"dataset={said.dataset!r} is for metrics by their names; an EvalResult has its own.")


def _check_model(model: Any) -> None:
    if saved_class(model).__name__ not in heads_of(type(model.config)):
        raise ValueError(
            f"{type(model).__name__} has no code that could travel with it. Convert it with hf_lam.convert, or keep "
            "its mechanisms alone with hf_lam.save_mechanism."
        )


def _check_adapters(model: Any) -> None:
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "the model has adapters, so only these would be saved. Merge them (with PEFT: merge_and_unload), or take "
            "them off with delete_adapter."
        )


def _refuse_tokens(files: Mapping[str, Path], message: str, token: str | bool | None) -> None:
    secret = token if isinstance(token, str) else get_token()
    contents = {name: path for name, path in files.items() if not name.endswith(".safetensors")}
    for name, path in {"the commit's message": None, **contents}.items():
        content = message.encode() if path is None else path.read_bytes()
        if _TOKEN.search(content) or (secret and secret.encode() in content):
            raise ValueError(
                f"{name} holds a token of the Hub, which everybody could read. Take it out; nothing was sent."
            )


# --- What comes with the model ---------------------------------------------------------------------------------------


def _results(said: _Said, earlier: CardContent, found: list[Measured], task: str | None) -> list[EvalResult]:
    if said.metrics is not None and not isinstance(said.metrics, Mapping):
        # Of numpy's numbers, YAML would write the bytes.
        return [
            replace(x, metric_value=x.metric_value if isinstance(x.metric_value, str) else float(x.metric_value))
            for x in said.metrics
        ]
    if said.metrics is None and not found:
        return list(earlier.results)
    numbers = found if said.metrics is None else measured(said.metrics)
    made = as_results(numbers, said.dataset or next(iter(earlier.datasets), None), task)
    if said.metrics is not None or said.dataset is not None:
        return made
    # What a card says of the same numbers, it says better.
    known = {(x.metric_type, x.dataset_split, x.metric_value): x for x in earlier.results}
    return [known.get((x.metric_type, x.dataset_split, x.metric_value), x) for x in made]


def _earlier_card(model: Any, source: Path | None) -> CardContent:
    """The card in the folder that is pushed; of a model or a checkpoint, what that of its origin says of the base."""
    if source is None:
        return card_in(model.config.name_or_path or os.devnull).of_the_base()
    if not (source / CARD_FILE).is_file() and source.name.startswith("checkpoint-"):
        return card_in(source.parent).of_the_base()
    return card_in(source)


def _bases(
    model: Any, given: str | Sequence[str] | None, earlier: CardContent, published: CardContent, hub: Branch
) -> list[str]:
    """The ids on the Hub that the weights come from."""
    if given is not None:
        names = [given] if isinstance(given, str) else list(given)
        for name in names:
            validate_repo_id(name)
        return names
    # Loaded from the repository that it goes back to, its base is the same.
    names = list(earlier.bases or (published.bases if model.config.name_or_path == hub.repo_id else []))
    if not names:
        parts = [model.config.modality_config(name) for name in getattr(model.config, "modalities", ())]
        if is_composed(model.config):
            parts = [model.config.encoder, model.config.decoder]
        # A modality of vectors has none.
        names = [getattr(config, "name_or_path", None) or "" for config in (model.config, *parts)]
        names = [name for name in names if looks_like_hub_id(name) and name != hub.repo_id]
    return list(dict.fromkeys(names))


def _license(
    given: str | None, earlier: CardContent, published: CardContent, bases: Sequence[str], hub: Branch
) -> tuple[Mapping[str, Any], list[str]]:
    """The licence of the base, unless somebody has named another; and what the user should know about it."""
    terms: Mapping[str, Any] = earlier.license if given is None else {"license": given}
    notes: list[str] = []
    if not terms:
        terms, notes = hub.license_of(bases)
    terms = terms or published.license
    if not terms:
        notes.append("The card names no licence, since that of the base is not known; give license=.")
    return terms, notes


def _datasets(earlier: CardContent, dataset: str | None) -> Sequence[str]:
    if dataset is not None:
        return [dataset] if looks_like_hub_id(dataset) and "/" in dataset else []
    return earlier.datasets


def _draw(
    model: Any, processor: Any, inputs: Any, folder: Path, source: Path | None, earlier: CardContent
) -> tuple[Mapping[str, str], list[str]]:
    """The pictures on the card: of the inputs, those that the folder has, or of a sentence or an input of zeros.

    Beside them, what the user should know about it.
    """
    # Beside an encoder of images, it is for what a decoder writes.
    reads_text = isinstance(processor, PreTrainedTokenizerBase) and modalities_of(model) == ("text",)
    tokenizer = processor if reads_text else None
    if inputs is not None:
        return draw_pictures(model, inputs, folder, processor), []
    kept = {} if source is None else earlier.pictures_in(source)
    if source is not None and kept:
        for name in kept:
            shutil.copyfile(source / name, folder / name)
        return kept, []
    notes = []
    if find_spec("matplotlib") is None:
        notes.append('No pictures on the card, since matplotlib is not installed: `pip install "hf-lam[viz]"`.')
    try:
        made = example_inputs(model) if tokenizer is None else dict(tokenizer(_SENTENCE, return_tensors="pt"))
        drawn = draw_pictures(model, made, folder, processor)
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        notes.append(
            f"No pictures on the card, since the model did not run on a sample of its own: {error}. Give inputs=."
        )
        return {}, notes
    said = "(The input is a blank one.)" if tokenizer is None else f"(The input is “{_SENTENCE}”)"
    without_input = draw_pictures(model, None, folder, processor)
    return {name: caption if name in without_input else f"{caption} {said}" for name, caption in drawn.items()}, notes
