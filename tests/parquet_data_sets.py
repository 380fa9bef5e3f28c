"""Data sets in Parquet files, as the Hugging Face hub stores them, written for tests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from image_files import encode_png


def encoded_image(number: int, size_px: int = 9) -> bytes:
    """Return the bytes of a PNG of one color, different for every number."""
    color = (number % 256, 7 * number % 256, 255 - number % 256)
    return encode_png(Image.new("RGB", (size_px, size_px), color))


def write_shard(
    path: Path,
    numbers: Sequence[int],
    labels: Sequence[Any] | None,
    *,
    class_names: Sequence[str] = (),
    row_group_size: int = 3,
    image_column: str = "image",
    label_column: str = "label",
) -> Path:
    """Write a file of images; with names of classes, the metadata of the hub says them."""
    import pyarrow
    import pyarrow.parquet

    images = [{"bytes": encoded_image(number), "path": f"{number}.png"} for number in numbers]
    columns: dict[str, Any] = {image_column: images}
    if labels is not None:
        columns[label_column] = list(labels)
    table = pyarrow.table(columns)
    if class_names:
        features = {
            image_column: {"_type": "Image"},
            label_column: {"names": list(class_names), "_type": "ClassLabel"},
        }
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)
    return path


def write_hub_data_set(root: Path) -> Path:
    """Write two shards for training (12 images), one for validation (4) and one for testing without labels (3)."""
    names = ["cat", "ant", "bee"]
    write_shard(root / "data" / "train-00000-of-00002.parquet", range(7), [0, 1, 2] * 2 + [0], class_names=names)
    write_shard(root / "data" / "train-00001-of-00002.parquet", range(7, 12), [1, 2, 0, 1, 2], class_names=names)
    write_shard(root / "data" / "validation-00000-of-00001.parquet", range(20, 24), [0, 1, 2, 0], class_names=names)
    write_shard(root / "data" / "test-00000-of-00001.parquet", range(30, 33), [-1, -1, -1], class_names=names)
    (root / "README.md").write_text("---\ndataset_info: ...\n---\n")
    return root
