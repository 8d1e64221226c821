"""Audio files: every format, rate and number of channels becomes one waveform, or gives a clear reason."""

import builtins
import io

import av
import numpy as np
import pytest
import torch
from PIL import Image
from sounds import film, packed, tone, wav

from nextembed.data.audio import AudioReader
from nextembed.data.transforms import Unreadable
from nextembed.errors import MissingExtra


def read(value, **limits):
    return AudioReader(**limits).read(value)


def pitch(samples, rate=16_000):
    """The strongest frequency in Hz."""
    return float(np.abs(np.fft.rfft(samples.numpy())).argmax()) * rate / len(samples)


def test_wav_is_decoded_exactly(tmp_path):
    wanted = tone(0.25)
    found = read(wav(wanted))
    assert found.dtype == torch.float32 and found.shape == (4000,)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4)
    file = tmp_path / "a.wav"
    file.write_bytes(wav(wanted))
    for same in (file, str(file), {"bytes": None, "path": str(file)}, {"bytes": wav(wanted), "path": "other.wav"}):
        assert torch.equal(read(same), found)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(rate):
    found = read(wav(tone(0.5, rate), rate=rate))
    assert abs(len(found) - 8000) <= 1
    assert abs(pitch(found) - 440) < 4
    assert abs(found[1000:7000].abs().max() - 0.5) < 0.02


def test_channels_are_averaged():
    left, right = tone(0.1), tone(0.1, hertz=1000, level=0.25)
    np.testing.assert_allclose(read(wav(left, right)).numpy(), (left + right) / 2, atol=1e-4)
    assert read(wav(left, -left)).abs().max() < 1e-4
    found = read(wav(*([tone(0.1, 48_000)] * 6), rate=48_000))
    assert abs(found[200:1400].abs().max() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("codec", "container", "sample_format", "rate"),
    [("flac", "flac", "s16", 16_000), ("libopus", "ogg", "flt", 48_000), ("libmp3lame", "mp3", "s16p", 16_000)],
)
def test_formats(codec, container, sample_format, rate):
    wanted = tone(0.5, rate)
    found = read(packed(wanted, codec, container, sample_format, rate))
    assert found.abs().max() <= 1 and abs(pitch(found) - 440) < 6
    if codec == "flac":
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4)
    else:
        assert 7900 <= len(found) <= 10_000


def test_samples_out_of_range_are_clipped():
    loud = np.sign(tone(0.3, hertz=200))  # a lossy codec overshoots at each edge
    found = read(packed(loud, "libmp3lame", "mp3", "s16p"))
    assert found.abs().max() == 1


def test_a_video_without_sound():
    with pytest.raises(Unreadable, match="without sound"):
        read(film(4))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"no sound at all", "not a sound that can be decoded"),
        (b"", "empty file"),
        (None, "no sound"),
        ({"bytes": None, "path": None}, "no sound"),
        (3, "not a sound: int"),
        ("/nowhere/a.wav", "no such file"),
        (wav(np.zeros(0)), "without samples"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", "not a sound"),
    ],
)
def test_broken_audio_is_reported(value, reason):
    with pytest.raises(Unreadable, match=reason) as error:
        read(value)
    assert "\n" not in str(error.value)


def test_truncated_files_are_reported_except_for_a_few_bytes():
    data = wav(tone(1.0))
    assert 15_900 < len(read(data[:-100])) < 16_000
    with pytest.raises(Unreadable, match=r"cut off after 0\.5 s of sound"):
        read(data[: len(data) // 2])
    with pytest.raises(Unreadable):
        read(data[:20])


def test_limits():
    data = wav(tone(2.0))
    assert len(read(data, max_seconds=2.0)) == 32_000
    with pytest.raises(Unreadable, match=r"longer than max_seconds=1\.5"):
        read(data, max_seconds=1.5)
    with pytest.raises(Unreadable, match="more than max_bytes=1000"):
        read(data, max_bytes=1000)
    # A low rate makes few samples last for hours; such files are rejected before resampling fills memory.
    with pytest.raises(Unreadable, match="max_seconds"):
        read(wav(tone(2.0), rate=1), max_seconds=600)


def test_without_pyav(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "av":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"pip install 'nextembed\[video\]'"):
        AudioReader()


def container(name: str, codec: str, rate: int, seconds: float = 1.0) -> bytes:
    """A 440 Hz tone written by PyAV."""
    tone = (0.4 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype(np.float32)
    file = io.BytesIO()
    with av.open(file, "w", format=name) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        context = stream.codec_context
        change = av.AudioResampler(context.format.name, "mono", rate, frame_size=context.frame_size or None)
        for part in (*change.resample(frame), *change.resample(None)):
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue()


KINDS = [("ipod", "aac", 44100), ("opus", "libopus", 48000), ("webm", "libopus", 48000), ("mp3", "libmp3lame", 44100),
         ("flac", "flac", 44100), ("aiff", "pcm_s16be", 22050), ("caf", "pcm_s16le", 44100), ("au", "pcm_s16be", 8000),
         ("wav", "pcm_s24le", 44100), ("wav", "pcm_u8", 11025), ("wav", "pcm_mulaw", 8000)]  # fmt: skip


@pytest.mark.parametrize(("name", "codec", "rate"), KINDS)
def test_any_container_decodes_to_the_tone(name: str, codec: str, rate: int) -> None:
    samples = AudioReader().read(container(name, codec, rate))
    assert abs(len(samples) - 16000) < 1200
    middle = samples[4000:12000]
    spectrum = torch.fft.rfft(middle * torch.hann_window(len(middle))).abs()
    assert abs(int(spectrum.argmax()) * 2 - 440) <= 4 and 0.3 < float(middle.abs().max()) < 0.6


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        *(kind for kind in KINDS if kind[0] in ("webm", "aiff", "au", "wav", "caf", "mp3")),
        ("w64", "pcm_s16le", 44100),
        ("mp3", "libmp3lame", 16000),
        ("ogg", "libopus", 48000),
    ],
)
def test_a_truncated_file_is_unreadable(name: str, codec: str, rate: int) -> None:
    data = container(name, codec, rate, 2.0)
    with pytest.raises(Unreadable, match=r"cut off after [01]\.\d s"):
        AudioReader().read(data[: len(data) * 6 // 10])
    assert len(AudioReader().read(data)) > 30000


def test_audio_of_more_than_4_gigabytes() -> None:
    """RF64 files store sizes in a separate chunk."""
    plain = container("wav", "pcm_s16le", 16000)
    body = plain[plain.index(b"fmt ") :]
    at = body.index(b"data")
    data = body[at + 8 :]
    sizes = (36 + len(body) + 4).to_bytes(8, "little") + len(data).to_bytes(8, "little") + bytes(12)
    whole = b"RF64\xff\xff\xff\xffWAVEds64" + len(sizes).to_bytes(4, "little") + sizes
    whole += body[: at + 4] + b"\xff\xff\xff\xff" + data
    assert torch.equal(AudioReader().read(whole), AudioReader().read(plain))
    with pytest.raises(Unreadable, match=r"cut off after 0\.6 s"):
        AudioReader().read(whole[: len(whole) * 6 // 10])


@pytest.mark.parametrize(
    ("name", "codec", "rate"), [("ipod", "aac", 44100), ("mp3", "libmp3lame", 44100), ("opus", "libopus", 48000)]
)
def test_encoder_delay_is_removed(name: str, codec: str, rate: int) -> None:
    """The sine wave starts at the first sample: its phase is 0; a delay of one sample would be 10 degrees."""
    samples = AudioReader().read(container(name, codec, rate, 2.0))[8000:24000].double()
    turn = 2 * np.pi * 440 * torch.arange(8000, 24000).double() / 16000
    phase = torch.atan2((samples * turn.cos()).mean(), (samples * turn.sin()).mean()).rad2deg()
    assert abs(float(phase)) < 2


def test_variable_bit_rates_have_the_right_length() -> None:
    """Noise takes more bits than silence, so a length estimated from bytes would be wrong."""
    loud = np.random.default_rng(0).uniform(-0.5, 0.5, 44100 * 2)
    sound = np.concatenate([loud, np.zeros(44100 * 4)])
    assert abs(len(read(packed(sound, "libmp3lame", "mp3", "s16p", 44100))) - 6 * 16000) < 20


def test_odd_wav_headers_are_read() -> None:
    wav = container("wav", "pcm_s16le", 44100)
    at = wav.index(b"data")
    live = wav[:4] + b"\xff" * 4 + wav[8 : at + 4] + b"\xff" * 4 + wav[at + 8 :]  # as written during recording
    more = (
        wav[:12] + b"LIST" + (10).to_bytes(4, "little") + b"INFOabcdef" + wav[12:]
    )  # an extra chunk not included in the size
    assert len(AudioReader().read(live)) == len(AudioReader().read(more)) == 16000
    with pytest.raises(Unreadable, match="without samples"):
        AudioReader().read(wav[:at] + b"data" + bytes(4))


def test_a_cover_image_in_an_mp3_is_ignored() -> None:
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "JPEG")
    body = b"\0image/jpeg\0\x03\0" + picture.getvalue()
    frame = b"APIC" + len(body).to_bytes(4, "big") + b"\0\0" + body
    size = bytes((len(frame) >> shift) & 127 for shift in (21, 14, 7, 0))
    plain = container("mp3", "libmp3lame", 44100)
    assert torch.equal(AudioReader().read(b"ID3\x03\0\0" + size + frame + plain), AudioReader().read(plain))
