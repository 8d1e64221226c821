"""Audio to patches and back: shapes, levels, and Griffin-Lim reconstruction."""

import math

import pytest
import torch
from transformers.audio_utils import hertz_to_mel

from nextembed.modalities.audio import CEILING, FLOOR, HOP, SAMPLE_RATE, Audio
from nextembed.modalities.base import MODALITIES


def tone(*frequencies, seconds=0.5, level=0.3):
    time = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return sum(level * torch.sin(2 * math.pi * f * time) for f in frequencies)


def peaks(waveform, num):
    """The strongest frequencies in Hz, at least 100 Hz apart, ascending."""
    inner = waveform[len(waveform) // 8 : -len(waveform) // 8]
    spectrum = torch.fft.rfft(inner * torch.hann_window(len(inner))).abs()
    hertz = torch.fft.rfftfreq(len(inner), 1 / SAMPLE_RATE)
    found = []
    for _ in range(num):
        found.append(hertz[spectrum.argmax()].item())
        spectrum[(hertz - found[-1]).abs() < 100] = 0
    return sorted(found)


@pytest.mark.parametrize("num_samples", [1, 159, 160, 161, 640, 641, 16000])
@pytest.mark.parametrize("settings", [{}, {"num_mels": 20, "num_frames": 3}], ids=str)
def test_shapes(num_samples, settings):
    audio = Audio(16, **settings)
    values, coordinates, shape = audio.patches(torch.randn(num_samples).clamp(-1, 1))
    frames = math.ceil(num_samples / HOP)
    num = math.ceil(frames / audio.num_frames)
    assert shape == (num, frames) and values.shape == (num, audio.value_size) and values.dtype == torch.float32
    assert audio.value_size == settings.get("num_mels", 64) * settings.get("num_frames", 4)
    assert torch.equal(coordinates, audio.places(shape))
    assert coordinates[:, 0].tolist() == list(range(num)) and not coordinates[:, 1:].any()
    assert audio.embed(values).shape == (num, 16)
    assert audio.mel_picture(values, shape).shape == (audio.num_mels, frames)
    waveform = audio.signal(values, shape)
    assert waveform.shape == (frames * HOP,) and waveform.dtype == torch.float32 and waveform.abs().max() <= 1


@pytest.mark.parametrize("frequency", [150, 440, 1000, 2500, 6000])
def test_tone_lands_in_its_band(frequency):
    audio = Audio(8)
    values, _, shape = audio.patches(tone(frequency))
    band = audio.mel_picture(values, shape)[:, 4:-4].mean(1).argmax().item()
    top = hertz_to_mel(SAMPLE_RATE / 2, mel_scale="slaney")
    assert abs(band - (hertz_to_mel(frequency, mel_scale="slaney") / top * 65 - 1)) < 1


def test_frames_are_in_time_order():
    """A tone that starts half-way: silent frames come first, also within the latent that contains the onset."""
    audio = Audio(8)
    sound = torch.cat((torch.zeros(42 * HOP), tone(500)))
    values, _, shape = audio.patches(sound)
    level = values.view(-1, 4, 64).amax(2).flatten()
    assert (level[:40] < -1.5).all() and (level[44:80] > 1).all()
    assert torch.equal(audio.mel_picture(values, shape).amax(0).argmax() >= 42, torch.tensor(True))


def test_ten_times_the_amplitude_is_twenty_decibels():
    audio = Audio(8)
    levels = [audio.mel_picture(*audio.patches(tone(1000, level=x))[::2])[:, 10].max() for x in (0.05, 0.5)]
    assert (levels[1] - levels[0]).item() == pytest.approx(20, abs=0.01)


def test_silence_and_noise_are_finite():
    audio = Audio(8)
    values, _, shape = audio.patches(torch.zeros(1000))
    assert values.unique().numel() == 1 and -2 < values[0, 0] < -1
    assert audio.mel_picture(values, shape).eq(FLOOR).all() and not audio.signal(values, shape).any()
    loud, _, shape = audio.patches(torch.sign(torch.randn(16000, generator=torch.Generator().manual_seed(0))))
    assert loud.isfinite().all() and audio.mel_picture(loud, shape).max() < CEILING
    wild = audio.signal(torch.full((2, 256), 1e6), (2,))  # a model may predict anything
    assert wild.isfinite().all() and wild.abs().max() <= 1


def test_values_are_of_about_unit_variance():
    """For noise with a speech-like spectrum and syllable-like modulation."""
    noise = torch.randn(32000, generator=torch.Generator().manual_seed(0))
    spectrum = torch.fft.rfft(noise) / torch.fft.rfftfreq(32000, 1 / SAMPLE_RATE).clamp(min=100)
    noise = torch.fft.irfft(spectrum)
    noise = noise / noise.abs().max() * 10 ** (-1 - (torch.arange(32000) * (2 * math.pi / 4000)).sin())
    values = Audio(8).patches(noise).values
    assert values.mean().abs() < 0.7 and 0.7 < values.std() < 1.3


def test_two_tones_are_reconstructed():
    audio = Audio(8)
    sound = tone(440, 2500)
    values, _, shape = audio.patches(sound)
    back = audio.signal(values, shape)
    low, high = peaks(back, 2)
    assert abs(low - 440) < 10 and abs(high - 2500) < 30
    assert back.square().mean().sqrt() == pytest.approx(sound.square().mean().sqrt().item(), rel=0.05)
    again = audio.mel_picture(audio.patches(back).values, shape)
    first = audio.mel_picture(values, shape)
    loud = first > first.max() - 40
    assert (again - first)[loud].abs().mean() < 2  # dB
    assert torch.equal(back, audio.signal(values, shape))


def test_padding_of_the_last_latent_is_removed():
    audio = Audio(8)
    values, _, shape = audio.patches(tone(440)[: 5 * HOP])
    assert shape == (2, 5) and values.shape == (2, 256)
    assert torch.equal(audio.mel_picture(values, shape), audio.mel_picture(values, (2,))[:, :5])
    assert len(audio.signal(values, (2,))) == 8 * HOP  # as for generated audio: the full length


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(16001), r"1.0 s is longer than max_seconds 1$"),
        (torch.zeros(0), "without samples"),
        (torch.zeros(2, 100), r"float tensor \[N\].*float32 \[2, 100\]"),
        (torch.zeros(100, dtype=torch.int16), r"int16 \[100\]"),
        ("boom", "this is str"),
        (torch.tensor([0.0, math.nan]), "not finite"),
    ],
)
def test_invalid_audio(value, words):
    with pytest.raises(ValueError, match=words):
        Audio(8, max_seconds=1).patches(value)


@pytest.mark.parametrize(
    "settings", [{"num_mels": 0}, {"num_mels": 128}, {"num_frames": 0}, {"max_seconds": 0}], ids=str
)
def test_invalid_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Audio(8, **settings)


@pytest.mark.parametrize("num_mels", [40, 64, 80])
def test_every_band_has_energy(num_mels):
    noise = torch.randn(8000, generator=torch.Generator().manual_seed(0)) * 0.1
    audio = Audio(8, num_mels=num_mels)
    assert (audio.mel_picture(*audio.patches(noise)[::2]) > FLOOR).all()


def test_makes_patches_without_weights():
    sound = tone(440)
    meta = MODALITIES.without_weights({"voice": {"kind": "audio", "num_mels": 32}})["voice"]
    assert meta.projection.weight.is_meta
    values, _, shape = meta.patches(sound)
    full = Audio(8, num_mels=32)
    assert torch.equal(values, full.patches(sound).values)
    assert torch.equal(meta.signal(values, shape), full.signal(values, shape))
