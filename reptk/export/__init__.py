"""Take a trained encoder out: ONNX, pt2, timm's format, safetensors, and the Hugging Face hub."""

from reptk.export.exported_model import ExportedModel, open_model
from reptk.export.formats import FORMATS, export_model

__all__ = ["FORMATS", "ExportedModel", "export_model", "open_model"]
