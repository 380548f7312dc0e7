"""The modalities that a fusion model takes, one record for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..modeling.host_attention_hf_lam import find_encoder
from ..modeling.hosts_facts_hf_lam import is_fusion
from .names import looks_like_hub_id


@dataclass(frozen=True)
class Modality:
    """One modality of a fusion model.

    name: name of the modality.
    argument: argument that takes its values.
    encoder: the class of its encoder; None for one that is given as vectors.
    origin: the id on the Hub that the encoder's weights came from, as far as its configuration says.
    size, most: numbers in one of its vectors, and the most vectors of a sample; None with an encoder, and for no
        limit.
    """

    name: str
    argument: str
    encoder: str | None = None
    origin: str | None = None
    size: int | None = None
    most: int | None = None

    def __str__(self) -> str:
        if self.size is not None:
            return f"vectors of {self.size:,} numbers" + ("" if self.most is None else f", at most {self.most:,}")
        return f"{self.encoder}" + ("" if self.origin is None else f" of {self.origin}")


def modalities_in(model: Any) -> list[Modality]:
    """The modalities of a fusion model, in the order of its sequence; empty for any other model."""
    if not is_fusion(model.config):
        return []
    base: Any = find_encoder(model)
    found = []
    for name in model.config.modalities:
        config, argument = model.config.modality_config(name), model.config.modality_arguments(name).values
        if name in (model.config.features or ()):
            found.append(Modality(name, argument, size=config.size, most=config.max_length))
        else:
            origin = config.name_or_path or ""
            encoder = type(base.modality_model(name)).__name__
            found.append(Modality(name, argument, encoder, origin if looks_like_hub_id(origin) else None))
    return found
