"""Start a mixture's synthetic maps from the attention that the checkpoint has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling.attention_pass_hf_lam import attend_changed
from ..modeling.injection_hf_lam import InjectedEncoder, injection_of, mechanism_of
from ..modeling.mechanism_hf_lam import Attended, Attention, ScoreChange, compose
from ..modeling.numerics_hf_lam import without_autocast
from ..modeling.padding_hf_lam import additive
from ..modeling.stt_attention_hf_lam import log_synthetic_map
from ..modeling.stt_config_hf_lam import SttConfig
from ..observing import evaluation_mode, observing, run_batches, tokens_of
from .hardening import encoders_with_mixture


@dataclass(frozen=True)
class FitReport:
    """The result of [`fit_synthesizers`].

    Attributes:
        kl_before: KL divergence of each layer, from the checkpoint's attention to the synthetic map, in nats: a mean
            over heads and query rows that are not padding.
        kl_after: the same after fitting, over the same batches.
        samples: number of samples in one epoch.
        epochs: number of times that each was used.
    """

    kl_before: list[float]
    kl_after: list[float]
    samples: int
    epochs: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.samples} samples, {self.epochs} epochs; KL divergence in nats a query",
            "layer  before   after",
        ]
        for layer, (before, after) in enumerate(zip(self.kl_before, self.kl_after, strict=True)):
            lines.append(f"{layer:>5} {before:>7.3f} {after:>7.3f}")
        return "\n".join(lines)


def fit_synthesizers(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], *, epochs: int = 10, learning_rate: float = 1e-2
) -> FitReport:
    """Fit the synthetic maps of a mixture to the attention maps of its own dot products, in place.

    Every layer by itself: the model runs with full attention and `λ = 0`, whatever they are now, and each layer's
    synthesizer takes a step of Adam on the KL divergence from the attention that it sees there to its own map. Labels
    are not used, and nothing but the synthesizers changes: not the host, not `λ`, and so not the outputs at `λ = 0`.
    Training with `SttAnnealingCallback` starts from there.

    Args:
        model: a model with `SttConfig(variant="mixture")` in one encoder.
        batches: arguments of the model, as a tokenizer returns or a `DataLoader` yields them. Tensors are moved to the
            model's device. An iterator, which could be read only once, is kept in memory.
        epochs: number of times to go through the batches.
        learning_rate: learning rate of Adam in the first epoch; it falls to 0 in a straight line. The random
            synthesizers, whose parameters are the logits themselves, take three to ten times the default.

    Returns:
        The divergence of each layer before and after.

    Raises:
        TypeError: if a batch is not a mapping.
        ValueError: if the model does not have a mixture in exactly one encoder, its synthesizer is frozen, `epochs` or
            `learning_rate` is not positive, or batches hold no tokens.

    Examples:
        >>> import torch
        >>> from hf_lam import SttConfig, convert, fit_synthesizers
        >>> model = convert("google/vit-base-patch16-224", SttConfig())
        >>> report = fit_synthesizers(model, [{"pixel_values": torch.randn(2, 3, 224, 224)}], epochs=2)
    """
    encoders = encoders_with_mixture(model)
    if len(encoders) != 1:
        raise ValueError(
            f"{type(model).__name__} has a mixture in {len(encoders)} encoders, fit_synthesizers needs one; call "
            "hf_lam.inject(model, SttConfig(variant='mixture')) or hf_lam.convert first. A pure STT has no attention "
            "of its host left to fit to."
        )
    (base,) = encoders
    config: SttConfig = injection_of(base).configs[SttConfig.name]
    if config.frozen:
        raise ValueError(f"the {config.synthesizer} synthesizer is frozen; leave out frozen=True.")
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs must be an integer of at least 1, got {epochs!r}.")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate!r}.")
    batches = list(batches) if isinstance(batches, Iterator) else batches

    layers = [_Layer(synthesizer) for synthesizer in mechanism_of(base, SttConfig.name)]
    trained = {parameter for layer in layers for parameter in layer.parameters}
    required = {parameter: parameter.requires_grad for parameter in trained}

    def fit(attention: Attention, attend: Callable[[Attention], Attended]) -> Attended:
        return _attend_and_fit(attention, layers[attention.layer]), None

    with (
        torch.inference_mode(False),
        torch.no_grad(),
        without_autocast(base.device.type),  # its cache would go on with the weights of before
        evaluation_mode(model),
        observing(base, fit),
    ):
        before, rows, samples = _measure(model, base, batches, layers)
        if rows == 0:
            raise ValueError("batches held no token to fit to; give at least one that is not padding.")
        try:
            for parameter in trained:
                parameter.requires_grad_(True)
            for epoch in range(epochs):
                for layer in layers:
                    layer.begin(learning_rate, epoch, epochs)
                run_batches(model, base, batches)
        finally:
            for layer in layers:
                layer.optimizer = None
            for parameter, value in required.items():
                parameter.requires_grad_(value)
        after, _, _ = _measure(model, base, batches, layers)
    return FitReport(before, after, samples, epochs)


class _Layer:
    """One layer's synthesizer: sums of what it was measured at, and its optimizer while it is fitted."""

    def __init__(self, synthesizer: nn.Module) -> None:
        self.parameters = [p for name, p in synthesizer.named_parameters() if name != "mixing"]
        self.optimizer: torch.optim.Optimizer | None = None
        self.copies: list[Tensor] = []
        self.reset()

    def reset(self) -> None:
        self.total, self.rows, self.samples = 0.0, 0, 0

    def begin(self, learning_rate: float, epoch: int, epochs: int) -> None:
        if self.optimizer is None:
            # Copies in at least fp32: in half precision Adam's small steps would be rounded away, and its ε to 0.
            self.copies = [
                p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in self.parameters
            ]
            self.optimizer = torch.optim.Adam(self.copies, lr=learning_rate)
        self.optimizer.param_groups[0]["lr"] = learning_rate * (1 - epoch / epochs)

    def step(self, loss: Tensor) -> None:
        assert self.optimizer is not None
        grads = torch.autograd.grad(loss, self.parameters)
        for copy, grad in zip(self.copies, grads, strict=True):
            copy.grad = grad.to(copy.dtype)
        self.optimizer.step()
        with torch.no_grad():
            for parameter, copy in zip(self.parameters, self.copies, strict=True):
                parameter.copy_(copy)


def _measure(
    model: nn.Module, base: InjectedEncoder, batches: Iterable[Mapping[str, Any]], layers: list[_Layer]
) -> tuple[list[float], int, int]:
    """The divergence of every layer, and how many rows and samples it is a mean of."""
    for layer in layers:
        layer.reset()
    run_batches(model, base, batches)
    return [layer.total / max(1, layer.rows) for layer in layers], layers[0].rows, layers[0].samples


def _attend_and_fit(attention: Attention, layer: _Layer) -> Tensor:
    """The context of the dot products alone, full attention, which the layer's synthesizer learns from."""
    batch, heads, length, _ = attention.query.shape
    names = attention.of_pass.injection.order
    place = names.index(SttConfig.name)
    before, after = (attention.of_pass.change_scores(attention, part) for part in (names[:place], names[place + 1 :]))
    context, weights = attend_changed(attention._replace(want_weights=True, dropout=0.0), compose([before, after]))
    assert weights is not None
    is_token, device = tokens_of(attention), attention.query.device
    is_row = torch.ones(batch, length, dtype=torch.bool, device=device) if is_token is None else is_token
    rows = int(is_row.sum()) * heads
    is_fitting = layer.optimizer is not None
    if rows:
        with torch.set_grad_enabled(is_fitting):
            divergence = _diverge(attention, after, weights.float(), is_row)
            if is_fitting:
                layer.step(divergence / rows)
        layer.total += float(divergence.detach())
    layer.rows += rows
    layer.samples += batch
    return context


def _diverge(attention: Attention, after: ScoreChange, weights: Tensor, is_row: Tensor) -> Tensor:
    """The divergence of a layer's synthetic map from `weights`, summed over heads and the rows that count.

    after: change of the mixture's scores by other mechanisms.
    """
    # The mixture mixes in the map that a pure STT would have in place of scores.
    of_pass, padding = attention.of_pass, attention.padding
    logits = of_pass.dispatch.replace_scores(SttConfig.name, of_pass.read_layer(SttConfig.name, attention))
    log_map = log_synthetic_map(*logits.log_weights()).to(weights.device)
    if after.factor is not None:
        log_map = log_map * after.factor.to(log_map)
    if after.addend is not None:
        log_map = log_map + after.addend.to(log_map)
    if padding is not None:
        log_map = log_map + additive(padding, log_map.dtype)[0]
    if not (after.factor is None and after.addend is None and padding is None):
        log_map = log_map.log_softmax(-1)
    by_row = (torch.xlogy(weights, weights) - weights * log_map).sum(-1)
    return (by_row * is_row[:, None]).sum()
