"""The model and the processor of a fine-tuning run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, TrainerCallback
from transformers.pytorch_utils import Conv1D

from ..conversion import convert
from ..loading import loading
from ..modeling.host_attention_hf_lam import find_attentions, find_encoder
from ..modeling.hosts_facts_hf_lam import PROJECTION_NAMES
from ..modeling.injection_hf_lam import injected_encoders
from ..parameters import body_around, freeze_host, head_parameters
from .annealing import ANNEALING_CALLBACKS, check_hardening, harden
from .arguments import ModelArguments
from .frame_processors import FrameProcessor
from .labels import Labels
from .mechanism_logging import MechanismLoggingCallback
from .widening import widen_like

# What LoRA adapts: the projections of queries and of values; in GPT-2, one layer is several of them.
_ADAPTED = tuple(name for query, _, value in PROJECTION_NAMES for name in (query, value))
_FUSED = ("c_attn", "q_attn")


def load_pretrained(
    auto_class: Any, name: str, arguments: ModelArguments, of_model: bool = True, **options: Any
) -> Any:
    """`auto_class.from_pretrained(name, …)`, with the arguments' options for the Hub.

    Args:
        auto_class: Auto class.
        name: id of a repository, or a folder.
        arguments: options that give token, cache and revision.
        of_model: whether it is the repository of the model; the revision is for that one alone.
        options: further options.

    Raises:
        LoadingError: naming the repository, if it or the Hub cannot be read.
    """
    hub = arguments.hub_options(of_model)
    with loading(name, hub.get("revision"), hub["token"], hub["cache_dir"]):
        return auto_class.from_pretrained(name, **hub, **options)


def load_config(arguments: ModelArguments, labels: Labels | None = None) -> PreTrainedConfig:
    """The configuration of the model, told about the classes.

    Raises:
        ValueError: for an override of an option that the configuration does not have, or with a wrong value.
    """
    config = load_pretrained(AutoConfig, str(arguments.model_name_or_path), arguments)
    overrides = arguments.overrides()
    unknown = sorted(set(overrides) - set(config.to_dict()))
    if unknown:
        raise ValueError(f"--config_overrides: {type(config).__name__} has no option {', '.join(unknown)}.")
    try:
        config.update({**overrides, **(labels.config_options if labels is not None else {})})
    except StrictDataclassError as error:
        raise ValueError(f"--config_overrides {arguments.config_overrides}: {error}") from error
    return config


def load_model(
    arguments: ModelArguments,
    auto_class: Any,
    config: PreTrainedConfig,
    is_trained: bool = True,
    attach: Callable[..., Any] = convert,
) -> PreTrainedModel:
    """Load the model of `config`, from its checkpoint or from random weights, with the mechanisms that were asked for.

    With `--control`, it has the wider layers that these are compared with.

    Whatever the mechanisms are, a new head starts from the same weights under the same seed. Weights are in fp32.

    Args:
        arguments: options that name the checkpoint and the mechanisms.
        auto_class: Auto class, such as `AutoModelForSequenceClassification`.
        config: configuration from `load_config`.
        is_trained: whether the model will be trained, and may begin with a head that is not.
        attach: `attach(model, *configs)` gives the model with mechanisms.

    Raises:
        ValueError: if the checkpoint does not fit the classes of the data, or lacks weights that nothing will train.
    """
    if arguments.from_scratch:
        model = auto_class.from_config(config, trust_remote_code=arguments.trust_remote_code)
    else:
        try:
            name = str(arguments.model_name_or_path)
            options: dict[str, Any] = {"config": config, "ignore_mismatched_sizes": arguments.ignore_mismatched_sizes}
            # Weights are trained in full precision, whatever the file has; `--bf16` and `--fp16` compute in half.
            options["dtype"] = torch.float32
            if is_trained:
                model = load_pretrained(auto_class, name, arguments, **options)
            else:
                model = load_whole(auto_class, name, arguments, **options)
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise ValueError(
                f"{arguments.model_name_or_path!r} does not fit the {len(config.id2label or ())} classes of the data, "
                "or --config_overrides. --ignore_mismatched_sizes makes what does not fit, such as the head, anew."
            ) from error
    mechanisms = arguments.mechanisms()
    if arguments.control:
        return widen_like(model, mechanisms)
    return attach(model, *mechanisms) if mechanisms else model


def load_image_processor(arguments: ModelArguments, config: PreTrainedConfig) -> Any:
    """Load the image processor of a model for images or videos; with `--config_overrides`, of the sizes given there.

    Args:
        arguments: options that name it.
        config: configuration of the encoder.

    Raises:
        ImportError: if its class needs a package that is not installed, as those of some families need torchvision.
    """
    name = str(arguments.processor_name_or_path or arguments.model_name_or_path)
    try:
        processor = load_pretrained(FrameProcessor, name, arguments)
    except ImportError as error:
        raise ImportError(
            f"the image processor of {name!r} cannot be used here: {' '.join(str(error).split())} Another one of the "
            "same size can be named with --processor_name_or_path."
        ) from error
    overrides = arguments.overrides()
    if "image_size" in overrides:
        sides = {"height": config.image_size, "width": config.image_size}
        crops = getattr(processor, "do_center_crop", False)
        processor.size = {"shortest_edge": config.image_size} if crops else sides
        if crops:
            processor.crop_size = sides
    if "num_channels" in overrides:
        for name in ("image_mean", "image_std"):
            value = getattr(processor, name)
            setattr(processor, name, [sum(value) / len(value)] * config.num_channels)
    return processor


def for_trainer(processor: Any) -> Any:
    """The processor of a fusion model as `Trainer` takes it, which looks into its tokenizer even if that is None."""
    return processor if processor.tokenizer is not None else _WithoutTokenizer(processor)


class _WithoutTokenizer:
    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        if name in ("tokenizer", "_processor"):
            raise AttributeError(name)
        return getattr(self._processor, name)


def process(processor: Any, model: PreTrainedModel, sample: Any, **options: Any) -> dict[str, Any]:
    """Prepare one image, video or sound for a model, as arrays without an axis for the batch."""
    made = processor(sample, return_tensors="np", **options)
    taken = inspect.signature(type(model).forward).parameters
    inputs = {name: value[0] for name, value in made.items() if name in taken}
    if not inputs:  # a processor of another family, which calls it otherwise
        inputs[model.main_input_name] = made[processor.model_input_names[0]][0]
    return inputs


def count_frames(config: PreTrainedConfig) -> int:
    """Count the frames of a video that an encoder sees."""
    return config.num_frames if hasattr(config, "num_frames") else config.frames_per_clip


def count_channels(config: PreTrainedConfig) -> int:
    """Count the channels that the images of an encoder have."""
    return config.num_channels if hasattr(config, "num_channels") else getattr(config, "in_chans", 3)


def prepare_for_training(model: PreTrainedModel, arguments: ModelArguments) -> Any:
    """Freeze what does not train, and add LoRA, as the arguments say.

    Returns:
        The model itself, or the `PeftModel` around it.
    """
    if arguments.freeze_host:
        if injected_encoders(model):
            freeze_host(model, train_head=True)
        else:
            model.requires_grad_(False)
            for parameter in head_parameters(model, [find_encoder(model)]):
                parameter.requires_grad_(True)
    return model if arguments.lora_rank is None else _with_lora(model, arguments.lora_rank)


def _with_lora(model: Any, rank: int) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError('--lora_rank needs peft. Run `pip install "hf-lam[peft]"`.') from error
    encoder = find_encoder(model)
    attentions = find_attentions(encoder)
    targets = [
        f"{name}.{child}"
        for name, module in model.named_modules()
        if module in attentions
        for child in _adapted_projections(module)
    ]
    body = body_around(model, encoder)
    head = {
        name: child
        for name, child in model.named_children()
        if all(module is not body for module in child.modules()) and _has_parameters(child) and body is not model
    }
    # A language model in it was trained before, as the encoder was; whole copies of it would part its tied weights.
    adapted = {name: _decoder_targets(name, child) for name, child in head.items()}
    targets += [target for of_one in adapted.values() for target in of_one]
    inside = [encoder, *(module for name in head if adapted[name] for module in head[name].modules())]
    own = [name for name in ("hf_lam", "pooler") if any(_has_parameters(getattr(x, name, None)) for x in inside)]
    kept = [*(name for name in head if not adapted[name]), *own]
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, modules_to_save=kept)
    return peft.get_peft_model(model, config)


def _decoder_targets(name: str, child: nn.Module) -> list[str]:
    """The projections of queries and values in a language model that is part of the head; none of anything else."""
    if not isinstance(child, PreTrainedModel):
        return []
    return [
        f"{name}.{path}"
        for path, module in child.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and path.rpartition(".")[2] in (*_ADAPTED, *_FUSED)
    ]


def _adapted_projections(attention: nn.Module) -> list[str]:
    """The projections of queries and values; all of an attention that has one for several of them."""
    linear = [name for name, module in attention.named_modules() if isinstance(module, nn.Linear)]
    # Attention without scores has no queries; what stands in for them has no weights.
    return [name for name in linear if name.rpartition(".")[2] in _ADAPTED] or linear


def _has_parameters(module: nn.Module | None) -> bool:
    return module is not None and next(module.parameters(), None) is not None


def mechanism_callbacks(model: nn.Module, arguments: ModelArguments, inputs: Any) -> list[TrainerCallback]:
    """The callbacks for training the model's mechanisms: annealing where they have it, and the log.

    Args:
        model: before training.
        arguments: say when annealing ends, and whether the model is hardened then.
        inputs: a small batch that the masks are looked at with.

    Raises:
        ValueError: if the model has nothing to anneal or to harden, and the arguments say so.
    """
    end = {} if arguments.annealing_end is None else {"end": arguments.annealing_end}
    annealing = [kind(**end) for kind in ANNEALING_CALLBACKS if kind.is_needed(model)]
    if arguments.harden:
        check_hardening(model)
    if end and not annealing:
        ways = ", ".join(kind.needs for kind in ANNEALING_CALLBACKS)
        raise ValueError(f"--annealing_end: nothing of this model is annealed. {ways[0].upper()}{ways[1:]}.")
    return [MechanismLoggingCallback(inputs), *annealing] if injected_encoders(model) else []


def finished(model: Any, arguments: ModelArguments) -> PreTrainedModel:
    """The trained model as it is saved: adapters merged, and an annealed mixture hardened, if that was asked for."""
    if arguments.lora_rank is not None:
        model = model.merge_and_unload()
    return harden(model) if arguments.harden else model


def load_teacher(arguments: ModelArguments, auto_class: Any) -> PreTrainedModel | None:
    """The model that `--teacher_model` names; None if it names none.

    Raises:
        ValueError: if its checkpoint lacks weights, such as those of the head.
    """
    if arguments.teacher_model is None:
        return None
    return load_whole(auto_class, arguments.teacher_model, arguments, of_model=False)


def load_whole(auto_class: Any, name: str, arguments: ModelArguments, **options: Any) -> Any:
    """A model that is used as it is; a `ValueError` if its checkpoint lacks weights, such as those of the head."""
    model, info = load_pretrained(auto_class, name, arguments, output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{name!r} was not trained for this task: it lacks {len(missing)} weights, such as {missing[0]}, which "
            "would be random."
        )
    return model
