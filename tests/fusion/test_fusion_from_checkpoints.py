"""HfLamFusionModel.from_modality_pretrained: where its parts start from, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertForSequenceClassification,
    BertModel,
    BigBirdModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    DistilBertConfig,
    DistilBertModel,
    ElectraModel,
    MLCDVisionModel,
    PreTrainedModel,
    RoFormerModel,
    SiglipVisionModel,
    ViTForImageClassification,
    ViTModel,
)
from transformers.models.bert.modeling_bert import BertLayer, BertSelfAttention

import hf_lam
from helpers.fusion_models import (
    HOSTS,
    INPUT_NAMES,
    lacking,
    make_fusion_inputs,
)
from helpers.hosts import make_host, make_inputs, make_model, max_difference
from hf_lam import HfLamFusionForSequenceClassification, HfLamFusionModel, LamConfig

CLIP_SIZES: dict[str, int] = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4}
TINY_CLIP: dict[str, Any] = {
    "text_config": {**CLIP_SIZES, "num_hidden_layers": 1, "vocab_size": 99},
    "vision_config": {**CLIP_SIZES, "num_hidden_layers": 1, "image_size": 16, "patch_size": 4},
}
OTHERS: dict[str, Callable[[], PreTrainedModel]] = {
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=99, max_position_embeddings=40, dim=32, n_layers=3, n_heads=4, hidden_dim=37)
    ),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**CLIP_SIZES, num_hidden_layers=3, image_size=16, patch_size=4)),
    "dinov2": lambda: Dinov2Model(
        Dinov2Config(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4)
    ),
}


def backbone(host: str) -> PreTrainedModel:
    """A tiny encoder with random weights and sharp attention."""
    if host not in OTHERS:
        options = {"use_mean_pooling": False} if host == "videomae" else {}
        return make_host(host, initializer_range=0.2, **options)
    torch.manual_seed(0)
    model = OTHERS[host]().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def modality_of(host: str) -> str:
    return {"videomae": "video", "ast": "audio"}.get(host, "text" if "bert" in host else "image")


def inputs_of(host: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the encoder takes, and what a fusion model with it takes."""
    name = modality_of(host)
    theirs = make_inputs(HOSTS[name])
    return theirs, (theirs if name == "text" else {INPUT_NAMES[name]: next(iter(theirs.values()))})


@pytest.mark.parametrize("host", ["bert", "roberta", "distilbert", "vit", "deit", "clip", "dinov2", "videomae", "ast"])
def test_one_modality_without_fusion_layers_is_its_backbone(host: str) -> None:
    source = backbone(host)
    model = HfLamFusionModel.from_modality_pretrained(**{modality_of(host): source}, baseline="late")
    theirs, ours = inputs_of(host)
    outputs = model(**ours)
    assert torch.equal(outputs.last_hidden_state, source(**theirs).last_hidden_state)
    assert [name for name, _ in model.named_parameters() if "pooler" in name or "mask_token" in name] == []
    outputs.pooler_output.square().sum().backward()
    assert lacking(model) == []


@pytest.mark.parametrize(
    ("host", "fusion_layers"),
    [
        *((host, 2) for host in ("bert", "roberta", "distilbert", "vit", "deit", "videomae", "ast")),
        *((host, layers) for host in ("bert", "vit") for layers in (1, 3)),
    ],
)
def test_fusion_layers_continue_a_checkpoint(host: str, fusion_layers: int) -> None:
    source = backbone(host)
    name = modality_of(host)
    model = HfLamFusionModel.from_modality_pretrained(
        **{name: source}, own_layers={name: 3 - fusion_layers}, fusion_from=name, num_hidden_layers=fusion_layers
    )
    assert model.modality_model(name).config.num_hidden_layers == 3 - fusion_layers
    theirs, ours = inputs_of(host)
    expected = source(**theirs).last_hidden_state
    assert max_difference(model(**ours).last_hidden_state, expected) < 1e-5
    model(**ours).last_hidden_state.square().sum().backward()
    assert lacking(model) == []


def test_clip_continues_with_the_norm_it_pools_with() -> None:
    source = backbone("clip")
    model = HfLamFusionModel.from_modality_pretrained(
        image=source, own_layers={"image": 1}, fusion_from="image", num_hidden_layers=2
    )
    assert model.config.hidden_act == "quick_gelu"
    theirs, ours = inputs_of("clip")
    assert max_difference(model(**ours).pooler_output, source(**theirs).pooler_output) < 1e-5


def test_fusion_layers_take_the_activation_of_the_checkpoint() -> None:
    for source in (make_host("vit", hidden_act="relu"), make_host("bert", hidden_act="relu")):
        name = modality_of(source.config.model_type)
        model = HfLamFusionModel.from_modality_pretrained(**{name: source}, fusion_from=name, num_hidden_layers=1)
        assert model.config.hidden_act == "relu"
    config = DistilBertConfig(vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=37, activation="relu")
    model = HfLamFusionModel.from_modality_pretrained(
        text=DistilBertModel(config), fusion_from="text", num_hidden_layers=1
    )
    assert (model.config.hidden_act, model.config.intermediate_size) == ("relu", 37)


def test_fusion_from_takes_the_last_layers_beside_other_modalities() -> None:
    text, image = backbone("bert"), backbone("vit")
    for source, name, first in ((text, "text", "attention.self.query"), (image, "image", "attention.q_proj")):
        model = HfLamFusionForSequenceClassification.from_modality_pretrained(
            text=text, image=image, fusion_from=name, num_hidden_layers=2, own_layers={"text": 1}, hf_lam=LamConfig()
        )
        assert model.config.norm_first == (name == "image")
        layers = [module for path, module in source.named_modules() if path.rpartition(".")[0].endswith("layer")]
        layers = layers or list(source.layers)
        for ours, theirs in zip(model.fusion.encoder.layers, layers[1:], strict=True):
            assert torch.equal(ours.attention.q_proj.weight, theirs.get_submodule(first).weight)
        assert model.fusion.text_model.config.num_hidden_layers == 1
        assert len(model.fusion.text_model.encoder.layer) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image": 3}, TypeError, "image must be a transformers model, a folder or a Hub id, got int"),
        ({"own_layers": {"text": 4}}, ValueError, r"own_layers\['text'\]=4.*from 0 to 3"),
        ({"own_layers": {"text": True}}, ValueError, r"own_layers\['text'\]=True"),
        ({"own_layers": {"audio": 1}}, ValueError, r"own_layers\['audio'\]=1.*audio checkpoint.*not given"),
        ({"fusion_from": "audio"}, ValueError, r"fusion_from='audio' must be one of.*\['text'\]"),
        ({"fusion_from": "text", "num_hidden_layers": 4}, ValueError, "'text' has 3 layers, but there are 4"),
        (
            {"fusion_from": "text", "num_hidden_layers": 1, "hidden_size": 64},
            ValueError,
            r"cannot start from the text.*\(64, 64\).*\(32, 32\)",
        ),
        ({"image_revision": "main"}, ValueError, r"options \['revision'\] were given for image"),
        ({"text_revision": "main"}, ValueError, r"\['revision'\] have no meaning for text"),
        ({"baseline": "half"}, ValueError, "baseline must be one of"),
        ({"audio": make_host("bert")}, ValueError, "audio_config is for BertModel"),
        ({"image": make_host("vit").half()}, ValueError, r"different dtypes.*'image': torch\.float16.*dtype="),
        ({"num_hidden_layer": 1}, TypeError, "no option num_hidden_layer"),
        ({"depth": make_host("vit")}, TypeError, "no option depth"),
        ({"text": hf_lam.inject(make_host("bert"), LamConfig())}, ValueError, "text model has hf_lam mechanisms"),
        ({"video": CLIPModel(CLIPConfig(**TINY_CLIP))}, ValueError, "video_config is for CLIPVisionModel"),
        ({"audio": CLIPModel(CLIPConfig(**TINY_CLIP))}, ValueError, "audio_config is a CLIPConfig without"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        HfLamFusionModel.from_modality_pretrained(**{"text": make_host("bert"), **options})


def test_layers_with_other_parts_cannot_become_fusion_layers() -> None:
    with pytest.raises(ValueError, match=r"layers of Dinov2Model cannot become fusion layers.*fusion_from='image'"):
        HfLamFusionModel.from_modality_pretrained(image=backbone("dinov2"), fusion_from="image", num_hidden_layers=1)


# --- layers that look alike ------------------------------------------------------------------------------------------

_TEXT: dict[str, Any] = {"vocab_size": 99, "max_position_embeddings": 40}
_IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 4}


def untrained(model_class: Any, **options: Any) -> Any:
    """A model as it starts, with next to uniform attention."""
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    torch.manual_seed(0)
    return model_class(model_class.config_class(**{**sizes, **options}))


class ScaledResiduals(BertLayer):
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(0.9 * hidden_states, *args, **kwargs)


class BiasByDistance(BertSelfAttention):
    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        places = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        bias = -0.1 * (places[:, None] - places).abs().to(hidden_states.dtype)[None, None]
        return super().forward(hidden_states, bias, **kwargs)


class SandwichedNorm(BertLayer):
    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        return nn.functional.layer_norm(super().feed_forward_chunk(attention_output), (32,)).tanh()


class GatedActivation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


def changed(part: str, kind: type, layer: int = 1) -> Any:
    """A BERT one of whose layers, or a part of it, is of another class with the same weights."""
    model = untrained(BertModel, **_TEXT)
    model.encoder.layer[layer].get_submodule(part).__class__ = kind
    return model


def gated() -> Any:
    model = untrained(BertModel, **_TEXT)
    model.encoder.layer[1].intermediate.intermediate_act_fn = GatedActivation()
    return model


UNLIKE: dict[str, tuple[Callable[[], Any], str]] = {
    "causal": (lambda: untrained(CLIPTextModel, **_TEXT), "computes something else"),
    "rotary": (lambda: untrained(RoFormerModel, **_TEXT), "computes something else"),
    "rotary, values too": (lambda: untrained(RoFormerModel, **_TEXT, rotary_value=True), "computes something else"),
    "rotary image": (lambda: untrained(MLCDVisionModel, **_IMAGE), "computes something else"),
    "sparse": (lambda: untrained(BigBirdModel, **_TEXT), "sees a part of a long sequence"),
    "scaled residuals": (lambda: changed("", ScaledResiduals), "computes something else"),
    "bias by distance": (lambda: changed("attention.self", BiasByDistance), "computes something else"),
    "one more norm": (lambda: changed("", SandwichedNorm), "computes something else"),
    "another activation": (gated, "computes something else"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_layers_that_compute_something_else_are_refused(name: str) -> None:
    make, message = UNLIKE[name]
    source = make().train()
    kind = "text" if source.main_input_name == "input_ids" else "image"
    before = copy.deepcopy(source.state_dict())
    random = torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"fusion_from='{kind}'.*{message}"):
        HfLamFusionModel.from_modality_pretrained(**{kind: source}, fusion_from=kind, num_hidden_layers=1)
    assert all(module.training and not module._forward_pre_hooks for module in source.modules())
    assert all(torch.equal(before[key], tensor) for key, tensor in source.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_only_the_layers_that_are_taken_must_be_alike() -> None:
    source = changed("", ScaledResiduals, layer=0)
    HfLamFusionModel.from_modality_pretrained(text=source, fusion_from="text", num_hidden_layers=1)
    with pytest.raises(ValueError, match="layer 0 of BertModel computes something else"):
        HfLamFusionModel.from_modality_pretrained(text=source, fusion_from="text", num_hidden_layers=2)


ALIKE: dict[str, Callable[[], Any]] = {
    "electra": lambda: untrained(ElectraModel, **_TEXT, embedding_size=32),
    "big_bird": lambda: untrained(BigBirdModel, **_TEXT, attention_type="original_full"),
    "siglip": lambda: untrained(SiglipVisionModel, **_IMAGE),
    "eager": lambda: untrained(BertModel, **_TEXT, attn_implementation="eager"),
    "half": lambda: untrained(BertModel, **_TEXT).bfloat16(),
    "relu": lambda: untrained(ViTModel, **_IMAGE, hidden_act="relu", layer_norm_eps=1e-3),
    "trains": lambda: untrained(ViTModel, **_IMAGE, hidden_dropout_prob=0.3).train(),
}


@pytest.mark.parametrize("name", ALIKE)
def test_layers_that_compute_the_same_are_taken(name: str) -> None:
    source = ALIKE[name]()
    kind = "text" if source.main_input_name == "input_ids" else "image"
    HfLamFusionModel.from_modality_pretrained(**{kind: source}, fusion_from=kind, num_hidden_layers=2)


def test_other_options_than_those_of_the_checkpoint_are_ones_own() -> None:
    model = HfLamFusionModel.from_modality_pretrained(
        text=untrained(BertModel, **_TEXT), fusion_from="text", num_hidden_layers=1, hidden_act="relu"
    )
    assert model.config.hidden_act == "relu"


def test_no_modality_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one modality"):
        HfLamFusionModel.from_modality_pretrained()


def test_folders_loaded_models_and_task_models_give_the_same(tmp_path: Path) -> None:
    text = make_model(BertForSequenceClassification, "bert")
    image = make_model(ViTForImageClassification, "vit")
    text.save_pretrained(tmp_path / "text")
    image.save_pretrained(tmp_path / "image")
    inputs = make_fusion_inputs(("text", "image"))
    outputs = [
        HfLamFusionModel.from_modality_pretrained(*sources, baseline="late")(**inputs).last_hidden_state
        for sources in (
            (text, image),
            (text.base_model, image.base_model),
            (str(tmp_path / "text"), tmp_path / "image"),
        )
    ]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    expected = text.bert(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    assert torch.equal(outputs[0][:, :11], expected)


def test_options_with_the_name_of_a_modality_reach_its_loading(tmp_path: Path) -> None:
    make_host("bert").save_pretrained(tmp_path)
    model = HfLamFusionModel.from_modality_pretrained(text=tmp_path, text_dtype=torch.bfloat16, num_hidden_layers=1)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with pytest.raises((OSError, ValueError), match="model_type"):  # no config.json in that folder
        HfLamFusionModel.from_modality_pretrained(text=tmp_path, text_subfolder="nothing")
    with pytest.raises(TypeError, match="wavelets"):
        HfLamFusionModel.from_modality_pretrained(text=tmp_path, text_wavelets=3)


def test_weights_are_copied() -> None:
    source = make_host("vit").half()
    model = HfLamFusionForSequenceClassification.from_modality_pretrained(
        image=source, fusion_from="image", num_hidden_layers=3, own_layers={"image": 0}
    )
    assert not model.training and model.dtype == torch.float16
    before = [p.clone() for p in source.parameters()]
    for parameter in model.parameters():
        parameter.data.zero_()
    assert all(torch.equal(p, q) for p, q in zip(source.parameters(), before, strict=True))
    assert source.config.num_hidden_layers == 3


@pytest.mark.parametrize("host", ["bert", "vit", "clip", "ast", "dinov2"])
@pytest.mark.parametrize("fusion_layers", [0, 1])
def test_no_parameter_is_without_use(host: str, fusion_layers: int, tmp_path: Path) -> None:
    name = modality_of(host)
    model = HfLamFusionForSequenceClassification.from_modality_pretrained(
        **{name: backbone(host)}, num_hidden_layers=fusion_layers
    )
    model.save_pretrained(tmp_path)
    again = HfLamFusionForSequenceClassification.from_pretrained(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    _, ours = inputs_of(host)
    for each in (model, again):
        assert [path for path, _ in each.named_parameters() if "pooler" in path] == []
        each(**ours, labels=torch.tensor([0, 1])).loss.backward()
        assert lacking(each) == []
    assert torch.equal(model(**ours).logits, again(**ours).logits)
