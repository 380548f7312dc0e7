"""Exported models, run as they are served: by onnxruntime and by `torch.export`, where hf_lam is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertForSequenceClassification,
    BertTokenizer,
    VideoMAEModel,
    ViTForImageClassification,
    ViTImageProcessor,
)

import hf_lam
from helpers.command_line import run_main
from helpers.families import FAMILIES
from helpers.fusion_heads import head_inputs, make_head
from helpers.fusion_models import make_fusion
from helpers.fusion_samples import WORDS, make_parts
from helpers.hosts import make_model, perturb_mechanisms
from helpers.processes import run_code
from hf_lam import HfLamFusionProcessor, LamConfig, LocomtConfig, SttConfig
from hf_lam.exporting.batches import Sizes, batches_for
from hf_lam.exporting.checking import default_tolerance
from hf_lam.exporting.programs import NamedOutputs, trace, write_onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow

# Runs the lines of every page, in its folder.
RUN_PAGES = """
import os, re, sys
for folder in sys.argv[1:]:
    os.chdir(folder)
    lines = re.search(r"```python\\n(.*?)```", open("README.md", encoding="utf-8").read(), re.DOTALL)[1]
    print(os.path.basename(folder), end=": ", flush=True)
    exec(lines, {})
"""


def with_mechanisms(model: Any, *configs: Any) -> Any:
    hf_lam.inject(model, *configs)
    perturb_mechanisms(model)
    return model.eval()


def run(folder: Path, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What onnxruntime makes of the inputs that the program takes."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {each.name: inputs[each.name].numpy() for each in session.get_inputs()})
    return dict(zip(names, map(torch.from_numpy, values), strict=True))


def assert_same(found: dict[str, Tensor], model: Any, inputs: dict[str, Tensor], *names: str, **options: Any) -> None:
    with torch.no_grad():
        expected = model(**inputs, **options)
    assert names and set(names) <= set(found)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


# --- the folder ------------------------------------------------------------------------------------------------------


def test_folders_that_feed_themselves(tmp_path: Path) -> None:
    """From the command line and from Python; the lines of their pages run where hf_lam is not."""
    labels = {0: "bad", 1: "good", 2: "so so"}
    text = make_model(BertForSequenceClassification, "bert", id2label=labels, num_hidden_layers=1)
    # A dense mask for each head, and views of token types, whose order differs from sample to sample.
    text = hf_lam.convert(text, LamConfig(per_head=True), LocomtConfig(views="half"))
    perturb_mechanisms(text)
    text.save_pretrained(tmp_path / "model")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(tmp_path / "model")
    code, out, _ = run_main("export", tmp_path / "model", "--output_dir", tmp_path / "text", "--json")
    assert code == 0
    report = json.loads(out)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    assert report["inputs"] == {name: ["batch", "text"] for name in names}
    assert report["relative_difference"] < 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "text" / "model.onnx"))
    assert [each.shape for each in session.get_inputs()] == [["batch", "text"]] * 3
    generator = torch.Generator().manual_seed(5)
    for batch, length in ((1, 1), (5, 33), (7, 40)):
        inputs = {"input_ids": torch.randint(5, 90, (batch, length), generator=generator)}
        inputs["attention_mask"] = (torch.arange(length) < torch.arange(batch)[:, None] + 1).long()
        inputs["token_type_ids"] = torch.randint(0, 2, (batch, length), generator=generator)
        assert_same(run(tmp_path / "text", inputs), text, inputs, "logits")
    config = json.loads((tmp_path / "text" / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {str(number): label for number, label in labels.items()}
    assert "auto_map" not in config and not list((tmp_path / "text").glob("*.py"))

    image = make_model(ViTForImageClassification, "vit", num_labels=3, num_hidden_layers=1)
    with_mechanisms(image, LocomtConfig(views="half"))
    size = image.config.image_size
    processor = ViTImageProcessor(size={"height": size, "width": size})
    report = hf_lam.export(image, tmp_path / "image", "torch", processor=processor)
    assert report.file == "model.pt2" and report.inputs == {"pixel_values": ["batch", 3, size, size]}

    parts = {key: part for key, part in make_parts().items() if key in ("tokenizer", "image_processor")}
    fused = make_fusion(("text", "image"), hf_lam="half", num_hidden_layers=1)
    hf_lam.export(fused, tmp_path / "fused", "torch", processor=HfLamFusionProcessor(**parts))

    folders = [tmp_path / name for name in ("text", "image", "fused")]
    printed = run_code(RUN_PAGES, *folders, hf_lam=False).splitlines()
    of_text, of_image, of_fused = [line.partition(": ")[2] for line in printed if ": " in line]
    assert of_text in labels.values()
    assert of_image in image.config.id2label.values()
    assert of_fused in fused.config.id2label.values()
    assert {path.name for path in tmp_path.iterdir()} == {"model", *(folder.name for folder in folders)}


# --- kinds of models -------------------------------------------------------------------------------------------------


def vectors() -> dict[str, Tensor]:
    """Clips and sound, of which the second sample has fewer."""
    return {key: value for key, value in head_inputs().items() if key.startswith(("clips", "sound"))}


MODELS: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Tensor]], tuple[str, ...]]] = {
    # Whose masks are of samples, where its tokens are fewer.
    "sound": (
        lambda: with_mechanisms(FAMILIES["wav2vec2"].make("CTC"), LamConfig(rank=3)),
        FAMILIES["wav2vec2"].inputs,
        ("logits",),
    ),
    "moments": (
        lambda: make_head("moments", "half", num_hidden_layers=1, text_config=None, label_modalities=["clips"]),
        vectors,
        ("logits", "pred_spans", "saliency_scores", "clip_mask"),
    ),
    "generation": (
        lambda: make_head("generation", "lam", num_hidden_layers=1, text_config=None),
        lambda: vectors() | {"decoder_input_ids": torch.tensor([[1, 7, 9], [1, 5, 8]])},
        ("logits",),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_kind(name: str, tmp_path: Path) -> None:
    make, make_inputs, outputs = MODELS[name]
    model, inputs = make(), make_inputs()
    report = hf_lam.export(model, tmp_path / "out")
    assert set(outputs) <= set(report.outputs) and "past_key_values" not in report.outputs
    assert_same(run(tmp_path / "out", inputs), model, inputs, *outputs)


def test_a_program_that_takes_what_is_asked_for(tmp_path: Path) -> None:
    """Samples that lack a modality, and positions, which the model would otherwise count itself."""
    model = make_fusion(
        ("image", "audio"), hf_lam="half", as_features=("audio",), sizes={"audio": {"positions": "sinusoidal"}}
    )
    names = ["pixel_values", "has_image", "audio_features", "audio_mask", "audio_positions"]
    report = hf_lam.export(model, tmp_path / "out", "torch", inputs=names)
    assert list(report.inputs) == names
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    generator = torch.Generator().manual_seed(3)
    inputs = {
        "pixel_values": torch.randn(2, 3, 16, 16, generator=generator),
        "has_image": torch.tensor([True, False]),
        "audio_features": torch.randn(2, 9, 32, generator=generator),
        "audio_mask": torch.ones(2, 9, dtype=torch.long),
        "audio_positions": torch.rand(2, 9, generator=generator).cumsum(1),
    }
    assert_same(program(**inputs), model, inputs, "logits")
    other = program(**inputs | {"has_image": torch.tensor([True, True])})["logits"]
    assert (other[1] - program(**inputs)["logits"][1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("nomic_bert", "SequenceClassification"),
        ("vit_msn", "ImageClassification"),
        ("unispeech", "AudioClassification"),
    ],
)
def test_encoders_of_further_families(family: str, head: str, tmp_path: Path) -> None:
    model = with_mechanisms(FAMILIES[family].make(head), *FAMILIES[family].configs("lam"))
    for format in ("onnx", "torch"):
        report = hf_lam.export(model, tmp_path / format, format)
        assert "logits" in report.outputs and report.relative_difference < 1e-5


@pytest.mark.parametrize("config", [LamConfig(), SttConfig("dense"), LocomtConfig(views="half")])
def test_half_precision(config: Any, tmp_path: Path) -> None:
    model = make_model(ViTForImageClassification, "vit", num_labels=3, num_hidden_layers=1)
    model = with_mechanisms(model, config).half()
    report = hf_lam.export(model, tmp_path / "out")
    assert report.relative_difference < report.tolerance == default_tolerance(torch.float16)
    pixels = FAMILIES["vit"].inputs()["pixel_values"]
    assert run(tmp_path / "out", {"pixel_values": pixels.half()})["logits"].dtype == torch.float16


# --- how large the graphs are ----------------------------------------------------------------------------------------

STEPS, PLACES = 130, 16
TOKENS = STEPS * PLACES


def products_of(folder: Path, *configs: Any) -> tuple[list[tuple[int, ...]], set[str]]:
    """The shapes of all products in a program of one layer, without the batch, and the names of its weights."""
    import onnx

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "image_size": 16, "patch_size": 4}
    model = make_model(VideoMAEModel, "videomae", **sizes, num_frames=2 * STEPS, tubelet_size=2)
    if configs:
        hf_lam.inject(model, *configs)
    batches = batches_for(model)
    program = trace(NamedOutputs(model, batches.names, batches.options), batches)
    write_onnx(program, batches, ("last_hidden_state",), folder / "model.onnx")
    made = onnx.load(folder / "model.onnx")
    names = [node.output[0] for node in made.graph.node if node.op_type in ("MatMul", "Gemm", "Einsum")]
    del made.graph.output[:]
    made.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(names, {"pixel_values": batches.make(batches.example)["pixel_values"].numpy()})
    return [value.shape[1:] for value in values], {each.name for each in made.graph.initializer}


def test_what_a_mechanism_saves_is_saved_in_onnx(tmp_path: Path) -> None:
    """Views stay blocks, and synthesised attention has neither queries and keys nor a map of all pairs of tokens."""
    heads, half = 4, TOKENS // 2
    stock, weights = products_of(tmp_path)
    assert [shape for shape in stock if shape[-1] == TOKENS] == [(heads, TOKENS, TOKENS)]
    assert any("query" in name for name in weights)
    # Two halves of the video, each of which sees one of them in every head.
    views, _ = products_of(tmp_path, LocomtConfig(views="half"))
    assert [shape for shape in views if shape[-1] >= half] == [(heads // 2, half, half)] * 4
    # One map of the steps and one of the places, for each head.
    dense, weights = products_of(tmp_path, SttConfig("dense"))
    assert max(map(prod, dense)) <= TOKENS * max(STEPS, PLACES) * heads
    assert not [name for name in weights if "query" in name or "key" in name]


def test_openvino_reads_it(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    model = make_model(BertForSequenceClassification, "bert", num_hidden_layers=1)
    with_mechanisms(model, LamConfig(rank=2), LocomtConfig(views="half"))
    hf_lam.export(model, tmp_path / "out")
    compiled = openvino.Core().compile_model(
        tmp_path / "out" / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for batch, length in ((1, 7), (3, 40)):
        inputs = batches_for(model).make(Sizes(batch, {"text": length}, True))
        made = compiled({name: value.numpy() for name, value in inputs.items()})
        assert_same({"logits": torch.from_numpy(made["logits"])}, model, inputs, "logits")
