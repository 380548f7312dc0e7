"""The data set of moments that `examples/moments` makes out of moving digits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertModel, BertTokenizer, BitImageProcessor, Dinov2Config, Dinov2Model

from helpers.scripts import script_module
from hf_lam.training import submission_metrics
from hf_lam.training.moment_files import check_length, labels_of, read_annotations, read_features


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with script_module("moments/make_moving_moments") as module:
        yield module


@pytest.mark.parametrize("seed", range(5))
def test_a_video_is_full_of_what_could_be_taken_for_the_answer(script: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(60):
        stretches, asked = script.make_video(rng, 2)
        assert 30 <= stretches[-1][1] <= 75
        starts, ends, labels = zip(*stretches, strict=True)
        assert starts[0] == 0 and starts[1:] == ends[:-1]
        assert all(start < end for start, end, _ in stretches)
        assert all(one != other for one, other in pairwise(labels))
        assert asked[0] in labels and set(asked) <= set(labels)
        for label in asked:
            digit, direction = divmod(label, 4)
            others = [divmod(other, 4) for other in set(labels) - {label}]
            assert any(its == digit for its, _ in others) and any(its == direction for _, its in others)


def test_people_like_the_middle(script: Any) -> None:
    scores = np.mean([script.scores_of(np.random.default_rng(seed), (3, 12, 0)) for seed in range(50)], axis=(0, 2))
    assert len(scores) == 9 and 3 <= scores.argmax() <= 5
    assert scores.min() >= 1 and scores.max() <= 4 and scores[0] < scores[4] - 1


@pytest.fixture
def parts(tmp_path: Path, script: Any) -> dict[str, Path]:
    """Clips of random pixels, and tiny encoders."""
    rng = np.random.default_rng(0)
    for split in script.SPLITS:
        rows = [
            {
                "video": rng.integers(0, 255, (8, 16, 16), np.uint8).tobytes(),
                "video_shape": [8, 16, 16],
                "label": label,
            }
            for label in range(40)
        ]
        (tmp_path / "clips").mkdir(exist_ok=True)
        Dataset.from_list(rows).to_parquet(tmp_path / "clips" / f"{split}.parquet")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes, image_size=28, patch_size=14)).save_pretrained(tmp_path / "dino")
    BitImageProcessor().save_pretrained(tmp_path / "dino")
    words = [*re.findall(r"\w+", " ".join([*script.PHRASES, *script.DIGITS, *script.DIRECTIONS])), "?"]
    tokenizer = BertTokenizer(
        vocab={w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(words)])}
    )
    BertModel(BertConfig(**sizes, intermediate_size=16, vocab_size=len(tokenizer))).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return {name: tmp_path / name for name in ("clips", "dino", "bert")}


@pytest.mark.slow
def test_the_files_are_those_of_the_field_and_the_same_again(
    script: Any, parts: dict[str, Path], tmp_path: Path
) -> None:
    options = ["--data_dir", str(parts["clips"]), "--dino", str(parts["dino"]), "--text", str(parts["bert"])]
    options += ["--videos", "3", "2", "2", "--motion_epochs", "1"]
    for name in ("one", "two"):
        assert script.main([*options, "--output_dir", str(tmp_path / name)]) == 0
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert files == sorted(path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*.*"))
    for file in files:
        first, second = (tmp_path / name / file for name in ("one", "two"))
        if file.suffix == ".jsonl":
            assert first.read_bytes() == second.read_bytes()
        else:
            (key,) = np.load(first).files
            assert np.array_equal(np.load(first)[key], np.load(second)[key])
    annotations = read_annotations(tmp_path / "one" / "train.jsonl")
    for annotation in annotations:
        clips = read_features(annotation.vid, [tmp_path / "one" / "dino", tmp_path / "one" / "motion"])
        assert clips.shape[1] == 16 + 64
        check_length(annotation, len(clips), 2.0)
        assert set(labels_of(annotation, len(clips), 2.0)) == {"span_labels", "saliency_labels"}
        assert read_features(str(annotation.qid), [tmp_path / "one" / "text"], prefix="qid").shape[1] == 16
    lines = [json.loads(line) for line in (tmp_path / "one" / "test.jsonl").read_text().splitlines()]
    right = [
        {
            "qid": line["qid"],
            "pred_relevant_windows": [[*window, 1.0] for window in line["relevant_windows"]],
            "pred_saliency_scores": [
                float(clip in line["relevant_clip_ids"]) for clip in range(line["duration"] // 2)
            ],
        }
        for line in lines
    ]
    assert submission_metrics(right, lines)["MR-full-mAP"] == 100.0
    assert script.main([*options, "--output_dir", str(tmp_path / "one")]) == 2  # it is there already
