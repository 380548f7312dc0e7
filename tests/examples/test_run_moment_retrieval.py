"""examples/run_moment_retrieval.py: from the files to the saved model, the submission, the card, and comparisons."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers import AutoModel, BertConfig, BertModel, BertTokenizer

if __name__ == "__main__":  # started by path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.finetuning import command_line, losses_in, main, results_in, saved
from helpers.hosts import SIZES
from helpers.hub_server import TOKEN, HubServer
from helpers.lam_models import assert_same_weights
from helpers.moments import FUSION, TINY, make_lines, write_lines, write_moments
from helpers.moments import SIZES as VECTORS
from helpers.processes import ROOT, run_code, run_process
from helpers.scripts import EXAMPLES, script_module
from hf_lam import HfLamFusionConfig, HfLamFusionForSequenceClassification
from hf_lam.comparing.plan import read_plan
from hf_lam.comparing.running import run_plan
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES
from hf_lam.training import submission_metrics

SCRIPT = "run_moment_retrieval"
# The same step in one process as in two: nothing is drawn in a forward pass.
PLAIN = {
    "fusion_config": json.dumps({**FUSION, "hidden_dropout_prob": 0.0}),
    "moments_config": '{"num_queries": 3, "dec_layers": 1, "dropout": 0.0}',
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = write_moments(tmp_path_factory.mktemp("moments"))
    return {**TINY, "data_dir": str(folder), "video_features": ["clip", "slow"], "do_eval": True}


def bert(folder: Path) -> str:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "sat", "on", "the", "mat"]
    torch.manual_seed(0)
    BertModel(BertConfig(**{**SIZES, "vocab_size": len(words)})).save_pretrained(folder)
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    return str(folder)


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "out"
    options = {"mechanism": ["lam", "locomt"], "audio_features": "sound", "do_predict": True, "max_steps": 12}
    options |= {"mechanism_config": '{"lam": {"rank": 2}, "locomt": {"views": "half"}}', "record_run": True}
    options |= {"metric_for_best_model": "MR-full-mAP", "load_best_model_at_end": True}
    options |= {"eval_strategy": "steps", "eval_steps": 6, "save_steps": 6}
    main(SCRIPT, **data, **options, output_dir=folder)
    return folder


@pytest.mark.slow
def test_what_a_run_leaves(trained: Path, data: dict[str, Any]) -> None:
    results = results_in(trained)
    submission = [json.loads(line) for line in (trained / "predictions.jsonl").read_text().splitlines()]
    true = [json.loads(line) for line in Path(data["data_dir"], "test.jsonl").read_text().splitlines()]
    for name, value in submission_metrics(submission, true).items():
        assert results[f"predict_{name}"] == pytest.approx(value, abs=1e-6), name
    metadata = metadata_load(trained / "README.md")
    assert metadata is not None and metadata["tags"] == ["hf_lam", "lam", "locomt", "multimodal", "features"]
    measured = model_index_to_eval_results(metadata["model-index"])[1]
    found = {(x.dataset_split, x.metric_type): x.metric_value for x in measured}
    assert found["validation", "MR-full-R1@0.5"] == results["eval_MR-full-R1@0.5"]
    assert found["test", "HL-min-Good-Hit1"] == results["predict_HL-min-Good-Hit1"]
    card = (trained / "README.md").read_text()
    assert "](moments.png)" in card and "in clips of 2 s" in card and data["data_dir"] not in card
    recorded = json.loads((trained / "run.json").read_text())
    assert recorded["flops"] > 0 and {"span_labels", "saliency_labels"} <= recorded["orders"].keys()
    assert "MR-full-R1@0.5" in recorded["metrics"]


@pytest.mark.slow
def test_a_saved_model_finds_moments_anywhere(trained: Path) -> None:
    code = f"""
import sys, numpy
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
found = model.retrieve({{"video": numpy.ones((5, {VECTORS["clip"] + VECTORS["slow"] + 2}), "f")}}, {{
    "words_features": __import__("torch").ones(1, 3, {VECTORS["text"]})}}, top_k=2)
print(len(found.moments), len(found.saliency))
"""
    assert run_code(code, trained, hf_lam=False).splitlines()[-1] == "2 5"


@pytest.mark.slow
def test_a_saved_model_goes_on(trained: Path, data: dict[str, Any], tmp_path: Path) -> None:
    """It is evaluated, trained on, and refuses data that it was not made for."""
    own = {**data, "audio_features": "sound", "fusion_config": None, "moments_config": None}
    own |= {"model_name_or_path": str(trained)}
    evaluated = {**own, "do_train": None, "max_steps": None, "per_device_train_batch_size": None}
    metrics = main(SCRIPT, **evaluated, output_dir=tmp_path / "evaluated")
    assert metrics["eval_MR-full-mAP"] == results_in(trained)["eval_MR-full-mAP"]
    assert metrics["eval_loss"] == pytest.approx(results_in(trained)["eval_loss"], abs=1e-5)
    main(SCRIPT, **own, lora_rank=2, max_steps=1, output_dir=tmp_path / "more")
    for options, message in (
        ({"video_features": "clip"}, "the vectors of video have 8 numbers"),
        ({"separate_streams": True}, "the model has the streams of clips video"),
        ({"clip_length": 1.0}, "the model was made for clips of 2 s"),
        ({"mechanism": "lam"}, "has mechanisms already"),
        ({"moments_config": "{}"}, "--moments_config is for a new model"),
        ({"query_features": None}, "a query is read by --text_model"),
        ({"teacher_model": str(trained)}, "--teacher_model is for models of classes"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(SCRIPT, **{**own, **options}, output_dir=tmp_path / "refused")
        assert ended.value.code == 2, message


@pytest.mark.slow
def test_queries_may_be_read_by_an_encoder(data: dict[str, Any], tmp_path: Path) -> None:
    options = {**data, "query_features": None, "text_model": bert(tmp_path / "bert"), "freeze_host": True}
    options |= {
        "separate_streams": True,
        "mechanism": "lam",
        "max_steps": 2,
        "features": '{"slow": {"dropout": 0.5, "positions": "learned"}}',
    }
    main(SCRIPT, **options, output_dir=tmp_path / "out")
    model = AutoModel.from_pretrained(tmp_path / "out")
    before, after = BertModel.from_pretrained(tmp_path / "bert").state_dict(), model.fusion.text_model.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items() if name in before)
    assert model.label_modalities == ["clip", "slow"] and model.config.features["slow"]["dropout"] == 0.5
    with script_module(SCRIPT):
        own = {"model_name_or_path": str(tmp_path / "out"), "text_model": None, "freeze_host": None}
        own |= dict.fromkeys(("mechanism", "features", "fusion_config", "moments_config"))
        again = main(SCRIPT, **{**options, **own, "max_steps": 1}, output_dir=tmp_path / "again")
    assert again["eval_loss"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["windows", "scores"])
def test_sets_that_know_one_thing(kind: str, data: dict[str, Any], tmp_path: Path) -> None:
    """Charades-STA has windows, TVSum scores of every clip under another name."""
    files, names = {}, {}
    for split, first in (("train", 0), ("validation", 12), ("test", 16)):
        lines = make_lines(4, first)
        for line in lines:
            scores = [[3, 1]] * (line["duration"] // 2)
            dropped = ["relevant_clip_ids", "saliency_scores", *(["relevant_windows"] if kind == "scores" else [])]
            for key in dropped:
                del line[key]
            if kind == "scores":
                line["label"], names = scores, {"saliency_scores": "label"}
        write_lines(tmp_path / f"{split}.jsonl", lines)
        files[f"{split}_file"] = str(tmp_path / f"{split}.jsonl")
    folder = Path(data["data_dir"])
    options = {**data, **files, "data_dir": None, "key_names": json.dumps(names), "do_predict": True, "max_steps": 2}
    options |= {"video_features": str(folder / "clip"), "query_features": str(folder / "text"), "mechanism": "lam"}
    metrics = main(SCRIPT, **options, output_dir=tmp_path / "out")
    head = {"windows": "MR", "scores": "HL"}[kind]
    found = {name.removeprefix("eval_").partition("-")[0] for name in metrics if "-" in name}
    assert found == {head} and metrics["eval_loss"] >= 0
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 8


def test_fusion_layers_of_another_head_get_the_length_of_clips(tmp_path: Path) -> None:
    sizes = {"video": 4, "words": 3}
    config = HfLamFusionConfig(**FUSION, features=sizes, label_modalities=["video"])
    HfLamFusionForSequenceClassification(config).save_pretrained(tmp_path)
    with script_module(SCRIPT) as script:
        given = script.MomentModelArguments(model_name_or_path=str(tmp_path))
        model = script.load_saved(given, script.load_fusion_config(given), 1.0, sizes, True)
    assert model.config.moments["clip_length"] == 1.0 and model.config.moments["num_queries"] == 10


def test_wrong_files_end_before_training(data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lines = make_lines(2)
    lines[1]["relevant_windows"] = [[0, 99]]
    write_lines(tmp_path / "train.jsonl", lines)
    folder = Path(data["data_dir"])
    options = {**data, "data_dir": None, "train_file": str(tmp_path / "train.jsonl"), "do_eval": None}
    options |= {"video_features": str(folder / "clip"), "query_features": str(folder / "text")}
    with pytest.raises(SystemExit) as ended:
        main(SCRIPT, **options, output_dir=tmp_path / "out")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "train.jsonl', line 2, relevant_windows: the window [0, 99] ends after the video" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion_config": '{"label_modalities": ["video"]}'}, "--fusion_config has no option label_modalities"),
        ({"moments_config": '{"clip_length": 1}'}, "--moments_config: clip_length is what the data are read by"),
        ({"moments_config": '{"num_queries": 0}'}, "--moments_config: moments: num_queries must be"),
        ({"features": '{"clips": {"dropout": 0.1}}'}, "--features: there are no vectors clips, only video, words"),
        ({"features": '{"video": "column"}'}, "--features: 'video' must have options"),
        ({"features": '{"video": {"size": 3}}'}, "--features: 'video' must have options, of class_tokens, dropout"),
        ({"features": '{"video": {"positions": "absolute"}}'}, "features['video']: positions must be one of"),
        ({"metric_for_best_model": "R1@0.5"}, "choose one of loss, MR-short-mAP"),
        ({"lora_rank": 2}, "--lora_rank adapts what was trained before"),
        ({"from_scratch": True}, "--from_scratch is for a checkpoint"),
        ({"query_features": None}, "a query is read by --text_model"),
        ({"config_overrides": '{"moments": {}}'}, "--config_overrides is for --model_name_or_path"),
    ],
)
def test_options_that_cannot_work(
    options: dict[str, Any], message: str, data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(SCRIPT, **{**data, **options}, output_dir=tmp_path / "out")
    assert ended.value.code == 2 and message in capsys.readouterr().err


# --- the same weights ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(data: dict[str, Any], tmp_path: Path) -> None:
    options = {**data, "mechanism": "lam", "save_steps": 3, "max_steps": 6, "do_predict": True}
    main(SCRIPT, **options, output_dir=tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "killed" / "checkpoint-3")
    main(SCRIPT, **options, output_dir=tmp_path / "killed")
    whole, resumed = saved(tmp_path / "whole"), saved(tmp_path / "killed")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    predictions = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("whole", "killed")]
    assert predictions[0] == predictions[1]


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(data: dict[str, Any], tmp_path: Path) -> None:
    """And measure the same, with a number of queries that two do not divide."""
    # Not AdamW: it divides by the size of a gradient, and at first some are all rounding.
    options = {**data, **PLAIN, "mechanism": "lam", "optim": "sgd", "learning_rate": 0.1, "do_predict": True}
    options |= {"max_eval_samples": 7, "max_predict_samples": 5, "eval_strategy": "steps", "eval_steps": 2}
    main(SCRIPT, **options, output_dir=tmp_path / "one", per_device_train_batch_size=8)
    (tmp_path / "line.json").write_text(json.dumps(command_line(**options, output_dir=tmp_path / "two")))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run_process([*launcher, __file__, str(tmp_path / "line.json")], {"HF_HUB_OFFLINE": "1"})
    one, two = tmp_path / "one", tmp_path / "two"
    assert losses_in(two) == pytest.approx(losses_in(one), abs=1e-4)
    assert_same_weights(saved(two), saved(one), tolerance=1e-3)
    histories = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (two, one)]
    evaluated = [[entry["eval_HL-min-Fair-mAP"] for entry in x if "eval_loss" in entry] for x in histories]
    assert len(evaluated[0]) == 3 and evaluated[0] == pytest.approx(evaluated[1], abs=1e-3)
    found, expected = results_in(two), results_in(one)
    for name in expected:
        if "-" in name:
            assert found[name] == pytest.approx(expected[name], abs=1e-3), name
    assert len((two / "predictions.jsonl").read_text().splitlines()) == 5


@pytest.mark.slow
def test_a_plan(data: dict[str, Any], tmp_path: Path) -> None:
    arguments = {**data, "max_steps": 3, "use_cpu": True, "dataloader_pin_memory": False, "learning_rate": 1e-3}
    arguments |= {name: json.loads(arguments[name]) for name in ("fusion_config", "moments_config")}
    rows = {
        "full": {},
        "calibrated": {"mechanism": "locomt", "calibrate_views_on": "{row:full}"},
        "control": {"mechanism": "lam", "control": True},
    }
    plan = {"script": str(EXAMPLES / f"{SCRIPT}.py"), "metric": "MR-full-R1@0.5", "seeds": [3], "rows": rows}
    results = run_plan(read_plan({**plan, "arguments": arguments}), tmp_path / "out", test=True)
    runs = {row["name"]: row["runs"][0] for row in results["rows"]}
    assert [run["error"] for run in runs.values()] == [None] * 3
    assert all(0 <= run["metrics"]["predict_MR-full-R1@0.5"] <= 100 for run in runs.values())
    assert len({json.dumps(run["orders"]["span_labels"]) for run in runs.values()}) == 1
    times = json.loads((tmp_path / "out" / "times.json").read_text())["rows"]
    assert all(times[name]["inference_ms"] and times[name]["step_ms"] for name in rows)
    assert (tmp_path / "out" / "runs" / "full" / "seed-3" / "predictions.jsonl").is_file()


@pytest.mark.slow
def test_a_run_is_pushed(data: dict[str, Any], tmp_path: Path) -> None:
    run = {**data, "mechanism": "lam", "push_to_hub": True, "hub_model_id": "user/moments", "hub_token": TOKEN}
    line = command_line(**{**run, "max_steps": 2}, output_dir=tmp_path / "out")
    with HubServer() as hub:
        command = [sys.executable, str(ROOT / "examples" / f"{SCRIPT}.py"), *line]
        run_process(command, environment=hub.environment(tmp_path / "hub"))
        files = hub.repos["user/moments"].files()
    assert {"README.md", "moments.png", "model.safetensors", "processor_config.json", *TRAVELLING_FILES} <= set(files)
    assert not [name for name, content in files.items() if TOKEN.encode() in content]
    assert "MR-full-R1@0.5" in files["README.md"].decode()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with script_module(SCRIPT) as module:
        module.main(json.loads(Path(sys.argv[1]).read_text()))
