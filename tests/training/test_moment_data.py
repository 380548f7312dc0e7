"""Annotations and vectors as samples of a fusion model, and what is measured, written and drawn of predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from helpers.fusion_heads import head_config
from helpers.moments import CLIP_SECONDS, SIZES, make_lines, write_features, write_lines, write_moments
from hf_lam import HfLamFusionForMomentRetrieval
from hf_lam.training import FusionCollator, HfLamTrainer, HfLamTrainingArguments, submission_metrics
from hf_lam.training.arguments import ModelArguments
from hf_lam.training.data import Data
from hf_lam.training.moment_data import MomentArguments, MomentSamples, MomentVectors, load_moments
from hf_lam.training.moment_files import read_annotations
from hf_lam.training.moment_goal import Moments
from hf_lam.training.parsing import parse_arguments
from hf_lam.training.sources import SOURCE

ALL = ("--do_train", "--do_eval", "--do_predict")


def load(*options: object, wanted: tuple[str, ...] = ALL) -> tuple[MomentArguments, Data]:
    given = ["--model_name_or_path", "M", "--output_dir", "o", *wanted, *map(str, options)]
    model, data, training = parse_arguments(ModelArguments, MomentArguments, "", given)
    return data, load_moments(data, model, training)


def samples_of(data: MomentArguments, loaded: Data, split: str, **options: Any) -> MomentSamples:
    assert isinstance(loaded.goal, Moments)
    vectors = MomentVectors(data, None, loaded.goal.clip_length, data.max_clips, data.max_words)
    rows = loaded.splits[split][SOURCE][:]
    return MomentSamples(rows, loaded.goal.annotations, vectors, is_trained_on=split == "train", **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moments(tmp_path_factory.mktemp("moments"))


# --- the data --------------------------------------------------------------------------------------------------------


def test_samples_are_those_of_the_files(folder: Path) -> None:
    data, loaded = load(
        *("--data_dir", folder, "--video_features", "clip", "slow", "--query_features", "text"),
        *("--audio_features", "sound"),
    )
    assert {split: len(dataset) for split, dataset in loaded.splits.items()} == {
        "train": 24,
        "validation": 8,
        "test": 8,
    }
    train, test = samples_of(data, loaded, "train"), samples_of(data, loaded, "test")
    line = json.loads((folder / "train.jsonl").read_text().splitlines()[1])
    clips = line["duration"] // CLIP_SECONDS
    assert SOURCE not in train[1] and "audio_features" not in train[1]  # video 0 has no sound
    assert train[1]["video_features"].shape == (clips, SIZES["clip"] + SIZES["slow"] + 2)
    np.testing.assert_allclose(train[1]["video_features"][1, -2:], [1 / clips, 2 / clips], rtol=1e-6)
    assert train[2]["audio_features"].shape[1] == SIZES["sound"]
    assert train[1]["words_features"].shape == (3, SIZES["text"])
    np.testing.assert_allclose(np.linalg.norm(train[1]["video_features"][:, : SIZES["clip"]], axis=1), 1, atol=1e-4)
    (start, end), share = line["relevant_windows"][0], line["duration"]
    np.testing.assert_allclose(
        train[1]["span_labels"], [[(start + end) / 2 / share, (end - start) / share]], rtol=1e-6
    )
    assert train[1]["saliency_labels"].tolist() == [-1] * (clips // 2) + [9] * (clips - clips // 2)
    # Rows of all splits are numbered through.
    assert [sample[SOURCE] for sample in test] == list(range(32, 40))


def test_streams_may_be_modalities_of_their_own(folder: Path) -> None:
    options = ("--video_features", "clip", "slow", "--query_features", "text", "--no_normalize_features")
    options += ("--no_endpoint_features",)
    data, loaded = load("--data_dir", folder, *options, "--separate_streams", "--max_clips", 4, "--max_words", 2)
    sample = samples_of(data, loaded, "train")[0]
    assert sample["clip_features"].shape == (4, SIZES["clip"]) and sample["slow_features"].shape == (4, SIZES["slow"])
    assert sample["words_features"].shape[0] == 2 and len(sample["saliency_labels"]) == 4
    plain = np.load(folder / "slow" / "v0.npy")[:4]
    np.testing.assert_allclose(sample["slow_features"], plain, rtol=1e-5)


def test_streams_of_a_model_are_known_by_their_names(folder: Path) -> None:
    options = ("--data_dir", folder, "--video_features", "clip", "slow", "--query_features", "text")
    data, loaded = load(*options, "--separate_streams")
    annotation = loaded.goal.annotations[0]
    first, second = (MomentVectors(data, names, 2.0, None, None) for names in (["clip", "slow"], ["slow", "clip"]))
    for name, vectors in first.of(annotation).items():
        np.testing.assert_array_equal(second.of(annotation)[name], vectors)
    for names in (["clip", "fast"], ["video"]):
        with pytest.raises(ValueError, match="--video_features with --separate_streams are clip, slow"):
            MomentVectors(data, names, 2.0, None, None)
    joined, _ = load(*options)
    assert [*MomentVectors(joined, ["film"], 2.0, None, None).streams] == ["film"]


def test_metrics_are_those_of_the_samples_that_are_looked_at(folder: Path, tmp_path: Path) -> None:
    """A length that none of their windows has gives no metric, which no best model could be chosen by."""
    line = {"query": "a", "vid": "v0", "duration": 100}
    lines = [{**line, "qid": end, "relevant_windows": [[0, end]]} for end in (4, 90)]
    write_lines(tmp_path / "val.jsonl", lines)
    options = ("--validation_file", tmp_path / "val.jsonl", "--video_features", folder / "clip")
    for limit, lengths in (((), 3), (("--max_eval_samples", 1), 2)):
        _, loaded = load(*options, *limit, wanted=("--do_eval",))
        assert len({name.split("-")[1] for name in loaded.goal.metrics}) == lengths  # one of them is "full"


@pytest.mark.parametrize("kind", ["charades", "tvsum", "some scores"])
def test_sets_that_know_one_thing(kind: str, tmp_path: Path) -> None:
    """Charades-STA has windows alone, TVSum scores of all clips, by other names; and some lines may have no scores."""
    lines = make_lines(4)
    write_features(tmp_path, lines)
    names: dict[str, str] = {}
    for number, line in enumerate(lines):
        if kind == "tvsum":
            names = {"saliency_scores": "label", "query": "title", "vid": "video"}
            line["label"] = [[1, 4]] * (line["duration"] // CLIP_SECONDS)
            line["title"], line["video"] = line.pop("query"), line.pop("vid")
        if kind == "tvsum":
            del line["relevant_windows"]
        if kind != "some scores" or number % 2:
            del line["relevant_clip_ids"], line["saliency_scores"]
    write_lines(tmp_path / "train.jsonl", lines)
    options = ["--train_file", tmp_path / "train.jsonl", "--key_names", json.dumps(names)]
    options += ["--video_features", tmp_path / "clip", "--query_features", tmp_path / "text"]
    data, loaded = load(*options, wanted=("--do_train",))
    samples = samples_of(data, loaded, "train")
    kinds = {
        "charades": ["span_labels"],
        "tvsum": ["saliency_labels"],
        "some scores": ["span_labels", "saliency_labels"],
    }
    assert all([key for key in sample if key.endswith("_labels")] == kinds[kind] for sample in samples)
    heads = {"charades": {"MR"}, "tvsum": {"HL"}, "some scores": {"MR", "HL"}}
    assert {name.partition("-")[0] for name in loaded.goal.metrics} == heads[kind]
    batch = FusionCollator(label_modalities=["video"])([samples[0], samples[1]])
    if kind == "some scores":
        assert batch["saliency_labels"][1].isnan().all() and not batch["saliency_labels"][0].isnan().all()


def test_no_video_is_in_two_splits(folder: Path) -> None:
    options = ("--train_file", folder / "train.jsonl", "--video_features", folder / "clip")
    _, loaded = load(*options, wanted=("--do_train", "--do_eval"))
    assert loaded.is_held_out and isinstance(loaded.goal, Moments)
    annotations = loaded.goal.annotations
    queries = {split: [annotations[row] for row in rows[SOURCE]] for split, rows in loaded.splits.items()}
    videos = {split: {annotation.vid for annotation in of_split} for split, of_split in queries.items()}
    assert not videos["train"] & videos["validation"] and len(videos["train"] | videos["validation"]) == 12
    assert len(videos["validation"]) == 2
    assert [x.qid for x in loaded.goal.measured] == [x.qid for x in queries["validation"]]


def test_a_test_without_answers_is_predicted(folder: Path, tmp_path: Path) -> None:
    lines = [{key: line[key] for key in ("qid", "query", "vid", "duration")} for line in make_lines(2)]
    write_lines(tmp_path / "test.jsonl", lines)
    options = ("--test_file", tmp_path / "test.jsonl", "--video_features", folder / "clip")
    data, loaded = load(*options, wanted=("--do_predict",))
    assert set(samples_of(data, loaded, "test")[0]) == {"video_features", SOURCE}
    assert loaded.goal.metrics == ()
    with pytest.raises(ValueError, match="line 1, relevant_windows: it is missing"):
        load("--validation_file", tmp_path / "test.jsonl", "--video_features", folder / "clip", wanted=("--do_eval",))


# --- what is wrong ---------------------------------------------------------------------------------------------------


def _change(key: str, value: Any) -> Any:
    def change(folder: Path, lines: list[dict[str, Any]]) -> None:
        lines[2][key] = value

    return change


def _store(name: str, vectors: Any) -> Any:
    def change(folder: Path, lines: list[dict[str, Any]]) -> None:
        np.savez(folder / name, features=vectors)

    return change


WRONG = {
    "a window beyond the video": (
        _change("relevant_windows", [[0, 99]]),
        "line 3, relevant_windows: the window [0, 99] ends after the video",
    ),
    "scores of another shape": (
        _change("saliency_scores", [[1], [2]]),
        "line 3, saliency_scores: there must be a list of scores for each of ",
    ),
    "windows in some": (
        _change("relevant_windows", None),
        "line 3, relevant_windows: it is missing, and other queries of the file have it",
    ),
    "an unknown video": (_change("vid", "w9"), "line 3, vid: there is no w9.npz or w9.npy in"),
    "an unknown query": (_change("qid", 99), "line 3, qid: there is no qid99.npz or qid99.npy in"),
    "features of another length": (
        _store("clip/v1.npz", np.ones((3, SIZES["clip"]))),
        "duration: 14 s are 7 clips of 2 s, and the features of 'v1' in ",
    ),
    "features of one folder that are longer": (
        _store("slow/v1.npz", np.ones((12, SIZES["slow"]))),
        "duration: 14 s are 7 clips of 2 s, and the features of 'v1' in ",
    ),
    "a video that an earlier query says is longer": (
        _change("vid", "v0"),
        "duration: 14 s are 7 clips of 2 s, and the features of 'v0' in ",
    ),
    "features that are NaN": (
        _store("clip/v1.npz", np.full((9, SIZES["clip"]), np.nan)),
        "line 3, vid: ",
    ),
    "features of another size": (
        _store("clip/v1.npz", np.ones((7, 2))),
        "line 3, vid: the vectors of its video have 8 numbers, those before 12",
    ),
    "words that are NaN": (_store("text/qid2.npz", np.full((3, 6), np.inf)), "line 3, qid: "),
}


@pytest.mark.parametrize("limit", [(), ("--max_clips", 3)], ids=["whole", "cut"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_named(case: str, limit: tuple[object, ...], tmp_path: Path) -> None:
    lines = make_lines(3)
    for line in lines[2:4]:
        line["duration"], line["relevant_windows"], line["relevant_clip_ids"] = 14, [[0, 6]], [0, 1, 2]
        line["saliency_scores"] = [[4, 3, 2]] * 3
    write_features(tmp_path, lines)
    change, message = WRONG[case]
    change(tmp_path, lines)
    write_lines(tmp_path / "train.jsonl", lines)
    with pytest.raises(ValueError) as raised:
        options = ("--data_dir", tmp_path, "--video_features", "clip", "slow", "--query_features", "text", *limit)
        data, loaded = load(*options, wanted=("--do_train",))
        samples = samples_of(data, loaded, "train")
        samples.vectors.measure(samples.annotations)
    assert "train.jsonl', line 3" in str(raised.value) and message in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --video_features"),
        (("--video_features", "nowhere"), "there is no folder of features .*nowhere"),
        (("--video_features", "clip", "./clip", "--separate_streams"), "two of the folders have one name"),
        (("--video_features", "clip", "./audio", "--separate_streams"), "cannot be called words or audio"),
        (("--video_features", "clip", "--max_clips", 0), "--max_clips must be at least 1"),
        (("--video_features", "clip", "--clip_length", 0), "--clip_length must be more than 0"),
        (("--video_features", "clip", "--key_names", '{"title": "query"}'), "--key_names: 'title'"),
        (("--video_features", "clip", "--streaming"), "there is no option --streaming"),
        (("--video_features", "clip", "--class_names", "a"), "there is no option --class_names"),
    ],
)
def test_options_that_cannot_work(options: tuple[object, ...], message: str, folder: Path) -> None:
    (folder / "audio").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=message):
        load("--data_dir", folder, *options)


def test_a_file_that_is_missing_or_is_another(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    with pytest.raises(ValueError, match="there is no file of the split 'train', only of none"):
        load("--data_dir", tmp_path, "--video_features", "clip")
    (tmp_path / "train.csv").write_text("qid,vid\n")
    with pytest.raises(ValueError, match=r"annotations are in \.jsonl, \.json, \.parquet files"):
        load("--train_file", tmp_path / "train.csv", "--video_features", folder / "clip", wanted=("--do_train",))


# --- batches ---------------------------------------------------------------------------------------------------------


def test_labels_are_padded_with_nan() -> None:
    one = {"video_features": np.zeros((3, 2)), "span_labels": [[0.5, 1.0], [0.2, 0.1]], "saliency_labels": [1, 2, -1]}
    other = {"video_features": np.zeros((5, 2)), "span_labels": np.zeros((0, 2))}
    batch = FusionCollator(label_modalities=["video"])([one, other])
    assert batch["span_labels"].shape == (2, 2, 2) and batch["span_labels"][1].isnan().all()
    assert batch["saliency_labels"].shape == (2, 5)
    assert batch["saliency_labels"][0, :3].tolist() == [1, 2, -1] and batch["saliency_labels"][0, 3:].isnan().all()
    assert batch["span_labels"].dtype == batch["saliency_labels"].dtype == torch.float32
    alone = FusionCollator()([other])
    assert alone["span_labels"].shape == (1, 1, 2) and "saliency_labels" not in alone


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([{"span_labels": [[0.5, 1.0]]}, {}], "1 of 2 samples have span_labels; all must have them, or none"),
        ([{"span_labels": [0.5, 1.0]}] * 2, r"span_labels of a sample must be \(windows, 2\), got shape \(2,\)"),
        ([{"saliency_labels": [[1.0]]}] * 2, r"saliency_labels of a sample must be \(clips,\), got shape \(1, 1\)"),
        ([{"saliency_labels": [1.0] * 4}] * 2, "a sample has 1 labels more than places"),
    ],
)
def test_labels_that_cannot_be(labels: list[dict[str, Any]], message: str) -> None:
    samples = [{"video_features": np.zeros((3, 2)), **of_sample} for of_sample in labels]
    with pytest.raises(ValueError, match=message):
        FusionCollator(label_modalities=["video"])(samples)


# --- evaluation ------------------------------------------------------------------------------------------------------


def make_model(**options: Any) -> Any:
    torch.manual_seed(0)
    features = {"video": {"size": SIZES["clip"] + 2}, "words": {"size": SIZES["text"]}}
    config = head_config(text_config=None, features=features, label_modalities=["video"], **options)
    return HfLamFusionForMomentRetrieval(config).eval()


def make_trainer(folder: Path, samples: Any, goal: Moments | None = None, **options: Any) -> HfLamTrainer:
    from hf_lam.training.predictions import CollatorWithSources, PredictingTrainer

    given = HfLamTrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=3, **options
    )
    given.remove_unused_columns = False
    trainer = PredictingTrainer(
        make_model(),
        given,
        data_collator=CollatorWithSources(FusionCollator(label_modalities=["video"])),
        eval_dataset=samples,
        compute_metrics=None if goal is None else goal.measure,
    )
    trainer.kept_outputs = None
    return trainer


@pytest.fixture(scope="module")
def evaluated(folder: Path) -> tuple[MomentArguments, Data, MomentSamples]:
    data, loaded = load("--data_dir", folder, "--video_features", "clip", "--query_features", "text")
    return data, loaded, samples_of(data, loaded, "validation")


def test_metrics_are_those_of_the_written_predictions(
    evaluated: tuple[MomentArguments, Data, MomentSamples], folder: Path, tmp_path: Path
) -> None:
    _, loaded, samples = evaluated
    goal: Any = loaded.goal
    trainer = make_trainer(tmp_path, samples, goal)
    found = trainer.evaluate()
    assert {name.removeprefix("eval_") for name in found} >= set(goal.metrics) and found["eval_loss"] > 0
    output = trainer.predict(samples)
    goal.write_predictions(tmp_path, output.predictions, None)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    true = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert [line["qid"] for line in lines] == [line["qid"] for line in true]
    for name, value in submission_metrics(lines, true).items():
        assert found[f"eval_{name}"] == pytest.approx(value, abs=1e-6), name
    # As what the model finds in each video by itself.
    for line, sample in zip(lines, samples, strict=True):
        alone = trainer.model.retrieve(sample["video_features"], sample["words_features"])
        windows = [list(moment) for moment in alone.moments]
        np.testing.assert_allclose(line["pred_relevant_windows"], windows, atol=1e-3)
        assert len(line["pred_saliency_scores"]) == len(sample["video_features"])


def test_predictions_in_any_order_with_repeats_are_the_same(
    evaluated: tuple[MomentArguments, Data, MomentSamples], tmp_path: Path
) -> None:
    """As several processes give them."""
    _, loaded, samples = evaluated
    goal: Any = loaded.goal
    outputs, sources = make_trainer(tmp_path, samples).predict(samples).predictions
    order = np.array([3, 0, 7, 1, 2, 6, 4, 5, 3, 0])
    mixed = (tuple(values[order] for values in outputs), sources[order])
    expected = goal.measure(EvalPrediction((outputs, sources), None))
    assert goal.measure(EvalPrediction(mixed, None)) == expected


@pytest.mark.parametrize("left", ["span_labels", "saliency_labels"])
def test_one_kind_of_label_is_enough_for_a_loss(
    left: str, evaluated: tuple[MomentArguments, Data, MomentSamples], tmp_path: Path
) -> None:
    _, _, samples = evaluated
    kept = [{key: x for key, x in sample.items() if not key.endswith("labels") or key == left} for sample in samples]
    trainer = make_trainer(tmp_path, kept)
    output = trainer.predict(kept)
    assert output.metrics["test_loss"] > 0 and isinstance(output.label_ids, np.ndarray)
    assert trainer.label_names == ["span_labels", "saliency_labels"]
    without = [{key: x for key, x in sample.items() if not key.endswith("labels")} for sample in samples]
    assert "test_loss" not in trainer.predict(without).metrics


def test_windows_end_with_the_video(folder: Path, tmp_path: Path) -> None:
    """Features may have one clip more than the duration says."""
    (line,) = make_lines(1)[:1]
    write_features(tmp_path, [line])
    write_lines(tmp_path / "test.jsonl", [{**line, "duration": line["duration"] - 1.5, "relevant_windows": [[0, 4]]}])
    (annotation,) = read_annotations(tmp_path / "test.jsonl")
    goal = Moments((annotation,), (annotation,), 2.0, "")
    clips = line["duration"] // CLIP_SECONDS
    outputs = (
        np.array([[[5.0, 0.0]]], np.float32),
        np.array([[[0.5, 1.0]]], np.float32),
        np.zeros((1, clips + 2), np.float32),
        np.array([[1] * clips + [-100] * 2]),
    )
    goal.write_predictions(tmp_path, (outputs, np.array([0])), None)  # type: ignore[arg-type]
    (written,) = map(json.loads, (tmp_path / "predictions.jsonl").read_text().splitlines())
    assert written["pred_relevant_windows"][0][:2] == [0.0, annotation.duration]
    assert len(written["pred_saliency_scores"]) == clips


def test_the_card_shows_what_was_found(
    evaluated: tuple[MomentArguments, Data, MomentSamples], folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    _, loaded, samples = evaluated
    goal = loaded.goal
    sample = samples[0]
    batch = FusionCollator(label_modalities=["video"])([{k: v for k, v in sample.items() if k != SOURCE}])
    inputs = {name: value for name, value in batch.items() if not name.endswith("labels")}
    assert [*goal.draw(make_model(), sample, inputs, tmp_path)] == ["moments.png"]
    assert (tmp_path / "moments.png").stat().st_size > 5000
    assert "in clips of 2 s" in goal.describe() and "`clip`" in goal.describe() and str(folder) not in goal.describe()
