"""ImageNet-1k, or any part of it such as Tiny ImageNet, in the folders and files in which it is distributed."""

from reptk.config.registry import DATASETS
from reptk.core.counts import format_count
from reptk.core.errors import DataError
from reptk.data.decoding.decode import Jpeg
from reptk.data.decoding.resize import DEFAULT_PREPROCESSING, Interpolation, ResizeMode
from reptk.data.images.file_reader import FileReader, ImageSize, decoded_cache_folder
from reptk.data.images.image_files import OnError
from reptk.data.layouts.image_layout import LabeledImages, class_names
from reptk.data.layouts.open_layout import existing_folder
from reptk.data.protocol import Data, with_shape
from reptk.data.sources.folder import Share
from reptk.data.sources.imagenet_folders import find_imagenet, list_train, list_val
from reptk.data.sources.layout_data import build_data


@DATASETS.register("imagenet")
@with_shape()
def imagenet(
    root: str = "data/imagenet",
    size: ImageSize = 256,
    cache: bool | str = False,
    jpeg: Jpeg = "auto",
    on_error: OnError = "skip",
    crop: Share | None = None,
    resize: ResizeMode | None = None,
    interpolation: Interpolation | None = None,
    reduce_jpeg: bool | None = None,
) -> Data:
    """ImageNet as it is distributed: the training images are trained on and are the bank, the validation images are queries.

    Args:
        root: the unpacked folder of Kaggle's ImageNet, of the original with its devkit, of Kaggle's ImageNet-100, of Tiny
            ImageNet, or one of `train` and `val` with synset folders. The classes are the synsets of the training images.
        size: pixels of the shorter side to which every image is decoded; 64 for Tiny ImageNet.
        cache, jpeg, on_error, crop, resize, interpolation, reduce_jpeg: as for `folder`.

    Raises:
        DataError: there is no such folder, or images or labels are missing in it.
        EnvironmentProblem: no space for the cache, or simplejpeg is requested and not installed.
    """
    base = existing_folder(root)
    folders = find_imagenet(base)
    synsets = sorted(folders.train)
    if not synsets:
        raise DataError(
            f"no ImageNet in {base} (data.root): no folder such as train/n01440764 in it, nor in ILSVRC/Data/CLS-LOC below it"
        )
    train = list_train(folders, synsets)
    classes = class_names(train)
    unknown = sorted(set(folders.val) - set(classes))
    if unknown:
        raise DataError(
            f"{folders.base} has validation images of synsets without training images: {', '.join(unknown[:5])}"
        )
    val = list_val(folders, classes)
    for part, files in (("training", train), ("validation", val)):
        if not files:
            raise DataError(
                f"no {part} images in {folders.base} (data.root); reptk check-data {base} lists what there is"
            )
    reader = FileReader(
        size,
        jpeg,
        decoded_cache_folder(cache, "imagenet", base, size),
        on_error=on_error,
        preprocessing=DEFAULT_PREPROCESSING.replace_set(
            crop=crop, resize=resize, interpolation=interpolation, reduce_jpeg=reduce_jpeg
        ),
    )
    synsets = format_count(len(classes), "synset")
    summary = [f"{folders.base}: {len(train):,} training, {len(val):,} validation images, {synsets}"]
    protocol = f"{folders.base}: bank the training images, queries the validation images"
    train_images = LabeledImages.from_files(train, classes)
    queries = LabeledImages.from_files(val, classes)
    return build_data(train_images, train_images, queries, classes, reader, protocol, summary=summary)
