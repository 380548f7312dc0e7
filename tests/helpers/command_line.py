"""Run `hf-lam` in this process, as the entry point would."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

from hf_lam import cli


def run_main(*arguments: object) -> tuple[int, str, str]:
    """The exit code, and what went to stdout and to stderr. What `main` lets through is raised."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["hf-lam", *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def error_line(err: str) -> str:
    """The error in what went to stderr, which must be its last line and the only one."""
    *before, last = err.strip().splitlines()
    assert last.startswith("error: ")
    assert not any("Traceback" in line or line.startswith("error: ") for line in before)
    return last


def cells(line):
    return [cell.strip() for cell in line.strip("│┃ \n").replace("┃", "│").split("│")]
