"""A folder of faulty inputs as the current folder."""

from pathlib import Path

import pytest


@pytest.fixture
def faulty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored_registries: None) -> Path:
    """The current folder, with everything of faulty_inputs.py; what a test registers there is undone."""
    from faulty_inputs import write_faulty_inputs

    monkeypatch.chdir(tmp_path)
    write_faulty_inputs(tmp_path)
    return tmp_path
