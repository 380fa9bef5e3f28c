"""ImageNet-100, selected from an ImageNet folder."""

from importlib.resources import files
from pathlib import Path

from reptk.config.registry import DATASETS
from reptk.core.errors import DataError
from reptk.core.files import expand_home
from reptk.data.decoding.decode import Jpeg
from reptk.data.decoding.resize import DEFAULT_PREPROCESSING, Interpolation, ResizeMode
from reptk.data.images.file_reader import FileReader, ImageSize, decoded_cache_folder
from reptk.data.images.image_files import OnError
from reptk.data.layouts.image_layout import LabeledImages
from reptk.data.protocol import Data, with_shape
from reptk.data.sources.folder import Share
from reptk.data.sources.imagenet_folders import find_imagenet, list_train, list_val
from reptk.data.sources.layout_data import build_data


@DATASETS.register("imagenet100")
@with_shape(classes=100)
def imagenet100(
    root: str = "data/imagenet100",
    size: ImageSize = 256,
    cache: bool | str = False,
    jpeg: Jpeg = "auto",
    on_error: OnError = "skip",
    crop: Share | None = None,
    resize: ResizeMode | None = None,
    interpolation: Interpolation | None = None,
    reduce_jpeg: bool | None = None,
) -> Data:
    """ImageNet-100 (the 100 classes of the CMC list): `train` is trained on and is the bank, `val` are the queries.

    Args:
        root: an ImageNet-1k folder, of which the 100 classes are selected, or a ready ImageNet-100 folder, in any of the
            structures of `imagenet`.
        size: pixels of the shorter side to which every image is decoded.
        cache, jpeg, on_error, crop, resize, interpolation, reduce_jpeg: as for `folder`.

    Raises:
        DataError: there is no such folder, or classes are missing in it.
        EnvironmentProblem: no space for the cache, or simplejpeg is requested and not installed.
    """
    synsets = read_synsets()
    base = expand_home(root)
    # All folders are checked before the images of any are listed, which takes minutes on a network file system.
    folders = find_imagenet(base)
    missing = {"train": [name for name in synsets if name not in folders.train], "val": []}
    if not folders.unsorted_val:
        missing["val"] = [name for name in synsets if name not in folders.val]
    _check_complete(base, missing)
    train = list_train(folders, synsets)
    val = list_val(folders, synsets)
    for part, part_files in (("train", train), ("val", val)):
        with_images = {file.class_name for file in part_files}
        missing[part] = sorted(set(synsets) - with_images)
    _check_complete(base, missing)
    reader = FileReader(
        size,
        jpeg,
        decoded_cache_folder(cache, "imagenet100", base, size),
        on_error=on_error,
        preprocessing=DEFAULT_PREPROCESSING.replace_set(
            crop=crop, resize=resize, interpolation=interpolation, reduce_jpeg=reduce_jpeg
        ),
    )
    protocol = "ImageNet-100: bank the training images, queries the validation images of the 100 classes"
    train_images = LabeledImages.from_files(train, synsets)
    queries = LabeledImages.from_files(val, synsets)
    return build_data(train_images, train_images, queries, synsets, reader, protocol)


def read_synsets() -> tuple[str, ...]:
    """Return the 100 WordNet ids, in the order of their labels."""
    return tuple((files("reptk.data.sources") / "imagenet100.txt").read_text().split())


def _check_complete(base: Path, missing: dict[str, list[str]]) -> None:
    """Raise DataError if any synset is missing in `train` or `val`."""
    lacking = []
    for part, names in missing.items():
        if names:
            lacking.append(f"{part}/ lacks {len(names)} of the 100 classes")
    if not lacking:
        return
    if base.is_dir():
        why = f"{base} lacks classes: {', '.join(lacking)}"
    else:
        why = f"no images in {base}"
    raise DataError(
        f"imagenet100: {why} (data.root)\n"
        "  data.root=/path/to/imagenet      an ImageNet-1k folder (train/ and val/ with synset folders): the 100 "
        "classes are picked from it\n"
        "  data.root=/path/to/imagenet100   or a ready ImageNet-100 folder\n"
        "  without any data: add --smoke"
    )
