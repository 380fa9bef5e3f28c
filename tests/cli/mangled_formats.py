"""Another content for a file whose structure is known: one value is a strange one, and the file is still valid as such."""

import csv
import io
import json
import random
import struct
import tomllib
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import tomli_w
import torch
from PIL import Image
from strange_values import SPECIAL_FILES, STRANGE_TEXTS, places_of, strange_value, with_strange_value


def damage_bytes(draw: random.Random, content: bytes) -> bytes:
    """Cut off, flip, repeat, insert or replace bytes."""
    changed = bytearray(content)
    start = draw.randrange(len(content) + 1)
    length = draw.choice([1, 2, 8, 100, 5000])
    noise = draw.randbytes(length)
    kind = draw.choice(
        ["cut", "flip", "flip", "flip", "insert", "delete", "repeat", "overwrite", "empty", "text", "huge"]
    )
    if kind == "cut":
        del changed[start:]
    elif kind == "flip" and content:
        # Headers are short and come first, where most of what a parser can stumble over is.
        end = draw.choice([len(content), min(len(content), 200)])
        for _ in range(draw.choice([1, 3, 20])):
            changed[draw.randrange(end)] ^= 1 << draw.randrange(8)
    elif kind == "insert":
        changed[start:start] = noise
    elif kind == "delete":
        del changed[start : start + length]
    elif kind == "repeat":
        changed *= draw.choice([2, 3])
    elif kind == "overwrite":
        changed[start : start + length] = draw.choice([noise, b"\0" * length, b"\xff" * length])
    elif kind == "empty":
        changed.clear()
    elif kind == "text":
        changed = bytearray(
            draw.choice([b"<html>", b"version https://git-lfs", b"\xff\xfe{}", b"[" * 5000, b"{}", b"null"])
        )
    else:
        changed += b" " * draw.choice([1 << 16, 1 << 21])
    return bytes(changed)


def _mangle_json(draw: random.Random, content: bytes) -> bytes:
    return json.dumps(with_strange_value(draw, json.loads(content))).encode("utf-8", "surrogatepass")


def _mangle_json_lines(draw: random.Random, content: bytes) -> bytes:
    lines = content.splitlines()
    number = draw.randrange(len(lines))
    lines[number] = _mangle_json(draw, lines[number])
    return b"\n".join(lines) + b"\n"


def _mangle_toml(draw: random.Random, content: bytes) -> bytes:
    table = with_strange_value(draw, tomllib.loads(content.decode()))
    try:
        return tomli_w.dumps(table).encode("utf-8", "surrogateescape")
    except (TypeError, AttributeError, ValueError, RecursionError):  # TOML has no null, and a table at the top
        return b"a = " + repr(table).encode("utf-8", "backslashreplace")


def _mangle_csv(draw: random.Random, content: bytes) -> bytes:
    rows = list(csv.reader(io.StringIO(content.decode())))
    row = draw.choice(rows)
    row[draw.randrange(len(row))] = str(strange_value(draw))
    text = io.StringIO()
    csv.writer(text, delimiter=draw.choice([",", ",", ";", "\t"])).writerows(rows)
    return text.getvalue().encode(draw.choice(["utf-8", "utf-8", "utf-16", "utf-32"]), "surrogatepass")


def _mangle_safetensors(draw: random.Random, content: bytes) -> bytes:
    """Change the header, a text of its metadata that is JSON itself, or values of a tensor."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    data = bytearray(content[8 + length :])
    metadata = header.get("__metadata__", {})
    # Whoever changes the file can leave out its hash.
    metadata.pop("reptk_sha256", None)
    kind = draw.choice(["header", "metadata", "values", "values", "length"])
    if kind == "metadata" and metadata:
        key = draw.choice(list(metadata))
        if key == "about":
            metadata[key] = json.dumps(with_strange_value(draw, json.loads(metadata[key])))
        else:
            metadata[key] = str(strange_value(draw))
    elif kind == "values":
        name = draw.choice([name for name in header if name != "__metadata__"])
        start, stop = header[name]["data_offsets"]
        value = _strange_bytes(draw, header[name]["dtype"])
        if stop > start:
            place = start + len(value) * draw.randrange((stop - start) // len(value) or 1)
            data[place : place + len(value)] = value
    elif kind == "length":
        return struct.pack("<Q", draw.choice([0, 1, 2**20, 2**40, 2**63, 2**64 - 1])) + content[8:]
    else:
        header = with_strange_value(draw, header)
    encoded = json.dumps(header).encode("utf-8", "surrogatepass")
    encoded = encoded.ljust(-(-len(encoded) // 8) * 8)
    return struct.pack("<Q", len(encoded)) + encoded + bytes(data)


def _strange_bytes(draw: random.Random, dtype: str) -> bytes:
    if dtype == "I64":
        return struct.pack("<q", draw.choice([-1, -5, 2**40, 2**62, 2**63 - 1, -(2**63), 3]))
    if dtype == "F32":
        return struct.pack("<f", draw.choice([float("nan"), float("inf"), 0.0, 3e38, -1.0]))
    return draw.randbytes(1)


def _mangle_parquet(draw: random.Random, content: bytes) -> bytes:
    """Replace a column by one of strange values of one type."""
    table = pyarrow.parquet.read_table(io.BytesIO(content))
    number = draw.randrange(table.num_columns)
    name = draw.choice(
        [table.column_names[number], table.column_names[number], "label", "class", "path", "vector", "x"]
    )
    count = table.num_rows
    columns = (
        [draw.choice([2**62, -1, -5, 0, 2**63 - 1]) for _ in range(count)],
        [draw.choice([float("nan"), 1e308, 0.5]) for _ in range(count)],
        [draw.choice(STRANGE_TEXTS).encode("ascii", "ignore").decode() for _ in range(count)],
        [draw.randbytes(3) for _ in range(count)],
        [None] * count,
        [[1.0, 2.0]] * count,
        [[1.0] * draw.randrange(4) for _ in range(count)],
        [{"bytes": draw.randbytes(3), "path": draw.choice(SPECIAL_FILES)} for _ in range(count)],
        [{"bytes": None, "path": draw.choice(SPECIAL_FILES)} for _ in range(count)],
        [True] * count,
    )
    table = table.set_column(number, name, pyarrow.array(draw.choice(columns)))
    stream = io.BytesIO()
    metadata = dict(table.schema.metadata or {})
    if metadata and draw.random() < 0.3:
        key = draw.choice(list(metadata))
        metadata[key] = _mangle_json(draw, metadata[key]) if metadata[key].startswith(b"{") else b"x"
        table = table.replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(table, stream)
    return stream.getvalue()


def _mangle_torch(draw: random.Random, content: bytes) -> bytes:
    """Replace a value in a checkpoint; a tensor by one of another shape, type or content, or by one of no memory."""
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    places = list(places_of(state))
    container, key = draw.choice(places)
    if isinstance(container[key], torch.Tensor) and draw.random() < 0.8:
        container[key] = draw.choice(
            [
                lambda tensor: tensor * float("nan"),
                lambda tensor: tensor.flatten(),
                lambda tensor: tensor.half(),
                lambda tensor: tensor.long(),
                lambda tensor: torch.zeros(1).expand(10**9, 10**3),
                lambda tensor: torch.empty(0),
                lambda tensor: torch.tensor(2**62),
                lambda tensor: tensor.to_sparse() if tensor.layout is torch.strided else tensor,
            ]
        )(container[key])
    else:
        container[key] = strange_value(draw)
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=draw.random() < 0.8)
    return stream.getvalue()


def _mangle_npz(draw: random.Random, content: bytes) -> bytes:
    """Replace an array; some of the headers claim more than there is."""
    with np.load(io.BytesIO(content)) as arrays:
        table: dict[str, Any] = dict(arrays)
    name = draw.choice(list(table))
    table[name] = draw.choice(
        [
            table[name] * np.float32("nan"),
            np.zeros((3000, 3000)),
            np.array("text"),
            np.array([b"bytes"]),
            np.array(2**62),
            np.zeros(0),
            np.zeros(3, dtype=[("a", "<i4")]),
        ]
    )
    stream = io.BytesIO()
    draw.choice([np.savez, np.savez_compressed])(stream, **table)
    changed = stream.getvalue()
    if draw.random() < 0.3:
        changed = changed.replace(b"'shape': (3000, 3000)", b"'shape': (3000, 3" + b"9" * draw.randrange(1, 12))
    return changed


def _mangle_png(draw: random.Random, content: bytes) -> bytes:
    """Claim another size, depth or type of color, with the right checksum."""
    header = bytearray(content[16:29])
    if draw.random() < 0.7:
        struct.pack_into(">I", header, draw.choice([0, 4]), draw.choice([0, 1, 60_000, 250_000, 2**31 - 1, 2**32 - 1]))
    else:
        header[draw.choice([8, 9, 10, 11, 12])] = draw.choice([0, 1, 2, 3, 4, 6, 8, 16, 255])
    checksum = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return content[:16] + bytes(header) + checksum + content[33:]


def _mangle_image(draw: random.Random, content: bytes) -> bytes:
    """Store the picture in another format or mode under the same name."""
    image = Image.open(io.BytesIO(content)).convert(draw.choice(["L", "1", "CMYK", "I;16", "F", "RGB"]))
    stream = io.BytesIO()
    image.save(stream, draw.choice(["TIFF"]))
    return damage_bytes(draw, stream.getvalue())


STRUCTURED: dict[str, Callable[[random.Random, bytes], bytes]] = {
    ".json": _mangle_json,
    ".jsonl": _mangle_json_lines,
    ".toml": _mangle_toml,
    ".csv": _mangle_csv,
    ".safetensors": _mangle_safetensors,
    ".parquet": _mangle_parquet,
    ".pt": _mangle_torch,
    ".npz": _mangle_npz,
    ".png": _mangle_png,
    ".tif": _mangle_image,
}
"""By the ending of a file, what changes a value in it."""
