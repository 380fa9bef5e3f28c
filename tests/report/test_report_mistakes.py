"""reptk report: what bad folders are told, and plots."""

import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reptk.cli import main
from reptk.evaluate.predictions import FILE as EVIDENCE
from reptk.report import write

pytestmark = pytest.mark.usefixtures("one_thread")


# Bad input


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (lambda run: shutil.rmtree(run), 2, "no such folder"),
        (lambda run: [path.unlink() for path in run.iterdir()], 2, "neither results.json nor metrics.jsonl"),
        (lambda run: (run / "results.json").write_text("{"), 3, "is damaged"),
        (lambda run: (run / "results.json").write_text("[1]"), 3, "is damaged"),
        (
            lambda run: (run / "results.json").write_text('{"metrics": {"trained": {"knn@5": "high"}}}'),
            3,
            "metrics.trained.knn@5",
        ),
        (lambda run: (run / "results.json").write_bytes(b"\xff\xfe"), 3, "is damaged"),
        (lambda run: (run / "metrics.jsonl").write_text("not JSON\n"), 3, "none of its 1 lines"),
        (lambda run: (run / EVIDENCE).write_bytes(b"x" * 100), 3, "evaluate the run again"),
        (lambda run: (run / "recipe.toml").write_text("= 1"), 2, "not valid TOML"),
        (lambda run: (run / "report.html").mkdir(), 4, "it is a folder"),
    ],
)
def test_a_bad_folder_is_one_message(spoil, code: int, said: str, run: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(run, tmp_path / "run")
    spoil(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", str(tmp_path / "run")]) == code
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "the following arguments are required"),
        (["RUN", "RUN"], 2, "is named twice"),
        (["RUN", "--map", "lda"], 2, "invalid choice"),
        (["RUN", "--out", "no/such/folder/page.html"], 4, "Choose another --out"),
        (["RUN", "--out", "page.html", "--png", "taken"], 4, "Choose another --png"),
    ],
)
def test_mistakes(arguments, code: int, said: str, run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    assert main(["report", *(str(run) if word == "RUN" else word for word in arguments)]) == code
    assert said in capsys.readouterr().err


# PNG


def test_plots_are_the_same_each_time(run: Path, other: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = [write([run, other], tmp_path / "page.html", png=tmp_path / name).parent / name for name in ("1", "2")]
    names = ["confusion.png", "curves.png", "map.png"]
    assert [sorted(path.name for path in folder.iterdir()) for folder in made] == [names, names]
    for name in names:
        assert (made[0] / name).read_bytes() == (made[1] / name).read_bytes()
        with Image.open(made[0] / name) as image:
            assert len(np.unique(np.array(image.convert("L")))) > 10, "something is drawn"


def test_without_matplotlib_there_is_the_page_and_a_line(run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("reptk.report.plots.find_spec", lambda name: None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        path = write(run, tmp_path / "page.html", png=tmp_path)
    assert [str(one.message) for one in said if "matplotlib" in str(one.message)] == [
        "PNG plots need matplotlib, which is not installed: pip install 'reptk[viz]'"
    ]
    assert path.is_file()


def test_the_command_writes_into_the_run(run: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(run, tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    said = capsys.readouterr()
    assert re.fullmatch(r".*report\.html: \d+\.\d MB, opens in any browser, needs no network\n", said.out)
    assert not said.err
