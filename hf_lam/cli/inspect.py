"""`hf-lam inspect`."""

from __future__ import annotations

from dataclasses import asdict, replace
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
    epilog,
    is_local,
    load_config,
    loading_weights,
    model_source,
    print_json,
    print_tables,
    random_model,
    stdout_for,
    working,
)
from .given_inputs import GivenInputs, inputs_for, read_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..inspecting import Inspection

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


def inspect(
    model: Annotated[str, typer.Argument(help="A model's folder, or its id on the Hub.")],
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the pictures into this folder.")] = None,
    format: Annotated[Format, typer.Option(help="The file format of the pictures.")] = Format.png,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Run the model on this image."),
    ] = None,
    text: Annotated[str | None, typer.Option(help="Run the model on this text.")] = None,
    text_pair: Annotated[str | None, typer.Option(help="Use this text as the second of a pair.")] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE.npy",
            help="Run the model on these vectors of one of its modalities, an array (vectors, size). May be repeated.",
        ),
    ] = None,
    layer: Annotated[int | None, typer.Option(min=0, help="Show only this layer, head by head.")] = None,
    mechanism: Elsewhere = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Show the mechanisms of a model, layer by layer, and write pictures of them.

    The weights are read with the classes of this hf_lam; code in a repository is never run. Without --text, --image
    and --features, masks are shown for an example of the size that the model is made for: a repeated token, a black
    image, or vectors of zeros.

    For private models, log in with `hf auth login` or set HF_TOKEN.
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
    if layer is None or not found.mechanisms:
        print_tables(found.tables())
    else:
        (table,) = found.tables()
        heads = found.heads_of(layer)
        print_tables([replace(table, columns=(), rows=(), notes=()), replace(heads, notes=table.notes)])


def _without_mechanisms(name: str, config: PreTrainedConfig) -> Inspection:
    import torch
    import transformers

    import hf_lam

    from ..inspecting import describe_plain

    # What a repository names may be anything: only a class for this configuration is called.
    named = [getattr(package, kind, None) for kind in config.architectures or () for package in (hf_lam, transformers)]
    fits: Any = [found for found in named if getattr(found, "config_class", None) is type(config)]
    with torch.device("meta"):
        model = fits[0](config) if fits else random_model(config)
    return describe_plain(model, name)


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
    from ..inspecting import inspect_with
    from ..modeling.injection_hf_lam import injection_of
    from ..parameters import only_injected_encoder

    notes: list[str] = []
    model = _load(source, config, revision)
    base = only_injected_encoder(model)
    layers = len(injection_of(base).attentions)
    if only_layer is not None and only_layer >= layers:
        raise ValueError(f"--layer {only_layer}: the model has {layers} layers with mechanisms, from 0.")
    inputs, kind, tokens = inputs_for(model, base, source, config, revision, given, notes)
    found = inspect_with(model, name, inputs, kind, notes)
    if only_layer is not None:
        found = replace(found, layers=[found.layers[only_layer]])
    if output is None:
        return found
    from ..visualization import save_pictures

    pictures = save_pictures(model, inputs, output, format=format, tokens=tokens)
    return replace(found, pictures={str(output / file): caption for file, caption in pictures.items()})


def _load(source: str, config: Any, revision: str | None) -> Any:
    """The model, of the class that was saved or else the encoder, which is one of this package in any case."""
    from ..hub.buildable import saved_class_of

    model_class = saved_class_of(config)
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
