"""The lines of a model card that use the model once, up to an output."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from transformers import BaseImageProcessor, PreTrainedTokenizerBase
from transformers.video_processing_utils import BaseVideoProcessor

from ..modeling.configuration_hf_lam_fusion import MODALITIES
from ..modeling.host_attention_hf_lam import encoder_side_of
from ..modeling.hosts_facts_hf_lam import is_composed, is_fusion

# What stands in a call for a sample of a modality, until a reader has one.
_SAMPLES = {
    "text": ('text="A cat sat on the mat."',),
    "image": ('images=Image.new("RGB", (64, 64))',),
    "video": ('videos=[Image.new("RGB", (64, 64))] * {frames}',),
    "audio": ("audio=numpy.zeros({rate:_})", "sampling_rate={rate:_}"),
}
# Words that a model writes there, if its decoder has so many places.
_WORDS = 20


def usage_of(model: Any, model_class: type[Any], processor: Any, inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The Python code of a card: `imports`, and the `lines` to run after loading.

    Args:
        model: model of the card.
        model_class: class that the model is loaded as.
        processor: saved beside it; None if there is none.
        inputs: arguments that the model can be called with, used where there is no processor, or none that is known;
            None if none are known.
    """
    kind = model_class.__name__
    tokenizer = processor if hasattr(processor, "decode") else None
    made = _made_by(kind, model, processor, inputs)
    # What no processor makes, such as the patches that pretraining hides.
    hidden = signature(model_class.forward).parameters.get("bool_masked_pos")
    if (made is None and inputs is None) or (hidden is not None and hidden.default is hidden.empty):
        return {"imports": [], "lines": []}
    if is_composed(model.config) or kind.endswith("ForConditionalGeneration"):
        return _of_writer(made, model, processor, inputs)
    if made is None:
        lines = [f"inputs = {{{', '.join(f'{name!r}: {_tensor(x)}' for name, x in (inputs or {}).items())}}}"]
    else:
        lines = [made]
    if kind.endswith("ForMultipleChoice") and made is not None:
        lines.append("inputs = {name: x[None] for name, x in inputs.items()}")
    call = "embeddings = model.get_embeddings" if kind.endswith("ForEmbedding") else "outputs = model"
    lines += ["with torch.no_grad():", f"    {call}(**inputs)", _shown(kind, model, tokenizer)]
    return {"imports": _imports_of(lines[0]), "lines": lines}


def _of_writer(made: str | None, model: Any, processor: Any, inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The same for a model that has an encoder and a decoder: it writes, if it knows how a text begins.

    made: the line that makes inputs with a processor; None without one.
    """
    options = model.generation_config
    writes = options.decoder_start_token_id is not None or options.bos_token_id is not None
    if made is None or not writes:
        given = {name: x for name, x in (inputs or {}).items() if not (writes and name == "decoder_input_ids")}
        made = f"inputs = {{{', '.join(f'{name!r}: {_tensor(x)}' for name, x in given.items())}}}"
    positions = getattr(model.config.decoder, "max_position_embeddings", None) or _WORDS
    most = min(_WORDS, max(1, positions - 1))
    call = f"tokens = model.generate(**inputs, max_new_tokens={most})" if writes else "outputs = model(**inputs)"
    shown = "outputs.logits.shape" if not writes else "tokens.tolist()"
    if writes and hasattr(processor, "batch_decode") and getattr(processor, "decoder_tokenizer", True) is not None:
        shown = "processor.batch_decode(tokens, skip_special_tokens=True)"
    lines = [made, "with torch.no_grad():", f"    {call}", f"print({shown})"]
    return {"imports": _imports_of(made), "lines": lines}


def _imports_of(line: str) -> list[str]:
    """The imports that the line which makes the inputs needs, in the order of a sorted list of imports."""
    imports = [f"import {name}" for name in ("numpy", "torch") if name == "torch" or f"{name}." in line]
    return [*imports, "from PIL import Image"] if "Image." in line else imports


def _made_by(kind: str, model: Any, processor: Any, inputs: Mapping[str, Any] | None) -> str | None:
    """The line that makes inputs with a processor; None if there is none that is known."""
    if processor is None:
        return None
    if is_fusion(model.config):
        return _made_by_fusion(model, processor, inputs)
    if isinstance(processor, PreTrainedTokenizerBase):
        if encoder_side_of(model).main_input_name != "input_ids":
            return None  # it is for what a decoder writes
        texts = '"A cat sat on the mat."'
        if kind.endswith("ForQuestionAnswering"):
            texts = f'"Where did it sit?", {texts}'
        elif kind.endswith("ForMaskedLM"):
            texts = 'f"A cat sat on the {processor.mask_token}."'
        elif kind.endswith("ForMultipleChoice"):
            return 'inputs = processor(["A cat"] * 2, ["sat.", "flew."], padding=True, return_tensors="pt")'
        return f'inputs = processor({texts}, return_tensors="pt")'
    # What a tokenizer gives has no dtype of the model's.
    cast = "" if model.dtype == torch.float32 else ".to(model.dtype)"
    reads_media = getattr(processor, "image_processor", processor)
    if isinstance(reads_media, (BaseImageProcessor, BaseVideoProcessor)):
        frames = _frames_of(encoder_side_of(model).config)
        sample = 'Image.new("RGB", (64, 64))' if frames is None else f'[Image.new("RGB", (64, 64))] * {frames}'
        return f'inputs = processor({sample}, return_tensors="pt"){cast}'
    if rate := getattr(getattr(processor, "feature_extractor", processor), "sampling_rate", None):
        return f'inputs = processor(numpy.zeros({rate:_}), sampling_rate={rate:_}, return_tensors="pt"){cast}'
    return None


def _made_by_fusion(model: Any, processor: Any, inputs: Mapping[str, Any] | None) -> str | None:
    """The same for a fusion model, with all the modalities that its processor reads."""
    config = model.config
    names = [name for name in config.modalities if name in processor.modalities]
    features = config.features or {}
    in_step = getattr(model, "label_modalities", ())
    if inputs is None or not names or (len(in_step) > 1 and not set(in_step) <= set(features)):
        return None  # of a sentence, nobody knows here how many tokens it has
    rate = getattr(getattr(processor, "feature_extractor", None), "sampling_rate", 16_000)
    made = []
    for name in (name for name in MODALITIES if name in names and name not in features):
        frames = _frames_of(config.modality_config(name))
        made += [sample.format(frames=frames, rate=rate) for sample in _SAMPLES[name]]
    shapes = {name: tuple(inputs[config.modality_arguments(name).values].shape[1:]) for name in names}
    vectors = [f'"{name}": numpy.zeros({shapes[name]})' for name in names if name in features]
    made += [f"features={{{', '.join(vectors)}}}"] if vectors else []
    lines = "".join(f"    {sample},\n" for sample in (*made, 'return_tensors="pt"'))
    return f"inputs = processor(\n{lines})"


def _frames_of(config: Any) -> int | None:
    """The number of pictures of a video; None for any other encoder."""
    return getattr(config, "num_frames", getattr(config, "frames_per_clip", None))


def _tensor(tensor: Any) -> str:
    shape = ", ".join(map(str, tensor.shape))
    if tensor.dtype == torch.float32:
        return f"torch.zeros({shape})"
    if tensor.is_floating_point():
        return f"torch.zeros({shape}, dtype={tensor.dtype})"
    if (tensor != 1).any():
        rows = tensor.tolist()
        if tensor.dim() == 2:  # token types, of which there are long runs
            runs = [[(value, len(list(run))) for value, run in groupby(row)] for row in rows]
            texts = [" + ".join(f"[{value}] * {length}" for value, length in row) for row in runs]
            shorter = f"torch.tensor([{', '.join(texts)}])"
            return min(shorter, f"torch.tensor({rows})", key=len)
        return f"torch.tensor({rows})"
    return f"torch.ones({shape}, dtype={tensor.dtype})"


def _shown(kind: str, model: Any, tokenizer: Any) -> str:
    """The line that prints what the model says."""
    problem = getattr(model.config, "problem_type", None)
    if kind.endswith("ForEmbedding"):
        return "print(embeddings.shape)"
    if kind.endswith("ForMomentRetrieval"):
        return "print(model.post_process(outputs, top_k=3)[0].moments)"
    if kind.endswith("ForTokenClassification") and (problem == "regression" or model.config.num_labels == 1):
        return "print(outputs.logits[0].tolist())"
    if kind.endswith("ForTokenClassification") and problem == "multi_label_classification":
        names = "[model.config.id2label[i] for i in place.nonzero().flatten().tolist()]"
        return f"print([{names} for place in outputs.logits[0] > 0])"
    if kind.endswith("ForTokenClassification"):
        return "print([model.config.id2label[i] for i in outputs.logits[0].argmax(-1).tolist()])"
    if kind.endswith("Classification") and not kind.endswith("FrameClassification"):
        if problem == "regression" or model.config.num_labels == 1:
            return "print(outputs.logits[0].tolist())"
        if problem == "multi_label_classification":
            return "print([model.config.id2label[i] for i in (outputs.logits[0] > 0).nonzero().flatten().tolist()])"
        return "print(model.config.id2label[outputs.logits.argmax(-1).item()])"
    if kind.endswith("ForQuestionAnswering"):
        if tokenizer is None:
            return "print(outputs.start_logits.argmax().item(), outputs.end_logits.argmax().item())"
        span = "outputs.start_logits.argmax() : outputs.end_logits.argmax() + 1"
        return f"print('answer:', processor.decode(inputs.input_ids[0, {span}]))"
    if kind.endswith("ForMaskedLM"):
        if tokenizer is None:
            return "print(outputs.logits.argmax(-1))"
        masked = "inputs.input_ids == processor.mask_token_id"
        return f"print('word:', processor.decode(outputs.logits[{masked}].argmax(-1)))"
    if kind.endswith("ForCTC") and tokenizer is not None:
        return "print('text:', processor.batch_decode(outputs.logits.argmax(-1)))"
    if kind.endswith("ForMultipleChoice"):
        return "print(outputs.logits.argmax(-1).item())"
    if kind.endswith("ForMaskedImageModeling"):
        return "print(outputs.reconstruction.shape)"
    if kind.endswith(("Model", "Encoder")):
        return "print(outputs.last_hidden_state.shape)"
    return "print({name: x.shape for name, x in outputs.items() if isinstance(x, torch.Tensor)})"
