"""The models of the demo: saved with a card and pictures, and loaded back without hf_lam."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard

from ..hub.cards import model_card
from ..hub.earlier_cards import CARD_FILE, CardContent
from .digits import Digits
from .folder import (
    LOCOMT_FOLDER,
    MAPS_PICTURE,
    MASKS_PICTURE,
    PATCH_PICTURE,
    PATCHES_PICTURE,
    SAMPLE_PICTURE,
    STT_FOLDER,
    VIEWS_PICTURE,
)
from .results import DemoRow

# The patch (row, column) whose attention is drawn on the digit.
DRAWN_PATCH = (1, 1)
# The row of the table that the model card is about.
LAM_ROW = "ViT with LAM, trained on"


def save_models(lam: Any, locomt: Any, stt: Any, digits: Digits, folder: Path, rows: list[DemoRow]) -> None:
    """Write the three models, pictures of them, and the card."""
    from ..visualization import plot_map_on_image, plot_mask_on_image, plot_masks, plot_synthetic_maps, plot_views

    for model, place in ((lam, folder), (locomt, folder / LOCOMT_FOLDER), (stt, folder / STT_FOLDER)):
        model.save_pretrained(place)
        digits.processor.save_pretrained(place)
    digits.sample.save(folder / SAMPLE_PICTURE)
    inputs = {"pixel_values": digits.test.pixel_values[:1]}
    plot_masks(lam, inputs).savefig(folder / MASKS_PICTURE)
    plot_mask_on_image(lam, inputs).savefig(folder / PATCHES_PICTURE)
    plot_views(locomt).savefig(folder / VIEWS_PICTURE)
    plot_synthetic_maps(stt, inputs).savefig(folder / MAPS_PICTURE)
    plot_map_on_image(stt, inputs, query=DRAWN_PATCH).savefig(folder / PATCH_PICTURE)
    make_card(lam, digits.processor, rows).save(folder / CARD_FILE)


def make_card(lam: Any, processor: Any, rows: list[DemoRow]) -> ModelCard:
    """The card of the model with masks; the other two models are in its folders."""
    columns = "| model | test accuracy | parameters | attention FLOPs |\n| --- | ---: | ---: | ---: |\n"
    table = columns + "\n".join(
        f"| {row.model} | {row.test_accuracy:.4f} | {row.parameters:,} | {100 * row.attention_flops:.1f} % |"
        for row in rows
    )
    reached = next(row.test_accuracy for row in rows if row.model == LAM_ROW)
    others = f"""The folder `{LOCOMT_FOLDER}` holds the same ViT with attention views in place of the masks (LoCoMT),
chosen by `hf_lam.calibrate_views`, and trained on for as many steps.

![view of every head, per layer]({VIEWS_PICTURE})

The folder `{STT_FOLDER}` holds the same ViT with synthesised attention (STT) in place of queries and keys: a mixture
of both, whose maps started from the ViT's own attention (`hf_lam.fit_synthesizers`), trained on for as many steps with
`SttAnnealingCallback`, and left to the maps alone (`hf_lam.harden`). Its attention FLOPs include making the maps; no
row's include projections.

![matrices of the synthetic maps of one test image, per layer]({MAPS_PICTURE})
![where one patch looks, per layer]({PATCH_PICTURE})"""
    content = CardContent(
        sections=[("Comparison", table), ("The other folders", others)],
        results=[
            EvalResult(
                task_type="image-classification",
                dataset_type="digits",
                dataset_name="scikit-learn's digits",
                dataset_split="test",
                metric_type="accuracy",
                metric_name="Accuracy",
                metric_value=reached,
            )
        ],
        origin="made by `hf-lam demo`: a ViT of 4 layers trained on scikit-learn's handwritten digits (8 × 8 pixels), "
        "converted with `hf_lam.convert(model, LamConfig())` and trained on",
        pictures={
            MASKS_PICTURE: "Masks of one test image, layer by layer: white is 1, where a score stays as it is.",
            PATCHES_PICTURE: "The same masks at every patch of the image, as a key.",
        },
    )
    return model_card(lam, content, name="hf-lam-demo", processor=processor)


# Runs without hf_lam: the finder comes first and refuses it, whether it is installed, installed for editing, or in the
# current folder. The code of the model can then only come from its folder.
FRESH_PROCESS = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_lam":
            raise ModuleNotFoundError("hf_lam is refused in this process", name=name)

sys.meta_path.insert(0, Refuse())
folder, pixels, logits = sys.argv[1:]

import numpy, torch
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    numpy.save(logits, model(pixel_values=torch.from_numpy(numpy.load(pixels))).logits.numpy())
assert not any(name.partition(".")[0] == "hf_lam" for name in sys.modules)
"""


def logits_in_fresh_process(folder: Path, pixel_values: torch.Tensor, scratch: Path) -> torch.Tensor:
    """The logits that a new Python process computes with the model in `folder`, without hf_lam.

    Raises:
        RuntimeError: with the process's error output, if it failed.
    """
    pixels, logits = scratch / "pixels.npy", scratch / "logits.npy"
    np.save(pixels, pixel_values.numpy())
    # A cache of its own, so that no code of an earlier run answers; and nothing may come from the Hub.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    process = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(folder), str(pixels), str(logits)],
        cwd=scratch,
        env=environment,
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        raise RuntimeError(f"the saved model did not load in a fresh process:\n{process.stderr.strip()}")
    return torch.from_numpy(np.load(logits))
