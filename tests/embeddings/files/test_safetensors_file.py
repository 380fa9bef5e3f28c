"""Safetensors files of embeddings: memory-mapped, readable by other programs, and refused if they are damaged."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from embedding_inputs import assert_same_embeddings, make_embeddings, unit_vectors
from reptk.core.errors import DataError
from reptk.embeddings import Embeddings
from reptk.embeddings.files.safetensors_file import RESERVED_BYTES, SafetensorsFile


def read_header(path: Path) -> tuple[dict, int]:
    """Return the header of a safetensors file, and where its data begin."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), 8 + length


def change_metadata(path: Path, **changes: str) -> None:
    """Change the metadata in the header of a file, in place."""
    header, data_start = read_header(path)
    header["__metadata__"] |= changes
    content = path.read_bytes()
    encoded = json.dumps(header).encode().ljust(data_start - 8)
    path.write_bytes(content[:8] + encoded + content[data_start:])


def test_vectors_are_memory_mapped(tmp_path: Path) -> None:
    path = make_embeddings().save(tmp_path / "e.safetensors")
    loaded = Embeddings.load(path)
    _, data_start = read_header(path)
    with path.open("r+b") as file:
        file.seek(data_start)
        file.write(struct.pack("<f", 42.0))
    assert loaded.vectors[0, 0] == 42
    loaded.vectors[0, 0] = 1.0
    assert Embeddings.load(path, verify=False).vectors[0, 0] == 42, "and the file is not written to"


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("half", [False, True])
def test_other_programs_can_read_it(count: int, half: bool, tmp_path: Path) -> None:
    names = [str(row) for row in range(count)]
    embeddings = make_embeddings(names, half=half)
    path = embeddings.save(tmp_path / "e.safetensors")
    tensors = load_file(path)
    header, _ = read_header(path)
    assert not any(header[name]["data_offsets"][0] % 8 for name in ("labels", "paths_ends")), "aligned"
    assert torch.equal(tensors["vectors"], embeddings.vectors)
    assert torch.equal(tensors["labels"], embeddings.labels)
    assert bytes(tensors["paths"].numpy()).decode() == "".join(names)


def test_the_format_is_the_published_one(tmp_path: Path) -> None:
    path = make_embeddings(kind="files with ids").save(tmp_path / "e.safetensors")
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        metadata = file.metadata()
    assert names - {"padding"} == {"vectors", "labels", "ids", "ids_ends", "paths", "paths_ends"}
    assert set(metadata) == {"format", "version", "ids", "classes", "about", "reptk_sha256"}
    assert (metadata["format"], metadata["version"], metadata["ids"]) == ("reptk embeddings", "1", "ids")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32, torch.float16])
def test_vectors_of_other_programs_can_be_read(dtype: torch.dtype, tmp_path: Path) -> None:
    vectors = unit_vectors(4).to(dtype)
    save_file({"vectors": vectors, "labels": torch.arange(4, dtype=torch.int32)}, tmp_path / "e.safetensors")
    loaded = Embeddings.load(tmp_path / "e.safetensors")
    assert torch.equal(loaded.vectors.double(), vectors.double())
    assert loaded.labels.tolist() == [0, 1, 2, 3]
    assert list(loaded.ids) == ["0", "1", "2", "3"]
    assert [loaded.class_of(2), loaded.row_of("3"), loaded.file(1)] == ["class 2", 3, None]


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "a picture": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" * 20),
    "other tensors": lambda path: save_file({"weight": torch.zeros(3)}, path),
    "three dimensions": lambda path: save_file({"vectors": torch.zeros(3, 2, 2)}, path),
    "integers": lambda path: save_file({"vectors": torch.zeros(3, 2, dtype=torch.int64)}, path),
    "no rows": lambda path: save_file({"vectors": torch.zeros(0, 2)}, path),
    "too few labels": lambda path: save_file(
        {"vectors": unit_vectors(3), "labels": torch.zeros(2, dtype=torch.int64)}, path
    ),
    "offsets that do not match": lambda path: save_file(
        {"vectors": unit_vectors(2), "ids": torch.zeros(2, dtype=torch.uint8), "ids_ends": torch.tensor([0, 5, 2])},
        path,
    ),
    "newer": lambda path: change_metadata(path, version="2"),
    "no JSON": lambda path: change_metadata(path, about="{"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_reported(damage: Callable[[Path], object], tmp_path: Path) -> None:
    path = make_embeddings().save(tmp_path / "e.safetensors")
    damage(path)
    with pytest.raises(DataError, match=r"e\.safetensors") as error:
        Embeddings.load(path)
    assert len(str(error.value)) < 300


def test_a_file_without_a_hash_is_read(tmp_path: Path) -> None:
    """As earlier versions wrote it, and as it is after another program has read and written it."""
    embeddings = make_embeddings()
    path = embeddings.save(tmp_path / "e.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    del metadata["reptk_sha256"]
    save_file(load_file(path), path, metadata=metadata)
    assert_same_embeddings(Embeddings.load(path, verify=True), embeddings)


@pytest.mark.parametrize(("letters", "fits"), [(5_000, True), (RESERVED_BYTES + 100, False)])
def test_the_header_may_grow_while_rows_are_written(letters: int, fits: bool, tmp_path: Path) -> None:
    embeddings = make_embeddings()
    header = embeddings.header()
    path = tmp_path / "e.safetensors"
    with SafetensorsFile(path).writer(header) as writer:
        writer.add(next(embeddings.blocks()))
        header.metadata["skipped"] = {"first": ["x" * letters]}
    loaded = Embeddings.load(path)
    assert ("skipped" in loaded.metadata) == fits
    assert ("left_out" in loaded.metadata) != fits
    assert torch.equal(loaded.vectors, embeddings.vectors)


def test_more_files_are_mapped_than_a_process_may_open(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = make_embeddings(kind="files with ids").save(tmp_path / "e.safetensors")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        loaded = [Embeddings.load(path) for _ in range(100)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for embeddings in loaded[::33]:
        assert_same_embeddings(embeddings, loaded[0])
