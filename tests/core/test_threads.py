"""Parts of one computation on threads: where they run, in which modes, and what becomes of errors."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
import torch

from hf_lam.modeling import threads_hf_lam
from hf_lam.modeling.threads_hf_lam import parts_at_once, run_parts

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_hf_lam.load, "until", float("inf"))


def name_of_a_parts_thread() -> str:
    names: set[str] = set()
    run_parts(lambda part: names.add(threading.current_thread().name), range(4), parts_at_once(CPU))
    return names.pop()


def test_parts_go_to_threads_where_cores_are_lost(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    now, here = [(100.0, 0.0, 0)], threading.current_thread().name
    monkeypatch.setattr(threads_hf_lam, "load", threads_hf_lam._Load())
    monkeypatch.setattr(threads_hf_lam, "_now", lambda: now[0])
    monkeypatch.setattr(threads_hf_lam.time, "monotonic", lambda: now[0][0])

    def compute(seconds: float, switches: int, share: float = 0.5) -> str:
        """The thread of a computation that takes that long, loses its core that often, and has it for that share."""
        names = []

        def run(part: int) -> None:
            names.append(threading.current_thread().name)
            if part == 0:
                now[0] = now[0][0] + seconds, now[0][1] + threads * share * seconds, now[0][2] + switches

        run_parts(run, range(2), parts_at_once(CPU))
        return names[0]

    assert compute(0.11, 3) == here
    assert compute(0.11, 30, share=0.95) == here  # which hardly took any time
    assert compute(0.11, 40) == here  # which is seen when it is over
    assert (compute(0.11, 40) == here) == (threads == 1)
    now[0] = now[0][0] + 6, *now[0][1:]
    assert compute(0.11, 3) == here
    assert compute(0.01, 3) == here  # too short to tell
    assert compute(0.11, 3) == here


def test_deterministic_algorithms_do_not_depend_on_the_load(threads: int) -> None:
    here = threading.current_thread().name
    assert (name_of_a_parts_thread() == here) == (threads == 1)
    torch.use_deterministic_algorithms(True)
    try:
        assert name_of_a_parts_thread() == here
    finally:
        torch.use_deterministic_algorithms(False)


def test_every_part_is_computed_once_on_a_thread_that_computes_alone(threads: int) -> None:
    seen: dict[int, tuple[str, int]] = {}

    def run(part: int) -> None:
        assert part not in seen
        seen[part] = threading.current_thread().name, torch.get_num_threads()

    run_parts(run, range(50), parts_at_once(CPU))
    assert sorted(seen) == list(range(50))
    assert {number for _, number in seen.values()} == {1}
    is_elsewhere = {name != threading.current_thread().name for name, _ in seen.values()}
    assert is_elsewhere == {threads > 1}
    assert torch.get_num_threads() == threads


def test_one_part_and_other_devices_stay_in_the_thread_that_asks() -> None:
    names: list[str] = []

    def run(part: int) -> None:
        names.append(threading.current_thread().name)

    run_parts(run, [0], parts_at_once(CPU))
    run_parts(run, [0, 1, 2], parts_at_once(torch.device("meta")))
    run_parts(run, [], parts_at_once(CPU))
    assert names == [threading.current_thread().name] * 4


@pytest.mark.parametrize("inference", [False, True])
def test_parts_are_not_recorded_and_may_write_to_inference_tensors(inference: bool) -> None:
    weight = torch.ones(4, requires_grad=True)
    with torch.inference_mode(inference), torch.no_grad():
        out = torch.zeros(4)

        def run(part: int) -> None:
            out[part] = 2 * weight[part]

        run_parts(run, range(4), parts_at_once(CPU))
    assert out.tolist() == [2, 2, 2, 2]
    assert not out.requires_grad and out.is_inference() == inference


def test_an_error_of_a_part_is_raised_when_no_part_runs_any_more() -> None:
    running: set[int] = set()

    def run(part: int) -> None:
        running.add(part)
        try:
            if part == 1:
                raise MemoryError("part 1")
        finally:
            running.remove(part)

    with pytest.raises(MemoryError, match="part 1"):
        run_parts(run, range(4), parts_at_once(CPU))
    assert not running


def test_many_threads_may_ask_at_once() -> None:
    sums = torch.zeros(6, dtype=torch.int64)

    def ask(number: int) -> None:
        values = torch.zeros(20, dtype=torch.int64)
        run_parts(lambda part: values[part].fill_(part), range(20), parts_at_once(CPU))
        sums[number] = values.sum()

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert sums.tolist() == [190] * 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_makes_threads_of_its_own() -> None:
    run_parts(lambda part: None, range(4), parts_at_once(CPU))
    child = os.fork()
    if child == 0:
        done: list[int] = []
        run_parts(done.append, range(4), parts_at_once(CPU))
        os._exit(0 if sorted(done) == [0, 1, 2, 3] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
