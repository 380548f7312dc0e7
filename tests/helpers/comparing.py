"""A script that does what a comparison asks of one, in no time and without torch; and plans of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_lam.comparing.plan import Plan, read_plan

_SCRIPT = """
import argparse, json, os, pathlib, signal, sys, time

PARSER = argparse.ArgumentParser()
for name in ("output_dir", "report_to", "save_strategy", "log_level", "disable_tqdm", "uses", "trace", "model_type"):
    PARSER.add_argument(f"--{name}")
for name in ("seed", "data_seed"):
    PARSER.add_argument(f"--{name}", type=int, default=0)
for name in ("value", "sleep"):
    PARSER.add_argument(f"--{name}", type=float, default=0.0)
for name in ("do_train", "do_eval", "do_predict", "check_only", "record_run"):
    PARSER.add_argument(f"--{name}", type=json.loads, default=False)
PARSER.add_argument("--end")
PARSER.add_argument("--end_seed", type=int)
PARSER.add_argument("--until")

def main(arguments):
    given = PARSER.parse_args(arguments)
    output = pathlib.Path(given.output_dir)
    if given.value < 0:
        print(f"error: --value must not be negative, got {given.value}", file=sys.stderr)
        sys.exit(2)
    if given.check_only:
        output.mkdir(parents=True)
        (output / "check.json").write_text(json.dumps({"metrics": ["loss", "accuracy"]}))
        return
    if given.trace:
        with open(given.trace, "a") as file:
            test = " test" if given.do_predict else ""
            file.write(f"{output.parent.name}/{output.name} {os.getpid()}{test}\\n")
    print("hello from", output.name, flush=True)
    ends = given.end_seed is None or given.end_seed == given.seed
    if given.until and os.path.exists(given.until):
        ends = False
    time.sleep(given.sleep)
    if ends and given.end == "raise":
        raise RuntimeError(f"it broke in {output}")
    if ends and given.end == "memory":
        raise MemoryError
    if ends and given.end == "message":
        sys.exit("no luck")
    if ends and given.end == "status":
        print("warning: something\\nerror: the data are bad\\n  in line 3", file=sys.stderr)
        sys.exit(2)
    if ends and given.end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if ends and given.end == "leave":
        os._exit(7)
    if ends and given.end == "silent":
        return
    name = "f1" if ends and given.end == "no_metric" else "accuracy"
    metrics = {f"eval_{name}": given.value + given.seed / 100, "eval_loss": float("nan"), "train_runtime": time.time(),
               "eval_samples_per_second": time.time(), "epoch": 1.0, "note": "text"}
    if given.uses:
        metrics["eval_of_used"] = json.loads(pathlib.Path(given.uses, "model.safetensors").read_text())
    if given.do_predict:
        # Goes on from the finished run in its folder.
        assert json.loads((output / "model.safetensors").read_text()) == given.value
        if not (ends and given.end == "bad_test"):
            metrics["predict_accuracy"] = given.value / 2
            metrics["predict_runtime"] = time.time()
    else:
        output.mkdir(parents=True)  # not there, or the folder was not begun anew
        (output / "checkpoint-1").mkdir()
    (output / "model.safetensors").write_text(json.dumps(given.value))
    (output / "all_results.json").write_text(json.dumps(metrics))
    history = [{"step": 1, "epoch": 0.5, "loss": 0.7, "learning_rate": 1.0}, {"step": 2, "epoch": 1.0, "loss": 0.6},
               {"step": 2, "epoch": 1.0, "eval_accuracy": 0.5, "eval_runtime": time.time()}]
    (output / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    run = {"parameters": 10, "trainable_parameters": 5, "mechanism_parameters": 0, "flops": 100 + given.seed,
           "attention_flops": 7, "steps": 2, "orders": {"labels": str(given.seed)}, "starts": {"head": "h"}}
    (output / "run.json").write_text(json.dumps(run))


if __name__ == "__main__":
    main(sys.argv[1:])
"""


def write_fake_script(folder: Path) -> Path:
    """The script in a folder: `--value` is its accuracy, `--end` how it fails, for `--end_seed` or for all seeds."""
    script = folder / "fake_script.py"
    script.write_text(_SCRIPT)
    return script


def fake_plan(folder: Path, rows: dict[str, Any], **others: Any) -> Plan:
    """A plan of that script; every run writes a line to `trace.txt` in the folder."""
    others = {"seeds": 2, **others, "arguments": {"trace": str(folder / "trace.txt"), **others.get("arguments", {})}}
    script = str(write_fake_script(folder))
    return read_plan({"script": script, "metric": "accuracy", "rows": rows, **others})


def traced(folder: Path) -> list[str]:
    """What was run since the last call: `lam/seed-0`, `lam/seed-0 test`."""
    trace = folder / "trace.txt"
    lines = trace.read_text().splitlines() if trace.is_file() else []
    trace.unlink(missing_ok=True)
    return [" ".join(word for word in line.split() if not word.isdigit()) for line in lines]
