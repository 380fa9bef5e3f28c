"""A SLURM cluster of this machine alone, for tests, in a temporary folder: nothing of the system is changed."""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
START_SECONDS = 120.0

CONFIGURATION = """
ClusterName=reptk
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=2
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=5,sched_min_interval=100000
SlurmdParameters=config_overrides
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
"""Credentials of two seconds, since a job that is requeued waits for the end of its credential."""


def missing_program() -> str | None:
    """Return the first program that a cluster needs and that is not installed."""
    for program in PROGRAMS:
        if shutil.which(program, path=_search_path()) is None:
            return program
    return None


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start a cluster, yield the environment of its users, and end all of its processes.

    Args:
        folder: a short path, since the names of sockets are limited.
    """
    folder.chmod(0o755)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _search_path()}
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    text = CONFIGURATION.format(
        host=socket.gethostname().partition(".")[0],
        user=getpass.getuser(),
        folder=folder,
        controller_port=_free_port(),
        node_port=_free_port(),
    )
    (folder / "slurm.conf").write_text(text)
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    with ExitStack() as stack:
        stack.enter_context(_running(munge, environment, folder))
        _wait_for(lambda: (folder / "munge.socket").exists(), "munged", folder)
        stack.enter_context(_running(["slurmctld", "-D", "-i"], environment, folder))
        stack.enter_context(_running(["slurmd", "-D"], environment, folder))
        _wait_for(lambda: "idle" in command(["sinfo", "-h", "-o", "%T"], environment), "slurmd", folder)
        yield environment
        command(["scancel", "--full", "--signal=KILL", f"--user={getpass.getuser()}"], environment)


def command(arguments: list[str], environment: dict[str, str]) -> str:
    """Run a program of SLURM and return what it prints."""
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return result.stdout


def wait_for_state(job: str, states: tuple[str, ...], environment: dict[str, str], seconds: float = 600.0) -> str:
    """Wait until a job is in one of these states, and return what `scontrol show job` says of it."""
    deadline = time.monotonic() + seconds
    while True:
        text = command(["scontrol", "show", "job", job], environment)
        if any(f"JobState={state}" in text for state in states):
            return text
        if time.monotonic() > deadline:
            raise TimeoutError(f"the job is not {states} after {seconds} s: {text}")
        time.sleep(0.3)


@contextmanager
def _running(arguments: list[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    with (folder / f"{arguments[0]}.out").open("wb") as output:
        process = subprocess.Popen(arguments, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _wait_for(is_ready: object, program: str, folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_ready():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.[lo][ou][gt]"))
            raise TimeoutError(f"{program} does not start:\n{logs}")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _search_path() -> str:
    # Daemons are not in everybody's path.
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
