"""The folder of a trained encoder, published as a whole: weights, configuration and their hashes.

`model.safetensors` and `config.json` are as timm writes them, so `timm.create_model("local-dir:FOLDER", pretrained=True)` opens
the backbone; see `reptk.models.timm_config`. The head and the classifier, if there are any, have files of their own. Earlier
versions had backbone and head in `encoder.safetensors`, which is still read.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import reptk
from reptk.config.run_commands import resume_command
from reptk.config.run_paths import EARLIER_MODEL_WEIGHTS, MODEL_WEIGHTS, has_model_weights
from reptk.core.errors import DataError, UsageError
from reptk.core.file_records import ManifestFormat, file_record, find_damage, manifest_text, read_manifest
from reptk.core.files import atomic_folder, holds_only, recover_folder
from reptk.core.foreign_files import read_json, read_text

HEAD_FILE = "head.safetensors"
"""Only in the models of encoders with a projection head."""
CONFIG_FILE = "config.json"
CLASSIFIER_FILE = "classifier.safetensors"
"""Only in the models of methods that train a classifier."""
MANIFEST_FILE = "manifest.json"
CARD_FILE = "README.md"
"""The model card, of a model that was pulled from the hub."""
WEIGHTS_FILES = (MODEL_WEIGHTS, HEAD_FILE, CLASSIFIER_FILE)
FILE_NAMES = frozenset({*WEIGHTS_FILES, EARLIER_MODEL_WEIGHTS, CONFIG_FILE, MANIFEST_FILE, CARD_FILE})

RECIPE_FILE = "recipe.toml"
"""What the folder of a run holds, from which its model can be written again."""

FORMAT = "reptk model"
VERSION = 2
"""1: one file of weights for backbone and head, and a configuration that only reptk reads."""

_MANIFEST_FORMAT = ManifestFormat(FORMAT, VERSION, {"files": dict})

CONFIG_KEY = "reptk"
"""Of the table in `config.json` that timm does not read."""


def write_model(folder: Path, weights: Mapping[str, bytes], config: dict[str, Any]) -> None:
    """Write a model's folder, in place of one that is there, in one step; see `atomic_folder`.

    Args:
        folder: the folder; those above it are created.
        weights: safetensors files by their names, of `WEIGHTS_FILES`.
        config: what `config.json` holds.

    Raises:
        UsageError: the folder exists and holds other files, which would be lost.
        EnvironmentProblem: the disk is full.
        OSError: it cannot be written for another reason.
    """
    if folder.exists() and not holds_only(folder, FILE_NAMES):
        raise UsageError(f"{folder} exists and holds more than a model, which would be lost; name a folder of its own")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder, force=True, needed_bytes=sum(map(len, weights.values()))) as temporary:
        for name, content in weights.items():
            (temporary / name).write_bytes(content)
        (temporary / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        files = {name: file_record(temporary / name) for name in (*weights, CONFIG_FILE)}
        manifest = {"format": FORMAT, "version": VERSION, "reptk": reptk.__version__, "files": files}
        (temporary / MANIFEST_FILE).write_text(manifest_text(manifest), encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """Return what `config.json` of a model says of its encoder, by the arguments of `Encoder`.

    Raises:
        OSError, ValueError: it cannot be read.
        TypeError: it is of something else.
        DataError: it is that of a model of timm.
    """
    table = read_json(folder / CONFIG_FILE)
    if CONFIG_KEY in table:
        return dict(table[CONFIG_KEY])
    if "architecture" in table:
        raise DataError(f"{folder} holds a model of timm, and none of reptk; name it as local-dir:{folder}")
    return dict(table)  # of an earlier version


def weights_file(folder: Path) -> Path:
    """Return the file in a model's folder that holds the weights of the backbone."""
    if (folder / MODEL_WEIGHTS).is_file():
        return folder / MODEL_WEIGHTS
    return folder / EARLIER_MODEL_WEIGHTS


def find_model(run: str | Path, folder: Path) -> Path:
    """Return the folder of a model, which is `folder` or the `model` in it.

    Args:
        run: the folder as the user named it.
        folder: the folder.

    Raises:
        DataError: there is no model.
    """
    recover_folder(folder / "model")
    if (folder / "model").is_dir():
        folder = folder / "model"
    recover_folder(folder)
    if has_model_weights(folder):
        return folder
    message = f"no model in {run}: it needs model/{MODEL_WEIGHTS}, which a finished run has"
    if (folder / RECIPE_FILE).is_file():
        message += f". To finish the run, or to write it again from the last checkpoint: {resume_command(folder)}"
    raise DataError(message)


def has_model(run: Path) -> bool:
    """Return whether a run's folder holds the files of a model; `check_model` says whether they are intact."""
    folder = run / "model"
    recover_folder(folder)
    return has_model_weights(folder) and (folder / CONFIG_FILE).is_file()


def check_model(folder: Path) -> None:
    """Compare the files of a model with its manifest. Models of earlier versions have none, and are not checked.

    Raises:
        DataError: a file is missing or damaged, or the model was written by a newer reptk.
    """
    try:
        manifest = read_manifest(
            folder / MANIFEST_FILE,
            _MANIFEST_FORMAT,
            subject=f"the model in {folder}",
            foreign=damage_message(folder, f"its {MANIFEST_FILE} is of something else"),
            damaged=partial(damage_message, folder),
        )
    except FileNotFoundError:
        return
    records = manifest["files"]
    names = [CONFIG_FILE, weights_file(folder).name]
    for name in (HEAD_FILE, CLASSIFIER_FILE):
        if name in records or (folder / name).exists():
            names.append(name)
    for name in names:
        damage = find_damage(folder / name, records.get(name))
        if damage is not None:
            raise DataError(damage_message(folder, f"{name} {damage}"))


def check_weights_file(path: Path) -> None:
    """Check the weights of a model's folder that are used without the rest; see `check_model`.

    Folders of other programs have files of the same names.
    """
    folder = path.parent
    if path.name == EARLIER_MODEL_WEIGHTS and (folder / CONFIG_FILE).is_file():
        check_model(folder)
    if path.name != MODEL_WEIGHTS:
        return
    try:
        manifest = read_text(folder / MANIFEST_FILE, errors="replace")
    except OSError:
        return
    if FORMAT in manifest:
        check_model(folder)


def damage_message(folder: Path, reason: str) -> str:
    """Return the message for a model that cannot be trusted."""
    again = "train the run again"
    if folder.name == "model" and (folder.parent / RECIPE_FILE).is_file():
        again = f"delete it and let the run write it again from its last checkpoint ({resume_command(folder.parent)})"
    return (
        f"the model in {folder} is damaged: {reason}. Copy the folder again from an intact copy, or {again}; if you changed "
        f"a file on purpose, delete {MANIFEST_FILE}"
    )
