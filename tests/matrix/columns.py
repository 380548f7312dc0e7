"""Hosts and mechanisms of the table of behaviours: `HOSTS` are its rows, `MECHANISMS` its columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from helpers.door import DISTANCE, TEMPERATURE, open_door
from helpers.families import FAMILIES
from helpers.fusion_models import make_fusion, make_fusion_inputs
from helpers.hosts import make_host, make_inputs
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
    padding: whether it takes padding.
    """

    make: Callable[[], PreTrainedModel]
    inputs: Callable[[], dict[str, Any]]
    padding: bool = False


# Hosts that differ in kind; every family is in `tests/hosts/`.
HOSTS: dict[str, HostRow] = {
    "bert": HostRow(lambda: make_host("bert"), lambda: make_inputs("bert", token_types=True), padding=True),
    "vit": HostRow(lambda: make_host("vit"), lambda: make_inputs("vit")),
    "dinov2": HostRow(FAMILIES["dinov2_with_registers"].make, FAMILIES["dinov2_with_registers"].inputs),
    "videomae": HostRow(lambda: make_host("videomae"), lambda: make_inputs("videomae")),
    "fusion": HostRow(
        lambda: make_fusion(("text", "image"), head=False, perturb=False),
        lambda: make_fusion_inputs(("text", "image")),
        padding=True,
    ),
}


class MechanismColumn(NamedTuple):
    """configs: what is attached.

    changes: whether the outputs change at once.
    replaces: whether it takes the place of the scores, so that it cannot be removed.
    """

    configs: Callable[[], tuple[Any, ...]]
    changes: bool = False
    replaces: bool = False


MECHANISMS: dict[str, MechanismColumn] = {
    "lam": MechanismColumn(lambda: (LamConfig(),)),
    "lam_rank_per_head": MechanismColumn(lambda: (LamConfig(rank=3, per_head=True),)),
    "lam_shared": MechanismColumn(lambda: (LamConfig(scope="shared"),)),
    "lam_add": MechanismColumn(lambda: (LamConfig(combine="add", depth=3),)),
    "views_full": MechanismColumn(lambda: (LocomtConfig(),)),
    "views_half": MechanismColumn(lambda: (LocomtConfig(views="half"),), changes=True),
    "views_annealing": MechanismColumn(lambda: (LocomtConfig(views="half", annealing=True),)),
    "bottleneck": MechanismColumn(lambda: (LocomtConfig(views="self", bottleneck_tokens=2),), changes=True),
    "stt_mixture": MechanismColumn(lambda: (SttConfig(),)),
    "stt_dense": MechanismColumn(lambda: (SttConfig("dense"),), changes=True, replaces=True),
    "stt_random": MechanismColumn(lambda: (SttConfig("factorized_random"),), changes=True, replaces=True),
    "lam_add+views": MechanismColumn(
        lambda: (LamConfig(combine="add", rank=2, per_head=True), LocomtConfig(views="half")), changes=True
    ),
    "lam+views": MechanismColumn(lambda: (LamConfig(rank=2), LocomtConfig(views="half")), changes=True),
    "stt+lam+views": MechanismColumn(
        lambda: (SttConfig(synthesizer="random"), LamConfig(), LocomtConfig(annealing=True, views="half"))
    ),
    "stt+lam_add": MechanismColumn(lambda: (SttConfig(), LamConfig(combine="add"))),
    "head_temperature": MechanismColumn(lambda: (Examples.temperature(),)),
    "distance_bias": MechanismColumn(lambda: (Examples.distance(),)),
    "temperature+distance+lam": MechanismColumn(
        lambda: (Examples.temperature(), Examples.distance(), LamConfig(rank=2))
    ),
}
