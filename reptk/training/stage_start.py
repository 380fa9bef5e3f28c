"""How a stage starts from a run: its classifier, and the record of the run for results.json."""

from pathlib import Path
from typing import Any

from reptk.config import read
from reptk.core.errors import DataError, ReptkError
from reptk.core.files import sha256_of
from reptk.methods import Method
from reptk.models.classifier import read_classifier
from reptk.models.model_folder import find_model, weights_file


def load_classifier(method: Method, run: str, classes: tuple[str, ...]) -> bool:
    """Load the classifier of a run into a method.

    Args:
        method: that trains a classifier.
        run: the run's folder.
        classes: of the data set.

    Returns:
        Whether there was one.

    Raises:
        DataError: it has other classes.
    """
    saved = read_classifier(run)
    if saved is None or method.classifier is None:
        return False
    difference = saved.difference_to(classes)
    if difference is not None:
        raise DataError(
            f"start.classifier=run: the classifier of {run} has other classes: {difference}. For a new classifier: "
            "start.classifier=new"
        )
    method.classifier.load_state_dict(saved.module.state_dict())
    return True


def start_record(run: str) -> dict[str, Any]:
    """Return what results.json records of the run that a stage has started from; only its folder if it is gone."""
    record = {"run": run}
    try:
        weights = weights_file(find_model(run, Path(run)))
        record["recipe"] = str(read(Path(run) / "recipe.toml").get("name", "?"))
        record["encoder_sha256"] = sha256_of(weights)
    except (ReptkError, OSError):
        return {"run": run}
    return record
