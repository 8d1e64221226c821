"""Settings of rows: shared ones, their own ones, and invalid ones."""

import pytest

from nextembed import recipes
from nextembed.comparison.compare import Plan, base_config, compare
from nextembed.comparison.configs import (
    checked_base,
    chosen_objectives,
    finetune_config,
    label_counts,
    row_config,
    stage_of,
    trials,
    with_length,
    with_tokenizer,
)
from nextembed.comparison.place import held
from nextembed.comparison.settings import CompareSettings
from nextembed.errors import ConfigError
from nextembed.objectives import LeJepaSettings
from nextembed.runs import RunConfig


@pytest.fixture(scope="module")
def base() -> RunConfig:
    return checked_base(recipes.load("nepa_demo_tiny"))


def test_every_recipe_of_an_objective_on_images_is_known() -> None:
    known = chosen_objectives(None)
    assert {"nepa", "aim", "igpt", "beit", "mae", "cpc", "simsiam", "lejepa"} <= set(known)
    assert "candle" not in known


def test_rows_share_data_model_and_batch(base) -> None:
    own = chosen_objectives(["nepa", "mae", "cpc"])
    rows = {name: row_config(base, config, seed=3) for name, config in own.items()}
    for name, row in rows.items():
        assert row.data == base.data and row.seed == 3, name
        assert row.train.batch_size == base.train.batch_size
        assert row.optim == (base.optim if name == "nepa" else own[name].optim)
    assert [row.model.is_causal for row in rows.values()] == [True, False, True]
    assert rows["mae"].objective.kind == "mae"


@pytest.mark.parametrize("recipe", ["nepa_demo_tiny", "mar_demo"])
def test_no_row_uses_class_labels(recipe) -> None:
    base = checked_base(recipes.load(recipe))
    rows = {name: row_config(base, own) for name, own in chosen_objectives(None).items()}
    told = {name: row.objective.num_classes for name, row in rows.items() if hasattr(row.objective, "num_classes")}
    assert told == {"llamagen": 0, "mar": 0, "var": 0}


def test_small_crops_fit_the_patches(base) -> None:
    row = row_config(base, chosen_objectives(["lejepa"])["lejepa"])
    assert isinstance(row.objective, LeJepaSettings)
    assert row.objective.crops.local_size % row.model.patch_size == 0
    assert 0 < row.objective.crops.local_size < row.model.image_size


def test_tuned_settings_are_factors(base) -> None:
    own = chosen_objectives(["mae"])["mae"]
    row = row_config(base, own, tuned={"learning_rate": 3.0, "weight_decay": 0.2})
    assert row.optim.learning_rate == pytest.approx(3 * own.optim.learning_rate)
    assert row.optim.weight_decay == pytest.approx(0.2 * own.optim.weight_decay)


def test_number_of_trials_and_the_defaults_first() -> None:
    assert trials(0) == []
    assert trials(3)[0] == {"learning_rate": 1.0, "weight_decay": 1.0}
    assert len({tuple(one.values()) for one in trials(9)}) == 9


def test_probes_and_checkpoints_fall_on_logged_steps(base) -> None:
    for steps in (1, 7, 100, 12345):
        train = with_length(base, steps).train
        assert train.max_steps == steps
        assert train.probe_steps % train.log_steps == 0 and train.save_steps % train.log_steps == 0


def test_number_of_labels_for_fine_tuning(base) -> None:
    counts = label_counts(base.data)
    assert counts == {"finetune_1": 2, "finetune_10": 18}  # of 1,641 images in 9 classes
    config = finetune_config(base, None, 2, seed=5, steps=7, num_labels=18)
    assert (config.data.labels_per_class, config.data.labels_seed) == (2, 5)
    assert (config.train.batch_size, config.train.max_steps) == (18, 7)


def test_a_validation_split_is_held_out_if_there_is_none(tmp_path) -> None:
    from PIL import Image

    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("RGB", (32, 32), colour).save(tmp_path / name / f"{i}.png")
    found = checked_base(base_config(str(tmp_path), 1.0))
    assert found.data.validation_rate == 0.1


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["nepa", "simsima"], "objective 'simsima' is not known. Did you mean 'simsiam'?"),
        (["nepa", "nepa"], "objective 'nepa' is named twice"),
    ],
)
def test_wrong_objectives(names: list[str], words: str, tmp_path) -> None:
    with pytest.raises(ConfigError) as err:
        compare("nepa_demo_tiny", names, tmp_path / "out")
    assert str(err.value).startswith(words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ([], "name a recipe"),
        ("omni_emoji", "a comparison needs images"),
        ("nepa_dmeo", "no such"),
        (["runs/nowhere-a", "runs/nowhere-b"], "runs/nowhere-a is not a run"),
        ("finetune", "a comparison trains new models"),
    ],
)
def test_wrong_sources(what, words: str, tmp_path) -> None:
    with pytest.raises(ConfigError, match=words):
        compare(what, ["nepa"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_comparison(base, tmp_path) -> None:
    own = chosen_objectives(["nepa"])

    def check(base, **settings) -> None:
        with held(tmp_path) as before:
            Plan(base, own, CompareSettings(**settings), tmp_path, "x").check_folder(before)

    check(base, images_seen=100, seeds=1)
    check(base, images_seen=100, seeds=2, jobs=2)  # more seeds
    with pytest.raises(ConfigError, match=r"other settings \(images_seen\); choose another --folder"):
        check(base, images_seen=200)
    other = base.model_copy(update={"train": base.train.model_copy(update={"batch_size": 4})})
    with pytest.raises(ConfigError, match="its data, model or training"):
        check(other, images_seen=100)


def test_a_tokenizer_is_trained_on_the_images_of_the_comparison(base) -> None:
    own = chosen_objectives(["nepa", "llamagen", "var"])
    assert stage_of(base, own["nepa"]) is None
    for name, scales in (("llamagen", None), ("var", [1, 3])):  # 3 x 3 patches
        stage, row = stage_of(base, own[name], seed=4), row_config(base, own[name])
        assert stage.objective.scales == scales and stage.seed == 4
        assert stage.data == row.data == base.data and stage.model.patch_size == base.model.patch_size
        assert row.objective.num_classes == 0, "class labels are not used"
        assert with_tokenizer(row, "here").objective.tokenizer == "here"


@pytest.mark.parametrize("name", ["vjepa", "vq"])
def test_objectives_without_images_or_without_a_model(name: str) -> None:
    with pytest.raises(ConfigError, match=f"objective '{name}' does not fit images in a NEPA model. Allowed: "):
        chosen_objectives([name])
