"""`hf-lam demo`: the whole path on real data, small enough for two CPU cores.

A small ViT learns scikit-learn's handwritten digits, and is converted three times: with learnable attention masks,
with attention views that halve the cost of its attention, and with synthesised attention, which takes the place of
queries and keys as it is trained. All are trained on, saved as folders ready for the Hub, and loaded back by a process
that cannot import hf_lam.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from ..conversion import convert
from ..flops import cost
from ..locomt.calibration import calibrate_views
from ..locomt.views import set_views
from ..modeling.mechanism_list_hf_lam import LamConfig, LocomtConfig, SttConfig
from ..modeling.saving_hf_lam import staging
from ..modeling.version_hf_lam import __version__
from ..parameters import mechanism_parameters
from ..stt.fitting import fit_synthesizers
from ..stt.hardening import harden
from ..training import SttAnnealingCallback
from .digits import Digits, accuracy_on, count_parameters, load_data, logits_of, make_vit, measure_difference
from .folder import LOCOMT_FOLDER, STT_FOLDER, SUMMARY_FILE, check_output, list_names, publish
from .results import DemoResult, DemoRow, DemoSettings, make_closing_lines, make_table
from .saving import LAM_ROW, logits_in_fresh_process, save_models


def run_demo(
    output: str | os.PathLike[str], settings: DemoSettings | None = None, console: Console | None = None
) -> DemoResult:
    """Run the demo and write its models, pictures and summary to `output`.

    Args:
        output: a new or empty folder, or one that an earlier demo wrote.
        settings: the seed and how much is trained.
        console: where progress and the table go; the default is the terminal.

    Returns:
        The measurements. The same seed gives the same numbers on the same machine, times aside.

    Raises:
        ValueError: if `output` holds something else; nothing has been done then.
        ImportError: if an optional package is missing.
        RuntimeError: if the fresh process could not load the folder.
    """
    settings = settings or DemoSettings()
    console = console or Console()
    output = Path(output)
    started = time.perf_counter()
    check_optional_packages()
    check_output(output)
    beside = output.absolute()
    beside.parent.mkdir(parents=True, exist_ok=True)
    with (
        staging(beside.parent, f".{beside.name}.") as partial,
        tempfile.TemporaryDirectory(prefix="hf-lam-demo-") as scratch,
        _quiet_transformers(),
        _one_thread(),
    ):
        result = Tour(partial, Path(scratch), settings, console).run(output, started)
        publish(partial, output)
    console.print(make_table(result.rows))
    console.print(make_closing_lines(result), markup=False, highlight=False, soft_wrap=True)
    return result


def check_optional_packages() -> None:
    """Raises an `ImportError` with the command to run if the pictures could not be made."""
    missing = [package for package in ("matplotlib", "PIL") if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f'the demo needs {" and ".join(missing)}. Run `pip install "hf-lam[viz]"`.')


@contextmanager
def _one_thread() -> Iterator[None]:
    # The tensors are tiny: a second thread gains nothing, and on a busy machine the two wait for each other. It also
    # makes the numbers independent of the number of cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' own progress bars and warnings out of the demo's output."""
    verbosity = transformers.utils.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        if bars:
            transformers.utils.logging.enable_progress_bar()


class EpochLines(TrainerCallback):
    """Progress as one line every few epochs, which also reads well in a log file."""

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            epochs = f"epoch {state.epoch:3.0f} of {args.num_train_epochs:.0f}"
            self.console.print(f"  {self.title}: {epochs}, training loss {logs['loss']:.3f}")


@dataclass
class Tour:
    """The steps of a demo, and what one needs of those before it.

    partial: folder for models, pictures and summary.
    scratch: folder for everything that is not kept.
    digits, pixels: the data, and the test images of it, once they are loaded.
    """

    partial: Path
    scratch: Path
    settings: DemoSettings
    console: Console
    digits: Digits = field(init=False)
    pixels: torch.Tensor = field(init=False)

    def run(self, output: Path, started: float) -> DemoResult:
        """All steps in their order; `output` is where `partial` will be moved."""
        self.load()
        vit, vit_seconds = self.train_vit()
        lam, locomt, stt, conversion_difference = self.convert_vit(vit)
        flops_fraction, mass = self.choose_views(locomt)
        fit_seconds = self.fit_maps(stt)
        trained_on, seconds = self.train_on(vit, lam, locomt, stt)
        hardening_difference = self.harden_mixture(stt)
        added = sum(parameter.numel() for parameter in mechanism_parameters(lam))
        dropped = count_parameters(stt) - count_parameters(vit)
        rows = [
            self.measure("ViT", vit, 0, 1.0, vit_seconds),
            self.measure("ViT, trained on", trained_on, 0, 1.0, seconds[0]),
            self.measure(LAM_ROW, lam, added, 1.0, seconds[1]),
            self.measure("ViT with LoCoMT, trained on", locomt, 0, flops_fraction, seconds[2]),
            self.measure("ViT with STT, trained on", stt, dropped, count_flops_of_maps(stt), seconds[3] + fit_seconds),
        ]
        reload_difference = self.save(lam, locomt, stt, rows)
        result = DemoResult(
            folder=str(output),
            settings=self.settings,
            rows=rows,
            conversion_difference=conversion_difference,
            hardening_difference=hardening_difference,
            reload_difference=reload_difference,
            attention_mass=mass,
            seconds=round(time.perf_counter() - started, 1),
            hf_lam_version=__version__,
            transformers_version=transformers.__version__,
            files=sorted([*list_names(self.partial), SUMMARY_FILE]),
        )
        (self.partial / SUMMARY_FILE).write_text(json.dumps(result.to_dict(), indent=2) + "\n")
        return result

    def load(self) -> None:
        """The data."""
        self.console.print("[bold]1. Data[/bold]: scikit-learn's handwritten digits")
        self.digits = load_data(self.settings.seed)
        self.pixels = self.digits.test.pixel_values
        self.console.print(
            f"  {len(self.digits.train)} training, {len(self.digits.validation)} validation and "
            f"{len(self.digits.test)} test images of 8 × 8 pixels"
        )

    def train_vit(self) -> tuple[Any, float]:
        """The ViT, and the seconds that it took."""
        self.console.print("[bold]2. A small ViT[/bold], from scratch")
        set_seed(self.settings.seed)
        vit = make_vit()
        return vit, self.train(vit, self.settings.epochs, self.settings.learning_rate, "ViT")

    def convert_vit(self, vit: Any) -> tuple[Any, Any, Any, float]:
        """The three converted models, and by how much their logits differ from the ViT's."""
        self.console.print("[bold]3. Convert[/bold] with attention masks, attention views, and synthesised attention")
        before = logits_of(vit, self.pixels)
        # A converted model shares its weights with the original, which is trained on as well.
        lam = convert(copy.deepcopy(vit), LamConfig())
        locomt = convert(copy.deepcopy(vit), LocomtConfig(views="full"))
        stt = convert(copy.deepcopy(vit), SttConfig())
        differences = [measure_difference(logits_of(model, self.pixels), before) for model in (lam, locomt, stt)]
        added = sum(parameter.numel() for parameter in mechanism_parameters(lam))
        self.console.print(
            f"  LamConfig(): {added:,} parameters added to {count_parameters(vit):,}; logits within "
            f"{differences[0]:.1e}\n"
            f'  LocomtConfig(views="full"): none added; logits within {differences[1]:.1e}\n'
            f"  SttConfig(): a mixture with the dot products; logits within {differences[2]:.1e}"
        )
        return lam, locomt, stt, max(differences)

    def choose_views(self, locomt: Any) -> tuple[float, float]:
        """Part of the attention's FLOPs that the views cost, and part of the attention that they keep."""
        self.console.print("[bold]4. Choose views[/bold] of the image's quadrants: hf_lam.calibrate_views(model, …)")
        config, report = calibrate_views(locomt, self.take_batches(), budget=self.settings.budget)
        set_views(locomt, config)
        mass = report.kept / report.total
        self.console.print(
            f"  {100 * report.flops_fraction:.1f} % of the attention FLOPs (budget {100 * self.settings.budget:.0f} %)"
            f" keep {100 * mass:.1f} % of the attention"
        )
        return round(report.flops_fraction, 4), round(mass, 4)

    def fit_maps(self, stt: Any) -> float:
        """Seconds that it took to start the synthetic maps from the ViT's attention."""
        self.console.print(
            "[bold]5. Fit synthetic maps[/bold] to the ViT's attention: hf_lam.fit_synthesizers(model, …)"
        )
        started = time.perf_counter()
        fit = fit_synthesizers(stt, self.take_batches())
        seconds = time.perf_counter() - started
        before, after = (sum(layers) / len(layers) for layers in (fit.kl_before, fit.kl_after))
        self.console.print(
            f"  KL divergence {before:.3f} before, {after:.3f} after {fit.epochs} epochs of {fit.samples} images"
        )
        return seconds

    def train_on(self, vit: Any, lam: Any, locomt: Any, stt: Any) -> tuple[Any, list[float]]:
        """A copy of the ViT that was trained on like the converted models, and the seconds of these four trainings."""
        self.console.print("[bold]6. Train on[/bold], the stock ViT and the converted ones, for as many steps")
        epochs, learning_rate = self.settings.more_epochs, self.settings.more_learning_rate
        trained_on = copy.deepcopy(vit)
        annealing = SttAnnealingCallback(end=self.settings.annealing_end)
        seconds = [
            self.train(trained_on, epochs, learning_rate, "ViT, trained on"),
            self.train(lam, epochs, learning_rate, "ViT with LAM"),
            self.train(locomt, epochs, learning_rate, "ViT with LoCoMT"),
            self.train(stt, epochs, learning_rate, "ViT with STT", annealing),
        ]
        return trained_on, seconds

    def harden_mixture(self, stt: Any) -> float:
        """Drop the queries and keys of the mixture, and return how far this moves the logits, relative to the largest.

        It is relative since training made the logits larger than those that the bound was made for.
        """
        mixture = logits_of(stt, self.pixels)
        difference = measure_difference(logits_of(harden(stt), self.pixels), mixture) / float(mixture.abs().max())
        self.console.print(
            f"  hf_lam.harden(model): no queries and keys, {count_parameters(stt):,} parameters left; logits within "
            f"{difference:.1e}, relative"
        )
        return difference

    def save(self, lam: Any, locomt: Any, stt: Any, rows: list[DemoRow]) -> float:
        """Save the models, and return how far their logits are from those of a process that cannot import hf_lam."""
        self.console.print("[bold]7. Save[/bold], and load in fresh processes that cannot import hf_lam")
        save_models(lam, locomt, stt, self.digits, self.partial, rows)
        places = {self.partial: lam, self.partial / LOCOMT_FOLDER: locomt, self.partial / STT_FOLDER: stt}
        difference = max(
            measure_difference(
                logits_in_fresh_process(folder, self.pixels, self.scratch), logits_of(model, self.pixels)
            )
            for folder, model in places.items()
        )
        self.console.print(f"  loaded with trust_remote_code=True; the logits differ by at most {difference:.1e}")
        return difference

    # --- what several steps need -------------------------------------------------------------------------------------

    def take_batches(self) -> list[dict[str, torch.Tensor]]:
        """The first few batches of training images."""
        pixels = self.digits.train.pixel_values.split(self.settings.batch_size)
        return [{"pixel_values": batch} for batch in pixels[: self.settings.calibration_batches]]

    def measure(self, name: str, model: Any, added: int, attention_flops: float, seconds: float) -> DemoRow:
        """A line of the table."""
        splits = (self.digits.validation, self.digits.test)
        validation, test = (round(accuracy_on(model, images), 4) for images in splits)
        return DemoRow(name, validation, test, count_parameters(model), added, attention_flops, round(seconds, 1))

    def train(self, model: Any, epochs: int, learning_rate: float, title: str, *callbacks: TrainerCallback) -> float:
        """Train in place and return the seconds it took."""
        arguments = TrainingArguments(
            output_dir=str(self.scratch / "trainer"),
            seed=self.settings.seed,
            num_train_epochs=epochs,
            per_device_train_batch_size=self.settings.batch_size,
            learning_rate=learning_rate,
            weight_decay=0.05,
            warmup_steps=20,
            lr_scheduler_type="cosine",
            logging_steps=max(1, epochs // 5) * -(-len(self.digits.train) // self.settings.batch_size),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        lines = EpochLines(self.console, title)
        trainer = Trainer(model=model, args=arguments, train_dataset=self.digits.train, callbacks=[lines, *callbacks])
        trainer.remove_callback(PrinterCallback)
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def count_flops_of_maps(model: Any) -> float:
    """FLOPs of synthesised attention, of which making the maps is a part, relative to full attention."""
    report = cost(model)
    return round((report.forward_attention + report.synthesis) / report.attention["full"], 4)
