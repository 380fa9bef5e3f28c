"""Tasks of srun are ranks: the variables of SLURM become those of torchrun."""

import pytest

from reptk.core import distributed
from reptk.core.errors import EnvironmentProblem
from reptk.core.slurm import first_host, set_rank_variables, tasks_on_node

TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "gpu[07-09]",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_NTASKS": "20",
    "SLURM_PROCID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "20",
    "SLURM_TASKS_PER_NODE": "8(x2),4",
}


def test_a_task_is_a_rank() -> None:
    environment = dict(TASK)
    set_rank_variables(environment)
    assert environment == {
        **TASK,
        "RANK": "17",
        "WORLD_SIZE": "20",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "16711",
    }


def test_all_tasks_of_a_step_meet_at_one_place_and_steps_at_different_ones() -> None:
    places = set()
    for step in range(20):
        of_step = set()
        for task in range(3):
            environment = {**TASK, "SLURM_STEP_ID": str(step), "SLURM_PROCID": str(task)}
            set_rank_variables(environment)
            of_step.add((environment["MASTER_ADDR"], environment["MASTER_PORT"]))
        assert len(of_step) == 1
        places |= of_step
    assert len(places) == 20


@pytest.mark.parametrize(
    "changes",
    [
        {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"},  # torchrun, started by srun
        {"RANK": "3"},
        {"SLURM_STEP_ID": None},  # a batch script
        {"SLURM_PROCID": None},  # a shell of salloc
        {"SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_other_processes_stay_as_they_are(changes: dict) -> None:
    environment = {name: value for name, value in {**TASK, **changes}.items() if value is not None}
    before = dict(environment)
    set_rank_variables(environment)
    assert environment == before


def test_a_place_that_is_set_stays() -> None:
    environment = {**TASK, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    set_rank_variables(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "29500")


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("vm", "vm"),
        ("a,b", "a"),
        ("gpu[001-004,7],login", "gpu001"),
        ("gpu[7,9]", "gpu7"),
        ("rack[1-2]n[03,05]-ib,x", "rack1n03-ib"),
        ("node-[12]", "node-12"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_tasks_of_each_node() -> None:
    assert [tasks_on_node("8(x2),4", node) for node in range(4)] == [8, 8, 4, 1]
    assert tasks_on_node("2", 0) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID is 'x', which is no number"),
        ({"SLURM_LOCALID": None}, "SLURM_LOCALID is not set in this task"),
        ({"SLURM_JOB_NODELIST": ""}, "SLURM_JOB_NODELIST names no host"),
    ],
)
def test_variables_that_cannot_be_read_are_named(changes: dict, message: str) -> None:
    environment = {name: value for name, value in {**TASK, **changes}.items() if value is not None}
    with pytest.raises(EnvironmentProblem, match=message):
        set_rank_variables(environment)


def test_a_command_prints_on_the_first_task_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from reptk.core.command_line import run_command

    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    # monkeypatch removes what the command sets.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    ranks = []
    assert run_command(lambda: ranks.append(distributed.rank()) or 0) == 0
    assert ranks == [17]
    assert not distributed.is_main()
