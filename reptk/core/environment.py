"""What a number may depend on besides the recipe: versions of packages, and the commit of this code."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import reptk


def package_versions() -> dict[str, str]:
    """Versions of what a number may depend on."""
    found = {"python": sys.version.split()[0], "reptk": reptk.__version__}
    for name in ("torch", "torchvision", "timm", "kornia", "numba", "pillow", "simplejpeg", "faiss-cpu", "faiss-gpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of reptk's own checkout (with `+` if it was changed), None if it is not run from one."""
    home = Path(reptk.__file__).resolve().parent.parent
    if not (home / ".git").exists():
        return None
    try:
        head = _git(home, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(home, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(home: Path, *arguments: str) -> str:
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    made = subprocess.run(
        ["git", "-C", str(home), *arguments], check=True, capture_output=True, text=True, timeout=10, env=environment
    )
    return made.stdout.strip()
