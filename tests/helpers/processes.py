"""Run Python in a fresh process, with or without the hf_lam package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent

# With this in place every `import hf_lam` is an ImportError, also in a process where the package is installed.
WITHOUT_HF_LAM = "import sys; sys.modules['hf_lam'] = None\n"


def fresh_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), str(TESTS), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **(extra or {}),
    }


def run_process(command: list[str], environment: Mapping[str, str] | None = None, expect: int = 0) -> str:
    """What the command printed; a failure unless it ends with the exit status `expect`."""
    done = subprocess.run(command, env=fresh_environment(environment), capture_output=True, text=True, timeout=600)
    report = f"{' '.join(command[:4])} … ended with {done.returncode}\n{done.stdout}\n{done.stderr[-6000:]}"
    assert done.returncode == expect, report
    return done.stdout


def run_code(
    code: str,
    *arguments: object,
    hf_lam: bool = True,
    environment: Mapping[str, str] | None = None,
    expect: int = 0,
) -> str:
    """Run `code` with `arguments` in `sys.argv[1:]`; with `hf_lam=False` the package cannot be imported there."""
    source = code if hf_lam else WITHOUT_HF_LAM + code
    return run_process([sys.executable, "-c", source, *map(str, arguments)], environment, expect)


def run_in_group(work: Callable[[], None]) -> None:
    """What a process that torchrun started does, as one of a gloo group; it ends here if nothing was raised.

    The interpreter is not torn down: threads of gloo and autograd that would still want it abort the process there now
    and then ("terminate called without an active exception"), after all of the work.
    """
    import torch.distributed as dist

    dist.init_process_group("gloo")
    work()
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
