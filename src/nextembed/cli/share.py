"""`convert` and `push`: a checkpoint in another layout, or on the hub."""

import enum
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.places import NO_RUN, check_here
from ..core.terminal import print
from ..errors import ConfigError
from .app import app
from .arguments import LocalModel
from .completing import offer_models
from .export import Weights, megabytes
from .options import command

if TYPE_CHECKING:
    from ..export.emu import Converted
    from ..export.facts import Facts


class Layout(enum.StrEnum):
    official = "official"
    stable_pretraining = "stable-pretraining"
    nextembed = "nextembed"


class Adapter(enum.StrEnum):
    merge = "merge"
    keep = "keep"


class Dtype(enum.StrEnum):
    bf16 = "bf16"
    float16 = "float16"
    float32 = "float32"


@dataclass
class Bare:
    """Options that do not follow from weights alone."""

    weights: Annotated[
        Weights | None, typer.Option(help="Trained weights (raw) or their average (ema), where there are both.")
    ] = None
    heads: Annotated[int | None, typer.Option(help="Number of attention heads, for weights without a config.")] = None
    image_size: Annotated[int | None, typer.Option(help="Image size in pixels, for weights without a config.")] = None
    qk_norm: Annotated[
        bool | None,
        typer.Option(
            "--qk-norm/--no-qk-norm",
            help=("Whether queries and keys are normalised (QK-norm), for weights without a config."),
        ),
    ] = None
    causal: Annotated[
        bool | None, typer.Option("--causal/--full", help="Attention mode, for weights without a config.")
    ] = None


@dataclass
class OfEmu:
    """Options for Emu's checkpoints."""

    tokenizer: Annotated[
        Path | None, typer.Option(metavar="PATH", help="For Emu: LLaMA's tokenizer.model, or a folder.")
    ] = None
    adapter: Annotated[
        Adapter | None,
        typer.Option(help="For Emu: merge LoRA into the weights (default), or keep it as a separate adapter."),
    ] = None
    lora_alpha: Annotated[float | None, typer.Option(help="For Emu: the alpha of LoRA; 16 if left out.")] = None
    dtype: Annotated[
        Dtype | None, typer.Option(help="For Emu: dtype of the written weights; unchanged if left out.")
    ] = None
    max_shard_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="For Emu: maximum size of a weights file; 5GB if left out."),
    ] = None
    vision_heads: Annotated[
        int | None, typer.Option(help="For Emu: number of heads of the vision tower, if their width is not EVA's 88.")
    ] = None
    relative_max_distance: Annotated[
        int | None, typer.Option(help="For Emu: largest relative position of the causal former; 128 if left out.")
    ] = None


@command(bare=Bare, emu=OfEmu)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A run folder, a saved model, or a file of weights.", autocompletion=offer_models
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The new folder to write.")],
    bare: Bare,
    emu: OfEmu,
    to: Annotated[Layout, typer.Option(help="The layout to write.")] = Layout.nextembed,
) -> None:
    """Convert a checkpoint to the official, nextembed or stable-pretraining layout.

    It reads Hugging Face folders, .safetensors, .bin, .pt and .ckpt, and detects the layout by the names of the
    parameters; for Emu also the released folders and files.

    \b
    Examples:
      nextembed convert runs/mine official --to official
      nextembed convert theirs.ckpt ours --heads 12 --image-size 224
    """
    check_here(source, NO_RUN, hub=False)
    from ..export.emu import Converted
    from ..export.layouts import convert as write

    renamed = {"heads": "num_attention_heads", "causal": "is_causal"}
    given = {renamed.get(name, name): value for name, value in {**vars(bare), **vars(emu)}.items()}
    options = {name: value.value if isinstance(value, enum.Enum) else value for name, value in given.items()}
    found = write(source, target, to.value, **options)
    if isinstance(found, Converted):
        print(written_emu(source, target, found))
        return
    config = found.model.config
    print(f"Read:   {source} ({found.layout} layout, {type(found.model).__name__})")
    print(f"Saved:  {os.path.relpath(target)} ({to.value} layout, {megabytes(target / 'model.safetensors')})")
    print(
        f"Model:  width {config.hidden_size}, {config.num_hidden_layers} layers, {config.num_attention_heads} heads, "
        f"{config.image_shape[0]} px, {'causal' if config.is_causal else 'full'} attention"
    )
    if to is not Layout.nextembed and found.objective is not None:
        print(
            "        This layout has no place for its objective (which reads features or generates); it was left out."
        )
    if to is not Layout.stable_pretraining and found.processor is None:
        print("        It has no image processor: normalise pixels as in training.")


def written_emu(source: str, target: Path, found: "Converted") -> str:
    """Prints what was read and written."""
    config = found.config
    size = sum(file.stat().st_size for file in found.files)
    vision, text = config.vision_config, config.text_config
    lines = [
        f"Read:   {source} (Emu, {found.source})",
        f"Saved:  {os.path.relpath(target)} ({size / 1e6:,.1f} MB of weights in {len(found.files)} files)",
        f"Model:  encoder {vision.num_hidden_layers} x {vision.hidden_size}, {config.image_size} px; "
        f"{config.num_image_latents} latents; language model {text.num_hidden_layers} x {text.hidden_size}, "
        f"{text.vocab_size:,} tokens",
    ]
    if found.lora:
        where = "in the weights" if found.lora == "merged" else "next to them, in adapter/"
        lines.append(f"LoRA:   rank {found.rank}, {where}")
    if found.copied:
        lines.append(f"Copied: {', '.join(found.copied)}")
    if found.source != "nextembed" and not found.has_tokenizer:
        lines.append("        It has no tokenizer: give LLaMA's with --tokenizer; Emu's tokens are added to it.")
    return "\n".join(lines)


@app.command()
def push(
    target: LocalModel,
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Name of the model on the hub, USER/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    weights: Annotated[
        Weights | None,
        typer.Option(help="Trained weights (raw) or their average (ema); those of the best probe if left out."),
    ] = None,
    license: Annotated[
        str | None, typer.Option(metavar="ID", help="The licence of the weights, e.g. apache-2.0.")
    ] = None,
    dry_run: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write the files to this folder instead of uploading them."),
    ] = None,
) -> None:
    """Upload a model with a card of its data, recipe and scores.

    \b
    Examples:
      nextembed push runs/mine me/mine --license apache-2.0
      nextembed push runs/mine me/mine --dry-run card
    """
    check_here(target, NO_RUN, hub=False)
    from ..export.facts import gather
    from ..export.hub import push_to_hub, write_hub_folder

    facts = gather(target, weights.value if weights else None)
    name_recipe(facts)
    if dry_run is not None:
        folder = write_hub_folder(facts, dry_run, repo_id, license)
        names = sorted(file.name + "/" * file.is_dir() for file in folder.iterdir())
        print(f"Saved:  {os.path.relpath(folder)}: {', '.join(names)}")
        print(f"Upload: nextembed push {target} {repo_id}")
    else:
        print(f"Uploaded: {push_to_hub(facts, repo_id, private=private, license=license)}")
    if license is None:
        print("        The card states no licence; set one, e.g. --license apache-2.0.")


def name_recipe(facts: "Facts") -> None:
    """Adds the recipe of a run, else the one with the most similar name or settings, and the differences. Nothing is
    added for a model without a run."""
    from .. import recipes
    from ..core.config import to_yaml
    from ..core.run_folder import read_environment
    from ..export.facts import differences, flat

    if facts.run is None or not facts.settings:
        return
    command = read_environment(facts.run).command
    asked = facts.settings.get("name")
    name = next((word for word in [*command, asked] if isinstance(word, str) and recipes.named(word)), None)

    def changed(recipe: str) -> list[tuple[str, Any, Any]]:
        from ..core.yaml_text import read_yaml

        try:
            return differences(flat(read_yaml(to_yaml(recipes.load(recipe)), recipe)), facts.settings)
        except ConfigError:
            return [("", None, None)] * 10_000  # a recipe with missing requirements cannot be compared

    if name is None:
        name = min(recipes.recipes(), key=lambda recipe: len(changed(recipe)))
    facts.recipe, facts.changes = name, changed(name)
