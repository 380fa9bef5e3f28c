"""my_store does what every store must do, and replaces no file that is not its own."""

import tempfile
from pathlib import Path

import pytest
from my_store import MyStore

from reptk.stores import Collection
from reptk.testing import check_store


def test_it_does_what_a_store_must_do():
    with tempfile.TemporaryDirectory() as folder:
        check_store(MyStore, f"my_store:{folder}/photos.json")


def test_another_file_is_not_replaced():
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "notes.json")
        file.write_text('{"notes": []}')
        with pytest.raises(Exception, match="was not written by reptk"):
            MyStore(f"my_store:{file}").write(Collection(0, 8, "float32", {}), [], replace=True)
        assert file.read_text() == '{"notes": []}'
        assert list(Path(folder).iterdir()) == [file]
