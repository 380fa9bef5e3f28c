"""Which files of parts are whole, and were computed as they would be now."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reptk.core.errors import DataError
from reptk.core.file_records import file_record
from reptk.embeddings.encoding.part_plan import VerifiedPart
from reptk.embeddings.encoding.update import settings_differences
from reptk.embeddings.files import parts_manifest
from reptk.embeddings.files.parts_manifest import part_number
from reptk.embeddings.files.row_blocks import Header
from reptk.embeddings.files.safetensors_file import SafetensorsFile

COMPARED_DATA = ("name", "split", "labels")
"""Arguments of a data set of files with which other images, or labels, are read from the same place."""


class PartCheck(NamedTuple):
    """What a file of a part is.

    part: the part, if it is whole.
    damage: what is wrong with it, as the rest of a sentence; empty if nothing is.
    differences: how it was computed otherwise than parts would be now.
    """

    part: VerifiedPart | None
    damage: str = ""
    differences: Sequence[str] = ()


def check_part(path: Path, listed: dict[str, Any] | None, header: Header, *, is_of_files: bool) -> PartCheck:
    """Compare a part with the hash that it carries, and how it was computed with how parts would be computed now.

    Args:
        path: the file.
        listed: what the manifest says of it; None if it does not list it.
        header: of the embeddings as they would be computed now.
        is_of_files: whether images are known by their files, so that it does not matter what else the data set is called.
    """
    try:
        record = file_record(path)
        is_listed = listed is not None and listed["sha256"] == record["sha256"]
        # The hash that the file carries is compared where the manifest cannot tell.
        columns = SafetensorsFile(path).read(verify=not is_listed)
    except (DataError, OSError) as error:
        return PartCheck(None, _damage(error))
    metadata = columns.metadata or {}
    if not isinstance(metadata.get("encoder"), dict) or columns.labels is None or columns.ids is None:
        return PartCheck(None, "holds no part of embeddings that reptk wrote")
    differences = settings_differences(metadata, columns.vectors.dtype, header)
    if len(columns.vectors.shape) == 2 and columns.vectors.shape[1] != header.width:
        differences.append(f"vectors had {columns.vectors.shape[1]} values, now {header.width}")
    differences += _data_differences(metadata.get("data"), header.metadata["data"], is_of_files=is_of_files)
    part_metadata = metadata.get("part") or {}
    record = {"name": path.name, "rows": len(columns.vectors), **record}
    if metadata.get("skipped"):
        record["skipped"] = metadata["skipped"]
    if part_metadata.get("shard"):
        record["shard"] = part_metadata["shard"]
    return PartCheck(VerifiedPart(part_number(path), record), differences=differences)


def listed_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what the manifest says of each part, by name; nothing if there is no manifest that can be read."""
    try:
        manifest = parts_manifest.read_manifest(folder)
    except DataError:
        return {}
    return {record["name"]: record for record in manifest["parts"]}


def _damage(error: Exception) -> str:
    if isinstance(error, DataError) and "another hash" in str(error):
        return "has another hash than when it was written"
    return f"cannot be read ({error})"


def _data_differences(then: Any, now: dict[str, Any], *, is_of_files: bool) -> list[str]:
    if not isinstance(then, dict):
        return ["it does not say which images it was computed of"]
    names = list(now)
    if is_of_files:
        names = [name for name in COMPARED_DATA if name in now]
    differences = []
    for name in names:
        old, new = then.get(name), now[name]
        if isinstance(new, tuple):
            new = list(new)
        if old != new:
            differences.append(f"data.{name} was {old}, now {new}")
    return differences
