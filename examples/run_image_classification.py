"""Fine-tune a ViT, or another encoder of images, on images, with or without attention mechanisms.

    python examples/run_image_classification.py --model_name_or_path VIT --data_dir IMAGES \\
        --mechanism stt --do_train --do_eval --output_dir out
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from datasets import Image
from transformers import AutoModelForImageClassification, DefaultDataCollator

from hf_lam.modeling.host_attention_hf_lam import find_encoder
from hf_lam.training.arguments import MediaArguments, ModelArguments
from hf_lam.training.columns import columns_of
from hf_lam.training.data import find_column
from hf_lam.training.finetuning import before_training, make_trainer, open_task, run
from hf_lam.training.media import read_image
from hf_lam.training.media_data import prepare_media
from hf_lam.training.models import count_channels, load_config, load_image_processor, load_model, process


@dataclass
class ImageArguments(MediaArguments):
    image_column_name: str | None = field(
        default=None,
        metadata={
            "help": "The column with the images: files, paths, arrays of pixels (height, width[, 3]), or their raw "
            "bytes with a column NAME_shape beside them."
        },
    )


def main(arguments: list[str] | None = None) -> dict[str, float]:
    with before_training():
        task = open_task(ModelArguments, ImageArguments, __doc__, arguments)
        first = next(iter(task.splits.values()))
        column = find_column(first, task.data.image_column_name, "image_column_name", Image, ("image", "img"))
        shape = f"{column}_shape" if f"{column}_shape" in columns_of(first) else None
        config = load_config(task.arguments, task.labels)
        model = load_model(task.arguments, AutoModelForImageClassification, config, task.training.do_train)
        encoder = find_encoder(model).config
        processor = load_image_processor(task.arguments, encoder)

        def read(row: dict[str, Any], root: str | None) -> Any:
            return read_image(row[column], row[shape] if shape else None, root, count_channels(encoder))

        encode = partial(process, processor, model)
        splits = prepare_media(
            task.splits, read, encode, task.labels, task.data, task.training.seed, task.sources, files=[column]
        )
        trainer = make_trainer(task, model, AutoModelForImageClassification, splits, processor, DefaultDataCollator())
    return run(trainer, task, splits, "image-classification")


if __name__ == "__main__":
    main()
