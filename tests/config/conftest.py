"""Every test of the configuration has a folder of its own; distributions can be installed there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from reptk.config.registry import Registry

Install = Callable[..., None]


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored_registries: None) -> None:
    """Run in an empty folder; what a test registers or imports from there is undone."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def toys() -> Registry:
    """An empty registry, without built-in parts."""
    return Registry("toy", home="reptk.core.errors", group="reptk.test_toys")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A function that puts a distribution on sys.path: its metadata, its entry points, and its modules."""
    site = tmp_path / "site"
    site.mkdir()

    def add(name: str, points: dict[str, str], modules: dict[str, str], group: str = "reptk.test_toys") -> None:
        info = site / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = [f"{point} = {value}\n" for point, value in points.items()]
        (info / "entry_points.txt").write_text(f"[{group}]\n{''.join(lines)}")
        for module, text in modules.items():
            path = site / module
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(site)

    return add
