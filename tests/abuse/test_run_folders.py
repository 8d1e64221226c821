"""Run folders: names, simultaneous starts, removal after errors, and damaged small files."""

import contextlib
import os
import shutil
import signal
import socket
import time
import traceback

import pytest
from accelerate.state import AcceleratorState

from nextembed.cli.app import main
from nextembed.core import distributed
from nextembed.core.distributed import on_main
from nextembed.errors import ConfigError, TrainingError
from nextembed.run import fit, fit_stage
from nextembed.runs import RunConfig
from nextembed.training.folder import LOCK, opened
from nextembed.training.settings import TrainConfig
from nextembed.training.watch import Records


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder with foreign files."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "thesis.tex").write_text("three years of work")
    (tmp_path / "sub" / "skipped.jsonl").write_text("theirs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *words):
    """The one-line error of a command that returns 2."""
    code = main(list(words))
    said = capsys.readouterr().err.strip()
    assert code == 2 and len(said.splitlines()) == 1 and "unexpected" not in said, said
    return said


WRONG = "data.label_column=nope"


@pytest.mark.parametrize("name", ["..", ".", "../..", "/", "a/b", "sub/../..", "\\", "a\nb", "''", "x" * 300])
def test_a_name_stays_in_output_dir_and_nothing_is_deleted(here, capsys, name):
    before = tree(here)
    assert "name" in refused(capsys, "train", "nepa_demo_tiny", "output_dir=new", f"name={name}", WRONG)
    assert tree(here) == before


@pytest.mark.parametrize("output_dir", [".", "..", "sub", "sub/..", "link"])
def test_a_rejected_run_does_not_change_foreign_folders(here, capsys, output_dir):
    (here / "link").symlink_to("sub")
    before = tree(here)
    refused(capsys, "train", "nepa_demo_tiny", f"output_dir={output_dir}", "name=sub", WRONG)
    assert tree(here) == before


@pytest.mark.parametrize("output_dir", ["thesis.tex", "thesis.tex/runs", "/proc/runs", "/dev/null", "x" * 300])
def test_invalid_output_dir(here, capsys, output_dir):
    before = tree(here)
    assert "cannot" in refused(capsys, "train", "nepa_demo_tiny", f"output_dir={output_dir}")
    assert tree(here) == before


def test_only_own_files_are_removed_after_an_error(tmp_path):
    with pytest.raises(ConfigError), opened(tmp_path / "run", resume=False) as run_dir:
        (run_dir / "skipped.jsonl").write_text("ours")
        (run_dir / "notes.txt").write_text("somebody was faster than we")
        raise ConfigError("no")
    assert os.listdir(tmp_path / "run") == ["notes.txt"]
    with pytest.raises(KeyboardInterrupt), opened(tmp_path / "other", resume=False):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["run"]
    with pytest.raises(ConfigError), opened(tmp_path / "begun", resume=False) as run_dir:
        (run_dir / "config.yaml").write_text("whole")
        (run_dir / "skipped.jsonl").write_text("of a run that trains")
        raise ConfigError("its probes, perhaps")
    assert sorted(os.listdir(tmp_path / "begun")) == [LOCK, "config.yaml", "skipped.jsonl"]


# -- two at once


def test_two_starts_with_the_same_name_get_separate_folders(tmp_path):
    with opened(tmp_path / "run", resume=False) as first:
        before = tree(tmp_path / "run")
        with pytest.raises(ConfigError, match=r"^no$"), opened(tmp_path / "run", resume=False) as second:
            assert second.name == "run-2"
            raise ConfigError("no")
        assert first.name == "run" and tree(first) == before and not second.exists()


def test_ten_simultaneous_starts_get_separate_folders(tmp_path):
    children, gate = [], tmp_path / "gate"
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            with leaving():
                while not gate.exists():
                    time.sleep(0.001)
                with opened(tmp_path / "runs" / "run", resume=False) as run_dir, open(run_dir / "mine", "x"):
                    pass
        children.append(pid)
    gate.touch()
    assert all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in children)
    assert len(list(tmp_path.glob("runs/*/mine"))) == 10


def test_a_second_resume_is_rejected(here, capsys):
    run_dir = here / "runs" / "demo"
    with opened(run_dir, resume=False):
        shutil.copy(written(here), run_dir / "config.yaml")
        before = tree(run_dir)
        said = refused(capsys, "train", "--resume", str(run_dir))
        assert "another process is training in" in said and tree(run_dir) == before
    with opened(run_dir, resume=True):
        pass


def written(folder):
    """Writes a settings file."""
    from nextembed import recipes
    from nextembed.core.config import to_yaml

    file = folder / "written.yaml"
    file.write_text(to_yaml(recipes.load("nepa_demo_tiny")))
    return file


def test_two_commands_with_the_same_stage(tmp_path):
    stage = RunConfig(name="stage", output_dir=str(tmp_path), train=TrainConfig(max_steps=1))
    folder = stage.dir
    folder.mkdir()
    with pytest.raises(ConfigError, match="contains no run yet: wait for the process that is starting it"):
        fit_stage(stage)
    (folder / "config.yaml").write_text("begun")
    with opened(folder, resume=True), pytest.raises(ConfigError, match="another process is training in"):
        fit_stage(stage)
    (folder / "model").mkdir()
    before = tree(tmp_path)
    fit_stage(stage)  # the other process has finished it meanwhile
    assert {**before, f"stage/{LOCK}": b""} == tree(tmp_path)


def test_a_lock_is_released_although_a_data_worker_continues(tmp_path):
    with opened(tmp_path / "run", resume=False) as run_dir:
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(tell, b".")
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)
    try:
        with opened(run_dir, resume=True):
            pass
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@contextlib.contextmanager
def leaving():
    """Ends a forked child in any case, so that it runs no further tests."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def of_rank(rank, port, folder):
    """The results on one rank."""
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    AcceleratorState._reset_state(reset_partial_state=True)  # left from training before the fork
    distributed.start("cpu")
    with opened(folder, resume=False) as run_dir:
        yield run_dir.name
        distributed.gather_objects(None)
        for function in (lambda: opened(run_dir, resume=True).__enter__(), lambda: on_main(lambda: 1 / 0)):
            try:
                function()
            except Exception as err:
                yield f"{type(err).__name__}: {err}"


def test_errors_of_rank_0_reach_every_rank(tmp_path):
    """Otherwise the other ranks would wait for ever for a rank that has exited."""
    children = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            with leaving():
                signal.alarm(300)
                (tmp_path / f"rank-{rank}").write_text("\n".join(of_rank(rank, port, tmp_path / "run")))
        children.append(pid)
    assert all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in children)
    busy = f"ConfigError: another process is training in {tmp_path}/run: wait for it, or stop it"
    division = "division by zero"
    for rank, error in enumerate(
        [f"ZeroDivisionError: {division}", f"TrainingError: rank 0 failed: ZeroDivisionError: {division}"]
    ):
        assert (tmp_path / f"rank-{rank}").read_text().split("\n") == ["run", busy, error]


def test_without_ranks_an_error_is_unchanged():
    with pytest.raises(ZeroDivisionError):
        on_main(lambda: 1 / 0)
    assert on_main(lambda: 1) == 1


# -- damaged and deleted


@pytest.mark.parametrize(("text", "words"), [("", "is empty"), ("\0\0\0", "not YAML"), ("name: [", "not YAML")])
def test_a_damaged_config_is_a_one_line_error(here, capsys, text, words):
    run_dir = here / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(text)
    before = tree(here)
    said = refused(capsys, "train", "--resume", "run")
    assert "run/config.yaml" in said and words in said and tree(here) == before


def test_partial_lines_and_lines_without_a_step_are_dropped_on_resume(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2.0}\n{"loss": 1}\n{"step": null}\n{"step": 2, "lo')
    records = Records(file, lambda lines: [], print, resume_step=5)
    assert [line["step"] for line in records.lines] == [1] and file.read_text() == '{"step": 1, "loss": 2.0}\n'


def test_metrics_are_json_and_a_deleted_run_folder_is_a_one_line_error(tmp_path):

    run_dir = tmp_path / "run"
    run_dir.mkdir()
    records = Records(run_dir / "metrics.jsonl", lambda lines: [], print)
    records.logged(None, {"step": 1, "loss": 1.0, "cos_gap": float("nan"), "rate": float("inf")})
    assert (run_dir / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'
    shutil.rmtree(run_dir)
    with pytest.raises(TrainingError, match=r"^writing metrics.jsonl failed: the run folder .*run is gone$"):
        records.logged(None, {"step": 1, "loss": 1.0})
    assert not run_dir.exists()


def test_a_missing_run(here):
    with pytest.raises(ConfigError, match=r"no run to resume in sub: it has no config.yaml"):
        fit(resume="sub")
    assert os.listdir("sub") == ["skipped.jsonl"]
