"""Learned masks as pictures. Every function returns a matplotlib `Figure`; saving it is the caller's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .parameters import only_injected_encoder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

COLOURS = "RdBu_r"
# A mask that is 1 all over would otherwise be stretched to full colours by rounding errors.
SMALLEST_HALF_RANGE = 1e-3


def learned_masks(model: nn.Module, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The masks that `model` computes for `inputs`.

    Args:
        model: a model with learnable attention masks in one encoder.
        inputs: what the model is called with, such as `{"pixel_values": ...}` or a tokenizer's output.

    Returns:
        One tensor per mask, `(B, 1, L, L)` or with `per_head` `(B, H, L, L)`: one per layer, or a single one with
        `scope="shared"`. The model is left as it was; nothing records gradients.

    Raises:
        ValueError: if the model does not have masks in exactly one encoder.
    """
    mechanisms: Any = only_injected_encoder(model).hf_lam
    masks: dict[int, torch.Tensor] = {}

    def keep(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args[0] == "mask":
            masks[args[2]] = output.float().cpu()

    handle = mechanisms.register_forward_hook(keep)
    try:
        with torch.no_grad(), _evaluation_mode(model):
            model(**inputs)
    finally:
        handle.remove()
    return [masks[index] for index in sorted(masks)]


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Module by module: a frozen part may be in evaluation mode inside a model that trains.
        for module, mode in modes:
            module.training = mode


def plot_masks(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    sample: int = 0,
    head: int | None = None,
    tokens: Sequence[str] | None = None,
) -> Figure:
    """Heat maps of the masks of one sample: one panel per layer, or a single one for a shared mask.

    White is 1, which leaves a score as it is; red strengthens it, blue weakens it or, below 0, turns it around. All
    panels have the same scale. Padding is cut off.

    Args:
        model: a model with learnable attention masks.
        inputs: what the model is called with; `B` samples of `L` tokens.
        sample: which of the `B`.
        head: with `per_head` masks, which head; `None` is the mean over heads.
        tokens: `L` names for the axes (padding included), for example `tokenizer.convert_ids_to_tokens(...)`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the model has no masks, or there is no such sample, head or number of tokens.
    """
    figure_class = _matplotlib_figure()
    masks = [_of_sample(mask, sample, head) for mask in learned_masks(model, inputs)]
    length = masks[0].shape[-1]
    if tokens is not None and len(tokens) != length:
        raise ValueError(f"tokens must name all {length} tokens of the sequence, got {len(tokens)}.")
    kept = _unpadded(inputs, sample, length)
    masks = [mask[kept][:, kept] for mask in masks]
    names = None if tokens is None else [name for name, keep in zip(tokens, kept.tolist(), strict=True) if keep]

    columns = min(len(masks), 4)
    rows = -(-len(masks) // columns)
    figure = figure_class(figsize=(2.6 * columns + 0.9, 2.6 * rows + 0.5), layout="constrained", dpi=150)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    colours = _colours(masks)
    for index, (panel, mask) in enumerate(zip(panels, masks, strict=False)):
        panel.imshow(mask.numpy(), cmap=colours.cmap, norm=colours.norm, interpolation="nearest")
        panel.set_title(_title(index, len(masks)), fontsize=9)
        _name_axes(panel, names)
    for panel in panels[len(masks) :]:
        panel.remove()
    figure.supxlabel("key token", fontsize=9)
    figure.supylabel("query token", fontsize=9)
    figure.colorbar(colours, ax=panels[: len(masks)], label="mask M", shrink=0.8, pad=0.01)
    return figure


def plot_mask_on_image(
    model: nn.Module, inputs: Mapping[str, Any], *, sample: int = 0, head: int | None = None, query: int | None = None
) -> Figure:
    """Where on the image the masks strengthen attention, and where they weaken it.

    The image, and beside it for each mask its value at every patch (as a key), laid over the image.

    Args:
        model: a model with learnable attention masks on square image patches, such as a ViT.
        inputs: what the model is called with; its `pixel_values` are `(B, C, height, width)`.
        sample: which of the `B`.
        head: with `per_head` masks, which head; `None` is the mean over heads.
        query: the token that attends: 0 is `[CLS]`; `None` is the mean over all tokens.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the tokens are not the patches of one image, or there is no such sample, head or query.
    """
    figure_class = _matplotlib_figure()
    masks = [_of_sample(mask, sample, head) for mask in learned_masks(model, inputs)]
    pixels = inputs["pixel_values"][sample].detach().float().cpu()
    grid = _patch_grid(model, pixels, masks[0].shape[-1])
    if query is not None and not 0 <= query < masks[0].shape[-1]:
        raise ValueError(f"query must be a token from 0 to {masks[0].shape[-1] - 1}, got {query}.")
    rows = [mask.mean(dim=0) if query is None else mask[query] for mask in masks]
    patches = [row[-grid[0] * grid[1] :].reshape(grid) for row in rows]

    columns = min(len(patches) + 1, 5)
    lines = -(-(len(patches) + 1) // columns)
    figure = figure_class(figsize=(1.9 * columns + 0.8, 2.1 * lines), layout="constrained", dpi=150)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel in panels:
        panel.set_axis_off()
    grey = _brightness(pixels)
    panels[0].imshow(grey.numpy(), cmap="gray", vmin=0, vmax=1)
    panels[0].set_title("input", fontsize=9)
    colours = _colours(patches)
    for index, (panel, patch_values) in enumerate(zip(panels[1:], patches, strict=False)):
        rgb = torch.from_numpy(colours.to_rgba(_enlarged(patch_values, grey.shape).numpy())[..., :3])
        # The colour says what the mask does, its brightness what the image shows; dark places keep half of theirs.
        panel.imshow((rgb * (0.5 + 0.5 * grey.unsqueeze(-1))).numpy())
        panel.set_title(_title(index, len(patches)), fontsize=9)
    figure.colorbar(colours, ax=panels, label="mask M", shrink=0.8, pad=0.01)
    return figure


def _matplotlib_figure() -> type[Figure]:
    """matplotlib's `Figure`, without pyplot: nothing global is touched and no display is needed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib. Run `pip install "hf-lam[viz]"`.') from error
    return Figure


def _of_sample(mask: torch.Tensor, sample: int, head: int | None) -> torch.Tensor:
    """`(B, 1 or H, L, L)` to the `(L, L)` of one sample and head, or of the mean over heads."""
    batch, heads = mask.shape[:2]
    if not 0 <= sample < batch:
        raise ValueError(f"sample must be from 0 to {batch - 1} (the inputs hold {batch}), got {sample}.")
    if head is None:
        return mask[sample].mean(dim=0)
    if heads == 1:
        raise ValueError(f"head={head} was asked for, but the masks are the same for all heads; leave head out.")
    if not 0 <= head < heads:
        raise ValueError(f"head must be from 0 to {heads - 1}, got {head}.")
    return mask[sample, head]


def _unpadded(inputs: Mapping[str, Any], sample: int, length: int) -> torch.Tensor:
    """Which of the `L` tokens are not padding, `(L,)` of bool."""
    attention_mask = inputs.get("attention_mask")
    if attention_mask is None or attention_mask.dim() != 2 or attention_mask.shape[1] != length:
        return torch.ones(length, dtype=torch.bool)
    return attention_mask[sample].bool().cpu()


def _patch_grid(model: nn.Module, pixels: torch.Tensor, length: int) -> tuple[int, int]:
    """Patches down and across. The `L` tokens are those patches, and before them at most a few prefix tokens."""
    patch = getattr(getattr(model, "config", None), "patch_size", None)
    if not isinstance(patch, int) or pixels.dim() != 3:
        raise ValueError(
            f"{type(model).__name__} does not read images in square patches (config.patch_size={patch!r}, "
            f"{pixels.dim()} dimensions of pixel values a sample instead of 3); use plot_masks."
        )
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    if not rows * columns <= length <= rows * columns + 5:
        raise ValueError(
            f"{length} tokens are not the {rows} × {columns} patches of the image and a few prefix tokens; use "
            "plot_masks."
        )
    return rows, columns


def _colours(masks: Sequence[torch.Tensor]) -> ScalarMappable:
    """One scale for all of them, with its middle at 1."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import CenteredNorm

    half_range = max(SMALLEST_HALF_RANGE, *(float((mask - 1).abs().max()) for mask in masks))
    return ScalarMappable(CenteredNorm(vcenter=1, halfrange=half_range), COLOURS)


def _brightness(pixels: torch.Tensor) -> torch.Tensor:
    """`(C, height, width)` in any range to `(height, width)` from 0 to 1."""
    grey = pixels.mean(dim=0)
    return (grey - grey.min()) / (grey.max() - grey.min()).clamp(min=1e-12)


def _enlarged(patches: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """`(rows, columns)` to `(height, width)`, every patch in one colour."""
    return nn.functional.interpolate(patches[None, None], size=tuple(size), mode="nearest")[0, 0]


def _title(index: int, masks: int) -> str:
    return "all layers" if masks == 1 else f"layer {index}"


def _name_axes(panel: Axes, names: Sequence[str] | None) -> None:
    if names is None:
        panel.tick_params(labelsize=7)
        panel.locator_params(integer=True, nbins=6)
        return
    panel.set_xticks(range(len(names)), labels=list(names), rotation=90, fontsize=6)
    panel.set_yticks(range(len(names)), labels=list(names), fontsize=6)
