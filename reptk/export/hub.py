"""Models on the Hugging Face hub: the folder of a model with its card, uploaded, or downloaded and checked."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from reptk.core.counts import format_bytes
from reptk.core.disk_space import explain_write_errors
from reptk.core.errors import DataError, EnvironmentProblem, UsageError, first_line
from reptk.core.files import atomic_folder, expand_home, holds_only, write_text
from reptk.core.foreign_files import read_json
from reptk.embeddings.encoding.embedder import recipe_file
from reptk.embeddings.files.output_path import check_new_folder
from reptk.export.exported_model import ExportedModel, open_model, write_model_folder
from reptk.export.model_card import model_card
from reptk.models.model_folder import CARD_FILE, CONFIG_FILE, CONFIG_KEY, FILE_NAMES, MANIFEST_FILE, check_model
from reptk.models.weight_source import HUB, check_host


def push(
    run: str | Path,
    repository: str,
    *,
    dry_run: str | Path | None = None,
    private: bool = False,
    license_id: str | None = None,
    report: Callable[[str], None] | None = None,
) -> None:
    """Upload the model of a run with a model card that lists its results.

    Files of an earlier model in the repository are replaced. Nothing else of the run is uploaded, and neither the card nor the
    model names a path of this machine.

    Args:
        run: the run's folder, or the `model` folder in it.
        repository: `USER/NAME`, which is created if it does not exist.
        dry_run: a folder to write what would be uploaded into; nothing is uploaded then.
        private: create a private repository; false for the default of the user or the organization.
        license_id: of the model, as the hub calls it; by default that of the weights that training started from.
        report: called with each line of a summary.

    Raises:
        UsageError: the repository is no `USER/NAME`, `dry_run` exists, or the repository exists and is public although
            `private` is true.
        DataError: there is no model, or it is damaged.
        EnvironmentProblem: the hub does not respond, or refuses the upload.
    """
    check_repository(repository)
    if dry_run is not None:
        _check_unused(Path(dry_run), force=False, option="--dry-run")
    model = open_model(run)
    card = model_card(model, _folder_of_run(run), repository, license_id)
    lines = []
    if "\nlicense:" not in card:
        lines.append(
            "the card names no license, since that of the starting weights is not known; to name it: --license ID"
        )
    if dry_run is not None:
        folder = Path(dry_run)
        _write(model, card, folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        lines.insert(0, f"{folder}: what would be uploaded to {repository}, {format_bytes(size)}")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "model")
            _write(model, card, folder)
            address = _upload(folder, repository, private)
        lines.insert(0, f"{address}: timm and reptk open it as {HUB}{repository}")
    if report is not None:
        for line in lines:
            report(line)


def pull(repository: str, out: str | Path, *, force: bool = False) -> Path:
    """Download a model that `push` has uploaded into a folder, which `Encoder.from_run` and all commands read.

    Args:
        repository: `USER/NAME`, or `USER/NAME@REVISION`.
        out: the folder, which must not exist.
        force: replace a model that is there.

    Returns:
        The folder.

    Raises:
        UsageError: `out` exists, or the repository is no `USER/NAME`.
        DataError: what is there is no model of reptk, or damaged; nothing is left of it.
        EnvironmentProblem: the hub does not respond, or has no such repository.
    """
    repository = repository.removeprefix(HUB)
    name, _, revision = repository.partition("@")
    check_repository(name)
    folder = Path(out)
    _check_unused(folder, force=force, option="--out")
    with explain_write_errors(folder), atomic_folder(folder, force=force) as temporary:
        _download(name, revision or None, temporary)
        # What the client notes for further downloads.
        shutil.rmtree(temporary / ".cache", ignore_errors=True)
        _check_downloaded(temporary, name)
    return folder


def check_repository(name: str) -> None:
    """Raise UsageError unless this is the name of a repository of a user or an organization."""
    try:
        validate_repo_id(name)
        is_valid = name.count("/") == 1
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise UsageError(f"a model on the hub is named as USER/NAME, got {name!r}")


def _write(model: ExportedModel, card: str, folder: Path) -> None:
    """Write the folder of the model with its card."""
    write_model_folder(model, folder)
    write_text(folder / CARD_FILE, card)


def _upload(folder: Path, repository: str, private: bool) -> str:
    """Upload a folder. Returns the address of the repository.

    Raises:
        UsageError: `private` is true, and the repository exists and is public.
        EnvironmentProblem: the hub does not respond, or refuses the upload.
    """
    try:
        _check_reachable()
        api = HfApi()
        # None is the default of the user or the organization, and False would override it.
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        # The hub ignores `private` where the repository exists.
        is_public = private and not api.model_info(repository).private
        if not is_public:
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message="Model of reptk",
                # An earlier model may have files that this one lacks, which the manifest would not list.
                delete_patterns=sorted(FILE_NAMES),
            )
    # Besides the hub's errors, those of the library that it sends its requests by.
    except Exception as cause:
        raise EnvironmentProblem(
            f"nothing was uploaded to {repository}: {first_line(cause)}. Log in by `hf auth login` or HF_TOKEN, with the right "
            "to write there; to see what would be uploaded: --dry-run FOLDER"
        ) from cause
    if is_public:
        raise UsageError(
            f"nothing was uploaded: {repository} exists and is public, and --private is for new repositories. Make it private "
            "in its settings on the hub, choose another name, or leave out --private"
        )
    return str(address)


def _download(repository: str, revision: str | None, folder: Path) -> None:
    try:
        _check_reachable()
        HfApi().snapshot_download(repository, revision=revision, local_dir=folder, allow_patterns=sorted(FILE_NAMES))
    except Exception as cause:
        raise EnvironmentProblem(
            f"{repository} cannot be downloaded: {first_line(cause)}. Check the name; a private one needs `hf auth login` or "
            "HF_TOKEN"
        ) from cause


def _check_reachable() -> None:
    """Raise OSError if the hub does not respond within seconds, unless its client works offline."""
    if not constants.HF_HUB_OFFLINE:
        check_host()


def _check_downloaded(folder: Path, repository: str) -> None:
    """Raise DataError unless a folder holds a model of reptk with all its files, as its manifest lists them."""
    try:
        table = read_json(folder / CONFIG_FILE)
    except (OSError, ValueError):
        table = {}
    if not isinstance(table, dict) or CONFIG_KEY not in table:
        advice = ""
        if isinstance(table, dict) and "architecture" in table:
            advice = f"; it is one of timm: encoder.backbone={HUB}{repository} encoder.pretrained=true"
        raise DataError(f"{repository} holds no model of reptk{advice}")
    # `check_model` accepts folders of earlier versions without a manifest, which had no `CONFIG_KEY` either.
    if not (folder / MANIFEST_FILE).is_file():
        raise DataError(
            f"{repository} has no {MANIFEST_FILE}, without which its files cannot be checked; whoever owns it can upload the "
            "model again: reptk push"
        )
    check_model(folder)


def _check_unused(folder: Path, *, force: bool, option: str) -> None:
    if folder.exists() and not (force and holds_only(folder, FILE_NAMES)):
        advice = "or remove it"
        if option == "--out":
            advice = "or replace the model in it: --force"
        if force:
            advice = "since it holds more than a model"
        raise UsageError(f"{folder} exists. Choose another {option}, {advice}")
    check_new_folder(folder.absolute() / CONFIG_FILE)


def _folder_of_run(run: str | Path) -> Path:
    """Return the folder that holds the recipe of a run or its model folder; the folder itself if there is none."""
    file = recipe_file(run)
    if file is None:
        return expand_home(run)
    return file.parent
