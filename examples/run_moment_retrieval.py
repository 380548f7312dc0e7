"""Train a model that finds the moments of a video that a query speaks of, with or without mechanisms.

    python examples/run_moment_retrieval.py --train_file highlight_train_release.jsonl \\
        --validation_file highlight_val_release.jsonl --video_features clip_features slowfast_features \\
        --query_features clip_text_features --mechanism lam --do_train --do_eval --output_dir out

Files and features are laid out as those of QVHighlights; `examples/moments/make_moving_moments.py` makes such a set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from transformers import AutoModel

from hf_lam import HfLamFusionForMomentRetrieval
from hf_lam.mechanism_options import json_object
from hf_lam.modeling.fusion_features_hf_lam import FeatureOptions
from hf_lam.modeling.moment_options_hf_lam import read_moment_options
from hf_lam.training import FusionCollator
from hf_lam.training.arguments import ModelArguments
from hf_lam.training.data import limited
from hf_lam.training.finetuning import before_training, make_trainer, open_task, run
from hf_lam.training.fusion_arguments import FUSION_OPTIONS
from hf_lam.training.fusion_loading import load_fusion_config, load_fusion_processor, load_saved_fusion, make_fusion
from hf_lam.training.fusion_runs import most_tokens, train_new_parts
from hf_lam.training.models import for_trainer
from hf_lam.training.moment_data import AUDIO, WORDS, MomentArguments, MomentSamples, MomentVectors, load_moments
from hf_lam.training.moment_goal import Moments
from hf_lam.training.sources import SOURCE

# What the field has in place of the fusion layers (Moment-DETR), unless --fusion_config says otherwise.
FUSION: dict[str, Any] = {
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "intermediate_size": 1024,
    "hidden_dropout_prob": 0.1,
}
# Which modalities are clips is said by the features.
OPTIONS = FUSION_OPTIONS - {"label_modalities", "modalities"}
# The parts of the model around its fusion layers.
PARTS = ["saliency", "decoder", "classifier", "span_predictor"]


@dataclass
class MomentModelArguments(ModelArguments):
    """A saved model of moments, or what a new one is made of."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A saved fusion model. Without it, a new one is made for the features."}
    )
    text_model: str | None = field(
        default=None,
        metadata={"help": "The encoder of queries that come as text instead of vectors, a Hub id or a folder."},
    )
    features: str | None = field(
        default=None,
        metadata={
            "help": "Options of FeatureOptions for the vectors of a new model, by the name of the modality, as JSON "
            'or a JSON file: \'{"video": {"dropout": 0.5}, "words": {"positions": "learned"}}\'.'
        },
    )
    fusion_config: str | None = field(
        default=None,
        metadata={
            "help": "Options of a new fusion model, as JSON or a JSON file. The options are "
            f"{', '.join(sorted(OPTIONS))}."
        },
    )
    moments_config: str | None = field(
        default=None,
        metadata={
            "help": "Options of MomentOptions for a new model, as JSON or a JSON file: '{\"num_queries\": 5}'. The "
            "length of a clip is given by --clip_length."
        },
    )
    freeze_host: bool = field(
        default=False,
        metadata={"help": "Train only the mechanisms and the head; in a new model, everything but the --text_model."},
    )
    from_scratch: bool = field(
        default=False,
        metadata={"help": "Start from random weights and take only the configuration from the checkpoint."},
    )

    def trains_layers(self) -> bool:
        return self.model_name_or_path is None

    def check_source(self) -> None:
        wanted = {name: getattr(self, name) for name in ("text_model", "features", "fusion_config", "moments_config")}
        given = [name for name, value in wanted.items() if value is not None]
        if self.model_name_or_path is not None and given:
            raise ValueError(f"--{given[0]} is for a new model; change a saved one with --config_overrides.")
        for name in ("config_overrides", "model_revision"):
            if self.model_name_or_path is None and getattr(self, name) not in (None, "main"):
                raise ValueError(f"--{name} is for --model_name_or_path; a new model has --fusion_config.")
        if self.teacher_model is not None:
            raise ValueError("--teacher_model is for models of classes: windows of two models are in no common order.")
        if self.model_name_or_path is None and self.lora_rank is not None:
            raise ValueError(
                "--lora_rank adapts what was trained before, and a new model starts from random weights. Train "
                "without it first, and name the saved model."
            )
        if self.from_scratch and self.model_name_or_path is None and self.text_model is None:
            raise ValueError("--from_scratch is for a checkpoint; a new model has random weights.")
        unknown = sorted(set(self.fusion_options()) - OPTIONS)
        if unknown:
            raise ValueError(f"--fusion_config has no option {', '.join(unknown)}, only {', '.join(sorted(OPTIONS))}.")
        self.moment_options()
        self.vector_options()

    def encoders(self) -> dict[str, str]:
        """The encoder that was named."""
        return {} if self.text_model is None else {"text": self.text_model}

    def fusion_options(self) -> dict[str, Any]:
        """The value of `--fusion_config`."""
        return json_object("--fusion_config", self.fusion_config)

    def moment_options(self) -> dict[str, Any]:
        """The value of `--moments_config`."""
        options = json_object("--moments_config", self.moments_config)
        if "clip_length" in options:
            raise ValueError("--moments_config: clip_length is what the data are read by; give --clip_length.")
        try:
            read_moment_options(options)
        except ValueError as error:
            raise ValueError(f"--moments_config: {str(error).removeprefix('HfLamFusionConfig: ')}") from error
        return options

    def vector_options(self) -> dict[str, dict[str, Any]]:
        """The value of `--features`, by modality."""
        given = json_object("--features", self.features)
        known = sorted({option.name for option in fields(FeatureOptions)} - {"size"})
        for name, options in given.items():
            if not isinstance(options, Mapping) or not set(options) <= set(known):
                raise ValueError(f"--features: {name!r} must have options, of {', '.join(known)}; got {options!r}.")
        return given


def make_model(
    arguments: MomentModelArguments,
    clip_length: float,
    streams: list[str],
    sizes: Mapping[str, int],
    longest: Mapping[str, int],
) -> tuple[Any, list[str]]:
    """A new model, and what of it starts from random weights although its encoder does not."""
    given = arguments.vector_options()
    unknown = sorted(set(given) - set(sizes))
    if unknown:
        raise ValueError(f"--features: there are no vectors {', '.join(unknown)}, only {', '.join(sizes)}.")
    found = {name: {"size": size, "max_length": longest[name]} for name, size in sizes.items()}
    options = {
        **FUSION,
        **arguments.fusion_options(),
        "features": {name: {**options, **given.get(name, {})} for name, options in found.items()},
        "label_modalities": streams,
        "moments": {**arguments.moment_options(), "clip_length": clip_length},
    }
    return make_fusion(HfLamFusionForMomentRetrieval, arguments, arguments.encoders(), options, PARTS)


def load_saved(
    arguments: MomentModelArguments, config: Any, clip_length: float, sizes: Mapping[str, int], is_trained: bool
) -> Any:
    """A saved model, which takes the vectors that there are."""
    known = {name: options["size"] for name, options in (config.features or {}).items()}
    for name, size in sizes.items():
        if name not in known:
            raise ValueError(f"{arguments.model_name_or_path!r} has no vectors {name!r}, only {', '.join(known)}.")
        if known[name] != size:
            raise ValueError(
                f"the vectors of {name} have {size} numbers, those of {arguments.model_name_or_path!r} {known[name]}."
            )
    # Another head may have been on these fusion layers, for which clips had no length.
    config.moments = read_moment_options({**(config.moments or {}), "clip_length": clip_length})
    config.architectures = [HfLamFusionForMomentRetrieval.__name__]
    return load_saved_fusion(arguments, AutoModel, config, is_trained)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    with before_training():
        task = open_task(MomentModelArguments, MomentArguments, __doc__, arguments, load=load_moments)
        given, data, goal = task.arguments, task.data, task.goal
        assert isinstance(goal, Moments)
        config = None if given.model_name_or_path is None else load_fusion_config(given)
        has_text = given.text_model is not None or (config is not None and config.text_config is not None)
        if has_text == bool(data.query_features):
            raise ValueError("a query is read by --text_model, or it has vectors: give --query_features, or that.")
        vectors = make_vectors(data, config, goal.clip_length)
        splits = limited(task.splits, data, task.training.seed)
        rows = {split: dataset[SOURCE][:] for split, dataset in splits.items()}
        sizes, longest = vectors.measure(goal.annotations[row] for of_split in rows.values() for row in of_split)
        new: list[str] = []
        if config is None:
            model, new = make_model(given, goal.clip_length, [*vectors.streams], sizes, longest)
        else:
            model = load_saved(given, config, goal.clip_length, sizes, task.training.do_train)
        processor = load_fusion_processor(given, model.config, given.encoders())
        tokenizer = None
        if has_text:
            limit = most_tokens(data.max_words, model, processor)
            tokenizer = partial(processor.tokenizer, truncation=True, max_length=limit, return_tensors="np")
        samples = {
            split: MomentSamples(of_split, goal.annotations, vectors, tokenizer, split == "train")
            for split, of_split in rows.items()
        }
        collator = FusionCollator(
            processor,
            pad_to_multiple_of=None if task.training.mixed_precision == "no" else 8,
            label_modalities=model.label_modalities,
        )
        trainer = make_trainer(task, model, AutoModel, samples, for_trainer(processor), collator)
        train_new_parts(model, new)
    return run(trainer, task, samples, "moment-retrieval")


def make_vectors(data: MomentArguments, config: Any, clip_length: float) -> MomentVectors:
    """Make the reader of vectors, which takes as many of a sample as a saved model does."""
    if config is None:
        return MomentVectors(data, None, clip_length, data.max_clips, data.max_words)
    of_model = (config.moments or {}).get("clip_length", clip_length)
    if of_model != clip_length:
        raise ValueError(f"--clip_length {clip_length:g}: the model was made for clips of {of_model:g} s.")
    limits = {name: options["max_length"] for name, options in (config.features or {}).items()}
    streams = [name for name in config.modalities if name in config.labelled_modalities]
    clips = [*(limits.get(name) for name in streams), limits.get(AUDIO), data.max_clips]
    words = [limits.get(WORDS), data.max_words]
    return MomentVectors(
        data, streams, clip_length, min(filter(None, clips), default=None), min(filter(None, words), default=None)
    )


if __name__ == "__main__":
    main()
