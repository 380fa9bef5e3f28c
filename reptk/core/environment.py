"""The versions of packages and the commit of this code, which results may depend on."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import reptk

PACKAGES = ("torch", "torchvision", "timm", "kornia", "numba", "pillow", "simplejpeg", "faiss-cpu", "faiss-gpu")
"""Packages whose version may change a number."""

GIT_TIMEOUT_SECONDS = 10


def package_versions() -> dict[str, str]:
    """Return the versions of Python, reptk and `PACKAGES`; packages that are not installed are left out."""
    versions = {"python": sys.version.split()[0], "reptk": reptk.__version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Return the commit of reptk's checkout, with `+` if files were changed; None if reptk is not run from a checkout."""
    root = Path(reptk.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    if changes:
        return f"{commit}+"
    return commit


def _git(root: Path, *arguments: str) -> str:
    # Without optional locks, so that asking for the status never gets in the way of another git command.
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    completed = subprocess.run(
        ["git", "-C", str(root), *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=GIT_TIMEOUT_SECONDS,
        env=environment,
    )
    return completed.stdout.strip()
