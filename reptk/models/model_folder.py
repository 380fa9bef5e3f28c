"""The folder of a trained encoder: weights, configuration, perhaps a classifier, and their hashes, published as a whole."""

import json
from pathlib import Path
from typing import Any

import reptk
from reptk.config.run_commands import resume_command
from reptk.core.errors import DataError, UsageError
from reptk.core.file_records import file_record, find_damage, is_intact, manifest_text
from reptk.core.files import atomic_folder, holds_only, parse_json, recover_folder
from reptk.core.foreign_files import read_text

WEIGHTS_FILE = "encoder.safetensors"
CONFIG_FILE = "config.json"
CLASSIFIER_FILE = "classifier.safetensors"
"""Only in the models of methods that train a classifier."""
MANIFEST_FILE = "manifest.json"
FILE_NAMES = frozenset({WEIGHTS_FILE, CONFIG_FILE, CLASSIFIER_FILE, MANIFEST_FILE})

RECIPE_FILE = "recipe.toml"
"""What the folder of a run holds, from which its model can be written again."""

FORMAT = "reptk model"
VERSION = 1


def write_model(folder: Path, weights: bytes, config: dict[str, Any], classifier: bytes | None = None) -> None:
    """Write a model's folder, in place of one that is there, in one step; see `atomic_folder`.

    Args:
        folder: the folder; those above it are created.
        weights: a safetensors file.
        config: what `config.json` holds.
        classifier: the content of `classifier.safetensors`; None for no such file.

    Raises:
        UsageError: the folder exists and holds other files, which would be lost.
        EnvironmentProblem: the disk is full.
        OSError: it cannot be written for another reason.
    """
    if folder.exists() and not holds_only(folder, FILE_NAMES):
        raise UsageError(f"{folder} exists and holds more than a model, which would be lost; name a folder of its own")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder, force=True, needed_bytes=len(weights) + len(classifier or b"")) as temporary:
        (temporary / WEIGHTS_FILE).write_bytes(weights)
        (temporary / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        names = [WEIGHTS_FILE, CONFIG_FILE]
        if classifier is not None:
            (temporary / CLASSIFIER_FILE).write_bytes(classifier)
            names.append(CLASSIFIER_FILE)
        files = {name: file_record(temporary / name) for name in names}
        manifest = {"format": FORMAT, "version": VERSION, "reptk": reptk.__version__, "files": files}
        (temporary / MANIFEST_FILE).write_text(manifest_text(manifest), encoding="utf-8")


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
    if (folder / WEIGHTS_FILE).is_file():
        return folder
    message = f"no model in {run}: it needs model/{WEIGHTS_FILE}, which a finished run has"
    if (folder / RECIPE_FILE).is_file():
        message += f". To finish the run, or to write it again from the last checkpoint: {resume_command(folder)}"
    raise DataError(message)


def has_model(run: Path) -> bool:
    """Return whether a run's folder holds the files of a model; `check_model` says whether they are intact."""
    folder = run / "model"
    recover_folder(folder)
    return all((folder / name).is_file() for name in (WEIGHTS_FILE, CONFIG_FILE))


def check_model(folder: Path) -> None:
    """Compare the files of a model with its manifest. Models of earlier versions have none, and are not checked.

    Raises:
        DataError: a file is missing or damaged, or the model was written by a newer reptk.
    """
    try:
        text = read_text(folder / MANIFEST_FILE)
        manifest = parse_json(text)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as cause:
        raise DataError(damage_message(folder, f"{MANIFEST_FILE} cannot be read: {cause}")) from cause
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(damage_message(folder, f"its {MANIFEST_FILE} is of something else"))
    version = manifest.get("version")
    if not isinstance(version, int):
        raise DataError(damage_message(folder, f"{MANIFEST_FILE} does not say of which version it is"))
    if version > VERSION:
        raise DataError(
            f"the model in {folder} was written by a newer reptk (version {version}); update reptk to read it"
        )
    if not is_intact(text, manifest):
        raise DataError(damage_message(folder, f"{MANIFEST_FILE} has another hash than when it was written"))
    records = manifest.get("files")
    if not isinstance(records, dict):
        raise DataError(damage_message(folder, f"{MANIFEST_FILE} lists no files"))
    names = [CONFIG_FILE, WEIGHTS_FILE]
    if CLASSIFIER_FILE in records or (folder / CLASSIFIER_FILE).exists():
        names.append(CLASSIFIER_FILE)
    for name in names:
        damage = find_damage(folder / name, records.get(name))
        if damage is not None:
            raise DataError(damage_message(folder, f"{name} {damage}"))


def check_weights_file(path: Path) -> None:
    """Check the weights of a model's folder that are used without the rest; see `check_model`."""
    if path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file():
        check_model(path.parent)


def damage_message(folder: Path, reason: str) -> str:
    """Return the message for a model that cannot be trusted."""
    again = "train the run again"
    if folder.name == "model" and (folder.parent / RECIPE_FILE).is_file():
        again = f"delete it and let the run write it again from its last checkpoint ({resume_command(folder.parent)})"
    return (
        f"the model in {folder} is damaged: {reason}. Copy the folder again from an intact copy, or {again}; if you changed "
        f"a file on purpose, delete {MANIFEST_FILE}"
    )
