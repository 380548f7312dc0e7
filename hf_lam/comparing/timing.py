"""Milliseconds of an inference and of a training step, of trained models and the batches that lie beside them.

    python -m hf_lam.comparing.timing REQUEST.json OUTPUT.json

in a process of its own, because threads, caches and memory of earlier work are part of what a clock shows. The request
is `{"folders": {NAME: FOLDER}, "threads": N or null}`, the output is what `time_rows` gives.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..hub.buildable import model_class_of
from ..mechanism_options import import_mechanism
from ..modeling.mechanism_registry_hf_lam import mechanism_names
from ..modeling.version_hf_lam import TRAVELLING_FILES
from .output_folder import write_json

BATCH_FILE, RECORD_FILE = "batch.safetensors", "run.json"

_ROUNDS = 5
# As many rounds are made in any case, and no further one once a row has taken so many seconds.
_FEWEST_ROUNDS, _SECONDS_A_ROW = 3, 15.0
# Of one visit: seconds of inferences, and of training steps; and not more calls than that, however short they are.
_SECONDS_A_VISIT, _MOST_CALLS = 0.5, 10


def time_rows(
    folders: Mapping[str, str | os.PathLike[str]],
    rounds: int = _ROUNDS,
    *,
    threads: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Time the models of some runs, in turn: in every round each model once, so that a busy machine slows all alike.

    One model is in memory at a time, and is loaded again in every round. There it is called once for nothing, and then
    a few times; the figure of a round is the quickest of these, since other work on the machine only adds to them, and
    to a short call either nothing or several milliseconds. An inference is a forward pass without labels. A training
    step is a forward pass in training mode, the backward pass and a step of AdamW, of those parameters that the run
    trained, in the precision that the model was saved in; a model without a loss has the mean square of its output.
    The learning rate is 0: a model that drifts away becomes slow by its tiny numbers.

    On a GPU if there is one, where otherwise `threads` of the processor work.

    Args:
        folders: a folder for every row, with a model as `save_pretrained` writes it and with `batch.safetensors`, a
            batch of its arguments. In `run.json` there may be `trained`, the names of the parameters that the run
            trained (null: all; none: no step is timed). Code that lies in a folder is run: these are folders of runs
            that were made here.
        rounds: number of times that each model is loaded; three, if that takes longer than 15 seconds a model.
        threads: number of torch's threads; left as it is unless given.
        report: function that is told of each round.

    Returns:
        `{"processor", "threads", "rows": {name: {"inference_ms", "step_ms", "batch"}}}`; milliseconds are
        `{"median", "low", "high"}` of the rounds. A row that cannot be timed has `{"error": …}`.

    Raises:
        ValueError: for rounds or threads below 1.
    """
    for name, value in (("rounds", rounds), ("threads", threads)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be 1 or more, got {value!r}.")
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, dict[str, list[float]]] = {name: {"inference_ms": [], "step_ms": []} for name in folders}
    batches: dict[str, int] = {}
    errors: dict[str, str] = {}
    started = time.perf_counter()
    for number in range(rounds):
        if number >= _FEWEST_ROUNDS and time.perf_counter() - started > _SECONDS_A_ROW * len(folders):
            break
        for name, folder in folders.items():
            if name in errors:
                continue
            try:
                row = _Row(Path(folder), device)
                batches[name] = row.batch_size
                found[name]["inference_ms"].append(_milliseconds(row.infer, device))
                if row.is_trained:
                    row.prepare_training()
                    found[name]["step_ms"].append(_milliseconds(row.step, device))
            except Exception as error:  # the other rows can still be timed
                kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                errors[name] = f"{kind}{error}"
        report(f"round {number + 1} of {rounds}")
    rows: dict[str, Any] = {}
    for name, of_row in found.items():
        if name in errors:
            rows[name] = {"error": errors[name]}
            continue
        figures = {what: _summary(values) for what, values in of_row.items() if values}
        rows[name] = {**figures, "batch": batches[name]}
    return {"processor": _processor(device), "threads": torch.get_num_threads(), "rows": rows}


class _Row:
    """A model with its batch, for an inference or a training step."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        path = folder / BATCH_FILE
        if not path.is_file():
            raise ValueError(f"its run has left no {BATCH_FILE}, which --record_run writes.")
        self.model = _load_model(folder).to(device).eval()
        self.batch: dict[str, Tensor] = {name: tensor.to(device) for name, tensor in load_file(path).items()}
        self.inputs = {name: tensor for name, tensor in self.batch.items() if not name.endswith("labels")}
        self.batch_size = len(next(iter(self.inputs.values())))
        self.trained = _trained_names(folder)
        self.optimizer: torch.optim.Optimizer | None = None

    @property
    def is_trained(self) -> bool:
        return self.trained is None or bool(self.trained)

    def infer(self) -> None:
        with torch.no_grad():
            self.model(**self.inputs)

    def prepare_training(self) -> None:
        self.model.train()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.trained is None or name in self.trained)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=0.0)

    def step(self) -> None:
        assert self.optimizer is not None
        _loss_of(self.model(**self.batch)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _loss_of(outputs: Any) -> Tensor:
    loss = outputs.get("loss")
    if loss is not None:
        return loss
    return next(value for value in outputs.values() if isinstance(value, Tensor)).float().square().mean()


def _load_model(folder: Path) -> Any:
    """The model of a folder, of the class that its configuration names; a `ValueError` if there is none."""
    import transformers

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = config.get("architectures") or []
    if len(names) != 1:
        raise ValueError(f"its config.json names {names or 'no class'}, and not one class.")
    if names[0].startswith("HfLam"):
        if not set(config.get("hf_lam") or {}) <= {"version", *mechanism_names()}:
            _import_mechanisms(folder)
        return model_class_of(names[0]).from_pretrained(folder, use_safetensors=True)
    for auto, where in (config.get("auto_map") or {}).items():
        if str(where).rpartition(".")[2] == names[0]:
            load = getattr(transformers, auto).from_pretrained
            return load(folder, trust_remote_code=True, use_safetensors=True)
    found: Any = getattr(transformers, names[0], None)
    is_model = isinstance(found, type) and issubclass(found, nn.Module)
    if not is_model:
        raise ValueError(f"{names[0]!r}, which its config.json names, is no class of hf_lam or of transformers.")
    return found.from_pretrained(folder, use_safetensors=True)


def _import_mechanisms(folder: Path) -> None:
    """Import mechanisms of one's own, whose files were copied into the folder when the model was saved."""
    for file in sorted(folder.glob("*.py")):
        if file.name not in TRAVELLING_FILES and "register_mechanism" in file.read_text(encoding="utf-8"):
            import_mechanism(file)


def _trained_names(folder: Path) -> set[str] | None:
    """The parameters that the run trained; None for all."""
    path = folder / RECORD_FILE
    trained = json.loads(path.read_text(encoding="utf-8")).get("trained") if path.is_file() else None
    return None if trained is None else set(trained)


def _milliseconds(call: Callable[[], None], device: torch.device) -> float:
    """The quickest of a few calls, after one that does not count."""

    def timed() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        before = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - before

    timed()
    times = [timed()]
    while sum(times) < _SECONDS_A_VISIT and len(times) < _MOST_CALLS:
        times.append(timed())
    return 1e3 * min(times)


def _summary(values: list[float]) -> dict[str, float]:
    figures = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: round(value, 4) for name, value in figures.items()}


def _processor(device: torch.device) -> str:
    """The name of what computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the models of some runs.")
    parser.add_argument("request", type=Path, help='JSON: {"folders": {NAME: FOLDER}, "threads": N or null}.')
    parser.add_argument("output", type=Path, help="where to write what was measured, as JSON.")
    given = parser.parse_args()
    request = json.loads(given.request.read_text(encoding="utf-8"))
    found = time_rows(
        request["folders"], threads=request["threads"], report=lambda line: print(line, file=sys.stderr, flush=True)
    )
    write_json(given.output, found)


if __name__ == "__main__":
    main()
