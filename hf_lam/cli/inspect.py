"""`hf-lam inspect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    CHECK_FAILED,
    WRONG_USE,
    AsJson,
    Elsewhere,
    Revision,
    count_each,
    epilog,
    is_local,
    load_config,
    loading_weights,
    model_source,
    print_json,
    random_model,
    result_console,
    stdout_for,
    working,
)
from .given_inputs import GivenInputs, inputs_for, read_pairs

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedConfig

    from ..facts import LayerFacts
    from ..modeling.injection_hf_lam import InjectedEncoder

EPILOG = epilog(
    [
        "hf-lam inspect ./bert-lam",
        "hf-lam inspect me/bert-lam --text 'Who wrote it?' --text-pair 'She did.' --output ./pictures",
        "hf-lam inspect ./vit-stt --image cat.png --output ./pictures --format svg",
        "hf-lam inspect ./bert-views --layer 3",
        "hf-lam inspect ./fusion --text 'It is great.' --features clips=clips.npy",
    ],
    {
        CHECK_FAILED: "the model could not be loaded, or did not run",
        WRONG_USE: "wrong use, such as a folder without a model, or --text for a model of images; nothing was done",
    },
)


class Format(str, Enum):
    png = "png"
    svg = "svg"


# The facts of one layer's mechanisms by their names, as JSON values, and its `index`.
Layer = dict[str, Any]


@dataclass(frozen=True)
class Inspection:
    """What `hf-lam inspect` found.

    version: of the hf_lam that saved the model; None without mechanisms.
    mechanisms: their options by name, as in `config.json`.
    decoder_lam: the options of the masks on a decoder's cross-attention, as in `config.json`; None without.
    parameters: of the whole model.
    modalities: of a fusion model, what each of them is, in words.
    inputs: what the masks and pictures are of: `example`, or the names of the inputs that were given; None for none.
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


def inspect(
    model: Annotated[str, typer.Argument(help="A model's folder, or its id on the Hub.")],
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the pictures into this folder.")] = None,
    format: Annotated[Format, typer.Option(help="Of the pictures.")] = Format.png,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Look at the model with this image."),
    ] = None,
    text: Annotated[str | None, typer.Option(help="Look at the model with this text.")] = None,
    text_pair: Annotated[str | None, typer.Option(help="The second text of a pair.")] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE.npy",
            help="Look at the model with these vectors of one of its modalities, an array (vectors, size). May be "
            "repeated.",
        ),
    ] = None,
    layer: Annotated[int | None, typer.Option(min=0, help="Show this layer alone, head by head.")] = None,
    mechanism: Elsewhere = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Show the mechanisms of a model, layer by layer, and write pictures of them.

    It reads the weights with the classes of this hf_lam; code in a repository is never run. Without --text, --image
    and --features, masks are those of an example of the model's size: a repeated token, a black image, or vectors of
    zeros.

    For private models, log in with `hf auth login`, or set HF_TOKEN.
    """
    from ..mechanism_options import find_mechanisms
    from ..modeling.configuration_hf_lam import HfLamConfigMixin

    if text_pair is not None and text is None:
        raise ValueError("--text-pair is the second text of a pair; give the first with --text.")
    if output is not None:
        # The folders that are missing are made.
        place = next(path for path in (output, *output.absolute().parents) if path.exists())
        if not place.is_dir():
            raise ValueError(f"--output {str(output)!r}: {str(place)!r} is a file; the pictures need a folder.")
    files = read_pairs(features or [])
    find_mechanisms("--mechanism", mechanism or [])
    source = model_source(model)
    with stdout_for(as_json), working(f"Inspecting {model}", has_bars=not is_local(source)):
        config = load_config(source, revision)
        if isinstance(config, HfLamConfigMixin) and config.hf_lam is not None:
            given = GivenInputs(text, text_pair, image, files)
            found = _inspect(model, source, config, revision, given, output, format.value, layer)
        else:
            found = _without_mechanisms(model, config)
    if as_json:
        print_json(asdict(found))
        return
    console = result_console()
    console.print(_head_lines(found), markup=False, highlight=False, soft_wrap=True)
    if found.mechanisms:
        console.print(_table(found) if layer is None else _head_table(found.shared_mask, found.layers[0]))
    console.print(_tail_lines(found), markup=False, highlight=False, soft_wrap=True, end="")


def _without_mechanisms(name: str, config: PreTrainedConfig) -> Inspection:
    import torch
    import transformers

    import hf_lam

    from ..modeling.cross_lam_hf_lam import read_cross_lam
    from ..modeling.hosts_facts_hf_lam import is_fusion
    from ..parameters import mechanism_parameters

    # What a repository names may be anything: only a class for this configuration is called.
    named = [getattr(package, kind, None) for kind in config.architectures or () for package in (hf_lam, transformers)]
    fits: Any = [found for found in named if getattr(found, "config_class", None) is type(config)]
    with torch.device("meta"):
        model = fits[0](config) if fits else random_model(config)
    masks = read_cross_lam(model)
    where = "it has no mechanisms of hf_lam" if masks is None else "its encoder has no mechanisms of hf_lam"
    return Inspection(
        name,
        type(model).__name__,
        None,
        {},
        model.num_parameters(),
        0 if masks is None else sum(parameter.numel() for parameter in mechanism_parameters(model)),
        masks,
        _modalities_of(model),
        notes=[f"{where}; see {'hf_lam.inject' if is_fusion(config) else 'hf-lam convert'}"],
    )


def _modalities_of(model: Any) -> dict[str, str]:
    from ..hub.modalities import modalities_in

    return {modality.name: str(modality) for modality in modalities_in(model)}


def _inspect(
    name: str,
    source: str,
    config: PreTrainedConfig,
    revision: str | None,
    given: GivenInputs,
    output: Path | None,
    format: str,
    only_layer: int | None,
) -> Inspection:
    from ..facts import list_facts, list_facts_of
    from ..modeling.cross_lam_hf_lam import read_cross_lam
    from ..modeling.injection_hf_lam import injection_of
    from ..parameters import mechanism_parameters, only_injected_encoder

    notes: list[str] = []
    model = _load(source, config, revision)
    base = only_injected_encoder(model)
    layers = len(injection_of(base).attentions)
    if only_layer is not None and only_layer >= layers:
        raise ValueError(f"--layer {only_layer}: the model has {layers} layers with mechanisms, from 0.")
    facts = list_facts(base)
    inputs, kind, tokens = inputs_for(model, base, source, config, revision, given, notes)
    of_inputs = [] if inputs is None else list_facts_of(model, base, inputs)
    for of_layer, added in zip(facts, of_inputs, strict=False):
        for mechanism, values in added.items():
            of_layer[mechanism] |= values
    rows, shared = _layers_of(base, facts)
    pictures: dict[str, str] = {}
    if output is not None:
        from ..visualization import save_pictures

        pictures = save_pictures(model, inputs, output, format=format, tokens=tokens)
    block = model.config.hf_lam
    return Inspection(
        model=name,
        model_class=type(model).__name__,
        version=block["version"],
        mechanisms={key: options for key, options in block.items() if key != "version"},
        parameters=model.num_parameters(),
        mechanism_parameters=sum(parameter.numel() for parameter in mechanism_parameters(model)),
        decoder_lam=read_cross_lam(model),
        modalities=_modalities_of(model),
        inputs=kind,
        layers=rows if only_layer is None else [rows[only_layer]],
        shared_mask=shared,
        input_facts=sorted({fact for layer in of_inputs for values in layer.values() for fact in values}),
        pictures={str(output / file): caption for file, caption in pictures.items()} if output else {},
        notes=notes,
    )


def _load(source: str, config: Any, revision: str | None) -> Any:
    """The model, of the class that was saved or else the encoder, which is one of this package in any case."""
    import hf_lam

    from ..hub.names import heads_of

    heads = heads_of(type(config))
    known = [name for name in config.architectures or () if name in heads]
    model_class = getattr(hf_lam, known[0] if known else config.auto_classes["AutoModel"])
    try:
        with loading_weights(source):
            return model_class.from_pretrained(source, **({} if revision is None else {"revision": revision}))
    except RuntimeError as error:
        # transformers refers to a report, which it writes as a warning.
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise RuntimeError(
            f"the weights of {source!r} do not fit its config.json; `hf-lam verify {source}` lists where."
        ) from error


# --- Layers ----------------------------------------------------------------------------------------------------------


def _layers_of(base: InjectedEncoder, found: Sequence[LayerFacts]) -> tuple[list[Layer], Layer | None]:
    """The facts of every layer, and those of what all layers share; None if they share nothing."""
    from ..modeling.injection_hf_lam import injection_of

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
    """What the facts are called that mechanisms have titles for, in a table of layers and in one of heads."""
    from ..modeling.mechanism_registry_hf_lam import mechanism_class_of, mechanism_names

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
    saved = f", saved by hf_lam {found.version}" if found.version is not None else ""
    has_any = found.mechanisms or found.decoder_lam is not None
    added = f", {found.mechanism_parameters:,} of them of hf_lam" if has_any else ""
    lines = [f"{found.model}: {found.model_class}{saved}", f"{found.parameters:,} parameters{added}"]
    lines += [f"{name}: {what}" for name, what in found.modalities.items()]
    in_table = {fact for layer in found.layers for fact in layer if isinstance(layer[fact], list)}
    masks = {} if found.decoder_lam is None else {"decoder_lam": found.decoder_lam}
    for name, options in (found.mechanisms | masks).items():
        shown = {key: value for key, value in options.items() if value not in (None, False) and key not in in_table}
        lines.append(f"{name}: {', '.join(f'{key} {value}' for key, value in shown.items()) or 'defaults'}")
    return "\n".join(lines)


def _table(found: Inspection) -> Table:
    from rich.table import Table

    shared = found.shared_mask or {}
    # What a shared mask is for the inputs stands below the table.
    shared = {fact: value for fact, value in shared.items() if fact not in found.input_facts}
    columns = _columns([*found.layers, shared])
    table = Table("layer")
    for fact, title in columns.items():
        is_number = any(isinstance(row.get(fact), (int, float)) for row in [shared, *found.layers])
        table.add_column(title, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for layer in found.layers:
        cells = ["shared" if shared.get(fact) is not None else _cell(layer.get(fact)) for fact in columns]
        table.add_row(str(layer["index"]), *cells)
    return table


def _head_table(shared: Layer | None, layer: Layer) -> Table:
    """One layer, a row for each head."""
    from rich.table import Table

    lists = {fact: value for row in (shared or {}, layer) for fact, value in row.items() if isinstance(value, list)}
    heads = max((len(lists[fact]) for fact in _columns([lists], by_head=True)), default=0)
    # A list may be of something else, and one of length 1 is for all heads.
    by_head = {fact: value for fact, value in lists.items() if len(value) in (1, heads)}
    columns = _columns([by_head], by_head=True)
    table = Table("head", *columns.values(), title=f"layer {layer['index']}")
    for head in range(heads):
        values = [by_head[fact] * (heads if len(by_head[fact]) == 1 else 1) for fact in columns]
        table.add_row("all" if heads == 1 else str(head), *(_cell(value[head]) for value in values))
    return table


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


def _tail_lines(found: Inspection) -> str:
    lines = []
    if found.shared_mask is not None:
        lines.append(_shared_line(found, found.shared_mask))
    titles = _columns([dict.fromkeys(found.input_facts, 0)])
    if titles:
        inputs = "an example" if found.inputs == "example" else f"the {found.inputs} given"
        lines.append(f"{' and '.join(titles.values())} {'is' if len(titles) == 1 else 'are'} for {inputs}")
    lines += [f"{path}: {caption}" for path, caption in found.pictures.items()]
    lines += [f"note: {note}" for note in found.notes]
    return "".join(f"{line}\n" for line in lines)


def _shared_line(found: Inspection, shared: Layer) -> str:
    from ..modeling.mechanism_registry_hf_lam import config_class_of, mechanism_class_of

    names = [name for name, options in found.mechanisms.items() if config_class_of(name).from_dict(options).is_shared]
    things = [mechanism_class_of(name).factor_name for name in names]
    said = []
    for fact, title in _columns([shared]).items():
        for thing in things:  # "mask parameters" of "one mask"
            title = title.removeprefix(f"{thing} ")
        cell = _cell(shared[fact])
        said.append(f"{cell} {title}" if isinstance(shared[fact], int) else f"{title} {cell}")
    return f"one {' and one '.join(things)} for all layers: {', '.join(said)}"
