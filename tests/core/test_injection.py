"""inject and remove: the identity, the effect, the way back, and what no host may lose on the way."""

from __future__ import annotations

import copy
import io
import threading
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn
from transformers import (
    BertForSequenceClassification,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    RobertaForSequenceClassification,
    VivitConfig,
    VivitModel,
)

from helpers.hosts import (
    BASES,
    LAM_CONFIGS,
    SIZES,
    STT_CASES,
    STT_CONFIGS,
    VIEW_CASES,
    first_output,
    make_host,
    make_inputs,
    make_model,
    max_difference,
    mechanisms,
    perturb_mechanisms,
)
from helpers.injection import assert_no_trace, injected
from hf_lam import (
    LamConfig,
    LocomtConfig,
    conversion,
    convert,
    freeze_host,
    inject,
    injecting,
    mechanism_parameters,
    remove,
    set_views,
)
from hf_lam.modeling import attention_hooks_hf_lam, attention_pass_hf_lam, locomt_hf_lam
from hf_lam.modeling.injection_hf_lam import injection_of
from hf_lam.modeling.lam_attention_hf_lam import changed_attention
from hf_lam.modeling.mechanism_hf_lam import MechanismPart

BACKBONES = ("bert", "vit", "videomae")
IMPLEMENTATIONS = ("eager", "sdpa", "hf_lam")
# transformers compiles the block masks of flex_attention, which takes half a minute.
FLEX = pytest.param("flex_attention", marks=pytest.mark.slow)


@pytest.fixture(params=list(BASES))
def host(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("name", LAM_CONFIGS)
def test_identity_then_effect_then_removal(host: str, name: str) -> None:
    model, inputs = make_host(host), make_inputs(host)
    original = first_output(model, inputs)
    assert inject(model, LAM_CONFIGS[name]) is model
    assert max_difference(first_output(model, inputs), original) < 1e-5
    perturb_mechanisms(model)
    assert max_difference(first_output(model, inputs), original) > 1e-3
    assert remove(model) is model
    assert torch.equal(first_output(model, inputs), original)
    assert_no_trace(model)


@pytest.mark.parametrize("lam", [(), (LamConfig(),)], ids=["alone", "with_lam"])
def test_full_views_are_the_identity(host: str, lam: tuple[LamConfig, ...]) -> None:
    model, inputs = make_host(host), make_inputs(host, token_types=True)
    original = first_output(model, inputs)
    for config in (LocomtConfig(), LocomtConfig(views="half", annealing=True)):
        inject(model, *lam, config)
        for implementation in IMPLEMENTATIONS:
            model.set_attn_implementation(implementation)
            assert max_difference(first_output(model, inputs), original) < 1e-5
        remove(model)


@pytest.mark.parametrize(("host", "name"), VIEW_CASES)
def test_views_have_an_effect_and_can_be_removed(host: str, name: str) -> None:
    model, inputs = make_host(host), make_inputs(host, token_types=True)
    original = first_output(model, inputs)
    inject(model, *mechanisms(name, host))
    perturb_mechanisms(model)
    assert max_difference(first_output(model, inputs), original) > 1e-3
    remove(model)
    assert torch.equal(first_output(model, inputs), original)
    assert_no_trace(model)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, FLEX])
def test_no_attention_implementation_drops_the_mechanism(host: str, implementation: str) -> None:
    model, inputs = inject(make_host(host), LAM_CONFIGS["shared"]), make_inputs(host)
    perturb_mechanisms(model)
    expected = first_output(model, inputs)
    model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == implementation
    assert max_difference(first_output(model, inputs), expected) < 1e-5


@pytest.mark.parametrize("implementation", ["eager", "hf_lam", FLEX])
@pytest.mark.parametrize(("host", "name"), [*VIEW_CASES, *STT_CASES])
def test_no_attention_implementation_drops_views_or_stt(host: str, name: str, implementation: str) -> None:
    model, inputs = injected(host, name), make_inputs(host, token_types=True)
    expected = first_output(model, inputs)
    model.set_attn_implementation(implementation)
    assert max_difference(first_output(model, inputs), expected) < 1e-5


def test_eager_selects_the_reference_and_everything_else_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []

    def spy(*args, implementation, **kwargs):
        chosen.append(implementation)
        return changed_attention(*args, implementation=implementation, **kwargs)

    monkeypatch.setattr(attention_pass_hf_lam, "changed_attention", spy)
    model, inputs = inject(make_host("vit"), LamConfig()), make_inputs("vit")
    for implementation in ("eager", "sdpa", "hf_lam"):
        model.set_attn_implementation(implementation)
        model(**inputs)
    assert chosen == ["eager"] * 3 + ["auto"] * 6


def test_eager_selects_the_reference_of_views_and_everything_else_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    for name in ("attend_eager", "attend_blocks"):
        original = getattr(locomt_hf_lam, name)

        def spy(*args, name=name, original=original, **kwargs):
            chosen.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(locomt_hf_lam, name, spy)
    model, inputs = injected("vit", "half"), make_inputs("vit")
    for implementation in ("eager", "sdpa", "hf_lam"):
        model.set_attn_implementation(implementation)
        model(**inputs)
    assert chosen == ["attend_eager"] * 3 + ["attend_blocks"] * 6


def test_the_head_around_an_injected_base_cannot_drop_the_mechanism_either() -> None:
    model = make_model(RobertaForSequenceClassification, "roberta")
    inject(model.roberta, LamConfig())
    perturb_mechanisms(model, scale=2.0)
    inputs = make_inputs("roberta")
    expected = model(**inputs, output_hidden_states=True).hidden_states[-1]
    for implementation in IMPLEMENTATIONS:
        model.set_attn_implementation(implementation)
        found = model(**inputs, output_hidden_states=True).hidden_states[-1]
        assert max_difference(found, expected) < 1e-5


def test_attention_maps_are_those_of_the_masked_attention(host: str) -> None:
    model, inputs = make_host(host), make_inputs(host)
    model.set_attn_implementation("eager")
    stock = model(**inputs, output_attentions=True, output_hidden_states=True)
    inject(model, LamConfig())
    for implementation in IMPLEMENTATIONS:
        model.set_attn_implementation(implementation)
        outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
        assert len(outputs.attentions) == 3
        assert len(outputs.hidden_states) == 4
        for found, expected in zip(outputs.attentions, stock.attentions, strict=True):
            assert max_difference(found, expected) < 1e-5
    perturb_mechanisms(model, scale=1.0)
    changed = model(**inputs, output_attentions=True).attentions
    assert max_difference(changed[0], stock.attentions[0]) > 1e-3
    torch.testing.assert_close(changed[0].sum(-1), torch.ones_like(changed[0].sum(-1)))
    assert model(**inputs).get("attentions") is None


SELF, CROSS, FULL = (lambda i, j: i == j), (lambda i, j: i != j), (lambda i, j: True)
# For a few cases, by hand: the segment of each token, `None` for a global one, and what the first layer's heads see.
MAPS: dict[tuple[str, str], tuple[Any, list[Any]]] = {
    ("bert", "half"): (None, [SELF, SELF, CROSS, CROSS]),
    ("bert", "directed"): (None, [lambda i, j: i < j, SELF, FULL, lambda i, j: i == j == 1]),
    ("bert", "explicit"): ([None, *[0] * 4, *[1] * 6], [SELF, CROSS, SELF, CROSS]),
    ("vit", "half"): (
        [None, *[2 * (row // 2) + column // 2 for row in range(4) for column in range(4)]],
        [SELF, SELF, lambda i, j: i != j and {i, j} == {0, 1}, lambda i, j: i != j and {i, j} == {0, 2}],
    ),
    ("vit", "explicit"): ([None, *[min(column, 1) for _ in range(4) for column in range(4)]], [SELF, CROSS] * 2),
    ("videomae", "half"): ([0] * 4 + [1] * 4, [SELF, SELF, CROSS, CROSS]),
    ("videomae", "explicit"): ([0] * 3 + [1] * 5, [SELF, CROSS] * 2),
}


@pytest.mark.parametrize(("host", "name"), MAPS)
def test_attention_maps_are_zero_outside_of_the_views_and_nowhere_else(host: str, name: str) -> None:
    segments, heads = MAPS[host, name]
    inputs = make_inputs(host, token_types=True)
    model = injected(host, name)
    outputs = model(**inputs, output_attentions=True)
    assert len(outputs.attentions) == 3
    assert max_difference(outputs[0], first_output(model, inputs)) < 1e-5
    attention = outputs.attentions[0]
    tokens = inputs.get("attention_mask", torch.ones(attention.shape[::3]))
    for sample in range(2):
        where = inputs["token_type_ids"][sample].tolist() if segments is None else segments
        for head, sees in enumerate(heads):
            expected = torch.tensor([[None in (i, j) or sees(i, j) for j in where] for i in where])
            expected &= tokens[sample].bool()
            assert torch.equal(attention[sample, head] > 0, expected), (sample, head)
            assert torch.equal(attention[sample, head] == 0, ~expected), (sample, head)
            torch.testing.assert_close(attention[sample, head].sum(-1), expected.any(-1).float())


def test_attention_maps_of_a_bottleneck_hold_its_tokens() -> None:
    model, inputs = injected("videomae", "bottleneck"), make_inputs("videomae")
    attention = model(**inputs, output_attentions=True).attentions[-1]
    where = torch.tensor([0] * 4 + [1] * 4 + [0] * 2 + [1] * 2)
    assert torch.equal(attention > 0, (where[:, None] == where).expand_as(attention))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "name", [*(name for host, name in VIEW_CASES if host == "bert" and name != "explicit"), *STT_CONFIGS]
)
def test_right_padding_is_exact_with_views_or_stt(name: str, implementation: str) -> None:
    model, inputs = injected("bert", name), make_inputs("bert", batch=4, token_types=True)
    model.set_attn_implementation(implementation)
    together = model(**inputs).last_hidden_state
    for i, length in enumerate(inputs["attention_mask"].sum(-1).tolist()):
        alone = {key: tensor[i : i + 1, :length] for key, tensor in inputs.items() if key != "attention_mask"}
        assert max_difference(together[i, :length], model(**alone).last_hidden_state[0]) < 1e-5


@pytest.mark.parametrize(("host", "name"), [*VIEW_CASES, *STT_CASES])
def test_no_sample_sees_another_with_views_or_stt(host: str, name: str) -> None:
    model, inputs = injected(host, name), make_inputs(host, batch=3, token_types=True)
    expected = first_output(model, inputs)[0]
    other = make_inputs(host, batch=3, seed=9, token_types=True)
    for key, tensor in inputs.items():
        other[key][0] = tensor[0]
    assert max_difference(first_output(model, other)[0], expected) < 1e-6


def test_absent_token_types_are_one_segment_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings = []
    monkeypatch.setattr(attention_hooks_hf_lam.logger, "warning_once", warnings.append)
    for name in ("half", "bottleneck", "lam"):
        model, inputs = injected("bert", name), make_inputs("bert")
        zeros = torch.zeros_like(inputs["input_ids"])
        expected = model(**inputs, token_type_ids=zeros).last_hidden_state
        assert not warnings
        assert max_difference(model(**inputs).last_hidden_state, expected) < 1e-6
        assert "without token_type_ids" in warnings.pop()
    assert not warnings


def test_token_types_by_position() -> None:
    model, inputs = injected("bert", "half"), make_inputs("bert", token_types=True)
    ids, padding, token_types = inputs.values()
    assert torch.equal(model(ids, padding, token_types)[0], model(**inputs)[0])
    assert max_difference(model(ids, padding, 1 - token_types)[0], model(**inputs)[0]) > 1e-3
    # Embeddings in place of ids, for which BERT itself needs none of the ids' shape.
    embeddings = model.embeddings.word_embeddings(ids)
    found = model(inputs_embeds=embeddings, attention_mask=padding, token_type_ids=token_types)[0]
    assert max_difference(found, model(**inputs)[0]) < 1e-6


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, FLEX])
@pytest.mark.parametrize("name", LAM_CONFIGS)
def test_right_padding_is_exact(name: str, implementation: str) -> None:
    model, inputs = inject(make_host("bert"), LAM_CONFIGS[name]), make_inputs("bert", batch=4)
    perturb_mechanisms(model)
    model.set_attn_implementation(implementation)
    together = model(**inputs).last_hidden_state
    for i, length in enumerate(inputs["attention_mask"].sum(-1).tolist()):
        alone = model(input_ids=inputs["input_ids"][i : i + 1, :length]).last_hidden_state
        assert max_difference(together[i, :length], alone[0]) < 1e-5


@pytest.mark.parametrize("name", LAM_CONFIGS)
def test_no_sample_sees_another(host: str, name: str) -> None:
    model, inputs = inject(make_host(host), LAM_CONFIGS[name]), make_inputs(host, batch=3)
    perturb_mechanisms(model)
    expected = first_output(model, inputs)[0]
    other = {key: tensor.clone() for key, tensor in make_inputs(host, batch=3, seed=9).items()}
    for key, tensor in inputs.items():
        other[key][0] = tensor[0]
    assert max_difference(first_output(model, other)[0], expected) < 1e-6


def pickled(model: nn.Module) -> Any:
    """The model after a way through pickle."""
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("name", ["per_layer", "embeddings", "shared"])
def test_copies_and_pickles_use_masks_of_their_own(host: str, name: str) -> None:
    model, inputs = inject(make_host(host), LAM_CONFIGS[name]), make_inputs(host)
    perturb_mechanisms(model)
    expected = first_output(model, inputs)
    for twin in (copy.deepcopy(model), pickled(model)):
        assert torch.equal(first_output(twin, inputs), expected)
        for parameter in mechanism_parameters(twin):
            parameter.data.zero_()
        assert max_difference(first_output(twin, inputs), expected) > 1e-3
        assert torch.equal(first_output(model, inputs), expected)
        remove(twin)


@pytest.mark.parametrize(
    ("host", "name"), [("bert", "directed"), ("vit", "annealing"), ("videomae", "lam"), ("vit", "bottleneck")]
)
def test_copies_and_pickles_use_views_of_their_own(host: str, name: str) -> None:
    model, inputs = injected(host, name), make_inputs(host, token_types=True)
    expected = first_output(model, inputs)
    for twin in (copy.deepcopy(model), pickled(model)):
        assert torch.equal(first_output(twin, inputs), expected)
        bottleneck = injection_of(twin).configs["locomt"].bottleneck_tokens
        set_views(twin, LocomtConfig(views="self", bottleneck_tokens=3 if bottleneck else 0))
        assert max_difference(first_output(twin, inputs), expected) > 1e-3
        assert torch.equal(first_output(model, inputs), expected)
        remove(twin)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "name"),
    [
        *(("videomae", name) for name in ("per_layer", "embeddings", "shared")),
        ("bert", "half"),
        ("vit", "shared_lam"),
        ("videomae", "bottleneck"),
        ("bert", "mixture_all"),
        ("vit", "dense"),
    ],
)
def test_threads_do_not_mix_up_their_inputs(host: str, name: str) -> None:
    model = injected(host, name)
    batches = [make_inputs(host, seed=seed, token_types=True) for seed in range(4)]
    expected = [first_output(model, inputs) for inputs in batches]
    failures = []

    def run(i: int) -> None:
        for _ in range(10):
            if not torch.equal(first_output(model, batches[i]), expected[i]):
                failures.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(
    ("host", "name"),
    [*((host, "per_layer") for host in BASES), *(case for case in VIEW_CASES if case[0] in BACKBONES), *STT_CASES],
)
def test_autocast_and_half_precision(host: str, name: str) -> None:
    model, inputs = inject(make_host(host), *mechanisms(name, host)), make_inputs(host, token_types=True)
    perturb_mechanisms(model, scale=0.05)
    expected = first_output(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = first_output(model, inputs)
        output.float().sum().backward()
    assert max_difference(output, expected) < 0.2
    assert all(parameter.grad is not None for parameter in mechanism_parameters(model))
    model = model.to(torch.bfloat16)
    half = {key: t.to(torch.bfloat16) if t.is_floating_point() else t for key, t in inputs.items()}
    assert first_output(model, half).dtype == torch.bfloat16


def test_mechanisms_take_dtype_and_mode_of_the_host() -> None:
    model = make_host("bert").to(torch.bfloat16).train()
    inject(model, LamConfig())
    assert {parameter.dtype for parameter in mechanism_parameters(model)} == {torch.bfloat16}
    assert model.hf_lam.training


def test_more_hosts_with_the_interface() -> None:
    pixels = torch.randn(2, 3, 16, 16)
    for model in (
        CLIPVisionModel(CLIPVisionConfig(**SIZES, image_size=16, patch_size=4)),
        Dinov2Model(Dinov2Config(**SIZES, image_size=16, patch_size=4)),
    ):
        original = model.eval()(pixels).last_hidden_state
        inject(model, LamConfig())
        assert max_difference(model(pixels).last_hidden_state, original) < 1e-5
        perturb_mechanisms(model, scale=2.0)
        assert max_difference(model(pixels).last_hidden_state, original) > 1e-4


def test_remove_works_on_a_model_whose_layers_were_cut() -> None:
    model = inject(make_host("bert"), LamConfig())
    model.encoder.layer = model.encoder.layer[:1]
    remove(model)
    assert not any("hf_lam" in key for module in model.modules() for key in module.__dict__)
    assert first_output(model, make_inputs("bert")).isfinite().all()


def test_resized_embeddings_keep_the_mechanism() -> None:
    model = inject(make_host("bert"), LamConfig())
    perturb_mechanisms(model)
    inputs = make_inputs("bert")
    expected = first_output(model, inputs)
    model.resize_token_embeddings(120)
    assert torch.equal(first_output(model, inputs), expected)


# The pooler is trained for a task, like the classifier above it.
HEAD = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}


@pytest.mark.parametrize("train_head", [False, True])
def test_freeze_host(train_head: bool) -> None:
    model = inject(make_model(BertForSequenceClassification, "bert"), LamConfig())
    assert freeze_host(model, train_head=train_head) is model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    masks = {name for name in trained if name.startswith("bert.hf_lam.")}
    assert len(masks) == len(mechanism_parameters(model)) == 12
    assert trained - masks == (HEAD if train_head else set())


def test_freeze_host_with_views_alone_trains_the_head_or_nothing() -> None:
    model = inject(make_model(BertForSequenceClassification, "bert"), LocomtConfig(views="self"))
    assert mechanism_parameters(model) == []
    freeze_host(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    freeze_host(model, train_head=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == HEAD
    with_bottleneck = inject(make_host("vit"), LocomtConfig(views="self", bottleneck_tokens=2))
    freeze_host(with_bottleneck)
    assert [n for n, p in with_bottleneck.named_parameters() if p.requires_grad] == ["hf_lam.locomt.bottleneck"]


@pytest.mark.parametrize("through", [inject, convert])
@pytest.mark.parametrize(
    ("configs", "said"),
    [
        ((LocomtConfig(),), None),
        ((LocomtConfig(views="half", annealing=True),), None),
        ((LamConfig(), LocomtConfig(views=[["full"] * 4] * 3)), None),
        ((LocomtConfig(views="half"),), "12 of 12 heads"),
        ((LocomtConfig(views=[["full", "full", "full", "self"]] * 3),), "3 of 12 heads"),
        ((LocomtConfig(views="self", bottleneck_tokens=1),), "12 of 12 heads"),
        ((LamConfig(init="normal"), LocomtConfig()), "random masks"),
    ],
)
def test_what_changes_the_outputs_at_once_is_said(
    through: Any, configs: tuple[Any, ...], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    for module in (injecting, conversion):
        monkeypatch.setattr(module.logger, "warning", warnings.append)
    through(make_host("vit"), *configs)
    assert len(warnings) == (0 if said is None else 1)
    assert said is None or (said in warnings[0] and "at once" in warnings[0])


@pytest.mark.parametrize("wrapped_first", [True, False])
def test_a_forward_that_accelerate_wraps_stays_wrapped(wrapped_first: bool) -> None:
    calls: list[str] = []

    class Counting(ModelHook):
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            calls.append(type(module).__name__)
            return args, kwargs

    model, inputs = make_host("bert"), make_inputs("bert", token_types=True)
    expected = first_output(model, inputs)
    steps = [lambda: add_hook_to_module(model, Counting()), lambda: inject(model, LocomtConfig())]
    for step in steps if wrapped_first else reversed(steps):
        step()
    assert max_difference(first_output(model, inputs), expected) < 1e-5
    assert calls == ["BertModel"]
    remove(model)
    assert torch.equal(first_output(model, inputs), expected)
    assert calls == ["BertModel"] * 2


def test_views_on_hosts_with_registers_and_with_tubelets_of_three_sizes() -> None:
    registers = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**SIZES, image_size=16, patch_size=4, num_register_tokens=4)
    )
    tubelets = VivitModel(VivitConfig(**SIZES, image_size=16, num_frames=4, tubelet_size=[2, 8, 8]))
    for model, shape, prefix in ((registers, (1, 3, 16, 16), 5), (tubelets, (1, 4, 3, 16, 16), 1)):
        pixels = torch.randn(shape)
        expected = model.eval()(pixels).last_hidden_state
        for config in (LocomtConfig(), LamConfig()):
            inject(model, config)
            assert max_difference(model(pixels).last_hidden_state, expected) < 1e-5
            if isinstance(config, LocomtConfig):
                assert injection_of(model).configs["locomt"].segments[0][1] == {"length": prefix, "global": True}
            remove(model)


@pytest.mark.parametrize("name", ["per_layer", "rank", "dense", "factorized_random", "mixture_all"])
def test_a_seed_gives_convert_the_weights_of_one_layer_after_the_other(name: str) -> None:
    model = make_host("vit")
    torch.manual_seed(5)
    found = convert(model, *mechanisms(name, "vit")).hf_lam.state_dict()
    container = inject(make_host("vit"), *mechanisms(name, "vit")).hf_lam
    torch.manual_seed(5)
    for part in container.modules():
        if isinstance(part, MechanismPart):
            part.reset_parameters()
    expected = container.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
