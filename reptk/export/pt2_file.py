"""Write an encoder as pt2, the format of torch.export: any number of images, normalization inside."""

import warnings
from pathlib import Path

import torch

from reptk.core.counts import format_bytes
from reptk.core.disk_space import explain_write_errors
from reptk.core.errors import UsageError, first_line
from reptk.core.files import atomic_write
from reptk.export.check_images import CheckImages, check_batches, compare
from reptk.export.export_module import INPUT, ExportModule, describe, example_images, metadata
from reptk.export.exported_model import ExportedModel


def write(model: ExportedModel, images: CheckImages, out: Path) -> list[str]:
    """Write the file, read it back and compare the features. Returns lines to print.

    Raises:
        UsageError: torch cannot trace the backbone.
        NumericalError: the file computes something else.
        EnvironmentProblem: the file cannot be written.
    """
    module = ExportModule(model)
    program = _trace(module, model)
    num_bytes = sum(weight.numel() * weight.element_size() for weight in module.state_dict().values())
    with explain_write_errors(out), atomic_write(out, needed_bytes=num_bytes) as temporary:
        torch.export.save(program, temporary, extra_files={f"{key}.txt": text for key, text in metadata(model).items()})
        loaded = torch.export.load(temporary).module()
        batches = check_batches(images)
        with torch.no_grad():
            features = torch.cat([loaded(batch)[0] for batch in batches])
            expected = torch.cat([model.embedder.encoder.features(batch) for batch in batches])
        line = compare(expected, features, images, f"torch {torch.__version__}")
    return [f"{out}: {describe(model)}, {format_bytes(out.stat().st_size)}", line]


def _trace(module: ExportModule, model: ExportedModel) -> torch.export.ExportedProgram:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the inside of the tracer
            batch = torch.export.Dim("batch")
            return torch.export.export(module, (example_images(model),), dynamic_shapes={INPUT: {0: batch}})
    # The tracer raises errors of many types.
    except Exception as cause:
        backbone = model.embedder.encoder.config["backbone"]
        raise UsageError(
            f"torch.export cannot trace {backbone}: {first_line(cause)}. --to timm and safetensors do not need that"
        ) from cause
