"""The data set of a recipe, with its labels checked."""

import warnings
from collections.abc import Callable
from typing import TypeVar

from reptk.config import Recipe, Table
from reptk.config import build as build_part
from reptk.config.part_tables import label_options
from reptk.config.registry import DATASETS, LOSSES, METHODS
from reptk.core import distributed
from reptk.core.console import Logger
from reptk.core.errors import DataError
from reptk.data import Data
from reptk.data.labels.label_selection import select_labels
from reptk.data.layouts.folder_scan import SkippedFiles
from reptk.evaluate.verdict import PRETRAINED
from reptk.models.preprocessing import with_preprocessing
from reptk.training.recipe_checks import check_classes, check_labels

T = TypeVar("T")


def load_data(recipe: Recipe, logger: Logger | None = None) -> Data:
    """Load the recipe's data set, and check that there are labels if the positives are classes.

    Args:
        recipe: of the run.
        logger: where to say which of the user's files are read and which are skipped; None to warn of skipped files alone.

    Raises:
        DataError: the images are missing or cannot be read, or there are no labels.
    """
    with warnings.catch_warnings():
        if logger is not None:
            warnings.simplefilter("ignore", SkippedFiles)  # the summary counts them
        try:
            data = in_turns_if(recipe.data.get("download"), lambda: build_part(DATASETS, data_table(recipe)))
        except OSError as cause:
            raise DataError(f"{recipe.data['name']}: {cause}") from cause
    options = label_options(recipe.data)
    if options:
        seed = recipe.seed
        if recipe.start is not None and recipe.start.label_seed is not None:
            # The labels of the run: the stage is not to use more than these.
            seed = recipe.start.label_seed
        data = select_labels(data, options.get("labelled"), only_labelled=options["only_labelled"], seed=seed)
    if METHODS.takes(recipe.method["name"], "num_classes"):
        check_classes(METHODS.kind, recipe.method, recipe, data)
    elif recipe.loss is not None and LOSSES.takes(recipe.loss["name"], "num_classes"):
        check_classes(LOSSES.kind, recipe.loss, recipe, data)
    elif recipe.method.get("positives") == "class":
        check_labels(recipe, data)
    if logger is not None:
        for line in data.summary:
            logger.line(line)
    return data


def in_turns_if(may_download: object, function: Callable[[], T]) -> T:
    """Call a function on all ranks at once, or in turns if it may download files that the later ranks then find."""
    if may_download:
        return distributed.run_in_turns(function)
    return function()


def data_table(recipe: Recipe) -> Table:
    """Return the recipe's `[data]`, with the backbone's preprocessing where it sets none."""
    has_weights = initial_weights(recipe) == PRETRAINED
    if recipe.start is not None:
        # As the run that it starts from: features are to be those of its evaluation.
        has_weights = recipe.start.pretrained
    return with_preprocessing(recipe.data, recipe.encoder.backbone, has_weights=has_weights, is_trained=True)


def initial_weights(recipe: Recipe) -> str:
    """Return what the backbone's weights are before training: "starting" in a stage, else "pretrained" or "random"."""
    if recipe.start is not None:
        return "starting"
    if recipe.encoder.pretrained or recipe.encoder.weights is not None:
        return PRETRAINED
    return "random"
