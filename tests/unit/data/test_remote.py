"""Sources over a network are read like local ones; errors are one line; secrets are never written anywhere."""

import functools
import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import nextembed
from nextembed import recipes
from nextembed.cli import main
from nextembed.core import code
from nextembed.core.code import one_command, told
from nextembed.core.config import DATA, apply_overrides, from_yaml, to_yaml
from nextembed.core.places import check_source
from nextembed.core.remote import without_secrets
from nextembed.data import (
    kinds,  # noqa: F401  # makes the kinds known
    remote,
)
from nextembed.data.origins import find_origin
from nextembed.data.rows import rows_in_order
from nextembed.data.shard_rows import part_of
from nextembed.data.sharding import shard
from nextembed.data.sources import ImageData
from nextembed.errors import ConfigError, DataError

SECRET = "hunter2secret"


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    remote.forget()


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves files, but 403 below /private, and below /signed without the secret query."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/private") or (self.path.startswith("/signed") and SECRET not in self.path):
            self.send_error(403)
            return
        if self.path.startswith("/signed"):
            self.path = self.path.replace("/signed", "", 1)
        super().do_GET()

    do_HEAD = do_GET  # type: ignore[assignment]  # a body after a HEAD is not read by anybody

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path) -> Iterator[str]:
    (tmp_path / "web").mkdir()
    Server.asked.clear()
    handler = functools.partial(Server, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def photos(tmp_path, encode, make_picture) -> Path:
    for number in range(12):
        file = tmp_path / "photos" / ("cat" if number % 3 else "dog") / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(make_picture(16, 16, seed=number)))
    return tmp_path / "photos"


def read(data: ImageData) -> list[tuple[bytes, int]]:
    found = []
    for _, row in rows_in_order(data.rows("train")):
        image = row["image"]
        found.append((Path(image).read_bytes() if isinstance(image, Path) else image, row["label"]))
    return found


@pytest.mark.parametrize("form", ["tar", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_shards_on_a_web_server_are_read_like_local_ones(photos, tmp_path, web, form, streaming) -> None:
    done = shard(photos, tmp_path / "web" / "shards", format=form, shard_size=0.003)
    assert len(done.shards.splits["train"].shards) > 2
    data = ImageData(source=f"{web}/shards", streaming=streaming)
    assert data.class_names() == ["cat", "dog"]
    assert read(data) == read(ImageData(source=str(photos)))
    if streaming:  # shards are fetched only when they are read
        assert not (tmp_path / "cache").exists()
        Server.asked.clear()
        next(data.rows("train").read(0, 0, 0, 4))
        assert len({path for path in Server.asked if "train-" in path}) <= 3


@pytest.mark.parametrize("streaming", [False, True])
def test_one_file_and_a_folder_without_an_index(photos, tmp_path, web, streaming) -> None:
    shard(photos, tmp_path / "web" / "shards", format="parquet", shard_size=0.003)
    (tmp_path / "web" / "shards" / "index.json").unlink()
    assert len(read(ImageData(source=f"{web}/shards", streaming=streaming))) == 12
    one = ImageData(source=f"{web}/shards/train-000001.parquet", streaming=streaming)
    assert read(one) == read(ImageData(source=str(tmp_path / "web" / "shards" / "train-000001.parquet")))


def test_a_folder_of_images_and_of_lines(photos, tmp_path, web) -> None:
    photos.rename(tmp_path / "web" / "photos")
    here = ImageData(source=str(tmp_path / "web" / "photos"))
    assert read(ImageData(source=f"{web}/photos")) == read(here)
    (tmp_path / "web" / "texts").mkdir()
    (tmp_path / "web" / "texts" / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    texts = DATA.parse({"kind": "text", "source": f"{web}/texts"}).documents("train")
    assert [doc["segments"][0]["value"] for doc in texts] == ["one", "two"]


def test_removed_and_changed_files_are_synchronised(photos, tmp_path, web) -> None:
    photos.rename(tmp_path / "web" / "photos")
    folder = tmp_path / "web" / "photos"
    source = f"{web}/photos"
    assert len(read(ImageData(source=source))) == 12
    (folder / "cat" / "01.png").unlink()
    (folder / "cat" / "02.png").write_bytes((folder / "dog" / "00.png").read_bytes())
    remote.forget()
    assert read(ImageData(source=source)) == read(ImageData(source=str(folder)))


def test_an_error_names_a_truncated_shard(photos, tmp_path, web) -> None:
    shard(photos, tmp_path / "web" / "shards", format="tar", shard_size=0.003)
    file = tmp_path / "web" / "shards" / "train-000001.tar"
    file.write_bytes(file.read_bytes()[:-512])
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"train-000001.tar was downloaded with [\d,]+ bytes instead of [\d,]+"):
            read(ImageData(source=f"{web}/shards", streaming=streaming))


def test_errors_are_one_line_and_quick(web) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/train.tar"
    for source, words in (
        (f"{web}/nothing/train.tar", "no such bucket, folder or file"),
        (f"{web}/nothing", "no such bucket, folder or file"),
        (f"{web}/private/train.tar", "no permission to read it"),
        (dead, "cannot be reached"),
        (f"{web}/403/401.tar", "no such bucket, folder or file"),  # numbers in the URL are not status codes
        ("hf://datasets/org/name/train.parquet", "cannot be reached .*HF_HUB_OFFLINE is set"),
    ):
        begun = time.monotonic()
        with pytest.raises(ConfigError, match=f"data.source: .*{words}") as caught:
            find_origin(source)
        assert "\n" not in str(caught.value)
        assert time.monotonic() - begun < 14, "more than two connection attempts"


@pytest.mark.parametrize(
    "source",
    [
        f"https://me:{SECRET}@example.org/shards",
        f"s3://{SECRET}@bucket/shards",
        f"https://example.org/train.tar?X-Amz-Signature={SECRET}",
        f"https://example.org/train.tar?$TOKEN&sig={SECRET}",
        f"HTTPS://example.org/?{SECRET}",
    ],
)
def test_a_secret_in_an_address_is_rejected_and_not_printed(source) -> None:
    for refuse in (
        lambda: check_source(source),
        lambda: ImageData(source=source),
        lambda: DATA.parse({"kind": "records", "source": source}),
        lambda: apply_overrides(recipes.load("nepa_demo_tiny"), [f"data.source={source}"]),
    ):
        with pytest.raises(ConfigError, match="environment variable") as caught:
            refuse()
        assert SECRET not in str(caught.value)


def test_a_secret_in_the_environment_is_never_written(photos, tmp_path, web, monkeypatch, capsys) -> None:
    shard(photos, tmp_path / "web" / "shards", format="tar")
    source = f"{web}/signed/shards?$MY_QUERY"
    data = ImageData(source=source, streaming=True)
    with pytest.raises(ConfigError, match="the environment variable MY_QUERY is not set"):
        data.rows("train")
    monkeypatch.setenv("MY_QUERY", "sig=wrong")
    with pytest.raises(ConfigError, match="no permission") as caught:
        data.rows("train")
    assert "wrong" not in str(caught.value)
    monkeypatch.setenv("MY_QUERY", f"sig={SECRET}")
    remote.forget()
    config = apply_overrides(
        recipes.load("nepa_demo_tiny"),
        [f"data.source={source}", "data.streaming=true", "data.num_workers=0", f"output_dir={tmp_path}/runs",
         "train.epochs=null", "train.max_steps=2", "optim.warmup_epochs=null", "optim.warmup_steps=1"],
    )  # fmt: skip
    run = nextembed.fit(config)
    nextembed.embed(run.dir / "model", data, tmp_path / "runs" / "features.parquet", layer=1, pooling="mean")
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(written) > 8 and any(path.name == "report.html" for path in written)
    for path in written:
        assert SECRET.encode() not in path.read_bytes(), path
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err and "$MY_QUERY" in (run.dir / "config.yaml").read_text()


@pytest.mark.parametrize("place", ["?$MY_QUERY", "/${MY_QUERY}/a", "/a/$MY_QUERY/*.tar"])
def test_a_foreign_file_does_not_leak_variables(tmp_path, web, monkeypatch, capsys, place) -> None:
    """A foreign config.yaml may contain any variable; its value is sent only to the host that the user allowed."""
    monkeypatch.setenv("MY_QUERY", SECRET)
    source, host = f"{web}/signed{place}", web.partition("//")[2]
    values = to_yaml(recipes.load("nepa_demo_tiny")).replace("source: emoji", f"source: {source}")
    assert source in values
    file, run = tmp_path / "sent.yaml", tmp_path / "run"
    run.mkdir()
    for one in (file, run / "config.yaml"):
        one.write_text(values)
    out = f"output_dir={tmp_path}/runs"
    for words in (["train", str(file), out], ["train", str(run), out], ["train", "--resume", str(run)],
                  ["probe", str(run)], ["plan", str(file)], ["compare", str(file)]):  # fmt: skip
        assert main(words) == 2, words
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"set MY_QUERY_HOST={host}" in said and SECRET not in said
    assert Server.asked == [] and not (tmp_path / "runs").exists()
    monkeypatch.setenv("MY_QUERY_HOST", "elsewhere.example")
    assert main(["train", str(file), out]) == 2 and Server.asked == []
    monkeypatch.setenv("MY_QUERY_HOST", host)
    assert main(["train", str(file), out]) != 0 and any(SECRET in path for path in Server.asked)


def test_typed_settings_allow_their_host(tmp_path, web, monkeypatch) -> None:
    monkeypatch.setenv("MY_QUERY", SECRET)
    monkeypatch.setattr(code, "_told", set())  # remove entries of other tests
    source = f"{web}/signed?$MY_QUERY"
    with one_command():
        config = apply_overrides(recipes.load("nepa_demo_tiny"), [f"data.source={source}"])
        assert from_yaml(type(config), to_yaml(config)).data == config.data, "written by this process"
        assert told() == {"MY_QUERY_HOST": web.partition("//")[2]}
        assert part_of(source, "images").source == source
        with pytest.raises(ConfigError, match=r"other.host would be told the environment variable MY_QUERY"):
            from_yaml(type(config), to_yaml(config).replace(web, "https://other.host"))
    with pytest.raises(ConfigError, match="which only a file asks for"):
        from_yaml(type(config), to_yaml(config))
    assert "MY_QUERY_HOST" not in os.environ


def test_several_hosts_of_a_variable_reach_child_processes(monkeypatch) -> None:
    monkeypatch.setattr(code, "_told", {("A", "one.host"), ("A", "two.host:8"), ("B", "one.host")})
    passed = code.told()
    assert passed == {"A_HOST": "one.host,two.host:8", "B_HOST": "one.host"}
    monkeypatch.setattr(code, "_told", set())
    for name, value in passed.items():
        monkeypatch.setenv(name, value)
    found = {(name, host) for name in "AB" for host in ("one.host", "two.host:8", "", "x") if code.tells(name, host)}
    assert found == {("A", "one.host"), ("A", "two.host:8"), ("B", "one.host")}


def test_secrets_are_removed_from_messages(monkeypatch) -> None:
    monkeypatch.setenv("PASS", SECRET)
    said = without_secrets(f"403: https://a:b{SECRET}@host/x?y={SECRET}", "https://host/x?y=$PASS")
    assert said == "403: https://...@host/x?..."


@pytest.fixture
def bucket(monkeypatch) -> Iterator[object]:
    """A bucket on an S3 server in this process."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
                        "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    store.mkdir("photos-bucket")
    yield store
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_object_store_is_read_like_local_files(photos, tmp_path, bucket) -> None:
    shard(photos, tmp_path / "shards", format="tar", shard_size=0.003)
    bucket.put(str(tmp_path / "shards"), "photos-bucket/shards", recursive=True)
    expected = read(ImageData(source=str(photos)))
    for streaming in (False, True):
        assert read(ImageData(source="s3://photos-bucket/shards", streaming=streaming)) == expected
        several = ImageData(
            source="s3://photos-bucket/shards/train-00000[01].tar".replace("[01]", "*"), streaming=streaming
        )
        assert len(read(several)) == 12
    with pytest.raises(ConfigError, match="no such bucket, folder or file"):
        find_origin("s3://photos-bucket/nothing")
    with pytest.raises(ConfigError, match="no such bucket, folder or file"):
        find_origin("s3://no-such-bucket-here/shards")


def test_concurrent_downloads_take_turns(photos, tmp_path, web) -> None:
    """As with ranks: no process removes files that another is writing, or sees partial files."""
    photos.rename(tmp_path / "web" / "photos")
    source, own = f"{web}/photos", remote.store_of

    class Slow:
        def __init__(self, store, wait: float):
            self.store, self.wait = store, wait

        def __getattr__(self, name: str) -> object:
            return getattr(self.store, name)

        def get_file(self, path: str, target: str) -> None:
            self.store.get_file(path, target)
            time.sleep(self.wait)

    children = []
    for wait in (0, 0.03, 0.05):
        pid = os.fork()
        if pid == 0:
            remote.store_of = lambda address, wait=wait: (Slow(own(address)[0], wait), own(address)[1])
            try:
                os._exit(len(list(remote.mirrored(source).rglob("*.png"))))
            finally:
                os._exit(255)
        children.append(pid)
    found = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert found == [12, 12, 12]
