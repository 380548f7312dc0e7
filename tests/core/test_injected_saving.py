"""Models of stock classes that mechanisms were injected into are saved whole, or not at all."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedModel,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTForImageClassification,
    ViTModel,
)

from helpers.families import FAMILIES, find_class
from helpers.family_labels import labelled
from helpers.hosts import first_output, make_host, make_inputs, make_model, perturb_mechanisms
from helpers.outputs import distance, outputs_of
from hf_lam import LamConfig, LocomtConfig, SttConfig, convert, inject, injecting, load_mechanism, remove
from hf_lam import save_mechanism as keep
from hf_lam.modeling.injection_hf_lam import injected_encoders

# One of each kind: plain; by windows; with tensors that are one in the file; with names of older releases there; in a
# tower; with normalised weights; with a decoder.
SOME = ("roberta", "modernbert", "gte", "vit", "siglip_vision", "wav2vec2", "whisper")


def auto_class_of(head: str | None) -> Any:
    return AutoModel if head is None else getattr(transformers, f"AutoModelFor{head}")


def injected(name: str, head: str | None = None, seed: int = 0) -> Any:
    model = inject(FAMILIES[name].make(head, seed=seed), LamConfig(rank=3))
    perturb_mechanisms(model)
    return model


CASES = [(name, head) for name in SOME for head in (None, *FAMILIES[name].heads[-1:])]


@pytest.mark.parametrize(("name", "head"), CASES)
def test_an_injected_model_is_saved_whole(name: str, head: str | None, tmp_path: Path) -> None:
    family, model = FAMILIES[name], injected(name, head)
    inputs = family.inputs() if head is None else labelled(family, head)
    expected = outputs_of(model, inputs)
    options, kinds = dict(vars(model.config)), (type(model), type(model.config))
    model.save_pretrained(tmp_path)
    assert (type(model), type(model.config)) == kinds
    assert vars(model.config) == options
    loaded, info = auto_class_of(head).from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded).__name__ == f"HfLam{type(model).__name__}"
    assert not any(info.values())
    assert distance(family, outputs_of(loaded, inputs), expected) < 1e-6


@pytest.mark.parametrize("through", [inject, convert])
@pytest.mark.parametrize(("name", "head"), CASES)
def test_load_state_dict_reads_what_was_saved(
    through: Callable[..., Any], name: str, head: str | None, tmp_path: Path
) -> None:
    family, model = FAMILIES[name], injected(name, head)
    inputs = family.inputs() if head is None else labelled(family, head)
    model.save_pretrained(tmp_path)
    other = through(family.make(head, seed=1), LamConfig(rank=3))
    result = other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    other.tie_weights()
    assert not set(result.missing_keys) - set(other.all_tied_weights_keys)
    assert not result.unexpected_keys
    assert distance(family, outputs_of(other, inputs), outputs_of(model, inputs)) < 1e-6


@pytest.mark.parametrize(
    "configs",
    [(LamConfig(),), (LocomtConfig(views="half"),), (SttConfig("dense"),), (LamConfig(rank=1), LocomtConfig())],
)
@pytest.mark.parametrize("take", [None, "base_model"])
def test_mechanisms_of_every_kind_and_the_encoder_alone(configs: Any, take: str | None, tmp_path: Path) -> None:
    model: Any = inject(make_model(ViTForImageClassification, "vit"), *configs)
    perturb_mechanisms(model)
    saved = model if take is None else getattr(model, take)
    saved.save_pretrained(tmp_path)
    auto: Any = transformers.AutoModelForImageClassification if take is None else AutoModel
    inputs = make_inputs("vit")
    assert torch.equal(first_output(auto.from_pretrained(tmp_path), inputs), first_output(saved, inputs))


def test_the_encoder_was_given_and_the_model_around_it_is_saved(tmp_path: Path) -> None:
    model = make_model(RobertaForSequenceClassification, "roberta")
    inject(model.roberta, LamConfig(rank=2))
    perturb_mechanisms(model)
    model.save_pretrained(tmp_path)
    inputs = make_inputs("bert")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


# Of a model of ours, without `inject`: the tower of two, whose configuration has no place for mechanisms, and what is
# left of queries, keys and values that are one tensor in the file.
@pytest.mark.parametrize(
    ("name", "head", "config"),
    [
        ("clip_vision", "ImageClassification", LamConfig(rank=3)),
        ("siglip_vision", "ImageClassification", LamConfig(rank=3)),
        ("gte", "SequenceClassification", SttConfig("dense")),
        ("roberta", "TokenClassification", LamConfig(rank=3)),
    ],
)
def test_the_encoder_inside_of_a_model_of_ours(name: str, head: str, config: Any, tmp_path: Path) -> None:
    family = FAMILIES[name]
    encoder: Any = injected_encoders(convert(family.make(head), config))[0]
    perturb_mechanisms(encoder)
    options, kinds = dict(vars(encoder.config)), (type(encoder), type(encoder.config))
    encoder.save_pretrained(tmp_path)
    assert (type(encoder), type(encoder.config)) == kinds
    assert vars(encoder.config) == options
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded).__name__ == f"HfLam{type(encoder).__name__}"
    assert loaded.config.architectures == [type(loaded).__name__]
    assert torch.equal(first_output(loaded, family.inputs()), first_output(encoder, family.inputs()))


# Where nobody calls `inject`, nor imports hf_lam by name.
@pytest.mark.slow
def test_an_unpickled_model_is_saved_whole_by_another_process(tmp_path: Path) -> None:
    model = injected("roberta", "SequenceClassification")
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys, torch, transformers\n"
        "model = torch.load(sys.argv[1] + '/model.pt', weights_only=False)\n"
        "model.save_pretrained(sys.argv[1] + '/model')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    inputs = labelled(FAMILIES["roberta"], "SequenceClassification")
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_options_of_saving(tmp_path: Path) -> None:
    model = injected("vit")
    inputs = FAMILIES["vit"].inputs()
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "state", state_dict=state, max_shard_size="20KB")
    assert len(list((tmp_path / "state").glob("model-*.safetensors"))) > 1
    loaded = AutoModel.from_pretrained(tmp_path / "state")
    assert all(torch.equal(tensor, model.state_dict()[name] + 1) for name, tensor in loaded.state_dict().items())
    model.save_pretrained(tmp_path / "variant", variant="fp16")
    loaded = AutoModel.from_pretrained(tmp_path / "variant", variant="fp16")
    assert torch.equal(first_output(loaded, inputs), first_output(model, inputs))
    model.save_pretrained(tmp_path / "second", is_main_process=False)
    assert not list((tmp_path / "second").iterdir())


# --- what is not saved -----------------------------------------------------------------------------------------------


class OwnHead(RobertaForSequenceClassification):
    pass


class Around(PreTrainedModel):
    config_class = BertConfig

    def __init__(self, config: Any, encoder: Any) -> None:
        super().__init__(config)
        self.encoder = encoder
        self.head = nn.Linear(32, 2)
        self.post_init()


UNSAVED: dict[str, Callable[[], Any]] = {
    "a class of one's own": lambda: inject(OwnHead(make_host("roberta").config), LamConfig(rank=2)),
    "a model around an encoder": lambda: Around(BertConfig(), inject(make_host("vit"), LamConfig(rank=2))),
}


@pytest.mark.parametrize("make", UNSAVED.values(), ids=UNSAVED)
def test_what_has_no_class_of_ours_is_refused_before_anything_is_written(make: Any, tmp_path: Path) -> None:
    model = make()
    with pytest.raises(ValueError, match=r"\(lam\).*nothing was saved.*save_mechanism"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    # The way that the message names.
    base = next(module for module in model.modules() if hasattr(module, "hf_lam"))
    perturb_mechanisms(model)
    keep(model, tmp_path / "mechanism")
    inputs = make_inputs("bert" if "roberta" in base.config.model_type else "vit")
    expected = first_output(base, inputs)
    base.save_pretrained(tmp_path / "encoder")
    assert torch.equal(first_output(AutoModel.from_pretrained(tmp_path / "encoder"), inputs), expected)
    remove(model).save_pretrained(tmp_path / "model")
    assert not any("hf_lam" in name for name in load_file(tmp_path / "model" / "model.safetensors"))
    load_mechanism(base, tmp_path / "mechanism")
    assert torch.equal(first_output(base, inputs), expected)
    with pytest.raises(ValueError, match="nothing was saved"):
        model.save_pretrained(tmp_path / "model")


@pytest.mark.parametrize("is_own", [True, False])
def test_what_has_no_class_of_ours_is_said_at_once(is_own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(injecting.logger, "warning", said.append)
    kind = OwnHead if is_own else RobertaForSequenceClassification
    inject(kind(make_host("roberta").config), LamConfig(rank=2))
    assert [("OwnHead" in text, "save_mechanism" in text) for text in said] == [(True, True)] * is_own


def test_an_adapter_is_saved_alone(tmp_path: Path) -> None:
    adapted = inject(make_host("roberta"), LamConfig())
    lora = peft.LoraConfig(target_modules=["query"], modules_to_save=["hf_lam"])
    peft.get_peft_model(adapted, lora).save_pretrained(tmp_path / "wrapped")
    assert (tmp_path / "wrapped" / "adapter_model.safetensors").is_file()


@pytest.mark.skipif(Version(peft.__version__) < Version("0.22"), reason="transformers wants a newer PEFT for this")
def test_an_adapter_of_transformers_is_saved_alone(tmp_path: Path) -> None:
    own = inject(OwnHead(make_host("roberta").config), LamConfig(rank=2))
    own.add_adapter(peft.LoraConfig(target_modules=["query"]))
    own.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "model.safetensors").exists()


def test_copies_and_what_was_removed_save_as_stock(tmp_path: Path) -> None:
    model = inject(make_host("roberta"), LamConfig())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        remove(other).save_pretrained(tmp_path)
        assert not any("hf_lam" in name for name in load_file(tmp_path / "model.safetensors"))
        assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "RobertaModel"
    assert any("hf_lam" in name for name in model.state_dict())


def test_saving_that_fails_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = injected("modernbert")
    model.config.num_hidden_layers = 5
    with pytest.raises(ValueError, match="num_hidden_layers"):
        model.save_pretrained(tmp_path / "model")
    assert type(model).__name__ == "ModernBertModel"
    assert type(model.config).__name__ == "ModernBertConfig"
    assert not hasattr(model.config, "hf_lam")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_threads_save_one_after_the_other(tmp_path: Path) -> None:
    model = injected("vit")
    inputs = FAMILIES["vit"].inputs()
    threads = [threading.Thread(target=model.save_pretrained, args=(tmp_path / str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert type(model) is ViTModel
    for i in range(8):
        loaded = AutoModel.from_pretrained(tmp_path / str(i))
        assert torch.equal(first_output(loaded, inputs), first_output(model, inputs))


# --- layers that were cut --------------------------------------------------------------------------------------------

LAYERS: dict[str, Callable[[Any], tuple[Any, str]]] = {
    "roberta": lambda model: (model.encoder, "layer"),
    "distilbert": lambda model: (model.transformer, "layer"),
    "electra": lambda model: (model.encoder, "layer"),
    "nomic_bert": lambda model: (model, "layers"),
    "eurobert": lambda model: (model, "layers"),
    "vit": lambda model: (model, "layers"),
    "dinov3_vit": lambda model: (model.model, "layer"),
    "wav2vec2": lambda model: (model.encoder, "layers"),
    "whisper": lambda model: (model, "layers"),
}


@pytest.mark.parametrize("through", [inject, convert])
@pytest.mark.parametrize("name", LAYERS)
def test_a_model_whose_layers_were_cut_is_saved_with_those_it_has(
    name: str, through: Callable[..., Any], tmp_path: Path
) -> None:
    family = FAMILIES[name]
    model = through(family.make(), LamConfig(rank=3))
    perturb_mechanisms(model)
    owner, attribute = LAYERS[name](model)
    setattr(owner, attribute, nn.ModuleList(list(getattr(owner, attribute))[1:]))
    with pytest.raises(ValueError, match=r"num_hidden_layers=1"):
        model.save_pretrained(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    model.config.num_hidden_layers = 1
    expected = outputs_of(model, family.inputs())
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModel.from_pretrained(tmp_path / "model")
    assert distance(family, outputs_of(loaded, family.inputs()), expected) < 1e-6


# ModernBERT's second layer begins with a norm that its first has not, and only the second sees a window.
@pytest.mark.parametrize("through", [inject, convert])
def test_layers_that_differ_from_those_in_their_places(through: Callable[..., Any], tmp_path: Path) -> None:
    family = FAMILIES["modernbert"]
    cut = through(family.make(), LamConfig(rank=3))
    cut.layers = cut.layers[1:]
    cut.config.num_hidden_layers = 1
    assert cut.config.layer_types == ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match=r"other parts.*nothing|nothing was saved.*other parts"):
        cut.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()

    config = family.make_config()
    config.num_hidden_layers, config.layer_types = 3, ["full_attention", "sliding_attention", "full_attention"]
    torch.manual_seed(0)
    model = through(type(family.make())(config).eval(), LamConfig(rank=3))
    perturb_mechanisms(model)
    model.layers = nn.ModuleList([model.layers[0], model.layers[2]])
    model.config.num_hidden_layers = 2
    expected = outputs_of(model, family.inputs())
    model.save_pretrained(tmp_path / "model")
    assert model.config.layer_types == ["full_attention", "full_attention"]
    loaded = AutoModel.from_pretrained(tmp_path / "model")
    assert distance(family, outputs_of(loaded, family.inputs()), expected) < 1e-6


def test_a_configuration_that_would_not_load_again_is_refused(tmp_path: Path) -> None:
    model = remove(convert(FAMILIES["modernbert"].make(), LamConfig(rank=2)))
    model.layers = model.layers[:1]
    model.config.num_hidden_layers = 1
    with pytest.raises(ValueError, match=r"nothing was saved.*layer"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# --- Trainer ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "nomic_bert", "modernbert"])
def test_trainer_saves_whole_checkpoints_and_goes_on_from_them(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    head = next(head for head in family.heads if head.endswith("Classification"))
    batch = labelled(family, head)
    rows = [{key: value[i % 2] for key, value in batch.items()} for i in range(8)]

    def trainer(steps: int, folder: str) -> Trainer:
        arguments = TrainingArguments(
            str(tmp_path / folder), max_steps=steps, save_steps=2, per_device_train_batch_size=2, report_to=[],
            use_cpu=True, learning_rate=1e-2, lr_scheduler_type="constant", disable_tqdm=True,
        )  # fmt: skip
        return Trainer(injected(name, head), arguments, train_dataset=rows)

    whole = trainer(4, "whole")
    whole.train()
    loaded = auto_class_of(head).from_pretrained(tmp_path / "whole" / "checkpoint-4")
    assert distance(family, outputs_of(loaded, batch), outputs_of(whole.model.eval(), batch)) < 1e-6
    resumed = trainer(4, "resumed")
    for parameter in resumed.model.parameters():
        parameter.data.zero_()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    expected = whole.model.state_dict()
    assert all(torch.allclose(t, expected[n], atol=1e-6) for n, t in resumed.model.state_dict().items())
    assert find_class(type(resumed.model).__name__) is type(resumed.model)
