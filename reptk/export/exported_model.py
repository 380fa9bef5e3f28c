"""The model of a run, opened to be written in another format."""

from dataclasses import dataclass
from pathlib import Path

from reptk.core.errors import UsageError
from reptk.embeddings.embedder import Embedder
from reptk.models.classifier import SavedClassifier, read_classifier


@dataclass(frozen=True)
class ExportedModel:
    """A model that is written in another format.

    Args:
        name: as the user named it.
        embedder: the encoder on the CPU, with its preprocessing.
        classifier: that was trained with it; None if there is none.
    """

    name: str
    embedder: Embedder
    classifier: SavedClassifier | None


def open_model(run: str | Path) -> ExportedModel:
    """Open the model of a run.

    Args:
        run: the run's folder, or the `model` folder in it, or one that was pulled from the hub.

    Raises:
        DataError: there is no model, or it is damaged.
    """
    embedder = Embedder.open(run, device="cpu")
    if "run" not in embedder.origin:
        raise UsageError(
            f"a run is exported, or its model folder, and {run} is neither. timm's own models: timm.utils.onnx and "
            "timm.models.push_to_hf_hub"
        )
    embedder.preprocessing = embedder.native_preprocessing()
    return ExportedModel(str(run), embedder, read_classifier(run))
