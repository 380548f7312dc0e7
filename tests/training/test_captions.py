"""Captions as what a run learns: the column, labels, batches, and what is measured and written."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import BertTokenizer, EvalPrediction

from helpers.scripts import script_module
from hf_lam.training import FusionCollator
from hf_lam.training.caption_models import CaptioningArguments, load_decoder
from hf_lam.training.captions import (
    CaptionCollator,
    CaptionRunArguments,
    Captions,
    caption_encoder,
    find_caption_column,
    label_captions,
    load_captions,
    read_captions,
    read_references,
)
from hf_lam.training.parsing import parse_arguments
from hf_lam.training.predictions import REFERENCES
from hf_lam.training.sources import Sources

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "circle", "square"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})


# --- the column ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        ("a dog", ["a dog"]),
        (["a dog", "the dog"], ["a dog", "the dog"]),
        (("a dog",), ["a dog"]),
        (np.array(["a dog", "the dog"]), ["a dog", "the dog"]),
        ('["a dog", "the dog"]', ["a dog", "the dog"]),
        ("['a dog', 'the dog']", ["a dog", "the dog"]),
        # Brackets do not make a list of texts.
        ("[laughter]", ["[laughter]"]),
        ("[1, 2]", ["[1, 2]"]),
        ("[]", ["[]"]),
        ("(a dog)", ["(a dog)"]),
    ],
)
def test_one_caption_or_several_in_every_form(value: Any, captions: list[str]) -> None:
    assert read_captions(value) == captions


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "has nothing"),
        (float("nan"), "has nothing"),
        ([], "has an empty list"),
        ("", "without a word"),
        (["a dog", "  "], "without a word"),
        ("a\0b", "zero byte"),
        (7, "has int '7'"),
        (["a dog", None], "has list"),
        ([["a dog"]], "has list"),
    ],
)
def test_what_is_no_caption(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_captions(value)


def _read(folder: Path, split: str, rows: list[dict[str, Any]], kind: str, **options: Any) -> Any:
    table = Dataset.from_list(rows)
    path = folder / f"{split}.{kind}"
    getattr(table, {"jsonl": "to_json", "csv": "to_csv", "parquet": "to_parquet"}[kind])(str(path))
    arguments = {"output_dir": str(folder / "out"), "model_name_or_path": ".", f"{split}_file": str(path)}
    arguments |= {"do_train": split == "train", "do_predict": split == "test", "report_to": "none", **options}
    line = [f"--{name}={value}" for name, value in arguments.items()]
    with script_module("run_captioning") as script:
        model, data, training = parse_arguments(
            CaptioningArguments, script.CaptionArguments, "", line, CaptionRunArguments
        )
    return load_captions(data, model, training), data, training


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_tables_with_captions(tmp_path: Path, kind: str) -> None:
    several: Any = ["a dog", "the dog"]
    rows = [{"image": "1.png", "caption": json.dumps(several) if kind == "csv" else several} for _ in range(3)]
    loaded, data, training = _read(tmp_path, "train", rows, kind)
    assert data.label_column_name == "caption"
    assert loaded.goal.metrics == ("bleu", "rougeL", "exact")
    assert [loaded.goal.encode(value) for value in loaded.splits["train"]["caption"]] == [several] * 3
    assert training.generation_max_length == data.max_caption_length + 1


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            [{"image": "1", "caption": "a"}, {"image": "2", "caption": None}],
            {},
            "1 of 2 .*'caption': row 1 has nothing",
        ),
        ([{"image": "1", "caption": " "}], {}, "row 0 has a text without a word"),
        ([{"image": "1", "caption": 3}], {}, "row 0 has int '3'"),
        ([{"image": "1", "words": "a"}], {}, "'caption': the data have no such column, only image, words"),
        ([{"image": "1", "caption": "a"}], {"caption_column_name": "text"}, "'text': the data have no such column"),
    ],
)
def test_tables_without_captions_say_where(
    tmp_path: Path, kind: str, rows: list[dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _read(tmp_path, "train", rows, kind, **options)


@pytest.mark.parametrize(
    ("module", "package"), [("sacrebleu.metrics", "sacrebleu"), ("rouge_score.rouge_scorer", "rouge-score")]
)
def test_a_package_that_is_missing_is_known_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {package}\. Run `pip install \"hf-lam\[captions\]\"`"):
        _read(tmp_path, "train", [{"image": "1", "caption": "a"}], "jsonl")


def test_of_many_rows_the_first_are_named(tmp_path: Path) -> None:
    rows = [{"image": "1", "caption": [] if number % 2 else ["a"]} for number in range(20)]
    with pytest.raises(ValueError, match=r"10 of 20 .*row 1 has an empty list; row 3 .*row 9 has an empty list; …\."):
        _read(tmp_path, "train", rows, "parquet")


@pytest.mark.parametrize(
    "rows", [[{"image": "1"}], [{"image": "1", "caption": None}, {"image": "2", "caption": None}]]
)
def test_data_to_predict_need_no_captions(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    loaded, data, _ = _read(tmp_path, "test", rows, "jsonl")
    assert len(loaded.splits["test"]) == len(rows)
    assert data.label_column_name == "caption"


def test_the_column_with_a_usual_name_is_found() -> None:
    splits = {"train": Dataset.from_dict({"captions": ["a"], "title": ["b"]})}
    assert find_caption_column(splits, None) == "captions"
    assert find_caption_column(splits, "title") == "title"


# --- samples and batches ---------------------------------------------------------------------------------------------


SAMPLES = [{"labels": ["a red circle"], "x": [1.0]}, {"labels": ["a blue square", "a square"], "x": [2.0]}]
RED, BLUE, SQUARE = [4, 5, 7, 3], [4, 6, 8, 3], [4, 8, 3]


@pytest.mark.parametrize("is_stream", [False, True], ids=["table", "stream"])
def test_each_caption_is_learnt_from_and_all_are_compared_with(tokenizer: Any, is_stream: bool) -> None:
    rows: Any = Dataset.from_list(SAMPLES)
    prepared = {split: rows.to_iterable_dataset() if is_stream else rows for split in ("train", "validation", "test")}
    prepared["test"] = prepared["test"].remove_columns("labels")
    loaded = {split: Dataset.from_dict({"caption": [row["labels"] for row in SAMPLES]}) for split in prepared}
    data = SimpleNamespace(label_column_name="caption")
    made = label_captions(prepared, loaded, data, caption_encoder(tokenizer, 10))
    train, validation, test = (list(made[split]) for split in ("train", "validation", "test"))
    assert [row["labels"] for row in train] == [RED, BLUE, SQUARE]
    assert [row["x"] for row in train] == [[1.0], [2.0], [2.0]]
    assert [row["labels"] for row in validation] == [RED, BLUE]
    assert not any(REFERENCES in row for row in train)
    references = [np.array(row[REFERENCES]) for row in validation]
    assert read_references(references) == [row["labels"] for row in SAMPLES]
    assert [set(row) for row in test] == [{"x"}, {"x"}]
    if not is_stream:
        assert [len(made[split]) for split in ("train", "validation", "test")] == [3, 2, 2]
    else:
        assert isinstance(made["train"], IterableDataset)


def test_captions_are_cut_with_their_end(tokenizer: Any) -> None:
    assert caption_encoder(tokenizer, 3)("a red circle") == [4, 5, 3]


def test_batches_have_what_the_decoder_reads_and_captions_in_bytes(tokenizer: Any) -> None:
    config = SimpleNamespace(pad_token_id=0, decoder_start_token_id=2)
    collator = CaptionCollator(FusionCollator(), config)
    texts = [["ein roter Kreis ⊙", "紅い円"], ["a"]]
    samples = [
        {"clips_features": [[1.0, 2.0]], "labels": labels, REFERENCES: list("\0".join(captions).encode())}
        for labels, captions in zip((RED, SQUARE), texts, strict=True)
    ]
    batch = collator(samples)
    assert batch["labels"].tolist() == [RED, [*SQUARE, -100]]
    assert batch["decoder_input_ids"].tolist() == [[2, 4, 5, 7], [2, 4, 8, 3]]
    assert read_references(batch[REFERENCES].numpy()) == texts
    plain = collator([{"clips_features": [[1.0, 2.0]]}])
    assert not {"labels", "decoder_input_ids", REFERENCES} & set(plain)


# --- what is measured and written ------------------------------------------------------------------------------------


def _goal(tokenizer: Any) -> Captions:
    goal = Captions()
    goal.tokenizer = tokenizer
    return goal


def _references(*texts: list[str]) -> np.ndarray:
    rows = [np.frombuffer("\0".join(captions).encode(), np.uint8).astype(np.int32) for captions in texts]
    made = np.full((len(rows), max(map(len, rows)) + 3), -100)
    for row, its in zip(made, rows, strict=True):
        row[: len(its)] = its
    return made


def test_what_was_generated_is_compared_with_every_caption(tokenizer: Any) -> None:
    # The start, and behind the end padding: the model's and `Trainer`'s.
    tokens = np.array([[2, 4, 5, 7, 3, -100], [2, 4, 8, 3, 0, 0]])
    labels = _references(["a red circle"], ["a blue square", "a square"])
    for predictions in (tokens, (tokens, np.array([5, 6]))):
        found = _goal(tokenizer).measure(EvalPrediction(predictions=predictions, label_ids=labels))
        assert found["exact"] == found["rougeL"] == 1.0
    wrong = _references(["a red circle"], ["a blue square"])
    assert _goal(tokenizer).measure(EvalPrediction(predictions=tokens, label_ids=wrong))["exact"] == 0.5


def test_predictions_are_written_in_the_order_of_the_data(tokenizer: Any, tmp_path: Path) -> None:
    task: Any = SimpleNamespace(sources={"test": Sources(["t.csv"], [3])}, predicts_all=True)
    tokens = np.array([[2, 4, 8, 3], [2, 4, 5, 3]])
    _goal(tokenizer).write_predictions(tmp_path, (tokens, np.array([2, 0])), task)
    with (tmp_path / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["row", "prediction", "file", "file_row"],
        ["0", "a red", "t.csv", "0"],
        ["2", "a square", "t.csv", "2"],
    ]
    _goal(tokenizer).write_predictions(tmp_path, tokens, task)
    assert (tmp_path / "predictions.csv").read_text() == "row,prediction\n0,a square\n1,a red\n"


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "generation_num_beams must be at least 1"),
        ({"generation_max_length": 0}, "generation_max_length must be at least 1"),
        ({"no_predict_with_generate": True, "do_predict": True}, "leave out --no_predict_with_generate"),
    ],
)
def test_options_of_a_run_that_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    line = [f"--{name}={value}" for name, value in {"output_dir": tmp_path, **options}.items()]
    line = [name.removesuffix("=True") for name in line]
    line += ["--model_name_or_path", str(tmp_path), "--dataset_name", "x", "--do_eval"]
    with script_module("run_captioning") as script, pytest.raises(ValueError, match=message):
        parse_arguments(CaptioningArguments, script.CaptionArguments, "", line, CaptionRunArguments)


def test_beams_have_the_name_of_transformers_scripts_too(tmp_path: Path) -> None:
    for name in ("num_beams", "generation_num_beams"):
        line = [f"--{name}", "3", "--output_dir", str(tmp_path), "--model_name_or_path", str(tmp_path), "--do_eval"]
        with script_module("run_captioning") as script:
            parsed = parse_arguments(
                CaptioningArguments, script.CaptionArguments, "", [*line, "--dataset_name", "x"], CaptionRunArguments
            )
        assert parsed[2].generation_num_beams == 3


NEW: dict[str, Any] = {"image_model": "vit", "decoder_model": "gpt2"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_model": "vit"}, "a new model needs a decoder"),
        ({**NEW, "decoder_config": "{}"}, "one of them"),
        ({"image_model": "vit", "decoder_config": '{"n_embd": 8}'}, 'needs a "model_type"'),
        ({"image_model": "vit", "decoder_config": '{"model_type": "gpt2"}'}, "words of a --decoder_tokenizer"),
        ({**NEW, "decoder_lam": "[1]"}, "--decoder_lam"),
        ({**NEW, "decoder_tokenizer": "./nowhere"}, "there is no folder './nowhere'"),
        ({"model_name_or_path": "saved", "decoder_lam": "{}"}, "--decoder_lam is for a new model"),
        ({"model_name_or_path": "saved", "decoder_model": "gpt2"}, "--decoder_model is for a new model"),
        ({"decoder_model": "gpt2"}, "give --model_name_or_path"),
        ({**NEW, "fusion_config": '{"decoder_start_token_id": 1}'}, "has no option decoder_start_token_id"),
    ],
)
def test_models_that_cannot_be_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptioningArguments(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
        {"model_type": "bart", "d_model": 8, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8},
        {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2},
    ],
    ids=lambda options: options["model_type"],
)
def test_a_new_decoder_knows_the_tokens_of_its_tokenizer(options: dict[str, Any], tmp_path: Path) -> None:
    """A configuration has others, of the tokenizer that its family has: 0 for padding, which is a word here."""
    words = ["a", "red", "blue", "[UNK]", "[SEP]", "[CLS]", "[PAD]"]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(tmp_path)
    given: dict[str, Any] = {"image_model": "vit", "decoder_tokenizer": str(tmp_path)}
    decoder = load_decoder(CaptioningArguments(**given, decoder_config=json.dumps(options)))
    assert decoder.options == {"decoder_start_token_id": 5, "eos_token_id": 4, "pad_token_id": 6}
    config = decoder.model.config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (5, 4, 6)
    assert decoder.model.get_input_embeddings().weight[:6].abs().sum(1).gt(0).all()
    told = {**options, "decoder_start_token_id": 1} if options["model_type"] == "bart" else options
    decoder = load_decoder(CaptioningArguments(**given, decoder_config=json.dumps(told)))
    assert decoder.options["decoder_start_token_id"] == (1 if told != options else 5)


def test_words_of_captions_are_those_of_the_decoder_or_of_the_text() -> None:
    config = '{"model_type": "gpt2"}'
    assert CaptioningArguments(**NEW).tokenizer_source() == "gpt2"
    assert CaptioningArguments(**NEW, decoder_tokenizer="other").tokenizer_source() == "other"
    assert CaptioningArguments(text_model="bert", decoder_config=config).tokenizer_source() == "bert"


def test_padding_of_batches_is_that_of_the_losses(tokenizer: Any) -> None:
    config = SimpleNamespace(pad_token_id=0, decoder_start_token_id=2)
    batch = CaptionCollator(FusionCollator(), config)(
        [{"clips_features": [[1.0]], "labels": torch.tensor(RED)}, {"clips_features": [[1.0]], "labels": SQUARE}]
    )
    assert (batch["decoder_input_ids"] >= 0).all()
