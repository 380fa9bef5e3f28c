"""Names of folders and of table entries that mean a split: train, Training, val, VALID, dev, test2017, ..."""

import re
from functools import lru_cache

TRAIN = "train"
VALIDATION = "val"
TEST = "test"
QUERY = "query"
GALLERY = "gallery"
UNLABELED = "unlabeled"

EVALUATION_ROLES = (VALIDATION, TEST, QUERY)
"""Splits whose images can be queries, the preferred one first."""

_ROLE_OF_WORD = {
    "train": TRAIN,
    "training": TRAIN,
    "trn": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validate": VALIDATION,
    "validation": VALIDATION,
    "dev": VALIDATION,
    "devel": VALIDATION,
    "development": VALIDATION,
    "eval": VALIDATION,
    "evaluation": VALIDATION,
    "holdout": VALIDATION,
    "test": TEST,
    "test1": TEST,
    "testing": TEST,
    "tst": TEST,
    "query": QUERY,
    "queries": QUERY,
    "gallery": GALLERY,
    "unlabeled": UNLABELED,
    "unlabelled": UNLABELED,
}
_SUFFIX = re.compile(r"(?<=.)(set|split|data|images|imgs)?((19|20)\d\d)?$")
"""What is often attached to the name of a split: train_set, val-images, test2017."""

_PART = re.compile(r"\.x\d*$")
"""As in ImageNet-100 of Kaggle, which comes as train.X1 to train.X4 and val.X."""


@lru_cache(maxsize=4096)
def split_role(name: str) -> str | None:
    """Return which split a name means (`train`, `val`, `test`, `query`, `gallery`, `unlabeled`); None for another name."""
    word = re.sub(r"[\W_]", "", _PART.sub("", name.casefold()))
    if word in _ROLE_OF_WORD:
        return _ROLE_OF_WORD[word]
    return _ROLE_OF_WORD.get(_SUFFIX.sub("", word))


def is_training_or_evaluation(name: str) -> bool:
    """Return whether a name means a split for training or for evaluation: images that are unlabeled alone are no split."""
    return split_role(name) not in (None, UNLABELED)


def is_split_name(name: str) -> bool:
    """Return whether a name means a split."""
    return split_role(name) is not None
