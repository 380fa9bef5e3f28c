"""Processes of a gloo group: forked from one that has imported torch and reptk, so that they need not import them again.

The imports take five seconds of a CPU for each process, and most of what tests compute on ranks takes less. What torchrun
itself does is tested with torchrun, in tests/training/test_ranks.py and test_failing_ranks.py.
"""

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import start_processes

from reptk.core import distributed
from reptk.recipe import main

PRELOADED = [
    "torch",
    "pytest",
    "reptk.cli",
    "reptk.evaluate",
    "reptk.losses",
    "reptk.neighbors",
    "reptk.plugins.dcl",
    "reptk.recipe",
    "reptk.training.loop",
]
"""What the server imports, which then forks the ranks of all tests of a pytest process."""


def run_on_ranks(function: Callable[..., None], world_size: int, *arguments: Any) -> None:
    """Call `function(rank, *arguments)` on every rank of a group, and wait for the end.

    Args:
        function: of a module, so that it can be pickled.
        world_size: how many processes.
        arguments: picklable.

    Raises:
        ProcessRaisedException: a rank has raised an error.
    """
    _start(_in_group, world_size, function, arguments)


def run_recipe_on_ranks(arguments: Sequence[str], world_size: int, folder: Path) -> list[str]:
    """Run `python -m reptk.recipe` on every rank with the environment of torchrun, and return what each rank has printed.

    Args:
        arguments: of the command.
        world_size: how many processes.
        folder: for the files that they print to.
    """
    outputs = [folder / f"output_of_rank_{rank}.txt" for rank in range(world_size)]
    _start(_recipe_command, world_size, list(arguments), outputs)
    return [path.read_text() for path in outputs]


def _start(function: Callable[..., None], world_size: int, *arguments: Any) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    method = "spawn"
    if "forkserver" in multiprocessing.get_all_start_methods():
        method = "forkserver"
        multiprocessing.get_context(method).set_forkserver_preload(PRELOADED)
    start_processes(_run_rank, (world_size, port, function, arguments), nprocs=world_size, start_method=method)


def _run_rank(rank: int, world_size: int, port: int, function: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    function(rank, *arguments)


def _in_group(rank: int, function: Callable[..., None], arguments: tuple) -> None:
    distributed.setup("cpu")
    try:
        function(rank, *arguments)
    finally:
        distributed.cleanup()


def _recipe_command(rank: int, arguments: list[str], outputs: list[Path]) -> None:
    with outputs[rank].open("w") as output, contextlib.redirect_stdout(output):
        exit_code = main(arguments)
    if exit_code:
        raise RuntimeError(f"rank {rank} ends with exit code {exit_code}")
