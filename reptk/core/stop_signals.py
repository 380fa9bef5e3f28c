"""Signals that ask a process to stop: Ctrl-C, and what schedulers send before they take a machine back."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNAL_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
"""Systems other than Unix have only some of them."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells report it."""

TERMINATED = 143
"""Exit code after every other signal: 128 + SIGTERM."""

SAME_INTERRUPT_SECONDS = 2.0
"""Under torchrun one Ctrl-C arrives twice, from the terminal and from torchrun."""


class Stopped(KeyboardInterrupt):
    """A signal has asked this process to stop. It is no `Exception`, so that only code that ends the process catches it."""

    def __init__(self, number: int) -> None:
        self.signal_name = signal.Signals(number).name
        self.exit_code = TERMINATED
        if number == signal.SIGINT:
            self.exit_code = INTERRUPTED
        super().__init__(self.signal_name)


class StopSignals:
    """Raises `Stopped` in the main thread at the first signal, or only records it while signals are deferred.

    Ctrl-C after a first signal raises KeyboardInterrupt at once, deferred or not. Signals that the process ignored when it
    was started stay ignored, as by `nohup`. A forked process handles them as if this class did not exist.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """Number of the first signal, None as long as there was none."""
        self._received_at = 0.0
        self._deferrals = 0
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only record signals while the block runs: it can poll `received` where its state is consistent."""
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1

    def raise_if_received(self) -> None:
        """Raise `Stopped` if a signal was recorded."""
        if self.received is not None:
            raise Stopped(self.received)

    def install(self) -> None:
        """Handle the signals from now on. Python lets only the main thread do this."""
        for name in SIGNAL_NAMES:
            number = signal.Signals.__members__.get(name)
            if number is None or signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._handle)

    def uninstall(self) -> None:
        """Restore the handlers from before `install`."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self.received is not None:
            # After another signal, too: somebody waits for the process.
            if number == signal.SIGINT and now - self._received_at >= _shortest_repetition():
                raise KeyboardInterrupt
            return
        self.received = number
        self._received_at = now
        if not self._deferrals:
            raise Stopped(number)


_active: list[StopSignals] = []
"""The one whose handlers are installed, if any: handlers belong to the process, and calls may be nested."""


@contextmanager
def handled_stop_signals() -> Iterator[StopSignals]:
    """Handle signals while the block runs, and yield the object that records them.

    Inside another such block, it is that block's object. In another thread than the main one nothing is handled.
    """
    signals = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    if _active:
        yield _active[0]
        return
    signals.install()
    _active.append(signals)
    try:
        yield signals
    finally:
        _active.remove(signals)
        signals.uninstall()


def _shortest_repetition() -> float:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return SAME_INTERRUPT_SECONDS
    return 0.0
