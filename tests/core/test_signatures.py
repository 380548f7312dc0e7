"""The travelling classes show what the stock classes take: `inspect.signature`, `help` and completion read it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import transformers

from hf_lam.modeling import modeling_hf_lam, modeling_hf_lam_fusion
from hf_lam.modeling.configuration_hf_lam import config_class_of

FAMILIES = ("bert", "vit", "videomae", "modernbert", "dinov3_vit", "siglip", "wav2vec2", "whisper")
CLASSES = [
    *(
        getattr(modeling_hf_lam, name)
        for kind in FAMILIES
        for name in dict.fromkeys(config_class_of(kind).auto_classes.values())
    ),
    modeling_hf_lam_fusion.HfLamFusionModel,
    modeling_hf_lam_fusion.HfLamFusionForSequenceClassification,
    modeling_hf_lam_fusion.HfLamFusionForTokenClassification,
    modeling_hf_lam_fusion.HfLamFusionForEmbedding,
    modeling_hf_lam_fusion.HfLamFusionForMomentRetrieval,
    modeling_hf_lam_fusion.HfLamFusionForConditionalGeneration,
]


def arguments(function: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_arguments_of_stock(kind: Any) -> None:
    name = kind.__name__.removeprefix("HfLam")
    stock = kind.host_class or getattr(modeling_hf_lam_fusion, name)
    assert stock.__name__ == name
    for method in ("__init__", "forward"):
        assert arguments(getattr(kind, method)) == arguments(getattr(stock, method))
    assert arguments(kind) == arguments(stock)
    assert kind.__init__.__doc__ == stock.__init__.__doc__


def test_what_a_class_is_made_with_besides_its_configuration() -> None:
    assert "add_pooling_layer" in inspect.signature(modeling_hf_lam.HfLamViTModel).parameters


def test_a_class_of_ones_own() -> None:
    class Mine(modeling_hf_lam.HfLamViTModel):
        def __init__(self, config: Any, size: int = 3) -> None:
            super().__init__(config, add_pooling_layer=False)
            self.size = size

    class Same(modeling_hf_lam.HfLamViTModel):
        pass

    class MineAgain(Mine):
        pass

    assert list(inspect.signature(MineAgain).parameters) == ["config", "size"]
    assert list(inspect.signature(Mine).parameters) == ["config", "size"]
    assert arguments(Same) == arguments(transformers.ViTModel)
    config = modeling_hf_lam.HfLamViTModel.config_class(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, hf_lam={"lam": {}}
    )
    assert MineAgain(config, size=5).size == 5
    assert Mine(config).pooler is None
    assert hasattr(Same(config, use_mask_token=True), "hf_lam")
