"""A run that tests compare theirs with."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the tiny recipe; not to be changed."""
    # Not at the top: pytest reads this file before tests/conftest.py sets the environment in which torch is imported.
    from reptk.core.console import Logger
    from reptk.training.loop import train
    from tiny_runs import tiny

    folder = tmp_path_factory.mktemp("runs") / "reference"
    train(tiny(), folder, logger=Logger(prints=True))
    return folder
