"""Fine-tune a VideoMAE, or another encoder of videos, on videos, with or without attention mechanisms.

    python examples/run_video_classification.py --model_name_or_path VIDEOMAE --data_dir VIDEOS \\
        --mechanism locomt --do_train --do_eval --output_dir out
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from datasets import Video
from transformers import AutoModelForVideoClassification, DefaultDataCollator

from hf_lam.modeling.host_attention_hf_lam import find_encoder
from hf_lam.training.arguments import MediaArguments, ModelArguments
from hf_lam.training.columns import columns_of
from hf_lam.training.data import find_column
from hf_lam.training.finetuning import before_training, make_trainer, open_task, run
from hf_lam.training.media import read_video
from hf_lam.training.media_data import prepare_media
from hf_lam.training.models import (
    count_channels,
    count_frames,
    load_config,
    load_image_processor,
    load_model,
    process,
)


@dataclass
class VideoArguments(MediaArguments):
    video_column_name: str | None = field(
        default=None,
        metadata={
            "help": "The column with the videos: files or paths (both need the package av), arrays of pixels "
            "(frames, height, width[, 3]), or their raw bytes with a column NAME_shape beside them."
        },
    )


def main(arguments: list[str] | None = None) -> dict[str, float]:
    with before_training():
        task = open_task(ModelArguments, VideoArguments, __doc__, arguments)
        first = next(iter(task.splits.values()))
        column = find_column(first, task.data.video_column_name, "video_column_name", Video, ("video",))
        shape = f"{column}_shape" if f"{column}_shape" in columns_of(first) else None
        config = load_config(task.arguments, task.labels)
        model = load_model(task.arguments, AutoModelForVideoClassification, config, task.training.do_train)
        encoder = find_encoder(model).config
        processor = load_image_processor(task.arguments, encoder)

        def read(row: dict[str, Any], root: str | None) -> Any:
            frames, channels = count_frames(encoder), count_channels(encoder)
            return read_video(row[column], frames, row[shape] if shape else None, root, channels)

        encode = partial(process, processor, model)
        splits = prepare_media(
            task.splits, read, encode, task.labels, task.data, task.training.seed, task.sources, files=[column]
        )
        trainer = make_trainer(task, model, AutoModelForVideoClassification, splits, processor, DefaultDataCollator())
    return run(trainer, task, splits, "video-classification")


if __name__ == "__main__":
    main()
