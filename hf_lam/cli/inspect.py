"""`hf-lam inspect`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..hub.cards import summarise_views
from ..modeling.configuration_hf_lam import MECHANISM_CONFIGS, HfLamConfigMixin
from .common import (
    CHECK_FAILED,
    WRONG_USE,
    AsJson,
    Revision,
    epilog,
    is_local,
    load_config,
    load_processor,
    loading_weights,
    model_source,
    print_json,
    random_model,
    result_console,
    stdout_for,
    working,
)

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedConfig

EPILOG = epilog(
    [
        "hf-lam inspect ./bert-lam",
        "hf-lam inspect me/bert-lam --text 'Who wrote it?' --text-pair 'She did.' --output ./pictures",
        "hf-lam inspect ./vit-stt --image cat.png --output ./pictures --format svg",
        "hf-lam inspect ./bert-views --layer 3",
    ],
    {
        CHECK_FAILED: "the model could not be loaded, or did not run",
        WRONG_USE: "wrong use, such as a folder without a model, or --text for a model of images; nothing was done",
    },
)


class Format(str, Enum):
    png = "png"
    svg = "svg"


@dataclass(frozen=True)
class Layer:
    """The mechanisms of one layer; what it does not have is None.

    mask_parameters: of its own learnable mask; None also where all layers share one.
    mask_deviation: mean of `|M − 1|` on the input, over tokens and, with masks of their own, heads.
    mask_deviation_by_head: the same, one number for each mask.
    views: one for each head.
    mixing: `λ` of each head of a mixture.
    """

    index: int
    mask_parameters: int | None = None
    mask_deviation: float | None = None
    mask_deviation_by_head: list[float] | None = None
    views: list[str] | None = None
    mixing: list[float] | None = None


@dataclass(frozen=True)
class Inspection:
    """What `hf-lam inspect` found.

    version: of the hf_lam that saved the model; None without mechanisms.
    mechanisms: their options by name, as in `config.json`.
    parameters: of the whole model.
    inputs: what the masks and pictures are of: `example`, or the names of the inputs that were given; None for none.
    shared_mask: of all layers together, where they share one.
    pictures: captions by file.
    """

    model: str
    model_class: str
    version: str | None
    mechanisms: dict[str, Any]
    parameters: int
    mechanism_parameters: int
    inputs: str | None = None
    layers: list[Layer] = field(default_factory=list)
    shared_mask: Layer | None = None
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
    layer: Annotated[int | None, typer.Option(min=0, help="Show this layer alone, head by head.")] = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Show the mechanisms of a model, layer by layer, and write pictures of them.

    It reads the weights with the classes of this hf_lam; code in a repository is never run. Without --text and
    --image, masks are those of an example of the model's size: a repeated token, or a black image.

    For private models, log in with `hf auth login`, or set HF_TOKEN.
    """
    if text_pair is not None and text is None:
        raise ValueError("--text-pair is the second text of a pair; give the first with --text.")
    if output is not None:
        # The folders that are missing are made.
        place = next(path for path in (output, *output.absolute().parents) if path.exists())
        if not place.is_dir():
            raise ValueError(f"--output {str(output)!r}: {str(place)!r} is a file; the pictures need a folder.")
    source = model_source(model)
    with stdout_for(as_json), working(f"Inspecting {model}", has_bars=not is_local(source)):
        config = load_config(source, revision)
        if isinstance(config, HfLamConfigMixin) and config.hf_lam is not None:
            given = _Given(text, text_pair, image)
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


@dataclass(frozen=True)
class _Given:
    """The inputs on the command line."""

    text: str | None
    text_pair: str | None
    image: Path | None


def _without_mechanisms(name: str, config: PreTrainedConfig) -> Inspection:
    import torch
    import transformers

    import hf_lam

    # What a repository names may be anything: only a class for this configuration is called.
    named = [getattr(package, kind, None) for kind in config.architectures or () for package in (hf_lam, transformers)]
    fits: Any = [found for found in named if getattr(found, "config_class", None) is type(config)]
    with torch.device("meta"):
        model = fits[0](config) if fits else random_model(config)
    notes = ["it has no mechanisms of hf_lam; see hf-lam convert"]
    return Inspection(name, type(model).__name__, None, {}, model.num_parameters(), 0, notes=notes)


def _inspect(
    name: str,
    source: str,
    config: PreTrainedConfig,
    revision: str | None,
    given: _Given,
    output: Path | None,
    format: str,
    only_layer: int | None,
) -> Inspection:
    from ..parameters import mechanism_parameters, only_injected_encoder

    notes: list[str] = []
    model = _load(source, config, revision)
    base = only_injected_encoder(model)
    layers = len(base._hf_lam_attentions)
    if only_layer is not None and only_layer >= layers:
        raise ValueError(f"--layer {only_layer}: the model has {layers} layers with mechanisms, from 0.")
    inputs, kind, tokens = _inputs_for(model, source, config, revision, given, notes)
    rows, shared = _layers_of(model, base, inputs)
    pictures: dict[str, str] = {}
    if output is not None:
        from ..visualization import save_pictures

        pictures = save_pictures(model, inputs, output, format=format, tokens=tokens)
    block = model.config.hf_lam
    return Inspection(
        model=name,
        model_class=type(model).__name__,
        version=block["version"],
        mechanisms={key: options for key, options in block.items() if key in MECHANISM_CONFIGS},
        parameters=model.num_parameters(),
        mechanism_parameters=sum(parameter.numel() for parameter in mechanism_parameters(model)),
        inputs=kind,
        layers=rows if only_layer is None else [rows[only_layer]],
        shared_mask=shared,
        pictures={str(output / file): caption for file, caption in pictures.items()} if output else {},
        notes=notes,
    )


def _load(source: str, config: Any, revision: str | None) -> Any:
    """The model, of the class that was saved or else the encoder, which is one of this package in any case."""
    import hf_lam

    known = [name for name in config.architectures or () if name in config.auto_classes.values()]
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


# --- Inputs ----------------------------------------------------------------------------------------------------------


def _inputs_for(
    model: Any, source: str, config: PreTrainedConfig, revision: str | None, given: _Given, notes: list[str]
) -> tuple[dict[str, Any] | None, str | None, list[str] | None]:
    """A batch of one, what it is, and for a model of text alone its tokens; None if no example can be made.

    Raises:
        ValueError: if the model does not take what was given, or has no processor to prepare it.
    """
    from ..flops import example_inputs
    from ..modeling.segments_hf_lam import is_fusion

    names = [name for name, value in (("text", given.text), ("image", given.image)) if value is not None]
    try:
        example = example_inputs(model)
    except ValueError as error:
        example = {}
        if not names:
            notes.append(f"no example was made, so masks and maps are left out: {error}")
            return None, None, None
    if not names:
        return example, "example", None
    _check_taken(model, names)
    processor = load_processor(source, config, revision)
    if processor is None:
        raise ValueError(f"{source!r} has no tokenizer or processor, which --{' and --'.join(names)} needs.")
    options: dict[str, Any] = {"return_tensors": "pt"}
    if given.text is not None:
        length = example["input_ids"].shape[-1] if "input_ids" in example else None
        # A pair in two arguments is what tokenizers take, a tuple what the processor of a fusion model takes.
        pair = (given.text, given.text_pair)
        if is_fusion(config):
            options["text"] = given.text if given.text_pair is None else pair
        else:
            options |= {"text": given.text, "text_pair": given.text_pair}
        options |= {"truncation": True, "max_length": length}
        if _needs_that_length(model):
            options["padding"] = "max_length"
    if given.image is not None:
        options["images"] = _read_image(given.image)
    inputs = dict(processor(**options))
    tokens = None
    if "input_ids" in inputs and not is_fusion(config):
        tokens = processor.convert_ids_to_tokens(inputs["input_ids"][0])
        if "MultipleChoice" in type(model).__name__:
            inputs = {name: tensor.unsqueeze(1) for name, tensor in inputs.items()}
    return inputs, " and ".join(names), tokens


def _check_taken(model: Any, names: list[str]) -> None:
    from ..modeling.segments_hf_lam import is_fusion

    if is_fusion(model.config):
        taken = list(model.config.modalities)
    elif model.main_input_name == "input_ids":
        taken = ["text"]
    else:
        taken = ["video" if hasattr(model.config, "num_frames") else "image"]
    strange = [name for name in names if name not in taken]
    if strange:
        raise ValueError(f"--{strange[0]}: {type(model).__name__} takes {' and '.join(taken)}, no {strange[0]}.")


def _needs_that_length(model: Any) -> bool:
    """Whether a text must have one length: that which spans of tokens, as segments of views, add up to."""
    from ..modeling.configuration_hf_lam import segment_kind
    from ..parameters import only_injected_encoder

    locomt = only_injected_encoder(model)._hf_lam_configs.locomt
    return locomt is not None and all(segment_kind(extent) == "length" for _, extent in locomt.segments)


def _read_image(path: Path) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError('--image needs Pillow. Run `pip install "hf-lam[image]"`.') from error
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"--image {str(path)!r} cannot be read as an image: {error}") from error


# --- Layers ----------------------------------------------------------------------------------------------------------


def _layers_of(model: Any, base: Any, inputs: dict[str, Any] | None) -> tuple[list[Layer], Layer | None]:
    from ..modeling.injection_hf_lam import mechanisms_of
    from ..visualization import learned_masks

    lam, locomt, stt = base._hf_lam_configs
    container: Any = mechanisms_of(base)
    masks: list[dict[str, Any]] = []
    if lam is not None:
        masks = [{"mask_parameters": sum(p.numel() for p in mask.parameters())} for mask in container.lam]
        if inputs is not None:
            for entry, mask in zip(masks, learned_masks(model, inputs), strict=True):
                by_head = (mask - 1).abs().mean((0, 2, 3)).tolist()
                entry["mask_deviation"] = sum(by_head) / len(by_head)
                entry["mask_deviation_by_head"] = by_head
    is_shared = lam is not None and lam.scope == "shared"
    rows = []
    for index in range(len(base._hf_lam_attentions)):
        options: dict[str, Any] = dict(masks[index]) if masks and not is_shared else {}
        if locomt is not None:
            options["views"] = list(locomt.views[index])
        if stt is not None and stt.is_mixture:
            options["mixing"] = container.stt[index].mixing.detach().float().clamp(0, 1).tolist()
        rows.append(Layer(index, **options))
    return rows, Layer(0, **masks[0]) if is_shared else None


# --- What people see -------------------------------------------------------------------------------------------------


def _head_lines(found: Inspection) -> str:
    saved = f", saved by hf_lam {found.version}" if found.version is not None else ""
    added = f", {found.mechanism_parameters:,} of them of hf_lam" if found.mechanisms else ""
    lines = [f"{found.model}: {found.model_class}{saved}", f"{found.parameters:,} parameters{added}"]
    for name, options in found.mechanisms.items():
        # The table below has the views.
        shown = {key: value for key, value in options.items() if value not in (None, False) and key != "views"}
        lines.append(f"{name}: {', '.join(f'{key} {value}' for key, value in shown.items()) or 'defaults'}")
    return "\n".join(lines)


def _table(found: Inspection) -> Table:
    from rich.table import Table

    shared = found.shared_mask is not None
    columns = {
        "mask parameters": ["shared" if shared else _count(layer.mask_parameters) for layer in found.layers],
        "mean |M − 1|": [_number(layer.mask_deviation) for layer in found.layers],
        "views": [summarise_views(layer.views or ()) for layer in found.layers],
        "λ by head": [" ".join(map(_number, layer.mixing or ())) for layer in found.layers],
    }
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    if "stt" in found.mechanisms:
        stt = found.mechanisms["stt"]
        columns["synthesised"] = [stt["synthesizer"] or stt["variant"]] * len(found.layers)
    table = Table("layer")
    for title in columns:
        is_number = title.startswith("m")
        table.add_column(title, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for index, layer in enumerate(found.layers):
        table.add_row(str(layer.index), *(cells[index] for cells in columns.values()))
    return table


def _head_table(shared: Layer | None, layer: Layer) -> Table:
    """One layer, a row for each head."""
    from rich.table import Table

    deviations = (shared or layer).mask_deviation_by_head or []
    by_head = {"view": layer.views or [], "λ": [_number(value) for value in layer.mixing or ()]}
    heads = max(len(deviations), *map(len, by_head.values()))
    # A mask may be one for all heads.
    columns = {"mean |M − 1|": [_number(value) for value in deviations] * (heads if len(deviations) == 1 else 1)}
    columns = {title: cells for title, cells in {**columns, **by_head}.items() if cells}
    table = Table("head", *columns, title=f"layer {layer.index}")
    for head in range(heads):
        table.add_row("all" if heads == 1 else str(head), *(cells[head] for cells in columns.values()))
    return table


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _tail_lines(found: Inspection) -> str:
    lines = []
    if found.shared_mask is not None:
        mask = found.shared_mask
        deviation = "" if mask.mask_deviation is None else f", mean |M − 1| {_number(mask.mask_deviation)}"
        lines.append(f"one mask for all layers: {_count(mask.mask_parameters)} parameters{deviation}")
    if found.inputs is not None and "lam" in found.mechanisms:
        lines.append(f"|M − 1| is for {'an example' if found.inputs == 'example' else f'the {found.inputs} given'}")
    lines += [f"{path}: {caption}" for path, caption in found.pictures.items()]
    lines += [f"note: {note}" for note in found.notes]
    return "".join(f"{line}\n" for line in lines)
