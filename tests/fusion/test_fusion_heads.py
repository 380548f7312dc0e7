"""The heads of fusion models: classes and numbers of samples and of tokens, and embeddings."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import AutoModel, AutoModelForTokenClassification

import helpers.common_behaviours as common
from helpers.checkpointing import checkpoint_activations
from helpers.fusion_heads import (
    HEADS,
    LENGTH,
    MECHANISMS,
    SHORT,
    decoder_config,
    head_config,
    head_inputs,
    make_head,
    moment_labels,
    take,
    text_labels,
    token_labels,
)
from helpers.fusion_models import fusion_config, lacking, make_fusion, make_fusion_inputs
from helpers.fusion_samples import make_fused, make_parts, raw
from helpers.hosts import CONFIGS, make_host
from helpers.outputs import outputs_of
from helpers.processes import run_code
from hf_lam import (
    HfLamFusionConfig,
    HfLamFusionForEmbedding,
    HfLamFusionForTokenClassification,
    HfLamFusionModel,
    HfLamFusionProcessor,
    LamConfig,
    verify,
)
from hf_lam.modeling.fusion_heads_hf_lam import contrastive_loss
from hf_lam.modeling.fusion_model_hf_lam import FusionModel

TOLERANCE = 1e-5


def labels_for(head: str) -> dict[str, Tensor]:
    if head == "sequence":
        return {"labels": torch.tensor([0, 2])}
    if head == "moments":
        return moment_labels()
    if head == "generation":
        return {"labels": text_labels()}
    return {"labels": token_labels()} if head == "token" else {}


# --- what transformers asks of every class ---------------------------------------------------------------------------


class FusionSubject(common.Subject):
    """A fusion model with a head and moved mechanisms; the same without mechanisms in place of a stock model."""

    def __init__(self, head: str) -> None:
        self.name, self.head = "fusion", head
        self.family: Any = SimpleNamespace(
            make=lambda head, seed=0: make_head(head, seed=seed), inputs=head_inputs, short=None, kind="fusion"
        )
        self.family.composite = None
        self.stock = make_head(head)
        self.inputs = {**head_inputs(), **labels_for(head)}
        self.configs = (LamConfig(rank=2),)

    @property
    def auto(self) -> Any:
        kinds = {
            "sequence": "ForSequenceClassification",
            "token": "ForTokenClassification",
            "generation": "ForSeq2SeqLM",
        }
        return getattr(transformers, f"AutoModel{kinds.get(self.head, '')}")

    def convert(self, seed: int = 0) -> Any:
        return make_head(self.head, "lam_half", seed=seed)


# What a model of two sides has on each side, one with a decoder twice, and what needs classes.
OF_ONE_STACK = [
    common.returns_attentions,
    common.returns_hidden_states,
    common.retains_gradients_of_what_it_returns,
    common.loads_with_other_shapes_if_told_to,
]
SLOW = [common.compiles, common.exports]


def cases() -> Iterator[Any]:
    for asked in [*common.OF_EVERY_MODEL, *OF_ONE_STACK, *SLOW]:
        for head in HEADS:
            is_asked = head not in ("embedding", "generation") or asked not in OF_ONE_STACK
            # Windows have no classes whose number could be another.
            if is_asked and (head, asked) != ("moments", common.loads_with_other_shapes_if_told_to):
                marks = [pytest.mark.slow] if asked in SLOW or head in ("sequence", "generation") else []
                yield pytest.param(asked, head, marks=marks, id=f"{asked.__name__}-{head}")


@pytest.mark.parametrize(("asked", "head"), [*cases()])
def test_common(asked: Callable[[common.Subject, Path], None], head: str, tmp_path: Path) -> None:
    asked(FusionSubject(head), tmp_path)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_shows_the_inputs_of_the_fusion_model(head: str) -> None:
    shown = inspect.signature(HEADS[head].forward).parameters
    own = {
        "embedding": ["return_loss"],
        "moments": ["span_labels", "saliency_labels"],
        "generation": [
            *("labels", "decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds", "encoder_outputs"),
            *("cache", "past_key_values", "use_cache"),
        ],
    }.get(head, ["labels"])
    assert [name for name in shown if name not in own] == list(inspect.signature(FusionModel.forward).parameters)
    inputs = head_inputs()
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    model = make_head(head)
    by_place = model(ids, mask, **inputs)
    by_name = model(input_ids=ids, attention_mask=mask, **inputs)
    assert torch.equal(by_place[0], by_name[0])


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("head", HEADS)
def test_a_sample_alone_is_as_in_a_batch(head: str, mechanism: str) -> None:
    model = make_head(head, mechanism)
    inputs = head_inputs()
    together, alone = outputs_of(model, inputs), outputs_of(model, take(inputs, 1, SHORT))
    for key in ("logits", "first_embeds", "second_embeds"):
        if key in together:
            own = together[key][1:, :SHORT] if head == "token" else together[key][1:]
            assert (own - alone[key]).abs().max() < TOLERANCE


@pytest.mark.parametrize("head", HEADS)
def test_missing_modalities(head: str) -> None:
    """What stands for them is not read, and they have no gradient that is no number."""
    model = make_head(head, "lam_half")
    inputs = {
        **head_inputs(3),
        "has_text": torch.tensor([1, 0, 1]).bool(),
        "has_clips": torch.tensor([1, 1, 0]).bool(),
    }
    inputs["sound_mask"][2] = 0
    expected = outputs_of(model, inputs)
    inputs["clips_features"][2], inputs["sound_features"][2], inputs["input_ids"][1] = math.nan, math.inf, 5
    found = outputs_of(model, inputs)
    for key, value in expected.items():
        assert value.isfinite().all(), key
        assert torch.equal(found[key], value), key
    labels = {
        "sequence": {"labels": torch.tensor([0, 1, 2])},
        "token": {"labels": token_labels(3)},
        "moments": moment_labels(3),
        "generation": {"labels": text_labels(3)},
    }
    model(**inputs, **labels.get(head, {})).loss.backward()
    assert lacking(model) == []


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_gradient_checkpointing(head: str, use_reentrant: bool) -> None:
    gradients = []
    for is_checkpointed in (False, True):
        model = make_head(head, "lam").train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if is_checkpointed:
            checkpoint_activations(model, use_reentrant)
        model(**head_inputs(), **labels_for(head)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("head", HEADS)
def test_a_fresh_head_is_warned_of(head: str, fusion_log: pytest.LogCaptureFixture) -> None:
    model = HEADS[head].from_modality_pretrained(
        text=make_host("bert"),
        image=make_host("vit"),
        num_hidden_layers=1,
        **{"embedding": {"projection_dim": 8}, "generation": {"decoder": decoder_config()}}.get(
            head, {"num_labels": 5}
        ),
    )
    new, size = {
        "embedding": ("projection", 8),
        "moments": ("saliency, decoder, classifier, span_predictor", 2),
        "generation": ("decoder, projection", 16),
    }.get(head, ("classifier", 5))
    assert f"encoder, {new} of {HEADS[head].__name__} start from random weights" in fusion_log.text
    last = model.projection if head in ("embedding", "generation") else model.classifier
    assert last.out_features == size


@pytest.mark.parametrize("head", HEADS)
def test_peft(head: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    kinds = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "generation": "SEQ_2_SEQ_LM"}
    kind = kinds.get(head, "FEATURE_EXTRACTION")
    of_head = {
        "embedding": ["projection"],
        "moments": ["saliency", "decoder", "classifier", "span_predictor"],
        "generation": ["projection"],
    }
    saved = of_head.get(head, [])
    config = peft.LoraConfig(task_type=kind, target_modules=["query", "value"], modules_to_save=["hf_lam", *saved])
    model = peft.get_peft_model(make_head(head, "lam"), config)
    inputs = {**head_inputs(), **labels_for(head)}
    model(**inputs).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(make_head(head, "lam"), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs)[1], model(**inputs)[1])


# --- labels of samples -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "classes", "labels", "loss"),
    [
        (None, 3, torch.tensor([0, 2]), cross_entropy),
        (None, 1, torch.tensor([0.5, -2.0]), lambda x, y: mse_loss(x.squeeze(-1), y)),
        (None, 3, torch.tensor([[0.0, 1, 1], [1, 0, 0]]), binary_cross_entropy_with_logits),
        ("regression", 3, torch.tensor([[0.5, 1, 1], [1, -3, 0]]), mse_loss),
    ],
)
def test_losses_of_samples(problem: str | None, classes: int, labels: Tensor, loss: Any) -> None:
    model = make_head("sequence", num_labels=classes, problem_type=problem)
    outputs = model(**head_inputs(), labels=labels)
    torch.testing.assert_close(outputs.loss, loss(outputs.logits, labels))


# --- labels of tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "classes", "axes"),
    [
        (None, 3, 2),
        (None, 3, 3),
        ("multi_label_classification", 3, 3),
        ("regression", 1, 2),
        (None, 1, 2),
        ("regression", 3, 3),
    ],
)
def test_losses_of_tokens(problem: str | None, classes: int, axes: int) -> None:
    """They are means over the labels that there are, by hand; a batch in two parts gives the same."""
    model = make_head("token", num_labels=classes, problem_type=problem)
    inputs = head_inputs(4)
    if axes == 2 and classes > 1:
        labels = token_labels(4)
        labels[0, 1] = -100
        known = labels != -100
        function: Any = lambda x, y: cross_entropy(x, y, reduction="sum")  # noqa: E731
    else:
        labels = torch.rand(4, LENGTH, *([classes] if axes == 3 else []), generator=torch.Generator().manual_seed(0))
        labels[1::2, SHORT:] = math.nan
        labels[0, 1] = math.nan
        if axes == 3:
            labels[2, 2, 0] = math.nan
        is_regression = problem == "regression" or classes == 1
        function = mse_loss if is_regression else binary_cross_entropy_with_logits
        known = ~labels.isnan()
    outputs = model(**inputs, labels=labels)
    logits = outputs.logits if axes == 3 or classes > 1 else outputs.logits.squeeze(-1)
    if labels.is_floating_point():
        expected = function(logits[known], labels[known])
    else:
        expected = function(logits[known], labels[known]) / known.sum()
    torch.testing.assert_close(outputs.loss, expected)
    parts = [
        model(
            **{key: value[part] for key, value in inputs.items()}, labels=labels[part], num_items_in_batch=known.sum()
        ).loss
        for part in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(parts), expected)
    nothing = torch.full_like(labels, math.nan if labels.is_floating_point() else -100)
    assert model(**inputs, labels=nothing).loss == 0


def test_tokens_of_several_modalities_are_combined_at_each_place() -> None:
    """By hand from the tokens of each modality, with one that a sample lacks and one that is shorter in it."""
    inputs = {**head_inputs(), "has_sound": torch.tensor([True, False])}
    inputs["sound_mask"][0, 3:] = 0
    for combine in ("mean", "concat"):
        model = make_head("token", "half", combine=combine)
        assert model.label_modalities == ["clips", "sound"]
        states = model.fusion(**inputs, output_modality_states=True).modality_states
        assert list(states) == ["text", "clips", "sound"]
        clips, sound = states["clips"], states["sound"]
        zeros = torch.zeros(3, 32)
        if combine == "mean":
            first = torch.cat([(clips[0, :3] + sound[0, :3]) / 2, clips[0, 3:]])
            second = clips[1, :SHORT]
        else:
            first = torch.cat([clips[0], torch.cat([sound[0, :3], zeros])], dim=-1)
            second = torch.cat([clips[1, :SHORT], torch.zeros(SHORT, 32)], dim=-1)
        logits = model(**inputs).logits
        torch.testing.assert_close(logits[0], model.classifier(first))
        torch.testing.assert_close(logits[1, :SHORT], model.classifier(second))


def test_places_without_a_token_do_not_count() -> None:
    model = make_head("token")
    inputs = {
        **head_inputs(3),
        "has_clips": torch.tensor([1, 1, 0]).bool(),
        "has_sound": torch.tensor([1, 1, 0]).bool(),
    }
    labels = token_labels(3)
    expected = model(**inputs, labels=labels.where(torch.tensor([1, 1, 0]).bool()[:, None], -100)).loss
    labels[1, SHORT:] = 1  # of padding
    torch.testing.assert_close(model(**inputs, labels=labels).loss, expected)


def test_class_tokens_of_vectors_have_no_labels() -> None:
    """Also with padding on the left, where they are not at 0."""
    features = {"clips": {"size": 5, "class_tokens": 2}, "sound": {"size": 7}}
    model = make_head("token", features=features, text_config=None, label_modalities=["clips"])
    inputs = {key: value for key, value in head_inputs().items() if key.startswith("clips")}
    outputs = model(**inputs)
    assert outputs.logits.shape == (2, LENGTH - 2, 3)
    left = {key: torch.cat([value[1:, SHORT:], value[1:, :SHORT]], dim=1) for key, value in inputs.items()}
    logits = model(**left).logits
    torch.testing.assert_close(logits[0, 2:], outputs.logits[1, : SHORT - 2], atol=TOLERANCE, rtol=0)
    labels = torch.tensor([[1, 1, 0, 2]])  # the first two are where class tokens lie, after padding
    expected = cross_entropy(logits[0, 2:], labels[0, 2:])
    torch.testing.assert_close(model(**left, labels=labels).loss, expected)


@pytest.mark.parametrize(("modality", "length"), [("text", 11), ("image", 16), ("audio", 32), ("video", 8)])
def test_tokens_of_every_encoder_can_be_labelled(modality: str, length: int) -> None:
    """A text has logits for all tokens, other encoders for those of their grid."""
    torch.manual_seed(0)
    config = fusion_config(label_modalities=[modality])
    model = HfLamFusionForTokenClassification(config).eval()
    inputs = make_fusion_inputs()
    assert model(**inputs).logits.shape == (2, length, 3)


def test_what_is_labelled_unless_said() -> None:
    assert head_config().labelled_modalities == ["clips", "sound"]
    assert head_config(features=None).labelled_modalities == ["text"]
    assert head_config(label_modalities=["text"]).labelled_modalities == ["text"]
    with pytest.raises(ValueError, match=r"label_modalities must say.*\['image'\]"):
        HfLamFusionForTokenClassification(HfLamFusionConfig(image_config=CONFIGS["vit"]()))


def test_what_a_token_classifier_refuses() -> None:
    model = make_head("token")
    inputs = head_inputs()
    with pytest.raises(ValueError, match=r"one length in a batch, got \{'clips': 6, 'sound': 4\}"):
        model(**{key: value[:, :4] if "sound" in key else value for key, value in inputs.items()})
    with pytest.raises(ValueError, match=r"labels must be of shape \(2, 6\).*got \(2, 5\)"):
        model(**inputs, labels=token_labels()[:, :5])


@pytest.mark.parametrize("combine", ["mean", "concat"])
def test_a_batch_without_anything_that_is_labelled(combine: str) -> None:
    """As a sample of another batch: no logits that count, a loss of 0, and nothing is said of the problem."""
    model = make_head("token", "lam_half", combine=combine)
    text = {key: head_inputs()[key] for key in ("input_ids", "attention_mask")}
    outputs = model.train()(**text, labels=torch.zeros(2, 0))  # numbers, as empty lists are
    assert outputs.logits.shape == (2, 0, 3) and outputs.loss == 0 and model.config.problem_type is None
    outputs.loss.backward()
    assert lacking(model) == []
    assert model(**text).logits.shape == (2, 0, 3)


# --- embeddings ------------------------------------------------------------------------------------------------------


def test_embeddings_are_of_length_one_and_from_what_is_given() -> None:
    model = make_head("embedding", "lam_half")
    inputs = head_inputs()
    every = model.get_embeddings(**inputs)
    assert every.shape == (2, 8)
    torch.testing.assert_close(every.norm(dim=-1), torch.ones(2))
    text = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    vectors = {key: value for key, value in inputs.items() if key not in text}
    outputs = model(**inputs)
    torch.testing.assert_close(outputs.first_embeds, model.get_embeddings(**text))
    torch.testing.assert_close(outputs.second_embeds, model.get_embeddings(**vectors))
    scale = model.logit_scale.exp()
    torch.testing.assert_close(outputs.logits_per_first, scale * outputs.first_embeds @ outputs.second_embeds.T)
    assert torch.equal(outputs.logits_per_second, outputs.logits_per_first.T)
    assert outputs.first_model_output.last_hidden_state.shape == (2, LENGTH, 32)


def test_the_loss_is_that_of_two_encoders_of_transformers() -> None:
    from transformers.models.vision_text_dual_encoder.modeling_vision_text_dual_encoder import (
        image_text_contrastive_loss,
    )

    model = make_head("embedding", "lam", contrast=[["text", "sound"], ["clips"]])
    outputs = model(**head_inputs(5))
    torch.testing.assert_close(outputs.loss, image_text_contrastive_loss(outputs.logits_per_first))
    assert model(**head_inputs(5), return_loss=False).loss is None
    attentions = model(**head_inputs(), output_attentions=True, output_hidden_states=True)
    assert attentions.first_model_output.attentions[0].shape[-1] == 2 * LENGTH
    assert len(attentions.second_model_output.hidden_states) == 3


def test_samples_that_lack_a_side_do_not_count() -> None:
    """The loss is that of the others alone, whatever says that it is lacking."""
    model = make_head("embedding", "lam_half")
    inputs = head_inputs(5)
    has = torch.tensor([1, 0, 1, 1, 1]).bool()
    inputs["has_text"] = has
    inputs["clips_mask"][3] = inputs["sound_mask"][3] = 0
    inputs["clips_mask"][4] = 0  # has sound
    outputs = model(**inputs)
    kept = [0, 2, 4]
    expected = model(**{key: value[kept] for key, value in inputs.items()})
    torch.testing.assert_close(outputs.loss, expected.loss)
    assert not outputs.first_embeds[1].any() and not outputs.second_embeds[3].any()
    torch.testing.assert_close(outputs.first_embeds[kept], expected.first_embeds)
    torch.testing.assert_close(outputs.second_embeds[kept], expected.second_embeds)
    assert outputs.loss > 0


def test_a_batch_without_a_side() -> None:
    model = make_head("embedding").train()
    text = {key: head_inputs()[key] for key in ("input_ids", "attention_mask")}
    outputs = model(**text)
    assert outputs.loss == 0 and not outputs.second_embeds.any() and outputs.second_model_output is None
    outputs.loss.backward()
    assert lacking(model) == []
    nothing = model(**text, clips_features=torch.zeros(2, 0, 5), clips_mask=torch.zeros(2, 0).long())
    assert torch.equal(nothing.first_embeds, outputs.first_embeds) and not nothing.second_embeds.any()
    with pytest.raises(ValueError, match="no modality was given of those that are compared"):
        model()
    with pytest.raises(TypeError, match="takes no input_values; input_values is audio_values here"):
        model(**text, input_values=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="clips_mask of the clips was given without clips_features"):
        model(**text, clips_mask=torch.ones(2, 3))


def test_sides_of_other_sizes() -> None:
    """A query against many, for similarities alone."""
    model = make_head("embedding")
    few, many = head_inputs(2), head_inputs(4)
    mixed = {key: few[key] if key in ("input_ids", "attention_mask") else many[key] for key in few}
    assert model(**mixed, return_loss=False).logits_per_first.shape == (2, 4)
    with pytest.raises(ValueError, match="the sides have 2 and 4 samples"):
        model(**mixed)


def test_one_modality_has_no_loss() -> None:
    model = make_head("embedding", features=None, hidden_size=32)
    outputs = model(**{key: head_inputs()[key] for key in ("input_ids", "attention_mask")})
    assert outputs.loss is None and outputs.first_embeds.shape == (2, 8)


def test_half_precision() -> None:
    model = make_head("embedding").to(torch.bfloat16)
    inputs = {key: value.bfloat16() if value.is_floating_point() else value for key, value in head_inputs().items()}
    outputs = model(**{**inputs, "has_text": torch.tensor([True, False])})
    assert outputs.first_embeds.dtype == torch.bfloat16 and outputs.loss.isfinite()
    outputs.loss.backward()
    assert lacking(model) == []


def test_no_pair_at_all_gives_no_gradient_that_is_no_number() -> None:
    logits = torch.randn(3, 3, requires_grad=True)
    loss = contrastive_loss(logits, torch.tensor([False, False, False]))
    loss.backward()
    assert loss == 0 and logits.grad is not None and not logits.grad.any()


# --- folders ---------------------------------------------------------------------------------------------------------


def test_auto_classes(tmp_path: Path) -> None:
    """AutoModel gives the embedding model of its own folder alone."""
    for head, expected in (("token", HfLamFusionModel), ("embedding", HfLamFusionForEmbedding)):
        make_head(head, "lam").save_pretrained(tmp_path / head)
        assert type(AutoModel.from_pretrained(tmp_path / head)) is expected
        written = json.loads((tmp_path / head / "config.json").read_text())["auto_map"]
        assert written["AutoModel"].rpartition(".")[2] == expected.__name__
    assert type(AutoModelForTokenClassification.from_pretrained(tmp_path / "token")) is HEADS["token"]
    assert type(AutoModel.from_config(head_config())) is HfLamFusionModel
    base = make_fusion(("text", "image"), head=False)
    base.save_pretrained(tmp_path / "base")
    loaded = HfLamFusionForEmbedding.from_pretrained(tmp_path / "base")
    assert loaded.logit_scale.tolist() == pytest.approx([2.6592])
    torch.testing.assert_close(loaded.fusion.state_dict(), base.state_dict())


WITHOUT_PACKAGE = """
import sys
sys.modules["hf_lam"] = None
import torch
from transformers import AutoModel, AutoModelForTokenClassification
for head, auto in (("token", AutoModelForTokenClassification), ("embedding", AutoModel)):
    folder = {folder!r} + "/" + head
    model = auto.from_pretrained(folder, trust_remote_code=True).eval()
    saved = torch.load(folder + "/outputs.pt")
    with torch.no_grad():
        outputs = model(**saved["inputs"])
    torch.testing.assert_close(outputs[saved["key"]], saved["output"])
    print(type(model).__name__)
"""


@pytest.mark.slow
def test_the_heads_load_without_the_package(tmp_path: Path) -> None:
    for head, key in (("token", "logits"), ("embedding", "second_embeds")):
        model = make_head(head, "lam_half")
        model.save_pretrained(tmp_path / head)
        saved = {"inputs": head_inputs(), "key": key, "output": outputs_of(model, head_inputs())[key]}
        torch.save(saved, tmp_path / head / "outputs.pt")
    printed = run_code(WITHOUT_PACKAGE.format(folder=str(tmp_path)))
    assert "HfLamFusionForTokenClassification" in str(printed) and "HfLamFusionForEmbedding" in str(printed)


@pytest.mark.slow
def test_an_embedding_model_in_sentence_transformers(tmp_path: Path) -> None:
    """Their own module runs it, on texts, images and both, and saves what `verify` lets through."""
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    if "modality_config" not in inspect.signature(modules.Transformer.__init__).parameters:
        pytest.skip("this version of sentence-transformers takes texts alone")
    from sentence_transformers import SentenceTransformer

    parts = make_parts()
    processor = HfLamFusionProcessor(tokenizer=parts["tokenizer"], image_processor=parts["image_processor"])
    fused = make_fused().config
    torch.manual_seed(0)
    model = HfLamFusionForEmbedding(
        HfLamFusionConfig(text_config=fused.text_config, image_config=fused.image_config, projection_dim=8)
    ).eval()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    call = {"method": "get_embeddings", "method_output_name": None}
    module = modules.Transformer(
        str(tmp_path / "model"),
        modality_config={"text": call, "image": call, ("image", "text"): call},
        module_output_name="sentence_embedding",
    )
    SentenceTransformer(modules=[module], device="cpu").save(str(tmp_path / "sentences"))
    loaded = SentenceTransformer(str(tmp_path / "sentences"), device="cpu")
    samples = raw(1)
    text, image = samples["text"][0], samples["images"][0]
    for given, inputs in (
        (text, {"text": [text]}),
        (image, {"images": [image]}),
        ({"image": image, "text": text}, {"text": [text], "images": [image]}),
    ):
        with torch.no_grad():
            expected = model.get_embeddings(**processor(**inputs, return_tensors="pt"))
        torch.testing.assert_close(torch.tensor(loaded.encode([given])), expected)
    assert verify(tmp_path / "sentences").findings == ()


# --- export ----------------------------------------------------------------------------------------------------------


# Moments and captions are exported in tests/export.
@pytest.mark.slow
@pytest.mark.parametrize("head", ["token", "embedding"])
def test_export_with_other_batches_and_lengths(head: str) -> None:
    model = make_head(head, "lam_half")
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=40)
    inputs = {**head_inputs(), "has_text": torch.tensor([True, False])}
    shapes = {key: {0: batch} if key == "has_text" else {0: batch, 1: length} for key in inputs}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
    other = {key: value[:, :5] for key, value in head_inputs(3).items()} | {"has_text": torch.ones(3).bool()}
    found = {key: value for key, value in program(**other).items() if isinstance(value, Tensor)}
    expected = outputs_of(model, other)
    assert expected.keys() <= found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=TOLERANCE, rtol=0)


# --- the configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_modalities": "clips"}, r"label_modalities must list modalities of \['text', 'clips', 'sound'\]"),
        ({"label_modalities": []}, r"label_modalities must list.*got \[\]"),
        ({"label_modalities": ["image"]}, r"got \['image'\]"),
        ({"label_modalities": ["clips", "clips"]}, "each once"),
        ({"contrast": ["text"]}, r"contrast must be two lists.*got \['text'\]"),
        ({"contrast": ["text", "clips"]}, "contrast must list modalities.*got 'text'"),
        ({"contrast": [["text"], []]}, r"contrast must list.*got \[\]"),
        ({"contrast": [["text"], ["clips", "text"]]}, "contrast has text on both sides"),
        ({"projection_dim": 0}, "projection_dim must be an integer of at least 1, got 0"),
        ({"projection_dim": 2.5}, "projection_dim must be an integer"),
        ({"logit_scale_init_value": math.inf}, "logit_scale_init_value must be finite"),
        ({"logit_scale_init_value": "1"}, "logit_scale_init_value must be a number"),
    ],
)
def test_what_the_configuration_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head_config(**options)
