"""Whole models with synthesised attention (STT): what holds for it alone."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertForSequenceClassification,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    EuroBertConfig,
    EuroBertModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)
from transformers.utils import logging as transformers_logging

import hf_lam
from helpers.hosts import (
    BASES,
    CONVERTIBLE,
    MIXTURE_CONFIGS,
    PURE_CONFIGS,
    SIZES,
    STT_CASES,
    first_output,
    make_host,
    make_inputs,
    make_model,
    max_difference,
    mechanisms,
    perturb_mechanisms,
    set_mixing,
)
from hf_lam import (
    LamConfig,
    LocomtConfig,
    SttConfig,
    convert,
    inject,
    load_mechanism,
    mechanism_parameters,
    remove,
    save_mechanism,
)
from hf_lam.modeling.attention_pass_hf_lam import attend_for_stand_in
from hf_lam.modeling.injection_hf_lam import injected_encoders, injection_of
from hf_lam.stt.hardening import mixing_of

PURE_CASES = [case for case in STT_CASES if case[1] in PURE_CONFIGS]
MIXTURE_CASES = [case for case in STT_CASES if case[1] in MIXTURE_CONFIGS]
# Those whose other mechanisms are the identity too.
IDENTITIES = [name for name in MIXTURE_CONFIGS if name != "mixture_views"]
QUERY_AND_KEY = ("query", "key", "q_proj", "k_proj")


def injected(host: str, name: str, **config: Any) -> Any:
    """A host with synthesised attention that is not the identity."""
    model = inject(make_host(host, **config), *mechanisms(name, host))
    perturb_mechanisms(model)
    return model


def projections_of(model: nn.Module) -> list[str]:
    """The names of the weights of queries and keys."""
    return [name for name in model.state_dict() if name.split(".")[-2] in QUERY_AND_KEY]


@pytest.fixture
def warnings_of_transformers() -> Iterator[list[str]]:
    """What transformers says above the level of information."""
    records: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    collector, logger = Collector(), logging.getLogger("transformers")
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    logger.addHandler(collector)
    yield records
    logger.removeHandler(collector)
    transformers_logging.set_verbosity(level)


# --- Mixtures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDENTITIES)
@pytest.mark.parametrize("host", BASES)
def test_a_mixture_is_the_identity_then_has_an_effect_and_can_be_removed(host: str, name: str) -> None:
    model, inputs = make_host(host), make_inputs(host, token_types=True)
    original = first_output(model, inputs)
    inject(model, *mechanisms(name, host))
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        assert max_difference(first_output(model, inputs), original) < 1e-5
    set_mixing(model, 0.5)
    assert max_difference(first_output(model, inputs), original) > 1e-3
    remove(model)
    assert torch.equal(first_output(model, inputs), original)
    assert not any("hf_lam" in key for module in model.modules() for key in module.__dict__)


@pytest.mark.parametrize("lam", [(), (LamConfig(scope="shared", rank=2),)], ids=["alone", "with_lam"])
@pytest.mark.parametrize(
    ("host", "views"),
    [
        ("vit", LocomtConfig()),  # quadrants, which are not runs of tokens
        ("vit", LocomtConfig(views="half", annealing=True)),
        ("bert", LocomtConfig()),
        ("bert", LocomtConfig(views="half", annealing=True)),
        ("videomae", LocomtConfig()),
    ],
)
def test_a_mixture_under_views_is_the_one_without_them_where_they_are_full(
    host: str, views: LocomtConfig, lam: tuple[LamConfig, ...]
) -> None:
    inputs = make_inputs(host, token_types=True)
    outputs = []
    for configs in ((SttConfig(),), (SttConfig(), views)):
        model = inject(make_host(host), *configs, *lam)
        generator = torch.Generator().manual_seed(3)
        for part in (model.hf_lam.stt, getattr(model.hf_lam, "lam", None)):
            for parameter in [] if part is None else part.parameters():
                parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
        set_mixing(model, 0.6)
        outputs.append(first_output(model, inputs))
    assert max_difference(*outputs) < 1e-5


@pytest.mark.parametrize("train_mixing", [False, True])
def test_the_mixing_is_saved_loaded_and_trained_only_if_asked(train_mixing: bool, tmp_path: Path) -> None:
    model = convert(make_model(ViTModel, "vit"), SttConfig(train_mixing=train_mixing))
    set_mixing(model, 0.25)
    model(**make_inputs("vit")).last_hidden_state.square().sum().backward()
    mixing = model.hf_lam.stt[0].mixing
    assert isinstance(mixing, nn.Parameter) == train_mixing
    if train_mixing:
        assert mixing.grad is not None and mixing.grad.abs().min() > 0
        # A step beyond an end counts as the end, and can be taken back.
        mixing.data.fill_(-0.5)
        assert torch.equal(mixing_of(model)[0], torch.zeros(4))
        mixing.data.fill_(0.25)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(mixing_of(loaded), mixing_of(model))
    assert mixing_of(loaded)[1].tolist() == pytest.approx([0.25, 0.225, 0.25, 0.225])


@pytest.mark.parametrize("name", MIXTURE_CONFIGS)
def test_at_zero_every_trained_tensor_takes_part(name: str) -> None:
    # Distributed training waits for the gradient of every parameter.
    model = inject(make_host("vit"), *mechanisms(name, "vit")).train()
    model(**make_inputs("vit")).pooler_output.sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# --- Pure variants ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "name"), PURE_CASES)
def test_a_pure_variant_has_no_queries_and_keys_and_cannot_give_them_back(host: str, name: str) -> None:
    model = make_host(host)
    assert len(projections_of(model)) >= 9  # RoBERTa's have biases, VideoMAE's keys have none
    original = first_output(model, make_inputs(host))
    inject(model, *mechanisms(name, host))
    assert projections_of(model) == []
    assert max_difference(first_output(model, make_inputs(host)), original) > 1e-3
    before = set(model.state_dict())
    with pytest.raises(ValueError, match=r"cannot run.*original checkpoint"):
        remove(model)
    assert set(model.state_dict()) == before
    frozen = not mechanism_parameters(model)
    assert frozen == (name == "frozen")


def legacy_checkpoint(stock_class: type[PreTrainedModel], folder: Path) -> set[str]:
    """A stock checkpoint with the names that older releases gave its weights; returns the names."""
    host = CONVERTIBLE[stock_class]
    make_model(stock_class, host).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    if host == "videomae":
        for name in [name for name in tensors if name.endswith(("query.bias", "value.bias", "key.bias"))]:
            kind, tensor = name.split(".")[-2][0], tensors.pop(name)
            if kind != "k":
                tensors[name.rsplit(".", 2)[0] + f".{kind}_bias"] = tensor
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return set(tensors)


@pytest.mark.parametrize("stock", [BertModel, BertForSequenceClassification, ViTModel, ViTForImageClassification,
                                   VideoMAEModel, VideoMAEForVideoClassification])  # fmt: skip
def test_a_stock_checkpoint_loads_into_a_pure_variant_without_alarm(
    stock: type[PreTrainedModel], tmp_path: Path, poisoned_empty: None, warnings_of_transformers: list[str]
) -> None:
    host = CONVERTIBLE[stock]
    names = legacy_checkpoint(stock, tmp_path)
    assert any(name.endswith("q_bias" if host == "videomae" else "query.weight") for name in names)
    hf_lam_class = getattr(hf_lam, f"HfLam{stock.__name__}")
    block = {"stt": {"variant": "dense"}}
    warnings_of_transformers.clear()
    loaded, info = hf_lam_class.from_pretrained(tmp_path, hf_lam=block, output_loading_info=True)
    assert {key: value for key, value in info.items() if value} == {}
    loaded = hf_lam_class.from_pretrained(tmp_path, hf_lam=block)
    assert warnings_of_transformers == []
    assert all(tensor.isfinite().all() for tensor in loaded.state_dict().values())
    assert projections_of(loaded) == []
    twin = convert(stock.from_pretrained(tmp_path), SttConfig("dense")).eval()
    for model in (loaded, twin):
        generator = torch.Generator().manual_seed(4)
        for parameter in mechanism_parameters(model):
            parameter.data = torch.randn(parameter.shape, generator=generator)
    assert torch.equal(first_output(loaded, make_inputs(host)), first_output(twin, make_inputs(host)))


@pytest.mark.parametrize("name", ["dense", "mixture"])
def test_foreign_and_lost_weights_are_still_reported(
    name: str, tmp_path: Path, warnings_of_transformers: list[str]
) -> None:
    make_model(BertForSequenceClassification, "bert").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    foreign = ["bert.encoder.layer.0.attention.self.gate.weight", "bert.encoder.layer.9.attention.self.query.weight"]
    save_file({**tensors, **{key: torch.zeros(3) for key in foreign}}, file, metadata={"format": "pt"})
    block, head = list(mechanisms(name, "bert")), hf_lam.HfLamBertForSequenceClassification
    _, info = head.from_pretrained(tmp_path, hf_lam=block, output_loading_info=True)
    assert sorted(info["unexpected_keys"]) == foreign
    assert any(foreign[0] in message for message in warnings_of_transformers)
    lost = "bert.encoder.layer.1.attention.self.value.weight"
    save_file({key: tensor for key, tensor in tensors.items() if key != lost}, file, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=lost):
        head.from_pretrained(tmp_path, hf_lam=block)


@pytest.mark.parametrize(("name", "lost"), [("dense", "stt.1.axes.0.in_weight"), ("frozen", "stt.2.axes.0.row_logits"),
                                            ("mixture", "stt.0.mixing")])  # fmt: skip
def test_a_lost_tensor_of_the_synthesis_is_an_error(name: str, lost: str, tmp_path: Path) -> None:
    model = convert(make_model(BertModel, "bert"), *mechanisms(name, "bert"))
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors[f"hf_lam.{lost}"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=lost):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("block", [{"stt": {"variant": "random"}}, {"stt": {}}, {"lam": {}}, None])
def test_trained_synthesizers_are_never_dropped_on_loading(block: Any, tmp_path: Path) -> None:
    model = convert(make_model(BertModel, "bert"), SttConfig("dense"))
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"hf_lam\.stt|without a value"):
        type(model).from_pretrained(tmp_path, hf_lam=block)


@pytest.mark.parametrize(("host", "name"), [case for case in PURE_CASES if BASES[case[0]] in CONVERTIBLE])
def test_convert_shares_and_load_state_dict_restores_every_tensor(host: str, name: str, tmp_path: Path) -> None:
    model, inputs = make_model(BASES[host], host), make_inputs(host)
    converted = convert(model, *mechanisms(name, host))
    theirs, ours = dict(model.named_parameters()), dict(converted.named_parameters())
    host_names = {key for key in ours if "hf_lam" not in key}
    assert all(ours[key] is theirs[key] for key in host_names)
    assert set(theirs) - host_names == {key for key in theirs if key.split(".")[-2] in QUERY_AND_KEY}
    assert first_output(model, inputs).isfinite().all()  # it keeps its own projections
    perturb_mechanisms(converted)
    expected = first_output(converted, inputs)
    converted.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert sum(t.numel() for t in stored.values()) == sum(t.numel() for t in converted.state_dict().values())
    for tensor in converted.state_dict().values():
        tensor.zero_()
    converted.load_state_dict(stored, strict=True)
    assert torch.equal(first_output(converted, inputs), expected)


@pytest.mark.parametrize("name", ["dense", "mixture", "mixture_views"])
def test_copies_use_a_synthesis_of_their_own(name: str) -> None:
    model, inputs = injected("vit", name), make_inputs("vit")
    expected = first_output(model, inputs)
    twin = copy.deepcopy(model)
    assert torch.equal(first_output(twin, inputs), expected)
    for parameter in mechanism_parameters(twin):
        parameter.data.mul_(-2)
    assert max_difference(first_output(twin, inputs), expected) > 1e-4
    assert torch.equal(first_output(model, inputs), expected)


# --- Attention maps and masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("host", "name"), STT_CASES)
def test_the_returned_map_reproduces_the_context(host: str, name: str, implementation: str) -> None:
    model, inputs = injected(host, name), make_inputs(host, token_types=True)
    model.set_attn_implementation(implementation)
    values: list[torch.Tensor] = []
    contexts: list[torch.Tensor] = []
    for attention in injection_of(model).attentions:
        projection = next(m for key, m in attention.named_children() if key in ("value", "v_proj"))
        projection.register_forward_hook(lambda module, args, output: values.append(output))
    # The context is the input of whatever linear layer comes next.
    outputs_of = [
        m for key, m in model.named_modules() if key.endswith(("attention.output.dense", "attention.o_proj"))
    ]
    for dense in outputs_of:
        dense.register_forward_pre_hook(lambda module, args: contexts.append(args[0]))
    plain = first_output(model, inputs)
    expected = list(contexts)
    values.clear()
    outputs = model(**inputs, output_attentions=True)
    assert max_difference(outputs[0], plain) < 1e-5
    assert len(outputs.attentions) == len(values) == len(expected) == 3
    tokens = inputs.get("attention_mask", torch.ones(plain.shape[:2])).bool()
    for weights, value, context in zip(outputs.attentions, values, expected, strict=True):
        assert weights.shape == (2, 4, plain.shape[1], plain.shape[1])
        if name not in ("mixture_views", "mixture_all"):  # a view may leave a token nothing to see
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
        assert (weights.masked_select(~tokens[:, None, None]) == 0).all()
        product = (weights @ value.unflatten(-1, (4, -1)).transpose(1, 2)).transpose(1, 2).flatten(-2)
        assert max_difference(product[tokens], context[tokens]) < 1e-5


@pytest.mark.parametrize("form", ["bool", "additive", "by_query"])
@pytest.mark.parametrize("name", ["random", "dense", "mixture", "mixture_lam"])
def test_four_dimensional_masks(name: str, form: str) -> None:
    model, inputs = injected("bert", name), make_inputs("bert")
    tokens = inputs["attention_mask"].bool()
    if form == "by_query":
        # Two texts in one row, which do not see each other.
        documents = torch.tensor([0] * 5 + [1] * 6)
        mask = (documents[:, None] == documents).expand(2, 1, 11, 11)
        found = model(inputs["input_ids"], attention_mask=mask).last_hidden_state[:, :5]
        alone = model(inputs["input_ids"][:, :5]).last_hidden_state
        assert max_difference(found, alone) < 1e-5
        return
    mask = tokens[:, None, None].expand(-1, 1, 11, -1)
    if form == "additive":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    expected = model(**inputs).last_hidden_state
    found = model(inputs["input_ids"], attention_mask=mask).last_hidden_state
    assert max_difference(found[tokens], expected[tokens]) < 1e-5


def test_a_text_on_a_grid_with_a_prefix_or_two_axes() -> None:
    inputs = make_inputs("bert", batch=4)
    for config in (SttConfig("dense", prefix_tokens=1), SttConfig("random", prefix_tokens=1)):
        model = inject(make_host("bert"), config)
        perturb_mechanisms(model)
        together = model(**inputs).last_hidden_state
        alone = model(inputs["input_ids"][1:2, :7]).last_hidden_state
        assert max_difference(together[1, :7], alone[0]) < 1e-5
        by_query = torch.ones(4, 1, 11, 11, dtype=torch.bool).tril()
        with pytest.raises(ValueError, match="differs from query to query"):
            model(inputs["input_ids"], attention_mask=by_query)
    model = inject(make_host("bert"), SttConfig("dense", grid=[2, 5], prefix_tokens=1))
    first = model(**inputs).last_hidden_state
    other = inputs["input_ids"].clone()
    other[1::2, 7:] = 5  # padding
    tokens = inputs["attention_mask"].bool()
    again = model(other, attention_mask=inputs["attention_mask"]).last_hidden_state
    assert max_difference(again[tokens], first[tokens]) < 1e-6


# --- Hosts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dense", "mixture"])
def test_more_hosts(name: str) -> None:
    vision = {**SIZES, "image_size": 16, "patch_size": 4}
    for model, prefix in (
        (CLIPVisionModel(CLIPVisionConfig(**vision)), 1),
        (Dinov2Model(Dinov2Config(**vision)), 1),
        (Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**vision, num_register_tokens=3)), 4),
    ):
        pixels = torch.randn(2, 3, 16, 16)
        original = model.eval()(pixels).last_hidden_state
        inject(model, *mechanisms(name, "vit"))
        (base,) = injected_encoders(model)
        stt = injection_of(base).configs["stt"]
        assert (stt.grid, stt.prefix_tokens) == ([4, 4], prefix)
        perturb_mechanisms(model)
        found = model(pixels).last_hidden_state
        assert found.isfinite().all() and max_difference(found, original) > 1e-4
        if name == "mixture":
            remove(model)
            assert torch.equal(model(pixels).last_hidden_state, original)


def test_hosts_without_projections_of_their_own_take_mixtures_only() -> None:
    fused = ModernBertModel(ModernBertConfig(**SIZES, vocab_size=99, pad_token_id=0)).eval()
    inputs = {"input_ids": torch.randint(2, 99, (1, 30))}
    original = first_output(fused, inputs)
    before = set(fused.state_dict())
    with pytest.raises(ValueError, match=r"no query and key projections.*mixture"):
        inject(fused, SttConfig("dense", grid=[30]))
    assert set(fused.state_dict()) == before
    assert torch.equal(first_output(fused, inputs), original)
    inject(fused, SttConfig(grid=[30]))
    assert max_difference(first_output(fused, inputs), original) < 1e-5


# --- Combinations and errors -----------------------------------------------------------------------------------------

BOTTLENECK = LocomtConfig(views="self", bottleneck_tokens=2)
REFUSED = [
    ((SttConfig("dense"), LamConfig()), r"no scores that LamConfig could.*synthesizer='dense'"),
    ((SttConfig("random"), LocomtConfig()), r"no scores that LocomtConfig could.*synthesizer='random'"),
    ((LamConfig(), LocomtConfig(), SttConfig("factorized_dense")), "LamConfig and LocomtConfig"),
    ((SttConfig(), BOTTLENECK), "bottleneck_tokens=2"),
    ((SttConfig(grid=[2, 2, 5]), LamConfig()), r"\[2, 2, 5\] with 1 prefix tokens makes 21 tokens.* 17"),
    ((SttConfig("dense", prefix_tokens=0),), r"\[4, 4\] with 0 prefix tokens makes 16 tokens.* 17"),
]


@pytest.mark.parametrize(("configs", "message"), REFUSED)
@pytest.mark.parametrize("through", [inject, convert])
def test_what_does_not_fit_is_refused_and_changes_nothing(
    through: Any, configs: tuple[Any, ...], message: str
) -> None:
    model, inputs = make_host("vit"), make_inputs("vit")
    expected, before = first_output(model, inputs), set(model.state_dict())
    with pytest.raises(ValueError, match=message):
        through(model, *configs)
    assert set(model.state_dict()) == before
    assert not any("hf_lam" in key for module in model.modules() for key in module.__dict__)
    assert torch.equal(first_output(model, inputs), expected)


def test_dropped_tokens_are_refused() -> None:
    model = ViTMAEModel(ViTMAEConfig(**SIZES, image_size=16, patch_size=4))
    for config in (SttConfig(), SttConfig("random")):
        with pytest.raises(ValueError, match=r"mask_ratio.*grid of a synthesised"):
            inject(model, config)
    hidden = torch.zeros(2, 8, dtype=torch.bool)
    hidden[:, 4:] = True
    for name in ("dense", "mixture"):
        with pytest.raises(ValueError, match="bool_masked_pos"):
            injected("videomae", name)(**make_inputs("videomae"), bool_masked_pos=hidden)


@pytest.mark.parametrize("name", ["dense", "random", "mixture"])
def test_inputs_of_another_size(name: str) -> None:
    (stt,) = mechanisms(name, "bert")
    model = inject(make_host("bert"), replace(stt, grid=[8]))
    with pytest.raises(ValueError, match=r"at most 8 tokens.*has 11"):
        model(**make_inputs("bert"))
    assert model(torch.ones(1, 8, dtype=torch.long)).last_hidden_state.isfinite().all()
    assert model(torch.ones(1, 1, dtype=torch.long)).last_hidden_state.isfinite().all()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"stt": {"variant": "sparse"}}, "sparse"),
        ({"stt": {"variant": "dense", "rank": 4}}, "rank=4"),
        ({"stt": {"grid": [0, 4]}}, r"\[0, 4\]"),
        ({"stt": {"mixing": 0.5}}, "mixing"),
        ({"stt": {"variant": "dense"}, "lam": {}}, "no scores"),
        ({"stt": {"grid": [30, 30]}}, "900 tokens"),
    ],
)
def test_bad_blocks_in_a_configuration(block: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_model(BertModel, "bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        hf_lam.HfLamBertModel.from_pretrained(tmp_path, hf_lam=block)


# --- The mechanism alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "name"), [case for case in STT_CASES if case[0] in ("vit", "roberta")])
def test_a_mechanism_is_saved_and_loaded_without_its_host(host: str, name: str, tmp_path: Path) -> None:
    trained, inputs = injected(host, name), make_inputs(host, token_types=True)
    save_mechanism(trained, tmp_path)
    loaded = load_mechanism(make_host(host), tmp_path)
    assert torch.equal(first_output(loaded, inputs), first_output(trained, inputs))
    assert (projections_of(loaded) == []) == (name in PURE_CONFIGS)


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 2}, {"hidden_size": 48}, {"num_attention_heads": 2}])
@pytest.mark.parametrize("name", ["dense", "random"])
def test_a_mechanism_that_does_not_fit_leaves_the_host_its_projections(
    name: str, changes: dict[str, int], tmp_path: Path
) -> None:
    save_mechanism(injected("bert", name), tmp_path)
    host, inputs = make_host("bert", **changes), make_inputs("bert")
    if (name, *changes) == ("random", "hidden_size"):
        load_mechanism(host, tmp_path)  # a map that does not depend on the input fits any width
        return
    expected, before = first_output(host, inputs), set(host.state_dict())
    with pytest.raises(ValueError, match="do not fit BertModel"):
        load_mechanism(host, tmp_path)
    assert set(host.state_dict()) == before
    assert torch.equal(first_output(host, inputs), expected)


def test_a_call_that_is_lost_on_the_way_is_an_error_and_not_the_hosts_attention() -> None:
    model = injected("vit", "dense")
    attention = model.layers[0].attention
    query = torch.randn(1, 4, 17, 8)
    with pytest.raises(RuntimeError, match="was not called by its encoder"):
        attend_for_stand_in(attention, query, query, query, None)


def test_heads_that_share_keys_and_values_take_mixtures_only() -> None:
    config = EuroBertConfig(
        **SIZES, num_key_value_heads=2, vocab_size=99, head_dim=8, pad_token_id=0, max_position_embeddings=40
    )
    model, inputs = EuroBertModel(config).eval(), {"input_ids": torch.randint(2, 99, (1, 30))}
    expected = first_output(model, inputs)
    with pytest.raises(ValueError, match=r"values of EuroBertModel have 16 features.*only be a mixture"):
        inject(model, SttConfig("dense"))
    inject(model, SttConfig())
    assert max_difference(first_output(model, inputs), expected) < 1e-5


def test_images_of_another_size_get_a_grid_of_their_own() -> None:
    pixels = torch.randn(2, 3, 32, 32)
    model = make_host("vit", image_size=16, patch_size=4)
    expected = model(pixels, interpolate_pos_encoding=True).last_hidden_state
    inject(model, SttConfig(grid=[8, 8]))
    assert max_difference(model(pixels, interpolate_pos_encoding=True).last_hidden_state, expected) < 1e-5
    with pytest.raises(ValueError, match="a grid of 4 × 4 patches, but SttConfig was made for 8 × 8"):
        model(torch.randn(2, 3, 16, 16))
    dino = Dinov2Model(Dinov2Config(**SIZES, image_size=32, patch_size=4)).eval()
    expected = dino(pixels[..., :16, :16]).last_hidden_state
    inject(dino, SttConfig(grid=[4, 4], prefix_tokens=1))
    assert max_difference(dino(pixels[..., :16, :16]).last_hidden_state, expected) < 1e-5


def test_large_logits_of_padding_have_finite_gradients() -> None:
    model = inject(make_host("bert"), SttConfig("random", prefix_tokens=1))
    rows = model.hf_lam.stt[0].axes[0].row_logits
    rows.data[..., 5:] += 120
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[:, 6:] = 0
    output = model(torch.randint(5, 90, (2, 11)), attention_mask=mask).last_hidden_state
    output[:, :6].sum().backward()
    assert output.isfinite().all() and rows.grad is not None and rows.grad.isfinite().all()
