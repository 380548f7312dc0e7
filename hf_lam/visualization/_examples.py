"""The sample that `save_pictures` draws from, and the functions that draw what fits a mechanism."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import nn

from ..modeling.injection_hf_lam import injection_of
from ..observing import fused_tokens_of
from ._samples import (
    ShownTokens,
    describe_groups,
    find_patch_grid,
    group_layers,
    is_of_patches,
    number_of_layers,
    of_each_layer,
    pixels_of,
    shown_tokens,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A picture and its caption.
Drawn = tuple["Figure", str]


class Example:
    """The sample that is drawn for one encoder.

    Args:
        model: model to call with the inputs.
        base: its encoder with mechanisms.
        inputs: the sample, the only one of them; None for pictures that need none.
        tokens: names of its tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        base: Any,
        inputs: Mapping[str, Any] | None,
        tokens: Sequence[str] | None,
    ) -> None:
        self.model = model
        self.base = base
        self.inputs = inputs
        self.tokens = tokens

    @cached_property
    def shown(self) -> ShownTokens:
        """The tokens that the encoder sees, without those that a mechanism appends. Needs inputs."""
        assert self.inputs is not None
        with fused_tokens_of(self.base) as fused:
            length = of_each_layer(self.model, self.base, self.inputs, lambda given: given.hidden_states.shape[1])[0]
        appended = sum(config.appended_tokens for config in injection_of(self.base).configs.values())
        return shown_tokens(self.base, self.inputs, 0, length - appended, fused)

    @property
    def grid(self) -> tuple[int, int] | None:
        """The patches of the image whose tokens the encoder sees; None if there is no such image. Needs inputs."""
        assert self.inputs is not None
        if self.inputs.get("pixel_values") is None:
            return None
        grid = find_patch_grid(self.model, pixels_of(self.inputs, 0))
        return grid if grid is not None and is_of_patches(self.model, len(self.shown.kept), grid) else None

    def describe_layers(self, most: int) -> str:
        """Describe which layers a picture with at most so many panels shows."""
        return describe_groups(group_layers(None, number_of_layers(self.base), most))


_DRAWING: dict[str, list[Callable[[Example], dict[str, Drawn]]]] = {}


def register_pictures(name: str, draw: Callable[[Example], dict[str, Drawn]]) -> None:
    """Have `save_pictures` draw something for models with the mechanism `name`: pictures by the names of their files.

    What needs inputs is left out where there are none.
    """
    _DRAWING.setdefault(name, []).append(draw)


def draw_registered(name: str, example: Example) -> dict[str, Drawn]:
    """The registered pictures of the mechanism `name`."""
    return {file: picture for draw in _DRAWING.get(name, ()) for file, picture in draw(example).items()}
