"""What a user sets for an encoder, as messages name it: the keys of a recipe's `[encoder]`, or those of a teacher."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from reptk.core.errors import DataError, EnvironmentProblem


class EncoderKeys(NamedTuple):
    """Keys and instructions in messages about an encoder.

    backbone: the key of the model's name.
    size: the key of the side of its images.
    architecture: the keys of the layers that it has.
    weights_file: how a file of weights is named.
    small_stem: what to do with weights of a backbone with a small stem.
    prefix: what messages about files begin with, which name no key.
    """

    backbone: str = "encoder.backbone"
    size: str = "views.size"
    architecture: str = "encoder.backbone and encoder.stem"
    weights_file: str = "encoder.pretrained=false encoder.weights=FILE"
    small_stem: str = "use encoder.stem=small"
    prefix: str = ""


ENCODER_KEYS = EncoderKeys()


@contextmanager
def prefixed_errors(prefix: str) -> Iterator[None]:
    """Put a prefix before the messages of errors about files in a block."""
    try:
        yield
    except (DataError, EnvironmentProblem) as error:
        if not prefix:
            raise
        raise type(error)(f"{prefix}{error}") from error
