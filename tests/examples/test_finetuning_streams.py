"""Fine-tuning on streams: what goes on after a stop, and whose predictions are whose."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from datasets import disable_progress_bars
from PIL import Image

from helpers.finetuning import IMAGE, TEXT, losses_in, main, make_bert, make_vit, saved


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("hosts")
    disable_progress_bars()
    return {"bert": make_bert(folder / "bert"), "vit": make_vit(folder / "vit")}


def write_parts(folder: Path, split: str, sizes: tuple[int, ...]) -> list[str]:
    """Tables whose sentences are good in every second file; the classes of all rows, in order."""
    folder.mkdir(exist_ok=True)
    classes = []
    for part, size in enumerate(sizes):
        rows = [("good", "pos") if (part + (split == "train") * row) % 2 else ("bad", "neg") for row in range(size)]
        table = pa.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
        parquet.write_table(table, folder / f"{split}-{part:05}-of-{len(sizes):05}.parquet")
        classes += [label for _, label in rows]
    return classes


def lines_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "most"), [(0, None), (2, None), (2, 17)])
def test_predictions_of_a_stream_are_filed_under_their_rows(
    workers: int, most: int | None, hosts: dict[str, str], tmp_path: Path
) -> None:
    write_parts(tmp_path / "data", "train", (20, 20))
    sizes = (7, 20, 1, 12)
    truth = write_parts(tmp_path / "data", "test", sizes)
    places = [(f"test-{part:05}-of-00004.parquet", str(row)) for part, size in enumerate(sizes) for row in range(size)]
    options = {
        "model_name_or_path": hosts["bert"],
        "data_dir": tmp_path / "data",
        "class_names": ["neg", "pos"],
        "do_predict": True,
        "max_predict_samples": most,
        "dataloader_num_workers": workers,
        "max_steps": 15,
        "learning_rate": 1e-2,
        "save_strategy": "no",
    }
    main(TEXT, **options, streaming=True, output_dir=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["predict_accuracy"] == 1.0
    lines = lines_of(tmp_path / "out")
    assert [int(line["row"]) for line in lines] == list(range(most or len(truth)))
    for line in lines:
        row = int(line["row"])
        assert line["prediction"] == truth[row]
        assert (line["file"], line["file_row"]) == places[row]


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_damaged_files_do_not_move_the_rows_of_others(streaming: bool, hosts: dict[str, str], tmp_path: Path) -> None:
    for index in range(6):
        Image.fromarray(np.full((8, 8, 3), [20, 230][index % 2], np.uint8)).save(tmp_path / f"{index}.png")
    (tmp_path / "bad.png").write_bytes(b"x")
    names = ["dark", "light"]
    (tmp_path / "train.csv").write_text("image,label\n" + "".join(f"{i}.png,{names[i % 2]}\n" for i in range(6)))
    rows = ["bad.png", "0.png", "1.png", "bad.png", "bad.png", "3.png", "2.png", "bad.png"]
    (tmp_path / "test.csv").write_text("\n".join(["image", *rows]))
    options = {
        "model_name_or_path": hosts["vit"],
        "ignore_mismatched_sizes": True,
        "train_file": tmp_path / "train.csv",
        "test_file": tmp_path / "test.csv",
        "do_predict": True,
        "skip_unreadable": True,
        "class_names": names,
        "max_steps": 40,
        "learning_rate": 1e-2,
        "save_strategy": "no",
    }
    main(IMAGE, **options, **({"streaming": True} if streaming else {}), output_dir=tmp_path / "out")
    assert [
        (line["row"], line["prediction"], line["file"], line["file_row"]) for line in lines_of(tmp_path / "out")
    ] == [(row, name, "test.csv", row) for row, name in (("1", "dark"), ("2", "light"), ("5", "light"), ("6", "dark"))]


RESUMED: dict[str, dict[str, Any]] = {
    "steps": {"save_steps": 1},
    "accumulated": {"save_steps": 1, "gradient_accumulation_steps": 3, "max_steps": 12},
    "workers": {"save_steps": 4, "dataloader_num_workers": 2},
    "epochs": {"save_strategy": "epoch", "eval_strategy": "epoch", "do_eval": True},
    "evaluated": {"save_steps": 5, "eval_strategy": "steps", "eval_steps": 5, "do_eval": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", RESUMED)
def test_a_stream_goes_on_where_it_was(case: str, hosts: dict[str, str], tmp_path: Path) -> None:
    write_parts(tmp_path / "data", "train", (14, 9, 17))
    write_parts(tmp_path / "data", "validation", (5,))
    run = {
        "model_name_or_path": hosts["bert"],
        "data_dir": tmp_path / "data",
        "class_names": ["neg", "pos"],
        "streaming": True,
        "max_steps": 24,
        **RESUMED[case],
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        main(TEXT, **run, output_dir=tmp_path / "whole")
        whole, losses = saved(tmp_path / "whole"), losses_in(tmp_path / "whole")
        steps = sorted(int(path.name.split("-")[1]) for path in (tmp_path / "whole").glob("checkpoint-*"))
        # Within the first pass of 40 sentences, at its end, in and at the end of the second, and in the third.
        for step in sorted({steps[0], *(step for step in (3, 8, 10, 12, 20, 22) if step in steps)}):
            folder = tmp_path / f"from{step}"
            shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
            main(TEXT, **run, output_dir=folder)
            assert losses_in(folder) == losses, step
            again = saved(folder)
            assert all(torch.equal(again[name], whole[name]) for name in whole), step
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_stream_that_ended_goes_on_for_more_steps(hosts: dict[str, str], tmp_path: Path) -> None:
    write_parts(tmp_path / "data", "train", (14, 9, 17))
    run = {
        "model_name_or_path": hosts["bert"],
        "data_dir": tmp_path / "data",
        "class_names": ["neg", "pos"],
        "streaming": True,
        "lr_scheduler_type": "constant",
        "save_steps": 14,
    }
    main(TEXT, **{**run, "max_steps": 28}, output_dir=tmp_path / "whole")
    main(TEXT, **{**run, "max_steps": 14}, output_dir=tmp_path / "short")
    main(TEXT, **{**run, "max_steps": 28}, output_dir=tmp_path / "short")
    whole, again = saved(tmp_path / "whole"), saved(tmp_path / "short")
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_text_that_is_missing_in_a_stream_is_named(hosts: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\ngood,1\nbad,0\n,1\n")
    options = {"model_name_or_path": hosts["bert"], "train_file": tmp_path / "a.csv", "class_names": ["0", "1"]}
    with pytest.raises(ValueError, match=r"row 2 of the split 'train' has no text in 'text'"):
        main(TEXT, **options, streaming=True, output_dir=tmp_path / "out")
