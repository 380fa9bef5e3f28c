"""EmbedImages, as scikit-learn uses it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.utils import estimator_checks

import reptk
from embedding_inputs import encoder_run, photo_folder
from reptk.core.errors import DataError
from reptk.sklearn import EmbedImages

__all__ = ["encoder_run", "photo_folder"]

pytestmark = [pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def paths(photo_folder: Path) -> list[str]:
    return sorted(str(path) for path in photo_folder.rglob("*.png"))


def test_vectors_are_those_of_reptk_embed(encoder_run: Path, photo_folder: Path, paths: list[str]) -> None:
    embeddings = reptk.embed(encoder_run, photo_folder)
    expected = [
        embeddings.vectors[list(embeddings.ids).index(str(Path(path).relative_to(photo_folder)))] for path in paths
    ]
    vectors = EmbedImages(encoder_run, batch_size=5).fit_transform(paths)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, torch.stack(expected).numpy(), atol=1e-5)


def test_paths_pictures_and_arrays_are_the_same_images(encoder_run: Path, paths: list[str]) -> None:
    transformer = EmbedImages(encoder_run, crop=1.0).fit()
    expected = transformer.transform(paths)
    pictures = [Image.open(path).convert("RGB") for path in paths]
    column = np.array(paths, dtype=object)[:, None]
    for images in (list(map(Path, paths)), np.array(paths), column, pictures):
        np.testing.assert_array_equal(transformer.transform(images), expected)
    arrays = [np.asarray(picture.resize((32, 32))) for picture in pictures]
    batch = transformer.transform(np.stack(arrays))
    np.testing.assert_array_equal(batch, transformer.transform(arrays))
    np.testing.assert_array_equal(batch, transformer.transform(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)))
    # Of several sizes, as well.
    sizes = [arrays[0], np.asarray(pictures[0])]
    np.testing.assert_allclose(transformer.transform(sizes)[0], batch[0], atol=1e-6)


def test_it_is_a_step_of_a_pipeline(encoder_run: Path, paths: list[str]) -> None:
    classes = [Path(path).parent.name for path in paths]
    pipeline = Pipeline([("embed", EmbedImages(encoder_run)), ("classify", LogisticRegression(C=100.0))])
    assert pipeline.fit(paths, classes).score(paths, classes) == 1.0
    names = pipeline[:-1].get_feature_names_out()
    assert list(names[:2]) == ["embedimages0", "embedimages1"]
    assert len(names) == pipeline[0].embedder_.width
    pipeline.set_params(embed__crop=0.9)
    assert len(cross_val_score(pipeline, paths, classes, cv=2)) == 2
    # A column of a table of other features.
    table = np.array([[path, "1"] for path in paths], dtype=object)
    columns = ColumnTransformer([("image", EmbedImages(encoder_run), [0])], remainder="drop")
    np.testing.assert_allclose(columns.fit_transform(table), EmbedImages(encoder_run).fit_transform(paths), atol=1e-6)


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_mixin_order,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_valid_tag_types,
    ],
)
def test_conventions_of_estimators(check, encoder_run: Path) -> None:
    check("EmbedImages", EmbedImages(str(encoder_run)))


def test_a_clone_is_not_fitted(encoder_run: Path, paths: list[str]) -> None:
    transformer = EmbedImages(encoder_run, resize="pad").fit(paths)
    assert transformer.embedder_.preprocessing.resize == "pad"
    copy = clone(transformer)
    assert copy.get_params() == transformer.get_params()
    for use in (lambda: copy.transform(paths), copy.get_feature_names_out):
        with pytest.raises(NotFittedError):
            use()


def test_mistakes(encoder_run: Path, tmp_path: Path) -> None:
    transformer = EmbedImages(encoder_run).fit()
    with pytest.raises(ValueError, match="there are no images to embed"):
        transformer.transform([])
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        transformer.transform([tmp_path / "broken.jpg"])
    with pytest.raises(DataError, match="no model in"):
        EmbedImages(tmp_path).fit()
