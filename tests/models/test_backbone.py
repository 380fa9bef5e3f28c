"""Backbones that cannot be built: unknown names, and sizes, stems and options that they do not support."""

from typing import Any

import pytest

from encoders import build_encoder
from reptk.core.errors import UsageError
from reptk.models.encoder import native_size

pytestmark = pytest.mark.usefixtures("one_thread")

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"backbone": "resnet10x"}, r"no model 'resnet10x'\. Nearest: resnet10t.*timm.list_models"),
    ({"backbone": "ResNet18"}, "Nearest: resnet18,"),
    ({"backbone": "resnet10t.nope"}, "resnet10t has no weights called 'nope'; it has c3_in1k"),
    ({"backbone": "vit_tiny_patch16_224", "size": 40}, "views.size: .*patches of 16 px, and 40 .*use 32 or 48"),
    ({"backbone": "test_vit", "size": 8}, "patches of 16 px, and 8 is no multiple; use 16"),
    ({"backbone": "test_convnext", "size": 2}, r"test_convnext cannot take images of 2 px \(views.size\)"),
    ({"backbone": "test_convnext", "stem": "small"}, "test_convnext does not. Use encoder.stem=timm"),
    ({"backbone": "test_vit", "stem": "small"}, "test_vit does not. Use encoder.stem=timm"),
    ({"backbone": "vgg11", "drop_path": 0.1}, "timm cannot build vgg11 .*drop_path_rate"),
    ({"stem": "smal"}, "stem"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_built_says_what_to_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_encoder(**options)


def test_native_size_is_that_of_timms_weights() -> None:
    assert native_size("resnet18") == 224
    with pytest.raises(UsageError, match=r"Nearest: resnet10t"):
        native_size("resnet10x")
