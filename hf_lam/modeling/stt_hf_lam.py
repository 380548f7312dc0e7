# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""STT, synthesised attention: what one encoder has of it, as a mixture with dot products or in place of them.

Source: Zhu et al., "Synthesizer Based Efficient Self-Attention for Vision Tasks" (STT), arXiv 2201.01410; after
Tay et al., "Synthesizer", arXiv 2005.00743.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from .hosts_hf_lam import Host
from .mechanism_hf_lam import LayerInput, Mechanism, ScoreChange
from .mechanism_registry_hf_lam import register_mechanism
from .padding_hf_lam import normalize_over_tokens, valid_tokens
from .stt_attention_hf_lam import log_synthetic_map
from .stt_config_hf_lam import SttConfig
from .stt_synthesizers_hf_lam import AttentionSynthesizer, SyntheticLogits
from .threads_hf_lam import run_alone


class AttentionSynthesizers(Mechanism, nn.ModuleList):
    """The synthesizers of one encoder, one for each layer."""

    logged: ClassVar[tuple[str, ...]] = ("mixing",)
    fact_titles: ClassVar[dict[str, tuple[str, str]]] = {
        "mixing": ("λ by head", "λ"),
        "synthesizer": ("synthesised", ""),
    }

    def __init__(self, config: SttConfig, host: Host) -> None:
        super().__init__(config, host)
        for _ in range(host.num_layers):
            self.append(AttentionSynthesizer(config, host.hidden_size, host.num_heads, host.initializer_range))

    def synthesize(self, given: LayerInput) -> SyntheticLogits:
        """The map of a layer, as logits."""
        batch, length = given.hidden_states.shape[:2]
        is_token = None
        if given.padding is not None:
            is_token = valid_tokens(given.padding, batch, length).to(given.hidden_states.device)
        sizes = self.config.sizes_of(length)
        run = partial(self[given.layer], given.hidden_states, sizes, is_token)
        return run_alone(run, given.hidden_states.device)

    def replace_scores(self, given: LayerInput) -> SyntheticLogits:
        return self.synthesize(given)

    def change_scores(self, given: LayerInput) -> ScoreChange:
        """A mixture: `(1 − λ) · QKᵀ/sqrt(D) + λ · log P`."""
        logits = self.synthesize(given)
        assert logits.mixing is not None
        log_map = log_synthetic_map(*logits.log_weights())
        if not given.is_last:
            # What multiplies the scores afterwards multiplies a row's constant, too, which then does not cancel in the
            # softmax: it must not depend on what is masked.
            log_map = normalize_over_tokens(log_map, given.padding)
        mixing = logits.mixing.to(log_map).view(1, -1, 1, 1)
        return ScoreChange(factor=1 - mixing, addend=mixing * log_map)

    def count_flops(self, layer: int, batch: int, length: int) -> int:
        synthesizer: Any = self[layer]
        return synthesizer.count_flops(batch, length)

    def list_cost_facts(self, length: int) -> dict[str, Any]:
        return {"synthesizer": self.config.synthesized_by, "grid": self.config.sizes_of(length)}

    def mixing_of(self, layer: int) -> Tensor:
        """`λ` of every head of a layer of a mixture, `(H,)`, between 0 and 1, on the CPU."""
        synthesizer: Any = self[layer]
        mixing = synthesizer.mixing.detach()
        # A DTensor has a part in every process (FSDP2).
        mixing = mixing.full_tensor() if hasattr(mixing, "full_tensor") else mixing
        return mixing.clamp(0, 1).float().cpu()

    def list_facts(self, layer: int) -> dict[str, Any]:
        facts: dict[str, Any] = {"synthesizer": self.config.synthesized_by}
        return facts | ({"mixing": self.mixing_of(layer).tolist()} if self.config.is_mixture else {})


register_mechanism("stt", SttConfig, AttentionSynthesizers)
