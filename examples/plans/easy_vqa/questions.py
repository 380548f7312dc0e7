"""`run_multimodal_classification.py` on questions about pictures, whose tokens are computed once.

The tables of easy-VQA have questions, and the pictures apart, each once. Encoders that stay as they are run once over
every picture and every different question; what they give becomes the vectors that the script takes (`--features`):

    python questions.py --data_dir DATA/easy_vqa --image_model DINOV2 --text_model MINILM --tokens_dir tokens \\
        --fusion_config '{"hidden_size": 128, "num_attention_heads": 4}' --do_train --do_eval --output_dir out

`DATA/easy_vqa` has `train.parquet`, `validation.parquet` and `test.parquet` with the columns `question`, `answer` and
`image_id`, and `images_train.parquet` (of the first two) and `images_test.parquet` with `image_id` and `image`.
`--tokens_dir` may be used again, for other data too.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, HfArgumentParser

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import run_multimodal_classification as multimodal

from hf_lam.training.recorded_runs import write_once

IMAGES_OF = {"train": "images_train", "validation": "images_train", "test": "images_test"}
KINDS = ("all", "yes_no", "open")
# What the two modalities are, beside their columns: positions are in the tokens already.
FEATURES: dict[str, dict[str, Any]] = {
    "image": {"column": "image_tokens", "positions": None},
    "question": {"column": "question_tokens", "positions": None, "max_length": 16},
}


@dataclass
class QuestionArguments:
    """The source of the tokens. All other options are those of `run_multimodal_classification.py`."""

    data_dir: str = field(metadata={"help": "Folder with the tables of easy-VQA."})
    image_model: str = field(metadata={"help": "The encoder of the pictures."})
    text_model: str = field(metadata={"help": "The encoder of the questions."})
    tokens_dir: str = field(metadata={"help": "Folder of the tokens."})
    image_size: int = field(default=112, metadata={"help": "The side that pictures are resized to."})
    questions: str = field(default="all", metadata={"help": f"Which: {', '.join(KINDS)} (neither yes nor no)."})
    modalities: list[str] = field(default_factory=lambda: list(FEATURES), metadata={"help": "What the model gets."})

    def __post_init__(self) -> None:
        if self.questions not in KINDS:
            raise ValueError(f"--questions {self.questions!r} is unknown: choose one of {', '.join(KINDS)}.")
        unknown = [name for name in self.modalities if name not in FEATURES]
        if unknown:
            raise ValueError(f"--modalities: unknown {', '.join(unknown)}; choose from {', '.join(FEATURES)}.")
        missing = [path.name for path in self.tables.values() if not path.is_file()]
        if missing:
            raise ValueError(f"--data_dir {self.data_dir!r} has no {', '.join(missing)}.")

    @property
    def tables(self) -> dict[str, Path]:
        return {
            name: Path(self.data_dir, f"{name}.parquet") for name in (*IMAGES_OF, *dict.fromkeys(IMAGES_OF.values()))
        }


# --- tokens ----------------------------------------------------------------------------------------------------------


def prepare(arguments: QuestionArguments) -> Path:
    """The folder of tables with the paths of tokens, made if it is not there; its name is a hash of what it is of."""
    made_of = [hashlib.sha256(path.read_bytes()).hexdigest() for path in arguments.tables.values()]
    made_of += [arguments.image_model, arguments.text_model, str(arguments.image_size)]
    folder = Path(arguments.tokens_dir, hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12])
    write_once(folder, partial(_write, arguments))
    return folder / arguments.questions


def _write(arguments: QuestionArguments, folder: Path) -> None:
    tables = {name: Dataset.from_parquet(str(path)) for name, path in arguments.tables.items()}
    for name in dict.fromkeys(IMAGES_OF.values()):
        images = tables[name].cast_column("image", Image())
        _save(folder / name, images["image_id"], images["image"], _image_encoder(arguments))
    texts = sorted({text for split in IMAGES_OF for text in tables[split]["question"]})
    number_of = {text: number for number, text in enumerate(texts)}
    _save(folder / "questions", range(len(texts)), texts, _text_encoder(arguments))
    for split, images_of in IMAGES_OF.items():
        # As lists: a column of a table looks every value up by itself.
        rows = tables[split].select_columns(["question", "answer", "image_id"])[:]
        joined = Dataset.from_dict(
            {
                "question": rows["question"],
                "answer": rows["answer"],
                "image_tokens": [f"../{images_of}/{number}.npy" for number in rows["image_id"]],
                "question_tokens": [f"../questions/{number_of[text]}.npy" for text in rows["question"]],
            }
        )
        closed = [answer in ("yes", "no") for answer in rows["answer"]]
        of_kind = {"all": [True] * len(closed), "yes_no": closed, "open": [not x for x in closed]}
        for kind in KINDS:
            (folder / kind).mkdir(exist_ok=True)
            chosen = joined.select([index for index, is_it in enumerate(of_kind[kind]) if is_it])
            chosen.to_parquet(str(folder / kind / f"{split}.parquet"))


def _save(
    folder: Path, names: Iterable[int], inputs: Sequence[Any], encode: Callable[[Sequence[Any]], list[torch.Tensor]]
) -> None:
    """One file for each, `(tokens, width)` in half precision."""
    folder.mkdir(parents=True)
    names = list(names)
    for start in range(0, len(names), 32):
        part = slice(start, start + 32)
        for name, tokens in zip(names[part], encode(inputs[part]), strict=True):
            np.save(folder / f"{name}.npy", tokens.half().numpy())


def _image_encoder(arguments: QuestionArguments) -> Callable[[Sequence[Any]], list[torch.Tensor]]:
    side = {"height": arguments.image_size, "width": arguments.image_size}
    processor = AutoImageProcessor.from_pretrained(arguments.image_model, size=side, do_center_crop=False)
    model = AutoModel.from_pretrained(arguments.image_model, dtype=torch.float32).eval()

    @torch.no_grad()
    def encode(images: Sequence[Any]) -> list[torch.Tensor]:
        inputs = processor([image.convert("RGB") for image in images], return_tensors="pt")
        return list(model(**inputs).last_hidden_state)

    return encode


def _text_encoder(arguments: QuestionArguments) -> Callable[[Sequence[Any]], list[torch.Tensor]]:
    tokenizer = AutoTokenizer.from_pretrained(arguments.text_model)
    model = AutoModel.from_pretrained(arguments.text_model, dtype=torch.float32).eval()

    @torch.no_grad()
    def encode(texts: Sequence[Any]) -> list[torch.Tensor]:
        inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
        states = model(**inputs).last_hidden_state
        return [state[kept.bool()] for state, kept in zip(states, inputs["attention_mask"], strict=True)]

    return encode


# --- a run -----------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> dict[str, float]:
    kinds: Any = (QuestionArguments,)
    parser = HfArgumentParser(kinds, description=__doc__, allow_abbrev=False)
    wanted, further = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    tokens = (wanted.image_size // 14) ** 2 + 1
    features = {name: FEATURES[name] for name in FEATURES if name in wanted.modalities}
    if "image" in features:
        features["image"] = {**features["image"], "max_length": tokens}
    of_data = ["--data_dir", str(prepare(wanted)), "--label_column_name", "answer"]
    return multimodal.main([*of_data, "--features", json.dumps(features), *further])


if __name__ == "__main__":
    main()
