"""Models that are made of an encoder and a decoder: `VisionEncoderDecoderModel`, and its kin for sound and for text.

Their `HfLam…` classes are converted, saved, loaded and run like those of single encoders, whose mechanisms they have.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    EncoderDecoderModel,
    MBartConfig,
    MBartForCausalLM,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    SpeechEncoderDecoderModel,
    TrOCRConfig,
    TrOCRForCausalLM,
    TrOCRProcessor,
    VisionEncoderDecoderModel,
    ViTImageProcessor,
    ViTModel,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

import hf_lam
from helpers.captioners import (
    LETTERS,
    MECHANISMS,
    generated,
    logits,
    make_captioner,
    make_data,
    make_decoder,
    set_mixing,
    with_tokens,
)
from helpers.command_line import run_main
from helpers.families import FAMILIES
from helpers.hosts import make_model, max_difference, perturb_mechanisms
from helpers.lam_models import assert_same_weights, weights_of
from helpers.processes import run_code
from hf_lam import HfLamVisionEncoderDecoderModel, HfLamViTModel, LamConfig, LocomtConfig, SttConfig
from hf_lam.flops import example_inputs
from hf_lam.hub.cards import model_card, task_of
from hf_lam.hub.processors import load_processor
from hf_lam.visualization import save_pictures
from hub.test_card_snippets import run_snippet

SLOW = pytest.mark.slow
TYPE = "hf_lam_vision-encoder-decoder"


def make_stock(decoder: str = "bert", seed: int = 0) -> Any:
    encoder = make_model(ViTModel, "vit", seed=seed, initializer_range=0.1, num_hidden_layers=2)
    return with_tokens(VisionEncoderDecoderModel(encoder=encoder, decoder=make_decoder(decoder))).eval()


def make_ours(mechanism: str, decoder: str = "bert", seed: int = 0) -> Any:
    """A converted captioner whose mechanisms are no longer the identity."""
    model = hf_lam.convert(make_stock(decoder, seed), MECHANISMS[mechanism]).eval()
    perturb_mechanisms(model)
    if mechanism == "mixture":
        set_mixing(model, 0.5)
    return model


def nothing_left(info: dict[str, Any]) -> bool:
    return not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


# --- converted, saved and loaded -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mechanism, decoder",
    [("dense", "gpt2"), *(pytest.param(*case, marks=SLOW) for case in (("mixture", "bert"), ("lam", "gpt2")))],
)
def test_what_is_converted_is_what_is_loaded(
    mechanism: str, decoder: str, tmp_path: Path, poisoned_empty: None
) -> None:
    stock, data = make_stock(decoder), make_data()
    model = hf_lam.convert(stock, MECHANISMS[mechanism]).eval()
    assert type(model) is HfLamVisionEncoderDecoderModel and type(model.encoder) is HfLamViTModel
    assert type(stock) is VisionEncoderDecoderModel and type(stock.encoder) is ViTModel
    assert stock.config.encoder.model_type == "vit" and model.config.encoder is model.encoder.config
    gap = max_difference(logits(model, data), logits(stock, data))
    assert gap > 1e-3 if mechanism == "dense" else gap < 1e-5
    perturb_mechanisms(model)
    assert max_difference(logits(model, data), logits(stock, data)) > 1e-3
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == TYPE and "hf_lam" not in saved
    assert saved["encoder"]["hf_lam"] == json.loads(json.dumps(model.config.hf_lam))
    autos = (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModel)
    for auto in (*autos, HfLamVisionEncoderDecoderModel, VisionEncoderDecoderModel):
        loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert nothing_left(info)
        assert type(loaded) is (VisionEncoderDecoderModel if auto is VisionEncoderDecoderModel else type(model))
        assert_same_weights(weights_of(loaded), weights_of(model))
        assert max_difference(logits(loaded.eval(), data), logits(model, data)) < 1e-6
    for beams in (1, 2):
        assert generated(loaded, data, beams) == generated(model, data, beams)
    # As `Trainer` resumes.
    other = make_ours(mechanism, decoder, seed=5)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert max_difference(logits(other, data), logits(model, data)) < 1e-6
    assert max_difference(logits(copy.deepcopy(model), data), logits(model, data)) == 0


def make_whole(kind: Any, encoder: Any) -> Any:
    sizes = {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 16, "max_position_embeddings": 16}
    decoders = {
        VisionEncoderDecoderModel: lambda: TrOCRForCausalLM(TrOCRConfig(vocab_size=18, d_model=24, **sizes)),
        SpeechEncoderDecoderModel: lambda: MBartForCausalLM(
            MBartConfig(vocab_size=18, d_model=24, is_decoder=True, add_cross_attention=True, **sizes)
        ),
        EncoderDecoderModel: lambda: make_decoder("bert"),
    }
    torch.manual_seed(1)
    decoder = decoders[kind]()
    for parameter in decoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return with_tokens(kind(encoder=encoder, decoder=decoder)).eval()


# Families that differ in what is around their layers, and in what else they are called with.
KINDS = {
    **dict.fromkeys(("dinov3_vit", "deit", "dinov2", "beit", "clip_vision", "videomae"), VisionEncoderDecoderModel),
    **dict.fromkeys(("wav2vec2", "ast", "whisper"), SpeechEncoderDecoderModel),
    **dict.fromkeys(("modernbert", "bert"), EncoderDecoderModel),
}
AUTO_CLASSES = {
    VisionEncoderDecoderModel: AutoModelForImageTextToText,
    SpeechEncoderDecoderModel: AutoModelForSpeechSeq2Seq,
    EncoderDecoderModel: AutoModelForSeq2SeqLM,
}
QUICK = ("dinov3_vit", "modernbert")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in KINDS])
def test_encoders_of_every_family(name: str, tmp_path: Path) -> None:
    family, kind = FAMILIES[name], KINDS[name]
    stock = make_whole(kind, family.make())
    inputs: dict[str, Any] = family.inputs()
    batch = len(next(iter(inputs.values())))
    asked = {**inputs, "decoder_input_ids": torch.tensor([[1, 5, 6]]).expand(batch, 3)}
    model = hf_lam.convert(stock, LamConfig(rank=2)).eval()
    with torch.no_grad():
        expected = stock(**asked).logits
        assert max_difference(model(**asked).logits, expected) < 1e-5
        perturb_mechanisms(model, scale=1.0)
        changed = model(**asked).logits
    assert max_difference(changed, expected) > 1e-5
    model.save_pretrained(tmp_path)
    loaded = AUTO_CLASSES[kind].from_pretrained(tmp_path).eval()
    assert type(loaded).__name__ == f"HfLam{kind.__name__}"
    with torch.no_grad():
        assert max_difference(loaded(**asked).logits, changed) < 1e-6
    assert hf_lam.verify(tmp_path).findings == ()
    written = [with_tokens(each).generate(**inputs, max_length=5, num_beams=2) for each in (model, loaded)]
    assert torch.equal(*written)


def test_a_folder_is_converted_like_a_loaded_model(tmp_path: Path) -> None:
    stock, data = make_stock(), make_data()
    stock.save_pretrained(tmp_path)
    model = hf_lam.convert(tmp_path, LamConfig(), decoder_lam={"rank": 2}).eval()
    assert type(model) is HfLamVisionEncoderDecoderModel and model.config.decoder_lam["rank"] == 2
    assert max_difference(logits(model, data), logits(stock, data)) < 1e-5
    pure = hf_lam.convert(tmp_path, SttConfig("dense"))
    assert not hasattr(pure.encoder.layers[0].attention.q_proj, "weight")
    with pytest.raises(ValueError, match=r"no AutoModelForCausalLM for a vision-encoder-decoder.*ImageTextToText"):
        hf_lam.convert(tmp_path, LamConfig(), auto_class="AutoModelForCausalLM")
    with pytest.raises(ValueError, match="already a hf_lam_vision-encoder-decoder"):
        hf_lam.convert(model, LamConfig())


@pytest.mark.parametrize("mechanism", ["dense", pytest.param("lam", marks=SLOW)])
def test_folders_of_the_stock_class_from_before(mechanism: str, tmp_path: Path) -> None:
    """They were saved under the stock type, around the configuration of an encoder of ours."""
    model, data = make_ours(mechanism), make_data()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["auto_map"]
    config |= {"model_type": "vision-encoder-decoder", "architectures": ["VisionEncoderDecoderModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for kind in (VisionEncoderDecoderModel, AutoModelForImageTextToText, HfLamVisionEncoderDecoderModel):
        loaded, info = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert nothing_left(info)
        assert max_difference(logits(loaded.eval(), data), logits(model, data)) < 1e-6
    assert type(loaded) is HfLamVisionEncoderDecoderModel
    assert type(hf_lam.convert(VisionEncoderDecoderModel.from_pretrained(tmp_path))) is type(loaded)


def test_weights_that_are_missing_are_an_error(tmp_path: Path) -> None:
    model = make_ours("lam")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "decoder.bert.encoder.layer.0.crossattention.self.key.weight"
    save_file({key: x for key, x in weights.items() if key != name}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match=f"1 weights .* without a value: {name}"):
        HfLamVisionEncoderDecoderModel.from_pretrained(tmp_path)


# --- stock models with mechanisms in them ----------------------------------------------------------------------------


def test_an_injected_model_saves_whole_and_stays_what_it_is(tmp_path: Path) -> None:
    stock, data = make_stock(), make_data()
    before = logits(stock, data)
    assert hf_lam.inject(stock, LamConfig()) is stock
    perturb_mechanisms(stock)
    expected = logits(stock, data)
    stock.save_pretrained(tmp_path / "injected")
    assert type(stock) is VisionEncoderDecoderModel and type(stock.encoder) is ViTModel
    assert stock.config.model_type == "vision-encoder-decoder" and stock.config.encoder.model_type == "vit"
    loaded = AutoModel.from_pretrained(tmp_path / "injected").eval()
    assert type(loaded) is HfLamVisionEncoderDecoderModel
    assert max_difference(logits(loaded, data), expected) < 1e-6
    assert max_difference(logits(hf_lam.convert(stock).eval(), data), expected) < 1e-6
    hf_lam.remove(stock)
    assert max_difference(logits(stock, data), before) < 1e-6
    stock.save_pretrained(tmp_path / "removed")
    assert json.loads((tmp_path / "removed" / "config.json").read_text())["model_type"] == "vision-encoder-decoder"


@pytest.mark.parametrize("mechanism", ["dense", "none"])
def test_an_encoder_that_was_put_in_the_place_of_another(mechanism: str, tmp_path: Path) -> None:
    """The configuration of the whole then still is that of the first."""
    stock, data = make_stock(), make_data()
    if mechanism == "none":
        stock.encoder = hf_lam.remove(hf_lam.convert(stock.encoder, LamConfig()))
    else:
        stock.encoder = hf_lam.convert(stock.encoder, MECHANISMS[mechanism])
    stock.save_pretrained(tmp_path)
    assert type(stock) is VisionEncoderDecoderModel and stock.config.encoder.model_type == "vit"
    assert json.loads((tmp_path / "config.json").read_text())["encoder"]["model_type"] == "hf_lam_vit"
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert max_difference(logits(loaded, data), logits(stock.eval(), data)) < 1e-6


# --- made of two ----------------------------------------------------------------------------------------------------


def test_from_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    stock, data = make_stock("gpt2"), make_data()
    stock.encoder.save_pretrained(tmp_path / "stock")
    stock.decoder.save_pretrained(tmp_path / "decoder")
    converted = hf_lam.convert(stock.encoder, LamConfig())
    perturb_mechanisms(converted)
    converted.save_pretrained(tmp_path / "converted")
    make = HfLamVisionEncoderDecoderModel.from_encoder_decoder_pretrained
    tokens = {"pad_token_id": 0, "eos_token_id": 2}
    of_folder = make(tmp_path / "converted", tmp_path / "decoder", **tokens)
    of_models = make(encoder_model=converted, decoder_model=copy.deepcopy(stock.decoder), **tokens)
    assert of_folder.config.pad_token_id == 0 and not of_folder.training
    assert of_folder.config.hf_lam == converted.config.hf_lam
    expected = logits(with_tokens(VisionEncoderDecoderModel(encoder=converted, decoder=stock.decoder)).eval(), data)
    for model in (of_folder, of_models):
        assert type(model) is HfLamVisionEncoderDecoderModel and type(model.encoder) is HfLamViTModel
        assert max_difference(logits(with_tokens(model), data), expected) < 1e-6
    fresh = make(tmp_path / "stock", tmp_path / "decoder", hf_lam={"lam": {"rank": 2}}, decoder_lam={"rank": 3})
    assert fresh.config.hf_lam["lam"]["rank"] == 2 and fresh.config.decoder_lam["rank"] == 3
    assert max_difference(logits(with_tokens(fresh), data), logits(stock, data)) < 1e-5
    fresh.save_pretrained(tmp_path / "whole")
    saved = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert not {"auto_map", "architectures"} & saved["encoder"].keys()
    with pytest.raises(ValueError, match="has mechanisms already"):
        make(tmp_path / "converted", tmp_path / "decoder", hf_lam={"lam": {}})


def test_parts_make_a_model() -> None:
    stock, data = make_stock(), make_data()
    expected = logits(stock, data)
    model = HfLamVisionEncoderDecoderModel(encoder=stock.encoder, decoder=stock.decoder)
    assert type(model.encoder) is HfLamViTModel and model.config.hf_lam is None
    assert max_difference(logits(with_tokens(model).eval(), data), expected) == 0
    with pytest.raises(ValueError, match="needs a configuration, or an encoder and a decoder"):
        HfLamVisionEncoderDecoderModel(encoder=model.encoder)
    with pytest.raises(TypeError, match="needs a HfLamVisionEncoderDecoderConfig, got VisionEncoderDecoderConfig"):
        HfLamVisionEncoderDecoderModel(make_stock().config)
    with pytest.raises(ValueError, match="needs the configuration of an encoder and a decoder, and has no decoder"):
        hf_lam.HfLamVisionEncoderDecoderConfig(encoder=model.encoder.config)


# --- masks on the decoder's cross-attention --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "decoder, options",
    [
        ("bert", {"rank": 3}),
        *(pytest.param(d, {"scope": "shared", "per_head": True}, marks=SLOW) for d in ("bert", "gpt2")),
        pytest.param("gpt2", {"rank": 2, "combine": "add"}, marks=SLOW),
    ],
)
def test_masks_of_a_decoder(decoder: str, options: dict[str, Any], tmp_path: Path) -> None:
    stock, data = make_stock(decoder), make_data()
    stock.save_pretrained(tmp_path / "stock")
    make = HfLamVisionEncoderDecoderModel.from_pretrained
    model = make(tmp_path / "stock", hf_lam={"lam": {}}, decoder_lam=options).eval()
    assert max_difference(logits(model, data), logits(stock, data)) < 1e-5
    generator = torch.Generator().manual_seed(3)
    for parameter in hf_lam.mechanism_parameters(model):
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    of_both = logits(model, data)
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    assert max_difference(logits(loaded, data), of_both) < 1e-6
    assert loaded.config.decoder_lam == model.config.decoder_lam
    assert hf_lam.verify(tmp_path / "saved").findings == ()
    # Whether a text is written token by token or not, its masks are the same.
    options = {"pixel_values": data["pixel_values"], "max_length": 8, "num_beams": 2}
    written = model.generate(**options, use_cache=True)
    assert torch.equal(written, model.generate(**options, use_cache=False))
    own = [name for name, _ in model.named_parameters() if name.startswith("decoder.") and ".hf_lam." in name]
    assert own
    model(**data).loss.backward()
    assert all(model.get_parameter(name).grad is not None for name in own)


def test_masks_of_a_decoder_come_later(tmp_path: Path) -> None:
    """In the model, or to a folder with mechanisms in the encoder, whose weights stay."""
    model, data = make_ours("lam"), make_data()
    expected = logits(model, data)
    model.save_pretrained(tmp_path)
    loaded = HfLamVisionEncoderDecoderModel.from_pretrained(tmp_path, decoder_lam={"rank": 2}).eval()
    assert max_difference(logits(loaded, data), expected) < 1e-5
    with pytest.raises(ValueError, match="rank"):
        model.add_decoder_lam({"rank": 0})
    assert model.config.decoder_lam is None
    model.add_decoder_lam({"rank": 2})
    assert max_difference(logits(model, data), expected) < 1e-5
    assert model.config.decoder_lam == loaded.config.decoder_lam
    assert [*model.state_dict()] == [*loaded.state_dict()]


@pytest.mark.parametrize("mechanisms", [None, pytest.param({"lam": {}}, marks=SLOW)], ids=["masks", "both"])
def test_masks_of_a_decoder_are_taken_off(mechanisms: Any, tmp_path: Path) -> None:
    """With the mechanisms of the encoder, or where it has none."""
    stock, data = make_stock("gpt2"), make_data()
    stock.save_pretrained(tmp_path / "stock")
    make = HfLamVisionEncoderDecoderModel.from_pretrained
    model = make(tmp_path / "stock", hf_lam=mechanisms, decoder_lam={"rank": 2}).eval()
    perturb_mechanisms(model)
    changed = logits(model, data)
    assert max_difference(changed, logits(stock, data)) > 1e-3
    # What is saved is what the model has, whatever its configuration says.
    model.config.decoder_lam = None
    model.save_pretrained(tmp_path / "masks")
    assert max_difference(logits(make(tmp_path / "masks").eval(), data), changed) < 1e-6
    with pytest.raises(RuntimeError, match=r"\(cross_lam\).* it has decoder_lam=None.*pretrained\(..., decoder_lam="):
        make(tmp_path / "masks", decoder_lam=None)
    hf_lam.remove(model)
    assert max_difference(logits(model, data), logits(stock, data)) < 1e-6
    assert (model.config.hf_lam, model.config.decoder_lam) == (None, None)
    model.save_pretrained(tmp_path / "without")
    assert hf_lam.verify(tmp_path / "without").findings == ()
    assert max_difference(logits(make(tmp_path / "without").eval(), data), logits(stock, data)) < 1e-6


def test_masks_of_a_decoder_alone_count_as_mechanisms(tmp_path: Path) -> None:
    """In cards, inspections and costs, and where the rest is frozen."""
    make_stock("gpt2").save_pretrained(tmp_path / "stock")
    model = HfLamVisionEncoderDecoderModel.from_pretrained(tmp_path / "stock", decoder_lam={"scope": "shared"})
    model.save_pretrained(tmp_path / "masks")
    count = sum(parameter.numel() for parameter in hf_lam.mechanism_parameters(model))
    card = model_card(model, name="captioner")
    assert card.data.tags == ["hf_lam", "lam"]
    assert "The attention of its encoder is that of transformers." in card.text
    assert "`GPT2LMHeadModel` with the learnable attention mask" in card.text and '`scope="shared"`' in card.text
    assert "takes inputs of exactly 17 tokens" in card.text
    assert hf_lam.cost(model).mechanism_parameters == count > 0
    code, output, _ = run_main("inspect", str(tmp_path / "masks"))
    assert code == 0 and f"{count:,} of them of hf_lam" in output and "decoder_lam: scope shared" in output
    assert json.loads(run_main("inspect", str(tmp_path / "masks"), "--json")[1])["decoder_lam"]["scope"] == "shared"
    hf_lam.freeze_host(model)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == count
    hf_lam.freeze_host(model, train_head=True)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    encoder = {f"encoder.{name}" for name, _ in model.encoder.named_parameters() if not name.startswith("pooler.")}
    assert frozen == encoder


def test_an_inspection_names_both(tmp_path: Path) -> None:
    model = make_ours("lam", "gpt2")
    model.add_decoder_lam({"rank": 2})
    model.save_pretrained(tmp_path)
    count = sum(parameter.numel() for parameter in hf_lam.mechanism_parameters(model))
    code, output, _ = run_main("inspect", str(tmp_path))
    assert code == 0 and f"{count:,} of them of hf_lam" in output
    assert "\nlam: " in output and "\ndecoder_lam: scope per_layer" in output


# --- mixtures, losses, tools -----------------------------------------------------------------------------------------


def test_a_mixture_is_hardened(tmp_path: Path) -> None:
    model, data = make_ours("mixture"), make_data()
    set_mixing(model, 1.0)
    at_one = logits(model, data)
    hf_lam.harden(model)
    assert max_difference(logits(model, data), at_one) < 1e-5
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["encoder"]["hf_lam"]["stt"]["variant"] == "random"
    assert max_difference(logits(AutoModel.from_pretrained(tmp_path).eval(), data), at_one) < 1e-5


def test_the_loss_does_not_depend_on_how_a_step_was_split() -> None:
    model, data = make_ours("lam"), make_data(8)
    labels = data["labels"]
    count = (labels != -100).sum()
    with torch.no_grad():
        whole = model(**data).loss
        parts = [
            model(pixel_values=pixels, labels=part, num_items_in_batch=count).loss
            for pixels, part in zip(data["pixel_values"].split(2), labels.split(2), strict=True)
        ]
    assert torch.stack(parts).sum().item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.slow
def test_tools_of_encoders_need_no_text(tmp_path: Path) -> None:
    batch = {"pixel_values": make_data(2)["pixel_values"]}
    views = hf_lam.convert(make_stock(), LocomtConfig())
    hf_lam.calibrate_views(views, [batch], budget=0.7)
    assert views.config.encoder.hf_lam["locomt"]["views"] == views.config.hf_lam["locomt"]["views"] != "full"
    hf_lam.fit_synthesizers(hf_lam.convert(make_stock(), SttConfig()), [batch])
    model = make_ours("lam")
    assert save_pictures(model, batch, tmp_path)
    inputs = example_inputs(model, 2)
    assert inputs.keys() == {"pixel_values", "decoder_input_ids"} and inputs["decoder_input_ids"].tolist() == [
        [1],
        [1],
    ]
    report, alone = hf_lam.cost(model), hf_lam.cost(model.encoder)
    assert report.attention == alone.attention and report.flops > alone.flops
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())


# --- what lies beside it ---------------------------------------------------------------------------------------------


def make_tokenizer() -> Any:
    vocabulary = {"[PAD]": 0, "[S]": 1, "[E]": 2, **{letter: 3 + i for i, letter in enumerate(LETTERS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = {"pad_token": "[PAD]", "bos_token": "[S]", "eos_token": "[E]", "unk_token": "[PAD]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


BESIDE = ("images", "tokenizer", "none")


def image_processor() -> Any:
    return ViTImageProcessor(size={"height": 16, "width": 16})


@pytest.mark.parametrize("beside", ["both", *(pytest.param(b, marks=SLOW) for b in BESIDE)])
def test_a_card_writes_a_text(beside: str, tmp_path: Path) -> None:
    model = make_ours("dense")
    model.save_pretrained(tmp_path)
    processors: dict[str, Any] = {
        "both": TrOCRProcessor(image_processor(), make_tokenizer()),
        "images": image_processor(),
        "tokenizer": make_tokenizer(),
    }
    processor = processors.get(beside)
    if processor is not None:
        processor.save_pretrained(tmp_path)
    card = model_card(model, name="m", repository=str(tmp_path), processor=processor)
    printed = run_snippet(str(card))
    assert printed.startswith("['" if beside in ("both", "tokenizer") else "[[1"), printed
    assert card.data.pipeline_tag == task_of(model) == "image-to-text" and "stt" in card.data.tags


def test_a_card_of_a_model_that_does_not_know_how_to_begin(tmp_path: Path) -> None:
    encoder = make_model(ViTModel, "vit")
    model = hf_lam.convert(VisionEncoderDecoderModel(encoder=encoder, decoder=make_decoder("bert")), LamConfig())
    model.save_pretrained(tmp_path)
    assert run_snippet(str(model_card(model, name="m", repository=str(tmp_path)))) == "torch.Size([1, 1, 18])"


@pytest.mark.parametrize("kind", ["image", "sound"])
def test_a_processor_and_a_tokenizer_are_one(kind: str, tmp_path: Path) -> None:
    if kind == "image":
        model, pair, alone = make_stock(), TrOCRProcessor, image_processor()
    else:
        model = make_whole(SpeechEncoderDecoderModel, FAMILIES["wav2vec2"].make())
        pair, alone = Wav2Vec2Processor, Wav2Vec2FeatureExtractor()
    assert load_processor(str(tmp_path), model) is None
    alone.save_pretrained(tmp_path)
    assert type(load_processor(str(tmp_path), model)) is type(alone) or kind == "image"
    make_tokenizer().save_pretrained(tmp_path)
    loaded = load_processor(str(tmp_path), model)
    assert type(loaded) is pair and loaded.tokenizer("one")["input_ids"]
    loaded.save_pretrained(tmp_path / "whole")
    assert type(load_processor(str(tmp_path / "whole"), model)) is pair


@pytest.mark.slow
def test_the_command_takes_all_of_it_along(tmp_path: Path) -> None:
    source, output = tmp_path / "stock", tmp_path / "out"
    make_stock().save_pretrained(source)
    image_processor().save_pretrained(source)
    make_tokenizer().save_pretrained(source)
    code, printed, _ = run_main("convert", source, output, "--mechanism", "lam", "--json")
    done = json.loads(printed)
    assert code == 0 and done["model_class"] == "HfLamVisionEncoderDecoderModel"
    assert done["compared"] == "outputs" and done["largest_difference"] < 1e-5
    assert done["processor"] == "TrOCRProcessor" and type(AutoProcessor.from_pretrained(output)) is TrOCRProcessor
    assert hf_lam.verify(output).findings == ()
    code, printed, _ = run_main("inspect", output, "--json")
    assert code == 0 and [*json.loads(printed)["mechanisms"]] == ["lam"] and json.loads(printed)["inputs"] == "example"
    report = hf_lam.push(output, "me/captioner", dry_run=True)
    assert {"processor_config.json", "tokenizer.json", "modeling_hf_lam.py"} <= report.files.keys()
    assert not [note for note in report.notes if "verify" in note]


@pytest.mark.parametrize(
    "part, changes, message",
    [
        ("encoder", {"hidden_size": 16}, "has shape"),
        ("encoder", {"model_type": "hf_lam_timm_wrapper"}, "does not build|does not know"),
        ("decoder", {"model_type": "hf_lam_bert"}, "hf_lam_bert"),
        ("decoder", {"model_type": "vision-encoder-decoder"}, "does not know|does not build"),
        ("decoder", {"auto_map": {"AutoModel": "them/theirs--code.Model"}}, "takes code from the repository"),
    ],
)
def test_verify_looks_into_both_parts(part: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_ours("lam").save_pretrained(tmp_path)
    assert hf_lam.verify(tmp_path).passed
    config = json.loads((tmp_path / "config.json").read_text())
    config[part] |= changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    findings = hf_lam.verify(tmp_path).findings
    assert findings
    assert any(part in text for part in message.split("|") for text in (found.message for found in findings)), findings


# --- in other processes ----------------------------------------------------------------------------------------------

LOADER = """
import sys, torch, transformers
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM
root = sys.argv[1]
case = torch.load(f"{root}/case.pt")
for name in sys.argv[2:]:
    folder = f"{root}/{name}"
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert type(config).__name__ == "HfLamVisionEncoderDecoderConfig" and config.hf_lam is not None
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModel):
        model, info = auto.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        assert type(model.encoder).__name__ == "HfLamViTModel"
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(model(**case["data"]).logits, case[name]["logits"], atol=1e-6, rtol=0)
        pixels = case["data"]["pixel_values"]
        for beams in (1, 2):
            tokens = model.generate(pixel_values=pixels, max_length=8, num_beams=beams, do_sample=False)
            assert torch.equal(tokens, case[name]["tokens"][beams])
    model.save_pretrained(f"{folder}-again")
    again = AutoModel.from_pretrained(f"{folder}-again", trust_remote_code=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**case["data"]).logits, case[name]["logits"], atol=1e-6, rtol=0)
    print("loaded", name)
"""


@pytest.mark.slow
def test_a_fresh_process_needs_no_hf_lam(tmp_path: Path) -> None:
    data = make_data()
    captioners = {"dense": make_ours("dense"), "mixture": make_ours("mixture", "gpt2"), "lam": make_ours("lam")}
    captioners["lam"].add_decoder_lam({"rank": 2})
    perturb_mechanisms(captioners["lam"])
    # Around an encoder that was converted alone.
    captioners["around"] = make_captioner("dense", "gpt2")
    case: dict[str, Any] = {"data": data}
    for name, model in captioners.items():
        model.save_pretrained(tmp_path / name)
        tokens = {
            beams: model.generate(pixel_values=data["pixel_values"], max_length=8, num_beams=beams, do_sample=False)
            for beams in (1, 2)
        }
        case[name] = {"logits": logits(model, data), "tokens": tokens}
    torch.save(case, tmp_path / "case.pt")
    printed = run_code(LOADER, tmp_path, *captioners, hf_lam=False)
    assert printed.count("loaded ") == len(captioners)


@pytest.mark.slow
def test_a_trainer_resumes_from_checkpoints_that_travel(tmp_path: Path) -> None:
    data = make_data(6)
    samples = [{name: tensor[i] for name, tensor in data.items()} for i in range(6)]

    def trainer(model: Any, folder: str) -> Seq2SeqTrainer:
        arguments = Seq2SeqTrainingArguments(
            output_dir=str(tmp_path / folder),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
            max_steps=4,
            save_steps=2,
            predict_with_generate=True,
            generation_max_length=8,
            seed=3,
        )
        return Seq2SeqTrainer(model=model, args=arguments, train_dataset=samples, eval_dataset=samples)

    model = make_ours("dense", "gpt2").train()
    whole = trainer(model, "whole")
    whole.train()
    assert whole.predict(samples).predictions.shape[0] == 6
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert AutoConfig.from_pretrained(checkpoint).model_type == TYPE and (checkpoint / "modeling_hf_lam.py").is_file()
    resumed = make_ours("dense", "gpt2", seed=5)
    trainer(resumed, "resumed").train(resume_from_checkpoint=str(checkpoint))
    assert_same_weights(weights_of(resumed), weights_of(model))
    last = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole" / "checkpoint-4").eval()
    assert max_difference(logits(last, data), logits(model.eval(), data)) < 1e-6
