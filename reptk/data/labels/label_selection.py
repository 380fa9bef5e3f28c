"""Training with the labels of some images alone: a share of each class, or those that a list or a table names.

It works for every data set, since it changes the labels of the training split after the data set is loaded.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.errors import DataError
from reptk.data.labels.label_list import listed_labels
from reptk.data.protocol import Data, Split, subset

_SENTENCE = re.compile(
    r"; [\d,]+ of [\d,]+ training images have a label \(.*?\)(, and the others are left out)?(?=;|$)"
)
"""What `select_labels` adds to `Data.protocol`."""


def select_labels(data: Data, labelled: float | str | None, *, only_labelled: bool = False, seed: int = 0) -> Data:
    """Return the data set with the labels of some training images alone; the others get the label -1.

    The bank and the queries keep their labels, also if the bank holds the training images: evaluation measures the encoder
    with all labels, whichever of them it was trained with.

    Args:
        data: the data set.
        labelled: a share in (0, 1], drawn from each class and at least one image of each, of which a smaller share is a
            part; or a file that lists the images: one name or number (from 0) a line, or a table with a column of paths or
            numbers and, if the labels are not those of the data set, one of classes. None for all labels that there are.
        only_labelled: leave the other images out of training.
        seed: of the share.

    Raises:
        DataError: there are no labels, the list names an image or a class that does not exist, or a class has no label.
    """
    train = data.train
    classes = data.classes
    if isinstance(labelled, str):
        labels, classes = listed_labels(data, Path(labelled))
        how = f"those in {labelled}"
    elif labelled is not None:
        labels = _share_of_labels(train.labels, labelled, seed)
        how = f"{100 * labelled:g} % of each class, seed {seed}"
    else:
        labels = train.labels
        how = "all labels"
    num_labeled = int((labels >= 0).sum())
    if not num_labeled and not only_labelled:
        return data
    if not num_labeled:
        raise DataError("data.only_labelled=true leaves no image, since no training image has a label")
    # `without_label_selection` looks for this sentence, in results of earlier runs as well.
    text = f"{num_labeled:,} of {len(train):,} training images have a label ({how})"
    selected = Split(train.images, labels)
    if only_labelled:
        selected = subset(selected, (labels >= 0).nonzero()[:, 0])
        text += ", and the others are left out"
    line = f"labels: {text}; bank and queries keep theirs"
    return replace(
        data,
        train=selected,
        classes=classes,
        protocol=f"{data.protocol}; {text}",
        summary=(*data.summary, line),
    )


def without_label_selection(protocol: str) -> str:
    """Return the protocol of a data set without the sentence on the labels of training, which evaluation does not depend on."""
    return _SENTENCE.sub("", protocol)


def _share_of_labels(labels: Tensor, share: float, seed: int) -> Tensor:
    """Return the labels (n,) of a share of each class, and -1 elsewhere."""
    if not bool((labels >= 0).any()):
        raise DataError(f"data.labelled={share:g} is a share of the labels, and no training image has one")
    selected = torch.full_like(labels, -1)
    for label in labels[labels >= 0].unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        count = max(1, round(share * len(members)))
        # The first of one order, whatever the share: those of a smaller share are among them.
        order = torch.randperm(len(members), generator=rng.generator(seed, "labelled", label))
        selected[members[order[:count]]] = label
    return selected
