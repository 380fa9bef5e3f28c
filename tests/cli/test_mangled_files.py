"""Mangled files of all kinds end with an exit code and one message: no traceback, no endless read, no flood of memory."""

import os
import random
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import huggingface_hub.constants
import pytest
from files_to_mangle import Target, comparison_targets, targets, write_files

from command_checks import WRITES, check_one_message, explain, run
from mangled_files import mangle, record_hash, replace_by_special_file
from reptk import cli

pytest.importorskip("pyarrow")
pytest.importorskip("faiss")

NUM_FILES = int(os.environ.get("REPTK_MANGLED_FILES", "160"))
"""In all blocks together. The whole number is 3000: REPTK_MANGLED_FILES=3000."""

NUM_BLOCKS = 4
SECONDS_PER_COMMAND = 60
MAX_MORE_BYTES = 3 << 30
"""What a command may allocate besides what the process has already. All inputs are small."""

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all files, two below one that nothing else is in; never changed."""
    folder = tmp_path_factory.mktemp("mangled") / "home" / "work"
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_files(folder)
    return folder


@pytest.fixture
def working_directory(files: Path, restored_registries: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(files)
    monkeypatch.setenv("HOME", str(files.parent))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(files.parent / "cache"))
    WRITES.folder, WRITES.outside = files.parent.parent.resolve(), []
    yield files
    WRITES.folder = None


class Hang(BaseException):
    """Not an Exception, which a command would report."""


@contextmanager
def bounded(seconds: int = SECONDS_PER_COMMAND, more_bytes: int = MAX_MORE_BYTES) -> Iterator[None]:
    """Raise `Hang` if the block takes longer, and MemoryError, or torch's own, where it allocates more."""

    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise Hang

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    earlier = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more_bytes, hard))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, earlier)


@contextmanager
def mangled(draw: random.Random, target: Target) -> Iterator[str]:
    """Mangle a file in the working directory; afterwards it is as before. Yields a word for what was done."""
    path = Path(target.path)
    saved = {name: Path(name).read_bytes() for name in (target.path, target.hashed_by) if name}
    try:
        if draw.random() < 0.05:
            replace_by_special_file(draw, path)
            yield "special"
        else:
            path.write_bytes(mangle(draw, target.path, saved[target.path]))
            if target.hashed_by and draw.random() < 0.7:
                record_hash(Path(target.hashed_by), path)
            yield "content"
    finally:
        # Removing a link counts as one of what it leads to.
        folder, WRITES.folder = WRITES.folder, None
        for name, content in saved.items():
            if Path(name).is_dir() and not Path(name).is_symlink():
                Path(name).rmdir()
            else:
                Path(name).unlink(missing_ok=True)
            # A run that was resumed may have deleted its checkpoint.
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(content)
        WRITES.folder = folder


@pytest.mark.parametrize("block", range(NUM_BLOCKS))
def test_a_mangled_file_ends_with_an_exit_code_and_one_message(
    block: int, working_directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    draw = random.Random(f"mangled files {block}")
    everything = targets()
    ends = Counter()
    shutil.copytree("run", tmp_path / "run")
    WRITES.outside.clear()
    for number in range(NUM_FILES // NUM_BLOCKS):
        # In turn, so that each is mangled about as often as any other.
        target = everything[(number * NUM_BLOCKS + block) % len(everything)]
        command = draw.choice(target.commands)
        with mangled(draw, target), bounded():
            code = run(cli.main, command)
        stderr = capfd.readouterr().err
        explain(check_one_message, [f"{number}: {target.path}", *command], code, stderr)
        assert not WRITES.outside, (target.path, command)
        ends[code] += 1
        if "--resume" in command and code == 0:
            shutil.rmtree("run")
            shutil.copytree(tmp_path / "run", "run")
            WRITES.outside.clear()
    assert min(ends[0], ends[3]) >= 5, "some mangled files can be read, others not"


def test_a_mangled_run_in_a_comparison_ends_with_an_exit_code_and_one_message(
    working_directory: Path, capfd: pytest.CaptureFixture
) -> None:
    draw = random.Random("mangled comparisons")
    everything = comparison_targets()
    ends = Counter()
    for command in everything[0].commands:
        assert run(cli.main, command) == 0
    # Modules that are imported for the first time may try whether the folder of temporary files can be written.
    WRITES.outside.clear()
    for number in range(NUM_FILES // 2):
        target = everything[number % len(everything)]
        command = draw.choice(target.commands)
        with mangled(draw, target), bounded():
            code = run(cli.main, command)
        stderr = capfd.readouterr().err
        explain(check_one_message, [f"{number}: {target.path}", *command], code, stderr)
        assert not WRITES.outside, (target.path, command)
        ends[code] += 1
    assert min(ends[0], ends[2]) >= 5, "a damaged run is left out; a damaged recipe is refused"


# The checks of this file


def test_every_command_succeeds_with_the_files_as_they_are(
    working_directory: Path, capfd: pytest.CaptureFixture
) -> None:
    for target in [*targets(), *comparison_targets()]:
        for command in target.commands:
            if "--resume" not in command:
                assert run(cli.main, command) == 0, (target.path, command, capfd.readouterr().err)


def test_a_hang_and_a_flood_are_detected() -> None:
    with bounded(seconds=1), pytest.raises(Hang):
        time.sleep(60)
    with bounded(more_bytes=1 << 28), pytest.raises(MemoryError):
        bytearray(1 << 29)
