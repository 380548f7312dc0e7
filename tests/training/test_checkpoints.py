"""A checkpoint whose process died before it was whole is never gone on from."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.hf_lam_trainer import DROPOUT, make_bert, trainer_of
from helpers.lam_models import assert_same_weights, weights_of
from hf_lam.training.checkpoints import last_checkpoint

OPTIONS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
STATE = "trainer_state.json"


def damage(folder: Path, how: str) -> None:
    """What a process may leave of a checkpoint; `Trainer` writes the model first, and its state last."""
    if how == "no state":
        (folder / STATE).unlink()
    elif how == "half a state":
        (folder / STATE).write_bytes((folder / STATE).read_bytes()[:100])
    elif how == "half a model":
        shutil.rmtree(folder)
        (folder / ".saving.0123456789abcdef0123456789abcdef").mkdir(parents=True)
    else:
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of a run, and its model."""
    folder = tmp_path_factory.mktemp("run")
    model = make_bert(**DROPOUT)
    trainer_of(model, folder, **OPTIONS).train()
    return folder, model


@pytest.mark.parametrize(
    "how",
    ["half a state", *(pytest.param(how, marks=pytest.mark.slow) for how in ("no state", "half a model", "nothing"))],
)
def test_the_one_before_is_gone_on_from(how: str, uninterrupted: tuple[Path, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(uninterrupted[0], tmp_path / "run")
    damage(folder / "checkpoint-4", how)
    assert last_checkpoint(folder) == folder / "checkpoint-2"
    resumed = make_bert(seed=1, **DROPOUT)
    trainer = trainer_of(resumed, folder, **OPTIONS)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    assert_same_weights(weights_of(resumed), weights_of(uninterrupted[1]))
    assert last_checkpoint(folder) == folder / "checkpoint-4"


def test_without_a_whole_one_there_is_an_error(tmp_path: Path) -> None:
    trainer = trainer_of(make_bert(), tmp_path)
    (tmp_path / "checkpoint-4").mkdir()
    with pytest.raises(ValueError, match=r"no checkpoint in .* that was written to its end"):
        trainer.train(resume_from_checkpoint=True)


def test_steps_are_numbers(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-best", "checkpoint-11", "checkpoint-12-old"):
        (tmp_path / name).mkdir()
        if name != "checkpoint-11":
            (tmp_path / name / STATE).write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert last_checkpoint(tmp_path / "checkpoint-9") is None
