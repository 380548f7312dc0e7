"""The `HfLam…` classes of any family: made when they are asked for, found again, and known to transformers."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, DeiTForImageClassificationWithTeacher
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hf_lam
from helpers.families import FAMILIES
from helpers.hosts import perturb_mechanisms
from helpers.outputs import distance, outputs_of
from helpers.processes import run_code
from hf_lam import LamConfig, LocomtConfig, SttConfig, convert, inject
from hf_lam.modeling import configuration_hf_lam, modeling_hf_lam
from hf_lam.modeling.configuration_hf_lam import config_class_of
from hf_lam.modeling.host_attention_hf_lam import find_encoder
from hf_lam.modeling.modeling_hf_lam import travelling_class_of

NAMES = [
    "HfLamModernBertForSequenceClassification",
    "HfLamDINOv3ViTModel",
    "HfLamSiglipVisionModel",
    "HfLamSiglipTextModel",
    "HfLamSiglipForImageClassification",
    "HfLamWhisperEncoder",
    "HfLamWav2Vec2ForCTC",
    "HfLamDeiTForImageClassificationWithTeacher",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_class_is_made_once_and_found_again(name: str) -> None:
    made = getattr(hf_lam, name)
    assert made is getattr(modeling_hf_lam, name) is travelling_class_of(made.host_class)
    assert (made.__name__, made.__qualname__, made.__module__) == (name, name, modeling_hf_lam.__name__)
    assert made.__doc__ and made.host_class.__name__ in made.__doc__
    assert pickle.loads(pickle.dumps(made)) is made
    config_class = made.config_class
    assert config_class.model_type == f"hf_lam_{made.host_class.config_class.model_type}"
    assert pickle.loads(pickle.dumps(config_class)) is config_class
    assert config_class is getattr(hf_lam, config_class.__name__) is config_class_of(config_class.model_type)
    assert config_class is config_class_of(config_class.host_model_type)
    assert {name, config_class.__name__} <= {*dir(modeling_hf_lam), *dir(configuration_hf_lam)}
    assert inspect.signature(made.forward) == inspect.signature(made.host_class.forward) or "loss" in str(made.__mro__)


@pytest.mark.parametrize("module", [hf_lam, modeling_hf_lam, configuration_hf_lam])
@pytest.mark.parametrize("name", ["HfLamNothing", "HfLamNothingConfig", "HfLamGPT2LMHeadModel", "HfLam", "ViTModel"])
def test_there_are_no_other_classes(module: Any, name: str) -> None:
    assert not hasattr(module, name)


def test_what_has_no_class() -> None:
    class BertModel(transformers.BertModel):
        pass

    assert travelling_class_of(BertModel) is None
    assert travelling_class_of(transformers.GPT2LMHeadModel) is None
    assert config_class_of("nothing") is None
    # A decoder's vocabulary has no encoder; what has one and a decoder is loaded as its encoder.
    assert config_class_of("whisper").auto_classes["AutoModel"] == "HfLamWhisperEncoder"
    assert set(config_class_of("whisper").auto_classes) == {"AutoModel", "AutoModelForAudioClassification"}


@pytest.mark.parametrize("name", ["modernbert", "siglip_vision", "wav2vec2", "whisper"])
def test_copies_and_pickles(name: str) -> None:
    family = FAMILIES[name]
    model = convert(family.make(), LamConfig(rank=2))
    perturb_mechanisms(model)
    expected = outputs_of(model, family.inputs())
    copies = [copy.deepcopy(model)]
    if "pickle" not in family.lacks:
        copies.append(pickle.loads(pickle.dumps(model)))
    for other in copies:
        assert type(other) is type(model)
        assert distance(family, outputs_of(other, family.inputs()), expected) == 0


def test_an_auto_class_that_chooses_by_architectures(tmp_path: Path) -> None:
    family = FAMILIES["deit"]
    teacher = DeiTForImageClassificationWithTeacher(family.make_config("ImageClassification")).eval()
    teacher.save_pretrained(tmp_path / "stock")
    from_folder = convert(tmp_path / "stock", LamConfig(rank=2), auto_class=AutoModelForImageClassification)
    for model in (from_folder.eval(), inject(teacher, LamConfig(rank=2))):
        model.save_pretrained(tmp_path / "ours")
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "ours")
        assert type(loaded).__name__ == "HfLamDeiTForImageClassificationWithTeacher"
        assert torch.equal(loaded(**family.inputs()).logits, model(**family.inputs()).logits)
        references = AutoConfig.from_pretrained(tmp_path / "ours").auto_map
        assert references["AutoModelForImageClassification"].endswith("WithTeacher")


def test_a_tower_of_a_folder_with_two(tmp_path: Path) -> None:
    family = FAMILIES["siglip_vision"]
    both = transformers.SiglipModel(family.composite(family.make_config())).eval()
    both.save_pretrained(tmp_path)
    tower = hf_lam.HfLamSiglipVisionModel.from_pretrained(tmp_path, hf_lam=LamConfig(rank=2)).eval()
    expected = outputs_of(both.vision_model, family.inputs())
    assert distance(family, outputs_of(tower, family.inputs()), expected) < 1e-5
    for given in (tmp_path, both):
        with pytest.raises(ValueError, match="vision_model") as refusal:
            convert(given, LamConfig(rank=2))
        assert "HfLam" not in str(refusal.value)


def test_a_folder_with_a_decoder_gives_its_encoder(tmp_path: Path) -> None:
    family = FAMILIES["whisper"]
    config = family.make_config()
    config.decoder_layers, config.vocab_size, config.decoder_start_token_id, config.pad_token_id = 1, 20, 1, 0
    both = transformers.WhisperForConditionalGeneration(config).eval()
    both.save_pretrained(tmp_path / "stock")
    encoder = convert(tmp_path / "stock", LamConfig(rank=2)).eval()
    assert type(encoder) is hf_lam.HfLamWhisperEncoder
    expected = outputs_of(both.model.encoder, family.inputs())
    assert distance(family, outputs_of(encoder, family.inputs()), expected) < 1e-5
    encoder.save_pretrained(tmp_path / "ours")
    loaded, info = AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    assert distance(family, outputs_of(loaded, family.inputs()), outputs_of(encoder, family.inputs())) == 0
    for whole in (both, both.model):
        with pytest.raises(ValueError, match="encoder"):
            convert(whole, LamConfig(rank=2))


@pytest.mark.parametrize("name", ["modernbert", "nomic_bert", "dinov2", "siglip_vision", "wav2vec2", "whisper"])
def test_a_lost_weight_is_an_error(name: str, tmp_path: Path) -> None:
    model = FAMILIES[name].make()
    state = model.state_dict()
    lost = next(key for key in state if ".1." in key and key.endswith("weight"))
    model.save_pretrained(tmp_path, state_dict={key: value for key, value in state.items() if key != lost})
    with pytest.raises(RuntimeError, match="without a value"):
        convert(tmp_path, LamConfig(rank=2))


@pytest.mark.parametrize("name", ["modernbert", "dinov2", "wav2vec2", "siglip_vision", "whisper"])
def test_a_loaded_model_gives_its_tensors(name: str) -> None:
    model = FAMILIES[name].make()
    converted = convert(model, LamConfig(rank=2))
    for kind in ("named_parameters", "named_buffers"):
        ours = dict(getattr(converted, kind)())
        assert all(ours[key] is tensor for key, tensor in getattr(model, kind)())
    assert all(a is not b for a, b in zip(model.modules(), converted.modules(), strict=False))
    assert not hasattr(model.config, "hf_lam")


def test_an_injected_model_is_converted_with_what_it_has() -> None:
    family = FAMILIES["roberta"]
    model = inject(family.make(), LamConfig(rank=2), LocomtConfig(segments=[["a", 5], ["b", 7]], views="half"))
    perturb_mechanisms(model)
    converted = convert(model)
    assert set(converted.config.hf_lam) == {"version", "lam", "locomt"}
    assert distance(family, outputs_of(converted, family.inputs()), outputs_of(model, family.inputs())) == 0
    assert type(model).__name__ == "RobertaModel"


@pytest.mark.parametrize("name", ["gte", "nomic_bert", "radio"])
def test_fused_weights_without_queries_and_keys(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    if "stt_dense" in family.without:
        pytest.skip("refused")
    stock = family.make()
    stock.save_pretrained(tmp_path / "stock")
    configs, inputs = family.configs("stt_dense"), family.inputs_for("stt_dense")
    converted = convert(stock, *configs)
    from_folder = convert(tmp_path / "stock", *configs).eval()
    from_folder.load_state_dict({k: v for k, v in converted.state_dict().items() if "hf_lam" in k}, strict=False)
    assert distance(family, outputs_of(from_folder, inputs), outputs_of(converted, inputs)) < 1e-6
    converted.save_pretrained(tmp_path / "ours")
    loaded, info = AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    assert distance(family, outputs_of(loaded, inputs), outputs_of(converted, inputs)) == 0


# --- transformers' tables --------------------------------------------------------------------------------------------


def test_auto_classes_know_families_that_nobody_asked_for() -> None:
    assert "hf_lam_gte" in CONFIG_MAPPING
    assert "hf_lam_nothing" not in CONFIG_MAPPING
    config = AutoConfig.for_model("hf_lam_gte", **FAMILIES["gte"].options, hf_lam={"lam": {"rank": 2}})
    assert type(AutoModel.from_config(config)).__name__ == "HfLamGteModel"
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        transformers.AutoModelForCTC.from_config(config)


@pytest.mark.slow
def test_no_family_is_imported_before_it_is_needed() -> None:
    code = """
import sys
import hf_lam
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
def families():
    files = [name.split(".") for name in sys.modules if name.startswith("transformers.models.")]
    return {parts[2] for parts in files if parts[-1].startswith("modeling_")} - {"auto"}
hf_lam.convert, hf_lam.LamConfig(), hf_lam.inject
before = families()
config = AutoConfig.for_model("hf_lam_roberta")
assert families() == before, families() - before
AutoModel.from_config(config.__class__(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, vocab_size=5))
assert families() - before == {"roberta"}, families() - before
"""
    run_code(code, Path())


def test_a_seed_gives_a_folder_and_a_loaded_model_the_same_weights(tmp_path: Path) -> None:
    stock = FAMILIES["modernbert"].make()
    stock.save_pretrained(tmp_path)
    found = []
    for given in (stock, tmp_path):
        torch.manual_seed(3)
        found.append(convert(given, LamConfig(init="normal"), SttConfig(synthesizer="factorized_random")).state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


# Whisper's encoder has names without "encoder." then.
@pytest.mark.parametrize("name", ["whisper", "vit", "gte"])
def test_a_head_starts_from_an_encoder_that_was_saved_alone(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    encoder = convert(family.make(), LamConfig(rank=2))
    perturb_mechanisms(encoder)
    encoder.save_pretrained(tmp_path / "encoder")
    auto: Any = getattr(transformers, f"AutoModelFor{family.heads[-1]}")
    head = auto.from_pretrained(tmp_path / "encoder")
    left, right = encoder.state_dict(), find_encoder(head).state_dict()
    assert all(torch.equal(right[key], left[key]) for key in right.keys() & left.keys())
    assert not [key for key in right.keys() ^ left.keys() if not key.startswith(("pooler", "embeddings.mask_token"))]
    head.save_pretrained(tmp_path / "head")
    back = AutoModel.from_pretrained(tmp_path / "head").state_dict()
    assert all(torch.equal(back[key], left[key]) for key in right.keys() & left.keys())
