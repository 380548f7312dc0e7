"""The commands on encoders of other families, and what lies beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor, WhisperFeatureExtractor

from helpers.command_line import error_line, run_main
from helpers.families import FAMILIES, randomize

DINOV3 = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 16, "width": 16}}


def save_whisper(folder: Path) -> None:
    """As it is published: with its decoder, and names that begin with those of the whole model."""
    torch.manual_seed(0)
    config = FAMILIES["whisper"].make_config()
    randomize(transformers.WhisperForConditionalGeneration(config)).save_pretrained(folder)
    WhisperFeatureExtractor(16, 1000, hop_length=25, chunk_length=1, n_fft=50).save_pretrained(folder)


def save_speech(folder: Path) -> None:
    FAMILIES["wav2vec2"].make("CTC").save_pretrained(folder)
    (folder / "letters.json").write_text(json.dumps({x: i for i, x in enumerate(["<pad>", "<unk>", "|", *"abc"])}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "letters.json"))
    (folder / "letters.json").unlink()
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)


def save_dinov3(folder: Path) -> None:
    FAMILIES["dinov3_vit"].make().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(DINOV3))


# What is saved, the mechanism, the class, the processor, and a word of what the notes say.
CASES: dict[str, tuple[Any, str, str, str | None, str]] = {
    "whisper": (save_whisper, "stt", "HfLamWhisperEncoder", "WhisperFeatureExtractor", "WhisperForConditional"),
    "speech": (save_speech, "lam", "HfLamWav2Vec2ForCTC", "Wav2Vec2Processor", ""),
    # Its processor needs torchvision, which is not here.
    "dinov3": (save_dinov3, "locomt", "HfLamDINOv3ViTModel", None, "copied as it is"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_command(case: str, tmp_path: Path) -> None:
    save, mechanism, kind, processor, note = CASES[case]
    save(tmp_path / "stock")
    options = ["--mechanism-config", '{"max_length": 49}'] if case == "speech" else []
    code, out, err = run_main(
        "convert", tmp_path / "stock", tmp_path / "out", "--mechanism", mechanism, *options, "--json"
    )
    assert code == 0, err
    done = json.loads(out)
    assert (done["model_class"], done["processor"]) == (kind, processor)
    assert done["largest_difference"] <= 1e-5 and done["compared"] == "outputs"
    assert done["parameters_before"] + done["mechanism_parameters"] == done["parameters"]
    assert note in " ".join(done["notes"]) and bool(done["notes"]) == bool(note)
    assert "preprocessor_config.json" in done["files"] or "processor_config.json" in done["files"]
    code, out, _ = run_main("verify", tmp_path / "out", "--json")
    assert (code, json.loads(out)["findings"]) == (0, [])
    code, out, err = run_main("inspect", tmp_path / "out", "--json")
    assert code == 0, err
    assert (json.loads(out)["model_class"], json.loads(out)["inputs"]) == (kind, "example")
    for folder in ("out", "stock") if case != "speech" else ("out",):  # a stock one says no length
        code, out, err = run_main("cost", tmp_path / folder, "--json")
        assert code == 0, err
        assert len(json.loads(out)["layers"]) == 2
    code, _, err = run_main("inspect", tmp_path / "out", "--text", "a cat")
    assert code == 2 and "no text" in error_line(err)


def test_what_cannot_be_converted_says_why(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    transformers.T5EncoderModel(config).save_pretrained(tmp_path / "t5")
    code, _, err = run_main("convert", tmp_path / "t5", tmp_path / "out", "--mechanism", "lam")
    assert code == 2 and "T5" in error_line(err) and "Traceback" not in err
    assert not (tmp_path / "out").exists()
