"""The linear classifier of a run: `classifier.safetensors` in its model folder, with the names of the classes."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from reptk.core.arrays import names_of_non_finite
from reptk.core.counts import format_count
from reptk.core.errors import DataError, NumericalError
from reptk.core.file_records import read_replaceable
from reptk.core.files import expand_home, parse_json
from reptk.core.name_lists import first_names
from reptk.models.model_folder import CLASSIFIER_FILE, MANIFEST_FILE, check_model, damage_message, find_model

MAX_LISTED_CLASSES = 5
"""Classes that a message lists."""


class SavedClassifier(NamedTuple):
    """A linear classifier of features, and what it was trained to tell apart.

    module: features (B, F), as `Encoder.features` returns them, to scores (B, C).
    classes: C names, in the order of the scores.
    """

    module: nn.Linear
    classes: tuple[str, ...]

    def difference_to(self, classes: tuple[str, ...]) -> str | None:
        """Return how its classes differ from those of a data set, as a part of a sentence; None if they are the same."""
        if self.classes == classes:
            return None
        if set(self.classes) == set(classes):
            return "the same classes in another order"
        return f"{_listed(self.classes)} there, {_listed(classes)} here"


def classifier_bytes(module: nn.Linear, classes: tuple[str, ...]) -> bytes:
    """Return the content of `classifier.safetensors`.

    Args:
        module: features (B, F) to scores (B, C).
        classes: C names, in the order of the scores.

    Raises:
        NumericalError: weights hold NaN or infinity.
    """
    state = {name: value.detach().contiguous().cpu() for name, value in module.state_dict().items()}
    if names_of_non_finite(state):
        raise NumericalError("the model is not saved: NaN or infinity in the weights of the classifier")
    return save(state, metadata={"classes": json.dumps(classes)})


def read_classifier(run: str | Path) -> SavedClassifier | None:
    """Read the classifier of a run; None if its model has none.

    Args:
        run: the run's folder, or the `model` folder in it.

    Raises:
        DataError: there is no model, or it is damaged.
    """
    folder = find_model(run, expand_home(run))
    return read_replaceable(folder / MANIFEST_FILE, lambda: _read(folder))


def _read(folder: Path) -> SavedClassifier | None:
    check_model(folder)
    path = folder / CLASSIFIER_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
            metadata = file.metadata() or {}
        classes = tuple(str(name) for name in parse_json(metadata["classes"]))
        return SavedClassifier(_linear(weight, bias, len(classes)), classes)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as cause:
        raise DataError(damage_message(folder, f"{CLASSIFIER_FILE}: {cause}")) from cause


def _linear(weight: Tensor, bias: Tensor, num_classes: int) -> nn.Linear:
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or len(weight) != num_classes:
        shapes = f"weights {tuple(weight.shape)}, biases {tuple(bias.shape)}"
        raise ValueError(f"{shapes} and {format_count(num_classes, 'class', 'classes')} do not fit together")
    module = nn.Linear(weight.shape[1], len(weight), device="meta").to_empty(device="cpu")
    with torch.no_grad():
        module.weight.copy_(weight)
        module.bias.copy_(bias)
    return module


def _listed(classes: tuple[str, ...]) -> str:
    return f"{format_count(len(classes), 'class', 'classes')} ({first_names(classes, MAX_LISTED_CLASSES)})"
