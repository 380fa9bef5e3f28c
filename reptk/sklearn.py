"""A transformer for scikit-learn: `Pipeline([("embed", EmbedImages("runs/mine")), ("classify", LogisticRegression())])`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from reptk.core.errors import NumericalError
from reptk.core.files import expand_home
from reptk.data.decoding.resize import ResizeMode
from reptk.embeddings.encoding.embedder import NOT_FINITE_CAUSE, Embedder
from reptk.models.image_inputs import ImageInput, image_tensors

__all__ = ["EmbedImages"]


class EmbedImages(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Images to vectors of unit length by the encoder of a run, as `reptk embed` computes them.

    `fit` learns nothing: it opens the encoder. Whatever is the input is not checked by scikit-learn, but by `transform`.

    Args:
        run: a run's folder, its model folder, or a timm name.
        pretrained: with a timm name, whether it gets timm's weights.
        crop: share of the side of the images that is kept; None for that of the run's evaluation.
        resize: what becomes of pictures that are not square, "crop", "pad" or "squash"; None for that of the run's evaluation.
        device: where to encode: auto, cpu, cuda, cuda:N or mps.
        batch_size: images that are encoded at once.

    Attributes:
        embedder_: the encoder with its preprocessing.
    """

    def __init__(
        self,
        run: str | Path = "",
        *,
        pretrained: bool = False,
        crop: float | None = None,
        resize: ResizeMode | None = None,
        device: str = "auto",
        batch_size: int = 128,
    ) -> None:
        self.run = run
        self.pretrained = pretrained
        self.crop = crop
        self.resize = resize
        self.device = device
        self.batch_size = batch_size

    def fit(self, X: Any = None, y: Any = None) -> "EmbedImages":  # noqa: N803 - scikit-learn's names
        """Open the encoder.

        Raises:
            UsageError, DataError, EnvironmentProblem: there is no such encoder, or its weights are not available.
        """
        embedder = Embedder.open(self.run, pretrained=self.pretrained, device=self.device)
        chosen = {"crop": self.crop, "resize": self.resize}
        embedder.preprocessing = embedder.native_preprocessing().updated(chosen)
        self.embedder_ = embedder
        return self

    def transform(self, X: ArrayLike | Sequence[ImageInput]) -> NDArray[np.float32]:  # noqa: N803 - scikit-learn's names
        """Return vectors (n, F) of n images.

        Args:
            X: paths, PIL images, arrays or tensors, see `reptk.models.image_inputs.image_tensors`; also as a column (n, 1),
                as a `ColumnTransformer` selects it, or a pandas Series.

        Raises:
            DataError: a file that cannot be read as an image.
            NumericalError: a vector is not finite.
            ValueError, TypeError: something that is no image, or none at all.
        """
        check_is_fitted(self)
        images = _as_sequence(X)
        if not len(images):
            raise ValueError("there are no images to embed")
        vectors = []
        for start in range(0, len(images), self.batch_size):
            vectors.append(self._embed(images[start : start + self.batch_size]))
        h = torch.cat(vectors)
        is_finite = h.isfinite().all(dim=1)
        if not is_finite.all():
            row = int((~is_finite).nonzero()[0])
            raise NumericalError(f"the embedding of image {row} is not finite: {NOT_FINITE_CAUSE}")
        return h.numpy()

    def __sklearn_is_fitted__(self) -> bool:
        return "embedder_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.input_tags.allow_nan = False
        tags.target_tags.required = False
        tags.no_validation = True
        return tags

    @property
    def _n_features_out(self) -> int:
        """F, of which scikit-learn makes the names `embedimages0`, `embedimages1`, ..."""
        return self.embedder_.width

    def _embed(self, images: Sequence[ImageInput]) -> Tensor:
        """Return the vectors of a batch; images of several sizes are encoded one by one."""
        tensors = [self._tensor(image) for image in images]
        kinds = {(tensor.shape, tensor.dtype) for tensor in tensors}
        if len(kinds) == 1:
            return self.embedder_.embed_images(torch.stack(tensors))
        return torch.cat([self.embedder_.embed_images(tensor[None]) for tensor in tensors])

    def _tensor(self, image: ImageInput) -> Tensor:
        """Return an image as (3, H, W)."""
        embedder = self.embedder_
        if isinstance(image, str | Path):
            # As `reptk embed` decodes files.
            return embedder.decode_image(expand_home(image))
        decode_px = embedder.preprocessing.decode_px(embedder.encoder.config["size"])
        [tensor] = next(image_tensors([image], decode_px, embedder.square_options()))
        return tensor


def _as_sequence(images: Any) -> Sequence[ImageInput]:
    """Return images one by one, of whatever scikit-learn passes on."""
    if isinstance(images, Tensor):
        return list(images)
    if not isinstance(images, list | tuple | np.ndarray):
        images = np.asarray(images, dtype=object)  # a Series or a table with one column
    if isinstance(images, np.ndarray):
        if images.dtype.kind in "OUS":
            images = images.ravel()
        return list(images)
    return images
