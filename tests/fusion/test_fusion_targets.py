"""Texts that a model learns to write: what the processor makes of them, and what becomes of its tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoProcessor, BertTokenizer, PreTrainedTokenizerFast

from helpers.fusion_heads import decoder_config, make_head
from hf_lam import HfLamFusionForConditionalGeneration, HfLamFusionProcessor
from hf_lam.hub.processor_checks import check_processor_files, try_processor
from hf_lam.modeling.targets_hf_lam import token_ids_of
from hf_lam.training import FusionCollator, HfLamTrainer, HfLamTrainingArguments

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "five", "and", "two", "cats"]
READ = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cats", "what", "is", "this"]


def bert(words: list[str] = WORDS) -> Any:
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


def bare(**special: str) -> Any:
    """A tokenizer that puts nothing around a text, as GPT-2's."""
    names = ["<s>", "</s>", "<pad>", "<unk>", "a", "five"]
    backend = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special)


def processor(tokenizer: Any = None, **parts: Any) -> HfLamFusionProcessor:
    parts = {"features": {"clips": 3}, **parts}
    return HfLamFusionProcessor(decoder_tokenizer=bert() if tokenizer is None else tokenizer, **parts)


CLIPS = [np.ones((2, 3)), np.ones((1, 3))]


def test_labels_are_the_words_and_the_end() -> None:
    made = processor()(features={"clips": CLIPS}, text_target=["a five", "two cats and a five"], return_tensors="pt")
    assert made["labels"].tolist() == [[5, 6, 3, -100, -100, -100], [8, 9, 7, 5, 6, 3]]
    assert made["labels"].dtype == torch.long and made["clips_features"].shape == (2, 2, 3)
    lists = processor()(features={"clips": CLIPS}, text_target=["a five", "two"])
    assert lists["labels"] == [[5, 6, 3], [8, 3]]
    one = processor()(features={"clips": CLIPS[0]}, text_target="a five", return_tensors="np")
    assert one["labels"].tolist() == [[5, 6, 3]] and one["clips_features"].shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("special", "end", "ids"),
    [
        (
            {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
            [1],
            {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
        ),
        # As GPT-2: one for all.
        (
            {"bos_token": "</s>", "eos_token": "</s>"},
            [1],
            {"decoder_start_token_id": 1, "eos_token_id": 1, "pad_token_id": 1},
        ),
        (
            {"cls_token": "<s>", "sep_token": "</s>"},
            [1],
            {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        ),
        ({"eos_token": "</s>", "pad_token": "<pad>"}, [1], {"eos_token_id": 1, "pad_token_id": 2}),
        ({}, [], {}),
    ],
)
def test_the_tokens_around_a_text(special: dict[str, str], end: list[int], ids: dict[str, int]) -> None:
    made = processor(bare(**special))
    assert made.decoder_token_ids == token_ids_of(made.decoder_tokenizer) == ids
    assert made(text_target=["a five"])["labels"] == [[4, 5, *end]]


def test_the_tokens_are_options_of_a_model() -> None:
    made = processor()
    options: dict[str, Any] = {"features": {"clips": 3}, "hidden_size": 8, "num_attention_heads": 2}
    model = HfLamFusionForConditionalGeneration.from_modality_pretrained(
        decoder=decoder_config(), num_hidden_layers=1, **options, **made.decoder_token_ids
    )
    config = model.generation_config
    assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (2, 3, 0)
    batch = made(features={"clips": CLIPS}, text_target=["a five", "two"], return_tensors="pt")
    assert model(**batch).loss.isfinite()
    written = model.generate(**batch, max_new_tokens=4)
    assert made.batch_decode(written, skip_special_tokens=True) == bert().batch_decode(
        written, skip_special_tokens=True
    )


def test_long_texts_are_cut_before_their_end() -> None:
    long = ["a five and two cats", "a"]
    made = processor()(features={"clips": CLIPS}, text_target=long, target_kwargs={"max_length": 4})
    assert made["labels"] == [[5, 6, 7, 3], [5, 3]]
    given = {"max_length": 4, "padding": "max_length", "truncation": True}
    assert processor()(features={"clips": CLIPS}, text_target=long, target_kwargs=given)["labels"] == made["labels"]


def test_what_is_read_and_what_is_written_have_their_own_words() -> None:
    made = HfLamFusionProcessor(bert(READ), decoder_tokenizer=bert())
    batch = made(text=["what is this"], text_target=["two cats"])
    assert batch["input_ids"] == [[2, 6, 7, 8, 3]] and batch["labels"] == [[8, 9, 3]]
    assert made.decode([8, 9]) == "two cats" and made.tokenizer.decode([6, 7]) == "what is"
    assert HfLamFusionProcessor(bert(READ)).decode([6, 7]) == "what is"
    assert "labels" not in made.model_input_names
    alone = made(text_target=["two cats", "a"], return_tensors="pt")
    assert list(alone) == ["labels"] and alone["labels"].tolist() == [[8, 9, 3], [5, 3, -100]]


def test_rows_and_batches_of_a_data_set() -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"clips": [clip.tolist() for clip in CLIPS], "text_target": ["a five", "two"], "number": [0, 1]}
    data = datasets.Dataset.from_dict(columns)
    made = processor()
    whole = data.map(made, batched=True, remove_columns=data.column_names)
    assert whole["labels"][:] == [[5, 6, 3], [8, 3]]
    rows = data.with_transform(made)
    assert list(rows[0]["labels"]) == [5, 6, 3]
    batch = FusionCollator(made)([rows[index] for index in range(2)])
    assert batch["labels"].tolist() == [[5, 6, 3], [8, 3, -100]]
    # Without a tokenizer for it, the column is one as any other.
    assert "labels" not in HfLamFusionProcessor(features={"clips": 3})(columns)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"text_target": ["a"]}, "text_target has 1 texts for 2 samples"),
        ({"text_target": ["a", None]}, r"samples \[1\] have no text in text_target"),
        ({"text_target": ["a", float("nan")]}, r"samples \[1\] have no text"),
        ({"text_target": ["", "a"]}, r"samples \[0\] have no text"),
    ],
)
def test_texts_that_are_refused(call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor()(features={"clips": CLIPS}, **call)


def test_without_a_tokenizer_for_them() -> None:
    made = HfLamFusionProcessor(bert())
    with pytest.raises(ValueError, match="this processor has no decoder_tokenizer"):
        made(text=["a"], text_target=["a"])
    with pytest.raises(ValueError, match="has no decoder_tokenizer"):
        _ = made.decoder_token_ids
    with pytest.raises(TypeError):
        HfLamFusionProcessor(decoder_tokenizer=3, features={"clips": 3})


def test_a_processor_without_a_tokenizer_trains_a_model(tmp_path: Path) -> None:
    """Of others, `Trainer` gives the special tokens of the tokenizer to the model."""
    model = make_head("generation", text_config=None, features={"clips": {"size": 3}})
    made = processor()
    batch = made(features={"clips": CLIPS}, text_target=["a five", "two"])
    rows = [{key: column[index] for key, column in batch.items()} for index in range(2)]
    trainer = HfLamTrainer(
        model=model,
        args=HfLamTrainingArguments(
            output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to="none", save_steps=1, disable_tqdm=True
        ),
        train_dataset=rows,
        processing_class=made,
        data_collator=FusionCollator(made),
    )
    trainer.train()
    assert trainer.processing_class is made
    loaded = AutoProcessor.from_pretrained(tmp_path / "checkpoint-1")
    assert loaded.decoder_tokenizer.get_vocab() == made.decoder_tokenizer.get_vocab()


# --- saved and loaded ------------------------------------------------------------------------------------------------

PARTS: dict[str, dict[str, Any]] = {
    "vectors": {"features": {"clips": 3}},
    "text": {"tokenizer": bert(READ)},
    "the same": {"tokenizer": bert()},
}


@pytest.mark.parametrize("parts", PARTS)
def test_it_is_saved_beside_the_tokenizer_of_what_is_read(parts: str, tmp_path: Path) -> None:
    made = HfLamFusionProcessor(**PARTS[parts], decoder_tokenizer=bert())
    made.save_pretrained(tmp_path)
    for loaded in (AutoProcessor.from_pretrained(tmp_path), HfLamFusionProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, HfLamFusionProcessor)
        assert loaded.decoder_tokenizer.get_vocab() == made.decoder_tokenizer.get_vocab()
        assert (loaded.tokenizer is None) == (parts == "vectors")
        if made.tokenizer is not None:
            assert loaded.tokenizer.get_vocab() == made.tokenizer.get_vocab()
        assert loaded(text_target=["a five"])["labels"] == [[5, 6, 3]]
    # One without it, in the same folder, does not find what is left of it.
    HfLamFusionProcessor(**PARTS[parts]).save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).decoder_tokenizer is None


def test_its_files_are_checked(tmp_path: Path) -> None:
    model = make_head("generation", decoder=decoder_config())
    made = HfLamFusionProcessor(bert(READ), decoder_tokenizer=bert(), features={"clips": 5})
    made.save_pretrained(tmp_path)
    check_processor_files(tmp_path, model.config)
    try_processor(made, model.config, tmp_path)
    many = bert([*WORDS, *(f"word{index}" for index in range(40))])
    larger = HfLamFusionProcessor(bert(READ), decoder_tokenizer=many, features={"clips": 5})
    with pytest.raises(ValueError, match=r"the token 'word39' has the id 49, but the model's embedding has 40 rows"):
        try_processor(larger, model.config, tmp_path)
    larger.save_pretrained(tmp_path / "larger")
    with pytest.raises(ValueError, match=r"decoder_tokenizer.tokenizer.json' has ids up to 49, .* has 40 rows"):
        check_processor_files(tmp_path / "larger", model.config)
    shutil.rmtree(tmp_path / "decoder_tokenizer")
    with pytest.raises(ValueError, match=r"processor_config.json' has a decoder_tokenizer, of which no folder"):
        check_processor_files(tmp_path, model.config)
    assert json.loads((tmp_path / "processor_config.json").read_text())["decoder_tokenizer"] is True
