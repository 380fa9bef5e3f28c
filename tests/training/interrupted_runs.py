"""Interrupt a run at a chosen call of a function."""

import os
import signal
from collections.abc import Callable
from typing import Any


class CalledBefore:
    """Stands in for a function; calls `action` before its call number `number`, from 1."""

    def __init__(self, function: Callable[..., Any], number: int, action: Callable[[], None]) -> None:
        self.function = function
        self.number = number
        self.action = action
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.number:
            self.action()
        return self.function(*args, **kwargs)


def raise_keyboard_interrupt() -> None:
    raise KeyboardInterrupt


def send(name: str) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signal.Signals[name])
