# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""LoCoMT, attention views: its options, what one encoder holds for them, and one pass with them.

Source: Park & Choi, "Multimodal Transformer With a Low-Computational-Cost Guarantee" (LoCoMT), ICASSP 2024, arXiv
2402.15096. The grammar of views is in `locomt_views_hf_lam.py`, the attention in `locomt_attention_hf_lam.py`.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .hosts_hf_lam import Host, ModalityTokens
from .locomt_attention_hf_lam import attend_annealed, attend_eager, attend_with_weights
from .locomt_blocks_hf_lam import attend_blocks
from .locomt_layout_hf_lam import Layout, find_layout
from .locomt_segments_hf_lam import (
    Frames,
    Modality,
    Part,
    Segment,
    Span,
    TokenType,
    grid_of_segments,
    leading_lengths,
    parse_segments,
    resolve_segments,
)
from .locomt_views_hf_lam import View, check_views, cross_views, parse_view, resolve_views, view_cost
from .mechanism_hf_lam import (
    PATTERN,
    Attended,
    Attention,
    Mechanism,
    MechanismConfig,
    PassStart,
    ScoreChange,
    SegmentSize,
)
from .mechanism_registry_hf_lam import register_mechanism
from .numerics_hf_lam import needs_plain_operators
from .option_checks_hf_lam import MOST, check_bool, is_count

# Bottleneck tokens of the baseline, as in the experiments of MBT (arXiv 2107.00135).
BOTTLENECK_TOKENS = 4


@dataclass(frozen=True)
class LocomtConfig(MechanismConfig):
    """Attention views (LoCoMT; Park & Choi, arXiv 2402.15096): which tokens each head of each layer looks at.

    The sequence is cut into named segments; a view says which segment's queries see which segment's keys. Heads with
    the same view are computed together on slices, so a view costs what it shows. The grammar is in
    `locomt_views_hf_lam.py`.

    Args:
        segments: `[name, extent]` pairs. The extent is a number of tokens, one after the other, or one of

            - `{"length": n, "global": true}`: `n` tokens that see, and are seen by, all in every view;
            - `{"part": [top, left, height, width]}` in fractions of the grid of an image's patches, or of a
              spectrogram's, and `{"part": [start, length]}` of the steps of a video, or of sound of one length. They
              follow the size of the input: an edge lies at the nearest boundary between tokens, the lower of two as
              near. Together they cover the grid; tokens before it, such as `[CLS]`, become a global segment of their
              own unless a first extent names them. Fractions are read as the nearest with a denominator of at most
              1,000, so 0.3333 is a third;
            - `{"rectangle": [top, left, height, width]}` in patches, for images of the size that they cover together,
              whatever size the host is configured for;
            - `{"frames": [start, stop]}` in frames of the input, for videos of as many frames;
            - `{"token_type": t}`: the tokens with that `token_type_ids`, which differ from sample to sample;
            - `{"modality": name}`: the tokens of one modality of a fusion model, however many there are.

            `"token_type_ids"` is short for one segment `type_t` for every token type. `None` takes the host's own:
            token types for text, four quadrants for an image of any size, two halves for a video and for sound of one
            length, and the modalities of a fusion model, by their names.
        views: one view for all heads; a preset (`full`, `self`, `cross`, `round_robin`, `half`, `random(seed)`,
            `low_self(k)`); or a table, layers × heads. A model's `config.json` stores the table. `"full"` leaves the
            model's outputs as they are, all others change them at once.
        annealing: start from full attention, and let `hf_lam.training.ViewAnnealingCallback` move it to the views.
        bottleneck_tokens: the baseline of MBT (Nagrani et al., arXiv 2107.00135) in place of views: segments see
            themselves and as many learned tokens of their own, which are averaged over the segments after each layer.
            Needs `views="self"`. Attention maps and the hidden states between layers hold these tokens at their end;
            the last hidden state does not.

    Raises:
        ValueError: for a value outside the above; the message names it.
    """

    segments: Any = None
    views: Any = "full"
    annealing: bool = False
    bottleneck_tokens: int = 0

    title: ClassVar[str] = "Attention views"
    arxiv: ClassVar[str] = "2402.15096"
    citation: ClassVar[str] = """@inproceedings{park2024locomt,
  title     = {Multimodal Transformer With a Low-Computational-Cost Guarantee},
  author    = {Park, Sungjin and Choi, Edward},
  booktitle = {ICASSP},
  note      = {arXiv:2402.15096},
  year      = {2024}
}"""

    def __post_init__(self) -> None:
        if isinstance(self.segments, (list, tuple)):
            parse_segments(self.segments)
            object.__setattr__(self, "segments", [[name, _plain(extent)] for name, extent in self.segments])
        elif self.segments not in (None, "token_type_ids"):
            raise ValueError(
                "LocomtConfig: segments must be None, 'token_type_ids' or a list of [name, extent] such as "
                f"[['text', 128], ['image', 196]], got {self.segments!r}."
            )
        self._check_views()
        check_bool(self, "annealing")
        tokens = self.bottleneck_tokens
        if not is_count(tokens, 0):
            raise ValueError(f"LocomtConfig: bottleneck_tokens must be an integer from 0 to {MOST:,}, got {tokens!r}.")
        used = {self.views} if isinstance(self.views, str) else {view for row in self.views for view in row}
        if tokens and (used != {"self"} or self.annealing):
            raise ValueError(
                f"LocomtConfig: bottleneck_tokens={tokens} is the MBT baseline and needs views='self' without "
                f"annealing, got views={self.views!r} and annealing={self.annealing}."
            )

    def _check_views(self) -> None:
        views = self.views
        if isinstance(views, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in views):
            for layer, row in enumerate(views):
                for head, view in enumerate(row):
                    if not isinstance(view, str):
                        raise ValueError(
                            f"LocomtConfig: views[{layer}][{head}] must be a string such as 'self', got {view!r}."
                        )
            object.__setattr__(self, "views", [list(row) for row in views])
        elif not isinstance(views, str):
            raise ValueError(
                "LocomtConfig: views must be a preset, a view or a table (a list for every layer, with a view for "
                f"every head), got {views!r}."
            )
        if isinstance(self.segments, list):
            check_views(self.views, self.names, self.is_global)
            if isinstance(self.views, list):
                _ = self.parsed_views  # now: Dynamo cannot enter the lock of a cached_property

    # --- segments and views, parsed ---

    @cached_property
    def parsed_segments(self) -> tuple[Segment, ...]:
        """The segments, once they are listed."""
        return parse_segments(self.segments)

    @cached_property
    def parsed_views(self) -> tuple[tuple[View, ...], ...]:
        """The view of every layer and head, once there is a table."""
        names, is_global = self.names, self.is_global
        parsed = {view: parse_view(view, names, is_global) for view in {view for row in self.views for view in row}}
        return tuple(tuple(parsed[view] for view in row) for row in self.views)

    @property
    def names(self) -> list[str]:
        """The names of the segments, once they are known."""
        return [segment.name for segment in self.parsed_segments]

    @property
    def is_global(self) -> list[bool]:
        """Whether each segment sees, and is seen by, all."""
        return [segment.is_global for segment in self.parsed_segments]

    @property
    def views_of_the_paper(self) -> list[str]:
        """`self` and the cross view of every pair of segments that are not global; `full` is none of them."""
        local = [segment.name for segment in self.parsed_segments if not segment.is_global]
        return ["self", *cross_views(local)]

    @property
    def has_token_types(self) -> bool:
        """Whether the segments differ from sample to sample."""
        return isinstance(self.parsed_segments[-1].extent, TokenType)

    @property
    def has_modalities(self) -> bool:
        """Whether the segments are the modalities of a fusion model, whose lengths differ from batch to batch."""
        return isinstance(self.parsed_segments[-1].extent, Modality)

    @property
    def bottleneck_segments(self) -> list[int]:
        """The segment of every bottleneck token, which are appended to the sequence."""
        return [i for i, flag in enumerate(self.is_global) if not flag for _ in range(self.bottleneck_tokens)]

    # --- what it says of itself ---

    @property
    def change(self) -> str:
        return PATTERN

    def resolve(self, host: Host) -> LocomtConfig:
        """Segments listed, and views a table.

        Raises:
            ValueError: if segments or views do not fit the host; the message shows the numbers.
        """
        given = self.parsed_segments if isinstance(self.segments, list) else self.segments
        written = dict(self.segments) if isinstance(self.segments, list) else {}
        found = (segment.to_json() for segment in resolve_segments(given, host.tokens))
        resolved = replace(self, segments=[[name, written.get(name, extent)] for name, extent in found])
        table = resolve_views(resolved.views, host.num_layers, host.num_heads, resolved.names, resolved.is_global)
        return replace(resolved, views=table)

    def take_layers(self, layers: Sequence[int]) -> LocomtConfig:
        return replace(self, views=[self.views[layer] for layer in layers])

    def explain_change(self, model: str) -> str | None:
        if self.annealing:
            return None
        everything = parse_view("full", self.names, self.is_global)
        heads = [view for row in self.parsed_views for view in row]
        sparse = sum(view != everything for view in heads)
        if not sparse and not self.bottleneck_tokens:
            return None
        return (
            f"{sparse} of {len(heads)} heads of {model} get a view that is not full: its outputs change at once. "
            "LocomtConfig(views='full') or annealing=True starts from the original model."
        )

    @property
    def needs_places(self) -> bool:
        return True

    @property
    def needs_input_grid(self) -> bool:
        return isinstance(self.parsed_segments[-1].extent, (Part, Frames))

    def input_grid(self, host: Host) -> tuple[int | None, ...]:
        """The grid that its segments are cut for; none for full views, in which a place does not matter."""
        segments = len(self.parsed_segments)
        is_full = all(len(view) == segments**2 for row in self.parsed_views for view in row)
        return () if is_full else grid_of_segments(self.parsed_segments, host.tokens)

    def explain_input_grid(self, grid: tuple[int, ...], host: Host) -> str:
        part = '["a", {"part": [0, 0, 1, 0.5]}]' if len(grid) == 2 else '["a", {"part": [0, 0.5]}]'
        return (
            f"Resize them, cut the segments for this size, or give parts of the grid, such as {part}, which follow "
            "the input; segments=None gives some."
        )

    @property
    def needs_token_types(self) -> bool:
        return self.has_token_types

    @property
    def appended_tokens(self) -> int:
        return len(self.bottleneck_segments)

    @property
    def exact_tokens(self) -> int | None:
        is_spanned = isinstance(self.parsed_segments[-1].extent, Span)
        return sum(leading_lengths(self.parsed_segments)) if is_spanned else None

    @property
    def no_place_for_past(self) -> None:
        """Every view shows them."""
        return None

    def list_limits(self, host: Host) -> list[str]:
        names = ", ".join(self.names)
        if self.has_token_types:
            return [
                f"The segments of the views ({names}) are read from `token_type_ids`. Without these, all tokens are "
                "of one segment."
            ]
        if self.has_modalities:
            return [f"The segments of the views are the modalities ({names}). A sample may lack some."]
        if isinstance(self.parsed_segments[-1].extent, Part):
            return [f"The segments of the views ({names}) are parts of the input, whatever its size."]
        grid = grid_of_segments(self.parsed_segments, host.tokens)
        sizes = " × ".join("any" if size is None else str(size) for size in grid)
        size = f"{sizes} patches" if sizes else f"{self.exact_tokens} tokens"
        return [f"The segments of the views ({names}) are cut for inputs of {size}. The model refuses another size."]


def _plain(extent: Any) -> Any:
    """An extent with lists for tuples, as JSON has them."""
    if isinstance(extent, int):
        return extent
    return {key: list(value) if isinstance(value, (list, tuple)) else value for key, value in extent.items()}


def baseline_block(baseline: str) -> dict[str, Any]:
    """The block of `config.json` of the baselines `"self"` and `"bottleneck"` (MBT, arXiv 2107.00135)."""
    tokens = {"bottleneck_tokens": BOTTLENECK_TOKENS} if baseline == "bottleneck" else {}
    return {LocomtConfig.name: {"views": "self", **tokens}}


def find_baseline(block: Mapping[str, Any]) -> str | None:
    """Find which of these baselines a block is; None for neither."""
    if set(block) != {"version", LocomtConfig.name}:
        return None
    config = LocomtConfig.from_dict(block[LocomtConfig.name])
    views = {config.views} if isinstance(config.views, str) else {view for row in config.views for view in row}
    if config.annealing or views != {"self"}:
        return None
    return "bottleneck" if config.bottleneck_tokens else "self"


# --- one pass --------------------------------------------------------------------------------------------------------


class ViewPattern(NamedTuple):
    """Attention views in one forward pass.

    config: resolved; says the views of every layer and head.
    layout: places of the segments in this batch.
    penalty: penalty on attention outside of the views, while annealing; else None.
    modalities: the modality of each token of a fusion model; else None.
    """

    config: LocomtConfig
    layout: Layout
    penalty: Tensor | None
    modalities: ModalityTokens | None

    def attend(self, attention: Attention, change: ScoreChange) -> Attended:
        """Attention within the views; without weights, only scores that they show are computed."""
        query, key, value = attention.query, attention.key, attention.value
        if query.shape[2] != self.layout.length:
            raise ValueError(
                f"the segments {self.config.segments} add up to {self.layout.length} tokens, but the sequence has "
                f"{query.shape[2]}. Attention views need the length that they were made for."
            )
        # The layers of one model may lie on several devices.
        arguments = (query, key, value, self.layout.to(query.device), self.config.parsed_views[attention.layer])
        options: dict[str, Any] = {
            "factor": change.factor,
            "addend": change.addend,
            "attention_mask": attention.padding,
            "scaling": attention.scaling,
            "dropout_p": attention.dropout,
        }
        is_eager = attention.implementation == "eager" or needs_plain_operators()
        if self.penalty is not None:
            return attend_annealed(
                *arguments,
                **options,
                penalty=self.penalty.to(query.device),
                want_weights=attention.want_weights,
                implementation="eager" if is_eager else "auto",
            )
        if attention.want_weights:
            return attend_with_weights(*arguments, **options)
        return (attend_eager if is_eager else attend_blocks)(*arguments, **options), None

    def count_pairs(self, layer: int, past: int) -> tuple[int, ...]:
        """Pairs of a query and a key that every head of a layer shows in one sample."""
        lengths = self.layout.lengths
        return tuple(view_cost(view, lengths) + sum(lengths) * past for view in self.config.parsed_views[layer])

    def mix_appended(self, hidden_states: Tensor) -> Tensor:
        """Every segment has updated the bottleneck's tokens on its own; the next layer starts from their mean.

        Modalities that a sample does not have are no part of it.
        """
        length, tokens = self.config.appended_tokens, self.config.bottleneck_tokens
        copies = hidden_states[:, -length:].unflatten(1, (length // tokens, tokens))
        if self.modalities is None or self.modalities.is_present is None:
            mean = copies.mean(1, keepdim=True)
        else:
            weights = self.modalities.is_present.to(copies)[:, :, None, None]
            mean = (copies * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
        mean = mean.expand_as(copies).flatten(1, 2)
        return torch.cat([hidden_states[:, :-length], mean], dim=1)


# --- one encoder -----------------------------------------------------------------------------------------------------


class AttentionViews(Mechanism):
    """LoCoMT (arXiv 2402.15096) in one encoder: the views of its heads, and the places of its segments.

    Args:
        config: the options, resolved for the host.
        host: the encoder.
    """

    logged: ClassVar[tuple[str, ...]] = ("views",)
    fact_titles: ClassVar[dict[str, tuple[str, str]]] = {"views": ("views", "view")}

    penalty: Tensor

    def __init__(self, config: LocomtConfig, host: Host) -> None:
        super().__init__(config, host)
        self.initializer_range = host.initializer_range
        self.frames_per_step = host.tokens.frames_per_step
        if config.annealing:
            self.register_buffer("penalty", torch.empty(()))
        if config.bottleneck_tokens:
            self.bottleneck = nn.Parameter(torch.empty(config.bottleneck_tokens, host.hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Write every parameter and buffer that was not loaded (transformers marks those that were)."""
        if self.config.annealing:
            init.zeros_(self.penalty)
        if self.config.bottleneck_tokens:
            init.normal_(self.bottleneck, std=self.initializer_range)

    def take_layers(self, before: Any, layers: Sequence[int]) -> None:
        """Nothing of what it has belongs to a layer."""
        if self.config.annealing:
            self.penalty = before.penalty
        if self.config.bottleneck_tokens:
            self.bottleneck = before.bottleneck

    def begin(self, start: PassStart) -> ViewPattern:
        penalty = self.penalty if self.config.annealing else None
        return ViewPattern(self.config, self.layout(start), penalty, start.modalities)

    def layout(self, start: PassStart) -> Layout:
        """Find where the segments lie in this batch.

        Raises:
            ValueError: if they lie on a grid of a size that is not known.
        """
        config = self.config
        return find_layout(
            config.parsed_segments, config.bottleneck_segments, self.frames_per_step, start, self.device
        )

    @property
    def device(self) -> torch.device:
        """The device for tensors of a pass; a module without weights has a mark for it."""
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    def append_tokens(self, hidden_states: Tensor) -> Tensor:
        """`(B, L, d)` with the bottleneck's tokens of every segment behind it."""
        copies = self.config.appended_tokens // self.config.bottleneck_tokens
        tokens = self.bottleneck.to(hidden_states.dtype).repeat(copies, 1)
        return torch.cat([hidden_states, tokens.expand(hidden_states.shape[0], -1, -1)], dim=1)

    def list_segments(self, pattern: ViewPattern) -> tuple[SegmentSize, ...]:
        config = self.config
        return tuple(
            SegmentSize(name, length if is_global else length - config.bottleneck_tokens, is_global)
            for name, length, is_global in zip(config.names, pattern.layout.lengths, config.is_global, strict=True)
        )

    def scores_all(self, pattern: ViewPattern) -> bool:
        """Whether all pairs are scored, as while the views are annealed."""
        return pattern.penalty is not None

    def take_head(self, pattern: ViewPattern, head: int) -> ViewPattern:
        views = [[row[head]] for row in pattern.config.views]
        return pattern._replace(config=replace(pattern.config, views=views, annealing=False), penalty=None)

    def list_facts(self, layer: int) -> dict[str, Any]:
        return {"views": list(self.config.views[layer])}

    def extra_repr(self) -> str:
        return f"segments={self.config.segments}, annealing={self.config.annealing}"


register_mechanism("locomt", LocomtConfig, AttentionViews)
