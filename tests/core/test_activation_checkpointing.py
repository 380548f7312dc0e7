"""What transformers 5.24 added to checkpointing: only some of the layers."""

from typing import Any

import pytest
import torch
from transformers import BertModel, PreTrainedModel, ViTModel

from helpers.checkpointing import checkpoint_activations
from helpers.hosts import make_inputs
from helpers.lam_models import make_lam
from hf_lam import LamConfig, SttConfig

pytestmark = pytest.mark.skipif(
    not hasattr(PreTrainedModel, "activation_checkpointing_enable"), reason="transformers before 5.24"
)


@pytest.mark.parametrize("options", [{"every_n_layers": 2}, {"every_n_layers": 7}])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("lam", [LamConfig(scope="shared"), LamConfig(source="embeddings"), SttConfig()])
def test_gradients_stay(lam: Any, use_reentrant: bool, options: dict[str, Any]) -> None:
    stock_class, host = (BertModel, "bert") if isinstance(lam, LamConfig) else (ViTModel, "vit")
    found = []
    for is_checkpointed in (False, True):
        model = make_lam(stock_class, host, lam).double().train()
        if is_checkpointed:
            checkpoint_activations(model, use_reentrant, **options)
        inputs = {name: x.double() if x.is_floating_point() else x for name, x in make_inputs(host).items()}
        # Two forward passes, one backward.
        sum(model(**inputs).last_hidden_state.square().sum() for _ in range(2)).backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in found[0].items():
        assert (gradient is None) == (found[1][name] is None), name
        if gradient is not None:
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-9, msg=name)
