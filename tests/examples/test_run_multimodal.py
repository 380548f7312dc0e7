"""examples/run_multimodal_classification.py on pairs of image and speech, and on text with images."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    ASTFeatureExtractor,
    ASTModel,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    BertModel,
    BertTokenizerFast,
    ViTImageProcessor,
    ViTModel,
)

import hf_lam
from helpers.hosts import CONFIGS, data_folder
from helpers.processes import run_code
from helpers.scripts import script_module

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dark", "bright", "picture"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with script_module("run_multimodal_classification") as module:
        yield module


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints with their processors: grey images of 28 x 28, 64 frames of 64 mel bins, short texts."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("encoders")
    ViTModel(CONFIGS["vit"](**SMALL, image_size=28, patch_size=7, num_channels=1)).save_pretrained(root / "image")
    ViTImageProcessor(size={"height": 28, "width": 28}, image_mean=[0.5], image_std=[0.5]).save_pretrained(
        root / "image"
    )
    sound = {"max_length": 64, "num_mel_bins": 64, "patch_size": 32, "time_stride": 32, "frequency_stride": 32}
    ASTModel(CONFIGS["ast"](**{**SMALL, **sound})).save_pretrained(root / "audio")
    ASTFeatureExtractor(num_mel_bins=64, max_length=64, sampling_rate=8000, mean=-40.0, std=10.0).save_pretrained(
        root / "audio"
    )
    BertModel(CONFIGS["bert"](**SMALL, vocab_size=len(WORDS))).save_pretrained(root / "text")
    vocabulary = root / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    BertTokenizerFast(str(vocabulary), model_max_length=16).save_pretrained(root / "text")
    return {name: root / name for name in ("text", "image", "audio")}


def options(encoders: dict[str, Path], *modalities: str) -> list[str]:
    """A model of these modalities with one fusion layer, and a short training on the CPU."""
    named = [x for name in modalities for x in (f"--{name}_model", str(encoders[name]))]
    fusion = ["--fusion_config", '{"num_hidden_layers": 1}']
    return [*named, *fusion, *SHORT]


SHORT = [
    *("--do_train", "--do_eval", "--max_steps", "3", "--learning_rate", "1e-2", "--per_device_train_batch_size", "4"),
    *("--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"),
    *("--dataloader_pin_memory", "false"),
]
SPECTROGRAMS = ["--audio_column_name", "spectrogram", "--spectrogram_mel_first"]


def pairs(folder: Path, number: int = 24, **changes: Any) -> list[str]:
    """Some of the real pairs of image and speech as parquet files; `changes` are functions of a row, by column."""
    for split in ("train", "validation"):
        rows = load_dataset("parquet", data_files=str(data_folder("av_mnist") / f"{split}.parquet"), split="train")
        kept = [dict(row) for row in rows.select(range(number))]
        for index, row in enumerate(kept):
            row.update({column: change(index, row[column]) for column, change in changes.items()})
        Dataset.from_list(kept).to_parquet(folder / f"{split}.parquet")
    return ["--data_dir", str(folder), "--class_names", *map(str, range(10))]


@pytest.fixture
def text_and_image(tmp_path: Path) -> list[str]:
    """A csv of texts and paths of images, dark and bright; a third of the rows has no text, another no image."""
    generator = np.random.default_rng(0)
    rows = []
    for index in range(12):
        label = ("dark", "bright")[index % 2]
        pixels = generator.integers(0, 100, (20, 30, 3)) + 150 * (label == "bright")
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{index}.png")
        row = {"text": f"a {label} picture", "image": f"{index}.png", "label": label}
        lacking = (None, "text", "image")[index // 2 % 3]
        rows.append(row if lacking is None else {**row, lacking: ""})
    write_csv(tmp_path / "samples.csv", rows)
    return ["--train_file", str(tmp_path / "samples.csv"), "--validation_file", str(tmp_path / "samples.csv")]


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def error_of(script: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the script says before it ends, without having trained."""
    with pytest.raises(SystemExit) as ended:
        script.main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


RELOAD = """
import json, sys
import numpy as np
import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoProcessor

folder, path = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
extractor = processor.feature_extractor
rows = load_dataset("parquet", data_files=path, split="train")
right = 0
for row in rows:
    image = np.frombuffer(row["image"], np.uint8).reshape(row["image_shape"])
    inputs = processor(images=[image[..., None]], return_tensors="pt")
    sound = np.frombuffer(row["spectrogram"], "<f2").reshape(row["spectrogram_shape"]).astype(np.float32).T
    sound = (sound - extractor.mean) / (2 * extractor.std)
    with torch.no_grad():
        logits = model(**inputs, audio_values=torch.tensor(sound)[None]).logits
    right += int(logits.argmax()) == row["label"]
print(json.dumps([right / len(rows), type(model).__module__.split(".")[0], model.config.hf_lam["locomt"]["views"]]))
"""


@pytest.mark.slow
def test_saved_model_gives_what_was_reported(script: ModuleType, encoders: dict[str, Path], tmp_path: Path) -> None:
    folder, output = tmp_path / "data", tmp_path / "out"
    folder.mkdir()
    data = pairs(folder, 400)
    mechanisms = ["--mechanism", "locomt", "--mechanism_config", '{"views": "half"}']
    metrics = script.main(
        [
            *options(encoders, "image", "audio"),
            *data,
            *SPECTROGRAMS,
            *mechanisms,
            *(
                "--max_steps",
                "150",
                "--learning_rate",
                "3e-3",
                "--warmup_steps",
                "15",
                "--per_device_train_batch_size",
                "40",
                "--output_dir",
                str(output),
            ),
        ]
    )
    assert metrics["eval_accuracy"] > 0.25  # of ten classes
    assert json.loads((output / "eval_results.json").read_text())["eval_accuracy"] == metrics["eval_accuracy"]
    printed = run_code(RELOAD, output, folder / "validation.parquet", hf_lam=False)
    accuracy, module, views = json.loads(printed.splitlines()[-1])
    assert accuracy == metrics["eval_accuracy"]
    assert module == "transformers_modules"
    assert views == [["self", "cross:image-audio"]]


def test_text_and_images_from_a_csv(
    script: ModuleType, encoders: dict[str, Path], text_and_image: list[str], tmp_path: Path
) -> None:
    arguments = [*options(encoders, "text", "image"), *text_and_image, "--mechanism", "lam"]
    metrics = script.main(
        [*arguments, "--max_steps", "15", "--per_device_train_batch_size", "12", "--output_dir", str(tmp_path / "out")]
    )
    # What a row has says it all.
    assert metrics["eval_accuracy"] == 1
    assert metrics["eval_samples"] == 12
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.modalities == ["text", "image"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(model) is hf_lam.HfLamFusionForSequenceClassification
    assert set(model.config.hf_lam) == {"version", "lam"}
    inputs = processor(text=["a bright picture", "a dark picture"], padding=True, return_tensors="pt")
    assert [model.config.id2label[x] for x in model(**inputs).logits.argmax(1).tolist()] == ["bright", "dark"]


@pytest.fixture
def stopped(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, whose `main` returns the trainer as it is before the first step."""
    monkeypatch.setattr(script, "run", lambda trainer, *rest: trainer)
    return script


@pytest.fixture(scope="module")
def saved(encoders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fusion model of text and images without mechanisms, of the classes bright and dark, and its processor."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model = hf_lam.HfLamFusionForSequenceClassification.from_modality_pretrained(
        text=encoders["text"], image=encoders["image"], num_hidden_layers=1, id2label={0: "bright", 1: "dark"}
    )
    model.save_pretrained(folder)
    parts = {
        "tokenizer": AutoTokenizer.from_pretrained(encoders["text"]),
        "image_processor": AutoImageProcessor.from_pretrained(encoders["image"]),
    }
    hf_lam.HfLamFusionProcessor(**parts).save_pretrained(folder)
    return folder


def test_what_a_sample_lacks_is_marked(
    stopped: ModuleType, encoders: dict[str, Path], text_and_image: list[str], tmp_path: Path
) -> None:
    arguments = [*options(encoders, "text", "image"), *text_and_image, "--output_dir", str(tmp_path / "out")]
    trainer = stopped.main(arguments)
    batch = trainer.data_collator([trainer.eval_dataset[row] for row in range(6)])
    assert batch["has_text"].tolist() == [True, True, False, False, True, True]
    assert batch["has_image"].tolist() == [True, True, True, True, False, False]
    assert batch["pixel_values"].shape == (6, 1, 28, 28)
    assert batch["pixel_values"][1].mean() > batch["pixel_values"][0].mean()
    assert batch["input_ids"][1].tolist() == [WORDS.index(x) for x in ("[CLS]", "a", "bright", "picture", "[SEP]")]


def test_samples_with_nothing_are_named(
    script: ModuleType, encoders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": f"a {label} picture", "image": "", "label": label} for label in ("dark", "bright") * 3]
    rows[2]["text"] = ""
    rows[4]["image"] = "nowhere.png"
    write_csv(tmp_path / "samples.csv", rows)
    arguments = [*options(encoders, "text", "image"), "--train_file", str(tmp_path / "samples.csv")]
    arguments += ["--validation_file", str(tmp_path / "samples.csv"), "--output_dir", str(tmp_path / "out")]
    message = error_of(script, arguments, capsys)
    assert "2 of 6 samples of the split 'train' cannot be read" in message
    assert "row 2: it has nothing in text, image" in message
    assert "row 4: image 'nowhere.png'" in message


def test_spectrograms_are_normalised_and_turned(
    stopped: ModuleType, encoders: dict[str, Path], tmp_path: Path
) -> None:
    data = pairs(tmp_path, 12)
    arguments = [*options(encoders, "image", "audio"), *data, *SPECTROGRAMS, "--output_dir", str(tmp_path / "out")]
    trainer = stopped.main(arguments)
    row = load_dataset("parquet", data_files=str(tmp_path / "validation.parquet"), split="train")[3]
    decibels = np.frombuffer(row["spectrogram"], "<f2").reshape(64, 64).astype(np.float32)
    batch = trainer.data_collator([trainer.eval_dataset[3]])
    np.testing.assert_allclose(batch["audio_values"][0].numpy(), (decibels.T + 40) / 20, rtol=1e-6)
    assert batch["labels"].tolist() == [row["label"]]
    streamed = [*arguments, "--streaming", "--max_steps", "2"]
    (first,) = [sample for sample, _ in zip(stopped.main(streamed).eval_dataset, range(1), strict=False)]
    other = trainer.data_collator([trainer.eval_dataset[0]])
    assert torch.equal(trainer.data_collator([first])["audio_values"], other["audio_values"])


def test_spectrograms_of_another_size_are_refused(
    script: ModuleType, encoders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pairs(tmp_path, 12, spectrogram_shape=lambda index, shape: [32, 128] if index == 2 else shape)
    arguments = [*options(encoders, "image", "audio"), *data, *SPECTROGRAMS, "--output_dir", str(tmp_path / "out")]
    message = error_of(script, arguments, capsys)
    assert "1 of 12 samples of the split 'train'" in message
    assert "row 2: audio: its spectrogram is (128, 32) (frames, mel bins), the encoder takes (64, 64)" in message


def test_waveforms(
    stopped: ModuleType, encoders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    waveforms = [generator.uniform(-1, 1, 4000).astype(np.float32) for _ in range(4)]
    rows = [
        {"audio": {"array": waveform.tolist(), "sampling_rate": 8000}, "label": index % 2}
        for index, waveform in enumerate(waveforms)
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    files = ["--train_file", str(tmp_path / "train.parquet"), "--validation_file", str(tmp_path / "train.parquet")]
    arguments = [*options(encoders, "audio"), *files, "--output_dir", str(tmp_path / "out")]
    trainer = stopped.main(arguments)
    extractor = AutoFeatureExtractor.from_pretrained(encoders["audio"])
    expected = extractor(waveforms[2], sampling_rate=8000, return_tensors="np")["input_values"][0]
    np.testing.assert_array_equal(trainer.eval_dataset[2]["audio_values"], expected)
    extractor.max_length = 32
    hf_lam.HfLamFusionProcessor(feature_extractor=extractor).save_pretrained(tmp_path / "processor")
    message = error_of(stopped, [*arguments, "--processor_name_or_path", str(tmp_path / "processor")], capsys)
    assert "makes spectrograms of (32, 64) (frames, mel bins), the audio encoder takes (64, 64)" in message


@pytest.mark.slow
def test_a_saved_model_gets_mechanisms_once(
    script: ModuleType, saved: Path, text_and_image: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    lam = ["--mechanism", "lam", "--mechanism_learning_rate", "1e-2", "--freeze_host", "--teacher_model", str(saved)]
    arguments = ["--model_name_or_path", str(saved), *text_and_image, *SHORT, *lam]
    metrics = script.main([*arguments, "--class_names", "bright", "dark", "--output_dir", str(first)])
    before, after = (load_file(folder / "model.safetensors") for folder in (saved, first))
    changed = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if name.startswith(("fusion.hf_lam.", "classifier."))}
    assert json.loads((first / "config.json").read_text())["hf_lam"]["lam"]["rank"] is None
    evaluated = ["--model_name_or_path", str(first), *text_and_image, "--do_eval", "--use_cpu", "--report_to", "none"]
    again = script.main([*evaluated, "--output_dir", str(second)])
    assert again["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-6)
    message = error_of(script, [*evaluated, "--mechanism", "lam", "--output_dir", str(second)], capsys)
    assert "has mechanisms already, lam" in message


def test_what_is_random_trains_with_a_frozen_host(
    stopped: ModuleType, encoders: dict[str, Path], text_and_image: list[str], tmp_path: Path
) -> None:
    arguments = [*options(encoders, "text", "image"), *text_and_image, "--freeze_host"]
    arguments += ["--output_dir", str(tmp_path / "out")]
    for fusion, expected in (
        ({}, {"fusion.encoder", "classifier"}),
        ({"fusion_from": "image"}, {"classifier"}),
        ({"hidden_size": 24}, {"fusion.encoder", "fusion.text_projection", "fusion.image_projection", "classifier"}),
    ):
        options_of_fusion = json.dumps({"num_hidden_layers": 1, **fusion})
        trainer = stopped.main([*arguments, "--fusion_config", options_of_fusion])
        trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
        assert {".".join(name.split(".")[: 2 if "fusion" in name else 1]) for name in trained} == expected
        every = [name for name, _ in trainer.model.named_parameters() if name.startswith(tuple(expected))]
        assert trained == set(every)


def test_lora_needs_layers_that_were_trained(
    stopped: ModuleType,
    encoders: dict[str, Path],
    text_and_image: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("peft")
    arguments = [*options(encoders, "text", "image"), *text_and_image, "--lora_rank", "2"]
    arguments += ["--output_dir", str(tmp_path / "out")]
    assert "--lora_rank adapts what was trained before" in error_of(stopped, arguments, capsys)
    trainer = stopped.main([*arguments, "--fusion_config", '{"num_hidden_layers": 1, "fusion_from": "image"}'])
    adapted = {name.split(".lora_")[0] for name, _ in trainer.model.named_parameters() if "lora_A" in name}
    attention = "base_model.model.fusion.encoder.layers.0.attention"
    assert adapted == {f"{attention}.q_proj", f"{attention}.v_proj"}


def test_from_scratch_takes_the_sizes_alone(
    stopped: ModuleType, encoders: dict[str, Path], text_and_image: list[str], tmp_path: Path
) -> None:
    arguments = [*options(encoders, "text", "image"), *text_and_image, "--output_dir", str(tmp_path / "out")]
    pretrained, random = stopped.main(arguments).model, stopped.main([*arguments, "--from_scratch"]).model
    stock = load_file(encoders["image"] / "model.safetensors")
    name = "embeddings.patch_embeddings.projection.weight"
    assert torch.equal(pretrained.fusion.image_model.state_dict()[name], stock[name])
    assert not torch.equal(random.fusion.image_model.state_dict()[name], stock[name])
    assert random.config.image_config.to_dict() == pretrained.config.image_config.to_dict()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give --model_name_or_path, a saved fusion model, or what to make one of: the encoders --text_model"),
        ({"model_name_or_path": "a", "text_model": "b"}, "give --model_name_or_path, a saved fusion model, or what"),
        ({"model_name_or_path": "a", "fusion_config": "{}"}, "change a saved one with --config_overrides"),
        ({"text_model": "a", "config_overrides": '{"hidden_size": 8}'}, "--config_overrides is for --model_name_or"),
        ({"text_model": "a", "model_revision": "v2"}, "--model_revision is for --model_name_or_path"),
        ({"text_model": "a", "fusion_config": '{"num_layers": 2}'}, "--fusion_config has no option num_layers, only"),
        ({"text_model": "./nowhere"}, "--text_model: there is no folder './nowhere'"),
        ({"text_model": "a", "from_scratch": True, "freeze_host": True}, "--freeze_host would keep the random"),
        ({"text_model": "a", "fusion_config": '{"hf_lam": {}}'}, "--fusion_config has no option hf_lam, only"),
    ],
)
def test_wrong_options(script: ModuleType, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        script.FusionArguments(**given)


def test_what_does_not_fit_the_model(
    script: ModuleType,
    encoders: dict[str, Path],
    text_and_image: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = ["--output_dir", str(tmp_path / "out")]
    arguments = [*options(encoders, "image"), *text_and_image, *output, "--text_column_name", "text"]
    assert "--text_column_name 'text': the model has no text, only image" in error_of(script, arguments, capsys)
    arguments = [*options(encoders, "text", "audio"), *text_and_image, *output]
    assert "say it with --audio_column_name" in error_of(script, arguments, capsys)
    arguments = [*options(encoders, "text", "image"), *text_and_image, *output, "--mechanism", "stt"]
    assert "SttConfig needs tokens on one grid" in error_of(script, arguments, capsys)
    arguments = ["--model_name_or_path", str(encoders["text"]), *SHORT, *text_and_image, *output]
    assert "is a bert, no fusion model; name it as one of the encoders" in error_of(script, arguments, capsys)
    arguments = [x for x in options(encoders, "text", "image") if x != "--do_train"]
    assert "has to be trained first: give --do_train" in error_of(
        script, [*arguments, *text_and_image, *output], capsys
    )
