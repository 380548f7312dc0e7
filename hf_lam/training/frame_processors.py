"""Prepares the frames of videos: an image processor, also for models that come with a video processor alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, VideoMAEImageProcessor
from transformers.utils import VIDEO_PROCESSOR_NAME, cached_file

# The video processors that do with each frame what `VideoMAEImageProcessor` does.
_LIKE_VIDEOMAE = ("VideoMAEVideoProcessor", "VJEPA2VideoProcessor")
_TAKEN = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)
_WHERE = ("cache_dir", "revision", "token")


class FrameProcessor:
    """Loads the image processor of a model, like `AutoImageProcessor`.

    V-JEPA 2 is published with a video processor, for which transformers needs torchvision. Here its options go to
    `VideoMAEImageProcessor`, which does the same without.
    """

    @staticmethod
    def from_pretrained(name: str, **options: Any) -> Any:
        """`AutoImageProcessor.from_pretrained`, also of a folder or repository with such a video processor.

        Raises:
            OSError: if there is neither.
        """
        try:
            return AutoImageProcessor.from_pretrained(name, **options)
        except OSError:
            said = _read_options(name, **{key: options[key] for key in _WHERE if key in options})
            if said.get("video_processor_type") not in _LIKE_VIDEOMAE:
                raise
        if said["video_processor_type"] == "VJEPA2VideoProcessor":
            # Whatever its file says of the size.
            crop = said.get("crop_size", 256)
            said["size"] = {"shortest_edge": int((crop if isinstance(crop, int) else crop["height"]) * 256 / 224)}
            said["crop_size"] = crop
        return VideoMAEImageProcessor(**{key: said[key] for key in _TAKEN if said.get(key) is not None})


def _read_options(name: str, **where: Any) -> dict[str, Any]:
    """Read the options in the file of a video processor; none if there is no such file."""
    try:
        path = cached_file(name, VIDEO_PROCESSOR_NAME, **where)
    except OSError:
        return {}
    return {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
