"""What `reptk evaluate` evaluates: the encoder of a run or a timm backbone, its untrained counterpart, and the data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reptk import config
from reptk.core.errors import UsageError
from reptk.data.decoding.resize import Preprocessing
from reptk.embeddings.encoding.embedder import Embedder, recipe_of

if TYPE_CHECKING:
    from reptk.core.device import Precision
    from reptk.models.classifier import SavedClassifier
    from reptk.models.encoder import Encoder


@dataclass(frozen=True)
class Subject:
    """An encoder to evaluate.

    Args:
        name: as on the command line.
        encoder: that is evaluated.
        untrained: the same architecture with initial weights, a baseline; None if there is nothing to compare with.
        recipe: of the run that the encoder comes from; empty if it is not from a run.
        classifier: that was trained with the encoder, if there is one.
        precision: in which it encodes.
        has_weights: whether its backbone had trained weights before any training by reptk.
    """

    name: str
    encoder: "Encoder"
    untrained: "Encoder | None"
    recipe: config.Table
    classifier: "SavedClassifier | None"
    precision: "Precision"
    has_weights: bool

    def complete_data(self, table: config.Table) -> config.Table:
        """Return the complete table of a data set, with the preprocessing of the encoder where the table sets none."""
        from reptk.models.preprocessing import with_preprocessing

        completed = config.complete("data", table)
        backbone = self.encoder.config["backbone"]
        is_trained = bool(self.recipe)
        if not is_trained and self.encoder.preprocessing is not None:
            # A model folder without its run, which records the preprocessing itself.
            if "interpolation" in completed:
                completed = {**completed, **self.encoder.preprocessing.updated(completed)._asdict()}
        else:
            completed = with_preprocessing(completed, backbone, has_weights=self.has_weights, is_trained=is_trained)
        if "interpolation" in completed and "size" not in table:
            # The crop then has the encoder's size without being resized again.
            preprocessing = Preprocessing(completed["crop"])
            completed["size"] = preprocessing.decode_px(self.encoder.config["size"])
        return completed


def open_subject(
    source: str,
    *,
    size: int | None = None,
    pretrained: bool = False,
    weights: str | None = None,
    baselines: bool = True,
) -> Subject:
    """Open the encoder of a run or a timm backbone.

    Args:
        source: a run's folder, its model folder, or a timm name.
        size, pretrained, weights: of a timm backbone, see `Embedder.open`.
        baselines: whether to build the untrained encoder.

    Raises:
        UsageError, DataError, EnvironmentProblem: there is no such encoder, or its weights are not available.
    """
    from reptk.core import rng
    from reptk.models.classifier import read_classifier
    from reptk.models.encoder import Encoder

    embedder = Embedder.open(source, size=size, pretrained=pretrained, weights=weights)
    recipe = {}
    if "run" in embedder.origin:
        recipe = recipe_of(source)
    untrained = None
    if baselines and not embedder.is_untrained:
        # As in training: if nothing was pretrained, these are the weights with which the run began.
        with rng.seeded(recipe.get("seed", 0), "initial weights"):
            untrained = Encoder(**embedder.encoder.config)
    classifier = None
    if "run" in embedder.origin:
        classifier = read_classifier(source)
    return Subject(
        name=source,
        encoder=embedder.encoder,
        untrained=untrained,
        recipe=recipe,
        classifier=classifier,
        precision=embedder.precision,
        has_weights=embedder.started_from_weights,
    )


def data_table(source: str, overrides: config.Table) -> config.Table:
    """Return the table of the data set: the one that is named, else the one that the run was trained on.

    Raises:
        UsageError: no data set is named, and the source is not a run.
        RecipeError: the table does not validate.
    """
    table = dict(overrides)
    if "name" not in table and _is_folder(source):
        table = {**recipe_of(source).get("data", {}), **table}
    if "name" not in table:
        raise UsageError("no data set is named; set e.g. data.name=photos, or data.name=folder data.root=my_photos")
    config.complete("data", table)
    return table


def _is_folder(source: str) -> bool:
    """Return whether a source is meant to be a folder rather than a timm model, whether it exists or not."""
    return Path(source).exists() or len(Path(source).parts) > 1
