"""The user's own images: a folder, a table that lists them, Parquet files or tar shards that hold them, a data set on disk."""

import warnings
from typing import Annotated

from annotated_types import Ge, Gt, Le

from reptk.config.registry import DATASETS
from reptk.data.decoding.decode import Jpeg
from reptk.data.decoding.pixel_options import MAX_PIXELS, PixelOptions
from reptk.data.decoding.resize import DEFAULT_PREPROCESSING, Interpolation, ResizeMode
from reptk.data.images.file_reader import FileReader, ImageSize, decoded_cache_folder
from reptk.data.images.image_files import OnError
from reptk.data.layouts.folder_scan import SkippedFiles
from reptk.data.layouts.image_layout import Labels
from reptk.data.layouts.open_layout import existing_source, open_layout
from reptk.data.protocol import Data, with_shape
from reptk.data.sources.layout_data import data_of_layout

Share = Annotated[float, Gt(0), Le(1)]


@DATASETS.register("folder")
@with_shape()
def folder(
    root: str,
    size: ImageSize = 256,
    labels: Labels = "auto",
    holdout: Annotated[int, Ge(2)] = 5,
    cache: bool | str = False,
    jpeg: Jpeg = "auto",
    on_error: OnError = "skip",
    max_pixels: Annotated[int, Ge(1)] = MAX_PIXELS,
    range: tuple[int, int] = (0, 65535),
    background: str = "white",
    crop: Share | None = None,
    resize: ResizeMode | None = None,
    interpolation: Interpolation | None = None,
    reduce_jpeg: bool | None = None,
) -> Data:
    """Your own images: any depth, with or without class folders; hidden and junk folders are skipped.

    If all folders directly below `root` have names of splits, in any case (`train`, `Training`; `val`, `VALID`, `dev`,
    `test`, `testing`, `query`, ...), these are the splits: the queries are those of `val` if it is there and has labels,
    else of `test`, else of `query`. If another folder is next to them, all are classes. If all classes hold folders of the same
    splits and nothing else (`cat/train`, `cat/test`, `dog/train`, ...), these are the splits. Without splits, every
    `holdout`-th image of each class, in the order of their paths, is a query and not a training image; a single split
    folder is used in place of the root.

    A table (CSV, JSON lines or Parquet) lists the images with their classes and, in a column such as `split`, their splits,
    under any of the usual headings; see `reptk.data.layouts.image_table`. Its splits and classes mean what folders mean.

    A folder of Parquet files that hold the images, as the Hugging Face hub stores data sets (`train-00000-of-00014.parquet`,
    with the columns `image` and `label`), is read by row group; splits are the names of the files or of their folders, or else
    the entries of a column such as `split`.

    Tar shards in WebDataset's layout (`train-000000.tar` with `0001.jpg`, `0001.cls` or `0001.json`, ... or class folders),
    uncompressed, are indexed once and then read image by image; splits are the names of the shards or of their folders. They
    are named by a folder, a pattern (`shards/train-{000000..000009}.tar`, `shards/*.tar`), or one of them.

    A table of Lance (`photos.lance`, or a version of it, `photos.lance@12`) needs the extra `lance`, and a data set that
    Hugging Face's datasets saved to disk the extra `datasets`. Their columns are those of Parquet files.

    Args:
        root: the folder, the table, one of the shards, or a pattern of their names.
        size: pixels of the shorter side to which every image is decoded. Training draws its crops on whole pictures, of those
            longer than 2:1 on the middle.
        labels: "folders": the first folder below the root, or below the split's, names the class; images next to the class
            folders and those below `unlabeled` have no label; "none": no labels at all; "auto": "folders" if there are at
            least two class folders with images, else "none". The classes of a table are those of its column.
        holdout: every how many-th image of a class is a query.
        cache: store the decoded images (size * size * 3 bytes each, up to twice that if they are long) and map them into
            memory: true for `~/.cache/reptk` (or `$XDG_CACHE_HOME/reptk`), or a folder. Built on first use, and again for
            files that have changed.
        jpeg: the JPEG decoder; "auto" is simplejpeg if it is installed, about twice as fast. The two differ by a level or
            two, so name one if runs on several machines have to agree.
        on_error: "skip": images that cannot be read are replaced by others in training, left out in evaluation, and listed in
            `bad_samples.csv`, as long as they are few (1 %, or 10); "stop": the first one ends the run.
        max_pixels: larger images cannot be read.
        range: values of 16-bit images that become black and white, e.g. [0,4095] for cameras with 12 bits.
        background: the color behind transparent pixels, as a name or `#rrggbb`.
        crop: share of the side that evaluation keeps; unset: that of the backbone if it starts from trained weights, else
            0.875, or 1 if `resize` is set to "pad" or "squash".
        resize: what evaluation does with pictures that are not square: "crop", "pad" or "squash" (timm's center, border and
            squash); unset: as the backbone, or "crop".
        interpolation: of the resize, antialiased; unset: as the backbone, or "bilinear".
        reduce_jpeg: decode large JPEG files at a fraction of their size; unset: yes, but not for timm's weights as they are,
            whose features it would change slightly.

    Raises:
        DataError: there is no such folder or table, it has no images or cannot be understood, or evaluation has a class that
            training lacks.
        EnvironmentProblem: no space for the cache, or simplejpeg is requested and not installed.
    """
    base = existing_source(root)
    options = PixelOptions(max_pixels, range, background)
    preprocessing = DEFAULT_PREPROCESSING.replace_set(
        crop=crop, resize=resize, interpolation=interpolation, reduce_jpeg=reduce_jpeg
    )
    reader = FileReader(size, jpeg, decoded_cache_folder(cache, "folder", base, size), options, on_error, preprocessing)
    layout = open_layout(base, labels)
    if layout.skipped:
        warnings.warn(f"{base}: skipped {'; '.join(layout.skipped)}", SkippedFiles, stacklevel=2)
    return data_of_layout(layout, labels, holdout, reader)
