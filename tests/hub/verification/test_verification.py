"""`verify`: what it passes, what code and references it catches, and repositories on the Hub."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file
from transformers import (
    BertModel,
    BertTokenizerFast,
    CLIPVisionConfig,
    Dinov2Config,
    DistilBertConfig,
    ViTImageProcessor,
)

from helpers.hub_server import HubServer, Repo
from helpers.lam_models import make_lam
from helpers.processes import run_code
from helpers.verification import (
    CODE,
    DAMAGED,
    HASHES,
    INDEX,
    MODELS,
    WEIGHTS,
    Files,
    edit,
    only,
    told,
    torch_file,
)
from hf_lam import HfLamBertModel, HfLamFusionConfig, HfLamFusionModel, HfLamFusionProcessor, __version__
from hf_lam.hub import file_checks, finite_weights, verification, weight_checks
from hf_lam.hub.code_checks import check_code
from hf_lam.hub.file_checks import check_references
from hf_lam.hub.verification import verify
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES

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
    with (folder / "more" / "vit" / "locomt_views_hf_lam.py").open("ab") as file:
        file.write(b"\n")
    edit(folder / "more" / "pure_stt" / "config.json", hidden_size=64)
    (folder / "more" / "extra.py").write_text("print()")
    found = verify(folder)
    assert found.version is None
    assert {("code", "more/vit/locomt_views_hf_lam.py"), ("code", "more/extra.py")} <= set(told(found))
    assert {file for _, file in told(found)} <= {
        "more/vit/locomt_views_hf_lam.py",
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
    assert {"torch", "transformers", "os", "inspect"} <= set(result.imports)
    assert {"subprocess", "socket", "pickle", "__future__", "locomt_views_hf_lam"}.isdisjoint(result.imports)
    assert {"config.json", WEIGHTS, "modeling_hf_lam.py", "locomt_views_hf_lam.py"} <= set(result.reads)
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
    name = "locomt_views_hf_lam.py"
    for changed in (CODE[name].replace(b"\n", b"\r\n"), CODE[name] + b"\n", CODE[name][:-1]):
        code = check_code(Files({name: changed}), {__version__: HASHES}, None)
        assert code.version is None and [f.file for f in code.findings] == [name]


@pytest.mark.parametrize("name", ["extra.py", "sub/extra.py", "sub/locomt_views_hf_lam.py", "__init__.py", "Extra.PY"])
def test_an_extra_python_file(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(
        CODE["locomt_views_hf_lam.py"] if name.endswith("locomt_views_hf_lam.py") else b"x = 1\n"
    )
    result = verify(folder)
    assert ("code", name) in told(result)
    assert result.version is None
    assert name in result.code


def test_mixed_and_older_versions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {name: hashlib.sha256(data + b"# old\n").hexdigest() for name, data in CODE.items()}
    monkeypatch.setattr(verification, "released_code", lambda: {"0.0.1": old, __version__: HASHES})
    (folder / "locomt_views_hf_lam.py").write_bytes(CODE["locomt_views_hf_lam.py"] + b"# old\n")
    result = verify(folder)
    assert only(result).file == "locomt_views_hf_lam.py"
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
    (folder / "locomt_views_hf_lam.py").unlink()
    findings = verify(folder).findings
    assert findings and all(
        f.kind == "code" and "locomt_views_hf_lam.py, which is not here" in f.message for f in findings
    )


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
    finding = result.findings[0]
    assert (finding.kind, finding.file) == ("repository", file)
    assert "evil/repo" in finding.message
    assert {finding.file for finding in result.findings} == {file}
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
        {"model_type": "llava"},
        {"model_type": "hf_lam_vit"},
        {"model_type": "no_such_type"},
        {"model_type": "vit", "inner": [{"model_type": ["vit"]}]},
    ],
)
def test_encoders_that_are_not_built(
    saved: Callable[[str], Path], tmp_path: Path, encoder: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(shutil.copytree(saved("plain_fusion"), tmp_path / "model"))
    edit(target / "config.json", image_config=encoder)
    monkeypatch.setattr(weight_checks, "_build", lambda *_: pytest.fail("it was built"))
    assert any("which verify does not build" in finding.message for finding in verify(target).findings)


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
    (folder / "vocab.txt").write_text("[UNK]\nhi\n")
    (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": "/tmp/run", "x": "y" * 2_100_000}))
    assert verify(folder).findings == ()


# Arguments.


def test_bad_arguments(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="revision='main' has no meaning for the folder"):
        verify(folder, revision="main")
    for source in (tmp_path / "gone", "./gone", "a/b/c", str(folder / "config.json"), ""):
        with pytest.raises(ValueError, match="neither a folder"):
            verify(source)
    with pytest.raises(TypeError, match="a folder or the id"):
        verify(3)  # type: ignore[arg-type]


# The Hub.


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
    bad = repo.commit("evil", {**contents, "locomt_views_hf_lam.py": b"import evil\n"}, "another")
    result = verify("user/model")
    assert (result.findings, result.revision, result.version) == ((), good, __version__)
    assert result.source == "user/model"
    assert result.hosts == (hub.url.removeprefix("http://"),)
    assert str(tmp_path / "cache" / "hub" / "models--user--model") in result.writes
    result = verify("user/model", revision="evil")
    assert result.revision == bad
    assert "evil" in result.imports
    assert ("code", "locomt_views_hf_lam.py") in told(result)
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


def test_weights_on_the_hub_are_read_in_slices_and_not_kept(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finite_weights, "_SLICE_BYTES", 4096)
    tensors = load_file(folder / WEIGHTS)
    tensors["classifier.bias"][1] = float("inf")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    hub.repos["user/model"] = repo = Repo()
    repo.commit("main", contents_of(folder))
    assert verify("user/model").passed
    finding = only(verify("user/model", weights=True))
    assert finding.message == "classifier.bias holds a value that is NaN or infinite"
    for request in hub.asked(r"\.safetensors"):
        first, last = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
        assert last - first < 4096 or first == 0
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_what_would_run_code_of_another_repository(hub: HubServer, folder: Path) -> None:
    hub.repos["user/model"] = repo = Repo()
    modules = [{"idx": 0, "name": "0", "path": "", "type": "user/evil--modeling_evil.Evil"}]
    repo.commit("main", contents_of(folder) | {"modules.json": json.dumps(modules).encode()})
    result = verify("user/model")
    assert told(result) == [("key", "modules.json")]
    assert "user/evil--modeling_evil.Evil" in result.findings[0].message


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
