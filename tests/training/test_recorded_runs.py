"""run_recorded: what a script of one's own does for a comparison."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    DataCollatorWithPadding,
    ViTConfig,
    ViTForImageClassification,
)

from hf_lam import SttConfig, convert
from hf_lam.training.arguments import RunArguments
from hf_lam.training.recorded_runs import is_recorded, run_recorded, write_once
from hf_lam.training.recording import RecordingTrainer

SETTINGS = {"layers": 1, "seed": 0, "betas": (0.9, 0.99)}


class Samples(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, count: int) -> None:
        self.pixels = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels[index], "labels": torch.tensor(index % 2)}


def arguments_for(folder: Path, **options: Any) -> RunArguments:
    fixed = {"max_steps": 2, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 3, "disable_tqdm": True}
    return RunArguments(
        str(folder), do_train=True, do_eval=True, save_strategy="no", report_to="none", **fixed, **options
    )


def trainer_for(training: RunArguments, source: Path | None = None) -> RecordingTrainer:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    model = ViTForImageClassification(config) if source is None else ViTForImageClassification.from_pretrained(source)
    return RecordingTrainer(
        model=model,
        args=training,
        train_dataset=Samples(8),
        eval_dataset=Samples(4),
        compute_metrics=lambda x: {"accuracy": float((x.predictions.argmax(-1) == x.label_ids).mean())},
    )


def test_a_check_writes_what_there_is_to_compare_and_trains_nothing(tmp_path: Path) -> None:
    training = arguments_for(tmp_path, check_only=True, do_predict=True)
    trainer = trainer_for(training)
    assert run_recorded(trainer, ["loss", "accuracy"], SETTINGS, Samples(5)) == {}
    assert json.loads((tmp_path / "check.json").read_text())["metrics"] == ["loss", "accuracy"]
    assert trainer.state.global_step == 0
    assert not (tmp_path / "run.json").exists()


def test_a_run_is_written_down_and_tested_later_without_training(tmp_path: Path) -> None:
    training = arguments_for(tmp_path, record_run=True)
    found = run_recorded(trainer_for(training), ["loss", "accuracy"], SETTINGS, Samples(5))
    assert not any(name.startswith("predict_") for name in found), "test data are for the end"
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["steps"] == 2
    assert record["metrics"] == ["loss", "accuracy"]
    assert record["orders"]["pixel_values"] and record["starts"]["host"]
    assert torch.equal(load_file(tmp_path / "batch.safetensors")["pixel_values"], Samples(4).pixels[:3])
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 2

    weights = (tmp_path / "model.safetensors").read_bytes()
    later = arguments_for(tmp_path, record_run=True, do_predict=True)
    assert is_recorded(later, SETTINGS)
    trainer = trainer_for(later, tmp_path)
    tested = run_recorded(trainer, ["loss", "accuracy"], SETTINGS, Samples(5))
    assert 0 <= tested["predict_accuracy"] <= 1
    assert trainer.state.global_step == 0
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    kept = json.loads((tmp_path / "all_results.json").read_text())
    assert kept["predict_accuracy"] == tested["predict_accuracy"]
    assert kept["eval_accuracy"] == found["eval_accuracy"]


def test_a_run_of_other_settings_is_refused_naming_them(tmp_path: Path) -> None:
    run_recorded(trainer_for(arguments_for(tmp_path, record_run=True)), ["loss"], SETTINGS)
    later = arguments_for(tmp_path, record_run=True, do_predict=True)
    with pytest.raises(ValueError, match="finished run with another layers, width;"):
        is_recorded(later, {"seed": 0, "betas": (0.9, 0.99), "layers": 2, "width": 8})
    # What only trains trains.
    assert not is_recorded(arguments_for(tmp_path, record_run=True), SETTINGS)


def test_a_model_is_finished_before_it_is_evaluated_and_saved(tmp_path: Path) -> None:
    def finish(model: Any) -> None:
        with torch.no_grad():
            model.classifier.weight.zero_()
            model.classifier.bias.copy_(torch.tensor([-9.0, 9.0]))

    trainer = trainer_for(arguments_for(tmp_path, record_run=True))
    found = run_recorded(trainer, ["loss", "accuracy"], SETTINGS, finish=finish)
    assert found["eval_accuracy"] == 0.5, "always the second class"
    assert not load_file(tmp_path / "model.safetensors")["classifier.weight"].any()


def test_what_several_runs_read_is_written_once_and_whole(tmp_path: Path) -> None:
    folder, began, goes_on, written = tmp_path / "parts" / "encoder", threading.Event(), threading.Event(), []

    def write(partial: Path) -> None:
        written.append(partial)
        assert not folder.exists()
        partial.mkdir()
        began.set()
        assert goes_on.wait(60)
        (partial / "weights").write_text("whole")

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(write_once, folder, write)
        assert began.wait(60)
        second = threads.submit(write_once, folder, write)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.2)
        goes_on.set()
        first.result(), second.result()
    write_once(folder, write)
    assert len(written) == 1 and (folder / "weights").read_text() == "whole"


def test_what_a_dead_process_left_is_written_anew(tmp_path: Path) -> None:
    def fail(partial: Path) -> None:
        partial.mkdir()
        (partial / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_once(tmp_path / "encoder", fail)
    assert not (tmp_path / "encoder").exists()
    write_once(tmp_path / "encoder", lambda partial: partial.mkdir())
    assert list((tmp_path / "encoder").iterdir()) == []


@pytest.mark.parametrize(("longest", "fits"), [(8, True), (9, False)])
def test_a_check_tries_the_longest_sample(longest: int, fits: bool, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    model = convert(BertForSequenceClassification(config), SttConfig("dense", grid=[8]))
    texts = [[1] * length for length in (4, 5, longest, 3)]
    rows = Dataset.from_dict({"input_ids": texts, "attention_mask": texts, "labels": [0, 1, 0, 1]})
    tokenizer = BertTokenizerFast(vocab={f"[{x}]": i for i, x in enumerate(("PAD", "UNK", "CLS", "SEP", "MASK"))})
    trainer = RecordingTrainer(
        model=model,
        args=arguments_for(tmp_path, check_only=True, remove_unused_columns=False),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    with nullcontext() if fits else pytest.raises(ValueError, match="is for at most 8 tokens, but the sequence has 9"):
        run_recorded(trainer, ["loss"], SETTINGS)
    assert (tmp_path / "check.json").is_file() == fits
