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
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed
from transformers.trainer_callback import PrinterCallback

from .calibration import calibrate_views
from .conversion import convert
from .fitting import fit_synthesizers
from .flops import cost
from .hardening import harden
from .hub.cards import model_card
from .hub.earlier_cards import CARD_FILE
from .modeling.configuration_hf_lam import LamConfig, LocomtConfig, SttConfig, __version__
from .modeling.injection_hf_lam import set_views
from .parameters import mechanism_parameters
from .training.callbacks import SttAnnealingCallback

SUMMARY_FILE = "demo.json"
MASKS_PICTURE = "masks.png"
PATCHES_PICTURE = "masks_on_digit.png"
VIEWS_PICTURE = "views.png"
MAPS_PICTURE = "synthetic_maps.png"
PATCH_PICTURE = "synthetic_map_on_digit.png"
SAMPLE_PICTURE = "digit.png"
# Where the models with attention views and with synthesised attention go, inside of the output.
LOCOMT_FOLDER = "locomt"
STT_FOLDER = "stt"
FOLDERS = (LOCOMT_FOLDER, STT_FOLDER)
# The patch (row, column) whose attention is drawn on the digit.
DRAWN_PATCH = (1, 1)
# The row of the table that the model card is about.
LAM_ROW = "ViT with LAM, trained on"
# The bound of the library's own tests, in fp32.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class DemoSettings:
    """How much is trained. The defaults take a bit more than a minute on two CPU cores."""

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
    """One line of the table: a model and what it reached.

    parameters_added: less those that it dropped.
    attention_flops: of the attention products and what makes a synthetic map, relative to full attention; without the
        projections.
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
    """What the demo measured.

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


class Images(Dataset[dict[str, torch.Tensor]]):
    """Digits as a model takes them: pixel values `(N, 3, 8, 8)` and labels `(N,)`."""

    def __init__(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> None:
        self.pixel_values = pixel_values
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixel_values[index], "labels": self.labels[index]}


@dataclass(frozen=True)
class Digits:
    """The three splits, the processor that made them, and the first test image as it was before."""

    train: Images
    validation: Images
    test: Images
    processor: Any
    sample: Any


class EpochLines(TrainerCallback):
    """Progress as one line every few epochs, which also reads well in a log file."""

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            epochs = f"epoch {state.epoch:3.0f} of {args.num_train_epochs:.0f}"
            self.console.print(f"  {self.title}: {epochs}, training loss {logs['loss']:.3f}")


def run_demo(
    output: str | os.PathLike[str], settings: DemoSettings | None = None, console: Console | None = None
) -> DemoResult:
    """Run the demo and write its models, pictures and summary to `output`.

    Args:
        output: a new or empty folder, or one that an earlier demo wrote.
        settings: the seed and how much is trained.
        console: where progress and the table go; the default is the terminal.

    Returns:
        What was measured. The same seed gives the same numbers on the same machine, times aside.

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
        tempfile.TemporaryDirectory(dir=beside.parent, prefix=f".{beside.name}.") as partial,
        tempfile.TemporaryDirectory(prefix="hf-lam-demo-") as scratch,
        _quiet_transformers(),
        _one_thread(),
    ):
        result = _run(Path(partial), Path(scratch), output, settings, console, started)
        _publish(Path(partial), output)
    console.print(_table(result.rows))
    console.print(_closing_lines(result), markup=False, highlight=False, soft_wrap=True)
    return result


def check_optional_packages() -> None:
    """Raises an `ImportError` with the command to run if the pictures could not be made."""
    missing = [package for package in ("matplotlib", "PIL") if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f'the demo needs {" and ".join(missing)}. Run `pip install "hf-lam[viz]"`.')


def check_output(output: Path) -> None:
    """Raises a `ValueError` if writing to `output` would overwrite or mix with anything but an earlier demo."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{str(output)!r} is a file; --output needs a folder.")
    present = _names_in(output) if output.is_dir() else []
    foreign = sorted(set(present) - _files_of_earlier_demo(output))
    if foreign:
        raise ValueError(
            f"{str(output)!r} is not empty and was not written by an earlier demo: it holds {', '.join(foreign[:5])}"
            f"{', …' if len(foreign) > 5 else ''}. Choose another folder with --output, or empty this one."
        )


def _names_in(folder: Path) -> list[str]:
    """What is in the folder, and in those of the models inside of it, sorted."""
    names = []
    for path in folder.iterdir():
        if path.name in FOLDERS and path.is_dir():
            names += [f"{path.name}/{inner.name}" for inner in path.iterdir()]
        else:
            names.append(path.name)
    return sorted(names)


def _files_of_earlier_demo(output: Path) -> set[str]:
    try:
        return set(json.loads((output / SUMMARY_FILE).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _publish(partial: Path, output: Path) -> None:
    """Move the complete files into their folder; what an earlier demo wrote goes."""
    for name in FOLDERS:
        (output / name).mkdir(parents=True, exist_ok=True)
    outdated = _files_of_earlier_demo(output)
    for name in _names_in(output):
        if name in outdated:
            (output / name).unlink()
    for name in _names_in(partial):
        shutil.move(partial / name, output / name)


def _run(
    partial: Path, scratch: Path, output: Path, settings: DemoSettings, console: Console, started: float
) -> DemoResult:
    console.print("[bold]1. Data[/bold]: scikit-learn's handwritten digits")
    digits = load_data(settings.seed)
    console.print(
        f"  {len(digits.train)} training, {len(digits.validation)} validation and {len(digits.test)} test images of "
        "8 × 8 pixels"
    )

    console.print("[bold]2. A small ViT[/bold], from scratch")
    set_seed(settings.seed)
    vit = make_vit()
    vit_seconds = _train(vit, digits, scratch, settings, settings.epochs, settings.learning_rate, console, "ViT")

    console.print("[bold]3. Convert[/bold] with attention masks, attention views, and synthesised attention")
    pixels = digits.test.pixel_values
    before = logits_of(vit, pixels)
    # A converted model shares its weights with the original, which is trained on as well.
    lam = convert(copy.deepcopy(vit), LamConfig())
    locomt = convert(copy.deepcopy(vit), LocomtConfig(views="full"))
    stt = convert(copy.deepcopy(vit), SttConfig())
    differences = [_difference(logits_of(model, pixels), before) for model in (lam, locomt, stt)]
    added = sum(parameter.numel() for parameter in mechanism_parameters(lam))
    console.print(
        f"  LamConfig(): {added:,} parameters added to {_size(vit):,}; logits within {differences[0]:.1e}\n"
        f'  LocomtConfig(views="full"): none added; logits within {differences[1]:.1e}\n'
        f"  SttConfig(): a mixture with the dot products; logits within {differences[2]:.1e}"
    )

    console.print("[bold]4. Choose views[/bold] of the image's quadrants: hf_lam.calibrate_views(model, …)")
    config, report = calibrate_views(locomt, _calibration_batches(digits, settings), budget=settings.budget)
    set_views(locomt, config)
    mass = report.kept / report.total
    console.print(
        f"  {100 * report.flops_fraction:.1f} % of the attention FLOPs (budget {100 * settings.budget:.0f} %) keep "
        f"{100 * mass:.1f} % of the attention"
    )

    console.print("[bold]5. Fit synthetic maps[/bold] to the ViT's attention: hf_lam.fit_synthesizers(model, …)")
    fit_started = time.perf_counter()
    fit = fit_synthesizers(stt, _calibration_batches(digits, settings))
    fit_seconds = time.perf_counter() - fit_started
    kl_before, kl_after = (sum(layers) / len(layers) for layers in (fit.kl_before, fit.kl_after))
    console.print(
        f"  KL divergence {kl_before:.3f} before, {kl_after:.3f} after {fit.epochs} epochs of {fit.samples} images"
    )

    console.print("[bold]6. Train on[/bold], the stock ViT and the converted ones, for as many steps")
    again = (settings, settings.more_epochs, settings.more_learning_rate, console)
    trained_on = copy.deepcopy(vit)
    stock_seconds = _train(trained_on, digits, scratch, *again, "ViT, trained on")
    lam_seconds = _train(lam, digits, scratch, *again, "ViT with LAM")
    locomt_seconds = _train(locomt, digits, scratch, *again, "ViT with LoCoMT")
    annealing = SttAnnealingCallback(end=settings.annealing_end)
    stt_seconds = _train(stt, digits, scratch, *again, "ViT with STT", annealing)
    mixture = logits_of(stt, pixels)
    # Relative, since training made the logits larger than those that the bound was made for.
    hardened = _difference(logits_of(harden(stt), pixels), mixture) / float(mixture.abs().max())
    console.print(
        f"  hf_lam.harden(model): no queries and keys, {_size(stt):,} parameters left; logits within {hardened:.1e}, "
        "relative"
    )
    synthesised = cost(stt)
    stt_flops = round((synthesised.forward_attention + synthesised.synthesis) / synthesised.attention["full"], 4)
    rows = [
        _row("ViT", vit, digits, 0, 1.0, vit_seconds),
        _row("ViT, trained on", trained_on, digits, 0, 1.0, stock_seconds),
        _row(LAM_ROW, lam, digits, added, 1.0, lam_seconds),
        _row("ViT with LoCoMT, trained on", locomt, digits, 0, round(report.flops_fraction, 4), locomt_seconds),
        _row("ViT with STT, trained on", stt, digits, _size(stt) - _size(vit), stt_flops, stt_seconds + fit_seconds),
    ]

    console.print("[bold]7. Save[/bold], and load in fresh processes that cannot import hf_lam")
    _save(lam, locomt, stt, digits, partial, rows)
    reloaded = [
        _difference(logits_in_fresh_process(folder, pixels, scratch), logits_of(model, pixels))
        for folder, model in ((partial, lam), (partial / LOCOMT_FOLDER, locomt), (partial / STT_FOLDER, stt))
    ]
    console.print(f"  loaded with trust_remote_code=True; the logits differ by at most {max(reloaded):.1e}")

    result = DemoResult(
        folder=str(output),
        settings=settings,
        rows=rows,
        conversion_difference=max(differences),
        hardening_difference=hardened,
        reload_difference=max(reloaded),
        attention_mass=round(mass, 4),
        seconds=round(time.perf_counter() - started, 1),
        hf_lam_version=__version__,
        transformers_version=transformers.__version__,
        files=sorted([*_names_in(partial), SUMMARY_FILE]),
    )
    (partial / SUMMARY_FILE).write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    return result


# --- Data and models -------------------------------------------------------------------------------------------------


def load_data(seed: int) -> Digits:
    """The 1,797 digits, split 70 / 15 / 15 with the same share of every class, as the image processor gives them."""
    from PIL import Image
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    # The PIL processor, because torchvision is not required; three channels, as image pipelines give them.
    processor = ViTImageProcessorPil(
        do_convert_rgb=True, size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)
    images = [Image.fromarray(image).convert("RGB") for image in grey]
    pixel_values = processor(images, return_tensors="pt")["pixel_values"]
    labels = torch.from_numpy(data.target).long()
    train, rest = train_test_split(np.arange(len(labels)), test_size=0.3, random_state=seed, stratify=data.target)
    validation, test = train_test_split(rest, test_size=0.5, random_state=seed, stratify=data.target[rest])

    def subset(indices: np.ndarray) -> Images:
        return Images(pixel_values[indices], labels[indices])

    return Digits(subset(train), subset(validation), subset(test), processor, images[test[0]])


def make_vit() -> ViTForImageClassification:
    """A ViT of 4 layers, 4 heads and width 64 for images of 8 × 8 pixels, with random weights."""
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=3,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        id2label={digit: str(digit) for digit in range(10)},
        label2id={str(digit): digit for digit in range(10)},
    )
    return ViTForImageClassification(config)


def logits_of(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """`(N, 3, 8, 8)` to `(N, 10)`, in evaluation mode."""
    with torch.no_grad():
        return model.eval()(pixel_values=pixel_values).logits


def _difference(logits: torch.Tensor, others: torch.Tensor) -> float:
    return float((logits - others).abs().max())


def _calibration_batches(digits: Digits, settings: DemoSettings) -> list[dict[str, torch.Tensor]]:
    """The first few batches of training images."""
    pixels = digits.train.pixel_values.split(settings.batch_size)
    return [{"pixel_values": batch} for batch in pixels[: settings.calibration_batches]]


def accuracy_on(model: Any, images: Images) -> float:
    return float((logits_of(model, images.pixel_values).argmax(-1) == images.labels).float().mean())


def _size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _row(name: str, model: Any, digits: Digits, added: int, attention_flops: float, seconds: float) -> DemoRow:
    validation, test = (round(accuracy_on(model, images), 4) for images in (digits.validation, digits.test))
    return DemoRow(name, validation, test, _size(model), added, attention_flops, round(seconds, 1))


def _train(
    model: Any,
    digits: Digits,
    scratch: Path,
    settings: DemoSettings,
    epochs: int,
    learning_rate: float,
    console: Console,
    title: str,
    *callbacks: TrainerCallback,
) -> float:
    """Train in place and return the seconds it took."""
    arguments = TrainingArguments(
        output_dir=str(scratch / "trainer"),
        seed=settings.seed,
        num_train_epochs=epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=learning_rate,
        weight_decay=0.05,
        warmup_steps=20,
        lr_scheduler_type="cosine",
        logging_steps=max(1, epochs // 5) * -(-len(digits.train) // settings.batch_size),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    lines = EpochLines(console, title)
    trainer = Trainer(model=model, args=arguments, train_dataset=digits.train, callbacks=[lines, *callbacks])
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


# --- Saving and loading back -----------------------------------------------------------------------------------------


def _save(lam: Any, locomt: Any, stt: Any, digits: Digits, folder: Path, rows: list[DemoRow]) -> None:
    from .visualization import plot_map_on_image, plot_mask_on_image, plot_masks, plot_synthetic_maps, plot_views

    for model, place in ((lam, folder), (locomt, folder / LOCOMT_FOLDER), (stt, folder / STT_FOLDER)):
        model.save_pretrained(place)
        digits.processor.save_pretrained(place)
    digits.sample.save(folder / SAMPLE_PICTURE)
    inputs = {"pixel_values": digits.test.pixel_values[:1]}
    plot_masks(lam, inputs).savefig(folder / MASKS_PICTURE)
    plot_mask_on_image(lam, inputs).savefig(folder / PATCHES_PICTURE)
    plot_views(locomt).savefig(folder / VIEWS_PICTURE)
    plot_synthetic_maps(stt, inputs).savefig(folder / MAPS_PICTURE)
    plot_map_on_image(stt, inputs, query=DRAWN_PATCH).savefig(folder / PATCH_PICTURE)
    _model_card(lam, digits.processor, rows).save(folder / CARD_FILE)


def _model_card(lam: Any, processor: Any, rows: list[DemoRow]) -> ModelCard:
    """That of the model with masks; the other two are in its folders."""
    columns = "| model | test accuracy | parameters | attention FLOPs |\n| --- | ---: | ---: | ---: |\n"
    table = columns + "\n".join(
        f"| {row.model} | {row.test_accuracy:.4f} | {row.parameters:,} | {100 * row.attention_flops:.1f} % |"
        for row in rows
    )
    reached = next(row.test_accuracy for row in rows if row.model == LAM_ROW)
    others = f"""The folder `{LOCOMT_FOLDER}` holds the same ViT with attention views in place of the masks (LoCoMT),
chosen by `hf_lam.calibrate_views`, and trained on for as many steps.

![view of every head, per layer]({VIEWS_PICTURE})

The folder `{STT_FOLDER}` holds the same ViT with synthesised attention (STT) in place of queries and keys: a mixture
of both, whose maps started from the ViT's own attention (`hf_lam.fit_synthesizers`), trained on for as many steps with
`SttAnnealingCallback`, and left to the maps alone (`hf_lam.harden`). Its attention FLOPs include making the maps; no
row's include projections.

![matrices of the synthetic maps of one test image, per layer]({MAPS_PICTURE})
![where one patch looks, per layer]({PATCH_PICTURE})"""
    return model_card(
        lam,
        name="hf-lam-demo",
        processor=processor,
        origin="made by `hf-lam demo`: a ViT of 4 layers trained on scikit-learn's handwritten digits (8 × 8 pixels), "
        "converted with `hf_lam.convert(model, LamConfig())` and trained on",
        results=[
            EvalResult(
                task_type="image-classification",
                dataset_type="digits",
                dataset_name="scikit-learn's digits",
                dataset_split="test",
                metric_type="accuracy",
                metric_name="Accuracy",
                metric_value=reached,
            )
        ],
        pictures={
            MASKS_PICTURE: "Masks of one test image, layer by layer: white is 1, where a score stays as it is.",
            PATCHES_PICTURE: "The same masks at every patch of the image, as a key.",
        },
        kept=[("Comparison", table), ("The other folders", others)],
    )


# Runs without hf_lam: the finder comes first and refuses it, whether it is installed, installed for editing, or in the
# current folder. The code of the model can then only come from its folder.
FRESH_PROCESS = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_lam":
            raise ModuleNotFoundError("hf_lam is refused in this process", name=name)

sys.meta_path.insert(0, Refuse())
folder, pixels, logits = sys.argv[1:]

import numpy, torch
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    numpy.save(logits, model(pixel_values=torch.from_numpy(numpy.load(pixels))).logits.numpy())
assert not any(name.partition(".")[0] == "hf_lam" for name in sys.modules)
"""


def logits_in_fresh_process(folder: Path, pixel_values: torch.Tensor, scratch: Path) -> torch.Tensor:
    """The logits that a new Python process computes with the model in `folder`, without hf_lam.

    Raises:
        RuntimeError: with the process's error output, if it failed.
    """
    pixels, logits = scratch / "pixels.npy", scratch / "logits.npy"
    np.save(pixels, pixel_values.numpy())
    # A cache of its own, so that no code of an earlier run answers; and nothing may come from the Hub.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    process = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(folder), str(pixels), str(logits)],
        cwd=scratch,
        env=environment,
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        raise RuntimeError(f"the saved model did not load in a fresh process:\n{process.stderr.strip()}")
    return torch.from_numpy(np.load(logits))


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


# --- What the user sees ----------------------------------------------------------------------------------------------


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


def _table(rows: list[DemoRow]) -> Table:
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


def _closing_lines(result: DemoResult) -> str:
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
        f'  AutoModelForImageClassification.from_pretrained("{result.folder}", trust_remote_code=True)'
    )
