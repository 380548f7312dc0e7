"""The processor of fusion models on data sets: rows, batches, streams, and what samples lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from PIL import Image
from transformers import AutoProcessor, TrainingArguments, Wav2Vec2FeatureExtractor

from helpers.fusion_samples import RATE, TEXTS, make_parts, process, raw, rows, without
from hf_lam import HfLamFusionConfig, HfLamFusionForSequenceClassification, HfLamFusionProcessor
from hf_lam.training import FusionCollator, HfLamTrainer
from hf_lam.training.lengths import Lengths


@pytest.mark.parametrize("kind", [None, "np"])
@pytest.mark.parametrize(
    "gaps",
    [
        {},
        {"text": [0, 1]},
        {"text": [2, 3], "audio": [1]},
        {"images": [0, 1, 2, 3]},
        {"videos": [0, 1], "audio": [2, 3]},
        {"text": [0, 1, 2, 3], "images": [0, 1], "audio": [0, 1, 2, 3]},
        {"text": [1, 3], "images": [0, 2], "videos": [0, 1, 2], "audio": [1, 2, 3]},
    ],
)
def test_batches_of_a_data_set_have_the_same_columns(processor, gaps, kind) -> None:
    """In pieces of two samples, some of which lack a modality altogether."""
    whole = {name: [*values, values[0]] for name, values in raw().items()}
    whole["videos"] = [np.stack(video) for video in whole["videos"]]
    inputs = without(whole, **gaps)
    expected = FusionCollator(processor)(rows(process(processor, inputs)))
    made = Dataset.from_dict({"row": [0, 1, 2, 3]}).map(
        lambda batch: processor(
            **{name: [values[row] for row in batch["row"]] for name, values in inputs.items()},
            sampling_rate=RATE,
            return_tensors=kind,
            padding=True,
        ),
        batched=True,
        batch_size=2,
        remove_columns=["row"],
    )
    assert set(made.column_names) == {*processor.model_input_names, *(f"has_{name}" for name in processor.modalities)}
    batch = FusionCollator(processor)(list(made))
    assert set(batch) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(batch[name], tensor, atol=1e-6, rtol=0)


def test_a_column_of_a_data_set_is_a_list(processor) -> None:
    columns = {"text": [TEXTS[0], None, TEXTS[2]], "images": [*raw()["images"][:2], None]}
    expected = processor(**columns, return_tensors="pt", padding=True)
    data = Dataset.from_dict(columns)
    batch = processor(text=data["text"], images=data["images"], return_tensors="pt", padding=True)
    made = data.with_transform(lambda rows: processor(text=rows["text"], images=rows["images"], padding=True))
    collated = FusionCollator(processor)([made[index] for index in range(3)])
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor) and torch.equal(collated[name], tensor)


# --- a data set alone ------------------------------------------------------------------------------------------------

FEATURES = {"clips": {"size": 4, "positions": "learned"}, "faces": 3}


@pytest.fixture(scope="module")
def mixed() -> HfLamFusionProcessor:
    """For what has one size, what has a length, and vectors with and without positions."""
    parts = {name: part for name, part in make_parts().items() if name in ("tokenizer", "image_processor")}
    return HfLamFusionProcessor(**parts, feature_extractor=Wav2Vec2FeatureExtractor(), features=FEATURES)


def columns(**gaps: list[int]) -> dict[str, list[Any]]:
    """Six samples; gaps: which of them lack a modality."""
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(6)]
    lengths = [3, 1, 2, 5, 2, 4]
    made: dict[str, list[Any]] = {
        "text": [*TEXTS, *TEXTS],
        "image": pictures,
        "audio": [generator.standard_normal(400 + 100 * length).tolist() for length in lengths],
        "clips": [generator.standard_normal((length, 4)).tolist() for length in lengths],
        "faces": [generator.standard_normal((length, 3)).tolist() for length in reversed(lengths)],
    }
    made = without(made, **gaps)
    clips = made["clips"]
    return {**made, "clips_positions": [None if x is None else [7 * i for i in range(len(x))] for x in clips]}


NAMES = {"input_ids", "attention_mask", "token_type_ids", "pixel_values", "audio_values", "clips_features"}
NAMES |= {
    "clips_positions",
    "faces_features",
    *(f"has_{name}" for name in ("text", "image", "audio", "clips", "faces")),
}
GAPS: list[dict[str, list[int]]] = [
    {},
    {"text": [0, 1], "clips": [0, 1], "faces": [0, 1]},
    {"text": [0, 2], "image": [1, 3, 5], "audio": [0, 1, 2, 3], "clips": [4, 5], "faces": [0, 5]},
    {"image": [0, 1, 2, 3, 4, 5], "audio": [0, 1, 4, 5], "clips": [0, 1, 2, 3, 4], "text": [5]},
]


def call(processor: Any, given: dict[str, list[Any]], **options: Any) -> Any:
    """The processor on all samples at once, with its arguments by name."""
    return processor(
        text=given["text"],
        images=given["image"],
        audio=given["audio"],
        features={"clips": given["clips"], "faces": given["faces"]},
        positions={"clips": given["clips_positions"]},
        **options,
    )


def assert_same(batch: Any, expected: Any) -> None:
    assert set(batch) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(batch[name], tensor, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("gaps", GAPS)
def test_map_makes_the_same_rows_of_rows_and_of_batches(mixed, gaps) -> None:
    given = columns(**gaps)
    expected = call(mixed, given, return_tensors="pt", padding=True)
    data = Dataset.from_dict({**given, "label": [0] * 6})
    kinds = []
    for options in ({"batched": True, "batch_size": 2}, {"batched": True}, {"batched": False}):
        made = data.map(mixed, remove_columns=list(given), **options)
        assert set(made.column_names) == {"label", *NAMES}
        kinds.append(made.features)
        batch = FusionCollator(mixed)(list(made))
        assert not batch.pop("labels").any()
        assert_same(batch, expected)
    assert kinds[0] == kinds[1] == kinds[2]
    for made in (data.with_transform(mixed), data.to_iterable_dataset().map(mixed, remove_columns=list(given))):
        batch = FusionCollator(mixed)([made[i] for i in range(6)] if isinstance(made, Dataset) else list(made))
        batch.pop("labels", None)
        assert_same(batch, expected)
    streamed = data.to_iterable_dataset().map(mixed, batched=True, batch_size=2, remove_columns=list(given))
    batch = FusionCollator(mixed)([{k: v for k, v in row.items() if k != "label"} for row in streamed])
    assert_same(batch, expected)


def test_map_takes_tables_and_their_columns(mixed) -> None:
    given = {name: columns(text=[0, 1], clips=[2, 4])[name] for name in ("text", "clips", "clips_positions")}
    given["text"][5] = ""
    data = Dataset.from_dict(given)
    expected = data.map(mixed, batched=True, batch_size=2, remove_columns=list(given))
    made = data.with_format("pandas").map(mixed, batched=True, batch_size=2, remove_columns=list(given))
    assert made.with_format(None).to_dict() == expected.to_dict()
    texts = pd.Series(given["text"], dtype="category")
    assert mixed(text=texts, features={"clips": given["clips"]})["has_text"] == expected["has_text"][:]


def test_a_row_by_its_arguments_has_all_columns_too(mixed) -> None:
    """As people write it: a lambda with the names, where `None` is a sample that lacks the modality."""
    given = columns(**GAPS[2])
    data = Dataset.from_dict(given)
    made = data.map(lambda row: call(mixed, {name: row[name] for name in given}), remove_columns=list(given))
    assert_same(FusionCollator(mixed)(list(made)), call(mixed, given, return_tensors="pt", padding=True))


@pytest.mark.parametrize("nothing", ["", float("nan"), np.float32("nan"), pd.NA, pd.NaT, [], np.zeros((0, 4)), {}])
def test_whatever_stands_for_nothing_is_missing(mixed, nothing: Any) -> None:
    given = columns(**GAPS[2])
    expected = call(mixed, given, return_tensors="pt", padding=True)
    filled = {name: [nothing if value is None else value for value in values] for name, values in given.items()}
    assert_same(call(mixed, filled, return_tensors="pt", padding=True), expected)
    tables = {}
    for name, values in filled.items():
        # Lists in the cells of a table are arrays of arrays, as parquet files come.
        cells = [np.array([*map(np.array, x), None], object)[:-1] if isinstance(x, list) and x else x for x in values]
        tables[name] = pd.Series(cells, dtype=object)
    assert_same(call(mixed, tables, return_tensors="pt", padding=True), expected)
    assert_same(mixed(pd.DataFrame(tables), return_tensors="pt", padding=True), expected)
    for i in range(6):
        row = {name: values[i] for name, values in filled.items()}
        made = mixed(row)
        assert {name for name in made if name.startswith("has_")} == {f"has_{name}" for name in mixed.modalities}
        assert made["has_text"] is (given["text"][i] is not None)
        assert made["has_clips"] is (given["clips"][i] is not None)


def test_several_processes_and_the_cache_of_map(mixed, tmp_path: Path) -> None:
    mixed.save_pretrained(tmp_path / "processor")
    loaded = [AutoProcessor.from_pretrained(tmp_path / "processor") for _ in range(2)]
    hashes = {Hasher.hash(processor) for processor in loaded}
    loaded[0](text=TEXTS, padding=True, truncation=True, max_length=4)
    assert len(hashes | {Hasher.hash(loaded[0])}) == 1
    given = columns(**GAPS[1])
    Dataset.from_dict(given).to_parquet(tmp_path / "data.parquet")
    data = Dataset.from_parquet(str(tmp_path / "data.parquet"), cache_dir=str(tmp_path / "cache"))
    first, second = (
        data.map(processor, batched=True, batch_size=2, num_proc=count, remove_columns=list(given))
        for processor, count in ((loaded[0], None), (loaded[1], None))
    )
    assert first.cache_files == second.cache_files
    both = data.map(loaded[0], batched=True, batch_size=1, num_proc=2, remove_columns=list(given))
    assert both.features == first.features and both.to_dict() == first.to_dict()


def test_columns_that_are_not_those_of_the_processor(mixed) -> None:
    with pytest.raises(ValueError, match=r"none of the columns sentence, label is called .*: text, image"):
        mixed({"sentence": "a cat", "label": 1})
    with pytest.raises(ValueError, match="give nothing else beside it"):
        mixed({"text": "a cat"}, features={"faces": np.ones((1, 3))})
    with pytest.raises(ValueError, match=r"samples \[1\] have no modality"):
        mixed({"text": ["a cat", None], "faces": [None, []]})
    # One vector for each sample, where the other columns say that they are several.
    made = mixed({"text": ["a cat", "a"], "faces": [[1.0, 2, 3], [4.0, 5, 6]]}, return_tensors="pt", padding=True)
    assert made["faces_features"].tolist() == [[[1.0, 2, 3]], [[4.0, 5, 6]]]


# --- lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["columns", "numpy", "samples", "transform"])
def test_the_length_of_a_sample_is_that_of_its_texts_vectors_and_sounds(mixed, kind: str) -> None:
    given = columns(text=[1], clips=[0, 5], faces=[2])
    data = Dataset.from_dict(given)
    made = data.map(mixed, batched=True, remove_columns=list(given))
    texts = [5, 0, 4, 5, 10, 4]
    clips, faces = [0, 1, 2, 5, 2, 0], [4, 2, 0, 2, 1, 3]
    waves = [-(-(400 + 100 * length) // 320) for length in (3, 1, 2, 5, 2, 4)]
    expected = [sum(x) for x in zip(texts, clips, faces, waves, strict=True)]
    counted: Any = {
        "columns": made,
        "numpy": made.with_format("numpy"),
        "samples": list(made),
        "transform": data.with_transform(mixed),
    }[kind]
    assert Lengths(counted, mixed.model_input_names[0], "length").lengths == expected
    # Also without a processor to name an input, in an order of its own, and behind a selection.
    if kind == "columns":
        assert Lengths(counted.select([3, 0]), "input_ids", "length").lengths == [expected[3], expected[0]]


def test_training_in_groups_by_length(tmp_path: Path) -> None:
    config = HfLamFusionConfig(
        features={"clips": 4, "faces": 3}, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, num_labels=2
    )
    given = {name: columns(clips=[0], faces=[1])[name] for name in ("clips", "faces")}
    processor = HfLamFusionProcessor(features={"clips": 4, "faces": 3})
    data = Dataset.from_dict({**given, "label": [0, 1] * 3}).map(processor, batched=True, remove_columns=list(given))
    arguments = TrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=2,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    model = HfLamFusionForSequenceClassification(config)
    trainer = HfLamTrainer(model, arguments, FusionCollator(processor), data)
    assert list(trainer._get_train_sampler().lengths) == [4, 1, 7, 7, 3, 7]
    assert np.isfinite(trainer.train().training_loss)
