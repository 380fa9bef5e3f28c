"""Write the weights of an encoder into a model's folder, and read an encoder from one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from reptk.core.arrays import names_of_non_finite
from reptk.core.counts import format_count
from reptk.core.disk_space import explain_write_errors
from reptk.core.errors import DataError, NumericalError
from reptk.core.file_records import read_replaceable
from reptk.core.files import expand_home
from reptk.core.foreign_files import read_json
from reptk.models.model_folder import (
    CONFIG_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    check_model,
    damage_message,
    find_model,
    write_model,
)

E = TypeVar("E", bound=nn.Module)


def save_model(
    folder: str | Path, state: Mapping[str, Tensor], config: dict[str, Any], classifier: bytes | None = None
) -> None:
    """Write a model's folder, in place of an earlier one, in one step.

    Args:
        folder: the folder. Those above it are created.
        state: the state dict of the encoder.
        config: what `config.json` holds.
        classifier: the content of `classifier.safetensors`; None for no such file.

    Raises:
        UsageError: the folder exists and holds other files, which would be lost.
        EnvironmentProblem: it cannot be written.
        NumericalError: the state holds NaN or infinity; nothing is written.
    """
    non_finite = names_of_non_finite(state)
    if non_finite:
        raise NumericalError(
            f"the model is not saved: NaN or infinity in {format_count(len(non_finite), 'weight')}, {non_finite[0]} first"
        )
    folder = Path(folder)
    # safetensors stores contiguous tensors only, and weights may be in channels-last memory.
    stored = {name: value.contiguous().cpu() for name, value in state.items()}
    with explain_write_errors(folder, advice="Choose another folder"):
        write_model(folder, save(stored), config, classifier)


def load_model(run: str | Path, build: Callable[[dict[str, Any]], E]) -> E:
    """Return the encoder of a run with its weights.

    Args:
        run: the run's folder, or the `model` folder in it.
        build: from the content of `config.json` to an encoder of that architecture.

    Raises:
        DataError: there is no model, or it is damaged.
    """
    folder = find_model(run, expand_home(run))
    return read_replaceable(folder / MANIFEST_FILE, lambda: _load(folder, build))


def _load(folder: Path, build: Callable[[dict[str, Any]], E]) -> E:
    check_model(folder)
    try:
        encoder = build(read_json(folder / CONFIG_FILE))
        encoder.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (AttributeError, OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as cause:
        raise DataError(damage_message(folder, str(cause))) from cause
    return encoder
