"""The lines of a model card that use the model once, up to an output."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from transformers import BaseImageProcessor, PreTrainedTokenizerBase
from transformers.video_processing_utils import BaseVideoProcessor

from ..modeling.configuration_hf_lam_fusion import MODALITIES

# What stands in a call for a sample of a modality, until a reader has one.
_SAMPLES = {
    "text": ('text="A cat sat on the mat."',),
    "image": ('images=Image.new("RGB", (64, 64))',),
    "video": ('videos=[Image.new("RGB", (64, 64))] * {frames}',),
    "audio": ("audio=numpy.zeros({rate:_})", "sampling_rate={rate:_}"),
}


def usage_of(model: Any, model_class: type[Any], processor: Any, inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a card imports and runs after loading: `imports` and `lines` of Python.

    Args:
        model: that the card is of.
        model_class: what it is loaded as.
        processor: saved beside it; None if there is none.
        inputs: what the model can be called with, which stands for them where there is no processor; None if nothing
            is known.
    """
    kind = model_class.__name__
    tokenizer = processor if hasattr(processor, "decode") else None
    made = _made_by(kind, model, processor)
    # What no processor makes, such as the patches that pretraining hides.
    hidden = signature(model_class.forward).parameters.get("bool_masked_pos")
    if (made is None and inputs is None) or (hidden is not None and hidden.default is hidden.empty):
        return {"imports": [], "lines": []}
    if made is None:
        lines = [f"inputs = {{{', '.join(f'{name!r}: {_tensor(x)}' for name, x in (inputs or {}).items())}}}"]
    else:
        lines = [made]
    if kind.endswith("ForMultipleChoice") and made is not None:
        lines.append("inputs = {name: x[None] for name, x in inputs.items()}")
    lines += ["with torch.no_grad():", "    outputs = model(**inputs)", _shown(kind, model, tokenizer)]
    # In the order of a sorted list of imports.
    imports = [f"import {name}" for name in ("numpy", "torch") if name == "torch" or f"{name}." in lines[0]]
    if "Image." in lines[0]:
        imports.append("from PIL import Image")
    return {"imports": imports, "lines": lines}


def _made_by(kind: str, model: Any, processor: Any) -> str | None:
    """The line that makes inputs with a processor; None if there is none that is known."""
    modalities = getattr(model.config, "modalities", None)
    if processor is None:
        return None
    if modalities:
        video = model.config.modality_config("video") if "video" in modalities else None
        rate = getattr(getattr(processor, "feature_extractor", None), "sampling_rate", 16_000)
        samples = [sample for modality in MODALITIES if modality in modalities for sample in _SAMPLES[modality]]
        made = [sample.format(frames=getattr(video, "num_frames", ""), rate=rate) for sample in samples]
        lines = "".join(f"    {sample},\n" for sample in (*made, 'return_tensors="pt"'))
        return f"inputs = processor(\n{lines})"
    if isinstance(processor, PreTrainedTokenizerBase):
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
    if isinstance(processor, (BaseImageProcessor, BaseVideoProcessor)):
        frames = getattr(model.config, "num_frames", getattr(model.config, "frames_per_clip", None))
        sample = 'Image.new("RGB", (64, 64))' if frames is None else f'[Image.new("RGB", (64, 64))] * {frames}'
        return f'inputs = processor({sample}, return_tensors="pt"){cast}'
    if rate := getattr(getattr(processor, "feature_extractor", processor), "sampling_rate", None):
        return f'inputs = processor(numpy.zeros({rate:_}), sampling_rate={rate:_}, return_tensors="pt"){cast}'
    return None


def _tensor(tensor: Any) -> str:
    shape = ", ".join(map(str, tensor.shape))
    if tensor.dtype == torch.float32:
        return f"torch.zeros({shape})"
    if tensor.is_floating_point():
        return f"torch.zeros({shape}, dtype={tensor.dtype})"
    if (tensor != 1).any():
        return f"torch.tensor({tensor.tolist()})"
    return f"torch.ones({shape}, dtype={tensor.dtype})"


def _shown(kind: str, model: Any, tokenizer: Any) -> str:
    """The line that prints what the model says."""
    problem = getattr(model.config, "problem_type", None)
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
