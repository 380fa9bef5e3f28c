"""Embeddings in files: what is written is read, by any way of writing, in both formats; what is damaged is refused."""

import json
import struct
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reptk.core import rng
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.embeddings import Embeddings, as_safetensors, rows
from reptk.embeddings.embeddings import Checked, comparable, writing
from reptk.embeddings.texts import Texts, is_utf8

ODD = "cat\udcff.jpg"  # bytes of a file name that is no UTF-8
NAMES = ["a.jpg", "", "ünï/çödé 🐈.png", "new\nline.png", '"quoted", <b>.png', "a.jpg", "c:\\x.gif"]
needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
both = pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".parquet", marks=needs_pyarrow)])


def unit(count: int, width: int = 5, key: int = 0) -> Tensor:
    drawn = torch.randn(count, width, generator=rng.generator("test_embeddings", key))
    return torch.nn.functional.normalize(drawn, dim=1)


def made(names: list[str] = NAMES, *, half: bool = False, kind: str = "files") -> Embeddings:
    vectors = unit(len(names)).half() if half else unit(len(names))
    labels = torch.arange(len(names)) % 3 - 1
    about = {"root": "/photos \udcfe", "encoder": {"backbone": "x"}, "list": [1, None, 2.5]}
    ids = [f"{number}" for number in range(len(names))] if kind == "files with ids" else names
    paths = None if kind == "no files" else names
    return Embeddings(vectors, ids, paths, labels, ("cat", "<b>\n&"), about)


def assert_same(one: Embeddings, other: Embeddings) -> None:
    assert torch.equal(one.vectors, other.vectors)
    assert one.vectors.dtype == other.vectors.dtype
    assert torch.equal(one.labels, other.labels)
    assert list(one.ids) == list(other.ids)
    assert (one.paths is None) == (other.paths is None)
    assert one.paths is None or list(one.paths) == list(other.paths)
    assert (one.classes, one.about) == (other.classes, other.about)


@both
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", ["files", "files with ids", "no files"])
@pytest.mark.parametrize("names", [NAMES, [*NAMES, ODD], ["one"]], ids=["names", "odd", "one"])
def test_round_trip(suffix: str, half: bool, kind: str, names: list[str], tmp_path: Path) -> None:
    before = made(names, half=half, kind=kind)
    after = Embeddings.load(before.save(tmp_path / f"e{suffix}"))
    assert_same(before, after)
    assert (after.ids is after.paths) == (kind == "files"), "one column serves as both, in memory as well"


def test_the_comparison_can_fail() -> None:
    for changed in ({"kind": "no files"}, {"half": True}, {"names": [*NAMES[:-1], "other"]}):
        with pytest.raises(AssertionError):
            assert_same(made(), made(**changed))


@both
def test_written_in_parts_is_written_at_once(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made().save(tmp_path / f"whole{suffix}")
    monkeypatch.setattr(rows, "BLOCK_BYTES", 1)
    parts = made().save(tmp_path / f"parts{suffix}")
    assert_same(Embeddings.load(whole), Embeddings.load(parts))
    assert suffix == ".parquet" or whole.read_bytes() == parts.read_bytes()


def test_the_vectors_are_mapped_not_read(tmp_path: Path) -> None:
    path = made().save(tmp_path / "e.safetensors")
    loaded = Embeddings.load(path)
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    with path.open("r+b") as file:
        file.seek(8 + length)
        file.write(struct.pack("<f", 42.0))
    assert loaded.vectors[0, 0] == 42
    loaded.vectors[0, 0] = 1.0
    assert Embeddings.load(path).vectors[0, 0] == 42, "and the file is not written to"


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("half", [False, True])
def test_any_reader_of_safetensors_can_read_it(count: int, half: bool, tmp_path: Path) -> None:
    names = [f"{number}" for number in range(count)]
    before = made(names, half=half)
    path = before.save(tmp_path / "e.safetensors")
    read = load_file(path)
    entries = as_safetensors._Mapped(path).entries
    assert not any(entries[name]["data_offsets"][0] % 8 for name in ("labels", "paths_ends")), "aligned"
    assert torch.equal(read["vectors"], before.vectors)
    assert torch.equal(read["labels"], before.labels)
    assert bytes(read["paths"].numpy()).decode() == "".join(names)


@needs_pyarrow
def test_any_reader_of_parquet_can_read_it(tmp_path: Path) -> None:
    from pyarrow import parquet

    table = parquet.read_table(made().save(tmp_path / "e.parquet"))
    assert table.schema.names == ["id", "path", "label", "class", "vector"]
    assert table["class"].to_pylist()[:3] == [None, "cat", "<b>\n&"]
    assert table["path"].to_pylist() == NAMES
    assert torch.equal(torch.tensor(table["vector"].to_pylist()), made().vectors)


@needs_pyarrow
def test_a_table_of_somebody_elses(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    vectors = unit(3).double().tolist()
    parquet.write_table(pyarrow.table({"vector": vectors, "class": ["b", None, "a"]}), tmp_path / "e.parquet")
    read = Embeddings.load(tmp_path / "e.parquet")
    assert torch.equal(read.vectors, unit(3))
    assert (list(read.ids), read.paths, read.classes) == (["0", "1", "2"], None, ("a", "b"))
    assert read.labels.tolist() == [1, -1, 0]


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float32, torch.float16])
def test_vectors_of_somebody_elses(kind: torch.dtype, tmp_path: Path) -> None:
    save_file({"vectors": unit(4).to(kind), "labels": torch.arange(4, dtype=torch.int32)}, tmp_path / "e.safetensors")
    read = Embeddings.load(tmp_path / "e.safetensors")
    assert torch.equal(read.vectors.double(), unit(4).to(kind).double())
    assert read.labels.tolist() == [0, 1, 2, 3]
    assert list(read.ids) == ["0", "1", "2", "3"]
    assert [read.class_of(2), read.number("3"), read.file(1)] == ["class 2", 3, None]


def header(path: Path, change: dict) -> None:
    """Change words of a file's header in place."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    words = json.loads(content[8 : 8 + length])
    words["__metadata__"] |= change
    path.write_bytes(content[:8] + json.dumps(words).encode().ljust(length) + content[8 + length :])


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
    "too few labels": lambda path: save_file({"vectors": unit(3), "labels": torch.zeros(2, dtype=torch.int64)}, path),
    "ends that do not fit": lambda path: save_file(
        {"vectors": unit(2), "ids": torch.zeros(2, dtype=torch.uint8), "ids_ends": torch.tensor([0, 5, 2])}, path
    ),
    "newer": lambda path: header(path, {"version": "2"}),
    "no JSON": lambda path: header(path, {"about": "{"}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_said(damage: object, tmp_path: Path) -> None:
    path = made().save(tmp_path / "e.safetensors")
    damage(path)
    with pytest.raises(DataError, match=r"e\.safetensors") as said:
        Embeddings.load(path)
    assert len(str(said.value)) < 300


@needs_pyarrow
@pytest.mark.parametrize("content", [b"", b"PAR1 nothing", b"\x89PNG" * 9])
def test_a_damaged_table(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "e.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"e\.parquet cannot be read"):
        Embeddings.load(tmp_path / "e.parquet")


@both
def test_a_failure_leaves_nothing(suffix: str, tmp_path: Path) -> None:
    whole, kept = made().whole(), made().save(tmp_path / f"kept{suffix}")
    before = kept.read_bytes()

    def interrupted() -> None:
        with writing(kept, whole) as writer:
            writer.add(next(made().blocks()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == [kept]
    assert kept.read_bytes() == before


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made().save(tmp_path / "e.safetensors")
    with pytest.raises(UsageError, match="exists"):
        made().save(path)
    made(half=True).save(path, force=True)
    assert Embeddings.load(path).vectors.dtype == torch.float16
    with pytest.raises(EnvironmentProblem, match="there is no folder"):
        made().save(tmp_path / "no" / "e.safetensors")
    with pytest.raises(UsageError, match=r"\.safetensors or \.parquet"):
        made().save(tmp_path / "e.npz")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(EnvironmentProblem, match="--half"):
        made().save(tmp_path / "full.safetensors")


def test_what_is_added_while_rows_are_written_has_room(tmp_path: Path) -> None:
    for letters, kept in ((5_000, True), (as_safetensors.ROOM + 100, False)):
        whole = made().whole()
        with writing(tmp_path / f"{letters}.safetensors", whole) as writer:
            writer.add(next(made().blocks()))
            whole.about["skipped"] = {"first": ["x" * letters]}
        read = Embeddings.load(tmp_path / f"{letters}.safetensors")
        assert ("skipped" in read.about) == kept
        assert torch.equal(read.vectors, made().vectors)


def test_vectors_are_brought_to_unit_length() -> None:
    long = Embeddings(unit(4) * torch.tensor([[1.0], [2.0], [0.1], [1.0]]), ["a", "b", "c", "d"])
    same = comparable(long, "these")
    assert torch.allclose(same.vectors, unit(4), atol=1e-6)
    assert comparable(same, "these") is same, "and stay as they are where they have it"


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "NaN or infinity"), (float("inf"), "NaN"), (0.0, "zero")])
def test_vectors_without_a_direction_are_counted_and_named(value: float, said: str) -> None:
    vectors = unit(7).clone()
    vectors[[1, 2, 4, 6]] = value
    with pytest.raises(DataError, match=f"4 of 7 embeddings of these .*{said}") as error:
        comparable(Embeddings(vectors, NAMES), "these")
    assert f"{NAMES[1]!r}, {NAMES[2]!r}, {NAMES[4]!r} ..." in str(error.value)
    Checked().finish("nothing")


def test_parts_must_fit() -> None:
    for arguments in ((unit(3), ["a"]), (unit(3), list("abc"), ["a"]), (unit(3).double(), list("abc"))):
        with pytest.raises(ValueError, match="vectors"):
            Embeddings(*arguments)


def test_texts() -> None:
    texts = Texts.of([*NAMES, ODD])
    assert list(texts) == [*NAMES, ODD]
    assert (texts[-1], texts[1:3], len(texts)) == (ODD, NAMES[1:3], 8)
    assert [texts.find(name) for name in ("a.jpg", "", ODD, "b.jpg")] == [0, 1, 7, -1]
    assert [is_utf8(NAMES[2]), is_utf8(ODD)] == [True, False]
    assert Texts.of(texts) is texts
    with pytest.raises(IndexError):
        texts[8]
