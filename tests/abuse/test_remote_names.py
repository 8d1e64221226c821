"""File names from a web server or an index.json: nothing is written or read outside the source's own folder."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nextembed.core.belonging import stays_inside
from nextembed.data import (
    kinds,  # noqa: F401  # makes the kinds known
    remote,
)
from nextembed.data.sources import ImageData
from nextembed.errors import ConfigError

OUTSIDE = ["../../../../owned", "..", "a/../../../owned", "..\\..\\owned"]


class Hostile(http.server.BaseHTTPRequestHandler):
    """Serves the given pages, and evil content for every other path."""

    pages: dict[str, str] = {}

    def do_GET(self) -> None:
        body = self.pages.get(self.path, "" if self.path.endswith(("index.json", "/")) else "evil").encode()
        self.send_response(200 if body else 404)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path, monkeypatch) -> Iterator[str]:
    """The server's address; the download cache is nested deeply enough for names with `..`."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "a" / "b" / "c" / "d" / "e"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    remote.forget()
    Hostile.pages = {}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/data"
        server.shutdown()


def index(file: str) -> str:
    shard = {"file": file, "rows": 1, "bytes": 4, "sha256": ""}
    split = {"rows": 1, "bytes": 4, "skipped": 0, "shards": [shard]}
    return json.dumps({"nextembed_shards": 1, "format": "tar", "splits": {"train": split}})


def refused(source: object, tmp_path: Path, streaming: bool = False) -> None:
    with pytest.raises(ConfigError) as caught:
        ImageData(source=str(source), streaming=streaming).rows("train")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*owned*"))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("file", [*OUTSIDE, "/tmp/owned", "sub/owned.tar"])
def test_a_remote_index_cannot_refer_to_files_elsewhere(web, tmp_path, file, streaming) -> None:
    Hostile.pages["/data/index.json"] = index(f"{file}.tar" if "owned" in file else file)
    refused(web, tmp_path, streaming)


@pytest.mark.parametrize("file", [*OUTSIDE, "/etc/hostname/owned"])
def test_a_local_index_cannot_refer_to_files_elsewhere(tmp_path, file) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "index.json").write_text(index(file))
    with pytest.raises(ConfigError, match="is not a valid name: give a single path component"):
        ImageData(source=str(tmp_path / "shards")).rows("train")


@pytest.mark.parametrize("link", ["../../../../owned.png", "a/../../../../owned.png"])
def test_a_page_cannot_link_to_files_elsewhere(web, tmp_path, link) -> None:
    Hostile.pages["/data/"] = f'<a href="{link}">a picture</a> <a href="b.png">another</a>'
    refused(web, tmp_path)


@pytest.mark.parametrize("name", [*OUTSIDE, "", "/owned", "\\owned", "a\0b"])
def test_names_that_leave_a_folder(name) -> None:
    assert not stays_inside(name)


@pytest.mark.parametrize("name", ["a", "a/b.png", ".hidden", "a..b/..c", "a//b", "ä b"])
def test_names_that_stay_in_a_folder(name) -> None:
    assert stays_inside(name)
