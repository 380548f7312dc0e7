"""LAM in the cross-attention of a decoder."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    DynamicCache,
    EncoderDecoderCache,
    EncoderDecoderModel,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
)

import hf_lam
from helpers.checkpointing import checkpoint_activations
from helpers.decoders import (
    CACHE,
    DECODERS,
    SIZE,
    UNREACHABLE,
    VOCABULARY,
    make_captioning,
    make_decoder,
    make_inputs,
    run_by_token,
    shake,
)
from hf_lam import LamConfig
from hf_lam.modeling.cross_lam_hf_lam import (
    add_cross_lam,
    check_cross_lam,
    decoders_with_masks,
)
from hf_lam.modeling.hosts_hf_lam import HostTokens
from hf_lam.modeling.mechanism_hf_lam import ModalityTokens

LOW_RANK = {"rank": 3}
DENSE = {"max_length": 9}
OPTIONS: dict[str, dict[str, Any]] = {
    "low rank": LOW_RANK,
    "dense": DENSE,
    "low rank of heads": {"rank": 2, "per_head": True, "depth": 3, "non_negative": True},
    "low rank added, from embeddings": {"rank": 3, "combine": "add", "source": "embeddings", "bottleneck_size": 5},
    "one low rank": {"rank": 3, "scope": "shared", "per_head": True},
    "one dense": {"max_length": 7, "scope": "shared", "per_head": True},
    "dense from embeddings": {"max_length": 7, "source": "embeddings", "combine": "add"},
}
FAMILIES = ["bert", "gpt2", "bart"]  # they differ in where the layers lie, and what is handed on
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def _masked(name: str, options: dict[str, Any], implementation: str = "sdpa") -> Any:
    decoder = make_decoder(name)
    decoder.set_attn_implementation(implementation)
    shake(add_cross_lam(decoder, options))
    return decoder


def _base_of(decoder: Any) -> Any:
    (base,) = decoders_with_masks(decoder)
    return base


# --- the equations ---------------------------------------------------------------------------------------------------


def _reference_mask(mask: Any, x: Tensor, y: Tensor) -> Tensor:
    """`M` as the paper writes it, and its low-rank form; by loops over tokens and heads."""
    config = mask.config

    def read(token: Tensor, reader: Any) -> Tensor:
        hidden = torch.relu(reader.in_weight @ token + reader.in_bias)
        for index in range(config.depth - 2):
            hidden = torch.relu(reader.hidden_weight[index] @ hidden + reader.hidden_bias[index])
        return hidden

    def number(head: int, query: Tensor, place: int, key: Tensor) -> Tensor:
        if config.rank is None:
            return mask.out_weight[head, place] @ read(query, mask) + mask.out_bias[head, place]
        f = mask.row_weight[head] @ read(query, mask) + mask.row_bias[head]
        g = mask.column_weight[head] @ read(key, mask.encoder_reader) + mask.column_bias[head]
        return f @ g

    heads = len(mask.out_bias if config.rank is None else mask.row_bias)
    numbers = [
        number(head, query, place, key)
        for sample, keys in zip(x, y, strict=True)
        for head in range(heads)
        for query in sample
        for place, key in enumerate(keys)
    ]
    made = torch.stack(numbers).view(len(x), heads, x.shape[1], y.shape[1])
    return torch.log1p(torch.exp(made + math.log(math.e - 1))) if config.non_negative else made


def _reference_attention(attention: Any, mask: Any, read: Tensor, x: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """BERT's cross-attention with `M`, from its projections."""
    y, padding = inputs["encoder_hidden_states"], inputs["encoder_attention_mask"]

    def split(tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (4, SIZE // 4)).transpose(1, 2)

    query, key, value = split(attention.query(x)), split(attention.key(y)), split(attention.value(y))
    m = _reference_mask(mask, read, y)
    scores = query @ key.mT / (SIZE // 4) ** 0.5
    scores = scores + m if mask.config.adds else scores * m
    scores = scores.masked_fill(padding[:, None, None] == 0, -float("inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@every_option
def test_the_paper(options: dict[str, Any], implementation: str) -> None:
    """Values, and the gradients of every input and parameter, in every layer."""
    decoder = _masked("bert", options, implementation).double()
    masks, inputs = _base_of(decoder).hf_lam.cross_lam, make_inputs(2, 3, 5)
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].double().requires_grad_()
    attentions = [layer.crossattention.self for layer in decoder.bert.encoder.layer]
    seen: list[tuple[Tensor, Tensor]] = []
    for attention in attentions:
        attention.register_forward_hook(lambda module, args, output: seen.append((args[0], output[0])))
    decoder.bert.encoder.layer[0].register_forward_pre_hook(lambda module, args: embeddings.append(args[0]))
    embeddings: list[Tensor] = []
    decoder(**inputs)
    for index, (attention, (x, context)) in enumerate(zip(attentions, seen, strict=True)):
        mask = masks[0 if masks.config.is_shared else index]
        read = embeddings[0] if masks.config.needs_embeddings else x
        expected = _reference_attention(attention, mask, read, x, inputs)
        torch.testing.assert_close(context, expected, rtol=0, atol=1e-9)
        leaves = [x, inputs["encoder_hidden_states"], *attention.parameters(), *mask.parameters()]
        weights = torch.randn_like(context)
        given, wanted = (
            torch.autograd.grad((y * weights).sum(), leaves, retain_graph=True) for y in (context, expected)
        )
        for one, other in zip(given, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


# --- on decoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        *(pytest.param(name, "sdpa", marks=() if name in FAMILIES else pytest.mark.slow) for name in DECODERS),
        *((name, "eager") for name in FAMILIES),
    ],
)
@torch.no_grad()
def test_decoders(name: str, implementation: str) -> None:
    """The identity at first; then what padding holds has no influence, and a cache gives what one pass gives."""
    decoder, inputs = make_decoder(name), make_inputs()
    decoder.set_attn_implementation(implementation)
    stock = decoder(**inputs).logits
    container = add_cross_lam(decoder, LOW_RANK)
    torch.testing.assert_close(decoder(**inputs).logits, stock, rtol=0, atol=2e-6)
    shake(container)
    whole = decoder(**inputs, use_cache=False).logits
    assert (whole - stock).abs().max() > 1e-2
    torch.testing.assert_close(run_by_token(decoder, inputs), whole, rtol=0, atol=2e-5)
    alone = {key: value[1:2, :4] if "encoder" in key else value[1:2] for key, value in inputs.items()}
    torch.testing.assert_close(decoder(**alone).logits, whole[1:2], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
@every_option
@torch.no_grad()
def test_token_by_token_is_one_pass(name: str, options: dict[str, Any]) -> None:
    decoder, inputs = _masked(name, options), make_inputs()
    whole = decoder(**inputs, use_cache=False).logits
    widths = []
    by_token = run_by_token(
        decoder, inputs, lambda cache: widths.append(cache.cross_attention_cache.layers[0].keys.shape)
    )
    torch.testing.assert_close(by_token, whole, rtol=0, atol=2e-5)
    # The factors of the keys are made once.
    assert set(widths) == {(3, 4, 7, SIZE // 4 + options.get("rank", 0))}


@every_option
def test_one_without_cache_learns_as_one_with(options: dict[str, Any]) -> None:
    decoder, inputs = _masked("bert", options), make_inputs()
    tokens = inputs["encoder_hidden_states"].requires_grad_()
    leaves = [tokens, *decoder.parameters()]
    whole = decoder(**inputs, use_cache=False).logits
    wanted = torch.autograd.grad(whole.square().mean(), leaves, allow_unused=True)
    given = torch.autograd.grad(run_by_token(decoder, inputs).square().mean(), leaves, allow_unused=True)
    for one, other in zip(given, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("options", [LOW_RANK, OPTIONS["one low rank"], DENSE], ids=["each", "one", "dense"])
@torch.no_grad()
def test_a_cache_is_reordered(name: str, options: dict[str, Any]) -> None:
    """Beam search and the like take samples of the cache, and nothing else of the encoder is looked at."""
    decoder, inputs = _masked(name, options), make_inputs()
    order = torch.tensor([2, 0, 1])
    taken = {key: value[order] for key, value in inputs.items()}
    first = {**inputs, "input_ids": inputs["input_ids"][:, :3]}
    for take in ("reorder_cache", "batch_select_indices"):
        cache = decoder(**first, use_cache=True)[CACHE]
        getattr(cache, take)(order)
        rest = {
            "input_ids": taken["input_ids"][:, 3:],
            "encoder_attention_mask": taken["encoder_attention_mask"],
            "encoder_hidden_states": torch.zeros_like(taken["encoder_hidden_states"]),
        }
        continued = decoder(**rest, **{CACHE: cache}, use_cache=True).logits
        torch.testing.assert_close(continued, decoder(**taken).logits[:, 3:], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("options", [LOW_RANK, OPTIONS["one low rank"]], ids=["each", "one"])
@torch.no_grad()
def test_a_static_cache_is_used_again(name: str, options: dict[str, Any]) -> None:
    decoder, texts = _masked(name, options), [make_inputs(), make_inputs()]
    config = _base_of(decoder).config
    static = [StaticCache(config=config, max_cache_len=length) for length in (5, 7)]
    cache = EncoderDecoderCache(*static)
    for inputs in texts:
        cache.reset()
        for layer in range(2):
            cache.is_updated[layer] = False
        first = {**inputs, "input_ids": inputs["input_ids"][:, :4]}
        decoder(**first, **{CACHE: cache}, use_cache=True)
        rest = {**inputs, "input_ids": inputs["input_ids"][:, 4:]}
        last = decoder(**rest, **{CACHE: cache}, use_cache=True).logits
        torch.testing.assert_close(last, decoder(**inputs, use_cache=False).logits[:, 4:], rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_cache_without_the_factors() -> None:
    """One that was filled before the masks were there is no hindrance."""
    decoder, inputs = make_decoder("bert"), make_inputs()
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    decoder(**{**inputs, "input_ids": inputs["input_ids"][:, :1]}, **{CACHE: cache}, use_cache=True)
    cache.self_attention_cache = DynamicCache()
    shake(add_cross_lam(decoder, LOW_RANK))
    given = decoder(**inputs, **{CACHE: cache}, use_cache=True).logits
    torch.testing.assert_close(given, decoder(**inputs).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_an_encoder() -> None:
    for options in OPTIONS.values():
        decoder, tokens = make_decoder("gpt2"), make_inputs()["input_ids"]
        stock = decoder(tokens).logits
        shake(add_cross_lam(decoder, options))
        assert torch.equal(decoder(tokens).logits, stock)


@torch.no_grad()
def test_attentions_are_the_masked_ones() -> None:
    for name in FAMILIES:
        decoder, inputs = _masked(name, LOW_RANK, "eager"), make_inputs()
        before = decoder(**inputs).logits
        output = decoder(**inputs, output_attentions=True)
        assert len(output.cross_attentions) == len(output.attentions) == 2
        assert torch.equal(output.logits, before)
        weights = output.cross_attentions[0]
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 5))
        assert not weights[1, :, :, 4:].any()
        decoder.set_attn_implementation("sdpa")
        again = decoder(**inputs, output_attentions=True).cross_attentions
        torch.testing.assert_close(again[0], weights, rtol=0, atol=1e-5)
        shake(_base_of(decoder).hf_lam)
        other = decoder(**inputs, output_attentions=True).cross_attentions[0]
        assert (weights - other).abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_generation(name: str) -> None:
    """Beams and greedy search under an image encoder: with the cache, and without, and another text than stock's."""
    model, pictures = make_captioning(make_decoder(name)), torch.randn(2, 3, 8, 8)

    def generate(**options: Any) -> list[list[int]]:
        return model.generate(pictures, max_new_tokens=6, **options).tolist()

    searches: list[dict[str, Any]] = [{"num_beams": 3}, {"do_sample": False}]
    stock = [generate(**search) for search in searches]
    container = add_cross_lam(model.decoder, LOW_RANK)
    assert [generate(**search) for search in searches] == stock
    shake(container)
    ours = [generate(**search) for search in searches]
    assert ours == [generate(**search, use_cache=False) for search in searches]
    assert ours != stock
    assert ours[1] == generate(do_sample=False, cache_implementation="static")


@torch.no_grad()
def test_texts_as_sources() -> None:
    """Masks on the decoder of two texts leave the encoder as it is."""
    encoder = make_decoder("bert", is_decoder=False, add_cross_attention=False).bert
    model = EncoderDecoderModel(encoder=encoder, decoder=make_decoder("bert")).eval()
    tokens = make_inputs()["input_ids"]
    encoded = model.encoder(tokens).last_hidden_state
    shake(add_cross_lam(model, LOW_RANK))
    assert torch.equal(model.encoder(tokens).last_hidden_state, encoded)
    assert decoders_with_masks(model) == [model.decoder.bert]
    assert model(input_ids=tokens, decoder_input_ids=tokens[:, :2]).logits.shape == (3, 2, VOCABULARY)


# --- places of a dense mask ------------------------------------------------------------------------------------------


def test_a_dense_mask_has_the_length_of_the_encoder() -> None:
    decoder, inputs = make_decoder("bert"), make_inputs(keys=7)
    mask = add_cross_lam(decoder, {}, HostTokens("BertModel", 8)).cross_lam[0]  # type: ignore[index, union-attr]
    assert mask.out_bias.shape == (1, 8)
    decoder(**inputs)
    with pytest.raises(ValueError, match=r"9 tokens .*max_length=8"):
        decoder(**make_inputs(keys=9))


def test_a_dense_mask_of_a_grid_takes_no_other() -> None:
    decoder = make_decoder("gpt2")
    add_cross_lam(decoder, LamConfig(), HostTokens("ViTModel", 7, 1, (2, 3)))
    decoder(**make_inputs(keys=7))
    with pytest.raises(ValueError, match=r"5 tokens, .*each of 7 places on a grid"):
        decoder(**make_inputs(keys=5))
    with pytest.raises(ValueError, match=r"ViTModel does not say .*max_length"):
        add_cross_lam(make_decoder("gpt2"), {}, HostTokens("ViTModel", None))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("options", [LOW_RANK, {}, {"scope": "shared"}], ids=["low rank", "dense", "one dense"])
@torch.no_grad()
def test_a_modality_keeps_its_columns(name: str, options: dict[str, Any]) -> None:
    """However many tokens the first modality is padded to, those of the second are the same."""
    decoder, inputs = make_decoder(name), make_inputs(batch=1)
    tokens = HostTokens("HfLamFusionModel", 9, modalities=("text", "image"), modality_lengths=(5, 4))
    shake(add_cross_lam(decoder, options, tokens))
    text, image = inputs["encoder_hidden_states"].split((3, 4), dim=1)

    def run(padding: int) -> Tensor:
        states = torch.cat([text, torch.randn(1, padding, SIZE), image], dim=1)
        mask = torch.tensor([[1] * 3 + [0] * padding + [1] * 4])
        modalities = ModalityTokens((3 + padding, 4), torch.ones(1, 2, dtype=torch.bool))
        given = {**inputs, "encoder_hidden_states": states, "encoder_attention_mask": mask}
        return run_by_token(decoder, {**given, "hf_lam_modality_tokens": modalities})

    torch.testing.assert_close(run(2), run(0), rtol=0, atol=1e-5)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [*(("bert", options) for options in OPTIONS.values()), ("gpt2", OPTIONS["one low rank"]), ("bart", LOW_RANK)],
    ids=[*OPTIONS, "one low rank of GPT-2", "low rank of BART"],
)
def test_checkpointing(name: str, options: dict[str, Any], use_reentrant: bool) -> None:
    """Two passes and one backward, so that what one pass has made is not taken for another's."""
    decoder = _masked(name, options).train()
    for module in decoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    decoder.config.use_cache = False
    batches = [make_inputs(), make_inputs()]
    for batch in batches:
        batch["encoder_hidden_states"].requires_grad_()
    leaves = [*(batch["encoder_hidden_states"] for batch in batches), *decoder.parameters()]

    def gradients() -> list[Tensor | None]:
        for leaf in leaves:
            leaf.grad = None
        sum(decoder(**batch).logits.square().mean() for batch in batches).backward()
        return [leaf.grad for leaf in leaves]

    wanted = gradients()
    checkpoint_activations(decoder, use_reentrant)
    for given, expected in zip(gradients(), wanted, strict=True):
        assert (given is None) == (expected is None)
        if given is not None:
            torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [LOW_RANK, DENSE, OPTIONS["low rank added, from embeddings"]])
def test_it_learns_from_the_identity(options: dict[str, Any]) -> None:
    decoder, inputs = make_decoder("bert"), make_inputs()
    container = add_cross_lam(decoder, options)
    hf_lam.freeze_host(decoder)
    trained = hf_lam.mechanism_parameters(decoder)
    assert {id(p) for p in trained} == {id(p) for p in container.parameters()}
    assert {id(p) for p in decoder.parameters() if p.requires_grad} == {id(p) for p in trained}
    optimizer = torch.optim.Adam(trained, lr=0.05)
    losses = []
    for _ in range(12):
        loss = decoder(**inputs, labels=inputs["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert all(p.grad is not None and p.grad.any() for p in trained)


def test_the_head_trains_too() -> None:
    decoder = make_decoder("gpt2", tie_word_embeddings=False)
    add_cross_lam(decoder, LOW_RANK)
    hf_lam.freeze_host(decoder, train_head=True)
    trained = [name for name, p in decoder.named_parameters() if p.requires_grad]
    assert "lm_head.weight" in trained
    assert all(".hf_lam." in name for name in trained if name != "lm_head.weight")


def test_lora() -> None:
    """PEFT's copy of the masks is what runs and what is trained."""
    peft = pytest.importorskip("peft")
    decoder, inputs = make_decoder("bert"), make_inputs()
    add_cross_lam(decoder, LOW_RANK)
    stock = decoder(**inputs).logits
    model = peft.get_peft_model(
        decoder, peft.LoraConfig(target_modules=["query", "value"], modules_to_save=["hf_lam"])
    )
    container = decoder.bert.hf_lam
    trained = hf_lam.mechanism_parameters(model)
    assert trained and all(p.requires_grad for p in trained)
    shake(container.modules_to_save["default"])
    changed = model(**inputs).logits
    assert (changed - stock).abs().max() > 1e-2
    changed.square().mean().backward()
    assert all(p.grad is not None for p in trained)
    with model.disable_adapter():
        torch.testing.assert_close(model(**inputs).logits, stock)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(dtype: torch.dtype) -> None:
    for options in (LOW_RANK, DENSE):
        decoder, inputs = _masked("gpt2", options), make_inputs()
        exact = decoder(**inputs).logits
        with torch.autocast("cpu", dtype):
            autocast = decoder(**inputs).logits
        half = decoder.to(dtype)
        assert {p.dtype for p in half.parameters()} == {dtype}
        inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].to(dtype)
        for given in (autocast, half(**inputs).logits, run_by_token(half, inputs)):
            torch.testing.assert_close(given.float(), exact, rtol=0, atol=0.1)


# --- saving, copying, taking off -------------------------------------------------------------------------------------


class MaskedBert(BertLMHeadModel):
    """A model that makes its masks from its configuration, as those that travel do."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        add_cross_lam(self, config.decoder_lam)


@pytest.mark.parametrize("options", [LOW_RANK, DENSE, OPTIONS["low rank of heads"]], ids=["low", "dense", "heads"])
@torch.no_grad()
def test_saved_and_loaded(tmp_path: Path, options: dict[str, Any], poisoned_empty: None) -> None:
    stock, inputs = make_decoder("bert"), make_inputs()
    stock.config.decoder_lam = check_cross_lam(options)
    stock.save_pretrained(tmp_path / "stock")
    model, report = MaskedBert.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert report["missing_keys"] and all("bert.hf_lam.cross_lam." in key for key in report["missing_keys"])
    torch.testing.assert_close(model(**inputs).logits, stock(**inputs).logits, rtol=0, atol=1e-6)
    shake(model.bert.hf_lam)
    model.save_pretrained(tmp_path / "ours")
    again, report = MaskedBert.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_a_model_made_around_it_keeps_the_masks() -> None:
    decoder = _masked("bert", LOW_RANK)
    before = copy.deepcopy(decoder.bert.hf_lam.state_dict())
    make_captioning(decoder)
    after = decoder.bert.hf_lam.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_copies_are_their_own(copied: Any) -> None:
    for name in FAMILIES:
        decoder, inputs = _masked(name, OPTIONS["low rank added, from embeddings"]), make_inputs()
        twin = copied(decoder)
        before = decoder(**inputs).logits
        assert torch.equal(twin(**inputs).logits, before)
        shake(_base_of(twin).hf_lam)
        assert torch.equal(decoder(**inputs).logits, before)
        assert not torch.equal(twin(**inputs).logits, before)


@torch.no_grad()
def test_the_implementation_can_be_changed() -> None:
    decoder, inputs = _masked("bert", LOW_RANK), make_inputs()
    logits = decoder(**inputs).logits
    for implementation in ("eager", "flex_attention", "sdpa"):
        decoder.set_attn_implementation(implementation)
        if implementation != "flex_attention":  # of which the decoder's own attention needs a compiler
            torch.testing.assert_close(decoder(**inputs).logits, logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("options", [LOW_RANK, OPTIONS["one dense"]], ids=["each", "one"])
@pytest.mark.parametrize(("name", "kept"), [("bert", [1]), ("bert", [0, 0, 1]), ("gpt2", [1, 0])])
@torch.no_grad()
def test_layers_are_cut_and_copied(name: str, kept: list[int], options: dict[str, Any]) -> None:
    """What is saved then belongs to the layers that there are."""
    decoder, inputs = _masked(name, options), make_inputs()
    decoder.config.use_cache = False  # transformers' cache knows layers by the numbers that they were made with
    parent, attribute = (decoder.bert.encoder, "layer") if name == "bert" else (decoder.transformer, "h")
    before = [*getattr(parent, attribute)]
    copied = [copy.deepcopy(before[n]) if n in kept[:place] else before[n] for place, n in enumerate(kept)]
    setattr(parent, attribute, nn.ModuleList(copied))
    logits = decoder(**inputs).logits
    saved = decoder.state_dict()
    again = make_decoder(name, **{"num_hidden_layers" if name == "bert" else "n_layer": len(kept)})
    again.config.use_cache = False
    add_cross_lam(again, options)
    again.load_state_dict(saved)
    torch.testing.assert_close(again(**inputs).logits, logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(decoder(**inputs).logits, logits, rtol=0, atol=1e-6)
    hf_lam.remove(decoder)
    stock = make_decoder(name, **{"num_hidden_layers" if name == "bert" else "n_layer": len(kept)})
    stock.config.use_cache = False
    stock.load_state_dict(decoder.state_dict())
    assert torch.equal(decoder(**inputs).logits, stock(**inputs).logits)


@pytest.mark.parametrize(("name", "options"), [("bert", LOW_RANK), ("gpt2", OPTIONS["one low rank"]), ("bart", DENSE)])
@torch.no_grad()
def test_removed(name: str, options: dict[str, Any]) -> None:
    """The decoder is what it was, and takes other masks."""
    decoder, inputs = make_decoder(name), make_inputs()
    stock, weights = decoder(**inputs).logits, [*decoder.state_dict()]
    hooks = [dict(module._forward_pre_hooks) for module in decoder.modules()]
    shake(add_cross_lam(decoder, options))
    assert not torch.equal(decoder(**inputs).logits, stock)
    hf_lam.remove(decoder)
    assert torch.equal(decoder(**inputs).logits, stock)
    torch.testing.assert_close(run_by_token(decoder, inputs), stock, rtol=0, atol=1e-5)
    assert [*decoder.state_dict()] == weights and not decoders_with_masks(decoder)
    assert [dict(module._forward_pre_hooks) for module in decoder.modules()] == hooks
    assert not any("hf_lam" in f"{[*vars(module)]}" for module in decoder.modules())
    with pytest.raises(ValueError, match="no hf_lam mechanisms to remove"):
        hf_lam.remove(decoder)
    shake(add_cross_lam(decoder, OPTIONS["dense from embeddings"]))
    assert not torch.equal(decoder(**inputs).logits, stock)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": 3}, r"no option \['ranks'\]"),
        ({"rank": 0}, "rank must be"),
        ({"rank": 3, "max_length": 8}, "max_length=8 has no meaning with rank=3"),
        ({"scope": "layer", "rank": 3}, "scope must be one of"),
        ({"combine": "add", "non_negative": True, "rank": 2}, "no meaning with combine='add'"),
        ({}, "the encoder does not say how long"),
        ([("rank", 3)], "must be a dictionary"),
    ],
)
def test_options_without_a_meaning(options: Any, message: str) -> None:
    decoder = make_decoder("bert")
    keys = set(decoder.state_dict())
    with pytest.raises(ValueError, match=message):
        add_cross_lam(decoder, options)
    assert set(decoder.state_dict()) == keys
    assert not any("forward" in vars(module) for module in decoder.modules())


def test_options_are_spelled_out() -> None:
    assert check_cross_lam({"rank": 2}) == check_cross_lam(LamConfig(rank=2)) == LamConfig(rank=2).to_dict()


@pytest.mark.parametrize("name", UNREACHABLE)
def test_decoders_that_compute_their_attention_themselves(name: str) -> None:
    decoder = make_decoder(name)
    with pytest.raises(ValueError, match=f"{type(decoder).__name__} does not go .*attention interface"):
        add_cross_lam(decoder, LOW_RANK)


def test_decoders_without_cross_attention() -> None:
    llama = LlamaForCausalLM(LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9))
    for decoder in (make_decoder("gpt2", add_cross_attention=False), llama):
        with pytest.raises(ValueError, match=f"{type(decoder).__name__} has no cross-attention.*add_cross_attention"):
            add_cross_lam(decoder, LOW_RANK)


def test_masks_twice() -> None:
    decoder = _masked("bart", LOW_RANK)
    with pytest.raises(ValueError, match="already"):
        add_cross_lam(decoder, LOW_RANK)


def test_two_decoders() -> None:
    both = EncoderDecoderModel(encoder=make_decoder("gpt2").transformer, decoder=make_decoder("bert"))
    with pytest.raises(ValueError, match="several decoders"):
        add_cross_lam(both, LOW_RANK)


# --- compiled --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), [("bert", LOW_RANK), ("gpt2", OPTIONS["one dense"])], ids=["bert-low", "gpt2-dense"]
)
@torch.no_grad()
def test_compiled_and_exported(name: str, options: dict[str, Any]) -> None:
    decoder, inputs = _masked(name, options), make_inputs()
    wanted = decoder(**inputs, use_cache=False).logits
    compiled = torch.compile(decoder, fullgraph=True)
    torch.testing.assert_close(compiled(**inputs, use_cache=False).logits, wanted, rtol=0, atol=2e-5)
    program = torch.export.export(decoder, (), {**inputs, "use_cache": False}, strict=False)
    torch.testing.assert_close(program.module()(**inputs, use_cache=False).logits, wanted, rtol=0, atol=2e-5)
