"""Write the folder of a model, which timm opens, from the run of any version, and compare the features by timm."""

from pathlib import Path

import timm
import torch

from reptk.core.disk_space import explain_write_errors
from reptk.core.errors import UsageError
from reptk.core.files import atomic_folder
from reptk.export.check_images import CheckImages, compare
from reptk.export.exported_model import ExportedModel, write_model_folder
from reptk.models.timm_config import timm_problem


def write(model: ExportedModel, images: CheckImages, out: Path) -> list[str]:
    """Write the folder, and open it with timm. Returns lines to print.

    Raises:
        UsageError: timm cannot build the backbone.
        NumericalError: timm computes something else.
        EnvironmentProblem: the folder cannot be written.
    """
    encoder = model.embedder.encoder
    problem = timm_problem(encoder.config["backbone"], encoder.config["stem"])
    if problem is not None:
        raise UsageError(f"timm cannot hold {model.name}: {problem}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with explain_write_errors(out), atomic_folder(out, force=True) as temporary:
        write_model_folder(model, temporary)
        opened = timm.create_model(f"local-dir:{temporary}", pretrained=True).eval()
        with torch.no_grad():
            floats = images.pixels.float() / 255
            features = opened((floats - encoder.mean) / encoder.std)
            expected = encoder.features(images.pixels)
        line = compare(expected, features, images, f"timm {timm.__version__}")
    return [
        f"{out}: timm.create_model('local-dir:{out}', pretrained=True), transformers.AutoModel.from_pretrained('{out}')",
        line,
    ]
