"""Configurations: what a mechanism is (`LamConfig`, `LocomtConfig`, `SttConfig`), and the hosts' that carry it.

This file travels: it is copied into every saved model folder, next to its siblings, and must not
need the `hf_lam` package. Only `torch`, `transformers` and sibling modules may be imported here.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from transformers import BertConfig, VideoMAEConfig, ViTConfig
from transformers.utils.versions import require_version

from .views_hf_lam import check_views, cross_views

__version__ = "0.1.0"

require_version(
    "transformers>=5.18.0",
    f"hf_lam {__version__} needs it: older releases drop VideoMAE's q/v biases or overwrite loaded weights. "
    "Run `pip install -U transformers`.",
)

# The files a saved model needs to load without the hf_lam package, copied flat by `save_pretrained`.
TRAVELLING_FILES = (
    "configuration_hf_lam.py",
    "configuration_hf_lam_fusion.py",
    "views_hf_lam.py",
    "segments_hf_lam.py",
    "functional_hf_lam.py",
    "locomt_hf_lam.py",
    "stt_hf_lam.py",
    "synthesizers_hf_lam.py",
    "mechanisms_hf_lam.py",
    "injection_hf_lam.py",
    "modeling_hf_lam.py",
    "modeling_hf_lam_fusion.py",
    "processing_hf_lam.py",
)


class MechanismConfig:
    """What the mechanism configurations share: plain JSON out and in."""

    def to_dict(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        return asdict(self)  # type: ignore[call-overload]

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


@dataclass(frozen=True)
class LamConfig(MechanismConfig):
    """A learnable attention mask (LAM; Barrios & Jin, arXiv 2406.02761).

    The mask `M` multiplies the raw attention scores before the softmax:
    `softmax((Q Kᵀ / sqrt(D)) ⊙ M + padding) V`. A zero in `M` means "no preference", not "blocked".

    Args:
        scope: `"per_layer"` gives every layer a mask of its own (the paper's multi-layer LAM), `"shared"` one mask
            to all layers (its single one).
        source: what a per-layer mask reads: `"layer_input"`, the input of its attention layer, or `"embeddings"`, the
            input of the first encoder layer. A shared mask always reads the embeddings.
        per_head: one mask per head instead of one for all heads.
        bottleneck_size: width of the mask network's hidden layer; `None` is a quarter of the hidden size.
        init: `"identity"` starts at `M = 1`, so the model's outputs do not change; `"normal"` draws the weights from
            the host's `initializer_range`, which changes the outputs at once.
        rank: `None` is the paper's dense mask, with one output per key position. With `r`,
            `M_ij = f(x_i) · g(x_j)` with `r` factors: any length, and no parameters that grow with it.
        max_length: the longest sequence a dense mask can take; `None` takes it from the host.

    Raises:
        ValueError: for a value outside the above; the message names it.
    """

    scope: str = "per_layer"
    source: str = "layer_input"
    per_head: bool = False
    bottleneck_size: int | None = None
    init: str = "identity"
    rank: int | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        _check_choice(self, "scope", ("per_layer", "shared"))
        _check_choice(self, "source", ("layer_input", "embeddings"))
        _check_choice(self, "init", ("identity", "normal"))
        _check_bool(self, "per_head")
        for name in ("bottleneck_size", "rank", "max_length"):
            _check_positive_or_none(self, name)
        if self.rank is not None and self.max_length is not None:
            raise ValueError(
                f"LamConfig: max_length={self.max_length} has no meaning with rank={self.rank}; a low-rank mask takes "
                "any length. Leave one of the two out."
            )
        if self.scope == "shared":
            object.__setattr__(self, "source", "embeddings")


@dataclass(frozen=True)
class LocomtConfig(MechanismConfig):
    """Attention views (LoCoMT; Park & Choi, arXiv 2402.15096): which tokens each head of each layer looks at.

    The sequence is cut into named segments; a view says which segment's queries see which segment's keys. Heads with
    the same view are computed together on slices, so a view costs what it shows. The grammar is in `views_hf_lam.py`.

    Args:
        segments: `[name, extent]` pairs. The extent is a number of tokens, one after the other, or one of

            - `{"length": n, "global": true}`: `n` tokens that see, and are seen by, all in every view;
            - `{"rectangle": [top, left, height, width]}` in patches, for images. Together they cover the grid; tokens
              before it, such as `[CLS]`, become a global segment of their own unless a first extent names them;
            - `{"frames": [start, stop]}` in frames of the input, for video;
            - `{"token_type": t}`: the tokens with that `token_type_ids`, which differ from sample to sample;
            - `{"modality": name}`: the tokens of one modality of a fusion model, however many there are.

            `"token_type_ids"` is short for one segment `type_t` for every token type. `None` takes the host's own:
            token types for text, four quadrants for an image, two halves for a video, and the modalities of a fusion
            model, by their names.
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

    def __post_init__(self) -> None:
        if isinstance(self.segments, (list, tuple)):
            object.__setattr__(self, "segments", [_checked_segment(entry) for entry in self.segments])
            _check_segment_list(self.segments)
        elif self.segments not in (None, "token_type_ids"):
            raise ValueError(
                "LocomtConfig: segments must be None, 'token_type_ids' or a list of [name, extent] such as "
                f"[['text', 128], ['image', 196]], got {self.segments!r}."
            )
        self._check_views()
        _check_bool(self, "annealing")
        tokens = self.bottleneck_tokens
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
            raise ValueError(f"LocomtConfig: bottleneck_tokens must be an integer of at least 0, got {tokens!r}.")
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

    @property
    def names(self) -> list[str]:
        """The names of the segments, once they are known."""
        return [name for name, _ in self.segments]

    @property
    def is_global(self) -> list[bool]:
        """Which of the segments see, and are seen by, all."""
        return [isinstance(extent, dict) and extent.get("global", False) for _, extent in self.segments]

    @property
    def views_of_the_paper(self) -> list[str]:
        """`self` and the cross view of every pair of segments that are not global; `full` is none of them."""
        local = [name for name, everywhere in zip(self.names, self.is_global, strict=True) if not everywhere]
        return ["self", *cross_views(local)]


_EXTENTS = "a number of tokens, {'length': n, 'global': True}, {'rectangle': [top, left, height, width]}, "
_EXTENTS += "{'frames': [start, stop]}, {'token_type': t} or {'modality': name}"


def _checked_segment(entry: Any) -> list[Any]:
    if not isinstance(entry, (list, tuple)) or len(entry) != 2:
        raise ValueError(f"LocomtConfig: a segment is [name, extent], with extent {_EXTENTS}; got {entry!r}.")
    name, extent = entry
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise ValueError(f"LocomtConfig: a segment's name must be letters, digits and _, got {name!r}.")
    if _is_count(extent, 1):
        return [name, extent]
    if not isinstance(extent, Mapping) or not _is_extent(extent):
        raise ValueError(f"LocomtConfig: the extent of segment {name!r} must be {_EXTENTS}; got {extent!r}.")
    return [name, {key: list(value) if isinstance(value, (list, tuple)) else value for key, value in extent.items()}]


def _is_extent(extent: Mapping[str, Any]) -> bool:
    keys = set(extent)
    if keys == {"length", "global"}:
        return _is_count(extent["length"], 1) and isinstance(extent["global"], bool)
    if len(keys) != 1:
        return False
    (kind,) = keys
    value = extent[kind]
    if kind == "token_type":
        return _is_count(value, 0)
    if kind == "modality":
        return isinstance(value, str)
    if not isinstance(value, (list, tuple)):
        return False
    if kind == "rectangle":
        return len(value) == 4 and all(map(_is_count, value, (0, 0, 1, 1)))
    return kind == "frames" and len(value) == 2 and all(map(_is_count, value, (0, 1))) and value[0] < value[1]


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def segment_kind(extent: Any) -> str:
    """`"length"`, `"rectangle"`, `"frames"`, `"token_type"` or `"modality"`."""
    if isinstance(extent, int) or "length" in extent:
        return "length"
    return next(iter(extent))


def _check_segment_list(segments: Any) -> None:
    names = [name for name, _ in segments]
    if not segments or len(set(names)) < len(names):
        raise ValueError(f"LocomtConfig: segments must be at least one, each with a name of its own, got {names}.")
    kinds = [segment_kind(extent) for _, extent in segments]
    first = next((i for i, kind in enumerate(kinds) if kind != "length"), len(kinds))
    if len(set(kinds[first:])) > 1:
        raise ValueError(
            "LocomtConfig: segments are spans of tokens, or begin with such spans and go on with extents of one other "
            f"kind (rectangles, frames, token types or modalities), got {segments!r}."
        )
    if all(isinstance(extent, dict) and extent.get("global") for _, extent in segments):
        raise ValueError("LocomtConfig: all segments are global; at least one must not be.")


def _check_choice(config: MechanismConfig, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in choices:
        raise ValueError(f"{type(config).__name__}: {name} must be one of {list(choices)}, got {value!r}.")


def _check_bool(config: MechanismConfig, name: str) -> None:
    value = getattr(config, name)
    if not isinstance(value, bool):
        raise ValueError(f"{type(config).__name__}: {name} must be True or False, got {value!r}.")


def _check_positive_or_none(config: MechanismConfig, name: str) -> None:
    value = getattr(config, name)
    if value is not None and not _is_count(value, 1):
        raise ValueError(f"{type(config).__name__}: {name} must be None or an integer of at least 1, got {value!r}.")


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
        synthesizer: what a mixture mixes in, one of the other variants; `None` is `"dense"`. Only for a mixture.
        grid: sizes of the axes, the last one runs fastest; `None` takes it from the host: (rows, columns) of an image,
            (steps, rows, columns) of a video, and the longest text, of which shorter ones take a part.
        prefix_tokens: tokens before the grid, such as `[CLS]`; `None` takes them from the host. A row of the grid
            spends a learned share on them, and they spend the rest of theirs on one synthesised vector an axis.
        bottleneck_size: width of `W1` in the dense variants; `None` is the size of a head.
        factors: the sizes `[s, t]` with `s · t = n_a` of the two vectors of `"factorized_dense"`, for every axis;
            `None` takes those nearest to each other.
        rank: of `"factorized_random"`; `None` is 8.
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

    def __post_init__(self) -> None:
        _check_choice(self, "variant", ("mixture", *SYNTHESIZERS))
        if self.is_mixture and self.synthesizer is None:
            object.__setattr__(self, "synthesizer", "dense")
        if self.is_mixture:
            _check_choice(self, "synthesizer", SYNTHESIZERS)
        elif self.synthesizer == self.variant:  # what `replace(mixture, variant=...)` leaves
            object.__setattr__(self, "synthesizer", None)
        for name in ("bottleneck_size", "rank"):
            _check_positive_or_none(self, name)
        for name in ("frozen", "train_mixing"):
            _check_bool(self, name)
        if self.prefix_tokens is not None and not _is_count(self.prefix_tokens, 0):
            raise ValueError(
                f"SttConfig: prefix_tokens must be None or an integer of at least 0, got {self.prefix_tokens!r}."
            )
        if self.grid is not None:
            if (
                not isinstance(self.grid, (list, tuple))
                or not self.grid
                or not all(_is_count(n, 1) for n in self.grid)
            ):
                raise ValueError(
                    f"SttConfig: grid must be None or the sizes of its axes, such as [14, 14], got {self.grid!r}."
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
            isinstance(pair, (list, tuple)) and len(pair) == 2 and all(_is_count(n, 1) for n in pair) for pair in pairs
        )
        if not are_pairs or (self.grid is not None and [s * t for s, t in pairs] != self.grid):
            raise ValueError(
                "SttConfig: factors must be None or [s, t] for every axis, with s · t the size of the axis, such as "
                f"[[2, 7], [2, 7]] for grid=[14, 14]; got {pairs!r} for grid={self.grid}."
            )
        object.__setattr__(self, "factors", [list(pair) for pair in pairs])

    @property
    def is_mixture(self) -> bool:
        """Whether there still are queries and keys."""
        return self.variant == "mixture"

    @property
    def synthesized_by(self) -> str:
        """Where the synthetic map comes from: `dense`, `random`, `factorized_dense` or `factorized_random`."""
        return self.synthesizer if self.synthesizer is not None else self.variant


# Every mechanism by the key it has in the `hf_lam` block of `config.json`.
MECHANISM_CONFIGS: dict[str, type[Any]] = {
    "lam": LamConfig,
    "locomt": LocomtConfig,
    "stt": SttConfig,
}


class Mechanisms(NamedTuple):
    """The mechanisms of one encoder; `None` where it has none of that kind."""

    lam: LamConfig | None = None
    locomt: LocomtConfig | None = None
    stt: SttConfig | None = None

    def block(self) -> dict[str, Any] | None:
        """What `config.json` stores."""
        options = {name: config.to_dict() for name, config in self._asdict().items() if config is not None}
        return {"version": __version__, **options} if options else None


def mechanism_block(value: Any) -> dict[str, Any] | None:
    """Validate what a user or a `config.json` gives as `hf_lam` and return it as plain JSON.

    Args:
        value: `None`, a mechanism configuration, several of them, the dictionary form
            `{"lam": {...}, "version": "0.1.0"}`, or the bare options of one mechanism.

    Returns:
        `{"version": ..., "lam": {...}}` with every option spelled out, or `None` for no mechanism.

    Raises:
        ValueError: if a key, an option or a value is unknown, or a mechanism is given twice.
    """
    if value is None:
        return None
    if isinstance(value, MechanismConfig):
        value = [value]
    if isinstance(value, (list, tuple)):
        return _block_of_configs(value)
    if not isinstance(value, Mapping):
        raise ValueError(
            f"hf_lam must be a mechanism configuration or a dictionary such as {{'lam': {{...}}}}, got "
            f"{type(value).__name__}: {value!r}."
        )
    for name, config_class in MECHANISM_CONFIGS.items():
        if value and set(value) <= {field.name for field in fields(config_class)}:
            value = {name: value}
    written_by = value.get("version", __version__)
    unknown = sorted(set(value) - set(MECHANISM_CONFIGS) - {"version"}, key=str)
    if unknown:
        raise ValueError(
            f"the hf_lam block has unknown keys {unknown}; hf_lam {__version__} knows {sorted(MECHANISM_CONFIGS)}. "
            f"The block was written by hf_lam {written_by}: if that is newer, upgrade hf_lam."
        )
    block: dict[str, Any] = {"version": written_by}
    for name, config_class in MECHANISM_CONFIGS.items():
        if name in value:
            try:
                block[name] = config_class.from_dict(value[name]).to_dict()
            except ValueError as error:
                raise ValueError(f"hf_lam block written by hf_lam {written_by}: {error}") from error
    return block if len(block) > 1 else None


def _block_of_configs(configs: list[Any] | tuple[Any, ...]) -> dict[str, Any]:
    block: dict[str, Any] = {"version": __version__}
    names = {config_class: name for name, config_class in MECHANISM_CONFIGS.items()}
    for config in configs:
        name = names.get(type(config))
        if name is None:
            expected = [config_class.__name__ for config_class in MECHANISM_CONFIGS.values()]
            raise ValueError(f"expected a mechanism configuration ({', '.join(expected)}), got {config!r}.")
        if name in block:
            raise ValueError(f"{type(config).__name__} was given twice; a model takes one of each mechanism.")
        block[name] = config.to_dict()
    if len(block) == 1:
        raise ValueError("no mechanism configuration was given; pass LamConfig(), for example.")
    return block


def mechanisms_in(block: Mapping[str, Any] | None) -> Mechanisms:
    """The configurations inside a validated `hf_lam` block."""
    return Mechanisms(
        **{name: kind.from_dict(block[name]) for name, kind in MECHANISM_CONFIGS.items() if block and name in block}
    )


class HfLamConfigMixin:
    """What the configurations share: the validated `hf_lam` key, and code that travels with the model.

    host_model_type: of the stock checkpoints that the models load; None if there are none.
    code_suffix: of the two files in which the configuration and the models are.
    auto_classes: the models, by the Auto class that loads them.
    """

    model_type: ClassVar[str]
    host_model_type: ClassVar[str | None]
    code_suffix: ClassVar[str] = ""
    auto_classes: ClassVar[dict[str, str]]
    hf_lam: Any

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "hf_lam":
            value = mechanism_block(value)
        super().__setattr__(name, value)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers, and takes the `config.json` of a stock host as it is."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
        found = config_dict.get("model_type", cls.model_type)
        if found not in (cls.model_type, cls.host_model_type):
            expected = " or ".join(repr(kind) for kind in (cls.host_model_type, cls.model_type) if kind is not None)
            raise ValueError(
                f"{cls.__name__} loads checkpoints of model type {expected}, but "
                f"{str(pretrained_model_name_or_path)!r} is of type {found!r}. For other encoders load the model with "
                "transformers and call hf_lam.inject(model, ...)."
            )
        if found == cls.host_model_type:
            # A stock auto_map or architecture would point the saved copy at classes it is not made of.
            config_dict = {k: v for k, v in config_dict.items() if k not in ("auto_map", "architectures")}
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Save `config.json` and, beside it, the code of the model family and an `auto_map` that names it.

        transformers would write into `auto_map` only the one class that was saved, so `AutoModel` would fail on a
        folder saved from a task head. Every model saved by transformers or `Trainer` passes through here.
        """
        folder = Path(save_directory)
        copy_code(Path(__file__).parent, folder)
        if self.hf_lam is not None:
            self.hf_lam = self.hf_lam | {"version": __version__}
        # Of the class: what was loaded from a file may have a key of that name.
        suffix, classes = type(self).code_suffix, type(self).auto_classes
        family = {"AutoConfig": f"configuration_hf_lam{suffix}.{type(self).__name__}"}
        family |= {auto: f"modeling_hf_lam{suffix}.{name}" for auto, name in classes.items()}
        # A process that loaded a configuration alone has only this file, and can only write what it has.
        self.auto_map = {
            auto: name for auto, name in family.items() if (folder / f"{name.split('.')[0]}.py").is_file()
        }
        for name in getattr(self, "sub_configs", {}):
            encoder = getattr(self, name, None)
            # transformers leaves out where a model was loaded from, but not for the configurations inside of it.
            if encoder is not None and os.path.exists(getattr(encoder, "_name_or_path", None) or ""):
                encoder._name_or_path = ""
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)  # type: ignore[misc]


def copy_code(source: Path, folder: Path) -> None:
    """Copy the travelling files that are in `source` to `folder`, each one whole or not at all."""
    if folder.is_file():
        raise ValueError(f"{str(folder)!r} is a file; save_pretrained needs a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in TRAVELLING_FILES:
        if not (source / name).is_file() or (source / name).resolve() == (folder / name).resolve():
            continue
        partial = folder / f".{name}.{os.getpid()}.partial"
        shutil.copyfile(source / name, partial)
        os.replace(partial, folder / name)


class HfLamBertConfig(HfLamConfigMixin, BertConfig):
    """A `BertConfig` with the mechanisms of the model under `hf_lam`, for example `{"lam": {"rank": 8}}`."""

    model_type = "hf_lam_bert"
    host_model_type = "bert"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoModel": "HfLamBertModel",
        "AutoModelForSequenceClassification": "HfLamBertForSequenceClassification",
        "AutoModelForTokenClassification": "HfLamBertForTokenClassification",
        "AutoModelForQuestionAnswering": "HfLamBertForQuestionAnswering",
        "AutoModelForMaskedLM": "HfLamBertForMaskedLM",
        "AutoModelForMultipleChoice": "HfLamBertForMultipleChoice",
    }

    hf_lam: Any = None


class HfLamViTConfig(HfLamConfigMixin, ViTConfig):
    """A `ViTConfig` with the mechanisms of the model under `hf_lam`, for example `{"lam": {"scope": "shared"}}`."""

    model_type = "hf_lam_vit"
    host_model_type = "vit"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoModel": "HfLamViTModel",
        "AutoModelForImageClassification": "HfLamViTForImageClassification",
        "AutoModelForMaskedImageModeling": "HfLamViTForMaskedImageModeling",
    }

    hf_lam: Any = None


class HfLamVideoMAEConfig(HfLamConfigMixin, VideoMAEConfig):
    """A `VideoMAEConfig` with the mechanisms of the model under `hf_lam`, for example `{"lam": {}}`."""

    model_type = "hf_lam_videomae"
    host_model_type = "videomae"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoModel": "HfLamVideoMAEModel",
        "AutoModelForVideoClassification": "HfLamVideoMAEForVideoClassification",
    }

    hf_lam: Any = None
