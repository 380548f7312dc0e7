"""The inputs that `hf-lam inspect` runs a model with: from the command line, or an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import load_processor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..modeling.injection_hf_lam import InjectedEncoder


@dataclass(frozen=True)
class GivenInputs:
    """The inputs on the command line."""

    text: str | None
    text_pair: str | None
    image: Path | None
    features: Mapping[str, Path]

    @property
    def names(self) -> list[str]:
        """Names of the modalities."""
        encoded = {"text": self.text, "image": self.image}
        return [*(name for name, value in encoded.items() if value is not None), *self.features]


def read_pairs(given: Sequence[str]) -> dict[str, Path]:
    """The files of `NAME=FILE`, by their names; a `ValueError` for what is no such pair."""
    files = {}
    for pair in given:
        name, _, path = pair.partition("=")
        if not (name and Path(path).is_file()):
            raise ValueError(
                f"--features {pair!r} must be the name of a modality and a file that is there: clips=clips.npy."
            )
        files[name] = Path(path)
    return files


def inputs_for(
    model: Any,
    base: InjectedEncoder,
    source: str,
    config: PreTrainedConfig,
    revision: str | None,
    given: GivenInputs,
    notes: list[str],
) -> tuple[dict[str, Any] | None, str | None, list[str] | None]:
    """A batch of one, what it is, and for a model of text alone its tokens; None if no example can be made.

    Raises:
        ValueError: if the model does not take what was given, or has no processor to prepare it.
    """
    import torch

    from ..flops import example_inputs
    from ..modeling.hosts_facts_hf_lam import is_fusion
    from ..modeling.injection_hf_lam import injection_of

    names = given.names
    try:
        example = example_inputs(model)
    except ValueError as error:
        example = {}
        if not names:
            notes.append(f"no example was made, so masks and maps are left out: {error}")
            return None, None, None
    if not names:
        return example, "example", None
    _check_taken(model, given)
    vectors = {name: _read_vectors(name, path, config.features[name]) for name, path in given.features.items()}
    processor = load_processor(source, model, revision)
    encoded = [name for name in names if name not in vectors]
    if processor is None and encoded:
        raise ValueError(f"{source!r} has no tokenizer or processor, which --{' and --'.join(encoded)} needs.")
    # A processor may standardise them.
    read = [name for name in vectors if name in getattr(processor, "modalities", ())]
    inputs = {
        config.modality_arguments(name).values: torch.from_numpy(array)[None]
        for name, array in vectors.items()
        if name not in read
    }
    if not (encoded or read):
        return inputs, " and ".join(names), None
    options: dict[str, Any] = {"return_tensors": "pt"}
    if given.text is not None:
        length = example["input_ids"].shape[-1] if "input_ids" in example else None
        # A pair in two arguments is what tokenizers take, a tuple what the processor of a fusion model takes.
        pair = (given.text, given.text_pair)
        if is_fusion(config):
            options["text"] = given.text if given.text_pair is None else pair
        else:
            options |= {"text": given.text, "text_pair": given.text_pair}
        options |= {"truncation": True, "max_length": length}
        if any(config.exact_tokens is not None for config in injection_of(base).configs.values()):
            options["padding"] = "max_length"
    if given.image is not None:
        options["images"] = _read_image(given.image)
    if read:
        options["features"] = {name: vectors[name] for name in read}
    inputs |= dict(processor(**options))
    tokens = None
    if "input_ids" in inputs and not is_fusion(config):
        tokens = processor.convert_ids_to_tokens(inputs["input_ids"][0])
        if "MultipleChoice" in type(model).__name__:
            inputs = {name: tensor.unsqueeze(1) for name, tensor in inputs.items()}
    return inputs, " and ".join(names), tokens


def _check_taken(model: Any, given: GivenInputs) -> None:
    from ..hub.processors import modalities_of

    taken, options = modalities_of(model), getattr(model.config, "features", None) or {}
    features = [name for name in taken if name in options]
    for name in given.names:
        if name not in taken or (name in features) != (name in given.features):
            option = f"--features {name}" if name in given.features else f"--{name}"
            encoded = [name for name in taken if name not in features]
            takes = " and ".join([*encoded, *([f"--features of {', '.join(features)}"] if features else [])])
            raise ValueError(f"{option}: {type(model).__name__} takes {takes}, no {name}.")


def _read_vectors(name: str, path: Path, options: Mapping[str, Any]) -> Any:
    """The vectors in a file, float32 `(L, size)`."""
    import numpy as np

    option = f"--features {name}={path}"
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{option} cannot be read as an array of NumPy (.npy): {error}") from error
    shape = getattr(array, "shape", None)
    if shape is None or len(shape) != 2 or shape[1] != options["size"] or array.dtype.kind not in "fiu":
        found = "several arrays" if shape is None else f"{array.dtype} of {shape}"
        raise ValueError(f"{option} must hold numbers of shape (vectors, {options['size']}), got {found}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{option} holds NaN or infinity.")
    return array.astype(np.float32)


def _read_image(path: Path) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError('--image needs Pillow. Run `pip install "hf-lam[image]"`.') from error
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"--image {str(path)!r} cannot be read as an image: {error}") from error
