"""A process may die at any moment of saving: the folder loads as before or as after, and nothing stays behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, modeling_utils

import hf_lam
from helpers.hosts import make_inputs, make_model
from hf_lam.modeling import saving_hf_lam
from hf_lam.modeling.saving_hf_lam import PARTIAL, is_alive, list_staged, remove_leftovers, saving, staging

# Of the tiny models: several files.
SHARDS = "30KB"
# What changes a folder, step by step.
STEPS = ("mkdir", "replace", "link", "unlink", "remove", "rmdir")


def make_saved(labels: int, config: Any, folder: Path, **options: Any) -> torch.Tensor:
    model = hf_lam.convert(make_model(BertForSequenceClassification, "bert", num_labels=labels), config)
    with torch.no_grad():
        model.classifier.weight.add_(labels)
        model.save_pretrained(folder, **options)
        return model(**make_inputs("bert")).logits


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two models that differ in mechanism, head and weights, each in one file and in several, and their logits."""
    root = tmp_path_factory.mktemp("saved")
    made: dict[str, Any] = {"root": root}
    for name, labels, config in (("before", 2, hf_lam.LamConfig()), ("after", 3, hf_lam.LocomtConfig(views="half"))):
        made[name] = make_saved(labels, config, root / name / "whole")
        make_saved(labels, config, root / name / "shards", max_shard_size=SHARDS)
        assert len(list((root / name / "shards").glob("*.safetensors"))) > 2
    return made


def which(folder: Path, saved: dict[str, Any]) -> str:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**make_inputs("bert")).logits
    return next(name for name in ("before", "after") if torch.equal(logits, saved[name]))


def save_over(source: Path, folder: Path) -> None:
    with saving(folder) as place:
        shutil.copytree(source, place, dirs_exist_ok=True)


def run_until(step: int, do: Callable[[], None]) -> bool:
    """Run in a process that dies before its n-th change of the disk; whether it came to its end."""
    pid = os.fork()
    if pid == 0:
        done = 0

        def counted(change: Callable[..., Any]) -> Callable[..., Any]:
            def changed(*args: Any, **kwargs: Any) -> Any:
                nonlocal done
                # The files of the code are many, and alike.
                if not str(args[-1]).endswith(".py"):
                    if done == step:
                        os.kill(os.getpid(), signal.SIGKILL)
                    done += 1
                return change(*args, **kwargs)

            return changed

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            do()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def check_every_step(saved: dict[str, Any], tmp_path: Path, before: str, after: str) -> None:
    source = saved["root"] / "after" / after
    seen = []
    for step in range(60):
        folder = tmp_path / str(step)
        shutil.copytree(saved["root"] / "before" / before, folder)
        (folder / "mine.txt").write_text("mine")
        is_done = run_until(step, lambda folder=folder: save_over(source, folder))
        seen.append(which(folder, saved))
        save_over(source, folder)
        assert {path.name for path in folder.iterdir()} == {"mine.txt", *(path.name for path in source.iterdir())}
        assert all((folder / path.name).read_bytes() == path.read_bytes() for path in source.iterdir())
        if is_done:
            break
    else:
        pytest.fail("it did not come to its end")
    assert seen == sorted(seen, reverse=True) and set(seen) == {"before", "after"}


@pytest.mark.slow
def test_killed_at_every_step(saved: dict[str, Any], tmp_path: Path) -> None:
    check_every_step(saved, tmp_path, "whole", "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("shards", "whole"), ("whole", "shards"), ("shards", "shards")])
def test_shards_killed_at_every_step(saved: dict[str, Any], tmp_path: Path, before: str, after: str) -> None:
    check_every_step(saved, tmp_path, before, after)


@pytest.mark.slow
def test_killed_at_every_step_without_hard_links(
    saved: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(saving_hf_lam.os, "link", refuse)
    check_every_step(saved, tmp_path, "whole", "whole")


def test_killed_before_there_was_a_model(saved: dict[str, Any], tmp_path: Path) -> None:
    source = saved["root"] / "after" / "whole"
    for step in range(5):
        folder = tmp_path / str(step)
        run_until(step, lambda folder=folder: save_over(source, folder))
        assert not (folder / "config.json").exists() or which(folder, saved) == "after"
        save_over(source, folder)
        assert not list(folder.glob(".*"))


def test_what_was_killed_is_saved_again_as_it_was(saved: dict[str, Any], tmp_path: Path) -> None:
    # The configuration names the weights in the folder of the dead process.
    folder = tmp_path / "folder"
    shutil.copytree(saved["root"] / "before" / "whole", folder)
    step = 0
    while "transformers_weights" not in json.loads((folder / "config.json").read_text()):
        run_until(step, lambda: save_over(saved["root"] / "after" / "whole", folder))
        step += 1
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.save_pretrained(tmp_path / "copy")
    model.save_pretrained(folder)
    for place in (folder, tmp_path / "copy"):
        assert which(place, saved) == "after"
        assert "transformers_weights" not in json.loads((place / "config.json").read_text())
        assert not list(place.glob(".*"))


def test_other_weights_do_not_shadow_those_that_were_saved(saved: dict[str, Any], tmp_path: Path) -> None:
    # transformers alone leaves model.safetensors beside the new shards, and loads it.
    for before, after in (("whole", "shards"), ("shards", "whole")):
        folder = tmp_path / after
        shutil.copytree(saved["root"] / "before" / before, folder)
        model = AutoModelForSequenceClassification.from_pretrained(saved["root"] / "after" / "whole")
        model.save_pretrained(folder, **({"max_shard_size": SHARDS} if after == "shards" else {}))
        assert which(folder, saved) == "after"
        assert {path.name for path in folder.glob("model*")} == {
            path.name for path in (saved["root"] / "after" / after).glob("model*")
        }


def test_a_save_that_fails_changes_nothing(
    saved: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(saved["root"] / "before" / "whole", folder)
    names = sorted(path.name for path in folder.iterdir())
    model = AutoModelForSequenceClassification.from_pretrained(saved["root"] / "after" / "whole")

    def fail(*args: Any, **options: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(modeling_utils, "safe_save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        model.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == names
    assert which(folder, saved) == "before"


def test_places_where_no_folder_can_be_are_said_before_anything_is_written(
    saved: dict[str, Any], tmp_path: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(saved["root"] / "after" / "whole")
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "model.safetensors").mkdir(parents=True)
    for name, message in (("file", "is none"), ("file/below/it", "file' is none"), ("folder", "has a folder 'model")):
        with pytest.raises(ValueError, match=message):
            model.save_pretrained(tmp_path / name)
    assert (tmp_path / "file").read_text() == "x"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["model.safetensors"]


def test_only_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    with staging(tmp_path, PARTIAL) as living:
        pid = os.fork()
        if pid == 0:
            with staging(tmp_path, PARTIAL):
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        (tmp_path / f"{PARTIAL}notes").mkdir()  # of somebody else
        assert len(list_staged(tmp_path, PARTIAL)) == 2
        assert [is_alive(folder) for folder in list_staged(tmp_path, PARTIAL)].count(True) == 1
        remove_leftovers(tmp_path, PARTIAL)
        assert list_staged(tmp_path, PARTIAL) == [living]
    remove_leftovers(tmp_path, PARTIAL)
    assert [path.name for path in tmp_path.iterdir()] == [f"{PARTIAL}notes"]


KILLED = """
import os, signal, sys
from transformers import AutoModelForSequenceClassification, modeling_utils
import hf_lam

def half(tensors, path, **options):
    with open(path, "wb") as stream:
        stream.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

modeling_utils.safe_save_file = half
AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""


@pytest.mark.slow
def test_killed_while_the_weights_are_written(saved: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(saved["root"] / "before" / "whole", folder)
    command = [sys.executable, "-c", KILLED, str(saved["root"] / "after" / "whole"), str(folder)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert which(folder, saved) == "before" and len(list_staged(folder, PARTIAL)) == 1
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(folder)
    assert which(folder, saved) == "before" and not list_staged(folder, PARTIAL)
