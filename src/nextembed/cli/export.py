"""`export`: a checkpoint as ONNX, int8 ONNX or a torch.export program."""

import enum
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.files import checked_file
from ..core.places import NO_RUN, check_here
from ..core.terminal import print
from ..errors import ConfigError
from .arguments import LocalModel
from .options import command

if TYPE_CHECKING:
    from ..data.images import ImagePart
    from ..export.cost import Cost
    from ..export.formats import Exported
    from ..export.graph import GraphSpec
    from ..export.loading import Loaded
    from ..models.nepa import ViTNepaPreTrainedModel


class Format(enum.StrEnum):
    onnx = "onnx"
    torch = "torch"


class Task(enum.StrEnum):
    features = "features"
    classification = "classification"


class Pooling(enum.StrEnum):
    mean = "mean"
    last = "last"
    first = "first"


class Attention(enum.StrEnum):
    causal = "causal"
    full = "full"


class Weights(enum.StrEnum):
    raw = "raw"
    ema = "ema"


@dataclass
class Graph:
    """Options of the exported function."""

    task: Annotated[
        Task | None, typer.Option(help="What the exported model computes; the task of the checkpoint if left out.")
    ] = None
    layer: Annotated[int, typer.Option(help="Layer to read features from: 0 is the latents, -1 the output.")] = -1
    pooling: Annotated[
        Pooling, typer.Option(help=("How the hidden states of an image are pooled into one vector."))
    ] = Pooling.mean
    attention: Annotated[Attention | None, typer.Option(help="Attention mode; the model's own if left out.")] = None
    weights: Annotated[
        Weights | None, typer.Option(help="Trained weights (raw) or their average (ema), where there are both.")
    ] = None
    size: Annotated[str | None, typer.Option(metavar="H,W", help="Fix the image size; dynamic if left out.")] = None
    with_preprocessing: Annotated[
        bool,
        typer.Option("--with-preprocessing", help="Take uint8 images [B, H, W, C] and normalise them in the graph."),
    ] = False

    def spec(self, loaded: "Loaded", fixed: tuple[int, int] | None) -> "GraphSpec":
        """As `nextembed.export_onnx` takes it. Raises ConfigError for preprocessing that is not known."""
        from ..export.graph import GraphSpec, class_names

        if self.with_preprocessing and loaded.mean is None:
            raise ConfigError(
                f"--with-preprocessing needs {loaded.folder / 'preprocessor_config.json'}, which is not there"
            )
        return GraphSpec(
            task="classification" if loaded.classifies else "features",
            layer=self.layer,
            pooling=self.pooling.value,
            attention=self.attention.value if self.attention else None,
            size=fixed,
            mean=loaded.mean if self.with_preprocessing else None,
            std=loaded.std if self.with_preprocessing else None,
            class_names=class_names(loaded.model.config) if loaded.classifies else [],
        )


@command(graph=Graph)
def export(
    checkpoint: LocalModel,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write: model.onnx or model.pt2.")
    ],
    graph: Graph,
    format: Annotated[Format | None, typer.Option(help="File format; inferred from the extension if left out.")] = None,
    opset: Annotated[int | None, typer.Option(help="Version of the ONNX operators, at least 18.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help=("Quantise the weights to int8 (ONNX), and report the effect on accuracy."))
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help=("Images to measure the effect of int8 on; the run's own if left out.")),
    ] = None,
) -> None:
    """Write a model as ONNX or torch.export file, compared with PyTorch.

    Batch and image size are dynamic. Nothing is written if the outputs differ by more than 1e-4.

    \b
    Examples:
      nextembed export runs/mine -o model.onnx
      nextembed export runs/mine -o small.onnx --int8 --data photos
    """
    kind = file_format(output, format)
    if int8 and kind is not Format.onnx:
        raise ConfigError("--int8 needs ONNX: name the output model.onnx")
    if opset is not None and kind is not Format.onnx:
        raise ConfigError("--opset applies to ONNX only; a torch.export program has no opset")
    if data is not None and not int8:
        raise ConfigError("--data needs --int8: it names the images to measure its effect on")
    fixed = image_size(graph.size)
    checked_file(output)
    check_here(checkpoint, NO_RUN, hub=False)
    from ..export.formats import export_onnx, export_program
    from ..export.loading import load_model

    task, weights = graph.task, graph.weights
    loaded = load_model(checkpoint, task.value if task else None, weights.value if weights else None)
    spec = graph.spec(loaded, fixed)
    if int8:
        print(written_int8(loaded.model, output, spec, opset, checkpoint, data))
    elif kind is Format.onnx:
        print(written(export_onnx(loaded.model, output, spec, opset=opset), spec))
    else:
        print(written(export_program(loaded.model, output, spec), spec))


def file_format(output: Path, named: Format | None) -> Format:
    """The format, by option, else by the file's extension. Raises ConfigError if the extension is unknown."""
    if named is not None:
        return named
    by_ending = {".onnx": Format.onnx, ".pt2": Format.torch}
    if output.suffix not in by_ending:
        raise ConfigError(
            f"cannot tell the format of {output.name}: name it .onnx or .pt2, or give --format onnx | torch"
        )
    return by_ending[output.suffix]


def image_size(text: str | None) -> tuple[int, int] | None:
    """ "224,160" (height, width) or "224". Raises ConfigError for anything else."""
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) > 2 or not all(part.strip().isdigit() for part in parts):
        raise ConfigError(f"--size is HEIGHT,WIDTH in pixels, not '{text}'")
    return int(parts[0]), int(parts[-1])


def written(result: "Exported", spec: "GraphSpec") -> str:
    """Prints what was written and the difference from PyTorch."""
    opset = f", opset {result.opset}" if result.opset else ""
    sizes = " and ".join("x".join(map(str, size)) for size in result.sizes)
    return "\n".join(
        [
            f"Saved:    {os.path.relpath(result.path)} ({megabytes(result.path)}{opset})",
            f"In, out:  {spec.input_name} -> {', '.join(spec.output_names)}",
            f"Checked:  largest difference from PyTorch {result.difference:.1e} (batch x height x width {sizes})",
        ]
    )


def written_int8(
    model: "ViTNepaPreTrainedModel",
    output: Path,
    spec: "GraphSpec",
    opset: int | None,
    checkpoint: str,
    data: str | None,
) -> str:
    """Writes the int8 file and prints what it costs."""
    from ..core.files import replacing
    from ..export.cost import measure
    from ..export.formats import export_onnx
    from ..export.int8 import quantize_int8

    images, source = cost_data(checkpoint, data)
    with tempfile.TemporaryDirectory() as folder:
        full = export_onnx(model, Path(folder) / "float.onnx", spec, opset=opset)
        with replacing(output) as scratch:
            quantize_int8(full.path, scratch)
            cost = measure(full.path, scratch, spec, images, model.config)
        sizes = f"{megabytes(output)}, float {megabytes(full.path)}"
        lines = [f"Saved:    {os.path.relpath(output)} (int8: {sizes}, opset {full.opset})"]
        lines.append(f"Checked:  the float file differs from PyTorch by at most {full.difference:.1e}")
    return "\n".join(lines + cost_lines(cost, source))


def cost_data(checkpoint: str, source: str | None) -> tuple["ImagePart", str]:
    """The images on which int8 is compared with float (a data config), and their name: --data, else the run's, else
    the bundled pictures."""
    from ..data.sources import ImageData
    from ..runs import open_run
    from ..tasks.classification import images_of
    from .evaluate import probe_settings

    run = open_run(checkpoint)
    if source is None and not run.values:
        return ImageData(source="emoji"), "the bundled emoji"
    data = images_of(probe_settings(run, source, []).data)
    return data, source or str(dict(data).get("source", data.kind))


def cost_lines(cost: "Cost", source: str) -> list[str]:
    like = cost.likeness
    what = "logits" if cost.task == "classification" else "embeddings"
    lines = [
        f"Speed:    {cost.speed:.2f} times the float file's (batch {cost.batch}, one thread, onnxruntime, this CPU)",
        f"Cost:     {what}: cosine {like.mean:.5f} (lowest {like.lowest:.5f}) between float and int8, "
        f"{like.centred:.5f} with the mean feature subtracted; {like.images:,} images of {source}",
    ]
    for name, (full, small) in cost.accuracy.items():
        lines.append(
            f"          {name}: {100 * full:.1f} % -> {100 * small:.1f} % on {cost.num_scored:,} {cost.split} images"
        )
    if not cost.accuracy:
        lines.append(f"          no accuracy: {cost.reason}")
    return lines


def megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
