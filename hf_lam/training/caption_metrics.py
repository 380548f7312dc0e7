"""How near generated captions are to those that people wrote: BLEU, ROUGE-L, and how many are one of them.

BLEU is sacrebleu's and ROUGE-L is rouge-score's, both of which work offline; `evaluate.load` would download code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate

_INSTALL = 'Run `pip install "hf-lam[captions]"`.'

_INPUTS = """
Args:
    predictions: `n` captions.
    references: of each of them one caption or a list of several, which need not be equally many."""


class _CaptionMetric(evaluate.Metric):
    """A metric of texts, each of which has one reference or several."""

    description: str
    more_inputs: str = ""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description=_INPUTS + self.more_inputs,
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )


class Bleu(_CaptionMetric):
    """BLEU of all captions together, from 0 to 100, as sacrebleu counts it.

    `Bleu().compute(predictions=["a dog runs"], references=[["a dog runs", "the dog is running"]])` is
    `{"bleu": …}`. The options are sacrebleu's: `lowercase`, and `tokenize`, such as `"13a"`, `"intl"`, `"zh"` and
    `"char"`; `max_ngram_order`, 4 unless given.

    Raises:
        ImportError: without sacrebleu.
        ValueError: when computed on captions without references.
    """

    description = "BLEU of all captions together, from 0 to 100, as sacrebleu counts it."
    more_inputs = """
    lowercase: whether small and capital letters are the same.
    tokenize: how texts become words, by sacrebleu's name for it.
    max_ngram_order: how many words in a row are compared at most."""

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str | Sequence[str]],
        lowercase: bool = False,
        tokenize: str | None = None,
        max_ngram_order: int = 4,
    ) -> dict[str, float]:
        texts = _read_references(predictions, references)
        return {"bleu": _bleu(predictions, texts, lowercase, tokenize, max_ngram_order)}


class RougeL(_CaptionMetric):
    """ROUGE-L, the mean over the captions of the F-measure of the longest common subsequence, from 0 to 1.

    If there are several references, the nearest counts. Words are runs of the letters a to z and digits, in lower
    case, unless `tokenizer` says otherwise: a function that makes words of a text, which captions in other scripts
    need. `use_stemmer` is rouge-score's.

    Raises:
        ImportError: without rouge-score.
        ValueError: when computed on captions without references.
    """

    description = "The mean F-measure of the longest common subsequence of words, from 0 to 1."
    more_inputs = """
    use_stemmer: whether endings of English words are taken off.
    tokenizer: makes a list of words of a text; those of rouge-score are a to z and digits."""

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str | Sequence[str]],
        use_stemmer: bool = False,
        tokenizer: Callable[[str], list[str]] | None = None,
    ) -> dict[str, float]:
        texts = _read_references(predictions, references)
        return {"rougeL": _rouge(predictions, texts, use_stemmer, tokenizer)}


class ExactMatch(_CaptionMetric):
    """The share of captions that are one of their references, word for word, whatever spaces are between the words.

    Raises:
        ValueError: when computed on captions without references.
    """

    description = "The share of captions that are one of their references."

    def _compute(self, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
        return {"exact": _exact(predictions, _read_references(predictions, references))}


def caption_metrics(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """ "bleu", "rougeL" and "exact" of captions in memory; the same numbers and errors as [`Bleu`] and the others.

    Examples:
        >>> from hf_lam.training import caption_metrics
        >>> caption_metrics(["a dog"], [["a dog", "a small dog"]])["exact"]
        1.0
    """
    texts = _read_references(predictions, references)
    return {
        "bleu": _bleu(predictions, texts),
        "rougeL": _rouge(predictions, texts),
        "exact": _exact(predictions, texts),
    }


def _bleu(
    predictions: Sequence[str],
    texts: Sequence[Sequence[str]],
    lowercase: bool = False,
    tokenize: str | None = None,
    max_ngram_order: int = 4,
) -> float:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise ImportError(f"BLEU needs sacrebleu. {_INSTALL}") from error
    most = max(map(len, texts))
    # Of every place among the references a list over all captions; None where one has fewer.
    columns: Any = [[of_one[place] if place < len(of_one) else None for of_one in texts] for place in range(most)]
    scorer = BLEU(lowercase=lowercase, tokenize=tokenize, max_ngram_order=max_ngram_order, force=True)
    return float(scorer.corpus_score(list(predictions), columns).score)


def _rouge(
    predictions: Sequence[str],
    texts: Sequence[Sequence[str]],
    use_stemmer: bool = False,
    tokenizer: Callable[[str], list[str]] | None = None,
) -> float:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError(f"ROUGE-L needs rouge-score. {_INSTALL}") from error
    splitting = None if tokenizer is None else _Splitting(tokenizer)
    scorer = RougeScorer(["rougeL"], use_stemmer=use_stemmer, tokenizer=splitting)
    pairs = zip(texts, predictions, strict=True)
    scores = [scorer.score_multi(of_one, caption)["rougeL"].fmeasure for of_one, caption in pairs]
    return float(sum(scores) / len(scores))


def _exact(predictions: Sequence[str], texts: Sequence[Sequence[str]]) -> float:
    pairs = zip(predictions, texts, strict=True)
    found = [caption.split() in [text.split() for text in of_one] for caption, of_one in pairs]
    return sum(found) / len(found)


class _Splitting:
    """A tokenizer for rouge-score."""

    def __init__(self, split: Callable[[str], list[str]]) -> None:
        self.tokenize = split


def _read_references(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> list[list[str]]:
    """Read the list of references of every caption."""
    if len(predictions) != len(references) or not len(references):
        raise ValueError(
            f"there must be a caption for each list of references, got {len(predictions)} for {len(references)}."
        )
    texts = [[of_one] if isinstance(of_one, str) else list(of_one) for of_one in references]
    empty = [index for index, of_one in enumerate(texts) if not of_one]
    if empty:
        raise ValueError(f"caption {empty[0]} has no reference to compare it with.")
    return texts
