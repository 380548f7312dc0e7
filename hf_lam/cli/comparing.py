"""Whether a converted model, as it was saved, does what the original does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# The bound of the library's own tests, in fp32; of outputs above 1, relative to the largest.
TOLERANCE = 1e-5
# Read by both tokenizers.
_TEXT = "The cat, aged 12, sat on the mat; naïve façade?  E=mc² 猫 don't"


@dataclass(frozen=True)
class Comparison:
    """The outputs of a converted model beside those of the original.

    difference: the largest; None if it was not measured.
    compared: `outputs`, or `encoder` where the head is new; None if it was not measured.
    bound: largest difference that is allowed where nothing should change.
    notes: reasons why it was not measured.
    """

    difference: float | None = None
    compared: str | None = None
    bound: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        return self.difference is None or self.difference <= self.bound


def compare(folder: Path, model_class: Any, source: str, auto_class: str, options: dict[str, Any]) -> Comparison:
    """Load a converted model from its folder and the original, and compare what they make of the same inputs."""
    import torch
    import transformers

    from ..flops import example_inputs

    converted = model_class.from_pretrained(folder)
    load = getattr(transformers, auto_class).from_pretrained
    stock, info = load(source, trust_remote_code=False, output_loading_info=True, **options)
    # Of an encoder that has a decoder beside it, the Auto class loads both.
    stock = next(module for module in stock.modules() if isinstance(module, model_class.host_class))
    # What the checkpoint lacks, such as a new head, is drawn at random in both.
    compared = "encoder" if info["missing_keys"] else "outputs"
    try:
        inputs = example_inputs(converted)
        generator = torch.Generator().manual_seed(0)
        for name, tensor in inputs.items():
            if torch.is_tensor(tensor) and tensor.is_floating_point():  # zeros
                inputs[name] = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        with torch.no_grad():
            expected, found = (_outputs(model, inputs, compared) for model in (stock, converted))
    except (RuntimeError, ValueError) as error:
        return Comparison(notes=(f"the outputs were not compared: {error}",))
    if not all(torch.isfinite(x).all() for x in expected):
        raise RuntimeError(
            f"the outputs of {source!r} are NaN or infinite, so they cannot be compared. Its weights are damaged, or "
            "too large for their dtype."
        )
    # Where one is NaN, the largest is: max of Python would pass it over.
    gap = torch.stack([(x.float() - y.float()).abs().max() for x, y in zip(expected, found, strict=True)]).max().item()
    scale = max(1.0, *(x.float().abs().max().item() for x in expected))
    # In half precision, what a few roundings make of equal formulas.
    precision = TOLERANCE if converted.dtype == torch.float32 else 10 * torch.finfo(converted.dtype).eps
    return Comparison(gap, compared, precision * scale)


def check_same_ids(folder: Path, tokenizer: Any) -> None:
    """Raises a `RuntimeError` if a tokenizer that was saved in a folder reads a text otherwise than it did before."""
    saved = type(tokenizer).from_pretrained(folder)
    expected, found = (each(_TEXT, verbose=False)["input_ids"] for each in (tokenizer, saved))
    if expected != found:
        raise RuntimeError(
            f"the {type(tokenizer).__name__}, once saved, reads {_TEXT!r} as {found} and not as {expected}, as the "
            "original does."
        )


def _outputs(model: Any, inputs: dict[str, Tensor], compared: str) -> list[Tensor]:
    from ..modeling.host_attention_hf_lam import find_encoder

    if compared == "encoder":
        found: list[Any] = []
        handle = find_encoder(model).register_forward_hook(lambda *call: found.append(call[-1][0]))
        try:
            model(**inputs)
        finally:
            handle.remove()
        return found
    return [value for value in model(**inputs).to_tuple() if hasattr(value, "is_floating_point")]
