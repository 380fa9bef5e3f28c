"""What is written as ONNX and pt2: bytes of images to features, with the normalization and the classifier inside."""

import json

import torch
from torch import Tensor, nn

from reptk.core.counts import format_count
from reptk.export.exported_model import ExportedModel, public_backbone

INPUT = "images"


class ExportModule(nn.Module):
    """Images (B, 3, H, W) uint8 to features (B, F), the same with unit length, and logits (B, C) if there is a classifier."""

    def __init__(self, model: ExportedModel) -> None:
        super().__init__()
        encoder = model.embedder.encoder
        self.backbone = encoder.backbone
        self.classifier = None
        if model.classifier is not None:
            self.classifier = model.classifier.module
        self.register_buffer("mean", encoder.mean.clone())
        self.register_buffer("std", encoder.std.clone())
        self.eval()
        self.requires_grad_(False)

    @property
    def output_names(self) -> list[str]:
        """Names of what `forward` returns."""
        names = ["features", "embeddings"]
        if self.classifier is not None:
            names.append("logits")
        return names

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return features, embeddings of unit length as `reptk embed` writes them, and the logits of a classifier."""
        h = self.backbone((images.float() / 255 - self.mean) / self.std)
        embeddings = nn.functional.normalize(h, dim=1)
        if self.classifier is None:
            return h, embeddings
        return h, embeddings, self.classifier(h)


def example_images(model: ExportedModel) -> Tensor:
    """Return images to trace a model with. With one image, the size of the batch would become a constant."""
    size = model.embedder.encoder.config["size"]
    return torch.zeros(2, 3, size, size, dtype=torch.uint8)


def metadata(model: ExportedModel) -> dict[str, str]:
    """Return what a file says of the model, as strings: how images are resized, and the names of the classes."""
    encoder = model.embedder.encoder
    table = {
        "backbone": public_backbone(model),
        "size": str(encoder.config["size"]),
        "preprocessing": json.dumps(model.embedder.preprocessing._asdict()),
    }
    if model.classifier is not None:
        table["classes"] = json.dumps(model.classifier.classes)
    return table


def describe(model: ExportedModel) -> str:
    """Return what goes in and comes out, as a part of a line."""
    encoder = model.embedder.encoder
    size = encoder.config["size"]
    text = (
        f"images uint8 (batch, 3, {size}, {size}) -> features (batch, {encoder.num_features}), embeddings (unit length)"
    )
    if model.classifier is not None:
        text += f", logits of {format_count(len(model.classifier.classes), 'class', 'classes')}"
    return text
