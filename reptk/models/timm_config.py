"""The `config.json` of a model, as timm reads it: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

timm builds the architecture from its registry by the name and the arguments of the model in this file, and takes the size,
normalization and cropping of images from it. transformers reads the same file (`AutoModel.from_pretrained(FOLDER)`).
"""

from typing import Any

from timm.models import PretrainedCfg
from torch import nn

from reptk.data.decoding.resize import Preprocessing
from reptk.models.model_folder import CONFIG_KEY
from reptk.models.preprocessing import CROP_MODE_OF_RESIZE

TAG = "reptk"
"""In place of the name that timm has for the weights of an architecture."""

SOURCE_FIELDS = ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict")
"""Where the weights are that training started from."""

FIELDS_OF_OTHER_WEIGHTS = (
    *SOURCE_FIELDS,
    "label_offset",
    "label_names",
    "label_descriptions",
    "test_input_size",
    "test_crop_pct",
    "test_pool_size",
    "min_input_size",
    "description",
    "notes",
)
"""What does not hold for the trained weights."""


def timm_config(
    backbone: nn.Module,
    *,
    model_args: dict[str, Any],
    size: int,
    num_features: int,
    preprocessing: Preprocessing,
    license: str | None,
    table: dict[str, Any],
) -> dict[str, Any]:
    """Return what `config.json` holds.

    Args:
        backbone: of timm.
        model_args: its arguments besides the name, as `timm.create_model` takes them.
        size: side of the images in pixels.
        num_features: F.
        preprocessing: what happens to images before they are encoded.
        license: of the weights that training started from, if that is known.
        table: what reptk reads, of the keys that timm does not know.
    """
    described = dict(backbone.pretrained_cfg)
    architecture = described["architecture"]
    for name in FIELDS_OF_OTHER_WEIGHTS:
        described.pop(name, None)
    described |= {
        "tag": TAG,
        # The file of weights has timm's own names, whatever timm's own weights come from.
        "custom_load": False,
        "input_size": [3, size, size],
        "pool_size": None,
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop,
        "crop_mode": CROP_MODE_OF_RESIZE[preprocessing.resize],
        "num_classes": 0,
        "license": license,
    }
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": num_features,
        "model_args": model_args,
        "pretrained_cfg": PretrainedCfg(**described).to_dict(),
    }
    problem = timm_problem(table["backbone"], table["stem"])
    if problem is not None:
        # timm would build something else. It refuses a name that it does not have, and repeats it.
        config["architecture"] = f"none: {problem}"
    return {**config, CONFIG_KEY: table}


def timm_problem(backbone: str, stem: str) -> str | None:
    """Return why timm cannot build the backbone of an encoder; None if it can."""
    if stem == "small":
        return (
            f"encoder.stem=small replaces the first convolution of {backbone} and removes the pooling after it, which timm has "
            "no argument for; reptk.Encoder.from_run opens the model, and reptk export writes it as ONNX or pt2"
        )
    return None
