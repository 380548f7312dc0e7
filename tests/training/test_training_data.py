"""Data sets of the fine-tuning scripts: sources, classes, and what cannot be read."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, LargeList, List, Value, disable_progress_bars
from PIL import Image
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from helpers.scripts import script_module
from hf_lam.training import data as data_module
from hf_lam.training import labels as labels_module
from hf_lam.training.arguments import DataArguments, MediaArguments, ModelArguments
from hf_lam.training.data import check_texts, limited, load_splits
from hf_lam.training.labels import Labels, find_labels
from hf_lam.training.media import read_image
from hf_lam.training.media_data import prepare_media
from hf_lam.training.parsing import parse_arguments

CLASSES = ClassLabel(names=["a", "b", "c"])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    disable_progress_bars()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*arguments: object) -> tuple[dict[str, Any], DataArguments]:
    given = ["--model_name_or_path", "M", "--output_dir", "o", "--cache_dir", "cache", *map(str, arguments)]
    model, data, training = parse_arguments(ModelArguments, DataArguments, "", given)
    return load_splits(data, model, training)[0], data


def labels_of(
    *values: list[Any], feature: Any = None, checkpoint: Any = None, names: Any = None, is_trained: bool = False
) -> Labels:
    """The classes of splits train, validation with these labels."""
    features = None if feature is None else Features({"label": feature})
    splits = {
        split: Dataset.from_dict({"label": column}, features=features)
        for split, column in zip(("train", "validation"), values, strict=False)
    }
    return find_labels(splits, DataArguments(dataset_name="D", class_names=names), checkpoint, is_trained)


ROWS = Dataset.from_dict({"text": [f"t{i}" for i in range(20)], "label": [["neg", "pos"][i % 2] for i in range(20)]})


def write(suffix: str, name: str = "a") -> str:
    path = f"{name}.{suffix}"
    if suffix in ("csv", "tsv"):
        ROWS.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    elif suffix == "parquet":
        ROWS.to_parquet(path)
    else:
        ROWS.to_json(path, lines=suffix == "jsonl")
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_files(suffix: str) -> None:
    path = write(suffix)
    splits, data = load("--train_file", path, "--validation_file", path, "--do_train", "--do_eval")
    assert {name: split["text"][:] for name, split in splits.items()} == {
        "train": ROWS["text"][:],
        "validation": ROWS["text"][:],
    }
    assert find_labels(splits, data) == Labels(("neg", "pos"))
    stream = ["--train_file", path, "--do_train", "--streaming", "--max_steps", 1]
    splits, data = load(*stream)
    with pytest.raises(ValueError, match=r"stream does not say which classes.*--class_names"):
        find_labels(splits, data)
    splits, data = load(*stream, "--class_names", "neg", "pos")
    assert find_labels(splits, data) == Labels(("neg", "pos"))
    assert [row["text"] for row in splits["train"]] == ROWS["text"][:]


def test_a_part_of_the_training_data_to_evaluate_on() -> None:
    source = ["--train_file", write("parquet"), "--do_eval"]
    both, _ = load(*source, "--do_train")
    again, _ = load(*source)
    assert again["validation"]["text"][:] == both["validation"]["text"][:]
    assert sorted(both["train"]["text"][:] + both["validation"]["text"][:]) == sorted(ROWS["text"][:])
    with pytest.raises(ValueError, match="a stream cannot be divided"):
        load(*source, "--do_train", "--streaming", "--max_steps", 1)


def test_a_split_that_is_missing() -> None:
    Path("folder").mkdir()
    ROWS.to_parquet("folder/train.parquet")
    with pytest.raises(ValueError, match=r"no split 'dev', only 'train'.*--test_split_name"):
        load("--data_dir", "folder", "--do_predict", "--test_split_name", "dev")


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> DatasetDict:
        seen.append((arguments, options))
        return DatasetDict(dev=ROWS)

    monkeypatch.setattr(data_module, "load_dataset", load_dataset)
    source = ["--dataset_name", "me/data", "--dataset_config_name", "small", "--dataset_revision", "v1"]
    splits, _ = load(*source, "--token", "T", "--do_eval", "--validation_split_name", "dev")
    assert list(splits) == ["validation"]
    options = {"revision": "v1", "token": "T", "streaming": False, "cache_dir": "cache"}
    assert seen == [(("me/data", "small"), options)]


def save_image(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level, level, level)).save(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_folders(streaming: bool) -> None:
    # A name that `datasets` has for a builder.
    for name in ("train/a/0.png", "train/b/0.png", "validation/a/1.png"):
        save_image(Path("imagefolder", name))
    for name in ("train/a/0.mp4", "train/b/0.mp4"):
        Path("videos", name).parent.mkdir(parents=True)
        Path("videos", name).write_bytes(b"not decoded here")
    options = ["--do_train", *(["--streaming", "--max_steps", 1] if streaming else [])]
    for source, column in (("imagefolder", "image"), ("videos", "video")):
        splits, data = load("--data_dir", source, *options)
        assert find_labels(splits, data) == Labels(("a", "b"))
        rows = list(splits["train"])
        assert [row["label"] for row in rows] == [0, 1]
        assert rows[1][column]["path"].endswith(
            os.path.join("train", "b", "0." + ("png" if column == "image" else "mp4"))
        )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "cannot be loaded"),
        ("a.csv", "text,label\n", "cannot be loaded: 'a.csv': there are no samples"),
        (
            "a.csv",
            "text,label\nstra\udcdfe,a\n",
            "cannot be loaded: 'a.csv' cannot be read as utf-8: byte 0xdf in line 2",
        ),
        ("a.csv", "text,label\na,1\nb,2,3,4\n", "cannot be loaded.*line 3"),
        ("a.json", "{bad", "cannot be loaded: 'a.json': JSON parse error"),
        ("a.jsonl", "", "cannot be loaded: 'a.jsonl': there are no samples"),
        ("a.parquet", "text", "cannot be loaded: 'a.parquet': Parquet"),
    ],
)
def test_damaged_files(name: str, content: str, message: str) -> None:
    Path(name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        load("--train_file", name, "--do_train")


def test_only_an_empty_field_of_a_table_is_missing() -> None:
    words = ["NA", "null", "None", "nan", "a"]
    Path("a.csv").write_text("text,label\n" + "".join(f"{word},{i % 2}\n" for i, word in enumerate(words)))
    splits, data = load("--train_file", "a.csv", "--do_train")
    assert splits["train"]["text"][:] == words
    check_texts(splits, ["text"])
    assert find_labels(splits, data) == Labels(("0", "1"))
    Path("b.csv").write_text('text,other,label\n"",1,0\na,2,1\n"",3,NA\n')
    splits, data = load("--train_file", "b.csv", "--do_train")
    with pytest.raises(ValueError, match=r"2 of 3 samples of the split 'train' have no text in 'text': row 0, 2\."):
        check_texts(splits, ["text"])
    with pytest.raises(ValueError, match=r"the column 'other' of the split 'train' must hold text, it holds .*int64"):
        check_texts(splits, ["other"])
    with pytest.raises(ValueError, match="the column 'label' holds numbers, and 'NA' where there is none"):
        find_labels(splits, data)
    stream = {"train": ROWS.to_iterable_dataset()}
    check_texts(stream, ["text"])
    with pytest.raises(ValueError, match="no such column"):
        check_texts(stream, ["sentence"])
    numbers = {"train": Dataset.from_dict({"text": [1]}).to_iterable_dataset()}
    with pytest.raises(ValueError, match="must hold text"):
        check_texts(numbers, ["text"])


def test_limits() -> None:
    first = limited({"test": ROWS}, DataArguments(dataset_name="D", max_predict_samples=3), seed=1)
    assert first["test"]["text"][:] == ["t0", "t1", "t2"]
    splits = {"train": ROWS, "validation": ROWS, "test": ROWS.to_iterable_dataset()}
    data = DataArguments(dataset_name="D", max_train_samples=5, max_eval_samples=50, max_predict_samples=3)
    kept = limited(splits, data, seed=1)
    chosen = kept["train"]["text"][:]
    assert len(set(chosen)) == 5 and chosen != ROWS["text"][:5]
    assert chosen == limited(splits, data, seed=1)["train"]["text"][:]
    assert kept["validation"]["text"][:] == ROWS["text"][:]
    assert [row["text"] for row in kept["test"]] == ["t0", "t1", "t2"]


@pytest.mark.parametrize(
    ("values", "feature", "names", "is_multi_label"),
    [
        ([2, 0, 1], None, "012", False),
        ([0.0, 1.0], None, "01", False),
        (["b", "a"], None, "ab", False),
        (["b", "NA"], None, ["NA", "b"], False),
        (["b", "a"], Value("large_string"), "ab", False),
        ([0, 1], CLASSES, "abc", False),
        ([[], [1, 0]], None, "01", True),
        ([["b"], ["a", "b"]], None, "ab", True),
        ([[0], []], List(CLASSES), "abc", True),
        ([[0], [1]], LargeList(Value("int64")), "01", True),
    ],
)
def test_classes(values: list[Any], feature: Any, names: str, is_multi_label: bool) -> None:
    labels = labels_of(values, feature=feature)
    assert labels == Labels(tuple(names), is_multi_label)
    assert labels_of(values, feature=feature, names=[*names]) == labels


def test_encoding() -> None:
    single, multi = Labels(("a", "b", "c")), Labels(("a", "b", "c"), is_multi_label=True)
    assert [single.encode(value) for value in ("c", 2, 1.0, True)] == [2, 2, 1, 1]
    assert multi.encode(["c", 0]) == [1.0, 0.0, 1.0]
    assert multi.encode([]) == [0.0, 0.0, 0.0]
    assert multi.config_options["problem_type"] == "multi_label_classification"


@pytest.mark.parametrize(
    ("train", "validation", "options", "message"),
    [
        ([0, 1], [0, 7, 3], {}, r"2 labels of the split 'validation' are wrong: row 1: 7 is outside .* row 2: 3"),
        ([0, 1], [9] * 8, {}, "8 labels .* row 4: .*; and 3 more"),
        (["a", "b"], ["a", "z"], {}, "split 'validation' are wrong: row 1: 'z' is none of the 2 classes 'a', 'b'"),
        ([0, None, 1], [0], {}, "split 'train' are wrong: row 1: there is no label"),
        ([0.0, 1.0, float("nan")], [0], {}, "split 'train' are wrong: row 2: there is no label"),
        ([0, 1, -1], [0], {"feature": CLASSES}, "split 'train' are wrong: row 2: there is no label"),
        ([0, 1, -2], [0], {}, "split 'train' are wrong: row 2: -2 is outside of the 2 classes"),
        ([0, 5], [0], {"names": ["a", "b"]}, "row 1: 5 is outside"),
        ([[0], None, [1]], [[0]], {}, "row 1: None is no list"),
        ([[0], [None], [1]], [[0]], {}, "row 1: there is no label"),
        ([0.5, 1.0], [0.0], {}, "regression"),
        ([0.0, float("inf")], [0.0], {}, "regression"),
        ([None, None], [None], {"feature": Value("string")}, "holds nothing"),
        (["0.0", "nan", "1.0"], ["0.0"], {}, "holds numbers, and 'nan' where there is none"),
        ([0, 2], [0], {}, "without a gap"),
        ([1, 1], [1], {}, "without a gap"),
        ([0, 0], [0], {}, "one class only"),
        ([b"a", b"b"], [b"a"], {}, "names or whole numbers"),
        ([{"x": 1}], [{"x": 1}], {}, "must hold labels"),
        ([[[0]]], [[[0]]], {}, "must hold labels"),
        ([0, 1], [0], {"names": ["a", "a"]}, "a class twice"),
        ([0, 1], [0], {"names": ["b", "c", "a"], "feature": CLASSES}, "in another order"),
    ],
)
def test_wrong_labels(train: list[Any], validation: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labels_of(train, validation, **options)


def test_the_classes_of_an_evaluated_model() -> None:
    model = ViTConfig(id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    for values, feature in [([0, 1], None), (["c"], None), ([0], CLASSES)]:
        assert labels_of(values, feature=feature, checkpoint=model).names == ("a", "b", "c")
    with pytest.raises(ValueError, match="the model has the classes 'a', 'b', 'c', the data 'c', 'b', 'a'"):
        labels_of([0], feature=ClassLabel(names=["c", "b", "a"]), checkpoint=model)
    with pytest.raises(ValueError, match="'z' is none of the 3 classes"):
        labels_of(["z"], checkpoint=model)
    with pytest.raises(ValueError, match="--class_names has 2 classes, the evaluated model 3"):
        labels_of([0], names=["x", "y"], checkpoint=model)


ABC = ViTConfig(id2label={0: "c", 1: "a", 2: "b"}, label2id={"c": 0, "a": 1, "b": 2})


@pytest.mark.parametrize(
    ("values", "options", "expected", "warns"),
    [
        (["a", "b", "c"], {}, "cab", False),
        (["a", "b", "c"], {"names": ["a", "b", "c"]}, "cab", False),
        ([["a", "b"], ["c"]], {}, "cab", False),
        ([0, 1, 2], {}, "cab", False),
        ([0, 1, 2], {"names": ["c", "a", "b"]}, "cab", False),
        (["x", "y", "z"], {}, "xyz", True),
        ([0, 1], {}, "01", True),
        ([0, 1, 2], {"names": ["x", "y", "z"]}, "xyz", True),
        ([0], {"feature": ClassLabel(names=["x", "y", "z"])}, "xyz", True),
        (["a", "b", "c"], {"checkpoint": ViTConfig(num_labels=3)}, "abc", False),
        ([0, 1, 2], {"checkpoint": ViTConfig(num_labels=3)}, "012", False),
        ([0, 1], {"checkpoint": ViTConfig(num_labels=3)}, "01", False),
    ],
)
def test_the_classes_of_a_model_that_is_trained_further(
    values: list[Any], options: dict[str, Any], expected: str, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(labels_module.logger, "warning", said.append)
    labels = labels_of(values, **{"checkpoint": ABC, "is_trained": True, **options})
    assert "".join(labels.names) == expected
    assert len(said) == warns and all("The checkpoint has the classes 'c', 'a', 'b'" in text for text in said)


@pytest.mark.parametrize("is_trained", [True, False])
def test_numbers_in_another_order_than_the_models(is_trained: bool) -> None:
    options = {"checkpoint": ABC, "is_trained": is_trained}
    with pytest.raises(ValueError, match=r"classes 'c', 'a', 'b', the data .*'a', 'b', 'c'"):
        labels_of([0, 1, 2], feature=CLASSES, **options)
    with pytest.raises(ValueError, match=r"classes 'c', 'a', 'b', the data .*'a', 'b', 'c'"):
        labels_of([0, 1, 2], names=["a", "b", "c"], **options)
    assert labels_of(["a"], names=["a", "b", "c"], **options).names == ("c", "a", "b")


def test_a_model_for_another_kind_of_labels() -> None:
    model = ViTConfig(num_labels=2, problem_type="multi_label_classification")
    with pytest.raises(ValueError, match="for multi_label_classification, the data are for single_label_class"):
        labels_of([0, 1], checkpoint=model)
    assert labels_of([[0], [1]], checkpoint=model).is_multi_label
    assert not labels_of([0, 1], checkpoint=model, is_trained=True).is_multi_label


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", [None, [None, None], [-1, -1]])
def test_a_test_split_without_labels(column: list[Any] | None, streaming: bool) -> None:
    rows = Dataset.from_dict({"text": ["t0", "t1"], **({} if column is None else {"label": column})})
    test: Any = rows.to_iterable_dataset() if streaming else rows
    data = MediaArguments(dataset_name="D")
    assert find_labels({"train": ROWS, "test": test}, data) == Labels(("neg", "pos"))
    for kind, is_multi_label in (("single", False), ("multi", True)):
        model = ViTConfig(id2label={0: "x", 1: "y"}, problem_type=f"{kind}_label_classification")
        labels = find_labels({"test": test}, data, model)
        assert labels == Labels(("x", "y"), is_multi_label)
    splits = {"test": test} if streaming else {"test": test, "validation": ROWS}
    ready = prepare_media(
        splits, lambda row, root: row["text"], lambda text: {"t": text}, Labels(("neg", "pos")), data, 0
    )
    assert list(ready["test"]) == [{"t": "t0"}, {"t": "t1"}]
    if not streaming:
        assert ready["validation"][1] == {"t": "t1", "labels": 1}
    with pytest.raises(ValueError, match=r"no such column|no label|holds nothing"):
        find_labels({"validation": rows}, data)


def test_a_test_split_with_some_labels() -> None:
    rows = Dataset.from_dict({"label": ["neg", None, "pos"]})
    with pytest.raises(ValueError, match="1 labels of the split 'test' are wrong: row 1: there is no label"):
        find_labels({"test": rows}, DataArguments(dataset_name="D"), ViTConfig(id2label={0: "neg", 1: "pos"}))


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), level).save(file, "PNG")
    return file.getvalue()


def prepared(images: list[Any], streaming: bool = False, **options: Any) -> list[tuple[int, int]]:
    """The level and the label of every image that is left; the label is its number."""
    rows = Dataset.from_dict({"image": images, "label": list(range(len(images)))})
    splits = prepare_media(
        {"test": rows.to_iterable_dataset() if streaming else rows},
        lambda row, root: read_image(row["image"], num_channels=1),
        lambda image: {"level": int(np.asarray(image)[0, 0])},
        Labels(tuple(map(str, range(len(images))))),
        MediaArguments(dataset_name="D", **options),
        seed=0,
    )
    return [(row["level"], row["labels"]) for row in splits["test"]]


@pytest.mark.parametrize("workers", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_unreadable_images_are_refused_or_left_out(workers: int | None) -> None:
    images = [png(10), b"text", png(30), None, png(50)[:-30]]
    with pytest.raises(
        ValueError, match=r"3 of 5 samples of the split 'test' cannot be read: row 1: .*row 3: .*row 4"
    ):
        prepared(images, preprocessing_num_workers=workers)
    options = {"skip_unreadable": True, "preprocessing_num_workers": workers}
    assert prepared(images, **options) == [(10, 0), (30, 2)]
    with pytest.raises(ValueError, match="None is left"):
        prepared([b"text", None], **options)


def test_unreadable_images_of_all_splits() -> None:
    rows = {
        split: Dataset.from_dict({"image": images, "label": [0] * len(images)})
        for split, images in (("train", [b"x", png(1)]), ("test", [b"x", png(10), b"x", png(30), png(50)]))
    }

    def ready(**options: Any) -> Any:
        data = MediaArguments(dataset_name="D", max_predict_samples=4, **options)
        return prepare_media(
            rows,
            lambda row, root: read_image(row["image"]),
            lambda image: {"level": image.getpixel((0, 0))[0]},
            Labels(("0", "1")),
            data,
            seed=0,
        )

    with pytest.raises(ValueError, match=r"1 of 2 samples of the split 'train'.* 2 of 4 samples of the split 'test'"):
        ready()
    test = ready(skip_unreadable=True)["test"]
    assert test.rows == [1, 3]
    assert [row["level"] for row in test] == [10, 30]


def test_unreadable_images_of_a_stream() -> None:
    # The first rows that are made ready together are all unreadable.
    images = [b"text"] * 20 + [png(10), png(30)]
    assert prepared(images, streaming=True, skip_unreadable=True) == [(10, 20), (30, 21)]
    with pytest.raises(ValueError, match=r"split 'test' cannot be read.*--skip_unreadable"):
        prepared(images, streaming=True)


def test_relative_paths_start_from_the_file_of_their_split(tmp_path: Path) -> None:
    files = {}
    for split, level in (("train", 10), ("validation", 30)):
        (tmp_path / split).mkdir()
        (tmp_path / split / "same.png").write_bytes(png(level))
        files[split] = tmp_path / split / "labels.csv"
        files[split].write_text("image,label\nsame.png,0\n")
    data = MediaArguments(train_file=str(files["train"]), validation_file=str(files["validation"]))
    splits = prepare_media(
        {split: Dataset.from_csv(str(path)) for split, path in files.items()},
        lambda row, root: read_image(row["image"], root=root, num_channels=1),
        lambda image: {"level": int(np.asarray(image)[0, 0])},
        Labels(("0", "1")),
        data,
        seed=0,
    )
    assert [splits[split][0]["level"] for split in files] == [10, 30]


@pytest.mark.parametrize("streaming", [False, True])
def test_messages_name_the_rows_of_the_file(streaming: bool, folder: Path) -> None:
    Path("d").mkdir()
    damaged = (2, 5, 17)
    for index in range(20):
        Path("d", f"{index}.png").write_bytes(b"text" if index in damaged else png(index))
    Path("d", "train.csv").write_text("image,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(20)))

    def ready(*options: object) -> None:
        given = ["--model_name_or_path", "M", "--output_dir", "o", "--data_dir", "d", "--do_train", *map(str, options)]
        model, data, training = parse_arguments(ModelArguments, MediaArguments, "", given)
        splits, sources, _ = load_splits(data, model, training)
        made = prepare_media(
            splits,
            lambda row, root: read_image(row["image"], root=root, num_channels=1),
            lambda image: {"level": int(np.asarray(image)[0, 0])},
            Labels(("0", "1")),
            data,
            7,
            sources,
        )
        for dataset in made.values():
            list(dataset)

    if streaming:
        with pytest.raises(ValueError, match=r"row (2|5|17) of the split 'train' cannot be read: .*image '\1.png'"):
            ready("--streaming", "--max_steps", 1)
    else:
        for options in ([], ["--do_eval"], ["--do_eval", "--max_train_samples", 14]):
            with pytest.raises(ValueError) as error:
                ready(*options)
            found = re.findall(r"row (\d+): image '(\d+).png'", str(error.value))
            assert found and all(row == name for row, name in found)
            if len(options) < 2:
                assert {int(row) for row, _ in found} == set(damaged)


@pytest.fixture
def vit(folder: Path) -> Path:
    options = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(image_size=8, patch_size=4, **options)
    ViTForImageClassification(config).save_pretrained(folder / "vit")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / "vit")
    return folder / "vit"


SHORT = [
    *("--output_dir", "out", "--cache_dir", "cache", "--report_to", "none"),
    *("--use_cpu", "true", "--disable_tqdm", "true"),
]


def run_images(vit: Path, *arguments: object) -> dict[str, float]:
    with script_module("run_image_classification") as script:
        return script.main(["--model_name_or_path", str(vit), *SHORT, *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], vit: Path, *arguments: object) -> str:
    """What the script said before it ended with status 2, having written nothing."""
    with pytest.raises(SystemExit) as ended:
        run_images(vit, *arguments)
    assert ended.value.code == 2
    assert not Path("out").exists()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_the_image_script_refuses_bad_input(vit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(4):
        save_image(Path("data", f"{index}.png"), 50 * index)
    Path("data", "bad.png").write_text("text")
    table = Path("data", "labels.csv")
    lines = ["image,label", *(f"{index}.png,{index % 2}" for index in range(4))]
    table.write_text("\n".join(lines))
    source = ["--train_file", table, "--do_train", "--max_steps", 1, "--per_device_train_batch_size", 2]
    said = refused(capsys, vit, *source, "--label_column_name", "kind")
    assert "'kind': the data have no such column, only image, label" in said
    table.write_text("\n".join([*lines, "0.png,-2"]))
    assert "split 'train' are wrong: row 4: -2" in refused(capsys, vit, *source)
    table.write_text("\n".join([*lines, "bad.png,1", "missing.png,0"]))
    said = refused(capsys, vit, *source)
    assert "2 of 6 samples of the split 'train' cannot be read" in said
    assert "row 4: image 'bad.png'" in said and "row 5: image 'missing.png'" in said
    assert "--max_steps" in refused(capsys, vit, "--train_file", table, "--do_train", "--streaming")
    # With the flag it trains; the paths are relative to the table.
    run_images(vit, *source, "--skip_unreadable")
    assert '"train_samples": 4' in Path("out", "train_results.json").read_text()


@pytest.mark.slow
def test_the_text_script(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    options = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForSequenceClassification(BertConfig(vocab_size=len(words), **options)).save_pretrained("bert")
    Path("vocabulary.txt").write_text("\n".join(words))
    BertTokenizerFast("vocabulary.txt").save_pretrained("bert")
    # Longer than the masks.
    rows = [{"text": "a b c d e f g h" * 2, "number": i, "label": "yn"[i % 2]} for i in range(6)]
    Dataset.from_list(rows).to_json("train.jsonl")
    Dataset.from_list([{**row, "label": None} for row in rows]).to_json("test.jsonl")
    source = ["--model_name_or_path", "bert", "--train_file", "train.jsonl", *SHORT]
    lam = ["--mechanism", "lam", "--mechanism_config", '{"max_length": 8}']
    train = [*source, "--do_train", "--max_steps", "1"]
    with script_module("run_text_classification") as script:
        with pytest.raises(SystemExit) as ended:
            script.main([*train, "--text_column_names", "number"])
        assert ended.value.code == 2
        assert "the column 'number' of the split 'train' must hold text" in capsys.readouterr().err
        script.main([*train, *lam, "--test_file", "test.jsonl", "--do_predict", "--max_predict_samples", "4"])
    lines = Path("out", "predictions.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == ["0", "1", "2", "3"]
    assert {line.split(",")[1] for line in lines} <= {"n", "y"}
    results = json.loads(Path("out", "predict_results.json").read_text())
    assert results["predict_samples"] == 4
    assert not {"predict_accuracy", "predict_loss"} & set(results)
