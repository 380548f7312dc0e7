"""`verify`: pickles, damaged weights, and paths, sizes and links that no check may trip over."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    BertForSequenceClassification,
)

from helpers.lam_models import make_lam
from helpers.verification import (
    CODE,
    DAMAGED,
    HASHES,
    INDEX,
    MODELS,
    WEIGHTS,
    Files,
    edit,
    file_of,
    only,
    told,
    torch_file,
)
from hf_lam import __version__
from hf_lam.hub import code_checks, file_checks, repository_files, weight_checks
from hf_lam.hub.code_checks import check_code
from hf_lam.hub.file_checks import check_kinds, check_references, is_pickle
from hf_lam.hub.repository_files import LocalFiles, leaves_folder
from hf_lam.hub.verification import verify

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
    findings = verify(folder).findings
    assert {finding.file for finding in findings} == {"config.json"}
    assert (kind or "attribute_map") in findings[0].message


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
        ("locomt_views_hf_lam.cpython-311.pyc", b"", "binary"),
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
    (folder / "locomt_views_hf_lam.py").rename(folder.parent / "locomt_views_hf_lam.py")
    (folder / "locomt_views_hf_lam.py").symlink_to("../locomt_views_hf_lam.py")
    result = verify(folder)
    assert ("path", "locomt_views_hf_lam.py") in told(result)
    assert "locomt_views_hf_lam.py" not in result.code


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
        *((key, "/etc/passwd") for key in ("vocab", "merges", "source_spm", "target_spm")),
    ],
)
def test_a_tokenizer_file_elsewhere(folder: Path, key: str, value: str) -> None:
    (folder / "vocab.txt").write_text("[UNK]\nhi\n")
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
    (folder / "tokenizer.json").write_text('"' + "x" * 100_000 + '"')
    assert told(verify(folder)) == [("size", "large.json"), ("size", "tokenizer.json")]
    monkeypatch.setattr(repository_files, "MAX_TOTAL_BYTES", 50_000)
    assert {"size"} <= {kind for kind, _ in told(verify(folder))}
    monkeypatch.setattr(repository_files, "MAX_FILES", 3)
    assert ("size", "") in told(verify(folder))


# What would take long.


def count_parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files that are parsed from now on, and none of which says anything."""
    seen = []
    monkeypatch.setattr(
        code_checks, "_parse", lambda source: seen.append(source) or code_checks.Module(*[frozenset()] * 5)
    )
    monkeypatch.setattr(code_checks, "_RELEASED", {})
    return seen


def test_the_files_of_a_release_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = count_parsed(monkeypatch)
    for _ in range(2):
        check_code(Files({**CODE, "mine.py": b"x = 1"}), {__version__: HASHES}, None)
    assert sorted(seen) == sorted([*CODE.values(), b"x = 1", b"x = 1"])


def test_unknown_code_is_parsed_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = count_parsed(monkeypatch)
    monkeypatch.setattr(code_checks, "_MOST_PARSED", 100)
    monkeypatch.setattr(code_checks, "_MOST_PARSED_IN_ALL", 150)
    contents = {
        "long.py": b"a" * 101,
        "a.py": b"a" * 100,
        "b.py": b"b" * 51,
        "locomt_views_hf_lam.py": CODE["locomt_views_hf_lam.py"],
    }
    code = check_code(Files(contents), {__version__: HASHES}, None)
    assert seen == [contents["a.py"], CODE["locomt_views_hf_lam.py"]]
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
