"""Files as a broken disk or a hostile stranger leaves them: every kind that reptk reads, and what is done to them.

A `Target` is a file with the commands that read it. `mangle` returns another content for it: damaged bytes, or for a file
whose structure is known, one value replaced by a strange one, so that the file is still valid as such.
"""

import csv
import hashlib
import io
import json
import os
import random
import shutil
import struct
import tomllib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import timm
import tomli_w
import torch
from PIL import Image
from safetensors.torch import save_file

from embedding_inputs import draw_image
from random_command_lines import TINY
from reptk import Embeddings, Encoder, index
from reptk.cli import main
from reptk.core import rng
from reptk.core.file_records import HASH_KEY, manifest_text

SPECIAL_FILES = (
    "pipe.png",
    "/dev/zero",
    "/dev/random",
    "/dev/stdin",
    "/proc/kmsg",
    "loop",
    "dangling",
    "/",
    "endless.png",
)
"""Paths that lead to no file, among them those that never end."""

STRANGE_NUMBERS = (0, -1, 1, 2**31, 2**62, 2**63 - 1, -(2**63), 10**15, 10**400, 0.5, -0.0, 1e308, 1e-320)
STRANGE_TEXTS = (
    *(
        "",
        " ",
        "\0",
        "\n",
        "\x1b[31m",
        "\u202egpj.exe",
        "\udcff",
        "x" * 100_000,
        "a/" * 3000,
        "9" * 5000,
        "NaN",
        "null",
    ),
    *(
        "<script>alert(1)</script>",
        '"></style><script>',
        "javascript:alert(1)",
        "{{ 7 * 7 }}",
        "%s%n",
        "[bold]",
        "=1+1",
    ),
    *(
        "../../../etc/passwd",
        "/etc/passwd",
        "~root",
        "http://localhost:1/x",
        "hf-hub:x/y",
        "reptk.plugins./../../evil.py",
    ),
    *SPECIAL_FILES,
)


class Target(NamedTuple):
    """A file, and the commands that read it, each the arguments of `reptk`."""

    path: str
    commands: list[list[str]]
    hashed_by: str = ""
    """The manifest that holds its hash, which whoever changes the file can change as well."""


RECIPE = TINY.replace("baselines = false", "baselines = false, log_every_steps = 1")

EVALUATE = ["evaluate", "run", "--only", "knn,few_shot", "--no-baselines"]
EMBED = ["embed", "run", "--out", "o.safetensors", "--force"]
REPORT = ["report", "run", "--out", "o.html", "--force"]
SHOW = ["recipe", "run", "--show"]
RESUME = ["recipe", "run", "--resume", "train.epochs=2"]
VIEWS = ["views", "run", "--images", "2", "--out", "o.png"]
DATA = ["data.name=generated", "data.train=9", "data.bank=9", "data.query=4", "data.classes=3", "data.size=32"]


def targets() -> list[Target]:
    """Return all files that are mangled."""
    reads_of_run = [EVALUATE, EMBED, REPORT, SHOW, RESUME, VIEWS]
    found = [
        Target("run/recipe.toml", [*reads_of_run, ["recipe", "run", "--check"]]),
        Target("run/results.json", [REPORT]),
        Target("run/metrics.jsonl", [REPORT, RESUME]),
        Target("run/status.json", [REPORT, RESUME]),
        Target("run/evaluation.safetensors", [REPORT]),
        Target(
            "run/model/encoder.safetensors",
            [EVALUATE, EMBED, weights("run/model/encoder.safetensors")],
            "run/model/manifest.json",
        ),
        Target("run/model/config.json", [EVALUATE, EMBED], "run/model/manifest.json"),
        Target("run/bad_samples.csv", [RESUME]),
        Target("run/data.json", [RESUME]),
        Target("run/model/manifest.json", [EVALUATE, EMBED]),
        Target("run/checkpoints/step_00000002/manifest.json", [RESUME]),
        Target(
            "run/checkpoints/step_00000002/state.pt",
            [RESUME, weights("run/checkpoints/step_00000002/state.pt")],
            "run/checkpoints/step_00000002/manifest.json",
        ),
        Target(
            "tiny.toml", [["recipe", "tiny.toml", "--check"], ["recipe", "tiny.toml", "--show"], ["recipe", "--list"]]
        ),
        Target("hub/config.json", [["embed", "local-dir:hub", "--data", "photos", *EMBED[2:]]]),
        Target("hub/model.safetensors", [["embed", "local-dir:hub", "--pretrained", "--data", "photos", *EMBED[2:]]]),
        Target("photos/cats/0.png", [["check-data", "photos"], [*EMBED, "--data", "photos"]]),
        Target("a.png", [["search", "e.safetensors", "a.png", "--no-html", "--k", "1"], ["check-data", "data.csv"]]),
    ]
    found += [Target(name, [weights(name)]) for name in ("weights.pt", "old.pt", "weights.npz", "split.index.json")]
    for name in ("photos.jpg", "photo.tif", "photo.webp", "photo.gif"):
        found.append(Target(f"more/{name}", [["check-data", "more"], [*EMBED, "--data", "more"]]))
    for name in ("data.csv", "data.jsonl", "data.parquet", "shards/train-00000-of-00001.parquet"):
        source = name.partition("/")[0]
        found.append(Target(name, [["check-data", source], [*EMBED, "--data", source]]))
    for name in ("e.safetensors", "e.parquet"):
        found.append(
            Target(name, [*searches(name), ["index", name, "--out", "o.index", "--force"], ["evaluate", name]])
        )
    for folder in ("flat", "ivf"):
        found.append(Target(f"{folder}/manifest.json", searches(folder)))
        found.append(Target(f"{folder}/embeddings.safetensors", searches(folder), f"{folder}/manifest.json"))
    found.append(Target("ivf/index.faiss", searches("ivf"), "ivf/manifest.json"))
    return found


def comparison_targets() -> list[Target]:
    """Return the files of a run that are mangled before it is compared with another one, or is the recipe of a sweep."""
    compare = ["compare", "run", "run2"]
    sweep = ["sweep", "run", "seed=0,1", "--dry-run"]
    return [
        Target("run/recipe.toml", [compare, sweep]),
        Target("run/results.json", [compare]),
        Target("run/metrics.jsonl", [compare]),
        Target("run/evaluation.safetensors", [compare]),
    ]


def weights(name: str) -> list[str]:
    return ["embed", "test_resnet", "--weights", name, "--data", "photos", "size=32", *EMBED[2:]]


def searches(name: str) -> list[list[str]]:
    duplicates = [
        "search",
        name,
        "--duplicates",
        "--html",
        "duplicates.html",
        "--out",
        "o.csv",
        "--force",
        "--threshold",
        "0.5",
    ]
    commands = [
        ["search", name, "--id", "1", "--k", "2", "--html", "found.html"],
        duplicates,
        [*duplicates, "--no-images"],
    ]
    if name != "ivf":  # its vectors are not those of images
        commands.append(["search", name, "a.png", "--k", "2", "--no-html"])
    return commands


def write_files(folder: Path) -> None:
    """Write all targets, and what they need, into the working directory."""
    for number in range(6):
        path = folder / "photos" / ("cats", "dogs")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_image(number).save(path)
    draw_image(0).save(folder / "a.png")
    (folder / "more").mkdir()
    for name in ("photos.jpg", "photo.tif", "photo.webp", "photo.gif"):
        draw_image(1).save(folder / "more" / name)
    os.mkfifo(folder / "pipe.png")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "endless.png").symlink_to("/dev/zero")
    _write_tables(folder)
    (folder / "tiny.toml").write_text(RECIPE)
    # The second image is not in the run's data, so that the page has something to show.
    assert main(["recipe", "tiny.toml", "--out", "run"]) == 0
    (folder / "run" / "bad_samples.csv").write_text("image,reason\nphotos/cats/0.png,it is damaged\n")
    shutil.copytree(folder / "run", folder / "run2")
    assert main([*EMBED[:2], "--data", "photos", "--out", "e.safetensors"]) == 0
    assert main([*EMBED[:2], "--data", "photos", "--out", "e.parquet"]) == 0
    assert main(["index", "e.safetensors", "--out", "flat"]) == 0
    many = torch.nn.functional.normalize(torch.randn(80, 96, generator=rng.generator("many")), dim=1)
    Embeddings(many, list(map(str, range(80)))).save(folder / "many.safetensors")
    index(folder / "many.safetensors", out=folder / "ivf", kind="IVF2,Flat")
    _write_weights(folder)


def _write_tables(folder: Path) -> None:
    rows = [("a.png", "cat", "train"), ("photos/cats/0.png", "dog", "train"), ("photos/dogs/1.png", "cat", "test")]
    with (folder / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    objects = [dict(zip(("path", "label", "split"), row, strict=True)) for row in rows]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in objects))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(objects), folder / "data.parquet")
    (folder / "shards").mkdir()
    images = [
        {"image": {"bytes": (folder / row[0]).read_bytes(), "path": row[0]}, "label": i} for i, row in enumerate(rows)
    ]
    shard = pyarrow.Table.from_pylist(images)
    pyarrow.parquet.write_table(shard, folder / "shards" / "train-00000-of-00001.parquet")


def _write_weights(folder: Path) -> None:
    backbone = Encoder("test_resnet", size=32).backbone
    state = backbone.state_dict()
    torch.save({"model": state, "epoch": 3}, folder / "weights.pt")
    torch.save({"model": state}, folder / "old.pt", _use_new_zipfile_serialization=False)
    np.savez(folder / "weights.npz", **{name: value.numpy() for name, value in state.items()})
    save_file(state, folder / "part.safetensors")
    weight_map = dict.fromkeys(state, "part.safetensors")
    (folder / "split.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model = timm.create_model("test_resnet", num_classes=0)
    timm.models.save_for_hf(model, folder / "hub", safe_serialization=True)


# What is done to a file


def mangle(draw: random.Random, name: str, content: bytes) -> bytes:
    """Return another content for a file."""
    ending = Path(name).suffix
    changes = [_damage]
    if ending in STRUCTURED:
        changes += 3 * [STRUCTURED[ending]]
    changed = draw.choice(changes)(draw, content)
    if draw.random() < 0.05:
        changed = _damage(draw, changed)
    return changed


def replace_by_special_file(draw: random.Random, path: Path) -> None:
    """Put a pipe, a folder or a link in the place of a file."""
    path.unlink()
    kind = draw.choice(["pipe", "folder", "link"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(draw.choice(["/dev/zero", "/dev/random", path.name, "nowhere", "/proc/kmsg", "../outside.txt"]))


def record_hash(manifest: Path, path: Path) -> None:
    """Write the size and the hash of a file into the manifest that describes it, as a stranger would."""
    table = json.loads(manifest.read_text())
    record = table["files"][path.name] if "files" in table else table
    record |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    if HASH_KEY in table:
        manifest.write_text(manifest_text(table))
    else:
        manifest.write_text(json.dumps(table))


def _damage(draw: random.Random, content: bytes) -> bytes:
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


def strange_value(draw: random.Random) -> Any:
    """Return a number, a text, or a nested value."""
    nested = (
        [],
        {},
        [[[]]],
        {"": {}},
        [None],
        None,
        True,
        float("nan"),
        float("inf"),
        [1, "a"],
        {"name": []},
        {"a": 1},
    )
    kind = draw.choice(["number", "text", "nested", "deep"])
    if kind == "number":
        return draw.choice(STRANGE_NUMBERS)
    if kind == "text":
        return draw.choice(STRANGE_TEXTS)
    if kind == "nested":
        return draw.choice(nested)
    deep: Any = 1
    for _ in range(draw.choice([10, 300])):
        deep = draw.choice([[deep], {"a": deep}])
    return deep


def _with_strange_value(draw: random.Random, table: Any) -> Any:
    """Return nested tables and lists in which one value is replaced, removed or added."""
    places = list(_places(table))
    if not places or draw.random() < 0.05:
        return strange_value(draw)
    container, key = draw.choice(places)
    kind = draw.choice(["replace", "replace", "replace", "remove", "add"])
    if kind == "remove":
        del container[key]
    elif kind == "add" and isinstance(container, dict):
        container[draw.choice([str(draw.choice(STRANGE_TEXTS)), "plugins", "name", "download"])] = strange_value(draw)
    else:
        container[key] = strange_value(draw)
    return table


def _places(table: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container with each of its keys."""
    if isinstance(table, dict):
        keys = list(table)
    elif isinstance(table, list):
        keys = list(range(len(table)))[:50]
    else:
        return
    for key in keys:
        yield table, key
        yield from _places(table[key])


def _mangle_json(draw: random.Random, content: bytes) -> bytes:
    return json.dumps(_with_strange_value(draw, json.loads(content))).encode("utf-8", "surrogatepass")


def _mangle_json_lines(draw: random.Random, content: bytes) -> bytes:
    lines = content.splitlines()
    number = draw.randrange(len(lines))
    lines[number] = _mangle_json(draw, lines[number])
    return b"\n".join(lines) + b"\n"


def _mangle_toml(draw: random.Random, content: bytes) -> bytes:
    table = _with_strange_value(draw, tomllib.loads(content.decode()))
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
            metadata[key] = json.dumps(_with_strange_value(draw, json.loads(metadata[key])))
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
        header = _with_strange_value(draw, header)
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
    places = list(_places(state))
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
    return _damage(draw, stream.getvalue())


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
