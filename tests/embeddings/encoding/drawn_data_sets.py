"""Parquet files and tar shards of drawings, for tests."""

from pathlib import Path

import pytest
from PIL import Image

from embedding_inputs import draw_image
from image_files import encode_png
from tar_data_sets import write_tar


def draw_square(number: int) -> Image.Image:
    return draw_image(number).crop((0, 0, 40, 40))


def write_parquet_data_set(root: Path) -> Path:
    """Write 8 images for training, 3 for validation and 2 for testing without labels."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    number = 0
    for split, labels in (("train", [0, 1] * 4), ("validation", [1, 0, 1]), ("test", [-1, -1])):
        images = []
        for _ in labels:
            images.append({"bytes": encode_png(draw_square(number)), "path": None})
            number += 1
        table = pyarrow.table({"image": images, "label": labels})
        parquet.write_table(table, root / f"{split}-00000-of-00001.parquet", row_group_size=2)
    return root


def write_tar_shards(root: Path) -> Path:
    """Write two shards for training (6 images) and one for testing (2), with the classes a and b."""
    number = 0
    for name, count in (("train-000000", 3), ("train-000001", 3), ("test-000000", 2)):
        members = []
        for sample in range(count):
            members.append((f"{sample:03}.png", encode_png(draw_square(number))))
            members.append((f"{sample:03}.cls", b"ab"[number % 2 : number % 2 + 1]))
            number += 1
        write_tar(root / f"{name}.tar", members)
    return root
