"""The queries on which a run was evaluated, as a collection: their features, classes and predictions are in its folder."""

from functools import partial
from pathlib import Path

import torch

from reptk.core.counts import format_count
from reptk.core.errors import UsageError
from reptk.data import Split
from reptk.embeddings import Embedder, Embeddings, Index
from reptk.embeddings.encoding.embedder import recorded_options
from reptk.embeddings.unit_length import with_unit_length
from reptk.evaluate.predictions import Predictions
from reptk.explore.columns import RIGHT_OR_WRONG, ColorColumn, NeighborVotes, class_names, errors, is_labeled
from reptk.explore.image_collection import ImageCollection
from reptk.explore.pictures import Pictures
from reptk.report.run_files import Run, read_run
from reptk.report.run_images import OpenedDatasets


def open_run(folder: Path, *, trust: bool = False, device: str = "auto") -> ImageCollection:
    """Return the queries of a run, or of a folder that `reptk evaluate --out` has written.

    Args:
        folder: of the run.
        trust: whether to execute the plugins in it, one of which may register its data set.
        device: where its encoder runs, for pictures that are searched.

    Raises:
        UsageError: it has not been evaluated.
        DataError: a file of it is damaged.
    """
    run = read_run(folder, folder.name)
    predictions = run.predictions
    if predictions is None or not len(predictions):
        raise UsageError(
            f"{folder} holds no predictions to look at. Evaluate it: reptk evaluate {folder}; or embed images with it: "
            f"reptk explore my_photos --encoder {folder}"
        )
    images = OpenedDatasets(trust).images_of(run)
    split = images.split(predictions.query_split)
    embeddings = with_unit_length(_embeddings(predictions, split), str(folder))
    queries = format_count(len(embeddings), "query", "queries")
    notes = [f"{queries} on which {run.title} was evaluated"]
    if images.missing_reason:
        notes.append(images.missing_reason)
    pictures = Pictures(embeddings)
    if split is not None and embeddings.paths is None:
        pictures = Pictures(embeddings, split, predictions.index)
    return ImageCollection(
        title=str(folder),
        index=Index(embeddings),
        pictures=pictures,
        columns=_columns(embeddings, predictions),
        open_embedder=partial(_open_embedder, run, split, device),
        notes=notes,
        device=device,
    )


def _embeddings(predictions: Predictions, split: Split | None) -> Embeddings:
    numbers = predictions.index.tolist()
    ids = [f"{predictions.query_split}/{number}" for number in numbers]
    paths = None
    if split is not None:
        files = [split.images.path(number) for number in numbers]
        if None not in files:
            paths = [str(file) for file in files]
    return Embeddings(predictions.features.float(), ids, paths, predictions.labels, predictions.classes)


def _columns(embeddings: Embeddings, predictions: Predictions) -> list[ColorColumn]:
    """Return class, prediction and error as the evaluation has them, how sure the vote was, and the nearest query."""
    columns = []
    if is_labeled(embeddings):
        names = class_names(embeddings)
        columns.append(ColorColumn("class", "category", embeddings.labels.numpy, names))
        if predictions.vote:
            predicted = predictions.predicted.numpy()
            num_classes = max(len(names), int(predicted.max()) + 1)
            names = [embeddings.class_name(label) for label in range(num_classes)]
            wrong = errors(embeddings.labels.numpy(), predicted)
            columns.append(ColorColumn("prediction", "category", lambda: predicted, names, predictions.vote))
            columns.append(ColorColumn("error", "category", lambda: wrong, RIGHT_OR_WRONG, predictions.vote))
            columns.append(
                ColorColumn("share of the vote", "number", predictions.confidence.numpy, note=predictions.vote)
            )
    if len(embeddings) > 1:
        similarity = NeighborVotes(embeddings).similarity
        columns.append(ColorColumn("similarity to the nearest", "number", similarity, is_slow=True))
    return columns


def _open_embedder(run: Run, split: Split | None, device: str) -> Embedder:
    embedder = Embedder.open(run.folder, device=device)
    # As its evaluation prepared the queries.
    embedder.preprocessing = embedder.native_preprocessing()
    embedder.options = recorded_options(run.data_part)
    if split is not None:
        first_image = split.images.fetch(torch.tensor([0]))
        embedder.decode_px = min(first_image.shape[-2:])
    return embedder
