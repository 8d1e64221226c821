"""Omni on the command line: training, generation from and to any modality, resume, errors."""

import json
import shutil
import wave
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from forked import run_script
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining

import nextembed
from nextembed import recipes
from nextembed.cli import main
from nextembed.core.config import apply_overrides, to_yaml
from nextembed.core.types import Loading
from nextembed.data.audio import SAMPLE_RATE
from nextembed.errors import ConfigError
from nextembed.inference.generate import features, load_omni
from nextembed.inference.signals import read_signal
from nextembed.models.omni import OmniConfig, OmniForPreTraining, OmniProcessor

RUNNER = Path(__file__).with_name("kill_runner.py")
SENSES = {
    "text": {},
    "sound": {"kind": "audio", "num_mels": 8, "num_frames": 2, "num_steps": 4},
    "touch": {"kind": "series", "channels": 2, "patch_size": 2, "length": 5},
    "clip": {"kind": "video", "image_size": 8, "patch_size": 4, "num_frames": 3},
    "left": {"kind": "image", "image_size": 8, "patch_size": 4},
    "right": {"kind": "image", "image_size": 8, "patch_size": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained omni_emoji_tiny run, an untrained senses run with every modality, and input files."""
    path = tmp_path_factory.mktemp("omni")
    assert main(["train", "omni_emoji_tiny", f"output_dir={path / 'runs'}"]) == 0
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    OmniForPreTraining(OmniConfig(modalities=SENSES, layerscale_value=1.0, **sizes)).save_pretrained(path / "senses")
    OmniProcessor(SENSES).save_pretrained(path / "senses")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path / "fire.png")
    with wave.open(str(path / "beep.wav"), "wb") as out:
        out.setnchannels(1), out.setsampwidth(2), out.setframerate(SAMPLE_RATE)
        out.writeframes((9000 * np.sin(np.arange(1600) * 0.2)).astype(np.int16).tobytes())
    (path / "touch.csv").write_text("left,right\n" + "".join(f"{i},{-i}\n" for i in range(6)))
    np.save(path / "touch.npy", np.arange(12, dtype=np.float32).reshape(2, 6))
    (path / "broken.png").write_bytes(b"\x89PNG not really")
    (path / "broken.csv").write_text("a,b\nc,d\n")
    (path / "empty.npy").write_bytes(b"")
    return path


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def run(line: str, capsys: pytest.CaptureFixture, code: int = 0) -> str:
    assert main(line.split()) == code
    found = capsys.readouterr()
    return found.err if code else found.out


RUN = "runs/omni_emoji_tiny"


def test_the_model_of_a_run_loads(folder: Path) -> None:
    files = {file.name for file in (folder / RUN / "model").iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= files
    lines = [json.loads(line) for line in (folder / RUN / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "cos_next/text", "cos_next/image", "top1/text", "cos_next/begin"} <= set(lines[-1])
    assert (folder / RUN / "report.html").is_file()
    model = AutoModelForPreTraining.from_pretrained(folder / RUN / "model")
    assert model.config.names == ["text", "image"] == model.processor.names  # in the order of training
    assert load_omni(folder / RUN, device="cpu").config.names == ["text", "image"]


def test_image_to_text(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """After two steps a model generates text only at high temperature; two seeds with readable text are used."""
    model = load_omni(folder / RUN, device="cpu")

    def said(seed: int, **options: float) -> str:
        return model.generate([Image.open("fire.png")], "text", max_latents=6, seed=seed, **options).value

    line = f"generate {RUN} --image fire.png --target text --max-new-tokens 6"
    assert run(line, capsys) == said(0) + "\n"
    bold = {seed: said(seed, temperature=30.0, top_k=50) for seed in range(30)}
    first, second = [seed for seed, text in bold.items() if text.isascii() and len(text.strip()) > 3][:2]
    assert bold[first] != bold[second]
    for seed in (first, second):
        out = run(f"{line} --temperature 30 --seed {seed} -o said.txt", capsys)
        assert out == f"{bold[seed]}\nSaved:  said.txt\n" and Path("said.txt").read_text() == f"{bold[seed]}\n"
    assert run(f"{line} --guidance 3", capsys) == said(0, guidance=3.0) + "\n"


def test_text_to_image(folder: Path, capsys: pytest.CaptureFixture) -> None:
    out = run(f"generate {RUN} --text apple: --target image -o apple.png", capsys)
    assert out == "Saved:  apple.png\n"
    made = load_omni(folder / RUN, device="cpu").generate(["apple:"], "image")
    assert torch.equal(torch.from_numpy(np.asarray(Image.open("apple.png")).copy()).permute(2, 0, 1), made.value)
    run(f"generate {RUN} apple: -o again.png", capsys)  # the file name requests an image
    assert Path("again.png").read_bytes() == Path("apple.png").read_bytes()


def test_the_model_chooses_the_modality(folder: Path, capsys: pytest.CaptureFixture) -> None:
    made = load_omni(folder / RUN, device="cpu").generate(["apple:"], max_latents=3)
    wanted = "(the document ends here)" if made is None else made.value if made.kind == "text" else None
    if wanted is not None:
        assert run(f"generate {RUN} apple: --max-new-tokens 3", capsys).strip() == wanted.strip()
    else:
        assert "the model generated image: name a file" in run(f"generate {RUN} apple: --max-new-tokens 3", capsys, 2)


# The lines before the first training step.
BANNER = ("Run:  ", "Device:  ", "Data:  ", "Model:  ", "Length:  ", "         ")


@pytest.mark.parametrize("piece", ["--audio beep.wav", "beep.wav", "--series touch.csv", "touch.npy", "--text hi",
                                   "--piece left=fire.png"])  # fmt: skip
def test_any_input_modality(piece: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    out = run(f"generate senses {piece} --target touch", capsys)
    made = np.array(json.loads(out))
    assert made.shape == (2, 5)
    file = piece.split(" ")[-1].removeprefix("left=")
    name = {"beep.wav": "sound", "touch.csv": "touch", "touch.npy": "touch", "fire.png": "left", "hi": "text"}[file]
    kind = SENSES[name].get("kind", name)
    wanted = load_omni("senses", device="cpu").generate([read_signal(kind, file, name)], "touch")
    assert np.allclose(made, wanted.value.numpy(), atol=1e-5)


@pytest.mark.parametrize("file", ["sound.wav", "touch.npy", "touch.json", "clip.gif", "right.png", "text.txt"])
def test_any_output_modality(file: str, capsys: pytest.CaptureFixture) -> None:
    target, file = Path(file).stem, f"made{Path(file).suffix}"
    out = run(f"generate senses hello --audio beep.wav --target {target} -o {file} --max-new-tokens 4", capsys)
    assert out.endswith(f"Saved:  {file}\n")
    if file.endswith("wav"):
        with wave.open(file) as sound:
            assert (sound.getframerate(), sound.getnchannels()) == (SAMPLE_RATE, 1)
            assert 320 <= sound.getnframes() <= 4 * 320
    elif file.endswith(("npy", "json")):
        made = np.load(file) if file.endswith("npy") else np.array(json.loads(Path(file).read_text()))
        assert made.shape == (2, 5)
    elif file.endswith(("gif", "png")):
        image = Image.open(file)
        assert image.size == (8, 8) and getattr(image, "n_frames", 1) == (3 if target == "clip" else 1)
    assert not list(Path().glob(".tmp-*"))


def test_pieces_keep_their_order(capsys: pytest.CaptureFixture) -> None:
    options = "--target touch"
    one = run(f"generate senses hello beep.wav {options}", capsys)
    assert one != run(f"generate senses beep.wav hello {options}", capsys)
    assert one == run(f"generate senses hello --audio beep.wav {options}", capsys)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (f"generate {RUN}", 2, "give text or a file after the checkpoint"),
        (f"generate {RUN} hello --target imag -o a.png", 2, "'imag' is not known. Did you mean 'image'"),
        (f"generate {RUN} hello --target image", 2, "the model generates image: name a file for it with -o FILE.png"),
        (f"generate {RUN} hello --target image -o a.jpg", 2, "image is written to a file named *.png"),
        (f"generate {RUN} hello --target image -o nowhere/a.png", 2, "no such folder: nowhere"),
        (f"generate {RUN} hello --target text -o a.png", 2, "text is written to a file named *.txt"),
        (f"generate {RUN} --image dog.png --target text", 1, "no such file: dog.png"),
        (f"generate {RUN} dog.png --target text", 1, "no such file: dog.png"),
        (f"generate {RUN} broken.png --target text", 1, "broken.png: "),
        (f"generate {RUN} --audio beep.wav", 2, "of the model's modalities (text, image) none of kind 'audio'"),
        (f"generate {RUN} --piece smell=a.json", 2, "NAME=FILE with one of text, image"),
        (f"generate {RUN} hello --question why?", 2, "are for Emu models"),
        (f"generate {RUN} hello --weights ema", 2, "has no ema weights; there is raw"),
        (f"generate {RUN} hello --code nowhere.py", 2, "no such file: nowhere.py"),
        ("generate senses --image fire.png --target text", 2, "several of kind 'image' (use --piece NAME=FILE)"),
        ("generate senses broken.csv --target text", 1, "broken.csv: "),
        ("generate senses empty.npy --target text", 1, "empty.npy: "),
        ("generate senses touch.npy --target touch -o a.png", 2, "'series' is written as .json or .npy"),
        ("train omni_emoji_tiny model.modalities={smell:{}} name=bad", 2, "kind 'smell' is not known"),
        ("train omni_emoji_tiny model.orders.image=spiral name=bad", 2, "order 'spiral' is not known"),
        (
            "train omni_emoji_tiny model.density=mixture objective.distance=cosine name=bad",
            2,
            "likelihood or vocabulary",
        ),
        (
            "train omni_emoji_tiny model.tokenizer=no/such/one name=bad",
            2,
            "model.tokenizer: no such run, checkpoint or folder: no/such/one",
        ),
        ("train omni_emoji_tiny objective.weights.txt=2 name=bad", 2, "Did you mean 'text'"),
        (
            "train omni_emoji_tiny model.pretrained=no/such/one name=bad",
            2,
            "model.pretrained: no such run, checkpoint or folder: no/such/one",
        ),
    ],
)
def test_errors_are_one_line(line: str, code: int, words: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(folder.rglob("*"))
    err = run(line, capsys, code)
    said = [
        line for line in err.splitlines() if not line.startswith(BANNER)
    ]  # the lines before the first training step
    assert words in err and len(said) == 1, err
    assert sorted(folder.rglob("*")) == before


def test_images_have_features(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Features of images, and errors for models without images and for `visualize`."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    run(f"embed {RUN} pictures -o pictures.parquet --layer 1", capsys)
    table = pq.read_table("pictures.parquet")
    files = [pictures / Path(path).name for path in table["path"].to_pylist()]
    found = torch.tensor(table["embedding"].to_pylist())
    assert torch.allclose(found, nextembed.encode(RUN, files, layer=1), atol=1e-5)
    model = load_omni(RUN, device="cpu")
    assert torch.allclose(found, nextembed.encode(model, files, layer=1), atol=1e-5)
    assert torch.allclose(found, features(model, [[Image.open(file)] for file in files], layer=1), atol=1e-4)
    blind = OmniForPreTraining(OmniConfig(modalities={"text": {}}, hidden_size=32, num_attention_heads=2))
    blind.processor = OmniProcessor({"text": {}})
    with pytest.raises(ConfigError, match="reads text, but no images"):
        nextembed.encode(blind, files)
    assert "shows runs of every kind" in run(f"visualize {RUN} pictures/0.png", capsys, 2)
    shutil.rmtree(pictures)


def test_an_omni_continues_from_another(folder: Path, capsys: pytest.CaptureFixture) -> None:
    line = f"train omni_emoji_tiny model.pretrained={RUN}/model name=more output_dir=runs train.max_steps=1"
    run(line + " optim.learning_rate=1e-12", capsys)
    first, second = (load_file(folder / name / "model/model.safetensors") for name in (RUN, "runs/more"))
    assert first.keys() == second.keys()
    for name in first.keys() - {"model.lengths"}:
        assert torch.allclose(first[name], second[name], atol=1e-5), name


# -- exactness


def config(*changes: str):
    """All sources of randomness and all kinds of state are enabled."""
    return apply_overrides(
        recipes.load("omni_emoji_tiny"),
        ["name=run", "model.orders={image: random}", "model.density=mixture", "model.num_components=2",
         "model.drop_path_prob=0.2", "objective.distance=likelihood", "data.num_workers=2", "data.pack_window=24",
         "model.max_length=128", "train.max_steps=8", "train.save_steps=3", "train.ema_decay=0.9", *changes],
    )  # fmt: skip


@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical(tmp_path: Path) -> None:
    words = []
    for name, kills in (("whole", []), ("parts", ["2:window", "6:write", "7:update"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(to_yaml(config()))
        words += [*(["--"] if words else []), str(tmp_path / name), *kills]
    done = run_script(RUNNER, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    for file in ("model/model.safetensors", "ema/model.safetensors"):
        whole, parts = (load_file(tmp_path / name / "run" / file) for name in ("whole", "parts"))
        assert whole.keys() == parts.keys() and {"model.lengths", "log_scale"} <= whole.keys()
        for name in whole:
            assert torch.equal(whole[name], parts[name]), f"{file} {name}"
    settings = [json.loads((tmp_path / name / "run/model/config.json").read_text()) for name in ("whole", "parts")]
    assert settings[0] == settings[1] and settings[0]["tell_next"]


def test_batches_do_not_depend_on_workers() -> None:
    def batches(num_workers: int) -> list[dict]:
        made = config(f"data.num_workers={num_workers}")
        backbone = made.model.build()
        loader = made.data.train_loader(Loading(2, seed=3), **made.model.loader_arguments(backbone))
        stream = iter(loader)
        return [next(stream) for _ in range(4)]

    one, two = batches(0), batches(2)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys() and {"next_coordinates", "values.image"} <= a.keys()
        for name in a.keys() - {"position"}:
            assert torch.equal(a[name], b[name]), name
    assert one[0]["kinds"].unique().tolist() == [0, 1, 2, 3] or one[0]["kinds"].unique().tolist() == [1, 2, 3]
