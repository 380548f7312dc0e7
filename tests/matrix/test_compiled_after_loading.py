"""What was loaded or is annealed compiles whole, too: nothing that a pass needs is made only by `inject`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.hosts import make_host, make_inputs
from hf_lam import HfLamBertModel, LocomtConfig, convert, inject, set_views
from hf_lam.modeling.mechanism_hf_lam import ScoreChange


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", ["loaded", *(pytest.param(way, marks=pytest.mark.slow) for way in ("annealed", "set"))]
)
def test_views_compile_without_a_graph_break(way: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    views = LocomtConfig(views="half", annealing=way == "annealed")
    if way == "loaded":
        convert(make_host("bert"), views).save_pretrained(tmp_path)
        model = HfLamBertModel.from_pretrained(tmp_path)
    else:
        model = inject(make_host("bert"), views)
    if way == "set":
        set_views(model, LocomtConfig(views="cross"))
    inputs = make_inputs("bert", token_types=True)
    with torch.no_grad():
        expected = model.eval()(**inputs).last_hidden_state
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert (compiled(**inputs).last_hidden_state - expected).abs().max() < 1e-5


def test_changes_of_several_devices_are_brought_together() -> None:
    """A shared mask lies where the first layer does, what a layer makes itself lies with that layer."""
    model, inputs = inject(make_host("bert"), LocomtConfig()), make_inputs("bert", token_types=True)
    from hf_lam.modeling.injection_hf_lam import injection_of
    from hf_lam.observing import observing

    def elsewhere(attention, attend):
        of_pass = attention.of_pass
        changes = iter([ScoreChange(torch.ones(1, device="meta")), ScoreChange(torch.ones(1))])
        of_pass.dispatch.change_scores = lambda name, given: next(changes)
        moved = of_pass.change_scores(attention._replace(query=attention.query.to("meta")), ["a", "b"])
        assert moved.factor is not None and moved.factor.is_meta
        return attend(attention)

    assert not injection_of(model).order
    with observing(model, elsewhere):
        model(**inputs)
