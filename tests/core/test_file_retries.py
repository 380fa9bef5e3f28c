"""What fails for a moment is read again, a few times; what is wrong with a file is said at once."""

import errno

import pytest

from reptk.core import file_retries
from reptk.core.file_retries import WAITS_SECONDS, with_retries


class Failing:
    """Raises an OSError in the first calls, and returns a content then; `calls` counts them."""

    def __init__(self, number: int, times: int) -> None:
        self.number = number
        self.times = times
        self.calls = 0

    def __call__(self) -> bytes:
        self.calls += 1
        if self.calls <= self.times:
            raise OSError(self.number, "not now")
        return b"content"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited."""
    waited: list[float] = []
    monkeypatch.setattr(file_retries.time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EMFILE])
@pytest.mark.parametrize("times", [0, 1, len(WAITS_SECONDS)])
def test_what_may_pass_is_tried_again(number: int, times: int, waits: list[float]) -> None:
    read = Failing(number, times)
    assert with_retries(read) == b"content"
    assert waits == list(WAITS_SECONDS[:times])


def test_the_number_of_attempts_is_limited(waits: list[float]) -> None:
    read = Failing(errno.ESTALE, 100)
    with pytest.raises(OSError, match="not now"):
        with_retries(read)
    assert read.calls == len(WAITS_SECONDS) + 1


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR])
def test_what_does_not_pass_is_not_tried_again(number: int, waits: list[float]) -> None:
    read = Failing(number, 1)
    with pytest.raises(OSError, match="not now"):
        with_retries(read)
    assert waits == []
