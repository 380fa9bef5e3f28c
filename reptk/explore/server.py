"""The server of the page: on this machine alone, for whoever has the token; it reads, and writes nothing but its cache."""

import socket
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from reptk.core.errors import EnvironmentProblem
from reptk.explore.access import ADDRESS, Access
from reptk.explore.api import Api, Request, Response
from reptk.explore.assets import CONTENT_SECURITY_POLICY, media_type, read_assets

MAX_BODY_BYTES = 1 << 26
"""Of a picture that is dropped."""

MAX_PARAMETERS = 8
IDLE_SECONDS = 60.0
"""A connection that sends nothing for so long is closed."""

PICTURE_FOLDERS = ("/image/", "/picture/")

SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class ExploreServer(ThreadingHTTPServer):
    """Serves a page on this machine. Requests are answered by threads, which end with the process.

    Args:
        api: answers them.
        port: to listen on; 0 for any that is free.

    Raises:
        EnvironmentProblem: the port is in use, or may not be used.
    """

    daemon_threads = True
    block_on_close = False
    # With SO_REUSEADDR two servers could share a port on some systems.
    allow_reuse_address = sys.platform != "win32"

    def __init__(self, api: Api, port: int = 0) -> None:
        self.api = api
        self.assets = read_assets()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as cause:
            raise EnvironmentProblem(
                f"cannot listen on port {port} of {ADDRESS}: {cause}. Choose another --port, or leave it out"
            ) from cause
        self.access = Access.new(self.server_port)

    def server_bind(self) -> None:
        """Bind without the reverse lookup of the host's name that `http.server` makes."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(self.allow_reuse_address))
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Be silent about a connection that the browser closes early; print the traceback of everything else."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ExploreServer
    server_version = "reptk"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def log_message(self, *_: Any) -> None:
        """Print nothing: the address in a log would hold the token."""

    def _answer(self, method: str) -> None:
        access = self.server.access
        if not access.has_own_host(self.headers):
            self._refuse(HTTPStatus.FORBIDDEN, f"open the page as {ADDRESS}")
            return
        try:
            address = urlsplit(self.path)
            query = dict(parse_qsl(address.query, max_num_fields=MAX_PARAMETERS))
        except ValueError:
            self._refuse(HTTPStatus.BAD_REQUEST, "the address cannot be read")
            return
        if method == "GET" and address.path == "/" and "token" in query:
            self._enter(query["token"])
            return
        if not access.has_cookie(self.headers):
            self._refuse(HTTPStatus.FORBIDDEN, "open the address that reptk explore has printed, with its token")
            return
        if not access.is_from_page(self.headers):
            self._refuse(HTTPStatus.FORBIDDEN, "this request comes from another page")
            return
        body = b""
        if method == "POST":
            length = self._body_length()
            if length is None:
                self._refuse(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"the content has more than {MAX_BODY_BYTES:,} bytes, or no length",
                )
                return
            body = self.rfile.read(length)
        self._send(self._respond(Request(method, address.path, query, body)))

    def _enter(self, token: str) -> None:
        """Give the token to the browser as a cookie, so that it does not stay in the address."""
        if not self.server.access.is_token(token):
            self._refuse(
                HTTPStatus.FORBIDDEN, "the token is another one: open the address that reptk explore has printed"
            )
            return
        headers = {"Location": "/", "Set-Cookie": self.server.access.cookie}
        self._send(Response(HTTPStatus.SEE_OTHER, b"", "text/plain"), headers)

    def _respond(self, request: Request) -> Response:
        name = request.path.removeprefix("/assets/")
        if request.path == "/":
            name = "explore.html"
        is_asset = request.path == "/" or request.path.startswith("/assets/")
        if request.method == "GET" and is_asset and name in self.server.assets:
            return Response(HTTPStatus.OK, self.server.assets[name], media_type(name))
        return self.server.api.respond(request)

    def _body_length(self) -> int | None:
        """Return how many bytes follow; None if they are too many, or their number is unknown."""
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdecimal()):
            return None
        if len(length) > len(str(MAX_BODY_BYTES)) or int(length) > MAX_BODY_BYTES:
            return None
        return int(length)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        # Content that may follow is not read.
        self.close_connection = True
        self._send(Response(status, f"{message}\n".encode(), "text/plain; charset=utf-8"))

    def _send(self, response: Response, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(response.status)
        self.send_header("Content-Type", response.media_type)
        self.send_header("Content-Length", str(len(response.content)))
        caching = "no-store"
        if response.status == HTTPStatus.OK and self.path.startswith(PICTURE_FOLDERS):
            caching = "private, max-age=600"
        self.send_header("Cache-Control", caching)
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in (SECURITY_HEADERS | dict(headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.content)
