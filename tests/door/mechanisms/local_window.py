"""A pattern: every token sees those at most `reach` places away, and all of them unless given."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from hf_lam import Attention, Mechanism, MechanismConfig, PassStart, ScoreChange, register_mechanism
from hf_lam.modeling.attention_pass_hf_lam import attend_changed


@dataclass(frozen=True)
class LocalWindowConfig(MechanismConfig):
    reach: int | None = None

    change = "pattern"
    title = "Local window"
    needs_places = True

    def explain_change(self, model: str) -> str | None:
        if self.reach is None:
            return None
        return f"LocalWindowConfig(reach={self.reach}) hides tokens: the outputs of {model} change at once."


class Window(NamedTuple):
    """Which token sees which in one pass."""

    reach: int
    heads: int
    length: int

    def seen(self, token: int, length: int) -> slice:
        return slice(max(0, token - self.reach), min(length, token + self.reach + 1))

    def attend(self, attention: Attention, change: ScoreChange) -> tuple[Tensor, Tensor | None]:
        length = attention.query.shape[2]
        rows = [self.attend_one(attention, change, token) for token in range(length)]
        context = torch.cat([row for row, _ in rows], dim=2)
        if not attention.want_weights:
            return context, None
        spans = [self.seen(token, length) for token in range(length)]
        maps = [pad(w, (span.start, length - span.stop)) for (_, w), span in zip(rows, spans, strict=True)]
        return context, torch.cat(maps, dim=2)

    def attend_one(self, attention: Attention, change: ScoreChange, token: int) -> tuple[Tensor, Tensor | None]:
        """What one query gets, computed from the keys that it sees, and from no other."""
        length = attention.query.shape[2]
        keys = self.seen(token, length)

        def cut(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            return tensor.expand(*tensor.shape[:2], length, length)[:, :, token : token + 1, keys]

        one = attention._replace(
            query=attention.query[:, :, token : token + 1],
            key=attention.key[:, :, keys],
            value=attention.value[:, :, keys],
            padding=cut(attention.padding),
        )
        return attend_changed(one, ScoreChange(cut(change.factor), cut(change.addend)))

    def count_pairs(self, layer: int, past: int) -> tuple[int, ...]:
        spans = [self.seen(token, self.length) for token in range(self.length)]
        return (sum(span.stop - span.start for span in spans),) * self.heads

    def mix_appended(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


class LocalWindow(Mechanism):
    def __init__(self, config: LocalWindowConfig, host: Any) -> None:
        super().__init__(config, host)
        self.heads, self.length = host.num_heads, host.tokens.length

    def begin(self, start: PassStart) -> Window:
        return Window(self.length if self.config.reach is None else self.config.reach, self.heads, self.length)


register_mechanism("local_window", LocalWindowConfig, LocalWindow)
