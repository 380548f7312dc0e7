"""The launcher of several machines, `examples/scale/nodes.sh`, with two "machines" on this one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.finetuning import DROPOUT, TEXT, command_line, losses_in, main, make_bert, write_sentences
from helpers.processes import fresh_environment
from helpers.scripts import EXAMPLES

NODES = EXAMPLES / "scale" / "nodes.sh"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.slow
def test_two_nodes_equal_one_process(tmp_path: Path) -> None:
    options = {
        "model_name_or_path": make_bert(tmp_path / "bert"),
        "config_overrides": json.dumps(dict.fromkeys(DROPOUT, 0.0)),
        "train_file": write_sentences(tmp_path / "train.csv", 48),
        "mechanism": "lam",
        "mechanism_learning_rate": 1e-2,
        "max_steps": 3,
    }
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NODES": "2",
        "MASTER": "127.0.0.1",
        "PORT": str(free_port()),
    }
    command = [str(NODES), "1", str(EXAMPLES / f"{TEXT}.py"), *command_line(**options, output_dir=tmp_path / "nodes")]
    nodes = [
        subprocess.Popen(
            command,
            env=fresh_environment({**environment, "NODE": str(node)}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    main(TEXT, **options, per_device_train_batch_size=8, output_dir=tmp_path / "one")
    for node in nodes:
        _, said = node.communicate(timeout=500)
        assert node.returncode == 0, said[-3000:]
    assert losses_in(tmp_path / "nodes") == pytest.approx(losses_in(tmp_path / "one"), abs=1e-4)


def test_it_says_how_it_is_used() -> None:
    done = subprocess.run([str(NODES)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "PROCESSES_PER_NODE SCRIPT.py" in done.stderr
