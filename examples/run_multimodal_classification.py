"""Fine-tune one model on any of text, images, videos and audio together, with or without attention mechanisms.

    python examples/run_multimodal_classification.py --image_model VIT --audio_model AST --data_dir DATA/av_mnist \\
        --audio_column_name spectrogram --spectrogram_mel_first --mechanism lam --do_train --do_eval --output_dir out
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Audio, Image, Video
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
)

from hf_lam import HfLamFusionConfig, HfLamFusionForSequenceClassification, HfLamFusionProcessor, inject
from hf_lam.mechanism_options import json_object
from hf_lam.modeling.hosts_facts_hf_lam import read_input_shape
from hf_lam.modeling.hosts_hf_lam import max_length_of
from hf_lam.modeling.mechanism_registry_hf_lam import mechanism_block
from hf_lam.modeling.processing_hf_lam import PARTS, is_missing
from hf_lam.training import FusionCollator
from hf_lam.training.arguments import MediaArguments, ModelArguments
from hf_lam.training.data import find_column
from hf_lam.training.finetuning import before_training, make_trainer, open_task, run
from hf_lam.training.labels import Labels
from hf_lam.training.media import UnreadableError, read_audio, read_image, read_video
from hf_lam.training.media_data import prepare_media
from hf_lam.training.models import load_config, load_model, load_pretrained

# Of every modality: the feature of `datasets` and the usual names of its column, what loads its part of a processor,
# and the argument of the processor that takes it.
COLUMNS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "text": ((), ("sentence", "text", "caption")),
    "image": (Image, ("image", "img")),
    "video": (Video, ("video",)),
    "audio": (Audio, ("audio", "spectrogram")),
}
LOADERS: dict[str, Any] = {
    "text": AutoTokenizer,
    "image": AutoImageProcessor,
    "video": AutoImageProcessor,
    "audio": AutoFeatureExtractor,
}
ARGUMENTS = {"text": "text", "image": "images", "video": "videos", "audio": "audio"}

# What --fusion_config may say; the mechanisms and the encoders have options of their own here.
FUSION_OPTIONS = {x.name for x in fields(HfLamFusionConfig)} - {x.name for x in fields(PreTrainedConfig)}
FUSION_OPTIONS -= {"hf_lam", *(f"{name}_config" for name in COLUMNS)}
FUSION_OPTIONS |= {"baseline", "own_layers", "fusion_from"}


@dataclass
class FusionArguments(ModelArguments):
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A saved fusion model; or else name the encoders to make one of."}
    )
    text_model: str | None = field(default=None, metadata={"help": "The encoder of the text, a Hub id or a folder."})
    image_model: str | None = field(default=None, metadata={"help": "That of the images."})
    video_model: str | None = field(default=None, metadata={"help": "That of the videos."})
    audio_model: str | None = field(default=None, metadata={"help": "That of the audio, such as an AST."})
    fusion_config: str | None = field(
        default=None,
        metadata={
            "help": "How the encoders become one model, as JSON or a JSON file: "
            '\'{"num_hidden_layers": 4, "fusion_from": "image", "own_layers": {"image": 8}}\'. Options: '
            f"{', '.join(sorted(FUSION_OPTIONS))}."
        },
    )
    freeze_host: bool = field(
        default=False,
        metadata={
            "help": "Train the mechanisms and the head alone; of a model that is made of encoders, also what starts "
            "from random weights: projections, and fusion layers without fusion_from."
        },
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "Random weights; only the configurations are taken from the checkpoints."}
    )

    def check_source(self) -> None:
        if (self.model_name_or_path is None) == (not self.encoders()):
            raise ValueError(
                "give --model_name_or_path, a saved fusion model, or the encoders to make one of: "
                f"{', '.join(f'--{name}_model' for name in COLUMNS)}."
            )
        if self.model_name_or_path is not None and self.fusion_config is not None:
            raise ValueError("--fusion_config is for encoders; change a saved fusion model with --config_overrides.")
        for name in ("config_overrides", "model_revision"):
            if self.encoders() and getattr(self, name) not in (None, "main"):
                raise ValueError(f"--{name} is for --model_name_or_path; a model of encoders has --fusion_config.")
        unknown = sorted(set(self.fusion_options()) - FUSION_OPTIONS)
        if unknown:
            raise ValueError(
                f"--fusion_config has no option {', '.join(unknown)}, only {', '.join(sorted(FUSION_OPTIONS))}."
            )

    def encoders(self) -> dict[str, str]:
        """The encoders that were named, by modality."""
        named = {name: getattr(self, f"{name}_model") for name in COLUMNS}
        return {name: source for name, source in named.items() if source is not None}

    def fusion_options(self) -> dict[str, Any]:
        """What `--fusion_config` says."""
        return json_object("--fusion_config", self.fusion_config)


@dataclass
class MultimodalArguments(MediaArguments):
    text_column_name: str | None = field(
        default=None, metadata={"help": "The column with the text. Where a row has nothing, the sample has no text."}
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "Likewise for images, as in run_image_classification.py."}
    )
    video_column_name: str | None = field(
        default=None, metadata={"help": "Likewise for videos, as in run_video_classification.py."}
    )
    audio_column_name: str | None = field(
        default=None,
        metadata={
            "help": "Likewise for audio: files, paths, waveforms with their sampling_rate, or spectrograms (frames, "
            "mel bins) as lists or as raw bytes with a column NAME_shape beside them, before normalisation."
        },
    )
    spectrogram_mel_first: bool = field(default=False, metadata={"help": "Spectrograms are (mel bins, frames)."})
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut to this many tokens."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_seq_length < 1:
            raise ValueError(f"--max_seq_length must be at least 1, got {self.max_seq_length}.")


def load_fusion(arguments: FusionArguments, labels: Labels, is_trained: bool) -> tuple[Any, list[nn.Module]]:
    """The model, and what in its base starts from random weights although the encoders do not."""
    mechanisms = arguments.mechanisms()
    if arguments.model_name_or_path is not None:
        config: Any = load_config(arguments, labels)
        if config.model_type != HfLamFusionConfig.model_type:
            raise ValueError(
                f"--model_name_or_path {arguments.model_name_or_path!r} is a {config.model_type}, no fusion model; "
                "name it as one of the encoders."
            )
        if mechanisms and config.hf_lam is not None:
            raise ValueError(
                f"{arguments.model_name_or_path!r} has mechanisms already, "
                f"{', '.join(sorted(set(config.hf_lam) - {'version'}))}; leave out --mechanism."
            )
        # What `convert` is to stock models, `inject` is to a fusion model, which saves its mechanisms itself.
        plain = replace(arguments, mechanism=[], mechanism_config=None)
        model: Any = load_model(plain, AutoModelForSequenceClassification, config, is_trained)
        if mechanisms:
            model.config.hf_lam = mechanism_block(mechanisms)
            inject(model, *mechanisms)
        return model, []
    loaded: dict[str, Any] = {}
    for name, source in arguments.encoders().items():
        if arguments.from_scratch:
            encoder_config = load_pretrained(AutoConfig, source, arguments, of_model=False)
            loaded[name] = AutoModel.from_config(encoder_config, trust_remote_code=arguments.trust_remote_code)
        else:
            loaded[name] = load_pretrained(AutoModel, source, arguments, of_model=False)
    wanted = arguments.fusion_options()
    model = HfLamFusionForSequenceClassification.from_modality_pretrained(
        **loaded, **wanted, **labels.config_options, hf_lam=mechanisms or None, dtype=torch.float32
    )
    # For the model card.
    model.config.name_or_path = next(iter(arguments.encoders().values()))
    base = model.base_model
    projections = [getattr(base, f"{name}_projection") for name in loaded]
    new = [projection for projection in projections if isinstance(projection, nn.Linear)]
    return model, new + ([base.encoder] if wanted.get("fusion_from") is None and len(base.encoder.layers) else [])


def load_processor(arguments: FusionArguments, modalities: Sequence[str]) -> HfLamFusionProcessor:
    """That of the saved model, or one from the parts that the encoders' folders have."""
    source = arguments.processor_name_or_path or arguments.model_name_or_path
    if source is not None:
        processor: Any = load_pretrained(AutoProcessor, source, arguments)
    else:
        parts = {
            PARTS[name]: load_pretrained(LOADERS[name], path, arguments, of_model=False)
            for name, path in arguments.encoders().items()
        }
        processor = HfLamFusionProcessor(**parts)
    lacking = sorted(set(modalities) - set(getattr(processor, "modalities", ())))
    if lacking:
        raise ValueError(f"the processor of {source!r}, a {type(processor).__name__}, has no part for {lacking}.")
    return processor


def find_columns(dataset: Any, arguments: MultimodalArguments, modalities: Sequence[str]) -> dict[str, str]:
    """The column of every modality of the model."""
    given = {name: getattr(arguments, f"{name}_column_name") for name in COLUMNS}
    for name, column in given.items():
        if column is not None and name not in modalities:
            raise ValueError(
                f"--{name}_column_name {column!r}: the model has no {name}, only {', '.join(modalities)}."
            )
    return {name: find_column(dataset, given[name], f"{name}_column_name", *COLUMNS[name]) for name in modalities}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    with before_training():
        task = open_task(FusionArguments, MultimodalArguments, __doc__, arguments)
        first = next(iter(task.splits.values()))
        model, new = load_fusion(task.arguments, task.labels, task.training.do_train)
        if new and task.arguments.lora_rank is not None:
            raise ValueError(
                "--lora_rank adapts what was trained before, and here fusion layers or projections start from random "
                "weights. Let them start from an encoder of their width ('{\"fusion_from\": …}'), or train without "
                "--lora_rank first and name the saved model."
            )
        config = model.config
        columns = find_columns(first, task.data, config.modalities)
        processor = load_processor(task.arguments, config.modalities)
        max_length, is_mel_first = task.data.max_seq_length, task.data.spectrogram_mel_first
        if "text" in columns:
            lengths = (max_length, processor.tokenizer.model_max_length, max_length_of(model.base_model.text_model))
            max_length = min(filter(None, lengths))
        extractor: Any = processor.feature_extractor
        sampling_rate = getattr(extractor, "sampling_rate", None)
        audio_size = read_input_shape(config.audio_config) if "audio" in columns else None
        if audio_size is not None and len(audio_size) != 2:
            raise ValueError(
                f"--audio_model must take (frames, mel bins), as an AST does; this one takes {audio_size}."
            )

        def read_sound(value: Any, shape: Any, root: str | None) -> np.ndarray:
            sound = read_audio(value, sampling_rate, shape, root)
            if sound.ndim == 1:
                made = (extractor.max_length, extractor.num_mel_bins)
                if made != audio_size:
                    raise ValueError(
                        f"the feature extractor makes spectrograms of {made} (frames, mel bins), the audio encoder "
                        f"takes {audio_size}."
                    )
                return sound
            sound = sound.T if is_mel_first else sound
            if sound.shape != audio_size:
                raise UnreadableError(
                    f"audio: its spectrogram is {sound.shape} (frames, mel bins), the encoder takes {audio_size}; "
                    "see also --spectrogram_mel_first"
                )
            # As the feature extractor does with those that it makes.
            return (sound - extractor.mean) / (2 * extractor.std) if extractor.do_normalize else sound

        def read_one(name: str, value: Any, shape: Any, root: str | None) -> Any:
            if is_missing(value):
                return None
            if name == "image":
                return read_image(value, shape, root, config.image_config.num_channels)
            if name == "video":
                video = config.video_config
                return read_video(value, video.num_frames, shape, root, video.num_channels)
            return read_sound(value, shape, root) if name == "audio" else str(value)

        def read(row: dict[str, Any], root: str | None) -> dict[str, Any]:
            sample = {
                name: read_one(name, row[column], row.get(f"{column}_shape"), root) for name, column in columns.items()
            }
            if all(value is None for value in sample.values()):
                raise UnreadableError(f"it has nothing in {', '.join(columns.values())}")
            return sample

        def encode(sample: dict[str, Any]) -> dict[str, Any]:
            # None for what the sample lacks: all rows of a batch must have the same columns.
            inputs: dict[str, Any] = dict.fromkeys(processor.model_input_names)
            given: dict[str, Any] = {ARGUMENTS[name]: [x] for name, x in sample.items() if x is not None}
            if "audio" in given and given["audio"][0].ndim == 2:
                (inputs["audio_values"],) = given.pop("audio")
            if given:
                made = processor(
                    **given, sampling_rate=sampling_rate, truncation=True, max_length=max_length, return_tensors="np"
                )
                inputs |= {key: made[key][0] for key in inputs if key in made}
            return inputs

        splits = prepare_media(task.splits, read, encode, task.labels, task.data, task.training.seed, task.sources)
        is_half = task.training.mixed_precision != "no"
        collator = FusionCollator(processor, pad_to_multiple_of=8 if is_half else None)
        saved: Any = processor
        if processor.tokenizer is None:
            # `Trainer` looks into the tokenizer of a processor, and fails where there is none.
            options = {"save_pretrained": processor.save_pretrained, "model_input_names": processor.model_input_names}
            saved = SimpleNamespace(**options)
        trainer = make_trainer(task, model, AutoModelForSequenceClassification, splits, saved, collator)
        for module in new:
            # Frozen, random layers would let nothing through that could be learnt from.
            module.requires_grad_(True)
    return run(trainer, task, splits, "multimodal-classification")


if __name__ == "__main__":
    main()
