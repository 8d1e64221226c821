"""Invalid data settings are rejected with a one-line error before any data is read."""

import pytest

import nextembed.toys.kinds  # noqa: F401
from nextembed.core.config import DATA, apply_overrides
from nextembed.errors import ConfigError

PARTS = {
    "images": {"source": "emoji"},
    "emoji_scenes": {},
    "text": {"source": "glosses"},
    "records": {"source": "glosses", "pieces": {"text": "text"}},
    "video_text": {"source": "glosses"},
    "emoji_documents": {},
    "candle": {},
    "mixture": {"sources": [{"kind": "text", "source": "glosses"}]},
}
REFUSED = {
    "images": [
        "mean=.nan", "mean=-1", "mean=2", "std=.inf", "std=.nan", "std=0", "std=-1", "std=1e-320", "flip_rate=.nan",
        "crop_scale=[.nan, 1]", "crop_ratio=[1, .inf]", "rand_augment=[.nan, 0.5]", "rand_augment=[9, -1]",
        "rand_augment=[1e9, 0]", "erase_rate=2", "labels_seed=1e23", "num_workers=100000", "background=[256, 0, 0]",
        "background=[-1, 0, 0]", "max_skipped_rate=.nan", "shuffle_buffer=1000000000000",
    ],
    "emoji_scenes": [
        "mean=.nan", "std=.inf", "scale_range=[0, 1]", "scale_range=[1, .inf]", "emoji_scale=[.nan, 1]",
        "emoji_scale=[0.5, 0.2]", "emoji_scale=[0, 1]", "scene_size=1000000", "max_turn=.nan",
        "num_scenes=1000000000000000000",
    ],
    "text": ["pack_window=1000000000", "num_readers=1000000000", "num_workers=1000", "background=[0, 0, 999]"],
    "records": ["num_frames=1000000000", "max_seconds=.inf", "max_seconds=0", "layouts={text: .inf}",
                "layouts={text: 1e308}"],
    "video_text": ["num_frames=1000000000", "frames_per_subtitle=1000000000", "max_seconds=.nan"],
    "emoji_documents": ["max_shift=.nan", "max_scale=-1", "kinds={caption: .inf}", "kinds={caption: 1e308}"],
    "candle": ["real_rate=.nan", "noise=.inf", "noise=-1", "num_samples=1000000000000", "repeats=1000000000000000000",
               "real_rates={candle: .nan}", "layouts={picture: -1}", "touch_samples=[0]"],
    "mixture": ["weights=[.inf]", "weights=[0]", "weights=[1e308]", "weights=[.nan]"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "setting"), [(kind, setting) for kind in REFUSED for setting in REFUSED[kind]])
def test_an_invalid_setting_is_rejected(kind, setting):
    part = DATA.parse({"kind": kind, **PARTS[kind]})
    with pytest.raises(ConfigError) as caught:
        apply_overrides(part, [setting])
    assert setting.split("=")[0] in str(caught.value) and "\n" not in str(caught.value)
