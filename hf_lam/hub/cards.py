"""The model card: what a model is, what was changed and where, what it costs, how to load it and how to check it."""

from __future__ import annotations

import copy
import inspect
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import BaseImageProcessor, FeatureExtractionMixin, PreTrainedModel, PreTrainedTokenizerBase

from ..conversion import convert_silently
from ..flops import CostReport, cost, example_inputs
from ..modeling.configuration_hf_lam import HfLamConfigMixin
from ..modeling.configuration_hf_lam_fusion import MODALITIES
from ..modeling.cross_lam_hf_lam import cross_lam_of, decoders_with_masks
from ..modeling.hosts_facts_hf_lam import is_fusion
from ..modeling.injection_hf_lam import injected_encoders, injection_of, mechanism_of
from ..modeling.mechanism_registry_hf_lam import mechanism_names
from ..modeling.version_hf_lam import TRAVELLING_FILES, __version__
from .card_snippets import usage_of
from .earlier_cards import CARD_FILE, TEMPLATE, CardContent, card_in, weights_of
from .modalities import Modality, modalities_in
from .names import heads_of
from .processors import modalities_of

# Metrics as `Trainer` and evaluate call them, and for readers.
METRIC_NAMES = {
    "accuracy": "Accuracy",
    "f1": "F1",
    "map": "Mean average precision",
    "loss": "Loss",
    "mse": "Mean squared error",
    "mae": "Mean absolute error",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "bleu": "BLEU",
    "rougeL": "ROUGE-L",
    "exact": "Exact match",
}
# Of every head, by its Auto class: the task that the Hub lists it under. What no pipeline of transformers takes, and
# the Hub knows no name for, such as an encoder of videos or sounds alone, has none.
_TASKS = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForDocumentQuestionAnswering": "document-question-answering",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForMultipleChoice": "multiple-choice",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForMaskedImageModeling": "image-feature-extraction",
    "AutoModelForSemanticSegmentation": "image-segmentation",
    "AutoModelForUniversalSegmentation": "image-segmentation",
    "AutoModelForObjectDetection": "object-detection",
    "AutoModelForDepthEstimation": "depth-estimation",
    "AutoModelForVideoClassification": "video-classification",
    "AutoModelForAudioClassification": "audio-classification",
    "AutoModelForCTC": "automatic-speech-recognition",
    "AutoModelForSpeechSeq2Seq": "automatic-speech-recognition",
    "AutoModelForImageTextToText": "image-to-text",
}
# Of an encoder alone, by what it takes.
_FEATURES = {"text": "feature-extraction", "image": "image-feature-extraction"}
# How the card of a fusion model is tagged whose user gives vectors, whatever names these have.
_OF_VECTORS = "features"
# An option of a mechanism that is longer, such as a table of views, is left to config.json.
_LONGEST_OPTION = 80


def model_card(
    model: Any,
    content: CardContent | None = None,
    *,
    name: str,
    repository: str | None = None,
    processor: Any = None,
    auto_class: str | None = None,
    task: str | None = None,
    packages: Sequence[str] = (),
) -> ModelCard:
    """Write the card of a model. Its only numbers are the results in `content`, and the sizes and FLOPs counted here.

    Args:
        model: an `HfLam…` model, or one of transformers.
        content: content that cannot be read off the model. A loss among its results is shown, and left out of the
            metadata.
        name: the card's title.
        repository: id on the Hub or folder that a reader loads; `./name` unless given.
        processor: saved beside the model; decides which Auto class loads it.
        auto_class: Auto class that loads the model; an `HfLam…` model knows it.
        task: the Hub's name of the task; an `HfLam…` model knows it.
        packages: further packages that the model was made with; their versions are listed.
    """
    content = CardContent() if content is None else content
    mechanisms = _mechanisms_in(model)
    has_code = hasattr(model.config, "auto_classes")
    loaded_by = auto_class or _auto_class(model)
    # Those of a model that was here before are made anew, too.
    made_anew = ("hf_lam", "multimodal", *MODALITIES, _OF_VECTORS, *mechanism_names(), *mechanisms)
    tags = [tag for tag in content.tags if tag not in made_anew]
    modalities = modalities_in(model)
    kinds = [_OF_VECTORS if modality.encoder is None else modality.name for modality in modalities]
    masks = [cross_lam_of(base) for base in decoders_with_masks(model)]
    names = dict.fromkeys([*mechanisms, *(record.config.name for record in masks)])
    own_tags = ["hf_lam", *names, *(["multimodal", *dict.fromkeys(kinds)] if modalities else [])]
    bases = list(content.bases)
    metrics = [result for result in content.results if not result.metric_type.endswith("loss")]
    metadata = ModelCardData(
        base_model=bases[0] if len(bases) == 1 else bases or None,
        base_model_relation="finetune" if bases else None,
        library_name="transformers",
        language=content.language,
        datasets=list(content.datasets) or None,
        metrics=list(dict.fromkeys(result.metric_type for result in metrics)) or None,
        # The Hub wants it with results, and no other key of that name.
        model_name=name if metrics else None,
        pipeline_tag=task or task_of(model),
        tags=[*own_tags, *tags],
        eval_results=metrics or None,
        **dict(content.license),
        **dict(content.further),
    )
    changes = [_describe(model, config) for config in mechanisms.values()]
    inputs = _example_inputs(model)
    return ModelCard.from_template(
        metadata,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        name=name,
        repository=repository or f"./{name}",
        model_class=saved_class(model).__name__,
        origin=content.origin or _origin(bases, is_trained=bool(content.training)),
        has_code=has_code,
        remote_code=", trust_remote_code=True" if has_code else "",
        modalities=[_describe_modality(modality) for modality in modalities],
        changes=changes,
        decoder=_describe_decoder(model),
        foreign=_group_by_file(changes),
        tables=_tables_of_heads(model),
        results=[_result_row(result) for result in content.results],
        sizes=_sizes(model) if has_code else None,
        usage=usage_of(model, saved_class(model), processor, inputs),
        auto_classes=[loaded_by, *([] if processor is None else [_processor_class(processor)])],
        data=content.data,
        training=content.training,
        limits=_limits(model, bases) if has_code else [],
        pictures=[
            {"file": file, "caption": caption, "name": Path(file).stem.replace("_", " ")}
            for file, caption in content.pictures.items()
        ],
        kept=[{"title": title, "body": body} for title, body in content.sections],
        weights=content.weights,
        versions=_versions(model, packages),
        citations=[config.citation for config in mechanisms.values() if config.citation],
    )


def write_card(
    model: Any,
    folder: Path,
    *,
    name: str | None = None,
    repository: str | None = None,
    base_model: str | None = None,
    processor: Any = None,
    inputs: Mapping[str, Any] | None = None,
    results: Sequence[EvalResult] = (),
) -> list[str]:
    """Write the card of a model that is saved in `folder`, and its pictures.

    What a card in the folder says about the run, such as that of `Trainer`, is taken over, its results unless there
    are `results`, and its pictures unless there are `inputs` to draw others.

    Returns:
        The names of the pictures in the folder.
    """
    path = folder / CARD_FILE
    earlier = card_in(folder)
    pictures = earlier.pictures_in(folder) if inputs is None else {}
    pictures = pictures or draw_pictures(model, inputs, folder, processor)
    origin = model.config.name_or_path
    content = replace(
        earlier,
        license=earlier.license or (card_in(origin).license if origin else {}),
        results=results or earlier.results,
        pictures=pictures,
        weights=weights_of(folder),
    )
    if base_model is not None:
        content = replace(content, bases=[base_model], origin=None)
    title = name or folder.resolve().name
    model_card(model, content, name=title, repository=repository, processor=processor).save(path)
    return list(pictures)


def draw_pictures(model: Any, inputs: Mapping[str, Any] | None, folder: Path, processor: Any = None) -> dict[str, str]:
    """Draw what the mechanisms do with `inputs`, or without them what needs none, if matplotlib is installed.

    Args:
        model: model with mechanisms; without, there are no pictures.
        inputs: arguments to call the model with; the first sample is drawn.
        folder: folder to write to.
        processor: if it is the tokenizer that made the inputs, tokens have names.

    Returns:
        The captions, by the names of the files in `folder`.
    """
    if not injected_encoders(model) or find_spec("matplotlib") is None:
        return {}
    from ..visualization import save_pictures

    tokens = None
    ids = None if inputs is None else inputs.get("input_ids")
    if isinstance(processor, PreTrainedTokenizerBase) and ids is not None and ids.dim() == 2:
        tokens = processor.convert_ids_to_tokens(ids[0].tolist())
    return save_pictures(model, inputs, folder, tokens=tokens)


# --- Metadata --------------------------------------------------------------------------------------------------------


def _mechanisms_in(model: Any) -> dict[str, Any]:
    """The configuration of every mechanism that is saved with the model, by its name."""
    if getattr(model.config, "hf_lam", None) is None:
        return {}
    return {name: config for base in injected_encoders(model) for name, config in injection_of(base).configs.items()}


def saved_model(model: Any) -> Any:
    """The `HfLam…` model that one of transformers with injected mechanisms is saved as; others as they are."""
    is_stock = isinstance(model, PreTrainedModel) and not hasattr(model.config, "auto_classes")
    return convert_silently(model) if is_stock and injected_encoders(model) else model


def saved_class(model: Any) -> type[Any]:
    """The class that a model is loaded by; FSDP2 makes another one of it."""
    names = heads_of(type(model.config))
    return next((kind for kind in type(model).__mro__ if kind.__name__ in names), type(model))


def _auto_class(model: Any) -> str:
    return heads_of(type(model.config))[saved_class(model).__name__]


def task_of(model: Any) -> str | None:
    """The Hub's name of what a model is for; None if it has none."""
    if is_fusion(model.config):
        return None  # no pipeline takes its inputs
    auto = heads_of(type(model.config)).get(saved_class(model).__name__)
    if auto == "AutoModelForSequenceClassification" and modalities_of(model) == ("audio",):
        return "audio-classification"
    return _FEATURES.get(modalities_of(model)[0]) if auto == "AutoModel" else _TASKS.get(auto or "")


def _example_inputs(model: Any) -> dict[str, Any] | None:
    try:
        return example_inputs(model)
    except ValueError:
        return None


def _processor_class(processor: Any) -> str:
    if isinstance(processor, PreTrainedTokenizerBase):
        return "AutoTokenizer"
    if isinstance(processor, FeatureExtractionMixin):
        return "AutoFeatureExtractor"
    return "AutoImageProcessor" if isinstance(processor, BaseImageProcessor) else "AutoProcessor"


# --- Text ------------------------------------------------------------------------------------------------------------


def link(repo_id: str) -> str:
    return f"[{repo_id}](https://hf.co/{repo_id})"


def _origin(bases: Sequence[str], is_trained: bool) -> str:
    made = "fine-tuned" if is_trained else "made"
    return f"{made} from {' and '.join(map(link, bases))}" if bases else ""


def _describe_modality(modality: Modality) -> dict[str, str]:
    read_by = f"`{modality.encoder}`" if modality.encoder is not None else str(modality)
    read_by += "" if modality.origin is None else f" of {link(modality.origin)}"
    return {"name": modality.name, "argument": modality.argument, "read_by": read_by}


def _describe(model: Any, config: Any) -> dict[str, Any]:
    """One mechanism: what it is, where it is, and its options but for those that are off or left to the host.

    Of one that is not hf_lam's own, `file` is where its code is.
    """
    layers = sum(len(injection_of(base).attentions) for base in injected_encoders(model))
    where = "in its only attention layer" if layers == 1 else f"in each of its {layers} attention layers"
    if config.is_shared:
        where = f"shared by its {layers} attention layers"
    # Not what is registered here: a model may be of another copy of the code.
    file = Path(inspect.getfile(type(config))).name
    return {
        "key": config.name,
        "title": config.title or config.name,
        "arxiv": config.arxiv,
        "file": None if file in TRAVELLING_FILES else file,
        "where": where,
        "options": _describe_options(config),
    }


def _describe_decoder(model: Any) -> dict[str, Any] | None:
    """Describe the part that writes text, in a model of an encoder and a decoder of another family; else None."""
    decoder = getattr(model, "decoder", None)
    if not isinstance(decoder, PreTrainedModel):
        return None
    found: dict[str, Any] = {"model_class": type(decoder).__name__}
    for base in decoders_with_masks(decoder):
        config = cross_lam_of(base).config
        found["title"] = f"the {config.title.lower()} ([arXiv {config.arxiv}](https://arxiv.org/abs/{config.arxiv}))"
        found["options"] = _describe_options(config)
    return found


def _describe_options(config: Any) -> list[str]:
    """The options of a mechanism but for those that are off or left to the host."""
    shown = {name: json.dumps(value) for name, value in config.to_dict().items() if value not in (None, False)}
    return [
        f"{name}={value}" if len(value) <= _LONGEST_OPTION else f"{name} as in config.json"
        for name, value in shown.items()
    ]


def _group_by_file(changes: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The mechanisms that are not hf_lam's own, by their files."""
    files: dict[str, list[str]] = {}
    for change in changes:
        if change["file"] is not None:
            files.setdefault(change["file"], []).append(change["key"])
    return files


def _tables_of_heads(model: Any) -> list[dict[str, Any]]:
    """The tables in which every mechanism describes its heads, one row for neighbouring layers that are the same."""
    tables = []
    for base in injected_encoders(model):
        for name in injection_of(base).configs:
            mechanism = mechanism_of(base, name)
            # With FSDP every process has a part of the weights, and reading them would wait for the others.
            if any(hasattr(parameter, "full_tensor") for parameter in mechanism.parameters()):
                continue
            facts = [mechanism.list_facts(layer) for layer in range(len(injection_of(base).attentions))]
            for fact in facts[0] if facts else ():
                title, _ = mechanism.fact_titles.get(fact, (fact, ""))
                if title and all(_are_words(of_layer.get(fact)) for of_layer in facts):
                    texts = [_count_words(of_layer[fact]) for of_layer in facts]
                    tables.append({"title": title, "layers": _join_layers(texts)})
    return tables


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _join_layers(texts: Sequence[str]) -> list[dict[str, str]]:
    rows = []
    for text, group in groupby(enumerate(texts), key=lambda row: row[1]):
        numbers = [index for index, _ in group]
        span = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        rows.append({"numbers": span, "heads": text})
    return rows


def _count_words(of_heads: Sequence[str]) -> str:
    """Count the heads in words: `6 self, 6 cross:a-b`."""
    return ", ".join(f"{of_heads.count(word)} {word}" for word in dict.fromkeys(of_heads))


def _result_row(result: EvalResult) -> dict[str, Any]:
    name = result.metric_name or METRIC_NAMES.get(result.metric_type, result.metric_type)
    cells = {"name": name, "data": result.dataset_name, "split": result.dataset_split or ""}
    return {**{key: _cell(text) for key, text in cells.items()}, "value": _cell(_number(result.metric_value))}


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _number(value: Any) -> str:
    if not isinstance(value, Real):
        return str(value)
    number = float(value)
    return f"{number:.4f}" if number == 0 or abs(number) >= 1e-3 else f"{number:.3g}"


def _sizes(model: Any) -> dict[str, Any] | None:
    """Parameters and FLOPs of the model, and of the same without mechanisms; None where they cannot be counted."""
    is_changed = model.config.hf_lam is not None
    own = _cost_of(model, model.config.hf_lam)
    base = _cost_of(model, None) if is_changed else own
    if own is None or base is None:
        return None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    attention = (base.forward_attention, own.forward_attention + own.synthesis)
    rows = {
        "parameters": (parameters - own.parameters + base.parameters, parameters, "{:,}"),
        "GFLOPs of a forward pass": (base.flops / 1e9, own.flops / 1e9, "{:.4g}"),
        "GFLOPs of its attention": (attention[0] / 1e9, attention[1] / 1e9, "{:.4g}"),
    }
    return {
        "columns": ["without hf_lam", "this model", "ratio"] if is_changed else ["this model"],
        "rows": [
            {
                "name": name,
                "values": [form.format(before), form.format(after), _ratio(after, before)]
                if is_changed
                else [form.format(after)],
            }
            for name, (before, after, form) in rows.items()
        ],
        "note": f"For one sample of {own.tokens:,} tokens. FLOPs are counted by torch, two for each multiply-add.",
    }


def _ratio(after: float, before: float) -> str:
    return f"{after / before:.3f}" if before else "–"


def _cost_of(model: Any, block: Mapping[str, Any] | None) -> CostReport | None:
    """The cost of a model of the same configuration with the mechanisms of `block`; None if it cannot be counted."""
    config = copy.deepcopy(model.config)
    config.hf_lam = block
    try:
        # On the meta device nothing is computed: it takes neither memory nor time.
        with torch.device("meta"):
            return cost(saved_class(model)(config))
    except (ValueError, RuntimeError, NotImplementedError, TypeError):
        pass
    try:
        # Where the forward pass looks at its inputs, such as token types, there must be some; and the model itself may
        # be sharded, with other processes to wait for.
        return cost(saved_class(model)(config))
    except (ValueError, RuntimeError, TypeError):  # it may need inputs that nothing is known of
        return None


def _limits(model: Any, bases: Sequence[str]) -> list[str]:
    limits = [
        limit
        for base in injected_encoders(model)
        for config in injection_of(base).configs.values()
        for limit in config.list_limits(injection_of(base).host)
    ]
    for base in decoders_with_masks(model):
        limits += cross_lam_of(base).config.list_limits(cross_lam_of(base).host)
    limits = list(dict.fromkeys(limits))
    sources = " and ".join(bases) or "the model it was made from"
    limits.append(f"The limits and biases of {sources} apply to this model, too.")
    limits.append(
        "The model needs transformers 5.18 or newer, below 6. It runs in DDP, not in `torch.nn.DataParallel`."
    )
    return limits


def _versions(model: Any, packages: Iterable[str]) -> str:
    # That of the code which travels with the model: a model may have come from the Hub with another one.
    shared = [base.__module__ for base in type(model.config).__mro__ if base.__name__ == HfLamConfigMixin.__name__]
    own = sys.modules[shared[0]].__version__ if shared else __version__
    names = dict.fromkeys(["transformers", "torch", *packages])
    return ", ".join([f"hf_lam {own}", *(f"{name} {version(name).partition('+')[0]}" for name in names)]) + "."
