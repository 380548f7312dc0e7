"""The command line of the scripts that train fusion models: encoders, vectors, and how they become one model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from transformers import PreTrainedConfig

from ..mechanism_options import json_object
from ..modeling.configuration_hf_lam_fusion import MODALITIES, HfLamFusionConfig
from .arguments import MediaArguments, ModelArguments
from .vectors import VectorColumn, count_vectors, read_vector_columns

# What --fusion_config may say; mechanisms, encoders and vectors have options of their own, and so have the heads of
# moments and of generation. No script trains the head of embeddings.
FUSION_OPTIONS = {x.name for x in fields(HfLamFusionConfig)} - {x.name for x in fields(PreTrainedConfig)}
FUSION_OPTIONS -= {"hf_lam", "features", *(f"{name}_config" for name in MODALITIES)}
FUSION_OPTIONS -= {"moments", "decoder", "decoder_lam", "contrast", "projection_dim", "logit_scale_init_value"}
FUSION_OPTIONS -= {name for name in FUSION_OPTIONS if name.endswith("_token_id")}
FUSION_OPTIONS |= {"baseline", "own_layers", "fusion_from"}


@dataclass
class FusionArguments(ModelArguments):
    """A saved fusion model, or what a new one is made of."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A saved fusion model. Without it, a new one is made of the encoders and columns of vectors "
            "that are named."
        },
    )
    text_model: str | None = field(default=None, metadata={"help": "The encoder of the text, a Hub id or a folder."})
    image_model: str | None = field(
        default=None, metadata={"help": "The encoder of the images, a Hub id or a folder."}
    )
    video_model: str | None = field(
        default=None, metadata={"help": "The encoder of the videos, a Hub id or a folder."}
    )
    audio_model: str | None = field(
        default=None, metadata={"help": "The encoder of the audio, such as an AST, a Hub id or a folder."}
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Resize images to this many pixels a side, in a new model whose encoder takes any size, such as "
            "DINOv2. Unless given, the encoder's processor decides."
        },
    )
    features: str | None = field(
        default=None,
        metadata={
            "help": "The modalities that are given as vectors, as JSON or a JSON file. Each name has a column "
            '(\'{"clips": "clip_features"}\') or an object with column, positions_column and options of '
            'FeatureOptions (\'{"clips": {"column": "c", "max_length": 75, "positions": "learned"}}\'). For a saved '
            "model, name only the columns that are not called like its modalities."
        },
    )
    standardize_features: bool = field(
        default=False,
        metadata={
            "help": "Bring vectors to mean 0 and standard deviation 1 over the training data. The saved processor "
            "does the same."
        },
    )
    cache_features: str | None = field(
        default=None,
        metadata={
            "help": "A folder for the outputs of the encoders. The encoders stay frozen and run once over the data; "
            "everything else trains on the cached outputs, and the whole model is saved. The folder can be used "
            "again with the same data, and keeps the outputs of other encoders apart."
        },
    )
    fusion_config: str | None = field(
        default=None,
        metadata={
            "help": "Options of a new fusion model, as JSON or a JSON file: "
            '\'{"num_hidden_layers": 4, "fusion_from": "image", "own_layers": {"image": 8}}\'. The options are '
            f"{', '.join(sorted(FUSION_OPTIONS))}."
        },
    )
    freeze_host: bool = field(
        default=False,
        metadata={
            "help": "Train only the mechanisms and the head, and in a model made of encoders whatever starts from "
            "random weights: projections, and fusion layers without fusion_from."
        },
    )
    from_scratch: bool = field(
        default=False,
        metadata={"help": "Start from random weights and take only the configurations from the checkpoints."},
    )

    def trains_layers(self) -> bool:
        return self.model_name_or_path is None and self.fusion_options().get("fusion_from") is None

    def of_saved_model(self, folder: str) -> FusionArguments:
        # Of its vectors, where they are in the data; of its encoders, where the test data are cached.
        columns = {
            name: {"column": source.column, "positions_column": source.positions_column}
            for name, source in self.vector_columns().items()
        }
        features = json.dumps(columns) if columns else None
        return replace(super().of_saved_model(folder), features=features, cache_features=self.cache_features)

    def check_source(self) -> None:
        encoders, vectors = self.encoders(), self.vector_columns()
        is_saved = self.model_name_or_path is not None
        if is_saved == bool(encoders) and (is_saved or not vectors):
            raise ValueError(
                "give --model_name_or_path, a saved fusion model, or what to make one of: the encoders "
                f"{', '.join(f'--{name}_model' for name in MODALITIES)}, or --features."
            )
        if is_saved and self.fusion_config is not None:
            raise ValueError("--fusion_config is for a new model; change a saved one with --config_overrides.")
        if self.image_size is not None and (self.image_model is None or self.processor_name_or_path is not None):
            raise ValueError("--image_size is for the images of an --image_model, as its own processor makes them.")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"--image_size must be at least 1, got {self.image_size}.")
        if is_saved and self.standardize_features:
            raise ValueError("--standardize_features is for a new model; a saved one has a processor that knows.")
        for name, source in vectors.items():
            if is_saved and source.options:
                raise ValueError(f"--features: a saved model has its own {', '.join(source.options)} of {name!r}.")
        for name in ("config_overrides", "model_revision"):
            if not is_saved and getattr(self, name) not in (None, "main"):
                raise ValueError(f"--{name} is for --model_name_or_path; a new model has --fusion_config.")
        if self.cache_features is not None and self.teacher_model is not None:
            raise ValueError("--cache_features leaves nothing that a --teacher_model could see; use one of them.")
        if self.cache_features is not None and not (is_saved or encoders):
            raise ValueError("--cache_features is for encoders, and there are none.")
        both = sorted(set(encoders) & set(vectors))
        if both:
            raise ValueError(f"--features: {', '.join(both)} has an encoder too; give the vectors another name.")
        if self.standardize_features and not vectors:
            raise ValueError("--standardize_features is for --features.")
        if self.standardize_features and self.processor_name_or_path is not None:
            raise ValueError("--standardize_features changes the processor, which --processor_name_or_path names.")
        self._check_fusion(encoders, vectors)

    def _check_fusion(self, encoders: Mapping[str, str], vectors: Mapping[str, VectorColumn]) -> None:
        wanted = self.fusion_options()
        unknown = sorted(set(wanted) - FUSION_OPTIONS)
        if unknown:
            raise ValueError(
                f"--fusion_config has no option {', '.join(unknown)}, only {', '.join(sorted(FUSION_OPTIONS))}."
            )
        if vectors and not encoders and self.model_name_or_path is None:
            lacking = [name for name in ("hidden_size", "num_attention_heads") if wanted.get(name) is None]
            if lacking:
                raise ValueError(f"--fusion_config must have {' and '.join(lacking)}, as no encoder says it.")
            without = sorted({"own_layers", "fusion_from"} & set(wanted))
            if without:
                raise ValueError(f"--fusion_config has {', '.join(without)}, but there are no encoders.")

    def encoders(self) -> dict[str, str]:
        """The encoders that were named, by modality."""
        named = {name: getattr(self, f"{name}_model") for name in MODALITIES}
        return {name: source for name, source in named.items() if source is not None}

    def resizing(self) -> dict[str, Any]:
        """Options of a processor of images that `--image_size` stands for."""
        if self.image_size is None:
            return {}
        return {"size": {"height": self.image_size, "width": self.image_size}, "do_center_crop": False}

    def fusion_options(self) -> dict[str, Any]:
        """The value of `--fusion_config`."""
        return json_object("--fusion_config", self.fusion_config)

    def vector_columns(self) -> dict[str, VectorColumn]:
        """The value of `--features`, by modality."""
        return read_vector_columns(json_object("--features", self.features))

    def count_positions(self, row: Mapping[str, Any]) -> int | None:
        """Count the vectors of a row, of the modalities whose vectors may have labels."""
        named = self.vector_columns()
        for name in self.fusion_options().get("label_modalities") or named:
            source = named.get(name)
            if source is None:
                continue
            if source.column not in row:
                raise ValueError(f"--features {source.column!r}: the data have no such column, only {', '.join(row)}.")
            count = count_vectors(row[source.column], row.get(f"{source.column}_shape"))
            if count is not None:
                return count - source.options.get("class_tokens", 0)
        return None


@dataclass
class MultimodalArguments(MediaArguments):
    """The options of data with a column for every modality."""

    text_column_name: str | None = field(
        default=None, metadata={"help": "The column with the text. A sample whose row has none has no text."}
    )
    image_column_name: str | None = field(
        default=None,
        metadata={
            "help": "The column with the images, in any form that run_image_classification.py takes. A row may have "
            "none."
        },
    )
    video_column_name: str | None = field(
        default=None,
        metadata={
            "help": "The column with the videos, in any form that run_video_classification.py takes. A row may have "
            "none."
        },
    )
    audio_column_name: str | None = field(
        default=None,
        metadata={
            "help": "The column with the audio: files, paths, waveforms with their sampling_rate, or spectrograms "
            "(frames, mel bins) before normalisation, as lists or as raw bytes with a column NAME_shape beside "
            "them. A row may have none."
        },
    )
    spectrogram_mel_first: bool = field(default=False, metadata={"help": "Read spectrograms as (mel bins, frames)."})
    max_seconds: float = field(default=30.0, metadata={"help": "Cut longer sounds to this many seconds."})
    cut_to_sound: bool = field(
        default=False,
        metadata={
            "help": "Cut the input of an encoder with a window of fixed length, such as the 30 seconds of Whisper, "
            "to the length of the sound."
        },
    )
    max_seq_length: int = field(default=128, metadata={"help": "Cut longer texts to this many tokens."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_seq_length < 1:
            raise ValueError(f"--max_seq_length must be at least 1, got {self.max_seq_length}.")
        if not self.max_seconds > 0:
            raise ValueError(f"--max_seconds must be positive, got {self.max_seconds}.")
