"""Milliseconds of trained models: which are timed, on what, and which of their parameters train."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTModel

import hf_lam
from helpers.door import DISTANCE, open_door
from hf_lam.comparing import timing
from hf_lam.comparing.timing import time_rows
from hf_lam.modeling.mechanism_registry_hf_lam import mechanism_names

CONFIG = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def make_bert() -> Any:
    return BertForSequenceClassification(BertConfig(**CONFIG, vocab_size=20))


def save(folder: Path, model: Any, trained: Iterable[str] | str | None = "no record") -> Path:
    model.save_pretrained(folder)
    batch = {
        "input_ids": torch.arange(12).reshape(3, 4) % 20,
        "attention_mask": torch.ones(3, 4, dtype=torch.long),
        "labels": torch.tensor([0, 1, 0]),
    }
    save_file(batch, folder / timing.BATCH_FILE)
    if trained != "no record":
        (folder / timing.RECORD_FILE).write_text(json.dumps({"trained": None if trained is None else list(trained)}))
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SECONDS_A_VISIT", 0.0)


@pytest.mark.usefixtures("quick")
def test_every_row_has_the_median_of_the_rounds_and_their_ends(tmp_path: Path) -> None:
    folders = {
        "stock": save(tmp_path / "stock", make_bert()),
        "lam": save(tmp_path / "lam", hf_lam.convert(make_bert(), hf_lam.LamConfig()), None),
    }
    said: list[str] = []
    found = time_rows(folders, rounds=2, report=said.append)
    assert found["threads"] == torch.get_num_threads() and found["processor"]
    assert list(found["rows"]) == ["stock", "lam"] and said == ["round 1 of 2", "round 2 of 2"]
    for row in found["rows"].values():
        assert row["batch"] == 3 and set(row) == {"inference_ms", "step_ms", "batch"}
        for measured in (row["inference_ms"], row["step_ms"]):
            assert 0 < measured["low"] <= measured["median"] <= measured["high"]
    json.dumps(found)


@pytest.mark.usefixtures("quick")
def test_models_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {name: save(tmp_path / name, make_bert()) for name in ("a", "b")}
    loaded: list[str] = []
    load = timing._load_model
    monkeypatch.setattr(timing, "_load_model", lambda folder: loaded.append(folder.name) or load(folder))
    time_rows(folders, rounds=3)
    assert loaded == ["a", "b"] * 3


def test_what_disturbs_a_call_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the short calls on a busy machine, most are interrupted."""
    clock = iter([0.0, 9.0, *(at for start in range(10) for at in (start, start + (0.002 if start == 7 else 0.015)))])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing._milliseconds(lambda: None, torch.device("cpu")) == pytest.approx(2)


@pytest.mark.usefixtures("quick")
def test_long_rows_have_fewer_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SECONDS_A_ROW", 0.0)
    said: list[str] = []
    time_rows({"a": save(tmp_path / "a", make_bert())}, rounds=9, report=said.append)
    assert len(said) == 3


@pytest.mark.usefixtures("quick")
def test_a_step_is_of_what_the_run_trained_and_changes_nothing(tmp_path: Path) -> None:
    model = make_bert()
    head = [name for name, _ in model.named_parameters() if name.startswith("classifier")]
    for trained, expected in (("no record", None), (None, None), (head, set(head))):
        row = timing._Row(save(tmp_path / "row", model, trained), torch.device("cpu"))
        row.prepare_training()
        row.step()
        stepped = {name for name, p in row.model.named_parameters() if row.optimizer and p in row.optimizer.state}
        assert stepped == (expected or {name for name, _ in model.named_parameters()})
        assert row.model.training
        for name, parameter in row.model.named_parameters():
            torch.testing.assert_close(parameter, model.get_parameter(name), rtol=0, atol=0)


@pytest.mark.usefixtures("quick")
def test_where_the_saved_model_is_not_what_was_trained_no_step_is_timed(tmp_path: Path) -> None:
    (row,) = time_rows({"merged": save(tmp_path / "merged", make_bert(), [])}, rounds=1)["rows"].values()
    assert set(row) == {"inference_ms", "batch"}


@pytest.mark.usefixtures("quick")
def test_an_encoder_without_a_head_and_one_with_a_mechanism_of_ones_own(tmp_path: Path) -> None:
    vit = ViTModel(ViTConfig(**CONFIG, image_size=16, patch_size=8))
    vit.save_pretrained(tmp_path / "vit")
    save_file({"pixel_values": torch.zeros(2, 3, 16, 16)}, tmp_path / "vit" / timing.BATCH_FILE)
    with open_door() as load:
        config = load(DISTANCE).DistanceBiasConfig()
        own = save(tmp_path / "own", hf_lam.convert(make_bert(), config))
    # As in another process, it is not registered any more: the code is that of the folder.
    assert config.name not in mechanism_names()
    with open_door():
        rows = time_rows({"vit": tmp_path / "vit", "own": own}, rounds=2)["rows"]
    assert [set(row) for row in rows.values()] == [{"inference_ms", "step_ms", "batch"}] * 2, rows


@pytest.mark.usefixtures("quick")
def test_a_row_that_cannot_be_timed_leaves_the_others(tmp_path: Path) -> None:
    folders = {name: save(tmp_path / name, make_bert()) for name in ("strange", "batchless", "fine")}
    config = json.loads((folders["strange"] / "config.json").read_text())
    (folders["strange"] / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchModel"]}))
    (folders["batchless"] / timing.BATCH_FILE).unlink()
    rows = time_rows({**folders, "gone": tmp_path / "gone"}, rounds=1)["rows"]
    assert (
        "'NoSuchModel'" in rows["strange"]["error"]
        and "no class of hf_lam or of transformers" in rows["strange"]["error"]
    )
    assert "which --record_run writes" in rows["batchless"]["error"] and "error" in rows["gone"]
    assert "error" not in rows["fine"]
    # A reason that is the same for several rows is said once, and on every machine.
    assert not any(str(tmp_path) in rows[name]["error"] for name in ("strange", "batchless"))


@pytest.mark.parametrize("options", [{"rounds": 0}, {"rounds": True}, {"threads": 0}, {"threads": 1.5}])
def test_wrong_numbers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=rf"{next(iter(options))} must be 1 or more, got {next(iter(options.values()))}"
    ):
        time_rows({}, **options)


@pytest.mark.slow
def test_the_process_of_its_own(tmp_path: Path) -> None:
    request, output = tmp_path / "request.json", tmp_path / "times.json"
    folders = {"lam": str(save(tmp_path / "lam", hf_lam.convert(make_bert(), hf_lam.LamConfig())))}
    request.write_text(json.dumps({"folders": folders, "threads": 1}))
    command = [sys.executable, "-m", "hf_lam.comparing.timing", str(request), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "round 1 of" in done.stderr
    found = json.loads(output.read_text())
    assert found["threads"] == 1 and found["rows"]["lam"]["step_ms"]["median"] > 0
