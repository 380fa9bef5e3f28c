"""reptk report: where it writes, and its messages on mistakes."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from killed_processes import hidden_names, kill_at_every_moment, run_with_full_disk
from reptk.cli import main
from reptk.evaluate.predictions import FILE as PREDICTIONS
from reptk.report import plots, write, write_report
from reptk.report.run_files import read_runs

pytestmark = pytest.mark.usefixtures("one_thread")


def empty_folder(run: Path) -> None:
    for path in run.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (shutil.rmtree, 2, "no such folder"),
        (empty_folder, 2, "neither results.json nor metrics.jsonl"),
        (lambda run: (run / "results.json").write_text("{"), 3, "is damaged"),
        (lambda run: (run / "results.json").write_text("[1]"), 3, "is damaged"),
        (
            lambda run: (run / "results.json").write_text('{"metrics": {"trained": {"knn@5": "high"}}}'),
            3,
            "metrics.trained.knn@5",
        ),
        (lambda run: (run / "results.json").write_bytes(b"\xff\xfe"), 3, "is damaged"),
        (lambda run: (run / "metrics.jsonl").write_text("not JSON\n"), 3, "none of its 1 line is"),
        (lambda run: (run / PREDICTIONS).write_bytes(b"x" * 100), 3, "evaluate the run again"),
        (lambda run: (run / "recipe.toml").write_text("= 1"), 2, "not valid TOML"),
        (lambda run: (run / "report.html").mkdir(), 4, "it is a folder"),
    ],
)
def test_a_damaged_run_is_one_message(
    damage: Callable[[Path], object],
    code: int,
    message: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    damage(folder)
    files_before = sorted(tmp_path.rglob("*"))
    assert main(["report", str(folder)]) == code
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert sorted(tmp_path.rglob("*")) == files_before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "the following arguments are required"),
        (["RUN", "RUN"], 2, "is named twice"),
        (["RUN", "--map", "lda"], 2, "invalid choice"),
        (["RUN", "--out", "no/such/folder/page.html"], 4, "Choose another --out"),
        (["RUN", "--out", "page.html", "--png", "taken"], 4, "Choose another --png"),
    ],
)
def test_wrong_arguments_are_one_message(
    arguments: list[str],
    code: int,
    message: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    words = [str(run) if word == "RUN" else word for word in arguments]
    assert main(["report", *words]) == code
    assert message in capsys.readouterr().err


def test_a_comparison_is_not_written_over_a_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    page = tmp_path / "report.html"
    arguments = ["report", str(run), str(other)]
    assert main(arguments) == 0
    first_page = page.read_text()
    page.write_text("mine")
    capsys.readouterr()
    assert main(arguments) == 2
    assert capsys.readouterr().err == "error: report.html exists. Choose another --out, or write over it: --force\n"
    assert main(["report", str(run), "--out", "report.html"]) == 2
    assert page.read_text() == "mine"
    assert main([*arguments, "--force"]) == 0
    assert page.read_text() == first_page


def test_the_page_of_a_run_is_written_again(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "report.html").write_text("of yesterday")
    assert main(["report", str(folder)]) == 0
    assert "of yesterday" not in (folder / "report.html").read_text()


@pytest.mark.slow
def test_a_page_and_its_plots_are_whole_whenever_their_writer_is_killed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    # Drawn once, since the page is written anew at every moment.
    page = write(run, tmp_path / "page.html").read_text()
    monkeypatch.setattr(write_report, "render_page", lambda *_: page)
    monkeypatch.setattr(plots, "_draw_map", lambda _: None)
    monkeypatch.setattr(plots, "_draw_confusions", lambda _: None)
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    names = ["report.html", "curves.png"]
    write(folder, png=folder)
    new = [(folder / name).read_bytes() for name in names]

    def write_old_files() -> None:
        for name in names:
            (folder / name).write_bytes(b"old")

    for _, killed in kill_at_every_moment(write_old_files, lambda: write(folder, png=folder), folder):
        are_new = []
        for name, content in zip(names, new, strict=True):
            are_new.append((folder / name).read_bytes() == content)
            assert are_new[-1] or (killed and (folder / name).read_bytes() == b"old")
        assert are_new == sorted(are_new, reverse=True)
    assert hidden_names(folder) == []
    message = run_with_full_disk(lambda: write(folder, png=folder), 100)
    assert message.startswith(f"error: the disk of {folder / 'report.html'} is full")
    message = run_with_full_disk(lambda: plots.write_plots(read_runs([folder]), folder), 100)
    assert message.startswith(f"error: the disk of {folder / 'curves.png'} is full")
    assert [(folder / name).read_bytes() for name in names] == new
    assert hidden_names(folder) == []


def test_the_command_writes_into_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").is_file()
    printed = capsys.readouterr()
    assert re.fullmatch(r".*report\.html: \d+\.\d MB, opens in any browser, needs no network\n", printed.out)
    assert not printed.err
