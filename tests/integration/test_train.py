"""One short run from Python: files, invalid settings, stopping, and failures."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
import transformers
from tiny import trainer, weights

from nextembed.core import config as core_config
from nextembed.core import files as core_files
from nextembed.core.optim import OptimConfig
from nextembed.errors import ConfigError, TrainingError
from nextembed.run import fit
from nextembed.runs import Run, RunConfig, read_run_config
from nextembed.training import checkpoint
from nextembed.training.watch import Interrupted, Watcher

MODEL = {"kind": "vit_nepa", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 16, "patch_size": 4, "layerscale_value": 1.0}  # fmt: skip
TRAIN = {"batch_size": 8, "max_steps": 6, "log_steps": 2, "save_steps": 2, "device": "cpu"}


def config(output_dir, **parts) -> RunConfig:
    values = {
        "name": "run",
        "output_dir": str(output_dir),
        "data": {"kind": "images", "source": "emoji", "num_workers": 0, "cache": "off"},
        "model": MODEL,
        "train": TRAIN,
        "probe": {"enabled": False},
    }
    return RunConfig(**(values | parts))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    """A run with every feature that writes a file."""
    return fit(
        config(
            tmp_path_factory.mktemp("runs"),
            train=TRAIN | {"ema_decay": 0.99, "probe_steps": 4},
            objective={"kind": "next_embedding", "target": "teacher"},
            probe={"layers": [2], "poolings": ["mean"], "attentions": ["causal"], "num_train": 100,
                   "num_validation": 50, "num_test": 50, "num_online": 50},
        )
    )  # fmt: skip


def files(folder) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "tensorboard" not in p.parts}


def test_a_run_writes_exactly_these_files(finished):
    model = {"config.json", "model.safetensors", "preprocessor_config.json"}
    state = {"state/shard-00001-model-00001-of-00001.safetensors", "progress.json", "checksums.json"}
    step = model | {f"ema/{name}" for name in model} | state
    assert files(finished.dir) == (
        {".lock", "config.yaml", "environment.json", "metrics.jsonl", "probe.json", "report.html"}
        | {f"{folder}/{name}" for folder in ("model", "ema") for name in model}
        | {f"checkpoints/step-{n:06d}/{name}" for n in (4, 6) for name in step}
    )
    assert list((finished.dir / "tensorboard").glob("events*"))


def test_metrics_and_environment(finished):
    lines = [json.loads(line) for line in (finished.dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 4, 6]
    needed = {"epoch", "samples_seen", "loss", "learning_rate", "grad_norm", "images_per_second", "cos_gap",
              "copy_win", "latent_rank", "hidden_rank"}  # fmt: skip
    assert all(needed <= line.keys() for line in lines)
    assert {"probe/knn", "probe/ema_knn", "probe/linear", "probe/ema_linear"} <= lines[2].keys()
    assert not any(name.startswith("probe/") for name in lines[1])
    assert finished.metrics["loss"] == lines[-1]["loss"]
    assert {"verdict", "probe/linear", "probe/linear_untrained", "probe/knn_pixels"} <= finished.metrics.keys()
    environment = json.loads((finished.dir / "environment.json").read_text())
    assert torch.__version__.startswith(environment["packages"]["torch"])
    assert environment["seed"] == 0


def test_config_yaml_is_complete_and_round_trips(finished):
    again = read_run_config(finished.dir)
    assert again.model_dump() == finished.config.model_dump()
    assert "learning_rate" in (finished.dir / "config.yaml").read_text()


@pytest.mark.parametrize("name", ["model", "ema"])
def test_the_saved_model_loads_in_plain_transformers(finished, name):
    loaded = transformers.AutoModelForPreTraining.from_pretrained(finished.dir / name)
    processor = transformers.AutoImageProcessor.from_pretrained(finished.dir / name)
    pixels = processor(torch.zeros(3, 30, 20, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    assert torch.isfinite(loaded(pixels).loss)
    if name == "model":
        own = finished.trained.state_dict()
        assert all(torch.equal(own[n], w) for n, w in loaded.state_dict().items())


def test_a_folder_with_a_run_is_never_modified(tmp_path):
    first = fit(config(tmp_path))
    before = {f: os.stat(first.dir / f).st_mtime_ns for f in files(first.dir)}
    second = fit(config(tmp_path))
    assert second.dir == tmp_path / "run-2"
    assert before == {f: os.stat(first.dir / f).st_mtime_ns for f in files(first.dir)}
    assert all(torch.equal(weights(second.dir)[n], w) for n, w in weights(first.dir).items())  # same seed


def test_resume_of_a_finished_run_changes_no_weights(tmp_path):
    first = fit(config(tmp_path))
    before, lines = weights(first.dir), (first.dir / "metrics.jsonl").read_text()
    fit(resume=first.dir)
    assert all(torch.equal(weights(first.dir)[n], w) for n, w in before.items())
    assert (first.dir / "metrics.jsonl").read_text() == lines


def test_resume_with_another_model_is_a_config_error(tmp_path):
    first = fit(config(tmp_path))
    wider = config(tmp_path, model=MODEL | {"hidden_size": 32})
    with pytest.raises(ConfigError, match=r"trained with (hidden_size 16|intermediate_size 64); the config says"):
        fit(wider, resume=first.dir)
    with pytest.raises(ConfigError, match="num_attention_heads 2; the config says 1"):
        fit(config(tmp_path, model=MODEL | {"num_attention_heads": 1}), resume=first.dir)
    assert core_config.from_yaml(RunConfig, (first.dir / "config.yaml").read_text()).model.hidden_size == 16


def test_resume_of_nothing_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="no run to resume in"):
        fit(resume=tmp_path)
    with pytest.raises(ConfigError, match="config"):
        fit()


def test_invalid_settings_are_found_before_a_folder_is_made(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.batch_size 8 is not a multiple of micro_batch_size 3"):
        fit(config(tmp_path, train=TRAIN | {"micro_batch_size": 3}))
    with pytest.raises(ConfigError, match="patch_size 5 does not divide image_size 16"):
        fit(config(tmp_path, model=MODEL | {"patch_size": 5}))
    with pytest.raises(ConfigError, match="no such file or folder"):
        fit(config(tmp_path, data={"kind": "images", "source": "./nowhere"}))
    with pytest.raises(ConfigError, match=r"train\.attn_implementation"):
        fit(config(tmp_path, train=TRAIN | {"attn_implementation": "flsh"}))
    assert not (tmp_path / "run").exists()


class At(Watcher):
    def __init__(self, step, action):
        self.step, self.action = step, action

    def stepped(self, loop):
        if loop.step == self.step:
            self.action(loop.model)


def spoil(model):
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))


def test_nan_is_a_clear_error_and_keeps_the_last_good_checkpoint(tmp_path):
    run = trainer(tmp_path, watchers=[At(3, spoil)])
    with pytest.raises(TrainingError, match=r"step 4: the loss or its gradient is not a finite number; lower optim"):
        run.train()
    good = checkpoint.last_checkpoint(tmp_path)
    assert good.name == "step-000002"
    assert all(torch.isfinite(w).all() for w in weights(tmp_path, f"checkpoints/{good.name}").values())


@pytest.mark.parametrize("where", ["write_model", "save_tensors", "sync"])
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, where):
    """The disk is full during the second checkpoint: while writing weights or state, or during sync."""
    full = OSError(errno.ENOSPC, "No space left on device")
    names = {
        "write_model": (checkpoint, "write_model"),
        "save_tensors": (checkpoint, "save_tensors"),
        "sync": (core_files, "_sync"),
    }
    module, name = names[where]
    real = getattr(module, name)

    def failing(*args, **kwargs):
        real(*args, **kwargs)
        if list(tmp_path.glob("checkpoints/.tmp-step-000004-*")):
            raise full

    monkeypatch.setattr(module, name, failing)
    run = trainer(tmp_path)
    with pytest.raises(TrainingError, match=r"saving step 4 failed: .*the disk is full"):
        run.train()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]
    monkeypatch.undo()
    start = checkpoint.start_state(checkpoint.last_checkpoint(tmp_path))
    again = trainer(tmp_path, start=start)
    again.train(checkpoint.last_checkpoint(tmp_path))
    again.save_folders()
    whole = trainer(tmp_path / "whole")
    whole.train()
    whole.save_folders()
    assert all(torch.equal(weights(tmp_path)[n], w) for n, w in weights(tmp_path / "whole").items())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_prints_the_resume_command(tmp_path, signum):
    run = trainer(tmp_path, save_steps=100, watchers=[At(2, lambda _: os.kill(os.getpid(), signum))])
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted, match=f"nextembed train --resume {tmp_path}") as caught:
        run.train()
    assert caught.value.exit_code == 128 + signum
    assert signal.getsignal(signum) == before
    last = checkpoint.last_checkpoint(tmp_path)
    assert last.name == "step-000002"
    again = trainer(tmp_path, start=checkpoint.start_state(last), save_steps=100)
    again.train(last)
    whole = trainer(tmp_path / "whole", save_steps=100)
    whole.train()
    name = "checkpoints/step-000006"
    assert all(torch.equal(weights(tmp_path, name)[n], w) for n, w in weights(tmp_path / "whole", name).items())


def test_a_probe_and_other_random_draws_do_not_change_training(tmp_path):
    def probe(backbone):
        assert not backbone.training
        torch.rand(7)
        return {"probe/knn": 0.5}

    plain, probed = trainer(tmp_path / "plain"), trainer(tmp_path / "probed", probe=probe, probe_steps=1, ema_decay=0.9)
    for run in (plain, probed):
        run.train()
    for (name, weight), other in zip(plain.model.named_parameters(), probed.model.parameters()):
        assert torch.equal(weight, other), name


def test_gradient_checkpointing_gives_the_same_weights(tmp_path):
    plain, saving = trainer(tmp_path / "plain"), trainer(tmp_path / "saving", gradient_checkpointing=True)
    for run in (plain, saving):
        run.train()
    for (name, weight), other in zip(plain.model.named_parameters(), saving.model.parameters()):
        torch.testing.assert_close(other, weight, rtol=1e-5, atol=1e-6, msg=name)


def test_bf16_trains_float32_weights(tmp_path):
    run = trainer(tmp_path, precision="bf16")
    run.train()
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_custom_parts_train_with_workers_and_resume(tmp_path):
    """In subprocesses: the file is found through config.yaml, also from another folder."""
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
        import torch
        from nextembed import ConfigError, Objective, ObjectiveOutput, ObjectiveSettings
        from nextembed.data.images import ImagePart

        class Squares(ImagePart):
            size: int = 20

            def rows(self, split):
                draw = torch.Generator().manual_seed(0)
                images = torch.randint(0, 255, (self.size, 16, 16, 3), generator=draw, dtype=torch.uint8)
                return [{"image": image.numpy(), "key": str(i)} for i, image in enumerate(images)]

        class Mean(Objective):
            def count_targets(self, batch):
                return torch.tensor(len(batch["pixel_values"]))

            def forward(self, backbone, batch):
                h = backbone.encode(backbone.embed(batch)).last.mean((1, 2))
                loss = (h - batch["noise"]).square().sum()
                return ObjectiveOutput(loss_sum=loss, num_targets=self.count_targets(batch))

        class MeanSettings(ObjectiveSettings):
            def draw(self, sample, generator):
                return {"noise": torch.rand((), generator=generator)}

            def build(self, backbone):
                return Mean(self)
        """)
    )
    (tmp_path / "go.py").write_text(
        textwrap.dedent(f"""
        import os, sys
        from nextembed import RunConfig, allow_code, fit

        def child(folder, resume):
            pid = os.fork()
            if pid == 0:
                os.chdir(folder)
                config = RunConfig(name="own", data={{"kind": "mine.py:Squares", "num_workers": 1}},
                                   model={MODEL!r}, objective={{"kind": "mine.py:MeanSettings"}},
                                   train={TRAIN!r}, probe={{"enabled": False}}) if resume is None else None
                if resume:
                    allow_code({str(tmp_path / "mine.py")!r})
                run = fit(config, resume)
                print(run.metrics["loss"], run.metrics["verdict"], flush=True)
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0

        child({str(tmp_path)!r}, None)
        child("/", {str(tmp_path / "runs/own")!r})
        """)
    )
    done = subprocess.run([sys.executable, "go.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [line.split() for line in done.stdout.splitlines() if line.startswith("0.") or line[:1].isdigit()]
    (loss, verdict), again = found
    assert 0 < float(loss) < 10
    assert verdict == "undecided"  # this objective has no diagnostics
    assert again == [loss, verdict]


def test_a_warm_up_in_epochs_needs_a_known_size(tmp_path):
    run = trainer(tmp_path, optim=OptimConfig(warmup_epochs=0.5))
    assert run.warmup_steps == 2  # 64 images, batch 16
