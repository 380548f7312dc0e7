"""Fusion models of every kind to the Hub: what is pushed is whole, verified and says where it came from."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import BertTokenizer, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

import hf_lam
from helpers.fusion_encoders import ENCODERS
from helpers.fusion_heads import decoder_config
from helpers.fusion_models import fusion_config
from helpers.fusion_vectors import make_vector_fusion
from helpers.hub_server import TOKEN, HubServer
from helpers.pushing import metadata_of
from helpers.verification import HASHES
from hf_lam import (
    HfLamFusionConfig,
    HfLamFusionForConditionalGeneration,
    HfLamFusionForEmbedding,
    HfLamFusionForMomentRetrieval,
    HfLamFusionForSequenceClassification,
    HfLamFusionForTokenClassification,
    HfLamFusionProcessor,
)
from hf_lam.hub import verification
from hf_lam.hub.verification import verify

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat"]


def of_sound(name: str) -> Any:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = HfLamFusionConfig(audio_config=ENCODERS[name].make_config(), features={"clips": 6}, **sizes)
    model = HfLamFusionForSequenceClassification(config)
    model.config.audio_config._name_or_path = f"someone/{name}"
    return model


def made(case: str) -> tuple[Any, Any]:
    """A model and its processor."""
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})
    vectors = {"clips": {"size": 20, "mean": 1.0, "std": [2.0] * 20}, "words": 12, "summary": 32}
    if case == "places":
        model = make_vector_fusion(HfLamFusionForTokenClassification, hf_lam="half", label_modalities=["clips"])
        return model, HfLamFusionProcessor(features=vectors)
    if case == "writer":
        options = {"decoder": decoder_config(), "decoder_lam": {"rank": 2}}
        model = make_vector_fusion(HfLamFusionForConditionalGeneration, hf_lam="lam_shared_rank", **options)
        return model, HfLamFusionProcessor(decoder_tokenizer=tokenizer, features=vectors)
    if case == "moments":
        model = make_vector_fusion(HfLamFusionForMomentRetrieval, hf_lam="lam_shared_rank", label_modalities=["clips"])
        return model, HfLamFusionProcessor(features=vectors)
    if case == "embedding":
        return HfLamFusionForEmbedding(fusion_config(("text", "image"), hf_lam="lam_half")), None
    if case == "whisper":
        extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1, n_fft=400, hop_length=400)
        return of_sound(case), HfLamFusionProcessor(feature_extractor=extractor, features={"clips": 6})
    if case == "wav2vec2":
        processor = HfLamFusionProcessor(feature_extractor=Wav2Vec2FeatureExtractor(), features={"clips": 6})
        return of_sound(case), processor
    model = make_vector_fusion(encoders=("text",), hf_lam="bottleneck")
    model.config.text_config._name_or_path = "someone/bert"
    return model, HfLamFusionProcessor(tokenizer=tokenizer, features=vectors)


# Of each case: what its weights come from, its tags, and what loads it.
CASES = {
    "classes": (["someone/bert"], ["locomt", "multimodal", "text", "features"], "AutoModelForSequenceClassification"),
    "places": ([], ["locomt", "multimodal", "features"], "AutoModelForTokenClassification"),
    "embedding": ([], ["lam", "locomt", "multimodal", "text", "image"], "AutoModel"),
    "moments": ([], ["lam", "multimodal", "features"], "AutoModel"),
    "writer": ([], ["lam", "multimodal", "features"], "AutoModelForSeq2SeqLM"),
    "whisper": (["someone/whisper"], ["multimodal", "audio", "features"], "AutoModelForSequenceClassification"),
    "wav2vec2": (["someone/wav2vec2"], ["multimodal", "audio", "features"], "AutoModelForSequenceClassification"),
}
QUICK = ("classes", "embedding", "whisper")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_a_push_passes_verify_and_says_what_it_is(case: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = made(case)
    bases, tags, auto_class = CASES[case]
    hf_lam.push(model, "user/one", processor=processor, token=TOKEN)
    metadata = metadata_of(hub)
    assert metadata.get("base_model") == (bases[0] if bases else None)
    assert metadata["tags"] == ["hf_lam", *tags]
    # No pipeline takes its inputs.
    assert "pipeline_tag" not in metadata
    files = hub.repos["user/one"].files()
    card = files["README.md"].decode()
    assert f"model = {auto_class}.from_pretrained(name" in card
    masks = "Its decoder is a `GPT2LMHeadModel` with the learnable attention mask ([arXiv 2406.02761]("
    assert (masks in card) == (case == "writer")
    config = json.loads(files["config.json"])
    assert config["auto_map"][auto_class].endswith(f".{type(model).__name__}")
    if processor is not None:
        assert list(json.loads(files["processor_config.json"])["features"]) == sorted(model.config.features)
    monkeypatch.setattr(verification, "released_code", lambda: {hf_lam.__version__: HASHES})
    result = verify("user/one", token=TOKEN, weights=True)
    assert result.findings == ()
    assert ("decoder_tokenizer/tokenizer.json" in files) == (case == "writer")
    assert result.version == hf_lam.__version__
