"""set_views: other views for a model that has some."""

from __future__ import annotations

import pytest
import torch

from helpers.hosts import (
    SEGMENTS,
    first_output,
    make_host,
    make_inputs,
    mechanisms,
    perturb_mechanisms,
)
from helpers.injection import assert_no_trace, injected
from hf_lam import (
    LamConfig,
    LocomtConfig,
    inject,
    remove,
    set_views,
)
from hf_lam.modeling.injection_hf_lam import injection_of


@pytest.mark.parametrize(("host", "name"), [("bert", "half"), ("vit", "shared_lam"), ("videomae", "annealing")])
def test_set_views_is_like_injecting_them(host: str, name: str) -> None:
    model, inputs = injected(host, name), make_inputs(host, token_types=True)
    table = [["full", "self", "self", "full"], ["self"] * 4, ["full"] * 4]
    others = [config for config in mechanisms(name, host) if isinstance(config, LamConfig)]
    twin = inject(make_host(host), *others, LocomtConfig(views=table))
    perturb_mechanisms(twin)
    assert set_views(model, LocomtConfig(views=table)) is model
    assert torch.equal(first_output(model, inputs), first_output(twin, inputs))
    remove(model)
    assert_no_trace(model)


def test_set_views_keeps_segments_and_a_bottleneck_of_the_same_size() -> None:
    model, inputs = injected("vit", "explicit"), make_inputs("vit")
    set_views(model, LocomtConfig(views="cross:left-right"))
    assert injection_of(model).configs["locomt"].names == ["cls", "left", "right"]
    assert injection_of(model).configs["locomt"].views == [["cross:left-right"] * 4] * 3
    model = injected("vit", "bottleneck")
    expected = first_output(model, inputs)
    kept = model.hf_lam.locomt.bottleneck
    set_views(model, LocomtConfig(views="self", bottleneck_tokens=2))
    assert model.hf_lam.locomt.bottleneck is kept
    assert torch.equal(first_output(model, inputs), expected)
    set_views(model, LocomtConfig(views="self", bottleneck_tokens=3))
    assert model.hf_lam.locomt.bottleneck.shape == (3, 32)
    assert first_output(model, inputs).shape == expected.shape


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LocomtConfig(views=[["self"] * 4] * 2), r"2 rows of 4 views.*3 layers of 4 heads"),
        (LocomtConfig(views="cross:left-right"), "'left'"),
        (LocomtConfig(segments=[["a", 8], ["b", 8]]), r"add up to 16 tokens.*17"),
        (LocomtConfig(views="self", bottleneck_tokens=1), "remove"),
    ],
)
def test_set_views_refuses_and_leaves_the_model_alone(config: LocomtConfig, message: str) -> None:
    model, inputs = injected("vit", "half"), make_inputs("vit")
    expected, before = first_output(model, inputs), dict(injection_of(model).configs)
    with pytest.raises(ValueError, match=message):
        set_views(model, config)
    assert injection_of(model).configs == before
    assert torch.equal(first_output(model, inputs), expected)


def test_set_views_needs_views_of_the_same_kind() -> None:
    with pytest.raises(ValueError, match="in 0 encoders"):
        set_views(make_host("vit"), LocomtConfig())
    with pytest.raises(ValueError, match="in 0 encoders"):
        set_views(inject(make_host("vit"), LamConfig()), LocomtConfig())
    with pytest.raises(ValueError, match="token types"):
        set_views(injected("bert", "half"), LocomtConfig(segments=SEGMENTS["bert"]))
