"""The state of a process, put back after a run: the next run must come out as in a new process."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

# What runs load first, and then change where nobody has seen it as it was before.
_WATCHED = ("torch", "numpy")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ProcessState:
    """The state of this process as it is now."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._folder = os.getcwd()
        self._path, self._arguments = list(sys.path), list(sys.argv)
        self._filters = list(warnings.filters)
        self._loggers = {logger: _settings_of(logger) for logger in _loggers()}
        self._handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        self._loaded = {name for name in _WATCHED if name in sys.modules}
        self._mechanisms = _foreign_mechanisms()
        self._switches = [(get, put, get()) for get, put in _switches()]

    def put_back(self) -> bool:
        """Make the process what it was; False if it cannot be, and a new one has to take its place."""
        os.chdir(self._folder)
        if dict(os.environ) != self._environment:
            os.environ.clear()
            os.environ.update(self._environment)
        sys.path[:], sys.argv[:] = self._path, self._arguments
        warnings.filters[:] = self._filters  # type: ignore[index]
        for logger, settings in self._loggers.items():
            if _settings_of(logger) != settings:
                _set(logger, settings)
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        is_whole = self._put_switches_back() and not _has_process_group()
        _reset_libraries()
        gc.collect()
        # What another run registered has no business in the next; a library that the run itself has loaded may have
        # been changed by it.
        is_known = _foreign_mechanisms() == self._mechanisms
        return is_whole and is_known and self._loaded == {name for name in _WATCHED if name in sys.modules}

    def _put_switches_back(self) -> bool:
        try:
            for get, put, value in self._switches:
                if get() != value:
                    put(value)
            return all(get() == value for get, _, value in self._switches)
        except RuntimeError:  # torch refuses to say what was set through two of its interfaces
            return False


def seed_all(seed: int) -> None:
    """Seed what has been imported, so that also a run that does not seed draws the same every time."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _loggers() -> list[logging.Logger]:
    named = logging.root.manager.loggerDict.values()
    return [logging.root, *(logger for logger in named if isinstance(logger, logging.Logger))]


def _settings_of(logger: logging.Logger) -> tuple[Any, ...]:
    return (logger.level, logger.propagate, logger.disabled, tuple(logger.handlers), tuple(logger.filters))


def _set(logger: logging.Logger, settings: tuple[Any, ...]) -> None:
    level, logger.propagate, logger.disabled, handlers, filters = settings
    logger.setLevel(level)
    logger.handlers[:], logger.filters[:] = handlers, filters


def _foreign_mechanisms() -> set[str]:
    """The mechanisms that are registered and are not hf_lam's own."""
    from ..modeling.version_hf_lam import OWN_MECHANISMS

    registry: Any = sys.modules.get("hf_lam.modeling.mechanism_registry_hf_lam")
    return set() if registry is None else set(registry.mechanism_names()) - set(OWN_MECHANISMS)


def _switches() -> list[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """The functions that read and set every switch of torch and numpy that changes results."""
    found: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = []
    if "numpy" in sys.modules:
        numpy: Any = sys.modules["numpy"]
        found.append((numpy.geterr, lambda value: numpy.seterr(**value)))
    if "torch" in sys.modules:
        torch: Any = sys.modules["torch"]
        cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
        found += [
            (torch.get_num_threads, torch.set_num_threads),
            (torch.get_default_dtype, torch.set_default_dtype),
            (torch.get_default_device, torch.set_default_device),
            (torch.is_grad_enabled, torch.set_grad_enabled),
            (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
            (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
            (
                lambda: (
                    torch.are_deterministic_algorithms_enabled(),
                    torch.is_deterministic_algorithms_warn_only_enabled(),
                ),
                lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
            ),
            (lambda: cudnn.benchmark, lambda value: setattr(cudnn, "benchmark", value)),
            (lambda: cudnn.deterministic, lambda value: setattr(cudnn, "deterministic", value)),
            (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
            (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
            (cuda.math_sdp_enabled, cuda.enable_math_sdp),
        ]
    return found


def _has_process_group() -> bool:
    distributed: Any = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _reset_libraries() -> None:
    """Reset the state that libraries keep of a run in places of their own."""
    state: Any = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001
        state.GradientState._reset_state()  # noqa: SLF001
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()  # past a number of graphs it compiles no more
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
