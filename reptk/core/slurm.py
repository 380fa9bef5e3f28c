"""The variables of SLURM as those of torchrun, so that `srun`, with one task for each GPU, starts the ranks of a command."""

import os
import re
from collections.abc import MutableMapping

from reptk.core.errors import EnvironmentProblem

FIRST_PORT = 12_000
NUM_PORTS = 20_000
"""Ports at which rank 0 waits for the others: below those that systems give to outgoing connections."""


def set_rank_variables(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in a task of a step of several tasks.

    Nothing is changed where RANK is set, as by torchrun, nor in a batch script, which has the variables of a task but is none.
    MASTER_ADDR and MASTER_PORT that are set stay.

    Args:
        environment: the process's variables.

    Raises:
        EnvironmentProblem: SLURM's variables cannot be read.
    """
    if "RANK" in environment or not is_task(environment):
        return
    world_size = _integer(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    if world_size < 2:
        return
    job, step = _integer(environment, "SLURM_JOB_ID"), _integer(environment, "SLURM_STEP_ID")
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    tasks_per_node = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "")
    variables = {
        "RANK": _integer(environment, "SLURM_PROCID"),
        "WORLD_SIZE": world_size,
        "LOCAL_RANK": _integer(environment, "SLURM_LOCALID"),
        "LOCAL_WORLD_SIZE": tasks_on_node(tasks_per_node, int(environment.get("SLURM_NODEID", 0))),
    }
    environment.setdefault("MASTER_ADDR", first_host(nodes))
    # The same for all tasks of a step, and another one for the next step or job on the same machine.
    environment.setdefault("MASTER_PORT", str(FIRST_PORT + (job + 1009 * step) % NUM_PORTS))
    environment.update({name: str(value) for name, value in variables.items()})


def is_task(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Return whether `srun` has started this process, and neither torchrun nor a batch script."""
    return "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment and "TORCHELASTIC_RUN_ID" not in environment


def first_host(nodes: str) -> str:
    """Return the first host of a list such as `gpu[001-004,7],login` or `rack[1-2]n[03,05]`.

    Raises:
        EnvironmentProblem: there is none.
    """
    # Commas within brackets separate numbers, not hosts.
    match = re.match(r"(?:[^,\[\]]|\[[^\[\]]*\])+", nodes.strip())
    if match is None:
        raise EnvironmentProblem(f"SLURM_JOB_NODELIST names no host: {nodes!r}. Set MASTER_ADDR to the host of rank 0")
    return re.sub(r"\[([^-,\]]*)[^\]]*\]", r"\1", match[0])


def tasks_on_node(tasks_per_node: str, node: int) -> int:
    """Return the number of tasks on a node, from a list such as `8(x2),4`; 1 if the list does not say."""
    counts: list[int] = []
    for count, repetitions in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node):
        counts += [int(count)] * int(repetitions or 1)
    if node < len(counts):
        return counts[node]
    return 1


def _integer(environment: MutableMapping[str, str], *names: str) -> int:
    """Return the value of the first of these variables that is set."""
    for name in names:
        value = environment.get(name)
        if value is None:
            continue
        if not value.isdecimal():
            raise EnvironmentProblem(
                f"{name} is {value!r}, which is no number; start the command by srun, or by torchrun"
            )
        return int(value)
    raise EnvironmentProblem(f"{names[0]} is not set in this task; start the command by srun, or by torchrun")
