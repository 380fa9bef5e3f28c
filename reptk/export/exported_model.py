"""The model of a run, opened to be written in another format."""

from dataclasses import dataclass
from pathlib import Path

from reptk.core.errors import UsageError
from reptk.embeddings.encoding.embedder import Embedder
from reptk.models.classifier import SavedClassifier, classifier_bytes, read_classifier
from reptk.models.weight_source import LOCAL_FOLDER


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


def public_backbone(model: ExportedModel) -> str:
    """Return the name of the backbone without the path of a folder, which is private: `local-dir:NAME`."""
    backbone: str = model.embedder.encoder.config["backbone"]
    if not backbone.startswith(LOCAL_FOLDER):
        return backbone
    return f"{LOCAL_FOLDER}{Path(backbone.removeprefix(LOCAL_FOLDER)).name}"


def write_model_folder(model: ExportedModel, folder: Path) -> None:
    """Write the folder of a model in the format of this version, whatever that of the run is, without private paths.

    Args:
        model: the model.
        folder: the folder, which must not hold anything else.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    classifier = None
    if model.classifier is not None:
        classifier = classifier_bytes(model.classifier.module, model.classifier.classes)
    encoder = model.embedder.encoder
    backbone = encoder.config["backbone"]
    try:
        # `config.json` describes the architecture itself, so the folder that it came from is not read again.
        encoder.config["backbone"] = public_backbone(model)
        encoder.save(folder, classifier, model.embedder.preprocessing)
    finally:
        encoder.config["backbone"] = backbone
