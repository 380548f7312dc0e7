"""Model cards: metadata that the Hub reads, and no number that was not measured or counted."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import yaml_dump
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
    ViTModel,
)

import hf_lam
from helpers.fusion_models import make_fusion
from helpers.fusion_vectors import make_vector_fusion
from helpers.hosts import mechanisms
from helpers.lam_models import make_lam, make_samples
from helpers.processes import ROOT
from hf_lam import LamConfig, LocomtConfig, SttConfig, cost
from hf_lam.hub.cards import model_card, write_card
from hf_lam.hub.earlier_cards import TEMPLATE, CardContent, card_in, read_card, weights_of
from hf_lam.modeling.mechanism_registry_hf_lam import config_class_of
from hf_lam.training import HfLamTrainer, HfLamTrainingArguments

PROJECT = "https://github.com/hf-lam/hf-lam"
REFERENCES = ROOT / "model_cards"
# A path from the root, and not a part of an address or of a relative path.
ABSOLUTE = re.compile(r"(?<![\w.:/])/\w|[A-Z]:\\")
ACCURACY = EvalResult("text-classification", "user/reviews", "Reviews", "accuracy", 0.875, dataset_split="validation")
LOSS = EvalResult("text-classification", "user/reviews", "Reviews", "loss", 0.4321)

BUILT_IN = ("lam", "locomt", "stt")

MODELS: dict[str, tuple[Any, str, Any, str]] = {
    "bert": (BertForSequenceClassification, "bert", mechanisms("lam", "bert"), "text-classification"),
    "mlm": (BertForMaskedLM, "bert", LamConfig(scope="shared", rank=2), "fill-mask"),
    "encoder": (BertModel, "bert", LocomtConfig(views="half"), "feature-extraction"),
    "vit": (ViTForImageClassification, "vit", (SttConfig(variant="dense"),), "image-classification"),
    "vit_encoder": (ViTModel, "vit", (SttConfig(), LamConfig()), "image-feature-extraction"),
    "videomae": (VideoMAEForVideoClassification, "videomae", LocomtConfig(views="self"), "video-classification"),
}


def made(kind: str) -> tuple[Any, str]:
    if kind == "fusion":
        return make_fusion(("text", "image", "audio"), head=True, hf_lam="half"), None
    stock, host, configs, task = MODELS[kind]
    return make_lam(stock, host, configs), task


def row_of(card: ModelCard, name: str) -> list[str]:
    (line,) = [line for line in card.text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize("kind", [*MODELS, "fusion"])
def test_what_was_changed_and_what_it_costs(kind: str) -> None:
    model, task = made(kind)
    content = CardContent(bases=["user/base"], license={"license": "mit"})
    card = model_card(model, content, name="some", repository="user/some")
    metadata = card.data.to_dict()
    assert metadata["library_name"] == "transformers"
    assert metadata.get("pipeline_tag") == task
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("user/base", "finetune")
    assert metadata["license"] == "mit"
    found = [key for key in BUILT_IN if key in (model.config.hf_lam or {})]
    assert found
    assert metadata["tags"][: 1 + len(found)] == ["hf_lam", *found]
    for key in BUILT_IN:
        assert (config_class_of(key).title in card.text) == (key in found)
        assert (config_class_of(key).arxiv in card.text) == (key in found)
    assert not {"model-index", "metrics", "model_name"} & set(metadata)
    assert "## Results" not in card.text
    # The same metadata, read back from the text.
    assert ModelCard(str(card)).data.to_dict() == metadata

    report = cost(model)
    before, after, ratio = row_of(card, "GFLOPs of a forward pass")
    assert after == f"{report.flops / 1e9:.4g}"
    assert float(ratio) == pytest.approx(float(after) / float(before), abs=2e-3)
    assert row_of(card, "GFLOPs of its attention")[1] == f"{(report.forward_attention + report.synthesis) / 1e9:.4g}"
    without = type(model)(type(model.config)(**{**model.config.to_dict(), "hf_lam": None}))
    counts = [f"{sum(p.numel() for p in x.parameters()):,}" for x in (without, model)]
    assert row_of(card, "parameters")[:2] == counts


def test_results_are_those_that_were_given(tmp_path: Path) -> None:
    card = model_card(made("bert")[0], CardContent(results=[ACCURACY, LOSS]), name="some")
    name, results = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert (name, results) == ("some", [ACCURACY])
    assert card.data.metrics == ["accuracy"]
    assert "| Accuracy | Reviews | validation | 0.8750 |" in card.text
    assert "| Loss | Reviews |  | 0.4321 |" in card.text


def test_views_are_listed_layer_by_layer() -> None:
    table = [["self"] * 4, ["self"] * 4, ["self", "self", "full", "a>b"]]
    views = LocomtConfig(segments=[["a", 12], ["b", 20]], views=table)
    text = model_card(make_lam(BertModel, "bert", (views,)), name="some").text
    assert "| 0 to 1 | 4 self |" in text
    assert "| 2 | 2 self, 1 full, 1 a>b |" in text


def test_a_mechanism_from_elsewhere_is_said_to_be_one(foreign_mechanism: Any, tmp_path: Path) -> None:
    factors = foreign_mechanism.HeadFactorConfig(most=1.5)
    model = make_lam(BertForSequenceClassification, "bert", (factors,))
    model.save_pretrained(tmp_path)
    write_card(model, tmp_path, name="some", base_model="user/base")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.tags == ["hf_lam", "head_factor"]
    said = "- **Learned head factors** (`head_factor`, defined in `foreign_mechanism.py`), in each of its 3 attention"
    assert f"{said} layers: `most=1.5`\n" in card.text
    assert "Its attention uses these mechanisms:\n" in card.text
    assert "`foreign_mechanism.py` is not part of hf_lam" in card.text
    assert 'hf_lam.import_mechanism("./some/foreign_mechanism.py")  # has head_factor\n# then as above' in card.text
    assert "## Citation" not in card.text
    assert "| layers | heads and their sharpness |" in card.text
    assert card_in(tmp_path).bases == ["user/base"]
    assert card_in(tmp_path).origin == "made from [user/base](https://hf.co/user/base)"
    both = make_lam(BertForSequenceClassification, "bert", (factors, LamConfig()))
    text = model_card(both, name="some").text
    assert (
        "- **Learnable attention mask** (`lam`, [arXiv 2406.02761](https://arxiv.org/abs/2406.02761), from hf_lam)"
        in text
    )
    assert "@article{barrios2024lam," in text


def test_how_to_load_and_to_check() -> None:
    model, _ = made("bert")
    text = model_card(model, name="some", repository="user/some", processor=BertTokenizerFast(vocab={"a": 0})).text
    for line in (
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        'name = "user/some"',
        "AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True)",
        f"runs without [hf_lam]({PROJECT}), with the code in this repository",
        "hf-lam verify user/some",
        "import hf_lam",
        f"hf_lam {hf_lam.__version__}",
    ):
        assert line in text, line


# --- Earlier cards ---------------------------------------------------------------------------------------------------

HAND_WRITTEN = """---
license: other
license_name: mine
license_link: https://example.org
language: de
extra_gated_prompt: Be good.
datasets: [user/reviews]
tags: [mine]
---

# Mine

## Results

| metric | value |

## Who made it

Me, with [love](https://example.org).

## Who made it

```python
## no title
print("More information needed")
```

And still nobody else.

## Bias, Risks, and Limitations

[More Information Needed]

## Training

Long.
"""


AGAIN = HAND_WRITTEN.split("## Who made it\n\n")[2].split("\n\n## Bias")[0]


def test_what_somebody_wrote_is_kept() -> None:
    card = read_card(HAND_WRITTEN)
    assert card.sections == (("Who made it", "Me, with [love](https://example.org)."), ("Who made it", AGAIN))
    assert (card.training, card.data) == ("Long.", "")
    assert card.license == {"license": "other", "license_name": "mine", "license_link": "https://example.org"}
    assert (card.datasets, card.tags, card.results) == (["user/reviews"], ["mine"], [])
    assert card.further == {"extra_gated_prompt": "Be good."}
    content = CardContent(sections=card.sections, training=card.training, origin="found in v. 2 of a drawer")
    again = model_card(made("bert")[0], content, name="some")
    assert read_card(str(again)).sections == card.sections
    assert read_card(str(again)).training == "Long."
    assert read_card(str(again)).origin == "found in v. 2 of a drawer"


@pytest.mark.parametrize(
    "text", ["", "no metadata", "---\n- a list\n---\n", "---\na: [\n---\n", "---\nmodel-index: 3\n---"]
)
def test_any_text_can_be_read(text: str) -> None:
    assert read_card(text).sections == ()


def test_what_belongs_to_other_weights_is_not_taken_over(tmp_path: Path) -> None:
    model, _ = made("bert")
    model.save_pretrained(tmp_path)
    write_card(model, tmp_path, name="some", base_model="user/base", results=[ACCURACY])
    assert card_in(tmp_path).results == [ACCURACY]
    assert card_in(tmp_path).weights == weights_of(tmp_path)
    # Another model in its place, with the card left as it was.
    made("mlm")[0].save_pretrained(tmp_path)
    assert card_in(tmp_path).results == []
    assert card_in(tmp_path).origin is None
    assert card_in(tmp_path).bases == ["user/base"]


def test_a_card_without_a_hash_belongs_to_weights_that_were_there_before(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    name, index = "some", eval_results_to_model_index("some", [ACCURACY])
    ModelCard(f"---\n{yaml_dump({'model-index': index})}---\n# {name}\n").save(tmp_path / "README.md")
    assert card_in(tmp_path).results == [ACCURACY]
    later = (tmp_path / "README.md").stat().st_mtime + 10
    os.utime(tmp_path / "model.safetensors", (later, later))
    assert card_in(tmp_path).results == []


@pytest.mark.parametrize("name", ["optimizer.pt", ".env", "modeling_hf_lam.py", "config.json", "../up.png"])
def test_only_pictures_are_pictures(name: str) -> None:
    assert read_card(f"## Pictures\n\n![a]({name})\n![b](masks.png)\n").pictures == {"masks.png": "b"}


@pytest.mark.slow
def test_pictures_of_an_earlier_card_are_taken_over(tmp_path: Path) -> None:
    model, _ = made("bert")
    drawn = write_card(model, tmp_path, name="some", inputs=make_samples_of(model))
    assert {"masks.png", "attention.png"} <= set(drawn)
    (tmp_path / "attention.png").unlink()
    before = (tmp_path / "masks.png").read_bytes()
    kept = write_card(model, tmp_path, name="other", base_model="user/base")
    assert "masks.png" in kept
    assert "attention.png" not in kept
    assert (tmp_path / "masks.png").read_bytes() == before
    text = (tmp_path / "README.md").read_text()
    assert "](masks.png)" in text
    assert "](attention.png)" not in text


def make_samples_of(model: Any) -> dict[str, Any]:
    sample = make_samples(model, "bert", 1)[0]
    return {name: value[None] for name, value in sample.items() if name != "labels"}


def test_the_card_of_a_trainer_says_what_was_measured_and_what_was_changed(tmp_path: Path) -> None:
    model, _ = made("bert")
    model.config._name_or_path = "user/base"
    samples = make_samples(model, "bert", 4)
    arguments = HfLamTrainingArguments(
        str(tmp_path), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    trainer = HfLamTrainer(model=model, args=arguments, train_dataset=samples, eval_dataset=samples)
    trainer.train()
    measured = trainer.evaluate()
    trainer.create_model_card(model_name="mine", dataset="Reviews", dataset_tags="user/reviews")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "user/base"
    assert LamConfig.title in card.text
    assert f"{measured['eval_loss']:.4f}" in card.text
    assert "### Training hyperparameters" in card.text
    assert "- num_epochs" in card.text or "training_steps" in card.text
    assert "generated_from_trainer" in card.data.tags


# --- The template and the reference cards ----------------------------------------------------------------------------


def test_the_template_can_be_found_among_the_cards() -> None:
    assert (REFERENCES / "model_card_template.md").read_text() == TEMPLATE.read_text()


def references() -> list[Path]:
    return sorted(path for path in REFERENCES.iterdir() if path.is_dir())


def test_there_is_a_reference_of_every_kind() -> None:
    tags = [set(ModelCard.load(path / "README.md").data.tags) for path in references()]
    assert any({"lam"} <= kinds and "multimodal" not in kinds for kinds in tags)
    assert any("stt" in kinds for kinds in tags)
    assert any("multimodal" in kinds for kinds in tags)
    assert any("locomt" in kinds and "multimodal" not in kinds for kinds in tags)


@pytest.mark.parametrize("path", references(), ids=lambda path: path.name)
def test_reference_cards_are_valid_and_complete(path: Path) -> None:
    text = (path / "README.md").read_text()
    card = ModelCard(text)
    name, results = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == path.name
    assert {result.dataset_split for result in results} == {"validation", "test"}
    for result in results:
        assert f"| {result.dataset_split} | {result.metric_value:.4f} |" in text
    assert not ABSOLUTE.search(card.text)
    pictures = re.findall(r"\]\(([\w.-]+\.png)\)", text)
    assert pictures
    assert sorted({*pictures, "README.md"}) == sorted(file.name for file in path.iterdir())
    assert f"hf_lam {hf_lam.__version__}" in text
    assert f"these mechanisms of [hf_lam]({PROJECT}):" in text
    assert read_card(text).weights


def test_the_modalities_of_a_fusion_model_and_its_tags() -> None:
    model = make_vector_fusion(encoders=("text", "image"), hf_lam="half")
    model.config.text_config._name_or_path = "google-bert/bert-base-uncased"
    model.config.image_config._name_or_path = "/home/me/vit"
    # Of a card that was there: the tags of modalities are made anew.
    card = model_card(model, CardContent(tags=["audio", "features", "mine"]), name="some")
    assert card.data.tags == ["hf_lam", "locomt", "multimodal", "text", "image", "features", "mine"]
    link = "[google-bert/bert-base-uncased](https://hf.co/google-bert/bert-base-uncased)"
    assert row_of(card, "text") == ["`input_ids`", f"`BertModel` of {link}"]
    assert row_of(card, "image") == ["`pixel_values`", "`ViTModel`"]
    assert row_of(card, "clips") == ["`clips_features`", "vectors of 20 numbers, at most 9"]
    assert row_of(card, "words") == ["`words_features`", "vectors of 12 numbers"]
    assert "pipeline_tag" not in card.data.to_dict()
    assert "## Modalities" not in model_card(made("bert")[0], name="some").text
    # The section is not kept as one that somebody wrote.
    assert not read_card(str(card)).sections
