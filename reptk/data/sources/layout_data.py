"""Which images of a folder, a table or Parquet shards are trained on, and which are the bank and the queries."""

import warnings
from collections import Counter
from collections.abc import Sequence

import torch

from reptk.core.errors import DataError
from reptk.data.image_files import FileReader
from reptk.data.image_layout import ImageLayout, LabeledFile, Labels, class_names, without_labels
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
    if layout.kind == "table":
        return f"{message}; write train into the column of splits for these"
    if layout.kind == "shards":
        return f"{message} in files such as train-00000-of-00001.parquet; to train on one of these, name its file (data.root)"
    folder = layout.base / evaluation_names[0]
    return (
        f"{message} in a folder such as {layout.base / 'train'}; to train on one of these, name it: data.root={folder}"
    )


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


def _with_held_out_queries(layout: ImageLayout, holdout: int, reader: FileReader) -> Data:
    """Return the data set of images without splits, or with one."""
    split_names = layout.splits_of(TRAIN, *EVALUATION_ROLES, GALLERY, UNLABELED)
    place = str(layout.base)
    if split_names:
        # A single split is used as if there were nothing else.
        place = layout.places[split_names[0]]
        files = [file for name in split_names for file in layout.parts[name]]
    else:
        files = layout.files
    summary = [*layout.describe(), *_describe_unused(layout, split_names)]
    classes = layout.class_names(files)
    # Without labels nothing can be evaluated, so all images are for training.
    if not classes:
        return build_data(files, None, None, (), reader, f"{place}: nothing held out", summary=summary)
    train, query = _hold_out(files, holdout)
    if not query:
        warnings.warn(f"no class of {place} has {holdout} images, so none is held out as a query", stacklevel=4)
        return build_data(train, None, None, classes, reader, f"{place}: nothing held out", summary=summary)
    protocol = _held_out_protocol(place, holdout)
    return build_data(train, _labeled(train), query, classes, reader, protocol, summary=summary)


def _from_splits(layout: ImageLayout, labels: Labels, holdout: int, reader: FileReader) -> Data:
    """Return the data set of images with splits for training and evaluation."""
    train_names = layout.splits_of(TRAIN)
    train = [file for name in train_names for file in layout.parts[name]]
    train_text = " and ".join(layout.places[name] for name in train_names)
    query_name = _query_split(layout)
    query_text = layout.places[query_name]
    query = layout.parts[query_name]
    classes = layout.class_names(train)
    if labels == "auto" and len(classes) < 2:
        train = without_labels(train)
        classes = ()
    used = [*train_names, *layout.splits_of(UNLABELED)]
    # Images without labels are trained on, and cannot be in the bank.
    unlabeled = [file for name in layout.splits_of(UNLABELED) for file in layout.parts[name]]
    protocol = f"bank {train_text}, queries {query_text}"
    if not classes:
        summary = [*layout.describe(), *_describe_unused(layout, used)]
        return build_data(train + unlabeled, None, None, (), reader, protocol, summary=summary)
    # One class is enough for the queries: it has to be one of the training images'.
    unknown = sorted(set(class_names(query)) - set(classes))
    if unknown:
        raise DataError(
            f"{query_text} has classes that {train_text} lacks: {', '.join(unknown[:5])}{_imagenet_hint(layout, classes)}"
        )
    if class_names(query):
        summary = [*layout.describe(), *_describe_unused(layout, [*used, query_name])]
        bank = _labeled(train)
        return build_data(train + unlabeled, bank, _labeled(query), classes, reader, protocol, summary=summary)
    imagenet_hint = _imagenet_hint(layout, classes)
    if imagenet_hint:
        raise DataError(f"{train_text} has class folders and {query_text} has none{imagenet_hint}")
    # The labels of a test split are often secret.
    fitted, held_out = _hold_out(train, holdout)
    summary = [*layout.describe(), *_describe_unused(layout, used)]
    if not held_out:
        raise DataError(
            f"{query_text} {layout.lacks_labels}, and no class of {train_text} has the {holdout} images from which a query "
            "could be held out (data.holdout)"
        )
    summary.append(f"  {query_name} {layout.lacks_labels}, so every {holdout}th image of each class is a query")
    protocol = _held_out_protocol(train_text, holdout)
    return build_data(fitted + unlabeled, _labeled(fitted), held_out, classes, reader, protocol, summary=summary)


def _held_out_protocol(place: str, holdout: int) -> str:
    return f"{place}: bank the training images, queries every {holdout}th image of each class, in path order"


def _imagenet_hint(layout: ImageLayout, classes: Sequence[str]) -> str:
    if layout.kind == "folder" and all(SYNSET.fullmatch(name) for name in classes):
        return ". For ImageNet as it is distributed: data.name=imagenet"
    return ""


def _query_split(layout: ImageLayout) -> str:
    """Return the split whose images are the queries."""
    names = layout.splits_of(*EVALUATION_ROLES, GALLERY)
    for name in names:
        # The labels of a test split are often secret.
        if class_names(layout.parts[name]):
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
