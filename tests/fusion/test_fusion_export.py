"""Fusion models as programs: exported and compiled once, for batches and lengths of any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from helpers.fusion_models import MODALITIES, make_fusion, make_fusion_inputs
from helpers.hosts import max_difference

pytestmark = pytest.mark.slow
# Encoders of a text of any length, images and sounds of one size, and vectors of any number.
VECTORS = ("video",)
BASELINES: dict[str, dict[str, Any]] = {
    "full": {},
    "self": {"baseline": "self"},
    "bottleneck": {"baseline": "bottleneck"},
    "late": {"num_hidden_layers": 0},
}
MECHANISMS = ("half", "lam_half", "lam_embeddings", "annealing")
PROGRAMS = {**BASELINES, **{name: {"hf_lam": name} for name in MECHANISMS}}


def make(name: str, **config: Any) -> Any:
    options = {"num_hidden_layers": 1 if name != "annealing" else 2, **PROGRAMS[name], **config}
    return make_fusion(as_features=VECTORS, **options).requires_grad_(False)


def batch_of(size: int, words: int, clips: int) -> dict[str, Tensor]:
    """Samples with padding, of which some lack modalities: by a mask of zeros, and by `has_…`."""
    inputs = make_fusion_inputs(batch=size, seed=size, as_features=VECTORS)
    generator = torch.Generator().manual_seed(size)
    inputs["input_ids"] = torch.randint(5, 90, (size, words), generator=generator)
    inputs["video_features"] = torch.randn(size, clips, 24, generator=generator)
    for key, length in (("attention_mask", words), ("video_mask", clips)):
        counts = torch.arange(size) % length + 1
        inputs[key] = (torch.arange(length) < counts[:, None]).long()
    inputs["video_mask"][-1] = 0
    inputs["video_positions"] = torch.rand(size, clips, generator=generator).cumsum(1)
    inputs["has_image"] = torch.arange(size) % 3 != 1
    return inputs


def alone(inputs: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """One sample, without its padding."""
    cut = {key: value[index : index + 1] for key, value in inputs.items()}
    for mask, others in (("attention_mask", ("input_ids",)), ("video_mask", ("video_features", "video_positions"))):
        count = max(1, int(cut[mask].sum()))
        cut |= {key: cut[key][:, :count] for key in (mask, *others)}
    return cut


def any_size(inputs: dict[str, Tensor], most: int | None) -> dict[str, Any]:
    """Names for what may change: the batch, the words and the clips, of which there are any number or at most some."""
    batch, words = torch.export.Dim("batch"), torch.export.Dim("words", max=40)
    clips = torch.export.Dim("clips", max=most)
    lengths = {"input_ids": words, "attention_mask": words}
    lengths |= dict.fromkeys(("video_features", "video_mask", "video_positions"), clips)
    return {key: {0: batch, **({1: lengths[key]} if key in lengths else {})} for key in inputs}


SIZES = [(2, 12, 7), (7, 9, 8), (3, 4, 5)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_exported_for_any_batch_and_any_lengths(name: str) -> None:
    most = 8 if "lam" in name else None  # a dense mask has so many columns for them
    model = make(name, sizes={"video": {"max_length": most}})
    inputs = batch_of(4, 11, 6)
    program = torch.export.export(model, (), inputs, dynamic_shapes=any_size(inputs, most), strict=False)
    # Operators of our own are not where the program runs, and one that sorts in order is not in ONNX.
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [target for target in targets if "hf_lam" in target or "sort.stable" in target]
    run = program.module()
    for sizes in SIZES:
        batch = batch_of(*sizes)
        found = run(**batch).logits
        assert max_difference(found, model(**batch).logits) < 1e-5, sizes
    for index in range(3):
        assert max_difference(run(**alone(batch, index)).logits, found[index : index + 1]) < 1e-5, index


@pytest.mark.parametrize("name", ["full", "bottleneck", "late", "lam_half"])
def test_compiled_once_for_all_batches_and_lengths(name: str) -> None:
    torch._dynamo.reset()
    model = make(name)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    # Sizes that happen to be equal are taken for one: no batch is as large as anything else here.
    sizes = [(5, 11, 6), (7, 12, 8), (6, 9, 5), (9, 10, 7)]
    for size in sizes:
        batch = batch_of(*size)
        found = compiled(**batch).logits
        assert max_difference(found, model(**batch).logits) < 1e-5, size
    assert len(counter.graphs) == 1


def test_compiled_without_a_modality_in_some_batches() -> None:
    """Each set of modalities is a program of its own, whatever the sizes."""
    torch._dynamo.reset()
    model = make("full")
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for missing in ((), ("video_features", "video_mask", "video_positions"), ("audio_values",)):
        for size in ((5, 11, 6), (7, 12, 8)):
            batch = {key: value for key, value in batch_of(*size).items() if key not in missing}
            assert max_difference(compiled(**batch).logits, model(**batch).logits) < 1e-5
    assert len(counter.graphs) == 3


def test_exported_from_vectors_alone() -> None:
    model = make_fusion(as_features=MODALITIES, num_hidden_layers=1).requires_grad_(False)
    inputs = make_fusion_inputs(as_features=MODALITIES, batch=3)
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model, (), inputs, dynamic_shapes={key: {0: batch, 1: torch.export.Dim.AUTO} for key in inputs}, strict=False
    )
    other = make_fusion_inputs(as_features=MODALITIES, batch=5, seed=7)
    other = {key: value[:, : 6 if "text" in key else 5] for key, value in other.items()}
    assert max_difference(program.module()(**other).logits, model(**other).logits) < 1e-5
