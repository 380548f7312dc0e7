"""The pictures of a model for one input, as HTML."""

from __future__ import annotations

import base64
import tempfile
from html import escape
from pathlib import Path
from typing import Any

from shelf import Loaded, Sample

from hf_lam.modeling.injection_hf_lam import injected_encoders
from hf_lam.visualization import save_pictures

# What is shown first: what a mechanism does, and then what it is.
_FIRST = ("attention", "masks", "views", "view_blocks", "synthetic")


def draw_maps(loaded: Loaded, sample: Sample) -> str:
    """Every picture that fits the mechanisms of a model, with its caption.

    Raises:
        ValueError: if the model has no mechanisms.
    """
    if not injected_encoders(loaded.model):
        raise ValueError(
            f"{type(loaded.model).__name__} has no mechanism of hf_lam, so there is nothing to draw. Views can be "
            "tried on it all the same; hf_lam.convert gives it one."
        )
    with tempfile.TemporaryDirectory() as folder:
        captions = save_pictures(loaded.model, sample.inputs, folder, tokens=sample.tokens)
        names = sorted(captions, key=_place)
        return figures([((Path(folder) / name).read_bytes(), captions[name]) for name in names])


def figures(pictures: list[tuple[bytes, str]]) -> str:
    """PNG files with captions, below each other."""
    return "".join(
        f'<figure class="map"><img src="data:image/png;base64,{base64.b64encode(data).decode()}" '
        f'alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
        for data, caption in pictures
    )


def _place(name: str) -> tuple[Any, ...]:
    ranks = [rank for rank, first in enumerate(_FIRST) if name.startswith(first)]
    return (ranks or [len(_FIRST)])[0], name
