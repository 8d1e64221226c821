"""Every numeric setting with invalid numbers: a one-line error, or a training step with finite results."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from transformers import AutoConfig, AutoModel, Dinov2Config

from nextembed import recipes
from nextembed.core import sizes
from nextembed.core.config import DECODERS, MODELS, Config, apply_overrides, validated
from nextembed.core.objective import OBJECTIVES, PretrainingModel
from nextembed.core.optim import OptimConfig
from nextembed.errors import ConfigError, NextEmbedError
from nextembed.evaluation.language.protocols import LanguageEval
from nextembed.evaluation.probes.sweep import ProbeConfig
from nextembed.inference.settings import Sampling
from nextembed.models.nepa.settings import NepaModel
from nextembed.planning.plan import plan
from nextembed.planning.step import class_names, example_batch, needs_classes
from nextembed.run import loader_arguments
from nextembed.runs import RunConfig, open_run
from nextembed.tasks.pretraining import models_of
from nextembed.training.adapt import LoraSettings, adapt
from nextembed.training.memory import check_memory
from nextembed.training.optim import build_optimizer, lr_rate
from nextembed.training.settings import TrainConfig

NAN, INF = math.nan, math.inf
NEVER = [NAN, INF, -INF, 1e308, 1e23, 10**30, 2**63, [NAN], [10**30], {"a": NAN}, "\0"]
ODD = [-1, 0, 1e-300, 0.5, 3, 2**31 - 1, 2**32, "", "x", [], {}, [0], [-1], [1, 1], [1] * 500]
RECIPES = ["nepa_demo_tiny", "finetune_tiny", "emoji_scenes_tiny", "latent_decoder_tiny", "omni_emoji_tiny"]
REQUIRED: dict[Any, dict[str, Any]] = {LanguageEval: {"task": "caption", "data": "x"}}
CLASSES = [OptimConfig, TrainConfig, LoraSettings, ProbeConfig, Sampling, LanguageEval, RunConfig]


def one_line(err: BaseException) -> bool:
    return "\n" not in str(err) and len(str(err)) < 1500 and "unexpected" not in str(err)


def with_value(config: Any, path: tuple[str, ...], value: Any) -> Any:
    values: dict[str, Any] = {name: own for name, own in config if name in config.model_fields_set or name == "kind"}
    name, *rest = path
    values[name] = with_value(getattr(config, name), tuple(rest), value) if rest else value
    return validated(type(config), values)


def fields(config: Config, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in type(config).model_fields:
        if isinstance(own := getattr(config, name), Config):
            yield from fields(own, (*path, name))
        elif name not in ("kind", "pretrained", "name", "output_dir", "after"):
            yield (*path, name)


def step(config: RunConfig) -> None:
    """Builds a model and takes a training step, whose results must be finite."""
    torch.manual_seed(0)
    labels = class_names(config, 3) if needs_classes(config) else []
    part: Any = config.model
    with sizes.building("the model"):
        backbone = part.build(labels)
        adapt(backbone, config.train)
        objective = config.objective.build(backbone)  # type: ignore[attr-defined]
    model = PretrainingModel(backbone, objective).train()
    check_memory(config.train, config.optim, model, loader_arguments(part, backbone, objective))
    batch: Any = example_batch(config, backbone, objective, 1)
    batch = {n: torch.randn_like(v.contiguous()) if v.is_floating_point() else v for n, v in batch.items()}
    optimizer = build_optimizer(model, config.optim)
    output = model(batch)
    loss = (output.loss_sum / output.num_targets.clamp(min=1)).sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.max_grad_norm or 1e30)
    for group in optimizer.param_groups:
        warmup = config.optim.num_warmup_steps(100, 10.0)
        group["lr"] *= lr_rate(3, config.optim, warmup, 100, group["below_top"])
    optimizer.step()
    assert math.isfinite(loss.item())
    assert all(param.isfinite().all() for param in model.parameters())


@pytest.mark.parametrize("recipe", RECIPES)
def test_odd_training_settings_work_or_are_one_line_errors(recipe: str) -> None:
    base = recipes.load(recipe)
    for path in fields(base):
        if path[0] not in ("model", "objective", "optim") or (path[0] == "optim" and recipe != RECIPES[0]):
            continue
        for value in (*NEVER, *ODD):
            try:
                step(with_value(base, path, value))
            except NextEmbedError as err:
                assert one_line(err), (path, value)
            except Exception as err:
                raise AssertionError(f"{'.'.join(path)}={value!r}: {type(err).__name__}: {err}") from err


def numeric(cls: type[BaseModel]) -> list[str]:
    words = {name: repr(field.annotation) for name, field in cls.model_fields.items()}
    return [n for n, text in words.items() if ("int" in text or "float" in text) and "Part" not in text]


@pytest.mark.parametrize(
    "cls",
    [
        *CLASSES,
        *(c for r in (MODELS, OBJECTIVES, DECODERS) for c in r.classes.values() if "nextembed." in c.__module__),
    ],
    ids=lambda c: c.__name__,
)
def test_nan_infinite_and_huge_numbers_are_rejected(cls: type[Config]) -> None:
    for name in numeric(cls):
        for value in (NAN, INF, -INF, 1e308, 10**30, [NAN], [[NAN]], {"x": INF}, {"x": 10**30}):
            if name.endswith("where") and value == {"x": INF}:  # valid as the text of a table column
                assert getattr(cls(**REQUIRED[cls], **{name: value}), name) == {"x": "inf"}
                continue
            with pytest.raises(ConfigError) as caught:
                cls(**{**REQUIRED.get(cls, {}), name: value})
            assert name in str(caught.value), (name, value)
            assert one_line(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        "optim.betas=[1,1]", "optim.betas=[0.9]", "optim.weight_decay=.inf", "optim.learning_rate=1e308",
        "optim.embed_lr_rate=.inf", "model.pos_embed_jitter=.inf",
        "model={kind: vit_nepa, image_size: 32, patch_size: 24}",
        "seed=1e23", "seed=-1",
        "seed=4294967296", "seed=0.5", "probe.penalties=[.nan]", "probe.penalties=[0]", "probe.penalties=[]",
        "model.num_hidden_layers=1000000000", "model.hidden_size=1000000000", "train.batch_size=1000000000000000000",
        "data.num_workers=1000", "train.epochs=1e308", "train.lora={rank: 1000000000}", "train={}", "train=5",
        "data=null", "model.kind=", "model.kind=\0", "name=\0", "train.device=tpu", "train.trackers=[x]",
        "train.trackers=5", ".".join("a" * 10_000) + "=1", "ü x=1", "model.ü x=1", "seed=" + "9" * 100_000,
        "name=" + "x" * 1_000_000, "model." + "x" * 1_000_000 + "=1", "=1", "seed", "model.pretrained.x=1",
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_invalid_overrides_are_one_line_errors(change: str) -> None:
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        config = apply_overrides(recipes.load("nepa_demo_tiny"), [change])
        step(config)
    assert one_line(caught.value)
    assert time.process_time() - start < 5


def test_an_empty_optim_is_the_default() -> None:
    assert apply_overrides(recipes.load("nepa_demo_tiny"), ["optim={}"]).optim == OptimConfig()


def test_a_batch_larger_than_memory_is_rejected_before_reading() -> None:
    base = recipes.load("nepa_demo_tiny")
    for change in ("train.batch_size=2000000000", "train={batch_size: 2000000000, micro_batch_size: 1, max_steps: 1}"):
        with pytest.raises(ConfigError, match="TiB; this machine has"):
            step(apply_overrides(base, [change]))
    for masked in ("train.attn_implementation=eager", "train.compile=true"):
        with pytest.raises(ConfigError, match="attention masks need"):
            step(apply_overrides(recipes.load("omni_emoji_tiny"), ["model.max_length=1000000", masked]))


def test_a_model_larger_than_memory_is_rejected_before_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "memory", lambda device="cpu": 2**20)
    with (
        pytest.raises(ConfigError, match=r"the model needs 1.\d MiB or more; this machine has 1.0 MiB"),
        sizes.building("the model"),
    ):
        NepaModel(hidden_size=64, num_hidden_layers=1000, num_attention_heads=2, image_size=8, patch_size=4).build()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9}, {"hidden_size": 10**9}, {"hidden_size": 10**5}, {"image_size": 10**6},
        {"intermediate_size": 10**12}, {"num_hidden_layers": 900, "hidden_size": 4096}, {"num_channels": 10**12},
        {"num_attention_heads": 0}, {"num_hidden_layers": -1}, {"hidden_size": "x"}, {"patch_size": 10**6},
    ],
    ids=str,
)  # fmt: skip
def test_a_foreign_config_with_huge_sizes_is_rejected_at_once(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    NepaModel(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4).build(
    ).save_pretrained(folder)  # fmt: skip
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    start = time.process_time()
    for load in (NepaModel(pretrained=str(folder)).build, lambda: models_of(open_run(folder))):
        with pytest.raises(ConfigError) as caught:
            load()
        assert one_line(caught.value)
    assert time.process_time() - start < 5


def test_the_number_of_layers_is_checked_before_the_configuration_is_built(tmp_path: Path) -> None:
    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 10**9}))
    with pytest.raises(ConfigError, match="num_hidden_layers 1,000,000,000 is larger than 1,000"):
        NepaModel(pretrained=str(tmp_path)).build()
    with pytest.raises(ConfigError, match="num_hidden_layers"):
        AutoConfig.for_model("vit_nepa", num_hidden_layers=10**9)


@pytest.mark.parametrize("recipe", ["nepa_demo_tiny", "omni_emoji_tiny"])
def test_a_plan_of_a_huge_batch_is_fast(recipe: str) -> None:
    start = time.process_time()
    try:
        made = plan(apply_overrides(recipes.load(recipe), ["train.batch_size=1000000000"]), peak="h100")
        assert made.verdict == "does not fit"
    except ConfigError as err:
        assert "set train.micro_batch_size" in str(err)
    assert time.process_time() - start < 30
