"""Data sets in tables of Lance, written for tests."""

from pathlib import Path
from typing import Any

import pytest


def write_lance(path: Path, table: Any, mode: str = "create", max_rows_per_file: int = 5) -> Path:
    """Write a table of Arrow, or append it to a table of Lance; skip the test if pylance is not installed."""
    lance = pytest.importorskip("lance", reason="pylance is not installed")
    lance.write_dataset(table, str(path), mode=mode, max_rows_per_file=max_rows_per_file)
    return path
