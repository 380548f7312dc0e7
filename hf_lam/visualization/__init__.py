"""Learned masks, attention views and synthetic maps as pictures: functions that return a matplotlib `Figure`.

[`save_pictures`] draws all that fit a model and writes them as files.
"""

from __future__ import annotations

from .attention import attention_with_and_without_mask, plot_attention, plot_attention_on_image
from .fronts import plot_front
from .heatmap import plot_picture
from .maps import plot_map_on_image, plot_synthetic_maps, synthetic_axes, synthetic_maps
from .masks import learned_masks, plot_mask_on_image, plot_masks
from .moments import plot_moments
from .pictures import save_pictures
from .views import plot_view_blocks, plot_views

__all__ = [
    "attention_with_and_without_mask",
    "learned_masks",
    "plot_attention",
    "plot_attention_on_image",
    "plot_front",
    "plot_map_on_image",
    "plot_mask_on_image",
    "plot_masks",
    "plot_moments",
    "plot_picture",
    "plot_synthetic_maps",
    "plot_view_blocks",
    "plot_views",
    "save_pictures",
    "synthetic_axes",
    "synthetic_maps",
]
