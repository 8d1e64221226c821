import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, pipeline

from nextembed.core.probe_table import ProbeTable, Row
from nextembed.errors import ConfigError
from nextembed.export import hub
from nextembed.export.facts import differences, flat, gather
from nextembed.export.hub import UploadError, push_to_hub, write_hub_folder


class LocalHub:
    """A stand-in for `HfApi` whose repositories are folders."""

    def __init__(self, folder):
        self.folder, self.private = folder, {}

    def create_repo(self, repo_id, private, exist_ok, repo_type):
        assert exist_ok and repo_type == "model"
        self.private[repo_id] = private

    def upload_folder(self, repo_id, folder_path, repo_type, commit_message):
        assert repo_id in self.private and repo_type == "model" and commit_message
        shutil.copytree(folder_path, self.folder / repo_id)


def row(probe, weights, accuracy, layer=1, pooling="last"):
    return Row(probe, weights, layer, pooling, "full", accuracy + 0.01, accuracy)


def make_run(folder, checkpoint, source="emoji", **files):
    """A run folder as after training."""
    shutil.copytree(checkpoint, folder / "model")
    shutil.copytree(checkpoint, folder / "ema")
    config = {
        "name": "mine",
        "data": {"kind": "images", "source": source, "validation": "validation", "test": "test", "num_workers": 0},
        "objective": {"kind": "next_embedding", "causal": True},
        "train": {"max_steps": 7},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text(json.dumps({"command": ["nextembed", "train", "nepa_demo"]}))
    line = {
        "step": 7,
        "samples_seen": 448,
        "epoch": 3.5,
        "loss": -0.75,
        "cos_next": 0.75,
        "cos_current": 0.4,
        "cos_gap": 0.35,
    }
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def run(checkpoint, tmp_path):
    folder = make_run(tmp_path / "run", checkpoint)
    rows = [row("linear", "raw", 0.55), row("linear", "ema", 0.625), row("knn", "ema", 0.5, layer=2, pooling="mean")]
    table = ProbeTable(
        rows=[*rows, row("linear", "untrained", 0.4), row("knn", "untrained", 0.3)],
        pixels={"linear": 0.7, "knn": 0.2},
        pixels_validation={"linear": 0.71, "knn": 0.21},
        images={"train": 1641, "validation": 94, "test": 157},
        chance=0.2,
        num_layers=2,
    )
    table.save(folder / "probe.json")
    return folder


@pytest.fixture
def classifier_run(classifier_checkpoint, tmp_path):
    scores = {"task": "classification", "split": "test", "num_images": 400, "top1": 0.9, "top5": 0.99, "loss": 0.3,
              "class_names": ["cat", "dog"], "confusion": [[180, 20], [20, 180]]}  # fmt: skip
    return make_run(tmp_path / "tuned", classifier_checkpoint, scores=scores)


def card(folder):
    """(front matter, text) of the README in a folder."""
    _, matter, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(matter), text


def test_upload_of_a_pretraining_run(run, tmp_path):
    api = LocalHub(tmp_path / "hub")
    assert (
        push_to_hub(run, "me/nepa-mine", private=True, license="mit", api=api) == "https://huggingface.co/me/nepa-mine"
    )
    folder = tmp_path / "hub" / "me" / "nepa-mine"
    assert api.private == {"me/nepa-mine": True}
    assert {p.name for p in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    model = AutoModel.from_pretrained(folder)
    inputs = AutoImageProcessor.from_pretrained(folder)(Image.new("RGB", (30, 20), "red"), return_tensors="pt")
    assert model(**inputs).last_hidden_state.shape == (1, 17, 16)
    matter, text = card(folder)
    assert (matter["license"], matter["pipeline_tag"]) == ("mit", "image-feature-extraction")
    (result,) = matter["model-index"]
    assert {m["name"]: m["value"] for r in result["results"] for m in r["metrics"]} == {
        "Linear probe, frozen features": 0.625,
        "Nearest neighbours, frozen features": 0.5,
    }
    for words in (
        "EMA weights",  # those of the best probe
        "causal unless a call says otherwise; causal in pretraining",
        "layer 1 of 2, last, full attention",
        "| train | `train` | 1,641 |",
        "| test | `test` | 157 |",
        "7 optimizer steps, 448 images seen, final training loss -0.7500",
        "62.5 %",
        "Measured on 157 test images",
        "the same network, untrained",
        "| Linear probe | raw pixels |  | 71.0 % | 70.0 % |",
        "**learning**",
        "is no better than raw pixels",
        "hidden_states[1][:, -1]",
        "arXiv:2512.16922",
    ):
        assert words in text, words


def test_the_code_on_the_card_runs(run, tmp_path, monkeypatch):
    folder = write_hub_folder(gather(run), tmp_path / "me" / "mine", "me/mine")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20), "blue").save("picture.jpg")
    code = card(folder)[1].split("```python\n")[1].split("```")[0]
    names = {}
    exec(compile(code, "card", "exec"), names)
    assert names["features"].shape == (1, 16)
    with torch.no_grad():
        hidden = names["model"](**names["inputs"], output_hidden_states=True, is_causal=False).hidden_states[1]
    assert torch.allclose(names["features"], hidden[:, -1])


def test_upload_of_a_classifier(classifier_run, tmp_path):
    push_to_hub(classifier_run, "me/pets", api=LocalHub(tmp_path / "hub"))
    folder = tmp_path / "hub" / "me" / "pets"
    classify = pipeline("image-classification", model=str(folder))
    assert {found["label"] for found in classify(Image.new("RGB", (20, 20)))} == {"cat", "dog", "eel"}
    matter, text = card(folder)
    assert (matter["license"], matter["pipeline_tag"]) == ("unknown", "image-classification")
    assert matter["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.9
    for words in (
        "Top-1 accuracy **90.0 %** on 400 test images (95 % range about ± 2.9 points)",
        "| `top5` | 0.99 |",
        "3 classes",
        "cat, dog, eel",
        "mean over patches, normed",
        "full unless a call says otherwise",
        "No licence was stated",
        'pipeline("image-classification", model="me/pets")',
    ):
        assert words in text, words


def test_a_lone_checkpoint(checkpoint, tmp_path):
    write_hub_folder(gather(checkpoint), tmp_path / "out", "me/lone")
    matter, text = card(tmp_path / "out")
    assert "model-index" not in matter and "datasets" not in matter
    assert text.count("Not known: this model comes without its run folder.") == 2
    assert "Nothing: there are no probes" in text


def test_data_set_on_the_hub_and_data_on_a_disk(checkpoint, tmp_path):
    from_hub = gather(make_run(tmp_path / "a", checkpoint, source="zalando-datasets/fashion_mnist"))
    assert from_hub.dataset == from_hub.data == "zalando-datasets/fashion_mnist"
    sizes = {role: size for role, _, size in from_hub.splits}
    assert sizes == {"train": 128, "validation": None, "test": None}  # as recorded in the run; nothing is downloaded
    private = tmp_path / "home" / "someone" / "pictures"
    private.mkdir(parents=True)
    from_disk = gather(make_run(tmp_path / "b", checkpoint, source=str(private)))
    assert (from_disk.dataset, from_disk.data) == (None, "pictures")
    write_hub_folder(from_disk, tmp_path / "out", "me/x")
    assert "someone" not in "".join(p.read_text() for p in (tmp_path / "out").glob("*.[jm][sd]*"))


def test_only_the_model_of_a_training_checkpoint(checkpoint, tmp_path):
    source = tmp_path / "step-000007"
    shutil.copytree(checkpoint, source)
    (source / "state").mkdir()
    for name in ("state/shard-00001-model-00001-of-00001.safetensors", "progress.json", "checksums.json"):
        shutil.copyfile(checkpoint / "model.safetensors", source / name)
    facts = gather(source)
    assert facts.num_parameters > 0
    names = {p.name for p in write_hub_folder(facts, tmp_path / "out", "me/x").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


def test_differences_of_settings():
    recipe = flat({"name": "a", "train": {"max_steps": 600, "lr": (1, 2)}, "data": {"source": "x", "where": {}}})
    run = flat({"name": "b", "train": {"max_steps": 250, "lr": [1, 2]}, "data": {"source": "/home/me", "where": {}}})
    assert differences(recipe, run) == [("train.max_steps", 600, 250)]


# -- errors


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OfflineModeIsEnabled("offline mode is enabled"), "cannot be reached .*--dry-run"),
        (ConnectionError("no route"), "cannot be reached"),
        (type("ConnectError", (type("TransportError", (Exception,), {}),), {})("no name"), "cannot be reached"),
        (RuntimeError("odd"), "the upload failed: RuntimeError: odd"),
    ],
)
def test_an_upload_that_fails(checkpoint, error, words):
    def refuse(*args, **kwargs):
        raise error

    api = SimpleNamespace(create_repo=refuse, upload_folder=refuse)
    with pytest.raises(UploadError, match=words) as caught:
        push_to_hub(checkpoint, "me/x", api=api)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("status", "words"), [(401, "does not accept the token"), (403, "may not write to me/x")])
def test_no_permission(checkpoint, status, words):
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(error, "refused")
    error.response = SimpleNamespace(status_code=status)

    def refuse(*args, **kwargs):
        raise error

    with pytest.raises(UploadError, match=words):
        push_to_hub(checkpoint, "me/x", api=SimpleNamespace(create_repo=refuse))


def test_no_token(checkpoint, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(UploadError, match="no Hugging Face token: run `hf auth login`"):
        push_to_hub(checkpoint, "me/x")


def test_names_and_folders(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="is not a repository name"):
        push_to_hub(checkpoint, "a/b/c", api=LocalHub(tmp_path))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ConfigError, match="exists; name a new folder"):
        write_hub_folder(gather(checkpoint), tmp_path / "taken", "me/x")
    (tmp_path / "bin").mkdir()
    shutil.copyfile(checkpoint / "config.json", tmp_path / "bin" / "config.json")
    with pytest.raises(ConfigError, match="no safetensors weights"):
        write_hub_folder(gather(tmp_path / "bin"), tmp_path / "out", "me/x")
    assert not (tmp_path / "out").exists()
