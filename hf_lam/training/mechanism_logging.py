"""Values of the mechanisms in the logs of a training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from ..facts import LayerFacts, list_facts, list_facts_of
from ..modeling.injection_hf_lam import InjectedEncoder, injected_encoders, injection_of, mechanism_of
from ..modeling.mechanism_hf_lam import overrides
from .callbacks import ReportingCallback


class MechanismLoggingCallback(ReportingCallback):
    """Log what the mechanisms do, with every training log (those that hold `loss`).

    These are the facts that a mechanism names in `Mechanism.logged`, for each layer, or once where all layers share
    the mechanism's change (then without `/layer_{i}`):

    - a number as `{mechanism}/{fact}/layer_{i}`, such as `lam/mask_spread/layer_0`: the standard deviation of a
      learnable mask's entries for `inputs`, over all samples, heads and pairs of real tokens: padding is left out, and
      of a fusion model the modalities that a sample does not have. It is 0 as long as all entries are 1.
    - a number for each head as `{mechanism}/{fact}/layer_{i}/head_{h}`, such as `stt/mixing/layer_0/head_1`: `λ`, the
      share of the synthetic map in a mixture, from 0 to 1.
    - of a text for each head how many there are, as `{mechanism}/{fact}/layer_{i}/{text}`, such as
      `locomt/views/layer_0/self`: how many heads have that view in the table of views; while annealing, too, when they
      still see more. These are there in the first log, and again whenever any of them has changed.

    And `mechanism_learning_rate`: the learning rate of that step of the optimizer's group with `"is_mechanism": True`,
    where it differs from that of others.

    Nothing is added for a model without mechanisms. Facts that depend on the input, as those of masks do, cost a
    forward pass with `inputs` in evaluation mode, which draws no random numbers, so a training with this callback is
    the same as without. With FSDP all processes have to take part in it, and they do: every one of them logs.

    The entries are added in `state.log_history` and for the callbacks that come after this one; with `HfLamTrainer`
    also to `report_to`, whose callbacks come before otherwise.

    Args:
        inputs: one batch, the same for the whole training: what the model is called with, a few samples are enough.
            Only mechanisms whose facts depend on the input need it, such as learnable attention masks.

    Raises:
        TypeError: if `inputs` is no mapping.
        ValueError: when training begins, if a mechanism needs inputs and none were given, or the model has mechanisms
            in several encoders.
    """

    def __init__(self, inputs: Mapping[str, Any] | None = None) -> None:
        if inputs is not None and not isinstance(inputs, Mapping):
            raise TypeError(
                "inputs must be a mapping that the model is called with, such as {'input_ids': ...}, got "
                f"{type(inputs).__name__}."
            )
        self.inputs = inputs
        self._learning_rate: float | None = None
        self._counts: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model: nn.Module = kwargs["model"]
        encoders = injected_encoders(model)
        if len(encoders) > 1:
            raise ValueError(
                f"{type(model).__name__} has hf_lam mechanisms in {len(encoders)} encoders, MechanismLoggingCallback "
                "logs those of one."
            )
        depending = [name for base in encoders for name in _depend_on_inputs(base)]
        if self.inputs is None and depending:
            raise ValueError(
                f"{type(model).__name__} has {' and '.join(depending)}, and what that does depends on the input: give "
                "MechanismLoggingCallback(inputs=...) a few samples as the model is called with them."
            )
        self._counts = {}
        # Inputs that do not fit should show now, and not at the first log.
        self._read(model)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Where `Trainer` takes its `learning_rate`, too: the scheduler has gone on by the time of the log.
        groups = kwargs["optimizer"].param_groups
        # Those that the schedule starts from: during a warmup all are 0 at first.
        peaks = {group.get("initial_lr", group["lr"]) for group in groups}
        rates = [float(group["lr"]) for group in groups if group.get("is_mechanism")]
        self._learning_rate = rates[0] if rates and len(peaks) > 1 else None

    def entries(self, state: TrainerState, logs: dict[str, Any], **kwargs: Any) -> dict[str, float]:
        if "loss" not in logs:
            return {}
        found, counts = self._read(kwargs["model"])
        if counts != self._counts:
            found |= counts
            self._counts = counts
        if self._learning_rate is not None:
            found["mechanism_learning_rate"] = self._learning_rate
        return found

    def _read(self, model: nn.Module) -> tuple[dict[str, float], dict[str, float]]:
        """The numbers, and how often there is which text."""
        numbers: dict[str, float] = {}
        counts: dict[str, float] = {}
        for base in injected_encoders(model):
            layers = list_facts(base)
            for layer, more in zip(layers, self._read_of_inputs(model, base), strict=False):
                for name, facts in more.items():
                    layer[name] = layer[name] | facts
            for name, config in injection_of(base).configs.items():
                for index, layer in enumerate(layers[:1] if config.is_shared else layers):
                    for fact in mechanism_of(base, name).logged:
                        if fact in layer[name]:
                            place = f"{name}/{fact}" if config.is_shared else f"{name}/{fact}/layer_{index}"
                            _add(place, layer[name][fact], numbers, counts)
        return numbers, counts

    def _read_of_inputs(self, model: nn.Module, base: InjectedEncoder) -> list[LayerFacts]:
        if self.inputs is None:
            return []
        # As Trainer does for DeepSpeed, whose models are in half precision as a whole.
        inputs = {
            name: x.to(base.dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
            for name, x in self.inputs.items()
        }
        return list_facts_of(model, base, inputs)


def _depend_on_inputs(base: InjectedEncoder) -> list[str]:
    """The names of the mechanisms that log what depends on the input."""
    injection, found = injection_of(base), []
    for name in injection.order:
        mechanism = mechanism_of(base, name)
        if overrides(mechanism, "list_facts_of") and not set(mechanism.logged) <= set(mechanism.list_facts(0)):
            found.append(type(injection.configs[name]).__name__)
    return found


def _add(place: str, value: Any, numbers: dict[str, float], counts: dict[str, float]) -> None:
    """One fact to the entries: a number, or numbers or texts by head."""
    if not isinstance(value, (list, tuple)):
        numbers[place] = value
    elif all(isinstance(each, str) for each in value):
        counts.update({f"{place}/{text}": number for text, number in Counter(value).items()})
    else:
        numbers.update({f"{place}/head_{head}": each for head, each in enumerate(value)})
