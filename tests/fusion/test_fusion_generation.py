"""Fusion models that write text: what they compute, what they write, and how they are made and kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    CONFIG_MAPPING,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    BertForMaskedLM,
    BertLMHeadModel,
    BertModel,
    BertTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from transformers.trainer_utils import align_special_tokens

import hf_lam
from helpers.fusion_decoders import FAMILIES, REFUSED, WITHOUT, family_config
from helpers.fusion_heads import (
    END,
    PAD,
    SHORT,
    START,
    WORDS,
    decoder_config,
    head_config,
    head_inputs,
    make_head,
    take,
    text_labels,
)
from helpers.fusion_models import lacking
from helpers.hosts import make_host, perturb_mechanisms
from helpers.processes import run_code
from hf_lam import HfLamFusionConfig, HfLamFusionForConditionalGeneration, HfLamFusionModel, HfLamFusionProcessor
from hf_lam.modeling.fusion_generation_hf_lam import CACHE, generation_loss
from hf_lam.training import HfLamTrainer, HfLamTrainingArguments
from hf_lam.training.recording import count_parameters, hash_starts

TOLERANCE = 1e-5
LENGTH = 6
# Masks on cross-attention; a dense one has a column for each token of every modality.
MASKS: dict[str, Any] = {"rank": {"rank": 2}, "shared": {"rank": 2, "scope": "shared"}, "dense": {}}
# The most tokens of each modality, which a dense mask needs.
BOUNDED = {"clips": {"size": 5, "max_length": 8, "dropout": 0.0}, "sound": {"size": 7, "norm": False, "max_length": 8}}


def make(family: str = "gpt2", mechanism: str = "lam_half", **options: Any) -> Any:
    """A model whose decoder is of a family. No mechanism is at the identity, nor are masks on cross-attention."""
    decoder = decoder_config() if family == "gpt2" else family_config(family)
    if options.get("decoder_lam") == {}:
        options.setdefault("features", BOUNDED)
    return make_head("generation", mechanism, **{"decoder": decoder, **options})


def text(batch: int = 2, length: int = 7, seed: int = 5) -> Tensor:
    """Words without an end, behind the start."""
    words = torch.randint(3, WORDS, (batch, length), generator=torch.Generator().manual_seed(seed))
    words[:, 0] = START
    return words


@torch.no_grad()
def logits_of(model: Any, inputs: dict[str, Tensor], words: Tensor, **options: Any) -> Tensor:
    return model(**inputs, decoder_input_ids=words, **options).logits


# --- what is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_the_loss_is_that_of_the_decoder(family: str) -> None:
    """Which shifts labels by itself: they are the words that it reads."""
    model, inputs, labels = make(family), head_inputs(), text_labels()
    outputs = model(**inputs, labels=labels)
    assert outputs.get(CACHE) is None and outputs.logits.shape == (*labels.shape, WORDS)
    memory = model.fusion(**inputs)
    words = torch.cat([torch.full((2, 1), START), labels], dim=1)
    stock = model.decoder(
        input_ids=words.masked_fill(words == -100, PAD),
        encoder_hidden_states=model.projection(memory.last_hidden_state),
        encoder_attention_mask=memory.token_mask,
        labels=words,
    )
    torch.testing.assert_close(outputs.loss, stock.loss)
    torch.testing.assert_close(outputs.logits, stock.logits[:, :-1])
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    assert shifted[0].tolist() == [START, *labels[0, :-1].tolist()] and shifted[1, -1] == PAD
    torch.testing.assert_close(model(**inputs, labels=labels, decoder_input_ids=shifted).loss, outputs.loss)


def test_the_loss_is_a_mean_over_all_labels_of_a_step() -> None:
    logits, labels = torch.randn(2, 5, WORDS), text_labels()
    expected = cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(generation_loss(logits, labels), expected)
    parts = [generation_loss(logits[i : i + 1], labels[i : i + 1], (labels != -100).sum()) for i in range(2)]
    torch.testing.assert_close(parts[0] + parts[1], expected)
    assert generation_loss(logits, torch.full_like(labels, -100)) == 0


@pytest.mark.parametrize("mask", [None, *MASKS])
@pytest.mark.parametrize("family", ["gpt2", pytest.param("bert", marks=pytest.mark.slow)])
def test_a_sample_alone_is_as_in_a_batch(family: str, mask: str | None) -> None:
    model = make(family, decoder_lam=MASKS.get(str(mask)))
    inputs, words = head_inputs(), text()
    together = logits_of(model, inputs, words)
    alone = logits_of(model, take(inputs, 1, SHORT), words[1:])
    assert (alone - together[1:]).abs().max() < TOLERANCE
    inputs["clips_features"][1, SHORT:], inputs["sound_features"][1, SHORT:] = math.nan, math.inf
    inputs["input_ids"][1, SHORT:] = 7
    assert torch.equal(logits_of(model, inputs, words), together)
    # Words that come later change nothing, and neither does what is behind the end of a text.
    assert (logits_of(model, inputs, words[:, :4]) - together[:, :4]).abs().max() < TOLERANCE
    masked = torch.ones_like(words)
    masked[:, 4:] = 0
    assert (logits_of(model, inputs, words, decoder_attention_mask=masked) - together)[:, :4].abs().max() < TOLERANCE


@pytest.mark.parametrize("mask", [None, *MASKS])
@pytest.mark.parametrize("family", ["gpt2", pytest.param("bert", marks=pytest.mark.slow)])
def test_word_by_word_is_as_in_one_pass(family: str, mask: str | None) -> None:
    assert_word_by_word(make(family, decoder_lam=MASKS.get(str(mask))))


def assert_word_by_word(model: Any) -> None:
    inputs, words = head_inputs(), text()
    expected = logits_of(model, inputs, words)
    memory, cache, found = model.get_encoder()(**inputs), None, []
    with torch.no_grad():
        for place in range(words.shape[1]):
            step = words[:, place : place + 1]
            outputs = model(encoder_outputs=memory, decoder_input_ids=step, use_cache=True, **{CACHE: cache})
            cache = outputs[CACHE]
            found.append(outputs.logits)
    assert (torch.cat(found, dim=1) - expected).abs().max() < TOLERANCE


def test_the_cache_has_its_older_name_too() -> None:
    model, inputs, words = make(), head_inputs(), text()
    first = model(**inputs, decoder_input_ids=words[:, :3], use_cache=True)
    rest = logits_of(model, inputs, words[:, 3:], past_key_values=first[CACHE])
    assert (rest - logits_of(model, inputs, words)[:, 3:]).abs().max() < TOLERANCE


def test_without_a_text_it_is_the_first_word() -> None:
    model, inputs = make(), head_inputs()
    expected = logits_of(model, inputs, torch.full((2, 1), START))
    assert torch.equal(model(**inputs).logits, expected)
    embeds = model.get_input_embeddings()(torch.full((2, 1), START))
    torch.testing.assert_close(model(**inputs, decoder_inputs_embeds=embeds).logits, expected)


@pytest.mark.parametrize("mask", MASKS)
def test_masks_on_cross_attention_start_as_the_identity(mask: str) -> None:
    stock, inputs, words = make(features=BOUNDED), head_inputs(), text()
    masked = HfLamFusionForConditionalGeneration(
        HfLamFusionConfig(**{**stock.config.to_dict(), "decoder_lam": MASKS[mask]})
    ).eval()
    missing, unexpected = masked.load_state_dict(stock.state_dict(), strict=False)
    assert missing and not unexpected and all(".hf_lam.cross_lam." in name for name in missing)
    expected = logits_of(stock, inputs, words)
    assert (logits_of(masked, inputs, words) - expected).abs().max() < 1e-6
    perturb_mechanisms(masked)
    assert (logits_of(masked, inputs, words) - expected).abs().max() > 1e-3
    masked(**inputs, labels=text_labels()).loss.backward()
    assert lacking(masked) == []


def test_masks_on_cross_attention_count_as_mechanisms(tmp_path: Path) -> None:
    """Where there are no others: they learn at the mechanisms' rate, are no part of what runs start from alike, go."""
    model, plain = make(mechanism="none", decoder_lam={"rank": 2}), make(mechanism="none")
    plain.load_state_dict({key: x for key, x in model.state_dict().items() if ".hf_lam." not in key})
    assert hash_starts(model) == hash_starts(plain)
    added = hf_lam.mechanism_parameters(model)
    assert count_parameters(model)["mechanism_parameters"] == sum(x.numel() for x in added) > 0
    arguments = HfLamTrainingArguments(str(tmp_path), mechanism_learning_rate=0.5, use_cpu=True, report_to=[])
    groups = HfLamTrainer(model, arguments).create_optimizer().param_groups
    fast = [x for group in groups if group["lr"] == 0.5 for x in group["params"]]
    assert {*map(id, fast)} == {*map(id, added)}
    hf_lam.freeze_host(model, train_head=True)
    assert all(x.requires_grad != name.startswith("fusion.") for name, x in model.named_parameters())
    perturb_mechanisms(model)
    inputs, words = head_inputs(), text()
    model.config.decoder_lam = None
    model.save_pretrained(tmp_path / "saved")
    loaded = HfLamFusionForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert (logits_of(loaded, inputs, words) - logits_of(plain, inputs, words)).abs().max() > 1e-3
    hf_lam.remove(loaded)
    assert loaded.config.decoder_lam is None
    assert torch.equal(logits_of(loaded, inputs, words), logits_of(plain, inputs, words))


def test_what_it_returns_when_asked() -> None:
    model, inputs, words = make(), head_inputs(), text()
    model.set_attn_implementation("eager")
    assert model.config.decoder._attn_implementation == model.decoder.config._attn_implementation == "eager"
    outputs = model(**inputs, decoder_input_ids=words, output_attentions=True, output_hidden_states=True)
    tokens = 3 * LENGTH
    assert [x.shape for x in outputs.cross_attentions] == [(2, 2, 7, tokens)] * 2
    assert [x.shape for x in outputs.encoder_attentions] == [(2, 4, tokens, tokens)] * 2
    assert [x.shape for x in outputs.decoder_hidden_states] == [(2, 7, 16)] * 3
    assert [x.shape for x in outputs.encoder_hidden_states] == [(2, tokens, 32)] * 3
    assert outputs.encoder_last_hidden_state.shape == (2, tokens, 32)
    # Nothing is seen of padding.
    assert not outputs.cross_attentions[0][1, ..., SHORT:LENGTH].any()


# --- what is written -------------------------------------------------------------------------------------------------


def greedy(model: Any, inputs: dict[str, Tensor], steps: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """The words by one pass over the whole text for each, without a cache."""
    count = next(iter(inputs.values())).shape[0]
    words, is_done = torch.full((count, 1), START), torch.zeros(count, dtype=torch.bool)
    for _ in range(steps):
        chosen = choose(logits_of(model, inputs, words)[:, -1])
        chosen = chosen.masked_fill(is_done, PAD)
        is_done |= chosen == END
        words = torch.cat([words, chosen[:, None]], dim=1)
        if is_done.all():
            break
    return words


def search(model: Any, inputs: dict[str, Tensor], steps: int, beams: int) -> list[list[int]]:
    """Texts of one length by beam search, one sample after the other."""
    found = []
    for index in range(len(inputs["input_ids"])):
        sample = {key: value[index : index + 1] for key, value in inputs.items()}
        candidates = [(0.0, [START])]
        for _ in range(steps):
            longer = []
            for score, words in candidates:
                scores = logits_of(model, sample, torch.tensor([words]))[0, -1].log_softmax(-1)
                scores[END] = -math.inf
                longer += [(score + more, [*words, word]) for word, more in enumerate(scores.tolist())]
            candidates = sorted(longer, reverse=True)[:beams]
        found.append(candidates[0][1])
    return found


@pytest.mark.parametrize(
    ("family", "mask"),
    [
        ("gpt2", "rank"),
        *(pytest.param("gpt2", mask, marks=pytest.mark.slow) for mask in (None, "dense")),
        *(pytest.param("bert", mask, marks=pytest.mark.slow) for mask in (None, "rank", "dense")),
    ],
)
def test_what_it_writes_is_what_forward_says(family: str, mask: str | None) -> None:
    model, inputs = make(family, decoder_lam=MASKS.get(str(mask))), head_inputs(3)
    expected = greedy(model, inputs, 8, lambda scores: scores.argmax(-1))
    for use_cache in (True, False):
        assert torch.equal(model.generate(**inputs, max_new_tokens=8, use_cache=use_cache), expected)
    written = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, num_beams=3, early_stopping=True)
    assert written.tolist() == search(model, inputs, 4, 3)
    torch.manual_seed(0)
    sampled = model.generate(**inputs, max_new_tokens=5, do_sample=True, top_k=0)
    torch.manual_seed(0)
    draw = lambda scores: scores.softmax(-1).multinomial(1)[:, 0]  # noqa: E731
    assert torch.equal(sampled, greedy(model, inputs, 5, draw))


def test_the_fusion_model_runs_once_a_text() -> None:
    model, inputs = make(), head_inputs()
    runs: list[int] = []
    model.fusion.register_forward_pre_hook(lambda *_: runs.append(1))
    expected = model.generate(**inputs, max_new_tokens=5, num_beams=2)
    assert len(runs) == 1
    memory = model.get_encoder()(**inputs)
    for _ in range(2):  # what transformers writes into it is its own
        assert torch.equal(model.generate(encoder_outputs=memory, max_new_tokens=5, num_beams=2), expected)
    with_labels = model.generate(**inputs, labels=text_labels(), max_new_tokens=5, num_beams=2)
    assert torch.equal(with_labels, expected)


@pytest.mark.parametrize("mask", [None, "dense"])
@pytest.mark.parametrize("missing", ["text", "clips"])
def test_it_writes_the_same_alone_and_in_a_batch(missing: str, mask: str | None) -> None:
    """Also about samples that lack a modality, the first of the configuration too."""
    model, inputs = make(decoder_lam=MASKS.get(str(mask))), head_inputs(3)
    options: dict[str, Any] = {"max_new_tokens": 6, "num_beams": 2, "eos_token_id": None}
    inputs[f"has_{missing}"] = torch.tensor([True, False, True])
    together = model.generate(**inputs, **options)
    for index, length in ((0, LENGTH), (1, SHORT), (2, LENGTH)):
        alone = take(inputs, index, length)
        if not alone.pop(f"has_{missing}").item():
            names = {*model.config.modality_arguments(missing).names}
            alone = {key: value for key, value in alone.items() if key not in names}
        assert torch.equal(model.generate(**alone, **options), together[index : index + 1]), index


def test_the_beginning_of_a_text_and_what_else_generation_takes() -> None:
    model, inputs = make(), head_inputs()
    beginning = text(length=3)
    written = model.generate(**inputs, decoder_input_ids=beginning, max_new_tokens=4)
    assert torch.equal(written[:, :3], beginning) and written.shape[1] > 3
    assert torch.equal(model.generate(**inputs, decoder_input_ids=beginning[:, 1:], max_new_tokens=4), written)
    returned = model.generate(
        **inputs,
        generation_config=GenerationConfig(max_new_tokens=3, num_beams=2, num_return_sequences=2, eos_token_id=None),
        return_dict_in_generate=True,
        output_scores=True,
        output_hidden_states=True,
        decoder_start_token_id=START,
        pad_token_id=PAD,
    )
    assert returned.sequences.shape == (4, 4)
    assert [x.shape for x in returned.encoder_hidden_states] == [(2, 3 * LENGTH, 32)] * 3
    scores = model.compute_transition_scores(returned.sequences, returned.scores, returned.beam_indices)
    torch.testing.assert_close(scores.sum(1) / 3, returned.sequences_scores)
    first = {key: value for key, value in inputs.items() if key != "input_ids"}
    assert torch.equal(
        model.generate(inputs["input_ids"], **first, max_new_tokens=4), model.generate(**inputs, max_new_tokens=4)
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}])
def test_other_ways_to_write_the_same(options: dict[str, Any]) -> None:
    model, inputs = make(decoder_lam={"rank": 2}), take(head_inputs(), 0)
    expected = model.generate(**inputs, max_new_tokens=8)
    assert torch.equal(model.generate(**inputs, max_new_tokens=8, **options), expected)


# --- decoders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    [family if family == "bart" else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES],
)
def test_decoders_of_every_family(family: str, tmp_path: Path) -> None:
    model = make(family)
    inputs, words = head_inputs(), text()
    assert_word_by_word(model)
    together = logits_of(model, inputs, words)
    assert (logits_of(model, take(inputs, 1, SHORT), words[1:]) - together[1:]).abs().max() < TOLERANCE
    other = {**inputs, "clips_features": inputs["clips_features"].flip(0)}
    assert (logits_of(model, other, words) - together).abs().max() > 1e-3
    written = model.generate(**inputs, max_new_tokens=8)
    assert torch.equal(written, greedy(model, inputs, 8, lambda scores: scores.argmax(-1)))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded, inputs, words), together)
    assert loaded.all_tied_weights_keys == model.all_tied_weights_keys
    assert bool(model.all_tied_weights_keys) or family in ("bigbird_pegasus", "rembert")
    loaded.train()(**inputs, labels=text_labels()).loss.backward()
    assert [name for name, p in loaded.named_parameters() if p.grad is None and p.requires_grad] == []


@pytest.mark.parametrize(("family", "message"), [*REFUSED.items(), *WITHOUT.items()])
def test_decoders_that_are_refused_by_name(family: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.* Give a decoder with cross-attention"):
        head_config(decoder=CONFIG_MAPPING[family]())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": {"vocab_size": 3}}, "decoder has the model type 'None'"),
        ({"decoder": {"model_type": "hf_lam_bert"}}, "decoder is a HfLamBertConfig, of which"),
        ({"decoder": "gpt2"}, "decoder must be a configuration or a dictionary, got str"),
        ({"decoder": {"model_type": "bert", "vocab_size": -3}}, "decoder: vocab_size must be an integer"),
        ({"decoder_lam": {"rank": 2}}, "decoder_lam has no meaning without a decoder"),
        ({"decoder": decoder_config(), "decoder_lam": {"rnk": 2}}, "rnk"),
        ({"decoder": decoder_config(), "decoder_start_token_id": WORDS}, f"decoder_start_token_id .* got {WORDS}"),
        ({"decoder": decoder_config(), "pad_token_id": -1}, "pad_token_id must be a token of the decoder"),
        ({"decoder": decoder_config(), "eos_token_id": [END, "x"]}, "eos_token_id must be a token"),
        ({"decoder": decoder_config(), "bos_token_id": True}, "bos_token_id must be a token"),
    ],
)
def test_what_the_configuration_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head_config(**options)


def test_the_tokens_around_a_text() -> None:
    config = head_config(decoder=decoder_config())
    assert config.is_encoder_decoder and config.decoder.is_decoder and config.decoder.add_cross_attention
    assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (START, END, END)
    # A configuration of the class's own ids, which its vocabulary does not have.
    config = head_config(decoder=GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=1, n_head=2))
    assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (None, None, None)
    model = HfLamFusionForConditionalGeneration(config)
    with pytest.raises(ValueError, match=r"has no decoder_start_token_id. Set model.config.decoder_start_token_id"):
        model(**head_inputs(), labels=text_labels())
    several = head_config(decoder=decoder_config(), eos_token_id=[END, 5], decoder_start_token_id=4)
    assert (several.eos_token_id, several.pad_token_id, several.decoder_start_token_id) == ([END, 5], END, 4)
    decoder = decoder_config()
    decoder.eos_token_id = [END, 5]
    inherited = head_config(decoder=decoder)
    assert (inherited.eos_token_id, inherited.pad_token_id) == ([END, 5], END)
    plain = head_config()
    assert plain.decoder is None and not plain.is_encoder_decoder and plain.pad_token_id is None
    assert plain.get_text_config() is plain.text_config


def test_a_decoder_whose_attention_cannot_have_masks_says_so() -> None:
    with pytest.raises(ValueError, match="TrOCRAttention of TrOCRForCausalLM does not go through"):
        make("trocr", decoder_lam={"rank": 2})


def test_a_model_without_a_decoder_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"HfLamFusionForConditionalGeneration needs the configuration of a decoder"):
        HfLamFusionForConditionalGeneration(head_config())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"labels": torch.zeros(2, 3, 4).long()}, ValueError, r"labels must be of shape \(batch, tokens\)"),
        ({"labels": text_labels(), "decoder_input_ids": text()}, ValueError, r"labels must be of shape \(2, 7\)"),
        ({"decoder_colour": torch.zeros(1)}, TypeError, "GPT2LMHeadModel, the decoder, takes no decoder_colour"),
        ({"colour": torch.zeros(1)}, TypeError, "takes no colour"),
    ],
)
def test_calls_that_are_refused(call: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()(**head_inputs(), **call)


def test_generation_needs_a_modality() -> None:
    with pytest.raises(ValueError, match="no modality was given"):
        make().generate(max_new_tokens=2)
    inputs = head_inputs()
    with pytest.raises(ValueError, match="inputs are the input_ids"):
        make().generate(inputs["input_ids"], **inputs)


def test_a_trainer_does_not_take_the_words_that_are_read_for_those_that_are_written(tmp_path: Path) -> None:
    """Of a processor, it takes the special tokens of `tokenizer`, and gives them to the decoder."""
    model = make("roberta")
    expected = {name: getattr(model.generation_config, name) for name in ("eos_token_id", "pad_token_id")}
    inputs, words = head_inputs(), text()
    written, logits = model.generate(**inputs, max_new_tokens=8), logits_of(model, inputs, words)
    read = SimpleNamespace(eos_token_id=7, bos_token_id=8, pad_token_id=9)
    processor = HfLamFusionProcessor(features={"clips": 5})
    processor.tokenizer = read
    align_special_tokens(model, processor)
    assert model.generation_config.pad_token_id == model.config.decoder.pad_token_id == 9
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded, inputs, words), logits)
    for each in (model, loaded):
        assert torch.equal(each.generate(**inputs, max_new_tokens=8), written)
        assert {name: getattr(each.generation_config, name) for name in expected} == expected
    # What somebody chose is left alone.
    model.generation_config.eos_token_id = int(written[0, 2])
    assert model.generate(**inputs, max_new_tokens=8)[0, 3:].eq(PAD).all()


# --- vocabularies ----------------------------------------------------------------------------------------------------


def test_each_vocabulary_is_resized_by_itself(tmp_path: Path) -> None:
    model, inputs, words = make(), head_inputs(), text()
    expected = logits_of(model, inputs, words)
    read = model.config.text_config.vocab_size
    model.resize_token_embeddings(WORDS + 5)
    assert model.config.decoder.vocab_size == WORDS + 5 and model.config.text_config.vocab_size == read
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.fusion.resize_token_embeddings(read + 3)
    assert model.config.text_config.vocab_size == read + 3 and model.config.decoder.vocab_size == WORDS + 5
    assert model.fusion.get_input_embeddings().weight.shape[0] == read + 3
    torch.testing.assert_close(logits_of(model, inputs, words)[..., :WORDS], expected)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded, inputs, words), logits_of(model, inputs, words))


def test_a_decoder_with_a_copy_of_its_configuration_is_resized_too(tmp_path: Path) -> None:
    model = make("bart")
    model.resize_token_embeddings(WORDS + 5)
    model.save_pretrained(tmp_path)
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path).get_input_embeddings().num_embeddings == WORDS + 5


# --- saved and loaded ------------------------------------------------------------------------------------------------

LOADER = """
import sys, torch, transformers
root = sys.argv[1]
model = transformers.AutoModelForSeq2SeqLM.from_pretrained(f"{root}/model", trust_remote_code=True)
case = torch.load(f"{root}/case.pt")
with torch.no_grad():
    torch.testing.assert_close(model(**case["inputs"], labels=case["labels"]).loss, case["loss"], atol=1e-6, rtol=0)
assert torch.equal(model.generate(**case["inputs"]), case["written"])
base = transformers.AutoModel.from_pretrained(f"{root}/model", trust_remote_code=True)
with torch.no_grad():
    torch.testing.assert_close(base(**case["inputs"]).pooler_output, case["pooled"], atol=1e-6, rtol=0)
processor = transformers.AutoProcessor.from_pretrained(f"{root}/model", trust_remote_code=True)
print("loaded", type(model).__name__, type(base).__name__, processor.decode([8, 9]))
"""


@pytest.mark.slow
def test_a_folder_without_hf_lam(tmp_path: Path) -> None:
    model, inputs, labels = make("bert", decoder_lam=MASKS["dense"]), head_inputs(), text_labels()
    words = BertTokenizer(vocab={f"word{index}": index for index in range(WORDS)})
    HfLamFusionProcessor(features={"clips": 5}, decoder_tokenizer=words).save_pretrained(tmp_path / "model")
    model.generation_config.update(max_new_tokens=6, num_beams=3, length_penalty=0.5)
    model.save_pretrained(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (saved["num_beams"], saved["decoder_start_token_id"], saved["eos_token_id"]) == (3, START, END)
    with torch.no_grad():
        case = {"loss": model(**inputs, labels=labels).loss, "pooled": model.fusion(**inputs).pooler_output}
    case |= {"inputs": inputs, "labels": labels, "written": model.generate(**inputs)}
    torch.save(case, tmp_path / "case.pt")
    printed = run_code(LOADER, tmp_path, hf_lam=False)
    assert "loaded HfLamFusionForConditionalGeneration HfLamFusionModel word8 word9" in printed


@pytest.mark.parametrize("mask", [pytest.param(None, marks=pytest.mark.slow), "rank"])
def test_the_fusion_model_of_a_folder_and_back(mask: str | None, tmp_path: Path) -> None:
    model, inputs = make(decoder_lam=MASKS.get(str(mask))), head_inputs()
    model.save_pretrained(tmp_path / "whole")
    base = HfLamFusionModel.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(base(**inputs).pooler_output, model.fusion(**inputs).pooler_output)
    base.save_pretrained(tmp_path / "base")
    again, info = HfLamFusionForConditionalGeneration.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert info["missing_keys"] and all(name.startswith(("decoder.", "projection.")) for name in info["missing_keys"])
    torch.testing.assert_close(again.fusion(**inputs).pooler_output, model.fusion(**inputs).pooler_output)
    if mask is not None:
        with pytest.raises(RuntimeError, match="was saved with mechanisms"):
            HfLamFusionForConditionalGeneration.from_pretrained(tmp_path / "whole", decoder_lam=None)


# --- from checkpoints ------------------------------------------------------------------------------------------------

TINY_BERT: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY_BERT |= {"intermediate_size": 24, "vocab_size": WORDS, "max_position_embeddings": 32, "initializer_range": 0.3}
TINY_BART: dict[str, Any] = {"vocab_size": WORDS, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2}
TINY_BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
CHECKPOINTS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2LMHeadModel(decoder_config(add_cross_attention=True)),
    "gpt2 without cross-attention": lambda: GPT2LMHeadModel(decoder_config()),
    "gpt2 without words": lambda: GPT2Model(decoder_config()),
    "bert": lambda: BertLMHeadModel(CONFIG_MAPPING["bert"](**TINY_BERT, is_decoder=True, add_cross_attention=True)),
    "bert of masked words": lambda: BertForMaskedLM(CONFIG_MAPPING["bert"](**TINY_BERT)),
    "bert without words": lambda: BertModel(CONFIG_MAPPING["bert"](**TINY_BERT), add_pooling_layer=True),
    "bart": lambda: BartForConditionalGeneration(BartConfig(**TINY_BART)),
}
# What of the weights is new, with a word that is in the name of each.
NEW = {
    "gpt2 without cross-attention": ("cross",),
    "gpt2 without words": ("cross",),
    "bert of masked words": ("crossattention",),
    "bert without words": ("crossattention", "cls."),
}


@pytest.mark.parametrize(
    "is_folder", [pytest.param(False, id="a model"), pytest.param(True, id="a folder", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_from_a_decoder(
    checkpoint: str, is_folder: bool, tmp_path: Path, fusion_log: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    source = CHECKPOINTS[checkpoint]().eval()
    if is_folder:
        source.save_pretrained(tmp_path)
    model = HfLamFusionForConditionalGeneration.from_modality_pretrained(
        image=make_host("vit"),
        decoder=tmp_path if is_folder else source,
        features={"clips": 5},
        num_hidden_layers=1,
        decoder_start_token_id=START,
        pad_token_id=PAD,
    )
    assert not model.training and model.config.decoder.add_cross_attention
    weights, new = source.state_dict(), []
    prefix, tied = f"{model.decoder.base_model_prefix}.", model.decoder.all_tied_weights_keys
    for name, tensor in model.decoder.state_dict().items():
        found = weights.get(name, weights.get(name.removeprefix(prefix)))
        if found is None:
            new += [name] if name not in tied else []
        else:
            assert torch.equal(tensor, found), name
    words = NEW.get(checkpoint, ())
    assert bool(new) == bool(words) and all(any(word in name for word in words) for name in new)
    assert ("weights of the decoder (such as" in fusion_log.text) == bool(new)
    assert "decoder," not in fusion_log.text  # as a whole
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model(clips_features=torch.randn(2, 3, 5), labels=text_labels()).loss.isfinite()


def test_from_vectors_alone_and_a_decoder_in_half_precision() -> None:
    options: dict[str, Any] = {"features": {"clips": 5}, "hidden_size": 16, "num_attention_heads": 2}
    decoder = CHECKPOINTS["gpt2"]().to(torch.bfloat16)
    make_it = HfLamFusionForConditionalGeneration.from_modality_pretrained
    model = make_it(decoder=decoder, decoder_lam={"rank": 2}, **options)
    assert model.dtype == torch.bfloat16 and model.config.decoder_start_token_id == START
    assert torch.equal(model.get_input_embeddings().weight, decoder.get_input_embeddings().weight)
    assert make_it(decoder=decoder, dtype=torch.float32, **options).dtype == torch.float32
    with pytest.raises(ValueError, match="the checkpoints have different dtypes"):
        make_it(text=make_host("bert"), decoder=decoder, num_hidden_layers=1)


def test_decoders_that_cannot_be_taken(tmp_path: Path) -> None:
    make_it = HfLamFusionForConditionalGeneration.from_modality_pretrained
    text_model = make_host("bert")
    with pytest.raises(ValueError, match="HfLamFusionForConditionalGeneration needs a decoder"):
        make_it(text=text_model)
    with pytest.raises(ValueError, match="HfLamFusionModel has no decoder"):
        HfLamFusionModel.from_modality_pretrained(text=text_model, decoder=decoder_config())
    with pytest.raises(TypeError, match="decoder must be a model, a folder, a Hub id or a configuration, got int"):
        make_it(text=text_model, decoder=3)
    with pytest.raises(ValueError, match="decoder is a ViTConfig"):
        make_it(text=text_model, decoder=make_host("vit"))
    smaller = GPT2LMHeadModel(decoder_config())
    smaller.config.n_layer = 3
    with pytest.raises(ValueError, match=r"does not have \d+ weights of GPT2LMHeadModel, such as transformer.h.2"):
        make_it(text=text_model, decoder=smaller, num_hidden_layers=1)
    with pytest.raises(TypeError, match="decoder_colour: no option of a fusion model, and a GPT2Config as decoder"):
        make_it(text=text_model, decoder=decoder_config(), decoder_colour=3)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trainer_of_transformers_trains_it_and_has_it_write(tmp_path: Path) -> None:
    model = make("bert", decoder_lam={"rank": 2})
    inputs, labels = head_inputs(4), text_labels(4)
    samples = [{**{key: value[i] for key, value in inputs.items()}, "labels": labels[i]} for i in range(4)]
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=60,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=30,
        eval_strategy="steps",
        eval_steps=30,
        predict_with_generate=True,
        generation_max_length=8,
        load_best_model_at_end=True,
        label_names=["labels"],
    )
    trainer = Seq2SeqTrainer(model=model, args=arguments, train_dataset=samples, eval_dataset=samples)
    trainer.train()
    predicted = trainer.predict(samples)
    assert predicted.metrics["test_loss"] < 0.5
    assert predicted.predictions[:, 1:6].tolist() == labels.masked_fill(labels == -100, PAD).tolist()
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "checkpoint-60")
    with torch.no_grad():
        loss = loaded(**inputs, labels=labels).loss
    assert abs(float(loss) - trainer.evaluate()["eval_loss"]) < 1e-4


@pytest.mark.parametrize("mask", [pytest.param(None, marks=pytest.mark.slow), "rank"])
def test_lora_writes_what_it_learned(mask: str | None, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["c_attn", "q_proj"], modules_to_save=["hf_lam"])
    model = peft.get_peft_model(make(decoder_lam=MASKS.get(str(mask))), config)
    inputs = head_inputs()
    model(**inputs, labels=text_labels()).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(make(decoder_lam=MASKS.get(str(mask))), tmp_path).eval()
    written = model.generate(**inputs, max_new_tokens=6)
    assert torch.equal(again.generate(**inputs, max_new_tokens=6), written)
    merged = model.merge_and_unload()
    assert torch.equal(merged.generate(**inputs, max_new_tokens=6), written)
