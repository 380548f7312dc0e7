"""examples/run_captioning.py: pictures and vectors under a decoder, and a `VisionEncoderDecoderModel`."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import metadata_load
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    BertTokenizer,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from helpers.command_line import run_main
from helpers.finetuning import command_line, main, results_in, saved
from helpers.hosts import SIZES
from helpers.hub_server import TOKEN, HubServer
from helpers.lam_models import assert_same_weights
from helpers.processes import run_process
from helpers.scripts import EXAMPLES
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES

SCRIPT = "run_captioning"
COLORS = {"red": (230, 20, 20), "blue": (20, 20, 230), "green": (20, 230, 20)}
KINDS = ("low", "high")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "is", "with", "picture", "sound", *COLORS, *KINDS]
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16, "initializer_range": 0.2}


def _write(folder: Path, split: str, count: int, several: bool) -> None:
    """Colours with vectors that are low or high, and captions that say both; every fifth sample lacks its picture."""
    rng = np.random.default_rng(len(split))
    rows = []
    for number in range(count):
        color, kind = list(COLORS)[number % 3], KINDS[number // 3 % 2]
        pixels = np.full((8, 8, 3), COLORS[color], np.uint8) + rng.integers(0, 20, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{split}{number}.png")
        level = -1.0 if kind == "low" else 1.0
        clips = rng.normal(level, 0.1, (int(rng.integers(2, 5)), 4)).tolist()
        captions = [f"a {color} picture with a {kind} sound", f"the sound is {kind} and the picture is {color}"]
        is_without = number % 5 == 4
        rows.append(
            {
                "image": None if is_without else f"{split}{number}.png",
                "clips": clips,
                "caption": captions[: 2 if several else 1],
            }
        )
    Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 24), ("validation", 9), ("test", 7)):
        _write(folder, split, count, several=split != "train")
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A ViT, a BERT with its words, and a model of both."""
    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    vit = ViTConfig(**SIZES, image_size=8, patch_size=4)
    ViTModel(vit, add_pooling_layer=False).save_pretrained(root / "vit")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(root / "vit")
    options = {**SIZES, "vocab_size": len(WORDS), "max_position_embeddings": 24, "initializer_range": 0.2}
    BertModel(BertConfig(**options)).save_pretrained(root / "bert")
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})
    tokenizer.save_pretrained(root / "bert")
    decoder = BertLMHeadModel(BertConfig(**options, is_decoder=True, add_cross_attention=True))
    VisionEncoderDecoderModel(encoder=ViTModel(vit, add_pooling_layer=False), decoder=decoder).save_pretrained(
        root / "both"
    )
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(root / "both")
    tokenizer.save_pretrained(root / "both")
    return {name: root / name for name in ("vit", "bert", "both")}


def _files(data: Path) -> dict[str, Path]:
    return {f"{split}_file": data / f"{split}.parquet" for split in ("train", "validation", "test")}


def _fusion(checkpoints: dict[str, Path], data: Path, **options: Any) -> dict[str, Any]:
    """A model of pictures and vectors."""
    return {
        "image_model": checkpoints["vit"],
        "features": json.dumps({"clips": {"column": "clips", "max_length": 8}}),
        "fusion_config": json.dumps({"num_hidden_layers": 1}),
        "decoder_model": checkpoints["bert"],
        **_files(data),
        "max_caption_length": 12,
        "do_eval": True,
        "save_strategy": "no",
        **options,
    }


def _predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _measured(folder: Path) -> list[float]:
    """ROUGE-L of every evaluation while a model was trained."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["eval_rougeL"] for entry in history if "eval_rougeL" in entry]


@pytest.mark.slow
@pytest.mark.parametrize(
    "decoder",
    [
        {},
        {"decoder_model": None, "decoder_config": json.dumps(GPT2), "num_beams": 2},
        {"decoder_lam": '{"rank": 2}', "mechanism": "lam"},
    ],
    ids=["bert", "gpt2 and beams", "masks in both"],
)
def test_a_model_is_made_trained_saved_and_writes_what_was_predicted(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path, decoder: dict[str, Any]
) -> None:
    options = _fusion(checkpoints, data, decoder_tokenizer=checkpoints["bert"], do_predict=True, **decoder)
    options |= {
        "validation_file": data / "train.parquet",
        "max_steps": 120,
        "learning_rate": 1e-2,
        "logging_steps": 60,
        "output_dir": tmp_path / "out",
    }
    metrics = main(SCRIPT, **options)
    assert metrics["eval_exact"] > 0.6  # chance is 1/6, and of every fifth sample the colour is not there to be seen
    found = results_in(tmp_path / "out")
    assert {"predict_bleu", "predict_rougeL", "predict_exact", "eval_loss"} <= set(found)
    written = _predictions(tmp_path / "out")
    assert [row["row"] for row in written] == [str(number) for number in range(7)]
    assert {row["file"] for row in written} == {"test.parquet"}
    rows = Dataset.from_parquet(str(data / "test.parquet"))
    exact = [row["prediction"] in its["caption"] for row, its in zip(written, rows, strict=True)]
    assert found["predict_exact"] == pytest.approx(np.mean(exact))

    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    assert (model.config.decoder_lam is not None) == ("decoder_lam" in decoder)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    for row, its in list(zip(written, rows, strict=True))[:5]:
        image = None if its["image"] is None else Image.open(data / its["image"])
        inputs = processor(images=[image], features={"clips": [its["clips"]]}, return_tensors="pt")
        tokens = model.generate(**inputs, num_beams=decoder.get("num_beams", 1))
        assert processor.batch_decode(tokens, skip_special_tokens=True) == [row["prediction"]]
    results = metadata_load(tmp_path / "out" / "README.md")["model-index"][0]["results"]
    assert {metric["type"] for result in results for metric in result["metrics"]} == {"bleu", "rougeL", "exact"}


@pytest.mark.slow
def test_encoders_that_ran_before_train_the_same_model(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    options = _fusion(checkpoints, data, do_predict=True, cache_features=tmp_path / "cache", max_steps=20)
    main(SCRIPT, **options, output_dir=tmp_path / "out")
    whole = {"model_name_or_path": tmp_path / "out", **_files(data), "do_train": None, "do_predict": True}
    main(SCRIPT, **whole, features='{"clips": "clips"}', max_caption_length=12, output_dir=tmp_path / "again")
    first, second = (results_in(tmp_path / name) for name in ("out", "again"))
    assert first["predict_loss"] == pytest.approx(second["predict_loss"], rel=1e-2)  # of features in half precision
    assert _predictions(tmp_path / "out") == _predictions(tmp_path / "again")


@pytest.mark.slow
def test_a_training_goes_on_where_it_stopped(checkpoints: dict[str, Path], data: Path, tmp_path: Path) -> None:
    options = _fusion(checkpoints, data, save_strategy="steps", save_steps=4, max_steps=8)
    whole = main(SCRIPT, **options, output_dir=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "stopped" / "checkpoint-4")
    assert main(SCRIPT, **options, output_dir=tmp_path / "stopped")["eval_loss"] == pytest.approx(whole["eval_loss"])
    assert_same_weights(saved(tmp_path / "whole"), saved(tmp_path / "stopped"))


@pytest.mark.slow
def test_streams_are_measured_as_tables_are(checkpoints: dict[str, Path], data: Path, tmp_path: Path) -> None:
    main(SCRIPT, **_fusion(checkpoints, data, max_steps=2, do_predict=True), output_dir=tmp_path / "table")
    whole = {"model_name_or_path": tmp_path / "table", "features": '{"clips": "clips"}', "max_caption_length": 12}
    whole |= {**_files(data), "do_eval": True, "do_predict": True, "streaming": True, "dataloader_num_workers": 1}
    main(SCRIPT, **{**whole, "do_train": None}, output_dir=tmp_path / "stream")
    first, second = (results_in(tmp_path / name) for name in ("table", "stream"))
    for name in ("eval_loss", "eval_bleu", "eval_rougeL", "predict_bleu"):
        assert first[name] == pytest.approx(second[name], rel=1e-4)
    assert _predictions(tmp_path / "table") == _predictions(tmp_path / "stream")
    metrics = main(SCRIPT, **whole, max_steps=2, save_strategy="no", output_dir=tmp_path / "trained")
    assert metrics["eval_loss"] != pytest.approx(first["eval_loss"])


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", [None, "lam", "stt"])
def test_a_model_of_pictures_and_captions(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path, mechanism: str | None
) -> None:
    rows = Dataset.from_parquet(str(data / "train.parquet"))
    kept = rows.filter(lambda row: row["image"] is not None).remove_columns("clips")
    (tmp_path / "data").mkdir()
    kept.map(lambda row: {"image": str(data / row["image"])}).to_parquet(tmp_path / "data" / "train.parquet")
    options = {"model_name_or_path": checkpoints["both"], "mechanism": mechanism, "max_caption_length": 12}
    options |= {"train_file": tmp_path / "data" / "train.parquet", "test_file": tmp_path / "data" / "train.parquet"}
    options |= {"max_steps": 20, "do_predict": True, "save_strategy": "no", "output_dir": tmp_path / "out"}
    main(SCRIPT, **options)
    written = _predictions(tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    assert (getattr(model.config, "hf_lam", None) is not None) == (mechanism is not None)
    assert len(written) == len(kept)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(images=Image.open(data / kept[0]["image"]).convert("RGB"), return_tensors="pt")
    tokens = model.generate(**inputs, max_length=13)
    assert processor.batch_decode(tokens, skip_special_tokens=True) == [written[0]["prediction"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "decoder",
    [{}, {"decoder_model": None, "decoder_config": json.dumps(GPT2)}, {"decoder_lam": '{"rank": 2}'}],
    ids=["bert", "gpt2", "masks"],
)
def test_lora_adapts_the_decoder_too(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path, decoder: dict[str, Any]
) -> None:
    options = _fusion(checkpoints, data, decoder_tokenizer=checkpoints["bert"], max_steps=4, **decoder)
    main(SCRIPT, **options, output_dir=tmp_path / "first")
    whole = {"model_name_or_path": tmp_path / "first", "features": '{"clips": "clips"}', **_files(data)}
    whole |= {"max_caption_length": 12, "do_eval": True, "max_steps": 4, "save_strategy": "no", "lora_rank": 2}
    metrics = main(SCRIPT, **whole, output_dir=tmp_path / "adapted")
    before, after = (saved(tmp_path / name) for name in ("first", "adapted"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert any(name.startswith("decoder.") for name in changed) and any("fusion." in name for name in changed)
    assert not any("embeddings" in name or ".wte." in name for name in changed)
    read = {**whole, "model_name_or_path": tmp_path / "adapted", "lora_rank": None, "do_train": None}
    again = main(SCRIPT, **read, output_dir=tmp_path / "read")
    assert again["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "which column is meant is not clear: say it with --text_column_name"),
        ({"text_column_name": "caption"}, "--text_column_name 'caption': the data have no such column"),
    ],
)
def test_a_caption_is_no_text_to_read(
    checkpoints: dict[str, Path],
    data: Path,
    tmp_path: Path,
    options: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = _fusion(checkpoints, data, image_model=None, text_model=checkpoints["bert"], **options)
    with pytest.raises(SystemExit):
        main(SCRIPT, **given, output_dir=tmp_path / "out")
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_and_measure_what_one_does(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    # Of 9 and 7 samples, those that fill up the last batch of two processes must not be counted.
    options = _fusion(checkpoints, data, max_steps=3, do_predict=True, per_device_eval_batch_size=2)
    options |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"metric_for_best_model": "rougeL", "load_best_model_at_end": True}
    main(SCRIPT, **options, output_dir=tmp_path / "one")
    line = command_line(**{**options, "per_device_train_batch_size": 2}, output_dir=tmp_path / "two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run_process([*launcher, str(EXAMPLES / f"{SCRIPT}.py"), *line], {"HF_HUB_OFFLINE": "1"})
    one, two = (results_in(tmp_path / name) for name in ("one", "two"))
    for name in ("eval_bleu", "eval_rougeL", "eval_exact", "predict_bleu"):
        assert two[name] == pytest.approx(one[name]), name
    assert _predictions(tmp_path / "two") == _predictions(tmp_path / "one")
    measured = [_measured(tmp_path / name) for name in ("one", "two")]
    assert len(measured[0]) == 3 and measured[0] == pytest.approx(measured[1])
    assert one["eval_rougeL"] == pytest.approx(max(measured[0]))
    assert_same_weights(saved(tmp_path / "one"), saved(tmp_path / "two"), tolerance=1e-3)


@pytest.mark.slow
def test_a_run_is_pushed(checkpoints: dict[str, Path], data: Path, tmp_path: Path) -> None:
    options = _fusion(checkpoints, data, max_steps=2, decoder_lam='{"rank": 2}')
    options |= {"push_to_hub": True, "hub_model_id": "user/captions", "hub_token": TOKEN}
    with HubServer() as hub:
        command = [sys.executable, EXAMPLES / f"{SCRIPT}.py", *command_line(**options, output_dir=tmp_path / "out")]
        run_process([*map(str, command)], environment=hub.environment(tmp_path / "hub"))
        files = hub.repos["user/captions"].files()
    needed = {"README.md", "model.safetensors", "processor_config.json", "generation_config.json", *TRAVELLING_FILES}
    assert needed <= set(files) and any(name.startswith("decoder_tokenizer/") for name in files)
    assert not [name for name, content in files.items() if TOKEN.encode() in content]
    assert "rougeL" in files["README.md"].decode()


@pytest.mark.slow
def test_rows_of_a_plan_are_compared_by_their_captions(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    arguments = {name: str(value) for name, value in _fusion(checkpoints, data).items() if name != "do_eval"}
    arguments |= {"max_steps": 4, "use_cpu": True, "cache_features": "{plan}/cache"}
    rows = {"stock": {}, "masks": {"decoder_lam": {"rank": 2}}, "lam": {"mechanism": "lam"}}
    rows["control"] = {"mechanism": "lam", "control": True}
    described = {"script": str(EXAMPLES / f"{SCRIPT}.py"), "metric": "bleu", "seeds": [1], "rows": rows}
    plan_file = tmp_path / "plan.json"
    plan_file.write_text(json.dumps({**described, "arguments": arguments}))
    code, _, err = run_main("compare", plan_file, "--output_dir", tmp_path / "out", "--test")
    assert code == 0, err
    times = json.loads((tmp_path / "out" / "times.json").read_text())["rows"]
    assert all(times[name].get("inference_ms") and times[name]["step_ms"] for name in rows), times
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    for row in found["rows"]:
        (run,) = row["runs"]
        assert run["error"] is None
        assert {"predict_bleu", "predict_rougeL", "predict_exact"} <= set(run["metrics"])
