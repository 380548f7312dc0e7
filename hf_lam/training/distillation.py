"""Learning from a teacher: from its logits, and from its hidden states."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, logsigmoid, normalize
from transformers import PreTrainedModel

from ..modeling.host_attention_hf_lam import find_encoder

# What says which tokens count, by the names that encoders have for it.
_MASKS = ("attention_mask", "pixel_attention_mask")


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, is_multi_label: bool = False
) -> Tensor:
    """The distance of a model's probabilities from its teacher's, with both softened by a temperature.

    `T² · KL(softmax(teacher / T) ‖ softmax(student / T))`, the mean over the batch (Hinton, Vinyals & Dean,
    "Distilling the Knowledge in a Neural Network", arXiv 1503.02531). `T²` keeps the gradients at the size of those
    of the task.

    Args:
        student_logits: `(B, C)`, any floating dtype; computed in fp32.
        teacher_logits: `(B, C)`.
        temperature: `T`.
        is_multi_label: every class is a decision of its own, with `sigmoid(logits / T)`; the mean is over the classes
            too.

    Returns:
        A number in fp32, 0 where the logits are equal, or there are none.

    Raises:
        ValueError: if the logits are not of one shape `(B, C)`.
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            "distillation compares logits of one shape (batch, labels), got "
            f"{tuple(student_logits.shape)} from the model and {tuple(teacher_logits.shape)} from the teacher."
        )
    student, teacher = student_logits.float() / temperature, teacher_logits.float() / temperature
    if is_multi_label:
        student, teacher = (torch.stack([logsigmoid(x), logsigmoid(-x)], dim=-1) for x in (student, teacher))
        student, teacher = student.flatten(0, 1), teacher.flatten(0, 1)
    else:
        student, teacher = log_softmax(student, dim=-1), log_softmax(teacher, dim=-1)
    total = kl_div(student, teacher, reduction="sum", log_target=True)
    return temperature**2 * total / max(student.shape[0], 1)


def at_labels(student: Tensor, teacher: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logits of both as `(N, C)`: of tokens, those that have a label."""
    if student.ndim != 3 or student.shape != teacher.shape or labels is None:
        return student, teacher
    is_known = ~labels.isnan() if labels.is_floating_point() else labels != -100
    is_known = is_known.all(-1) if is_known.ndim == 3 else is_known
    return student[is_known], teacher[is_known]


# --- hidden states ---------------------------------------------------------------------------------------------------


def hidden_distillation_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], counts: Tensor | None = None
) -> Tensor:
    """The distance between the hidden states of a model and of its teacher, whatever their sizes.

    The squared distance of the two vectors of a token, each divided by its norm, as a mean over all layers and all
    tokens that count: `‖s/‖s‖ − t/‖t‖‖²`, between 0 and 4. All tokens of all layers are compared as in TinyBERT (Jiao
    et al., arXiv 1909.10351), and vectors of length one as in patient distillation (Sun et al., arXiv 1908.09355): in
    encoders with their norms before the layers, the last of these would be all of the sum otherwise.

    Args:
        student: hidden states after each layer, `(B, L, d)`, of any floating dtype; computed in fp32. The input of the
            first layer is not among them.
        teacher: hidden states of the teacher, likewise.
        counts: `(B, L)` bool, which tokens are not padding; `None` for all.

    Returns:
        A number in fp32; 0 where the states are equal, and where no token counts.

    Raises:
        ValueError: if the layers are not as many, or of another shape.
    """
    shapes = [[tuple(state.shape) for state in states] for states in (student, teacher)]
    if shapes[0] != shapes[1] or not student:
        raise ValueError(
            "hidden states can be compared with those of a teacher of as many layers, of the same width, on the same "
            f"tokens. The model has {len(student)} layers {shapes[0][:1]}, the teacher {len(teacher)} {shapes[1][:1]}."
        )
    distances = [
        (normalize(ours.float(), dim=-1) - normalize(its.float(), dim=-1)).square().sum(-1)
        for ours, its in zip(student, teacher, strict=True)
    ]
    distance = torch.stack(distances).mean(0)
    if counts is None:
        return distance.mean()
    # What padding holds may be NaN.
    return torch.where(counts, distance, 0).sum() / counts.sum().clamp(min=1)


def hidden_states_of(outputs: Any, length: int | None = None) -> list[Tensor]:
    """The hidden states after each layer, if the model was asked for them.

    Args:
        outputs: output of the model.
        length: number of tokens in the model's input; tokens that mechanisms append come after them.

    Raises:
        ValueError: if the model gives none.
    """
    states = getattr(outputs, "hidden_states", None)
    if not states or len(states) < 2:
        raise ValueError("the hidden states of the model and its teacher are compared, and one of them has no layers.")
    return [state if length is None else state[:, :length] for state in states[1:]]


def find_tokens(model: Any, inputs: Mapping[str, Any], length: int) -> Tensor | None:
    """Find the tokens of a batch that are not padding, `(B, L)` bool; None if all are, or nothing says it.

    Args:
        model: model with one encoder, no fusion model.
        inputs: arguments that it is called with.
        length: number of tokens `L`.
    """
    mask = next((inputs[name] for name in _MASKS if isinstance(inputs.get(name), Tensor)), None)
    if mask is None or mask.ndim != 2:
        return None
    if mask.shape[1] == length:
        return mask.bool()
    # Encoders of sound make fewer tokens of a wave.
    shorten = getattr(model.base_model, "_get_feature_vector_attention_mask", None)
    return None if shorten is None else shorten(length, mask).bool()


# --- the teacher -----------------------------------------------------------------------------------------------------


def takes_labels(model: Any) -> bool:
    """Whether a model has a loss of its own."""
    return "labels" in inspect.signature(type(model).forward).parameters


def check_teacher(student: Any, teacher: Any, hidden_weight: float) -> None:
    """Check that a model can learn from a teacher.

    Args:
        student: the model.
        teacher: model that it learns from.
        hidden_weight: weight of the term for the hidden states.

    Raises:
        TypeError: if the teacher is not a transformers model.
        ValueError: if it shares parameters with the model, or has other labels, or other layers where these are
            compared.
    """
    if not isinstance(teacher, PreTrainedModel):
        raise TypeError(
            f"the teacher must be a transformers model (a PreTrainedModel), got {type(teacher).__name__}; of a PEFT "
            "model, give what merge_and_unload() returns."
        )
    # 0 is the address of what has no memory yet.
    addresses = [{parameter.data_ptr() for parameter in model.parameters()} - {0} for model in (student, teacher)]
    if addresses[0] & addresses[1]:
        raise ValueError(
            "the teacher shares parameters with the model, so it would change with it. hf_lam.convert does that with "
            "a loaded model: load the teacher once more, or give convert a copy.deepcopy of it."
        )
    ours: Any = student.config
    theirs: Any = teacher.config
    if hidden_weight:
        for option in ("num_hidden_layers", "hidden_size"):
            pair = [getattr(find_encoder(model).config, option, None) for model in (student, teacher)]
            if None not in pair and pair[0] != pair[1]:
                raise ValueError(
                    f"the hidden states of a teacher with {option}={pair[1]} cannot be compared with those of the "
                    f"model, which has {pair[0]}. Leave hidden_distillation_weight out."
                )
    if not takes_labels(student):
        if hidden_weight:
            return
        raise ValueError(
            f"a teacher is for classification, and {type(student).__name__} has no labels. Leave the teacher out, "
            "train a head that has classes, or compare hidden states, with hidden_distillation_weight."
        )
    if ours.num_labels != theirs.num_labels:
        raise ValueError(
            f"the teacher has {theirs.num_labels} labels and the model {ours.num_labels}; they must be the same."
        )
    is_multi_label = ours.problem_type == "multi_label_classification"
    if ours.problem_type == "regression" or (ours.num_labels == 1 and not is_multi_label):
        raise ValueError(
            f"a teacher is for classification, the model has {ours.num_labels} label and problem_type="
            f"{ours.problem_type!r}, which is regression."
        )
    for index in range(ours.num_labels):
        # The names that a configuration has if it was given none say nothing.
        names = [(config.id2label or {}).get(index, f"LABEL_{index}") for config in (ours, theirs)]
        if f"LABEL_{index}" not in names and names[0].lower() != names[1].lower():
            raise ValueError(
                f"label {index} is {names[1]!r} for the teacher and {names[0]!r} for the model; they must have the "
                "same labels in the same order. Set id2label and label2id of the one whose names are wrong."
            )
