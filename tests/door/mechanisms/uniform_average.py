"""A replacement of the scores: every token gets the average of all values that are not padding."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from hf_lam import Attention, LayerInput, Mechanism, MechanismConfig, register_mechanism
from hf_lam.modeling.padding_hf_lam import valid_tokens


@dataclass(frozen=True)
class UniformAverageConfig(MechanismConfig):
    change = "replacement"
    title = "Uniform average"

    def explain_change(self, model: str) -> str:
        return f"UniformAverageConfig() averages all tokens: the outputs of {model} change at once."


class Average(NamedTuple):
    """The attention weights of every sample, `(B, 1, 1, L)` or `(1, 1, 1, L)`."""

    weights: Tensor

    def attend(self, attention: Attention) -> tuple[Tensor, Tensor | None]:
        batch, heads, length, _ = attention.value.shape
        weights = self.weights.to(attention.value).expand(batch, heads, length, -1)
        return weights @ attention.value, weights if attention.want_weights else None

    def count_flops(self, attention: Attention) -> tuple[int, ...]:
        batch, heads, length, size = attention.value.shape
        return (2 * batch * length * length * size,) * heads


class UniformAverage(Mechanism):
    def replace_scores(self, given: LayerInput) -> Average:
        batch, length, _ = given.hidden_states.shape
        weights = given.hidden_states.new_ones(batch, 1, 1, length)
        if given.padding is not None:
            weights = weights * valid_tokens(given.padding, batch, length)[:, None, None]
        return Average(weights / weights.sum(-1, keepdim=True).clamp(min=1))


register_mechanism("uniform_average", UniformAverageConfig, UniformAverage)
