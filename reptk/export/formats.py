"""The formats in which an encoder can be written, by name, and the one function that does it."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from reptk.core.errors import EnvironmentProblem, UsageError
from reptk.core.files import holds_only
from reptk.embeddings.encoding.embedder import recipe_of
from reptk.embeddings.files.output_path import check_new_folder, check_output_file
from reptk.export import onnx_file, pt2_file, timm_folder, weights_file
from reptk.export.check_images import CheckImages, read_check_images
from reptk.export.exported_model import ExportedModel, open_model
from reptk.models.model_folder import FILE_NAMES


class Format(NamedTuple):
    """A format of encoders.

    write: (model, images, out), which writes it after a comparison and returns lines to print.
    suffix: that the file must have; None for a folder.
    packages: that have to be installed.
    """

    write: Callable[[ExportedModel, CheckImages, Path], list[str]]
    suffix: str | None
    packages: tuple[str, ...] = ()


FORMATS = {
    "onnx": Format(onnx_file.write, ".onnx", ("onnx", "onnxscript", "onnxruntime")),
    "pt2": Format(pt2_file.write, ".pt2"),
    "timm": Format(timm_folder.write, None),
    "safetensors": Format(weights_file.write, ".safetensors"),
}


def export_model(
    run: str | Path,
    name: str,
    out: str | Path,
    *,
    data: str | None = None,
    num_images: int = 64,
    force: bool = False,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Write the encoder of a run in another format, read it back, and compare the features of some images.

    Args:
        run: the run's folder, or its model folder.
        name: one of `FORMATS`.
        out: the file or folder to write.
        data: the images for the comparison: a folder, a table or a data set's name; by default the run's own.
        num_images: how many are compared.
        force: replace `out` if it exists.
        report: called with each line of a summary.

    Returns:
        The path.

    Raises:
        UsageError: an unknown format, or a model that it cannot hold, or `out` exists.
        EnvironmentProblem: a package is missing, or `out` cannot be written.
        DataError: there is no such model, or no images.
        NumericalError: what was written computes something else; nothing is left of it.
    """
    out = Path(out)
    file_format = FORMATS[name]
    check_installed(name)
    if file_format.suffix is None:
        if out.exists() and not force:
            raise UsageError(f"{out} exists. Choose another --out, or write over it: --force")
        if out.exists() and not holds_only(out, FILE_NAMES):
            raise UsageError(f"{out} holds more than a model, which would be lost; choose another --out")
        check_new_folder(out.absolute() / "model")
    else:
        if out.suffix.lower() != file_format.suffix:
            raise UsageError(f"--out: a file of {name} ends in {file_format.suffix}, got {out.name!r}")
        check_output_file(out, force=force)
    model = open_model(run)
    table_of_run = dict(recipe_of(run).get("data", {}))
    images = read_check_images(model.embedder, table_of_run, data, num_images)
    for line in file_format.write(model, images, out):
        if report is not None:
            report(line)
    return out


def check_installed(name: str) -> None:
    """Raise EnvironmentProblem unless the packages that a format needs are installed."""
    missing = [package for package in FORMATS[name].packages if find_spec(package) is None]
    if missing:
        raise EnvironmentProblem(
            f"--to {name} needs {' and '.join(missing)}, not installed here: pip install 'reptk[export]'"
        )
