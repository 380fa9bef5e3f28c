"""Recipes: read from TOML, overridden, validated against the signatures of what they name, written back."""

from reptk.config.load import available, build, complete, find, load, override, read, validate
from reptk.config.schema import EncoderSection, Expect, OptimSection, Recipe, RecipeError, Section, Table, TrainSection

__all__ = [
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
    "read",
    "validate",
]
