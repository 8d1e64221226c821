"""Deliberate faults: vanishing folders, truncated files, links to the outside, fake uploads."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import yaml
from PIL import Image

from nextembed.studio.folders import Folders
from nextembed.studio.reading import Reader

from .conftest import served
from .test_http import call, get


@pytest.fixture
def own(runs: Path, tmp_path: Path) -> Path:
    """A copy of some runs that tests may damage."""
    for name in ("nepa", "emu_emoji", "omni_emoji", "photos", "compare-x"):
        shutil.copytree(runs / name, tmp_path / "runs" / name)
    shutil.copy(runs / "features.parquet", tmp_path / "runs")
    return tmp_path / "runs"


def cut(file: Path) -> None:
    """Truncates a file to its first half."""
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def handlers(address: str, label: str, event: str = "click") -> list[int]:
    """The ids of the handlers of buttons with this label, from the configuration of the page."""
    config = json.loads(get(address, "/config")[1])
    buttons = {one["id"] for one in config["components"] if one["props"].get("value") == label}
    return [
        one["id"] for one in config["dependencies"] if any(t[0] in buttons and t[1] == event for t in one["targets"])
    ]


def test_a_run_that_vanishes_while_shown(watch, own: Path) -> None:
    with served([own]) as address:
        watched = watch(address=address)
        page = watched.page
        watched.select("nepa")
        page.get_by_role("tab", name="Report").click()
        page.frame_locator("iframe[title='Report of nepa']").get_by_text("Written by").wait_for()
        shutil.rmtree(own / "nepa")
        page.get_by_role("button", name="nepa", exact=True).wait_for(state="detached")
        watched.select("emu_emoji")
        page.get_by_text("This did not work").or_(page.get_by_text("unexpected")).wait_for(state="detached")
        page.get_by_role("tab", name="Curves").click()
        page.locator("figure").first.wait_for()
        page.get_by_role("tab", name="Explore", exact=True).click()  # the list is still the previous one
        page.get_by_role("button", name="Load", exact=True).click()
        page.locator(".toast-body").get_by_text("nepa").first.wait_for()
        page.context.close()
        # The browser reports images that vanished while they were loading.
        watched.wrong[:] = [line for line in watched.wrong if "404" not in line]


def test_a_run_that_vanishes_between_two_reads(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(Folders([own]))
    views, _ = reader.views()
    shutil.rmtree(own / "nepa")
    assert reader.states(views)["nepa"].state == "failed"  # no exception
    views, broken = reader.views(["nepa", "emu_emoji"])
    assert set(views) == {"emu_emoji"} and len(broken["nepa"].splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "tab", "button"),
    [
        ("nepa/model/model.safetensors", "Explore", "Load"),
        ("nepa/model/config.json", "Explore", "Load"),
        ("features.parquet", "Map and search", "Show the map"),
        ("compare-x/comparison.json", "Compare", "Show"),
    ],
)
def test_a_truncated_file_is_a_one_line_error(watch, own: Path, file: str, tab: str, button: str) -> None:
    with served([own]) as address:
        seen = watch(tab, address=address)
        page = seen.page
        cut(own / file)  # after the list is made
        page.get_by_role("button", name=button, exact=True).click()
        said = page.wait_for_function("document.querySelector('.toast-body')?.textContent").json_value()
        assert "unexpected" not in said and "Traceback" not in said
        page.context.close()


def test_a_truncated_log_and_settings(watch, own: Path) -> None:
    cut(own / "nepa" / "metrics.jsonl")  # a partial line
    (own / "emu_emoji" / "config.yaml").write_text("name: [")
    (own / "omni_emoji" / "metrics.jsonl").write_bytes(b"\x00\xff\xfe not json\n")
    with served([own]) as address:
        page = watch(address=address).page
        page.get_by_role("button", name="nepa", exact=True).wait_for()
        page.get_by_text("Left out: emu_emoji").wait_for()
        page.context.close()


def test_data_outside_the_folders_is_not_shown(own: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    Image.new("RGB", (32, 32), (250, 1, 2)).save(tmp_path / "secret" / "secret.png")
    data = own / "data"
    data.mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (0, 60 * number, 0)).save(data / f"{number}.png")
    (data / "9.png").symlink_to(tmp_path / "secret" / "secret.png")
    values = yaml.safe_load((own / "nepa" / "config.yaml").read_text())
    values["data"] = {"kind": "images", "source": str(data), "validation": "train", "num_workers": 0}
    (own / "nepa" / "config.yaml").write_text(yaml.safe_dump(values))
    with served([own]) as address:
        (load,) = handlers(address, "Load")
        answers = [call(address, load, ["nepa", number], f"user{number}") for number in range(5)]
        text = json.dumps(answers)
        assert not any(answer["success"] for answer in answers) and "link out of the folders" in text
        (data / "9.png").unlink()
        assert call(address, load, ["nepa", 0], "again")["success"]
        values["data"]["source"] = str(tmp_path / "secret")
        (own / "nepa" / "config.yaml").write_text(yaml.safe_dump(values))
        said = call(address, load, ["nepa", 0], "thief")
        assert not said["success"] and "lies outside the folders" in json.dumps(said)


def test_fifty_simultaneous_uses_of_a_model_are_queued(studio: str) -> None:
    (load,) = handlers(studio, "Load")
    found: dict[int, dict[str, object]] = {}

    def ask(number: int) -> None:
        found[number] = call(studio, load, ["nepa", number % 3], f"many{number}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert len(found) == 50 and all(one["success"] for one in found.values())


def upload(address: str, name: str, content: bytes) -> str:
    """Uploads like the page; returns the path assigned by the server."""
    import urllib.request

    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode() + b'"\r\n\r\n'
        + content + b"\r\n--x--\r\n"
    )  # fmt: skip
    asked = urllib.request.Request(
        f"{address}/gradio_api/upload", body, {"content-type": "multipart/form-data; boundary=x"}
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return str(json.loads(answer.read())[0])


def test_limits_apply_to_crafted_requests(runs: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.new("L", (2000, 2000)).save(large)
    with served([runs], max_pixels=1_000_000, max_upload_mb=1) as address:
        (generate,) = handlers(address, "Generate")
        numbers = [1, 0.0, 0, 1.0, 4, 0]

        def said(files: list[object], drawing: object = None) -> str:
            answer = call(address, generate, ["omni_emoji", "", drawing, files, None, "text", *numbers], "one")
            assert not answer["success"]
            return json.dumps(answer)

        def sent(path: str, name: str) -> dict[str, object]:
            return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

        place = upload(address, "large.png", large.read_bytes())
        assert "cannot be read" in said([sent(place, "large.png")])
        layers = {"background": None, "layers": [], "composite": sent(place, "large.png")}
        assert "more than 1,000,000 pixels" in said([], layers)
        script = upload(address, "page.html", b"<script>alert(1)</script>")
        assert "Invalid file type" in said([sent(script, "page.html")])
        lies = upload(address, "lies.mp4", b"#EXTM3U\nfile:///etc/passwd\n")
        assert "root:" not in said([sent(lies, "lies.mp4")])
        status, _ = post(address, "big.png", b"0" * 12_000_000)
        assert status == 413
        assert "root:" not in said([sent("/etc/passwd", "x.csv")])
        deep = upload(address, "deep.json", b"[" * 100_000)
        assert "unexpected" not in said([sent(deep, "deep.json")])


def post(address: str, name: str, content: bytes) -> tuple[int, str]:
    """Status and body of an upload."""
    import urllib.error

    try:
        return 200, upload(address, name, content)
    except urllib.error.HTTPError as err:
        return err.code, err.read().decode()
    except (urllib.error.URLError, ConnectionError) as err:
        return 413, str(err)  # rejected before it is read
