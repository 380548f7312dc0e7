"""The image processors of models for videos, which may come with a video processor alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import ViTImageProcessor

from hf_lam.training.frame_processors import FrameProcessor

PUBLISHED = {
    **{"do_center_crop": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 2},
    **{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "rescale_factor": 1 / 255},
    "size": {"shortest_edge": 292},
}


def write(folder: Path, **options: Any) -> str:
    (folder / "video_preprocessor_config.json").write_text(json.dumps({**PUBLISHED, **options}))
    return str(folder)


@pytest.mark.parametrize("crop", [112, {"height": 112, "width": 112}])
def test_a_video_processor_of_v_jepa_prepares_frames(crop: Any, tmp_path: Path) -> None:
    processor = FrameProcessor.from_pretrained(
        write(tmp_path, video_processor_type="VJEPA2VideoProcessor", crop_size=crop), token=None
    )
    video = np.full((4, 140, 200, 3), 128, np.uint8)
    values = processor(list(video), return_tensors="np")["pixel_values"][0]
    assert values.shape == (4, 3, 112, 112) and processor.size["shortest_edge"] == 128  # crop · 256 / 224
    expected = (128 / 255 - np.array(PUBLISHED["image_mean"])) / np.array(PUBLISHED["image_std"])
    np.testing.assert_allclose(values.mean(axis=(0, 2, 3)), expected, atol=1e-5)


def test_other_files_are_read_as_they_are(tmp_path: Path) -> None:
    folder = write(tmp_path, video_processor_type="VideoMAEVideoProcessor", crop_size={"height": 96, "width": 96})
    assert FrameProcessor.from_pretrained(folder).size["shortest_edge"] == 292
    write(tmp_path, video_processor_type="LlavaNextVideoVideoProcessor")
    with pytest.raises(OSError, match=r"preprocessor_config\.json"):
        FrameProcessor.from_pretrained(folder)
    ViTImageProcessor().save_pretrained(tmp_path)
    assert type(FrameProcessor.from_pretrained(folder)).__name__.startswith("ViTImageProcessor")
