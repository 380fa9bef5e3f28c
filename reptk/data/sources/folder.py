"""A folder of the user's own images: which of them are trained on, and which are queries."""

import difflib
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le

from reptk.config.registry import DATASETS
from reptk.core.errors import DataError
from reptk.core.files import expand_home, real_path
from reptk.data.decode import MAX_PIXELS, Jpeg, PixelOptions
from reptk.data.folder_layout import FolderLayout, LabeledFile, Labels, class_names, read_layout, without_labels
from reptk.data.folder_scan import SkippedFiles
from reptk.data.image_files import FileReader, ImageSize, OnError, cache_folder
from reptk.data.protocol import Data, Split, with_shape
from reptk.data.resize import DEFAULT_PREPROCESSING, Interpolation, Resize
from reptk.data.sources.imagenet_folders import SYNSET
from reptk.data.split_names import EVALUATION_ROLES, GALLERY, TRAIN, UNLABELED, split_role

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
    resize: Resize | None = None,
    interpolation: Interpolation | None = None,
    reduce_jpeg: bool | None = None,
) -> Data:
    """Your own images: any depth, with or without class folders; hidden and junk folders are skipped.

    If all folders directly below `root` have names of splits, in any case (`train`, `Training`; `val`, `VALID`, `dev`,
    `test`, `testing`, `query`, ...), these are the splits: the queries are those of `val` if it is there and has labels,
    else of `test`, else of `query`. If another folder is next to them, all are classes. Without splits, every `holdout`-th
    image of each class, in the order of their paths, is a query and not a training image; a single split folder is used
    in place of the root.

    Args:
        root: the folder.
        size: pixels of the shorter side to which every image is decoded. Training draws its crops on whole pictures, of those
            longer than 2:1 on the middle.
        labels: "folders": the first folder below the root, or below the split's, names the class; images next to the class
            folders and those below `unlabeled` have no label; "none": no labels at all; "auto": "folders" if there are at
            least two class folders with images, else "none".
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
        reduce_jpeg: decode large JPEG files at a fraction of their size; unset: only if the backbone does not start from
            trained weights, whose features it would change slightly.

    Raises:
        DataError: there is no such folder, it holds no images, or evaluation has a class that training lacks.
        EnvironmentProblem: no space for the cache, or simplejpeg is requested and not installed.
    """
    base = existing_folder(root)
    options = PixelOptions(max_pixels, range, background)
    preprocessing = DEFAULT_PREPROCESSING.replace_set(
        crop=crop, resize=resize, interpolation=interpolation, reduce_jpeg=reduce_jpeg
    )
    reader = FileReader(size, jpeg, cache_folder(cache, "folder", base, size), options, on_error, preprocessing)
    layout = read_layout(base, labels)
    skipped = layout.scan.describe_skipped()
    if skipped:
        warnings.warn(f"{base}: skipped {'; '.join(skipped)}", SkippedFiles, stacklevel=2)
    train_names = layout.folders_of(TRAIN)
    evaluation_names = layout.folders_of(*EVALUATION_ROLES, GALLERY)
    if train_names and evaluation_names:
        return _from_split_folders(layout, labels, holdout, reader)
    if len(evaluation_names) > 1 or (evaluation_names and _has_empty_train_folder(layout)):
        raise DataError(
            f"{base} has the splits {', '.join(evaluation_names)}, and no images to train on in a folder such as "
            f"{base / 'train'}; to train on one of these, name it: data.root={base / evaluation_names[0]}"
        )
    return _with_held_out_queries(layout, holdout, reader)


def existing_folder(root: str) -> Path:
    """Return the path of a folder of images.

    Raises:
        DataError: there is no such folder, with the nearest that exists.
    """
    base = expand_home(root)
    if base.is_dir():
        return base
    if base.exists():
        raise DataError(f"{root} (data.root) is a file; name the folder that holds the images")
    parent = next(folder for folder in real_path(base).parents if folder.is_dir())
    # `parent` is the nearest folder that exists; most often the last part of the path is misspelled.
    siblings = [path.name for path in parent.iterdir() if path.is_dir()]
    nearest = difflib.get_close_matches(base.name, siblings, n=1)
    if nearest:
        hint = f"did you mean {parent / nearest[0]}?"
    else:
        hint = f"the nearest folder that exists is {parent}"
    raise DataError(f"no folder {root} (data.root, {real_path(base)}); {hint}")


def build_data(
    train: list[LabeledFile],
    bank: list[LabeledFile] | None,
    query: list[LabeledFile] | None,
    classes: tuple[str, ...],
    reader: FileReader,
    protocol: str,
    *,
    summary: Sequence[str] = (),
) -> Data:
    """Return the data set of these files.

    If all training images are in the bank, the two are one split. Without `bank` and `query`, there is no evaluation.
    """
    preprocessing = reader.preprocessing._asdict()
    del preprocessing["reduce_jpeg"]
    lines = tuple(summary)
    if bank is None or query is None:
        [train_split] = _splits([train], classes, reader)
        return Data(train_split, None, None, classes, protocol, summary=lines, **preprocessing)
    if len(bank) == len(train):
        train_split, query_split = _splits([train, query], classes, reader)
        bank_split = train_split
    else:
        train_split, query_split, bank_split = _splits([train, query, bank], classes, reader)
    return Data(train_split, bank_split, query_split, classes, protocol, summary=lines, **preprocessing)


def _splits(parts: list[list[LabeledFile]], classes: tuple[str, ...], reader: FileReader) -> list[Split]:
    label_of: dict[str | None, int] = {name: label for label, name in enumerate(classes)}
    label_of[None] = -1
    images = reader.read([[file.path for file in files] for files in parts])
    splits = []
    for files, part_images in zip(parts, images, strict=True):
        labels = torch.tensor([label_of[file.class_name] for file in files], dtype=torch.long)
        splits.append(Split(part_images, labels))
    return splits


def _has_empty_train_folder(layout: FolderLayout) -> bool:
    return any(split_role(name) == TRAIN and name not in layout.parts for name in layout.scan.subfolders)


def _with_held_out_queries(layout: FolderLayout, holdout: int, reader: FileReader) -> Data:
    """Return the data set of a folder without splits, or with one."""
    split_names = layout.folders_of(TRAIN, *EVALUATION_ROLES, GALLERY, UNLABELED)
    base = layout.base
    if split_names:
        # A single split folder is used in place of the root.
        base = base / split_names[0]
        files = [file for name in split_names for file in layout.parts[name]]
    else:
        files = layout.files
    summary = [*layout.describe(), *_describe_unused(layout, split_names)]
    classes = class_names(files)
    # Without labels nothing can be evaluated, so all images are for training.
    if not classes:
        return build_data(files, None, None, (), reader, f"{base}: nothing held out", summary=summary)
    train, query = _hold_out(files, holdout)
    if not query:
        warnings.warn(f"no class of {base} has {holdout} images, so none is held out as a query", stacklevel=3)
        return build_data(train, None, None, classes, reader, f"{base}: nothing held out", summary=summary)
    protocol = _held_out_protocol(str(base), holdout)
    return build_data(train, _labeled(train), query, classes, reader, protocol, summary=summary)


def _from_split_folders(layout: FolderLayout, labels: Labels, holdout: int, reader: FileReader) -> Data:
    """Return the data set of a folder with train and evaluation folders."""
    base = layout.base
    train_names = layout.folders_of(TRAIN)
    train = [file for name in train_names for file in layout.parts[name]]
    train_text = " and ".join(str(base / name) for name in train_names)
    query_name = _query_folder(layout)
    query_folder = base / query_name
    query = layout.parts[query_name]
    classes = class_names(train)
    if labels == "auto" and len(classes) < 2:
        train = without_labels(train)
        classes = ()
    used = [*train_names, *layout.folders_of(UNLABELED)]
    # Images without labels are trained on, and cannot be in the bank.
    unlabeled = [file for name in layout.folders_of(UNLABELED) for file in layout.parts[name]]
    protocol = f"bank {train_text}, queries {query_folder}"
    if not classes:
        summary = [*layout.describe(), *_describe_unused(layout, used)]
        return build_data(train + unlabeled, None, None, (), reader, protocol, summary=summary)
    # One class folder is enough for the queries: it has to be one of the training images'.
    unknown = sorted(set(class_names(query)) - set(classes))
    if unknown:
        raise DataError(
            f"{query_folder} has classes that {train_text} lacks: {', '.join(unknown[:5])}{_imagenet_hint(classes)}"
        )
    if class_names(query):
        summary = [*layout.describe(), *_describe_unused(layout, [*used, query_name])]
        bank = _labeled(train)
        return build_data(train + unlabeled, bank, _labeled(query), classes, reader, protocol, summary=summary)
    imagenet_hint = _imagenet_hint(classes)
    if imagenet_hint:
        raise DataError(f"{train_text} has class folders and {query_folder} has none{imagenet_hint}")
    # The labels of a test folder are often secret.
    fitted, held_out = _hold_out(train, holdout)
    summary = [*layout.describe(), *_describe_unused(layout, used)]
    if not held_out:
        raise DataError(
            f"{query_folder} has no class folders, and no class of {train_text} has the {holdout} images from which a query "
            "could be held out (data.holdout)"
        )
    summary.append(f"  {query_name} has no class folders, so every {holdout}th image of each class is a query")
    protocol = _held_out_protocol(train_text, holdout)
    return build_data(fitted + unlabeled, _labeled(fitted), held_out, classes, reader, protocol, summary=summary)


def _held_out_protocol(place: str, holdout: int) -> str:
    return f"{place}: bank the training images, queries every {holdout}th image of each class, in path order"


def _imagenet_hint(classes: Sequence[str]) -> str:
    if all(SYNSET.fullmatch(name) for name in classes):
        return ". For ImageNet as it is distributed: data.name=imagenet"
    return ""


def _query_folder(layout: FolderLayout) -> str:
    """Return the evaluation folder whose images are the queries."""
    names = layout.folders_of(*EVALUATION_ROLES, GALLERY)
    for name in names:
        # The labels of a test folder are often secret.
        if class_names(layout.parts[name]):
            return name
    return names[0]


def _describe_unused(layout: FolderLayout, used: Sequence[str]) -> list[str]:
    """Return a line that counts the images of split folders that training does not read."""
    if not layout.has_splits:
        return []
    unused = []
    for name, files in layout.parts.items():
        if name not in used:
            unused.append(f"{len(files):,} in {name or 'no split'}")
    if not unused:
        return []
    return [f"  not used in training: {', '.join(unused)}"]


def _hold_out(files: list[LabeledFile], every: int) -> tuple[list[LabeledFile], list[LabeledFile]]:
    """Return the training files, and every so many-th file of each class, which are the queries."""
    train: list[LabeledFile] = []
    query: list[LabeledFile] = []
    num_files: Counter[str] = Counter()
    for file in files:
        if file.class_name is None:
            train.append(file)
            continue
        num_files[file.class_name] += 1
        if num_files[file.class_name] % every == 0:
            query.append(file)
        else:
            train.append(file)
    return train, query


def _labeled(files: list[LabeledFile]) -> list[LabeledFile]:
    return [file for file in files if file.class_name is not None]
