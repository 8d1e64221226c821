"""The studio's server: gradio's page in a FastAPI app, behind the guard."""

import errno
import io
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import FileResponse, PlainTextResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool

from ..errors import ConfigError, MissingExtra, NextEmbedError
from ..report.style import CSS
from ..runs import open_run
from .folders import Folders
from .guard import App, Guard, is_loopback, rules_of
from .mapping import thumbnail
from .models import Models
from .page import HEAD, build_page, theme
from .panels import maps
from .reading import Reader
from .settings import StudioSettings
from .shared import Shared

WEB = Path(__file__).parent / "web"
NO_SCRIPTS = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; frame-ancestors 'self'; sandbox"
)
MAPS = 4  # files of features in memory
KEPT = {"cache-control": "no-cache"}


def make_app(folders: Folders, settings: StudioSettings, token: str | None = None) -> App:
    """The whole app. token: that the guard asks for; None asks for none.

    Raises:
        MissingExtra: without plotly.
    """
    script = plotly_script()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = gr.Blocks(title="nextembed studio", analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True)
    shared = Shared(settings, folders, Reader(folders), Models(settings.max_models), Models(MAPS), page)
    build_page(shared)
    add_files(app, shared, script)
    gr.mount_gradio_app(app, page.queue(default_concurrency_limit=4), "/", footer_links=[], run_history=False,
                        allowed_paths=[], show_error=True, max_file_size=settings.max_upload_mb * 10**6, ssr_mode=False,
                        pwa=False, mcp_server=False, enable_monitoring=False, theme=theme(),
                        css=(WEB / "studio.css").read_text(), head=HEAD, server_name=settings.host)  # fmt: skip
    limit = (settings.max_upload_mb + 10) * 10**6  # a form is somewhat larger than its files
    return Guard(app, rules_of(settings.host, token, limit))  # type: ignore[arg-type]  # starlette's own names for ASGI


def add_files(app: FastAPI, shared: Shared, script: Path) -> None:
    """Scripts, styles and reports: all that is served beside gradio's page."""

    @app.get("/studio/plotly.js")
    def plotly() -> FileResponse:
        return FileResponse(script, media_type="text/javascript", headers={"cache-control": "max-age=86400"})

    @app.get("/studio/studio.js")
    def own() -> FileResponse:
        return FileResponse(WEB / "studio.js", media_type="text/javascript", headers=KEPT)

    @app.get("/studio/page.css")
    def page() -> FileResponse:
        return FileResponse(WEB / "page.css", media_type="text/css", headers=KEPT)

    @app.get("/studio/inside.css")
    def inside() -> Response:
        return Response(fragment_css(), media_type="text/css", headers=KEPT)

    @app.get("/studio/report")
    async def report(run: str) -> Response:
        try:
            text = await run_in_threadpool(report_of, shared, run)
        except NextEmbedError as err:
            return PlainTextResponse(f"No report: {err}", status_code=404)
        return Response(text, media_type="text/html; charset=utf-8", headers={"content-security-policy": NO_SCRIPTS})

    @app.get("/studio/comparison")
    def comparison(name: str) -> Response:
        try:
            page = shared.folders.inside(shared.folders.get("comparison", name) / "comparison.html")
        except NextEmbedError as err:
            return PlainTextResponse(f"No page: {err}", status_code=404)
        if not page.is_file():
            return PlainTextResponse("No page: comparison.html is not there", status_code=404)
        return Response(page.read_bytes(), media_type="text/html", headers={"content-security-policy": NO_SCRIPTS})

    @app.get("/studio/thumb")
    def thumb(features: str, row: int | None = None, place: int | None = None) -> Response:
        """The picture of a row of features, by its number in the file, or its place on the map."""
        try:
            own = maps.mapped(shared, features)
            number = own.numbers[place] if row is None and place is not None else row
            if number is None or not 0 <= number < own.bank.num_rows:
                raise ConfigError("there is no such row")
            picture = thumbnail(shared.folders, own.bank, number) or Image.new("RGB", (8, 8), "#8a94a3")
        except (NextEmbedError, IndexError) as err:
            return PlainTextResponse(f"No picture: {err}", status_code=404)
        picture.thumbnail((192, 192))
        out = io.BytesIO()
        picture.save(out, "PNG")
        return Response(out.getvalue(), media_type="image/png", headers={"cache-control": "max-age=600"})


def report_of(shared: Shared, name: str) -> bytes:
    """The report of a run: the one it wrote, else one of what is there now, which is not kept. Errors as of
    `Folders.get` and `Run.report`."""
    folder = shared.folders.get("run", name)
    if (written := folder / "report.html").is_file():
        return shared.folders.inside(written).read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        return open_run(folder).report(Path(scratch) / "report.html").read_bytes()


def fragment_css() -> str:
    """The styles of the reports without their colours, which the page gives, and those of the fragments."""
    reports = re.sub(
        r":root \{.*?\}\s|@media \(prefers-color-scheme: dark\) \{ :root \{.*?\} \}\s", "", CSS, flags=re.DOTALL
    )
    return reports + (WEB / "inside.css").read_text()


def plotly_script() -> Path:
    """Where plotly's script lies in its package. Raises MissingExtra where it does not."""
    found = find_spec("plotly")
    file = Path(found.origin).parent / "package_data" / "plotly.min.js" if found and found.origin else None
    if file is None or not file.is_file():
        raise MissingExtra("plotly", "studio")
    return file


def serve(paths: Sequence[str | Path], settings: StudioSettings, ready: Callable[[str], None]) -> None:
    """Serves until it is stopped. ready: is called with the link as soon as the page can be opened.

    Raises:
        ConfigError: a path that is not here, or an address or port that is taken.
    """
    folders = Folders(paths)
    token = None if is_loopback(settings.host) else secrets.token_urlsafe(32)
    listening = listen(settings.host, settings.port)
    port = listening.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="nextembed-studio-") as scratch:
        os.environ["GRADIO_TEMP_DIR"] = scratch  # what is dropped into the page; gone when the studio ends
        app = make_app(folders, settings, token)
        config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=2)  # type: ignore[arg-type]
        ready(link(settings.host, port, token))
        uvicorn.Server(config).run([listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket of this address. Raises ConfigError where it is taken or not this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except (OSError, UnicodeError) as err:
        taken = isinstance(err, OSError) and err.errno == errno.EADDRINUSE
        hint = "; --port 0 takes a free one" if taken else ""
        raise ConfigError(f"cannot listen on {host}:{port}: {err}{hint}") from None
    made.listen(128)
    return made


def link(host: str, port: int, token: str | None) -> str:
    """What to open."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")
