"""A collection of photos with classes, and a server of its page, which all tests of a file share."""

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import reptk
from embedding_inputs import draw_image, encoder_run
from reptk.embeddings import Embedder, Index
from reptk.embeddings.encoding import folder_cache
from reptk.explore import map_layouts
from reptk.explore.api import Api
from reptk.explore.columns import embedding_columns
from reptk.explore.image_collection import ImageCollection
from reptk.explore.pictures import Pictures
from reptk.explore.server import ExploreServer

__all__ = ["encoder_run"]

NUM_IMAGES = 240
CLASSES = ("cats", "dogs <b>", "ünï")


@pytest.fixture(autouse=True, scope="session")
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Embeddings and maps are stored in a folder of the tests; compiled functions stay in the user's."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        for module in (folder_cache, map_layouts):
            patch.setattr(module, "cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session")
def many_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 images of 3 classes; the last one is a copy of the first, and one has a name that is markup."""
    root = tmp_path_factory.mktemp("photos")
    for name in CLASSES:
        (root / name).mkdir()
    for number in range(NUM_IMAGES - 1):
        draw_image(number).save(root / CLASSES[number % 3] / f"{number:03}.png")
    shutil.copy(root / "cats" / "000.png", root / CLASSES[2] / "copy.png")
    (root / "cats" / "003.png").rename(root / "cats" / '<img src=x onerror="document.title=1">.png')
    return root


@pytest.fixture(scope="module")
def collection(many_photos: Path, encoder_run: Path) -> ImageCollection:
    embeddings = reptk.embed(encoder_run, many_photos)
    return ImageCollection(
        title="my photos",
        index=Index(embeddings),
        pictures=Pictures(embeddings),
        columns=embedding_columns(embeddings),
        open_embedder=partial(Embedder.reopen, embeddings.metadata, device="cpu"),
        notes=["240 images"],
        device="cpu",
    )


@pytest.fixture(scope="module")
def server(collection: ImageCollection) -> Iterator[ExploreServer]:
    server = ExploreServer(Api(collection, "pca"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


class Client:
    """Sends requests as a browser that has been given the token."""

    def __init__(self, server: ExploreServer) -> None:
        self.server = server
        self.cookie = f"{server.access.cookie_name}={server.access.token}"

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str | None] | None = None
    ) -> Answer:
        """Send a request; a header that is None is left out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=300)
        sent = {"Cookie": self.cookie} | (headers or {})
        sent = {name: value for name, value in sent.items() if value is not None}
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str | None) -> Answer:
        return self.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path: str, body: bytes, **headers: str | None) -> Answer:
        return self.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.fixture
def client(server: ExploreServer) -> Client:
    return Client(server)
