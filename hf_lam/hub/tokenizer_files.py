"""Checks of the files of tokenizers, which are parsed and not run: that they are whole, and fit the model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_CTC_MAPPING_NAMES,
)

from ..modeling.configuration_hf_lam import PREFIX
from ..modeling.hosts_facts_hf_lam import COMPOSED
from ..modeling.processing_hf_lam import DECODER_TOKENIZER
from .repository_files import Finding, RepositoryFiles, UnreadableError

CONFIG_FILE = "tokenizer_config.json"
_PROCESSOR_FILE = "processor_config.json"
_MODELS = ("BPE", "WordPiece", "WordLevel", "Unigram")
_SPECIAL = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
# Of the lines of a vocabulary in the format of tiktoken.
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+")
# Classes that read `tokenizer.json` and no other file.
_OF_ONE_FILE = ("PreTrainedTokenizerFast", "TokenizersBackend")
_OF_SOUND = {*MODEL_FOR_CTC_MAPPING_NAMES, *MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES}
# Those that write letters, and merge none.
_WITHOUT_MERGES = ("Wav2Vec2CTCTokenizer",)


def embedding_rows(config: Any) -> int | None:
    """The rows of the embedding of tokens that a configuration describes, as a dictionary; None if it describes none.

    Models that take sounds may say how many tokens they write, and embed none.
    """
    config = config if isinstance(config, dict) else {}
    kind = config.get("model_type")
    if isinstance(kind, str) and kind.removeprefix(PREFIX) in _OF_SOUND:
        return None
    if isinstance(kind, str) and kind.removeprefix(PREFIX) in COMPOSED:
        found = [embedding_rows(config.get(part)) for part in ("encoder", "decoder")]
        return min((rows for rows in found if rows is not None), default=None)
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    rows = next((part["vocab_size"] for part in parts if part.get("vocab_size") is not None), None)
    return rows if type(rows) is int and rows > 0 else None


def decoder_rows(config: Any) -> int | None:
    """The same of the decoder of a fusion model, which has a tokenizer of its own."""
    return embedding_rows(config.get("decoder")) if isinstance(config, dict) else None


class Vocabulary(NamedTuple):
    """The vocabulary in a file of a tokenizer.

    tokens: its tokens, by their ids; None where their texts are not read.
    size: one more than the largest id.
    """

    tokens: Mapping[str, int] | None
    size: int


def check_tokenizers(files: RepositoryFiles, configs: Mapping[str, Any], config: Any) -> list[Finding]:
    """Findings for files of tokenizers that are damaged, absent, or too large for the model.

    Args:
        files: files of the model.
        configs: its JSON files that can be read, by their paths.
        config: configuration of the model in the root as a dictionary, for the size of its vocabulary; None if there
            is none.
    """
    folders: dict[str, list[str]] = {}
    for name in files.sizes:
        folder, _, base = name.rpartition("/")
        if _reader_of(base) is not None or base in (CONFIG_FILE, _PROCESSOR_FILE):
            folders.setdefault(folder, []).append(base)
    findings = []
    for folder, names in folders.items():
        rows = embedding_rows(config) if not folder else decoder_rows(config) if folder == DECODER_TOKENIZER else None
        findings += _check_folder(files, configs, f"{folder}/" if folder else "", names, rows)
    processor = configs.get(_PROCESSOR_FILE)
    if isinstance(processor, dict) and processor.get(DECODER_TOKENIZER) and DECODER_TOKENIZER not in folders:
        message = f"has a {DECODER_TOKENIZER}, of which no folder is beside it"
        findings.append(Finding("tokenizer", _PROCESSOR_FILE, message))
    return findings


def _check_folder(
    files: RepositoryFiles, configs: Mapping[str, Any], prefix: str, names: list[str], rows: int | None
) -> list[Finding]:
    findings = []
    found: dict[str, Vocabulary] = {}
    for base in names:
        reader = _reader_of(base)
        if reader is None:
            continue
        try:
            found[base] = reader(files.read(prefix + base))
        except UnreadableError as error:
            findings.append(Finding("size", prefix + base, str(error)))
        except (ValueError, RecursionError, MemoryError) as error:
            reason = "is nested too deep" if isinstance(error, RecursionError) else str(error)
            findings.append(Finding("tokenizer", prefix + base, reason))
    if not findings:
        findings += _check_presence(configs, prefix, names)
    if rows is not None:
        findings += [
            Finding(
                "tokenizer",
                prefix + base,
                f"has ids up to {vocabulary.size - 1}, but the model's embedding has {rows} rows",
            )
            for base, vocabulary in found.items()
            if vocabulary.size > rows
        ]
    if not findings:
        findings += _check_special(configs, prefix, found)
    return findings


def _check_presence(configs: Mapping[str, Any], prefix: str, names: list[str]) -> list[Finding]:
    """Findings for a configuration of a tokenizer without a vocabulary; transformers would make an empty one."""
    processor = configs.get(prefix + _PROCESSOR_FILE)
    config = configs.get(prefix + CONFIG_FILE, {})
    if CONFIG_FILE not in names:
        # Its other parts are in the file; a tokenizer is beside it, unless it is said to be none.
        options = processor if isinstance(processor, dict) else {}
        is_ours = options.get("processor_class") == "HfLamFusionProcessor"
        if is_ours and "tokenizer" not in options and names == [_PROCESSOR_FILE]:
            return [Finding("tokenizer", prefix + _PROCESSOR_FILE, "has a tokenizer, of which no file is beside it")]
        return []
    config = config if isinstance(config, dict) else {}
    kind = config.get("tokenizer_class")
    named = [value for key in ("tokenizer_file", "vocab_file") if isinstance(value := config.get(key), str)]
    others = (CONFIG_FILE, _PROCESSOR_FILE, "merges.txt", "added_tokens.json")
    vocabularies = [name for name in names if name not in others]
    if kind in _OF_ONE_FILE and "tokenizer.json" not in names and not config.get("tokenizer_file"):
        message = f"is of a {kind}, but there is no tokenizer.json beside it"
    elif not vocabularies and not named and not config.get("vocab"):
        message = (
            f"is of a {kind or 'tokenizer'}, but no vocabulary is beside it: tokenizer.json, vocab.txt, vocab.json or "
            "a .model file"
        )
    elif not {"tokenizer.json", "merges.txt"} & set(names) and "vocab.json" in names and kind not in _WITHOUT_MERGES:
        return [Finding("tokenizer", f"{prefix}vocab.json", "has no merges.txt beside it")]
    else:
        return []
    return [Finding("tokenizer", prefix + CONFIG_FILE, message)]


def _check_special(configs: Mapping[str, Any], prefix: str, found: Mapping[str, Vocabulary]) -> list[Finding]:
    """Findings for special tokens that are in no vocabulary, as after one was cut."""
    source = next((base for base in ("tokenizer.json", "vocab.json", "vocab.txt") if base in found), None)
    if source is None:
        return []
    known = {token for vocabulary in found.values() for token in vocabulary.tokens or ()}
    findings = []
    for name in (CONFIG_FILE, "special_tokens_map.json"):
        config = configs.get(prefix + name)
        if not isinstance(config, dict):
            continue
        added = config.get("added_tokens_decoder")
        known |= set(filter(None, map(_text_of, added.values()))) if isinstance(added, dict) else set()
        for key in _SPECIAL:
            token = _text_of(config.get(key))
            if token is not None and token not in known:
                findings.append(Finding("tokenizer", prefix + source, f"lacks {token!r}, the {key} of {name}"))
    return findings


def _text_of(token: Any) -> str | None:
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) and token else None


# --- The files -------------------------------------------------------------------------------------------------------


def _reader_of(base: str) -> Callable[[bytes], Vocabulary] | None:
    return _READERS.get(base) or (_read_sentencepiece if base.endswith(".model") else None)


def _read_tokenizer(data: bytes) -> Vocabulary:
    content = _json_in(data)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") not in _MODELS:
        raise ValueError(f"has no model of a tokenizer, one of {', '.join(_MODELS)}")
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        texts = [entry[0] if isinstance(entry, list) and len(entry) == 2 else None for entry in vocab]
        tokens = {text: index for index, text in enumerate(texts) if isinstance(text, str)}
        if None in texts:
            raise ValueError("has a vocabulary that is not made of tokens and their scores")
    else:
        tokens = _checked_ids(vocab)
    if not tokens:
        raise ValueError("has an empty vocabulary")
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        value = content.get(part)
        if value is not None and not (isinstance(value, dict) and isinstance(value.get("type"), str)):
            raise ValueError(f"has a {part} without a type")
    if model.get("type") == "BPE" and not isinstance(model.get("merges"), list):
        raise ValueError("has no merges, which BPE needs")
    added: dict[str, int] = {}
    special = set()
    for entry in _items(content, "added_tokens"):
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise ValueError("has added_tokens that are no tokens")
        added |= _checked_ids({entry["content"]: entry.get("id")})
        special |= {entry["content"]} if entry.get("special") else set()
    tokens = {**tokens, **added}
    if not tokens.keys() - special:
        raise ValueError("has no tokens but special ones")
    return Vocabulary(tokens, max(*tokens.values(), *_ids_put_in(content)) + 1)


def _ids_put_in(content: dict[str, Any]) -> Iterator[int]:
    """The ids that are put around and behind a text, whatever the vocabulary says; -1 for what is none."""
    yield _id_of(content["padding"].get("pad_id")) if isinstance(content.get("padding"), dict) else -1
    processor = content.get("post_processor")
    for part in [processor, *_items(processor, "processors")]:
        # A token and its id.
        yield from (_id_of(pair[1]) for key in ("sep", "cls") if len(pair := _items(part, key)) == 2)
        special = part.get("special_tokens") if isinstance(part, dict) else None
        for token in special.values() if isinstance(special, dict) else ():
            yield from map(_id_of, _items(token, "ids"))


def _items(value: Any, key: str) -> list[Any]:
    items = value.get(key) if isinstance(value, dict) else None
    return items if isinstance(items, list) else []


def _id_of(value: Any) -> int:
    return value if type(value) is int else -1


def _read_ids(data: bytes) -> Vocabulary:
    tokens = _checked_ids(_json_in(data))
    if not tokens:
        raise ValueError("has no tokens")
    return Vocabulary(tokens, max(tokens.values()) + 1)


def _read_added(data: bytes) -> Vocabulary:
    tokens = _checked_ids(_json_in(data))
    return Vocabulary(tokens, max(tokens.values(), default=-1) + 1)


def _read_lines(data: bytes) -> Vocabulary:
    lines = _text_in(data).removesuffix("\n").split("\n")
    tokens = {line.removesuffix("\r"): index for index, line in enumerate(lines)}
    if not any(map(str.strip, tokens)):
        raise ValueError("has no tokens")
    return Vocabulary(tokens, len(lines))


def _read_merges(data: bytes) -> Vocabulary:
    lines = _text_in(data).splitlines()
    lines = [line for line in lines[lines[:1] != [] and lines[0].startswith("#version") :] if line.strip()]
    if strange := next((line for line in lines if len(line.split(" ")) != 2), None):
        raise ValueError(f"has the line {strange[:40]!r}, which is no pair of tokens")
    return Vocabulary({}, 0)


def _read_sentencepiece(data: bytes) -> Vocabulary:
    """The size of a model of sentencepiece, whose pieces are the first field of its message, or of tiktoken's."""
    if not data:
        raise ValueError("is empty")
    lines = data.splitlines()
    if _TIKTOKEN.fullmatch(lines[0]):
        if not all(map(_TIKTOKEN.fullmatch, filter(None, lines))):
            raise ValueError("is not a whole vocabulary of tiktoken")
        return Vocabulary(None, len(lines))
    pieces, place = 0, 0
    try:
        while place < len(data):
            tag, place = _varint(data, place)
            if tag & 7 == 0:
                _, place = _varint(data, place)
            elif tag & 7 == 2:
                length, place = _varint(data, place)
                place += length
            else:
                place += {1: 8, 5: 4}[tag & 7]
            pieces += tag == 10
    except (IndexError, KeyError):
        place = -1
    if place != len(data) or not pieces:
        raise ValueError("is not a whole model of sentencepiece")
    return Vocabulary(None, pieces)


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise IndexError


def _checked_ids(vocab: Any) -> dict[str, int]:
    if not isinstance(vocab, dict):
        raise ValueError("has no vocabulary")
    for token, number in vocab.items():
        if type(number) is not int or not 0 <= number < 2**31:
            raise ValueError(f"gives {token[:40]!r} the id {str(number)[:40]}")
    return vocab


def _json_in(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(_text_in(data))
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"is a {type(content).__name__}, not an object of JSON")
    return content


def _text_in(data: bytes) -> str:
    if not data.strip():
        raise ValueError("is empty")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not text in UTF-8: {error.reason} at byte {error.start}") from error
    if "\0" in text:
        raise ValueError("is not text: it has zero bytes")
    return text


_READERS: dict[str, Callable[[bytes], Vocabulary]] = {
    "tokenizer.json": _read_tokenizer,
    "vocab.json": _read_ids,
    "vocab.txt": _read_lines,
    "merges.txt": _read_merges,
    "added_tokens.json": _read_added,
}
