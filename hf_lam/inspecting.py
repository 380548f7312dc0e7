"""The mechanisms of a model, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .facts import LayerFacts, list_facts, list_facts_of
from .flops import example_inputs
from .hub.modalities import modalities_in
from .modeling.cross_lam_hf_lam import read_cross_lam
from .modeling.injection_hf_lam import InjectedEncoder, injected_encoders, injection_of
from .modeling.mechanism_registry_hf_lam import block_of, config_class_of, mechanism_class_of, mechanism_names
from .parameters import list_carriers, mechanism_parameters, only_injected_encoder
from .result_tables import Column, Readable, ResultTable, count_each

__all__ = ["Inspection", "inspect"]

# The names of inputs below a table, for those without a name.
_INPUTS = {"example": "an example", "given": "the inputs given"}
# The facts of one layer's mechanisms by their names, as JSON values, and its `index`.
Layer = dict[str, Any]


@dataclass(frozen=True)
class Inspection(Readable):
    """The result of [`inspect`].

    model: the folder or the id on the Hub that it was loaded from, as far as that is known, or else its class.
    version: version of the hf_lam that saved the model, or whose mechanisms it has; None without mechanisms.
    mechanisms: their options by name, as in `config.json`.
    decoder_lam: the options of the masks on a decoder's cross-attention, as in `config.json`; None without.
    parameters: parameters of the whole model.
    modalities: description of each modality of a fusion model.
    inputs: inputs that the masks and pictures are for: `example`, or the names of the inputs that were given; None for
        none.
    layers: the facts of each; one that it does not have is None, and so is one that all layers share.
    shared_mask: the facts of what all layers share, where they share something.
    input_facts: those of the facts that are of the inputs.
    pictures: captions by file.
    """

    model: str
    model_class: str
    version: str | None
    mechanisms: dict[str, Any]
    parameters: int
    mechanism_parameters: int
    decoder_lam: dict[str, Any] | None = None
    modalities: dict[str, str] = field(default_factory=dict)
    inputs: str | None = None
    layers: list[Layer] = field(default_factory=list)
    shared_mask: Layer | None = None
    input_facts: list[str] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def tables(self) -> tuple[ResultTable, ...]:
        """The table that it prints, with a row for each layer."""
        return (_table(self),)

    def heads_of(self, layer: int) -> ResultTable:
        """One layer, a row for each head.

        Raises:
            ValueError: if there is no such layer.
        """
        of_layer = [found for found in self.layers if found["index"] == layer]
        if not of_layer:
            raise ValueError(f"layer must be from 0 to {len(self.layers) - 1}, got {layer}.")
        return _head_table(self.shared_mask, of_layer[0])


def inspect(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> Inspection:
    """Read the mechanisms of a model: their options, and for every layer its views, its mixture, and its mask.

    `print` shows a table with a row for each layer, and so does a notebook.

    Args:
        model: any model, or what is wrapped around one, with mechanisms in at most one encoder. It is left as it was.
        inputs: arguments of the model, for facts that follow from the inputs, such as how far masks are from changing
            nothing. Those of an example (`hf_lam.flops.example_inputs`) unless given.

    Raises:
        ValueError: if several encoders of the model have mechanisms.

    Examples:
        >>> from hf_lam import LocomtConfig, convert, inspect
        >>> model = convert("google/vit-base-patch16-224", LocomtConfig(views="self"))
        >>> set(inspect(model).layers[0]["views"])
        {'self'}
    """
    # Inside of a wrapper, such as one of PEFT or DistributedDataParallel.
    within: Any = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), model)
    name = getattr(getattr(within, "config", None), "name_or_path", None) or type(within).__name__
    if not injected_encoders(model):
        return describe_plain(within, name)
    only_injected_encoder(model)
    notes: list[str] = []
    kind = "given"
    if inputs is None:
        kind = "example"
        try:
            inputs = example_inputs(within)
        except ValueError as error:
            notes.append(f"no example was made, so masks are left out: {error}")
    return inspect_with(within, name, inputs, None if inputs is None else kind, notes)


def describe_plain(model: Any, name: str) -> Inspection:
    """Describe a model whose encoders have no mechanisms."""
    masks = read_cross_lam(model)
    where = "it has no mechanisms of hf_lam" if masks is None else "its encoder has no mechanisms of hf_lam"
    modalities = _modalities_of(model)
    return Inspection(
        name,
        type(model).__name__,
        None,
        {},
        sum(parameter.numel() for parameter in model.parameters()),
        _added_parameters(model),
        masks,
        modalities,
        notes=[f"{where}; see {'hf_lam.inject' if modalities else 'hf-lam convert'}"],
    )


def inspect_with(
    model: Any, name: str, inputs: Mapping[str, Any] | None, kind: str | None, notes: Sequence[str] = ()
) -> Inspection:
    """Inspect the mechanisms of the one encoder that has them, for these inputs.

    kind: description of the inputs, in a word or two.
    """
    base = only_injected_encoder(model)
    facts = list_facts(base)
    of_inputs = [] if inputs is None else list_facts_of(model, base, inputs)
    for of_layer, added in zip(facts, of_inputs, strict=False):
        for mechanism, values in added.items():
            of_layer[mechanism] |= values
    rows, shared = _layers_of(base, facts)
    # A model that was injected into may have a configuration without a place for what it has.
    block: Any = getattr(model.config, "hf_lam", None) or block_of(injection_of(base).configs)
    return Inspection(
        model=name,
        model_class=type(model).__name__,
        version=block["version"],
        mechanisms={key: options for key, options in block.items() if key != "version"},
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        mechanism_parameters=_added_parameters(model),
        decoder_lam=read_cross_lam(model),
        modalities=_modalities_of(model),
        inputs=kind,
        layers=rows,
        shared_mask=shared,
        input_facts=sorted({fact for layer in of_inputs for values in layer.values() for fact in values}),
        notes=list(notes),
    )


def _added_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in mechanism_parameters(model)) if list_carriers(model) else 0


def _modalities_of(model: Any) -> dict[str, str]:
    return {modality.name: str(modality) for modality in modalities_in(model)} if hasattr(model, "config") else {}


# --- Layers ----------------------------------------------------------------------------------------------------------


def _layers_of(base: InjectedEncoder, found: Sequence[LayerFacts]) -> tuple[list[Layer], Layer | None]:
    """The facts of every layer, and those of what all layers share; None if they share nothing."""
    configs = injection_of(base).configs
    shared = [name for name in configs if configs[name].is_shared]
    own = [name for name in configs if name not in shared]
    rows = [{"index": index, **_row(facts, own)} for index, facts in enumerate(found)]
    return rows, {"index": 0, **_row(found[0], shared)} if shared else None


def _row(layer: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The facts of some mechanisms of a layer, with None for those that other mechanisms of hf_lam would have."""
    row = dict.fromkeys(_titles())
    for name in names:
        # Two mechanisms of other people may call something alike.
        row |= {fact if row.get(fact) is None else f"{name}.{fact}": value for fact, value in layer[name].items()}
    return row


# --- What people see -------------------------------------------------------------------------------------------------


def _titles() -> dict[str, tuple[str, str]]:
    """The titles that mechanisms give their facts, in a table of layers and in one of heads."""
    return {
        fact: titles for name in mechanism_names() for fact, titles in mechanism_class_of(name).fact_titles.items()
    }


def _columns(rows: Sequence[Layer], by_head: bool = False) -> dict[str, str]:
    """The titles of the facts that some row has, by the facts' names."""
    known = _titles()
    facts = dict.fromkeys(fact for row in rows for fact, value in row.items() if value is not None)
    ordered = sorted(facts, key=lambda fact: list(known).index(fact) if fact in known else len(known))
    titles = {fact: known[fact][by_head] if fact in known else fact.replace("_", " ") for fact in ordered}
    return {fact: title for fact, title in titles.items() if title and fact != "index"}


def _head_lines(found: Inspection) -> str:
    # One that was made here was saved by nobody yet.
    is_named = found.model != found.model_class
    release = f", {'saved by ' if is_named else ''}hf_lam {found.version}" if found.version is not None else ""
    has_any = found.mechanisms or found.decoder_lam is not None
    added = f", {found.mechanism_parameters:,} of them of hf_lam" if has_any else ""
    name = f"{found.model}: " if is_named else ""
    lines = [f"{name}{found.model_class}{release}", f"{found.parameters:,} parameters{added}"]
    lines += [f"{name}: {what}" for name, what in found.modalities.items()]
    in_table = {fact for layer in found.layers for fact in layer if isinstance(layer[fact], list)}
    masks = {} if found.decoder_lam is None else {"decoder_lam": found.decoder_lam}
    for name, options in (found.mechanisms | masks).items():
        shown = {key: value for key, value in options.items() if value not in (None, False) and key not in in_table}
        lines.append(f"{name}: {', '.join(f'{key} {value}' for key, value in shown.items()) or 'defaults'}")
    return "\n".join(lines)


def _table(found: Inspection) -> ResultTable:
    if not found.mechanisms:
        return ResultTable(_head_lines(found), notes=_tail_lines(found))
    shared = found.shared_mask or {}
    # What a shared mask is for the inputs stands below the table.
    shared = {fact: value for fact, value in shared.items() if fact not in found.input_facts}
    titles = _columns([*found.layers, shared])
    columns = [Column("layer", is_number=False)]
    for fact, title in titles.items():
        is_number = any(isinstance(row.get(fact), (int, float)) for row in [shared, *found.layers])
        columns.append(Column(title, is_number))
    rows = [
        [
            str(layer["index"]),
            *("shared" if shared.get(fact) is not None else _cell(layer.get(fact)) for fact in titles),
        ]
        for layer in found.layers
    ]
    return ResultTable(_head_lines(found), columns, rows, notes=_tail_lines(found))


def _head_table(shared: Layer | None, layer: Layer) -> ResultTable:
    """One layer, a row for each head."""
    lists = {fact: value for row in (shared or {}, layer) for fact, value in row.items() if isinstance(value, list)}
    heads = max((len(lists[fact]) for fact in _columns([lists], by_head=True)), default=0)
    # A list may be of something else, and one of length 1 is for all heads.
    by_head = {fact: value for fact, value in lists.items() if len(value) in (1, heads)}
    columns = _columns([by_head], by_head=True)
    rows = []
    for head in range(heads):
        values = [by_head[fact] * (heads if len(by_head[fact]) == 1 else 1) for fact in columns]
        rows.append(["all" if heads == 1 else str(head), *(_cell(value[head]) for value in values)])
    headings = [Column(title, is_number=False) for title in ("head", *columns.values())]
    return ResultTable(f"layer {layer['index']}", headings, rows)


def _cell(value: Any) -> str:
    """A fact in a table: texts of a list are counted, its numbers stand beside each other."""
    if value is None:
        return ""
    if isinstance(value, list):
        texts = [entry for entry in value if isinstance(entry, str)]
        return count_each(texts) if texts else " ".join(map(_cell, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _tail_lines(found: Inspection) -> list[str]:
    lines = []
    if found.shared_mask is not None:
        lines.append(_shared_line(found, found.shared_mask))
    titles = _columns([dict.fromkeys(found.input_facts, 0)])
    if titles:
        inputs = _INPUTS.get(found.inputs or "", f"the {found.inputs} given")
        lines.append(f"{' and '.join(titles.values())} {'is' if len(titles) == 1 else 'are'} for {inputs}")
    lines += [f"{path}: {caption}" for path, caption in found.pictures.items()]
    lines += [f"note: {note}" for note in found.notes]
    return lines


def _shared_line(found: Inspection, shared: Layer) -> str:
    names = [name for name, options in found.mechanisms.items() if config_class_of(name).from_dict(options).is_shared]
    things = [mechanism_class_of(name).factor_name for name in names]
    said = []
    for fact, title in _columns([shared]).items():
        for thing in things:  # "mask parameters" of "one mask"
            title = title.removeprefix(f"{thing} ")
        cell = _cell(shared[fact])
        said.append(f"{cell} {title}" if isinstance(shared[fact], int) else f"{title} {cell}")
    return f"one {' and one '.join(things)} for all layers: {', '.join(said)}"
