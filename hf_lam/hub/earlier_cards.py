"""The content of a card beyond its model, and how that of an earlier card goes into a new one, whoever wrote it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from huggingface_hub import EvalResult, ModelCard

from .names import looks_like_hub_id, sha256_of

TEMPLATE = Path(__file__).with_name("model_card_template.md")
CARD_FILE = "README.md"

# What a card says of its model's licence.
LICENSE_KEYS = ("license", "license_name", "license_link")
# What a new card makes itself.
_MADE_ANEW = (
    *LICENSE_KEYS,
    "base_model",
    "base_model_relation",
    "datasets",
    "eval_results",
    "language",
    "library_name",
    "metrics",
    "model_name",
    "pipeline_tag",
    "tags",
)
# Where `Trainer` says how it trained.
_OF_TRAINER = "Training procedure"
# What templates leave to be filled in.
_UNFILLED = re.compile(r"more information needed", re.IGNORECASE)
# With its caption in the next paragraph, or in place of its name.
_PICTURE = re.compile(r"!\[([^]]*)\]\((\w[\w.-]*\.(?:png|svg))\)(?:\n\n(?!!\[)(\S.*))?")
# The first sentence of our own, and the last line.
_ORIGIN = re.compile(r"^`\w+`, (.+?)\. Its attention ", flags=re.MULTILINE)
_WEIGHTS = re.compile(r"^<!-- of the weights sha256:([0-9a-f]{64}) -->$", flags=re.MULTILINE)


@dataclass(frozen=True)
class CardContent:
    """The content of a card that cannot be read off its model: given, or taken over from an earlier card.

    bases: ids on the Hub that the weights come from.
    license: its identifier on the Hub as `license`, and for `other` a `license_name` and a `license_link`.
    language: one or several, as the Hub names them.
    datasets: ids on the Hub.
    tags: tags besides those of the mechanisms; from an earlier card, all of them.
    further: metadata that are taken as they are; from an earlier card, those that a new one does not make.
    sections: titles and texts of further sections, Markdown; from an earlier card, those that somebody wrote, without
        what hf_lam's or transformers' templates say.
    weights: value of `weights_of` for the folder of the model, which shows that the card belongs to it; None if the
        card has no such value.
    results: results that were measured on these weights.
    origin: origin of the weights, in words; made of `bases` unless given.
    data, training: the sections of these names, Markdown.
    pictures: captions of pictures of these weights, by the names of their files beside the card.
    """

    bases: Sequence[str] = field(default_factory=list)
    license: Mapping[str, Any] = field(default_factory=dict)
    language: Any = None
    datasets: Sequence[str] = field(default_factory=list)
    tags: Sequence[str] = field(default_factory=list)
    further: Mapping[str, Any] = field(default_factory=dict)
    sections: Sequence[tuple[str, str]] = ()
    weights: str | None = None
    results: Sequence[EvalResult] = field(default_factory=list)
    origin: str | None = None
    data: str = ""
    training: str = ""
    pictures: Mapping[str, str] = field(default_factory=dict)

    def pictures_in(self, folder: Path) -> dict[str, str]:
        """The pictures whose files are in a folder."""
        return {file: caption for file, caption in self.pictures.items() if (folder / file).is_file()}

    def of_another_model(self) -> CardContent:
        """Without what belongs to its weights."""
        further = {key: value for key, value in self.further.items() if key != "co2_eq_emissions"}
        return replace(self, further=further, weights=None, results=[], origin=None, data="", training="", pictures={})

    def of_the_base(self) -> CardContent:
        """The content that a model which was loaded from the card's folder has in common with it."""
        return CardContent(bases=self.bases, license=self.license, language=self.language)


def read_card(text: str) -> CardContent:
    """Read the content of a card; metadata that cannot be read are passed over."""
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
    except (ValueError, TypeError, yaml.YAMLError):
        return CardContent()
    data: dict[str, Any] = dict(card.data.__dict__)
    written = _sections_in(card.text)
    filled = {title: body for title, body in written if not _is_unfilled(body)}
    own = {title for title, _ in _sections_in(TEMPLATE.read_text(encoding="utf-8"))}
    origin, weights = _ORIGIN.search(card.text), _WEIGHTS.search(card.text)
    return CardContent(
        bases=[name for name in _strings(data.get("base_model")) if looks_like_hub_id(name)],
        license={key: data[key] for key in LICENSE_KEYS if data.get(key)},
        language=data.get("language"),
        datasets=_strings(data.get("datasets")),
        tags=_strings(data.get("tags")),
        further={key: value for key, value in data.items() if key not in _MADE_ANEW and value is not None},
        sections=tuple(
            (title, body)
            for title, body in written
            if title not in own and title != _OF_TRAINER and not _is_unfilled(body)
        ),
        weights=weights and weights[1],
        results=list(data.get("eval_results") or ()),
        origin=origin and origin[1],
        data=filled.get("Data", ""),
        training=filled.get("Training", filled.get(_OF_TRAINER, "")),
        pictures={file: below or name for name, file, below in _PICTURE.findall(filled.get("Pictures", ""))},
    )


def card_in(folder: str | Path) -> CardContent:
    """The card in a folder; an empty one if there is none.

    What it says of weights that are not those in the folder is left out, their hash too: a model may have been trained
    on and saved beside the card of what it was.
    """
    path = Path(folder, CARD_FILE)
    if not path.is_file():
        return CardContent()
    card = read_card(path.read_text(encoding="utf-8", errors="replace"))
    if card.weights is not None:
        belongs = card.weights == weights_of(path.parent)
    else:
        written = path.stat().st_mtime_ns
        belongs = all(file.stat().st_mtime_ns <= written for file in weight_files(path.parent))
    return card if belongs else card.of_another_model()


def weight_files(folder: Path) -> list[Path]:
    """The weights in a folder, of a model or an adapter, but no other tensors, such as a batch that a run recorded."""
    return sorted(folder.glob("*model*.safetensors"))


def weights_of(folder: Path) -> str:
    """A hash of the weights in a folder."""
    whole = hashlib.sha256()
    for path in weight_files(folder):
        whole.update(f"{path.name} {sha256_of(path)}\n".encode())
    return whole.hexdigest()


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text]


def _sections_in(text: str) -> list[tuple[str, str]]:
    """Titles of first and second level and what is below them, but for the title of the whole.

    What looks like one inside of a block of code is none.
    """
    found: list[tuple[str, list[str]]] = []
    fence = ""
    is_whole = True
    for line in text.splitlines():
        mark = re.match(r" {0,3}(```+|~~~+)", line)
        if mark and (not fence or line.strip().startswith(fence)):
            fence = "" if fence else mark[1]
        title = re.fullmatch(r"(##?) +(.+?) *#*", line)
        if title and not fence and title[1] == "#" and is_whole:
            is_whole = False
        elif title and not fence:
            found.append((title[2], []))
        elif found:
            found[-1][1].append(line)
    return [(title, "\n".join(lines).strip()) for title, lines in found]


def _is_unfilled(body: str) -> bool:
    """Whether a template's section was left as it was, or nearly so."""
    lines = [line for line in body.splitlines() if line.strip() and not line.lstrip().startswith(("#", "<!--"))]
    unfilled = sum(bool(_UNFILLED.search(line)) for line in lines)
    return 2 * unfilled >= len(lines)
