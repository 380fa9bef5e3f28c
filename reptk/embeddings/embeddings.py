"""Vectors of images with what is needed to use them: ids, paths, labels, and how they were made."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from reptk.core.errors import DataError, UsageError
from reptk.embeddings import as_parquet, as_safetensors
from reptk.embeddings.place import check_free
from reptk.embeddings.rows import Rows, Whole, rows_per_block
from reptk.embeddings.texts import Growing, Texts, are_utf8

SUFFIXES = (".safetensors", ".parquet")


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors and the images they stand for.

    Args:
        vectors: (n, F) float32 or float16; from a safetensors file they are mapped, and read when they are looked at.
        ids: a name for each image.
        paths: where each lies, relative to `about["root"]`; None if they come from no files.
        labels: (n,) int64, -1 for none.
        classes: class names, by label; may be empty.
        about: encoder, preprocessing, data, whether the vectors are normalised, versions, commit.

    Raises:
        ValueError: parts that do not fit together.
    """

    vectors: Tensor
    ids: Sequence[str]
    paths: Sequence[str] | None = None
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.dtype not in (torch.float32, torch.float16):
            raise ValueError(
                f"vectors must be (n, F) float32 or float16, not {tuple(self.vectors.shape)} of {self.vectors.dtype}"
            )
        if self.labels is None:
            object.__setattr__(self, "labels", torch.full((len(self.vectors),), -1))
        lengths = {"ids": len(self.ids), "labels": len(self.labels)}
        lengths |= {} if self.paths is None else {"paths": len(self.paths)}
        wrong = [f"{count:,} {name}" for name, count in lengths.items() if count != len(self.vectors)]
        if wrong:
            raise ValueError(f"{len(self.vectors):,} vectors but {', '.join(wrong)}")

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def width(self) -> int:
        """F."""
        return self.vectors.shape[1]

    def file(self, number: int) -> Path | None:
        """Where the image lies, as far as that is known."""
        return None if self.paths is None else Path(self.about.get("root") or ".") / self.paths[number]

    def class_of(self, number: int) -> str:
        """The name of its class; empty if it has none."""
        label = int(self.labels[number])
        named = 0 <= label < len(self.classes)
        return self.classes[label] if named else "" if label < 0 else f"class {label}"

    def check_comparable(self, other: "Embeddings") -> None:
        """Raise DataError if these were made by another encoder than those of `other`, as far as that is known."""
        if self.width != other.width:
            raise DataError(
                f"one set has embeddings of {self.width} values, the other of {other.width}; embed both with one encoder"
            )
        known = [made.about.get("encoder", {}).get("sha256") for made in (self, other)]
        if all(known) and known[0] != known[1]:
            raise DataError(
                "the two sets were embedded by different encoders, so they cannot be compared; embed both with one"
            )

    def number(self, name: str) -> int:
        """The number of the first image with this id; where no id is so, a number stands for itself.

        Raises:
            UsageError: there is none.
        """
        found = Texts.of(self.ids).find(name)
        if found < 0 and name.isascii() and name.isdigit() and int(name) < len(self):
            return int(name)
        if found < 0:
            raise UsageError(
                f"no image with the id {name!r}; there are {len(self):,}, and the first is {self.ids[0]!r}"
            )
        return found

    def blocks(self) -> Iterator[Rows]:
        """All rows, some at a time."""
        step = rows_per_block(self.width)
        for first in range(0, len(self), step):
            part = slice(first, first + step)
            paths = None if self.paths is None else self.paths[part]
            yield Rows(self.vectors[part], self.labels[part], self.ids[part], paths)

    def whole(self) -> Whole:
        """What holds for all rows, for a writer."""
        odd = not are_utf8(self.ids) or not (self.ids is self.paths or are_utf8(self.paths or ()))
        return Whole(
            count=len(self),
            width=self.width,
            half=self.vectors.dtype == torch.float16,
            ids_are_paths=self.ids is self.paths,
            has_paths=self.paths is not None,
            has_odd_names=odd,
            classes=self.classes,
            about=dict(self.about),
        )

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write `path`, whose ending says how: .safetensors or .parquet. A file that is there stays, unless `force`.

        Raises:
            UsageError: another ending, or the file exists.
            EnvironmentProblem: no room, no right to write, or pyarrow is missing.
        """
        place = check_out(path, force=force)
        with writing(place, self.whole()) as writer:
            for rows in self.blocks():
                writer.add(rows)
        return place

    @classmethod
    def load(cls, path: str | Path) -> "Embeddings":
        """Read a file of embeddings: safetensors by mapping it into memory, Parquet as a whole.

        Raises:
            DataError: missing, damaged, of a newer reptk, or no embeddings.
            UsageError: another ending.
        """
        place = existing(path)
        return cls.of_columns(
            place, **(as_safetensors.read(place) if _ending(place) == ".safetensors" else _table(place))
        )

    @classmethod
    def of_columns(cls, place: Path, *, vectors: Tensor, **columns: Any) -> "Embeddings":
        """Put together what was read from `place`, as far as it fits together."""
        ids, labels = columns.get("ids"), columns.get("labels")
        wide = vectors.is_floating_point() and vectors.dtype != torch.float16
        try:
            made = cls(
                vectors.float() if wide else vectors,
                Texts.of(map(str, range(len(vectors)))) if ids is None else ids,
                columns.get("paths"),
                None if labels is None else labels.to(torch.int64),
                tuple(map(str, columns.get("classes", ()))),
                dict(columns.get("about", {})),
            )
        except (ValueError, TypeError, RuntimeError) as cause:
            raise DataError(f"{place} does not fit together: {cause}") from cause
        if not len(made) or not made.width:
            raise DataError(f"{place} holds no embeddings: its vectors are {tuple(vectors.shape)}")
        return made


class Writer(Protocol):
    """Takes rows one block after another."""

    def add(self, rows: Rows) -> None: ...


def writing(path: Path, whole: Whole) -> AbstractContextManager[Writer]:
    """A writer for `path`: the file appears when the block ends, or not at all."""
    return (as_safetensors if _ending(path) == ".safetensors" else as_parquet).writing(path, whole)


def check_out(path: str | Path, *, force: bool = False) -> Path:
    """Raise what writing to `path` would raise, before any work is done for it."""
    place = Path(path)
    if _ending(place) == ".parquet":
        as_parquet.need_pyarrow(place)
    check_free(place, force=force)
    return place


def existing(path: str | Path) -> Path:
    """`path`, if there is a file of embeddings as far as its name says.

    Raises:
        DataError: there is nothing.
        UsageError: another ending.
    """
    place = Path(path)
    _ending(place)
    if not place.is_file():
        raise DataError(f"no file of embeddings {place}. Make one: reptk embed RUN --data FOLDER --out {place}")
    return place


class Checked:
    """Looks at rows as they pass: counts vectors that cannot be compared, brings the others to unit length."""

    def __init__(self) -> None:
        self.seen, self.was_unit = 0, True
        self.bad: dict[str, list[str]] = {"hold NaN or infinity": [], "are zero, which have no direction": []}

    def unit(self, rows: Rows) -> Rows:
        """The rows with vectors of unit length; those that are so to within half precision stay as they are."""
        norms = rows.vectors.float().norm(dim=1)
        for what, found in zip(self.bad, (~norms.isfinite(), norms == 0), strict=True):
            self.bad[what] += [rows.ids[place] for place in found.nonzero().flatten().tolist()]
        self.seen += len(norms)
        off = (norms - 1).abs() > _UNIT
        if not off.any():
            return rows
        self.was_unit = False
        vectors = torch.where(
            off[:, None], torch.nn.functional.normalize(rows.vectors.float(), dim=1), rows.vectors.float()
        )
        return rows._replace(vectors=vectors.to(rows.vectors.dtype))

    def finish(self, name: str) -> None:
        """Raise DataError if a vector cannot be compared: how many, and the first of them."""
        for what, ids in self.bad.items():
            if ids:
                named = ", ".join(repr(one) for one in ids[:3]) + (" ..." if len(ids) > 3 else "")
                raise DataError(
                    f"{len(ids):,} of {self.seen:,} embeddings of {name} {what}: {named}. Leave them out, or embed those "
                    "images again"
                )


def comparable(found: Embeddings, name: str) -> Embeddings:
    """The same embeddings if all have unit length, else a copy that has.

    Raises:
        DataError: vectors that are not finite, or zero.
    """
    checked = Checked()
    for rows in found.blocks():
        checked.unit(rows)
    checked.finish(name)
    if checked.was_unit:
        return found
    return replace(found, vectors=torch.cat([checked.unit(rows).vectors for rows in found.blocks()]))


_UNIT = 2e-3
"""How far from 1 the length of a normalised vector may be, which half precision rounds."""


def _ending(path: Path) -> str:
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"embeddings are kept as .safetensors or .parquet, not as {path.name!r}")
    return path.suffix.lower()


def _table(path: Path) -> dict[str, Any]:
    """The columns of a Parquet file, in memory."""
    whole, first = as_parquet.head(path), 0
    vectors = torch.empty(whole.count, whole.width, dtype=whole.dtype)
    labels = torch.empty(whole.count, dtype=torch.int64)
    ids, paths = Growing(), Growing()
    for rows in as_parquet.blocks(path, rows_per_block(whole.width)):
        part = slice(first, first + len(rows.vectors))
        vectors[part], labels[part] = rows.vectors, rows.labels
        ids.extend(rows.ids)
        paths.extend(rows.paths or ())
        first = part.stop
    kept, has_paths = paths.kept(), whole.has_paths and len(paths.kept()) == whole.count
    names = kept if whole.ids_are_paths and has_paths else ids.kept()
    columns = {"vectors": vectors, "labels": labels, "ids": names, "classes": whole.classes, "about": whole.about}
    return columns | ({"paths": kept} if has_paths else {})
