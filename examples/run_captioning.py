"""Fine-tune a model that writes captions of images, videos, sounds, texts and vectors, with or without mechanisms.

    python examples/run_captioning.py --image_model DINOV2 --audio_model WHISPER --decoder_model MINILM \\
        --data_dir CAPTIONS --mechanism lam --decoder_lam '{"rank": 8}' --do_train --do_eval --output_dir out
    python examples/run_captioning.py --model_name_or_path VISION_ENCODER_DECODER --data_dir CAPTIONS \\
        --mechanism stt --do_train --do_eval --output_dir out

The first makes a fusion model under a decoder, the second trains a `VisionEncoderDecoderModel`. The column `caption`
has a text, or a list of several. Evaluations write captions and compare them with all that a sample has: BLEU,
ROUGE-L, and `exact`, the share of those that are one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from datasets import Dataset, Image
from transformers import AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from hf_lam import HfLamFusionForConditionalGeneration
from hf_lam.training import FusionCollator, load_trained_fusion
from hf_lam.training.caption_models import (
    CaptioningArguments,
    is_of_images,
    load_decoder,
    load_image_caption_processor,
    load_image_captioner,
)
from hf_lam.training.captions import (
    CaptionCollator,
    CaptioningTrainer,
    CaptionRunArguments,
    Captions,
    caption_encoder,
    label_captions,
    load_captions,
)
from hf_lam.training.columns import AnyDataset, columns_of
from hf_lam.training.data import find_column, limited
from hf_lam.training.finetuning import Task, Uncached, before_training, make_trainer, open_task, run
from hf_lam.training.fusion_arguments import MultimodalArguments
from hf_lam.training.fusion_loading import (
    load_fusion_config,
    load_saved_fusion,
    make_fusion,
)
from hf_lam.training.fusion_runs import open_rows, run_encoders_once, train_new_parts
from hf_lam.training.media import read_image
from hf_lam.training.media_data import prepare_media
from hf_lam.training.models import count_channels, for_trainer, process
from hf_lam.training.vectors import find_sizes


@dataclass
class CaptionArguments(MultimodalArguments):
    caption_column_name: str | None = field(
        default=None,
        metadata={
            "help": "The column with the caption or a list of captions. In training, each caption of a list is a "
            "sample; in evaluations, a written caption is compared with all of them. Unless given, caption or "
            "captions."
        },
    )
    max_caption_length: int = field(
        default=32, metadata={"help": "Cut longer captions to this many tokens, the end token included."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_caption_length < 2:
            raise ValueError(f"--max_caption_length must be at least 2, got {self.max_caption_length}.")


class Parts(NamedTuple):
    """Everything that a run needs of a kind of model.

    name: name of the kind of task, in `AUTO_CLASSES`.
    model: model that is trained.
    new: names of what starts from random weights although the encoders do not.
    auto_class: Auto class that the model is loaded with.
    processor: processor that is saved beside it.
    tokenizer: tokenizer of the captions.
    splits: the data as they are read.
    read: function that takes a sample out of a row.
    encode: function that makes inputs of the model of it.
    files: names of the columns that may have files.
    """

    name: str
    model: Any
    new: list[str]
    auto_class: Any
    processor: Any
    tokenizer: Any
    splits: Mapping[str, AnyDataset]
    read: Callable[..., Any]
    encode: Callable[..., dict[str, Any]]
    files: list[str]


def open_fusion(task: Task) -> Parts:
    """A fusion model under a decoder."""
    arguments, data = task.arguments, task.data
    training: Any = task.training
    # A caption is no text to read.
    first = _without(next(iter(task.splits.values())), data.label_column_name)
    if arguments.model_name_or_path is not None:
        config = load_fusion_config(arguments)
        model: Any = load_saved_fusion(arguments, AutoModelForSeq2SeqLM, config, task.training.do_train)
        new: list[str] = []
        sizes: dict[str, int] = {}
        tokenizer = None
    else:
        columns = arguments.vector_columns()
        sizes = find_sizes(task.splits, columns, data)
        decoder = load_decoder(arguments)
        features = {name: {"size": size, **columns[name].options} for name, size in sizes.items()} or None
        options = {**arguments.fusion_options(), **decoder.options, "features": features, "decoder": decoder.model}
        options["decoder_lam"] = arguments.decoder_lam_options()
        head = HfLamFusionForConditionalGeneration
        model, new = make_fusion(head, arguments, arguments.encoders(), options, ["projection"])
        new, tokenizer = [*new, "projection"], decoder.tokenizer
        model.generation_config.max_length = training.generation_max_length
    loaded, processor, rows = open_rows(task, model, sizes, first, decoder_tokenizer=tokenizer)
    return Parts(
        "multimodal-captioning",
        model,
        new,
        AutoModelForSeq2SeqLM,
        processor,
        processor.decoder_tokenizer,
        loaded,
        rows.read,
        rows.encode,
        rows.files,
    )


def _without(dataset: AnyDataset, column: str) -> AnyDataset:
    return dataset.remove_columns(column) if column in columns_of(dataset) else dataset


def open_images(task: Task) -> Parts:
    """A `VisionEncoderDecoderModel`."""
    arguments, data = task.arguments, task.data
    model = load_image_captioner(arguments, task.training.do_train)
    encoder = model.encoder.config
    processor = load_image_caption_processor(arguments, model)
    first = next(iter(task.splits.values()))
    column = find_column(first, data.image_column_name, "image_column_name", Image, ("image", "img"))
    shape = f"{column}_shape" if f"{column}_shape" in columns_of(first) else None

    def read(row: dict[str, Any], root: str | None) -> Any:
        return read_image(row[column], row[shape] if shape else None, root, count_channels(encoder))

    encode = partial(process, processor.image_processor, model)
    kind = AutoModelForImageTextToText
    return Parts("image-to-text", model, [], kind, processor, processor.tokenizer, task.splits, read, encode, [column])


def main(arguments: list[str] | None = None) -> dict[str, float]:
    with before_training():
        task = open_task(
            CaptioningArguments,
            CaptionArguments,
            __doc__,
            arguments,
            load=load_captions,
            training_class=CaptionRunArguments,
        )
        data, training, goal = task.data, task.training, task.goal
        assert isinstance(goal, Captions)
        is_fusion = not is_of_images(task.arguments)
        parts = open_fusion(task) if is_fusion else open_images(task)
        name, model, new, auto_class, processor, tokenizer, loaded, read, encode, files = parts
        if new and task.arguments.lora_rank is not None:
            raise ValueError(
                "--lora_rank adapts what was trained before, and here fusion layers or projections start from random "
                "weights. Train without --lora_rank first, and name the saved model."
            )
        goal.tokenizer = tokenizer
        prepared = prepare_media(loaded, read, encode, goal, data, training.seed, task.sources, files=files)
        kept = {
            split: rows.select(prepared[split].rows) if isinstance(rows, Dataset) else rows
            for split, rows in limited(loaded, data, training.seed).items()
        }
        of_captions = caption_encoder(tokenizer, data.max_caption_length)
        label = partial(label_captions, loaded=kept, data=data, encode=of_captions)
        pad_to = None if training.mixed_precision == "no" else 8
        collator = CaptionCollator(FusionCollator(processor if is_fusion else None, pad_to), model.config)
        splits, uncached = label(prepared), None
        if (cached := run_encoders_once(task, model, prepared, processor)) is not None:
            uncached = Uncached(partial(load_trained_fusion, model), splits)
            model, splits = cached[0], label(cached[1])
        saved = for_trainer(processor) if is_fusion else processor
        trainer = make_trainer(task, model, auto_class, splits, saved, collator, CaptioningTrainer)
        train_new_parts(model, new)
    return run(trainer, task, splits, name, uncached)


if __name__ == "__main__":
    main()
