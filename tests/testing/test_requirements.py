"""All checks: they depend on no test runner."""

from pathlib import Path

import pytest

from reptk import testing


@pytest.mark.parametrize("path", sorted(Path(testing.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_checks_need_no_test_runner(path: Path) -> None:
    assert "pytest" not in path.read_text()
