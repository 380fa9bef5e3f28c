"""Recipes: read from TOML, overridden, validated against the signatures of what they name, written back."""

from reptk.config.load import available, find, load
from reptk.config.override_notes import override_notes
from reptk.config.override_pairs import override
from reptk.config.part_tables import build, complete
from reptk.config.schema import (
    PART_NAMES,
    EncoderSection,
    Expect,
    OptimSection,
    Recipe,
    RecipeError,
    Section,
    Table,
    TrainSection,
    part_replacements,
    title_of,
)
from reptk.config.toml import read
from reptk.config.validation import validate

__all__ = [
    "PART_NAMES",
    "EncoderSection",
    "Expect",
    "OptimSection",
    "Recipe",
    "RecipeError",
    "Section",
    "Table",
    "TrainSection",
    "available",
    "build",
    "complete",
    "find",
    "load",
    "override",
    "override_notes",
    "part_replacements",
    "read",
    "title_of",
    "validate",
]
