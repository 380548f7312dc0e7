"""The code on a card runs as it stands, and prints something."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    ASTFeatureExtractor,
    BertTokenizer,
    BitImageProcessor,
    Siglip2ImageProcessor,
    VideoMAEImageProcessor,
    ViTImageProcessor,
    VivitImageProcessor,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
    WhisperFeatureExtractor,
)
from transformers.pipelines import SUPPORTED_TASKS

from helpers.families import FAMILIES
from helpers.fusion_encoders import ENCODERS
from helpers.fusion_heads import decoder_config
from helpers.fusion_models import make_fusion
from helpers.fusion_vectors import FEATURES, make_vector_fusion
from helpers.lam_models import make_lam
from hf_lam import (
    HfLamFusionConfig,
    HfLamFusionForConditionalGeneration,
    HfLamFusionForEmbedding,
    HfLamFusionForMomentRetrieval,
    HfLamFusionForSequenceClassification,
    HfLamFusionForTokenClassification,
    HfLamFusionModel,
    HfLamFusionProcessor,
    LamConfig,
    convert,
)
from hf_lam.hub.cards import model_card, task_of
from hf_lam.hub.earlier_cards import CardContent, read_card
from hf_lam.hub.folders import load_processor
from hf_lam.modeling.configuration_hf_lam import HfLamBertConfig, HfLamVideoMAEConfig, HfLamViTConfig

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "sat", "on", "the", "mat", "."]
CLASSES = {
    name.removeprefix("HfLam"): (host, auto)
    for host, config in (("bert", HfLamBertConfig), ("vit", HfLamViTConfig), ("videomae", HfLamVideoMAEConfig))
    for auto, name in config.auto_classes.items()
}
# Modalities, and whether there is a head.
FUSION = {"text image": True, "video audio": False}


def tokenizer() -> Any:
    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})


def make(case: str) -> tuple[Any, Any]:
    """A model and its processor."""
    image = ViTImageProcessor(size={"height": 16, "width": 16})
    video = VideoMAEImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    if case in FUSION:
        modalities = case.split()
        parts = {
            "text": {"tokenizer": tokenizer()},
            "image": {"image_processor": image},
            "video": {"video_processor": video},
            "audio": {"feature_extractor": ASTFeatureExtractor(num_mel_bins=16, max_length=32)},
        }
        processor = HfLamFusionProcessor(**{k: v for name in modalities for k, v in parts[name].items()})
        return make_fusion(modalities, head=FUSION[case]), processor
    host = CLASSES[case][0]
    processors = {"bert": tokenizer, "vit": lambda: image, "videomae": lambda: video}
    return make_lam(getattr(transformers, case), host), processors[host]()


def run_snippet(card: str) -> str:
    """What the first block of Python on a card prints."""
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]  # type: ignore[index]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "card", "exec"), {})
    return out.getvalue().strip()


@pytest.mark.parametrize("has_processor", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [*CLASSES, *FUSION])
def test_it_runs_and_prints(case: str, has_processor: bool, tmp_path: Path) -> None:
    model, processor = make(case)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    card = model_card(model, name="m", repository=str(tmp_path), processor=processor if has_processor else None)
    # Pretraining needs to be told which patches are hidden: its card only loads it.
    assert bool(run_snippet(str(card))) == (case != "VideoMAEForPreTraining"), str(card)


def speech_tokenizer(folder: Path) -> Any:
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(["<pad>", "<unk>", "|", *"abc"])}))
    return Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))


SIZE = {"size": {"height": 16, "width": 16}}
# Of single families: what makes their inputs, for a tiny model of `FAMILIES`.
PROCESSORS: dict[str, Any] = {
    "modernbert": lambda folder: tokenizer(),
    "dinov2": lambda folder: BitImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    "siglip2_vision": lambda folder: Siglip2ImageProcessor(patch_size=4, max_num_patches=16),
    "vivit": lambda folder: VivitImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    "ast": lambda folder: ASTFeatureExtractor(num_mel_bins=16, max_length=32),
    "wav2vec2": lambda folder: Wav2Vec2FeatureExtractor(),
    "whisper": lambda folder: WhisperFeatureExtractor(feature_size=16, chunk_length=1, n_fft=400, hop_length=400),
}
OF_FAMILIES = [
    *((name, None) for name in PROCESSORS),
    ("modernbert", "MaskedLM"),
    ("dinov2", "ImageClassification"),
    ("siglip2_vision", "ImageClassification"),
    ("whisper", "AudioClassification"),
    ("wav2vec2", "AudioClassification"),
    ("wav2vec2", "CTC"),
    ("wav2vec2", "AudioFrameClassification"),
]

QUICK_FAMILIES = (
    ("modernbert", None),
    ("siglip2_vision", "ImageClassification"),
    ("wav2vec2", "CTC"),
    ("vjepa2", None),
)


@pytest.mark.parametrize("has_processor", [True, False])
@pytest.mark.parametrize(
    ("name", "head"),
    [
        pytest.param(*case, marks=[] if case in QUICK_FAMILIES else pytest.mark.slow)
        for case in [*OF_FAMILIES, ("vjepa2", None), ("dinov3_vit", None)]
    ],
)
def test_it_runs_and_prints_for_any_family(name: str, head: str | None, has_processor: bool, tmp_path: Path) -> None:
    if has_processor == (name not in PROCESSORS):
        pytest.skip("one of its own needs torchvision, and without a processor it is all the same")
    mechanism = LamConfig(max_length=1000) if name == "wav2vec2" else LamConfig(rank=2)
    stock = FAMILIES[name].make(head)
    model = convert(stock.to(torch.bfloat16) if name == "dinov2" else stock, mechanism)
    model.save_pretrained(tmp_path)
    processor = PROCESSORS[name](tmp_path) if has_processor else None
    if head == "CTC" and processor is not None:
        processor = Wav2Vec2Processor(processor, speech_tokenizer(tmp_path))
    if processor is not None:
        processor.save_pretrained(tmp_path)
        assert type(load_processor(tmp_path, model)) is type(processor)
    card = model_card(model, name="m", repository=str(tmp_path), processor=processor)
    assert run_snippet(str(card)), str(card)
    assert ("processor = " in str(card)) == has_processor


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_labels": 2, "id2label": {0: "negative", 1: "positive"}}, r"negative|positive"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, r"\[('LABEL_\d'(, )?)*\]"),
        ({"num_labels": 1, "problem_type": "regression"}, r"\[-?\d+\.\d+(e-\d+)?\]"),
        ({"num_labels": 2, "problem_type": "regression"}, r"\[-?\d\S+, -?\d\S+\]"),
    ],
)
def test_what_a_classifier_says(config: dict[str, Any], expected: str, tmp_path: Path) -> None:
    model = make_lam(transformers.BertForSequenceClassification, "bert", **config)
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    card = str(model_card(model, name="m", repository=str(tmp_path), processor=tokenizer()))
    assert re.fullmatch(expected, run_snippet(card))


@pytest.mark.parametrize("case", [*CLASSES, *FUSION])
def test_a_task_is_one_that_the_model_loads_for(case: str) -> None:
    model, _ = make(case)
    task = task_of(model)
    if case in FUSION or case == "VideoMAEModel" or case.endswith(("ForPreTraining", "ForNextSentencePrediction")):
        assert task is None and "pipeline_tag" not in str(model_card(model, name="m"))
    elif task not in ("question-answering", "multiple-choice"):  # of the Hub; no pipelines of transformers
        auto_classes = {kind.__name__ for kind in SUPPORTED_TASKS[task]["pt"]}
        assert auto_classes & set(type(model.config).auto_classes)


# --- fusion models ---------------------------------------------------------------------------------------------------


def vector_options() -> dict[str, Any]:
    return {name: {"size": o["size"], "max_length": o.get("max_length")} for name, o in FEATURES.items()}


# Of every head: its class, options, and what the snippet prints. There are 9 clips at most.
LABELS = {"label_modalities": ["clips"]}
HEADS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "base": (HfLamFusionModel, {}, r"torch\.Size\(\[1, \d+, 32\]\)"),
    "classes": (HfLamFusionForSequenceClassification, {}, r"LABEL_\d"),
    "places": (
        HfLamFusionForTokenClassification,
        {"label_modalities": ["clips", "words"]},
        r"\[('LABEL_\d'(, )?){9}\]",
    ),
    "numbers": (HfLamFusionForTokenClassification, {**LABELS, "num_labels": 1}, r"\[(\[\S+\](, )?){9}\]"),
    "several": (
        HfLamFusionForTokenClassification,
        {**LABELS, "problem_type": "multi_label_classification"},
        r"\[(\[[^\]]*\](, )?){9}\]",
    ),
    "tokens": (HfLamFusionForTokenClassification, {"label_modalities": ["text"]}, r"\['LABEL_\d'.*\]"),
    "embedding": (HfLamFusionForEmbedding, {"projection_dim": 8}, r"torch\.Size\(\[1, 8\]\)"),
    "writer": (
        HfLamFusionForConditionalGeneration,
        {"decoder": decoder_config()},
        r"\['[^']*'\]|\[\[1(, \d+)+\]\]",
    ),
    "moments": (HfLamFusionForMomentRetrieval, LABELS, r"\[(Moment\(start=\S+, end=\S+, score=\S+\)(, )?){3}\]"),
}


@pytest.mark.parametrize("has_processor", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "head", [pytest.param(head, marks=[] if head in ("places", "embedding") else pytest.mark.slow) for head in HEADS]
)
def test_it_runs_for_vectors_and_every_head(head: str, has_processor: bool, tmp_path: Path) -> None:
    model_class, options, expected = HEADS[head]
    model = make_vector_fusion(model_class, ("text",), hf_lam="half", **options)
    model.save_pretrained(tmp_path)
    parts = {"tokenizer": tokenizer(), "features": vector_options()}
    parts |= {"decoder_tokenizer": tokenizer()} if head == "writer" else {}
    processor = HfLamFusionProcessor(**parts) if has_processor else None
    if processor is not None:
        processor.save_pretrained(tmp_path)
    card = str(model_card(model, name="m", repository=str(tmp_path), processor=processor))
    assert re.fullmatch(expected, run_snippet(card)), card
    assert ('features={"clips": numpy.zeros((9, 20))' in card) == has_processor
    assert ("embeddings = model.get_embeddings(**inputs)" in card) == (head == "embedding")


OF_ENCODERS = ("siglip2_vision", "ast", "wav2vec2", "whisper")


@pytest.mark.parametrize("has_processor", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*OF_ENCODERS, "vjepa2", "wav2vec2_bert"])
def test_it_runs_for_encoders_of_any_kind(name: str, has_processor: bool, tmp_path: Path) -> None:
    if has_processor and name not in OF_ENCODERS:
        pytest.skip("one of its own needs torchvision, and without a processor it is all the same")
    row = ENCODERS[name]
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = HfLamFusionConfig(**{f"{row.modality}_config": row.make_config()}, features={"clips": 6}, **sizes)
    model = HfLamFusionForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    processor = None
    if has_processor:
        part = {"image": "image_processor", "audio": "feature_extractor"}[row.modality]
        processor = HfLamFusionProcessor(**{part: PROCESSORS[name](tmp_path)}, features={"clips": 6})
        processor.save_pretrained(tmp_path)
    card = str(model_card(model, name="m", repository=str(tmp_path), processor=processor))
    assert re.fullmatch(r"LABEL_\d", run_snippet(card)), card
    assert f"| {row.modality} | `{config.modality_arguments(row.modality).values}` | `{row.model}` |" in card
    assert "| clips | `clips_features` | vectors of 6 numbers |" in card


def test_a_caption_stands_once(tmp_path: Path) -> None:
    pictures = {"masks.png": "The mask of the layers: white is 1.", "attention_maps.png": "Attention of the layers."}
    model = make_lam(transformers.BertModel, "bert")
    card = str(model_card(model, CardContent(pictures=pictures), name="m"))
    for file, caption in pictures.items():
        assert card.count(caption) == 1
        assert f"![{file[:-4].replace('_', ' ')}]({file})" in card
    assert read_card(card).pictures == pictures
    # As cards were before, and by hand.
    assert read_card("## Pictures\n\n![a mask](m.png)\n\n![maps](n.png)\n").pictures == {
        "m.png": "a mask",
        "n.png": "maps",
    }
    assert read_card("## Pictures\n\n![a mask](m.png)\n\na mask\n").pictures == {"m.png": "a mask"}
