import json
import re
from html.parser import HTMLParser

import pytest
import torch
import yaml
from PIL import Image

from nextembed.errors import ConfigError
from nextembed.models.nepa.configuration_nepa import ViTNepaConfig
from nextembed.models.nepa.modeling_nepa import ViTNepaForPreTraining
from nextembed.report.charts import points
from nextembed.report.pictures import Scene, build_scene, heat, neighbours, ranks, striking
from nextembed.runs import open_run

VOID = {"meta", "br", "img", "image", "link", "input", "hr", "use", "path", "rect", "circle"}
EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """The links and text of a page; checks that every element is closed."""

    def __init__(self, html):
        super().__init__()
        self.links, self.text, self.open, self.tags = [], "", [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def metrics(steps=30):
    lines = []
    for step in range(1, steps + 1):
        line = {"step": 10 * step, "samples_seen": 640 * step, "loss": -0.5 - step / 100, "learning_rate": 1e-4}
        line |= {"cos_next": 0.5 + step / 100, "cos_current": 0.4, "cos_gap": 0.1 + step / 100, "copy_win": 0.3}
        line |= {"cos_neighbours": 0.4, "latent_std": 0.9, "hidden_std": 0.8, "latent_rank": 12.0, "hidden_rank": 9.0}
        if step < 4:
            line["warnings"] = [f"copying: {EVIL} figures of step {step}"]
        lines.append(line)
    return lines


def probe_table():
    rows = [
        {"probe": probe, "weights": weights, "layer": layer, "pooling": "mean", "attention": "causal",
         "validation_accuracy": 0.5 + layer / 100, "accuracy": 0.4321 if layer == 2 else None, "default": layer == 2}
        for probe in ("linear", "knn") for weights in ("raw", "untrained") for layer in range(3)
    ]  # fmt: skip
    return {"rows": rows, "pixels": {"linear": 0.61, "knn": 0.62}, "pixels_validation": {"linear": 0.6, "knn": 0.6},
            "images": {"train": 200, "validation": 50, "test": 80}, "chance": 0.2, "num_layers": 2,
            "best": rows[2]}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ViTNepaConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        layerscale_value=0.5,
    )
    return ViTNepaForPreTraining(config).eval()


@pytest.fixture
def run(tmp_path, model):
    folder = tmp_path / "run"
    model.save_pretrained(folder / "model")
    config = {"name": f"tiny {EVIL}", "seed": 0, "train": {"max_steps": 300},
              "data": {"kind": "images", "source": "emoji", "num_workers": 0}}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "machine": f"box {EVIL}"}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics()) + '{"step": 31')
    (folder / "skipped.jsonl").write_text(json.dumps({"key": f"a{EVIL}.png", "reason": "truncated"}) + "\n")
    (folder / "probe.json").write_text(json.dumps(probe_table()))
    return folder


def test_report_is_complete_and_self_contained(run):
    path = open_run(run).report()
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert path == run / "report.html" and len(html) < 2_000_000
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not re.search(r"https?:|@import|url\((?!#)", html)
    assert "script" not in page.tags
    headings = ["Probes on frozen features", "Training", "Warnings", "Predictions", "Attention maps", "Data used"]
    headings += ["Surprise and features", "Latents as pixels", "Rollout"]
    for heading in headings:
        assert f"<h2>{heading}</h2>" in html
    names = {name for name in re.findall(r'href="#(image\d+)"', html)}
    assert names and all(f'<g id="{name}">' in html for name in names)


def test_report_shows_the_contents_of_the_run(run):
    text = Page(open_run(run).report().read_text(encoding="utf-8")).text
    assert "Learning" in text and "300 of 300" in text
    assert "43.2 %" in text and "61.0 %" in text and "80 test images" in text
    assert "3 of 30" in text and "figures of step 3" in text  # the warning: its count, and the last one
    assert "1 could not be read" in text and "truncated" in text
    assert "3.11" in text


def test_text_from_outside_is_escaped(run):
    html = open_run(run).report().read_text(encoding="utf-8")
    assert EVIL not in html
    assert html.count("&lt;script&gt;") >= 5  # name, title, warning, skipped file, settings, machine


def test_report_is_the_same_each_time(run):
    assert open_run(run).report().read_text() == open_run(run).report(run / "again.html").read_text()


def test_interrupted_run_with_curves_only(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(metrics()[0]) + "\n")
    page = Page(open_run(tmp_path).report().read_text(encoding="utf-8"))
    assert "There are no pictures" in page.text and "There is no probe table" in page.text
    assert "Loss" in page.text and "Nearest patches" not in page.text


def test_run_that_logged_nothing(run):
    (run / "metrics.jsonl").unlink()
    (run / "probe.json").write_text("{cut")
    text = Page(open_run(run).report().read_text(encoding="utf-8")).text
    assert "There are no curves" in text and "Nearest patches" in text
    assert f"The probes are left out: {run / 'probe.json'} is not JSON" in text


def test_missing_data(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["source"] = str(run / "gone")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    text = Page(open_run(run).report().read_text(encoding="utf-8")).text
    assert "There are no pictures: data.source: no such file or folder" in text and "Training" in text


def test_images_without_labels_or_validation_split(run, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.linear_gradient("L").rotate(40 * i).resize((20, 20)).save(tmp_path / "images" / f"{i}.png")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["source"] = str(tmp_path / "images")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "probe.json").unlink()
    text = Page(open_run(run).report().read_text(encoding="utf-8")).text
    assert "from the train data" in text and "patches of 2 other images" in text


def test_folders_that_are_not_runs(tmp_path):
    with pytest.raises(ConfigError, match="no such run or checkpoint"):
        open_run(tmp_path / "nowhere").report()
    with pytest.raises(ConfigError, match="is not a run folder"):
        open_run(tmp_path).report()


def test_scene_matches_the_model(model):
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model.set_attn_implementation("eager")
    scene = build_scene(model, pixels, 0.5, 0.5, causal=True)
    with torch.no_grad():
        out = model(pixels, is_causal=True, output_attentions=True)
    cosines = torch.cosine_similarity(out.last_hidden_state[:, :-1], out.input_embedding[:, 1:], dim=-1)
    torch.testing.assert_close((scene.predictions * scene.latents).sum(-1), cosines, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scene.attention[1][1], out.attentions[1][1])
    assert scene.attention[0][0][:, 3, 4:].abs().max() == 0  # causal
    torch.testing.assert_close(scene.images, (pixels + 1) / 2)
    assert torch.equal(scene.patch(2, 6), scene.images[2, :, 4:8, 8:12])
    assert torch.allclose(scene.contrast()[2, 6], scene.patch(2, 6).std())


def scene_of(latents, predictions, grid=(2, 2)):
    images = torch.rand(len(latents), 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return Scene(images, grid, latents, predictions, {})


def test_ranks_by_hand():
    axes = torch.eye(4)
    latents = axes[None]
    predictions = torch.stack([axes[0], axes[1], axes[1], 0.6 * axes[3] + 0.5 * axes[0] + 0.7 * axes[1]])[None]
    found = ranks(scene_of(latents, predictions))
    # Patch 1 is predicted correctly; for patch 2 the current patch 1 is copied; for patch 3 the target ranks second.
    assert found.num_predictions == 3 and found.chance == 0.25
    assert found.hit == pytest.approx(1 / 3) and found.copy == pytest.approx(1 / 3)
    assert found.median == 2


def test_ranks_leave_out_flat_patches():
    scene = scene_of(torch.eye(4)[None], torch.eye(4)[None])
    assert ranks(scene).num_predictions == 3
    scene.images[0, :, 2:, 2:] = 0.3
    assert ranks(scene).num_predictions == 2
    scene.images[:] = 0.3
    assert ranks(scene).num_predictions == 3  # if all patches are flat, all are counted


def test_neighbours_are_nearest_in_other_images_and_look_different():
    generator = torch.Generator().manual_seed(3)
    latents = torch.nn.functional.normalize(torch.randn(5, 4, 6, generator=generator), dim=-1)
    scene = scene_of(latents, latents)
    scene.images[3] = scene.images[2]  # an identical image
    found = neighbours(scene, 0, 1, num=6)
    scores = [float(latents[place] @ latents[0, 1]) for place in found]
    assert len(found) == 6 and scores == sorted(scores, reverse=True)
    assert all(image != 0 for image, _ in found)
    assert all((5 - image, patch) not in found for image, patch in found if image in (2, 3))
    others = latents[1:].flatten(0, 1) @ latents[0, 1]
    assert scores[0] == pytest.approx(others.max().item())


def test_striking_patches_have_contrast_and_are_never_the_first():
    scene = scene_of(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2))
    scene.images[:] = 0.5
    scene.images[0, :, :2, :2] = torch.tensor([[0.0, 1], [1, 0]])  # the first patch is never predicted
    scene.images[0, :, 2, 2] = 1
    assert striking(scene, 0, 1) == [3]


def test_heat_map_spans_the_colours():
    rgba = heat(torch.tensor([0.2, 0.4, 0.6, 0.8]), (2, 2))
    assert rgba.shape == (2, 2, 4) and (rgba[..., 3] == 255).all()
    assert rgba[0, 0, :3].tolist() == [68, 1, 84] and rgba[1, 1, :3].tolist() == [253, 231, 37]


def test_points_are_thinned_and_end_at_the_last():
    history = [{"step": i, "loss": float(i)} for i in range(1, 1500)] + [{"step": 1500, "loss": float("nan")}]
    xs, ys = points(history, "loss")
    assert len(xs) <= 400 and xs[-1] == ys[-1] == 1499
    assert points(history, "copy_win") == ([], [])


def test_a_run_gives_its_data_and_scores(run):
    opened = open_run(run)
    samples = opened.data("validation", num_samples=3)
    assert len(samples) == 3 and samples[0]["pixel_values"].shape == (3, 16, 16)
    assert opened.scores() is None and opened.metrics["step"] == 300
    area = {"name": "cat", "iou": 0.5, "share": 1.0}
    scores = {"split": "test", "num_images": 1, "num_pixels": 4, "miou": 0.5, "pixel_accuracy": 0.5, "window": 8,
              "stride": 4, "per_class": [area], "task": "segmentation"}  # fmt: skip
    (run / "scores.json").write_text(json.dumps(scores))
    assert opened.scores().miou == 0.5
    (run / "scores.json").write_text(json.dumps(scores | {"task": 5}))
    with pytest.raises(ConfigError, match=r"scores\.json: "):
        opened.scores()
