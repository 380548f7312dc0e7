"""The seam through which tools look at attention: what they get, in which order, and that nothing of them stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hf_lam
from helpers.fusion_models import make_fusion, make_fusion_inputs
from helpers.hosts import first_output, make_host, make_inputs, perturb_mechanisms
from hf_lam import LamConfig, LocomtConfig, SttConfig
from hf_lam.facts import list_facts, list_facts_of
from hf_lam.modeling.injection_hf_lam import injection_of
from hf_lam.observing import fused_tokens_of, observing, tokens_of
from hf_lam.visualization import learned_masks


def with_mechanisms(host: str, *configs: Any) -> Any:
    model = hf_lam.inject(make_host(host), *configs)
    perturb_mechanisms(model)
    return model


@pytest.mark.parametrize("configs", [(LamConfig(),), (LocomtConfig(views="half"),), (SttConfig("dense"),)])
@pytest.mark.parametrize("host", ["bert", "vit", "videomae"])
def test_an_observer_gets_every_layer_and_may_leave_it_as_it_is(host: str, configs: tuple[Any, ...]) -> None:
    model, inputs = with_mechanisms(host, *configs), make_inputs(host, token_types=True)
    expected = first_output(model, inputs)
    seen: list[int] = []

    def look(attention: Any, attend: Any) -> Any:
        seen.append(attention.layer)
        context, weights = attend(attention)
        assert context.shape == attention.value.shape and weights is None
        assert attention.of_pass.injection is injection_of(model)
        return context, weights

    with observing(model, look):
        assert torch.equal(first_output(model, inputs), expected)
    assert seen == [0, 1, 2]
    assert torch.equal(first_output(model, inputs), expected)
    assert len(seen) == 3


def test_an_observer_may_change_what_is_attended() -> None:
    model, inputs = with_mechanisms("vit", LamConfig()), make_inputs("vit")
    maps: list[torch.Tensor] = []

    def ask(attention: Any, attend: Any) -> Any:
        context, weights = attend(attention._replace(want_weights=True))
        maps.append(weights)
        return context, None

    with observing(model, ask):
        model(**inputs)
    expected = model(**inputs, output_attentions=True).attentions
    assert len(maps) == len(expected) == 3
    for weights, attention in zip(maps, expected, strict=True):
        torch.testing.assert_close(weights, attention)


def test_an_inner_observer_stands_in_front_of_the_outer_one() -> None:
    model, inputs = with_mechanisms("vit", LamConfig()), make_inputs("vit")
    events: list[tuple[str, bool]] = []

    def outer(attention: Any, attend: Any) -> Any:
        events.append(("outer", attention.want_weights))
        return attend(attention)

    def inner(attention: Any, attend: Any) -> Any:
        events.append(("inner", attention.want_weights))
        context, weights = attend(attention._replace(want_weights=True))
        events.append(("inner got weights", weights is not None))
        return context, None

    with observing(model, outer):
        with observing(model, inner):
            model(**inputs)
        assert events == [("inner", False), ("outer", True), ("inner got weights", True)] * 3
        events.clear()
        model(**inputs)
        assert events == [("outer", False)] * 3
    assert not injection_of(model).observers


def test_an_error_leaves_no_observer() -> None:
    model = with_mechanisms("vit", LamConfig())

    def fail(attention: Any, attend: Any) -> Any:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), observing(model, fail):
        model(**make_inputs("vit"))
    assert not injection_of(model).observers


@pytest.mark.parametrize("hf_lam_block", [None, "lam_half"])
def test_fused_tokens_with_and_without_mechanisms(hf_lam_block: str | None) -> None:
    model, inputs = make_fusion(hf_lam=hf_lam_block), make_fusion_inputs(("text", "audio"))
    base = getattr(model, "fusion", model)
    with fused_tokens_of(base) as found:
        model(**inputs)
        model(**inputs)
    assert len(found) == 2
    lengths = dict(zip(base.config.modalities, found[0].lengths, strict=True))
    assert lengths == {"text": inputs["input_ids"].shape[1], "image": 0, "video": 0, "audio": lengths["audio"]}
    assert lengths["audio"] > 0
    model(**inputs)
    assert len(found) == 2


def test_fused_tokens_of_late_fusion_and_of_other_models() -> None:
    late = make_fusion(num_hidden_layers=0)
    with fused_tokens_of(getattr(late, "fusion", late)) as found:
        late(**make_fusion_inputs(("text", "image")))
    assert len(found) == 1 and found[0].lengths[:2] == (11, 17)
    model = with_mechanisms("vit", LamConfig())
    with fused_tokens_of(model) as found:
        model(**make_inputs("vit"))
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_tokens_are_those_of_the_mask_and_what_is_appended(attention: str) -> None:
    views = LocomtConfig(views="self", bottleneck_tokens=2)
    model, inputs = with_mechanisms("bert", views), make_inputs("bert", token_types=True)
    model.set_attn_implementation(attention)
    seen: list[Any] = []

    def look(attention: Any, attend: Any) -> Any:
        seen.append(tokens_of(attention))
        return attend(attention)

    with observing(model, look):
        model(**inputs)
        model(**{name: tensor for name, tensor in inputs.items() if name != "attention_mask"})
    real = torch.cat([inputs["attention_mask"].bool(), torch.ones(2, 4, dtype=torch.bool)], dim=1)
    assert all(torch.equal(found, real) for found in seen[:3])
    assert all(found is None or found.all() for found in seen[3:])


def test_facts_and_those_of_inputs() -> None:
    configs = (LamConfig(per_head=True), LocomtConfig(views="half"), SttConfig())
    model, inputs = with_mechanisms("vit", *configs), make_inputs("vit")
    layers = list_facts(model)
    assert [layer["locomt"] for layer in layers] == [
        {"views": views} for views in injection_of(model).configs["locomt"].views
    ]
    assert all(len(layer["stt"]["mixing"]) == 4 and layer["lam"]["mask_parameters"] > 0 for layer in layers)
    of_inputs = list_facts_of(model, model, inputs)
    masks = learned_masks(model, inputs)
    for layer, mask in zip(of_inputs, masks, strict=True):
        assert list(layer) == ["lam"]
        assert layer["lam"]["mask_spread"] == pytest.approx(float(mask.double().std(correction=0)), rel=1e-5)
        assert len(layer["lam"]["mask_deviation_by_head"]) == 4


@pytest.mark.parametrize("combine, name, neutral", [("multiply", "deviation", 1.0), ("add", "magnitude", 0.0)])
def test_facts_say_how_far_masks_are_from_changing_nothing(combine: str, name: str, neutral: float) -> None:
    model, inputs = with_mechanisms("vit", LamConfig(per_head=True, combine=combine, depth=3)), make_inputs("vit")
    for layer, mask in zip(list_facts_of(model, model, inputs), learned_masks(model, inputs), strict=True):
        expected = (mask - neutral).abs().mean((0, 2, 3)).tolist()
        assert layer["lam"][f"mask_{name}_by_head"] == pytest.approx(expected, rel=1e-5)
        assert layer["lam"][f"mask_{name}"] == pytest.approx(sum(expected) / 4, rel=1e-5)
        assert set(layer["lam"]) == {f"mask_{name}", f"mask_{name}_by_head", "mask_spread"}
    parameters = sum(parameter.numel() for parameter in model.hf_lam.lam[0].parameters())
    assert list_facts(model)[0]["lam"] == {"mask_parameters": parameters}


def test_facts_of_a_shared_change_are_there_once() -> None:
    model = with_mechanisms("vit", LamConfig(scope="shared"))
    first, *others = list_facts_of(model, model, make_inputs("vit"))
    assert first["lam"]["mask_spread"] > 0 and others == [{}, {}]
