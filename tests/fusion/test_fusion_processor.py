"""The processor of fusion models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import (
    AutoProcessor,
    VideoMAEImageProcessor,
)

from helpers.fusion_samples import (
    MISSING,
    RATE,
    TEXTS,
    make_fused,
    process,
    raw,
    rows,
    without,
)
from helpers.hosts import make_host
from helpers.hub_server import HubServer
from helpers.processes import run_code
from hf_lam import HfLamFusionModel, HfLamFusionProcessor
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES
from hf_lam.training import FusionCollator


@pytest.fixture(scope="module")
def fused() -> Any:
    return make_fused()


def test_it_makes_the_inputs_of_the_model_from_what_its_parts_make(processor, fused, parts) -> None:
    inputs = raw()
    batch = process(processor, inputs)
    assert list(batch) == processor.model_input_names
    tokens = parts["tokenizer"](inputs["text"], padding=True, return_tensors="pt")
    expected = {
        **{name: tokens[name] for name in ("input_ids", "attention_mask", "token_type_ids")},
        "pixel_values": parts["image_processor"](inputs["images"], return_tensors="pt")["pixel_values"],
        "video_values": parts["video_processor"](inputs["videos"], return_tensors="pt")["pixel_values"],
        "audio_values": parts["feature_extractor"](inputs["audio"], sampling_rate=RATE, return_tensors="pt")[
            "input_values"
        ],
    }
    assert set(batch) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(batch[name], tensor, atol=0, rtol=0)
    assert fused(**batch).logits.shape == (3, 3)
    assert processor.batch_decode(batch["input_ids"], skip_special_tokens=True) == TEXTS
    assert processor.decode(batch["input_ids"][0], skip_special_tokens=True) == TEXTS[0]


def test_options_reach_the_part_they_are_for(processor) -> None:
    inputs = raw(1)
    batch = process(processor, inputs, truncation=True, max_length=4)
    assert batch["input_ids"].shape == (1, 4) and batch["audio_values"].shape == (1, 32, 16)
    split = processor(text=["a", "cat"], is_split_into_words=True, return_tensors="pt")
    assert split["input_ids"].shape == (1, 4)
    own = {"images_kwargs": {"do_normalize": False}, "text_kwargs": {"max_length": 3, "truncation": True}}
    batch = processor(**inputs, sampling_rate=RATE, **own)
    assert len(batch["input_ids"][0]) == 3
    assert batch["pixel_values"][0].min() >= 0 > batch["video_values"][0].min()


@pytest.mark.parametrize("kind", ["pt", "np", None])
def test_one_sample_is_a_batch_of_one(processor, kind) -> None:
    several = raw(1)
    one = {name: values[0] for name, values in several.items()}
    expected, batch = (processor(**x, sampling_rate=RATE, return_tensors=kind) for x in (several, one))
    arrays = {
        "images": np.asarray(one["images"]),
        "videos": np.stack(one["videos"]),
        "audio": torch.from_numpy(one["audio"]),
    }
    from_arrays = processor(text=one["text"], **arrays, sampling_rate=RATE, return_tensors=kind)
    batched = {name: array[None] for name, array in arrays.items()}
    from_batches = processor(text=[one["text"]], **batched, sampling_rate=RATE, return_tensors=kind)
    from_numbers = processor(audio=one["audio"].tolist(), sampling_rate=RATE, return_tensors=kind)
    for name, values in expected.items():
        assert len(values) == 1
        assert isinstance(values, {"pt": torch.Tensor, "np": np.ndarray, None: list}[kind])
        others = [batch, from_arrays, from_batches, *([from_numbers] if name == "audio_values" else [])]
        for other in others:
            np.testing.assert_array_equal(np.asarray(other[name]), np.asarray(values))


def test_a_missing_modality_is_blank_and_marked(processor) -> None:
    inputs = without(raw(), text=[1], images=[0, 2], videos=[2])
    batch = process(processor, inputs)
    whole = process(processor, raw())
    assert {name for name in batch if name.startswith("has_")} == {"has_text", "has_image", "has_video"}
    assert batch["has_text"].tolist() == [True, False, True] and batch["has_text"].dtype == torch.bool
    assert batch["has_image"].tolist() == [False, True, False]
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert not batch[name][1].any()
    # The longest text is the one that is missing.
    assert batch["input_ids"].shape[1] < whole["input_ids"].shape[1]
    assert not batch["pixel_values"][[0, 2]].any() and not batch["video_values"][2].any()
    torch.testing.assert_close(batch["pixel_values"][1], whole["pixel_values"][1])
    torch.testing.assert_close(batch["video_values"][:2], whole["video_values"][:2])
    for kind in ("np", None):
        others = processor(**inputs, sampling_rate=RATE, return_tensors=kind, padding=True)
        for name, tensor in batch.items():
            np.testing.assert_array_equal(np.asarray(others[name]), tensor.numpy())
    nowhere = process(processor, {"text": TEXTS[:2], "images": [None, None]})
    assert set(nowhere) == {"input_ids", "attention_mask", "token_type_ids"}


def test_a_sample_has_the_same_logits_alone_and_among_others(processor, fused) -> None:
    missing = {"text": [1], "images": [0, 2], "videos": [2], "audio": [0]}
    inputs = without(raw(), **missing)
    with torch.no_grad():
        together = fused(**process(processor, inputs)).logits
        for i in range(3):
            alone = {name: values[i] for name, values in inputs.items() if values[i] is not None}
            torch.testing.assert_close(fused(**process(processor, alone)).logits[0], together[i], atol=1e-5, rtol=0)
        whole = fused(**process(processor, raw())).logits
    assert (whole - together).abs().amax(1).min() > 1e-2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "at least one of text, images, videos, audio or features"),
        ({"text": TEXTS, "images": 2}, "'text': 3, 'image': 2"),
        ({"text": []}, "no samples in text"),
        ({"text": ["a", None], "images": [None, None]}, r"samples \[1\] have no modality"),
        ({"images": 2, "frames": 3}, "video.* 4 frames, got 3"),
        ({"videos": "uneven"}, "video samples of a batch must have one shape"),
        ({"images": "nested"}, "images must be a list"),
        ({"images": "several"}, "image samples of a batch must have one shape"),
        ({"audio": 1, "sampling_rate": 8000}, "audio of 8000 Hz"),
        ({"text": "a", "return_tensors": "tf"}, "return_tensors must be"),
    ],
)
def test_bad_input_is_refused_by_name(processor, inputs: dict[str, Any], message: str) -> None:
    samples = raw()
    changes: dict[str, Any] = {"sampling_rate": RATE}
    for name, value in inputs.items():
        if name == "frames":
            changes["videos"] = [video[:value] for video in samples["videos"][:2]]
        elif value == "uneven":
            changes["videos"] = [samples["videos"][0], samples["videos"][1][:3]]
        elif value == "nested":
            changes["images"] = [[image] for image in samples["images"]]
        elif value == "several":
            changes |= {"images": [np.zeros((9, 9, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)]}
            changes["images_kwargs"] = {"do_resize": False}
        else:
            changes[name] = samples[name][:value] if isinstance(value, int) and name in samples else value
    with pytest.raises(ValueError, match=message):
        processor(**changes)


def test_a_part_that_is_not_there_is_named(parts) -> None:
    some = HfLamFusionProcessor(image_processor=parts["image_processor"])
    assert some.modalities == ["image"] and some.model_input_names == ["pixel_values"]
    for name, value in raw(1).items():
        if name != "images":
            with pytest.raises(ValueError, match=f"no .* for {name.removesuffix('s')}"):
                some(**{name: value})
    with pytest.raises(ValueError, match="no tokenizer for text"):
        some.decode([1])
    with pytest.raises(ValueError, match="no tokenizer for text"):
        some.batch_decode([[1]])
    with pytest.raises(ValueError, match="at least one of tokenizer"):
        HfLamFusionProcessor()
    with pytest.raises(TypeError, match="tokenizer"):
        HfLamFusionProcessor(parts["image_processor"])
    with pytest.raises(TypeError, match="ASTFeatureExtractor"):
        HfLamFusionProcessor(video_processor=parts["feature_extractor"])
    assert "image_processor" in repr(some)


class OtherVideoProcessor(VideoMAEImageProcessor):
    """As video processors are with torchvision: other names for what they are and what they return."""

    model_input_names = ["pixel_values_videos"]

    def __call__(self, videos: Any, **kwargs: Any) -> Any:
        return {"pixel_values_videos": super().__call__(videos, **kwargs)["pixel_values"]}

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"video_processor_type": type(self).__name__}


def test_a_video_processor_by_other_names(processor, parts, tmp_path: Path, monkeypatch) -> None:
    videos = raw(2)["videos"]
    other = HfLamFusionProcessor(video_processor=OtherVideoProcessor.from_dict(parts["video_processor"].to_dict()))
    expected = processor(videos=videos, return_tensors="pt")["video_values"]
    assert torch.equal(other(videos=videos, return_tensors="pt")["video_values"], expected)
    other.save_pretrained(tmp_path)
    monkeypatch.setattr("transformers.OtherVideoProcessor", OtherVideoProcessor, raising=False)
    loaded = HfLamFusionProcessor.from_pretrained(tmp_path)
    assert type(loaded.video_processor) is OtherVideoProcessor


SUBSETS = [
    ("tokenizer", "image_processor", "video_processor", "feature_extractor"),
    ("tokenizer",),
    ("image_processor", "feature_extractor"),
    ("video_processor",),
    ("features",),
    ("tokenizer", "features"),
]


def options_of(part: Any) -> Any:
    return part.get_vocab() if hasattr(part, "get_vocab") else part.to_dict() if hasattr(part, "to_dict") else part


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
def test_save_and_load(parts, names: tuple[str, ...], tmp_path: Path) -> None:
    parts = {**parts, "features": {"clips": {"size": 2, "mean": [1.0, 2.0], "std": 0.1}, "faces": 3}}
    processor = HfLamFusionProcessor(**{name: parts[name] for name in names})
    # What is in the folder already is not the processor's.
    if "tokenizer" not in names:
        parts["tokenizer"].save_pretrained(tmp_path)
    assert processor.save_pretrained(tmp_path) == [str(tmp_path / "processor_config.json")]
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["auto_map"] == {"AutoProcessor": "processing_hf_lam.HfLamFusionProcessor"}
    assert {name for name in parts if saved.get(name)} == set(names) - {"tokenizer"}
    assert {file.name for file in tmp_path.iterdir()} >= {"processing_hf_lam.py", "configuration_hf_lam.py"}
    for loaded in (HfLamFusionProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is HfLamFusionProcessor
        for name in parts:
            assert type(getattr(loaded, name)) is type(getattr(processor, name)), name
            assert options_of(getattr(loaded, name)) == options_of(getattr(processor, name)), name
        assert loaded.model_input_names == processor.model_input_names
        assert loaded.to_json_string() == processor.to_json_string()
        loaded.save_pretrained(tmp_path / "again")
        assert json.loads((tmp_path / "again" / "processor_config.json").read_text()) == saved


def test_a_folder_without_a_processor_is_refused(processor, tmp_path: Path) -> None:
    model = HfLamFusionModel.from_modality_pretrained(image=make_host("vit"), num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    for load in (HfLamFusionProcessor.from_pretrained, AutoProcessor.from_pretrained):
        with pytest.raises(ValueError, match=r"no processor_config.json of a HfLamFusionProcessor"):
            load(tmp_path)


LOADER = """
import pickle, sys
import torch, transformers
from safetensors.torch import load_file

def refuse(*args, **kwargs):
    raise AssertionError("something is unpickled")
pickle.load = pickle.loads = torch.load = refuse

root = sys.argv[1]
inputs = load_file(f"{root}/inputs.safetensors")
text = (inputs.pop("text").numpy().tobytes().decode()).split("|")
expected = inputs.pop("logits")
raw = {name: list(tensor) for name, tensor in inputs.items()}
for folder in sys.argv[2:]:
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
    batch = processor(text=text, **raw, sampling_rate=16000, padding=True, return_tensors="pt")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=0)
    vectors = {"text": None, "clips": [[1.0, 2.0]]}
    assert processor(vectors)["clips_features"].tolist() == vectors["clips"]
    processor.save_pretrained(f"{root}/again")
    again = transformers.AutoProcessor.from_pretrained(f"{root}/again", trust_remote_code=True)
    assert again.to_dict() == processor.to_dict()
    print("loaded", type(again.tokenizer).__name__, type(again.video_processor).__name__)
assert not [name for name, module in sys.modules.items() if module and name.partition(".")[0] == "hf_lam"]
"""


def save_inputs(folder: Path, processor: Any, model: Any) -> None:
    from safetensors.torch import save_file

    inputs = raw(2)
    tensors = {name: torch.from_numpy(np.stack(inputs[name])) for name in ("images", "videos")}
    tensors["audio"] = torch.from_numpy(np.stack([waveform[:3000] for waveform in inputs["audio"]]))
    # As they are read there: without hf_lam, and without anything that unpickles.
    given = {"text": inputs["text"], **{name: list(tensor) for name, tensor in tensors.items()}}
    with torch.no_grad():
        tensors["logits"] = model(**process(processor, given)).logits
    tensors["text"] = torch.tensor(list("|".join(inputs["text"]).encode()), dtype=torch.uint8)
    save_file(tensors, folder / "inputs.safetensors")


@pytest.mark.slow
def test_it_loads_beside_a_model_without_hf_lam(parts, fused, tmp_path: Path) -> None:
    processor = HfLamFusionProcessor(**parts, features={"clips": 2})
    save_inputs(tmp_path, processor, fused)
    for first, second, name in ((processor, fused, "one"), (fused, processor, "two")):
        first.save_pretrained(tmp_path / name)
        second.save_pretrained(tmp_path / name)
    printed = run_code(LOADER, tmp_path, tmp_path / "one", tmp_path / "two", hf_lam=False)
    assert printed.count("loaded BertTokenizer VideoMAEImageProcessorPil") == 2


@pytest.mark.slow
def test_it_is_pushed_and_loaded_by_id(parts, fused, tmp_path: Path) -> None:
    processor = HfLamFusionProcessor(**parts, features={"clips": 2})
    processor.save_pretrained(tmp_path / "local")
    save_inputs(tmp_path, processor, fused)
    fused.save_pretrained(tmp_path / "model")
    code = """
import sys
import hf_lam
processor = hf_lam.HfLamFusionProcessor.from_pretrained(sys.argv[1] + "/local")
model = hf_lam.HfLamFusionForSequenceClassification.from_pretrained(sys.argv[1] + "/model")
processor.save_pretrained(sys.argv[1] + "/pushed", push_to_hub=True, repo_id="user/fusion")
model.push_to_hub("user/fusion")
"""
    with HubServer() as hub:
        run_code(code, tmp_path, environment=hub.environment(tmp_path / "cache"))
        names = {"processor_config.json", "tokenizer.json", "tokenizer_config.json", "config.json", *TRAVELLING_FILES}
        assert names <= set(hub.repos["user/fusion"].files())
        environment = hub.environment(tmp_path / "other_cache", token=None)
        printed = run_code(LOADER, tmp_path, "user/fusion", hf_lam=False, environment=environment)
    assert "loaded" in printed


@pytest.mark.parametrize("missing", MISSING, ids=lambda value: type(value).__name__)
def test_what_tables_have_for_nothing_is_missing(processor, missing) -> None:
    gaps = {"text": [1], "images": [0, 2], "videos": [2], "audio": [0]}
    expected = process(processor, without(raw(), **gaps))
    inputs = {
        name: [missing if value is None else value for value in values]
        for name, values in without(raw(), **gaps).items()
    }
    columns = {name: pd.Series(values, dtype=object) for name, values in inputs.items()}
    for given in (inputs, columns):
        batch = process(processor, given)
        assert set(batch) == set(expected)
        for name, tensor in expected.items():
            assert torch.equal(batch[name], tensor)
    samples = rows(expected)
    for sample in samples:
        for modality, key in (("image", "pixel_values"), ("audio", "audio_values")):
            if not sample[f"has_{modality}"]:
                sample |= {key: missing, f"has_{modality}": missing}
    again = FusionCollator(processor)(samples)
    for name, tensor in expected.items():
        assert torch.equal(again[name], tensor)


def test_columns_of_a_table_without_any_value_and_of_numpys_texts(processor) -> None:
    expected = processor(text=TEXTS[:2], return_tensors="pt", padding=True)
    empty = pd.DataFrame({"image": [float("nan")] * 2})["image"]
    found = processor(text=np.array(TEXTS[:2]), images=empty, audio=empty, return_tensors="pt", padding=True)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
    assert "pixel_values" not in found and "audio_values" not in found


def test_audio_may_say_its_own_sampling_rate(processor) -> None:
    waves = raw()["audio"]
    expected = processor(audio=waves, sampling_rate=RATE, return_tensors="pt")["audio_values"]
    decoded = [{"array": wave, "sampling_rate": RATE, "path": None} for wave in waves]
    assert torch.equal(processor(audio=decoded, return_tensors="pt")["audio_values"], expected)
    assert torch.equal(processor(audio=decoded[0], return_tensors="pt")["audio_values"], expected[:1])
    without_a_rate = [{"array": wave} for wave in waves]
    for given in (waves, without_a_rate):
        assert torch.equal(processor(audio=given, return_tensors="pt")["audio_values"], expected)
    with pytest.raises(ValueError, match=r"audio must be decoded: .* got bytes, path"):
        processor(audio=[{"bytes": b"", "path": "a.wav"}])
    decoded[1]["sampling_rate"] = 8000
    with pytest.raises(ValueError, match=r"audio of .*8000.* Hz was given to a ASTFeatureExtractor"):
        processor(audio=decoded)
