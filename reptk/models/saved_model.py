"""Write the weights of an encoder into a model's folder, and read an encoder from one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from reptk.config.run_paths import EARLIER_MODEL_WEIGHTS, MODEL_WEIGHTS
from reptk.core.arrays import names_of_non_finite
from reptk.core.counts import format_count
from reptk.core.disk_space import explain_write_errors
from reptk.core.errors import DataError, NumericalError
from reptk.core.file_records import read_replaceable
from reptk.core.files import expand_home
from reptk.models.model_folder import (
    CLASSIFIER_FILE,
    HEAD_FILE,
    MANIFEST_FILE,
    check_model,
    damage_message,
    find_model,
    weights_file,
    write_model,
)

E = TypeVar("E", bound=nn.Module)

BACKBONE = "backbone."
HEAD = "head."
"""What the names of an encoder's tensors begin with."""


def save_model(
    folder: str | Path, state: Mapping[str, Tensor], config: dict[str, Any], classifier: bytes | None = None
) -> None:
    """Write a model's folder, in place of an earlier one, in one step.

    Args:
        folder: the folder. Those above it are created.
        state: the state dict of the encoder, whose names begin with `backbone.` or `head.`.
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
    weights = {MODEL_WEIGHTS: weights_bytes(part_of_state(state, BACKBONE))}
    head = part_of_state(state, HEAD)
    if head:
        weights[HEAD_FILE] = weights_bytes(head)
    if classifier is not None:
        weights[CLASSIFIER_FILE] = classifier
    with explain_write_errors(folder, advice="Choose another folder"):
        write_model(folder, weights, config)


def part_of_state(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, under their names without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def weights_bytes(state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a state dict as the content of a safetensors file, with the metadata that transformers demands."""
    # safetensors stores contiguous tensors only, and weights may be in channels-last memory.
    stored = {name: value.contiguous().cpu() for name, value in state.items()}
    return save(stored, metadata={"format": "pt", **(metadata or {})})


def load_model(run: str | Path, build: Callable[[Path], E]) -> E:
    """Return the encoder of a run with its weights.

    Args:
        run: the run's folder, or the `model` folder in it.
        build: from the model's folder to an encoder of that architecture.

    Raises:
        DataError: there is no model, or it is damaged.
    """
    folder = find_model(run, expand_home(run))
    return read_replaceable(folder / MANIFEST_FILE, lambda: _load(folder, build))


def _load(folder: Path, build: Callable[[Path], E]) -> E:
    check_model(folder)
    try:
        encoder = build(folder)
        encoder.load_state_dict(_read_state(folder))
    except (AttributeError, OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as cause:
        raise DataError(damage_message(folder, str(cause))) from cause
    return encoder


def _read_state(folder: Path) -> dict[str, Tensor]:
    """Return the state dict of an encoder from a model's folder."""
    file = weights_file(folder)
    if file.name == EARLIER_MODEL_WEIGHTS:
        return load_file(file)
    state = {f"{BACKBONE}{name}": value for name, value in load_file(file).items()}
    if (folder / HEAD_FILE).is_file():
        state |= {f"{HEAD}{name}": value for name, value in load_file(folder / HEAD_FILE).items()}
    return state
