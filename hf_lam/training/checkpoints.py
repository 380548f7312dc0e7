"""The checkpoint that training goes on from."""

from __future__ import annotations

import json
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

logger = logging.get_logger(__name__)


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint in the folder of a run that was written to its end; None if there is none.

    `Trainer` writes its state last. transformers' `get_last_checkpoint` also takes one whose process died before that.
    """
    steps = sorted(
        (int(path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")), path)
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.is_dir() and path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdecimal()
    )
    for _, path in reversed(steps):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            logger.warning(f"{path} was not written to its end and is passed over.")
        else:
            return path
    return None
