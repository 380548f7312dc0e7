"""The measurements of the demo, and how they are shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from .folder import (
    LOCOMT_FOLDER,
    MAPS_PICTURE,
    MASKS_PICTURE,
    PATCH_PICTURE,
    PATCHES_PICTURE,
    STT_FOLDER,
    VIEWS_PICTURE,
)

# The bound of the library's own tests, in fp32.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class DemoSettings:
    """The amount of training. The defaults take a bit more than a minute on two CPU cores."""

    seed: int = 0
    epochs: int = 24
    more_epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    more_learning_rate: float = 5e-4
    budget: float = 0.5
    calibration_batches: int = 4
    # Early, because the learning rate falls to 0: the synthetic maps have to learn alone while it is high.
    annealing_end: float = 0.1


@dataclass(frozen=True)
class DemoRow:
    """One line of the table: a model and its results.

    parameters_added: less those that it dropped.
    attention_flops: FLOPs of the attention products and of making a synthetic map, relative to full attention; without
        the projections.
    """

    model: str
    validation_accuracy: float
    test_accuracy: float
    parameters: int
    parameters_added: int
    attention_flops: float
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """The measurements of the demo.

    conversion_difference, reload_difference: the largest difference of logits, over the converted models.
    hardening_difference: the same, where the mixture became the synthesised attention alone, relative to the largest
        logit.
    attention_mass: the part of the ViT's attention between patches that lies inside the views chosen for it.
    files: what was written into `folder`.
    """

    folder: str
    settings: DemoSettings
    rows: list[DemoRow]
    conversion_difference: float
    hardening_difference: float
    reload_difference: float
    attention_mass: float
    seconds: float
    hf_lam_version: str
    transformers_version: str
    files: list[str]

    @property
    def passed(self) -> bool:
        """Whether conversion, hardening and the reloaded models gave the same logits."""
        return max(self.conversion_difference, self.hardening_difference, self.reload_difference) <= TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, **asdict(self)}


def make_table(rows: list[DemoRow]) -> Table:
    """All models with what they reached."""
    table = Table(title="Accuracy on handwritten digits")
    table.add_column("model", no_wrap=True)
    # Short enough for a terminal of 80 columns.
    for title in ("val.", "test", "weights\nadded", "attn.\nFLOPs", "seconds"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            row.model,
            f"{100 * row.validation_accuracy:.1f} %",
            f"{100 * row.test_accuracy:.1f} %",
            f"{row.parameters_added:,}",
            f"{100 * row.attention_flops:.1f} %",
            f"{row.seconds:.1f}",
        )
    return table


def make_closing_lines(result: DemoResult) -> str:
    """The closing lines: the results, where everything is, how it is loaded, and what to do next."""
    verdict = (
        "same logits before and after conversion and hardening, and after loading"
        if result.passed
        else "LOGITS DIFFER"
    )
    return (
        f"{result.seconds:.0f} seconds; {verdict} (bound {TOLERANCE:.0e}).\n"
        f"Everything is in {result.folder}: the model with masks, the one with views ({LOCOMT_FOLDER}), the one with "
        f"synthesised attention ({STT_FOLDER}), their code, {MASKS_PICTURE}, {PATCHES_PICTURE}, {VIEWS_PICTURE}, "
        f"{MAPS_PICTURE} and {PATCH_PICTURE}. Load them anywhere, without hf_lam:\n\n"
        f'  AutoModelForImageClassification.from_pretrained("{result.folder}", trust_remote_code=True)\n\n'
        "Next:\n"
        f"  hf-lam inspect {result.folder}    # the masks, layer by layer\n"
        "  hf-lam convert MODEL OUTPUT --mechanism lam    # a checkpoint of yours; its outputs stay as they are\n"
        "  hf-lam compare PLAN.yaml --output_dir out    # is it worth it on your data? See docs/compare.md"
    )
