"""Which losses can be called with keys: rows to compare with that are no anchors, e.g. those of a queue."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from reptk.config.registry import LOSSES

PARAMETERS = {"keys", "key_ids"}


def check_takes_keys(loss: Any) -> None:
    """Check that a loss can be called with keys and their ids.

    Raises:
        ValueError: it cannot.
    """
    call = loss
    if isinstance(loss, nn.Module):
        # The signature of a module itself is that of nn.Module.__call__, which shows no parameters.
        call = loss.forward
    if _takes_keys(call):
        return
    names = []
    for name, factory in LOSSES.loaded().items():
        if isinstance(factory, type) and issubclass(factory, nn.Module) and _takes_keys(factory.forward):
            names.append(name)
    raise ValueError(f"its loss must take keys and key_ids, as {', '.join(names)} do")


def _takes_keys(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters
    accepts_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return accepts_any or set(parameters) >= PARAMETERS
