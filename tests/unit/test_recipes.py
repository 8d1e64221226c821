"""Recipes match their descriptions and the papers' numbers, have tiny twins, and load by name, file and function."""

from pathlib import Path

import pytest

import nextembed
from nextembed import recipes
from nextembed.core.config import from_yaml, to_yaml
from nextembed.errors import ConfigError
from nextembed.recipes.listing import MODULES
from nextembed.runs import RunConfig

NAMES = list(recipes.recipes())


def test_the_list_of_recipes() -> None:
    assert set(NAMES) == {
        "nepa_demo",
        "aim_demo",
        "igpt_demo",
        "igpt_bert_demo",
        "beit_demo",
        "mae_demo",
        "ijepa_demo",
        "mar_demo",
        "vjepa_demo",
        "cpc_demo",
        "simsiam_demo",
        "lejepa_demo",
        "vq_demo",
        "msvq_demo",
        "llamagen_demo",
        "var_demo",
        "fashion_mnist",
        "nepa_base_imagenet",
        "nepa_large_imagenet",
        "nepa_base_imagenet_released",
        "nepa_large_imagenet_released",
        "nepa_images",
        "latent_decoder",
        "emoji_scenes",
        "nepa_base_ade20k",
        "nepa_large_ade20k",
        "finetune",
        "fashion_mnist_finetune",
        "nepa_base_imagenet_finetune",
        "nepa_large_imagenet_finetune",
        "nepa_base_imagenet_finetune_released",
        "nepa_large_imagenet_finetune_released",
        "emu_pretrain",
        "emu_instruct",
        "emu_visual_decoder",
        "emu_emoji_encoder",
        "emu_emoji_language",
        "emu_emoji",
        "emu_emoji_instruct",
        "emu_emoji_decoder",
        "emu_smol",
        "emu_smol_alignment",
        "omni_emoji",
        "omni_emoji_readout",
        "omni_text",
        "omni_candle",
        "omni_candle_point",
        "omni_candle_single",
        "omni_candle_flow",
        "omni_candle_energy",
        "omni_series",
        "omni_series_classes",
        "omni_stamps",
    }


def test_the_list_without_torch_matches_the_functions() -> None:
    made = {
        name: (recipe.__module__, (recipe.__doc__ or "").splitlines()[0]) for name, recipe in recipes.recipes().items()
    }
    assert {name: (f"nextembed.recipes.{place.module}", place.line) for name, place in recipes.listed().items()} == made
    files = {file.stem for file in Path(recipes.__file__).parent.glob("*.py")}
    assert files == {*MODULES, "__init__", "listing", "loading", "fitting", "sizing", "stage_times", "shrunk", "ade20k"}


def test_recipes_are_attributes() -> None:
    assert recipes.nepa_demo().name == "nepa_demo" and recipes.omni_series().name == "omni_series"
    assert recipes.finetune is recipes.recipes()["finetune"]
    assert set(dir(recipes)) == {*NAMES, "load", "recipes", "tiny"}
    with pytest.raises(AttributeError, match="no attribute 'nepa_dmo'"):
        _ = recipes.nepa_dmo


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_and_its_tiny_twin_survive_yaml(name: str) -> None:
    assert (recipes.recipes()[name].__doc__ or "").splitlines()[0].endswith(".")
    for made in (name, f"{name}_tiny"):
        config = recipes.load(made)
        assert config.name == made
        assert from_yaml(RunConfig, to_yaml(config)) == config


def test_tiny_shrinks_a_copy_of_any_config() -> None:
    config = nextembed.RunConfig(name="own", train=nextembed.TrainConfig(max_steps=900))
    config.objective.distance = "mse"
    small = recipes.tiny(config)
    assert (small.name, small.train.max_steps, small.model.hidden_size) == ("own_tiny", 2, 32)
    assert small.objective.distance == "mse"
    assert (config.name, config.train.max_steps, config.model.hidden_size) == ("own", 900, 768)


@pytest.mark.parametrize(
    ("name", "width", "layers", "heads", "epochs"),
    [("nepa_base_imagenet", 768, 12, 12, 1600), ("nepa_large_imagenet", 1024, 24, 16, 800)],
)
def test_imagenet_recipes_use_the_papers_values(name: str, width: int, layers: int, heads: int, epochs: int) -> None:
    """NEPA (arXiv 2512.16922), its table of pretraining settings."""
    config = recipes.load(name)
    model = config.model.hf_config()
    assert (model.hidden_size, model.num_hidden_layers, model.num_attention_heads) == (width, layers, heads)
    assert (model.intermediate_size, model.image_size, model.patch_size) == (4 * width, 224, 14)
    assert (model.use_gated_mlp, model.hidden_act, model.qk_norm, model.is_causal) == (True, "silu", True, True)
    assert (model.layerscale_value, model.rope_theta, model.pos_embed_rescale) == (1e-5, 100.0, 2.0)
    optim, train = config.optim, config.train
    assert (optim.betas, optim.weight_decay, optim.warmup_epochs, optim.schedule) == ((0.9, 0.95), 0.05, 40, "cosine")
    assert (train.batch_size, train.epochs, train.ema_decay) == (4096, epochs, 0.9999)
    assert optim.learning_rate == pytest.approx(3e-4 * train.batch_size / 256)
    assert (config.data.source, config.data.flip_rate, config.objective.distance) == (
        "ILSVRC/imagenet-1k",
        0.0,
        "cosine",
    )


@pytest.mark.parametrize(("size", "affine"), [("base", False), ("large", True)])
def test_released_recipes_differ_where_the_docs_say(size: str, affine: bool) -> None:
    paper, released = recipes.load(f"nepa_{size}_imagenet"), recipes.load(f"nepa_{size}_imagenet_released")
    ours, theirs = paper.model_dump(), released.model_dump()
    differs = {
        f"{part}.{field}"
        for part in ("data", "model", "objective", "optim", "train", "probe")
        for field in ours[part]
        if ours[part][field] != theirs[part][field]
    }
    expected = {"model.use_gated_mlp", "model.hidden_act", "data.flip_rate"}
    expected |= {"model.qk_norm_affine", "train.epochs"} if size == "large" else set()
    assert differs == expected
    model = released.model.hf_config()
    assert (model.use_gated_mlp, model.hidden_act, model.qk_norm_affine) == (False, "gelu", affine)
    assert (released.train.epochs, released.data.flip_rate) == (1600, 0.5)


# Fine-tuning as in the paper, and as in the released code where it differs; values common to all are in the test.
FINETUNING = {
    #                            epochs  rate    decay  end   drop path  warm-up                  by layer  pooling
    "nepa_base_imagenet_finetune": (100, 1e-3, 0.35, 1.0, 0.1, {"warmup_epochs": 5}, False, "last"),
    "nepa_large_imagenet_finetune": (50, 1e-3, 0.60, 1.0, 0.2, {"warmup_epochs": 5}, False, "last"),
    "nepa_base_imagenet_finetune_released": (100, 1.5e-3, 0.65, None, 0.1, {"warmup_rate": 0.2}, True, "mean"),
    "nepa_large_imagenet_finetune_released": (100, 1e-3, 0.75, None, 0.2, {"warmup_rate": 0.3}, True, "mean"),
}


@pytest.mark.parametrize("name", FINETUNING)
def test_finetuning_recipes_use_the_papers_values(name: str) -> None:
    epochs, rate, decay, end, drop_path, warmup, by_layer, pooling = FINETUNING[name]
    config = recipes.load(name)
    optim, train, task, data, model = config.optim, config.train, config.objective, config.data, config.model
    assert (train.batch_size, train.epochs, train.ema_decay) == (1024, epochs, 0.9999)
    assert (optim.learning_rate * 256 / train.batch_size, optim.layer_decay, optim.layer_decay_end) == (
        rate,
        decay,
        end,
    )
    assert {n: getattr(optim, n) for n in ("warmup_epochs", "warmup_rate") if getattr(optim, n) is not None} == warmup
    assert (optim.layer_warmup, optim.schedule, optim.weight_decay, optim.betas) == (
        by_layer, "cosine", 0.05, (0.9, 0.999)
    )  # fmt: skip
    assert (task.label_smoothing, task.mixup_alpha, task.cutmix_alpha, task.mix_rate) == (0.1, 0.8, 1.0, 1.0)
    assert (data.rand_augment, data.erase_rate, data.source) == (
        (9, 0.5), 0.25 if name.endswith("released") else 0.0, "ILSVRC/imagenet-1k"
    )  # fmt: skip
    assert (model.drop_path_prob, model.attention, model.pooling) == (drop_path, "full", pooling)
    assert model.pretrained == f"SixAILab/nepa-{'base' if 'base' in name else 'large'}-patch14-224"
    assert train.freeze == ["patch_embeddings"] and train.lora is None
    assert train.probe_steps is not None  # needed to keep the best weights


def test_finetune_requires_a_pretrained_model() -> None:
    config = recipes.load("finetune")
    assert config.model.pretrained is None and config.data.validation_rate == 0.1
    few = recipes.fashion_mnist_finetune(data="some/folder")
    assert (few.data.source, few.data.labels_per_class, few.data.validation) == ("some/folder", 60, "train[-5000:]")


def test_fashion_mnist_accepts_a_local_folder_and_holds_out_validation() -> None:
    config = recipes.fashion_mnist(data="some/folder")
    assert (config.data.source, config.data.split, config.data.validation, config.data.test) == (
        "some/folder",
        "train[:-5000]",
        "train[-5000:]",
        "test",
    )


USER_FILE = '''
import nextembed

def mine():
    """My recipe."""
    config = nextembed.recipes.tiny(nextembed.recipes.nepa_demo())
    return config.model_copy(update={"name": "mine"})

def with_default(steps=3):
    return nextembed.RunConfig(name="steps", train=nextembed.TrainConfig(max_steps=steps))

def needs(steps):
    return None

def wrong():
    return {"name": "x"}

def mistake():
    return nextembed.RunConfig(name="x", train=nextembed.TrainConfig(max_stps=3))

CONSTANT = 3
'''


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    file = tmp_path / "own_recipes_of_a_test.py"
    file.write_text(USER_FILE)
    return file


def test_a_users_recipe(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recipes.load(f"{user_file}:mine").name == "mine"
    monkeypatch.chdir(user_file.parent)
    assert recipes.load(f"{user_file.name}:with_default").train.max_steps == 3


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nepa_dmo", "recipe 'nepa_dmo' is not known. Did you mean 'nepa_demo'? Allowed: "),
        ("FILE:needs", "needs a default for steps"),
        ("FILE:wrong", "gave a dict, not a nextembed.RunConfig"),
        ("FILE:mistake", "field 'max_stps' is not known. Did you mean 'max_steps'?"),
        ("FILE:CONSTANT", "is not a function"),
        ("FILE:mein", "'mein' is not known. Did you mean 'mine'?"),
        ("FILE", "name the function in the file as well: "),
        ("no_such.py:mine", "no such file: no_such.py"),
        ("no_such/config.yaml", "no such file: no_such/config.yaml"),
        ("no_such/run", "no such run or file: no_such/run"),
        ("FOLDER", "no config.yaml in "),
    ],
)
def test_invalid_recipes(spec: str, words: str, user_file: Path) -> None:
    spec = spec.replace("FILE", str(user_file)).replace("FOLDER", str(user_file.parent))
    with pytest.raises(ConfigError) as err:
        recipes.load(spec)
    assert words in str(err.value) and "\n" not in str(err.value)


def test_a_saved_config_and_its_folder_load(tmp_path: Path) -> None:
    config = recipes.load("nepa_demo")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert recipes.load(str(tmp_path / "config.yaml")) == config == recipes.load(str(tmp_path))


def test_all_public_names_exist() -> None:
    for name in dir(nextembed):
        assert getattr(nextembed, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = nextembed.nope


# The peak learning rate of each recipe at its batch size. They were tuned; a change of wording must not alter them.
RATES = {
    "nepa_demo": 1e-3,
    "aim_demo": 1e-3,
    "igpt_demo": 1e-3,
    "igpt_bert_demo": 1e-3,
    "beit_demo": 1e-3,
    "mae_demo": 1e-3,
    "ijepa_demo": 1e-3,
    "mar_demo": 1e-3,
    "vjepa_demo": 1e-3,
    "cpc_demo": 1e-3,
    "simsiam_demo": 5e-4,
    "lejepa_demo": 5e-4,
    "vq_demo": 1e-3,
    "msvq_demo": 1e-3,
    "llamagen_demo": 1e-3,
    "var_demo": 1e-3,
    "fashion_mnist": 1e-3,
    "nepa_base_imagenet": 4.8e-3,
    "nepa_large_imagenet": 4.8e-3,
    "nepa_base_imagenet_released": 4.8e-3,
    "nepa_large_imagenet_released": 4.8e-3,
    "nepa_images": 1e-3,
    "finetune": 2.5e-4,
    "fashion_mnist_finetune": 2.5e-4,
    "nepa_base_imagenet_finetune": 4e-3,
    "nepa_large_imagenet_finetune": 4e-3,
    "nepa_base_imagenet_finetune_released": 6e-3,
    "nepa_large_imagenet_finetune_released": 4e-3,
    "emoji_scenes": 1e-3,
    "nepa_base_ade20k": 1e-4,
    "nepa_large_ade20k": 1e-4,
    "latent_decoder": 1e-3,
    "emu_pretrain": 1e-4,
    "emu_instruct": 1e-5,
    "emu_visual_decoder": 1e-4,
    "emu_emoji_encoder": 2e-3,
    "emu_emoji_language": 1.5e-3,
    "emu_emoji": 2e-3,
    "emu_emoji_instruct": 2e-3,
    "emu_emoji_decoder": 1e-3,
    "emu_smol": 2e-3,
    "emu_smol_alignment": 2e-3,
    "omni_emoji": 2e-3,
    "omni_emoji_readout": 2e-3,
    "omni_text": 2e-3,
    "omni_candle": 1.09375e-3,
    "omni_candle_point": 1.09375e-3,
    "omni_candle_single": 1.09375e-3,
    "omni_candle_flow": 1.09375e-3,
    "omni_candle_energy": 1.09375e-3,
    "omni_series": 2e-3,
    "omni_series_classes": 1e-3,
    "omni_stamps": 2e-3,
}


@pytest.mark.parametrize("name", NAMES)
def test_learning_rates(name: str) -> None:
    assert recipes.load(name).optim.learning_rate == pytest.approx(RATES[name])
