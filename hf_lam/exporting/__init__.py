"""Models as programs that run where hf_lam is not: ONNX and `torch.export`, checked against the model."""

from .writing import ExportReport, export

__all__ = ["ExportReport", "export"]
