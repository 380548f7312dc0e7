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
from hf_lam.modeling.hosts_hf_lam import max_length_of
from hf_lam.training import FusionCollator, cache_features, load_trained_fusion
from hf_lam.training.data import limited
from hf_lam.training.feature_models import encoded_modalities, make_features_model
from hf_lam.training.finetuning import Uncached, before_training, make_trainer, open_task, run
from hf_lam.training.fusion_arguments import FusionArguments, MultimodalArguments
from hf_lam.training.fusion_loading import (
    find_columns,
    find_vectors,
    load_fusion_config,
    load_fusion_processor,
    load_saved_fusion,
    make_fusion,
)
from hf_lam.training.fusion_rows import FusionRows
from hf_lam.training.label_positions import labels_positions
from hf_lam.training.labels import Labels
from hf_lam.training.media_data import prepare_media, root_of
from hf_lam.training.models import for_trainer
from hf_lam.training.vectors import as_arrays, find_scales, find_sizes


def load_fusion(
    arguments: FusionArguments, labels: Labels, sizes: Mapping[str, int], is_trained: bool
) -> tuple[Any, list[str]]:
    """The model, and what in it starts from random weights although the encoders do not.

    sizes: of the vectors of a new model.
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
        columns = find_columns(first, data, config)
        vectors = find_vectors(first, task.arguments, config)
        loaded = {split: as_arrays(dataset, vectors.values()) for split, dataset in task.splits.items()}
        scales = {}
        if task.arguments.standardize_features:
            trained = limited({"train": loaded["train"]}, data, task.training.seed)["train"]
            scales = find_scales(trained, vectors, sizes, root_of(data, "train"))
        encoders, resizing = task.arguments.encoders(), task.arguments.resizing()
        processor = load_fusion_processor(task.arguments, config, encoders, scales=scales, resizing=resizing)
        max_tokens = data.max_seq_length
        if "text" in columns:
            lengths = (max_tokens, processor.tokenizer.model_max_length, max_length_of(model.base_model.text_model))
            max_tokens = min(filter(None, lengths))
        rows = FusionRows(
            config,
            processor,
            columns,
            vectors,
            label_column=data.label_column_name if labels.is_per_position else None,
            max_tokens=max_tokens,
            max_seconds=data.max_seconds,
            is_mel_first=data.spectrogram_mel_first,
            cuts_window=data.cut_to_sound,
        )
        count = rows.count_labels if labels.is_per_position else None
        splits = prepare_media(loaded, rows.read, rows.encode, labels, data, task.training.seed, task.sources, count)
        collator = FusionCollator(
            processor,
            pad_to_multiple_of=None if task.training.mixed_precision == "no" else 8,
            label_modalities=config.labelled_modalities if labels.is_per_position else None,
        )
        uncached = None
        if task.arguments.cache_features is not None and task.training.check_only:
            make_features_model(model, encoded_modalities(model))
        elif task.arguments.cache_features is not None:
            folder = task.arguments.cache_features
            with task.training.main_process_first(desc="caching features"):
                cached, part = cache_features(model, splits, folder, processor=processor, device=task.training.device)
            uncached = Uncached(partial(load_trained_fusion, model), splits)
            model, splits = part, cached
        trainer = make_trainer(task, model, auto_class_of(labels), splits, for_trainer(processor), collator)
        for name in new:
            # Frozen, random layers would let nothing through that could be learnt from.
            model.get_submodule(name).requires_grad_(True)
    kind = "multimodal-token-classification" if labels.is_per_position else "multimodal-classification"
    return run(trainer, task, splits, kind, uncached)


if __name__ == "__main__":
    main()
