"""Two machines, each with its own `torchrun` agent: a rank is killed, and the run ends with the same weights."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from forked import run_script
from test_distributed import config, given
from tiny import weights

from nextembed.core.files import write_text
from nextembed.training.folder import begun_by_launch

HERE = Path(__file__).parent


PAGE = (HERE.parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")


def block(title: str) -> str:
    """A titled code block of the page."""
    return PAGE.partition(f'title="{title}"\n')[2].partition("```")[0]


def test_the_slurm_script_starts_the_documented_command(tmp_path) -> None:
    """With a minimal fake scheduler, and a fake `torchrun` that records its arguments."""
    (tmp_path / "train.slurm").write_text(block("train.slurm"))
    for name, text in {"scontrol": 'printf "node7\\nnode8\\n"', "srun": '"$@"',
                       "torchrun": f'printf "%s\\n" "$@" > {tmp_path}/called'}.items():  # fmt: skip
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_NNODES": "4",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "n",
    }
    done = subprocess.run(["bash", tmp_path / "train.slurm"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""
    words = (tmp_path / "called").read_text().split()
    assert words[:2] == ["--nnodes", "4"] and words[words.index("--rdzv-id") + 1] == "77"
    assert "node7:29400" in words and words[words.index("-m") :][:3] == ["-m", "nextembed_cli", "train"]


def test_the_file_for_accelerate_is_valid(tmp_path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    (tmp_path / "machines.yaml").write_text(block("machines.yaml"))
    found = load_config_from_file(str(tmp_path / "machines.yaml"))
    assert (found.num_machines, found.num_processes, found.main_process_ip) == (2, 16, "first-machine")


def test_the_command_line_of_torchrun_is_valid() -> None:
    from torch.distributed.run import parse_args

    (line,) = [one for one in PAGE.replace("\\\n", " ").splitlines() if one.startswith("torchrun ")]
    found = parse_args(line.split()[1:])
    assert (found.nnodes, found.max_restarts, found.rdzv_id) == ("4", 3, "imagenet-1")
    assert found.training_script == "nextembed_cli" and found.module


def agents(num: int, rdzv_id: str, *words: object) -> list[tuple[int, str]]:
    """Exit code and output of `torchrun` on each of `num` machines, all simulated on this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(num), "--nproc-per-node", "1",
               "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", rdzv_id,
               "--max-restarts", "2", *map(str, words)]  # fmt: skip
    env = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # as documented: otherwise a restart may hang
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        for _ in range(num)
    ]
    try:
        said = [one.communicate(timeout=400)[0] for one in started]
    finally:
        for one in started:
            one.kill()
    return [(one.returncode, text) for one, text in zip(started, said)]


@pytest.mark.slow
def test_a_lost_rank_is_restarted_with_bit_identical_weights(tmp_path) -> None:
    whole, parts = (config(tmp_path / name, max_steps=5, save_steps=2, log_steps=5) for name in ("whole", "parts"))
    for one in (whole, parts):
        Path(one.output_dir).mkdir()
    done = run_script(HERE / "rank_runner.py", "--ranks", 2, given(whole, tmp_path / "whole"))
    assert done.returncode == 0, done.stderr[-2000:]
    marker = tmp_path / "killed"
    found = agents(2, "job-17", HERE / "elastic_runner.py", given(parts, tmp_path / "parts"), 3, marker)
    assert [code for code, _ in found] == [0, 0], "".join(text for _, text in found)[-3000:]
    assert marker.read_text() == "0"  # killed in its first attempt
    runs = [path.name for path in Path(parts.output_dir).iterdir() if path.is_dir()]
    assert runs == ["run"] and "job-17" in (Path(parts.output_dir) / "run" / ".launch").read_text()
    for name in ("model", "ema"):
        expected, weight = weights(whole.dir, name), weights(parts.dir, name)
        assert expected.keys() == weight.keys()
        assert all(weight[key].equal(value) for key, value in expected.items()), name


@pytest.mark.parametrize(
    ("launch", "same", "report", "expected"),
    [("job", True, False, "demo-2"), ("other", True, False, None), ("job", False, False, None),
     ("job", True, True, "demo"), ("none", True, False, None), ("", True, False, None)],
)  # fmt: skip
def test_which_run_a_restart_continues_with(tmp_path, monkeypatch, launch, same, report, expected) -> None:
    for number, name in enumerate(("demo", "demo-2", "demo-3")):
        write_text(tmp_path / name / ".launch", "job\n")
        os.utime(tmp_path / name / ".launch", ns=(number, number))
        if name != "demo-3":  # killed before its first checkpoint
            (tmp_path / name / "checkpoints" / "step-000002").mkdir(parents=True)
    if report:
        (tmp_path / "demo-2" / "report.html").touch()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)
    found = begun_by_launch(tmp_path / "demo", lambda run_dir: same)
    assert (found and found.name) == expected
