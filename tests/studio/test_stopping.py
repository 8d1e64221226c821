"""Long work shows its progress, and the Stop button really ends the computation."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nextembed.inference.samples import Sampler
from nextembed.models.emu.modeling_emu import EmuForConditionalGeneration
from nextembed.models.emu.visual_decoder import VisualDecoder
from nextembed.models.omni.generation import Rollout
from nextembed.studio.working import MODEL, Work, streamed

from .conftest import expect, until

Waits = Callable[[type, str, int], list[float]]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Makes a method wait at its n-th call until the work is stopped; returns the times of its calls."""
    works: list[Work] = []
    start = Work.__init__

    def started(self: Work) -> None:
        start(self)
        works.append(self)

    def patch(owner: type, name: str, least: int) -> list[float]:
        calls: list[float] = []
        real = getattr(owner, name)

        def wrapped(self, *args: object, **kwargs: object) -> object:
            calls.append(time.monotonic())
            if len(calls) == least:
                works[-1].stop.wait(300)  # however long the click takes
            return real(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)
        return calls

    monkeypatch.setattr(Work, "__init__", started)
    return patch


def stops(page, calls: list[float], least: int) -> None:
    """Waits for some calls, clicks Stop, and checks that the model is free and there are no further calls."""
    until(lambda: len(calls) >= least)
    page.get_by_role("button", name="Stop", exact=True).locator("visible=true").click()
    assert MODEL.acquire(timeout=60)  # less than the method waits where there is no stop
    MODEL.release()
    seen = len(calls)
    page.wait_for_timeout(500)  # nothing may be computed any more
    assert least <= seen == len(calls)


def first_part(reader: Iterator[object]) -> object:
    """The next part that is not None; on a busy machine, None may come first."""
    return next(part for part in reader if part is not None)


def test_an_answer_can_be_stopped(watch, waits: Waits) -> None:
    seen = watch("Talk and paint")
    seen.choose("Model", "emu_emoji")
    page = seen.page
    page.get_by_label("number input for Maximum tokens").fill("200")
    page.get_by_placeholder("Write a question").fill("What is this?")
    calls = waits(EmuForConditionalGeneration, "forward", 6)
    page.keyboard.press("Enter")
    stops(page, calls, 6)
    assert len(calls) < 100


def test_image_generation_shows_its_steps_and_can_be_stopped(watch, waits: Waits) -> None:
    seen = watch("Talk and paint")
    seen.choose("Model", "emu_painter")
    page = seen.page
    page.get_by_role("tab", name="Paint", exact=True).click()
    page.get_by_label("number input for Denoising steps").fill("100")
    page.get_by_label("Image prompt").fill("a red apple")
    calls = waits(VisualDecoder, "forward", 4)
    page.get_by_role("button", name="Paint", exact=True).click()
    so_far = page.get_by_text("3 of 100 steps")
    so_far.wait_for()
    page.wait_for_timeout(1000)  # a bar of gradio's would be gone by now
    assert so_far.is_visible()
    stops(page, calls, 4)
    assert len(calls) < 100
    expect(so_far).to_have_count(0)


def test_a_blend_is_generated_and_shown(watch, runs: Path) -> None:
    seen = watch("Talk and paint")
    seen.choose("Model", "emu_painter")
    page = seen.page
    page.get_by_role("tab", name="Paint", exact=True).click()
    seen.upload("Images in the prompt; two images are blended", runs / "photos" / "00.png", runs / "photos" / "09.png")
    page.get_by_role("button", name="Paint", exact=True).click()
    painted = page.locator(".nx-painted img").locator("visible=true")
    painted.wait_for()
    enlarged = "document.querySelector('.nx-painted img')?.getBoundingClientRect().height > 300"
    page.wait_for_function(enlarged)  # from 16 pixels


def test_samples_of_an_omni_can_be_stopped(watch, waits: Waits) -> None:
    seen = watch("Any to any")
    seen.choose("Model", "omni_emoji")
    page = seen.page
    page.get_by_label("Text", exact=True).fill("a red apple:")
    seen.choose("Output", "image")
    calls = waits(Rollout, "feed", 3)
    page.get_by_role("button", name="Generate", exact=True).click()
    stops(page, calls, 3)
    assert len(calls) < 60


def test_images_of_a_run_can_be_stopped(watch, waits: Waits) -> None:
    seen = watch()
    page = seen.page
    seen.select("mar_demo")
    page.get_by_role("tab", name="Samples").click()
    page.get_by_label("number input for Images").fill("64")
    calls = waits(Sampler, "__call__", 2)
    page.get_by_role("button", name="Generate images").click()
    stops(page, calls, 2)
    assert len(calls) < 8


def test_work_ends_without_a_reader_and_runs_one_at_a_time() -> None:
    steps: list[int] = []

    def endless(work: Work[int]) -> None:
        while True:
            steps.append(len(steps))
            work.show(len(steps))
            time.sleep(0.01)

    def silent(work: Work[int]) -> None:
        time.sleep(0.5)

    assert next(streamed(silent)) is None  # lets a silent worker be stopped
    reader = streamed(endless)
    assert first_part(reader) == 1
    assert MODEL.locked()
    reader.close()
    assert MODEL.acquire(timeout=5)
    MODEL.release()
    assert len(steps) < 100 and first_part(streamed(lambda work: work.show("after"))) == "after"


def test_an_error_of_the_work_reaches_the_reader() -> None:
    def wrong(work: Work[int]) -> None:
        work.show(1)
        raise ValueError("bad")

    reader = streamed(wrong)
    assert first_part(reader) == 1
    with pytest.raises(ValueError, match="bad"):
        first_part(reader)
    assert not MODEL.locked()


def test_a_stopped_umap_leaves_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import subprocess

    import torch

    from nextembed.studio import mapping

    started: list[subprocess.Popen] = []

    class Seen(subprocess.Popen):
        def __init__(self, *args: object, **kwargs: object):
            super().__init__(*args, **kwargs)
            started.append(self)

    def check() -> None:
        if started and time.monotonic() - began > 0.3:
            raise InterruptedError

    monkeypatch.setattr(subprocess, "Popen", Seen)
    began = time.monotonic()
    with pytest.raises(InterruptedError):
        mapping.umap(torch.eye(5), check)
    assert time.monotonic() - began < 5 and started[0].poll() is not None
