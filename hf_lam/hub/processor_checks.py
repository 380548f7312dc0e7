"""Whether the tokenizer or processor beside a model is whole and fits it, before it is saved or sent somewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import FeatureExtractionMixin, PreTrainedConfig, PreTrainedTokenizerBase

from ..modeling.processing_hf_lam import DECODER_TOKENIZER
from .file_checks import read_configs
from .repository_files import LocalFiles
from .tokenizer_files import check_tokenizers, decoder_rows, embedding_rows

# What tokenizers and processors are read from; the first of those that are there is named for what is wrong with it.
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer_config.json")
_PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
_OTHER_FILES = ("special_tokens_map.json", "added_tokens.json", "chat_template.json")
# Words of a vocabulary that are read at once.
_WORDS = 32


def check_processor_files(source: str | os.PathLike[str], config: PreTrainedConfig | None) -> None:
    """Parse the files of the tokenizer and the processors in a folder, without loading any.

    Args:
        source: the folder. Of the folders in it, only that of a decoder's tokenizer is looked at.
        config: configuration of the model beside them, for the size of its vocabulary; None if it is not known.

    Raises:
        ValueError: for a file that is damaged, a tokenizer without a vocabulary, or ids that the model has no rows
            for; it names the file.
    """
    files = LocalFiles(source)
    names = {*_TOKENIZER_FILES, *_PROCESSOR_FILES, *_OTHER_FILES, "merges.txt"}
    names |= {f"{DECODER_TOKENIZER}/{name}" for name in names}
    files.sizes = {name: size for name, size in files.sizes.items() if name in names or name.endswith(".model")}
    configs, findings = read_configs(files)
    # With one file less, a tokenizer would seem to lack what is in it.
    if not findings:
        findings = check_tokenizers(files, configs, None if config is None else config.to_dict())
    for name, content in configs.items():
        if not isinstance(content, dict):
            raise ValueError(f"{str(Path(source, name))!r} is a {type(content).__name__}, not an object of JSON.")
    for finding in findings:
        raise ValueError(f"{str(Path(source, finding.file))!r} {finding.message}. Write it again, or remove it.")


def try_processor(processor: Any, config: PreTrainedConfig | None, source: str | os.PathLike[str]) -> None:
    """Use a tokenizer or processor once: on words of its own vocabulary, a small picture, a second of noise.

    Args:
        processor: a tokenizer, an image or video processor, a feature extractor, or a processor with several of them.
        config: configuration of the model that it is for; None if it is not known.
        source: folder or id that it was loaded from, or what to call it, for errors.

    Raises:
        ValueError: if it fails, if a tokenizer knows no word or gives ids that the model has no rows for, if what
            becomes of a picture or a sound is no number, or if its vectors are others than those of the model.
    """
    features = getattr(processor, "features", None)
    if features and config is not None:
        _check_features(features, config, _file_of(source, _PROCESSOR_FILES[-1:]))
    kinds = ("tokenizer", "image_processor", "video_processor", "feature_extractor", DECODER_TOKENIZER)
    if isinstance(processor, PreTrainedTokenizerBase):
        parts = {"tokenizer": processor}
    else:
        parts = {kind: part for kind in kinds if (part := getattr(processor, kind, None)) is not None}
        if not parts and not features:
            parts = {_kind_of(processor): processor}
    for kind, part in parts.items():
        place = _file_of(source, _TOKENIZER_FILES if kind == "tokenizer" else _PROCESSOR_FILES)
        try:
            if kind == DECODER_TOKENIZER:
                place = _file_of(Path(source, kind), _TOKENIZER_FILES)
                _try_tokenizer(part, None if config is None else decoder_rows(config.to_dict()), place)
            elif kind == "tokenizer":
                _try_tokenizer(part, _rows(config), place)
            elif callable(part):
                _try_values(kind, part, place)
        except ImportError:  # of a package that only this class needs; whoever loads the model may have it
            continue
        except _WrongError as error:
            raise ValueError(str(error)) from None
        except Exception as error:  # A made-up file can make a processor fail in any way.
            raise ValueError(
                f"{place}: the {type(part).__name__} fails on a small input: {type(error).__name__}: {error}"
            ) from error


class _WrongError(Exception):
    """The output of a processor is not what it should be."""


def _check_features(features: Mapping[str, Any], config: PreTrainedConfig, place: str) -> None:
    """Whether the vectors that a processor reads are those that the model takes."""
    taken = getattr(config, "features", None) or {}
    for name, options in features.items():
        if name not in taken:
            has = f"only {', '.join(taken)}" if taken else "none"
            raise ValueError(f"{place}: the processor has features {name!r}, and the model has {has}.")
        if options["size"] != taken[name]["size"]:
            raise ValueError(
                f"{place}: the processor has features {name!r} of size {options['size']}, and the model takes "
                f"{taken[name]['size']}."
            )


def _kind_of(part: Any) -> str:
    if isinstance(part, FeatureExtractionMixin):
        return "feature_extractor"
    return "video_processor" if "VideoProcessor" in type(part).__name__ else "image_processor"


def _rows(config: PreTrainedConfig | None) -> int | None:
    return None if config is None else embedding_rows(config.to_dict())


def _file_of(source: str | os.PathLike[str], names: tuple[str, ...]) -> str:
    return str(next((path for name in names if (path := Path(source, name)).is_file()), source))


def _try_tokenizer(tokenizer: Any, rows: int | None, place: str) -> None:
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    special = set(tokenizer.all_special_tokens)
    words = [token for token in vocabulary if token not in special]
    if not words:
        raise _WrongError(f"{place}: the {type(tokenizer).__name__} has no vocabulary but its special tokens.")
    last = max(vocabulary, key=vocabulary.__getitem__)
    if rows is not None and vocabulary[last] >= rows:
        raise _WrongError(
            f"{place}: the token {last!r} has the id {vocabulary[last]}, but the model's embedding has {rows} rows. "
            "Resize it with resize_token_embeddings, or take the tokenizer that the model was trained with."
        )
    chosen = words[:: max(1, len(words) // _WORDS)][:_WORDS]
    ids = tokenizer(" ".join(map(_word_of, chosen)), verbose=False)["input_ids"]
    unknown = {tokenizer.unk_token_id, *tokenizer.all_special_ids}
    if not set(ids) - unknown:
        raise _WrongError(f"{place}: the {type(tokenizer).__name__} reads every word of its vocabulary as unknown.")
    if rows is not None and not 0 <= min(ids) <= max(ids) < rows:
        raise _WrongError(f"{place}: a sentence becomes the ids {min(ids)} to {max(ids)}, but there are {rows} rows.")


def _word_of(token: str) -> str:
    """A token without the marks of where in a word it may stand."""
    for mark in ("##", "▁", "Ġ", "</w>"):
        token = token.replace(mark, "")
    return token


def _try_values(kind: str, part: Any, place: str) -> None:
    generator = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        if kind == "feature_extractor":
            rate = int(getattr(part, "sampling_rate", 16_000))
            values = part(generator.normal(size=rate).astype(np.float32), sampling_rate=rate)
        else:
            means = getattr(part, "image_mean", None)  # one for each channel
            channels = len(means) if isinstance(means, (list, tuple)) else 3
            pictures = generator.integers(0, 256, (2, 48, 64, channels), dtype=np.uint8)
            values = part([pictures] if kind == "video_processor" else pictures[0])
    made = np.asarray(values[part.model_input_names[0]], dtype=np.float64)
    if not made.size or not np.isfinite(made).all():
        what = "NaN or infinity" if made.size else "nothing"
        raise _WrongError(f"{place}: the {type(part).__name__} makes {what} of a small input.")
