"""Signals that ask a process to stop: raised at once, or recorded until the state is consistent."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from reptk.core import stop_signals
from reptk.core.command_line import run_command
from reptk.core.stop_signals import Stopped, StopSignals, handled_stop_signals


def send(name: str) -> None:
    os.kill(os.getpid(), signal.Signals[name])


@pytest.mark.parametrize(
    ("name", "exit_code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143), ("SIGUSR2", 143), ("SIGHUP", 143)]
)
def test_a_command_ends_with_the_exit_code_of_its_signal(name: str, exit_code: int) -> None:
    handlers = [signal.getsignal(signal.Signals[other]) for other in stop_signals.SIGNAL_NAMES]
    assert run_command(lambda: send(name) or 0) == exit_code
    assert [signal.getsignal(signal.Signals[other]) for other in stop_signals.SIGNAL_NAMES] == handlers


def test_a_deferred_signal_is_recorded_and_raised_where_it_is_polled() -> None:
    steps = []
    with handled_stop_signals() as signals:
        with signals.deferred():
            with signals.deferred():
                send("SIGTERM")
                steps.append("step")
            send("SIGUSR1")  # the first one counts
            steps.append("saved")
        with pytest.raises(Stopped, match="SIGTERM"):
            signals.raise_if_received()
    assert steps == ["step", "saved"]
    assert signals.received == signal.SIGTERM


def test_a_second_ctrl_c_stops_at_once() -> None:
    with handled_stop_signals() as signals, signals.deferred():
        send("SIGINT")
        with pytest.raises(KeyboardInterrupt) as interrupt:
            send("SIGINT")
        assert type(interrupt.value) is KeyboardInterrupt


def test_ctrl_c_after_another_signal_stops_at_once() -> None:
    with handled_stop_signals() as signals, signals.deferred():
        send("SIGTERM")
        with pytest.raises(KeyboardInterrupt):
            send("SIGINT")


def test_one_ctrl_c_under_torchrun_arrives_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with handled_stop_signals() as signals, signals.deferred():
        send("SIGINT")
        send("SIGINT")
    assert signals.received == signal.SIGINT


def test_signals_while_a_stop_is_under_way_change_nothing() -> None:
    with handled_stop_signals():
        with pytest.raises(Stopped):
            send("SIGTERM")
        send("SIGTERM")
        send("SIGHUP")


def test_nested_blocks_share_one_object_and_threads_have_their_own() -> None:
    of_thread: list[StopSignals] = []

    def run() -> None:
        with handled_stop_signals() as signals:
            of_thread.append(signals)

    with handled_stop_signals() as outer, handled_stop_signals() as inner:
        assert inner is outer
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert of_thread[0] is not outer
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ignored_signals_stay_ignored() -> None:
    """As by nohup."""
    code = (
        "import os, signal\n"
        "from reptk.core.stop_signals import handled_stop_signals\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with handled_stop_signals():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print('alive')\n"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout == "alive\n"


def test_a_forked_process_ends_by_the_signal() -> None:
    with handled_stop_signals():
        child = os.fork()
        if child == 0:
            send("SIGTERM")
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
