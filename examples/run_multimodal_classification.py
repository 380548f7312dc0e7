"""Fine-tune one model on any of text, images, videos, audio and vectors together, with or without mechanisms.

    python examples/run_multimodal_classification.py --image_model VIT --audio_model AST --data_dir DATA/av_mnist \\
        --audio_column_name spectrogram --spectrogram_mel_first --mechanism lam --do_train --do_eval --output_dir out
    python examples/run_multimodal_classification.py --features '{"text": "text", "visual": "visual"}' \\
        --fusion_config '{"hidden_size": 64, "num_attention_heads": 4}' --data_dir DATA/mosi \\
        --do_train --do_eval --output_dir out
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from datasets import Audio, Image, Video
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
)

from hf_lam import (
    HfLamFusionConfig,
    HfLamFusionForSequenceClassification,
    HfLamFusionForTokenClassification,
    HfLamFusionProcessor,
    inject,
)
from hf_lam.mechanism_options import json_object
from hf_lam.modeling.hosts_hf_lam import max_length_of
from hf_lam.modeling.injection_hf_lam import initialize_weights
from hf_lam.modeling.mechanism_registry_hf_lam import mechanism_block
from hf_lam.modeling.processing_hf_lam import PARTS
from hf_lam.training import FusionCollator, cache_features, load_trained_fusion
from hf_lam.training.arguments import MediaArguments, ModelArguments
from hf_lam.training.columns import check_column
from hf_lam.training.data import find_column, limited
from hf_lam.training.feature_models import encoded_modalities, make_features_model
from hf_lam.training.finetuning import Uncached, before_training, make_trainer, open_task, run
from hf_lam.training.frame_processors import FrameProcessor
from hf_lam.training.fusion_rows import FusionRows
from hf_lam.training.label_positions import labels_positions
from hf_lam.training.labels import Labels
from hf_lam.training.media_data import prepare_media, root_of
from hf_lam.training.models import for_trainer, load_config, load_model, load_pretrained
from hf_lam.training.vectors import (
    VectorColumn,
    as_arrays,
    count_vectors,
    find_scales,
    find_sizes,
    read_vector_columns,
)
from hf_lam.training.widening import widen_like

# Of every modality with an encoder: the feature of `datasets` and the usual names of its column, and what loads its
# part of a processor.
COLUMNS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "text": ((), ("sentence", "text", "caption")),
    "image": (Image, ("image", "img")),
    "video": (Video, ("video",)),
    "audio": (Audio, ("audio", "spectrogram")),
}
LOADERS: dict[str, Any] = {
    "text": AutoTokenizer,
    "image": AutoImageProcessor,
    "video": FrameProcessor,
    "audio": AutoFeatureExtractor,
}

# What --fusion_config may say; the mechanisms, encoders and vectors have options of their own here, and the last three
# are those of a head that no script trains.
FUSION_OPTIONS = {x.name for x in fields(HfLamFusionConfig)} - {x.name for x in fields(PreTrainedConfig)}
FUSION_OPTIONS -= {"hf_lam", "features", *(f"{name}_config" for name in COLUMNS)}
FUSION_OPTIONS -= {"contrast", "projection_dim", "logit_scale_init_value"}
FUSION_OPTIONS |= {"baseline", "own_layers", "fusion_from"}


@dataclass
class FusionArguments(ModelArguments):
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A saved fusion model; or else name encoders, or columns of vectors, to make one of."},
    )
    text_model: str | None = field(default=None, metadata={"help": "The encoder of the text, a Hub id or a folder."})
    image_model: str | None = field(default=None, metadata={"help": "That of the images."})
    video_model: str | None = field(default=None, metadata={"help": "That of the videos."})
    audio_model: str | None = field(default=None, metadata={"help": "That of the audio, such as an AST."})
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Resize images to so many pixels a side; for a new model with an encoder that takes any size, "
            "such as DINOv2. Default as its processor says."
        },
    )
    features: str | None = field(
        default=None,
        metadata={
            "help": "Modalities that are vectors, as JSON or a JSON file: the column of each by the name of the "
            'modality (\'{"clips": "clip_features"}\'), or an object with column, positions_column and options of '
            'FeatureOptions (\'{"clips": {"column": "c", "max_length": 75, "positions": "learned"}}\'). Of a saved '
            "model, only columns with other names than its modalities."
        },
    )
    standardize_features: bool = field(
        default=False,
        metadata={
            "help": "Bring vectors to mean 0 and standard deviation 1 over the training data; the processor that is "
            "saved does the same."
        },
    )
    cache_features: str | None = field(
        default=None,
        metadata={
            "help": "A folder for what the encoders give: they stay as they are, run over the data once, and the rest "
            "is trained on that. The folder may be used again with the same encoders and data; what is saved is the "
            "whole model."
        },
    )
    fusion_config: str | None = field(
        default=None,
        metadata={
            "help": "How the modalities become one model, as JSON or a JSON file: "
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
                f"{', '.join(f'--{name}_model' for name in COLUMNS)}, or --features."
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
        named = {name: getattr(self, f"{name}_model") for name in COLUMNS}
        return {name: source for name, source in named.items() if source is not None}

    def fusion_options(self) -> dict[str, Any]:
        """What `--fusion_config` says."""
        return json_object("--fusion_config", self.fusion_config)

    def vector_columns(self) -> dict[str, VectorColumn]:
        """What `--features` says, by modality."""
        return read_vector_columns(json_object("--features", self.features))

    def count_positions(self, row: Mapping[str, Any]) -> int | None:
        """How many vectors a row has, of the modalities whose vectors may have labels."""
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
    max_seconds: float = field(default=30.0, metadata={"help": "Longer sounds are cut to this many seconds."})
    cut_to_sound: bool = field(
        default=False,
        metadata={
            "help": "Where an encoder hears a window of one length, Whisper's 30 seconds, it hears as much of it as "
            "there is sound."
        },
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut to this many tokens."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_seq_length < 1:
            raise ValueError(f"--max_seq_length must be at least 1, got {self.max_seq_length}.")
        if not self.max_seconds > 0:
            raise ValueError(f"--max_seconds must be positive, got {self.max_seconds}.")


def load_fusion(
    arguments: FusionArguments, labels: Labels, sizes: Mapping[str, int], is_trained: bool
) -> tuple[Any, list[str]]:
    """The model, and what in it starts from random weights although the encoders do not.

    sizes: of the vectors of a new model.
    """
    if arguments.model_name_or_path is not None:
        return load_saved(arguments, labels, is_trained), []
    loaded: dict[str, Any] = {}
    for name, source in arguments.encoders().items():
        if arguments.from_scratch:
            encoder_config = load_pretrained(AutoConfig, source, arguments, of_model=False)
            loaded[name] = AutoModel.from_config(encoder_config, trust_remote_code=arguments.trust_remote_code)
        else:
            loaded[name] = load_pretrained(AutoModel, source, arguments, of_model=False)
    columns, wanted = arguments.vector_columns(), arguments.fusion_options()
    attached = None if arguments.control else arguments.mechanisms() or None
    options = {**wanted, **labels.config_options, "hf_lam": attached}
    options["features"] = {name: {"size": size, **columns[name].options} for name, size in sizes.items()} or None
    head: Any = HfLamFusionForTokenClassification if labels.is_per_position else HfLamFusionForSequenceClassification
    if loaded:
        model = head.from_modality_pretrained(**loaded, **options, dtype=torch.float32)
        # For the model card.
        model.config.name_or_path = next(iter(arguments.encoders().values()))
    else:
        model = head(HfLamFusionConfig(**options))
    base = model.base_model
    names = [f"{name}_projection" for name in model.config.modalities]
    new = [name for name in names if isinstance(getattr(base, name), nn.Linear)]
    new += [f"{name}_{part}" for name in sizes for part in ("model", "positions")]
    if wanted.get("fusion_from") is None and len(base.encoder.layers):
        new.append("encoder")
    new = [f"{model.base_model_prefix}.{name}" for name in new]
    draw_apart(model, [*new, "classifier"])
    if arguments.control:
        model = widen_like(model, arguments.mechanisms())
    return model, new if loaded else [model.base_model_prefix]


def draw_apart(model: Any, names: Sequence[str]) -> None:
    """Draw the first weights of some parts anew, each by the seed and its name.

    So it starts from the same weights under the same seed whatever other modalities and fusion layers a model has.
    """
    seed = torch.initial_seed()
    for name in names:
        for path, module in model.get_submodule(name).named_modules():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(zlib.crc32(f"{seed} {name} {path}".encode()))
                initialize_weights(model, module)


def load_saved(arguments: FusionArguments, labels: Labels, is_trained: bool) -> Any:
    """A saved fusion model, with the mechanisms that were asked for."""
    mechanisms = arguments.mechanisms()
    config: Any = load_config(arguments, labels)
    if config.model_type != HfLamFusionConfig.model_type:
        raise ValueError(
            f"--model_name_or_path {arguments.model_name_or_path!r} is a {config.model_type}, no fusion model; "
            "name it as one of the encoders."
        )
    if labels_positions(config) != labels.is_per_position and not is_trained:
        raise ValueError(
            f"{arguments.model_name_or_path!r} gives {'each position' if labels_positions(config) else 'a sample'} a "
            f"label, and the data have one for {'each position' if labels.is_per_position else 'a sample'}."
        )
    if mechanisms and config.hf_lam is not None:
        raise ValueError(
            f"{arguments.model_name_or_path!r} has mechanisms already, "
            f"{', '.join(sorted(set(config.hf_lam) - {'version'}))}; leave out --mechanism."
        )

    # What `convert` is to stock models, `inject` is to a fusion model, which saves its mechanisms itself.
    def attach(model: Any, *configs: Any) -> Any:
        model.config.hf_lam = mechanism_block(configs)
        return inject(model, *configs)

    return load_model(arguments, auto_class_of(labels), config, is_trained, attach)


def auto_class_of(labels: Labels) -> Any:
    return AutoModelForTokenClassification if labels.is_per_position else AutoModelForSequenceClassification


def load_processor(arguments: FusionArguments, config: Any, scales: Mapping[str, Any]) -> HfLamFusionProcessor:
    """That of the saved model, or one from the parts that the encoders' folders have.

    scales: mean and standard deviation of the vectors of a new model, if they are standardised.
    """
    source = arguments.processor_name_or_path or arguments.model_name_or_path
    if source is not None:
        processor: Any = load_pretrained(AutoProcessor, source, arguments)
    else:
        side = {"height": arguments.image_size, "width": arguments.image_size}
        resizing = {"image": {"size": side, "do_center_crop": False}} if arguments.image_size is not None else {}
        parts = {
            PARTS[name]: load_pretrained(LOADERS[name], path, arguments, of_model=False, **resizing.get(name, {}))
            for name, path in arguments.encoders().items()
        }
        features = {
            name: {key: options[key] for key in ("size", "max_length", "positions")} | scales.get(name, {})
            for name, options in (config.features or {}).items()
        }
        processor = HfLamFusionProcessor(**parts, features=features or None)
    lacking = sorted(set(config.modalities) - set(getattr(processor, "modalities", ())))
    if lacking:
        raise ValueError(f"the processor of {source!r}, a {type(processor).__name__}, has no part for {lacking}.")
    return processor


def find_columns(dataset: Any, data: MultimodalArguments, config: Any) -> dict[str, str]:
    """The column of every modality of the model that has an encoder."""
    modalities = [name for name in config.modalities if name not in (config.features or ())]
    given = {name: getattr(data, f"{name}_column_name") for name in COLUMNS}
    for name, column in given.items():
        if column is not None and name not in modalities:
            raise ValueError(
                f"--{name}_column_name {column!r}: the model has no {name}, only {', '.join(config.modalities)}."
            )
    return {name: find_column(dataset, given[name], f"{name}_column_name", *COLUMNS[name]) for name in modalities}


def find_vectors(dataset: Any, arguments: FusionArguments, config: Any) -> dict[str, VectorColumn]:
    """The column of every modality of the model that is vectors."""
    named = arguments.vector_columns()
    strange = sorted(set(named) - set(config.features or ()))
    if strange:
        raise ValueError(
            f"--features: the model has no vectors {', '.join(strange)}, only {', '.join(config.features or ())}."
        )
    found = {name: named.get(name, VectorColumn(name)) for name in config.features or ()}
    for source in found.values():
        for column in filter(None, (source.column, source.positions_column)):
            check_column(dataset, column, "features")
    return found


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
        processor = load_processor(task.arguments, config, scales)
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
