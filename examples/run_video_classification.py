"""Fine-tune a VideoMAE on videos, with or without attention mechanisms.

    python examples/run_video_classification.py --model_name_or_path VIDEOMAE --data_dir VIDEOS \\
        --mechanism locomt --do_train --do_eval --output_dir out
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datasets import Video
from transformers import AutoModelForVideoClassification, DefaultDataCollator

from hf_lam.training.arguments import MediaArguments, ModelArguments
from hf_lam.training.columns import columns_of
from hf_lam.training.data import find_column
from hf_lam.training.finetuning import before_training, make_trainer, open_task, run
from hf_lam.training.media import read_video
from hf_lam.training.media_data import prepare_media
from hf_lam.training.models import load_config, load_image_processor, load_model


@dataclass
class VideoArguments(MediaArguments):
    video_column_name: str | None = field(
        default=None,
        metadata={
            "help": "The column with the videos: files, paths (both need the package av), arrays of pixels (frames, "
            "height, width[, 3]), or their raw bytes with a column NAME_shape beside them."
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
        processor = load_image_processor(task.arguments, config)

        def read(row: dict[str, Any], root: str | None) -> Any:
            return read_video(row[column], config.num_frames, row[shape] if shape else None, root, config.num_channels)

        def encode(frames: Any) -> dict[str, Any]:
            return {"pixel_values": processor(frames, return_tensors="np")["pixel_values"][0]}

        splits = prepare_media(task.splits, read, encode, task.labels, task.data, task.training.seed, task.sources)
        trainer = make_trainer(task, model, AutoModelForVideoClassification, splits, processor, DefaultDataCollator())
    return run(trainer, task, splits, "video-classification")


if __name__ == "__main__":
    main()
