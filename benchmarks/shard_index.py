"""Memory and time of a data set of many images in tar shards: python benchmarks/shard_index.py 1000000 10000000

For each number of images, a process opens shards whose index was generated, and draws the batches of some steps, without
decoding. `anonymous` is the memory of the process itself; `mapped` are pages of files, which the system may drop.
A second table is how fast the headers of a real shard are read.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

IMAGES_PER_SHARD = 10_000
IMAGE_BYTES = 512
KEY_BYTES = 9
CLASSES = 1000
HEADER_SAMPLES = 50_000


def write_index(root: Path, num_images: int) -> None:
    """Write sparse shards, and an index that says what they would hold."""
    from reptk.core.file_records import file_record
    from reptk.data.records.tar_index import RECORD, _index_folder

    num_shards = num_images // IMAGES_PER_SHARD
    paths = [root / f"train-{number:06}.tar" for number in range(num_shards)]
    root.mkdir()
    for path in paths:
        with path.open("wb") as file:
            file.truncate(IMAGES_PER_SHARD * 2 * IMAGE_BYTES)
    folder = _index_folder(paths)
    folder.mkdir(parents=True)
    with (folder / "records.bin").open("wb") as records, (folder / "keys.bin").open("wb") as keys:
        for shard in range(num_shards):
            numbers = np.arange(shard * IMAGES_PER_SHARD, (shard + 1) * IMAGES_PER_SHARD)
            rows = np.zeros(IMAGES_PER_SHARD, RECORD)
            rows["shard"] = shard
            rows["offset"] = (numbers % IMAGES_PER_SHARD * 2 + 1) * IMAGE_BYTES
            rows["size"] = IMAGE_BYTES
            rows["label"] = numbers * 7919 % CLASSES
            rows["key_end"] = (numbers + 1) * KEY_BYTES
            records.write(rows.tobytes())
            keys.write(b"".join(b"%09d" % number for number in numbers.tolist()))
    manifest = {
        "version": 1,
        "stats": [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths],
        "images": [IMAGES_PER_SHARD] * num_shards,
        "classes": [str(number) for number in range(CLASSES)],
        "notes": [],
        "files": {name: file_record(folder / name) for name in ("records.bin", "keys.bin")},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def memory() -> dict[str, float]:
    """Return the memory of this process in MB: its own, and pages of files."""
    values = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssFile"):
            values[name] = int(value.split()[0]) / 1024
    return values


def measure(root: Path, shuffle: str) -> dict[str, float]:
    """Open the shards and draw 200 batches of 256 images; return seconds and MB."""
    import torch

    from reptk.data import Loader, create_sampler, folder

    warnings.simplefilter("ignore")
    torch.randperm(1000)
    before = memory()
    start = time.perf_counter()
    data = folder(str(root))
    opened = time.perf_counter()
    images = data.train.images
    sampler = create_sampler(
        data.train.labels, batch_size=256, seed=0, shuffle=shuffle, block_starts=images.block_starts()
    )
    loader = Loader(data.train, batch_size=256, seed=0, sampler=sampler)
    drawn = time.perf_counter()
    num_labels = 0
    for numbers in loader._numbers(0, 200):
        num_labels += len(data.train.labels[numbers])
        images._sources.contents(numbers.numpy())
    end = time.perf_counter()
    after = memory()
    return {
        "images": len(data.train) + len(data.query),
        "open_seconds": opened - start,
        "milliseconds_per_batch": 1000 * (end - drawn) / 200,
        "anonymous_mb": after["RssAnon"] - before["RssAnon"],
        "mapped_mb": after["RssFile"] - before["RssFile"],
    }


def headers_per_second(folder: Path, num_samples: int) -> float:
    """Return how many samples, an image and a .cls file each, are indexed in a second."""
    from reptk.data.records.tar_members import read_shard

    path = folder / "headers.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(num_samples):
            for name, content in ((f"{number:09}.jpg", bytes(IMAGE_BYTES)), (f"{number:09}.cls", b"7")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    start = time.perf_counter()
    content = read_shard(path, lambda count: None)
    seconds = time.perf_counter() - start
    if len(content.samples) != num_samples:
        raise SystemExit(f"{len(content.samples)} samples: {content.problems}")
    return num_samples / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=int, nargs="*", default=[1_000_000])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--shuffle", default="global")
    args = parser.parse_args()
    if args.measure is not None:
        print(json.dumps(measure(args.measure, args.shuffle)))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "caches"))
        print("images       data.shuffle  opened in  per batch of 256  anonymous   mapped")
        for count in args.images:
            root = Path(folder, f"shards-{count}")
            write_index(root, count)
            for shuffle in ("global", "window:16"):
                command = [sys.executable, __file__, "--measure", str(root), "--shuffle", shuffle]
                row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                times = f"{row['open_seconds']:7.2f} s  {row['milliseconds_per_batch']:13.2f} ms"
                sizes = f"{row['anonymous_mb']:6.0f} MB  {row['mapped_mb']:4.0f} MB"
                print(f"{row['images']:<12,} {shuffle:<13} {times}  {sizes}")
        print(f"headers of a shard: {headers_per_second(Path(folder), HEADER_SAMPLES):,.0f} samples a second")


if __name__ == "__main__":
    main()
