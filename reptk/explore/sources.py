"""What `reptk explore` opens: a folder of images, embeddings, an index, or a run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from reptk.config.run_paths import describe_no_run
from reptk.core.counts import format_count
from reptk.core.errors import DataError, UsageError
from reptk.core.files import expand_home
from reptk.core.passwords import redacted
from reptk.embeddings import Embedder, Embeddings, Index, embed_folder
from reptk.embeddings.encoding.folder_cache import holds_images
from reptk.embeddings.files.embeddings_file import SUFFIXES
from reptk.embeddings.files.parts_manifest import is_parts_folder
from reptk.explore.columns import embedding_columns, parquet_columns
from reptk.explore.image_collection import ImageCollection
from reptk.explore.pictures import Pictures
from reptk.explore.run_queries import open_run
from reptk.stores import is_address

RUN_FILES = ("results.json", "metrics.jsonl")


class Options(NamedTuple):
    """How to open what is named.

    Args:
        encoder: of a folder of images, or the present place of the encoder of embeddings.
        weights: of a timm backbone as `encoder`.
        device: where to encode.
        force: embed all images of a folder again.
        trust: execute the plugins of a run, and read an approximate index that was not built by this user on this machine.
        report: called with each line that says what is done.
    """

    encoder: str | None = None
    weights: str | None = None
    device: str = "auto"
    force: bool = False
    trust: bool = False
    report: Callable[[str], None] | None = None


def open_collection(named: str, options: Options) -> ImageCollection:
    """Open what is named on the command line.

    Raises:
        UsageError: a store, or an option that does not go with it.
        DataError: there is nothing to look at, or it is damaged.
        EnvironmentProblem: an encoder has no weights on this machine.
    """
    if is_address(named):
        raise UsageError(f"a page is of files and folders, not of stores: {redacted(named)}")
    path = expand_home(named)
    if any((path / name).is_file() for name in RUN_FILES):
        _check_no_folder_options(named, options, "a run, whose queries are shown")
        if options.encoder is not None:
            raise UsageError(f"{named} is a run and has its own encoder; --encoder goes with a folder of images")
        return open_run(path, trust=options.trust, device=options.device)
    if _is_index_or_embeddings(path):
        _check_no_folder_options(named, options, "embedded already")
        index = Index.open(path, trust=options.trust)
        return _collection(named, index, partial(_reopen, index.embeddings, options))
    if not path.exists():
        raise DataError(f"there is no folder or file {named}")
    if not holds_images(path):
        hint = describe_no_run(named).hint()
        raise DataError(f"{named} holds neither images nor embeddings, an index or the results of a run{hint}")
    embeddings = embed_folder(
        path,
        options.encoder,
        weights=options.weights,
        device=options.device,
        force=options.force,
        report=options.report,
    )
    # The record of the embeddings names their encoder, wherever it comes from.
    reopen = partial(_reopen, embeddings, options._replace(encoder=None))
    return _collection(named, Index(embeddings), reopen)


def _check_no_folder_options(named: str, options: Options, what: str) -> None:
    if options.weights is not None or options.force:
        raise UsageError(f"--weights and --force go with a folder of images; {named} is {what}")


def _is_index_or_embeddings(path: Path) -> bool:
    if path.is_dir():
        return is_parts_folder(path) or (path / "manifest.json").is_file()
    return path.suffix.lower() in SUFFIXES


def _reopen(embeddings: Embeddings, options: Options) -> Embedder:
    return Embedder.reopen(embeddings.metadata, options.encoder, device=options.device)


def _collection(named: str, index: Index, open_embedder: Callable[[], Embedder]) -> ImageCollection:
    embeddings = index.embeddings
    columns = embedding_columns(embeddings)
    stored_positions = None
    file = index.path
    if file is not None and file.suffix.lower() == ".parquet":
        further_columns, stored_positions = parquet_columns(file)
        columns += further_columns
    notes = [f"{format_count(len(embeddings), 'image')}, search: {index.describe_kind()}"]
    # The records may be of another program, or missing.
    encoder = embeddings.metadata.get("encoder")
    if isinstance(encoder, dict) and "backbone" in encoder:
        notes.append(f"embedded by {encoder['backbone']}")
    skipped = embeddings.metadata.get("skipped")
    if isinstance(skipped, dict) and isinstance(skipped.get("count"), int):
        notes.append(f"{format_count(skipped['count'], 'image')} could not be read")
    return ImageCollection(
        title=named,
        index=index,
        pictures=Pictures(embeddings),
        columns=columns,
        open_embedder=open_embedder,
        notes=notes,
        stored_positions=stored_positions,
    )
