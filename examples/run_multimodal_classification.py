"""Fine-tune one model on any of text, images, videos, audio and vectors together, with or without mechanisms.

    python examples/run_multimodal_classification.py --image_model VIT --audio_model AST --data_dir DATA/av_mnist \\
        --audio_column_name spectrogram --spectrogram_mel_first --mechanism lam --do_train --do_eval --output_dir out
    python examples/run_multimodal_classification.py --features '{"text": "text", "visual": "visual"}' \\
        --fusion_config '{"hidden_size": 64, "num_attention_heads": 4}' --data_dir DATA/mosi \\
        --do_train --do_eval --output_dir out
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from hf_lam import HfLamFusionForSequenceClassification, HfLamFusionForTokenClassification
from hf_lam.training import FusionCollator, load_trained_fusion
from hf_lam.training.finetuning import Uncached, before_training, make_trainer, open_task, run
from hf_lam.training.fusion_arguments import FusionArguments, MultimodalArguments
from hf_lam.training.fusion_loading import (
    load_fusion_config,
    load_saved_fusion,
    make_fusion,
)
from hf_lam.training.fusion_runs import open_rows, run_encoders_once, train_new_parts
from hf_lam.training.label_positions import labels_positions
from hf_lam.training.labels import Labels
from hf_lam.training.media_data import prepare_media
from hf_lam.training.models import for_trainer
from hf_lam.training.vectors import find_sizes


def load_fusion(
    arguments: FusionArguments, labels: Labels, sizes: Mapping[str, int], is_trained: bool
) -> tuple[Any, list[str]]:
    """The model, and what in it starts from random weights although the encoders do not.

    sizes: size of the vectors of each modality of a new model.
    """
    if arguments.model_name_or_path is not None:
        return load_saved(arguments, labels, is_trained), []
    columns = arguments.vector_columns()
    options = {**arguments.fusion_options(), **labels.config_options}
    options["features"] = {name: {"size": size, **columns[name].options} for name, size in sizes.items()} or None
    head: Any = HfLamFusionForTokenClassification if labels.is_per_position else HfLamFusionForSequenceClassification
    return make_fusion(head, arguments, arguments.encoders(), options, ["classifier"])


def load_saved(arguments: FusionArguments, labels: Labels, is_trained: bool) -> Any:
    """A saved fusion model, with the mechanisms that were asked for."""
    config = load_fusion_config(arguments, labels)
    if labels_positions(config) != labels.is_per_position and not is_trained:
        raise ValueError(
            f"{arguments.model_name_or_path!r} gives {'each position' if labels_positions(config) else 'a sample'} a "
            f"label, and the data have one for {'each position' if labels.is_per_position else 'a sample'}."
        )
    return load_saved_fusion(arguments, auto_class_of(labels), config, is_trained)


def auto_class_of(labels: Labels) -> Any:
    return AutoModelForTokenClassification if labels.is_per_position else AutoModelForSequenceClassification


def check_positions(labels: Labels, config: Any) -> None:
    """Raises a `ValueError` if positions have labels, and the modalities that are labelled are no vectors."""
    if labels.is_per_position and not set(config.labelled_modalities) <= set(config.features or ()):
        raise ValueError(
            "the labels are lists with one for each position, which are vectors here (--features); label_modalities="
            f"{config.labelled_modalities}."
        )


def main(arguments: list[str] | None = None) -> dict[str, float]:
    with before_training():
        task = open_task(FusionArguments, MultimodalArguments, __doc__, arguments)
        labels, data = task.labels, task.data
        is_new = task.arguments.model_name_or_path is None
        sizes = find_sizes(task.splits, task.arguments.vector_columns(), data) if is_new else {}
        model, new = load_fusion(task.arguments, labels, sizes, task.training.do_train)
        if new and task.arguments.lora_rank is not None:
            raise ValueError(
                "--lora_rank adapts what was trained before, and here fusion layers or projections start from random "
                "weights. Let them start from an encoder of their width ('{\"fusion_from\": …}'), or train without "
                "--lora_rank first and name the saved model."
            )
        config = model.config
        check_positions(labels, config)
        first = next(iter(task.splits.values()))
        label_column = data.label_column_name if labels.is_per_position else None
        loaded, processor, rows = open_rows(task, model, sizes, first, label_column=label_column)
        count = rows.count_labels if labels.is_per_position else None
        seed, files = task.training.seed, rows.files
        splits = prepare_media(loaded, rows.read, rows.encode, labels, data, seed, task.sources, count, files)
        collator = FusionCollator(
            processor,
            pad_to_multiple_of=None if task.training.mixed_precision == "no" else 8,
            label_modalities=config.labelled_modalities if labels.is_per_position else None,
        )
        uncached = None
        if (cached := run_encoders_once(task, model, splits, processor)) is not None:
            uncached = Uncached(partial(load_trained_fusion, model), splits)
            model, splits = cached
        trainer = make_trainer(task, model, auto_class_of(labels), splits, for_trainer(processor), collator)
        train_new_parts(model, new)
    kind = "multimodal-token-classification" if labels.is_per_position else "multimodal-classification"
    return run(trainer, task, splits, kind, uncached)


if __name__ == "__main__":
    main()
