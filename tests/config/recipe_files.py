"""A small recipe and a loss of a plugin, as text to write into a test's folder."""

from pathlib import Path

import pytest

from reptk.config import load
from reptk.core.errors import UsageError

TINY = """\
seed = 3

[data]
name = "generated"
train = 32

[views]
name = "simclr_small"
size = 32

[encoder]
backbone = "test_resnet"

[method]
name = "contrastive"

[loss]
name = "tcl"
temperature = 0.2
k1 = 100.0

[optim]
lr = 0.05

[train]
epochs = 1
batch_size = 16

[eval.knn]
k = [1]
"""

LOSS_PLUGIN = """
from reptk import LOSSES

@LOSSES.register("my_loss")
class MyLoss:
    def __init__(self, margin: float = 0.2) -> None: ...
"""


def write(path: str | Path, text: str = TINY) -> str:
    """Write a file, with the folders it needs, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def load_error(*overrides: str, text: str = TINY, plugins: tuple[str, ...] = ()) -> str:
    """The message of the error that loading a recipe of this text raises."""
    with pytest.raises(UsageError) as error:
        load(write("tiny.toml", text), overrides, plugins=plugins)
    return str(error.value)


def notebook_class(name: str) -> type:
    """A class as a cell of a notebook defines it."""
    cls = type(name, (), {})
    cls.__module__ = "__main__"
    return cls
