"""HTTP requests to the studio without a browser: many at once, unauthorised, and for forbidden files."""

import json
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from nextembed.studio.guard import COOKIE, cookie_for
from nextembed.studio.panels.anything import SELF

from .conftest import served


def get(address: str, path: str, **headers: str) -> tuple[int, bytes]:
    """Status and body of a GET request."""
    asked = urllib.request.Request(address + path, headers={n.replace("_", "-"): v for n, v in headers.items()})
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as err:
        return err.code, err.read()


def call(address: str, function: int, data: list[object], session: str) -> dict[str, object]:
    """Does what gradio's page does on a click: joins the queue and waits for the result."""
    body = json.dumps({"fn_index": function, "data": data, "session_hash": session}).encode()
    asked = urllib.request.Request(f"{address}/gradio_api/queue/join", body, {"content-type": "application/json"})
    urllib.request.urlopen(asked, timeout=60).read()
    with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash={session}", timeout=120) as stream:
        for line in stream:
            if line.startswith(b"data:") and (said := json.loads(line[5:])).get("msg") == "process_completed":
                return said
    raise AssertionError("no answer")


def handler(address: str, event: str, number: int = 0) -> int:
    """The id of the n-th handler of an event, from the configuration of the page."""
    config = json.loads(get(address, "/config")[1])
    return [one["id"] for one in config["dependencies"] if any(event in target for target in one["targets"])][number]


@pytest.mark.parametrize(
    ("label", "event", "kept", "gone"),
    [("Model", "focus", ["nepa"], ["gone"]), ("Output", "change", ["nepa", SELF], ["nepa", "gone"])],
)
def test_a_list_is_renewed_without_what_was_chosen_before(
    studio: str, label: str, event: str, kept: list[str], gone: list[str]
) -> None:
    config = json.loads(get(studio, "/config")[1])
    lists = {one["id"] for one in config["components"] if one["props"].get("label") == label}
    events = [one for one in config["dependencies"] if one["targets"][0][1] == event]
    renew = next(one["id"] for one in events if set(one["outputs"]) <= lists)
    (found,) = call(studio, renew, kept, f"renews{label}")["output"]["data"]
    assert found["choices"] and "value" not in found  # else it would replace what was chosen meanwhile
    (found,) = call(studio, renew, gone, f"renews{label}again")["output"]["data"]
    assert found["value"] in [value for _, value in found["choices"]]


def test_fifty_simultaneous_requests_are_answered(studio: str) -> None:
    function, found = handler(studio, "load"), {}

    def ask(number: int) -> None:
        found[number] = call(studio, function, [], f"user{number}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == 50 and all(one["success"] for one in found.values())
    assert len({json.dumps(one["output"]["data"][2]) for one in found.values()}) == 1  # the list of runs


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "{runs}/nepa/config.yaml", "{source}"])
def test_files_are_not_served_by_path(studio: str, runs: Path, path: str) -> None:
    from nextembed.studio import server

    named = path.format(runs=runs, source=server.__file__)
    for route in ("/gradio_api/file=", "/file="):
        status, body = get(studio, route + urllib.parse.quote(named))
        assert status in (400, 403, 404) and b"root:" not in body and b"seed:" not in body


@pytest.mark.parametrize(
    "query",
    ["studio/report?run=../../etc", "studio/report?run=/etc", "studio/thumb?features=/etc/passwd&row=0",
     "studio/thumb?features=features.parquet&row=-1", "studio/thumb?features=features.parquet&place=99999",
     "studio/comparison?name=.."],
)  # fmt: skip
def test_missing_resources_are_one_line_errors(studio: str, query: str) -> None:
    status, body = get(studio, f"/{query}")
    assert status == 404 and body.startswith(b"No ") and body.count(b"\n") == 0


def test_an_image_outside_the_folders_is_not_shown(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "features.parquet").write_bytes((runs / "features.parquet").read_bytes())
    with served([tmp_path / "only"]) as alone, served([runs]) as whole:
        grey = get(alone, "/studio/thumb?features=features.parquet&row=0")
        own = get(whole, "/studio/thumb?features=features.parquet&row=0")
    assert grey[0] == own[0] == 200 and grey[1] != own[1]


def test_a_report_runs_no_scripts(studio: str) -> None:
    with urllib.request.urlopen(f"{studio}/studio/report?run=nepa", timeout=60) as answer:
        assert "sandbox" in answer.headers["content-security-policy"] and b"<html" in answer.read()


def test_another_host_or_site_is_rejected(studio: str) -> None:
    assert get(studio, "/", Host="evil.example")[0] == 403
    assert get(studio, "/config", Origin="http://evil.example")[0] == 403
    assert get(studio, "/")[0] == 200


def test_a_local_file_is_not_accepted_as_an_upload(studio: str) -> None:
    config = json.loads(get(studio, "/config")[1])
    upload = next(one for one in config["dependencies"] if any("upload" in target for target in one["targets"]))
    data = ["nepa", {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]
    said = call(studio, upload["id"], data, "thief")
    assert not said["success"] and "root:" not in json.dumps(said)


def test_with_a_token(runs: Path) -> None:
    with served([runs], token="right") as address:
        assert get(address, "/")[0] == 401 and get(address, "/?token=wrong")[0] == 401
        assert get(address, "/config")[0] == 401 and get(address, "/studio/report?run=nepa")[0] == 401
        assert get(address, "/config", Cookie=f"{COOKIE}={cookie_for('right')}")[0] == 200


def test_nothing_is_loaded_from_other_sites(studio: str) -> None:
    _, page = get(studio, "/")
    _, theme = get(studio, "/theme.css")
    fetched = re.findall(rb"(?:src|href)=\"(https?://[^\"]+)|@import url\(['\"]?(https?:[^)'\"]+)", page + theme)
    assert fetched == []
