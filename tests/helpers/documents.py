"""What the documents show: blocks, commands and links, and small stand-ins for the checkpoints that they name."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    BertConfig,
    BertForPreTraining,
    BertModel,
    BertTokenizer,
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from helpers.processes import ROOT

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/*.md", "model_cards/README.md")
    for path in ROOT.glob(pattern)
)
# Those whose blocks are run. The page of mechanisms has a test of its own.
_PROSE = re.compile(r"README\.md|docs/.*")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
WORDS = ("a", "the", "is", "it", "what", "on", "film", "plot", "dog", "sofa", "good", "bad", "great", "dull")


@dataclass(frozen=True)
class Block:
    """A fenced block, or one that is indented by four spaces (`language` is "indented").

    printed: the `text` block right after it: what it prints.
    """

    language: str
    text: str
    line: int
    printed: str | None = None


def blocks_of(page: str) -> list[Block]:
    """The blocks of a page in their order."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    index, end = 0, -1
    while index < len(lines):
        fence = re.match(r"^( *)```(\w*)", lines[index])
        start = index
        if fence:
            indent, language = len(fence[1]), fence[2]
            index += 1
            while lines[index].strip() != "```":
                index += 1
            text = "\n".join(line[indent:] for line in lines[start + 1 : index])
            # Nothing but blank lines between a block and what it prints.
            if language == "text" and found and not any(lines[end + 1 : start]) and found[-1].language != "text":
                found[-1] = Block(found[-1].language, found[-1].text, found[-1].line, text)
            else:
                found.append(Block(language, text, start + 1))
            end = index
        elif lines[index].startswith("    ") and lines[index].strip() and not lines[index - 1].strip():
            while index + 1 < len(lines) and (lines[index + 1].startswith("    ") or not lines[index + 1].strip()):
                index += 1
            found.append(Block("indented", "\n".join(line[4:] for line in lines[start : index + 1]), start + 1))
        index += 1
    return found


def commands_of(block: Block) -> Iterator[list[str]]:
    """The commands of a block: lines that begin with a program of ours, or with `$` where output is shown."""
    joined = re.sub(r"\\\n\s*", " ", block.text)
    # A quoted option may go on on the next line.
    joined = re.sub(r"'\{.*?\}'", lambda quoted: re.sub(r"\s*\n\s*", " ", quoted[0]), joined, flags=re.DOTALL)
    for line in joined.splitlines():
        line = re.sub(r"\s+#.*", "", line.strip().removeprefix("$ "))
        line = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line)
        if re.match(r"(hf-lam|make|pip|torchrun|accelerate) |python (?!-)", line):
            yield shlex.split(line)


def links_of(page: str) -> list[str]:
    """The targets of all links and pictures of a page, without those in code."""
    text = re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S | re.M)
    inline = re.findall(r"\]\(([^()\s]+)\)", text)
    return inline + re.findall(r"^\[[^\]\n]+\]: (\S+)$", text, flags=re.M)


def anchors_of(page: str) -> set[str]:
    """What GitHub and the site call the headings of a page."""
    text = re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S | re.M)
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        anchors.add(name)
    return anchors


def same_output(printed: str, shown: str) -> bool:
    """Whether it printed what the page shows: words are equal, numbers within a tenth, `…` stands for anything.

    Numbers differ with the machine, and those of random models with the version of torch; what they mean stays.
    """
    number = r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w])"
    pattern = ""
    for index, piece in enumerate(re.split(f"({number}|…)", _trimmed(shown))):
        pattern += (r".*?" if piece == "…" else f"({number})") if index % 2 else re.escape(piece)
    match = re.fullmatch(pattern, _trimmed(printed), flags=re.DOTALL)
    wanted = re.findall(number, _trimmed(shown))
    return match is not None and all(
        math.isclose(float(one.replace(",", "")), float(other.replace(",", "")), rel_tol=0.1, abs_tol=1e-4)
        for one, other in zip(match.groups(), wanted, strict=True)
    )


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def make_stand_ins(folder: Path) -> None:
    """Folders in place of what the pages name of the Hub; transformers and datasets find them by those names."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary = {word: index for index, word in enumerate(words)}
    berts = {"bert-base-uncased": BertForPreTraining, "sentence-transformers/all-MiniLM-L6-v2": BertModel}
    for name, kind in berts.items():
        kind(BertConfig(vocab_size=len(words), **SIZES)).save_pretrained(folder / name)
        BertTokenizer(vocab=vocabulary).save_pretrained(folder / name)
    vit = folder / "google" / "vit-base-patch16-224"
    ViTForImageClassification(ViTConfig(**SIZES, num_labels=2)).save_pretrained(vit)
    ViTImageProcessor().save_pretrained(vit)
    dino = folder / "facebook" / "dinov2-small"
    Dinov2Model(Dinov2Config(**SIZES, patch_size=56)).save_pretrained(dino)
    BitImageProcessor().save_pretrained(dino)
    ast = folder / "MIT" / "ast-finetuned-audioset-10-10-0.4593"
    ASTModel(ASTConfig(**SIZES, max_length=64, num_mel_bins=32)).save_pretrained(ast)
    ASTFeatureExtractor(max_length=64, num_mel_bins=32).save_pretrained(ast)
    gpt2 = folder / "gpt2"
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(words), bos_token_id=2, eos_token_id=3, pad_token_id=0, **sizes)
    ).save_pretrained(gpt2)
    BertTokenizer(vocab=vocabulary).save_pretrained(gpt2)
    reviews = folder / "SetFit" / "sst2"
    reviews.mkdir(parents=True)
    sentences = ["a good film", "a dull plot", "it is great", "the film is bad"] * 4
    rows = pd.DataFrame({"text": sentences, "label": [1, 0] * 8})
    for split in ("train", "validation"):
        rows.to_parquet(reviews / f"{split}.parquet")


def messages() -> str:
    """The source of the package with texts over several lines joined, and `…` in place of what is filled in."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "hf_lam").rglob("*.py"))
    joined = re.sub(r"""["']\s*\n\s*f?["']""", "", source)
    return re.sub(r"\{[^{}\n]*\}", "…", joined)


RUN = [
    page
    for page in PAGES
    if _PROSE.fullmatch(page) and any(block.language in ("python", "bash") for block in blocks_of(page))
]
