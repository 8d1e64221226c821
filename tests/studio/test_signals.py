"""Any to any and Talk with audio, video, series and the microphone; text search; unloading of models."""

import gc
import re
import wave
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextembed.inference.chat import Talker
from nextembed.studio.panels import talk

from .conftest import expect, until


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """An audio file, a video in two formats, and series."""
    with wave.open(str(tmp_path / "tone.wav"), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes((np.sin(np.arange(16_000) / 6) * 20_000).astype("<i2").tobytes())
    frames = [Image.new("RGB", (32, 32), (20 * i, 0, 255 - 20 * i)) for i in range(10)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:], duration=100)
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "film.mp4"), "w") as box:
        stream = box.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for frame in frames:
            box.mux(stream.encode(av.VideoFrame.from_image(frame)))
        box.mux(stream.encode())
    rows = "\n".join(",".join(f"{np.sin(i / 5 + c):.3f}" for c in range(6)) for i in range(60))
    (tmp_path / "series.csv").write_text("ax,ay,az,gx,gy,gz\n" + rows + "\n")
    (tmp_path / "words.csv").write_text("a,b\nnot,numbers\nat,all\n")
    return {path.name: path for path in tmp_path.iterdir()}


INPUT = "Images, sounds, videos, series (.csv)"
KINDS = {
    "omni_stamps": ["audio", "image", "text"],
    "omni_series": ["image", "series", "text"],
    "omni_emoji": ["image", "text"],
}  # what each model generates


def choose_model(seen, model: str) -> None:
    """Selects a model, and waits until the list of outputs is that of this model."""
    seen.choose("Model", model)
    seen.page.get_by_text(f"This model generates {', '.join(KINDS[model])}.").wait_for()


def generate(seen, model: str, target: str) -> None:
    choose_model(seen, model)
    seen.page.get_by_label("number input for Maximum latents").or_(seen.page.get_by_text("More settings")).first.click()
    box = seen.page.get_by_label("number input for Maximum latents")
    box.fill("6")
    box.press("Tab")  # the value is committed when the box loses focus
    seen.choose("Output", target)
    seen.page.get_by_role("button", name="Generate", exact=True).click()


def test_audio_input_and_output(watch, files: dict[str, Path]) -> None:
    seen = watch("Any to any")
    seen.upload(INPUT, files["tone.wav"])
    generate(seen, "omni_stamps", "audio")
    seen.page.get_by_text("Sound, sample 1").wait_for()
    seen.page.locator("figure h3", has_text="Samples").wait_for()  # the overlaid waveforms
    seen.page.locator(".nx-plot .trace").locator("visible=true").nth(3).wait_for()


def test_csv_input_and_series_output(watch, files: dict[str, Path]) -> None:
    seen = watch("Any to any")
    seen.upload(INPUT, files["series.csv"])
    generate(seen, "omni_series", "series")
    chips = seen.page.locator("figure .nx-chip").filter(has_text="sample 4, channel 6")
    chips.wait_for()  # four samples with six channels


def test_the_listed_outputs_are_those_of_the_model(watch) -> None:
    seen = watch("Any to any")
    for model in ("omni_stamps", "omni_emoji"):
        choose_model(seen, model)
        entries = ["(the model chooses)", *KINDS[model]]
        expect(seen.unfolded("Output")).to_have_text([re.compile(rf"^\W*{re.escape(entry)}\s*$") for entry in entries])
        seen.page.keyboard.press("Escape")
        seen.page.keyboard.press("Tab")


@pytest.mark.parametrize(
    ("file", "words"),
    [("words.csv", "could not convert"), ("film.gif", "but not video"), ("tone.wav", "but not audio")],
)
def test_unsupported_input_is_a_one_line_error(watch, files: dict[str, Path], file: str, words: str) -> None:
    seen = watch("Any to any")
    seen.upload(INPUT, files[file])
    generate(seen, "omni_series", "series")
    seen.page.get_by_text(words).first.wait_for()


def test_a_video_in_a_conversation(watch, files: dict[str, Path]) -> None:
    seen = watch("Talk and paint")
    page = seen.page
    seen.choose("Model", "emu_emoji")
    page.get_by_label("number input for Maximum tokens").fill("4")
    page.locator("input[type=file]").locator("xpath=//*[contains(@class,'multimodal-textbox')]//input").or_(
        page.locator(".multimodal-textbox input[type=file]")
    ).first.set_input_files(str(files["film.mp4"]))
    page.locator(".thumbnail-item").first.wait_for()
    page.get_by_placeholder("Write a question").fill("What happens?")
    page.keyboard.press("Enter")
    page.locator("[data-testid=bot]").first.wait_for()
    page.get_by_role("button", name="The prompt as the model sees it").click()
    page.wait_for_function(
        "[...document.querySelectorAll('textarea')].some(one => one.value.includes('What happens') && "
        "(one.value.match(/ x 4/g) || []).length === 8)"  # eight frames with four latents each
    )


def test_few_shot_examples_and_long_conversations(watch, runs: Path) -> None:
    seen = watch("Talk and paint")
    page = seen.page
    seen.choose("Model", "emu_emoji")
    page.get_by_label("number input for Maximum tokens").fill("4")
    page.get_by_role("button", name="Few-shot examples").click()
    seen.upload("Image", runs / "photos" / "03.png")
    page.get_by_label("Question").fill("Which colour?")
    page.get_by_label("Answer").fill("green")
    page.get_by_role("button", name="Add example").click()
    page.get_by_text("1 example before the conversation").wait_for()
    page.get_by_role("button", name="The prompt as the model sees it").click()
    box = page.get_by_placeholder("Write a question")
    box.fill("And this?")
    box.press("Enter")
    page.wait_for_function("[...document.querySelectorAll('textarea')].some(one => one.value.includes('green'))")
    seen.ended()
    box.fill("word " * 90)
    box.press("Enter")
    page.get_by_text("turns are left out").first.wait_for()  # the context has 128 positions


def test_text_search_finds_images_if_the_model_reads_text(watch) -> None:
    seen = watch("Map and search")
    seen.choose("Features", "omni.parquet")
    seen.page.get_by_label("Search by text").fill("red")
    seen.page.get_by_label("Search by text").press("Enter")
    seen.page.get_by_text("Nearest to this text").wait_for()
    expect(seen.page.locator(".tiles img")).to_have_count(13)


def test_umap_clusters_and_a_list_by_keyboard(watch) -> None:
    pytest.importorskip("umap")
    seen = watch("Map and search")
    page = seen.page
    page.get_by_label("UMAP").check()
    page.get_by_text("13 images, UMAP").wait_for(timeout=300_000)  # its process first compiles
    page.get_by_label("cluster", exact=True).check()
    page.locator(".nx-map .legendtext", has_text="cluster 1").wait_for()
    seen.choose("List a class or cluster", "cluster 1")
    line = page.get_by_text("images: cluster 1")
    found = int(line.inner_text().split()[0])
    assert 1 <= found < 13
    expect(page.locator(".tiles img")).to_have_count(found)


def test_models_are_unloaded(watch, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref] = []

    def load(path: Path) -> Talker:
        held.append(weakref.ref(found := Talker.load(path)))
        return found

    monkeypatch.setattr(talk, "open_talker", load)
    seen = watch("Talk and paint")
    seen.page.get_by_role("button", name="Unload models").click()
    seen.choose("Model", "emu_emoji")
    seen.page.get_by_label("number input for Maximum tokens").fill("2")
    seen.page.get_by_placeholder("Write a question").fill("What is this?")
    seen.page.keyboard.press("Enter")
    seen.page.locator("[data-testid=bot]").first.wait_for()
    seen.ended()
    gc.collect()
    assert held[0]() is not None
    seen.page.get_by_role("button", name="Unload models").click()
    seen.page.get_by_text("Unloaded: emu_emoji").wait_for()
    until(lambda: gc.collect() is not None and held[0]() is None)  # the last that used it lets go a moment later


def test_the_microphone(watch) -> None:
    seen = watch("Any to any", permissions=["microphone"])
    page = seen.page
    page.get_by_role("button", name="Microphone").click()
    page.get_by_role("button", name="Record").click()
    expect(page.locator("time.duration")).to_have_text(re.compile(r"^0:(0[1-9]|[1-5]\d)$"))  # at least a second
    with page.expect_response(lambda answer: "/upload" in answer.url):  # only then has the audio been received
        page.locator("button.stop-button").click()
    page.get_by_role("button", name="Reset audio").locator("visible=true").wait_for()
    generate(seen, "omni_stamps", "text")
    page.get_by_text("Share of the samples").or_(page.get_by_text("nothing follows")).first.wait_for()
