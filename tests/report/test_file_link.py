"""Links to the files of images are relative, whatever the files are called."""

import os
from pathlib import Path
from urllib.parse import unquote

import pytest

from reptk.report.file_link import file_link


@pytest.mark.parametrize(
    "name", ["a.png", "a b#c?d%.png", "javascript:alert(1)", "..png", "\u5199\u771f.png", "\udcff.png"]
)
def test_a_link_leads_to_the_file(name: str, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "photos"):
        folder.mkdir(exist_ok=True)
        file = folder / name
        file.write_bytes(b"")
        for page_folder in (tmp_path, tmp_path / "pages"):
            link = file_link(file, page_folder)
            assert link.startswith(("./", "../"))
            assert not set(link) & set(" #?\\\"'<>:")
            target = page_folder / unquote(link, errors="surrogateescape")
            assert os.path.normpath(target) == str(file)


def test_a_file_that_is_gone_has_no_link(tmp_path: Path) -> None:
    assert file_link(tmp_path / "gone.png", tmp_path) == ""
    assert file_link(Path("a\0b"), tmp_path) == ""
