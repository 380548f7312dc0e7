"""`hf-lam convert`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..modeling.version_hf_lam import OWN_MECHANISMS
from ..output import check_output, new_folder, saying_why
from .common import (
    CHECK_FAILED,
    ELSEWHERE,
    WRONG_USE,
    AsJson,
    Revision,
    epilog,
    is_local,
    load_config,
    load_processor,
    loading_weights,
    print_json,
    result_console,
    stdout_for,
    working,
)
from .comparing import Comparison, check_same_ids, compare

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..modeling.mechanism_hf_lam import MechanismConfig

_WITH_LABELS = ("Classification", "Segmentation", "Detection", "XVector")
DTYPES = ("float32", "bfloat16", "float16")

EPILOG = epilog(
    [
        "hf-lam convert google-bert/bert-base-uncased ./bert-lam --mechanism lam",
        'hf-lam convert ./my-vit ./vit-stt --mechanism stt --mechanism-config \'{"variant": "dense"}\'',
        "hf-lam convert ./my-bert ./both --mechanism lam --mechanism locomt --mechanism-config options.json",
    ],
    {
        CHECK_FAILED: "the outputs are not those of the original although they should be, or loading or saving "
        "failed; OUTPUT was not written",
        WRONG_USE: "wrong use, such as a model without an HfLam class, or an OUTPUT that is not empty; nothing was "
        "done",
    },
)


@dataclass(frozen=True)
class Conversion:
    """The result of `hf-lam convert`.

    mechanisms: their options by name, as in `config.json`.
    parameters_before, parameters: parameters of the whole model.
    mechanism_parameters: those that hf_lam added.
    changes: reasons why the outputs change at once; empty if they do not.
    largest_difference: largest difference between the outputs of the original and of the converted model; None if it
        was not measured.
    compared: `outputs`, or `encoder` where the head is new; None if it was not measured.
    processor: the class of the tokenizer or processor beside the model; None if there is none.
    """

    model: str
    output: str
    model_class: str
    version: str
    mechanisms: dict[str, Any]
    parameters_before: int
    parameters: int
    mechanism_parameters: int
    changes: list[str]
    largest_difference: float | None
    compared: str | None
    processor: str | None
    files: list[str]
    notes: list[str]


def convert(
    model: Annotated[str, typer.Argument(help="The folder or Hub id of a stock encoder, or of a task model on one.")],
    output: Annotated[Path, typer.Argument(help="The folder to write, new or empty.")],
    mechanism: Annotated[
        list[str],
        typer.Option(
            metavar=f"NAME|{ELSEWHERE}",
            help=f"The mechanism to put into the attention: {', '.join(OWN_MECHANISMS)}, or one of your own as a "
            "file or module:class, which is imported. May be repeated.",
        ),
    ],
    mechanism_config: Annotated[
        str | None,
        typer.Option(
            metavar="JSON|FILE",
            help="Options of the mechanisms. They are given by name, as in the hf_lam block of a saved config.json; "
            "with a single mechanism, the name may be left out.",
        ),
    ] = None,
    auto_class: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The head to load, such as AutoModelForSequenceClassification. Unless given, the checkpoint's own "
            "head if there is an HfLam class for it, and the encoder alone otherwise.",
        ),
    ] = None,
    num_labels: Annotated[
        int | None, typer.Option(min=1, help="The number of classes of a new classification head.")
    ] = None,
    revision: Revision = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="|".join(DTYPES), help="The dtype of the weights. Unless given, that of the checkpoint."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(help="Compare the outputs with those of the original, which is loaded a second time for this."),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Turn a stock checkpoint into an HfLam model, and save it with its code, processor and model card.

    A sentence-transformers model stays one: its modules, prompts and options are copied along.

    OUTPUT is written whole or not at all. It loads anywhere with trust_remote_code=True; where hf_lam is installed,
    it loads without.

    For private models, log in with `hf auth login` or set HF_TOKEN. There is no option for the token, which would stay
    in the history of the shell.
    """
    from ..mechanism_options import read_mechanisms

    configs = read_mechanisms("--mechanism", mechanism, "--mechanism-config", mechanism_config)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    check_output(output)
    with stdout_for(as_json):
        done = _convert(model, output, configs, auto_class, num_labels, revision, dtype, check)
    if as_json:
        print_json(asdict(done))
    else:
        result_console().print(_lines(done), markup=False, highlight=False, soft_wrap=True)


def _convert(
    name: str,
    output: Path,
    configs: list[MechanismConfig],
    auto_class: str | None,
    num_labels: int | None,
    revision: str | None,
    dtype: str | None,
    check: bool,
) -> Conversion:
    from transformers import PreTrainedTokenizerBase

    from ..conversion import convert_silently
    from ..hub.cards import write_card
    from ..hub.processor_checks import check_processor_files, try_processor
    from ..hub.processors import UnavailableError, copy_processor
    from ..modeling.injection_hf_lam import list_changes
    from ..parameters import mechanism_parameters
    from .originals import copy_beside, find_original

    notes: list[str] = []
    with new_folder(output) as folder:
        with working(f"Loading {name}", has_bars=not is_local(name)):
            original = find_original(name, revision)
            source = original.source
            revision = None if is_local(source) else revision
            config = load_config(source, revision)
            if auto_class is None:
                auto_class = own_auto_class(config)
                if auto_class == "AutoModel":
                    notes += _why_no_head(config)
            if num_labels is not None and not auto_class.endswith(_WITH_LABELS):
                raise ValueError(f"--num-labels is for a classification head, not for {auto_class}; see --auto-class.")
            options = {"revision": revision, "dtype": dtype, "num_labels": num_labels}
            options = {key: value for key, value in options.items() if value is not None}
            if is_local(source):
                check_processor_files(source, config)
            try:
                with loading_weights(source):
                    converted = convert_silently(source, *configs, auto_class=auto_class, **options)
            except RuntimeError as error:
                if num_labels is None or "ignore_mismatched_sizes" not in str(error):
                    raise
                raise ValueError(
                    f"the head of {name!r} has another number of classes than --num-labels {num_labels}. Leave the "
                    "option out to keep that head, or convert the encoder that it was trained from."
                ) from error
            changes = list_changes(converted)
            if num_labels is not None:
                config.num_labels = num_labels
            processor, unavailable = None, None
            try:
                processor = load_processor(source, converted, revision)
            except UnavailableError as error:
                unavailable = error
        if unavailable is not None:
            notes.append(f"the processor was copied as it is, and not tried: {unavailable}")
        elif processor is None:
            notes.append("the original has no tokenizer or processor beside it, so none was saved")
        else:
            try_processor(processor, converted.config, source)

        with working(f"Saving {output}"), saying_why(output):
            converted.save_pretrained(folder)
            if processor is not None:
                processor.save_pretrained(folder)
            elif unavailable is not None:
                copy_processor(source, folder, revision=revision)
            base_model = None if is_local(name) else name
            write_card(converted, folder, name=output.resolve().name, base_model=base_model, processor=processor)
            notes += copy_beside(original, folder)
        comparison = Comparison()
        if check:
            with working("Comparing the outputs with those of the original", has_bars=not is_local(source)):
                comparison = compare(folder, type(converted), source, auto_class, options)
                tokenizer = getattr(processor, "tokenizer", processor)
                if isinstance(tokenizer, PreTrainedTokenizerBase):
                    check_same_ids(folder, tokenizer)
            notes += comparison.notes
            if not changes and not comparison.is_equal:
                raise RuntimeError(
                    f"the outputs of the converted model are up to {comparison.difference:.3g} away from those of the "
                    f"original, where at most {comparison.bound:.3g} was expected. {str(output)!r} was not written; "
                    "--no-check writes it nevertheless."
                )
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    block = converted.config.hf_lam
    return Conversion(
        model=name,
        output=str(output),
        model_class=type(converted).__name__,
        version=block["version"],
        mechanisms={key: options for key, options in block.items() if key != "version"},
        parameters_before=_parameters_of(type(converted).host_class, config),
        parameters=converted.num_parameters(),
        mechanism_parameters=sum(parameter.numel() for parameter in mechanism_parameters(converted)),
        changes=changes,
        largest_difference=comparison.difference,
        compared=comparison.compared,
        processor=None if processor is None else type(processor).__name__,
        files=files,
        notes=notes,
    )


def own_auto_class(config: PreTrainedConfig) -> str:
    """The Auto class of a checkpoint's own head, if there is an HfLam class for it; or else `AutoModel`."""
    heads = _heads_for(config)
    return next((heads[f"HfLam{name}"] for name in config.architectures or () if f"HfLam{name}" in heads), "AutoModel")


def _why_no_head(config: PreTrainedConfig) -> list[str]:
    strange = [name for name in config.architectures or () if f"HfLam{name}" not in _heads_for(config)]
    return [f"there is no HfLam class for {name}, so this is the encoder; see --auto-class" for name in strange]


def _heads_for(config: PreTrainedConfig) -> dict[str, str]:
    from ..hub.names import heads_of
    from ..modeling.configuration_hf_lam import config_class_of

    return heads_of(config_class_of(config.model_type))


def _parameters_of(model_class: Any, config: PreTrainedConfig) -> int:
    import torch

    with torch.device("meta"):
        return model_class(config).num_parameters()


def _lines(done: Conversion) -> str:
    names = " and ".join(done.mechanisms)
    lines = [
        f"{done.model} → {done.output}: {done.model_class} with {names} (hf_lam {done.version})",
        f"parameters: {done.parameters_before:,} before, {done.parameters:,} after, {done.mechanism_parameters:,} of "
        "them of hf_lam",
    ]
    if done.largest_difference is not None:
        lines.append(f"largest difference of the {done.compared} from the original: {done.largest_difference:.2g}")
    lines += done.changes or ["nothing changes the outputs before training"]
    if done.processor is not None:
        lines.append(f"{done.processor} saved beside the model")
    lines += [f"note: {note}" for note in done.notes]
    return "\n".join(lines)
