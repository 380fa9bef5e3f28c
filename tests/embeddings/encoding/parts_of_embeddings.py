"""Folders of embeddings in parts, for tests."""

from pathlib import Path

import reptk
from embedding_inputs import draw_image
from image_files import encode_png
from reptk.embeddings import Embeddings
from tar_data_sets import write_tar


def embed_in_parts(encoder: Path, data: Path, out: Path, **options: object) -> tuple[Embeddings, str]:
    """Return the embeddings, and what was printed."""
    lines: list[str] = []
    options = {"images_per_part": 5, "batch_size": 5, "workers": 0, **options}
    embeddings = reptk.embed(encoder, data, out=out, report=lines.append, **options)
    return embeddings, "\n".join(lines)


def part_inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("part-*")}


def write_tars(folder: Path, numbers: range) -> None:
    """Write a tar of four images for each number, in folders where the same names are again."""
    for number in numbers:
        path = folder / "ab"[number % 2] / f"{number // 2:03}.tar"
        members = []
        for sample in range(4):
            members.append((f"{number}-{sample}.png", encode_png(draw_image(4 * number + sample))))
            members.append((f"{number}-{sample}.cls", str(sample % 2).encode()))
        write_tar(path, members)
