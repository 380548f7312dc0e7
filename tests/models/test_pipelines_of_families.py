"""transformers' pipelines on folders of any family, where hf_lam is and where it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    ASTFeatureExtractor,
    BitImageProcessor,
    PreTrainedTokenizerFast,
    Siglip2ImageProcessor,
    VivitImageProcessor,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
    WhisperFeatureExtractor,
)

from helpers.families import FAMILIES
from helpers.processes import run_code
from hf_lam import LamConfig, convert

RATE = 1000
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat"]
CROP = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}


def words(folder: Path) -> Any:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    options = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=12, **options)


def letters(folder: Path) -> Any:
    (folder / "letters.json").write_text(json.dumps({x: i for i, x in enumerate(["<pad>", "<unk>", "|", *"abcdef"])}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "letters.json"))
    return Wav2Vec2Processor(Wav2Vec2FeatureExtractor(sampling_rate=RATE), tokenizer)


# Task, family, head, what prepares its inputs, and what the pipeline is called with.
CASES: dict[str, tuple[str, str, str | None, Any]] = {
    "text": ("text-classification", "modernbert", "SequenceClassification", words),
    "masks": ("fill-mask", "electra", "MaskedLM", words),
    "tokens": ("token-classification", "camembert", "TokenClassification", words),
    "features": ("feature-extraction", "eurobert", None, words),
    "dinov2": ("image-classification", "dinov2", "ImageClassification", lambda _: BitImageProcessor(**CROP)),
    "siglip2": (
        "image-classification",
        "siglip2_vision",
        "ImageClassification",
        lambda _: Siglip2ImageProcessor(patch_size=4, max_num_patches=16),
    ),
    "clip": ("image-feature-extraction", "clip_vision", None, lambda _: BitImageProcessor(**CROP)),
    "hubert": (
        "audio-classification",
        "hubert",
        "AudioClassification",
        lambda _: Wav2Vec2FeatureExtractor(sampling_rate=RATE),
    ),
    "whisper": (
        "audio-classification",
        "whisper",
        "AudioClassification",
        lambda _: WhisperFeatureExtractor(16, RATE, hop_length=25, chunk_length=1, n_fft=50),
    ),
    "ast": (
        "audio-classification",
        "ast",
        "AudioClassification",
        lambda _: ASTFeatureExtractor(num_mel_bins=16, max_length=32),
    ),
    "speech": ("automatic-speech-recognition", "wav2vec2", "CTC", letters),
    "video": ("video-classification", "vivit", "VideoClassification", lambda _: VivitImageProcessor(**CROP)),
}
SAMPLE = """
import json, sys
import numpy as np
from PIL import Image
from transformers import pipeline

def sample(task, folder):
    generator = np.random.default_rng(0)
    if "audio" in task or "speech" in task:
        rate = 16_000 if "ast" in folder else 1000
        return generator.normal(size=rate).astype(np.float32)
    if "image" in task:
        return Image.fromarray(generator.integers(0, 255, (20, 24, 3), dtype=np.uint8))
    if "video" in task:
        return folder + "/video.mp4"
    return "the [MASK] sat" if "mask" in task else "the cat sat"

def run(task, folder):
    made = pipeline(task, model=folder, trust_remote_code=True)
    found = made(sample(task, folder))
    return json.loads(json.dumps(found, default=float)), type(made.model).__name__
"""


def write_video(path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for index in range(8):
            pixels = np.full((32, 32, 3), 20 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def save(case: str, folder: Path) -> tuple[Path, Path]:
    """A stock model and the converted one, each with its processor."""
    task, name, head, processor = CASES[case]
    stock = FAMILIES[name].make(head)
    mechanism = LamConfig(rank=2)
    for place, model in ((folder / f"stock-{case}", stock), (folder / f"ours-{case}", convert(stock, mechanism))):
        model.save_pretrained(place)
        processor(place).save_pretrained(place)
        if task == "video-classification":
            write_video(place / "video.mp4")
    return folder / f"stock-{case}", folder / f"ours-{case}"


def assert_alike(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_alike(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_alike(ours, theirs)
    else:
        assert found == (pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else expected)


space: dict[str, Any] = {}
exec(SAMPLE, space)


@pytest.mark.parametrize("case", CASES)
def test_a_pipeline_says_what_the_stock_one_says(case: str, tmp_path: Path) -> None:
    stock, ours = save(case, tmp_path)
    expected, kind = space["run"](CASES[case][0], str(stock))
    found, our_kind = space["run"](CASES[case][0], str(ours))
    assert our_kind == f"HfLam{kind}" and expected
    assert_alike(found, expected)


@pytest.mark.slow
def test_pipelines_work_where_hf_lam_is_not(tmp_path: Path) -> None:
    folders = {case: save(case, tmp_path) for case in CASES}
    code = f"{SAMPLE}\nprint(json.dumps([run(*pair.split(':', 1)) for pair in sys.argv[1:]]))"
    pairs = [f"{CASES[case][0]}:{ours}" for case, (_, ours) in folders.items()]
    found = json.loads(run_code(code, *pairs, hf_lam=False).splitlines()[-1])
    for (case, (stock, _)), (ours, kind) in zip(folders.items(), found, strict=True):
        expected, name = space["run"](CASES[case][0], str(stock))
        assert kind == f"HfLam{name}"
        assert_alike(ours, expected)
