"""The answers of the server: what the page requests, as JSON, as arrays of numbers, and as pictures.

Images are named by their row numbers alone, so that no path of a request reaches the file system.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from reptk.core.errors import ReptkError
from reptk.core.files import json_text, parse_json
from reptk.explore.image_collection import ImageCollection
from reptk.explore.map_layouts import STORED, available_layouts, positions_of, scaled
from reptk.explore.pictures import LARGE_PX, THUMBNAIL_PX
from reptk.report.formatting import printable
from reptk.report.templating import for_json

JSON = "application/json"
BYTES = "application/octet-stream"

MAX_NEIGHBORS = 500
DEFAULT_NEIGHBORS = 30
MAX_ROWS = 10_000
"""Of one request for names."""

MAX_FOUND = 500
MAX_GROUPS = 1000
MAX_DIGITS = 10
MAX_TEXT = 200


class Request(NamedTuple):
    """A request that is allowed. `query` has the last value of each parameter."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes = b""


class Response(NamedTuple):
    """What is sent back."""

    status: int
    content: bytes
    media_type: str = JSON


class Api:
    """Answers requests about a collection. Several threads may call it.

    Args:
        collection: what is shown.
        layout: of the map that the page begins with.
    """

    def __init__(self, collection: ImageCollection, layout: str) -> None:
        self._collection = collection
        self._layout = layout
        # What is computed once must not be computed twice, and a map that takes minutes must not delay a search.
        self._mapping = threading.Lock()
        self._coloring = threading.Lock()
        self._searching = threading.Lock()
        self._comparing = threading.Lock()
        self._positions: dict[str, bytes] = {}
        self._duplicates: dict[float | None, Response] = {}
        self._layouts = available_layouts(len(collection), has_stored=collection.stored_positions is not None)
        self._layouts.setdefault(layout, layout)

    def respond(self, request: Request) -> Response:
        """Return the answer to a request; an error is an answer too."""
        try:
            return self._respond(request)
        except ReptkError as error:
            return _failure(422, str(error))

    def _respond(self, request: Request) -> Response:
        handlers: dict[tuple[str, str], Callable[[Request], Response]] = {
            ("GET", "/api/about"): self._about,
            ("GET", "/api/find"): self._find,
            ("GET", "/api/duplicates"): self._near_duplicates,
            ("POST", "/api/rows"): self._rows,
            ("POST", "/api/search"): self._search,
        }
        handler = handlers.get((request.method, request.path))
        if handler is not None:
            return handler(request)
        numbered: dict[str, Callable[[Request, str], Response]] = {
            "/api/positions": self._map_positions,
            "/api/column": self._column,
            "/api/neighbors": self._neighbors,
            "/image": self._thumbnail,
            "/picture": self._large_picture,
        }
        folder, _, name = request.path.rpartition("/")
        if request.method == "GET" and folder in numbered:
            return numbered[folder](request, name)
        return _failure(404, "there is no such page")

    def _about(self, request: Request) -> Response:
        columns = []
        for column in self._collection.columns:
            categories = [printable(name) or "(empty)" for name in column.categories]
            about_column = {"name": column.name, "kind": column.kind, "categories": categories}
            columns.append(about_column | {"note": column.note, "slow": column.is_slow})
        about = {
            "title": self._collection.title,
            "count": len(self._collection),
            "notes": self._collection.notes,
            "layout": self._layout,
            "layouts": self._layouts,
            "columns": columns,
        }
        return _json(about)

    def _map_positions(self, request: Request, layout: str) -> Response:
        if layout not in self._layouts:
            return _failure(404, "there is no such layout")
        with self._mapping:
            if layout not in self._positions:
                self._positions[layout] = self._compute_positions(layout)
        return Response(200, self._positions[layout], BYTES)

    def _compute_positions(self, layout: str) -> bytes:
        if layout == STORED:
            positions = scaled(self._collection.stored_positions)
        else:
            positions = positions_of(layout, self._collection.embeddings.vectors)
        return positions.numpy().astype("<f4").tobytes()

    def _column(self, request: Request, text: str) -> Response:
        number = _number(text, len(self._collection.columns))
        if number is None:
            return _failure(404, "there is no such column")
        with self._coloring:
            values = self._collection.columns[number].values
        return Response(200, values.astype(values.dtype.newbyteorder("<")).tobytes(), BYTES)

    def _neighbors(self, request: Request, text: str) -> Response:
        row = _number(text, len(self._collection))
        k = _number(request.query.get("k", str(DEFAULT_NEIGHBORS)), MAX_NEIGHBORS + 1)
        if row is None or not k:
            return _failure(404, f"there is no such image, or k is not from 1 to {MAX_NEIGHBORS}")
        with self._searching:
            rows, similarities = self._collection.neighbors_of_row(row, k)
        return _json({"rows": rows, "similarities": similarities})

    def _search(self, request: Request) -> Response:
        with self._searching:
            rows, similarities = self._collection.neighbors_of_picture(request.body, DEFAULT_NEIGHBORS)
        return _json({"rows": rows, "similarities": similarities})

    def _near_duplicates(self, request: Request) -> Response:
        threshold = None
        text = request.query.get("threshold", "")
        if text:
            threshold = _share(text)
            if threshold is None:
                return _failure(400, f"a threshold lies above 0 and at most at 1, got {printable(text)[:MAX_TEXT]}")
        with self._comparing:
            if threshold not in self._duplicates:
                self._duplicates[threshold] = self._find_duplicates(threshold)
        return self._duplicates[threshold]

    def _find_duplicates(self, threshold: float | None) -> Response:
        duplicates = self._collection.duplicates(threshold)
        groups = []
        for group in duplicates.groups[:MAX_GROUPS]:
            rows = [duplicate.row for duplicate in group]
            groups.append({"rows": rows, "similarities": [duplicate.similarity for duplicate in group]})
        reason = duplicates.measured.reason
        return _json(
            {"groups": groups, "count": len(duplicates.groups), "threshold": duplicates.threshold, "reason": reason}
        )

    def _find(self, request: Request) -> Response:
        """Answer with the images whose id holds a text, whatever its case, in the order of rows."""
        text = request.query.get("text", "").casefold()
        if not text:
            return _failure(400, "a text to find is missing")
        rows: list[int] = []
        count = 0
        for row, image_id in enumerate(self._collection.embeddings.ids):
            if text in image_id.casefold():
                count += 1
                if len(rows) < MAX_FOUND:
                    rows.append(row)
        return _json({"rows": rows, "count": count})

    def _rows(self, request: Request) -> Response:
        """Answer with id, path and class of rows, and with those values of columns that are computed already."""
        rows = _row_numbers(request.body, len(self._collection))
        if rows is None:
            return _failure(400, f"a list of at most {MAX_ROWS:,} row numbers was expected")
        embeddings = self._collection.embeddings
        records = []
        for row in rows:
            path = embeddings.file(row)
            values = {}
            for column in self._collection.columns:
                if column.is_computed:
                    values[column.name] = column.text(row)
            records.append(
                {
                    "row": row,
                    "id": embeddings.ids[row],
                    "path": "" if path is None else str(path),
                    "class": embeddings.class_of(row),
                    "values": values,
                }
            )
        return _json(records)

    def _thumbnail(self, request: Request, text: str) -> Response:
        return self._picture(text, THUMBNAIL_PX)

    def _large_picture(self, request: Request, text: str) -> Response:
        return self._picture(text, LARGE_PX)

    def _picture(self, text: str, side_px: int) -> Response:
        row = _number(text, len(self._collection))
        picture = None
        if row is not None:
            picture = self._collection.pictures.read(row, side_px)
        if picture is None:
            return _failure(404, "there is no such picture")
        return Response(200, picture.content, picture.media_type)


def _number(text: str, stop: int) -> int | None:
    """Return a number from 0 to below `stop`; None for every other text."""
    if not (text.isascii() and text.isdecimal()) or len(text) > MAX_DIGITS:
        return None
    number = int(text)
    return number if number < stop else None


def _share(text: str) -> float | None:
    """Return a number above 0 and at most 1; None for every other text."""
    try:
        value = float(text[:MAX_TEXT])
    except ValueError:
        return None
    return value if 0 < value <= 1 else None


def _row_numbers(body: bytes, count: int) -> Sequence[int] | None:
    try:
        rows = parse_json(body)
    except ValueError:
        return None
    if not isinstance(rows, list) or len(rows) > MAX_ROWS:
        return None
    if not all(type(row) is int and 0 <= row < count for row in rows):
        return None
    return rows


def _json(value: Any, status: int = 200) -> Response:
    return Response(status, json_text(for_json(value)).encode())


def _failure(status: int, message: str) -> Response:
    return _json({"error": message}, status)
