"""`nextembed generate` and `nextembed chat` on a tiny untrained model."""

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from emu_tiny import WIDTH, save_tiny_emu
from PIL import Image

from nextembed.cli import main
from nextembed.inference.chat import Talker
from nextembed.inference.conversation import Conversation
from nextembed.inference.prompts import read_piece
from nextembed.inference.settings import Sampling
from nextembed.models.emu.mixed import Writing, generate_document


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("emu")
    save_tiny_emu(path / "emu")
    save_tiny_emu(path / "plain", instruct=False, context=64)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path / "cat.png")
    Image.new("L", (5, 7), 90).save(path / "grey.png")
    Image.new("RGBA", (6, 6), (9, 200, 30, 0)).save(path / "clear.png")
    Image.new("RGB", (1, 1), "red").save(path / "dot.png")
    (path / "broken.png").write_bytes(b"\x89PNG not really")
    (path / "broken.mp4").write_bytes(b"not a video at all" * 20)
    rows = [{"pieces": ["a photo", "cat.png"], "id": 7}, {"image": "grey.png", "question": "what?"}, {"text": "a dog"}]
    (path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "bad.jsonl").write_text('{"text": "a"}\n{"pieces": [5]}\n')
    return path


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def talker(folder: Path) -> Talker:
    return Talker.load(folder / "emu", device="cpu")


def run(line: list[str], capsys: pytest.CaptureFixture, code: int = 0) -> str:
    assert main(line) == code
    found = capsys.readouterr()
    return found.err if code else found.out


def chat(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *options: str, code: int = 0
) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return run(["chat", *(options or ("emu",)), "--max-new-tokens", "6"], capsys, code)


def test_text_equals_the_output_of_the_model(talker: Talker, capsys: pytest.CaptureFixture) -> None:
    out = run(["generate", "emu", "a photo:", "cat.png", "It shows", "--max-new-tokens", "9"], capsys)
    inputs = talker.processor(["a photo:", Image.open("cat.png"), "It shows"])
    config = talker.model.config
    never = [config.image_token_id, config.image_start_token_id, config.image_end_token_id, config.pad_token_id]
    ids = talker.model.generate(
        **inputs, num_beams=5, max_new_tokens=9, length_penalty=0.0, do_sample=False, suppress_tokens=never
    )
    assert out.rstrip("\n") == talker.processor.batch_decode(ids)[0]


def test_streamed_text_equals_the_text(capsys: pytest.CaptureFixture) -> None:
    line = ["generate", "emu", "a photo:", "cat.png", "--max-new-tokens", "12"]
    assert run([*line, "--stream"], capsys).strip() == run([*line, "--beams", "1"], capsys).strip()


def test_samples_depend_on_the_seed(talker: Talker) -> None:
    def drawn(seed: int) -> str:
        return talker.write([["a cat"]], Sampling(num_beams=1, do_sample=True, max_new_tokens=20, seed=seed))[0]

    state = torch.get_rng_state()
    assert drawn(1) == drawn(1) != drawn(2)
    assert torch.equal(state, torch.get_rng_state())


def test_transparent_pixels_of_a_file_become_white() -> None:
    assert read_piece("clear.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["grey.png", "clear.png", "dot.png"])
def test_any_image_can_be_captioned_and_asked_about(name: str, talker: Talker, capsys: pytest.CaptureFixture) -> None:
    out = run(["generate", "emu", name, "--max-new-tokens", "4", "--beams", "1"], capsys)
    few = Sampling(num_beams=1, max_new_tokens=4)
    assert out.rstrip("\n") == talker.caption(Image.open(name), few)
    answer = run(["generate", "emu", name, "--question", "what?", "--max-new-tokens", "4", "--beams", "1"], capsys)
    assert answer.rstrip("\n") == talker.ask([Image.open(name)], "what?", few)


def test_batched_prompts_equal_single_prompts(talker: Talker, capsys: pytest.CaptureFixture) -> None:
    line = ["generate", "emu", "--input", "in.jsonl", "-o", "out.jsonl", "--max-new-tokens", "5"]
    assert "out.jsonl (3 answers)" in run(line, capsys)
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [
        {"pieces", "id", "output"},
        {"image", "question", "output"},
        {"text", "output"},
    ]
    alone = Sampling(max_new_tokens=5)
    assert rows[0]["output"] == talker.write([["a photo", Image.open("cat.png")]], alone)[0]
    assert rows[1]["output"] == talker.ask([Image.open("grey.png")], "what?", alone)
    assert rows[2]["output"] == talker.write([["a dog"]], alone)[0]


def test_mixed_output_generates_images_and_continues(talker: Talker) -> None:
    """The latents of a generated image equal those of `generate_image_embeddings` for the same prompt."""
    prompt = ["a photo of", Image.open("cat.png")]
    shown: list[str] = []
    made = generate_document(talker.model, talker.processor, prompt, Writing(
        max_new_tokens=5, begin_image=True, paint=lambda latents: latents.shape, on_text=shown.append
    ))  # fmt: skip
    assert [span.kind for span in made][:1] == ["image"] and made[0].image == (4, WIDTH)
    wanted = talker.model.generate_image_embeddings(**talker.processor(prompt))[0]
    assert (made[0].latents - wanted).abs().max() < 1e-5
    # The following text equals that of the whole sequence without a cache.
    inputs = talker.processor([*prompt, Image.open("cat.png")])
    embeds = talker.model.model.embed(
        inputs["input_ids"], torch.stack([talker.model.image_latents(inputs["pixel_values"])[0], wanted])
    )
    with torch.no_grad():
        logits = talker.model.text_logits(talker.model.model(inputs_embeds=embeds).last_hidden_state[0, -1])
    config = talker.model.config
    logits[[config.image_token_id, config.image_end_token_id, config.pad_token_id]] = -torch.inf
    first = talker.processor.tokenizer.decode([int(logits.argmax())])
    assert made[1].text.startswith(first.strip()) and "".join(shown).strip() == made[1].text


def test_the_image_token_starts_an_image(folder: Path, capsys: pytest.CaptureFixture) -> None:
    own = Talker.load(folder / "emu", device="cpu")
    head = own.model.get_output_embeddings()
    with torch.no_grad():  # makes [IMG] the most likely token after this prompt
        hidden = own.model.model(**own.processor(["a cat"])).last_hidden_state[0, -1]
        head.weight[own.model.config.image_start_token_id] = 10 * hidden
    made = own.document(["a cat"], max_new_tokens=3, max_images=1)
    assert made[0].kind == "image" and made[0].latents is not None and made[0].image is None
    assert [span.kind for span in made].count("image") == 1
    assert run(["generate", "emu", "a cat", "--target", "mixed", "--max-new-tokens", "3", "-o", "doc"], capsys)
    assert json.loads(Path("doc/document.json").read_text())["segments"]


def test_chat_from_a_pipe(talker: Talker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    Path("talk.jsonl").unlink(missing_ok=True)
    text = "/image cat.png\nwhat is it?\nand now?\n/save talk.jsonl\n/reset\n/help\n/quit\nnot read\n"
    out = chat(text, monkeypatch, capsys).splitlines()
    talk = Conversation()
    talk.ask(Image.open("cat.png"), "what is it?")
    answer, _ = talker.reply(talk, Sampling(num_beams=1, max_new_tokens=6))
    assert out[0] == "(shown: cat.png)" and out[1].strip() == answer
    assert (
        "(saved: talk.jsonl)" in out
        and "(new conversation started)" in out
        and any("/paint TEXT" in line for line in out)
    )
    (saved,) = [json.loads(line)["messages"] for line in Path("talk.jsonl").read_text().splitlines()]
    assert [turn["role"] for turn in saved] == ["user", "assistant"] * 2
    assert saved[0]["content"][0] == {"type": "image", "image": "cat.png"}
    assert saved[1]["content"][0]["text"] == answer


def test_chat_with_a_base_model_and_a_full_context(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = chat("who?\n" * 8, monkeypatch, capsys, "plain")
    assert out.startswith("(this model was not trained for dialogue") and out.count("not trained for dialogue") == 1
    assert "(the context is full: the oldest 2 turns were left out)" in out


def test_video(talker: Talker, capsys: pytest.CaptureFixture) -> None:
    av = pytest.importorskip("av")
    with av.open("clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * i, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    out = run(["generate", "emu", "clip.mp4", "--question", "who?", "--frames", "2", "--max-new-tokens", "4"], capsys)
    assert len(out.splitlines()) >= 1
    assert "cannot read the video broken.mp4" in run(["generate", "emu", "broken.mp4"], capsys, 1)


def test_painting(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    diffusers = pytest.importorskip("diffusers")
    from nextembed.models.emu.visual_decoder import VisualDecoder

    save_tiny_emu(folder / "painter")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=4,
    )  # fmt: skip
    VisualDecoder(unet, diffusers.DDIMScheduler()).save_pretrained(folder / "painter" / "visual_decoder")
    line = ["generate", "painter", "cat.png", "grey.png", "--steps", "2", "-o", "blend.png"]
    assert "Saved:  blend.png" in run(line, capsys)
    assert Image.open("blend.png").size == (8, 8)
    run([*line[:-1], "again.png", "--seed", "0"], capsys)
    run([*line[:-1], "other.png", "--seed", "1"], capsys)
    blend, again, other = (np.asarray(Image.open(f"{name}.png")) for name in ("blend", "again", "other"))
    assert (blend == again).all() and (blend != other).any()
    many = ["generate", "painter", "--target", "image", "--input", "in.jsonl", "-o", "many", "--steps", "1"]
    assert "(3 pictures)" in run(many, capsys)
    assert len(list(Path("many").glob("*.png"))) == 3
    out = chat("/image cat.png\n/paint in winter\n", monkeypatch, capsys, "painter", "--steps", "1")
    assert "(painted: painted-01.png)" in out and Path("painted-01.png").is_file()
    own = Talker.load(folder / "painter", device="cpu")
    made = own.document(["a cat"], max_new_tokens=2, begin_image=True, num_inference_steps=1)
    assert made[0].image.size == (8, 8)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("generate emu", 2, "give text or an image"),
        ("generate nowhere hello", 2, "no such run or checkpoint: nowhere"),
        ("generate emu dog.png", 2, "no such file: dog.png"),
        ("generate emu broken.png", 1, "cannot read the image broken.png"),
        ("generate emu cat.png --target image", 2, "-o FILE.png"),
        (
            "generate emu cat.png -o new.png",
            2,
            "Train a small one with nextembed train emu_emoji_decoder after=[] model.pretrained=emu",
        ),
        ("generate emu cat.png -o nowhere/new.png", 2, "no such folder: nowhere"),
        ("generate emu cat.png --target pictur", 2, "'pictur' is not known"),
        ("generate emu cat.png --sample --beams 3", 2, "--sample needs --beams 1"),
        ("generate emu cat.png --temperature 0", 2, "temperature"),
        ("generate emu --input bad.jsonl -o new.jsonl", 1, "bad.jsonl, line 2: a piece is"),
        ("generate emu --input none.jsonl", 2, "no such file: none.jsonl"),
        ("generate emu a --input in.jsonl", 2, "--input cannot be combined with pieces"),
        ("chat nowhere", 2, "no such run or checkpoint"),
    ],
)
def test_errors_are_one_line(line: str, code: int, words: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(folder.rglob("*"))
    err = run(line.split(), capsys, code)
    assert words in err and err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_invalid_prompts(capsys: pytest.CaptureFixture) -> None:
    assert "an empty prompt" in run(["generate", "emu", " "], capsys, 2)
    assert "positions of the model's 256" in run(["generate", "emu", "a cat " * 300], capsys, 2)
    assert "positions of the model's 256" in run(["generate", "emu", "a cat " * 300, "--target", "mixed"], capsys, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/imge cat.png\n", "Did you mean '/image'?"),
        ("/image dog.png\n", "no such file: dog.png"),
        ("/paint a cat\n", "has no visual_decoder/ folder"),
        ("/save talk2.jsonl\n", "nothing to save yet"),
        ("/image\n", "/image needs an argument"),
    ],
)
def test_chat_reports_errors(
    text: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    err = chat(text, monkeypatch, capsys, code=2)
    assert words in err and err.count("\n") == 1


def test_missing_weights_are_reported(folder: Path, capsys: pytest.CaptureFixture) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny_emu(folder / "half")
    state = load_file(folder / "half" / "model.safetensors")
    del state["regression_head.weight"]
    save_file(state, folder / "half" / "model.safetensors", {"format": "pt"})
    assert "lacks parameter regression_head.weight" in run(["generate", "half", "a"], capsys, 2)


def test_python_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "emu_use.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    save_tiny_emu(Path("runs/emu/model"), context=1024)
    for name in ("cat.png", "dog.png"):
        Image.new("RGB", (9, 9), "red").save(name)
    names: dict = {}
    for text in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(text, "emu_use.md", "exec"), names)
    assert names["latents"].shape == (4, 4, WIDTH) and len(names["talk"].turns) == 4
    assert len(Path("talk.jsonl").read_text().splitlines()) == 1
