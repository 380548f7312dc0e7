# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The options of synthesised attention (STT), and what it says of itself.

Source: Zhu et al., "Synthesizer Based Efficient Self-Attention for Vision Tasks" (STT), arXiv 2201.01410; after
Tay et al., "Synthesizer", arXiv 2005.00743.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from .hosts_hf_lam import Host
from .mechanism_hf_lam import REPLACEMENT, SCORES, MechanismConfig
from .option_checks_hf_lam import MOST, check_bool, check_choice, check_positive_or_none, is_count

SYNTHESIZERS = ("dense", "random", "factorized_dense", "factorized_random")


@dataclass(frozen=True)
class SttConfig(MechanismConfig):
    """Synthesised attention on the token grid (STT; Zhu et al., arXiv 2201.01410; after Synthesizer, 2005.00743).

    The tokens lie on a grid of `n_1 × … × n_k`. One row-stochastic matrix `A_a = softmax(S_a)` for every axis and head
    is synthesised without queries and keys, and applied as a mode product: `Y = V ×_1 A_1 … ×_k A_k`.

    Args:
        variant: where `S_a` comes from.

            - `"mixture"`: the way there from a pretrained checkpoint. Scores are `(1 − λ) · QKᵀ/sqrt(D) + λ · log P`,
              with `P` the map of `synthesizer`, and one `λ` a head, which starts at 0, the original attention.
            - `"dense"`: `W2 · relu(W1 · x̄)`, with `x̄` the mean of the tokens over the other axes;
            - `"random"`: a parameter, the same for every input;
            - `"factorized_dense"`: two short synthesised vectors, whose products fill a row;
            - `"factorized_random"`: a product of two parameters, of rank `rank`.

            All but the mixture drop the query and key projections, and change the model's outputs at once.
        synthesizer: variant that a mixture mixes in; `None` is `"dense"`. Only for a mixture.
        grid: sizes of the axes, the last one runs fastest; `None` takes it from the host: (rows, columns) of an image,
            (steps, rows, columns) of a video, and the longest text, of which shorter ones take a part. One with as
            many axes is for inputs of that size, whatever size the host is configured for.
        prefix_tokens: tokens before the grid, such as `[CLS]`; `None` takes them from the host. A row of the grid
            spends a learned share on them, and they spend the rest of theirs on one synthesised vector an axis.
        bottleneck_size: width of `W1` in the dense variants; `None` is the size of a head.
        factors: the sizes `[s, t]` with `s · t = n_a` of the two vectors of `"factorized_dense"`, for every axis;
            `None` takes those nearest to each other.
        rank: rank of `"factorized_random"`; `None` is 8.
        frozen: keep the parameters of a random variant as they were drawn.
        train_mixing: make `λ` a trained parameter, clamped to [0, 1]. Without it,
            `hf_lam.training.SttAnnealingCallback` moves `λ`.

    Raises:
        ValueError: for a value outside the above, or an option without a meaning for the variant; the message names
            it.
    """

    variant: str = "mixture"
    synthesizer: str | None = None
    grid: list[int] | None = None
    prefix_tokens: int | None = None
    bottleneck_size: int | None = None
    factors: list[list[int]] | None = None
    rank: int | None = None
    frozen: bool = False
    train_mixing: bool = False

    # A replacement of the scores comes before changes of them.
    order: ClassVar[int] = -1
    title: ClassVar[str] = "Synthesised attention"
    arxiv: ClassVar[str] = "2201.01410"
    citation: ClassVar[str] = """@article{zhu2022stt,
  title   = {Synthesizer Based Efficient Self-Attention for Vision Tasks},
  author  = {Zhu, Guangyang and Zhang, Jianfeng and Feng, Yuanzhi and Lan, Hai},
  journal = {arXiv:2201.01410},
  year    = {2022}
}"""

    def __post_init__(self) -> None:
        check_choice(self, "variant", ("mixture", *SYNTHESIZERS))
        if self.is_mixture and self.synthesizer is None:
            object.__setattr__(self, "synthesizer", "dense")
        if self.is_mixture:
            check_choice(self, "synthesizer", SYNTHESIZERS)
        elif self.synthesizer == self.variant:  # what `replace(mixture, variant=...)` leaves
            object.__setattr__(self, "synthesizer", None)
        for name in ("bottleneck_size", "rank"):
            check_positive_or_none(self, name)
        for name in ("frozen", "train_mixing"):
            check_bool(self, name)
        if self.prefix_tokens is not None and not is_count(self.prefix_tokens, 0):
            raise ValueError(
                f"SttConfig: prefix_tokens must be None or an integer from 0 to {MOST:,}, got {self.prefix_tokens!r}."
            )
        if self.grid is not None:
            if not isinstance(self.grid, (list, tuple)) or not self.grid or not all(is_count(n, 1) for n in self.grid):
                raise ValueError(
                    f"SttConfig: grid must be None or the sizes of its axes, such as [14, 14], each up to {MOST:,}; "
                    f"got {self.grid!r}."
                )
            object.__setattr__(self, "grid", list(self.grid))
        self._check_factors()
        kind = self.synthesized_by
        for name, kinds in (
            ("synthesizer", ("mixture",)),
            ("train_mixing", ("mixture",)),
            ("bottleneck_size", ("dense", "factorized_dense")),
            ("factors", ("factorized_dense",)),
            ("rank", ("factorized_random",)),
            ("frozen", ("random", "factorized_random")),
        ):
            if getattr(self, name) not in (None, False) and kind not in kinds and self.variant not in kinds:
                raise ValueError(
                    f"SttConfig: {name}={getattr(self, name)!r} has no meaning for variant={self.variant!r}"
                    + (f" with synthesizer={self.synthesizer!r}" if self.is_mixture else "")
                    + f"; it belongs to {' and '.join(kinds)}."
                )

    def _check_factors(self) -> None:
        if self.factors is None:
            return
        pairs = self.factors
        are_pairs = isinstance(pairs, (list, tuple)) and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 and all(is_count(n, 1) for n in pair) for pair in pairs
        )
        if not are_pairs or (self.grid is not None and [s * t for s, t in pairs] != self.grid):
            raise ValueError(
                "SttConfig: factors must be None or [s, t] for every axis, with s · t the size of the axis, such as "
                f"[[2, 7], [2, 7]] for grid=[14, 14], each up to {MOST:,}; got {pairs!r} for grid={self.grid}."
            )
        object.__setattr__(self, "factors", [list(pair) for pair in pairs])

    @property
    def is_mixture(self) -> bool:
        """Whether there still are queries and keys."""
        return self.variant == "mixture"

    @property
    def synthesized_by(self) -> str:
        """The variant that makes the synthetic map: `dense`, `random`, `factorized_dense` or `factorized_random`."""
        return self.synthesizer if self.synthesizer is not None else self.variant

    # --- what it says of itself ---

    @property
    def change(self) -> str:
        return SCORES if self.is_mixture else REPLACEMENT

    def resolve(self, host: Host) -> SttConfig:
        """The configuration with every choice made for one host.

        Raises:
            ValueError: if the grid does not fit the host's tokens; the message shows the numbers.
        """
        tokens = host.tokens
        prefix = tokens.prefix if self.prefix_tokens is None else self.prefix_tokens
        grid = self.grid or list(tokens.grid)
        if not grid:
            if tokens.length is None:
                raise ValueError(
                    f"{tokens.host} does not say how many tokens it has. {tokens.describe_sound()}Give "
                    f"SttConfig(grid=[{tokens.example_length}]), for example."
                )
            grid = [tokens.length - prefix]
        total = prefix + math.prod(grid)
        # Those that say another size are for inputs of that size, to which the host's positions are interpolated.
        says_size = self.grid is not None and (
            self.prefix_tokens is not None or len(grid) == len(tokens.grid) or bool(tokens.grid_of(total))
        )
        too_long = tokens.length is not None and total > tokens.length
        misfits = total != tokens.length and not says_size if tokens.grid else too_long
        if min(grid) < 1 or total > MOST or misfits:
            raise ValueError(
                f"the grid {grid} with {prefix} prefix tokens makes {total} tokens, and {tokens.host} "
                f"{'has' if tokens.grid else 'takes at most'} {tokens.length}"
                + (f": {tokens.prefix} before a grid of {list(tokens.grid)}" if tokens.grid else "")
                + ". Leave both out, or give SttConfig(grid=...) with the axes of the inputs."
            )
        config = replace(self, grid=grid, prefix_tokens=prefix)
        kind = config.synthesized_by
        if kind in ("dense", "factorized_dense") and config.bottleneck_size is None:
            config = replace(config, bottleneck_size=host.head_size)
        if kind == "factorized_dense" and config.factors is None:
            config = replace(config, factors=[_nearest_factors(n) for n in grid])
        if kind == "factorized_random" and config.rank is None:
            config = replace(config, rank=8)
        return config

    def explain_change(self, model: str) -> str | None:
        if self.is_mixture:
            return None
        return (
            f"SttConfig(variant={self.variant!r}) replaces the query-key products of {model} by maps that have not "
            f"been trained yet: its outputs change at once. SttConfig(synthesizer={self.variant!r}) starts from the "
            "original model."
        )

    @property
    def needs_places(self) -> bool:
        return True

    @property
    def needs_grid(self) -> bool:
        return True

    @property
    def no_place_for_appended(self) -> str:
        return "which have no place on the grid of a synthesised attention"

    @property
    def no_place_for_past(self) -> str:
        return self.no_place_for_appended

    @property
    def instead_of_replacement(self) -> str:
        return f"SttConfig(variant='mixture', synthesizer={self.synthesized_by!r})."

    @property
    def max_tokens(self) -> int | None:
        return None if self.grid is None else (self.prefix_tokens or 0) + math.prod(self.grid)

    def input_grid(self, host: Host) -> tuple[int, ...]:
        """The grid of the configuration, which may be for inputs of another size; the host's, if its axes differ."""
        if self.grid is not None and len(self.grid) == len(host.tokens.grid):
            return tuple(self.grid)
        return host.tokens.grid_of(self.max_tokens)

    def explain_input_grid(self, grid: tuple[int, ...], host: Host) -> str:
        return f"Resize them, or make the model for this size with SttConfig(grid={list(grid)})."

    def list_limits(self, host: Host) -> list[str]:
        if self.grid is None:
            return ["Synthesised maps are made for inputs of one size. The model refuses others."]
        if len(self.grid) == 1:
            return [f"Synthesised maps are made for at most {self.grid[0]:,} tokens. Padding belongs on the right."]
        grid = " × ".join(map(str, self.grid))
        return [f"Synthesised maps are made for a grid of {grid} tokens. The model refuses inputs of another size."]

    def sizes_of(self, length: int) -> tuple[int, ...]:
        """The grid for a sequence of `length` tokens; a `ValueError` if it does not fit."""
        assert self.grid is not None and self.prefix_tokens is not None
        places = length - self.prefix_tokens
        if len(self.grid) == 1 and 1 <= places <= self.grid[0]:
            return (places,)  # a shorter text
        if math.prod(self.grid) != places:
            most = "at most " if len(self.grid) == 1 else ""
            raise ValueError(
                f"the grid {self.grid} with {self.prefix_tokens} prefix tokens is for "
                f"{most}{self.prefix_tokens + math.prod(self.grid)} tokens, but the sequence has {length}. "
                "Synthesised attention needs inputs of the size that it was made for; for others give "
                "SttConfig(grid=...)."
            )
        return tuple(self.grid)


def _nearest_factors(number: int) -> list[int]:
    small = next(n for n in range(math.isqrt(number), 0, -1) if number % n == 0)
    return [small, number // small]
