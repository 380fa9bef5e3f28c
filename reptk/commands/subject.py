"""What `reptk evaluate` measures: the encoder of a run or a timm backbone, and the one it is held against."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reptk import config
from reptk.catalogue.embedder import recipe_of
from reptk.errors import UsageError

if TYPE_CHECKING:
    from reptk.encoder import Encoder


@dataclass(frozen=True)
class Subject:
    """What is evaluated: an encoder, the one it is held against, and the recipe it comes from (empty for none)."""

    name: str
    encoder: "Encoder"
    untrained: "Encoder | None"
    recipe: config.Table

    @property
    def is_bf16(self) -> bool:
        return self.recipe.get("train", {}).get("precision") == "bf16"


def subject_of(asked: argparse.Namespace, size: int | None) -> Subject:
    from reptk.encoder import Encoder, native_size
    from reptk.keyed import keyed

    if is_place(asked.source):
        if size is not None or asked.weights is not None or asked.pretrained:
            raise UsageError("size, --weights and --pretrained go with a timm name; a run has its own")
        encoder, recipe = Encoder.from_run(asked.source), recipe_of(asked.source)
        with keyed(recipe.get("seed", 0), "initial weights"):
            untrained = _untrained(recipe, encoder) if asked.baselines else None
        return Subject(asked.source, encoder, untrained, recipe)
    size = native_size(asked.source) if size is None else size
    if not isinstance(size, int) or isinstance(size, bool) or size < 4:
        raise UsageError(f"size must be an integer of at least 4, got {size!r}")
    options = {"pretrained": asked.pretrained, "weights": asked.weights}
    with keyed(0, "initial weights"):
        encoder = Encoder(asked.source, size=size, **options, head_layers=0).eval()
    with keyed(0, "initial weights"):
        untrained = Encoder(asked.source, size=size, head_layers=0) if any(options.values()) else None
    return Subject(asked.source, encoder, untrained, {})


def _untrained(recipe: config.Table, encoder: "Encoder") -> "Encoder":
    """The run's architecture with the weights that its seed draws; pretrained ones are not fetched again."""
    from reptk.encoder import Encoder

    options = {**encoder.config, **recipe.get("encoder", {}), "size": encoder.config["size"]}
    options = {name: value for name, value in options.items() if name not in ("mean", "std", "num_features")}
    return Encoder(**(options | {"pretrained": False, "weights": None}))


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
