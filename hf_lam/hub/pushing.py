"""Push a model to the Hub: weights, code, processor, card and pictures in one commit, or nothing."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, EvalResult, get_token
from huggingface_hub.utils import validate_repo_id
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..flops import example_inputs
from ..modeling import modeling_hf_lam, modeling_hf_lam_fusion
from ..modeling.configuration_hf_lam import __version__
from .cards import (
    CARD_FILE,
    METRIC_NAMES,
    EarlierCard,
    draw_pictures,
    looks_like_hub_id,
    model_card,
    read_card,
    task_of,
)
from .remote import Branch, limited_waiting

# What processors write, besides the vocabulary of a tokenizer.
_PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# What `Trainer` writes of a run, what the names in it begin with, and the split that is meant.
_RESULT_FILES = ("eval_results.json", "predict_results.json")
_SPLITS = {"eval": "validation", "predict": "test", "test": "test"}
# What is no property of a model.
_UNMEASURED = (
    "runtime",
    "samples",
    "samples_per_second",
    "steps_per_second",
    "model_preparation_time",
    "epoch",
    "step",
    "total_flos",
)
# What an earlier push may have left, and would be loaded in place of, or beside, what this one brings.
_OWN_FILES = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|\w+_hf_lam\w*\.py")
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
# What the pictures of a text model show, unless inputs are given.
_SENTENCE = "The cat that the dog chased sat on the mat."


@dataclass(frozen=True)
class PushReport:
    """What [`push`] did, or would do.

    repo_id, revision: where.
    files: everything that is uploaded: paths in the repository, and bytes.
    deleted: files of the repository that the same commit removes: weights and code of an earlier push.
    notes: what the user should know.
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
    tags: Sequence[str] | str = (),
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

    Everything is made and checked before anything is sent. Weights and code that an earlier push left, and that this
    one does not bring, are deleted by the same commit; other files of the repository stay. Hand-written sections of
    the card that is there stay, too.

    Args:
        model: an `HfLam…` model, or a folder that one was saved in: by `save_pretrained`, by `Trainer`, or one of its
            checkpoints. Of a folder, only the model, its processor, the results of its run and its card are taken,
            never pickles, states of optimizers or logs.
        repo_id: `you/name`, or `name` for your own namespace. It is created unless it exists.
        processor: tokenizer, image processor, feature extractor or processor, saved beside the model; of a folder,
            the one in it unless given.
        metrics: what was measured on the model: as `Trainer.evaluate` or `evaluate` return it (`{"eval_accuracy":
            0.9}`), or huggingface_hub's `EvalResult`s. Of a folder, those of its run unless given.
        dataset: what `metrics` were measured on: an id on the Hub, or a name.
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
        token: of the Hub; unless given, the one that `hf auth login` stored.
        max_shard_size: of a file of weights.
        dry_run: make and check everything, and send nothing.

    Returns:
        What was uploaded, and the commit.

    Raises:
        TypeError, ValueError: for what is no model, folder or argument as described, before anything is sent.
        PushError: if the Hub refuses, or cannot be reached. Then no commit was made; what fails for a moment is tried
            again before.
    """
    source = None if isinstance(model, PreTrainedModel) else _folder_of(model)
    _check_arguments(repo_id, metrics, dataset, revision, create_pr, processor)
    loaded: Any = model if source is None else _load(source)
    _check_model(loaded)
    hub = Branch(repo_id, revision, create_pr, token)
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="hf-lam-push-") as scratch, limited_waiting():
        folder = Path(scratch)
        if processor is not None:
            processor.save_pretrained(folder)
        elif source is not None:
            processor = _copy_processor(source, folder)
        # After the processor, which brings code of its own: the model's has to be complete.
        loaded.save_pretrained(folder, max_shard_size=max_shard_size)
        measured = [] if source is None else _copy_results(source, folder)
        earlier = _earlier_card(loaded, source)
        there = hub.files(notes, is_needed=not dry_run)
        published = hub.card(there, notes)
        bases = _bases(loaded, base_model, earlier, published, repo_id)
        card = model_card(
            loaded,
            name=repo_id.split("/")[-1],
            repository=repo_id,
            processor=processor,
            bases=bases,
            license=license or earlier.license or published.license or hub.license_of(bases, notes),
            language=earlier.metadata.get("language") or published.metadata.get("language"),
            datasets=_datasets(earlier, dataset),
            tags=[tags] if isinstance(tags, str) else tags,
            results=_results(metrics, dataset, earlier, measured, task_of(loaded)),
            data=earlier.data,
            training=earlier.training,
            pictures=_draw(loaded, processor, inputs, folder, notes),
            kept={**published.sections, **earlier.sections},
        )
        card.save(folder / CARD_FILE)
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        _refuse_tokens(files, token)
        deleted = tuple(sorted(path for path in there if _OWN_FILES.fullmatch(path) and path not in files))
        title = commit_message or f"Upload {type(loaded).__name__} with hf_lam {__version__}"
        commit = None if dry_run else hub.commit(files, deleted, title, commit_description, private)
        return PushReport(
            repo_id=repo_id if commit is None else commit.repo_url.repo_id,
            revision=revision or "main",
            files={name: path.stat().st_size for name, path in files.items()},
            deleted=deleted,
            notes=tuple(notes),
            commit=commit,
        )


# --- What is checked before anything is done -------------------------------------------------------------------------


def _folder_of(model: Any) -> Path:
    if not isinstance(model, (str, os.PathLike)):
        hint = " Push what merge_and_unload() returns." if hasattr(model, "merge_and_unload") else ""
        raise TypeError(
            f"push takes an HfLam… model or a folder that one was saved in, got {type(model).__name__}.{hint}"
        )
    folder = Path(model)
    if not (folder / "config.json").is_file():
        found = "has no config.json" if folder.is_dir() else "is no folder"
        if (folder / "adapter_config.json").is_file():
            found += " but adapters; push what merge_and_unload() returns"
        raise ValueError(f"{str(folder)!r} {found}. Give a folder that an HfLam… model was saved in.")
    return folder


def _check_arguments(
    repo_id: str, metrics: Any, dataset: str | None, revision: str | None, create_pr: bool, processor: Any
) -> None:
    validate_repo_id(repo_id)
    if revision is not None and create_pr and revision != "main":
        raise ValueError(f"a pull request is opened against main; leave out revision={revision!r} or create_pr.")
    if processor is not None and not hasattr(processor, "save_pretrained"):
        raise TypeError(
            f"processor must be a tokenizer or a processor of transformers, got {type(processor).__name__}."
        )
    if isinstance(metrics, Mapping):
        for name, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"metrics must be numbers, {name!r} is {value!r}.")
            if not math.isfinite(value):
                raise ValueError(f"metrics must be finite, {name!r} is {value!r}; leave it out.")
    elif metrics is not None:
        if isinstance(metrics, str) or not all(isinstance(result, EvalResult) for result in metrics):
            raise TypeError("metrics must be numbers by their names, or a list of huggingface_hub.EvalResult.")
        if dataset is not None:
            raise ValueError(f"dataset={dataset!r} is for metrics by their names; an EvalResult has its own.")


def _check_model(model: Any) -> None:
    if not hasattr(model.config, "auto_classes"):
        raise ValueError(
            f"{type(model).__name__} has no code that could travel with it. Convert it with hf_lam.convert, or keep "
            "its mechanisms alone with hf_lam.save_mechanism."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError("the model has adapters that are not merged; push what merge_and_unload() returns.")


def _load(folder: Path) -> Any:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    names = list(getattr(config, "auto_classes", {}).values())
    name = next(iter(config.architectures or ()), "None")
    if name not in names:
        raise ValueError(
            f"{str(folder)!r} holds a model of class {name}, not one of {', '.join(names) or 'the HfLam… classes'}. "
            "Convert it with hf_lam.convert first."
        )
    module = modeling_hf_lam_fusion if hasattr(modeling_hf_lam_fusion, name) else modeling_hf_lam
    return getattr(module, name).from_pretrained(folder)


def _refuse_tokens(files: Mapping[str, Path], token: str | bool | None) -> None:
    secret = token if isinstance(token, str) else get_token()
    for name, path in files.items():
        if name.endswith(".safetensors"):
            continue
        content = path.read_bytes()
        if _TOKEN.search(content) or (secret and secret.encode() in content):
            raise ValueError(
                f"{name} holds a token of the Hub, which everybody could read. Take it out; nothing was sent."
            )


# --- What comes with the model ---------------------------------------------------------------------------------------


def _copy_processor(source: Path, folder: Path) -> Any:
    """Copy the processor's files as they are, and return the processor, or None if there is none."""
    names = [name for name in _PROCESSOR_FILES if (source / name).is_file()]
    if not names:
        return None
    processor: Any
    if "processor_config.json" in names:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    elif "tokenizer_config.json" in names:
        processor = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    elif "preprocessor_config.json" in names:
        kind = json.loads((source / "preprocessor_config.json").read_text(encoding="utf-8"))
        auto = AutoFeatureExtractor if "feature_extractor_type" in kind else AutoImageProcessor
        processor = auto.from_pretrained(source, trust_remote_code=False)
    else:
        return None
    tokenizer = getattr(processor, "tokenizer", processor)
    vocabulary = getattr(tokenizer, "vocab_files_names", {}).values()
    for name in dict.fromkeys([*names, *(name for name in vocabulary if (source / name).is_file())]):
        shutil.copyfile(source / name, folder / name)
    return processor


def _copy_results(source: Path, folder: Path) -> list[tuple[str, str | None, float]]:
    """The metrics of a run of `Trainer`, (metric, split, value), from files that go along.

    A checkpoint has no such files; what its run measured at the same step is in the state of the trainer.
    """
    found: dict[str, Any] = {}
    for name in _RESULT_FILES:
        if (source / name).is_file():
            found |= json.loads((source / name).read_text(encoding="utf-8"))
            shutil.copyfile(source / name, folder / name)
    state = source / "trainer_state.json"
    if not found and source.name.startswith("checkpoint-") and state.is_file():
        content = json.loads(state.read_text(encoding="utf-8"))
        for entry in content["log_history"]:
            if entry.get("step") == content["global_step"]:
                found |= entry
    prefixed = {name: value for name, value in found.items() if name.partition("_")[0] in _SPLITS}
    return _measured({name: value for name, value in prefixed.items() if isinstance(value, Real)})


def _measured(metrics: Mapping[str, Any]) -> list[tuple[str, str | None, float]]:
    """(metric, split, value) of what is a property of the model, by names such as `eval_accuracy`."""
    rows = []
    for name, value in metrics.items():
        prefix, _, rest = name.partition("_")
        split = _SPLITS.get(prefix)
        metric = name if split is None else rest
        if metric not in _UNMEASURED and prefix != "train":
            rows.append((metric, split, float(value)))
    return rows


def _results(
    metrics: Any,
    dataset: str | None,
    earlier: EarlierCard,
    measured: list[tuple[str, str | None, float]],
    task: str | None,
) -> list[EvalResult]:
    if isinstance(metrics, Mapping):
        measured = _measured(metrics)
    elif metrics is not None:
        return list(metrics)
    elif earlier.results or not measured:
        return earlier.results
    name = dataset or next(iter(_datasets(earlier, dataset)), "unknown")
    return [
        EvalResult(
            task_type=task or "other",
            dataset_type=name,
            dataset_name=name,
            dataset_split=split,
            metric_type=metric,
            metric_name=METRIC_NAMES.get(metric, metric),
            metric_value=value,
        )
        for metric, split, value in measured
    ]


def _earlier_card(model: Any, source: Path | None) -> EarlierCard:
    """The card in the folder that is pushed; of a loaded model, what the card of its checkpoint says of the base."""
    path = Path(source or model.config._name_or_path or os.devnull, CARD_FILE)
    if not path.is_file():
        return EarlierCard({})
    card = read_card(path.read_text(encoding="utf-8"))
    if source is not None:
        return card
    return EarlierCard({key: card.metadata.get(key) for key in ("base_model", "license", "language")})


def _bases(
    model: Any, given: str | Sequence[str] | None, earlier: EarlierCard, published: EarlierCard, repo_id: str
) -> list[str]:
    """The ids on the Hub that the weights come from."""
    if given is not None:
        names = [given] if isinstance(given, str) else list(given)
        for name in names:
            validate_repo_id(name)
        return names
    names = earlier.bases
    if not names:
        encoders = [getattr(model.config, f"{name}_config") for name in getattr(model.config, "modalities", ())]
        names = [config._name_or_path or "" for config in (model.config, *encoders)]
        names = [name for name in names if looks_like_hub_id(name) and name != repo_id]
    return list(dict.fromkeys(names)) or published.bases


def _datasets(earlier: EarlierCard, dataset: str | None) -> list[str]:
    if dataset is not None:
        return [dataset] if looks_like_hub_id(dataset) and "/" in dataset else []
    return earlier.datasets


def _draw(model: Any, processor: Any, inputs: Any, folder: Path, notes: list[str]) -> dict[str, str]:
    """The pictures on the card; without inputs, of a sentence or of an input of zeros."""
    if inputs is not None:
        return draw_pictures(model, inputs, folder)
    try:
        return draw_pictures(model, _stand_in(model, processor), folder)
    except (ValueError, RuntimeError) as error:
        notes.append(f"No pictures on the card, since none of the right inputs could be made: {error} Give inputs=.")
        return {}


def _stand_in(model: Any, processor: Any) -> dict[str, Any]:
    if isinstance(processor, PreTrainedTokenizerBase):
        return dict(processor(_SENTENCE, return_tensors="pt").to(model.device))
    return example_inputs(model)
