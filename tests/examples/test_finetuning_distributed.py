"""The fine-tuning scripts in two processes under torchrun, with gloo on the CPU, and the files for `accelerate`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.dataclasses import get_module_class_from_name
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers import (
    BertForSequenceClassification,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
)

from helpers.finetuning import (
    DROPOUT,
    IMAGE,
    TEXT,
    command_line,
    losses_in,
    main,
    make_bert,
    make_vit,
    results_in,
    saved,
    write_digits,
    write_sentences,
)
from helpers.fusion_models import make_fusion
from helpers.lam_models import assert_same_weights, make_lam
from helpers.processes import run_process
from helpers.scripts import EXAMPLES, script_module
from hf_lam.training import HfLamTrainingArguments
from hf_lam.training.trainer import _choose_sharded_layers

CONFIGS = EXAMPLES / "accelerate"
NO_DROPOUT = json.dumps(dict.fromkeys(DROPOUT, 0.0))


def launched(name: str) -> argparse.Namespace:
    """The arguments of `accelerate launch --config_file examples/accelerate/{name}.yaml`."""
    parser = launch_command_parser()
    return _validate_launch_command(parser.parse_args(["--config_file", str(CONFIGS / f"{name}.yaml"), "script.py"]))[
        0
    ]


def environment_of(name: str) -> dict[str, str]:
    """What `accelerate launch` tells the processes besides the place of the others."""
    with mock.patch.dict(os.environ):
        before = dict(os.environ)
        found = prepare_multi_gpu_env(launched(name))
        return {key: value for key, value in found.items() if before.get(key) != value}


def in_two_processes(folder: Path, jobs: list[tuple[dict[str, str], str, dict[str, Any]]]) -> None:
    """Run scripts one after the other in the same two processes, each with an environment of its own."""
    lines = [(environment, script, command_line(**options)) for environment, script, options in jobs]
    (folder / "jobs.json").write_text(json.dumps(lines))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run_process([*launcher, __file__, str(folder / "jobs.json")], {"HF_HUB_OFFLINE": "1"})


def run_jobs(path: str) -> None:
    torch.set_num_threads(1)
    for environment, script, line in json.loads(Path(path).read_text()):
        with mock.patch.dict(os.environ, environment), script_module(script) as module:
            module.main(line)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("text")
    return {
        "model_name_or_path": make_bert(folder / "bert"),
        "config_overrides": NO_DROPOUT,
        "train_file": write_sentences(folder / "train.csv", 48),
        # An odd number: `Trainer` fills the last batch of two processes up with samples that must not be counted.
        "validation_file": write_sentences(folder / "validation.csv", 13, seed=1),
        "mechanism": "lam",
        "mechanism_learning_rate": 1e-2,
        "do_eval": True,
        "save_steps": 3,
    }


@pytest.fixture(scope="module")
def one_process(text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the batches of two processes of four."""
    folder = tmp_path_factory.mktemp("one")
    main(TEXT, **text, per_device_train_batch_size=8, output_dir=folder)
    return folder


def assert_equals_one_process(folder: Path, one: Path) -> None:
    assert losses_in(folder) == pytest.approx(losses_in(one), abs=1e-4)
    found, expected = results_in(folder), results_in(one)
    assert found["eval_accuracy"] == expected["eval_accuracy"]
    assert_same_weights(saved(folder), saved(one), tolerance=1e-3)


@pytest.mark.slow
def test_ddp_equals_one_process_and_resumes(text: dict[str, Any], one_process: Path, tmp_path: Path) -> None:
    images = {"model_name_or_path": make_vit(tmp_path / "vit"), "data_dir": write_digits(tmp_path / "digits")}
    # Sorted among good ones; both processes must leave it out.
    (Path(images["data_dir"]) / "train" / "digit_3" / "0000.png").write_bytes(b"no image")
    images |= {"skip_unreadable": True, "do_eval": True, "mechanism": "stt", "output_dir": tmp_path / "images"}
    in_two_processes(
        tmp_path,
        [
            ({}, TEXT, {**text, "output_dir": tmp_path / "ddp"}),
            (
                {},
                TEXT,
                {
                    **text,
                    "output_dir": tmp_path / "resumed",
                    "resume_from_checkpoint": tmp_path / "ddp" / "checkpoint-3",
                },
            ),
            ({}, IMAGE, images),
        ],
    )
    assert_equals_one_process(tmp_path / "ddp", one_process)
    assert (tmp_path / "ddp" / "checkpoint-3" / "rng_state_1.pth").is_file()
    assert_same_weights(saved(tmp_path / "resumed"), saved(tmp_path / "ddp"))
    assert losses_in(tmp_path / "resumed") == losses_in(tmp_path / "ddp")
    assert results_in(tmp_path / "images")["train_samples"] == 48
    assert len(losses_in(tmp_path / "images")) == 6


@pytest.mark.slow
def test_fsdp2_equals_one_process(text: dict[str, Any], one_process: Path, tmp_path: Path) -> None:
    launcher = {**environment_of("fsdp2"), "ACCELERATE_MIXED_PRECISION": "no"}
    in_parts = {**launcher, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
    resume = {"resume_from_checkpoint": tmp_path / "parts" / "checkpoint-3"}
    in_two_processes(
        tmp_path,
        [
            (launcher, TEXT, {**text, "output_dir": tmp_path / "launcher"}),
            (in_parts, TEXT, {**text, "output_dir": tmp_path / "parts"}),
            (in_parts, TEXT, {**text, "output_dir": tmp_path / "resumed", **resume}),
            ({}, TEXT, {**text, "output_dir": tmp_path / "options", "fsdp": "full_shard"}),
        ],
    )
    for name in ("launcher", "parts", "resumed", "options"):
        assert_equals_one_process(tmp_path / name, one_process)
    # Both were sharded, and not merely run with DDP.
    assert (tmp_path / "options" / "checkpoint-3" / "pytorch_model_fsdp.bin").is_file()
    assert (tmp_path / "parts" / "checkpoint-3" / "pytorch_model_fsdp_0").is_dir()
    evaluated = main(
        TEXT,
        model_name_or_path=tmp_path / "launcher",
        validation_file=text["validation_file"],
        do_train=None,
        do_eval=True,
        output_dir=tmp_path / "again",
    )
    assert evaluated["eval_accuracy"] == results_in(tmp_path / "launcher")["eval_accuracy"]
    assert evaluated["eval_loss"] == pytest.approx(results_in(one_process)["eval_loss"], abs=1e-4)


# --- The files for accelerate ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ddp", "MULTI_GPU"),
        ("fsdp2", "FSDP"),
        ("deepspeed_zero2", "DEEPSPEED"),
        ("deepspeed_zero3", "DEEPSPEED"),
    ],
)
def test_accelerate_reads_the_file(name: str, kind: str) -> None:
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == kind
    assert (config.mixed_precision, config.num_processes, config.use_cpu) == ("bf16", 2, False)
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
    # Options that it does not know would be an error of the launcher.
    known = {action.dest for action in launch_command_parser()._actions}
    assert set(config.fsdp_config) <= known
    assert set(config.deepspeed_config) <= known


def test_what_the_files_say_reaches_the_trainer(tmp_path: Path) -> None:
    with mock.patch.dict(os.environ, environment_of("ddp")):
        assert HfLamTrainingArguments(str(tmp_path), use_cpu=True).mixed_precision == "bf16"
    with mock.patch.dict(os.environ, environment_of("fsdp2")):
        plugin = FullyShardedDataParallelPlugin()
        assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.transformer_cls_names_to_wrap is None


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (lambda: make_lam(BertForSequenceClassification, "bert"), {"BertLayer"}),
        (lambda: make_lam(ViTForImageClassification, "vit"), {"ViTLayer"}),
        (lambda: make_lam(VideoMAEForVideoClassification, "videomae"), {"VideoMAELayer"}),
        (make_fusion, {"FusionLayer", "BertLayer", "ViTLayer", "VideoMAELayer", "ASTLayer"}),
    ],
    ids=["bert", "vit", "videomae", "fusion"],
)
def test_every_layer_is_a_shard_of_its_own(make: Any, layers: set[str]) -> None:
    model = make()
    plugin = argparse.Namespace(transformer_cls_names_to_wrap=None)
    _choose_sharded_layers(plugin, model)
    assert layers <= set(plugin.transformer_cls_names_to_wrap)
    inputs = model.get_input_embeddings()
    for name in plugin.transformer_cls_names_to_wrap:
        found = get_module_class_from_name(model, name)
        assert found is not None, name
        assert not any(inputs in module.modules() for module in model.modules() if isinstance(module, found))
    named = argparse.Namespace(transformer_cls_names_to_wrap=["BertAttention"])
    _choose_sharded_layers(named, model)
    assert named.transformer_cls_names_to_wrap == ["BertAttention"]


if __name__ == "__main__":
    run_jobs(sys.argv[1])
