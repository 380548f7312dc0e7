"""`verify`: what it passes, and what it catches."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fusion_models import make_fusion
from hosts import mechanisms
from hub_server import HubServer, Repo
from huggingface_hub.errors import HfHubHTTPError
from lam_models import make_lam
from processes import run_code
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    CLIPVisionConfig,
    Dinov2Config,
    DistilBertConfig,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTImageProcessor,
    ViTModel,
)

from hf_lam import HfLamBertModel, HfLamFusionConfig, HfLamFusionModel, HfLamFusionProcessor, __version__
from hf_lam.hub import code_checks, file_checks, manifest, repository_files, verification, weight_checks
from hf_lam.hub.code_checks import check_code
from hf_lam.hub.file_checks import check_kinds, check_references, is_pickle
from hf_lam.hub.repository_files import LocalFiles, leaves_folder
from hf_lam.hub.verification import Verification, verify
from hf_lam.modeling.configuration_hf_lam import TRAVELLING_FILES

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


@pytest.fixture(autouse=True)
def _released(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of today is a release, and so is an older one, of which only one file is the same."""
    older = {name: "0" * 64 for name in TRAVELLING_FILES} | {"views_hf_lam.py": HASHES["views_hf_lam.py"]}
    monkeypatch.setattr(verification, "released_code", lambda: {"0.0.1": older, __version__: HASHES})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model of `MODELS`, saved once. It must not be changed."""
    root = tmp_path_factory.mktemp("saved")

    def folder_of(name: str) -> Path:
        if not (root / name).is_dir():
            MODELS[name]().save_pretrained(root / name)
        return root / name

    return folder_of


@pytest.fixture
def folder(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a saved BERT classifier."""
    return Path(shutil.copytree(saved("bert"), tmp_path / "model"))


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


# What passes.


@pytest.mark.parametrize("name", MODELS)
def test_saved_models_pass(saved: Callable[[str], Path], name: str) -> None:
    result = verify(saved(name))
    assert result.findings == ()
    assert result.passed
    assert (result.version, result.revision, result.hosts) == (__version__, None, ())
    assert result.code == dict(sorted(HASHES.items()))


def test_models_in_folders_are_looked_at_one_by_one(
    saved: Callable[[str], Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("vit", "pure_stt"):
        shutil.copytree(saved(name), folder / "more" / name)
    result = verify(folder)
    assert result.findings == ()
    assert result.version == __version__
    assert {"modeling_hf_lam.py", "more/vit/modeling_hf_lam.py", "more/vit/model.safetensors"} <= set(result.reads)
    assert len(result.code) == 3 * len(CODE)
    with (folder / "more" / "vit" / "views_hf_lam.py").open("ab") as file:
        file.write(b"\n")
    edit(folder / "more" / "pure_stt" / "config.json", hidden_size=64)
    (folder / "more" / "extra.py").write_text("print()")
    found = verify(folder)
    assert found.version is None
    assert {("code", "more/vit/views_hf_lam.py"), ("code", "more/extra.py")} <= set(told(found))
    assert {file for _, file in told(found)} <= {
        "more/vit/views_hf_lam.py",
        "more/extra.py",
        "more/pure_stt/model.safetensors",
        "more/pure_stt/config.json",
    }
    assert {file for _, file in told(found)} & {"more/pure_stt/model.safetensors", "more/pure_stt/config.json"}
    monkeypatch.setattr(verification, "_MOST_MODELS", 2)
    assert ("size", "") in told(verify(folder))


def test_a_run_of_trainer_has_nothing_wrong_but_its_pickles(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "checkpoint-2")
    shutil.move(folder.parent / "checkpoint-2", folder / "checkpoint-2")
    (folder / "checkpoint-2" / "optimizer.pt").write_bytes(torch_file())
    (folder / "trainer_state.json").write_text("{}")
    assert told(verify(folder)) == [("pickle", "checkpoint-2/optimizer.pt")]


def test_the_models_have_what_makes_them_hard(saved: Callable[[str], Path]) -> None:
    """Names of older transformers releases, and weights that are tied or not there."""
    legacy = load_file(saved("vit") / WEIGHTS), load_file(saved("videomae_base") / WEIGHTS)
    assert any(".attention.attention.query." in key for key in legacy[0])
    assert any(key.endswith(".q_bias") for key in legacy[1])
    assert "cls.predictions.decoder.weight" not in load_file(saved("tied") / WEIGHTS)
    assert not any(".query." in key or ".q_proj." in key for key in load_file(saved("pure_stt") / WEIGHTS))
    assert json.loads((saved("plain_fusion") / "config.json").read_text()).get("hf_lam") is None


def test_shards_and_a_processor_pass(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat"]))
    processor = HfLamFusionProcessor(
        tokenizer=BertTokenizerFast(str(tmp_path / "words.txt")), image_processor=ViTImageProcessor()
    )
    target = tmp_path / "model"
    MODELS["fusion"]().save_pretrained(target, max_shard_size="60KB")
    processor.save_pretrained(target)
    (target / "README.md").write_text("---\nlibrary_name: transformers\n---\n# A card\n")
    (target / "LICENSE").write_text("Apache")
    (target / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (target / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    assert len(list(target.glob("model-*.safetensors"))) > 2
    result = verify(target)
    assert result.findings == ()
    assert {INDEX, "processing_hf_lam.py", "tokenizer.json", "processor_config.json"} <= set(result.reads)
    assert not {"README.md", "mask.png", "stt_analysis.py"} & set(result.reads)


def test_a_family_alone_a_base_without_pooler_and_half_precision_pass(tmp_path: Path) -> None:
    model = make_lam(BertModel, "bert")
    HfLamBertModel(model.config, add_pooling_layer=False).half().save_pretrained(tmp_path)
    for name in ("configuration_hf_lam_fusion.py", "modeling_hf_lam_fusion.py", "processing_hf_lam.py"):
        (tmp_path / name).unlink()
    result = verify(tmp_path)
    assert result.findings == ()
    assert len(result.code) == len(TRAVELLING_FILES) - 3


def test_what_loading_touches(saved: Callable[[str], Path]) -> None:
    result = verify(str(saved("bert")))
    assert result.source == str(saved("bert"))
    assert {"torch", "transformers", "os", "shutil"} <= set(result.imports)
    assert {"subprocess", "socket", "pickle", "__future__", "views_hf_lam"}.isdisjoint(result.imports)
    assert {"config.json", WEIGHTS, "modeling_hf_lam.py", "views_hf_lam.py"} <= set(result.reads)
    assert "processing_hf_lam.py" not in result.reads
    (place,) = result.writes
    assert Path(place).name == "transformers_modules"
    as_json = json.loads(json.dumps(result.to_dict()))
    assert as_json["passed"] is True
    assert as_json["findings"] == []


def test_a_snapshot_in_the_cache_passes(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "abc", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(i))
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    assert verify(snapshot).findings == ()


def test_what_git_and_the_client_keep_in_a_folder_is_no_part_of_it(folder: Path) -> None:
    for name in (".git/hooks/commit.sample", ".cache/huggingface/download/a.lock"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("#!/bin/sh\n")
    assert verify(folder).findings == ()


# Code.


@pytest.mark.parametrize("name", TRAVELLING_FILES)
def test_one_changed_byte_in_any_code_file(folder: Path, name: str) -> None:
    data = bytearray(CODE[name])
    data[data.index(b".")] = ord(",")  # in the docstring, so that it still is Python
    (folder / name).write_bytes(data)
    result = verify(folder)
    finding, *calls = result.findings
    assert (finding.kind, finding.file) == ("code", name)
    assert "not that of a released hf_lam" in finding.message
    assert {(call.kind, call.file) for call in calls} <= {("call", name)}
    assert result.version is None


def test_line_ends_and_one_byte_more_are_changes() -> None:
    name = "views_hf_lam.py"
    for changed in (CODE[name].replace(b"\n", b"\r\n"), CODE[name] + b"\n", CODE[name][:-1]):
        code = check_code(Files({name: changed}), {__version__: HASHES}, None)
        assert code.version is None and [f.file for f in code.findings] == [name]


@pytest.mark.parametrize("name", ["extra.py", "sub/extra.py", "sub/views_hf_lam.py", "__init__.py", "Extra.PY"])
def test_an_extra_python_file(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(CODE["views_hf_lam.py"] if name.endswith("views_hf_lam.py") else b"x = 1\n")
    result = verify(folder)
    assert ("code", name) in told(result)
    assert result.version is None
    assert name in result.code


def test_mixed_and_older_versions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {name: hashlib.sha256(data + b"# old\n").hexdigest() for name, data in CODE.items()}
    monkeypatch.setattr(verification, "released_code", lambda: {"0.0.1": old, __version__: HASHES})
    (folder / "views_hf_lam.py").write_bytes(CODE["views_hf_lam.py"] + b"# old\n")
    result = verify(folder)
    assert only(result).file == "views_hf_lam.py"
    assert "0.0.1" in only(result).message and __version__ in only(result).message
    assert result.version is None
    for name in TRAVELLING_FILES:
        (folder / name).write_bytes(CODE[name] + b"# old\n")
    result = verify(folder)
    assert result.version == "0.0.1"
    assert told(result) == [("config", "config.json")]  # which was written by the newer one
    edit(
        folder / "config.json",
        hf_lam=json.loads((folder / "config.json").read_text())["hf_lam"] | {"version": "0.0.1"},
    )
    assert verify(folder).findings == ()
    monkeypatch.setattr(verification, "released_code", lambda: {__version__: HASHES})
    assert {f.file for f in verify(folder).findings} == set(TRAVELLING_FILES)


def test_a_missing_file_of_the_closure(folder: Path) -> None:
    (folder / "views_hf_lam.py").unlink()
    findings = verify(folder).findings
    assert findings and all(f.kind == "code" and "views_hf_lam.py, which is not here" in f.message for f in findings)


def test_no_code_at_all(folder: Path) -> None:
    for name in TRAVELLING_FILES:
        (folder / name).unlink()
    edit(folder / "config.json", auto_map=...)
    result = verify(folder)
    assert "no code of hf_lam" in only(result).message
    assert result.writes == ()


EVIL = """
import os as system_calls
from urllib import request as r
import torch
def f(x):
    system_calls.system("true")
    r.urlopen("https://evil.example:8080/x")
    return torch.load(x), getattr(__import__("subprocess"), "run")
eval("1")
"""


def test_what_unreleased_code_does_is_listed_and_not_done(folder: Path) -> None:
    (folder / "stt_hf_lam.py").write_bytes(CODE["stt_hf_lam.py"] + EVIL.encode() + b"raise SystemExit('it was run')\n")
    result = verify(folder)
    first = CODE["stt_hf_lam.py"].count(b"\n")
    calls = {finding.message for finding in result.findings if finding.kind == "call"}
    expected = {6: "os.system", 7: "urllib.request.urlopen", 8: "torch.load", 9: "eval"}
    for line, name in expected.items():
        assert f"line {first + line} uses {name}" in calls
    assert any("__import__" in call for call in calls)
    assert result.hosts == ("evil.example:8080",)
    (folder / "stt_hf_lam.py").write_text("def broken(:\n")
    assert any("is not Python" in finding.message for finding in verify(folder).findings)


# References to elsewhere.


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"auto_map": {"AutoModel": "evil/repo--modeling_hf_lam.HfLamBertModel"}}),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": [None, "evil/repo--a.B"]}}),
        ("processor_config.json", {"image_processor": {"auto_map": {"AutoProcessor": "evil/repo--a.B"}}}),
        ("tokenizer_config.json", {"auto_map": ["evil/repo--a.B", None]}),
        ("other.json", {"custom_pipelines": {"x": {"impl": "evil/repo--a.B"}}}),
        ("config.json", {"attn_implementation": "evil/repo"}),
        ("config.json", {"text_config": {"attn_implementation": {"": "evil/repo"}}}),
        ("adapter_config.json", {"base_model_name_or_path": "evil/repo"}),
    ],
)
def test_another_repository(folder: Path, file: str, changes: dict[str, Any]) -> None:
    if "auto_map" in changes and file == "config.json":
        changes = {"auto_map": json.loads((folder / file).read_text())["auto_map"] | changes["auto_map"]}
    edit(folder / file, **changes)
    result = verify(folder)
    finding = only(result)
    assert (finding.kind, finding.file) == ("repository", file)
    assert "evil/repo" in finding.message
    assert result.hosts == ("huggingface.co",)


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        ("gone.Class", "auto_map"),
        ("modeling_hf_lam.NoSuchClass", "auto_map"),
        ("modeling_hf_lam.nn", "auto_map"),
        ("a.b.C", "auto_map"),
        (7, "auto_map"),
        ("../outside.Class", "path"),
        ("/tmp/outside.Class", "path"),
        ("sub/inside.Class", "path"),
    ],
)
def test_a_class_that_is_not_here(folder: Path, reference: Any, kind: str) -> None:
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    edit(folder / "config.json", auto_map=auto_map | {"AutoModelForCausalLM": reference})
    finding = only(verify(folder))
    assert (finding.kind, finding.file) == (kind, "config.json")
    assert repr(reference) in finding.message


def test_code_that_nothing_names(folder: Path) -> None:
    edit(folder / "config.json", auto_map=...)
    assert only(verify(folder)).kind == "auto_map"


AUDIO = {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": "evil/repo"}


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("audio_tokenizer_config.json", AUDIO),
        ("processor_config.json", {"audio_tokenizer": AUDIO}),
        ("preprocessor_config.json", {"audio_tokenizer_name_or_path": "evil/repo"}),
        ("preprocessor_config.json", {"repo_path": "evil/repo"}),
    ],
)
def test_a_processor_that_loads_another_repository(folder: Path, file: str, changes: dict[str, Any]) -> None:
    edit(folder / file, **changes)
    result = verify(folder)
    assert {(finding.kind, finding.file) for finding in result.findings} == {("repository", file)}
    assert "evil/repo" in result.findings[0].message
    assert file in result.reads


@pytest.mark.parametrize(
    ("key", "known", "strange"),
    [
        (
            "processor_class",
            ["HfLamFusionProcessor", "CLIPProcessor"],
            ["DiaProcessor", "MgpstrProcessor", ["CLIPProcessor"]],
        ),
        (
            "tokenizer_class",
            [
                None,
                "BertTokenizer",
                "RobertaTokenizerFast",
                "T5Tokenizer",
                "PreTrainedTokenizerFast",
                "TokenizersBackend",
            ],
            ["BertJapaneseTokenizer", "MarianTokenizer", "TapexTokenizer", 3],
        ),
        ("image_processor_type", ["ViTImageProcessorFast", "ViTFeatureExtractor"], ["OneFormerImageProcessor"]),
        ("feature_extractor_type", ["ASTFeatureExtractor"], ["DiaFeatureExtractor"]),
        ("video_processor_type", ["VideoMAEVideoProcessor", "VideoMAEImageProcessorPil"], ["Sam2VideoProcessor"]),
    ],
)
def test_classes_that_may_load_something_else(key: str, known: list[Any], strange: list[Any]) -> None:
    for name in known:
        assert check_references({"processor_config.json": {"a": {key: name}}}) == []
    for name in strange:
        (finding,) = check_references({"processor_config.json": {"a": {key: name}}})
        assert (finding.kind, repr(name) in finding.message) == ("repository", True)


def test_classes_that_are_known_are_in_transformers() -> None:
    """Not misspelt. Some of each name are of other releases."""
    for name in file_checks._TOKENIZERS.split():
        assert hasattr(transformers, f"{name}Tokenizer") or hasattr(transformers, f"{name}TokenizerFast"), name
    for name in file_checks._IMAGE_PROCESSORS.split():
        assert hasattr(transformers, f"{name}ImageProcessor"), name


@pytest.mark.parametrize("value", ["flash_attention_2", "kernels-community/x", {"text_config": "paged|sdpa"}, 7])
def test_attention_that_transformers_may_fetch(folder: Path, value: Any) -> None:
    edit(folder / "config.json", _attn_implementation=value)
    assert only(verify(folder)).kind == "repository"
    for usual in (None, "eager", "sdpa", {"": "flex_attention"}):
        edit(folder / "config.json", _attn_implementation=usual)
        assert verify(folder).passed


@pytest.mark.parametrize(
    "encoder",
    [
        {"model_type": "timm_wrapper", "architecture": "hf-hub:evil/x"},
        {"model_type": "dpt", "backbone_config": {"model_type": "timm_backbone"}},
        {"model_type": "gpt2"},
        {"model_type": "vit", "inner": [{"model_type": ["vit"]}]},
    ],
)
def test_encoders_that_are_not_built(
    saved: Callable[[str], Path], tmp_path: Path, encoder: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(shutil.copytree(saved("plain_fusion"), tmp_path / "model"))
    edit(target / "config.json", image_config=encoder)
    monkeypatch.setattr(weight_checks, "_build", lambda *_: pytest.fail("it was built"))
    assert "which verify does not build" in verify(target).findings[-1].message


@pytest.mark.parametrize("changes", [{"vocab_file": "/etc/passwd"}, {"use_timm_backbone": True}])
def test_nothing_is_built_of_a_configuration_that_reaches_out(
    folder: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(folder / "config.json", **changes)
    monkeypatch.setattr(weight_checks, "_build", lambda *_: pytest.fail("it was built"))
    assert only(verify(folder)).kind in ("path", "repository")


def test_encoders_of_other_families_pass(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}
    text = DistilBertConfig(vocab_size=99, dim=32, n_layers=1, n_heads=4, hidden_dim=37)
    for image in (Dinov2Config(**sizes), CLIPVisionConfig(**sizes, intermediate_size=37)):
        config = HfLamFusionConfig(text_config=text, image_config=image, num_hidden_layers=1)
        HfLamFusionModel(config).save_pretrained(tmp_path)
        assert verify(tmp_path).findings == ()


def test_what_people_add_to_a_configuration_passes(folder: Path) -> None:
    edit(
        folder / "config.json",
        seed=123456789,
        train_tokens=3 * 10**12,
        trained_at=1763748000,
        task_specific_params={"x": {"max_length": 10**8}},
        _name_or_path="/home/me/bert",
    )
    edit(folder / "tokenizer_config.json", special_tokens_map_file="/home/me/special_tokens_map.json")
    (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": "/tmp/run", "x": "y" * 2_100_000}))
    assert verify(folder).findings == ()


# Pickles, programs, unknown files.


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"attribute_map": {"task_names": "auto_map"}, "task_names": {"AutoModel": "user/evil--modeling.Evil"}}, None),
        ({"attribute_map": {"foo": "custom_pipelines"}, "foo": {}}, None),
        ({"attribute_map": {"foo": "_attn_implementation_internal"}, "foo": "kernels-community/evil"}, None),
        ({"auto_classes": {"AutoModel": "user/evil--modeling.Evil"}}, "auto_classes would replace"),
        ({"save_pretrained": "x"}, "save_pretrained would replace"),
        ({"from_dict": None}, "from_dict would replace"),
    ],
)
def test_keys_that_change_what_a_configuration_is(
    folder: Path, changes: dict[str, Any], kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*args: Any) -> Any:
        raise AssertionError("a model was built")

    monkeypatch.setattr(weight_checks, "_build", build)
    edit(folder / "config.json", **changes)
    finding = only(verify(folder))
    assert finding.file == "config.json"
    assert (kind or "attribute_map") in finding.message


def test_in_an_encoder_too(saved: Callable[[str], Path], tmp_path: Path) -> None:
    fusion = Path(shutil.copytree(saved("fusion"), tmp_path / "fusion"))
    config = json.loads((fusion / "config.json").read_text())
    config["image_config"]["attribute_map"] = {"foo": "auto_map"}
    (fusion / "config.json").write_text(json.dumps(config))
    assert "attribute_map" in verify(fusion).findings[0].message


def test_files_that_cannot_be_read_are_findings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "notes.txt").write_text("mine")
    opened = open

    def refuse(path: Any, *rest: Any, **options: Any) -> Any:
        if str(path).endswith("notes.txt"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest, **options)

    monkeypatch.setattr("builtins.open", refuse)
    assert only(verify(folder)).file == "notes.txt"


def torch_file(legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "a.pkl", "sub/a.NPY", "a.ckpt"]
)
def test_a_pickle_by_its_name(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    assert told(verify(folder)) == [("pickle", name)]


@pytest.mark.parametrize("name", ["vocab.txt", "model.safetensors", "LICENSE", "picture.png"])
@pytest.mark.parametrize("data", [torch_file(), torch_file(legacy=True), pickle.dumps(os.getcwd, protocol=0)])
def test_a_pickle_under_another_name(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    findings = verify(folder).findings
    assert ("pickle", name) in {(finding.kind, finding.file) for finding in findings}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_told_from_texts(protocol: int) -> None:
    assert is_pickle(pickle.dumps(os.getcwd, protocol=protocol))
    assert is_pickle(pickle.dumps([torch.Size([2]), "x" * 99999], protocol=protocol)[:65536]) or protocol < 2
    for text in (
        b"",
        b"[PAD]\n[UNK]\ncat\n",
        b"cat\ndog\nin\n.\n",
        b"---\ntags: []\n---\n",
        b"{}",
        b"I am.\n",
        b"\x80\x02",
    ):
        assert not is_pickle(text)


def test_a_header_that_begins_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    """The length of the header, 640 bytes, is stored as `80 02`, like a pickle of protocol 2."""
    for filler in range(2, 700):
        save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"x": "y" * filler})
        if (tmp_path / "a.safetensors").read_bytes()[:2] == b"\x80\x02":
            break
    assert (tmp_path / "a.safetensors").read_bytes()[:2] == b"\x80\x02"
    assert check_kinds(LocalFiles(tmp_path)) == []


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("views_hf_lam.cpython-311.pyc", b"", "binary"),
        ("lib/kernel.so", b"", "binary"),
        ("notes.txt", b"\x7fELF\x02", "binary"),
        ("notes.md", b"#!/bin/sh\n", "binary"),
        ("run.sh", b"echo\n", "file"),
        ("notebook.ipynb", b"{}", "file"),
        ("archive.tar", b"", "file"),
        ("model.onnx", b"", "weights"),
        ("tf_model.h5", b"", "weights"),
        ("more.safetensors", b"", "weights"),
        ("broken.json", b"{", "config"),
    ],
)
def test_other_files(folder: Path, name: str, data: bytes, kind: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    assert (kind, name) in told(verify(folder))


# Weights.


def test_a_config_that_disagrees_with_the_weights(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=41)
    findings = verify(folder).findings
    assert {finding.kind for finding in findings} == {"weights"}
    message = "encoder.layer.0.intermediate.dense.weight has shape [37, 32], but the configuration says [41, 32]"
    assert any(message in finding.message for finding in findings)
    edit(folder / "config.json", intermediate_size=37, num_hidden_layers=4)
    findings = verify(folder).findings
    assert all(".3." in finding.message and finding.message.endswith("is missing") for finding in findings)
    assert len(findings) == 20


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"classifier.bias": torch.zeros(5)}), r"^classifier.bias has shape \[5\], but .* \[2\]$"),
        (lambda t: t.pop("classifier.weight"), r"^classifier.weight with shape \[2, 32\] is missing$"),
        (lambda t: t.update(extra=torch.zeros(3, 4)), r"^extra with shape \[3, 4\] is no tensor"),
        (
            lambda t: t.update({"classifier.bias": torch.zeros(2).char()}),
            "^classifier.bias is stored as I8",
        ),
        (lambda t: t.pop(next(key for key in t if "hf_lam" in key)), r"hf_lam.*\] is missing$"),
        (lambda t: t.pop("bert.pooler.dense.bias"), r"^bert.pooler.dense.bias with shape \[32\] is missing$"),
    ],
)
def test_tensors_that_do_not_fit(folder: Path, change: Callable[..., Any], message: str) -> None:
    change_weights(folder, change)
    finding = only(verify(folder))
    assert (finding.kind, finding.file) == ("weights", WEIGHTS)
    assert re.search(message, finding.message)


def test_tied_weights_must_be_there_once(saved: Callable[[str], Path], tmp_path: Path) -> None:
    target = Path(shutil.copytree(saved("tied"), tmp_path / "model"))
    name = "bert.embeddings.word_embeddings.weight"
    change_weights(target, lambda t: t.update({"cls.predictions.decoder.weight": t[name].clone()}))
    assert verify(target).findings == ()
    change_weights(target, lambda t: (t.pop(name), t.pop("cls.predictions.decoder.weight")))
    assert "is missing" in only(verify(target)).message


def test_one_weight_under_its_old_and_its_new_name(saved: Callable[[str], Path], tmp_path: Path) -> None:
    target = Path(shutil.copytree(saved("vit"), tmp_path / "model"))
    now = {name for name, _ in MODELS["vit"]().named_parameters()}

    def add_new_name(tensors: dict[str, torch.Tensor]) -> None:
        legacy = next(key for key in tensors if key.endswith("layer.0.attention.attention.query.weight"))
        new = next(key for key in now if "layers.0." in key and key.endswith("q_proj.weight"))
        tensors[new] = tensors[legacy].clone()

    change_weights(target, add_new_name)
    assert "under an old name and a new one" in only(verify(target)).message


def test_many_wrong_tensors_are_summed_up(folder: Path) -> None:
    change_weights(folder, lambda t: t.update({f"extra.{i}": torch.zeros(1) for i in range(100)}))
    findings = verify(folder).findings
    assert 10 < len(findings) < 30
    assert "80 more" in findings[-1].message


@pytest.mark.parametrize("cut", [1, 5000])
def test_truncated_weights(folder: Path, cut: int) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-cut])
    assert ("weights", WEIGHTS) in told(verify(folder))
    (folder / WEIGHTS).write_bytes(data + bytes(cut))  # something behind the end
    assert ("weights", WEIGHTS) in told(verify(folder))


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


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_weights(folder: Path, name: str) -> None:
    data, message = DAMAGED[name]
    (folder / WEIGHTS).write_bytes(data)
    finding = only(verify(folder))
    assert (finding.kind, finding.file) == ("weights", WEIGHTS)
    assert message in finding.message
    if "no tensors" not in message:
        with pytest.raises(SafetensorError):  # which is what would load them
            load_file(folder / WEIGHTS)


def test_a_configuration_is_checked_without_weights(folder: Path) -> None:
    edit(folder / "config.json", hf_lam={"version": __version__, "warp": {}})
    for change in (
        lambda: (folder / WEIGHTS).write_bytes(file_of({})),
        lambda: (folder / WEIGHTS).unlink(),
        lambda: edit(folder / INDEX, metadata={}, weight_map={}),
    ):
        change()
        kinds = [finding.kind for finding in verify(folder).findings]
        assert kinds == ["weights", "config"]


@pytest.mark.parametrize("text", ["\ufeff{}", "{", '{"a": ' + "1" * 5001 + "}", "x" * 2_000_001, "[]"])
def test_a_configuration_that_cannot_be_read_is_one_finding(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    finding = only(verify(folder))
    assert finding.file == "config.json"


def test_an_index_that_cannot_be_read_is_one_finding(shards: Path) -> None:
    (shards / INDEX).write_text("{")
    assert told(verify(shards)) == [("config", INDEX)]


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert "no weights" in only(verify(folder)).message


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    make_lam(BertForSequenceClassification, "bert").save_pretrained(tmp_path / "model", max_shard_size="40KB")
    assert verify(tmp_path / "model").passed
    return tmp_path / "model"


def test_an_index_that_is_not_that_of_the_shards(shards: Path) -> None:
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    first, *_, last = sorted(set(weight_map.values()))
    key = next(key for key, shard in weight_map.items() if shard == first)

    def findings(weight_map: dict[str, Any]) -> tuple[Any, ...]:
        edit(shards / INDEX, weight_map=weight_map)
        return verify(shards).findings

    assert any(f"lacks {key}" in finding.message for finding in findings(weight_map | {key: last}))
    assert any(f"lacks {'x'}" in finding.message for finding in findings(weight_map | {"x": last}))
    without = {other: shard for other, shard in weight_map.items() if other != key}
    assert any(f"holds {key}" in finding.message for finding in findings(without))
    assert any("which is not here" in finding.message for finding in findings(weight_map | {key: "gone.safetensors"}))
    assert any("which is not safetensors" in f.message for f in findings(weight_map | {key: "config.json"}))
    assert any("no weight_map" in finding.message for finding in findings({key: 3}))
    for path in ("../outside.safetensors", "/tmp/outside.safetensors", "..\\outside.safetensors", "C:\\x.safetensors"):
        outside = [f for f in findings(weight_map | {key: path}) if f.kind == "path"]
        assert [(f.file, repr(path) in f.message) for f in outside] == [(INDEX, True)]
    assert findings(weight_map) == ()
    shutil.copy(shards / first, shards / "extra.safetensors")
    assert told(verify(shards)) == [("weights", "extra.safetensors")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hf_lam": {"version": "9.9.9", "lam": {"warp": 1}}}, "warp"),
        ({"hf_lam": {"version": "9.9.9", "hyper": {}}}, "hyper"),
        ({"hidden_size": 33}, "is refused"),
        ({"hidden_size": "wide"}, "is refused"),
        ({"model_type": "bert"}, "model type 'bert'"),
        ({"model_type": ["bert"]}, "model type"),
        ({"architectures": ["BertForSequenceClassification"]}, "architectures"),
        ({"architectures": ...}, "architectures"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized"),
        # Nothing of that size is made.
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
        ({"num_labels": 10**8}, "num_labels"),
        ({"vocab_size": 10**4000}, "vocab_size is a number of 4001 digits"),
        ({"hf_lam": {"lam": {"rank": 10**9}}}, "rank is 1000000000"),
    ],
)
def test_a_config_that_hf_lam_does_not_take(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder / "config.json", **changes)
    findings = [finding for finding in verify(folder).findings if finding.kind == "config"]
    assert any(message in finding.message for finding in findings)
    assert {finding.file for finding in findings} == {"config.json"}


def test_a_picture_of_too_many_tokens_is_not_built(saved: Callable[[str], Path], tmp_path: Path) -> None:
    target = Path(shutil.copytree(saved("videomae"), tmp_path / "model"))
    edit(target / "config.json", image_size=60_000)
    assert "tokens" in only(verify(target)).message


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert ("config", "config.json") in told(verify(folder))


def test_weights_that_the_config_names(folder: Path) -> None:
    edit(folder / "config.json", transformers_weights="../../outside.safetensors")
    assert ("path", "config.json") in told(verify(folder))
    (folder / WEIGHTS).rename(folder / "mine.safetensors")
    edit(folder / "config.json", transformers_weights="mine.safetensors")
    assert verify(folder).findings == ()
    edit(folder / "config.json", transformers_weights="mine.bin")
    assert ("weights", "mine.safetensors") in told(verify(folder))


# Paths and sizes.


@pytest.mark.parametrize("target", ["../secret.txt", "/etc/hostname", "../folder", "nowhere.txt", "."])
def test_links_are_not_followed_out(folder: Path, target: str) -> None:
    (folder.parent / "secret.txt").write_text("secret")
    (folder.parent / "folder").mkdir()
    (folder.parent / "folder" / "evil.py").write_text("x = 1\n")
    (folder / "vocab.txt").symlink_to(target)
    result = verify(folder)
    assert (only(result).kind, only(result).file) == ("path", "vocab.txt")
    assert "vocab.txt" not in result.reads


def test_a_linked_code_file_is_not_read_from_outside(folder: Path) -> None:
    (folder / "views_hf_lam.py").rename(folder.parent / "views_hf_lam.py")
    (folder / "views_hf_lam.py").symlink_to("../views_hf_lam.py")
    result = verify(folder)
    assert ("path", "views_hf_lam.py") in told(result)
    assert "views_hf_lam.py" not in result.code


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no pipes")
def test_a_pipe_is_not_read(folder: Path) -> None:
    os.mkfifo(folder / "vocab.txt")
    assert only(verify(folder)).kind == "path"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_file", "../../etc/passwd"),
        ("vocab_file", "/etc/passwd"),
        ("merges_file", "C:\\secret"),
        ("tokenizer_file", "~/secret"),
        ("vocab_file", "https://evil/x"),
        *((key, "/etc/passwd") for key in ("vocab", "merges", "source_spm", "target_spm", "data_dir", "mecab_path")),
    ],
)
def test_a_tokenizer_file_elsewhere(folder: Path, key: str, value: str) -> None:
    edit(folder / "tokenizer_config.json", **{key: value})
    finding = only(verify(folder))
    assert (finding.kind, finding.file) == ("path", "tokenizer_config.json")
    assert repr(value) in finding.message
    edit(folder / "tokenizer_config.json", **{key: "vocab.txt"})
    assert verify(folder).passed


def test_which_paths_leave_a_folder() -> None:
    assert not any(map(leaves_folder, ["a", "a/b.txt", "a..b", "...", "a/.b", "modeling_hf_lam.Class"]))
    assert all(map(leaves_folder, ["..", "a/../b", "/a", "\\a", "a\\..\\b", "c:a", "file:///a", "~", "a\0b"]))


def test_what_stands_in_for_the_usual_files(folder: Path) -> None:
    edit(folder / "config.json", configuration_files=["config.4.0.0.json"])
    assert told(verify(folder)) == [("config", "config.json")]
    references = {"tokenizer_config.json": {"init_inputs": [["/etc/passwd"], 3, "vocab.txt"]}}
    assert [finding.kind for finding in check_references(references)] == ["path"]
    assert check_references({"tokenizer_config.json": {"vocab": [["/", 0.1], ["..", 0.2]], "merges": ["/ /"]}}) == []


def test_pretrained_backbones_are_other_repositories() -> None:
    for config in ({"use_pretrained_backbone": True}, {"a": [{"model_type": "timm_wrapper"}]}):
        assert [finding.kind for finding in check_references({"config.json": config})] == ["repository"]
    assert check_references({"config.json": {"use_pretrained_backbone": False, "backbone_config": None}}) == []


def test_large_files_and_nested_ones_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "deep.json").write_text("[" * 100_000)
    assert told(verify(folder)) == [("config", "deep.json")]
    (folder / "deep.json").unlink()
    monkeypatch.setattr(repository_files, "MAX_BYTES", 100_000)
    (folder / "large.json").write_text('"' + "x" * 100_000 + '"')
    (folder / "tokenizer.json").write_text('"' + "x" * 100_000 + '"')  # this may be large
    assert told(verify(folder)) == [("size", "large.json")]
    monkeypatch.setattr(repository_files, "MAX_TOTAL_BYTES", 50_000)
    assert {"size"} <= {kind for kind, _ in told(verify(folder))}
    monkeypatch.setattr(repository_files, "MAX_FILES", 3)
    assert ("size", "") in told(verify(folder))


# Arguments.


def test_bad_arguments(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="revision='main' has no meaning for the folder"):
        verify(folder, revision="main")
    for source in (tmp_path / "gone", "./gone", "a/b/c", str(folder / "config.json"), ""):
        with pytest.raises(ValueError, match="neither a folder"):
            verify(source)
    with pytest.raises(TypeError, match="a folder or the id"):
        verify(3)  # type: ignore[arg-type]


# What would take long.


def test_unknown_code_is_parsed_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        code_checks, "_parse", lambda source: seen.append(source) or code_checks.Module(*[frozenset()] * 5)
    )
    monkeypatch.setattr(code_checks, "_MOST_PARSED", 100)
    monkeypatch.setattr(code_checks, "_MOST_PARSED_IN_ALL", 150)
    contents = {
        "long.py": b"a" * 101,
        "a.py": b"a" * 100,
        "b.py": b"b" * 51,
        "views_hf_lam.py": CODE["views_hf_lam.py"],
    }
    code = check_code(Files(contents), {__version__: HASHES}, None)
    assert [len(source) for source in seen] == [100, len(CODE["views_hf_lam.py"])]
    assert [finding.file for finding in code.findings if finding.kind == "size"] == ["long.py", "b.py"]
    assert {finding.file for finding in code.findings if finding.kind == "code"} == {"long.py", "a.py", "b.py"}


def test_only_the_longest_names_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    dotted = code_checks._dotted
    monkeypatch.setattr(code_checks, "_dotted", lambda node: lengths.append(len(dotted(node) or "")) or dotted(node))
    source = b"import os\nos.system" + b".b" * 80 + b"\nos.environ.x = 1\neval.__call__('1')\nopen = 3\nf(os.path).g\n"
    code = check_code(Files({"a.py": source}), {}, None)
    assert max(lengths) == 169 and len(lengths) < 12
    calls = [finding.message for finding in code.findings if finding.kind == "call"]
    assert calls[0].startswith("line 2 uses os.system.b.b") and len(calls[0]) < 130
    assert calls[1:] == ["line 3 uses os.environ.x", "line 4 uses eval"]


def test_json_is_parsed_up_to_a_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "large.json").write_text('"' + "x" * 2_000_000 + '"')
    assert told(verify(folder)) == [("size", "large.json")]
    (folder / "large.json").rename(folder / "large.index.json")
    assert verify(folder).passed
    monkeypatch.setattr(file_checks, "_MOST_JSON_BYTES", 2_000_010)
    assert {kind for kind, _ in told(verify(folder))} == {"size"}


def test_headers_are_read_up_to_a_size_and_only_those_that_are_loaded(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(file.name for file in shards.glob("*.safetensors"))
    shutil.copy(shards / names[0], shards / "extra.safetensors")
    asked = []
    tensors = LocalFiles.tensors
    monkeypatch.setattr(LocalFiles, "tensors", lambda self, name: asked.append(name) or tensors(self, name))
    assert told(verify(shards)) == [("weights", "extra.safetensors")]
    assert asked == names
    (shards / "extra.safetensors").unlink()
    lengths = [int.from_bytes((shards / name).read_bytes()[:8], "little") for name in names]
    monkeypatch.setattr(repository_files, "MAX_HEADER_BYTES", sum(lengths))
    assert verify(shards).passed
    monkeypatch.setattr(repository_files, "MAX_HEADER_BYTES", sum(lengths) - 1)
    assert ("weights", names[-1]) in told(verify(shards))
    monkeypatch.setattr(weight_checks, "_MOST_SHARDS", len(names) - 1)
    assert ("size", INDEX) in told(verify(shards))


# The Hub.


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


def contents_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        server.serve(monkeypatch, tmp_path / "cache")
        yield server


def test_a_repository_at_one_commit(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.repos["user/model"] = repo = Repo()
    contents = contents_of(folder)
    good = repo.commit("main", contents, "a model")
    bad = repo.commit("evil", {**contents, "views_hf_lam.py": b"import evil\n"}, "another")
    result = verify("user/model")
    assert (result.findings, result.revision, result.version) == ((), good, __version__)
    assert result.source == "user/model"
    assert result.hosts == (hub.url.removeprefix("http://"),)
    assert str(tmp_path / "cache" / "hub" / "models--user--model") in result.writes
    result = verify("user/model", revision="evil")
    assert result.revision == bad
    assert "evil" in result.imports
    assert ("code", "views_hf_lam.py") in told(result)
    assert verify("user/model", revision=good).passed
    for request in hub.asked(r"/resolve/"):  # never a branch, which could move in between
        assert f"/resolve/{good}/" in request.path or f"/resolve/{bad}/" in request.path
    for request in hub.asked(r"\.safetensors"):  # the header alone
        assert request.headers["range"].startswith("bytes=")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_what_is_wrong_with_a_repository(hub: HubServer, folder: Path) -> None:
    hub.repos["user/model"] = repo = Repo()
    contents = contents_of(folder)

    def findings(name: str, data: bytes) -> list[tuple[str, str]]:
        repo.commit("main", contents | {name: data})
        return told(verify("user/model"))

    assert findings("pytorch_model.bin", b"") == [("pickle", "pytorch_model.bin")]
    assert findings("sub/extra.py", b"x = 1\n") == [("code", "sub/extra.py")]
    assert findings(WEIGHTS, torch_file()) == [("weights", WEIGHTS)]
    assert findings(WEIGHTS, contents[WEIGHTS][:-1]) == [("weights", WEIGHTS)]
    assert findings(WEIGHTS, contents[WEIGHTS] + b"x") == [("weights", WEIGHTS)]
    for data, message in DAMAGED.values():
        repo.commit("main", contents | {WEIGHTS: data})
        finding = only(verify("user/model"))
        assert (finding.kind, finding.file, message in finding.message) == ("weights", WEIGHTS, True)
    assert findings("../outside.txt", b"") == [("path", "../outside.txt")]
    assert findings("README.md", b"# A card") == []


def test_what_is_not_on_the_hub(hub: HubServer) -> None:
    with pytest.raises(ValueError, match="'user/none' is neither a folder here nor a model repository"):
        verify("user/none")
    hub.repos["user/model"] = Repo()
    with pytest.raises(ValueError, match="'user/model' has no branch, tag or commit 'none'"):
        verify("user/model", revision="none")
    hub.fail("GET /api/models/", status=403, times=9)
    with pytest.raises(HfHubHTTPError, match="403"):
        verify("user/model")


CHILD = """
import json, sys
from hf_lam.hub import verification
verification.released_code = lambda: {"1.0": json.loads(sys.argv[2])}
result = verification.verify(sys.argv[1], revision="main")
assert not any(name.startswith("transformers_modules") for name in sys.modules)
assert not any("pickle" in finding.kind for finding in result.findings)
print(json.dumps(result.to_dict()))
"""


@pytest.mark.slow
def test_verification_in_a_fresh_process_imports_nothing_of_the_repository(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text((folder / "config.json").read_text().replace(f'"{__version__}"', '"1.0"'))
    contents = contents_of(folder)
    # It would not go unnoticed: as code that is known, but ends the process that imports it.
    contents["modeling_hf_lam.py"] += b"\nraise SystemExit(77)\n"
    hashes = {name: hashlib.sha256(contents[name]).hexdigest() for name in TRAVELLING_FILES}
    with HubServer() as server:
        server.repos["user/model"] = repo = Repo()
        sha = repo.commit("main", contents)
        environment = server.environment(tmp_path / "cache", token=None)
        printed = run_code(CHILD, "user/model", json.dumps(hashes), environment=environment)
        result = json.loads(printed.splitlines()[-1])
        assert (result["passed"], result["findings"]) == (True, [])
        assert (result["revision"], result["version"]) == (sha, "1.0")
        ranges = [request.headers["range"] for request in server.asked(r"GET .*\.safetensors")]
        assert ranges == ["bytes=0-99999"]  # as much as headers usually have
    cached = [file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert cached and len(contents[WEIGHTS]) not in cached
    assert not (tmp_path / "cache" / "modules").exists()
