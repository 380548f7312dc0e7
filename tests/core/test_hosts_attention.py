"""Where the attention of a host is, what more there is in it, and why some cannot be reached."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from helpers.checkpointing import checkpoint_activations
from helpers.hosts import SIZES, first_output, max_difference, perturb_mechanisms
from helpers.injection import assert_no_trace
from hf_lam import LamConfig, LocomtConfig, SttConfig, inject, remove
from hf_lam.modeling.host_attention_hf_lam import find_encoder
from hf_lam.modeling.hosts_hf_lam import DISPATCH
from hf_lam.modeling.injection_hf_lam import injection_of
from hf_lam.modeling.padding_hf_lam import extend_padding

SMALL = {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
TEXT = {**SMALL, "vocab_size": 99, "max_position_embeddings": 40, "pad_token_id": 0}
PICTURES = {**SMALL, "image_size": 16, "patch_size": 4}
SPEECH = {
    **{**SMALL, "num_hidden_layers": 2, "vocab_size": 30, "conv_dim": (16, 16), "conv_stride": (5, 4)},
    **{"conv_kernel": (10, 8), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8},
    "num_conv_pos_embedding_groups": 2,
}
WHISPER = {
    **{f"{part}_{name}": 4 for part in ("encoder", "decoder") for name in ("attention_heads", "ffn_dim")},
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "num_mel_bins": 8, "max_source_positions": 10},
    **{"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}
SEQ2SEQ = {
    **{f"{part}_{name}": 4 for part in ("encoder", "decoder") for name in ("attention_heads", "ffn_dim")},
    **{"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 99, "max_position_embeddings": 40},
}


def make(model: str, config: str, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**options))
    for parameter in made.parameters():
        parameter.data += 0.08 * torch.randn_like(parameter)
    return made.eval()


def read(length: int = 12, short: int = 8) -> dict[str, Tensor]:
    torch.manual_seed(1)
    attention_mask = torch.ones(2, length, dtype=torch.long)
    attention_mask[1, short:] = 0
    return {"input_ids": torch.randint(3, 99, (2, length)), "attention_mask": attention_mask}


def host_gradients(model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    output = first_output(model, inputs)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None and "hf_lam" not in n}


def spans(length: int, views: Any = "half", **options: Any) -> LocomtConfig:
    return LocomtConfig(segments=[["first", 5], ["rest", length - 5]], views=views, **options)


def identities(length: int) -> dict[str, tuple[Any, ...]]:
    """What changes nothing before it is trained."""
    return {
        "dense": (LamConfig(max_length=length),),
        "rank": (LamConfig(rank=2, per_head=True),),
        "shared": (LamConfig(rank=2, scope="shared"),),
        "full": (spans(length, "full"),),
        "annealing": (spans(length, annealing=True),),
        "mixture": (SttConfig(grid=[length], prefix_tokens=0),),
        "mixture+lam": (SttConfig(grid=[length], prefix_tokens=0), LamConfig(rank=2)),
        "lam+full": (LamConfig(rank=2), spans(length, "full")),
    }


NAMES = list(identities(12))
PERTURBED = {**identities(12), "half": (spans(12),), "lam+half": (LamConfig(rank=2), spans(12))}


def assert_is_identity(model: Any, inputs: dict[str, Any], configs: tuple[Any, ...]) -> None:
    expected, before = first_output(model, inputs), host_gradients(model, inputs)
    inject(model, *configs)
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        assert max_difference(first_output(model, inputs), expected) < 2e-5
        after = host_gradients(model, inputs)
        assert after.keys() == before.keys()
        assert all(torch.allclose(after[n], before[n], rtol=1e-3, atol=1e-4) for n in before)


def assert_fast_is_reference(model: Any, inputs: dict[str, Any]) -> None:
    """With mechanisms that do something: the fast paths against the formula as it stands."""
    model.set_attn_implementation("eager")
    expected, before = first_output(model, inputs), host_gradients(model, inputs)
    model.set_attn_implementation("sdpa")
    assert max_difference(first_output(model, inputs), expected) < 2e-5
    after = host_gradients(model, inputs)
    assert all(torch.allclose(after[n], before[n], rtol=1e-3, atol=1e-4) for n in before)


# --- causal encoders -------------------------------------------------------------------------------------------------


def make_clip_text() -> Any:
    return make("CLIPTextModel", "CLIPTextConfig", {**TEXT, "eos_token_id": 2})


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_a_causal_encoder_stays(name: str, is_padded: bool) -> None:
    inputs = read() if is_padded else {"input_ids": read()["input_ids"]}
    assert_is_identity(make_clip_text(), inputs, identities(12)[name])


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("name", PERTURBED)
def test_tokens_of_a_causal_encoder_do_not_see_later_ones(name: str, is_padded: bool) -> None:
    model = inject(make_clip_text(), *PERTURBED[name])
    perturb_mechanisms(model)
    inputs = read() if is_padded else {"input_ids": read()["input_ids"]}
    assert_fast_is_reference(model, inputs)
    expected = first_output(model, inputs)
    inputs["input_ids"] = inputs["input_ids"].clone()
    inputs["input_ids"][:, 6:] = 50
    found = first_output(model, inputs)
    assert max_difference(found[:, :6], expected[:, :6]) < 1e-6
    assert max_difference(found[:, 6:], expected[:, 6:]) > 1e-2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (SttConfig("dense", grid=[12], prefix_tokens=0), "tokens see earlier ones only.*only be a mixture"),
        (spans(12, "self", bottleneck_tokens=2), "Leave bottleneck tokens out"),
    ],
)
def test_what_would_mix_up_the_order_is_refused(config: Any, words: str) -> None:
    model = make_clip_text()
    with pytest.raises(ValueError, match=words):
        inject(model, config)
    assert_no_trace(model)


def test_encoders_whose_attention_says_nothing_of_order() -> None:
    # Its module has no `is_causal`, which transformers' SDPA takes for yes; but the model has no SDPA.
    model, inputs = make("ClapTextModel", "ClapTextConfig", TEXT), {"input_ids": read()["input_ids"]}
    expected = first_output(model, inputs)
    assert max_difference(first_output(inject(model, LamConfig(rank=2)), inputs), expected) < 1e-5


# --- what is added to the scores -------------------------------------------------------------------------------------


def skip_without_interface(family: str) -> None:
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    if not hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
        pytest.skip(f"{family} computes its attention itself in transformers {transformers.__version__}")


def make_layoutlmv3() -> tuple[Any, dict[str, Tensor]]:
    skip_without_interface("layoutlmv3")
    options = {**TEXT, "visual_embed": False, "coordinate_size": 4, "shape_size": 8}
    biases = {"has_relative_attention_bias": True, "has_spatial_attention_bias": True}
    torch.manual_seed(2)
    bbox = torch.randint(0, 500, (2, 12, 4)).sort(-1).values
    return make("LayoutLMv3Model", "LayoutLMv3Config", {**options, **biases}), {**read(), "bbox": bbox}


def make_wav2vec2_bert(positions: str) -> tuple[Any, dict[str, Tensor]]:
    skip_without_interface("wav2vec2_bert")
    options = {**SMALL, "feature_projection_input_dim": 16, "position_embeddings_type": positions}
    torch.manual_seed(2)
    inputs = {"input_features": torch.randn(2, 12, 16), "attention_mask": read()["attention_mask"]}
    return make("Wav2Vec2BertModel", "Wav2Vec2BertConfig", options), inputs


def make_beit(option: str) -> tuple[Any, dict[str, Tensor]]:
    torch.manual_seed(2)
    options = {**PICTURES, "image_size": 12, "patch_size": 4, option: True}
    return make("BeitModel", "BeitConfig", options), {"pixel_values": torch.randn(2, 3, 12, 12)}


BIASED: dict[str, Any] = {
    "layoutlmv3": (make_layoutlmv3, 12, None),
    "wav2vec2_bert_relative": (lambda: make_wav2vec2_bert("relative"), 12, "linear_pos"),
    "wav2vec2_bert_relative_key": (lambda: make_wav2vec2_bert("relative_key"), 12, "distance_embedding"),
    "beit": (lambda: make_beit("use_relative_position_bias"), 10, "relative_position_bias"),
    "beit_shared": (lambda: make_beit("use_shared_relative_position_bias"), 10, "relative_position_bias"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("host", BIASED)
def test_a_relative_bias_stays_and_learns(host: str, name: str) -> None:
    make_host, length, parameter = BIASED[host]
    model, inputs = make_host()
    if parameter is not None:
        learning = [n for n in host_gradients(model, inputs) if parameter in n]
        assert learning
    assert_is_identity(model, inputs, identities(length)[name])


@pytest.mark.parametrize("name", ["rank", "mixture+lam", "annealing", "half", "lam+half"])
@pytest.mark.parametrize("host", BIASED)
def test_a_relative_bias_on_every_path(host: str, name: str) -> None:
    make_host, length, _ = BIASED[host]
    model, inputs = make_host()
    more = {"half": (spans(length),), "lam+half": (LamConfig(rank=2), spans(length))}
    inject(model, *{**identities(length), **more}[name])
    perturb_mechanisms(model)
    assert_fast_is_reference(model, inputs)


@pytest.mark.parametrize("name", ["rank", "full", "annealing", "mixture"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_relative_bias_under_checkpointing_with_dropout(use_reentrant: bool, name: str) -> None:
    torch.manual_seed(2)
    options = {**PICTURES, "image_size": 12, "use_relative_position_bias": True, "attention_probs_dropout_prob": 0.4}
    model = inject(make("BeitModel", "BeitConfig", {**options, "drop_path_rate": 0.0}), *identities(10)[name]).train()
    inputs = {"pixel_values": torch.randn(2, 3, 12, 12)}
    found = []
    for is_checkpointing in (False, True):
        if is_checkpointing:
            checkpoint_activations(model, use_reentrant)
        torch.manual_seed(3)
        found.append(host_gradients(model, inputs))
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][n], found[1][n], rtol=1e-3, atol=1e-5) for n in found[0])


@pytest.mark.parametrize("host", BIASED)
def test_bottleneck_tokens_beside_a_relative_bias(host: str) -> None:
    make_host, length, _ = BIASED[host]
    model, inputs = make_host()
    config = spans(length, "self", bottleneck_tokens=2)
    if host.startswith("wav2vec2_bert"):
        with pytest.raises(ValueError, match=r"relative_position_embeddings.*Leave bottleneck tokens out"):
            inject(model, config)
        assert_no_trace(model)
    else:
        assert_fast_is_reference(inject(model, config), inputs)


def test_tokens_that_are_appended_get_no_bias() -> None:
    blocked = -float("inf")
    padding = torch.tensor([[0.5, 2.0, blocked], [1.0, blocked, blocked]])
    found = extend_padding(padding[None, None], 1)[0, 0]
    assert found.tolist() == [[0.5, 2.0, blocked, 0], [1.0, blocked, blocked, 0], [0, 0, blocked, 0]]


@pytest.mark.parametrize(
    ("model", "options"), [("EuroBert", TEXT), ("ModernBert", TEXT), ("DINOv3ViT", PICTURES), ("MLCDVision", PICTURES)]
)
def test_bottleneck_tokens_have_no_place_where_queries_and_keys_are_turned(model: str, options: Any) -> None:
    made = make(f"{model}Model", f"{model}Config", options)
    with pytest.raises(ValueError, match=r"gets the place of every token \(position_embeddings\)"):
        inject(made, spans(17, "self", bottleneck_tokens=2))
    assert_no_trace(made)


@pytest.mark.parametrize("host", BIASED)
def test_attention_without_scores_has_no_place_for_a_bias(host: str) -> None:
    make_host, length, _ = BIASED[host]
    model, _ = make_host()
    with pytest.raises(ValueError, match=r"it adds a bias to the scores \(.*only be a mixture"):
        inject(model, SttConfig("dense", grid=[length], prefix_tokens=0))
    assert_no_trace(model)


# --- heads that share keys and values; windows -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_heads_that_share_keys_and_values(name: str) -> None:
    model = make("EuroBertModel", "EuroBertConfig", {**TEXT, "num_key_value_heads": 2})
    assert model.layers[0].self_attn.k_proj.out_features == 16
    assert_is_identity(model, read(), identities(12)[name])
    perturb_mechanisms(model)
    assert_fast_is_reference(model, read())


def make_windowed() -> Any:
    return make("ModernBertModel", "ModernBertConfig", {**TEXT, "local_attention": 8})


@pytest.mark.parametrize("name", NAMES)
def test_windows_shorter_than_the_sequence(name: str) -> None:
    assert_is_identity(make_windowed(), read(30, 20), identities(30)[name])


@pytest.mark.parametrize("implementation", ["sdpa", "eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
@pytest.mark.parametrize("configs", [(LamConfig(rank=2),), (spans(30),), (LamConfig(max_length=30), spans(30))])
def test_nothing_is_seen_outside_of_a_window(configs: tuple[Any, ...], implementation: str) -> None:
    options = {**TEXT, "local_attention": 8, "layer_types": ["sliding_attention"] * 3}
    model = inject(make("ModernBertModel", "ModernBertConfig", options), *configs)
    perturb_mechanisms(model)
    assert_fast_is_reference(model, read(30, 20))
    model.set_attn_implementation(implementation)
    inputs = read(30, 30)
    expected = first_output(model, inputs)
    inputs["input_ids"] = inputs["input_ids"].clone()
    inputs["input_ids"][:, 20:] = 50
    found = first_output(model, inputs)
    # Three layers reach 4 tokens each.
    assert max_difference(found[:, :8], expected[:, :8]) < 1e-6
    assert max_difference(found[:, 16:20], expected[:, 16:20]) > 1e-3


# --- which encoder it is ---------------------------------------------------------------------------------------------

TOWERS = {
    "text_config": {**TEXT, "num_hidden_layers": 2},
    "vision_config": {**PICTURES, "num_hidden_layers": 2},
    "projection_dim": 16,
}

ENCODERS: dict[str, Any] = {
    "BertForSequenceClassification": (("BertConfig", TEXT), "BertModel"),
    "WhisperForAudioClassification": (("WhisperConfig", WHISPER), "WhisperEncoder"),
    "CLIPForImageClassification": (("CLIPConfig", TOWERS), None),
    "SiglipForImageClassification": (("SiglipConfig", {k: TOWERS[k] for k in list(TOWERS)[:2]}), None),
    "Dinov2ForImageClassification": (("Dinov2Config", PICTURES), "Dinov2Model"),
    "DINOv3ViTModel": (("DINOv3ViTConfig", PICTURES), "DINOv3ViTEncoder"),
    "VideoMAEForPreTraining": (
        ("VideoMAEConfig", {**PICTURES, "patch_size": 8, "num_frames": 4, "decoder_num_hidden_layers": 1}),
        "VideoMAEModel",
    ),
    "DPRContextEncoder": (("DPRConfig", TEXT), "BertModel"),
}


@pytest.mark.parametrize("model", ENCODERS)
def test_the_encoder_inside_of_a_model(model: str) -> None:
    (config, options), name = ENCODERS[model]
    made = make(model, config, options)
    encoder = find_encoder(made)
    assert type(encoder).__name__ == name if name else encoder in made.vision_model.modules()
    assert find_encoder(encoder) is encoder
    inject(made, LamConfig(rank=2))
    assert "hf_lam" in dict(encoder.named_children())


def test_attention_of_a_head_is_not_part_of_the_encoder() -> None:
    video = {"crop_size": 16, "patch_size": 8, "frames_per_clip": 4, "tubelet_size": 2, "num_pooler_layers": 1}
    options = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2}
    predictor = {"pred_hidden_size": 48, "pred_num_attention_heads": 4, "pred_num_hidden_layers": 1}
    model = make("VJEPA2ForVideoClassification", "VJEPA2Config", {**options, **video, **predictor})
    inputs = {"pixel_values_videos": torch.randn(2, 4, 3, 16, 16)}
    expected = first_output(model, inputs)
    inject(model, LamConfig(rank=2))
    sent = [
        path
        for path, module in model.named_modules()
        if getattr(getattr(module, "config", None), "_attn_implementation_internal", None) == DISPATCH
    ]
    assert sent == [f"vjepa2.encoder.layer.{number}.attention" for number in range(2)]
    assert max_difference(first_output(model, inputs), expected) < 1e-5


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (("CLIPModel", "CLIPConfig", TOWERS), r"inject\(model.text_model, .*inject\(model.vision_model, "),
        (("WhisperModel", "WhisperConfig", WHISPER), r"decoder.*inject\(model.get_encoder\(\)"),
        (("BartModel", "BartConfig", SEQ2SEQ), r"decoder.*inject\(model.get_encoder\(\)"),
        (("BartForSequenceClassification", "BartConfig", SEQ2SEQ), r"decoder.*inject\(model.get_encoder\(\)"),
        (("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 1, "n_head": 4}), "causal decoder with a cache"),
        (("DebertaV2Model", "DebertaV2Config", TEXT), "DisentangledSelfAttention of DebertaV2Model computes its"),
        (("LongformerModel", "LongformerConfig", {**TEXT, "attention_window": 4}), "computes its attention itself"),
        (
            ("SwinModel", "SwinConfig", {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1, 1]}),
            r"attends inside windows of the image \(window_size=7\)",
        ),
        (("ResNetModel", "ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]}), "no.*attention"),
        (("Blip2QFormerModel", "Blip2QFormerConfig", {**TEXT, "encoder_hidden_size": 32}), "self-attention modules"),
    ],
)
def test_the_reason_why_a_model_has_no_place_for_mechanisms(host: tuple[str, str, Any], words: str) -> None:
    model = make(*host)
    with pytest.raises(ValueError, match=words):
        inject(model, LamConfig(rank=2))
    assert_no_trace(model)


def test_what_a_refusal_says_to_do_works() -> None:
    model = make("WhisperModel", "WhisperConfig", WHISPER)
    inputs = {"input_features": torch.randn(2, 8, 20), "decoder_input_ids": torch.tensor([[1, 5], [1, 6]])}
    expected = first_output(model, inputs)
    inject(model.get_encoder(), LamConfig(rank=2))
    assert max_difference(first_output(model, inputs), expected) < 1e-5
    remove(model)
    clip = make("CLIPModel", "CLIPConfig", TOWERS)
    both = {**read(), "pixel_values": torch.randn(2, 3, 16, 16)}
    similarity = clip(**both).logits_per_image
    inject(clip.text_model, LamConfig(rank=2))
    inject(clip.vision_model, LamConfig(rank=2))
    assert max_difference(clip(**both).logits_per_image, similarity) < 1e-5


# --- what attention functions are given ------------------------------------------------------------------------------


def test_soft_limits_are_refused_where_there_are_any() -> None:
    video = {**PICTURES, "num_frames": 4, "tubelet_size": [1, 4, 4], "num_spatial_layers": 2, "num_temporal_layers": 2}
    with pytest.raises(ValueError, match=r"gives softcap=50.0 to its attention function"):
        inject(make("VideoPrismVisionModel", "VideoPrismVisionConfig", video), LamConfig(rank=2))


def test_packed_pictures_are_refused_and_others_served() -> None:
    model = make("RadioModel", "RadioConfig", PICTURES)
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16)}
    packed = {"pixel_values": torch.randn(8, 3 * 4 * 4), "image_grid_hw": torch.tensor([[2, 2], [2, 2]])}
    expected = first_output(model, inputs)
    model(**packed)
    inject(model, LamConfig(rank=2))
    assert max_difference(first_output(model, inputs), expected) < 1e-5
    with pytest.raises(ValueError, match=r"RadioAttention attends piece by piece \(\d+ of \d+ tokens"):
        model(**packed)


def test_attention_in_pieces_is_refused() -> None:
    from hf_lam.modeling.attention_pass_hf_lam import AttentionCall, ForwardPass

    model = inject(make("BertModel", "BertConfig", TEXT), LamConfig(rank=2))
    call = AttentionCall(ForwardPass(injection_of(model), "auto"), 0, torch.randn(1, 8, 32))
    piece = torch.randn(1, 4, 5, 8)
    with pytest.raises(ValueError, match=r"BertModel attends piece by piece \(5 of 8 tokens"):
        call.attend(model, piece, piece, piece, None)


def test_layers_of_another_input_width_take_what_does_not_read_it() -> None:
    options = {**TEXT, "embedding_size": 32, "true_hidden_size": 16, "intra_bottleneck_size": 16}
    model = make("MobileBertModel", "MobileBertConfig", options)
    for config in (LamConfig(rank=2), SttConfig(grid=[12], prefix_tokens=0)):
        with pytest.raises(ValueError, match=r"hidden_size=32 features, but the attention of MobileBertModel gets 16"):
            inject(model, config)
        assert_no_trace(model)
    expected = first_output(model, read())
    inject(model, spans(12, "full"))
    assert max_difference(first_output(model, read()), expected) < 1e-5


# --- layers that are left out at random ------------------------------------------------------------------------------


@pytest.mark.parametrize("configs", [(LamConfig(rank=2, scope="shared"),), (LamConfig(rank=2, source="embeddings"),)])
@pytest.mark.parametrize(
    ("model", "config", "options"),
    [
        ("Wav2Vec2Model", "Wav2Vec2Config", {"layerdrop": 0.5}),
        ("HubertModel", "HubertConfig", {"layerdrop": 0.5}),
        ("Wav2Vec2Model", "Wav2Vec2Config", {"layerdrop": 0.5, "do_stable_layer_norm": True}),
    ],
)
def test_layers_that_are_left_out_at_random(model: str, config: str, options: Any, configs: Any) -> None:
    made = make(model, config, {**SPEECH, **options, "num_hidden_layers": 4, "apply_spec_augment": False})
    inject(made, *configs)
    perturb_mechanisms(made)
    made.train()
    outputs = set()
    for seed in range(6):
        torch.manual_seed(seed)
        output = made(input_values=torch.linspace(-1, 1, 800).view(2, 400))[0]
        output.square().sum().backward()
        outputs.add(round(output.abs().sum().item(), 3))
    assert len(outputs) > 1
    assert all(isinstance(module, nn.Module) for module in injection_of(made).layers)


@pytest.mark.parametrize(
    ("model", "config", "options", "reason"),
    [
        ("Wav2Vec2Model", "Wav2Vec2Config", SPEECH, r"layerdrop=0\.1; with 0 it runs all"),
        (
            "WhisperForAudioClassification",
            "WhisperConfig",
            {**WHISPER, "encoder_layerdrop": 0.2},
            r"encoder_layerdrop=0\.2",
        ),
    ],
)
def test_tokens_are_not_appended_where_the_first_and_the_last_layer_may_be_left_out(
    model: str, config: str, options: Any, reason: str
) -> None:
    """Without the last layer they would stay in the output."""
    made = make(model, config, options)
    with pytest.raises(ValueError, match=rf"leaves out layers at random in training \({reason}.*Leave bottleneck"):
        inject(made, spans(10, "self", bottleneck_tokens=2))
    assert_no_trace(made)


# --- tokens that are appended ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("collects_first", [True, False])
@pytest.mark.parametrize("host", ["ViT", "Bert"])
def test_hidden_states_are_those_of_the_tokens(host: str, collects_first: bool) -> None:
    """Whether transformers has put its own hooks on the layers before or after."""
    if host == "ViT":
        options, inputs = {**PICTURES, "image_size": 16, "patch_size": 4}, {"pixel_values": torch.randn(2, 3, 16, 16)}
    else:
        options, inputs = TEXT, read(17)
    model = make(f"{host}Model", f"{host}Config", options)
    if collects_first:
        model(**inputs, output_hidden_states=True)
    inject(model, spans(17, "self", bottleneck_tokens=2))
    output = model(**inputs, output_hidden_states=True)
    assert {states.shape[1] for states in output.hidden_states} == {17}
    assert torch.equal(output[0], model(**inputs)[0])


@pytest.mark.parametrize("collects_first", [True, False])
def test_a_head_that_weighs_the_layers(collects_first: bool) -> None:
    options = {**SPEECH, "layerdrop": 0.0, "use_weighted_layer_sum": True, "classifier_proj_size": 16}
    model = make("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", options)
    inputs = {"input_values": torch.linspace(-1, 1, 800).view(2, 400)}
    if collects_first:
        model(**inputs)
    inject(model, spans(18, "self", bottleneck_tokens=2))
    hidden_states = model.wav2vec2(**inputs, output_hidden_states=True).hidden_states
    assert {states.shape[1] for states in hidden_states} == {18}
    model(**inputs).logits.sum().backward()
    assert injection_of(model.wav2vec2).base.hf_lam.locomt.bottleneck.grad.abs().sum() > 0
