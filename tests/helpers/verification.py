"""Models, their files, and what the tests of `verify` ask of its findings."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from helpers.fusion_models import make_fusion
from helpers.hosts import mechanisms
from helpers.lam_models import make_lam
from hf_lam.hub import manifest, repository_files
from hf_lam.hub.verification import Verification
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES

CODE = {name: (manifest.CODE / name).read_bytes() for name in TRAVELLING_FILES}
HASHES = {name: hashlib.sha256(data).hexdigest() for name, data in CODE.items()}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

MODELS: dict[str, Callable[[], Any]] = {
    "bert": lambda: make_lam(BertForSequenceClassification, "bert"),
    "tied": lambda: make_lam(BertForMaskedLM, "bert", mechanisms("lam", "bert")),
    "bert_base": lambda: make_lam(BertModel, "bert", mechanisms("shared", "bert")),
    "vit": lambda: make_lam(ViTForImageClassification, "vit", mechanisms("explicit", "vit")),
    "vit_base": lambda: make_lam(ViTModel, "vit", mechanisms("mixture_all", "vit")),
    "pure_stt": lambda: make_lam(ViTForMaskedImageModeling, "vit", mechanisms("frozen", "vit")),
    "videomae": lambda: make_lam(VideoMAEForVideoClassification, "videomae", mechanisms("dense", "videomae")),
    "videomae_base": lambda: make_lam(VideoMAEModel, "videomae", mechanisms("bottleneck", "videomae")),
    "fusion": lambda: make_fusion(("text", "image"), hf_lam="lam_embeddings"),
    "fusion_base": lambda: make_fusion(hf_lam="bottleneck", head=False),
    "plain_fusion": lambda: make_fusion(("image", "text")),
}


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; `...` takes one away."""
    content = json.loads(file.read_text()) if file.is_file() else {}
    content = {key: value for key, value in (content | changes).items() if value is not ...}
    file.write_text(json.dumps(content))


def told(result: Verification) -> list[tuple[str, str]]:
    return [(finding.kind, finding.file) for finding in result.findings]


def only(result: Verification) -> Any:
    """The one finding."""
    assert len(result.findings) == 1, result.findings
    assert not result.passed
    return result.findings[0]


def torch_file(legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def file_of(header: Any, body: bytes = b"") -> bytes:
    """A safetensors file with a header that may be nonsense."""
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(data).to_bytes(8, "little") + data + body


def tensor_of(dtype: Any = "F32", shape: Any = (2,), data_offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}


# Damaged files, and what is said of them.
DAMAGED = {
    "no bytes": (b"", "it has 0 bytes"),
    "seven bytes": (bytes(7), "it has 7 bytes"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12\n", "git lfs pull"),
    "endless header": (b"\xff" * 8, "its header would be of"),
    "nested": (file_of(b'{"a":' * 3000), "nested too deep"),
    "list": (file_of([1]), "not JSON"),
    "no text": (file_of(b"{\xff\xfe"), "not a whole safetensors file"),
    "long number": (file_of(b'{"a":' + b"9" * 5000 + b"}"), "not a whole safetensors file"),
    "metadata": (file_of({"__metadata__": 5}), "__metadata__"),
    "twice": (file_of(b'{"a":{},"a":{}}'), "twice"),
    "no tensor": (file_of({"a": 5}), "no tensor"),
    "kind": (file_of({"a": tensor_of(dtype=5)}, bytes(8)), "kind 5"),
    "negative": (file_of({"a": tensor_of(shape=[-2])}, bytes(8)), "no shape"),
    "nested shape": (file_of({"a": tensor_of(shape=[[2]])}, bytes(8)), "no shape"),
    "no place": (file_of({"a": tensor_of(data_offsets=[0, {}])}, bytes(8)), "no shape and place"),
    "other length": (file_of({"a": tensor_of(dtype="F64")}, bytes(8)), "but 8 bytes"),
    "gap": (file_of({"a": tensor_of(), "b": tensor_of(data_offsets=[9, 17])}, bytes(17)), "gap at byte 8"),
    "overlap": (file_of({"a": tensor_of(), "b": tensor_of(data_offsets=[0, 8])}, bytes(8)), "overlap"),
    "more behind": (file_of({"a": tensor_of()}, bytes(9)), "9 are there"),
    "less behind": (file_of({"a": tensor_of()}, bytes(7)), "7 are there"),
    "no tensors": (file_of({}), "holds no tensors"),
    "metadata alone": (file_of({"__metadata__": {}}), "holds no tensors"),
}


class Files:
    """Files in memory, as the checks see those of a repository."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = contents
        self.sizes = {name: len(data) for name, data in contents.items()}
        self.findings: list[Any] = []
        self.revision = None

    def read(self, name: str, most: int | None = None) -> bytes:
        return self.contents[name]

    def beginning(self, name: str, count: int) -> bytes | None:
        return self.contents[name][:count]

    def tensors(self, name: str) -> dict[str, Any]:
        raise repository_files.UnreadableError(name)
