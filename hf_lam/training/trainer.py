"""A `Trainer` that knows about mechanisms: their learning rate, a teacher, what a step costs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env
from huggingface_hub import EvalResult
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, logsigmoid
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy, has_length, unwrap_peft_model
from transformers.utils import logging

from ..flops import cost, example_inputs
from ..hub.cards import saved_model, task_of, write_card
from ..hub.finite_weights import refuse_infinite
from ..hub.folders import as_results, evaluated, logged_at
from ..modeling.hosts_hf_lam import read_whole_modules
from ..modeling.injection_hf_lam import injected_encoders, injection_of
from ..modeling.layers_hf_lam import container_of
from ..modeling.modeling_hf_lam import HfLamMixin, rename_legacy_keys
from .callbacks import ReportingCallback
from .checkpoints import last_checkpoint
from .lengths import Lengths
from .streams import WholePassCallback, position_in

logger = logging.get_logger(__name__)


@dataclass
class HfLamTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments`, and what [`HfLamTrainer`] takes besides.

    Args:
        mechanism_learning_rate: of the parameters that hf_lam added; `learning_rate` unless given. It follows the same
            schedule.
        distillation_weight: the share of the teacher's term in the loss, in [0, 1].
        distillation_temperature: what the logits of both are divided by in that term.
        hub_strategy: `"end"`, with which the model is pushed once. The others push checkpoints on the way, which hold
            pickles, and the weights without the code that loads them.

    Raises:
        ValueError: for a number out of its range, or another `hub_strategy` with `push_to_hub`.
    """

    mechanism_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the parameters that hf_lam added; --learning_rate unless given."},
    )
    distillation_weight: float = field(
        default=0.5, metadata={"help": "Share of the teacher's term in the loss, between 0 and 1."}
    )
    distillation_temperature: float = field(
        default=2.0, metadata={"help": "What the logits of model and teacher are divided by in the teacher's term."}
    )

    hub_strategy: str = field(
        default="end", metadata={"help": "When --push_to_hub pushes the model: at the end alone ('end')."}
    )

    def __post_init__(self) -> None:
        rate = self.mechanism_learning_rate
        if rate is not None and not 0 < rate < math.inf:
            raise ValueError(
                f"mechanism_learning_rate must be positive and finite, got {rate}; leave it out to train the "
                "mechanisms with learning_rate."
            )
        if not 0 <= self.distillation_weight <= 1:
            raise ValueError(
                "distillation_weight is the share of the teacher's term in the loss, between 0 and 1, got "
                f"{self.distillation_weight}."
            )
        if not 0 < self.distillation_temperature < math.inf:
            raise ValueError(
                f"distillation_temperature must be positive and finite, got {self.distillation_temperature}."
            )
        if self.push_to_hub and self.hub_strategy != HubStrategy.END:
            raise ValueError(
                f"hub_strategy {str(self.hub_strategy)!r} would push checkpoints on the way, with pickles and without "
                "the code that loads the model; leave it at 'end'."
            )
        super().__post_init__()


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, is_multi_label: bool = False
) -> Tensor:
    """How far a model's probabilities are from its teacher's, with both softened by a temperature.

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


class HfLamTrainer(Trainer):
    """transformers' `Trainer` for models with mechanisms; others are trained exactly as by `Trainer`.

    - `mechanism_learning_rate` puts the parameters that hf_lam added into parameter groups of their own, with the key
      `is_mechanism` and the other options of the groups that they come from.
    - With a `teacher`, the training loss is `(1 − w) · task + w · distillation_loss(…)`; the loss in evaluations stays
      that of the task. `w` and the temperature are `distillation_weight` and `distillation_temperature`.
    - `state.total_flos` is three times what `hf_lam.cost` counts in a forward pass (the backward pass takes two),
      without the teacher's. `Trainer`'s own number takes every pixel for a token, and does not see what views save.
      One sample stands for its batch. Where parameters are sharded (FSDP, DeepSpeed), a sample of the size that the
      model is configured for is counted before training, and scaled with the size of the inputs.
    - Callbacks of hf_lam that add to the logs come before those that write them (TensorBoard, …).
    - A checkpoint of a stock model is restored in full, also where its file has names of older releases (ViT).
    - Training ends with an error at a loss that is NaN or infinite; `Trainer` goes on, and logs it as 0.
    - Samples without a text have the length 0 where batches are grouped by length.
    - Labels that are NaN are not counted where a loss is a share of all labels of a step.

    Args:
        *args: what `Trainer` takes; `args` may be plain `TrainingArguments`, which have the defaults of
            [`HfLamTrainingArguments`].
        teacher: a model with the same labels, which classifies samples or tokens, as the model does. It is put into
            evaluation mode and on the device of the training, its parameters get no gradients, and it is neither saved
            nor wrapped. It gets the inputs that its `forward` names, without the labels.
        **kwargs: likewise.

    Raises:
        TypeError: if the teacher is not a transformers model.
        ValueError: if the teacher shares parameters with the model (one that `hf_lam.convert` was given does), or has
            other labels; for a `mechanism_learning_rate` without mechanisms that train, or with an optimizer whose
            groups are not made here.
        RuntimeError: while training, for a loss that is NaN or infinite.
    """

    # Writes the model card into a folder, instead of `Trainer`, also when the model is pushed.
    write_card: Callable[[str], None] | None = None

    def __init__(self, *args: Any, teacher: PreTrainedModel | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model = unwrap_peft_model(self.model)
        if isinstance(model, PreTrainedModel) and not isinstance(model, HfLamMixin):
            # `Trainer` restores a checkpoint, and the best one, by the names in its file. Where transformers keeps
            # those of older releases in it (ViT), it would restore nothing and say nothing. Our classes have this.
            model.register_load_state_dict_pre_hook(rename_legacy_keys)
        if self.train_dataset is not None and not has_length(self.train_dataset):
            self.add_callback(WholePassCallback)
        self._move_reporting_callbacks()
        # By the shapes of a sample: what a forward pass of it takes, None where that cannot be counted.
        self._flops: dict[Any, float | None] = {}
        self._check_mechanism_learning_rate()
        self.teacher = teacher
        if teacher is not None:
            _check_teacher(unwrap_peft_model(self.model), teacher)
            teacher.eval().requires_grad_(False)
            if getattr(teacher, "hf_device_map", None) is None:
                self._move_model_to_device(teacher, self.args.device)
            # Both terms are then means over a batch, which `training_step` divides by the accumulation steps.
            self.model_accepts_loss_kwargs = False

    def _option(self, name: str) -> Any:
        return getattr(self.args, name, getattr(HfLamTrainingArguments, name))

    # --- shards on the CPU -------------------------------------------------------------------------------------------

    def create_accelerator_and_postprocess(self) -> None:
        """`Trainer`'s, and FSDP on the CPU too, where accelerate would go on with DDP without a word."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if wants_fsdp(self.args) and state.distributed_type == DistributedType.MULTI_CPU:
            plugin = FullyShardedDataParallelPlugin(**(self.args.fsdp_plugin_args or {}))
            if state.mixed_precision != "no":
                plugin.set_mixed_precision(state.mixed_precision)
            state.fsdp_plugin, state.distributed_type = plugin, DistributedType.FSDP
            # Every state that is looked up later starts from this.
            PartialState().distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True
        if self.is_fsdp_enabled:
            _choose_sharded_layers(state.fsdp_plugin, unwrap_peft_model(self.model))

    # --- the learning rate of the mechanisms -------------------------------------------------------------------------

    def _check_mechanism_learning_rate(self) -> None:
        if self._option("mechanism_learning_rate") is None:
            return
        if self.optimizer is not None:
            raise ValueError(
                "mechanism_learning_rate cannot change an optimizer that was given with optimizers=; give its groups "
                "their learning rates, or let the trainer make it."
            )
        if not _trained_mechanisms(self.model):
            raise ValueError(
                f"mechanism_learning_rate was given, but {type(self.model).__name__} has no parameters of mechanisms "
                "that train: attention views have none, others may be frozen, and PEFT needs "
                "modules_to_save=['hf_lam']. Leave the option out."
            )
        if self.is_deepspeed_enabled:
            config = self.accelerator.state.deepspeed_plugin.hf_ds_config.config
            own = sorted({"optimizer", "scheduler"} & config.keys())
            if own:
                raise ValueError(
                    f"mechanism_learning_rate has no effect with the {' and '.join(own)} of a DeepSpeed "
                    "configuration; leave them out of it, so that the trainer makes them."
                )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """`Trainer.create_optimizer`, and groups of their own for the mechanisms if they have a learning rate."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        rate = self._option("mechanism_learning_rate")
        if rate is None or not is_new:
            return optimizer
        trained = {id(parameter) for parameter in _trained_mechanisms(self.model if model is None else model)}
        of_mechanisms = []
        for group in optimizer.param_groups:
            own = [parameter for parameter in group["params"] if id(parameter) in trained]
            if own:
                of_mechanisms.append({**group, "params": own, "lr": rate, "is_mechanism": True})
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in trained]
        if not of_mechanisms:
            raise ValueError(
                f"mechanism_learning_rate has no effect with {type(optimizer).__name__}, whose parameter groups do "
                "not hold the parameters of the mechanisms. Use another optim, with FSDP fsdp_use_orig_params, or "
                "leave the option out."
            )
        # The host's come first: `Trainer` logs the learning rate of the first group.
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]] + of_mechanisms
        return optimizer

    # --- the teacher -------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """`Trainer.compute_loss`, and in training the teacher's share of it."""
        if self.teacher is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        for_teacher, labels = self._inputs_of(self.teacher, inputs), inputs.get("labels")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        with torch.no_grad(), self.accelerator.autocast():
            teacher_logits = self.teacher(**for_teacher).logits
        # Known after the first loss at the latest, where a model tells it from its labels.
        is_multi_label = unwrap_peft_model(self.model).config.problem_type == "multi_label_classification"
        pair = _at_labels(outputs.logits, teacher_logits, labels)
        term = distillation_loss(*pair, self._option("distillation_temperature"), is_multi_label)
        if self.compute_loss_func is not None:
            # Its loss is one share of the accumulated batch already, and `training_step` divides no more.
            term = term / self.current_gradient_accumulation_steps
        weight = self._option("distillation_weight")
        loss = (1 - weight) * loss + weight * term
        return (loss, outputs) if return_outputs else loss

    def _inputs_of(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What of a batch `model` takes, without labels."""
        known = inspect.signature(model.forward).parameters
        return {
            name: value
            for name, value in inputs.items()
            if name in known and name not in ("labels", "return_loss", *self.label_names)
        }

    # --- the loss ----------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """`Trainer`'s, which takes only -100 for no label; here, NaN is none either."""
        return super()._get_num_items_in_batch([_without_nan(batch) for batch in batch_samples], device)

    def take_loss_for_a_mean(self) -> None:
        """Divide the loss of a stock model by the accumulation steps, as that of a converted one is.

        Stock classification models take the number of samples that a step is made of and do not divide by it, or only
        for some kinds of labels, while `Trainer` believes that they do: their gradients grow with the number of
        accumulation steps, and of processes. Models that say themselves what they do (`accepts_loss_kwargs`) stay as
        they are.
        """
        says = getattr(unwrap_peft_model(self.model), "accepts_loss_kwargs", None)
        if says is not None or not self.model_accepts_loss_kwargs:
            return
        self.model_accepts_loss_kwargs = False
        if self.args.gradient_accumulation_steps > 1 or self.args.world_size > 1:
            logger.warning(
                "The loss of this stock model is divided by the gradient accumulation steps, as that of a converted "
                "model is, so that the two can be compared. Trainer alone would multiply the gradients by "
                f"{self.args.gradient_accumulation_steps * self.args.world_size} (steps times processes)."
            )

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """`Trainer.training_step`; a `RuntimeError` if the loss is NaN or infinite."""
        loss = super().training_step(*args, **kwargs)
        # On an accelerator, looking at the loss waits for it. With `logging_nan_inf_filter` Trainer waits right after
        # this anyway; without, what is not finite stays in the sum that `log` gets.
        is_awaited = self.args.logging_nan_inf_filter and loss.device.type != "xla"
        if (is_awaited or loss.device.type == "cpu") and not loss.isfinite().all():
            self._refuse_loss(loss.item(), f"step {self.state.global_step + 1}")
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """`Trainer.log`; a `RuntimeError` if the training loss among the logs is NaN or infinite."""
        loss = logs.get("loss", logs.get("train_loss"))
        if loss is not None and not math.isfinite(loss):
            self._refuse_loss(loss, f"one of the steps up to {self.state.global_step}")
        super().log(logs, *args, **kwargs)

    def _refuse_loss(self, loss: float, step: str) -> None:
        raise RuntimeError(
            f"the training loss of {step} is {loss}, and nothing is learnt from there on. Look for values that are "
            "NaN or infinite in the inputs and labels, lower learning_rate, or train in fp32 or bf16 instead of fp16."
        )

    # --- batches of texts of one length ------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super()._get_train_sampler(
            self._measured(self.train_dataset if train_dataset is None else train_dataset)
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return super()._get_eval_sampler(self._measured(eval_dataset))

    def _measured(self, dataset: Any) -> Any:
        """What `Trainer` takes the lengths of samples from, where it groups them."""
        if self.args.train_sampling_strategy not in ("group_by_length", "batch_rebalance") or not has_length(dataset):
            return dataset
        names = getattr(self.processing_class, "model_input_names", None) or ["input_ids"]
        return Lengths(dataset, names[0], self.args.length_column_name)

    # --- what a step costs -------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """`Trainer.train`; `resume_from_checkpoint=True` is the last checkpoint that was written to its end."""
        if resume_from_checkpoint is True:
            last = last_checkpoint(Path(str(self.args.output_dir)))
            if last is None:
                raise ValueError(
                    f"there is no checkpoint in {str(self.args.output_dir)!r} that was written to its end: leave out "
                    "resume_from_checkpoint, or name one."
                )
            resume_from_checkpoint = str(last)
        if self._is_sharded and not self._flops:
            found = [self._count()]
            if dist.is_initialized():
                # The first process has the parameters, the others may not.
                dist.broadcast_object_list(found)
            self._flops[None] = found[0]
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """FLOPs of a training step on a batch, three times those of a forward pass (see the class)."""
        flops = self._count_sharded(inputs) if self._is_sharded else self._count_batch(inputs)
        return super().floating_point_ops(inputs) if flops is None else int(3 * flops)

    @property
    def _is_sharded(self) -> bool:
        """Whether a forward pass of one process waits for the others."""
        return bool(
            self.is_fsdp_enabled
            or self.is_fsdp_xla_enabled
            or self.is_deepspeed_enabled
            or getattr(self, "is_distributed_loading_by_transformers", False)
        )

    def _count_batch(self, inputs: Mapping[str, Any]) -> float | None:
        model = unwrap_peft_model(self.model)
        tensors = {
            name: value
            for name, value in self._inputs_of(model, inputs).items()
            if isinstance(value, Tensor) and value.ndim
        }
        if not tensors:
            return None
        # Views that were annealed cost less from one step to the next.
        mechanisms = [repr(injection_of(base).configs) for base in injected_encoders(model)]
        key = (*mechanisms, *((name, value.shape[1:]) for name, value in tensors.items()))
        if key not in self._flops:
            self._flops[key] = self._count({name: value[:1] for name, value in tensors.items()})
        flops = self._flops[key]
        return None if flops is None else flops * len(next(iter(tensors.values())))

    def _count_sharded(self, inputs: Mapping[str, Any]) -> float | None:
        flops = self._flops.get(None)
        values = inputs.get(getattr(self.model, "main_input_name", "input_ids"))
        return None if flops is None or values is None else flops * values.numel()

    def _count(self, inputs: Mapping[str, Any] | None = None) -> float | None:
        """FLOPs of a forward pass; without inputs, those of an example for every element of the main input."""
        model = unwrap_peft_model(self.model)
        try:
            if inputs is not None:
                return cost(model, inputs).flops
            example = example_inputs(model)
            return cost(model, example).flops / example[model.main_input_name].numel()
        except Exception as error:  # whatever it is: a number in the logs is no reason to end a training
            logger.warning_once(f"total_flos is Trainer's own estimate, hf_lam.cost cannot count this model: {error}")
            return None

    # --- resuming ----------------------------------------------------------------------------------------------------

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """`Trainer`'s, and of a stream the pass that a checkpoint was in, where it takes all steps for one pass."""
        trained = super()._init_training_state(*args, **kwargs)
        checkpoint = kwargs.get("resume_from_checkpoint", args[3] if len(args) > 3 else None)
        if checkpoint is None or not self.state.global_step or has_length(self.train_dataset):
            return trained
        passes, batches = position_in(checkpoint, self.args.gradient_accumulation_steps)
        return passes, 0 if self.args.ignore_data_skip else batches

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """`Trainer`'s, but nothing where all steps are done: resumed from the last one, it would make one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*args, **kwargs)

    # --- what is saved and pushed ------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            # A pickle of the training arguments, `hub_token` among them, that nothing reads and a push would publish.
            Path(str(output_dir or self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.push_to_hub`, which saving does too with `push_to_hub`; weights must be numbers.

        Raises:
            ValueError: for NaN or infinity in the weights, before anything is sent.
        """
        model = self.accelerator.unwrap_model(self.model)
        refuse_infinite({**dict(model.named_parameters()), **dict(model.named_buffers())})
        return super().push_to_hub(*args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card of hf_lam, with what `Trainer` says about the run; `write_card` writes it, if it is there.

        Of models without code of hf_lam, and of PEFT's, it is `Trainer.create_model_card`'s.
        """
        if self.write_card is not None:
            if self.is_world_process_zero():
                self.write_card(str(self.args.output_dir))
            return
        super().create_model_card(*args, **kwargs)
        model: Any = self.model if self._is_sharded else saved_model(self.model)
        # By what it has: it may be of another copy of the code.
        has_code = isinstance(model, PreTrainedModel) and hasattr(model.config, "auto_classes")
        if self.is_world_process_zero() and has_code:
            folder = Path(str(self.args.output_dir))
            repository = getattr(self, "hub_model_id", None) or self.args.hub_model_id
            name = kwargs.get("model_name") or str(repository or folder.resolve().name).split("/")[-1]
            write_card(
                model,
                folder,
                name=name,
                repository=repository,
                processor=self.processing_class,
                results=self._results(kwargs.get("dataset_tags") or kwargs.get("dataset")),
            )

    def _results(self, dataset: Any) -> list[EvalResult]:
        """What was measured on the model as it is: after the last step, or at the best one that was loaded again."""
        state = self.state
        step = state.best_global_step if self.args.load_best_model_at_end else state.global_step
        name = dataset if isinstance(dataset, str) else next(iter(dataset or ()), None)
        return as_results(evaluated(logged_at(state.log_history, step or 0)), name, task_of(self.model))

    # --- the order of the callbacks ----------------------------------------------------------------------------------

    def add_callback(self, callback: type[TrainerCallback] | TrainerCallback) -> None:
        """`Trainer.add_callback`; one that adds to the logs comes before those that write them."""
        super().add_callback(callback)
        self._move_reporting_callbacks()

    def _move_reporting_callbacks(self) -> None:
        self.callback_handler.callbacks.sort(key=lambda callback: not isinstance(callback, ReportingCallback))


def wants_fsdp(args: Any) -> bool:
    """Whether FSDP was asked for, by the training arguments or by `accelerate launch`, which sets the environment."""
    return args.fsdp_plugin_args is not None or parse_flag_from_env("ACCELERATE_USE_FSDP")


def _choose_sharded_layers(plugin: Any, model: Any) -> None:
    """Of the modules that a model names for FSDP, leave out those around its input embeddings.

    accelerate makes the input embeddings a group of their own, and fails where they are in one already (BERT, ViT).
    """
    if plugin.transformer_cls_names_to_wrap is None:
        inputs = model.get_input_embeddings()
        around = {type(module).__name__ for module in model.modules() if any(x is inputs for x in module.modules())}
        plugin.transformer_cls_names_to_wrap = sorted(set(read_whole_modules(model)) - around)


def _trained_mechanisms(model: Any) -> list[nn.Parameter]:
    return [
        parameter
        for base in injected_encoders(model)
        for parameter in container_of(base).parameters()
        if parameter.requires_grad
    ]


def _without_nan(batch: Any) -> Any:
    """A batch whose labels, if they are numbers, say -100 where they are NaN, for counting alone."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor) or not labels.is_floating_point():
        return batch
    return {**batch, "labels": torch.where(labels.isnan(), -100, 0)}


def _at_labels(student: Tensor, teacher: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logits of both as `(N, C)`: of tokens, those that have a label."""
    if student.ndim != 3 or student.shape != teacher.shape or labels is None:
        return student, teacher
    is_known = ~labels.isnan() if labels.is_floating_point() else labels != -100
    is_known = is_known.all(-1) if is_known.ndim == 3 else is_known
    return student[is_known], teacher[is_known]


def _check_teacher(student: Any, teacher: Any) -> None:
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
    if "labels" not in inspect.signature(type(student).forward).parameters:
        raise ValueError(
            f"a teacher is for classification, and {type(student).__name__} has no labels. Leave the teacher out, or "
            "train a head that has classes."
        )
    ours: Any = student.config
    theirs: Any = teacher.config
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
