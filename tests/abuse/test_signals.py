"""Ctrl-C and SIGTERM to the process, its group or torchrun: training saves, stops, and leaves no processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nextembed.core.signals import TidyStop

RUNNER = Path(__file__).with_name("signal_runner.py")
NAMES = ["whole", "term", "term+resume", "ctrl_c", "term_two_at_once", "term_while_probing", "term_twice_while_probing",
         "term_twice_while_a_worker_hangs", "worker_killed", "worker_crashed", "main_killed"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def results(folder):
    done = subprocess.run([sys.executable, str(RUNNER), str(folder), *NAMES],
                          capture_output=True, text=True, timeout=550, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def steps(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, code",
    [("term", 143), ("ctrl_c", 130), ("term_two_at_once", 143), ("term_while_probing", 143),
     ("term_twice_while_a_worker_hangs", 143)],
)  # fmt: skip
def test_a_signal_to_the_group_saves_and_prints_the_resume_command(results, folder, name, code):
    assert results[name][:2] == [
        code,
        f"nextembed: stopped and saved; resume with: nextembed train --resume {folder / name}",
    ]
    assert 0 < steps(folder / name)[0] < 25


def test_the_resumed_run_ends_with_the_same_weights(results, folder):
    assert results["whole"][0] == results["term+resume"][0] == 0
    whole, parts = (load_file(folder / name / "model" / "model.safetensors") for name in ("whole", "term"))
    assert whole.keys() == parts.keys() and all(torch.equal(parts[name], weight) for name, weight in whole.items())


def test_a_second_signal_stops_at_once(results, folder):
    assert results["term_twice_while_probing"][0] == -signal.SIGTERM
    assert not steps(folder / "term_twice_while_probing")


def test_a_dead_data_worker_ends_the_run_with_a_one_line_error(results):
    code, said, _ = results["worker_killed"]
    assert code == 1 and said.startswith(
        "nextembed: a data worker was killed (signal 9), usually because memory ran out"
    )
    code, said, _ = results["worker_crashed"]
    assert code == 1 and "a data worker died (signal 11)" in said


@pytest.mark.parametrize("name", NAMES)
def test_no_process_is_left(results, name):
    assert results[name][2] == 0


@pytest.mark.slow
def test_torchrun_forwards_sigterm_and_all_ranks_save_the_same_step(tmp_path):
    words = ["nepa_demo_tiny", "train.batch_size=16", "data.num_workers=1", "data.cache=off", "train.device=cpu",
             "train.trackers=[]", "train.probe_steps=null", "train.log_steps=1", "train.save_steps=100000",
             "train.max_steps=100000", f"output_dir={tmp_path}", "name=run"]  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]
    with subprocess.Popen([*launcher, "nextembed_cli", "train", *words], stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:  # fmt: skip
        metrics = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (metrics.is_file() and metrics.read_text()):
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        try:
            said = process.communicate(timeout=300)[1]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert f"stopped and saved; resume with: nextembed train --resume {tmp_path / 'run'}" in said
    (step,) = steps(tmp_path / "run")
    assert len(json.loads((tmp_path / "run" / f"checkpoints/step-{step:06d}/progress.json").read_text())["ranks"]) == 2


def test_sigterm_ends_other_commands_like_ctrl_c():
    tidied, before = [], signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), TidyStop() as stop:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            tidied.append(True)
    assert tidied and stop.exit_code == 143 and signal.getsignal(signal.SIGTERM) == before
