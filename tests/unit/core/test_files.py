"""Files and folders are written atomically, and files of others are never removed."""

import os

import pytest

from nextembed.core import files
from nextembed.errors import ConfigError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(target, text, replace=True):
    with files.new_folder(target, replace) as scratch:
        (scratch / "file").write_text(text)


def failing(monkeypatch, error, when):
    real = os.replace

    def replace(source, target):
        if when(source, target):
            raise error
        real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)


def test_a_folder_is_written_atomically(tmp_path):
    target = tmp_path / "checkpoints" / "step-000001"
    with pytest.raises(KeyboardInterrupt), files.new_folder(target) as scratch:
        (scratch / "half").write_text("x")
        assert not target.exists()
        raise KeyboardInterrupt
    assert names(target.parent) == []
    write(target, "1")
    write(target, "2")
    assert names(target.parent) == ["step-000001"] and (target / "file").read_text() == "2"
    with pytest.raises(ConfigError, match="exists; name a new folder"):
        write(target, "3", replace=False)
    assert (target / "file").read_text() == "2"


def test_a_kill_between_the_two_renames_keeps_the_old_folder(tmp_path, monkeypatch):
    write(tmp_path / "best", "old")
    failing(monkeypatch, KeyboardInterrupt(), lambda source, target: target == tmp_path / "best")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "best", "new")
    monkeypatch.undo()
    assert not (tmp_path / "best").exists()
    files.clean(tmp_path)
    assert names(tmp_path) == ["best"] and (tmp_path / "best" / "file").read_text() == "old"


def test_an_error_while_replacing_restores_the_old_folder(tmp_path, monkeypatch):
    write(tmp_path / "best", "old")
    failing(monkeypatch, OSError(28, "full"), lambda source, target: source.name.startswith(".tmp-"))
    with pytest.raises(ConfigError, match=r"cannot write .*best: the disk is full"):
        write(tmp_path / "best", "new")
    assert names(tmp_path) == ["best"] and (tmp_path / "best" / "file").read_text() == "old"


def test_a_folder_created_meanwhile_by_another_process_stays(tmp_path):
    with pytest.raises(ConfigError, match="exists; name a new folder"), files.new_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("x")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["theirs"]


def test_clean_removes_only_its_own_names(tmp_path):
    theirs = [".tmp-mine", ".tmp-", ".old-best", ".tmp-a-0123", "notes.tmp"]
    for name in theirs:
        (tmp_path / name).mkdir()
    (tmp_path / ".tmp-model-0123abcd").mkdir()
    (tmp_path / ".tmp-config-0123abcd.yaml").write_text("half")
    (tmp_path / ".tmp-link-0123abcd").symlink_to(tmp_path / ".tmp-mine")
    files.clean(tmp_path)
    assert names(tmp_path) == sorted(theirs)


def test_a_file_is_replaced_only_when_the_new_one_is_complete(tmp_path):
    file = tmp_path / "config.yaml"
    files.write_text(file, "old")
    said = pytest.raises(ConfigError, match=r"cannot write .*config.yaml: the disk is full")
    with said, files.replacing(file) as scratch:
        scratch.write_text("ne")
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == ["config.yaml"] and file.read_text() == "old"
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    files.write_text(link, "new")
    assert link.is_symlink() and file.read_text() == "new"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0b", "../x", "a\\b", "x" * 300])
def test_a_name_is_a_single_path_component(tmp_path, name):
    with pytest.raises(ConfigError, match="is not a valid name"):
        files.free_folder(tmp_path / "runs", name)
    assert names(tmp_path) == []


def test_names_in_use_are_skipped(tmp_path):
    (tmp_path / "demo").write_text("a file")
    (tmp_path / "demo-2").mkdir()
    (tmp_path / "demo-3").symlink_to(tmp_path / "nowhere")
    assert files.free_folder(tmp_path, "demo").name == "demo-4"


def test_one_process_at_a_time(tmp_path):
    with files.locked(tmp_path / ".lock", "busy"), pytest.raises(ConfigError, match=r"^busy$"):
        files.acquire(tmp_path / ".lock", "busy")
    files.acquire(tmp_path / ".lock", "busy").close()
