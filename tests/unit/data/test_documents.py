"""Every document layout, from files to segments."""

import io
import json
import tarfile

import av
import datasets
import numpy as np
import pytest
import torch
from encoding import encode as encode_document
from encoding import unpacked, written
from PIL import Image

import nextembed.toys.kinds  # noqa: F401
from nextembed.core.config import DATA
from nextembed.core.types import Loading
from nextembed.data.messages import render
from nextembed.data.transforms import Unreadable
from nextembed.data.video import Span, VideoReader, frame_indices, parse_subtitles, within
from nextembed.errors import ConfigError, DataError, MissingExtra
from nextembed.inference.conversation import Conversation, Style
from nextembed.toys.emoji_documents import EmojiDocuments


def png(colour: int, size: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (colour, colour, colour)).save(file, "PNG")
    return file.getvalue()


def movie(num_frames: int, fps: int = 10, size: int = 32) -> bytes:
    """An MP4 whose frames get brighter."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(num_frames):
            grey = np.full((size, size, 3), 255 * i // max(1, num_frames - 1), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file.getvalue()


def lines(folder, rows, name="train.jsonl"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def shape(document):
    """Short forms of segments: text, images by colour, videos by number of frames; "!" marks text without loss."""
    short = []
    for segment in document["segments"]:
        value = segment["value"]
        if segment["kind"] == "text":
            short.append(value + "!" * (not segment["loss"]))
        elif segment["kind"] == "image":
            assert value.dtype == torch.uint8
            short.append(int(value[0, 0, 0]))
        else:
            short.append([len(value)])
    return short


def documents(split="train", **settings):
    part = DATA.parse(settings)
    return [shape(document) for document in part.documents(split)]


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_of_a_table(tmp_path, streaming):
    table = datasets.Dataset.from_dict(
        {"picture": [{"bytes": png(i), "path": None} for i in range(40)], "words": [f"w{i}" for i in range(40)]},
        features=datasets.Features({"picture": datasets.Image(), "words": datasets.Value("string")}),
    )
    table.to_parquet(tmp_path / "train.parquet")
    settings = {"kind": "pairs", "source": str(tmp_path), "text_column": "words", "streaming": streaming}
    first = documents(**settings, order="image_first", prompts=["a {text}."])
    assert first == [[i, f"a w{i}."] for i in range(40)]
    mixed = documents(**settings)
    assert 8 < sum(isinstance(one[0], int) for one in mixed) < 32
    with pytest.raises(ConfigError, match=r"data.text_column: 'word' is not known. Did you mean 'words'"):
        documents(**settings | {"text_column": "word"})
    with pytest.raises(ConfigError, match=r"has no {text}"):
        documents(**settings, prompts=["a"])
    part = DATA.parse(settings | {"num_workers": 0})
    options = {"encode": encode_document, "max_length": 64}
    batch = next(iter(part.train_loader(Loading(2), **options)))
    for one in unpacked(batch):
        number = int(one.values["pixel_values"][0, 0])
        assert f"w{number}" in written(one.positions["input_ids"])


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_of_webdataset_archives(tmp_path, streaming):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(3):
            for name, data in ((f"{i}.png", png(i)), (f"{i}.json", json.dumps({"caption": f"c{i}"}).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    settings = {"kind": "pairs", "source": str(tmp_path / "a.tar"), "order": "text_first", "streaming": streaming}
    assert documents(**settings) == [[f"c{i}", i] for i in range(3)]


def test_pairs_of_a_folder_with_metadata_and_of_csv(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    (tmp_path / "list.csv").write_text("file,caption\n" + "".join(f"{i}.png,c{i}\n" for i in range(3)))
    wanted = [[i, f"c{i}"] for i in range(3)]
    assert documents(kind="pairs", source=str(tmp_path / "list.csv"), order="image_first") == wanted
    (tmp_path / "list.csv").unlink()
    rows = [{"file_name": f"{i}.png", "text": f"c{i}"} for i in range(3)]
    lines(tmp_path, rows, "metadata.jsonl")
    assert documents(kind="pairs", source=str(tmp_path), order="image_first", image_column="image") == wanted


def test_our_interleaved_lines(tmp_path):
    (tmp_path / "a.png").write_bytes(png(7))
    (tmp_path / "v.mp4").write_bytes(movie(20))
    rows = [
        {"segments": [{"text": "see "}, {"image": "a.png"}, {"text": " end", "loss": False}, {"video": "v.mp4"}]},
        {"segments": [{"image": "../secret.png"}]},
        {"segments": [{"image": "/etc/passwd"}]},
        {"segments": [{"image": "https://example.org/a.png"}]},
        {"segments": [{"words": "?"}]},
        {"segments": []},
        {"segments": [{"image": "gone.png"}, {"text": "left"}]},
    ]
    source = lines(tmp_path, rows)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("{broken\n")
    part = DATA.parse({"kind": "interleaved", "source": source, "max_skipped_rate": 1.0})
    found = part.documents("train")
    assert [shape(one) for one in found] == [["see ", 7, " end!", [8]]]
    reasons = list(found.skipped.reasons.values())
    assert ["outside" in reasons[0], "outside" in reasons[1], "are not downloaded" in reasons[2]] == [True] * 3
    assert reasons[3].startswith("a segment has one of") and reasons[4] == "the document is empty"
    assert reasons[5] == "no such file" and reasons[6].startswith("not JSON")
    with pytest.raises(DataError, match="unreadable"):
        documents(kind="interleaved", source=source)
    with pytest.raises(DataError, match=r"document 1 is unreadable: .*outside"):
        found[1]
    dropped = documents(kind="interleaved", source=source, missing_images="drop", max_skipped_rate=1.0)
    assert ["left"] in dropped


def test_obelics_rows(tmp_path):
    image = datasets.List(datasets.Image())
    table = datasets.Dataset.from_dict(
        {"images": [[None, {"bytes": png(3), "path": None}, None], [None]], "texts": [["a", None, "b"], ["c"]]},
        features=datasets.Features({"images": image, "texts": datasets.List(datasets.Value("string"))}),
    )
    table.to_parquet(tmp_path / "train.parquet")
    for streaming in (False, True):
        assert documents(kind="interleaved", source=str(tmp_path), streaming=streaming) == [["a", 3, "b"], ["c"]]


def test_mmc4_rows(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    info = [{"image_name": "0.png", "matched_text_index": 1}, {"image_name": "1.png", "matched_text_index": 2}]
    source = lines(tmp_path, [{"text_list": ["a", "b", "c"], "image_info": info}])
    assert documents(kind="interleaved", source=source, place="before") == [["a", 0, "b", 1, "c"]]
    assert documents(kind="interleaved", source=source, place="after") == [["a b", 0, "c", 1]]
    assert documents(kind="interleaved", source=source, place="before", max_images=1) == [["a", 0, "b"]]
    lines(tmp_path, [{"text_list": ["a"], "image_info": info}])
    with pytest.raises(DataError, match="matched_text_index 1 of 1 texts"):
        documents(kind="interleaved", source=source)


def test_messages(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    talk = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "and <image>?"},
        {"role": "assistant", "content": "a dog"},
    ]
    rows = [{"messages": talk, "images": ["0.png", "1.png"]}]
    source = lines(tmp_path, rows)
    first = ["[USER]:!", 0, "what? [ASSISTANT]:!", " a cat", "</s>", " [USER]: and!", 1, "? [ASSISTANT]:!", " a dog"]
    assert documents(kind="messages", source=source) == [first]
    with_system = documents(kind="messages", source=source, system="Look.", turn_end="")[0]
    assert with_system[0] == "Look. [USER]:!" and "</s>" not in with_system
    llava = {"image": "1.png", "conversations": [{"from": "human", "value": "<image>\nname it"},
                                                 {"from": "gpt", "value": "dog"}]}  # fmt: skip
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.json").write_text(json.dumps([llava]))
    assert documents(kind="messages", source=source) == [["[USER]:!", 1, "name it [ASSISTANT]:!", " dog"]]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "x"}], "images": []},
         "1 places for 0 images"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "without an answer"),
        ({"messages": [{"role": "narrator", "content": "hi"}]}, "role 'narrator'"),
        ({"messages": "hi"}, "is not a list"),
        ({"text": "hi"}, "has no 'messages'"),
    ],
)  # fmt: skip
def test_invalid_conversations(tmp_path, row, words):
    with pytest.raises(DataError, match=words):
        documents(kind="messages", source=lines(tmp_path, [row]))


def test_render_uses_the_instruction_format_of_emu():
    said = [{"kind": "text", "value": value, "loss": True} for value in ("system.", "question?", "answer")]
    turns = [("system", said[:1]), ("user", said[1:2]), ("assistant", said[2:])]
    segments = render(turns, "[USER]", "[ASSISTANT]")
    assert [(s["value"], s["loss"]) for s in segments] == [
        ("system. [USER]: question? [ASSISTANT]:", False),
        (" answer", True),
    ]


@pytest.mark.parametrize(
    ("num", "wanted"), [(100, [6, 18, 31, 43, 56, 68, 80, 93]), (37, [2, 6, 11, 16, 20, 24, 29, 34])]
)
def test_frame_indices_equal_the_release(num, wanted):
    assert frame_indices(num, 8) == wanted
    assert all(0 <= i < n for n in range(1, 40) for i in frame_indices(n, 8))


@pytest.mark.parametrize("num", [1, 3, 8, 37])
def test_videos_give_the_chosen_frames(num):
    frames = VideoReader(10**7, 10**6, 60).read(movie(num), 8)
    assert frames.shape == (8, 3, 32, 32) and frames.dtype == torch.uint8
    wanted = torch.tensor([255.0 * i / max(1, num - 1) for i in frame_indices(num, 8)])
    assert (frames.float().mean((1, 2, 3)) - wanted).abs().max() < 6


def test_broken_videos(tmp_path):
    reader = VideoReader(10**6, 32 * 32, 3.0)
    good = movie(20)
    (tmp_path / "a.mp4").write_bytes(good)
    cases = {
        b"": "empty file",
        b"no video": "not a video",
        good[: len(good) // 2]: "video",
        movie(40): "seconds, more than max_seconds=3",
        movie(2, size=64): "more than max_pixels",
        b"ffconcat version 1.0\nfile 'a.mp4'\n": "not a video",
        b"x" * (10**6 + 1): "more than max_bytes",
    }
    for data, words in cases.items():
        with pytest.raises(Unreadable, match=words):
            reader.read(data, 8)


def test_video_and_text_and_subtitles(tmp_path):
    (tmp_path / "v.mp4").write_bytes(movie(30))
    subtitles = [{"start": 0, "end": 1, "text": "dark"}, {"start": 2, "end": 3, "text": "light"}]
    source = lines(tmp_path, [{"video": "v.mp4", "text": "it grows", "subtitles": subtitles}])
    assert documents(kind="video_text", source=source, order="image_first") == [[[8], "it grows"]]
    settings = {"kind": "video_text", "source": source, "with_subtitles": True, "frames_per_subtitle": 2}
    assert documents(**settings) == [[[2], "dark", [2], "light"]]
    part = DATA.parse(settings)
    shades = [float(s["value"].float().mean()) for s in part.documents("train")[0]["segments"] if s["kind"] == "video"]
    assert shades[0] < 60 and shades[1] > 180
    (tmp_path / "v.mp4").write_bytes(b"broken")
    with pytest.raises(DataError, match="not a video"):
        documents(kind="video_text", source=source)


def test_subtitles_as_text():
    wanted = [Span(1.0, 2.5, "Hello x there"), Span(3.0, 4.0, "yes")]
    vtt = "WEBVTT\n\n1\n00:00:01.000 --> 00:00:02.500\nHello <b>x</b>\nthere\n\n00:03.000 --> 00:04.000\nyes\n"
    assert parse_subtitles(vtt) == wanted
    assert parse_subtitles("1\r\n00:00:03,000 --> 00:00:04,000\r\nyes\r\n") == wanted[1:]
    for wrong in ("", "a --> b\nx", [{"start": 1}], []):
        with pytest.raises(Unreadable):
            parse_subtitles(wrong)
    assert within([0.0, 1.0, 2.0], Span(5, 6, ""), 2) == [2, 2]


def test_without_pyav_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtra, match=r"nextembed\[video\]"):
        documents(kind="video_text", source="x.jsonl")


def test_text_files(tmp_path):
    (tmp_path / "train.txt").write_text("one\n\ntwo\n")
    assert documents(kind="text", source=str(tmp_path)) == [["one"], ["two"]]
    assert documents(kind="text", source=str(tmp_path), sample_by="document") == [["one\n\ntwo"]]


def test_missing_documents(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean"):
        lines(tmp_path, [{"text": "a"}])
        documents(kind="text", source=str(tmp_path / "train.jsonk"))
    with pytest.raises(ConfigError, match="split 'validation' is not known"):
        documents("validation", kind="text", source=str(tmp_path))
    (tmp_path / "x.json").write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="should be a list"):
        documents(kind="text", source=str(tmp_path / "x.json"))


def test_emoji_documents():
    part = DATA.parse(
        {"kind": "emoji_documents", "kinds": {"caption": 1, "paint": 0, "tags": 0, "question": 0, "context": 0}}
    )
    train, test = part.rows("train"), part.rows("test")
    assert not {row["hexcode"] for row in map(train.__getitem__, range(50))} & {
        test[i]["hexcode"] for i in range(len(test))
    }
    document = part.documents("test")[0]
    picture, name = document["segments"]
    assert picture["value"].shape == (3, 32, 32) and name["value"] == f"{test[0]['name']}."
    asked = part.question(test[0])["segments"]
    assert [s["loss"] for s in asked] == [False, False, True] and asked[2]["value"].strip(" .") == test[0]["group"]
    heldout = part.model_copy(update={"forms": "heldout"}).question(test[0])["segments"][1]["value"]
    assert heldout != asked[1]["value"]
    both = part.context([test[0], test[1]])["segments"]
    assert [s["kind"] for s in both] == ["image", "text", "image", "text"]
    moving = part.model_copy(update={"max_shift": 0.2, "max_scale": 0.2})
    plain = part.picture(test[0], 5)["value"]
    assert torch.equal(plain, part.picture(test[0], None)["value"])
    a, b = moving.picture(test[0], 5)["value"], moving.picture(test[0], 6)["value"]
    assert a.shape == plain.shape and not torch.equal(a, plain) and not torch.equal(a, b)
    assert torch.equal(a, moving.picture(test[0], 5)["value"])
    assert torch.equal(moving.paint(test[0], 5)["segments"][1]["value"], plain)  # the target image is not augmented
    for loss in (True, False):
        painted = part.model_copy(update={"prompt_loss": loss}).paint(test[0])["segments"]
        assert [s["loss"] for s in painted] == [loss, True]


def test_emoji_in_other_styles_and_in_conversations():
    part = DATA.parse({"kind": "emoji_documents", "restyle_rate": 1.0})
    rows = part.rows("train")
    plain = part.picture(rows[0], None)["value"]
    drawn = [part.picture(rows[0], seed)["value"] for seed in range(8)]
    assert all(picture.shape == plain.shape and picture.dtype == torch.uint8 for picture in drawn)
    assert sum(not torch.equal(picture, plain) for picture in drawn) >= 7
    assert torch.equal(drawn[3], part.picture(rows[0], 3)["value"])
    assert torch.equal(part.paint(rows[0], 3)["segments"][1]["value"], plain)  # the target image is not augmented
    talks = [part.chat(rows[0], seed)["segments"] for seed in range(20)]
    for talk in talks:
        assert talk[0]["value"] == "Question:" and talk[1]["kind"] == "image" and not talk[1]["loss"]
        answers = [segment["value"] for segment in talk if segment["loss"] and segment["value"].strip()]
        assert answers and all(rows[0]["name"] in answer or rows[0]["group"] in answer for answer in answers)
        assert all(answer.endswith(".") for answer in answers)
    assert len({len(talk) for talk in talks}) > 1 and len({talk[2]["value"] for talk in talks}) > 3


def test_emoji_conversations_have_the_format_of_chat():
    part = DATA.parse({"kind": "emoji_documents"})
    rows = part.rows("train")
    talk = next(t for t in (part.chat(rows[0], seed)["segments"] for seed in range(50)) if len(t) > 5)
    asked = Conversation()
    asked.ask(talk[1]["value"], talk[2]["value"].removesuffix(" Answer:"))
    asked.answer(talk[3]["value"].strip())
    asked.ask(second_question(talk))
    style = Style("Question", "Answer", "\n", False)
    written = asked.to_document(style)["segments"]
    assert "".join(s["value"] for s in written if s["kind"] == "text") == "".join(
        s["value"] for s in talk[:-1] if s["kind"] == "text"
    )


def second_question(talk):
    """The text of the second question."""
    return talk[-2]["value"].removeprefix(" Question: ").removesuffix(" Answer:")


def test_invalid_emoji_documents(tmp_path):
    with pytest.raises(ConfigError, match="all weights are 0"):
        DATA.parse(
            {"kind": "emoji_documents", "kinds": dict.fromkeys(["caption", "paint", "tags", "question", "context"], 0)}
        )
    with pytest.raises(ConfigError, match="has no column 'vendor'"):
        documents(kind="emoji_documents", vendor="noto")


def test_emoji_images_are_shifted_only_in_training() -> None:
    still, moving = (EmojiDocuments(num_workers=0, max_shift=shift) for shift in (0.0, 0.3))

    def pictures(part: EmojiDocuments, split: str) -> list[torch.Tensor]:
        found = [d["segments"] for d in part.documents(split, 6)]
        return [s["value"] for segments in found for s in segments if s["kind"] == "image"]

    for split, same in (("validation", True), ("test", True), ("train", False)):
        pairs = zip(pictures(still, split), pictures(moving, split), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == same


@pytest.mark.parametrize(
    ("last", "after"), [("system", "be brief"), ("user", " [USER]: and now?")], ids=["system", "user"]
)
def test_text_after_the_last_answer_ends_it_and_is_not_a_target(last, after):
    words = {"system": "be brief", "user": "and now?"}[last]
    turns = [(role, [{"kind": "text", "value": value, "loss": True}])
             for role, value in (("user", "hi"), ("assistant", "yes"), (last, words))]  # fmt: skip
    said = [(segment["value"], segment["loss"]) for segment in render(turns, "[USER]", "[ASSISTANT]")]
    assert said == [("[USER]: hi [ASSISTANT]:", False), (" yes", True), ("</s>", True), (after, False)]
