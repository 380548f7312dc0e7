"""Batches of any shape for a model: which of its sizes may differ, and random inputs of such sizes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..flops.inputs import encoder_of, example_inputs
from ..modeling.fusion_encoders_hf_lam import InputKind, read_input_kind
from ..modeling.host_attention_hf_lam import encoder_side_of
from ..modeling.hosts_facts_hf_lam import (
    count_samples,
    is_composed,
    is_fusion,
    read_size_options,
    takes_any_number_of_frames,
    takes_patches,
    takes_waveform,
)
from ..modeling.hosts_hf_lam import find_input_module, input_name_of, max_length_of
from ..modeling.injection_hf_lam import injected_encoders, injection_of

# How long texts and the like are that are tried, where a model has no limit below that.
_LONG = 512
# The first words of a vocabulary often have a meaning of their own.
_FIRST_WORD = 5
# Tokens of a short sound, and of a long one.
_SHORT_SOUND, _SOUND = 2, 40


class Axis(NamedTuple):
    """A size that may differ from batch to batch.

    shortest: the least.
    longest: the most that the model takes; None for no limit.
    long: a long one, if `longest` is None or more than one wants to try.
    patch: number of pixels or frames that make one token, for a side of a picture or the frames of a video; the size
        is a multiple of it. None for a length.
    """

    shortest: int
    longest: int | None
    long: int = _LONG
    patch: int | None = None

    @property
    def step(self) -> int:
        """The step in which it can differ."""
        return self.patch or 1

    @property
    def tried(self) -> tuple[int, int, int]:
        """A short one, an odd one between, and a long one."""
        long = max(self.shortest, self.long if self.longest is None else min(self.longest, self.long))
        middle = (self.shortest + long) // 2 // self.step
        odd = (middle - (middle % 2 == 0)) * self.step
        return self.shortest, max(self.shortest, odd), long


class Sizes(NamedTuple):
    """The sizes of one batch.

    batch: samples.
    lengths: lengths by the name of the axis.
    is_padded: whether the samples have several lengths.
    """

    batch: int
    lengths: Mapping[str, int]
    is_padded: bool

    def describe(self) -> str:
        """Describe the sizes in words: `a batch of 2, text 40, padded`."""
        lengths = [f"{name} {length}" for name, length in self.lengths.items()]
        return ", ".join([f"a batch of {self.batch}", *lengths, *(["padded"] if self.is_padded else [])])


Make = Callable[[Sizes, torch.Generator], dict[str, Tensor]]


class _Part(NamedTuple):
    """The inputs of one kind that a model takes.

    axes: its sizes that may differ.
    make: its arguments.
    further: arguments among these that are left out unless they are asked for.
    """

    axes: dict[str, Axis]
    make: Make
    further: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batches:
    """Batches of any shape for one model.

    names: names of the tensors that the model is called with.
    axes: its sizes that may differ, besides that of the batch.
    options: its other arguments, such as `use_cache=False`.
    """

    names: tuple[str, ...]
    axes: dict[str, Axis]
    options: dict[str, Any]
    _parts: tuple[_Part, ...] = field(repr=False)

    def make(self, sizes: Sizes) -> dict[str, Tensor]:
        """A random batch, which for the same sizes is always the same."""
        generator = torch.Generator().manual_seed(sizes.batch)
        made: dict[str, Tensor] = {}
        for part in self._parts:
            made |= part.make(sizes, generator)
        return {name: made[name] for name in self.names}

    @property
    def example(self) -> Sizes:
        """An example batch with one sample."""
        return Sizes(1, {name: axis.tried[1] for name, axis in self.axes.items()}, False)

    def list_sizes(self) -> list[Sizes]:
        """The shapes that are tried: one sample and several, short, odd and long ones, alone and with padding."""
        short, odd, long = ({name: axis.tried[i] for name, axis in self.axes.items()} for i in range(3))
        can_pad = any("mask" in name for name in self.names)
        return [Sizes(1, short, False), Sizes(2, long, can_pad), Sizes(3, odd, can_pad), self.example]

    def without_sizes(self) -> Batches:
        """The same for pictures of one size."""
        axes = {name: axis for name, axis in self.axes.items() if axis.patch is None}
        return replace(self, axes=axes)

    def find_axes(self) -> tuple[Sizes, dict[str, dict[int, tuple[str, int]]]]:
        """The sizes to trace a model with, and of each argument, which of its dimensions differ with what.

        Returns:
            The sizes, and for each argument by its dimension the axis and how much longer the dimension is; the name
            of the first axis is `batch`.
        """
        # Sizes that happen to be equal may be taken for one.
        lengths, taken = {}, {1, 4}
        for name, axis in self.axes.items():
            length = axis.tried[1]
            while length in taken and (axis.longest is None or length + axis.step <= axis.longest):
                length += axis.step
            taken.add(length)
            lengths[name] = length
        sizes = Sizes(4, lengths, True)
        shapes = {name: tensor.shape for name, tensor in self.make(sizes).items()}
        found: dict[str, dict[int, tuple[str, int]]] = {name: {} for name in shapes}
        others = [("batch", sizes._replace(batch=3), 4)]
        for name, axis in self.axes.items():
            other = axis.shortest if axis.shortest != lengths[name] else lengths[name] + axis.step
            others.append((name, sizes._replace(lengths={**lengths, name: other}), lengths[name]))
        for axis_name, changed, length in others:
            for name, tensor in self.make(changed).items():
                for dim, (before, after) in enumerate(zip(shapes[name], tensor.shape, strict=True)):
                    if before != after:
                        found[name][dim] = (axis_name, before - length)
        return sizes, found


def batches_for(model: PreTrainedModel, names: Iterable[str] | None = None) -> Batches:
    """Find out what a model can be called with.

    Args:
        model: an encoder, a task model on top of one, or a fusion model.
        names: names of the tensors that the model shall be called with; unless given, all but those of which the model
            knows a good value: `has_NAME` and `NAME_positions` of a fusion model.

    Raises:
        ValueError: for a name that is not known, or if nothing says what the model takes.
    """
    base = encoder_of(model)
    parts: list[_Part] = []
    options: dict[str, Any] = {}
    if is_fusion(base.config):
        parts = [_make_modality(model, base, name) for name in base.config.modalities]
        parts.append(_make_presence(base))
    else:
        encoder: Any = encoder_side_of(model)
        is_text = input_name_of(base) == "input_ids"
        part = _make_text(model, encoder, base, "text") if is_text else _make_media(encoder, base, options)
        parts = [part]
    forward = inspect.signature(model.forward).parameters
    if is_composed(model.config) or (is_fusion(base.config) and model.can_generate()):
        parts.append(_make_written(model))
    options |= {name: False for name in ("use_cache", "return_loss") if name in forward}
    axes = {name: axis for part in parts for name, axis in part.axes.items()}
    shortest = Sizes(2, {name: axis.shortest for name, axis in axes.items()}, False)
    known = [name for part in parts for name in part.make(shortest, torch.Generator())]
    further = {name for part in parts for name in part.further}
    chosen = [name for name in known if name not in further] if names is None else list(dict.fromkeys(names))
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ValueError(
            f"{type(model).__name__} cannot be exported with the inputs {unknown or chosen}; those that can be made "
            f"for it are {', '.join(known)}."
        )
    batches = Batches(tuple(chosen), axes, options, tuple(parts))
    return _without_fixed(batches, shortest)


def _without_fixed(batches: Batches, sizes: Sizes) -> Batches:
    """Without axes that none of the chosen arguments has, or that have one length."""
    axes = {}
    for name, axis in batches.axes.items():
        other = sizes._replace(lengths={**sizes.lengths, name: axis.shortest + axis.step})
        before, after = batches.make(sizes), batches.make(other)
        if axis.shortest != axis.longest and any(before[key].shape != after[key].shape for key in before):
            axes[name] = axis
    return replace(batches, axes=axes)


# --- text ------------------------------------------------------------------------------------------------------------


def _limits_of(model: Any, part: Any) -> tuple[int | None, int | None]:
    """The number of tokens that an encoder's mechanisms take exactly, and at most; None where they do not say."""
    configs = injection_of(part).configs.values() if part in injected_encoders(model) else ()
    exact = [config.exact_tokens for config in configs if config.exact_tokens is not None]
    most = [config.max_tokens for config in configs if config.max_tokens is not None]
    return min(exact, default=None), min(most, default=None)


def _make_text(model: Any, entered: Any, part: Any, axis: str) -> _Part:
    """Words, what of them is padding, and what else goes with them.

    entered: the module that gets them: the encoder, or one around it.
    """
    exact, most = _limits_of(model, part)
    longest = exact or min((limit for limit in (most, max_length_of(part)) if limit is not None), default=None)
    takes = inspect.signature(entered.forward).parameters
    takes_types = "token_type_ids" in inspect.signature(type(part).forward).parameters
    types = getattr(part.config, "type_vocab_size", 0) if takes_types else 0
    axes = {axis: Axis(exact or 2, longest)}
    is_choice = "MultipleChoice" in type(model).__name__
    if is_choice:
        axes["choices"] = Axis(2, 4)

    def make(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        length = sizes.lengths.get(axis, exact or 2)
        rows = sizes.batch * (sizes.lengths.get("choices", 2) if is_choice else 1)
        mask = _mask_of(rows, length, sizes.is_padded, 2)
        inputs = {"input_ids": _words(part.config, mask, generator), "attention_mask": mask}
        if types >= 2:
            shifted = torch.arange(length) + torch.arange(rows)[:, None]
            inputs["token_type_ids"] = shifted * types // (length + rows)
        if "bbox" in takes:
            most = min(1000, part.config.max_2d_position_embeddings - 1)
            corner = torch.randint(0, most // 2, (rows, length, 2), generator=generator)
            inputs["bbox"] = torch.cat([corner, corner + most // 2], -1)
        if is_choice:
            inputs = {name: tensor.unflatten(0, (sizes.batch, -1)) for name, tensor in inputs.items()}
        return inputs

    return _Part(axes, make)


def _mask_of(batch: int, length: int, is_padded: bool, shortest: int = 1) -> Tensor:
    """`(batch, length)`, 1 for what is no padding: in the first sample nothing is."""
    counts = torch.full((batch,), length)
    if is_padded:
        counts = (length - torch.arange(batch) * length // (batch + 1)).clamp(min=min(length, shortest))
    return (torch.arange(length) < counts[:, None]).long()


def _words(config: Any, mask: Tensor, generator: torch.Generator) -> Tensor:
    vocabulary = config.vocab_size
    words = torch.randint(min(_FIRST_WORD, vocabulary - 1), vocabulary, mask.shape, generator=generator)
    end, padding = getattr(config, "eos_token_id", None), getattr(config, "pad_token_id", None)
    if isinstance(end, int) and 0 <= end < vocabulary:  # which some heads look for
        words = words.masked_fill(words == end, min(_FIRST_WORD, vocabulary - 1))
        words = words.scatter(1, mask.sum(1, keepdim=True) - 1, end)
    return words.masked_fill(mask == 0, padding if isinstance(padding, int) and 0 <= padding < vocabulary else 0)


def _make_written(model: Any) -> _Part:
    """Make the tokens that a decoder has written so far."""
    decoder = model.config.decoder
    longest = getattr(decoder, "max_position_embeddings", None)

    def make(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        mask = torch.ones(sizes.batch, sizes.lengths.get("written", 1), dtype=torch.long)
        return {"decoder_input_ids": _words(decoder, mask, generator)}

    return _Part({"written": Axis(1, longest)}, make)


# --- pictures, videos and sound --------------------------------------------------------------------------------------


def _make_media(model: Any, base: Any, options: dict[str, Any]) -> _Part:
    """Make the inputs of an encoder that are no text.

    options: further arguments of the model, which are added here.
    """
    entered = find_input_module(model, base)
    name = None if entered is None else input_name_of(entered)
    kind = read_input_kind(base.config, type(base))
    if kind is not None and kind.sizes[0] is None and kind.masked == 0 and not takes_patches(base.config):
        has_mask = "attention_mask" in inspect.signature(entered.forward).parameters
        return _make_sound(model, base, str(name), "attention_mask" if has_mask else None, kind, "audio")
    example = example_inputs(model)
    options |= {key: value for key, value in example.items() if not isinstance(value, Tensor)}
    example = {key: value for key, value in example.items() if isinstance(value, Tensor)}
    shape = example[str(name)].shape[1:]
    axes: dict[str, Axis] = {}
    mechanisms = injection_of(base).configs.values() if base in injected_encoders(model) else ()
    if any(mechanism.needs_places for mechanism in mechanisms):
        pass  # what lies where is worked out for one size
    elif takes_any_number_of_frames(base.config):
        frames = base.config.tubelet_size
        axes["frames"] = Axis(frames, None, shape[0] + 2 * frames, frames)
    elif len(shape) == 3 and read_size_options(base.config, type(base)) == {}:
        patch = base.config.patch_size if isinstance(base.config.patch_size, int) else base.config.patch_size[0]
        side = Axis(2 * patch, None, (max(shape[1:]) // patch + 3) * patch, patch)
        axes |= {"height": side, "width": side._replace(long=side.long - patch)}  # not square alone

    def make(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        now = list(shape)
        for dim, axis in enumerate(("frames", None, None) if "frames" in axes else (None, "height", "width")):
            if axis is not None and axis in sizes.lengths:
                now[dim] = sizes.lengths[axis]
        values = torch.randn(sizes.batch, *now, generator=generator).to(base.dtype)
        beside = {
            key: value.expand(sizes.batch, *value.shape[1:]).clone() for key, value in example.items() if key != name
        }
        return {str(name): values, **beside}

    return _Part(axes, make)


def _make_sound(model: Any, part: Any, values: str, mask: str | None, kind: InputKind, axis: str) -> _Part:
    """Sound of any length, as a wave or in frames: samples or frames are what differs."""
    config = part.config
    dim = kind.sizes.index(None)
    exact, most = _limits_of(model, part)
    shortest, longest = (exact, exact) if exact is not None else (_SHORT_SOUND, most)
    if kind.most is not None:
        longest = kind.most
    if takes_waveform(config):
        least = count_samples(config, shortest)
        limits = Axis(
            least, None if longest is None else count_samples(config, longest), count_samples(config, _SOUND)
        )
    else:
        limits = Axis(shortest, longest)

    def make(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        length = sizes.lengths.get(axis, limits.shortest)
        shape = [length if size is None else size for size in kind.sizes]
        sound = torch.randn(sizes.batch, *shape, generator=generator).to(part.dtype)
        if mask is None:
            return {values: sound}
        counts = _mask_of(sizes.batch, length, sizes.is_padded, limits.shortest)
        beside = [1] * len(shape)
        beside[dim] = length
        return {values: sound * counts.view(sizes.batch, *beside).to(sound.dtype), mask: counts}

    return _Part({axis: limits}, make)


# --- fusion models ---------------------------------------------------------------------------------------------------


def _make_modality(model: Any, base: Any, name: str) -> _Part:
    """One modality, by the names of the arguments of the fusion model."""
    part, has = base.modality_model(name), base.config.modality_arguments(name)
    if name in (base.config.features or ()):
        return _make_vectors(model, base, name, part.config, has)
    if name == "text":
        return _make_text(part, part, part, name)
    kind = read_input_kind(part.config, type(part), max_length_of(part))
    if kind is not None and kind.masked is not None and not takes_patches(part.config):
        return _make_sound(part, part, has.values, has.mask, kind, name)
    options: dict[str, Any] = {}
    media = _make_media(part, part, options)
    ours = {str(input_name_of(part)): has.values, "pixel_attention_mask": has.mask}
    ours |= {other: key for key, other in has.others.items()}

    def make(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        # Images of a fusion model have one size, that of their encoder.
        made = media.make(Sizes(sizes.batch, {}, False), generator)
        return {str(ours[key]): value for key, value in made.items()}

    return _Part({}, make)


def _make_vectors(model: Any, base: Any, name: str, options: Any, has: Any) -> _Part:
    in_step = [other for other in getattr(model, "label_modalities", ()) if other in (base.config.features or ())]
    is_labelled = name in in_step and len(in_step) > 1
    first = options.class_tokens if is_labelled else 0
    axis = "places" if is_labelled else name
    shortest = 1 if is_labelled else max(1, options.class_tokens + 1)
    longest = options.max_length
    if is_labelled:
        parts = [base.modality_model(other).config for other in in_step]
        limits = [each.max_length - each.class_tokens for each in parts if each.max_length is not None]
        longest = min(limits, default=None)
    may_lack = len(base.config.modalities) > 1 and name == next(iter(base.config.features)) and name not in in_step
    positions = next(iter(has.others))

    def make(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        length = sizes.lengths.get(axis, shortest) + first
        mask = _mask_of(sizes.batch, length, sizes.is_padded, shortest + first)
        if sizes.is_padded and may_lack:
            mask[1:2] = 0  # a sample without the modality
        values = torch.randn(sizes.batch, length, options.size, generator=generator) * mask.unsqueeze(-1)
        made = {has.values: values.to(base.dtype), str(has.mask): mask}
        if options.positions is not None:
            places = torch.arange(length).expand(sizes.batch, -1).clone()
            made[positions] = places if options.positions == "learned" else places.float() * 1.5
        return made

    return _Part({axis: Axis(shortest, longest)}, make, (positions,))


def _make_presence(base: Any) -> _Part:
    """Make the marks of presence: the first sample has all modalities, each of the others lacks one."""
    names = base.config.modalities

    def make(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        samples = torch.arange(sizes.batch)
        lacking = {name: (samples % len(names) == i) & (samples > 0) for i, name in enumerate(names) if i > 0}
        return {f"has_{name}": ~lacking.get(name, samples < 0) for name in names}

    return _Part({}, make, tuple(f"has_{name}" for name in names))
