"""A `Trainer` that knows about mechanisms: their learning rate, a teacher, what a step costs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env
from huggingface_hub import EvalResult
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
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
from ..observing import fused_tokens_of
from ..parameters import list_carriers
from .callbacks import ReportingCallback
from .checkpoints import last_checkpoint
from .distillation import (
    at_labels,
    check_teacher,
    distillation_loss,
    find_tokens,
    hidden_distillation_loss,
    hidden_states_of,
    takes_labels,
)
from .lengths import Lengths, SeededLengthSampler
from .streams import WholePassCallback, position_in

logger = logging.get_logger(__name__)


@dataclass
class HfLamTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the further options of [`HfLamTrainer`].

    Args:
        mechanism_learning_rate: learning rate of the parameters that hf_lam added; `learning_rate` unless given. It
            follows the same schedule.
        distillation_weight: share of the teacher's term in the loss, in [0, 1].
        distillation_temperature: temperature that divides the logits of both in that term.
        hidden_distillation_weight: weight of a term for the hidden states, which is added to the loss; 0 for none.
        hub_strategy: `"end"`, which pushes the model once. The others push checkpoints on the way, which hold pickles,
            and the weights without the code that loads them.

    Raises:
        ValueError: for a number out of its range, or another `hub_strategy` with `push_to_hub`.
    """

    mechanism_learning_rate: float | None = field(
        default=None,
        metadata={"help": "The learning rate of the parameters that hf_lam added. Unless given, --learning_rate."},
    )
    distillation_weight: float = field(
        default=0.5, metadata={"help": "The share of the teacher's term in the loss, between 0 and 1."}
    )
    distillation_temperature: float = field(
        default=2.0,
        metadata={"help": "The temperature that divides the logits of model and teacher in the teacher's term."},
    )
    hidden_distillation_weight: float = field(
        default=0.0,
        metadata={
            "help": "The weight of an additional term in the loss, the distance between the hidden states of model "
            "and teacher in every layer. The teacher must have as many layers of the same width. 0 leaves the term "
            "out."
        },
    )

    hub_strategy: str = field(
        default="end",
        metadata={"help": "When --push_to_hub pushes the model. Only 'end' is supported: once, after training."},
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
        if not 0 <= self.hidden_distillation_weight < math.inf:
            raise ValueError(
                "hidden_distillation_weight must be finite and not below 0, got "
                f"{self.hidden_distillation_weight}; 0 leaves hidden states alone."
            )
        if self.push_to_hub and self.hub_strategy != HubStrategy.END:
            raise ValueError(
                f"hub_strategy {str(self.hub_strategy)!r} would push checkpoints on the way, with pickles and without "
                "the code that loads the model; leave it at 'end'."
            )
        super().__post_init__()


class _Untokenized:
    """A processor without a tokenizer, while a model trains, which transformers does not take for a processor.

    `Trainer` gives the special tokens of a processor's tokenizer to the model, and fails where there is none.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


class HfLamTrainer(Trainer):
    """transformers' `Trainer` for models with mechanisms; others are trained exactly as by `Trainer`.

    - `mechanism_learning_rate` puts the parameters that hf_lam added into parameter groups of their own, with the key
      `is_mechanism` and the other options of the groups that they come from.
    - With a `teacher`, the training loss is `(1 − w) · task + w · distillation_loss(…) + h ·
      hidden_distillation_loss(…)`; the loss in evaluations stays that of the task. `w`, `h` and the temperature are
      `distillation_weight`, `hidden_distillation_weight` and `distillation_temperature`. A model without labels, such
      as an encoder alone, learns from the hidden states only.
    - `state.total_flos` is three times what `hf_lam.cost` counts in a forward pass (the backward pass takes two),
      without the teacher's. `Trainer`'s own number takes every pixel for a token, and does not see what views save.
      One sample stands for its batch. Where parameters are sharded (FSDP, DeepSpeed), a sample of the size that the
      model is configured for is counted before training, and scaled with the size of the inputs.
    - Callbacks of hf_lam that add to the logs come before those that write them (TensorBoard, …).
    - A checkpoint of a stock model is restored in full, also where its file has names of older releases (ViT).
    - Training ends with an error at a loss that is NaN or infinite; `Trainer` goes on, and logs it as 0.
    - Where batches are grouped by length, samples without a text have the length 0, and the order is that of the seed
      (`data_seed`, or else `seed`) and the epoch, whatever dropout and new weights have drawn before.
    - Labels that are NaN are not counted where a loss is a share of all labels of a step.
    - A processor may be one without a tokenizer.
    - A model of moments is evaluated with windows, scores of clips, or both, whichever the samples have.

    Args:
        *args: positional arguments of `Trainer`; `args` may be plain `TrainingArguments`, which have the defaults of
            [`HfLamTrainingArguments`].
        teacher: model with the same labels, which classifies samples or tokens, as the model does; for hidden states,
            one with as many layers of the same width, and the same tokens. It is put into evaluation mode and on the
            device of the training, its parameters get no gradients, and it is neither saved nor wrapped. It gets the
            inputs that its `forward` names, without the labels.
        **kwargs: keyword arguments of `Trainer`.

    Raises:
        TypeError: if the teacher is not a transformers model.
        ValueError: if the teacher shares parameters with the model (one that `hf_lam.convert` was given does), or has
            other labels, or another number or width of layers where hidden states are compared; for a
            `mechanism_learning_rate` without mechanisms that train, or with an optimizer whose
            groups are not made here.
        RuntimeError: while training, for a loss that is NaN or infinite.
    """

    # Writes the model card into a folder, instead of `Trainer`, also when the model is pushed.
    write_card: Callable[[str], None] | None = None

    _length_sampler: SeededLengthSampler | None = None

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
            check_teacher(unwrap_peft_model(self.model), teacher, self._option("hidden_distillation_weight"))
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
        ours: Any = unwrap_peft_model(self.accelerator.unwrap_model(model))
        for_teacher, labels = self._inputs_of(self.teacher, inputs), inputs.get("labels")
        hidden_weight, loss = self._option("hidden_distillation_weight"), None
        asked = {"output_hidden_states": True} if hidden_weight else {}
        fused_of: Any = fused_tokens_of(ours.base_model) if hidden_weight else nullcontext([])
        with fused_of as fused:
            if takes_labels(ours):
                loss, outputs = super().compute_loss(model, {**inputs, **asked}, True, num_items_in_batch)
            else:
                outputs = model(**inputs, **asked)
        with torch.no_grad(), self.accelerator.autocast():
            taught = self.teacher(**for_teacher, **asked)
        share = 1.0
        if self.compute_loss_func is not None:
            # Its loss is one share of the accumulated batch already, and `training_step` divides no more.
            share = 1 / self.current_gradient_accumulation_steps
        weight = self._option("distillation_weight")
        if loss is not None and weight:
            # Known after the first loss at the latest, where a model tells it from its labels.
            is_multi_label = ours.config.problem_type == "multi_label_classification"
            pair = at_labels(outputs.logits, taught.logits, labels)
            term = distillation_loss(*pair, self._option("distillation_temperature"), is_multi_label)
            loss = (1 - weight) * loss + weight * share * term
        if hidden_weight:
            theirs = hidden_states_of(taught)
            length = theirs[0].shape[1]
            counts = fused[0].counts if fused else find_tokens(ours, inputs, length)
            term = hidden_distillation_loss(hidden_states_of(outputs, length), theirs, counts)
            term = hidden_weight * share * term
            loss = term if loss is None else loss + term
        return (loss, outputs) if return_outputs else loss

    def _inputs_of(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Select the inputs of a batch that `model` takes, without labels."""
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

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """`Trainer.prediction_step`, which takes a sample for one without labels if any of them is not there.

        Where a model can do without some of its labels (`optional_labels`), those that there are count.
        """
        names = self.label_names
        optional = getattr(unwrap_peft_model(self.accelerator.unwrap_model(self.model)), "optional_labels", ())
        self.label_names = [x for x in names if x not in optional or inputs.get(x) is not None] or names
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self.label_names = names

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
        dataset = self._measured(self.train_dataset if train_dataset is None else train_dataset)
        sampler = super()._get_train_sampler(dataset)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            sampler = self._length_sampler = SeededLengthSampler(sampler, seed)
        return sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return super()._get_eval_sampler(self._measured(eval_dataset))

    def _measured(self, dataset: Any) -> Any:
        """The data that `Trainer` takes the lengths of samples from, where it groups them."""
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
        processor: Any = self.processing_class
        if isinstance(processor, ProcessorMixin) and getattr(processor, "tokenizer", self) is None:
            self.processing_class = _Untokenized(processor)  # type: ignore[assignment]
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.processing_class = processor

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
        if self._length_sampler is not None:
            # Resumed in several processes, data loaders do not hand it on to the sampler.
            self._length_sampler.set_epoch(kwargs["epoch"])
        return super()._run_epoch(*args, **kwargs)

    # --- what is saved and pushed ------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            # A pickle of the training arguments, `hub_token` among them, that nothing reads and a push would publish.
            Path(str(output_dir or self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Push as `Trainer.push_to_hub` does, also after saving with `push_to_hub`; weights must be numbers.

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
        """The results for the model as it is: after the last step, or at the best one that was loaded again."""
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
    """Choose the modules for FSDP that a model names, without those around its input embeddings.

    accelerate makes the input embeddings a group of their own, and fails where they are in one already (BERT, ViT).
    """
    if plugin.transformer_cls_names_to_wrap is None:
        inputs = model.get_input_embeddings()
        around = {type(module).__name__ for module in model.modules() if any(x is inputs for x in module.modules())}
        plugin.transformer_cls_names_to_wrap = sorted(set(read_whole_modules(model)) - around)


def _trained_mechanisms(model: Any) -> list[nn.Parameter]:
    return [
        parameter
        for base in list_carriers(model)
        for parameter in container_of(base).parameters()
        if parameter.requires_grad
    ]


def _without_nan(batch: Any) -> Any:
    """A batch whose labels, if they are numbers, say -100 where they are NaN, for counting alone."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor) or not labels.is_floating_point():
        return batch
    return {**batch, "labels": torch.where(labels.isnan(), -100, 0)}
