"""`hf-lam demo`: the whole path on real data, small enough for two CPU cores.

A small ViT learns scikit-learn's handwritten digits, is converted with learnable attention masks, trained on, saved as
a folder ready for the Hub, and loaded back by a process that cannot import hf_lam.
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
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed
from transformers.trainer_callback import PrinterCallback

from .conversion import convert
from .modeling.configuration_hf_lam import LamConfig, __version__
from .parameters import mechanism_parameters

SUMMARY_FILE = "demo.json"
MASKS_PICTURE = "masks.png"
PATCHES_PICTURE = "masks_on_digit.png"
SAMPLE_PICTURE = "digit.png"
# The bound of the library's own tests, in fp32.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class DemoSettings:
    """How much is trained. The defaults take about a minute on two CPU cores."""

    seed: int = 0
    epochs: int = 24
    more_epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    more_learning_rate: float = 5e-4


@dataclass(frozen=True)
class DemoRow:
    """One line of the table: a model and what it reached."""

    model: str
    validation_accuracy: float
    test_accuracy: float
    parameters: int
    parameters_added: int
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured. `files` are the names it wrote into `folder`."""

    folder: str
    settings: DemoSettings
    rows: list[DemoRow]
    conversion_difference: float
    reload_difference: float
    seconds: float
    hf_lam_version: str
    transformers_version: str
    files: list[str]

    @property
    def passed(self) -> bool:
        """Whether conversion and the reloaded model gave the same logits."""
        return self.conversion_difference <= TOLERANCE and self.reload_difference <= TOLERANCE

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
    """Run the demo and write its model, pictures and summary to `output`.

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
    present = {path.name for path in output.iterdir()} if output.is_dir() else set()
    foreign = sorted(present - _files_of_earlier_demo(output))
    if foreign:
        raise ValueError(
            f"{str(output)!r} is not empty and was not written by an earlier demo: it holds {', '.join(foreign[:5])}"
            f"{', …' if len(foreign) > 5 else ''}. Choose another folder with --output, or empty this one."
        )


def _files_of_earlier_demo(output: Path) -> set[str]:
    try:
        return set(json.loads((output / SUMMARY_FILE).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _publish(partial: Path, output: Path) -> None:
    """Move the complete files into their folder; what an earlier demo wrote goes."""
    output.mkdir(exist_ok=True)
    outdated = _files_of_earlier_demo(output)
    for path in list(output.iterdir()):
        if path.name in outdated:
            path.unlink()
    for path in partial.iterdir():
        shutil.move(path, output / path.name)


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

    console.print("[bold]3. Convert[/bold] with learnable attention masks: hf_lam.convert(vit, LamConfig())")
    pixels = digits.test.pixel_values
    # A converted model shares its weights with the original, which is trained on as well.
    lam = convert(copy.deepcopy(vit), LamConfig())
    before = logits_of(vit, pixels)
    conversion_difference = float((logits_of(lam, pixels) - before).abs().max())
    added = sum(parameter.numel() for parameter in mechanism_parameters(lam))
    console.print(
        f"  {added:,} parameters added to {_size(vit):,}; the logits differ by at most {conversion_difference:.1e}"
    )

    console.print("[bold]4. Train on[/bold], the stock ViT and the converted one, for as many steps")
    again = (settings, settings.more_epochs, settings.more_learning_rate, console)
    trained_on = copy.deepcopy(vit)
    stock_seconds = _train(trained_on, digits, scratch, *again, "ViT, trained on")
    lam_seconds = _train(lam, digits, scratch, *again, "ViT with LAM")
    rows = [
        _row("ViT", vit, digits, 0, vit_seconds),
        _row("ViT, trained on", trained_on, digits, 0, stock_seconds),
        _row("ViT with LAM, trained on", lam, digits, added, lam_seconds),
    ]

    console.print("[bold]5. Save[/bold], and load in a fresh process that cannot import hf_lam")
    _save(lam, digits, partial, rows)
    reloaded = logits_in_fresh_process(partial, pixels, scratch)
    reload_difference = float((reloaded - logits_of(lam, pixels)).abs().max())
    console.print(f"  loaded with trust_remote_code=True; the logits differ by at most {reload_difference:.1e}")

    result = DemoResult(
        folder=str(output),
        settings=settings,
        rows=rows,
        conversion_difference=conversion_difference,
        reload_difference=reload_difference,
        seconds=round(time.perf_counter() - started, 1),
        hf_lam_version=__version__,
        transformers_version=transformers.__version__,
        files=sorted([*(path.name for path in partial.iterdir()), SUMMARY_FILE]),
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


def accuracy_on(model: Any, images: Images) -> float:
    return float((logits_of(model, images.pixel_values).argmax(-1) == images.labels).float().mean())


def _size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _row(name: str, model: Any, digits: Digits, added: int, seconds: float) -> DemoRow:
    validation, test = (round(accuracy_on(model, images), 4) for images in (digits.validation, digits.test))
    return DemoRow(name, validation, test, _size(model), added, seconds)


def _train(
    model: Any,
    digits: Digits,
    scratch: Path,
    settings: DemoSettings,
    epochs: int,
    learning_rate: float,
    console: Console,
    title: str,
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
    trainer = Trainer(model=model, args=arguments, train_dataset=digits.train, callbacks=[EpochLines(console, title)])
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    return round(time.perf_counter() - started, 1)


# --- Saving and loading back -----------------------------------------------------------------------------------------


def _save(model: Any, digits: Digits, folder: Path, rows: list[DemoRow]) -> None:
    from .visualization import plot_mask_on_image, plot_masks

    model.save_pretrained(folder)
    digits.processor.save_pretrained(folder)
    digits.sample.save(folder / SAMPLE_PICTURE)
    inputs = {"pixel_values": digits.test.pixel_values[:1]}
    plot_masks(model, inputs).savefig(folder / MASKS_PICTURE)
    plot_mask_on_image(model, inputs).savefig(folder / PATCHES_PICTURE)
    (folder / "README.md").write_text(_model_card(rows))


def _model_card(rows: list[DemoRow]) -> str:
    table = "\n".join(f"| {row.model} | {row.test_accuracy:.4f} | {row.parameters:,} |" for row in rows)
    return f"""---
library_name: transformers
pipeline_tag: image-classification
tags: [hf_lam, vit, learnable-attention-mask]
---

# A small ViT with learnable attention masks

Made by `hf-lam demo` (hf_lam {__version__}, transformers {transformers.__version__}): a ViT of 4 layers trained on
scikit-learn's handwritten digits (8 × 8 pixels), converted with `hf_lam.convert(model, LamConfig())` and trained on.

| model | test accuracy | parameters |
| --- | ---: | ---: |
{table}

```python
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("PATH_OR_ID", trust_remote_code=True)
```

![masks of one test image, per layer]({MASKS_PICTURE})
"""


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
    for title in ("validation", "test", "parameters added", "seconds"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            row.model,
            f"{100 * row.validation_accuracy:.1f} %",
            f"{100 * row.test_accuracy:.1f} %",
            f"{row.parameters_added:,}",
            f"{row.seconds:.1f}",
        )
    return table


def _closing_lines(result: DemoResult) -> str:
    verdict = "same logits before and after conversion, and after loading" if result.passed else "LOGITS DIFFER"
    return (
        f"{result.seconds:.0f} seconds; {verdict} (bound {TOLERANCE:.0e}).\n"
        f"Everything is in {result.folder}: the model, its code, {MASKS_PICTURE} and {PATCHES_PICTURE}. "
        "Load it anywhere, without hf_lam:\n\n"
        f'  AutoModelForImageClassification.from_pretrained("{result.folder}", trust_remote_code=True)'
    )
