"""Two runs and the page of one.

Imports are inside the fixtures: pytest reads this file before `pytest_configure` of tests/conftest.py sets the
environment in which torch must be imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from report_pages import Page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from report_runs import make_run

    return make_run(tmp_path_factory.mktemp("runs") / "a")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from report_runs import make_run

    return make_run(tmp_path_factory.mktemp("more") / "b", seed=1, noise=2.5, loss={"temperature": 0.3})


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    from report_pages import Page
    from reptk.report import write

    return Page(write(run, tmp_path_factory.mktemp("page") / "page.html"))
