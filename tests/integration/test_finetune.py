"""Fine-tuning end to end: from a pretrained folder to a classifier that predicts class names."""

import json
from pathlib import Path

import peft
import pytest
import torch
from forked import run_script
from PIL import Image
from safetensors.torch import load_file
from tiny import STATE_FILE
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig, ViTModel, pipeline

import nextembed
from nextembed.core.config import apply_overrides, to_yaml
from nextembed.errors import ConfigError
from nextembed.models.nepa.modeling_nepa import ViTNepaForImageClassification
from nextembed.models.nepa.settings import NepaClassifier, NepaModel
from nextembed.run import fit
from nextembed.runs import RunConfig

RUNNER = Path(__file__).parent / "kill_runner.py"
SIZES = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
         "intermediate_size": 24, "layerscale_value": 1.0}  # fmt: skip
NAMES = ["activities", "animals & nature", "flags", "food & drink", "objects", "people & body", "smileys & emotion",
         "symbols", "travel & places"]  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    torch.manual_seed(7)
    NepaModel(**SIZES).build().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def still(tmp_path_factory) -> Path:
    """The same model without rotary rescaling, which is random per forward pass and so depends on micro-batches."""
    folder = tmp_path_factory.mktemp("still") / "model"
    torch.manual_seed(7)
    NepaModel(**SIZES, pos_embed_rescale=None).build().save_pretrained(folder)
    return folder


def test_rotary_rescaling_is_as_pretrained_or_as_set(pretrained: Path, still: Path) -> None:
    def rescale(folder: Path, **said: float) -> float | None:
        return NepaClassifier(pretrained=str(folder), **said).hf_config(["a", "b"]).pos_embed_rescale

    assert rescale(pretrained) == 2 and rescale(still) is None
    assert rescale(pretrained, pos_embed_rescale=1) == 1 and rescale(still, pos_embed_rescale=1.5) == 1.5
    torch.manual_seed(0)
    model = NepaClassifier(pretrained=str(pretrained), pos_embed_rescale=1).build(["a", "b"])
    images = torch.rand(2, 3, *model.config.image_shape)
    assert torch.equal(model.train()(images).logits, model.eval()(images).logits)  # 1: coordinates are unchanged


def config(output_dir: Path, pretrained: Path, *overrides: str) -> RunConfig:
    """All sources of randomness are enabled: crops, RandAugment, erasing, mixing, drop path, rotary rescaling."""
    made = RunConfig(
        name="run",
        output_dir=str(output_dir),
        data={"kind": "images", "source": "emoji", "num_workers": 0, "labels_per_class": 8, "rand_augment": [9, 0.5],
              "erase_rate": 0.3},
        model={"kind": "vit_nepa_classifier", "pretrained": str(pretrained), "drop_path_prob": 0.2},
        objective={"kind": "classification", "label_smoothing": 0.1, "mixup_alpha": 0.8, "cutmix_alpha": 1.0},
        optim={"learning_rate": 3e-1 * 8 / 256, "warmup_steps": 3, "layer_decay": 0.5, "layer_decay_end": 1.0,
               "layer_warmup": True},
        train={"batch_size": 8, "micro_batch_size": 4, "max_steps": 24, "log_steps": 5, "save_steps": 6,
               "probe_steps": 4, "ema_decay": 0.9, "freeze": ["patch_embeddings"], "device": "cpu", "trackers": []},
        probe={"num_validation": 60, "num_test": 60},
    )  # fmt: skip
    return apply_overrides(made, overrides)


def killed_and_resumed(**runs: tuple[RunConfig, list[str]]) -> list[Path]:
    """The folders of runs, each given by its settings and its kill moments; one process starts them all."""
    words: list[str] = []
    for folder, (settings, kills) in runs.items():
        Path(folder).mkdir()
        (Path(folder) / "config.yaml").write_text(to_yaml(settings))
        words += [*(["--"] if words else []), folder, *kills]
    done = run_script(RUNNER, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return [Path(folder) / "run" for folder in runs]


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{n: v for n, v in line.items() if n != "images_per_second"} for line in lines]


def same_weights(found: Path, expected: Path, *files: str) -> None:
    for file in files:
        a, b = load_file(found / file), load_file(expected / file)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), file


# -- a whole run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pretrained):
    settings = config(tmp_path_factory.mktemp("runs"), pretrained, "train.save_steps=4", "train.keep_checkpoints=9")
    return fit(settings)


def test_a_run_leaves_these_files(trained):
    assert {file.name for file in trained.dir.iterdir()} == {
        ".lock", "best", "checkpoints", "config.yaml", "ema", "environment.json", "metrics.jsonl", "model",
        "report.html", "scores.json"}  # fmt: skip
    assert {file.name for file in (trained.dir / "best").iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json", "score.json"}  # fmt: skip
    assert trained.metrics["top1"] == json.loads((trained.dir / "scores.json").read_text())["top1"]


def test_the_best_weights_are_the_average_with_the_highest_score(trained):
    line = max(
        (line for line in metrics(trained.dir) if "eval/ema_accuracy" in line),
        key=lambda line: (line["eval/ema_accuracy"], -line["step"]),
    )
    score = json.loads((trained.dir / "best" / "score.json").read_text())
    assert score == {
        "step": line["step"], "metric": "eval/ema_accuracy", "value": line["eval/ema_accuracy"], "weights": "ema"
    }  # fmt: skip
    checkpoint = trained.dir / "checkpoints" / f"step-{score['step']:06d}"
    same_weights(trained.dir / "best", checkpoint / "ema", "model.safetensors")
    raw, averaged = load_file(checkpoint / "model.safetensors"), load_file(checkpoint / "ema" / "model.safetensors")
    assert raw.keys() == averaged.keys() == {name for name, _ in trained.trained.named_parameters()}  # also frozen
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)
    scores = json.loads((trained.dir / "scores.json").read_text())
    assert (scores["step"], scores["weights"], scores["split"]) == (score["step"], "ema", "test")


def test_only_frozen_parameters_are_unchanged(trained, pretrained):
    before, after = load_file(pretrained / "model.safetensors"), load_file(trained.dir / "model" / "model.safetensors")
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert same == [name for name in before if "patch_embeddings" in name] != []


def test_a_pipeline_returns_class_names(trained):
    own = AutoConfig.from_pretrained(trained.dir / "best")
    assert own.id2label == dict(enumerate(NAMES)) and own.label2id["flags"] == 2
    answer = pipeline("image-classification", model=str(trained.dir / "best"))(Image.new("RGB", (30, 20), "red"))
    assert len(answer) == 5 and {found["label"] for found in answer} <= set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["null", "{rank: 2, dropout: 0.1}"], ids=["whole", "lora"])
def test_killed_and_resumed_is_bit_identical(tmp_path, pretrained, lora, monkeypatch):
    """Killed in the middle of a step, right after saving the best weights, and while saving a checkpoint; finally the
    pretrained folder is removed."""
    monkeypatch.chdir(tmp_path)
    gone = tmp_path / "gone"
    gone.symlink_to(pretrained)
    once, more = (config(tmp_path, start, f"train.lora={lora}", "data.num_workers=1") for start in (pretrained, gone))
    kills = ["3:window", "10:log", "12:write"]
    whole, parts = killed_and_resumed(whole=(once, []), parts=(more, kills))
    gone.unlink()
    # steps 13 to 24 again, without the folder
    for name in ("step-000018", "step-000024"):
        assert (parts / "checkpoints" / name).is_dir()
    __import__("shutil").rmtree(parts / "checkpoints" / "step-000024")
    nextembed.fit(resume=parts)
    last = "checkpoints/step-000024"
    files = [f"{folder}/model.safetensors" for folder in ("model", "ema", "best", last, f"{last}/ema")]
    if lora != "null":
        files += [
            f"{last}/{STATE_FILE}",
            "best/adapter/adapter_model.safetensors",
        ]
        base = json.loads((parts / "best" / "adapter" / "adapter_config.json").read_text())
        assert base["base_model_name_or_path"] == str(gone)  # not a checkpoint
    same_weights(parts, whole, *files)
    assert metrics(parts) == metrics(whole)
    assert (parts / "best" / "score.json").read_text() == (whole / "best" / "score.json").read_text()
    assert (parts / "scores.json").read_text() == (whole / "scores.json").read_text()
    assert not list(parts.glob("**/.tmp-*")) and not list(parts.glob("**/.old-*"))


def test_micro_batches_have_no_effect_without_mixing(tmp_path, still):
    exact = ["objective={kind: classification, label_smoothing: 0.1}", "train.max_steps=4",
             "optim.eps=1e-3", "train.batch_size=8", "probe.enabled=false", "train.probe_steps=null"]  # fmt: skip
    runs = [fit(config(tmp_path / str(micro), still, *exact, f"train.micro_batch_size={micro}")) for micro in (8, 2)]
    a, b = (load_file(run.dir / "model" / "model.safetensors") for run in runs)
    for name in a:
        assert (a[name] - b[name]).abs().max() <= 1e-5 * a[name].abs().max() + 1e-7, name


# -- LoRA


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, pretrained):
    settings = config(tmp_path_factory.mktemp("runs"), pretrained, "train.lora={rank: 2, targets: [query, up_proj]}",
                      "train.freeze=[]", "train.max_steps=6", "train.probe_steps=3")  # fmt: skip
    return fit(settings)


def test_lora_leaves_plain_folders_and_adapters_that_peft_loads(adapted, pretrained):
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for name in ("model", "ema", "best"):
        folder = adapted.dir / name
        assert not any("lora" in key or "base_layer" in key for key in load_file(folder / "model.safetensors"))
        plain = AutoModelForImageClassification.from_pretrained(folder).eval()
        base = ViTNepaForImageClassification.from_pretrained(pretrained, config=AutoConfig.from_pretrained(folder))
        loaded = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded(pixel_values=pixels).logits, plain(pixels).logits, atol=1e-5, rtol=1e-4)


def test_lora_changes_only_its_targets_and_the_head(adapted, pretrained):
    before, after = load_file(pretrained / "model.safetensors"), load_file(adapted.dir / "model" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith(("query.weight", "up_proj.weight"))}
    counted = json.loads((adapted.dir / "environment.json").read_text())["parameters"]
    assert counted["trained"] == 3 * (2 * (16 + 16) + 2 * (16 + 24)) + 16 * 2 + 16 * 9 + 9
    assert counted["trained"] < counted["all"] == sum(p.numel() for p in adapted.trained.parameters())


def test_lora_cannot_be_changed_on_resume(adapted):
    settings = apply_overrides(nextembed.runs.read_run_config(adapted.dir), ["train.lora=null", "train.max_steps=9"])
    with pytest.raises(ConfigError, match=r"was trained with train\.lora, but this run is not"):
        fit(settings, resume=adapted.dir)


# -- starting weights


def built(pretrained, seed=3, **settings):
    torch.manual_seed(seed)
    return NepaClassifier(pretrained=str(pretrained), **settings).build(NAMES)


def test_a_new_head_depends_only_on_the_seed(pretrained, tmp_path):
    torch.manual_seed(8)
    NepaModel(**SIZES).build().save_pretrained(tmp_path / "other")
    heads = [built(pretrained), built(pretrained, from_scratch=True), built(tmp_path / "other")]
    for name in ("weight", "bias"):
        values = [getattr(model.classifier, name) for model in heads]
        assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])
    assert heads[0].classifier.weight.std() > 0.01
    assert not torch.equal(built(pretrained, seed=4).classifier.weight, heads[0].classifier.weight)
    trunk = load_file(pretrained / "model.safetensors")
    assert all(torch.equal(value, trunk[name]) for name, value in heads[0].state_dict().items() if name in trunk)


def test_fewer_layers_another_image_size_and_causal_attention(pretrained):
    model = built(pretrained, num_layers=2, image_size=24, attention="causal", pooling="last")
    assert (len(model.vit_nepa.encoder.layer), model.config.image_size, model.config.is_causal) == (2, 24, True)
    assert model.fc_norm is None and model(torch.randn(1, 3, 24, 24)).logits.shape == (1, 9)
    trunk = load_file(pretrained / "model.safetensors")
    assert all(torch.equal(value, trunk[name]) for name, value in model.state_dict().items() if name in trunk)
    assert NepaClassifier(pretrained=str(pretrained), image_size=24).processor().size["height"] == 24


def test_half_precision_weights_train_in_float32(pretrained, tmp_path):
    AutoModelForImageClassification.from_pretrained(pretrained).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert {param.dtype for param in built(tmp_path / "half", new_head=True).parameters()} == {torch.float32}


def test_a_classifier_keeps_its_head_or_gets_a_new_one(trained):
    best = trained.dir / "best"
    kept = built(best)
    assert torch.equal(kept.classifier.weight, load_file(best / "model.safetensors")["classifier.weight"])
    fresh = built(best, new_head=True)  # also for the same classes
    assert torch.equal(fresh.classifier.weight, built(best, from_scratch=True).classifier.weight)
    with pytest.raises(ConfigError) as err:
        NepaClassifier(pretrained=str(best)).build(["cat", "dog"])
    assert str(err.value) == (
        f"model.pretrained: {best} has a head for 9 classes (activities, animals & nature, flags, food & drink, ...), "
        "the data has 2 (cat, dog); set model.new_head=true for a new head"
    )
    assert NepaClassifier(pretrained=str(best), new_head=True).build(["cat", "dog"]).classifier.out_features == 2


def test_errors_are_one_line_and_leave_no_files(tmp_path, pretrained):
    vit = tmp_path / "vit"
    ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8,
                       patch_size=4)).save_pretrained(vit)  # fmt: skip
    photos = tmp_path / "photos"
    for i in range(8):
        (folder := photos / "train" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (i * 30, 0, 0)).save(folder / f"{i}.png")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text((pretrained / "config.json").read_text())
    cut = tmp_path / "cut"
    cut.mkdir()
    for file in pretrained.iterdir():
        (cut / file.name).write_bytes(file.read_bytes()[: 10**9 if file.suffix == ".json" else 500])
    for overrides, words in (
        ([f"model.pretrained={vit}"], f"{vit} is a model of type 'vit', not vit_nepa"),
        (["model.pretrained=null"], "model.pretrained: name the checkpoint to fine-tune"),
        ([f"model.pretrained={tmp_path}/none/at/all"], "model.pretrained: no such run, checkpoint or folder"),
        ([f"model.pretrained={damaged}"], f"cannot load '{damaged}'"),
        ([f"model.pretrained={cut}"], f"cannot load '{cut}'"),
        (["model.num_layers=4"], "model.num_layers 4: the model has only 3"),
        (["model.image_size=18"], "model.image_size 18 is not a multiple of the patch size 4"),
        (["data.where={group: flags}"], "all training images are of one class ('flags')"),
        (["data.label_column=grup"], "Did you mean 'group'?"),
        (["data.labels_per_class=9999"], "data.labels_per_class 9999: class 'activities' has only"),
        (["data.validation=none"], "data.validation: no row has split = none; it is one of: test, train, validation"),
        ([f"data={{kind: images, source: {photos}}}"], "or choose none with train.probe_steps=null"),
        (["train.freeze=[patch_embedings]"], "Did you mean 'patch_embeddings'?"),
        (["train.lora={targets: [qery]}"], "Did you mean 'query'?"),
        (["objective={kind: next_embedding}"], "objective next_embedding is for pretraining, model"),
        (["model={kind: vit_nepa}"], "set model.kind=vit_nepa_classifier"),
    ):
        with pytest.raises(ConfigError) as err:
            fit(config(tmp_path / "runs", pretrained, *overrides))
        assert words in str(err.value) and "\n" not in str(err.value), overrides
        assert not list((tmp_path / "runs").glob("*")), overrides


def test_a_run_folder_is_accepted_as_its_model(trained):
    of_run, of_model = built(trained.dir).state_dict(), built(trained.dir / "model").state_dict()
    assert all(torch.equal(of_model[name], value) for name, value in of_run.items() if "classifier" not in name)


# -- ranks


@pytest.mark.slow
def test_two_ranks_score_on_one_and_train_the_same_weights(tmp_path, still):
    exact = ["objective={kind: classification, label_smoothing: 0.1}", "train.max_steps=6",
             "optim.eps=1e-3", "train.probe_steps=2", "train.save_steps=3", "train.micro_batch_size=4"]  # fmt: skip
    one = fit(config(tmp_path / "one", still, *exact))
    file = tmp_path / "given.yaml"
    file.write_text(to_yaml(config(tmp_path / "two", still, *exact)))
    done = run_script(RUNNER.with_name("rank_runner.py"), "--ranks", 2, file)
    assert done.returncode == 0, done.stderr[-3000:]
    two = tmp_path / "two" / "run"
    for name in ("model", "ema"):
        a, b = (load_file(run / name / "model.safetensors") for run in (one.dir, two))
        assert all((a[key] - b[key]).abs().max() <= 1e-5 * a[key].abs().max() + 1e-7 for key in a), name
    assert [line["step"] for line in metrics(two) if "eval/ema_accuracy" in line] == [2, 4, 6]
    assert (two / "best" / "model.safetensors").is_file() and (two / "scores.json").is_file()
