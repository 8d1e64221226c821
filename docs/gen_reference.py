"""Writes the reference pages while the site is built: settings, recipes, commands, public names.

mkdocs-gen-files runs this file; nothing that it writes is committed. Types, defaults and ranges come from the pydantic
classes, descriptions from their docstrings, commands from the typer app, so that the pages cannot differ from the code.
"""

import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import nextembed
from nextembed import recipes
from nextembed.cli import app
from nextembed.comparison.settings import CompareSettings
from nextembed.core.config import DATA, DECODERS, MODELS, Config, Registry
from nextembed.core.objective import OBJECTIVES, SampleSettings, ViewSettings
from nextembed.core.optim import OptimConfig
from nextembed.data.shard_settings import ShardSettings
from nextembed.evaluation.features.settings import ManySettings
from nextembed.evaluation.language.protocols import LanguageEval
from nextembed.evaluation.probes.sweep import ProbeConfig
from nextembed.inference.measuring import SampleEval
from nextembed.inference.settings import Painting, Sampling
from nextembed.planning.settings import PlanSettings
from nextembed.runs import RunConfig
from nextembed.training.adapt import LoraSettings
from nextembed.training.settings import TrainConfig

# Units by the house's names: `*_rate` is a share, `num_*` a number of things, `*_steps` optimizer steps.
UNITS = (
    (r"(betas|decay|.*_decay|.*_rate|.*_prob|label_smoothing|top_p|max_cosine|utilisation)", "share of 1"),
    (r"(.*_lr_rate|part_lr_rates)", "factor"),
    (r"(.*_steps|save_steps)", "steps"),
    (r"(epochs|.*_epochs)", "epochs"),
    (r"(image_size|patch_size|canvas_size|scene_size|local_size|size|.*pixels)", "pixels"),
    (r"max_bytes", "bytes"),
    (r"attentive_gigabytes", "GB"),
    (r".*seconds", "seconds"),
    (r"minutes", "minutes"),
    (r"memory", "GiB"),
    (r"peak", "TFLOP/s"),
    (r"flops", "FLOPs"),
    (r"max_turn", "degrees"),
    (r"max_length", "positions"),
    (r"(batch_size|micro_batch_size|images_seen|labels_per_class)", "samples"),
)

SECTIONS: dict[str, tuple[str, dict[str, type[Config]]]] = {
    "run": ("A run as a whole: its name, seed and groups of settings.", {"run": RunConfig}),
    "train": ("`train.*`: length, batch, precision, checkpoints.", {"train": TrainConfig, "train.lora": LoraSettings}),
    "optim": ("`optim.*`: optimizer and learning rate.", {"optim": OptimConfig}),
    "probe": ("`probe.*`: what is measured on frozen features.", {"probe": ProbeConfig}),
    "commands": (
        "Settings of commands and Python functions that are no part of a run.",
        {
            "compare": CompareSettings,
            "embed": ManySettings,
            "evaluate --task": LanguageEval,
            "generate and chat: text": Sampling,
            "generate: painting": Painting,
            "sample": SampleSettings,
            "evaluate --task samples": SampleEval,
            "shard": ShardSettings,
            "plan": PlanSettings,
        },
    ),
}
KINDS: dict[str, tuple[str, Registry[typing.Any]]] = {
    "data": ("`data.*`: what is read. `data.kind` chooses.", DATA),
    "model": ("`model.*`: the backbone. `model.kind` chooses.", MODELS),
    "objective": ("`objective.*`: what is learned. `objective.kind` chooses.", OBJECTIVES),
    "decoder": ("`objective.decoder.*`: what paints, for `objective.kind=visual_decoder`.", DECODERS),
}

API = {
    "Runs": "fit open_run Run RunConfig recipes allow_code TrainConfig OptimConfig ProbeConfig",
    "Comparisons": "compare CompareSettings Comparison",
    "Features and search": "encode Encoder embed build_index search",
    "Generation": "Sampler SampleSettings measure_samples SampleEval Talker Conversation Sampling EmuPipeline",
    "Planning and pictures": "plan Plan visualize Visualization",
    "Export and sharing": "export_onnx export_program quantize_int8 convert push_to_hub",
    "NEPA models": "NepaModel ViTNepaConfig ViTNepaModel ViTNepaForPreTraining ViTNepaForImageClassification"
    " ViTNepaForSemanticSegmentation ViTNepaBackbone",
    "Emu models": "EmuParts EmuConfig EmuModel EmuForConditionalGeneration EmuProcessor VisualDecoder train_tokenizer",
    "Omni models": "OmniParts OmniConfig OmniModel OmniForPreTraining OmniProcessor",
    "Objectives": "Objective ObjectiveOutput ObjectiveSettings ViewSettings NextEmbedding NextEmbeddingSettings"
    " EmuSettings LatentDecoderSettings load_decoder",
    "Parts of your own": "Config Part ModelPart DATA MODELS OBJECTIVES MODALITIES Modality Patches in_time",
    "Types": "Backbone Batch Document Hidden Latents Sample Segment",
    "Data": "ImageData ImagePart DocumentPart Unreadable shard",
    "Errors": "NextEmbedError ConfigError DataError MissingSplit TrainingError",
}
if MORE := set(dir(nextembed)) - {"__version__"} - {name for names in API.values() for name in names.split()}:
    API["More"] = " ".join(sorted(MORE))
INTERNALS = {
    "Layers and losses": "nn.losses nn.diagnostics nn.density nn.sampled nn.generative nn.orders nn.masks nn.quantize",
    "Contracts": "core.types core.objective tasks.base modalities.base core.sample_scores",
}


def type_text(annotation: object) -> str:
    """A type in words: `int or null`, `"mean" or "last"`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return "null"
    if origin is typing.Annotated:
        return type_text(args[0])
    if origin is typing.Literal:
        return " or ".join(f'"{one}"' if isinstance(one, str) else str(one) for one in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_text(one) for one in args))
    if origin in (list, tuple):
        inner = [type_text(one) for one in args if one is not ...]
        return f"list of {inner[0]}" if len(set(inner)) == 1 else f"[{', '.join(inner)}]"
    if origin in (dict, types.MappingProxyType):
        return f"{{{type_text(args[0])}: {type_text(args[1])}}}"
    if isinstance(annotation, type):
        if issubclass(annotation, BaseModel):
            return "group"
        return {"str": "text", "float": "number", "int": "integer", "bool": "true or false", "dict": "group"}.get(
            annotation.__name__, annotation.__name__
        )
    return "any" if annotation is typing.Any else str(annotation).replace("typing.", "")


def default_text(field: FieldInfo) -> str:
    """The default as one would write it in YAML."""
    if field.is_required():
        return "required"
    return value_text(field.get_default(call_default_factory=True))


def value_text(value: object) -> str:
    """A value as YAML has it; a group of settings by its kind."""
    if isinstance(value, BaseModel):
        kind = vars(value).get("kind")
        return f"`{kind}`" if kind else "a group"
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower().replace('none', 'null')}`"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{value}`" if value != "" else "empty"


def range_text(field: FieldInfo) -> str:
    """What values are allowed, where it is short to say; limits that only keep nonsense out are not shown."""
    found = {}
    for mark in field.metadata:
        for side in ("ge", "gt", "le", "lt"):
            if side in dir(mark):
                found[side] = getattr(mark, side)
    low = f"≥ {found['ge']:g}" if "ge" in found else f"> {found['gt']:g}" if "gt" in found else ""
    high = f"≤ {found['le']:g}" if "le" in found else f"< {found['lt']:g}" if "lt" in found else ""
    if high and float(found.get("le", found.get("lt", 0))) > 10_000:
        high = ""
    return ", ".join(part for part in (low, high) if part)


def unit_text(name: str) -> str:
    """The unit of a setting, by its name."""
    last = name.rpartition(".")[2]
    return next((unit for pattern, unit in UNITS if re.fullmatch(pattern, last)), "")


def bars(text: str) -> str:
    """Text whose bars do not end a cell."""
    return text.replace("|", "\\|")


def cell(text: str) -> str:
    """Text for one cell of a table: one line, bars and braces escaped, a capital first."""
    text = bars(" ".join(text.split())).replace("<", "&lt;")
    return text[:1].upper() + text[1:]


def row(name: str, field: FieldInfo, value: str) -> str:
    """One setting as a row of a table."""
    kind = type_text(field.annotation).replace('"', "`")
    kind = ", ".join(part for part in (kind, range_text(field), unit_text(name)) if part).replace("<", "&lt;")
    return f"| `{name}` | {bars(kind)} | {bars(value)} | {cell(field.description or '')} |"


def table(rows: list[str], value: str = "Default") -> str:
    return "\n".join([f"| Setting | Type, range, unit | {value} | Description |", "|---|---|---|---|", *rows]) + "\n\n"


def intro(cls: type) -> str:
    """The docstring of a class without its table of attributes; sources as a line."""
    text = inspect.cleandoc(cls.__doc__ or "")
    text = re.sub(r"(?m)^Attributes:\n(?:(?:[ \t]+.*)?\n?)*", "", text)
    text = re.sub(
        r"(?m)^Source:\n((?:[ \t]+.*\n?)+)", lambda found: "Source: " + " ".join(found[1].split()) + "\n", text
    )
    return text.strip() + "\n\n"


def settings_of(cls: type[Config]) -> str:
    """A class of settings: what it is for, and each field."""
    rows = [row(name, field, default_text(field)) for name, field in cls.model_fields.items() if name != "kind"]
    return intro(cls) + (table(rows) if rows else "No settings.\n\n")


def settings_pages() -> Iterator[tuple[str, str]]:
    """(file, text) of the pages about settings."""
    index = "# Settings\n\nEvery setting, with type, default, unit, range and description, generated from the code. "
    index += "On the command line write `group.name=value`; `nextembed recipes NAME` prints those of a recipe.\n\n"
    index += "| Page | |\n|---|---|\n"
    for name, (about, classes) in SECTIONS.items():
        title = name.capitalize()
        index += f"| [{title}]({name}.md) | {about} |\n"
        text = f"# Settings: {name}\n\n{about}\n\n"
        for heading, cls in classes.items():
            text += f"## {heading}\n\n{settings_of(cls)}"
        yield f"{name}.md", text
    for name, (about, registry) in KINDS.items():
        index += f"| [{name.capitalize()}]({name}.md) | {about} |\n"
        text = f"# Settings: {name}\n\n{about}\n\n"
        for kind, cls in sorted(registry.classes.items()):
            text += f"## {kind}\n\n{settings_of(cls)}"
        if name == "objective":
            text += f"## Crops of an objective\n\n{settings_of(ViewSettings)}"
        yield f"{name}.md", text
    yield "index.md", index


def flat(config: Config, path: str = "") -> Iterator[tuple[str, FieldInfo, object]]:
    """(dotted name, field, value) of every setting, groups opened."""
    for name, field in type(config).model_fields.items():
        value = vars(config)[name]
        if isinstance(value, Config):
            if "kind" in type(value).model_fields:
                yield f"{path}{name}.kind", type(value).model_fields["kind"], vars(value)["kind"]
            yield from (one for one in flat(value, f"{path}{name}.") if one[0] != f"{path}{name}.kind")
        else:
            yield f"{path}{name}", field, value


def recipe_pages() -> Iterator[tuple[str, str]]:
    """(file, text) of a page for each recipe, and of their list."""
    index = "# Recipes and their settings\n\nEvery setting of every recipe, generated from the code. "
    index += "What the recipes are for: [Recipes](../../recipes.md).\n\n| Recipe | |\n|---|---|\n"
    for name in sorted(recipes.recipes()):
        config = recipes.load(name)
        doc = inspect.cleandoc(recipes.recipes()[name].__doc__ or "")
        index += f"| [`{name}`]({name}.md) | {cell(doc.splitlines()[0])} |\n"
        rows = []
        for path, field, value in flat(config):
            usual = default_text(field)
            shown = value_text(value)
            rows.append(row(path, field, f"**{shown}**" if shown != usual else shown))
        head = f"---\nsearch:\n  exclude: true\n---\n# Recipe {name}\n\n{doc}\n\n```sh\nnextembed train {name}\n```\n\n"
        yield f"{name}.md", head + "Values in bold differ from the defaults of their class.\n\n" + table(rows, "Value")
    yield "index.md", index


def command_page() -> str:
    """Every command with its arguments, options and examples."""
    group = typing.cast(typing.Any, typer.main.get_command(app))
    text = "# Command line\n\nGenerated from the program. `nextembed COMMAND --help` prints the same.\n\n"
    for name, command in group.commands.items():
        help_text = inspect.cleandoc(command.help or "")
        about, _, examples = help_text.partition("\b\nExamples:")
        context = command.context_class(command, info_name=name)
        usage = " ".join(["nextembed", name, *command.collect_usage_pieces(context)])
        text += f"## {name}\n\n{about.strip()}\n\n```text\n{usage}\n```\n\n"
        if examples.strip():
            text += f"```sh\n{inspect.cleandoc(examples)}\n```\n\n"
        rows = []
        for param in command.params:
            names = ", ".join(f"`{one}`" for one in [*param.opts, *param.secondary_opts]) or param.name
            if param.param_type_name == "argument":
                names = f"`{param.metavar or param.name.upper()}`"
            default = param.default() if isinstance(param.default, Callable) else param.default
            given = "" if default in (None, False, [], ()) or str(default).startswith("Sentinel") else f"`{default}`"
            rows.append(f"| {bars(names)} | {given} | {cell(param.help or '')} |")
        if rows:
            text += "| Argument or option | Default | |\n|---|---|---|\n" + "\n".join(rows) + "\n\n"
    return text


def place_of(name: str) -> str:
    """Where a public name is defined, for mkdocstrings."""
    return f"nextembed.{nextembed._MODULE_OF[name]}.{name}" if name in nextembed._MODULE_OF else f"nextembed.{name}"


def defined(name: str) -> str:
    """The full name of a class or function, in the module that defines it."""
    found = vars(nextembed).get(name) or getattr(nextembed, name)
    if isinstance(found, type | types.FunctionType):
        return f"{found.__module__}.{found.__qualname__}"
    return place_of(name)


def module_text(module: str) -> str:
    """What a module holds besides the names that have a page of their own."""
    found = importlib.import_module(f"nextembed.{module}")
    shown = {defined(name) for names in API.values() for name in names.split() if name != "recipes"}
    own = [
        name
        for name, one in vars(found).items()
        if not name.startswith("_") and isinstance(one, type | types.FunctionType) and one.__module__ == found.__name__
        if f"{found.__name__}.{one.__qualname__}" not in shown
    ]
    return f"::: nextembed.{module}\n    options:\n      members: [{', '.join(own)}]\n\n"


def api_pages() -> Iterator[tuple[str, str]]:
    """(file, text) of the pages about public names."""
    index = "# Python API\n\nPublic names of `nextembed` (`nextembed.fit`, ...), by what they are for; "
    index += "then modules behind them.\n\n"
    for title, names in API.items():
        file = title.lower().replace(" ", "_") + ".md"
        own = names.split()
        index += f"- [{title}]({file}): {', '.join(f'`{name}`' for name in own)}\n"
        text = f"# {title}\n\n"
        for name in own:
            if name == "recipes":
                text += "## recipes\n\nEach recipe is a function, `recipes.nepa_demo()`; "
                text += "see [Recipes and their settings](../recipes/index.md).\n\n"
            elif name in ("DATA", "MODELS", "OBJECTIVES", "MODALITIES"):
                text += f"## {name}\n\n{REGISTRIES[name]}\n\n"
            else:
                text += f"::: {defined(name)}\n\n"
        yield file, text
    for title, modules in INTERNALS.items():
        file = title.lower().replace(" ", "_") + ".md"
        index += f"- [{title}]({file}): {', '.join(f'`{module}`' for module in modules.split())}\n"
        yield file, f"# {title}\n\n" + "".join(module_text(module) for module in modules.split())
    yield "index.md", index


REGISTRIES = {
    "DATA": 'The kinds of data, by name: `@DATA.register("name")` above a settings class adds one.',
    "MODELS": 'The kinds of backbones: `@MODELS.register("name")` above a `ModelPart` adds one.',
    "OBJECTIVES": 'The objectives: `@OBJECTIVES.register("name")` above an `ObjectiveSettings` adds one.',
    "MODALITIES": 'The modalities: `@MODALITIES.register("name")` above a `Modality` adds one.',
}


def pages() -> Iterator[tuple[str, str]]:
    """(file below docs/reference, text) of everything."""
    yield "cli.md", command_page()
    for folder, made in (("settings", settings_pages()), ("recipes", recipe_pages()), ("api", api_pages())):
        yield from ((f"{folder}/{file}", text) for file, text in made)


if __name__ == "<run_path>":  # of mkdocs-gen-files
    import mkdocs_gen_files

    for file, text in pages():
        with mkdocs_gen_files.open(f"reference/{file}", "w") as out:
            out.write(text)
