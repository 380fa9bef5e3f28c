"""The classifier in a model's folder: read back as it was, checked like the encoder, and absent where there is none."""

from pathlib import Path

import pytest
import torch
from torch import nn

from reptk.core.errors import DataError, NumericalError
from reptk.models.classifier import SavedClassifier, classifier_bytes, read_classifier
from reptk.models.encoder import Encoder

CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with a model that has a classifier."""
    encoder = Encoder("test_vit", size=16, head_layers=0)
    encoder.save(tmp_path / "model", classifier_bytes(nn.Linear(encoder.num_features, 3), CLASSES))
    return tmp_path


def test_classifier_is_read_back(tmp_path: Path) -> None:
    encoder, module = Encoder("test_vit", size=16), nn.Linear(64, 3)
    encoder.save(tmp_path / "model", classifier_bytes(module, CLASSES))
    for folder in (tmp_path, tmp_path / "model"):
        saved = read_classifier(folder)
        assert saved.classes == CLASSES
        assert torch.equal(saved.module.weight, module.weight)
        assert torch.equal(saved.module.bias, module.bias)
    assert torch.equal(Encoder.from_run(tmp_path).backbone.norm.weight, encoder.backbone.norm.weight)


def test_a_model_without_a_classifier_has_none_even_in_the_place_of_one_that_had(run: Path) -> None:
    Encoder("test_vit", size=16).save(run / "model")
    assert read_classifier(run) is None


@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_a_damaged_classifier_is_noticed(run: Path, damage: str) -> None:
    path = run / "model" / "classifier.safetensors"
    content = path.read_bytes()
    if damage == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        path.unlink()
    else:
        Encoder("test_vit", size=16).save(run / "model")
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged: classifier\.safetensors"):
        read_classifier(run)
    with pytest.raises(DataError, match=r"is damaged: classifier\.safetensors"):
        Encoder.from_run(run)


@pytest.mark.parametrize(("classes", "message"), [(CLASSES[:2], "do not fit together"), (CLASSES, None)])
def test_names_fit_the_weights(tmp_path: Path, classes: tuple[str, ...], message: str | None) -> None:
    Encoder("test_vit", size=16).save(tmp_path / "model", classifier_bytes(nn.Linear(64, 3), classes))
    if message is None:
        assert read_classifier(tmp_path) is not None
    else:
        with pytest.raises(DataError, match=message):
            read_classifier(tmp_path)


def test_weights_that_are_not_finite_are_not_saved() -> None:
    module = nn.Linear(2, 3)
    module.bias.data[1] = torch.nan
    with pytest.raises(NumericalError, match="weights of the classifier"):
        classifier_bytes(module, CLASSES)


def test_difference_names_both_sides() -> None:
    saved = SavedClassifier(nn.Linear(2, 3), CLASSES)
    assert saved.difference_to(CLASSES) is None
    assert saved.difference_to(("dog", "cat", "owl")) == "the same classes in another order"
    assert saved.difference_to(("x", "y")) == "3 classes (cat, dog, owl) there, 2 classes (x, y) here"
