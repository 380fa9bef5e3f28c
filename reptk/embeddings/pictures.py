"""Thumbnails of indexed images: from their files, or from the data set that they were taken from."""

import io
from base64 import b64encode
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from reptk import config
from reptk.config.registry import DATASETS
from reptk.core.errors import ReptkError
from reptk.data.decode import decode
from reptk.embeddings.store import Embeddings

SIDE_PX = 128


class Pictures:
    """Data URIs of what embeddings stand for; empty for an image that is gone."""

    def __init__(self, embeddings: Embeddings) -> None:
        self.embeddings = embeddings

    def of(self, number: int) -> str:
        """The image of this number."""
        path = self.embeddings.file(number)
        return self.file(path) if path is not None else self._from_data(self.embeddings.ids[number])

    def file(self, path: Path) -> str:
        """An image file."""
        try:
            return data_uri(decode(path, SIDE_PX))
        except ReptkError:
            return ""

    def _from_data(self, name: str) -> str:
        split, _, number = name.partition("/")
        images = getattr(getattr(self._data, split, None), "images", None)
        if images is None or not number.isdigit() or int(number) >= len(images):
            return ""
        try:
            return data_uri(images.fetch(torch.tensor([int(number)]))[0])
        except ReptkError:
            return ""

    @cached_property
    def _data(self) -> Any:
        """The data set they were taken from, where that can be had again without fetching anything."""
        said = self.embeddings.about.get("data")
        try:
            # Its images may stay where they are; a file of embeddings has no say in where a cache of them goes.
            part = {name: value for name, value in dict(said).items() if name not in ("split", "cache")}
            part |= {"download": False} if "download" in part else {}
            return config.build(DATASETS, config.complete("data", part))
        except (ReptkError, TypeError, ValueError, OSError):
            return None


def data_uri(image: Tensor) -> str:
    """(3, H, W) uint8 as the content of an HTML page; small images enlarged with hard pixels, as PNG."""
    picture = Image.fromarray(rearrange(image, "c h w -> h w c").contiguous().cpu().numpy())
    times = SIDE_PX // max(picture.size)
    if times > 1:
        picture = picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)
    elif max(picture.size) > SIDE_PX:
        picture.thumbnail((SIDE_PX, SIDE_PX))
    kind, kept = ("png" if times > 1 else "jpeg"), io.BytesIO()
    picture.save(kept, kind, **({"optimize": True} if times > 1 else {"quality": 85}))
    return f"data:image/{kind};base64,{b64encode(kept.getvalue()).decode()}"
