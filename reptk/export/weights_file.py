"""Write the weights of a backbone alone, under timm's names, as one safetensors file."""

from pathlib import Path

import torch

from reptk.core.counts import format_bytes
from reptk.core.disk_space import explain_write_errors
from reptk.core.files import atomic_write
from reptk.export.check_images import CheckImages, compare
from reptk.export.export_module import metadata
from reptk.export.exported_model import ExportedModel
from reptk.models.encoder import Encoder
from reptk.models.saved_model import weights_bytes


def write(model: ExportedModel, images: CheckImages, out: Path) -> list[str]:
    """Write the file, and compare the features of an encoder that loads it. Returns lines to print.

    Raises:
        NumericalError: the file holds something else.
        EnvironmentProblem: the file cannot be written.
    """
    encoder = model.embedder.encoder
    content = weights_bytes(encoder.backbone.state_dict(), metadata(model))
    with explain_write_errors(out), atomic_write(out, needed_bytes=len(content)) as temporary:
        temporary.write_bytes(content)
        loaded = Encoder(**{**encoder.config, "head_layers": 0}, weights=str(temporary)).eval()
        with torch.no_grad():
            line = compare(encoder.features(images.pixels), loaded.features(images.pixels), images, "reptk")
    backbone, stem = encoder.config["backbone"], encoder.config["stem"]
    usage = f"encoder.backbone={backbone} encoder.weights={out}"
    if stem != "timm":
        usage += f" encoder.stem={stem}"
    return [f"{out}: weights of {backbone}, {format_bytes(out.stat().st_size)}; in a recipe: {usage}", line]
