"""Embeddings of a folder of images in the user's cache, where only what is new or has changed is embedded again."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from reptk.core.files import expand_home, real_path
from reptk.core.user_folders import default_folder
from reptk.data.decoding.decode import EXTENSIONS
from reptk.embeddings.embeddings import Embeddings
from reptk.embeddings.encoding.default_encoder import EncoderChoice, choose_encoder
from reptk.embeddings.encoding.embed_images import embed

TABLE_SUFFIXES = (".csv", ".json", ".jsonl", ".tsv")
SHARD_SUFFIXES = (".tar",)
MAX_ENTRIES = 100_000
"""So many files are looked at to tell a folder of images from another one."""

MAX_NAME_LETTERS = 40


def embed_folder(
    folder: str | Path,
    encoder: str | Path | None = None,
    *,
    weights: str | None = None,
    device: str = "auto",
    force: bool = False,
    report: Callable[[str], None] | None = None,
) -> Embeddings:
    """Embed a folder of images, or a table of them, into the user's cache.

    A second call embeds what is new or has changed since, and leaves out what is gone. An interrupted call is continued by the
    next one.

    Args:
        folder: see `embed`.
        encoder: a run's folder, or a timm name; by default a small one with weights of ImageNet, see `choose_encoder`.
        weights: of a timm backbone; by default timm's.
        device: where to encode: auto, cpu, cuda, cuda:N or mps.
        force: embed all images again.
        report: called with each line that says what is done, and where the embeddings are.

    Raises:
        UsageError, DataError, EnvironmentProblem, NumericalError: see `choose_encoder` and `embed`.
    """
    choice = choose_encoder(encoder, weights)
    out = cached_embeddings(folder, choice)
    if report is not None:
        report(f"encoder: {choice.description}")
        report(f"embeddings: {out}")
    return embed(
        choice.encoder,
        folder,
        out=out,
        pretrained=choice.pretrained,
        weights=choice.weights,
        device=device,
        force=force,
        prune=True,  # what is removed can be embedded again
        report=report,
    )


def cached_embeddings(folder: str | Path, choice: EncoderChoice) -> Path:
    """Return the folder in which the embeddings of a folder of images by an encoder are; it need not exist."""
    images = real_path(expand_home(folder))
    key = json.dumps([str(images), choice.encoder, choice.weights, choice.pretrained])
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", images.name)[:MAX_NAME_LETTERS]
    return default_folder() / "embeddings" / f"{name}-{digest}"


def holds_images(path: str | Path) -> bool:
    """Return whether a path is a table of images, or a folder that holds at least one image, at any depth."""
    path = expand_home(path)
    if path.is_file():
        return path.suffix.lower() in TABLE_SUFFIXES
    endings = (*EXTENSIONS, *SHARD_SUFFIXES)
    num_entries = 0
    for _, _, names in os.walk(path):
        if any(name.lower().endswith(endings) for name in names):
            return True
        num_entries += len(names) + 1
        if num_entries > MAX_ENTRIES:
            return False
    return False
