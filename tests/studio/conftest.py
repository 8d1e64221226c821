"""A running studio for tests, and a browser."""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the extra `studio` is not installed")

import uvicorn

from nextembed.studio.folders import Folders
from nextembed.studio.server import listen, make_app
from nextembed.studio.settings import StudioSettings

from . import material

try:
    from playwright.sync_api import expect
except ImportError:
    expect = None  # then the tests that need a browser are skipped
else:
    expect.set_options(timeout=60_000)  # milliseconds; as long as any other wait for the page

MICROPHONE = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]  # a fake microphone that beeps
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def until(true: Callable[[], object], seconds: float = 60) -> None:
    """Waits until something outside the page is true; fails if it never is."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@contextlib.contextmanager
def served(paths: list[Path], token: str | None = None, **settings: object) -> Iterator[str]:
    """The address of a studio while the block runs."""
    sock = listen("127.0.0.1", 0)
    port = sock.getsockname()[1]
    app = make_app(Folders(paths), StudioSettings(refresh_seconds=0.5, **settings), token)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny runs of each kind; read only."""
    base = tmp_path_factory.getbasetemp()
    return material.make((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "studio-material")


@pytest.fixture(scope="session")
def studio(runs: Path) -> Iterator[str]:
    with served([runs]) as address:
        yield address


@pytest.fixture(scope="module")  # while it is open, no other event loop can run in this thread
def browser() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *MICROPHONE])
        yield found
        found.close()


@pytest.hookimpl(tryfirst=True)  # before tests are deselected by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


class Watched:
    """A page and its faults: console errors and requests to other sites."""

    def __init__(self, browser, address: str, **options: object):
        self.address, self.wrong = address, []
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self._request)

    def _request(self, request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.wrong.append(f"asked {request.url}")

    def open(self, tab: str = "") -> "Watched":
        self.page.goto(self.address)
        self.page.wait_for_selector("table.runs, .empty")
        if tab:
            self.tab(tab)
        return self

    def tab(self, name: str) -> None:
        """Opens a tab, on a narrow page through the overflow menu."""
        own = self.page.get_by_role("tab", name=name, exact=True)
        if own.count():
            own.click()
            return
        self.page.get_by_role("button", name="More tabs").first.click()
        self.page.locator(".overflow-dropdown").first.get_by_text(name, exact=True).click()

    def unfolded(self, label: str) -> object:
        """The entries of the list with this label in the open tab, which is opened; lists that close are still there
        for a moment, so each is looked up by its id."""
        box = self.page.get_by_label(label, exact=True).locator("visible=true")
        box.click()
        return self.page.locator(f"[id='{box.get_attribute('aria-controls')}']").get_by_role("option")

    def choose(self, label: str, name: str) -> None:
        """Selects an entry of the list with this label in the open tab."""
        self.unfolded(label).and_(self.page.get_by_role("option", name=name, exact=True)).click()
        expect(self.page.get_by_label(label, exact=True).locator("visible=true")).to_have_value(name)

    def select(self, run: str) -> None:
        """Selects a run, and waits until the server has done so."""
        self.page.get_by_role("button", name=run, exact=True).click()
        expect(self.page.locator(f"[data-value={run}]")).to_have_attribute("aria-pressed", "true")

    def ended(self) -> None:
        """Waits until the work has ended of which the open tab shows a part: until then, clicks that would start it
        again are ignored, and its last part may still replace what is entered."""
        working = self.page.locator("[data-testid=status-tracker]:not(.hide, .hidden)").locator("visible=true")
        expect(working).to_have_count(0)

    def python(self, words: str) -> None:
        """Unfolds the Python of the open tab, and waits until it contains these words."""
        self.page.get_by_role("button", name="The same in Python").locator("visible=true").click()
        expect(self.page.locator(".cm-content").locator("visible=true")).to_contain_text(words)

    def upload(self, label: str, *files: object) -> None:
        """Uploads files into the box with this label."""
        box = self.page.locator(".block", has=self.page.get_by_text(label, exact=True)).locator("visible=true")
        box.locator("input[type=file]").last.set_input_files([str(file) for file in files])
        expect(box.locator(".file-preview tr")).to_have_count(len(files))


@pytest.fixture
def watch(browser, studio: str) -> Iterator[object]:
    """Opens pages, and checks at the end that none has faults."""
    pages: list[Watched] = []

    def new(tab: str = "", address: str = studio, **options: object) -> Watched:
        pages.append(Watched(browser, address, **options))
        return pages[-1].open(tab)

    yield new
    for page in pages:
        page.context.close()
        assert page.wrong == []
