"""Learn image representations, with and without labels; every run ends in a retrieval number.

    import reptk
    recipe = reptk.load("tcl_sup_photos", ["train.epochs=5"])
    numbers = reptk.train(recipe, "runs/mine")
    encoder = reptk.Encoder.from_run("runs/mine")

Importing reptk is cheap: torch and the parts are imported when first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "DATASETS",
    "EVALUATORS",
    "LOSSES",
    "METHODS",
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
    "DATASETS": ("reptk.config.registry", "DATASETS"),
    "EVALUATORS": ("reptk.config.registry", "EVALUATORS"),
    "LOSSES": ("reptk.config.registry", "LOSSES"),
    "METHODS": ("reptk.config.registry", "METHODS"),
    "VIEWS": ("reptk.config.registry", "VIEWS"),
    "Embeddings": ("reptk.embeddings", "Embeddings"),
    "Encoder": ("reptk.models.encoder", "Encoder"),
    "Recipe": ("reptk.config", "Recipe"),
    "embed": ("reptk.embeddings", "embed"),
    "evaluate": ("reptk.evaluate", None),
    "index": ("reptk.embeddings", "index"),
    "load": ("reptk.config", "load"),
    "losses": ("reptk.losses", None),
    "report": ("reptk.report", None),
    "search": ("reptk.embeddings", "search"),
    "testing": ("reptk.testing", None),
    "train": ("reptk.training.loop", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'reptk' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
