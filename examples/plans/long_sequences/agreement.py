"""How far are the features of a cheaper encoder of images from those of the original, before and after it is taught?

    python agreement.py --model_name_or_path DINOV2 --method views --views_budget 0.5 --data_dir DATA/spoken_words \\
        --max_steps 30 --eval_steps 10 --do_train --do_eval --output_dir out

Four ways, all of which learn from the hidden states of the original, on images without labels:

    original   the encoder as it is
    views      LoCoMT: `calibrate_views` chooses the views of the four quadrants within `--views_budget`
    stt        synthesised attention: a mixture, `fit_synthesizers`, and `harden` at once
    merge      token merging, `--merged_tokens` in each layer (`tome.py`)

What is measured on images that were not learnt from, against the original: `cosine`, of the class tokens;
`patch_cosine`, of the patches, as a mean; `neighbours`, the fraction of the images whose nearest other one, by the
class token, is the same; `neighbours_of_5`, how many of the nearest five are. Step 0 is the conversion untaught.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image, load_dataset
from tome import MergingDinov2Config, MergingDinov2Model
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from transformers import (
    AutoImageProcessor,
    AutoModel,
    DefaultDataCollator,
    Dinov2Config,
    HfArgumentParser,
    PreTrainedModel,
    set_seed,
)

import hf_lam
from hf_lam import LocomtConfig, SttConfig
from hf_lam.training.arguments import RunArguments
from hf_lam.training.recorded_runs import is_recorded, run_recorded
from hf_lam.training.recording import RecordingTrainer

METHODS = ("original", "views", "stt", "merge")
METRICS = ["cosine", "patch_cosine", "neighbours", "neighbours_of_5"]
# Each split has its own images, and its name in tables.
SPLITS = {"train": "train", "validation": "eval", "test": "predict"}


@dataclass
class AgreementArguments:
    """The encoder, what is done to it, and the images."""

    model_name_or_path: str = field(metadata={"help": "A DINOv2 encoder."})
    data_dir: str = field(metadata={"help": "Folder with train.parquet, validation.parquet and test.parquet."})
    method: str = field(default="original", metadata={"help": f"One of {', '.join(METHODS)}."})
    views_budget: float = field(default=0.5, metadata={"help": "Of views: the fraction of the attention FLOPs."})
    merged_tokens: int = field(default=0, metadata={"help": "Of merge: how many tokens each layer merges."})
    synthesizer: str = field(default="dense", metadata={"help": "Of stt: which synthetic maps."})
    fit_samples: int = field(default=16, metadata={"help": "Images that views and synthetic maps are fitted on."})
    fit_epochs: int = field(default=3, metadata={"help": "How often fit_synthesizers goes through them."})
    image_column_name: str = field(default="image", metadata={"help": "The column with the images."})
    image_size: int = field(default=518, metadata={"help": "The side that images are resized to."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Learn from so many images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Compare so many of them."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Likewise in the end."})

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"--method {self.method!r} is unknown: choose one of {', '.join(METHODS)}.")
        if (self.method == "merge") != (self.merged_tokens > 0):
            raise ValueError("--method merge and --merged_tokens, at least 1, go together.")
        missing = [split for split in SPLITS if not Path(self.data_dir, f"{split}.parquet").is_file()]
        if missing:
            raise ValueError(
                f"--data_dir {self.data_dir!r} has no {', '.join(f'{split}.parquet' for split in missing)}."
            )


# --- images ----------------------------------------------------------------------------------------------------------


def load_images(arguments: AgreementArguments, seed: int) -> dict[str, Dataset]:
    """The images of each split; those to learn from are chosen by seed."""
    files = {split: str(Path(arguments.data_dir, f"{split}.parquet")) for split in SPLITS}
    side = {"height": arguments.image_size, "width": arguments.image_size}
    processor = AutoImageProcessor.from_pretrained(arguments.model_name_or_path, size=side, do_center_crop=False)
    column = arguments.image_column_name

    def process(rows: dict[str, list[Any]]) -> dict[str, Any]:
        return dict(processor([image.convert("RGB") for image in rows[column]], return_tensors="pt"))

    wanted = (arguments.max_train_samples, arguments.max_eval_samples, arguments.max_predict_samples)
    splits = {}
    for (split, dataset), count in zip(load_dataset("parquet", data_files=files).items(), wanted, strict=True):
        if column not in dataset.column_names:
            raise ValueError(f"--image_column_name {column!r}: the data have {', '.join(dataset.column_names)}.")
        images = dataset.select_columns([column]).cast_column(column, Image())
        images = images.shuffle(seed=seed) if split == "train" else images
        splits[split] = images.select(range(min(len(images), count or len(images)))).with_transform(process)
    return splits


def batches_of(images: Dataset, size: int) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


# --- models ----------------------------------------------------------------------------------------------------------


def make_model(arguments: AgreementArguments, images: Dataset, fits: bool) -> PreTrainedModel:
    """The encoder as one of the methods has it.

    fits: whether to run it on images for that; `--check_only` does not.
    """
    host = AutoModel.from_pretrained(arguments.model_name_or_path, dtype=torch.float32)
    batches = [dict(batch) for batch in batches_of(images.select(range(min(len(images), arguments.fit_samples))), 1)]
    if arguments.method == "views":
        model = hf_lam.convert(host, LocomtConfig())
        if fits:
            hf_lam.set_views(model, hf_lam.calibrate_views(model, batches, arguments.views_budget)[0])
    elif arguments.method == "stt":
        grid = [arguments.image_size // host.config.patch_size] * 2
        model = hf_lam.convert(host, SttConfig(variant="mixture", synthesizer=arguments.synthesizer, grid=grid))
        if fits:
            hf_lam.fit_synthesizers(model, batches, epochs=arguments.fit_epochs)
        hf_lam.harden(model, force=True)
    elif arguments.method == "merge":
        if not isinstance(host.config, Dinov2Config):
            raise ValueError(f"--method merge is written for DINOv2, and this is a {type(host).__name__}.")
        options = {k: v for k, v in host.config.to_dict().items() if k not in ("model_type", "architectures")}
        model = MergingDinov2Model(MergingDinov2Config(**options, merged_tokens=arguments.merged_tokens))
        model.load_state_dict(host.state_dict())
    else:
        model = host
    return model


# --- agreement -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def features_of(model: Any, images: Dataset, size: int) -> Tensor:
    """The last hidden states, `(images, 1 + patches, d)` in half precision; `[CLS]` first."""
    model.eval()
    return torch.cat([model(x["pixel_values"].to(model.device))[0].half().cpu() for x in batches_of(images, size)])


def agreement(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """How near features are to the original's, see the top of this file. Both `(images, 1 + patches, d)`."""
    cosines = torch.stack([cosine_similarity(a.float(), b.float(), dim=-1) for a, b in zip(ours, theirs, strict=True)])
    near, its = (nearest(features[:, 0].float(), 5) for features in (ours, theirs))
    shared = (near.unsqueeze(2) == its.unsqueeze(1)).any(2)
    return {
        "cosine": cosines[:, 0].mean().item(),
        "patch_cosine": cosines[:, 1:].mean().item(),
        "neighbours": (near[:, 0] == its[:, 0]).float().mean().item(),
        "neighbours_of_5": shared.float().mean().item(),
    }


def nearest(features: Tensor, count: int) -> Tensor:
    """The nearest others by cosine for each row of `(N, d)`, `(N, count)`, the nearest first."""
    features = normalize(features, dim=-1)
    similarity = (features @ features.T).fill_diagonal_(-torch.inf)
    return similarity.topk(min(count, len(features) - 1), dim=-1).indices


class AgreementTrainer(RecordingTrainer):
    """Evaluates by the agreement with its teacher, whose features are computed once for each part of the data."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.originals: dict[str, Tensor] = {}
        self.last: tuple[tuple[str, int], dict[str, float]] | None = None

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        which = (metric_key_prefix, self.state.global_step)
        if self.last is not None and self.last[0] == which:  # the last step, and then the end of training
            return self.last[1]
        images, size = eval_dataset or self.eval_dataset, self.args.per_device_eval_batch_size
        if metric_key_prefix not in self.originals:
            self.originals[metric_key_prefix] = features_of(self.teacher, images, size)
        found = agreement(features_of(self.model, images, size), self.originals[metric_key_prefix])
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.last = which, metrics
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


# --- a run -----------------------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None) -> tuple[AgreementArguments, RunArguments]:
    kinds: Any = (AgreementArguments, RunArguments)
    parser = HfArgumentParser(kinds, description=__doc__)
    parser.set_defaults(
        distillation_weight=0.0,
        hidden_distillation_weight=1.0,
        remove_unused_columns=False,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=4,
        dataloader_pin_memory=False,
    )
    wanted, training = parser.parse_args_into_dataclasses(arguments)
    return wanted, training


def settings_of(arguments: AgreementArguments, training: RunArguments) -> dict[str, Any]:
    """The settings that decide the model that comes out."""
    rest = {name: getattr(training, name) for name in ("seed", "max_steps", "num_train_epochs", "learning_rate")}
    return {name: value for name, value in asdict(arguments).items() if name != "max_predict_samples"} | rest


def main(arguments: list[str] | None = None) -> Mapping[str, float]:
    wanted, training = parse_arguments(arguments)
    settings = settings_of(wanted, training)
    set_seed(training.seed)
    splits = load_images(wanted, training.seed)
    load = partial(AutoModel.from_pretrained, dtype=torch.float32)
    if is_recorded(training, settings):
        model = load(str(training.output_dir), trust_remote_code=True)  # which this script wrote
    else:
        model = make_model(wanted, splits["train"], fits=not training.check_only)
    trainer = AgreementTrainer(
        model=model,
        args=training,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=DefaultDataCollator(),
        teacher=load(wanted.model_name_or_path),
    )
    return run_recorded(trainer, METRICS, settings, splits["test"])


if __name__ == "__main__":
    main()
