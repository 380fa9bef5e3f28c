"""What `reptk evaluate` measures: the encoder of a run or a timm backbone, and the one it is held against."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reptk import config
from reptk.core.errors import UsageError
from reptk.embeddings.embedder import Embedder, recipe_of

if TYPE_CHECKING:
    from reptk.models.encoder import Encoder


@dataclass(frozen=True)
class Subject:
    """What is evaluated: an encoder, the one it is held against, the recipe it comes from (empty for none), its precision."""

    name: str
    encoder: "Encoder"
    untrained: "Encoder | None"
    recipe: config.Table
    bf16: bool


def subject_of(asked: argparse.Namespace, size: int | None) -> Subject:
    """The encoder that the command line names.

    Raises:
        UsageError, DataError, EnvironmentProblem: there is none, or its weights cannot be had.
    """
    from reptk.core import rng
    from reptk.models.encoder import Encoder

    made = Embedder.open(asked.source, size=size, pretrained=asked.pretrained, weights=asked.weights)
    recipe = recipe_of(asked.source) if "run" in made.origin else {}
    untrained = None
    if asked.baselines and not made.is_untrained:
        with rng.seeded(recipe.get("seed", 0), "initial weights"):
            untrained = Encoder(**made.encoder.config)
    return Subject(asked.source, made.encoder, untrained, recipe, made.bf16)


def is_place(source: str) -> bool:
    """Whether a source names a folder rather than a timm model."""
    return Path(source).exists() or len(Path(source).parts) > 1


def data_part(source: str, chosen: config.Table) -> config.Table:
    """The data set that was named, else the one the run was trained on."""
    part = dict(chosen)
    if "name" not in part and is_place(source):
        part = {**recipe_of(source).get("data", {}), **part}
    if "name" not in part:
        raise UsageError("on which data set? e.g. data.name=photos, or data.name=folder data.root=my_photos")
    return config.complete("data", part)
