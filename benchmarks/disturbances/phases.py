"""Sends a signal to a process in a certain phase of a run: while it loads data, evaluates, writes a checkpoint, ..."""

import importlib
import os
import threading
from typing import Any

PHASES = {
    "loading data": ("reptk.training.loop", "load_data"),
    "baselines": ("reptk.training.loop", "evaluate_baselines"),
    "training": ("reptk.training.loop", "train_step"),
    "evaluation": ("reptk.training.epoch", "evaluate_now"),
    "checkpoint": ("reptk.training.checkpoint", "save"),
    "final evaluation": ("reptk.training.loop", "evaluate_now"),
    "report": ("reptk.training.loop", "write_report"),
}
"""The function that is called in each phase."""


class SignalInPhase:
    """Sends a signal to this process, as another would, some time after a phase has begun.

    Args:
        phase: one of `PHASES`.
        occurrence: the how many-th call of its function, from 1.
        number: of the signal.
        delay_seconds: after the call has begun.
    """

    def __init__(self, phase: str, occurrence: int, number: int, delay_seconds: float) -> None:
        self.phase = phase
        self.occurrence = occurrence
        self.number = number
        self.delay_seconds = delay_seconds
        self._num_calls = 0

    def __call__(self) -> None:
        """Watch this process from now on."""
        module_name, name = PHASES[self.phase]
        module = importlib.import_module(module_name)
        function = getattr(module, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            self._num_calls += 1
            if self._num_calls == self.occurrence:
                # The handler runs in the main thread, whichever thread sends the signal.
                timer = threading.Timer(self.delay_seconds, os.kill, (os.getpid(), self.number))
                timer.daemon = True
                timer.start()
            return function(*arguments, **options)

        setattr(module, name, watched)
