"""The duration of each run of a chain, estimated before the first is trained."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nextembed import recipes
from nextembed.cli.stages import say_stages
from nextembed.core.config import apply_overrides
from nextembed.errors import ConfigError
from nextembed.recipes import stage_times as planned
from nextembed.recipes.stage_times import stage_seconds, with_paths
from nextembed.runs import RunConfig
from nextembed.training import banner


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """A tiny model and a decoder of its latents, neither trained yet."""
    monkeypatch.chdir(tmp_path)
    first = apply_overrides(
        recipes.load("nepa_demo_tiny"), ["train.max_steps=10", "name=first", "train.ema_decay=null"]
    )
    second = apply_overrides(
        recipes.load("latent_decoder_tiny"),
        ["model={kind: vit_nepa, pretrained: runs/first/model}", "train.max_steps=30", "name=second"],
    )
    return [first, second]


def test_each_stage_is_timed_on_the_output_of_the_previous_one(
    chain: list[RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def one_second(loop: object) -> float:
        begun.append(type(loop.bare.objective).__name__)
        return 1.0

    monkeypatch.setattr(planned, "step_seconds", one_second)
    assert list(stage_seconds(chain)) == [10.0, 30.0]
    assert len(set(begun)) == 2
    assert list(tmp_path.iterdir()) == []  # no files remain and no run is started


def test_a_step_is_measured(chain: list[RunConfig]) -> None:
    found = list(stage_seconds(chain))
    assert all(seconds is not None and 0 < seconds < 60 for seconds in found)


def test_the_time_after_a_large_model_is_unknown(chain: list[RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "MOST", 1)
    monkeypatch.setattr(planned, "step_seconds", lambda loop: 0.5)
    assert list(stage_seconds(chain)) == [5.0, None]


def test_a_wrong_setting_of_the_last_stage_is_reported_before_training(chain: list[RunConfig]) -> None:
    wrong = apply_overrides(chain[1], ["data.source=nowhere"])
    with pytest.raises(ConfigError, match="no such file or folder: nowhere"):
        list(stage_seconds([chain[0], wrong]))


def test_paths_into_a_folder_are_moved_and_similar_names_are_kept() -> None:
    config = apply_overrides(recipes.load("nepa_demo"), ["model.pretrained=runs/a/model", "data.source=runs/ab"])
    moved = with_paths(config, {"runs/a": Path("/scratch/a")})
    assert (moved.model.pretrained, moved.data.source) == ("/scratch/a/model", "runs/ab")
    assert moved.train == config.train and moved.objective == config.objective


def test_stages_are_printed_before_their_durations(
    chain: list[RunConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before: list[str] = []

    def seconds(stages: list[RunConfig]) -> Iterator[float | None]:
        before.append(capsys.readouterr().out)
        yield from (300.0, 120.0)

    monkeypatch.setattr(planned, "stage_seconds", seconds)
    say_stages(chain, ["name=second"])
    assert "  1 of 2  first: 10 steps of " in before[0] and "  2 of 2  second: 30 steps of " in before[0]
    after = capsys.readouterr().out
    assert "  1 of 2  first: about 5 minutes\n  2 of 2  second: about 2 minutes\n  together about 7 minutes" in after
    assert banner.minutes(420) in after
