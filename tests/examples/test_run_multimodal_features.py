"""examples/run_multimodal_classification.py on vectors that were computed before, and on what encoders have cached."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, disable_progress_bars
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoProcessor,
    BertModel,
    BertTokenizerFast,
    Siglip2ImageProcessor,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    ViTImageProcessor,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
)

import hf_lam
from helpers.hosts import CONFIGS
from helpers.scripts import script_module

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
FUSION = ["--fusion_config", '{"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}']
RUN = [
    *("--max_steps", "4", "--learning_rate", "1e-2", "--per_device_train_batch_size", "4", "--use_cpu", "true"),
    *("--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no", "--dataloader_pin_memory", "false"),
]
TRAIN = [*RUN, "--do_train", "--do_eval"]
CLIPS = ["--features", '{"clips": "clips", "sounds": {"column": "heard", "positions": null}}']


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    disable_progress_bars()
    with script_module("run_multimodal_classification") as module:
        yield module


@pytest.fixture
def stopped(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, whose `main` returns the trainer as it is before the first step."""
    monkeypatch.setattr(script, "run", lambda trainer, *rest: trainer)
    return script


def rows_of(number: int, seed: int) -> list[dict[str, Any]]:
    """Sequences of 2 to 5 vectors, whose first number says the label; every fourth one lacks its sounds."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(number):
        length = int(generator.integers(2, 6))
        labels = generator.integers(0, 2, length)
        clips = generator.normal(size=(length, 3)) * 0.1
        clips[:, 0] += labels * 2.0 - 1
        heard = generator.normal(size=(length, 4)) + 100
        rows.append(
            {
                "clips": clips.tolist(),
                "heard": None if index % 4 == 3 else heard.tolist(),
                "label": labels.tolist(),
            }
        )
    return rows


def write(folder: Path, split: str, rows: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    """A parquet file; `changes` are values of the third row."""
    rows = [dict(row) for row in rows]
    rows[2].update(changes)
    folder.mkdir(exist_ok=True)
    Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
    return rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for seed, split in enumerate(("train", "validation", "test")):
        write(tmp_path / "data", split, rows_of(12, seed))
    return tmp_path / "data"


def error_of(script: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the script says before it ends, without having trained."""
    with pytest.raises(SystemExit) as ended:
        script.main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "streamed", [pytest.param([], marks=pytest.mark.slow), ["--streaming", "--class_names", "0", "1"]]
)
def test_a_label_for_each_vector(script: ModuleType, data: Path, tmp_path: Path, streamed: list[str]) -> None:
    out = tmp_path / "out"
    arguments = ["--data_dir", str(data), *CLIPS, "--standardize_features", *streamed]
    metrics = script.main([*arguments, *FUSION, *TRAIN, "--max_steps", "60", "--do_predict", "--output_dir", str(out)])
    assert metrics["eval_accuracy"] > 0.8
    rows = rows_of(12, 2)
    with (out / "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    places = [(str(index), str(place)) for index, row in enumerate(rows) for place in range(len(row["label"]))]
    assert [(line["row"], line["position"]) for line in lines] == places
    true = [str(label) for row in rows for label in row["label"]]
    right = np.mean([line["prediction"] == label for line, label in zip(lines, true, strict=True)])
    assert right == pytest.approx(json.loads((out / "predict_results.json").read_text())["predict_accuracy"])
    # The processor brings what it is given to the scale that the model was trained on.
    heard = np.concatenate([row["heard"] for row in rows_of(12, 0) if row["heard"]])
    processor = AutoProcessor.from_pretrained(out)
    np.testing.assert_allclose(processor.features["sounds"]["mean"], heard.mean(0), rtol=1e-5)
    np.testing.assert_allclose(processor.features["sounds"]["std"], heard.std(0), rtol=1e-4)
    model = AutoModelForTokenClassification.from_pretrained(out)
    assert type(model) is hf_lam.HfLamFusionForTokenClassification
    inputs = processor(features={"clips": rows[0]["clips"], "sounds": rows[0]["heard"]}, return_tensors="pt")
    predicted = model(**inputs).logits[0].argmax(-1).tolist()
    assert [str(x) for x in predicted] == [line["prediction"] for line in lines if line["row"] == "0"]
    card = (out / "README.md").read_text()
    assert "AutoModelForTokenClassification" in card and "one per position" in card
    again = script.main(
        [
            *("--model_name_or_path", str(out), "--features", '{"sounds": "heard"}', "--data_dir", str(data)),
            *(*RUN, *streamed, "--do_eval", "--output_dir", str(tmp_path / "again")),
        ]
    )
    assert again["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-5)


@pytest.mark.slow
def test_one_label_for_all_vectors_and_a_text(script: ModuleType, encoders: dict[str, str], tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"words": "a bright picture", "clips": f"{index}.npy", "label": ("no", "yes")[index % 2]} for index in range(8)
    ]
    (tmp_path / "data").mkdir()
    for index, row in enumerate(rows):
        np.save(tmp_path / "data" / row["clips"], np.outer(np.ones(index + 1), [1, -1, 0]) * (index % 2 * 2 - 1))
    rows[3]["words"], rows[4]["clips"] = "", None
    for split in ("train", "validation"):
        with (tmp_path / "data" / f"{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    files = [
        x for split in ("train", "validation") for x in (f"--{split}_file", str(tmp_path / "data" / f"{split}.csv"))
    ]
    metrics = script.main(
        [
            *(*files, "--text_model", encoders["text"], "--text_column_name", "words", "--features"),
            *('{"clips": "clips"}', "--mechanism", "lam", "--mechanism_config", '{"rank": 2}', *TRAIN),
            *(
                "--max_steps",
                "60",
                "--fusion_config",
                '{"num_hidden_layers": 1}',
                "--output_dir",
                str(tmp_path / "out"),
            ),
        ]
    )
    assert metrics["eval_accuracy"] >= 7 / 8  # one row has nothing that says its label


@pytest.mark.parametrize("targets", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_numbers_for_each_vector(script: ModuleType, data: Path, tmp_path: Path, targets: int) -> None:
    for seed, split in enumerate(("train", "validation", "test")):
        rows = rows_of(12, seed)
        for row in rows:
            row["label"] = [x[0] if targets == 1 else x[:targets] for x in row["clips"]]
        write(data, split, rows)
    out = tmp_path / "out"
    metrics = script.main(
        [
            *("--data_dir", str(data), *CLIPS, *FUSION, *TRAIN, "--do_regression", "--do_predict"),
            *("--max_steps", "40", "--output_dir", str(out)),
        ]
    )
    assert metrics["eval_mse"] < 0.5
    with (out / "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(len(row["clips"]) for row in rows_of(12, 2))
    assert np.shape(json.loads(lines[0]["prediction"])) == (() if targets == 1 else (2,))


def test_positions_come_from_a_column(stopped: ModuleType, data: Path, tmp_path: Path) -> None:
    rows = rows_of(12, 0)
    for row in rows:
        row["seconds"] = [2.5 * index for index in range(len(row["clips"]))]
    write(data, "train", rows)
    features = '{"clips": {"positions_column": "seconds"}}'
    arguments = ["--train_file", str(data / "train.parquet"), "--features", features, *FUSION, *RUN, "--do_train"]
    trainer = stopped.main([*arguments, "--output_dir", str(tmp_path / "out")])
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    assert batch["clips_positions"][0, :2].tolist() == [0, 2.5]
    assert trainer.model(**batch).loss.isfinite()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clips": [[1.0, 2.0]] * 2}, "row 2: clips: its vectors have 2 numbers, those of the model 3"),
        pytest.param(
            {"clips": [[1.0, 2.0, 3.0], [1.0]]},
            "row 2: clips: its vectors must be numbers, all of one length",
            marks=pytest.mark.slow,
        ),
        ({"clips": [[1.0, float("nan"), 3.0]] * 2}, "row 2: clips: 2 of its numbers are NaN or infinite"),
        pytest.param({"label": [0]}, "row 2: it has 1 labels in 'label' for", marks=pytest.mark.slow),
        pytest.param({"heard": [[1.0] * 4]}, "row 2: it has vectors of different numbers", marks=pytest.mark.slow),
        pytest.param({"clips": None, "heard": None}, "row 2: it has nothing in clips, heard", marks=pytest.mark.slow),
    ],
)
def test_rows_that_do_not_fit_are_named(
    script: ModuleType, data: Path, tmp_path: Path, changes: dict[str, Any], message: str, capsys: Any
) -> None:
    write(data, "train", rows_of(12, 0), **changes)
    arguments = ["--data_dir", str(data), *CLIPS, *FUSION, *TRAIN, "--output_dir", str(tmp_path / "out")]
    assert message in error_of(script, arguments, capsys)
    metrics = script.main([*arguments, "--skip_unreadable"])
    assert metrics["eval_samples"] == 12
    assert json.loads((tmp_path / "out" / "train_results.json").read_text())["train_samples"] == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([*FUSION, "--features", '{"clips": "nowhere"}'], "--features 'nowhere': the data have no such column"),
        ([*FUSION, "--features", '{"clips": {"max_length": 3}}'], "which have labels; max_length is 3"),
        (["--features", '{"clips": "clips"}'], "--fusion_config must have hidden_size and num_attention_heads, as no"),
        ([*CLIPS, *FUSION, "--cache_features", "cache"], "--cache_features is for encoders, and there are none"),
        ([*FUSION, "--standardize_features"], "give --model_name_or_path, a saved fusion model, or what to make one"),
        (
            ["--text_model", "b", "--features", '{"text": "clips"}'],
            "text has an encoder too; give the vectors another",
        ),
        (["--text_model", "b", "--standardize_features"], "--standardize_features is for --features"),
        ([*CLIPS, "--model_name_or_path", "m"], "a saved model has its own positions of 'sounds'"),
        (
            [
                "--features",
                '{"clips": "clips"}',
                "--fusion_config",
                '{"fusion_from": "clips", "hidden_size": 4, "num_attention_heads": 1}',
            ],
            "--fusion_config has fusion_from, but there are no encoders",
        ),
    ],
)
def test_options_that_do_not_fit(
    script: ModuleType, data: Path, tmp_path: Path, options: list[str], message: str, capsys: Any
) -> None:
    arguments = ["--data_dir", str(data), *options, *TRAIN, "--output_dir", str(tmp_path / "out")]
    try:
        said = error_of(script, arguments, capsys)
    except ValueError as error:
        said = str(error)
    assert message in said


# --- encoders --------------------------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dark", "bright", "picture"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny encoders of one width with their processors."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("encoders")
    BertModel(CONFIGS["bert"](**SMALL, vocab_size=len(WORDS))).save_pretrained(root / "text")
    (root / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(root / "vocab.txt"), model_max_length=16).save_pretrained(root / "text")
    ViTModel(CONFIGS["vit"](**SMALL, image_size=16, patch_size=8)).save_pretrained(root / "image")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(root / "image")
    patches = Siglip2VisionConfig(**SMALL, num_patches=16, patch_size=4)
    Siglip2VisionModel(patches).save_pretrained(root / "patches")
    Siglip2ImageProcessor(patch_size=4, max_num_patches=16).save_pretrained(root / "patches")
    whisper = WhisperConfig(
        d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=80,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=9, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    WhisperForAudioClassification(whisper).save_pretrained(root / "whisper")
    WhisperFeatureExtractor().save_pretrained(root / "whisper")
    conv = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (5, 4), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    Wav2Vec2Model(Wav2Vec2Config(**SMALL, **conv, **positions, vocab_size=9)).save_pretrained(root / "wav2vec2")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(root / "wav2vec2")
    return {path.name: str(path) for path in root.iterdir() if path.is_dir()}


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Texts, pictures of several sizes and sounds of several lengths at 8 kHz, some missing."""
    generator = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for index in range(8):
        label = ("dark", "bright")[index % 2]
        pixels = generator.integers(0, 100, (16 + index, 24, 3)) + 150 * (label == "bright")
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{index}.png")
        sound = generator.normal(size=800 + 400 * index) * 0.1
        rows.append(
            {
                "text": None if index == 1 else f"a {label} picture",
                "image": None if index == 2 else str(tmp_path / f"{index}.png"),
                "audio": None if index == 3 else {"array": sound.tolist(), "sampling_rate": 8000},
                "label": label,
            }
        )
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    path = str(tmp_path / "train.parquet")
    return ["--train_file", path, "--validation_file", path, "--test_file", path]


@pytest.mark.parametrize(
    ("image", "audio", "more", "lengths"),
    [
        ("patches", "wav2vec2", [], {1600, 2400}),
        ("patches", "whisper", ["--cut_to_sound"], {10, 15}),
        ("image", "whisper", [], {3000}),
        ("image", "whisper", ["--cut_to_sound", "--max_seconds", "0.05"], {5}),
    ],
)
def test_encoders_get_what_they_take(
    stopped: ModuleType,
    encoders: dict[str, str],
    pictures: list[str],
    tmp_path: Path,
    image: str,
    audio: str,
    more: list[str],
    lengths: set[int],
) -> None:
    trainer = stopped.main(
        [
            *("--text_model", encoders["text"], "--image_model", encoders[image], "--audio_model", encoders[audio]),
            *(*pictures, *more, *TRAIN, "--fusion_config", '{"num_hidden_layers": 1}'),
            *("--output_dir", str(tmp_path / "out")),
        ]
    )
    samples = [trainer.train_dataset[index] for index in range(4)]
    heard = [np.shape(sample["audio_values"]) for sample in samples if sample["audio_values"] is not None]
    assert {heard[0][-1], heard[1][-1]} == lengths
    batch = trainer.data_collator(samples)
    assert trainer.model(**batch).loss.isfinite()


CACHED = ["--fusion_config", '{"num_hidden_layers": 1}', "--mechanism", "lam", "--mechanism_config", '{"rank": 2}']


@pytest.mark.slow
def test_cached_features_train_the_whole_model(
    script: ModuleType, encoders: dict[str, str], pictures: list[str], tmp_path: Path, capsys: Any
) -> None:
    named = [x for name in ("text", "image") for x in (f"--{name}_model", encoders[name])]
    arguments = [*named, *pictures, *CACHED, *TRAIN, "--do_predict", "--freeze_host"]
    cache = ["--cache_features", str(tmp_path / "cache")]
    slow = script.main([*arguments, "--output_dir", str(tmp_path / "slow")])
    fast = script.main([*arguments, *cache, "--output_dir", str(tmp_path / "fast")])
    assert fast["eval_loss"] == pytest.approx(slow["eval_loss"], rel=2e-2)
    trained, expected = (load_file(tmp_path / x / "model.safetensors") for x in ("fast", "slow"))
    assert trained.keys() == expected.keys()
    differences = torch.cat([(trained[key] - expected[key]).abs().flatten() for key in trained])
    # Adam moves a weight whose gradient is about 0 to one side or the other by the learning rate.
    assert (differences > 2e-3).float().mean() < 1e-3
    assert AutoConfig.from_pretrained(tmp_path / "fast").features is None
    assert (tmp_path / "fast" / "README.md").is_file() and (tmp_path / "fast" / "predictions.csv").is_file()
    # What is saved takes texts and pictures, and gives what was reported of the cached ones.
    again = script.main(
        [
            *("--model_name_or_path", str(tmp_path / "fast"), *pictures, *RUN, "--do_eval"),
            *("--output_dir", str(tmp_path / "again")),
        ]
    )
    assert again["eval_loss"] == pytest.approx(fast["eval_loss"], rel=2e-2)
    # Stopped after two steps, and started once more, with the features that are there.
    stopped_early = [*arguments, *cache, "--save_strategy", "steps", "--save_steps", "2"]
    stopped_early += ["--output_dir", str(tmp_path / "resumed")]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")}
    script.main([*stopped_early, "--max_steps", "2"])
    for path in (tmp_path / "resumed").iterdir():
        if path.is_file():
            path.unlink()
    script.main(stopped_early)
    resumed = load_file(tmp_path / "resumed" / "model.safetensors")
    assert resumed.keys() == trained.keys()
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")}
    # Other encoders share the folder, and leave what is there as it is.
    other = [*named[:2], "--image_model", encoders["patches"], *pictures, *CACHED, *TRAIN, *cache]
    script.main([*other, "--output_dir", str(tmp_path / "other")])
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")}
    assert before.items() < after.items()
