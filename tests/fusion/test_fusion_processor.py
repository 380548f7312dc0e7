"""The processor and the collator of fusion models."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import (
    ASTFeatureExtractor,
    AutoProcessor,
    BertTokenizerFast,
    Trainer,
    TrainingArguments,
    VideoMAEImageProcessor,
    ViTImageProcessor,
)

from helpers.hosts import make_host, perturb_mechanisms
from helpers.hub_server import HubServer
from helpers.processes import run_code
from hf_lam import HfLamFusionForSequenceClassification, HfLamFusionModel, HfLamFusionProcessor
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES
from hf_lam.training import FusionCollator

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "sat", "on", "the", "mat", "saw", "another", "one"]
TEXTS = ["a cat sat", "the cat saw another cat on the mat", "one mat"]
RATE = 16000
ARGUMENTS = {"text": "text", "image": "images", "video": "videos", "audio": "audio"}
HOSTS = {"text": "bert", "image": "vit", "video": "videomae", "audio": "ast"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    vocabulary = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    return {
        "tokenizer": BertTokenizerFast(str(vocabulary), model_max_length=40),
        "image_processor": ViTImageProcessor(size={"height": 16, "width": 16}),
        "video_processor": VideoMAEImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, num_frames=4
        ),
        "feature_extractor": ASTFeatureExtractor(num_mel_bins=16, max_length=32),
    }


@pytest.fixture(scope="module")
def processor(parts: dict[str, Any]) -> HfLamFusionProcessor:
    return HfLamFusionProcessor(**parts)


@pytest.fixture(scope="module")
def fused() -> Any:
    """A small model for all modalities, whose mechanisms and classifier have a say in what it returns."""
    torch.manual_seed(0)
    model = HfLamFusionForSequenceClassification.from_modality_pretrained(
        **{name: make_host(host) for name, host in HOSTS.items()},
        num_hidden_layers=2,
        num_labels=3,
        hf_lam={"locomt": {"views": "half"}, "lam": {"rank": 2}},
    ).eval()
    perturb_mechanisms(model)
    model.classifier.weight.data *= 50
    return model


def raw(count: int = 3) -> dict[str, list[Any]]:
    """Samples of all modalities, in the forms that processors take."""
    generator = np.random.default_rng(0)

    def picture() -> np.ndarray:
        return generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)

    return {
        "text": TEXTS[:count],
        "images": [Image.fromarray(picture()) for _ in range(count)],
        "videos": [[picture() for _ in range(4)] for _ in range(count)],
        "audio": [generator.standard_normal(3000 + 500 * i).astype(np.float32) for i in range(count)],
    }


def without(inputs: dict[str, list[Any]], **missing: list[int]) -> dict[str, list[Any]]:
    """The same samples, some of which lack a modality."""
    return {
        name: [None if i in missing.get(name, []) else value for i, value in enumerate(values)]
        for name, values in inputs.items()
    }


def process(processor: Any, inputs: dict[str, Any], **options: Any) -> Any:
    return processor(**inputs, sampling_rate=RATE, return_tensors="pt", padding=True, **options)


def rows(batch: Any) -> list[dict[str, Any]]:
    """The samples of a batch, as a data set has them."""
    count = len(next(iter(batch.values())))
    return [{key: values[i] for key, values in batch.items()} for i in range(count)]


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
        ({}, "at least one of text, images, videos and audio"),
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
]


def options_of(part: Any) -> Any:
    return None if part is None else part.get_vocab() if hasattr(part, "get_vocab") else part.to_dict()


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
def test_save_and_load(parts, names: tuple[str, ...], tmp_path: Path) -> None:
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
def test_it_loads_beside_a_model_without_hf_lam(processor, fused, tmp_path: Path) -> None:
    save_inputs(tmp_path, processor, fused)
    for first, second, name in ((processor, fused, "one"), (fused, processor, "two")):
        first.save_pretrained(tmp_path / name)
        second.save_pretrained(tmp_path / name)
    printed = run_code(LOADER, tmp_path, tmp_path / "one", tmp_path / "two", hf_lam=False)
    assert printed.count("loaded BertTokenizer VideoMAEImageProcessorPil") == 2


@pytest.mark.slow
def test_it_is_pushed_and_loaded_by_id(processor, fused, tmp_path: Path) -> None:
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


def samples_of(processor: Any, inputs: dict[str, list[Any]], kind: str | None) -> list[dict[str, Any]]:
    """Every sample processed by itself, with what it has."""
    samples = []
    for i in range(len(inputs["text"])):
        one = {name: [values[i]] for name, values in inputs.items() if values[i] is not None}
        batch = processor(**one, sampling_rate=RATE, return_tensors=kind)
        samples.append({name: values[0] for name, values in batch.items()})
    return samples


MISSING = [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT]


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


@pytest.mark.parametrize("kind", [None, "np"])
@pytest.mark.parametrize(
    "gaps",
    [
        {},
        {"text": [0, 1]},
        {"text": [2, 3], "audio": [1]},
        {"images": [0, 1, 2, 3]},
        {"videos": [0, 1], "audio": [2, 3]},
        {"text": [0, 1, 2, 3], "images": [0, 1], "audio": [0, 1, 2, 3]},
        {"text": [1, 3], "images": [0, 2], "videos": [0, 1, 2], "audio": [1, 2, 3]},
    ],
)
def test_batches_of_a_data_set_have_the_same_columns(processor, gaps, kind) -> None:
    """In pieces of two samples, some of which lack a modality altogether."""
    whole = {name: [*values, values[0]] for name, values in raw().items()}
    whole["videos"] = [np.stack(video) for video in whole["videos"]]
    inputs = without(whole, **gaps)
    expected = FusionCollator(processor)(rows(process(processor, inputs)))
    made = Dataset.from_dict({"row": [0, 1, 2, 3]}).map(
        lambda batch: processor(
            **{name: [values[row] for row in batch["row"]] for name, values in inputs.items()},
            sampling_rate=RATE,
            return_tensors=kind,
            padding=True,
        ),
        batched=True,
        batch_size=2,
        remove_columns=["row"],
    )
    assert set(made.column_names) == {*processor.model_input_names, *(f"has_{name}" for name in ARGUMENTS)}
    batch = FusionCollator(processor)(list(made))
    assert set(batch) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(batch[name], tensor, atol=1e-6, rtol=0)


def test_a_column_of_a_data_set_is_a_list(processor) -> None:
    columns = {"text": [TEXTS[0], None, TEXTS[2]], "images": [*raw()["images"][:2], None]}
    expected = processor(**columns, return_tensors="pt", padding=True)
    data = Dataset.from_dict(columns)
    batch = processor(text=data["text"], images=data["images"], return_tensors="pt", padding=True)
    made = data.with_transform(lambda rows: processor(text=rows["text"], images=rows["images"], padding=True))
    collated = FusionCollator(processor)([made[index] for index in range(3)])
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor) and torch.equal(collated[name], tensor)


def test_columns_of_a_table_without_any_value_and_of_numpys_texts(processor) -> None:
    expected = processor(text=TEXTS[:2], return_tensors="pt", padding=True)
    empty = pd.DataFrame({"image": [float("nan")] * 2})["image"]
    found = processor(text=np.array(TEXTS[:2]), images=empty, audio=empty, return_tensors="pt", padding=True)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
    assert "pixel_values" not in found and "audio_values" not in found


@pytest.mark.parametrize("kind", ["pt", "np", None, "lists", "batched"])
def test_the_collator_makes_the_batch_that_the_processor_makes(processor, kind) -> None:
    inputs = without(raw(), text=[1], images=[0, 2], videos=[2])
    expected = process(processor, inputs)
    samples = samples_of(processor, inputs, kind if kind in ("pt", "np") else None)
    if kind == "lists":
        samples = [{name: np.asarray(values).tolist() for name, values in sample.items()} for sample in samples]
    elif kind == "batched":
        samples = [{name: np.asarray(values)[None] for name, values in sample.items()} for sample in samples]
    # A data set with columns has None where a sample has no value.
    samples[1] |= dict.fromkeys(("input_ids", "attention_mask", "token_type_ids", "has_text"))
    batch = FusionCollator(processor)(samples)
    assert set(batch) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(batch[name], tensor, atol=1e-6, rtol=0)
    # What the processor marked as missing is missing.
    again = FusionCollator(processor.tokenizer)(rows(expected))
    assert set(again) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(again[name], tensor)


def test_the_collator_pads_and_leaves_out(processor) -> None:
    samples = samples_of(processor, without(raw(), images=[0, 1, 2], audio=[0, 1, 2], videos=[0, 1]), "np")
    assert FusionCollator(processor, pad_to_multiple_of=16)(samples)["input_ids"].shape == (3, 16)
    batch = FusionCollator(processor)(samples[:2])
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"}
    assert batch["attention_mask"].sum(1).tolist() == [len(sample["input_ids"]) for sample in samples[:2]]
    for sample in samples:
        del sample["attention_mask"], sample["token_type_ids"]
    assert torch.equal(FusionCollator(processor)(samples[:2])["attention_mask"], batch["attention_mask"])
    others = [{**sample, "index": i, "path": "somewhere"} for i, sample in enumerate(samples)]
    collated = FusionCollator(processor)(others)
    assert collated["index"].tolist() == [0, 1, 2] and "path" not in collated


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], torch.long),
        ([np.int32(1), np.int32(2)], torch.long),
        ([torch.tensor(1), torch.tensor(2)], torch.long),
        ([0.5, 2.0], torch.float32),
        ([np.float64(0.5), np.float64(2)], torch.float32),
        ([[0.0, 1.0], [1.0, 0.0]], torch.float32),
        ([np.array([0.0, 1.0]), np.array([1.0, 0.0])], torch.float32),
        ([torch.tensor([0, 1]), torch.tensor([1, 0])], torch.long),
    ],
)
def test_the_collator_takes_labels(values: list[Any], dtype: torch.dtype) -> None:
    for key in ("labels", "label", "label_ids"):
        batch = FusionCollator()([{"pixel_values": np.zeros((3, 4, 4)), key: value} for value in values])
        assert set(batch) == {"pixel_values", "labels"}
        assert batch["pixel_values"].dtype == torch.float32
        assert batch["labels"].dtype == dtype
        np.testing.assert_array_equal(batch["labels"].numpy(), np.asarray([np.asarray(value) for value in values]))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"pixel_values": (3, 4, 4)}, {"label": 1}], r"samples \[1\] of the batch have no modality"),
        ([{"pixel_values": (3, 4, 4)}, {"pixel_values": (3, 4, 5)}], "pixel_values of the image samples"),
        ([{"video_values": (3, 4, 4)}], "video_values of one sample of video must have 4 axes"),
        ([{"audio_values": (2, 32, 16)}], "audio_values of one sample of audio must have 2 axes"),
        ([{"input_ids": (5,)}], "without a tokenizer"),
        ([{"pixel_values": (3, 4, 4), "label": 1}, {"pixel_values": (3, 4, 4)}], "1 of 2 samples have labels"),
        (
            [{"pixel_values": (3, 4, 4), "label": [1.0]}, {"pixel_values": (3, 4, 4), "label": [1.0, 2.0]}],
            "labels of a batch must have one shape",
        ),
    ],
)
def test_the_collator_refuses_by_name(samples: list[dict[str, Any]], message: str) -> None:
    made = [
        {name: np.zeros(value) if isinstance(value, tuple) else value for name, value in sample.items()}
        for sample in samples
    ]
    with pytest.raises(ValueError, match=message):
        FusionCollator()(made)


def test_texts_with_different_inputs_are_refused(processor) -> None:
    samples = samples_of(processor, {"text": TEXTS}, None)
    del samples[1]["token_type_ids"]
    with pytest.raises(ValueError, match=r"text: some samples have .*token_type_ids"):
        FusionCollator(processor)(samples)


def test_trainer_with_missing_modalities(processor, fused, tmp_path: Path) -> None:
    inputs = without(raw(), text=[1], images=[0, 2], videos=[1, 2], audio=[0, 1])
    samples = [{**sample, "label": i} for i, sample in enumerate(samples_of(processor, inputs, "np"))]
    model = copy.deepcopy(fused)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = TrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model, arguments, FusionCollator(processor), samples, samples, processing_class=processor, compute_metrics=None
    )
    assert np.isfinite(trainer.train().training_loss)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    unchanged = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert not [name for name in unchanged if "classifier" in name or "fusion.encoder" in name]
    logits = torch.from_numpy(trainer.predict(samples).predictions)
    with torch.no_grad():
        for sample, expected in zip(samples, logits, strict=True):
            one = FusionCollator(processor)([sample])
            torch.testing.assert_close(model.eval()(**one).logits[0], expected, atol=1e-5, rtol=0)
    trainer.save_model(str(tmp_path / "saved"))
    assert isinstance(AutoProcessor.from_pretrained(tmp_path / "saved"), HfLamFusionProcessor)


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
