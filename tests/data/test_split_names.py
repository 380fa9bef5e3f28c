"""Names of splits in their usual spellings."""

import pytest

from reptk.data.split_names import split_role


@pytest.mark.parametrize(
    ("names", "role"),
    [
        ("train Train TRAIN training Training train_set train-images trainset train2017 trn train.X1", "train"),
        ("val VAL Valid valid validation Validation dev eval val2017 val_images val.X", "val"),
        ("test TEST testing Testing test_set test2017 test1", "test"),
        ("query queries", "query"),
        ("gallery", "gallery"),
        ("unlabeled unlabelled Unlabeled_images unlabeled2017", "unlabeled"),
        ("trains trainer bus car testament evaluate set data images 2017 developer validity", None),
    ],
)
def test_the_split_that_a_name_means(names, role):
    assert {name: split_role(name) for name in names.split()} == dict.fromkeys(names.split(), role)
