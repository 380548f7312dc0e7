"""Images of another size than an encoder's processor makes, in run_multimodal_classification.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from helpers.scripts import script_module
from hf_lam.training.fusion_loading import load_fusion_processor


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with script_module("run_multimodal_classification") as module:
        yield module


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    options = {"do_resize": True, "size": {"shortest_edge": 64}, "do_center_crop": True, "do_rescale": True}
    options |= {"crop_size": {"height": 56, "width": 56}, "image_processor_type": "BitImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(options))
    return folder


@pytest.mark.parametrize(("size", "expected"), [(None, 56), (84, 84)])
def test_images_have_the_size_that_was_asked_for(
    script: Any, encoder: Path, tmp_path: Path, size: int | None, expected: int
) -> None:
    arguments = script.FusionArguments(image_model=str(encoder), image_size=size)
    config = SimpleNamespace(features=None, modalities=["image"])
    processor = load_fusion_processor(arguments, config, arguments.encoders(), resizing=arguments.resizing())
    image = Image.new("RGB", (40, 100), (9, 9, 9))
    pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, expected, expected)
    # What is saved with the model makes them alike.
    processor.save_pretrained(tmp_path)
    loaded = type(processor).from_pretrained(tmp_path)
    assert torch.equal(loaded(images=[image], return_tensors="pt")["pixel_values"], pixels)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text_model": "bert", "image_size": 84}, "--image_size is for the images of an --image_model"),
        ({"model_name_or_path": "saved", "image_size": 84}, "--image_size is for the images of an --image_model"),
        ({"image_model": "vit", "image_size": 0}, "--image_size must be at least 1, got 0"),
    ],
)
def test_a_size_without_images_is_refused(script: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        script.FusionArguments(**options)
