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

_LAZY = {
    "DATASETS": ("reptk.config.registry", "DATASETS"),
    "EVALUATORS": ("reptk.config.registry", "EVALUATORS"),
    "LOSSES": ("reptk.config.registry", "LOSSES"),
    "METHODS": ("reptk.config.registry", "METHODS"),
    "STORES": ("reptk.config.registry", "STORES"),
    "TRACKERS": ("reptk.config.registry", "TRACKERS"),
    "VIEWS": ("reptk.config.registry", "VIEWS"),
    "Batch": ("reptk.methods", "Batch"),
    "Embeddings": ("reptk.embeddings", "Embeddings"),
    "Encoder": ("reptk.models.encoder", "Encoder"),
    "EvalResult": ("reptk.evaluate", "EvalResult"),
    "Method": ("reptk.methods", "Method"),
    "Recipe": ("reptk.config", "Recipe"),
    "Step": ("reptk.methods", "Step"),
    "distributed": ("reptk.core.distributed", None),
    "embed": ("reptk.embeddings", "embed"),
    "evaluate": ("reptk.evaluate", None),
    "index": ("reptk.embeddings", "index"),
    "load": ("reptk.config", "load"),
    "losses": ("reptk.losses", None),
    "report": ("reptk.report", None),
    "rng": ("reptk.core.rng", None),
    "search": ("reptk.embeddings", "search"),
    "testing": ("reptk.testing", None),
    "train": ("reptk.training.loop", "train"),
}
"""Public name -> module and attribute, None for the module itself."""

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'reptk' has no attribute {name!r}")
    module_name, attribute = _LAZY[name]
    module = importlib.import_module(module_name)
    if attribute is None:
        return module
    return getattr(module, attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
