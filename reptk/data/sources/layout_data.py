"""Which images of a folder, a table or Parquet shards are trained on, and which are the bank and the queries."""

import warnings
from collections.abc import Sequence

import torch

from reptk.core.errors import DataError
from reptk.data.images.file_reader import FileReader
from reptk.data.layouts.image_layout import ImageLayout, LabeledImages, Labels, concatenate
from reptk.data.protocol import Data, Split
from reptk.data.sources.imagenet_folders import SYNSET
from reptk.data.split_names import EVALUATION_ROLES, GALLERY, TRAIN, UNLABELED, split_role


def data_of_layout(layout: ImageLayout, labels: Labels, holdout: int, reader: FileReader) -> Data:
    """Return the data set of these images.

    With splits for training and for evaluation, the queries are the images of `val` if it has labels, else of `test`, and so
    on. Otherwise every `holdout`-th image of each class is a query.

    Args:
        layout: the images, by split.
        labels: "auto": no labels if training has fewer than two classes.
        holdout: every how many-th image of a class is a query.
        reader: opens the images.

    Raises:
        DataError: there are no images to train on, or evaluation has a class that training lacks.
    """
    train_names = layout.splits_of(TRAIN)
    evaluation_names = layout.splits_of(*EVALUATION_ROLES, GALLERY)
    if train_names and evaluation_names:
        return _from_splits(layout, labels, holdout, reader)
    lacks_images = any(split_role(name) == TRAIN for name in layout.empty_splits)
    if len(evaluation_names) > 1 or (evaluation_names and lacks_images):
        raise DataError(_no_training_images(layout, evaluation_names))
    return _with_held_out_queries(layout, holdout, reader)


def _no_training_images(layout: ImageLayout, evaluation_names: Sequence[str]) -> str:
    message = f"{layout.base} has the splits {', '.join(evaluation_names)}, and no images to train on"
    if layout.kind != "folder":
        return message + layout.split_advice
    folder = layout.base / evaluation_names[0]
    return (
        f"{message} in a folder such as {layout.base / 'train'}; to train on one of these, name it: data.root={folder}"
    )


def build_data(
    train: LabeledImages,
    bank: LabeledImages | None,
    query: LabeledImages | None,
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


def _splits(parts: list[LabeledImages], classes: tuple[str, ...], reader: FileReader) -> list[Split]:
    images = reader.read([part.sources for part in parts])
    splits = []
    for part, part_images in zip(parts, images, strict=True):
        labels = torch.from_numpy(part.labels_among(classes))
        splits.append(Split(part_images, labels))
    return splits


def _with_held_out_queries(layout: ImageLayout, holdout: int, reader: FileReader) -> Data:
    """Return the data set of images without splits, or with one."""
    split_names = layout.splits_of(TRAIN, *EVALUATION_ROLES, GALLERY, UNLABELED)
    source = str(layout.base)
    if split_names:
        # A single split is used as if there were nothing else.
        source = layout.split_name(split_names[0])
        files = layout.images_of(split_names)
    else:
        files = layout.files
    summary = [*layout.describe(), *_describe_unused(layout, split_names)]
    classes = files.class_names()
    # Without labels nothing can be evaluated, so all images are for training.
    if not classes:
        return build_data(files, None, None, (), reader, f"{source}: nothing held out", summary=summary)
    train, query = files.hold_out(holdout)
    if not len(query):
        warnings.warn(f"no class of {source} has {holdout} images, so none is held out as a query", stacklevel=4)
        return build_data(train, None, None, classes, reader, f"{source}: nothing held out", summary=summary)
    protocol = _held_out_protocol(source, holdout)
    return build_data(train, train.labeled(), query, classes, reader, protocol, summary=summary)


def _from_splits(layout: ImageLayout, labels: Labels, holdout: int, reader: FileReader) -> Data:
    """Return the data set of images with splits for training and evaluation."""
    train_names = layout.splits_of(TRAIN)
    train = layout.images_of(train_names)
    train_text = " and ".join(layout.split_name(name) for name in train_names)
    query_name = _query_split(layout)
    query_text = layout.split_name(query_name)
    query = layout.parts[query_name]
    classes = train.class_names()
    if labels == "auto" and len(classes) < 2:
        train = train.without_labels()
        classes = ()
    used = [*train_names, *layout.splits_of(UNLABELED)]
    # Images without labels are trained on, and cannot be in the bank.
    unlabeled = layout.images_of(layout.splits_of(UNLABELED))
    protocol = f"bank {train_text}, queries {query_text}"
    if not classes:
        summary = [*layout.describe(), *_describe_unused(layout, used)]
        return build_data(concatenate([train, unlabeled]), None, None, (), reader, protocol, summary=summary)
    # One class is enough for the queries: it has to be one of the training images'.
    unknown = sorted(set(query.class_names()) - set(classes))
    if unknown:
        raise DataError(
            f"{query_text} has classes that {train_text} lacks: {', '.join(unknown[:5])}{_imagenet_hint(layout, classes)}"
        )
    if query.class_names():
        summary = [*layout.describe(), *_describe_unused(layout, [*used, query_name])]
        trained = concatenate([train, unlabeled])
        return build_data(trained, train.labeled(), query.labeled(), classes, reader, protocol, summary=summary)
    imagenet_hint = _imagenet_hint(layout, classes)
    if imagenet_hint:
        raise DataError(f"{train_text} has class folders and {query_text} has none{imagenet_hint}")
    # The labels of a test split are often secret.
    fitted, held_out = train.hold_out(holdout)
    summary = [*layout.describe(), *_describe_unused(layout, used)]
    if not len(held_out):
        raise DataError(
            f"{query_text} {layout.lacks_labels}, and no class of {train_text} has the {holdout} images from which a query "
            "could be held out (data.holdout)"
        )
    summary.append(f"  {query_name} {layout.lacks_labels}, so every {holdout}th image of each class is a query")
    protocol = _held_out_protocol(train_text, holdout)
    trained = concatenate([fitted, unlabeled])
    return build_data(trained, fitted.labeled(), held_out, classes, reader, protocol, summary=summary)


def _held_out_protocol(source: str, holdout: int) -> str:
    return f"{source}: bank the training images, queries every {holdout}th image of each class, in path order"


def _imagenet_hint(layout: ImageLayout, classes: Sequence[str]) -> str:
    if layout.kind == "folder" and all(SYNSET.fullmatch(name) for name in classes):
        return ". For ImageNet as it is distributed: data.name=imagenet"
    return ""


def _query_split(layout: ImageLayout) -> str:
    """Return the split whose images are the queries."""
    names = layout.splits_of(*EVALUATION_ROLES, GALLERY)
    for name in names:
        # The labels of a test split are often secret.
        if layout.parts[name].class_names():
            return name
    return names[0]


def _describe_unused(layout: ImageLayout, used: Sequence[str]) -> list[str]:
    """Return a line that counts the images of splits that training does not read."""
    if not layout.has_splits:
        return []
    unused = []
    for name, files in layout.parts.items():
        if name not in used:
            unused.append(f"{len(files):,} in {name or 'no split'}")
    if not unused:
        return []
    return [f"  not used in training: {', '.join(unused)}"]
