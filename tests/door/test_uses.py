"""Mechanisms from elsewhere are used as the built-in ones are, on every backbone."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification, VideoMAEForVideoClassification, ViTForImageClassification

import hf_lam
from helpers.checkpointing import checkpoint_activations, keep_activations
from helpers.fusion_models import make_fusion, make_fusion_inputs
from helpers.hosts import (
    first_output,
    make_host,
    make_inputs,
    make_model,
    max_difference,
    perturb_mechanisms,
)
from helpers.injection import assert_no_trace
from helpers.lam_models import make_samples, stacked
from hf_lam import (
    LamConfig,
    LocomtConfig,
    SttConfig,
    convert,
    freeze_host,
    inject,
    injecting,
    mechanism_parameters,
    remove,
)
from hf_lam.modeling.injection_hf_lam import injected_encoders, injection_of, mechanism_of
from hf_lam.modeling.layers_hf_lam import container_of

BACKBONES = ("bert", "vit", "videomae")
HEADS: dict[str, Any] = {
    "bert": BertForSequenceClassification,
    "vit": ViTForImageClassification,
    "videomae": VideoMAEForVideoClassification,
}

Make = Callable[[Any], tuple[Any, ...]]
# What start as the identity, and have something to train.
TRAINED: dict[str, Make] = {
    "temperature": lambda door: (door.HeadTemperatureConfig(),),
    "shared_temperature": lambda door: (door.HeadTemperatureConfig(shared=True),),
    "distance": lambda door: (door.DistanceBiasConfig(),),
    "both": lambda door: (door.HeadTemperatureConfig(), door.DistanceBiasConfig()),
    "with_lam": lambda door: (door.DistanceBiasConfig(), LamConfig(scope="shared", rank=2)),
    "with_views": lambda door: (door.HeadTemperatureConfig(), LocomtConfig(views="full")),
    "with_mixture": lambda door: (door.HeadTemperatureConfig(), SttConfig(synthesizer="random")),
    "in_a_window": lambda door: (door.DistanceBiasConfig(), door.LocalWindowConfig()),
}
# What has nothing to train, or changes the outputs at once.
OTHERS: dict[str, Make] = {
    "window": lambda door: (door.LocalWindowConfig(reach=3),),
    "average": lambda door: (door.UniformAverageConfig(),),
}
ALL = TRAINED | OTHERS
# A pattern and a replacement; `tests/matrix` holds the others to the behaviours that all mechanisms have.
NOT_IN_THE_TABLE = ("in_a_window", "window", "average")


def injected(host: str, configs: tuple[Any, ...], **options: Any) -> Any:
    model = inject(make_host(host, **options), *configs)
    perturb_mechanisms(model)
    return model


# --- in and out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_identity_on_a_fusion_model(head: bool, shared: bool, door: Any) -> None:
    inputs = make_fusion_inputs()
    expected = first_output(make_fusion(head=head), inputs)
    config = door.HeadTemperatureConfig(shared=shared)
    model = make_fusion(head=head, hf_lam=(config,), perturb=False)
    assert max_difference(first_output(model, inputs), expected) < 1e-5
    assert model.config.hf_lam["head_temperature"] == {"shared": shared}
    perturb_mechanisms(model, scale=1.0)
    assert max_difference(first_output(model, inputs), expected) > 1e-3


def test_no_grid_no_distance(door: Any) -> None:
    with pytest.raises(ValueError, match=r"DistanceBiasConfig needs tokens on one grid, .* several modalities"):
        make_fusion(hf_lam=(door.DistanceBiasConfig(),))


@pytest.mark.parametrize("through", [inject, convert])
@pytest.mark.parametrize(
    ("name", "said"),
    [("window", r"LocalWindowConfig(reach=3) hides"), ("average", "UniformAverageConfig() averages"), ("both", None)],
)
def test_what_changes_the_outputs_is_said(
    through: Any, name: str, said: str | None, door: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    for module in (injecting, hf_lam.conversion):
        monkeypatch.setattr(module.logger, "warning", warnings.append)
    model = through(make_host("vit"), *ALL[name](door))
    assert len(warnings) == (0 if said is None else 1)
    assert said is None or (said in warnings[0] and type(model).__name__ in warnings[0])


def test_a_replacement_gives_up_the_projections_of_queries_and_keys(door: Any) -> None:
    model = inject(make_host("vit"), door.UniformAverageConfig())
    assert isinstance(injection_of(model).attentions[0].q_proj, nn.Identity)
    with pytest.raises(ValueError, match=r"UniformAverageConfig\(\) has no query and key projections any more"):
        remove(model)


REFUSED: dict[str, tuple[Make, str]] = {
    "twice": (
        lambda door: (door.HeadTemperatureConfig(), door.HeadTemperatureConfig(shared=True)),
        "HeadTemperatureConfig was given twice",
    ),
    "two patterns": (
        lambda door: (LocomtConfig(), door.LocalWindowConfig()),
        "LocomtConfig and LocalWindowConfig both say which token sees which",
    ),
    "a replacement with changes of scores": (
        lambda door: (LamConfig(), door.UniformAverageConfig(), door.HeadTemperatureConfig()),
        r"UniformAverageConfig\(\) has no scores that LamConfig and HeadTemperatureConfig could change. .*"
        "Leave UniformAverageConfig out",
    ),
    "a replacement with a pattern": (
        lambda door: (door.LocalWindowConfig(), door.UniformAverageConfig()),
        r"UniformAverageConfig\(\) has no scores that LocalWindowConfig could change",
    ),
    "our replacement": (
        lambda door: (SttConfig("random"), door.HeadTemperatureConfig()),
        r"SttConfig\(variant='random', .*\) has no scores that HeadTemperatureConfig could change",
    ),
    "a grid of another size": (
        lambda door: (door.DistanceBiasConfig(grid=[3, 3]),),
        r"DistanceBiasConfig: ViTModel has the grid \[4, 4\], got \[3, 3\]. Leave it out",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_combinations_without_a_meaning(case: str, door: Any) -> None:
    make, message = REFUSED[case]
    model = make_host("vit")
    with pytest.raises(ValueError, match=message):
        inject(model, *make(door))
    assert_no_trace(model)


def test_appended_tokens_have_no_place_in_a_text_and_none_on_a_grid(door: Any) -> None:
    bottleneck = LocomtConfig(views="self", bottleneck_tokens=2)
    with pytest.raises(
        ValueError, match=r"appends 4 tokens to the sequence, which have no place in a text. Leave out"
    ):
        inject(make_host("bert"), bottleneck, door.DistanceBiasConfig())
    inputs = make_inputs("vit")
    alone, model = (inject(make_host("vit"), bottleneck, *more) for more in ((), (door.DistanceBiasConfig(),)))
    model.hf_lam.locomt.load_state_dict(alone.hf_lam.locomt.state_dict())
    expected = first_output(alone, inputs)
    assert max_difference(first_output(model, inputs), expected) < 1e-5
    for parameter in model.hf_lam.distance_bias.parameters():
        parameter.data.normal_()
    assert max_difference(first_output(model, inputs), expected) > 1e-3


def test_images_of_another_size_are_refused(door: Any) -> None:
    model = inject(make_host("vit"), door.DistanceBiasConfig())
    with pytest.raises(
        ValueError, match=r"a grid of 2 × 8 patches, but DistanceBiasConfig was made for 4 × 4. Resize"
    ):
        model(torch.randn(1, 3, 8, 32), interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match="bool_masked_pos drops tokens"):
        video = inject(make_host("videomae"), door.DistanceBiasConfig())
        video(**make_inputs("videomae"), bool_masked_pos=torch.zeros(2, 8, dtype=torch.bool))


# --- gradients -------------------------------------------------------------------------------------------------------


def gradients(
    model: Any, batches: list[dict[str, Any]], use_reentrant: bool | None = None, compiled: bool = False
) -> dict[str, Tensor]:
    """Gradients of one backward after a forward of every batch."""
    model.train().zero_grad()
    if use_reentrant is not None:
        checkpoint_activations(model, use_reentrant)
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    sum(run(**batch).last_hidden_state.square().sum() for batch in batches).backward()
    keep_activations(model)
    return {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and "pooler" not in name
    }


def make_batches(host: str) -> list[dict[str, Any]]:
    batches = [make_inputs(host, seed=seed, token_types=True) for seed in (1, 2)]
    # transformers' BERT makes a cache in training unless told not to, which checkpointing then switches off.
    return [{**batch, "use_cache": False} if host == "bert" else batch for batch in batches]


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # Some, such as those of the keys' biases, are rounding around zero. Where something is added to the scores,
        # reentrant checkpointing comes from a forward on the chunked path, without gradients.
        assert max_difference(found[name], gradient) < 5e-5 * max(1e-2, gradient.abs().max().item()), name


@pytest.mark.parametrize("host", BACKBONES)
@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_every_parameter_from_the_start(host: str, name: str, door: Any) -> None:
    model = inject(make_host(host, initializer_range=0.2), *TRAINED[name](door))
    found = gradients(model, make_batches(host)[:1])
    own = {key: gradient for key, gradient in found.items() if "hf_lam" in key}
    names = {key for key, parameter in model.named_parameters() if "hf_lam" in key and parameter.requires_grad}
    assert own.keys() == names
    for key, gradient in own.items():
        assert gradient.isfinite().all()
        if "distance_bias" in key or "head_temperature" in key:
            assert (gradient != 0).all(), key


@pytest.mark.slow
@pytest.mark.parametrize("use_reentrant", [None, False, True])
@pytest.mark.parametrize("host", BACKBONES)
@pytest.mark.parametrize("name", NOT_IN_THE_TABLE)
def test_two_forwards_then_one_backward(host: str, name: str, use_reentrant: bool | None, door: Any) -> None:
    model, batches = injected(host, ALL[name](door)), make_batches(host)
    single = [gradients(model, [batch]) for batch in batches]
    expected = {key: single[0][key] + single[1][key] for key in single[0]}
    assert_same_gradients(gradients(model, batches, use_reentrant), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", ["both", "in_a_window", "with_lam"])
def test_checkpointing_with_dropout_draws_the_same(name: str, use_reentrant: bool, door: Any) -> None:
    dropout = {"attention_probs_dropout_prob": 0.2, "hidden_dropout_prob": 0.1}
    model, batches = injected("bert", TRAINED[name](door), **dropout), make_batches("bert")
    torch.manual_seed(3)
    expected = gradients(model, batches[:1])
    torch.manual_seed(3)
    assert_same_gradients(gradients(model, batches[:1], use_reentrant), expected)


def test_a_training_moves_them_and_nothing_else(door: Any) -> None:
    model = inject(make_model(BertForSequenceClassification, "bert", initializer_range=0.2), *TRAINED["both"](door))
    assert freeze_host(model) is model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    parameters = ("head_temperature.t", "distance_bias.slopes")
    assert trained == {f"bert.hf_lam.{name}_{layer}" for name in parameters for layer in range(3)}
    assert {id(p) for p in mechanism_parameters(model)} == {id(model.get_parameter(name)) for name in trained}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = stacked(make_samples(model, "bert", 8))
    optimizer = torch.optim.AdamW(mechanism_parameters(model), lr=0.1)
    losses = []
    for _ in range(5):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == trained


# --- convert, save, load ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("host", BACKBONES)
@pytest.mark.parametrize("name", NOT_IN_THE_TABLE)
def test_convert_saves_and_loads(host: str, name: str, door: Any, tmp_path: Path, poisoned_empty: None) -> None:
    stock, inputs = make_model(HEADS[host], host, initializer_range=0.2), make_inputs(host, token_types=True)
    original = first_output(stock, inputs)
    stock.save_pretrained(tmp_path / "stock")
    configs = ALL[name](door)
    auto_class = f"AutoModelFor{type(stock).__name__.partition('For')[2]}"
    from_folder = convert(tmp_path / "stock", *configs, auto_class=auto_class)
    model = convert(stock, *configs)
    assert model.config.hf_lam.keys() == {"version", *(config.name for config in configs)}
    if name in TRAINED:
        assert max_difference(first_output(model, inputs), original) < 1e-5
    assert max_difference(first_output(from_folder, inputs), first_output(model, inputs)) < 1e-5
    perturb_mechanisms(model)
    expected = first_output(model, inputs)
    assert max_difference(expected, original) > 1e-4
    model.save_pretrained(tmp_path / "ours")
    loaded = type(model).from_pretrained(tmp_path / "ours")
    assert injection_of(injected_encoders(loaded)[0]).configs == injection_of(injected_encoders(model)[0]).configs
    assert torch.equal(first_output(loaded, inputs), expected)
    assert not [
        tensor for tensor in loaded.state_dict().values() if tensor.is_floating_point() and tensor.isnan().any()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("host", BACKBONES)
@pytest.mark.parametrize("name", NOT_IN_THE_TABLE)
def test_save_and_load_the_mechanism_alone(host: str, name: str, door: Any, tmp_path: Path) -> None:
    model, inputs = injected(host, ALL[name](door)), make_inputs(host, token_types=True)
    hf_lam.save_mechanism(model, tmp_path)
    loaded = hf_lam.load_mechanism(make_host(host), tmp_path)
    assert torch.equal(first_output(loaded, inputs), first_output(model, inputs))


@pytest.mark.parametrize("name", ["both", "in_a_window", "average"])
def test_copies_and_pickles_have_their_own(name: str, door: Any) -> None:
    model, inputs = injected("vit", ALL[name](door)), make_inputs("vit")
    expected = first_output(model, inputs)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(first_output(twin, inputs), expected)
        for parameter in mechanism_parameters(twin):
            parameter.data.zero_()
        assert name == "average" or max_difference(first_output(twin, inputs), expected) > 1e-3
        assert torch.equal(first_output(model, inputs), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NOT_IN_THE_TABLE)
def test_half_precision_and_autocast(name: str, dtype: torch.dtype, door: Any) -> None:
    model, inputs = injected("vit", ALL[name](door)), make_inputs("vit")
    expected = first_output(model, inputs)
    with torch.autocast("cpu", dtype):
        assert max_difference(first_output(model, inputs), expected) < 0.1
    model.to(dtype)
    found = first_output(model, {key: tensor.to(dtype) for key, tensor in inputs.items()})
    assert found.dtype == dtype and max_difference(found, expected) < 0.1


# --- PEFT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", BACKBONES)
def test_lora_trains_a_copy_that_counts(host: str, door: Any, tmp_path: Path) -> None:
    def make() -> Any:
        return convert(make_model(HEADS[host], host, initializer_range=0.2), *TRAINED["both"](door))

    targets = ["q_proj", "v_proj"] if host == "vit" else ["query", "value"]
    config = peft.LoraConfig(r=4, target_modules=targets, modules_to_save=["hf_lam", "classifier"])
    model = peft.get_peft_model(make(), config)
    batch = stacked(make_samples(model.get_base_model(), host, 8))
    copies = mechanism_parameters(model)
    assert len(copies) == 2 * 3 and all(parameter.requires_grad for parameter in copies)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model.train()(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    # The class token of an image has no distance to any, and is all that counts of the last layer.
    unmoved = {"distance_bias.slopes_2"} if host == "vit" else set()
    trained = container_of(model.get_base_model().base_model)
    assert {name for name, parameter in trained.named_parameters() if (parameter == 0).all()} == unmoved

    def logits_of(of: Any) -> Tensor:
        with torch.no_grad():
            return of.eval()(**make_inputs(host, token_types=True)).logits

    expected = logits_of(model)
    original = model.get_base_model().base_model.hf_lam.original_module
    for parameter in original.parameters():
        parameter.data.fill_(9.0)
    assert torch.equal(logits_of(model), expected)
    for parameter in original.parameters():
        parameter.data.zero_()
    model.save_pretrained(tmp_path / "adapter")
    reloaded = peft.PeftModel.from_pretrained(make(), tmp_path / "adapter")
    assert torch.equal(logits_of(reloaded), expected)
    merged = reloaded.merge_and_unload()
    torch.testing.assert_close(logits_of(merged), expected, rtol=0, atol=1e-5)
    # A linear layer for LoRA's "all-linear" is none of ours.
    everything = peft.get_peft_model(make(), peft.LoraConfig(r=2, target_modules="all-linear"))
    assert not [name for name, _ in everything.named_parameters() if "hf_lam" in name and "lora" in name]


# --- compile and export ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "name", "use_reentrant"),
    [
        ("bert", "in_a_window", None),
        ("vit", "average", None),
        ("videomae", "both", None),
        ("videomae", "both", False),
    ],
)
def test_compiled_without_a_graph_break(host: str, name: str, use_reentrant: bool | None, door: Any) -> None:
    torch._dynamo.reset()
    model, batches = injected(host, ALL[name](door)), make_batches(host)
    expected = gradients(model, batches[:1])
    assert_same_gradients(gradients(model, batches[:1], use_reentrant, compiled=True), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("host", "name"), [("vit", "with_views"), ("videomae", "in_a_window")])
def test_compiled_with_inductor(host: str, name: str, door: Any) -> None:
    torch._dynamo.reset()
    model, inputs = injected(host, ALL[name](door)), make_inputs(host, token_types=True)
    found = torch.compile(model, fullgraph=True)(**inputs).last_hidden_state
    torch.testing.assert_close(found, model(**inputs).last_hidden_state, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("host", "name"), zip(BACKBONES, NOT_IN_THE_TABLE, strict=True))
def test_exported_programs_need_nothing_of_ours(host: str, name: str, door: Any) -> None:
    model, inputs = injected(host, ALL[name](door)), make_inputs(host, token_types=True)
    program = torch.export.export(model, (), inputs)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [operator for operator in operators if "hf_lam" in operator]
    torch.testing.assert_close(
        program.module()(**inputs).last_hidden_state, model(**inputs).last_hidden_state, atol=1e-5, rtol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["temperature", "distance", "both", "average", "with_lam"])
def test_exported_with_a_dynamic_length(name: str, door: Any) -> None:
    model, inputs = injected("bert", ALL[name](door)), make_inputs("bert", token_types=True)
    length = torch.export.Dim("length", min=3, max=40)
    program = torch.export.export(model, (), inputs, dynamic_shapes={key: {1: length} for key in inputs})
    shorter = {key: tensor[:, :6] for key, tensor in inputs.items()}
    torch.testing.assert_close(
        program.module()(**shorter).last_hidden_state, model(**shorter).last_hidden_state, atol=1e-5, rtol=1e-4
    )


# --- cost and facts --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("host", BACKBONES)
@pytest.mark.parametrize("name", NOT_IN_THE_TABLE)
def test_cost_agrees_with_what_torch_counts(host: str, name: str, door: Any) -> None:
    model = injected(host, ALL[name](door))
    tokens = injection_of(model).host.tokens.length
    inputs = make_inputs(host, token_types=True)
    if host in ("bert", "roberta"):
        # The length that the window is made for.
        inputs = {"input_ids": torch.randint(2, 99, (2, tokens or 0))}
    report = hf_lam.cost(model, inputs)
    assert report.agrees
    assert report.mechanism_parameters == sum(parameter.numel() for parameter in mechanism_parameters(model))


def test_the_cost_of_a_distance_bias_is_its_formula(door: Any) -> None:
    inputs = make_inputs("vit", batch=3)
    plain = hf_lam.cost(inject(make_host("vit"), door.HeadTemperatureConfig()), inputs)
    model = inject(make_host("vit"), door.HeadTemperatureConfig(), door.DistanceBiasConfig())
    report = hf_lam.cost(model, inputs)
    # Two axes, four heads, 17 tokens, three layers; once for all samples.
    assert report.flops - plain.flops == 2 * 2 * 4 * 17 * 17 * 3
    assert report.attention == plain.attention
    bias = mechanism_of(model, "distance_bias")
    assert sum(bias.count_flops(layer, 3, 17) for layer in range(3)) == report.flops - plain.flops


def test_the_cost_of_a_window_is_what_it_shows(door: Any) -> None:
    report = hf_lam.cost(inject(make_host("videomae"), door.LocalWindowConfig(reach=1)), make_inputs("videomae"))
    assert report.attention["own"] == 4 * 8 * (8 + 2 * 7) * 4 * 3 * report.batch_size


def test_facts_and_pictures(door: Any) -> None:
    model = injected("vit", TRAINED["both"](door))
    temperatures = mechanism_of(model, "head_temperature")
    facts = [temperatures.list_facts(layer)["inverse_temperature"] for layer in range(3)]
    torch.testing.assert_close(torch.tensor(facts), torch.stack(list(temperatures.parameters())).detach().exp())
    picture = temperatures.draw()
    assert picture.values.tolist() == facts and picture.neutral == 1.0
    picture = mechanism_of(model, "distance_bias").draw()
    assert picture.values.shape == (3, 4 * 2) and picture.neutral == 0.0
    shared = injected("vit", TRAINED["shared_temperature"](door))
    assert mechanism_of(shared, "head_temperature").draw().values.shape == (3, 1)


def test_attention_maps(door: Any) -> None:
    for name in ("both", "in_a_window", "window", "average"):
        model, inputs = injected("vit", ALL[name](door)), make_inputs("vit")
        outputs = model(**inputs, output_attentions=True)
        assert max_difference(outputs[0], first_output(model, inputs)) < 1e-5
        assert [tuple(map_.shape) for map_ in outputs.attentions] == [(2, 4, 17, 17)] * 3
        for map_ in outputs.attentions:
            torch.testing.assert_close(map_.sum(-1), torch.ones(2, 4, 17))
    assert max_difference(outputs.attentions[0], torch.full((2, 4, 17, 17), 1 / 17)) < 1e-6


# A mixture belongs to absolute places, which padding on the left shifts.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "padding"),
    [*((name, "right") for name in ALL), *((name, "left") for name in ALL if name != "with_mixture")],
)
def test_padding_is_exact(name: str, padding: str, door: Any) -> None:
    model, inputs = injected("bert", ALL[name](door)), make_inputs("bert", batch=4, token_types=True)
    lengths = inputs["attention_mask"].sum(-1).tolist()
    positions = torch.arange(11).repeat(4, 1)
    if padding == "left":
        for i, length in enumerate(lengths):
            for tensor in inputs.values():
                tensor[i] = tensor[i].roll(11 - length)
            positions[i] = (torch.arange(11) - (11 - length)).clamp(min=0)
    together = model(**inputs, position_ids=positions).last_hidden_state
    for i, length in enumerate(lengths):
        cut = slice(0, length) if padding == "right" else slice(11 - length, 11)
        alone = {key: tensor[i : i + 1, cut] for key, tensor in inputs.items() if key != "attention_mask"}
        assert max_difference(together[i, cut], model(**alone).last_hidden_state[0]) < 1e-5


def test_options_are_checked(door: Any) -> None:
    with pytest.raises(ValueError, match="HeadTemperatureConfig: shared must be True or False, got 'yes'"):
        door.HeadTemperatureConfig(shared="yes")
    with pytest.raises(
        ValueError, match=r"HeadTemperatureConfig has no option \['sharp'\]; the options are \['shared'\]"
    ):
        door.HeadTemperatureConfig.from_dict({"sharp": True})
    with pytest.raises(ValueError, match=r"unknown keys \['warmth'\].*mechanism of somebody else, read its file"):
        convert(make_host("vit"), door.HeadTemperatureConfig()).config.hf_lam = {"warmth": {}}


def test_a_class_that_was_not_registered_is_no_mechanism(door: Any) -> None:
    class Other(door.HeadTemperatureConfig):
        pass

    with pytest.raises(ValueError, match=r"got .*Other.*becomes one with hf_lam.register_mechanism"):
        inject(make_host("vit"), Other())


def test_modules_keep_apart(distance: ModuleType) -> None:
    """The bias adds nothing to a token before or after the grid, and only differences along axes count."""
    model = inject(make_host("vit"), distance.DistanceBiasConfig())
    bias = mechanism_of(model, "distance_bias")
    distances = bias.measure_distances(19, torch.device("cpu"))
    assert distances.shape == (19, 19, 2)
    assert not distances[0].any() and not distances[:, 0].any()
    assert not distances[17:].any() and not distances[:, 17:].any()
    for i in range(16):
        for j in range(16):
            assert distances[1 + i, 1 + j].tolist() == [abs(i // 4 - j // 4), abs(i % 4 - j % 4)]
    video = mechanism_of(inject(make_host("videomae"), distance.DistanceBiasConfig()), "distance_bias")
    assert video.measure_distances(8, torch.device("cpu"))[0, 7].tolist() == [1, 1, 1]
    text = mechanism_of(inject(make_host("bert"), distance.DistanceBiasConfig()), "distance_bias")
    assert text.measure_distances(5, torch.device("cpu"))[1].flatten().tolist() == [1, 0, 1, 2, 3]
