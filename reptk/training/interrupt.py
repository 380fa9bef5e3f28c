"""Ctrl-C during training: finish the step, save it, then stop."""

import signal
import threading

from reptk.core import distributed


class InterruptHandler:
    """Context manager that turns the first Ctrl-C into `requested = True`; a second one raises KeyboardInterrupt at once.

    Active in a single process only. Several ranks would have to agree on a step first; there the signal acts as usual, and
    the last epoch's checkpoint remains.
    """

    def __init__(self) -> None:
        self.requested = False
        self._is_active = False

    def __enter__(self) -> "InterruptHandler":
        # Python allows signal handlers to be set in the main thread only.
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._is_active = distributed.world_size() == 1 and in_main_thread
        if self._is_active:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_active:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
