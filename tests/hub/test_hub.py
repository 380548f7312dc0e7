"""Pushing to a Hub and loading from it by id, with the real client against a local server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification, BertTokenizerFast, ViTForImageClassification, ViTImageProcessor

import hf_lam
from helpers.fusion_models import make_fusion
from helpers.hub_server import TOKEN, HubServer
from helpers.lam_models import make_lam
from helpers.processes import run_code
from hf_lam.hub import pushing
from hf_lam.modeling.license_hf_lam import LICENSE_FILE
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES

# Repository, stock class, host, Auto class of what is pushed.
CASES = [
    ("user/lam-bert", "BertForSequenceClassification", "bert", "AutoModelForSequenceClassification"),
    ("user/lam-vit", "ViTForImageClassification", "vit", "AutoModelForImageClassification"),
    ("user/lam-videomae", "VideoMAEModel", "videomae", "AutoModel"),
]

PUSH = """
import json, sys
import torch, transformers
from safetensors.torch import save_file
import hf_lam
from helpers.hosts import first_output, make_inputs, make_model, mechanisms
from helpers.lam_models import make_lam

folder, cases = sys.argv[1], json.loads(sys.argv[2])
tensors = {}
kinds = {"bert": "per_layer", "vit": "dense", "videomae": "mixture_all"}
for repo, stock_class, host, auto_class in cases:
    stock, inputs = getattr(transformers, stock_class), make_inputs(host)
    model = make_lam(stock, host, mechanisms(kinds[host], host))
    with torch.no_grad():
        tensors |= {f"{repo}:{name}": tensor for name, tensor in inputs.items()}
        tensors[repo] = first_output(model, inputs)
        tensors[f"{repo}@base"] = model.base_model(**inputs)[0]
        if repo == "user/lam-bert":
            other = make_lam(stock, host, seed=3)
            tensors[f"{repo}@other"] = first_output(other, inputs)
            other.push_to_hub(repo, revision="other")
    model.push_to_hub(repo)

stock = make_model(transformers.BertForSequenceClassification, "bert", num_labels=3)
stock.push_to_hub("user/stock-bert")
inputs = make_inputs("bert")
head = hf_lam.convert("user/stock-bert", hf_lam.LamConfig(), auto_class="AutoModelForSequenceClassification")
base = hf_lam.convert("user/stock-bert", hf_lam.LamConfig(rank=2))
with torch.no_grad():
    tensors["stock"], tensors["stock@base"] = stock(**inputs)[0], stock.bert(**inputs)[0]
    tensors["converted"], tensors["converted@base"] = head(**inputs)[0], base(**inputs)[0]
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, f"{folder}/outputs.safetensors")
print(json.dumps([type(head).__name__, type(base).__name__, head.config._name_or_path]))
"""

LOAD = """
import json, sys
import torch, transformers
from safetensors.torch import load_file

tensors, cases = load_file(sys.argv[1]), json.loads(sys.argv[2])
results = {}
for repo, stock_class, host, auto_class in cases:
    inputs = {name.split(":")[1]: tensor for name, tensor in tensors.items() if name.startswith(f"{repo}:")}
    config = transformers.AutoConfig.from_pretrained(repo, trust_remote_code=True)
    revisions = {"main": tensors[repo]}
    if f"{repo}@other" in tensors:
        revisions["other"] = tensors[f"{repo}@other"]
    for revision, expected in revisions.items():
        auto = getattr(transformers, auto_class)
        model = auto.from_pretrained(repo, trust_remote_code=True, revision=revision)
        with torch.no_grad():
            results[f"{repo} {revision}"] = (model(**inputs)[0] - expected).abs().max().item()
    base = transformers.AutoModel.from_pretrained(repo, trust_remote_code=True)
    with torch.no_grad():
        results[f"{repo} base"] = (base(**inputs)[0] - tensors[f"{repo}@base"]).abs().max().item()
    results[f"{repo} classes"] = [config.model_type, type(model).__name__, type(base).__name__]
try:
    import hf_lam
except ImportError:
    results["blocked"] = True
print(json.dumps(results))
"""

# Everything of a repository at one commit: of the weights, of the processor and of the code.
LOAD_PINNED = """
import json, sys
import numpy as np
import torch, transformers
from safetensors.torch import load_file

tensors = load_file(sys.argv[1])
picture = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
given = {"text": {"text": ["good bad"]}, "image": {"images": [picture]}}
results = {}
for repo, commit, kinds, auto_class, auto_processor in json.loads(sys.argv[2]):
    pins = {"trust_remote_code": True, "revision": commit, "code_revision": commit}
    model = getattr(transformers, auto_class).from_pretrained(repo, **pins)
    base = transformers.AutoModel.from_pretrained(repo, **pins)
    processor = getattr(transformers, auto_processor).from_pretrained(repo, **pins)
    inputs = processor(**{key: value for kind in kinds for key, value in given[kind].items()}, return_tensors="pt")
    assert all(torch.equal(inputs[name], tensors[f"{repo}:{name}"]) for name in inputs)
    with torch.no_grad():
        results[repo] = (model(**inputs)[0] - tensors[repo]).abs().max().item()
        results[f"{repo} base"] = (base(**inputs)[0] - tensors[f"{repo}@base"]).abs().max().item()
    files = {sys.modules[type(each).__module__].__file__ for each in (model, base)}
    assert all(commit in file for file in files), files
try:
    transformers.AutoModel.from_pretrained("user/pinned-bert", trust_remote_code=True)
except RuntimeError as error:
    results["main"] = str(error)
print(json.dumps(results))
"""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def pushed(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder with the outputs of what one process pushed, and the names it printed."""
    folder = tmp_path_factory.mktemp("pushed")
    printed = run_code(PUSH, folder, json.dumps(CASES), environment=hub.environment(folder / "cache"))
    return folder, json.loads(printed.splitlines()[-1])


def test_a_pushed_repository_has_code_auto_map_and_safetensors(hub: HubServer, pushed) -> None:
    for repo, _, _, auto_class in CASES:
        files = hub.repos[repo].files()
        expected = {"README.md", "config.json", "model.safetensors", LICENSE_FILE, *TRAVELLING_FILES}
        assert expected <= set(files)
        others = set(files) - expected - {".gitattributes"}
        assert [name for name in others if not name.endswith((".png", ".svg"))] == []
        assert len(hub.repos[repo].log) == (3 if repo == "user/lam-bert" else 2)
        auto_map = json.loads(files["config.json"])["auto_map"]
        assert {"AutoConfig", "AutoModel", auto_class} <= set(auto_map)


def test_pushed_models_load_without_hf_lam_from_an_empty_cache(hub: HubServer, pushed, tmp_path: Path) -> None:
    folder, _ = pushed
    environment = hub.environment(tmp_path / "cache", token=None)
    printed = run_code(LOAD, folder / "outputs.safetensors", json.dumps(CASES), hf_lam=False, environment=environment)
    results = json.loads(printed.splitlines()[-1])
    assert results.pop("blocked")
    assert results.pop("user/lam-bert classes") == [
        "hf_lam_bert",
        "HfLamBertForSequenceClassification",
        "HfLamBertModel",
    ]
    assert results.pop("user/lam-vit classes") == ["hf_lam_vit", "HfLamViTForImageClassification", "HfLamViTModel"]
    assert results.pop("user/lam-videomae classes") == ["hf_lam_videomae", "HfLamVideoMAEModel", "HfLamVideoMAEModel"]
    assert results == dict.fromkeys(results, 0.0)
    assert len(results) == 2 * len(CASES) + 1


def test_convert_takes_a_hub_id(pushed) -> None:
    folder, (head, base, origin) = pushed
    outputs = load_file(folder / "outputs.safetensors")
    assert (head, base) == ("HfLamBertForSequenceClassification", "HfLamBertModel")
    assert origin == "user/stock-bert"
    torch.testing.assert_close(outputs["converted"], outputs["stock"], rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs["converted@base"], outputs["stock@base"], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    vocabulary = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]))
    tokenizer = BertTokenizerFast(str(vocabulary), model_max_length=16)
    images = ViTImageProcessor(size={"height": 16, "width": 16})
    fusion = hf_lam.HfLamFusionProcessor(tokenizer=tokenizer, image_processor=images)
    return {"bert": tokenizer, "vit": images, "fusion": fusion}


def test_models_and_processors_load_at_a_pinned_commit(
    hub: HubServer, processors: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    models = {
        "bert": make_lam(BertForSequenceClassification, "bert", num_hidden_layers=2),
        "vit": make_lam(ViTForImageClassification, "vit"),
        "fusion": make_fusion(("text", "image"), hf_lam="lam_half"),
    }
    autos = {
        "bert": (["text"], "AutoModelForSequenceClassification", "AutoTokenizer"),
        "vit": (["image"], "AutoModelForImageClassification", "AutoImageProcessor"),
        "fusion": (["text", "image"], "AutoModelForSequenceClassification", "AutoProcessor"),
    }
    picture = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    given = {"text": {"text": ["good bad"]}, "image": {"images": [picture]}}
    tensors, cases = {}, []
    hub.serve(monkeypatch, tmp_path / "pushing")
    monkeypatch.setattr(pushing, "draw_pictures", lambda *unused: {})
    for name, model in models.items():
        repo_id = f"user/pinned-{name}"
        report = hf_lam.push(model, repo_id, processor=processors[name], private=True, token=TOKEN)
        assert report.commit is not None
        cases.append((repo_id, report.commit.oid, *autos[name]))
        inputs = processors[name](
            **{key: value for kind in autos[name][0] for key, value in given[kind].items()}, return_tensors="pt"
        )
        with torch.no_grad():
            tensors |= {f"{repo_id}:{key}": value for key, value in inputs.items()}
            tensors[repo_id], tensors[f"{repo_id}@base"] = model(**inputs)[0], model.base_model(**inputs)[0]
        # Later, somebody changes the code.
        changed = {file: b"raise RuntimeError('not the code that was checked')" for file in TRAVELLING_FILES}
        repo = hub.repos[repo_id]
        repo.commit("main", {**repo.files(), **changed}, "not by push")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "outputs.safetensors")
    environment = hub.environment(tmp_path / "cache")
    printed = run_code(
        LOAD_PINNED, tmp_path / "outputs.safetensors", json.dumps(cases), hf_lam=False, environment=environment
    )
    results = json.loads(printed.splitlines()[-1])
    assert results.pop("main") == "not the code that was checked"
    assert results == dict.fromkeys(results, 0.0)
    assert len(results) == 2 * len(models)
