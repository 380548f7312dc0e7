"""Other attention views for a model: what they cost, and how far its answer is from the one it gave before."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass
from typing import Any

import torch
from shelf import Answer, Loaded, Sample, ask
from transformers import PreTrainedModel

from hf_lam import LocomtConfig, calibrate_views, cost, inject, remove, set_views
from hf_lam.flops.report import CostReport
from hf_lam.modeling.injection_hf_lam import encoders_with, injected_encoders, injection_of
from hf_lam.result_tables import Column, Readable, ResultTable
from hf_lam.visualization import plot_view_blocks, plot_views

# The choice of views that depends on the budget.
CALIBRATED = "the most attention within the budget"
PRESETS = ("full", "self", "cross", "half", "round_robin")
# How the tokens are cut.
OWN = "the model's own"
_PARTS: dict[str, list[Any]] = {
    "quadrants": [
        ["top_left", {"part": [0, 0, 0.5, 0.5]}],
        ["top_right", {"part": [0, 0.5, 0.5, 0.5]}],
        ["bottom_left", {"part": [0.5, 0, 0.5, 0.5]}],
        ["bottom_right", {"part": [0.5, 0.5, 0.5, 0.5]}],
    ],
    "left and right": [["left", {"part": [0, 0, 1, 0.5]}], ["right", {"part": [0, 0.5, 1, 0.5]}]],
    "top and bottom": [["top", {"part": [0, 0, 0.5, 1]}], ["bottom", {"part": [0.5, 0, 0.5, 1]}]],
}
_HALVES = "first and second half"


@dataclass(frozen=True)
class Comparison(Readable):
    """A model with other views beside itself, for one input.

    before, after: what it said, and what it says with the views.
    of_full, of_before, of_after: FLOPs with full attention, as the model was, and with the views.
    kept: the part of the attention that the views keep; None unless they were chosen by it.
    model: with the views.
    """

    before: Answer
    after: Answer
    of_full: int
    of_before: CostReport
    of_after: CostReport
    kept: float | None
    model: PreTrainedModel

    @property
    def cosine(self) -> float:
        """Of the two pooled outputs."""
        return float(torch.nn.functional.cosine_similarity(self.before.pooled, self.after.pooled, dim=0))

    @property
    def flops_fraction(self) -> float:
        """FLOPs of the attention with the views, relative to full attention."""
        return self.of_after.forward_attention / self.of_full

    @property
    def has_same_label(self) -> bool | None:
        """None without a head."""
        return None if self.after.label is None else self.before.label == self.after.label

    def tables(self) -> tuple[ResultTable, ...]:
        attention = (self.of_before.forward_attention, self.of_after.forward_attention)
        rows = [
            ["FLOPs of the attention", *(f"{count:,}" for count in attention)],
            ["relative to full attention", *(f"{count / self.of_full:.1%}" for count in attention)],
            ["FLOPs of the whole model", f"{self.of_before.flops:,}", f"{self.of_after.flops:,}"],
            ["cosine to the original's pooled output", "1.0000", f"{self.cosine:.4f}"],
        ]
        if self.kept is not None:
            rows.append(["attention that the views keep", "", f"{self.kept:.1%}"])
        if self.after.label is not None:
            answers = (self.before, self.after)
            rows.append(["label", *(f"{each.label} ({each.scores[str(each.label)]:.1%})" for each in answers)])
        verdict = {None: "", True: "The label is the same.", False: "The label is another one."}[self.has_same_label]
        columns = [Column("", is_number=False), Column("original"), Column("with these views")]
        return (ResultTable("", columns, rows, notes=[verdict] if verdict else []),)

    def pictures(self) -> list[tuple[bytes, str]]:
        """The views of all heads, and what each lets see, as PNG files with captions."""
        drawn = []
        for figure, caption in (
            (plot_views(self.model), "The view of every head: a letter and a colour for each."),
            (plot_view_blocks(self.model, most=8), "Which tokens see which: blue is seen, grey is not."),
        ):
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=110)
            drawn.append((file.getvalue(), caption))
        return drawn


def list_segments(loaded: Loaded) -> list[str]:
    """How the tokens of a model can be cut."""
    own = [OWN] if encoders_with(loaded.model, LocomtConfig.name) else []
    return [*own, *(_PARTS if loaded.kind == "image" else [_HALVES])]


def list_views(loaded: Loaded, segments: str) -> list[str]:
    """What to choose views from: by the budget, presets, and single views of the segments."""
    names = _names_of(loaded, segments)
    pairs = [(a, b) for index, a in enumerate(names) for b in names[index + 1 :]]
    terms = [*(f"cross:{a}-{b}" for a, b in pairs), *(f"{a}>{b}" for a, b in pairs), *(f"self:{a}" for a in names)]
    return [CALIBRATED, *PRESETS, *terms]


def compare_views(loaded: Loaded, sample: Sample, segments: str, views: str, budget: float) -> Comparison:
    """A model beside itself with other views, which are not trained.

    Args:
        loaded: the model, which stays as it is.
        sample: its input. The budget is met, and the attention measured, on this one alone.
        segments: one of `list_segments`.
        views: `CALIBRATED`, a preset, or a view in the grammar of `LocomtConfig`.
        budget: for `CALIBRATED`, FLOPs of the attention relative to full attention, in (0, 1].

    Raises:
        ValueError: for segments or views that do not fit the model or the input, or a budget that no views meet.
    """
    if segments not in list_segments(loaded):
        raise ValueError(f"segments must be one of {list_segments(loaded)}, got {segments!r}.")
    of_before = cost(loaded.model, sample.inputs)
    model = _with_full_views(loaded, segments, of_before.tokens)
    kept = None
    if views == CALIBRATED:
        config, report = calibrate_views(model, [sample.inputs], budget)
        kept = report.kept / report.total if report.total else None
    else:
        config = LocomtConfig(views=views)
    of_full = cost(model, sample.inputs).attention["full"]
    set_views(model, config)
    of_after = cost(model, sample.inputs)
    before, after = (ask(each, sample.inputs) for each in (loaded.model, model))
    return Comparison(before, after, of_full, of_before, of_after, kept, model)


def _names_of(loaded: Loaded, segments: str) -> list[str]:
    if segments == OWN:
        base = encoders_with(loaded.model, LocomtConfig.name)[0]
        config = injection_of(base).configs[LocomtConfig.name]
        return [name for name, is_global in zip(config.names, config.is_global, strict=True) if not is_global]
    return [name for name, _ in _PARTS[segments]] if segments in _PARTS else ["first", "second"]


def _with_full_views(loaded: Loaded, segments: str, tokens: int) -> PreTrainedModel:
    """A copy of a model with full views of these segments, and its other mechanisms as they are."""
    model = copy.deepcopy(loaded.model)
    if segments == OWN:
        return set_views(model, LocomtConfig(views="full"))
    config = LocomtConfig(segments=_PARTS[segments] if segments in _PARTS else _halves(loaded, tokens))
    configs = {name: kept for base in injected_encoders(model) for name, kept in injection_of(base).configs.items()}
    configs.pop(LocomtConfig.name, None)
    weights = model.state_dict()
    if injected_encoders(model):
        remove(model)
    inject(model, *configs.values(), config)
    model.load_state_dict(weights)
    return model


def _halves(loaded: Loaded, tokens: int) -> list[Any]:
    # The first token of a text stands for all of it.
    first = [["cls", {"length": 1, "global": True}]] if loaded.kind == "text" else []
    rest = tokens - len(first)
    return [*first, ["first", rest // 2], ["second", rest - rest // 2]]
