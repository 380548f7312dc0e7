"""BLEU, ROUGE-L and exact captions: by hand, and as the libraries count them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu

from hf_lam.training import Bleu, ExactMatch, RougeL, caption_metrics


def _bleu(*precisions: float, brevity: float = 1.0) -> float:
    return 100 * brevity * math.prod(precisions) ** (1 / len(precisions))


# A caption, its references, and what it has alone: BLEU, the F-measure of ROUGE-L, and whether it is one of them.
CASES: dict[str, tuple[str, list[str], float, float, bool]] = {
    "the same": ("a red circle on white", ["a red circle on white"], 100.0, 1.0, True),
    "one of several": ("a red circle on white", ["a blue square", "a red circle on white"], 100.0, 1.0, True),
    "spaces do not count": (" a red  circle on white ", ["a red circle on white"], 100.0, 1.0, True),
    # Right are 4 of 5 words and 2 of 4 pairs. No triple and no quadruple is: smoothed, 1/2 of 3 and 1/4 of 2.
    "a word is wrong": (
        "a red circle on white",
        ["a red square on white"],
        _bleu(4 / 5, 2 / 4, 1 / 6, 1 / 8),
        4 / 5,
        False,
    ),
    # What is there is right, but for two words of six: precision 1, recall 4/6.
    "too short": (
        "a red circle on",
        ["a red circle on white paper"],
        _bleu(1, brevity=math.exp(1 - 6 / 4)),
        0.8,
        False,
    ),
    # For the length, the nearest reference counts.
    "a long and a short reference": (
        "a red circle on",
        ["a red circle on white paper", "one red circle here"],
        100.0,
        0.8,
        False,
    ),
    "nothing": ("", ["a red circle"], 0.0, 0.0, False),
}


@pytest.mark.parametrize("name", CASES)
def test_one_caption(name: str) -> None:
    caption, references, bleu, rouge, is_exact = CASES[name]
    one: dict[str, Any] = {"predictions": [caption], "references": [references]}
    assert Bleu().compute(**one) == {"bleu": pytest.approx(bleu)}
    assert RougeL().compute(**one) == {"rougeL": pytest.approx(rouge)}
    assert ExactMatch().compute(**one) == {"exact": float(is_exact)}


def test_captions_with_as_many_references_as_each_has_are_counted_as_the_libraries_do() -> None:
    predictions, references = [case[0] for case in CASES.values()], [case[1] for case in CASES.values()]
    found = caption_metrics(predictions, references)
    columns: Any = [[texts[place] if place < len(texts) else None for texts in references] for place in range(2)]
    assert found["bleu"] == pytest.approx(corpus_bleu(predictions, columns).score)
    scorer = RougeScorer(["rougeL"])
    scores = [
        max(scorer.score(text, caption)["rougeL"].fmeasure for text in texts)
        for caption, texts in zip(predictions, references, strict=True)
    ]
    assert found["rougeL"] == pytest.approx(sum(scores) / len(scores))
    assert found["exact"] == 3 / len(CASES)
    for metric in (Bleu(), RougeL(), ExactMatch()):
        # In batches, as `Trainer` with batch_eval_metrics and evaluate's own loop give them.
        for caption, texts in zip(predictions, references, strict=True):
            metric.add_batch(predictions=[caption], references=[texts])
        (name,) = own = metric.compute()
        assert own[name] == pytest.approx(found[name])


def test_one_reference_may_be_a_text_alone() -> None:
    texts: dict[str, Any] = {"predictions": ["a dog", "a red cat"], "references": ["a dog", "a cat"]}
    lists = {**texts, "references": [[text] for text in texts["references"]]}
    for metric in (Bleu, RougeL, ExactMatch):
        assert metric().compute(**texts) == metric().compute(**lists)


def test_options_are_those_of_the_libraries() -> None:
    texts: dict[str, Any] = {"predictions": ["über den Wolken fliegen"], "references": ["Über den Wolken fliegen"]}
    assert Bleu().compute(**texts, lowercase=True) == {"bleu": pytest.approx(100.0)}
    assert Bleu().compute(**texts)["bleu"] < 100
    assert Bleu().compute(**texts, max_ngram_order=1) == {"bleu": pytest.approx(75.0)}
    # rouge-score leaves out what is not a to z.
    chinese: dict[str, Any] = {"predictions": ["红色的圆"], "references": ["红色的圆圈"]}
    assert RougeL().compute(**chinese) == {"rougeL": 0.0}
    assert RougeL().compute(**chinese, tokenizer=list) == {"rougeL": pytest.approx(8 / 9)}
    assert Bleu().compute(**chinese, tokenize="zh")["bleu"] > 70
    plural: dict[str, Any] = {"predictions": ["red circles"], "references": ["red circle"]}
    assert RougeL().compute(**plural, use_stemmer=True) == {"rougeL": 1.0}


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a dog"], [["a dog"], ["a cat"]], "got 1 for 2"),
        ([], [], "got 0 for 0"),
        (["a dog", "a cat"], [["a dog"], []], "caption 1 has no reference"),
    ],
)
def test_what_cannot_be_compared(predictions: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        caption_metrics(predictions, references)
