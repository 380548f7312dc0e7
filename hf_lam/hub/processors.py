"""The tokenizer or processor beside a model: which one a model needs, loading it, and copying its files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from transformers import TrOCRProcessor, Wav2Vec2Processor
from transformers.utils import cached_file

from ..modeling.host_attention_hf_lam import encoder_side_of, find_encoder
from ..modeling.hosts_facts_hf_lam import is_composed, is_fusion
from ..modeling.processing_hf_lam import DECODER_TOKENIZER

# What processors write, besides the vocabulary of a tokenizer.
PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# Any of these makes a tokenizer, without further options of it.
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.txt")
_TEMPLATES = "additional_chat_templates"
_SOUNDS = ("input_values", "input_features")
_PIXELS = ("pixel_values", "pixel_values_videos")
# Processors of transformers that are no more than what reads an input and the tokenizer of the text that is written.
_PAIRS: dict[str, Any] = {"AutoImageProcessor": TrOCRProcessor, "AutoFeatureExtractor": Wav2Vec2Processor}


class UnavailableError(ImportError):
    """A processor whose class needs a package that is not installed, such as torchvision."""


def modalities_of(model: Any) -> tuple[str, ...]:
    """The modalities that a model takes: `text`, `image`, `video` or `audio`; for a fusion model, all that it has."""
    encoder = find_encoder(model)
    if is_fusion(encoder.config):
        return tuple(encoder.config.modalities)
    main_input_name = encoder_side_of(model).main_input_name
    if main_input_name in _SOUNDS:
        return ("audio",)
    if main_input_name not in _PIXELS:
        return ("text",)
    is_video = any(hasattr(encoder.config, name) for name in ("num_frames", "frames_per_clip", "tubelet_size"))
    return ("video" if is_video else "image",)


def load_processor(source: str, model: Any, revision: str | None = None) -> Any:
    """Load the tokenizer, image processor, feature extractor or processor beside a model; None if there is none.

    The inputs of the model decide which. transformers' own search would go by files of other parts, and ends with an
    empty tokenizer where there is no file of one.

    Args:
        source: a folder, or an id on the Hub.
        model: model that it is for.
        revision: branch, tag or commit of the repository.

    Raises:
        UnavailableError: if its class needs a package that is not installed, or there is no class for what there is.
        Exception: whatever transformers raises for files that it cannot use.
    """

    def has(name: str) -> bool:
        return _find(source, name, revision) is not None

    autos = [auto for auto in (_auto_class(model, has), _auto_class_of_decoder(model, has)) if auto is not None]
    autos = ["AutoProcessor"] if "AutoProcessor" in autos else autos
    options = {} if revision is None else {"revision": revision}
    try:
        loaded = [
            getattr(transformers, auto).from_pretrained(source, trust_remote_code=False, **options) for auto in autos
        ]
    except ImportError as error:
        raise UnavailableError(" ".join(str(error).split())) from error
    if len(loaded) < 2:
        return next(iter(loaded), None)
    if autos[0] not in _PAIRS:
        raise UnavailableError(f"transformers has no processor for a {type(loaded[0]).__name__} and a tokenizer")
    return _PAIRS[autos[0]](*loaded)


def _auto_class(model: Any, has: Callable[[str], bool]) -> str | None:
    modalities = modalities_of(model)
    has_tokenizer = any(map(has, _TOKENIZER_FILES))
    is_whole = has("processor_config.json")
    if is_composed(model.config) and is_whole and has_tokenizer:
        return "AutoProcessor"
    if is_fusion(model.config):
        return "AutoProcessor" if is_whole else None
    if modalities == ("text",):
        return "AutoTokenizer" if has_tokenizer else None
    if modalities == ("audio",):
        if type(model).__name__.endswith("ForCTC") and has_tokenizer:
            return "AutoProcessor"
        return "AutoFeatureExtractor" if is_whole or has("preprocessor_config.json") else None
    if is_whole or has("preprocessor_config.json"):
        return "AutoImageProcessor"
    return "AutoVideoProcessor" if has("video_preprocessor_config.json") else None


def _auto_class_of_decoder(model: Any, has: Callable[[str], bool]) -> str | None:
    """The Auto class that loads the tokenizer of a model's texts, where the model reads something else than text."""
    writes = is_composed(model.config) and modalities_of(model) != ("text",)
    return "AutoTokenizer" if writes and any(map(has, _TOKENIZER_FILES)) else None


def copy_processor(
    source: str | os.PathLike[str], folder: Path, processor: Any = None, revision: str | None = None
) -> None:
    """Copy the files of a processor as they are.

    Args:
        source: the folder with them, or an id on the Hub.
        folder: folder to copy to.
        processor: processor that was loaded from `source`; None if it could not be.
        revision: branch, tag or commit of the repository.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    vocabulary = getattr(tokenizer, "vocab_files_names", {}).values()
    for name in dict.fromkeys([*PROCESSOR_FILES, *vocabulary]):
        found = _find(os.fspath(source), name, revision)
        if found is not None:
            shutil.copyfile(found, folder / name)
    writer = getattr(processor, DECODER_TOKENIZER, None)
    vocabulary = [*vocabulary, *getattr(writer, "vocab_files_names", {}).values()]
    for name in dict.fromkeys([*PROCESSOR_FILES, *vocabulary]) if writer is not None else ():
        found = _find(os.fspath(source), f"{DECODER_TOKENIZER}/{name}", revision)
        if found is not None:
            (folder / DECODER_TOKENIZER).mkdir(exist_ok=True)
            shutil.copyfile(found, folder / DECODER_TOKENIZER / name)
    templates = Path(source, _TEMPLATES)
    if templates.is_dir():
        shutil.copytree(templates, folder / _TEMPLATES)


def _find(source: str, name: str, revision: str | None) -> str | None:
    """Find a file of a folder or a repository on this machine; None if there is none."""
    options = {} if revision is None else {"revision": revision}
    return cached_file(source, name, _raise_exceptions_for_missing_entries=False, **options)
