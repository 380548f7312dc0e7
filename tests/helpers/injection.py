"""Models with mechanisms, and that nothing is left of them."""

from __future__ import annotations

from torch import nn
from transformers import (
    PreTrainedModel,
)

from helpers.hosts import (
    make_host,
    mechanisms,
    perturb_mechanisms,
)
from hf_lam import (
    inject,
)


def assert_no_trace(model: nn.Module) -> None:
    assert not any("hf_lam" in key for key in model.state_dict())
    assert not any("hf_lam" in key for module in model.modules() for key in module.__dict__)
    assert not any("_init_weights" in module.__dict__ or "forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def injected(host: str, name: str) -> PreTrainedModel:
    """A host with mechanisms that are not the identity."""
    model = inject(make_host(host), *mechanisms(name, host))
    perturb_mechanisms(model)
    return model
