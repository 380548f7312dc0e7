"""Annotations, features and predictions of moment retrieval, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from hf_lam.training import submission_metrics
from hf_lam.training.moment_files import (
    check_length,
    labels_of,
    read_annotations,
    read_features,
    scores_of,
    write_submission,
)

LINE: dict[str, Any] = {
    "qid": 8737,
    "query": "A family is playing basketball.",
    "duration": 20,
    "vid": "bP5KfdFJzC4_660.0_810.0",
    "relevant_windows": [[0, 6], [10, 12]],
    "relevant_clip_ids": [0, 1, 2, 5],
    "saliency_scores": [[4, 1, 1], [4, 3, 3], [0, 1, 1], [2, 2, 2]],
}
WITHOUT = {key: value for key, value in LINE.items() if key not in ("relevant_clip_ids", "saliency_scores")}


def write(folder: Path, *lines: Any, name: str = "train.jsonl") -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*lines]), path)
    else:
        path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
def test_annotations(name: str, tmp_path: Path) -> None:
    first, second = read_annotations(write(tmp_path, LINE, {**LINE, "qid": 2}, name=name))
    assert (first.qid, second.qid, first.vid, first.duration) == (8737, 2, LINE["vid"], 20.0)
    assert first.windows == ((0.0, 6.0), (10.0, 12.0))
    assert first.relevant == (0, 1, 2, 5)
    assert first.scores is not None and first.scores.tolist() == LINE["saliency_scores"]
    graded = scores_of(first, 2.0)
    assert graded.shape == (10, 3) and graded[1].tolist() == [4, 3, 3] and not graded[3].any()


def test_lines_of_other_sets(tmp_path: Path) -> None:
    """Charades-STA has windows alone; TVSum has other names, and scores of all clips."""
    (charades,) = read_annotations(write(tmp_path, WITHOUT, ""))
    assert charades.scores is None and set(labels_of(charades, 10, 2.0)) == {"span_labels"}
    line = {"qid": "a", "title": "Dogs", "video": "x", "duration": 6, "label": [[1, 5], [2, 2], [3, 1]]}
    names = {"query": "title", "vid": "video", "saliency_scores": "label"}
    (tvsum,) = read_annotations(write(tmp_path, line), names=names)
    assert (tvsum.windows, tvsum.relevant) == (None, (0, 1, 2))
    assert labels_of(tvsum, 3, 2.0)["saliency_labels"].tolist() == [6, 4, 4]
    (unknown,) = read_annotations(
        write(tmp_path, {k: LINE[k] for k in ("qid", "query", "vid", "duration")}), is_labelled=False
    )
    assert labels_of(unknown, 10, 2.0) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qid": None}, "line 2, qid: it is missing"),
        ({"vid": ""}, "line 2, vid: it must be the name of a video"),
        ({"vid": "../secret"}, "line 2, vid: it must be the name of a video, without a folder"),
        ({"query": " "}, "line 2, query: it must be a text"),
        ({"duration": "20"}, "line 2, duration: it must be seconds"),
        ({"duration": 1}, r"line 2, duration: .*at least one clip \(2\.0\), got 1"),
        ({"duration": float("nan")}, "line 2, duration: it must be seconds"),
        (
            {"relevant_windows": [[0, 22]]},
            r"line 2, relevant_windows: the window \[0, 22\] ends after the video, which has 20 s",
        ),
        ({"relevant_windows": [[6, 6]]}, "line 2, relevant_windows: .*end after it starts"),
        ({"relevant_windows": [[-1, 6]]}, "line 2, relevant_windows: .*must start at 0"),
        ({"relevant_windows": []}, r"line 2, relevant_windows: it must be a list of \[start, end\]"),
        ({"relevant_windows": [0, 6]}, "line 2, relevant_windows: a window must be"),
        ({"relevant_windows": [[0, 6, 1]]}, "line 2, relevant_windows: a window must be"),
        (
            {"relevant_clip_ids": [0, 1, 2, 10]},
            "line 2, relevant_clip_ids: clip 10 is not in a video of 20 s, 10 clips",
        ),
        ({"relevant_clip_ids": [0, 1, 1, 5]}, "line 2, relevant_clip_ids: a clip stands in it twice"),
        ({"relevant_clip_ids": [0, 1]}, r"line 2, saliency_scores: .*each of 2 clips, got the shape \(4, 3\)"),
        ({"saliency_scores": [[4], [1, 2], [1], [1]]}, "line 2, saliency_scores: the scores must be numbers"),
        ({"saliency_scores": [4, 1, 1, 1]}, r"line 2, saliency_scores: .*got the shape \(4,\)"),
        ({"saliency_scores": [[-1]] * 4}, "line 2, saliency_scores: scores must be finite and at least 0"),
        ({"saliency_scores": [[1, 2]] * 4}, "line 2, saliency_scores: a clip has the scores of 2 people, .* of 3"),
        (
            {"relevant_clip_ids": None},
            "line 2, saliency_scores: there must be scores of all 10 clips, unless relevant_clip_ids .*; got 4",
        ),
        ({"qid": 1}, r"line 2, qid: 1 stands in .*line 1 already"),
        (
            {"relevant_windows": None, "saliency_scores": None},
            "line 2, relevant_windows: it is missing, and there are no saliency_scores",
        ),
    ],
)
def test_wrong_lines(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, {**LINE, "qid": 1}, {**LINE, **changes})
    with pytest.raises(ValueError, match=rf"train\.jsonl', {message}"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [(["{"], "line 1: it is no JSON"), (["[1]"], "line 1: it must be an object"), ([], "has no queries")],
)
def test_files_without_lines(lines: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_annotations(write(tmp_path, *lines))


def test_scores_of_all_clips_are_rounded_as_features_are(tmp_path: Path) -> None:
    line = {**{key: LINE[key] for key in ("query", "vid")}, "duration": 7}
    lines = [{**line, "qid": count, "saliency_scores": [[count]] * count} for count in (3, 4)]
    three, four = read_annotations(write(tmp_path, *lines))
    assert three.relevant == four.relevant == (0, 1, 2) and scores_of(four, 2.0).tolist() == [[4]] * 3


def test_files_that_are_no_text(tmp_path: Path) -> None:
    content = "".join(json.dumps({**WITHOUT, "qid": n, "query": "café"}, ensure_ascii=False) + "\n" for n in (1, 2))
    path = tmp_path / "train.jsonl"
    path.write_bytes(content.encode().replace("café".encode(), "café".encode("latin1"), 2))
    with pytest.raises(ValueError, match=r"train\.jsonl', line 1: it is no JSON: 'utf-8' codec"):
        read_annotations(path)
    path.write_text(content, encoding="utf-8")
    assert [annotation.query for annotation in read_annotations(path)] == ["café"] * 2


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        read_annotations(tmp_path / "train.jsonl")
    with pytest.raises(ValueError, match=r"must be a \.jsonl or \.parquet file"):
        read_annotations(write(tmp_path, LINE, name="train.csv"))
    with pytest.raises(ValueError, match="there is no key title"):
        read_annotations(write(tmp_path, LINE), names={"title": "query"})


def test_a_name_in_a_message_is_that_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 1, moments: the window"):
        read_annotations(write(tmp_path, {**WITHOUT, "moments": [[0, 99]]}), names={"relevant_windows": "moments"})


# --- features --------------------------------------------------------------------------------------------------------


def test_features_of_several_folders_lie_beside_each_other(tmp_path: Path) -> None:
    for name, size, length in (("clip", 4, 6), ("slowfast", 3, 5)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "v.npz", features=np.full((length, size), 2.0, np.float16))
    vectors = read_features("v", [tmp_path / "clip", tmp_path / "slowfast"])
    assert vectors.shape == (5, 7) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors[:, :4], axis=1), 1, atol=1e-4)
    plain = read_features("v", [tmp_path / "clip"], is_normalized=False, max_length=2)
    assert plain.tolist() == [[2.0] * 4] * 2


def test_features_of_queries(tmp_path: Path) -> None:
    states, pooled = np.random.rand(4, 3), np.random.rand(3)
    np.savez(tmp_path / "qid7.npz", last_hidden_state=states, pooler_output=pooled)
    np.testing.assert_allclose(read_features("7", [tmp_path], prefix="qid", is_normalized=False), states, rtol=1e-6)
    np.save(tmp_path / "qid8.npy", pooled)
    assert read_features("8", [tmp_path], prefix="qid").shape == (1, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[np.nan, 1.0]]), "v.npy': 1 of its numbers are NaN or infinite"),
        (np.zeros((0, 3)), r"got the shape \(0, 3\)"),
        (np.zeros((1, 2, 3)), r"got the shape \(1, 2, 3\)"),
        (np.array([{}], dtype=object), "v.npy' cannot be read"),
        (np.array([["a"]]), "v.npy' cannot be read"),
    ],
)
def test_features_that_are_none(array: Any, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        read_features("v", [tmp_path])


@pytest.mark.parametrize("name", ["v.npz", "v.npy"])
def test_features_that_were_cut_off(name: str, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "v.npz", features=np.random.rand(9, 3))
    whole = (tmp_path / "v.npz").read_bytes()
    (tmp_path / "v.npz").unlink()
    for length in (0, 60):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"{name}' cannot be read"):
            read_features("v", [tmp_path])


def test_features_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no v\.npz or v\.npy in"):
        read_features("v", [tmp_path])
    np.savez(tmp_path / "v.npz", one=np.zeros((2, 2)), two=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="it holds the arrays one, two"):
        read_features("v", [tmp_path])


def test_features_of_another_length(tmp_path: Path) -> None:
    (annotation,) = read_annotations(write(tmp_path, LINE))
    for clips in (9, 10, 11):
        check_length(annotation, clips, 2.0)
    for clips in (8, 12):
        message = rf"line 1, duration: 20 s are 10 clips of 2 s, .* in 'clip' have {clips}"
        with pytest.raises(ValueError, match=message):
            check_length(annotation, clips, 2.0, "clip")


# --- labels and predictions ------------------------------------------------------------------------------------------


def test_labels(tmp_path: Path) -> None:
    (annotation,) = read_annotations(write(tmp_path, LINE))
    labels = labels_of(annotation, 10, 2.0)
    np.testing.assert_allclose(labels["span_labels"], [[0.15, 0.3], [0.55, 0.1]], rtol=1e-6)
    assert labels["saliency_labels"].tolist() == [6, 10, 2, -1, -1, 6, -1, -1, -1, -1]
    cut = labels_of(annotation, 4, 2.0)  # the second window lies after the end
    np.testing.assert_allclose(cut["span_labels"], [[0.375, 0.75]], rtol=1e-6)
    assert cut["saliency_labels"].tolist() == [6, 10, 2, -1]


def test_a_submission_is_what_the_metrics_read(tmp_path: Path) -> None:
    annotations = read_annotations(write(tmp_path, LINE))
    scores = [0.5, 0.9] + [0.1] * 8
    write_submission(tmp_path / "out.jsonl", annotations, [[(0.0, 6.00001, 0.91)]], [scores])
    (line,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert line["pred_relevant_windows"] == [[0.0, 6.0, 0.91]] and line["pred_saliency_scores"] == scores
    assert (line["qid"], line["vid"], line["query"]) == (LINE["qid"], LINE["vid"], LINE["query"])
    found = submission_metrics([line], [LINE])
    assert found["MR-full-R1@0.7"] == found["HL-min-Good-Hit1"] == 100.0
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*"))
