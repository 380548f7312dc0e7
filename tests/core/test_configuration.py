from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

import hf_lam
from hf_lam import HfLamBertConfig, HfLamVideoMAEConfig, HfLamViTConfig, LamConfig, LocomtConfig, SttConfig

CONFIG_CLASSES = [HfLamBertConfig, HfLamViTConfig, HfLamVideoMAEConfig]
FULL_BLOCK = {"version": hf_lam.__version__, "lam": LamConfig().to_dict()}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"scope": "global"}, "scope"),
        ({"source": "input"}, "source"),
        ({"init": "zeros"}, "init"),
        ({"per_head": 1}, "per_head"),
        ({"bottleneck_size": 0}, "bottleneck_size"),
        ({"bottleneck_size": True}, "bottleneck_size"),
        ({"rank": -1}, "rank"),
        ({"rank": 2.0}, "rank"),
        ({"max_length": 0}, "max_length"),
        ({"rank": 4, "max_length": 128}, "max_length"),
    ],
)
def test_lam_config_names_the_bad_option(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LamConfig(**options)


def test_lam_config_round_trips_through_json() -> None:
    config = LamConfig(scope="shared", per_head=True, rank=3, bottleneck_size=7, init="normal")
    assert LamConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_shared_mask_reads_the_embeddings() -> None:
    assert LamConfig(scope="shared").source == "embeddings"


@pytest.mark.parametrize("config_class", CONFIG_CLASSES)
@pytest.mark.parametrize("given", [{"lam": {}}, LamConfig(), [LamConfig()], {"scope": "per_layer"}, FULL_BLOCK])
def test_the_block_is_stored_as_plain_json_with_every_option(config_class, given) -> None:
    config = config_class(hf_lam=given)
    assert config.hf_lam == FULL_BLOCK
    assert json.loads(config.to_json_string())["hf_lam"] == FULL_BLOCK


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"lam": {"scope": "x"}}, "scope must be one of"),
        ({"lam": {"ranks": 3}}, r"no option \['ranks'\]"),
        ({"lam": 3}, "must be a dictionary"),
        ({"lam": {}, "wavelets": {}, "version": "9.1.0"}, r"unknown keys \['wavelets'\].*written by hf_lam 9\.1\.0"),
        ("lam", "must be a mechanism configuration or a dictionary"),
        ([LamConfig(), LamConfig()], "given twice"),
        ([3], "expected a mechanism configuration"),
    ],
)
def test_nonsense_is_refused_when_made_when_set_and_when_loaded(block, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        HfLamBertConfig(hf_lam=block)
    config = HfLamBertConfig(hf_lam={"lam": {}})
    with pytest.raises(ValueError, match=message):
        config.hf_lam = block
    if isinstance(block, dict | str):
        config.save_pretrained(tmp_path)
        stored = json.loads((tmp_path / "config.json").read_text())
        stored["hf_lam"] = block
        (tmp_path / "config.json").write_text(json.dumps(stored))
        with pytest.raises(ValueError, match=message):
            HfLamBertConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("config_class", CONFIG_CLASSES)
def test_saving_writes_the_code_and_the_auto_map_of_the_family(config_class, tmp_path: Path) -> None:
    config = config_class(hf_lam=LamConfig(rank=2))
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    names = {"AutoConfig", *config_class.auto_classes}
    assert set(stored["auto_map"]) == names
    for reference in stored["auto_map"].values():
        module, _, name = reference.partition(".")
        assert (tmp_path / f"{module}.py").is_file()
        assert getattr(importlib.import_module(f"hf_lam.modeling.{module}"), name).__name__ == name
    assert config_class.from_pretrained(tmp_path).hf_lam == config.hf_lam


def test_saving_again_does_not_keep_a_foreign_auto_map(tmp_path: Path) -> None:
    config = HfLamBertConfig(hf_lam=LamConfig(), auto_map={"AutoModel": "someone/repo--evil.Model"})
    config.save_pretrained(tmp_path)
    assert "someone" not in (tmp_path / "config.json").read_text()


def test_saving_to_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.write_text("")
    with pytest.raises(ValueError, match="is a file"):
        HfLamBertConfig(hf_lam=LamConfig()).save_pretrained(file)


TABLE = [["self", "cross:a-b"], ["full", "a>b"]]


@pytest.mark.parametrize(
    "config",
    [
        LocomtConfig(),
        LocomtConfig("token_type_ids", "low_self(2)", annealing=True),
        LocomtConfig([("a", 3), ("b", 4)], [tuple(row) for row in TABLE]),
        LocomtConfig([["cls", {"length": 1, "global": True}], ["a", {"rectangle": (0, 0, 2, 2)}]], "self"),
        LocomtConfig([["a", {"frames": (0, 2)}], ["b", {"frames": [2, 4]}]], "self", bottleneck_tokens=4),
        LocomtConfig([["a", {"part": (0, 0.25)}], ["b", {"part": [0.25, 0.75]}]], "self"),
    ],
)
def test_locomt_config_round_trips_through_json(config: LocomtConfig) -> None:
    assert LocomtConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("config_class", CONFIG_CLASSES)
def test_both_mechanisms_in_one_block(config_class) -> None:
    locomt = LocomtConfig([["a", 3], ["b", 4]], TABLE)
    expected = FULL_BLOCK | {"locomt": locomt.to_dict()}
    for given in ([LamConfig(), locomt], [locomt, LamConfig()], {"lam": {}, "locomt": locomt.to_dict()}):
        assert config_class(hf_lam=given).hf_lam == expected
    for given in (locomt, {"views": TABLE, "segments": [["a", 3], ["b", 4]]}):
        assert config_class(hf_lam=given).hf_lam == {"version": hf_lam.__version__, "locomt": locomt.to_dict()}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"locomt": {"views": "diagonal"}, "lam": {}}, None),
        ({"locomt": {"view": "self"}}, r"no option \['view'\]"),
        ({"locomt": {"bottleneck_tokens": 2}}, "needs views='self'"),
        ([LocomtConfig(), LamConfig(), LocomtConfig()], "LocomtConfig was given twice"),
    ],
)
def test_nonsense_views_are_refused(block, message: str | None) -> None:
    if message is None:  # which views there are is known only with the segments
        assert HfLamBertConfig(hf_lam=block).hf_lam["locomt"]["views"] == "diagonal"
        block, message = {"locomt": {**block["locomt"], "segments": [["a", 1], ["b", 2]]}}, "diagonal.*presets"
    with pytest.raises(ValueError, match=message):
        HfLamBertConfig(hf_lam=block)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "fast"}, r"variant must be one of \['mixture', 'dense'.*got 'fast'"),
        ({"synthesizer": "mixture"}, "synthesizer must be one of .*got 'mixture'"),
        ({"variant": "dense", "synthesizer": "random"}, "synthesizer='random' has no meaning for variant='dense'"),
        ({"variant": "dense", "train_mixing": True}, "train_mixing=True has no meaning.*it belongs to mixture"),
        ({"train_mixing": 1}, "train_mixing must be True or False, got 1"),
        ({"variant": "random", "frozen": None}, "frozen must be True or False, got None"),
        ({"frozen": True}, "frozen=True has no meaning for variant='mixture' with synthesizer='dense'"),
        ({"variant": "dense", "rank": 4}, "rank=4 has no meaning.*it belongs to factorized_random"),
        ({"variant": "factorized_random", "rank": 0}, "rank must be None or an integer from 1 to 10,000,000, got 0"),
        ({"variant": "random", "bottleneck_size": 4}, "belongs to dense and factorized_dense"),
        ({"bottleneck_size": True}, "bottleneck_size must be None or an integer from 1 to 10,000,000, got True"),
        ({"variant": "dense", "factors": [[2, 7]]}, "factors=.* has no meaning"),
        ({"variant": "factorized_dense", "factors": [[2, 7, 1]]}, r"factors must be None or \[s, t\] for every axis"),
        ({"variant": "factorized_dense", "factors": [[2, 0]]}, "factors must be None or"),
        ({"variant": "factorized_dense", "factors": 3}, "factors must be None or"),
        ({"variant": "factorized_dense", "factors": [[2, 7]], "grid": [14, 14]}, r"for grid=\[14, 14\]"),
        ({"variant": "factorized_dense", "factors": [[2, 7]], "grid": [15]}, r"got \[\[2, 7\]\] for grid=\[15\]"),
        (
            {"grid": []},
            r"grid must be None or the sizes of its axes, such as \[14, 14\], each up to 10,000,000; got \[\]",
        ),
        ({"grid": [14, 0]}, "grid must be None or"),
        ({"grid": [14.0]}, "grid must be None or"),
        ({"grid": 196}, "grid must be None or .*got 196"),
        ({"prefix_tokens": -1}, "prefix_tokens must be None or an integer from 0 to 10,000,000, got -1"),
        ({"prefix_tokens": True}, "prefix_tokens must be None or"),
    ],
)
def test_stt_config_names_the_bad_option(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SttConfig(**options)
    with pytest.raises(ValueError, match=message):
        HfLamViTConfig(hf_lam={"stt": options})


@pytest.mark.parametrize(
    "config",
    [
        SttConfig(),
        SttConfig("mixture", "factorized_random", rank=3, frozen=True),
        SttConfig("mixture", train_mixing=True, bottleneck_size=5),
        SttConfig("dense", grid=(2, 7, 7), prefix_tokens=0),
        SttConfig("random", frozen=True, prefix_tokens=2),
        SttConfig("factorized_dense", grid=(14, 13), factors=((2, 7), [1, 13])),
    ],
)
@pytest.mark.parametrize("config_class", CONFIG_CLASSES)
def test_stt_config_round_trips_through_json(config: SttConfig, config_class) -> None:
    assert SttConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    block = {"version": hf_lam.__version__, "stt": config.to_dict()}
    for given in (config, [config], {"stt": config.to_dict()}, config.to_dict()):
        stored = config_class(hf_lam=given)
        assert stored.hf_lam == block and json.loads(stored.to_json_string())["hf_lam"] == block


def test_what_synthesizes_the_map() -> None:
    assert SttConfig().is_mixture and SttConfig().synthesized_by == "dense"
    assert SttConfig("mixture", "random").synthesized_by == "random"
    assert not SttConfig("random").is_mixture and SttConfig("random").synthesized_by == "random"


def test_an_unknown_stt_option_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"SttConfig has no option \['heads'\]; the options are \['variant', 'synth"):
        HfLamViTConfig(hf_lam={"stt": {"heads": 3}})


def test_three_mechanisms_in_one_block() -> None:
    configs = [SttConfig(), LamConfig(), LocomtConfig([["a", 3], ["b", 4]], TABLE)]
    names = ("stt", "lam", "locomt")
    block = {name: config.to_dict() for name, config in zip(names, configs, strict=True)}
    assert HfLamBertConfig(hf_lam=configs).hf_lam == {"version": hf_lam.__version__, **block}
    with pytest.raises(ValueError, match="SttConfig was given twice"):
        HfLamBertConfig(hf_lam=[SttConfig(), SttConfig("dense")])


def test_what_is_saved_names_the_classes_of_this_code(tmp_path: Path) -> None:
    config = HfLamBertConfig()
    config.auto_classes = {"AutoModel": "user/evil--modeling.Evil"}
    config.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == "modeling_hf_lam.HfLamBertModel"
