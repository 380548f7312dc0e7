"""Tiny hosts, inputs and helpers that the tests share."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    ASTConfig,
    ASTModel,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DeiTConfig,
    DeiTModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from hf_lam import LamConfig, LocomtConfig, SttConfig, mechanism_parameters
from hf_lam.modeling.hosts_hf_lam import Host, HostTokens
from hf_lam.modeling.injection_hf_lam import encoders_with, injected_encoders, injection_of, mechanism_of

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}

CONFIGS: dict[str, Any] = {
    "bert": lambda **kw: BertConfig(**{**SIZES, "vocab_size": 99, "max_position_embeddings": 40, **kw}),
    "roberta": lambda **kw: RobertaConfig(**{**SIZES, "vocab_size": 99, "max_position_embeddings": 40, **kw}),
    "vit": lambda **kw: ViTConfig(**{**SIZES, "image_size": 16, "patch_size": 4, "encoder_stride": 4, **kw}),
    "deit": lambda **kw: DeiTConfig(**{**SIZES, "image_size": 16, "patch_size": 4, **kw}),
    "videomae": lambda **kw: VideoMAEConfig(**{**SIZES, "image_size": 16, "patch_size": 8, "num_frames": 4, **kw}),
    "ast": lambda **kw: ASTConfig(
        **{
            **SIZES,
            "num_mel_bins": 16,
            "max_length": 32,
            "patch_size": 4,
            "frequency_stride": 4,
            "time_stride": 4,
            **kw,
        }
    ),
}

BASES: dict[str, type[PreTrainedModel]] = {
    "bert": BertModel,
    "roberta": RobertaModel,
    "vit": ViTModel,
    "deit": DeiTModel,
    "videomae": VideoMAEModel,
    "ast": ASTModel,
}

# Every stock class that has an HfLam class, with its host.
CONVERTIBLE: dict[type[PreTrainedModel], str] = {
    BertModel: "bert",
    BertForSequenceClassification: "bert",
    BertForTokenClassification: "bert",
    BertForQuestionAnswering: "bert",
    BertForMaskedLM: "bert",
    BertForMultipleChoice: "bert",
    ViTModel: "vit",
    ViTForImageClassification: "vit",
    ViTForMaskedImageModeling: "vit",
    VideoMAEModel: "videomae",
    VideoMAEForVideoClassification: "videomae",
}

LAM_CONFIGS: dict[str, LamConfig] = {
    "per_layer": LamConfig(),
    "per_head": LamConfig(per_head=True, bottleneck_size=5),
    "embeddings": LamConfig(source="embeddings"),
    "shared": LamConfig(scope="shared"),
    "rank": LamConfig(rank=3),
    "shared_rank_per_head": LamConfig(scope="shared", rank=2, per_head=True),
    "add": LamConfig(combine="add", per_head=True),
    "add_rank_deep": LamConfig(combine="add", rank=3, depth=4, scope="shared"),
    "non_negative_deep": LamConfig(non_negative=True, depth=3),
    "non_negative_rank": LamConfig(non_negative=True, rank=2),
}

CLS = {"length": 1, "global": True}
# Segments other than the host's own.
SEGMENTS: dict[str, list[Any]] = {
    "bert": [["cls", CLS], ["question", 4], ["answer", 6]],
    "vit": [["left", {"rectangle": [0, 0, 4, 1]}], ["right", {"rectangle": [0, 1, 4, 3]}]],
    "videomae": [["early", 3], ["late", 5]],
}
DIRECTED = [["type_0>type_1", "self", "full", "self:type_1"], ["type_1>type_0+self:type_0"] * 4, ["self"] * 4]

# Attention views, alone and with what they combine with; made by `mechanisms`.
VIEW_CONFIGS: dict[str, tuple[Any, ...]] = {
    "half": (LocomtConfig(views="half"),),
    "cross": (LocomtConfig(views="cross"),),
    "directed": (LocomtConfig(segments="token_type_ids", views=DIRECTED),),
    "explicit": (LocomtConfig(views="round_robin"),),
    "annealing": (LocomtConfig(views="half", annealing=True),),
    "bottleneck": (LocomtConfig(views="self", bottleneck_tokens=2),),
    "lam": (LamConfig(per_head=True), LocomtConfig(views="random(1)")),
    "shared_lam": (LocomtConfig(views="half"), LamConfig(scope="shared", rank=2)),
}

# Every mechanism with views on the three backbones, or where it differs; some on the others.
VIEW_CASES: list[tuple[str, str]] = [
    *((host, name) for host in ("bert", "vit", "videomae") for name in ("half", "explicit", "bottleneck")),
    ("bert", "directed"),
    ("bert", "annealing"),
    ("bert", "lam"),
    ("vit", "annealing"),
    ("vit", "shared_lam"),
    ("videomae", "annealing"),
    ("videomae", "lam"),
    ("roberta", "shared_lam"),
    ("deit", "cross"),
    ("ast", "half"),
]

# Synthesised attention: without queries and keys, …
PURE_CONFIGS: dict[str, tuple[SttConfig, ...]] = {
    "dense": (SttConfig("dense"),),
    "random": (SttConfig("random"),),
    "frozen": (SttConfig("random", frozen=True),),
    "factorized_dense": (SttConfig("factorized_dense", bottleneck_size=5),),
    "factorized_random": (SttConfig("factorized_random", rank=3),),
}
# … and mixed with dot products, alone and with what the scores of a mixture combine with.
MIXTURE_CONFIGS: dict[str, tuple[Any, ...]] = {
    "mixture": (SttConfig(),),
    "mixture_trained": (SttConfig(synthesizer="random", train_mixing=True),),
    "mixture_lam": (SttConfig(synthesizer="factorized_dense"), LamConfig(per_head=True)),
    "mixture_views": (SttConfig(synthesizer="factorized_random"), LocomtConfig(views="half")),
    "mixture_all": (
        SttConfig(synthesizer="random", frozen=True),
        LamConfig(scope="shared"),
        LocomtConfig(views="half", annealing=True),
    ),
}
STT_CONFIGS: dict[str, tuple[Any, ...]] = {**PURE_CONFIGS, **MIXTURE_CONFIGS}

# Every variant on the three backbones; on the others some.
STT_CASES: list[tuple[str, str]] = [
    *((host, name) for host in ("bert", "vit", "videomae") for name in STT_CONFIGS),
    ("roberta", "dense"),
    ("roberta", "mixture_all"),
    ("deit", "factorized_random"),
    ("deit", "mixture_views"),
    ("ast", "factorized_dense"),
    ("ast", "mixture_lam"),
]


def mechanisms(name: str, host: str) -> tuple[Any, ...]:
    """The configurations behind a name of `LAM_CONFIGS`, `VIEW_CONFIGS` or `STT_CONFIGS`."""
    if name in LAM_CONFIGS:
        return (LAM_CONFIGS[name],)
    if name in STT_CONFIGS:
        return STT_CONFIGS[name]
    if name == "explicit":
        return tuple(replace(config, segments=SEGMENTS[host]) for config in VIEW_CONFIGS[name])
    return VIEW_CONFIGS[name]


def make_model(model_class: type[PreTrainedModel], host: str, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A tiny model in eval mode, all of whose parameters are random: biases too, which start at zero otherwise."""
    # Models are made on the CPU; `torch.manual_seed` seeds every device, and takes its time.
    torch.default_generator.manual_seed(seed)
    model = model_class(CONFIGS[host](**config)).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def make_host(host: str, **config: Any) -> PreTrainedModel:
    return make_model(BASES[host], host, **config)


def host_record(tokens: HostTokens, num_layers: int = 3, num_heads: int = 4, head_size: int = 8) -> Host:
    """What a mechanism knows of an encoder with these tokens."""
    return Host(tokens.host, num_heads * head_size, num_heads, head_size, num_layers, 0.02, tokens)


def make_inputs(host: str, batch: int = 2, seed: int = 1, token_types: bool = False) -> dict[str, torch.Tensor]:
    """Inputs of a tiny host; text is right-padded in every second sample, and its token types come in any order."""
    generator = torch.Generator().manual_seed(seed)
    if host in ("bert", "roberta"):
        attention_mask = torch.ones(batch, 11, dtype=torch.long)
        attention_mask[1::2, 7:] = 0
        input_ids = torch.randint(2, 99, (batch, 11), generator=generator)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_types:
            inputs["token_type_ids"] = torch.randint(0, 2, (batch, 11), generator=generator)
        return inputs
    shape, name = {
        "vit": ((3, 16, 16), "pixel_values"),
        "deit": ((3, 16, 16), "pixel_values"),
        "videomae": ((4, 3, 16, 16), "pixel_values"),
        "ast": ((32, 16), "input_values"),
    }[host]
    return {name: torch.randn(batch, *shape, generator=generator)}


def first_output(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The first tensor a model returns: hidden states of a base, logits of a head."""
    if "MultipleChoice" in type(model).__name__:
        inputs = {name: tensor.unsqueeze(1) for name, tensor in inputs.items()}
    return model(**inputs)[0]


def perturb_mechanisms(model: nn.Module, scale: float = 0.3, seed: int = 2) -> None:
    """Move the mechanisms away from the identity, so that a test can tell whether they take part."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in mechanism_parameters(model):
        parameter.data += scale * torch.randn(parameter.shape, generator=generator).to(parameter)
    for base in injected_encoders(model):
        configs = injection_of(base).configs
        if configs.get("locomt", LocomtConfig()).annealing:
            mechanism_of(base, "locomt").penalty.fill_(2.0)
        if configs.get("stt", SttConfig("dense")).is_mixture:
            set_mixing(base, 0.4)


def set_mixing(model: nn.Module, mixing: float) -> None:
    """Put `λ` of every mixture to a value, a little less in every second head, so that heads cannot be swapped."""
    for base in encoders_with(model, "stt"):
        for synthesizer in mechanism_of(base, "stt"):
            synthesizer.mixing.data.fill_(mixing)
            synthesizer.mixing.data[1::2] *= 0.9


def max_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return (left.float() - right.float()).abs().max().item()


def data_folder(name: str) -> Path:
    """A folder of real data below `HF_LAM_DATA`, or a skip that says why."""
    root = os.environ.get("HF_LAM_DATA")
    if not root:
        pytest.skip("HF_LAM_DATA is not set: it names the folder with the real data sets")
    folder = Path(root, name)
    if not folder.is_dir():
        pytest.skip(f"HF_LAM_DATA has no {name}")
    return folder
