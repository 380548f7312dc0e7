"""Hosts and mechanisms of the table of behaviours: `HOSTS` are its rows, `MECHANISMS` its columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
)

from helpers.door import DISTANCE, TEMPERATURE, open_door
from helpers.fusion_models import make_fusion, make_fusion_inputs
from helpers.hosts import SIZES, make_host, make_inputs
from hf_lam import LamConfig, LocomtConfig, SttConfig


class Examples:
    """The two mechanisms of `examples/mechanisms/`, registered while a test of the table runs."""

    temperature: Any = None
    distance: Any = None


@contextmanager
def example_mechanisms() -> Iterator[None]:
    """Register the example mechanisms, and forget them afterwards."""
    with open_door() as load_file:
        Examples.temperature = load_file(TEMPERATURE).HeadTemperatureConfig
        Examples.distance = load_file(DISTANCE).DistanceBiasConfig
        yield


class HostRow(NamedTuple):
    """make: a stock model in eval mode, all of whose parameters are random.

    inputs: a batch of two for it; padded in the second sample where the host takes padding.
    converts: whether `convert` makes an `HfLam…` model of it.
    padding: whether it takes padding.
    token_types: whether it takes token types.
    modalities: whether it is a fusion model.
    """

    make: Callable[[], PreTrainedModel]
    inputs: Callable[[], dict[str, Any]]
    converts: bool = False
    padding: bool = False
    token_types: bool = False
    modalities: bool = False


def _vision(config: Any, model_class: Any, **options: Any) -> Callable[[], PreTrainedModel]:
    def make() -> PreTrainedModel:
        torch.manual_seed(0)
        model = model_class(config(**{**SIZES, "image_size": 16, "patch_size": 4, **options})).eval()
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        return model

    return make


def _images() -> dict[str, Any]:
    return make_inputs("vit")


def _text() -> dict[str, Any]:
    return make_inputs("bert", token_types=True)


def _fusion_inputs() -> dict[str, Any]:
    return make_fusion_inputs(("text", "image"))


HOSTS: dict[str, HostRow] = {
    "bert": HostRow(lambda: make_host("bert"), _text, converts=True, padding=True, token_types=True),
    "roberta": HostRow(lambda: make_host("roberta"), lambda: make_inputs("roberta"), padding=True),
    "vit": HostRow(lambda: make_host("vit"), _images, converts=True),
    "deit": HostRow(lambda: make_host("deit"), _images),
    "clip_vision": HostRow(_vision(CLIPVisionConfig, CLIPVisionModel), _images),
    "dinov2": HostRow(_vision(Dinov2WithRegistersConfig, Dinov2WithRegistersModel, num_register_tokens=3), _images),
    "videomae": HostRow(lambda: make_host("videomae"), lambda: make_inputs("videomae"), converts=True),
    "ast": HostRow(lambda: make_host("ast"), lambda: make_inputs("ast")),
    "fusion": HostRow(
        lambda: make_fusion(("text", "image"), head=False, perturb=False),
        _fusion_inputs,
        converts=True,
        padding=True,
        modalities=True,
    ),
}

# Spans of tokens for a host without segments of its own.
SPANS = {"roberta": [["a", 4], ["b", 7]]}


class MechanismColumn(NamedTuple):
    """configs: what is attached, for a host.

    changes: whether the outputs change at once.
    replaces: whether it takes the place of the scores, so that it cannot be removed.
    """

    configs: Callable[[str], tuple[Any, ...]]
    changes: bool = False
    replaces: bool = False


def _views(**options: Any) -> Callable[[str], tuple[Any, ...]]:
    return lambda host: (LocomtConfig(segments=SPANS.get(host), **options),)


def _fixed(*configs: Any) -> Callable[[str], tuple[Any, ...]]:
    return lambda host: configs


MECHANISMS: dict[str, MechanismColumn] = {
    "lam": MechanismColumn(_fixed(LamConfig())),
    "lam_rank_per_head": MechanismColumn(_fixed(LamConfig(rank=3, per_head=True))),
    "lam_shared": MechanismColumn(_fixed(LamConfig(scope="shared"))),
    "views_full": MechanismColumn(_views()),
    "views_half": MechanismColumn(_views(views="half"), changes=True),
    "views_annealing": MechanismColumn(_views(views="half", annealing=True)),
    "bottleneck": MechanismColumn(_views(views="self", bottleneck_tokens=2), changes=True),
    "stt_mixture": MechanismColumn(_fixed(SttConfig())),
    "stt_dense": MechanismColumn(_fixed(SttConfig("dense")), changes=True, replaces=True),
    "stt_random": MechanismColumn(_fixed(SttConfig("factorized_random")), changes=True, replaces=True),
    "lam+views": MechanismColumn(
        lambda host: (LamConfig(rank=2), LocomtConfig(segments=SPANS.get(host), views="half")), changes=True
    ),
    "stt+lam+views": MechanismColumn(
        lambda host: (
            SttConfig(synthesizer="random"),
            LamConfig(),
            LocomtConfig(segments=SPANS.get(host), annealing=True, views="half"),
        )
    ),
    "head_temperature": MechanismColumn(lambda host: (Examples.temperature(),)),
    "distance_bias": MechanismColumn(lambda host: (Examples.distance(),)),
    "temperature+distance+lam": MechanismColumn(
        lambda host: (Examples.temperature(), Examples.distance(), LamConfig(rank=2))
    ),
}
