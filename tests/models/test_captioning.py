"""Captions: transformers' `VisionEncoderDecoderModel` with an HfLam encoder trains, generates, saves and loads.

What it saves is the `HfLam…` model of its kind (`test_encoder_decoders.py`), which it can be loaded from itself where
hf_lam is imported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    VisionEncoderDecoderModel,
    ViTModel,
)

import hf_lam
from helpers.captioners import (
    MECHANISMS,
    START,
    generated,
    logits,
    make_captioner,
    make_data,
    make_decoder,
    set_mixing,
    with_tokens,
    words_of,
)
from helpers.hosts import make_model, max_difference, perturb_mechanisms
from helpers.lam_models import assert_same_weights, weights_of
from helpers.processes import run_code
from hf_lam import HfLamViTConfig, HfLamViTModel
from hf_lam.training import SttAnnealingCallback


def assert_loads_the_same(loaded: Any, model: Any, data: dict[str, torch.Tensor]) -> None:
    assert type(loaded.encoder) is HfLamViTModel
    assert loaded.config.encoder.hf_lam == model.encoder.config.hf_lam == loaded.encoder.config.hf_lam
    loaded = with_tokens(loaded).eval()
    assert_same_weights(weights_of(loaded), weights_of(model))
    assert max_difference(logits(loaded, data), logits(model, data)) < 1e-6
    for beams in (1, 2):
        assert generated(loaded, data, beams) == generated(model, data, beams)


@pytest.mark.slow
@pytest.mark.parametrize("mechanism, decoder", [("dense", "gpt2"), ("mixture", "bert")])
def test_learns_the_words_of_digits_and_travels(mechanism: str, decoder: str, tmp_path: Path) -> None:
    model = make_captioner(mechanism, decoder).train()
    data = make_data(6)
    before = weights_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss = model(**data).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    after = weights_of(model)
    mechanism_names = [name for name, _ in model.named_parameters() if name.startswith("encoder.hf_lam.")]
    assert mechanism_names and not any(torch.equal(before[name], after[name]) for name in mechanism_names)
    for beams in (1, 2):
        assert generated(model.eval(), data, beams) == words_of(data)
    # The words come from the images, and from no place else.
    shifted = {**data, "pixel_values": data["pixel_values"].roll(1, 0)}
    assert generated(model, shifted) == [words_of(data)[-1], *words_of(data)[:-1]]

    model.save_pretrained(tmp_path)
    loaded, info = VisionEncoderDecoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_loads_the_same(loaded, model, data)
    if mechanism == "mixture":
        set_mixing(model, 1.0)
        at_one = logits(model, data)
        hf_lam.harden(model)
        assert max_difference(logits(model, data), at_one) < 1e-5
        assert model.config.encoder.hf_lam["stt"]["variant"] == "random"
        model.save_pretrained(tmp_path / "hardened")
        assert_loads_the_same(VisionEncoderDecoderModel.from_pretrained(tmp_path / "hardened"), model, data)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_is_saved_is_what_is_there(mechanism: str, tmp_path: Path, poisoned_empty: None) -> None:
    model = make_captioner(mechanism, "bert")
    data = make_data()
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "hf_lam_vision-encoder-decoder"
    assert saved["architectures"] == ["HfLamVisionEncoderDecoderModel"]
    assert type(model) is VisionEncoderDecoderModel and model.config.model_type == "vision-encoder-decoder"
    assert saved["encoder"]["model_type"] == "hf_lam_vit"
    assert saved["encoder"]["hf_lam"] == json.loads(json.dumps(model.encoder.config.hf_lam))
    names = load_file(tmp_path / "model.safetensors")
    projections = [name for name in names if name.startswith("encoder.") and (".query." in name or "q_proj" in name)]
    assert bool(projections) == (mechanism != "dense")
    loaded, info = VisionEncoderDecoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_loads_the_same(loaded, model, data)
    # `load_state_dict` takes the file as it is, which is how `Trainer` resumes.
    other = make_captioner(mechanism, "bert", seed=5)
    assert max_difference(logits(other, data), logits(model, data)) > 1e-3
    other.load_state_dict(names, strict=False)
    assert max_difference(logits(other, data), logits(model, data)) < 1e-6


@pytest.mark.parametrize("loaded", [False, True], ids=["made here", "from a folder"])
@pytest.mark.parametrize("attach", [hf_lam.convert, hf_lam.inject])
def test_an_encoder_keeps_its_weights(attach: Any, loaded: bool, tmp_path: Path) -> None:
    """transformers draws weights anew in whatever does not say that it has them."""
    encoder = make_model(ViTModel, "vit", num_hidden_layers=2)
    if loaded:
        encoder.save_pretrained(tmp_path)
        encoder = ViTModel.from_pretrained(tmp_path)
    encoder = attach(encoder, MECHANISMS["mixture"])
    perturb_mechanisms(encoder)
    set_mixing(encoder, 0.5)
    before = weights_of(encoder)
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=make_decoder("bert"))
    assert_same_weights(weights_of(model.encoder), before)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_from_an_encoder_and_a_decoder(mechanism: str, tmp_path: Path) -> None:
    model = make_captioner(mechanism, "gpt2")
    model.encoder.save_pretrained(tmp_path / "encoder")
    model.decoder.save_pretrained(tmp_path / "decoder")
    loaded = VisionEncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "decoder")
    assert_loads_the_same(loaded, model, make_data())


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_an_encoder_from_a_stock_checkpoint(mechanism: str, tmp_path: Path) -> None:
    """Whose weights have older names, and queries and keys that a pure STT has no use for."""
    stock = make_model(ViTModel, "vit", initializer_range=0.1, num_hidden_layers=2)
    stock.save_pretrained(tmp_path / "stock")
    make_decoder("bert").save_pretrained(tmp_path / "decoder")
    block = hf_lam.convert(make_model(ViTModel, "vit", num_hidden_layers=2), MECHANISMS[mechanism]).config.hf_lam
    config = HfLamViTConfig.from_pretrained(tmp_path / "stock", hf_lam=block)
    model = VisionEncoderDecoderModel.from_encoder_decoder_pretrained(
        tmp_path / "stock", tmp_path / "decoder", encoder_config=config
    )
    assert type(model.encoder) is HfLamViTModel
    of_stock = stock.state_dict()
    of_encoder = {n: t for n, t in model.encoder.state_dict().items() if not n.startswith("hf_lam.")}
    assert of_encoder and all(torch.equal(tensor, of_stock[name]) for name, tensor in of_encoder.items())
    dropped = of_stock.keys() - of_encoder.keys()
    assert len(dropped) == (8 if mechanism == "dense" else 0)
    pixel_values = make_data()["pixel_values"]
    with torch.no_grad():
        gap = max_difference(model.encoder.eval()(pixel_values)[0], stock(pixel_values)[0])
    assert gap > 1e-3 if mechanism == "dense" else gap < 1e-5


def seq2seq_trainer(model: Any, folder: Path, *callbacks: Any, **arguments: Any) -> Seq2SeqTrainer:
    data = make_data(8)
    samples = [{name: tensor[i] for name, tensor in data.items()} for i in range(8)]
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "predict_with_generate": True,
        "generation_max_length": 8,
        "seed": 3,
    }
    return Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**{**options, **arguments}),
        train_dataset=samples,
        eval_dataset=samples,
        callbacks=list(callbacks),
    )


@pytest.mark.slow
def test_trains_anneals_and_predicts_with_a_trainer(tmp_path: Path) -> None:
    model = make_captioner("mixture", "bert")
    trainer = seq2seq_trainer(
        model, tmp_path / "whole", SttAnnealingCallback(end=0.75), save_strategy="steps", save_steps=2
    )
    trainer.train()
    predicted = trainer.predict(trainer.eval_dataset)
    assert predicted.predictions.shape[0] == 8 and (predicted.predictions[:, 0] == START).all()
    expected = logits(model.eval(), make_data())

    resumed = make_captioner("mixture", "bert", seed=5)
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    seq2seq_trainer(resumed, tmp_path / "resumed", SttAnnealingCallback(end=0.75)).train(
        resume_from_checkpoint=checkpoint
    )
    assert_same_weights(weights_of(resumed), weights_of(model))
    hf_lam.harden(model)
    assert max_difference(logits(model, make_data()), expected) < 1e-5


LOADER = """
import sys, torch
import transformers
if sys.argv[2] == "with":
    import hf_lam
root = sys.argv[1]
model, info = transformers.VisionEncoderDecoderModel.from_pretrained(f"{root}/model", output_loading_info=True)
assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
case = torch.load(f"{root}/case.pt")
model.eval()
with torch.no_grad():
    torch.testing.assert_close(model(**case["data"]).logits, case["logits"], atol=1e-6, rtol=0)
tokens = model.generate(pixel_values=case["data"]["pixel_values"], max_length=8)
assert torch.equal(tokens, case["tokens"])
print("loaded", type(model.encoder).__name__)
"""


@pytest.mark.slow
def test_the_stock_class_needs_hf_lam_imported(tmp_path: Path) -> None:
    model = make_captioner("dense", "bert")
    data = make_data()
    model.save_pretrained(tmp_path / "model")
    tokens = model.generate(pixel_values=data["pixel_values"], max_length=8)
    torch.save({"data": data, "logits": logits(model, data), "tokens": tokens}, tmp_path / "case.pt")
    assert "loaded HfLamViTModel" in run_code(LOADER, tmp_path, "with")
    # The stock class does not run the code in the folder; transformers refuses it by itself, and loads nothing wrong.
    refusing = f"""
try:
    exec({LOADER!r})
except ValueError as error:
    print("refused:", error)
"""
    printed = run_code(refusing, tmp_path, "without", hf_lam=False)
    assert "refused:" in printed and "hf_lam_vit" in printed and "loaded" not in printed


def test_the_encoder_alone_carries_its_code(tmp_path: Path) -> None:
    model = make_captioner("dense", "bert")
    model.encoder.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    pixel_values = make_data()["pixel_values"]
    with torch.no_grad():
        assert max_difference(loaded(pixel_values)[0], model.encoder(pixel_values)[0]) < 1e-6
    assert (tmp_path / "modeling_hf_lam.py").is_file()
