"""Write an encoder as ONNX: any number of images, normalization inside, checked by onnxruntime."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptk.core.counts import format_bytes
from reptk.core.disk_space import explain_write_errors
from reptk.core.errors import UsageError, first_line
from reptk.core.files import atomic_write
from reptk.export.check_images import CheckImages, check_batches, compare
from reptk.export.export_module import INPUT, ExportModule, describe, example_images, metadata
from reptk.export.exported_model import ExportedModel

MAX_BYTES = (1 << 31) - (1 << 20)
"""Of the file: protobuf allows 2 GiB."""


def write(model: ExportedModel, images: CheckImages, out: Path) -> list[str]:
    """Write the file after onnxruntime has computed the encoder's features with it. Returns lines to print.

    Raises:
        UsageError: the backbone cannot be written as ONNX.
        NumericalError: onnxruntime computes something else.
        EnvironmentProblem: the file cannot be written.
    """
    import onnxruntime

    module = ExportModule(model)
    num_bytes = sum(weight.numel() * weight.element_size() for weight in module.state_dict().values())
    if num_bytes > MAX_BYTES:
        raise UsageError(
            f"{model.name} has {format_bytes(num_bytes)} of weights, and a file of ONNX holds 2 GiB; use --to pt2"
        )
    program = _trace(module, model)
    for key, value in metadata(model).items():
        program.model.metadata_props[key] = value
    with explain_write_errors(out), atomic_write(out, needed_bytes=num_bytes) as temporary:
        program.save(temporary, external_data=False)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        batches = check_batches(images)
        features = torch.cat([_run(session, batch) for batch in batches])
        with torch.no_grad():
            expected = torch.cat([model.embedder.encoder.features(batch) for batch in batches])
        line = compare(expected, features, images, f"onnxruntime {onnxruntime.__version__}")
    return [
        f"{out}: {describe(model)}, opset {program.model.opset_imports['']}, {format_bytes(out.stat().st_size)}",
        line,
    ]


def _trace(module: ExportModule, model: ExportedModel) -> Any:
    """Return the model as a program of ONNX."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the inside of the exporter
            return torch.onnx.export(
                module,
                (example_images(model),),
                dynamo=True,
                input_names=[INPUT],
                output_names=module.output_names,
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
                verbose=False,
            )
    # The exporter raises errors of many types, some of them of hundreds of lines.
    except Exception as cause:
        backbone = model.embedder.encoder.config["backbone"]
        raise UsageError(
            f"torch cannot write {backbone} as ONNX: {first_line(cause)}. --to pt2, timm and safetensors do not need that"
        ) from cause
    finally:
        logger.setLevel(level)


def _run(session: Any, pixels: Tensor) -> Tensor:
    [features] = session.run(["features"], {INPUT: pixels.numpy()})
    return torch.from_numpy(features)
