"""The folder that the demo writes: what is in it, and that nothing else is overwritten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

SUMMARY_FILE = "demo.json"
MASKS_PICTURE = "masks.png"
PATCHES_PICTURE = "masks_on_digit.png"
VIEWS_PICTURE = "views.png"
MAPS_PICTURE = "synthetic_maps.png"
PATCH_PICTURE = "synthetic_map_on_digit.png"
SAMPLE_PICTURE = "digit.png"
# Where the models with attention views and with synthesised attention go, inside of the output.
LOCOMT_FOLDER = "locomt"
STT_FOLDER = "stt"
FOLDERS = (LOCOMT_FOLDER, STT_FOLDER)


def check_output(output: Path) -> None:
    """Raises a `ValueError` if writing to `output` would overwrite or mix with anything but an earlier demo."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{str(output)!r} is a file; --output needs a folder.")
    present = list_names(output) if output.is_dir() else []
    foreign = sorted(set(present) - list_earlier_files(output))
    if foreign:
        raise ValueError(
            f"{str(output)!r} is not empty and was not written by an earlier demo: it holds {', '.join(foreign[:5])}"
            f"{', …' if len(foreign) > 5 else ''}. Choose another folder with --output, or empty this one."
        )


def list_names(folder: Path) -> list[str]:
    """List the names in the folder, and in those of the models inside of it, sorted."""
    names = []
    for path in folder.iterdir():
        if path.name in FOLDERS and path.is_dir():
            names += [f"{path.name}/{inner.name}" for inner in path.iterdir()]
        else:
            names.append(path.name)
    return sorted(names)


def list_earlier_files(output: Path) -> set[str]:
    """List the files that an earlier demo wrote, by its summary."""
    try:
        return set(json.loads((output / SUMMARY_FILE).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def publish(partial: Path, output: Path) -> None:
    """Move the complete files into their folder; what an earlier demo wrote goes."""
    for name in FOLDERS:
        (output / name).mkdir(parents=True, exist_ok=True)
    outdated = list_earlier_files(output)
    for name in list_names(output):
        if name in outdated:
            (output / name).unlink()
    for name in list_names(partial):
        shutil.move(partial / name, output / name)
