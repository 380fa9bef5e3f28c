"""The same images in every kind of source, in the same order."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lance_data_sets import write_lance
from parquet_data_sets import encoded_image
from tar_data_sets import write_tar

PER_CLASS = 12
CLASSES = ("ant", "bee", "cat", "dog")


def _names() -> list[tuple[str, str, bytes]]:
    """Path, class and content of every image, in the order of a folder."""
    names = []
    for number, class_name in enumerate(CLASSES):
        for image in range(PER_CLASS):
            content = encoded_image(number * PER_CLASS + image, size_px=20)
            names.append((f"{class_name}/{image:02}.png", class_name, content))
    return names


def write_folder(root: Path) -> Path:
    for name, _, content in _names():
        (root / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "folder" / name).write_bytes(content)
    return root / "folder"


def write_csv(root: Path) -> Path:
    write_folder(root)
    with (root / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows((f"folder/{name}", class_name) for name, class_name, _ in _names())
    return root / "images.csv"


def write_json_lines(root: Path) -> Path:
    write_folder(root)
    rows = [json.dumps({"path": f"folder/{name}", "label": class_name}) for name, class_name, _ in _names()]
    (root / "images.jsonl").write_text("\n".join(rows))
    return root / "images.jsonl"


def write_parquet_of_paths(root: Path) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_folder(root)
    rows = [{"path": f"folder/{name}", "label": class_name} for name, class_name, _ in _names()]
    parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), root / "paths.parquet")
    return root / "paths.parquet"


def arrow_table() -> object:
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.table({"image": [row[2] for row in _names()], "label": [row[1] for row in _names()]})


def write_parquet(root: Path) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow_table(), root / "images.parquet", row_group_size=7)
    return root / "images.parquet"


def write_shards(root: Path) -> Path:
    members = [(name, content) for name, _, content in _names()]
    for shard in range(5):
        write_tar(root / "shards" / f"{shard:04}.tar", members[shard * 10 : shard * 10 + 10])
    return root / "shards"


def write_shards_with_class_files(root: Path) -> Path:
    for shard in range(5):
        members = []
        for number, (_, class_name, content) in list(enumerate(_names()))[shard * 10 : shard * 10 + 10]:
            members += [(f"{number:04}.png", content), (f"{number:04}.cls", class_name.encode())]
        write_tar(root / "classes" / f"{shard:04}.tar", members)
    return root / "classes" / "{0000..0004}.tar"


def write_lance_table(root: Path) -> Path:
    return write_lance(root / "images.lance", arrow_table(), max_rows_per_file=11)


def write_hugging_face_dataset(root: Path) -> Path:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    images = [{"bytes": content, "path": None} for _, _, content in _names()]
    labels = [CLASSES.index(class_name) for _, class_name, _ in _names()]
    datasets.disable_progress_bars()
    data_set = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    data_set.save_to_disk(root / "saved", num_shards=3)
    return root / "saved"


SOURCES: dict[str, Callable[[Path], Path]] = {
    "csv": write_csv,
    "json lines": write_json_lines,
    "parquet of paths": write_parquet_of_paths,
    "parquet": write_parquet,
    "shards": write_shards,
    "shards with class files": write_shards_with_class_files,
    "lance": write_lance_table,
    "hugging face dataset": write_hugging_face_dataset,
}
"""Writes the images below a folder and returns what `data.root` names; those of other packages are skipped without them."""
