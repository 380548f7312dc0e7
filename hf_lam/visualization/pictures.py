"""All pictures of a model, as files with captions."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..modeling.injection_hf_lam import encoders_with, injected_encoders, injection_of, mechanism_of
from ._drawing import DOTS_PER_INCH, matplotlib_figure
from ._examples import Drawn, Example, draw_registered
from ._samples import check_sample, describe_model
from .heatmap import plot_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
# A file larger than this gets fewer colours, and then fewer pixels, unless it has hardly any left.
_LARGEST_FILE = 300_000
_LEAST_DOTS_PER_INCH = 60
# The longer side, in pixels.
_LARGEST_SIDE = 3000


def save_pictures(
    model: nn.Module,
    inputs: Mapping[str, Any] | None,
    folder: str | os.PathLike[str],
    *,
    format: str = "png",
    prefix: str = "",
    sample: int = 0,
    tokens: Sequence[str] | None = None,
) -> dict[str, str]:
    """Draw the pictures that fit the mechanisms of a model, and write them into a folder.

    | file | for models with |
    | --- | --- |
    | `masks`, `attention` | learnable masks |
    | `masks_on_image`, `attention_on_image` | learnable masks on the square patches of an image |
    | `views` | attention views |
    | `view_blocks` | attention views whose segments have a known number of tokens, or get one from `inputs` |
    | `synthetic_maps` | synthesised attention |
    | `synthetic_map_on_image` | synthesised attention on the square patches of an image |
    | `{mechanism}` | any other mechanism that has a picture of itself (`Mechanism.draw`) |

    If there are many layers, neighbours are drawn together, as their mean; if there are more than 12 views, those of
    the most heads are drawn, which the caption says. Every picture has a title that names the model. A mechanism that
    several encoders of the model have is left out; call this with each encoder instead. The same model and inputs give
    the same bytes. All pictures are drawn before the first is written, and each is written whole or not at all.

    Args:
        model: a model with mechanisms of hf_lam, or without: then there are no pictures.
        inputs: arguments of the model, `B` samples; moved to the model's device. None draws only the pictures that
            need no input: those of views, and what a mechanism draws of itself.
        folder: folder to write to; it is made if there is none. Files of the same names are replaced.
        format: "png" or "svg". Files get below 300 kB, if necessary with fewer colours and pixels.
        prefix: beginning of the files' names.
        sample: index of the sample among the `B`.
        tokens: names of the tokens of this sample (padding included), for models whose sequence is text alone.

    Returns:
        Captions by the name of the file: a sentence or two on what every picture shows.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the format is unknown, the prefix is a path, or there is no such sample or number of tokens.
            Nothing is written.

    Examples:
        >>> from hf_lam import LamConfig, convert
        >>> from hf_lam.flops import example_inputs
        >>> from hf_lam.visualization import save_pictures
        >>> model = convert("google/vit-base-patch16-224", LamConfig())
        >>> captions = save_pictures(model, example_inputs(model), "pictures")
        >>> sorted(captions)
        ['attention.png', 'attention_on_image.png', 'masks.png', 'masks_on_image.png']
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown: choose one of {', '.join(FORMATS)}.")
    if "/" in prefix or "\\" in prefix:
        raise ValueError(f"prefix={prefix!r} is a path; give folder={str(folder)!r} more parts instead.")
    matplotlib_figure()
    one = None if inputs is None else _pick_sample(model, inputs, sample)
    pictures: dict[str, Drawn] = {}
    for name in dict.fromkeys(name for base in injected_encoders(model) for name in injection_of(base).configs):
        encoders = encoders_with(model, name)
        if len(encoders) == 1:
            pictures |= draw_registered(name, Example(model, encoders[0], one, tokens))
            picture = mechanism_of(encoders[0], name).draw()
            if picture is not None:
                title = f"{picture.label}: {name} of {describe_model(model)}"
                pictures[f"{name}_weights" if name in pictures else name] = (
                    plot_picture(picture, title),
                    picture.caption,
                )
    named = {f"{prefix}{name}.{format}": picture for name, picture in pictures.items()}
    _write({name: _as_file(figure, format) for name, (figure, _) in named.items()}, Path(folder))
    return {name: caption for name, (_, caption) in named.items()}


def _pick_sample(model: nn.Module, inputs: Mapping[str, Any], sample: int) -> dict[str, Any]:
    """Only this sample is computed: the others' attention would only take memory."""
    device = next(model.parameters()).device
    moved = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    sizes = [x.shape[0] for x in moved.values() if isinstance(x, torch.Tensor) and x.dim()]
    if not sizes:
        raise ValueError(f"inputs must hold the tensors that the model is called with, got {sorted(moved)}.")
    check_sample(sample, max(sizes))
    return {
        name: x[sample : sample + 1] if isinstance(x, torch.Tensor) and x.dim() and x.shape[0] == max(sizes) else x
        for name, x in moved.items()
    }


# --- files -----------------------------------------------------------------------------------------------------------


def _as_file(figure: Figure, format: str) -> bytes:
    """The bytes of a file, the same for the same picture; of a lot of detail in fewer colours, then fewer pixels."""
    dots = min(DOTS_PER_INCH, _LARGEST_SIDE / max(figure.get_size_inches()))
    while True:
        data = _rendered(figure, format, dots)
        if len(data) > _LARGEST_FILE and format == "png":
            data = _in_few_colours(data)
        if len(data) <= _LARGEST_FILE or dots <= _LEAST_DOTS_PER_INCH:
            return data
        dots = max(_LEAST_DOTS_PER_INCH, 0.95 * dots * (_LARGEST_FILE / len(data)) ** 0.5)


def _in_few_colours(data: bytes) -> bytes:
    """A PNG in the 256 colours that come closest, a third as large."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").quantize(256).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _rendered(figure: Figure, format: str, dots: float) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # SVG names its parts by random numbers, and both formats would say when or with what they were made.
    with matplotlib.rc_context({"svg.hashsalt": "hf_lam"}):
        if format == "svg":
            figure.savefig(buffer, format=format, dpi=dots, metadata={"Date": None})
        else:
            smallest = {"compress_level": 9}
            figure.savefig(buffer, format=format, dpi=dots, metadata={"Software": None}, pil_kwargs=smallest)
    return buffer.getvalue()


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    if not files:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pictures.") as partial:
        for name, data in files.items():
            written = Path(partial, name)
            written.write_bytes(data)
            os.replace(written, folder / name)
