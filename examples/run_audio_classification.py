"""Fine-tune a wav2vec 2.0, HuBERT, Whisper encoder or AST on sounds, with or without attention mechanisms.

    python examples/run_audio_classification.py --model_name_or_path WAV2VEC2 --data_dir SOUNDS \\
        --mechanism lam --mechanism_config '{"rank": 8}' --do_train --do_eval --output_dir out
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from datasets import Audio
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from hf_lam.training.arguments import MediaArguments, ModelArguments
from hf_lam.training.collators import SoundCollator
from hf_lam.training.columns import columns_of
from hf_lam.training.data import find_column
from hf_lam.training.finetuning import before_training, make_trainer, open_task, run
from hf_lam.training.media import UnreadableError, read_audio
from hf_lam.training.media_data import prepare_media
from hf_lam.training.models import load_config, load_model, load_pretrained, process


@dataclass
class AudioArguments(MediaArguments):
    audio_column_name: str | None = field(
        default=None,
        metadata={
            "help": "The column with the sounds: files or paths (both need the package av), waveforms with their "
            "sampling_rate, or waveforms at the model's own rate as lists or as raw bytes with a column NAME_shape "
            "beside them."
        },
    )
    max_seconds: float = field(default=30.0, metadata={"help": "Cut longer sounds to this many seconds."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.max_seconds > 0:
            raise ValueError(f"--max_seconds must be positive, got {self.max_seconds}.")


def main(arguments: list[str] | None = None) -> dict[str, float]:
    with before_training():
        task = open_task(ModelArguments, AudioArguments, __doc__, arguments)
        first = next(iter(task.splits.values()))
        column = find_column(first, task.data.audio_column_name, "audio_column_name", Audio, ("audio",))
        shape = f"{column}_shape" if f"{column}_shape" in columns_of(first) else None
        config = load_config(task.arguments, task.labels)
        model = load_model(task.arguments, AutoModelForAudioClassification, config, task.training.do_train)
        name = str(task.arguments.processor_name_or_path or task.arguments.model_name_or_path)
        processor = load_pretrained(AutoFeatureExtractor, name, task.arguments)
        rate = processor.sampling_rate

        def read(row: dict[str, Any], root: str | None) -> Any:
            sound = read_audio(row[column], rate, row[shape] if shape else None, root)
            if sound.ndim != 1:
                raise UnreadableError(f"audio: {type(processor).__name__} takes a waveform, not a spectrogram")
            return sound[: round(task.data.max_seconds * rate)]

        encode = partial(process, processor, model, sampling_rate=rate)
        splits = prepare_media(
            task.splits, read, encode, task.labels, task.data, task.training.seed, task.sources, files=[column]
        )
        collator = SoundCollator(processor)
        trainer = make_trainer(task, model, AutoModelForAudioClassification, splits, processor, collator)
    return run(trainer, task, splits, "audio-classification")


if __name__ == "__main__":
    main()
