from __future__ import annotations

import copy
import io
import threading

import pytest
import torch
from hosts import (
    BASES,
    LAM_CONFIGS,
    SIZES,
    first_output,
    make_host,
    make_inputs,
    make_model,
    max_difference,
    perturb_mechanisms,
)
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2Model,
    ModernBertConfig,
    ModernBertModel,
    RobertaForSequenceClassification,
    T5Config,
    T5Model,
    ViTMAEConfig,
    ViTMAEModel,
    VJEPA2Config,
    VJEPA2Model,
)

from hf_lam import LamConfig, freeze_host, inject, lam_attention, mechanism_parameters, remove
from hf_lam.modeling import injection_hf_lam

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
    assert not any("hf_lam" in key for key in model.state_dict())
    assert not any("hf_lam" in key for module in model.modules() for key in module.__dict__)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, FLEX])
def test_no_attention_implementation_drops_the_mechanism(host: str, implementation: str) -> None:
    model, inputs = inject(make_host(host), LAM_CONFIGS["shared"]), make_inputs(host)
    perturb_mechanisms(model)
    expected = first_output(model, inputs)
    model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == implementation
    assert max_difference(first_output(model, inputs), expected) < 1e-5


def test_eager_selects_the_reference_and_everything_else_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []

    def spy(*args, implementation, **kwargs):
        chosen.append(implementation)
        return lam_attention(*args, implementation=implementation, **kwargs)

    monkeypatch.setattr(injection_hf_lam, "lam_attention", spy)
    model, inputs = inject(make_host("vit"), LamConfig()), make_inputs("vit")
    for implementation in ("eager", "sdpa", "hf_lam"):
        model.set_attn_implementation(implementation)
        model(**inputs)
    assert chosen == ["eager"] * 3 + ["auto"] * 6


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


@pytest.mark.parametrize("name", ["per_layer", "embeddings", "shared"])
def test_copies_and_pickles_use_masks_of_their_own(host: str, name: str) -> None:
    model, inputs = inject(make_host(host), LAM_CONFIGS[name]), make_inputs(host)
    perturb_mechanisms(model)
    expected = first_output(model, inputs)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(first_output(twin, inputs), expected)
        for parameter in mechanism_parameters(twin):
            parameter.data.zero_()
        assert max_difference(first_output(twin, inputs), expected) > 1e-3
        assert torch.equal(first_output(model, inputs), expected)
        remove(twin)


@pytest.mark.parametrize("name", ["per_layer", "embeddings", "shared"])
def test_threads_do_not_mix_up_their_inputs(name: str) -> None:
    model = inject(make_host("videomae"), LAM_CONFIGS[name])
    perturb_mechanisms(model)
    batches = [make_inputs("videomae", seed=seed) for seed in range(4)]
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


def test_autocast_and_half_precision(host: str) -> None:
    model, inputs = inject(make_host(host), LamConfig()), make_inputs(host)
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


def refused() -> dict[str, tuple[nn.Module, str]]:
    text = {**SIZES, "vocab_size": 99}
    return {
        "decoder": (BertLMHeadModel(BertConfig(**text, is_decoder=True)), "decoder"),
        "encoder_decoder": (T5Model(T5Config(d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)), "decoder"),
        "causal": (GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=99)), "causal"),
        "layers_shared": (
            AlbertModel(AlbertConfig(**{**text, "embedding_size": 16})),
            "runs 3 layers with 1 self-attention",
        ),
        "drops_tokens": (ViTMAEModel(ViTMAEConfig(**SIZES, image_size=16, patch_size=4)), "mask_ratio"),
        "no_interface": (VJEPA2Model(VJEPA2Config(**SIZES, crop_size=16, patch_size=8, frames_per_clip=4)), "VJEPA2"),
    }


@pytest.mark.parametrize(
    "case", ["decoder", "encoder_decoder", "causal", "layers_shared", "drops_tokens", "no_interface"]
)
def test_hosts_that_cannot_be_injected_are_refused_and_left_alone(case: str) -> None:
    model, message = refused()[case]
    before = set(model.state_dict())
    with pytest.raises(ValueError, match=message):
        inject(model, LamConfig())
    assert set(model.state_dict()) == before
    assert not any("hf_lam" in key for module in model.modules() for key in module.__dict__)


def test_bad_calls() -> None:
    with pytest.raises(TypeError, match="Linear"):
        inject(nn.Linear(2, 2), LamConfig())
    with pytest.raises(ValueError, match="no mechanism configuration"):
        inject(make_host("bert"))
    with pytest.raises(ValueError, match="no hf_lam mechanisms to remove"):
        remove(make_host("bert"))
    with pytest.raises(ValueError, match="no hf_lam mechanisms"):
        mechanism_parameters(make_host("bert"))
    model = inject(make_host("bert"), LamConfig())
    with pytest.raises(ValueError, match="already has hf_lam mechanisms"):
        inject(model, LamConfig())
    with pytest.raises(RuntimeError, match="outside its encoder's forward"):
        model.encoder.layer[0].attention.self(torch.randn(1, 3, 32))


def test_remove_works_on_a_model_whose_layers_were_cut() -> None:
    model = inject(make_host("bert"), LamConfig())
    model.encoder.layer = model.encoder.layer[:1]
    remove(model)
    assert not any("hf_lam" in key for module in model.modules() for key in module.__dict__)
    assert first_output(model, make_inputs("bert")).isfinite().all()


def test_data_parallel_is_refused() -> None:
    model = inject(make_host("bert"), LamConfig())
    replica = model.encoder._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match="torchrun"):
        replica(torch.randn(1, 3, 32))


def test_windows_that_only_a_flash_kernel_knows_are_refused() -> None:
    model = ModernBertModel(ModernBertConfig(**SIZES, vocab_size=99, pad_token_id=0, local_attention=8)).eval()
    inputs = {"input_ids": torch.randint(2, 99, (1, 30))}
    original = first_output(model, inputs)
    inject(model, LamConfig())
    assert max_difference(first_output(model, inputs), original) < 1e-5
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="window"):
        model(**inputs)


def test_too_long_sequences() -> None:
    model = inject(make_host("vit"), LamConfig())
    pixels = torch.randn(1, 3, 24, 24)
    with pytest.raises(ValueError, match=r"37 tokens.*max_length=17"):
        model(pixels, interpolate_pos_encoding=True)
    model = inject(remove(model), LamConfig(rank=2))
    assert model(pixels, interpolate_pos_encoding=True).last_hidden_state.shape[1] == 37
    model = inject(make_host("bert"), LamConfig(max_length=5))
    with pytest.raises(ValueError, match=r"11 tokens.*max_length=5"):
        model(**make_inputs("bert"))


def test_dropped_video_tokens_need_a_low_rank_mask() -> None:
    inputs = make_inputs("videomae")
    hidden = torch.zeros(2, 8, dtype=torch.bool)
    hidden[:, 4:] = True
    model = inject(make_host("videomae"), LamConfig())
    with pytest.raises(ValueError, match="bool_masked_pos"):
        model(**inputs, bool_masked_pos=hidden)
    with pytest.raises(ValueError, match="bool_masked_pos"):
        model(inputs["pixel_values"], hidden)
    inject(remove(model), LamConfig(rank=2))
    assert model(**inputs, bool_masked_pos=hidden).last_hidden_state.shape[1] == 4


def test_a_float_mask_of_zeros_and_ones_is_refused() -> None:
    model = inject(make_host("bert"), LamConfig())
    inputs = make_inputs("bert")
    wrong = inputs["attention_mask"][:, None, None, :].expand(-1, 1, 11, -1).float()
    with pytest.raises(ValueError, match="zeros and ones"):
        model(input_ids=inputs["input_ids"], attention_mask=wrong)


def test_resized_embeddings_keep_the_mechanism() -> None:
    model = inject(make_host("bert"), LamConfig())
    perturb_mechanisms(model)
    inputs = make_inputs("bert")
    expected = first_output(model, inputs)
    model.resize_token_embeddings(120)
    assert torch.equal(first_output(model, inputs), expected)


@pytest.mark.parametrize("train_head", [False, True])
def test_freeze_host(train_head: bool) -> None:
    model = inject(make_model(BertForSequenceClassification, "bert"), LamConfig())
    assert freeze_host(model, train_head=train_head) is model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    masks = {name for name in trained if name.startswith("bert.hf_lam.")}
    assert len(masks) == len(mechanism_parameters(model)) == 12
    assert trained - masks == ({"classifier.weight", "classifier.bias"} if train_head else set())
