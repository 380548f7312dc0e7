"""Writes `docs/hosts.md` from the data of the tests beside it: `PYTHONPATH=tests python -m hosts.write_table`."""

from __future__ import annotations

from pathlib import Path

from helpers.families import FAMILIES, Family
from helpers.refused_hosts import REFUSED

PAGE = Path(__file__).parents[2] / "docs" / "hosts.md"

_HEAD = """# Which encoders take which mechanism

This page is written by `PYTHONPATH=tests python -m hosts.write_table` from the data of the tests in `tests/hosts/`,
and a test fails where it says anything else. Every cell below is shown there on a tiny random model of that family,
padded where the family takes padding:

- with the mechanism just attached, outputs and gradients are the stock model's (or the change is announced); once its
  weights have moved, it takes part;
- `eager` attention and the fast paths agree, and `output_attentions` shows the maps that were used;
- what is padding changes nothing, and a sample gets in a batch what it gets alone;
- gradients are the same under activation checkpointing, in both modes;
- `convert`, `save_pretrained` and loading by the Auto class give the same model, with hf_lam and, by
  `trust_remote_code=True`, without it; copies and pickles are equal;
- `remove` gives the stock outputs back, bit for bit (but for STT without scores, which drops the projections).

Everything not named here is tried by the same rules: `inject` and `convert` look at the modules of a model, and refuse
it with the reason before anything has changed.

How to read a cell: **yes** works without options; otherwise it says which option to give. "LAM" is the dense mask,
`LamConfig()`; a low-rank mask, `LamConfig(rank=8)`, takes any length and needs no options anywhere. "Pure STT" is
`SttConfig("dense")` and the other variants without queries and keys. The class of a head `Xyz` is loaded by
`AutoModelForXyz`.
"""

_KINDS = {"text": "Text", "image": "Images", "video": "Video", "audio": "Sound"}
_TITLES = ("encoder", "LAM", "LoCoMT", "STT mixture", "pure STT", "heads")
_LACKS = {
    "pickle": "it cannot be pickled (weight norm); use `save_pretrained`",
    "checkpointing": "there is no activation checkpointing",
    "reentrant": "checkpoint it with `use_reentrant=False`",
    "padding": "its convolutions see the padding",
}


def write_page() -> str:
    """The text of the page."""
    parts = [_HEAD]
    for kind, title in _KINDS.items():
        families = [family for family in FAMILIES.values() if family.kind == kind]
        parts += [f"## {title}\n", _table(_TITLES, [_row(family) for family in families])]
        parts += [note for note in [_notes(families)] if note]
    rows = [(host.title, host.reason, host.instead or "–") for host in REFUSED.values()]
    parts += ["## Refused\n", _table(("model", "why", "instead"), rows)]
    return "\n".join(parts)


def _row(family: Family) -> tuple[str, ...]:
    def cell(mechanism: str, text: str) -> str:
        return "no" if mechanism in family.without else text

    by_itself = None if not family.length else "yes" if family.even is None else "yes, one size a batch"
    return (
        family.title,
        cell("lam", by_itself or "`max_length=`"),
        cell("views", "`segments=`" if family.segments is None else f"yes ({family.segments})"),
        cell("stt_mixture", by_itself or "`grid=`"),
        cell("stt_dense", by_itself or "`grid=`"),
        ", ".join(family.heads) or "–",
    )


def _notes(families: list[Family]) -> str:
    reasons: dict[str, list[str]] = {}
    for family in families:
        for mechanism, reason in family.without.items():
            reasons.setdefault(f"no {_mechanism(mechanism)}: {reason}", []).append(family.title)
        if family.note is not None:
            reasons.setdefault(family.note, []).append(family.title)
        for lack in family.lacks:
            reasons.setdefault(f"as the stock model, {_LACKS[lack]}", []).append(family.title)
    return "".join(f"- {', '.join(names)}: {reason}.\n" for reason, names in reasons.items())


def _mechanism(name: str) -> str:
    return {"stt_dense": "pure STT", "stt_mixture": "STT mixture", "views": "LoCoMT", "lam": "dense LAM"}.get(
        name, name
    )


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(write_page(), encoding="utf-8")
