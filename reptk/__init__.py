"""Learn image representations, with and without labels; every run ends in a retrieval number.

    import reptk
    recipe = reptk.load("tcl_sup_photos", ["train.epochs=5"])
    numbers = reptk.train(recipe, "runs/mine")
    encoder = reptk.Encoder.from_run("runs/mine")

Importing reptk is cheap: torch and the parts are imported when first used.
"""

import importlib
from typing import Any

from reptk.registry import DATASETS, EVALUATORS, LOSSES, OBJECTIVES, VIEWS

__version__ = "0.1.0"

__all__ = [
    "DATASETS",
    "EVALUATORS",
    "LOSSES",
    "OBJECTIVES",
    "VIEWS",
    "Embeddings",
    "Encoder",
    "Recipe",
    "embed",
    "evaluate",
    "index",
    "load",
    "losses",
    "report",
    "search",
    "testing",
    "train",
]

_LAZY = {
    "Embeddings": ("reptk.catalogue", "Embeddings"),
    "Encoder": ("reptk.encoder", "Encoder"),
    "Recipe": ("reptk.config", "Recipe"),
    "embed": ("reptk.catalogue", "embed"),
    "evaluate": ("reptk.evaluate", None),
    "index": ("reptk.catalogue", "index"),
    "load": ("reptk.config", "load"),
    "losses": ("reptk.losses", None),
    "report": ("reptk.report", None),
    "search": ("reptk.catalogue", "search"),
    "testing": ("reptk.testing", None),
    "train": ("reptk.training", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'reptk' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
