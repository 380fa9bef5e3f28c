"""Who the server answers: requests with the token, under the name of this machine, from the page itself."""

import http.client

import pytest

from reptk.core.errors import EnvironmentProblem
from reptk.explore.server import ExploreServer

PATHS = ["/", "/api/about", "/api/positions/pca", "/assets/main.js", "/assets/plotly.min.js", "/image/0", "/nothing"]


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_answered_without_the_token(client, path: str) -> None:
    for cookie in (None, "", "other=1", f"{client.server.access.cookie_name}=wrong", "a=b; ;=;"):
        answer = client.get(path, Cookie=cookie)
        assert answer.status == 403
        assert b"token" in answer.content
    assert client.get(path).status != 403


def test_the_token_becomes_a_cookie(client) -> None:
    address = client.server.access.url.partition(str(client.server.server_port))[2]
    answer = client.get(address, Cookie=None)
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert client.get("/", Cookie=cookie.partition(";")[0]).status == 200
    for wrong in ("x", client.server.access.token[:-1], "%00", "%ff"):
        assert client.get(f"/?token={wrong}", Cookie=None).status == 403


def test_other_names_of_this_machine_are_refused(client) -> None:
    port = client.server.server_port
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1:{port + 1}", "127.0.0.1", f"[::1]:{port}", ""):
        assert client.get("/api/about", Host=host).status == 403, host
        assert client.get(f"/?token={client.server.access.token}", Host=host, Cookie=None).status == 403, host
    assert client.get("/api/about", Host=f"localhost:{port}").status == 200


def test_requests_of_other_pages_are_refused(client) -> None:
    port = client.server.server_port
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": f"http://127.0.0.1:{port + 1}"}):
        assert client.post("/api/rows", b"[0]", **headers).status == 403
    for site in ("cross-site", "same-site"):
        assert client.get("/image/0", Sec_Fetch_Site=site).status == 403
    own = {"Origin": f"http://127.0.0.1:{port}", "Sec_Fetch_Site": "same-origin"}
    assert client.post("/api/rows", b"[0]", **own).status == 200


def test_every_answer_forbids_what_the_page_does_not_need(client) -> None:
    for answer in (client.get("/"), client.get("/image/0"), client.get("/nothing"), client.get("/", Cookie=None)):
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'")
        assert "http" not in policy
        assert "*" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert client.get("/api/about").headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/", "/api/about", "/image/0", "/nothing"])
def test_head_is_get_without_content(client, path: str) -> None:
    got = client.get(path)
    answer = client.request("HEAD", path)
    assert answer.status == got.status
    assert answer.content == b""
    assert answer.headers["Content-Length"] == str(len(got.content))


@pytest.mark.parametrize(
    "path",
    [
        "/assets/",
        "/assets/../server.py",
        "/assets/%2e%2e/server.py",
        "/assets//etc/passwd",
        "/assets/server.py",
        "/image/../../etc/passwd",
        "/image/%2fetc%2fpasswd",
        "/image/-1",
        "/image/240",
        "/image/1e2",
        "/image/ 1",
        "/image/%D9%A3",
        "/image/99999999999999999999999999",
        "/image/",
        "/picture/x",
        "/api/column/99",
        "/api/column/-1",
        "/api/positions/nothing",
        "/api/positions/..%2fx",
        "/api/neighbors/240",
        "/api/neighbors/0?k=0",
        "/api/neighbors/0?k=-3",
        "/api/neighbors/0?k=501",
        "/api/neighbors/0?k=x",
        "//evil.example/",
    ],
)
def test_what_does_not_exist_is_not_found(client, path: str) -> None:
    answer = client.get(path.replace(" ", "%20"))
    assert answer.status == 404
    assert answer.json["error"]


def test_methods_and_lengths(client) -> None:
    for method in ("PUT", "DELETE", "OPTIONS"):
        assert client.request(method, "/api/rows", b"[]").status == 501
    assert client.get("/api/rows").status == 404
    for length in ("-1", "x", str((1 << 26) + 1), "9" * 50):
        assert client.post("/api/search", b"", Content_Length=length).status == 413
    assert client.request("POST", "/api/search", None, {"Transfer-Encoding": "chunked"}).status == 413
    assert client.get("/api/about?" + "&".join(f"a{n}=1" for n in range(99))).status == 400


def test_a_port_in_use_is_one_message(client) -> None:
    with pytest.raises(EnvironmentProblem, match="Choose another --port"):
        ExploreServer(client.server.api, client.server.server_port)


def test_a_connection_serves_several_requests(client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.server.server_port, timeout=60)
    for path in ("/api/about", "/image/0", "/nothing", "/api/about"):
        connection.request("GET", path, headers={"Cookie": client.cookie})
        response = connection.getresponse()
        assert response.read()
    connection.close()
