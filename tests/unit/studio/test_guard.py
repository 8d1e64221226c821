"""Which requests are allowed: by Host, Origin, token and size."""

import asyncio

import pytest

from nextembed.studio.guard import COOKIE, Guard, Message, Rules, Scope, cookie_for, is_loopback, rules_of

HOME = rules_of("127.0.0.1", None, 1000)
OPEN = rules_of("0.0.0.0", "right", 1000)


def ask(rules: Rules, path: str = "/", query: str = "", body: bytes = b"", **headers: str) -> tuple[int, dict, bytes]:
    """Status, headers and body of the response of a guarded one-page app."""
    sent: list[Message] = []
    headers = {"host": "127.0.0.1:7860"} | {name.replace("_", "-"): value for name, value in headers.items()}

    async def app(scope: Scope, receive, send) -> None:
        seen = b""
        while (message := await receive())["type"] == "http.request":
            seen += message["body"]
            if not message.get("more_body"):
                break
        else:
            seen = b"cut off"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": seen or b"page"})

    parts = [body[i : i + 400] for i in range(0, len(body), 400)] or [b""]

    async def receive() -> Message:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "path": path, "method": "GET", "query_string": query.encode(),
                    "headers": [(n.encode(), v.encode()) for n, v in headers.items()]}  # fmt: skip
    asyncio.run(Guard(app, rules)(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message["body"] for message in sent[1:])


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860", "127.0.0.2", "LOCALHOST"])
def test_local_hosts_are_allowed(host: str) -> None:
    status, headers, body = ask(HOME, host=host)
    assert (status, body) == (200, b"page")
    assert headers["x-content-type-options"] == "nosniff" and "default-src 'self'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    "host", ["evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.1.4", "", "[::1", "a b"]
)
def test_foreign_host_names_are_rejected(host: str) -> None:
    assert ask(HOME, host=host)[0] == 403


def test_an_open_address_also_rejects_foreign_host_names() -> None:
    assert ask(OPEN, host="evil.example", cookie=f"{COOKIE}={cookie_for('right')}")[0] == 403
    assert ask(OPEN, host="192.168.1.4:7860", cookie=f"{COOKIE}={cookie_for('right')}")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "https://localhost:7860"])
def test_other_origins_are_rejected(origin: str) -> None:
    assert ask(HOME, origin=origin)[0] == 403


def test_the_own_origin_and_external_links_are_allowed() -> None:
    assert ask(HOME, origin="http://127.0.0.1:7860")[0] == 200
    assert ask(HOME, sec_fetch_site="cross-site", sec_fetch_mode="navigate")[0] == 200
    assert ask(HOME, sec_fetch_site="cross-site", sec_fetch_mode="no-cors")[0] == 403


def test_the_token_is_required_and_becomes_a_cookie() -> None:
    assert ask(OPEN)[0] == 401
    assert ask(OPEN, query="token=wrong")[0] == 401
    assert ask(OPEN, cookie=f"{COOKIE}=right")[0] == 401
    status, headers, _ = ask(OPEN, path="//evil.example", query="token=right&x=1")
    assert status == 303 and headers["location"] == "/evil.example?x=1"
    assert "HttpOnly" in headers["set-cookie"] and "right" not in headers["set-cookie"]
    assert ask(OPEN, cookie=headers["set-cookie"].split(";")[0])[0] == 200


@pytest.mark.parametrize(
    "path", ["/gradio_api/proxy=http://x", "/monitoring", "/gradio_api/vibe-code", "/openapi.json", "/docs"]
)
def test_unused_endpoints_are_closed(path: str) -> None:
    assert ask(HOME, path=path)[0] == 404


def test_large_bodies_are_rejected_with_and_without_content_length() -> None:
    assert ask(HOME, content_length="1001")[0] == 413
    assert ask(HOME, content_length="-1")[0] == 413
    assert ask(HOME, body=b"x" * 900)[2] == b"x" * 900
    assert ask(HOME, body=b"x" * 1200)[2] == b"cut off"


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
    ],
)
def test_loopback(host: str, own: bool) -> None:
    assert is_loopback(host) == own
