"""What inject refuses, and that it leaves the model alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2Model,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    T5Config,
    T5Model,
    ViTMAEConfig,
    ViTMAEModel,
)

from helpers.hosts import (
    SIZES,
    first_output,
    make_host,
    make_inputs,
    max_difference,
    mechanisms,
)
from helpers.injection import assert_no_trace, injected
from hf_lam import (
    LamConfig,
    LocomtConfig,
    inject,
    mechanism_parameters,
    remove,
)


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
        "no_interface": (
            MPNetModel(MPNetConfig(**{**text, "intermediate_size": 37})),
            "MPNetSelfAttention of MPNetModel computes its attention itself",
        ),
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
    with pytest.raises(ValueError, match=r"a grid of 6 × 6 patches, but LamConfig was made for 4 × 4.*rank=8"):
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


@pytest.mark.parametrize(
    ("host", "configs", "message"),
    [
        ("vit", (LamConfig(), LocomtConfig(views="self", bottleneck_tokens=2)), "bottleneck_tokens=2"),
        ("vit", (LocomtConfig(segments=[["a", 9], ["b", 9]]),), r"add up to 18 tokens, and it has 17"),
        ("vit", (LocomtConfig(segments=[["a", {"part": [0, 1]}]]),), r"for videos and sound of one length.*\(4, 4\)"),
        ("vit", (LocomtConfig(segments=[["a", {"frames": [0, 4]}]]),), "no frames"),
        ("vit", (LocomtConfig(segments="token_type_ids"),), "takes no token_type_ids"),
        (
            "videomae",
            (LocomtConfig(segments=[["a", {"frames": [0, 1]}], ["b", {"frames": [1, 4]}]]),),
            "cut some in two",
        ),
        ("videomae", (LocomtConfig(segments=[["a", {"part": [0, 0, 1, 1]}]]),), r"with two axes, but \(2, 2, 2\)"),
        ("bert", (LocomtConfig(segments=[["a", 30], ["b", 20]]),), r"add up to 50 tokens, and it takes at most 40"),
        ("bert", (LocomtConfig(segments=[["a", {"token_type": 0}]]),), r"token types \[0\], and it has 2"),
        ("bert", (LocomtConfig(views=[["self"] * 3] * 3),), r"3 rows of 3 views.*3 layers of 4 heads"),
        ("bert", (LocomtConfig(views="self:image"),), r"'image'; the segments are \['type_0', 'type_1'\]"),
        ("bert", (LocomtConfig(), LocomtConfig()), "given twice"),
    ],
)
def test_views_that_do_not_fit_are_refused_and_the_host_left_alone(
    host: str, configs: tuple[Any, ...], message: str
) -> None:
    model = make_host(host)
    before = set(model.state_dict())
    with pytest.raises(ValueError, match=message):
        inject(model, *configs)
    assert set(model.state_dict()) == before
    assert_no_trace(model)


def test_views_refuse_hosts_that_drop_tokens() -> None:
    model = ViTMAEModel(ViTMAEConfig(**SIZES, image_size=16, patch_size=4))
    with pytest.raises(ValueError, match="mask_ratio"):
        inject(model, LocomtConfig())
    assert_no_trace(model)
    model, inputs = injected("videomae", "half"), make_inputs("videomae")
    hidden = torch.zeros(2, 8, dtype=torch.bool)
    hidden[:, 4:] = True
    with pytest.raises(ValueError, match="bool_masked_pos"):
        model(**inputs, bool_masked_pos=hidden)
    inject(remove(model), LamConfig(rank=2), LocomtConfig())
    with pytest.raises(ValueError, match="bool_masked_pos"):
        model(inputs["pixel_values"], hidden)
    remove(model)
    assert model(**inputs, bool_masked_pos=hidden).last_hidden_state.shape[1] == 4


@pytest.mark.parametrize("name", ["half", "annealing", "bottleneck"])
def test_sequences_of_another_length_than_the_segments(name: str) -> None:
    config = mechanisms(name, "bert")[0]
    model = inject(make_host("bert"), replace(config, segments=[["a", 4], ["b", 8]]))
    for length in (11, 13):
        with pytest.raises(ValueError, match=r"add up to .* tokens, but the sequence has"):
            model(torch.ones(2, length, dtype=torch.long))
    assert model(torch.ones(2, 12, dtype=torch.long)).last_hidden_state.shape[1] == 12
