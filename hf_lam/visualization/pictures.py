"""All pictures of a model, as files with captions."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ..modeling.configuration_hf_lam import LocomtConfig
from ..observing import modality_tokens_of
from ._drawing import matplotlib_figure
from ._samples import (
    Attending,
    ShownTokens,
    check_sample,
    encoders_with,
    find_patch_grid,
    is_of_patches,
    number_of_layers,
    of_each_layer,
    pixels_of,
    shown_tokens,
    spread_layers,
)
from .attention import MOST_LAYERS, plot_attention, plot_attention_on_image
from .maps import plot_map_on_image, plot_synthetic_maps
from .masks import plot_mask_on_image, plot_masks
from .views import distinct_views, plot_view_blocks, plot_views, views_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
# Layers and views in one picture.
_MOST_PANELS = 12
# A file larger than this is drawn again with fewer pixels, unless it has hardly any left.
_LARGEST_FILE = 1_000_000
_DOTS_PER_INCH, _LEAST_DOTS_PER_INCH = 150, 60
# The longer side, in pixels.
_LARGEST_SIDE = 3000

# A picture and its caption.
_Picture = tuple["Figure", str]


class _Example(NamedTuple):
    """The sample that is drawn: the only one of its inputs, and names of its tokens."""

    inputs: Mapping[str, Any]
    tokens: Sequence[str] | None


class _Seen(NamedTuple):
    """What an encoder sees of the example.

    shown: its tokens, without those that a bottleneck appends.
    segments: the segment of each token, those of the bottleneck included, `(L',)`; None without views.
    """

    shown: ShownTokens
    segments: torch.Tensor | None

    @property
    def length(self) -> int:
        return len(self.shown.kept)

    def tokens(self) -> str:
        """How many tokens the pictures show, in words."""
        count = int(self.shown.kept.sum())
        parts = ", ".join(f"{number} of {name}" for name, number in self.shown.modalities.items())
        return f"{count} tokens ({parts})" if parts else f"{count} tokens"


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
    """Draw what fits the mechanisms of a model, and write the pictures into a folder.

    | file | for models with |
    | --- | --- |
    | `masks`, `attention` | learnable masks |
    | `masks_on_image`, `attention_on_image` | learnable masks on the square patches of an image |
    | `views` | attention views |
    | `view_blocks` | attention views whose segments have a known number of tokens, or get one from `inputs` |
    | `synthetic_maps` | synthesised attention |
    | `synthetic_map_on_image` | synthesised attention on the square patches of an image |

    Of more than 12 layers (6 for attention) or views some are drawn, which the caption says. A mechanism that several
    encoders of the model have is left out; call this with each encoder instead. The same model and inputs give the
    same bytes. All pictures are drawn before the first is written, and each is written whole or not at all.

    Args:
        model: a model with mechanisms of hf_lam, or without: then there are no pictures.
        inputs: what the model is called with, `B` samples; moved to the model's device. None draws only the pictures
            that need no input: those of views.
        folder: where to; it is made if there is none. Files of the same names are replaced.
        format: "png" or "svg". Files get below 1 MB, if necessary with fewer pixels.
        prefix: what the names of the files begin with.
        sample: which of the `B`.
        tokens: names of the tokens of this sample (padding included), for models whose sequence is text alone.

    Returns:
        For every file that was written, by its name, a caption of a sentence or two that says what it shows.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the format is unknown, the prefix is a path, or there is no such sample or number of tokens.
            Nothing is written.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown: choose one of {', '.join(FORMATS)}.")
    if "/" in prefix or "\\" in prefix:
        raise ValueError(f"prefix={prefix!r} is a path; give folder={str(folder)!r} more parts instead.")
    matplotlib_figure()
    example = None if inputs is None else _example(model, inputs, sample, tokens)
    pictures: dict[str, _Picture] = {}
    for mechanism, draw in (("lam", _of_masks), ("locomt", _of_views), ("stt", _of_maps)):
        encoders = encoders_with(model, mechanism)
        if len(encoders) == 1:
            pictures |= draw(model, encoders[0], example)
    named = {f"{prefix}{name}.{format}": picture for name, picture in pictures.items()}
    _write({name: _as_file(figure, format) for name, (figure, _) in named.items()}, Path(folder))
    return {name: caption for name, (_, caption) in named.items()}


# --- the example -----------------------------------------------------------------------------------------------------


def _example(model: nn.Module, inputs: Mapping[str, Any], sample: int, tokens: Sequence[str] | None) -> _Example:
    """Only this sample is computed: the others' attention would only take memory."""
    device = next(model.parameters()).device
    moved = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    sizes = [x.shape[0] for x in moved.values() if isinstance(x, torch.Tensor) and x.dim()]
    if not sizes:
        raise ValueError(f"inputs must hold the tensors that the model is called with, got {sorted(moved)}.")
    check_sample(sample, max(sizes))
    of_sample = {
        name: x[sample : sample + 1] if isinstance(x, torch.Tensor) and x.dim() and x.shape[0] == max(sizes) else x
        for name, x in moved.items()
    }
    return _Example(of_sample, tokens)


def _see(model: nn.Module, base: Any, example: _Example) -> _Seen:
    def look(attending: Attending) -> tuple[int, torch.Tensor | None]:
        layout = attending.call.forward_call.layout
        return attending.call.hidden_states.shape[1], None if layout is None else layout.ids().cpu()

    with modality_tokens_of(base) as fused:
        length, ids = of_each_layer(model, base, example.inputs, look)[0]
    locomt = base._hf_lam_configs.locomt
    if locomt is not None:
        length -= locomt.bottleneck_tokens * locomt.is_global.count(False)
    shown = shown_tokens(base, example.inputs, 0, length, fused)
    return _Seen(shown, None if ids is None else ids[0])


def _grid(model: nn.Module, example: _Example, length: int) -> tuple[int, int] | None:
    """The patches of the image whose tokens the encoder sees; None if there is no such image."""
    if example.inputs.get("pixel_values") is None:
        return None
    grid = find_patch_grid(model, pixels_of(example.inputs, 0))
    return grid if grid is not None and is_of_patches(length, grid) else None


# --- what fits a mechanism -------------------------------------------------------------------------------------------


def _of_masks(model: nn.Module, base: Any, example: _Example | None) -> dict[str, _Picture]:
    if example is None:
        return {}
    seen = _see(model, base, example)
    config = base._hf_lam_configs.lam
    count = 1 if config.scope == "shared" else number_of_layers(base)
    layers = spread_layers(count, _MOST_PANELS)
    whose = "that all layers share" if config.scope == "shared" else f"of {_layers(layers, count)}"
    heads, and_heads = (", mean over heads", " and heads") if config.per_head else ("", "")
    pictures = {
        "masks": (
            plot_masks(model, example.inputs, layers=layers, tokens=example.tokens),
            f"The learnable mask {whose}{heads}, for an example of {seen.tokens()}: white is 1 and leaves an "
            "attention score as it is, red strengthens it, blue weakens it.",
        )
    }
    grid = _grid(model, example, seen.length)
    if grid is not None:
        pictures["masks_on_image"] = (
            plot_mask_on_image(model, example.inputs, layers=layers),
            f"The learnable mask {whose}, mean over queries{and_heads}, on the {grid[0]} × {grid[1]} patches of an "
            "image: red patches have their scores strengthened, blue ones weakened, white ones left as they are.",
        )
    count = number_of_layers(base)
    layers = spread_layers(count, MOST_LAYERS)
    pictures["attention"] = (
        plot_attention(model, example.inputs, layers=layers, tokens=example.tokens),
        f"Attention of {_layers(layers, count)}, mean over heads, for an example of {seen.tokens()}: "
        "with the learnable mask, without it, and the difference (red is more weight with the mask, blue is less, "
        "white is the same).",
    )
    if grid is not None:
        pictures["attention_on_image"] = (
            plot_attention_on_image(model, example.inputs, layers=layers),
            f"Where the first token looks in {_layers(layers, count)}, mean over heads, on the "
            f"{grid[0]} × {grid[1]} patches of an image, with the learnable mask (above) and without it (below): "
            "pink is much weight, light blue is none.",
        )
    return pictures


def _of_views(model: nn.Module, base: Any, example: _Example | None) -> dict[str, _Picture]:
    config, known = views_in(base)
    count = number_of_layers(base)
    pictures = {
        "views": (
            plot_views(base),
            f"The attention view of every head in {_layers(range(count), count)}: which of the "
            f"segments {', '.join(config.names)} attend to which, in one colour for each view.",
        )
    }
    lengths: Sequence[int] | None = known
    if known is None and example is not None:
        lengths = _lengths(config, _see(model, base, example))
    if lengths is not None:
        views = len(distinct_views(config))
        which = f"the {views} views" if views > 1 else "the only view"
        if views > _MOST_PANELS:
            which = f"{_MOST_PANELS} of the {views} views, those of the most heads"
        example_of = "" if known is not None else "an example of "
        pictures["view_blocks"] = (
            plot_view_blocks(base, None if known is not None else lengths, most=_MOST_PANELS),
            f"Which tokens see which under {which}, for {example_of}{sum(lengths)} tokens in {len(lengths)} segments: "
            "blue is seen, grey is not, orange is a query that sees nothing.",
        )
    return pictures


def _lengths(config: LocomtConfig, seen: _Seen) -> list[int]:
    """Tokens of each segment in the example, without padding; those of the bottleneck are no padding."""
    assert seen.segments is not None
    appended = len(seen.segments) - seen.length
    kept = torch.cat([seen.shown.kept, torch.ones(appended, dtype=torch.bool)])
    return seen.segments[kept].bincount(minlength=len(config.names)).tolist()


def _of_maps(model: nn.Module, base: Any, example: _Example | None) -> dict[str, _Picture]:
    if example is None:
        return {}
    seen = _see(model, base, example)
    places = base._hf_lam_configs.stt.grid
    count = number_of_layers(base)
    layers = spread_layers(count, _MOST_PANELS)
    of = f"of {_layers(layers, count)}"
    is_text = len(places) == 1
    factors = "" if is_text else f" as factors along the axes of the {' × '.join(map(str, places))} grid,"
    pictures = {
        "synthetic_maps": (
            plot_synthetic_maps(model, example.inputs, layers=layers, tokens=example.tokens if is_text else None),
            f"The synthetic attention maps {of},{factors} mean over heads, for an example of {seen.tokens()}: rows "
            "look, columns are seen; yellow is much weight, dark blue is none.",
        )
    }
    grid = _grid(model, example, seen.length)
    if grid is not None and tuple(places) == grid:
        middle = grid[0] // 2, grid[1] // 2
        share = "; titles say how much of it goes to patches at all" if seen.length > grid[0] * grid[1] else ""
        pictures["synthetic_map_on_image"] = (
            plot_map_on_image(model, example.inputs, query=middle, layers=layers),
            f"Where the framed patch looks in the synthetic attention maps {of}, mean over heads, on the {grid[0]} × "
            f"{grid[1]} patches of an image: pink is much weight, light blue is none{share}.",
        )
    return pictures


def _layers(layers: Sequence[int], count: int) -> str:
    if count == 1:
        return "the only layer"
    return f"{'' if len(layers) == count else f'{len(layers)} of '}the {count} layers, layer by layer"


# --- files -----------------------------------------------------------------------------------------------------------


def _as_file(figure: Figure, format: str) -> bytes:
    """The bytes of a file, the same for the same picture; of pictures with a lot of detail with fewer pixels."""
    dots = min(_DOTS_PER_INCH, _LARGEST_SIDE / max(figure.get_size_inches()))
    while True:
        data = _rendered(figure, format, dots)
        if len(data) <= _LARGEST_FILE or dots <= _LEAST_DOTS_PER_INCH:
            return data
        dots = max(_LEAST_DOTS_PER_INCH, 0.95 * dots * (_LARGEST_FILE / len(data)) ** 0.5)


def _rendered(figure: Figure, format: str, dots: float) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # SVG names its parts by random numbers, and both formats would say when or with what they were made.
    with matplotlib.rc_context({"svg.hashsalt": "hf_lam"}):
        metadata = {"Date": None} if format == "svg" else {"Software": None}
        figure.savefig(buffer, format=format, dpi=dots, metadata=metadata)
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
