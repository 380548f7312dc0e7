"""Folders of images, videos and audio: classes, splits, and what else lies there."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Audio, Dataset, Features, Image, Video, disable_progress_bars

from hf_lam.training import folders as folders_module
from hf_lam.training import labels as labels_module
from hf_lam.training.arguments import DataArguments, ModelArguments
from hf_lam.training.data import Data, find_column, load_data
from hf_lam.training.goals import Classes
from hf_lam.training.parsing import parse_arguments
from hf_lam.training.sources import ENCODED_FILE, SOURCE

KINDS = {"image": ("png", Image), "video": ("mp4", Video), "audio": ("wav", Audio)}


@pytest.fixture(autouse=True)
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the log says."""
    disable_progress_bars()
    monkeypatch.chdir(tmp_path)
    found: list[str] = []
    for module in (folders_module, labels_module):
        monkeypatch.setattr(module.logger, "warning", found.append)
    return found


def touch(*names: str) -> None:
    """Files that nothing decodes here."""
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def load(*arguments: object, streaming: bool = False) -> Data:
    given = ["--model_name_or_path", "M", "--output_dir", "o", "--cache_dir", "cache", *map(str, arguments)]
    given += ["--streaming", "--max_steps", "1"] if streaming else []
    model, data, training = parse_arguments(ModelArguments, DataArguments, "", given)
    return load_data(data, model, training)


def classes_of(data: Data) -> tuple[str, ...]:
    assert isinstance(data.goal, Classes)
    return data.goal.labels.names


def names_in(data: Data, split: str, column: str) -> list[str]:
    return [
        Path(row[column]["path"] if isinstance(row[column], dict) else row[column]).name for row in data.splits[split]
    ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_as_kaggle_ships_them(kind: str, streaming: bool, said: list[str]) -> None:
    suffix, feature = KINDS[kind]
    touch(f"d/train/a/0.{suffix}", f"d/train/a/1.{suffix.upper()}", f"d/train/b/2.{suffix}")
    touch(f"d/test/1.{suffix}", f"d/test/2.{suffix}", "d/train/.DS_Store", "d/train/a/Thumbs.db", "d/README.txt")
    touch("d/train/notes.txt", f"d/train/a/._0.{suffix}", f"d/train/.ipynb_checkpoints/x.{suffix}", "d/__MACOSX/x.png")
    data = load("--data_dir", "d", "--do_train", "--do_predict", streaming=streaming)
    assert classes_of(data) == ("a", "b")
    assert [row["label"] for row in data.splits["train"]] == [0, 0, 1]
    assert names_in(data, "test", kind) == [f"1.{suffix}", f"2.{suffix}"]
    assert find_column(data.splits["train"], None, "column", feature, ()) == kind
    assert len(said) == 1 and "'test' has no labels" in said[0]
    places = data.sources["test"].places([row[SOURCE] for row in data.splits["test"]])
    assert [(place.row, place.file, place.file_row) for place in places] == [
        (0, f"test/1.{suffix}", None),
        (1, f"test/2.{suffix}", None),
    ]


def test_stray_files_are_left_out_and_named(said: list[str]) -> None:
    touch("d/train/a/0.png", "d/train/b/1.png", "d/train/stray.png", "d/cover.png")
    data = load("--data_dir", "d", "--do_train")
    assert names_in(data, "train", "image") == ["0.png", "1.png"] and classes_of(data) == ("a", "b")
    assert len(said) == 1 and "1 files of the split 'train' lie beside the folders" in said[0]
    assert "'stray.png'" in said[0]


@pytest.mark.parametrize("options", [("--data_dir", "d"), ("--train_dir", "d/train", "--test_dir", "d/test")])
def test_stray_tables_are_left_out_and_named(options: tuple[str, ...], said: list[str]) -> None:
    touch("d/train/a/0.png", "d/train/b/1.png", "d/train/labels.csv", "d/test/2.png", "d/test/info.json", "d/all.csv")
    data = load(*options, "--do_train", "--do_predict")
    assert classes_of(data) == ("a", "b") and names_in(data, "test", "image") == ["2.png"]
    assert said[0].startswith("2 tables lie in the folders of the data, and are left out: ")
    assert "'train/labels.csv'" in said[0] and "'test/info.json'" in said[0]


def test_a_table_beside_images_is_the_data() -> None:
    touch("d/images/0.png", "d/masks/0.png", "e/train/images/0.png")
    for name in ("d/train.csv", "e/train/data.csv"):
        Path(name).write_text("image,label\nimages/0.png,x\nimages/0.png,y\n")
        data = load("--data_dir", name[0], "--do_train")
        assert [row["label"] for row in data.splits["train"]] == ["x", "y"]


@pytest.mark.parametrize("test", ["unknown/7.png", "test/7.png"])
def test_one_folder_that_is_no_class_holds_files_without_labels(test: str, said: list[str]) -> None:
    touch("d/train/a/0.png", "d/train/b/1.png", f"d/test/{test}")
    data = load("--data_dir", "d", "--do_train", "--do_predict")
    assert classes_of(data) == ("a", "b") and "label" not in data.splits["test"].column_names
    assert "which is no class of the training data" in said[0]


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("training", "valid", "eval"), ("Train", "dev", "testing")]
)
def test_names_of_splits(names: tuple[str, str, str]) -> None:
    for name in names:
        touch(f"d/{name}/a/0.png", f"d/{name}/b/{name}.png")
    data = load("--data_dir", "d", "--do_train", "--do_eval", "--do_predict")
    assert [names_in(data, split, "image")[1] for split in data.splits] == [f"{name}.png" for name in names]
    assert not data.is_held_out


def test_classes_without_folders_of_splits_are_divided() -> None:
    touch(*(f"d/{label}/{index}.png" for label in "ab" for index in range(10)))
    data = load("--data_dir", "d", "--do_train", "--do_eval")
    assert data.is_held_out and classes_of(data) == ("a", "b")
    assert len(data.splits["train"]) == 17 and len(data.splits["validation"]) == 3
    for split, dataset in data.splits.items():
        sources = data.sources[split].places([row[SOURCE] for row in dataset])
        assert [Path(str(place.file)).name for place in sources] == names_in(data, split, "image")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_for_each_split(streaming: bool) -> None:
    touch("mine/a/0.png", "mine/b/1.png", "yours/b/2.png", "theirs/3.png")
    given = ["--train_dir", "mine", "--validation_dir", "yours", "--test_dir", "theirs"]
    data = load(*given, "--do_train", "--do_eval", "--do_predict", streaming=streaming)
    assert classes_of(data) == ("a", "b")
    assert [row["label"] for row in data.splits["validation"]] == [1]
    assert names_in(data, "test", "image") == ["3.png"]
    with pytest.raises(ValueError, match="no folders with images, videos or audio"):
        Path("empty").mkdir()
        load("--train_dir", "empty", "--do_train")
    with pytest.raises(ValueError, match="--do_predict needs --test_dir"):
        load("--train_dir", "mine", "--do_train", "--do_predict")
    with pytest.raises(ValueError, match="--train_dir 'none' is not a folder"):
        load("--train_dir", "none", "--do_train")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_metadata(kind: str, streaming: bool) -> None:
    suffix = KINDS[kind][0]
    touch(*(f"d/{split}/{index}.{suffix}" for split in ("train", "test") for index in range(3)))
    lines = [f"{index}.{suffix},{'ab'[index % 2]}" for index in range(3)]
    Path("d/train/metadata.csv").write_text("\n".join(["file_name,kind", *lines]))
    data = load(
        *("--data_dir", "d", "--do_train", "--do_predict", "--label_column_name", "kind"),
        *(["--class_names", "a", "b"] if streaming else []),
        streaming=streaming,
    )
    assert [row["kind"] for row in data.splits["train"]] == ["a", "b", "a"]
    assert names_in(data, "train", kind) == [f"{index}.{suffix}" for index in range(3)]
    assert all(Path(row[kind]).is_absolute() for row in data.splits["train"])
    (place,) = data.sources["train"].places([list(data.splits["train"])[2][SOURCE]])
    assert (place.file, place.file_row) == ("metadata.csv", 2)


def test_a_folder_of_tables(tmp_path: Path) -> None:
    Path("d").mkdir()
    Path("d/train.tsv").write_text('text\tlabel\n"bare\tno\nplain\tyes\n"bare again\tno\n')
    Path("d/test.tsv").write_text("text\na\n")
    data = load("--data_dir", "d", "--do_train", "--do_predict")
    assert data.splits["train"]["text"][:] == ['"bare', "plain", '"bare again']
    assert [place.file for place in data.sources["test"].places(data.splits["test"][SOURCE][:])] == ["test.tsv"]


def test_parts_of_a_data_set_are_told_apart() -> None:
    Path("d").mkdir()
    for number in range(2):
        Path(f"d/train-0000{number}-of-00002.csv").write_text("text,label\na,no\nb,\nc,yes\n")
    message = r"row 1 of 'train-00000-of-00002.csv': there is no label.*row 1 of 'train-00001-of-00002.csv'"
    with pytest.raises(ValueError, match=message):
        load("--data_dir", "d", "--do_train")


def test_what_else_folders_may_be_called(said: list[str]) -> None:
    touch("vehicles/train/0.png", "vehicles/plane/1.png", "vehicles/car/2.png")
    assert classes_of(load("--data_dir", "vehicles", "--do_train")) == ("car", "plane", "train")
    touch("d/train/a/0.png", "d/train/b/1.png", "d/thumbnails/0.png")
    assert classes_of(load("--data_dir", "d", "--do_train")) == ("a", "b")
    assert len(said) == 1 and "'thumbnails' is left out" in said[0]
    touch("e/train_1/a/0.png", "e/train_1/b/0.png", "e/train_2/a/1.png", "e/test/a/2.png")
    data = load("--data_dir", "e", "--do_train")
    assert len(data.splits["train"]) == 3 and classes_of(data) == ("a", "b")


def test_a_delimiter_that_was_not_said() -> None:
    Path("a.csv").write_text("text;label\na;0\nb;1\n")
    with pytest.raises(ValueError, match=r"only text;label\. Is that several of them\? See --delimiter"):
        load("--train_file", "a.csv", "--do_train")
    assert classes_of(load("--train_file", "a.csv", "--do_train", "--delimiter", ";")) == ("0", "1")
    Path("a.csv").write_text("text\tlabel\na\t0\nb\t1\n")
    assert classes_of(load("--train_file", "a.csv", "--do_train", "--delimiter", "\\t")) == ("0", "1")


def test_of_several_columns_of_a_kind_it_is_the_one_with_a_usual_name() -> None:
    file = {"bytes": b"a", "path": None}
    features = Features({"image": ENCODED_FILE, "audio": ENCODED_FILE})
    files = Dataset.from_dict({"image": [file], "audio": [file]}, features=features)
    assert find_column(files, None, "audio_column_name", Audio, ("audio",)) == "audio"
    with pytest.raises(ValueError, match="which column is meant is not clear: say it with --audio_column_name"):
        find_column(files, None, "audio_column_name", Audio, ("sound",))
