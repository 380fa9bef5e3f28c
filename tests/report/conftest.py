"""Two runs and the page of one."""

from pathlib import Path

import pytest

from report_pages import Page
from report_runs import make_run
from reptk.report import write


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "a")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("more") / "b", seed=1, noise=2.5, loss={"temperature": 0.3})


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write(run, tmp_path_factory.mktemp("page") / "page.html"))
