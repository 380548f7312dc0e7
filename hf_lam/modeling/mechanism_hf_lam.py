# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The parts of a mechanism: its options, its module, and its changes to an attention layer.

There are three kinds of change:

    scores        softmax( (Q Kᵀ · scaling) ⊙ factor + addend + P ) V      changes of several mechanisms compose
    pattern       which token sees which, and what that costs               one a model, on top of changed scores
    replacement   no scores at all: the context from the values alone       one a model, alone

A mechanism says which one it is, and what else must be known to combine it with others, in its configuration
(`MechanismConfig`). What it computes is in its module (`Mechanism`), one for all layers of an encoder. Neither knows
the host beyond a plain record (`hosts_hf_lam.Host`).

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import copy
import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .hosts_hf_lam import Host, ModalityTokens

ConfigT = TypeVar("ConfigT", bound="MechanismConfig")

SCORES, PATTERN, REPLACEMENT = CHANGES = ("scores", "pattern", "replacement")


# The buffer of a mechanism that has no weights of its own, so that saved weights say that it was there.
MARK = "mark"


class MechanismConfig:
    """The options of a mechanism, plain JSON out and in, and what it says of itself.

    A subclass is a frozen dataclass whose fields are JSON values with defaults, checked in `__post_init__`.

    Class attributes:
        name: key in `config.json`, on command lines, and of its weights; `register_mechanism` sets it.
        order: changes of scores are made in this order, and in that of names among equals. What says what the scores
            are comes before what multiplies them.
        title: its name in a model card.
        arxiv: number of its paper there; None without one.
        citation: BibTeX of the paper.
        later: options that were added later. They are written down together, and only if one of them differs from its
            default, so that what is saved without them stays readable to code that does not know them.
    """

    name: ClassVar[str]
    order: ClassVar[int] = 0
    title: ClassVar[str] = ""
    arxiv: ClassVar[str | None] = None
    citation: ClassVar[str] = ""
    later: ClassVar[tuple[str, ...]] = ()

    # --- JSON ---

    def to_dict(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        options = asdict(self)  # type: ignore[call-overload]
        defaults = {field.name: field.default for field in fields(self)}  # type: ignore[arg-type]
        is_as_before = all(options[name] == defaults[name] for name in self.later)
        return {name: value for name, value in options.items() if not (is_as_before and name in self.later)}

    @classmethod
    def find_lost(cls, options: Mapping[str, Any]) -> set[str]:
        """The options that `to_dict` would have written down beside these."""
        names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        return names - set(options) - (set() if set(cls.later) & set(options) else set(cls.later))

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Any:
        """The inverse of `to_dict`. Raises a `ValueError` that lists the valid options for an unknown one."""
        if not isinstance(options, Mapping):
            raise ValueError(f"{cls.__name__} options must be a dictionary, got {options!r}.")
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        unknown = sorted(set(options) - set(known), key=str)
        if unknown:
            raise ValueError(f"{cls.__name__} has no option {unknown}; the options are {known}.")
        return cls(**options)

    # --- what it says of itself ---

    @property
    def change(self) -> str:
        """The kind of change: `SCORES`, `PATTERN` or `REPLACEMENT`."""
        return SCORES

    def resolve(self: ConfigT, host: Host) -> ConfigT:
        """The configuration with every choice made for one host; a `ValueError` if it does not fit."""
        return self

    def take_layers(self: ConfigT, layers: Sequence[int]) -> ConfigT:
        """The configuration for an encoder that has these layers of the one it was resolved for, by their numbers.

        Override it where options belong to layers.
        """
        return self

    def explain_change(self, model: str) -> str | None:
        """Why the outputs of a model change at once, before any training; None if they do not. After `resolve`."""
        return None

    @property
    def needs_places(self) -> bool:
        """Whether it is tied to the places of tokens, so that none may be dropped."""
        return False

    @property
    def needs_grid(self) -> bool:
        """Whether the tokens must lie on one grid, which those of several modalities do not."""
        return False

    @property
    def needs_token_types(self) -> bool:
        """Whether `token_type_ids` must reach it."""
        return False

    @property
    def needs_embeddings(self) -> bool:
        """Whether it reads the input of the first layer in every layer (`Mechanism.make_state`)."""
        return False

    @property
    def is_shared(self) -> bool:
        """Whether all layers have one and the same change."""
        return False

    @property
    def appended_tokens(self) -> int:
        """The number of tokens that it adds to the end of the sequence (`Mechanism.append_tokens`)."""
        return 0

    @property
    def no_place_for_appended(self) -> str | None:
        """Why it cannot do with tokens that another mechanism appends, as the end of a sentence; None if it can."""
        return None

    @property
    def no_place_for_past(self) -> str | None:
        """Why it cannot do with keys and values that come before the tokens; None if it can.

        They are what `past_key_values` holds: the trained prefix of prefix tuning. A change of scores is made to the
        scores between tokens, and leaves theirs as they are; a pattern has to let every query see them.
        """
        return None if self.change == SCORES else "which are no tokens of the input"

    @property
    def instead_of_replacement(self) -> str:
        """The advice of a replacement of scores on what to use instead, where others need scores."""
        return f"Leave {type(self).__name__} out."

    @property
    def max_tokens(self) -> int | None:
        """The longest sequence it takes; None if any, or as long as the host's. After `resolve`."""
        return None

    @property
    def exact_tokens(self) -> int | None:
        """The only length it takes, for texts; None if it is not tied to one. After `resolve`."""
        return None

    @property
    def needs_input_grid(self) -> bool:
        """Whether it follows the size of the input: `PassStart.grid` must be there, on a host with a grid."""
        return False

    def input_grid(self, host: Host) -> tuple[int | None, ...]:
        """The grid of the inputs that it is made for, as `HostTokens.grid`; empty for any. After `resolve`.

        An axis of None may have any size. Inputs with another grid are refused, also if they have as many patches: one
        that is tied to places would take them for others.
        """
        return host.tokens.grid_of(self.exact_tokens or self.max_tokens) if self.needs_places else ()

    def explain_input_grid(self, grid: tuple[int, ...], host: Host) -> str:
        """Advice for inputs that have another grid, as one or two sentences."""
        return "Resize them."

    def list_limits(self, host: Host) -> list[str]:
        """List what the model cannot do, as sentences for a model card. After `resolve`."""
        return []


class ScoreChange(NamedTuple):
    """The change of one layer's raw scores by a mechanism: `scores ⊙ factor + addend`; None changes nothing.

    Both are broadcastable to `(B, H, Lq, Lk)`. A factor of 0 means "no preference", not "blocked".
    """

    factor: Tensor | None = None
    addend: Tensor | None = None


def compose(changes: Iterable[ScoreChange]) -> ScoreChange:
    """Several changes, one after the other: a later factor multiplies what earlier ones added, too."""
    factor: Tensor | None = None
    addend: Tensor | None = None
    for change in changes:
        if change.factor is not None:
            factor = change.factor if factor is None else factor * change.factor
            addend = None if addend is None else addend * change.factor
        if change.addend is not None:
            addend = change.addend if addend is None else addend + change.addend
    return ScoreChange(factor, addend)


def extend_change(change: ScoreChange, past: int) -> ScoreChange:
    """The same change for `past` more keys in front, whose scores stay as they are.

    A change that is the same for all keys is the same for these, too.
    """

    def extend(tensor: Tensor | None, value: float) -> Tensor | None:
        return tensor if tensor is None or tensor.shape[-1] == 1 else pad(tensor, (past, 0), value=value)

    return ScoreChange(extend(change.factor, 1.0), extend(change.addend, 0.0)) if past else change


class PassStart(NamedTuple):
    """The facts about a forward pass before it enters the encoder's layers.

    token_types: `(1 or B, L)`, for a mechanism that needs them; else None.
    modalities: the modality of each token of a fusion model; else None.
    grid: grid of this input's tokens, as `HostTokens.grid` is that of the host; `(B, 2)` where samples differ in it,
        as those of SigLIP 2 do, with padding after the places of each. None for text, where no mechanism needs places,
        and for embeddings that may lie on different grids.
    length: number of tokens in the sequence, where the grid is `(B, 2)`.
    """

    token_types: Tensor | None
    modalities: ModalityTokens | None
    grid: tuple[int, ...] | Tensor | None = None
    length: int | None = None


class LayerInput(NamedTuple):
    """Everything that a mechanism reads in one attention layer.

    layer: its number.
    hidden_states: input `X` of the attention, `(B, L, d)`.
    begun: result of `Mechanism.begin` in this pass.
    state: result of `Mechanism.make_state` in this pass.
    padding: `(B or 1, 1 or H, 1 or L, L)`, bool (True = may attend) or additive; None if there is none.
    is_last: whether no other mechanism changes the scores after this one.
    """

    layer: int
    hidden_states: Tensor
    begun: Any
    state: Tensor | None
    padding: Tensor | None
    is_last: bool = True


class Attention(NamedTuple):
    """One attention layer in one forward pass, with everything to compute it.

    of_pass: the forward pass (`attention_pass_hf_lam.ForwardPass`).
    layer: its number.
    hidden_states: its input `X`, `(B, L, d)`.
    query, key, value: `(B, H, L, D)`, key and value with `past` more in front. With a replacement of the scores,
        query and key are the layer's input: good for their sizes, and nothing else.
    padding: `(B or 1, 1 or H, 1 or Lq, Lk)`, bool (True = may attend) or additive; None if there is none.
    scaling: factor on the raw scores; None is `D ** -0.5`.
    dropout: probability with which an attention weight is zeroed.
    implementation: `"eager"`, `"flex_attention"` or `"auto"`.
    want_weights: whether to return the attention weights.
    past: keys and values in front that are no tokens of the input (`past_key_values`).
    change: factor of the scores and addend to them, if known already.
    replacement: replacement of the scores, if known already.
    """

    of_pass: Any
    layer: int
    hidden_states: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    padding: Tensor | None
    scaling: float | None
    dropout: float
    implementation: str
    want_weights: bool
    past: int = 0
    change: ScoreChange | None = None
    replacement: Replacement | None = None

    @property
    def padding_of_tokens(self) -> Tensor | None:
        """The padding without the columns of what is no token."""
        if self.padding is None or not self.past or self.padding.shape[-1] == 1:
            return self.padding
        return self.padding[..., self.past :]


# Context `(B, H, L, D)`, and the attention weights `(B, H, L, L)` if they are wanted.
Attended = tuple[Tensor, Tensor | None]


class Pattern(Protocol):
    """The pairs of tokens that see each other in one pass; a pattern's `begin` returns one, as a NamedTuple."""

    def attend(self, attention: Attention, change: ScoreChange) -> Attended:
        """Attention within the pattern, with the change of scores that other mechanisms make."""

    def count_pairs(self, layer: int, past: int) -> tuple[int, ...]:
        """Pairs of a query and a key that every head of a layer shows in one sample. Times `4·D` it is FLOPs.

        past: keys in front that are no tokens, which every query sees.
        """

    def mix_appended(self, hidden_states: Tensor) -> Tensor:
        """Mix the appended tokens of `(B, L, d)` between two layers, where `append_tokens` has added some."""


class SegmentSize(NamedTuple):
    """A segment that a pattern cuts the sequence into, for `hf_lam.cost` to compare with.

    name: name of the segment.
    length: its tokens in this batch, padding included, without those that `append_tokens` added.
    is_global: whether it sees, and is seen by, all.
    """

    name: str
    length: int
    is_global: bool = False


class Replacement(Protocol):
    """The computation of one layer in place of scores; `replace_scores` returns one, tensors in a NamedTuple."""

    def attend(self, attention: Attention) -> Attended:
        """The context from the values."""

    def count_flops(self, attention: Attention) -> tuple[int, ...]:
        """FLOPs of `attend` for every head, whole batch."""


class MechanismPart(nn.Module):
    """A module with weights of its own.

    transformers builds models without values and then has those initialised that the checkpoint lacks, module by
    module: through `reset_parameters` where a module is one of these, and like the host's own where it is a plain
    `nn.Linear` or `nn.LayerNorm`. A part without a direct parameter or buffer is passed over.
    """

    @abstractmethod
    def reset_parameters(self) -> None:
        """Write every parameter and buffer through `transformers.initialization`, which leaves loaded ones alone."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "reset_parameters" in cls.__dict__:
            setattr(cls, "reset_parameters", _unless_on_meta(cls.reset_parameters))  # noqa: B010


def _unless_on_meta(reset_parameters: Callable[[Any], None]) -> Callable[[Any], None]:
    """Without values there is nothing to write; torch would take its time to work that out."""

    @functools.wraps(reset_parameters)
    def reset(self: Any) -> None:
        tensor = next(iter((*self.parameters(recurse=False), *self.buffers(recurse=False))), None)
        if tensor is None or not tensor.is_meta:
            reset_parameters(self)

    return reset


class Mechanism(MechanismPart):
    """The weights and computations of one mechanism in one encoder, for all of its layers.

    Everything that reads parameters is called through the container at the root of the host (`MechanismContainer`),
    so arguments and results are tensors, numbers, and tuples of them: FSDP looks for tensors there. One that is an
    `nn.ModuleList` with a child for each layer has each child on the device of its layer.

    Args:
        config: the options, resolved for the host.
        host: the encoder.
    """

    config: Any
    # The names of the factor and the addend in logs, tables and pictures.
    factor_name: ClassVar[str] = "factor"
    addend_name: ClassVar[str] = "addend"
    # Those of its facts that a training logs: numbers by layer, or one for each head, or texts, which are counted.
    logged: ClassVar[tuple[str, ...]] = ()
    # What `hf-lam inspect` calls its facts, in their order: in a table of the layers, and in one of a layer's heads,
    # for lists with a value for each; an empty title leaves a fact out there. Other facts are called by their names.
    fact_titles: ClassVar[dict[str, tuple[str, str]]] = {}

    def __init__(self, config: Any, host: Host) -> None:
        super().__init__()
        self.config = config

    # --- what it computes ---

    def begin(self, start: PassStart) -> Any:
        """Compute what a pass needs in all layers; for a pattern, the `Pattern`. Called once a pass, if overridden."""

    def make_state(self, embeddings: Tensor, begun: Any) -> Tensor:
        """Make the values that cross layers from the input of the first layer. Called if the configuration needs it.

        It gets its gradient under gradient checkpointing, since it is made outside of the checkpointed layers.
        """
        return embeddings

    def change_scores(self, given: LayerInput) -> ScoreChange:
        """Compute the factor of a layer's scores and the addend to them. Called for changes of scores."""
        raise TypeError(f"{type(self).__name__} changes no scores; override change_scores.")

    def replace_scores(self, given: LayerInput) -> Replacement:
        """Compute what takes the place of a layer's scores. Called for replacements."""
        raise TypeError(f"{type(self).__name__} replaces no scores; override replace_scores.")

    def append_tokens(self, hidden_states: Tensor) -> Tensor:
        """`(B, L, d)` with `config.appended_tokens` more tokens at the end. Called before the first layer."""
        return hidden_states

    def take_layers(self, before: Any, layers: Sequence[int]) -> None:
        """Take over the weights of the same mechanism, in an encoder that has some of its layers, or copies of them.

        What layers share stays, and a child for each layer goes with it. Override it where weights belong to layers
        in another way.

        Args:
            before: the mechanism that the weights are taken from.
            layers: number of the earlier layer for each layer of this one, in order; a number may occur several times.

        Raises:
            ValueError: if it cannot be told which weights belong to which layer.
        """
        saved = set(before.state_dict()) - {MARK}
        if before.config.is_shared:
            for name in {key.partition(".")[0] for key in saved}:
                setattr(self, name, getattr(before, name))
            return
        own: Any = self
        lists = isinstance(before, nn.ModuleList) and isinstance(own, nn.ModuleList)
        children = list(before.children()) if lists and len(own) == len(layers) else []
        if any(not key.partition(".")[0].isdecimal() for key in saved) or (saved and not children):
            raise ValueError(
                f"{type(self).__name__} has weights of which it does not say to which layer they belong, and "
                "take_layers could."
            )
        for place, number in enumerate(layers if children else []):
            own[place] = copy.deepcopy(children[number]) if number in layers[:place] else children[number]

    # --- what it costs ---

    def count_flops(self, layer: int, batch: int, length: int) -> int:
        """FLOPs of making one layer's change or replacement, two for a multiply-add; those of using it not.

        What crosses layers (`make_state`) is part of the first one.
        """
        return 0

    def list_cost_facts(self, length: int) -> dict[str, Any]:
        """List facts for a report of costs: `synthesizer`, the origin of the map, and `grid` for `length` tokens.

        Making the map is reported as synthesis then, too.
        """
        return {}

    def list_segments(self, pattern: Any) -> tuple[SegmentSize, ...]:
        """List the segments that a pattern cuts a batch into. Called with the result of `begin`."""
        return ()

    def scores_all(self, pattern: Any) -> bool:
        """Whether a pattern's pass scores all pairs, more than it will show. It then needs `take_head`."""
        return False

    def take_head(self, pattern: Any, head: int) -> Pattern | None:
        """The pattern of one head alone, so that it can be counted.

        It scores no more than it shows, and computes on the device of the query, without values ("meta") too. None
        for a pattern that cannot be taken apart, whose layers are counted as a whole.
        """
        return None

    # --- what it shows ---

    def list_facts(self, layer: int) -> dict[str, Any]:
        """List facts about a layer that need no input, as JSON values; `views` is what each head of a pattern sees."""
        return {}

    def list_facts_of(self, change: ScoreChange, is_token: Tensor | None) -> dict[str, Any]:
        """List facts about a layer's change of scores for some input, as JSON values. Called if it is overridden.

        is_token: `(B, L)` bool, which tokens are not padding; None if all are.
        """
        return {}

    def draw(self) -> Picture | None:
        """Draw the weights, without any input; None for no picture."""
        return None

    def reset_parameters(self) -> None:
        """Nothing to write; a mechanism with parameters of its own overrides it."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # Weights that were saved before there was a mark lack nothing.
        if MARK in self._buffers and prefix + MARK not in state_dict:
            state_dict = {**state_dict, prefix + MARK: self._buffers[MARK]}
        super()._load_from_state_dict(state_dict, prefix, *args)


class Picture(NamedTuple):
    """A heat map for the model card: values `(R, C)`, and what rows, columns and colours are."""

    caption: str
    values: Tensor
    rows: str
    columns: str
    label: str
    # The value that changes nothing, which is drawn white.
    neutral: float = 0.0


def overrides(mechanism: Any, method: str) -> bool:
    """Whether a mechanism has its own version of a method of `Mechanism`; classes of other copies of this code too."""
    base = next(kind for kind in type(mechanism).__mro__ if kind.__name__ == Mechanism.__name__)
    return getattr(type(mechanism), method) is not getattr(base, method)


class MechanismContainer(nn.Module):
    """All that hf_lam adds to one encoder, under one name (`hf_lam`) at the root of the host.

    Everything goes through `forward`: PEFT's `modules_to_save` replaces this module by a wrapper that forwards only
    that call to its trained copy, and FSDP2 gathers its parameters for that call alone. `Dispatch` is the typed side.
    """

    def __init__(self, mechanisms: Mapping[str, Mechanism]) -> None:
        super().__init__()
        for name, mechanism in mechanisms.items():
            self.add_module(name, mechanism)

    def forward(self, name: str, method: str, *args: Any) -> Any:
        """Call a method of the mechanism `name`."""
        return getattr(getattr(self, name), method)(*args)


class Dispatch:
    """The methods of an encoder's mechanisms, by their names, through its container.

    Args:
        container: the `MechanismContainer`, or what PEFT put in its place.
    """

    def __init__(self, container: nn.Module) -> None:
        self.container = container

    def begin(self, name: str, start: PassStart) -> Any:
        return self.container(name, "begin", start)

    def make_state(self, name: str, embeddings: Tensor, begun: Any) -> Tensor:
        return self.container(name, "make_state", embeddings, begun)

    def change_scores(self, name: str, given: LayerInput) -> ScoreChange:
        return self.container(name, "change_scores", given)

    def replace_scores(self, name: str, given: LayerInput) -> Replacement:
        return self.container(name, "replace_scores", given)

    def append_tokens(self, name: str, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.container(name, "append_tokens", hidden_states)
