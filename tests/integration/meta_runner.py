"""What each rank of the tests of `training.meta_start` does: python meta_runner.py values FOLDER, or
python meta_runner.py memory, or python meta_runner.py whole CONFIG.yaml [RUN_TO_RESUME].

values: models of which rank 1 had only the shapes are compared with those that each rank builds itself. memory: how
much each rank needs. whole: a run in which each rank builds the model.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from rank_runner import fork_ranks
from torch.distributed.tensor import DTensor

from nextembed import recipes, run
from nextembed.core import distributed
from nextembed.core.config import apply_overrides, from_yaml
from nextembed.core.objective import PretrainingModel
from nextembed.errors import ConfigError
from nextembed.models.nepa.settings import NepaModel
from nextembed.models.omni import OmniParts
from nextembed.objectives.next_embedding import NextEmbeddingSettings
from nextembed.tasks import model_part, task_of
from nextembed.training import meta_start
from nextembed.training.adapt import shard

TIED = "model.language_config.tie_word_embeddings=true"


def cases(folder: Path) -> dict[str, list[str]]:
    """Recipes and overrides; those that load something find it in the folder."""
    emu, nepa = folder / "emu", folder / "nepa"
    return {
        "nepa": ["nepa_demo_tiny", "objective.target=teacher"],
        "teacher": ["ijepa_demo_tiny"],
        "loaded nepa": ["finetune_tiny", "model.architecture=null", f"model.pretrained={nepa}"],
        "tied, measured": ["emu_emoji_tiny", TIED, "model.latent_std=1.0"],
        "frozen": ["emu_emoji_tiny", "train.freeze=[visual, embed_tokens]"],
        "LoRA": ["emu_emoji_instruct_tiny", "train.lora={rank: 2, targets: [q_proj], within: language_model, whole: "
                 "[connector]}"],
        "loaded Emu": ["emu_emoji_tiny", f"model.pretrained={emu}"],
        "loaded language": ["emu_emoji_tiny", f"model.language={folder / 'language'}"],
        "measured Omni": ["omni_emoji_tiny"],
        "scenes": ["emoji_scenes_tiny"],
    }  # fmt: skip


def maker(recipe: str, *overrides: str):
    """A run's config and model part, and a function that builds its model as a run does."""
    config = apply_overrides(recipes.load(recipe), list(overrides))
    task, part = task_of(config), model_part(config)
    return config, part, partial(run.build_model, config, task, part, task.class_names(config.data))


def save_models(folder: Path) -> None:
    """What some cases load."""
    torch.manual_seed(1)
    maker("nepa_demo_tiny")[2]().backbone.save_pretrained(folder / "nepa")
    _, part, make = maker("emu_emoji_tiny", TIED)
    backbone = make().backbone
    for name, model in (("emu", backbone), ("language", backbone.model.language_model)):
        model.save_pretrained(folder / name)
        part.processor().save_pretrained(folder / name)


def whole(model: PretrainingModel) -> PretrainingModel:
    """Delivered, not sharded: FSDP2 refuses parameters of a single number, which an Omni has."""
    meta_start.delivery(model)(model)
    return model


def started(config, part, build):
    """A sharded model, the random state after its start, and whether this rank had only its shapes."""
    torch.manual_seed(3)
    model = build()
    waits = any(param.is_meta for param in model.parameters())
    meta_start.measure(model, partial(part.prepare, model.backbone, config.data))
    state = torch.get_rng_state()
    cut = whole if isinstance(part, OmniParts) else shard
    return cut(model), state, waits


def values(folder: Path) -> None:
    distributed.on_main(lambda: save_models(folder))
    for name, given in cases(folder).items():
        config, part, make = maker(*given)
        said: list[str] = []
        found, state, waited = started(config, part, partial(meta_start.build, make, True, said.append))
        expected, wanted, _ = started(config, part, make)
        assert waited == (not distributed.is_main()) and not said, (name, said)
        assert torch.equal(state, wanted), name
        same(name, found, expected)
        assert losses(config, part, found) == losses(config, part, expected), name


def same(name: str, found: PretrainingModel, expected: PretrainingModel) -> None:
    assert meta_start.outline(found) == meta_start.outline(expected), name
    for (one, a), b in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert not a.is_meta and torch.equal(local(a), local(b)), (name, one)
    for (one, a), b in zip(found.named_buffers(), expected.buffers(), strict=True):
        assert not a.is_meta and torch.equal(a, b), (name, one)


def local(value: torch.Tensor) -> torch.Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def losses(config, part, model: PretrainingModel) -> list[float]:
    """A loss, and the gradients' sizes."""
    batch = part.example_batch(model.backbone, 2, config.objective.draw)
    torch.manual_seed(5)
    loss = model.train()(batch).loss_sum.sum()
    loss.backward()
    return [float(loss), *(float(local(p.grad).abs().sum()) for p in model.parameters() if p.grad is not None)]


def falls_back() -> None:
    """A model whose shapes cannot be built is built by every rank, as before; every rank raises an error of one."""
    config, part, make = maker("emu_emoji_decoder_tiny")
    said: list[str] = []
    found, state, waited = started(config, part, partial(meta_start.build, make, True, said.append))
    expected, wanted, _ = started(config, part, make)
    assert not waited and len(said) == 1 and "every rank builds" in said[0]
    assert torch.equal(state, wanted)
    same("decoder", found, expected)
    make = maker("nepa_demo_tiny", "train.freeze=[nowhere]")[2]
    try:
        meta_start.build(make, True, said.append)
    except ConfigError as err:
        assert "train.freeze" in str(err)
    else:
        raise AssertionError("no error")


def grown(action) -> int:
    """Bytes by which the resident set grows at most."""

    def size(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    Path("/proc/self/clear_refs").write_text("5")
    before = size("VmRSS")
    action()
    return size("VmHWM") - before


def sized(width: int, layers: int) -> PretrainingModel:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2}
    backbone = NepaModel(image_size=32, patch_size=8, **sizes).build()
    return PretrainingModel(backbone, NextEmbeddingSettings().build(backbone))


def memory() -> None:
    """Prints the bytes of a model of 200 MB, and of each rank's growth until it is sharded."""
    shard(sized(24, 1))  # torch loads what it needs for sharding
    kept: list[PretrainingModel] = []
    grew = grown(lambda: kept.append(shard(meta_start.build(partial(sized, 384, 28), True, print))))
    ranks = distributed.gather_objects(grew)
    if distributed.is_main():
        print(json.dumps({"model": sum(4 * param.numel() for param in kept[0].parameters()), "ranks": ranks}))


if __name__ == "__main__":
    mode, *words = sys.argv[1:]
    fork_ranks(2)
    distributed.start("cpu")
    if mode == "values":
        values(Path(words[0]))
        falls_back()
    elif mode == "memory":
        memory()
    else:
        meta_start.build = lambda make, sharded, say: make()
        run.fit(from_yaml(run.RunConfig, Path(words[0]).read_text()), words[1] if len(words) > 1 else None)
    distributed.wait()
    distributed.stop()
