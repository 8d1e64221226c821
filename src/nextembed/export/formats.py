"""Writes a model as ONNX or torch.export program, and compares it with PyTorch before the file appears."""

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..core.files import first_line, replacing
from ..errors import ConfigError, MissingExtra
from ..models.nepa import ViTNepaPreTrainedModel
from .graph import TOLERANCE, ExportGraph, GraphSpec, greatest_difference

T = TypeVar("T")

LOWEST_OPSET = 18  # measured: for lower versions torch's exporter still writes 18 ("No Adapter To Version 17 for Pad")
PROTOBUF_LIMIT = 2**31 - 2**24  # an ONNX file cannot be larger


@dataclass(frozen=True)
class Exported:
    """A written file. difference: greatest absolute difference from PyTorch, at `sizes` (batch, height, width)."""

    path: Path
    difference: float
    sizes: list[tuple[int, int, int]]
    opset: int | None = None


def export_onnx(
    model: ViTNepaPreTrainedModel,
    path: str | Path,
    spec: GraphSpec | None = None,
    *,
    opset: int | None = None,
    tolerance: float = TOLERANCE,
    **fields: object,
) -> Exported:
    """Writes an ONNX file for any batch and image size and compares it in onnxruntime on the CPU with PyTorch.

    Args:
        model: is copied, not changed.
        path: of the file.
        spec: what the file computes; None takes `fields`.
        opset: None takes the exporter's default.
        tolerance: nothing is written if the outputs differ by more.
        fields: of `GraphSpec`, in place of `spec`.

    Returns:
        The file, its opset, the sizes it was compared at, and the greatest difference from PyTorch.

    Raises:
        ConfigError: for settings the model cannot do or an opset below 18.
        MissingExtra: without onnx.
    """
    needs("onnx", "onnxruntime", "onnxscript")
    import onnx

    highest = onnx.defs.onnx_opset_version()
    if opset is not None and not LOWEST_OPSET <= opset <= highest:
        age = "too old: the lowest that works is" if opset < LOWEST_OPSET else "not known here: the highest is"
        raise ConfigError(f"ONNX opset {opset} is {age} {LOWEST_OPSET if opset < LOWEST_OPSET else highest}")
    graph = ExportGraph(model, _spec(spec, fields))
    size = sum(p.numel() * p.element_size() for p in graph.parameters())
    if size > PROTOBUF_LIMIT:
        raise ConfigError(f"the weights take {size / 2**30:.1f} GB; one ONNX file holds at most 2 GB")
    with replacing(path) as file:
        _write_onnx(graph, file, opset)
        written = onnx.load(file)
        found = {item.domain: item.version for item in written.opset_import}[""]
        if opset is not None and found != opset:
            raise ConfigError(f"ONNX opset {opset} does not work: the exporter wrote {found}")
        onnx.helper.set_model_props(written, graph.metadata())
        for axis in (axis for output in written.graph.output for axis in output.type.tensor_type.shape.dim):
            if axis.dim_param and not axis.dim_param.isidentifier():  # a formula of rows and columns
                axis.dim_param = "latents"
        if graph.spec.size is None:
            refuse_other_sizes(written, graph)
        onnx.save(written, file)
        del written
        run = onnx_session(file)
        difference = _compare(graph, run, tolerance)
    return Exported(Path(path), difference, graph.check_sizes(), found)


def refuse_other_sizes(written: Any, graph: ExportGraph) -> None:
    """Makes an ONNX graph fail, as PyTorch does, for image sizes that the patches do not divide; a convolution would
    leave out the last rows and columns.

    The shape that the pixels are given is their own, plus a 0 that can only be had from a tensor of one element, which
    has as many more as pixels are left over.
    """
    from onnx import TensorProto, helper, numpy_helper

    pixels = graph.spec.input_name
    axes, patch = (2, 3) if graph.spec.mean is None else (1, 2), graph.config.patch_shape
    for node in written.graph.node:
        for place, name in enumerate(node.input):
            if name == pixels:
                node.input[place] = "checked_pixels"
    values = {"size_axes": axes, "patch_size": patch, "size_one": [1]}
    written.graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), name) for name, v in values.items())
    zero = helper.make_tensor("zero", TensorProto.INT64, [1], [0])
    refusal = f"image size is not a multiple of the patch size {patch[0]}x{patch[1]}"
    nodes = [
        helper.make_node("Shape", [pixels], ["size_all"]),
        helper.make_node("Gather", ["size_all", "size_axes"], ["size_pixels"]),
        helper.make_node("Mod", ["size_pixels", "patch_size"], ["size_left"]),
        helper.make_node("ReduceSum", ["size_left"], ["size_sum"], keepdims=0),
        helper.make_node("Add", ["size_one", "size_sum"], ["size_count"]),
        helper.make_node("ConstantOfShape", ["size_count"], ["size_zeros"], value=zero),
        helper.make_node("Reshape", ["size_zeros", "size_one"], ["size_zero"], name=refusal),
        helper.make_node("Add", ["size_all", "size_zero"], ["size_checked"]),
        helper.make_node("Reshape", [pixels, "size_checked"], ["checked_pixels"]),
    ]
    for place, node in enumerate(nodes):
        written.graph.node.insert(place, node)


def export_program(
    model: ViTNepaPreTrainedModel,
    path: str | Path,
    spec: GraphSpec | None = None,
    *,
    tolerance: float = TOLERANCE,
    **fields: object,
) -> Exported:
    """Writes a torch.export program (.pt2) for any batch and image size, loads it and compares it with the model.

    Image sizes start at two patches a side. `torch.export.load(path).module()` is the function.

    Args:
        model: is copied, not changed.
        path: of the file.
        spec: what the file computes; None takes `fields`.
        tolerance: nothing is written if the outputs differ by more.
        fields: of `GraphSpec`, in place of `spec`.

    Returns:
        The file, the sizes it was compared at, and the greatest difference from the model.

    Raises:
        ConfigError: for settings the model cannot do.
    """
    graph = ExportGraph(model, _spec(spec, fields))
    with replacing(path) as file:
        with _silent(), torch.no_grad():
            program = _exporting(
                lambda: torch.export.export(graph, (_example(graph),), dynamic_shapes=graph.dynamic_shapes())
            )
            torch.export.save(program, file, extra_files={f"{k}.txt": v for k, v in graph.metadata().items()})
        with _silent():
            loaded = torch.export.load(file).module()
        difference = _compare(graph, loaded, tolerance)
    return Exported(Path(path), difference, graph.check_sizes())


def onnx_session(path: str | Path, threads: int | None = None) -> Callable[[Tensor], list[Tensor]]:
    """An ONNX file as a function of tensors on the CPU. Raises ConfigError if onnxruntime cannot load it."""
    needs("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime's errors have no common class
        raise ConfigError(f"onnxruntime cannot load the file: {first_line(err)}") from err
    name = session.get_inputs()[0].name
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {name: x.numpy()})]


def needs(*packages: str) -> None:
    """Raises MissingExtra for the first package that is not installed."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise MissingExtra(package, "export") from None


def _spec(spec: GraphSpec | None, fields: dict[str, Any]) -> GraphSpec:
    if spec is not None and fields:
        raise ConfigError(f"give a GraphSpec or its fields, not both: {', '.join(fields)}")
    try:
        return spec or GraphSpec(**fields)
    except TypeError as err:
        raise ConfigError(first_line(err).replace("GraphSpec.__init__() got an ", "")) from None


def _write_onnx(graph: ExportGraph, file: Path, opset: int | None) -> None:
    with _silent(), torch.no_grad():
        program = _exporting(
            lambda: torch.onnx.export(
                graph,
                (_example(graph),),
                dynamo=True,
                opset_version=opset,
                input_names=[graph.spec.input_name],
                output_names=graph.spec.output_names,
                dynamic_shapes=graph.dynamic_shapes(),
                verbose=False,
            )
        )
        assert program is not None
        program.save(str(file))


def _example(graph: ExportGraph) -> Tensor:
    """An input without sizes of 1, which an exporter would treat as constants."""
    height, width = graph.spec.size or (3 * graph.config.patch_shape[0], 4 * graph.config.patch_shape[1])
    return graph.example(2, height, width)


def _exporting(export: Callable[[], T]) -> T:
    try:
        return export()
    except Exception as err:
        if type(err).__module__.startswith("torch"):
            raise ConfigError(f"torch cannot export this model: {first_line(err)}") from err
        raise


@torch.no_grad()
def _compare(graph: ExportGraph, run: Callable[[Tensor], Sequence[Tensor]], tolerance: float) -> float:
    worst = 0.0
    for size in graph.check_sizes():
        x = graph.example(*size)
        for name, expected, found in zip(graph.spec.output_names, graph(x), run(x), strict=True):
            worst = max(worst, greatest_difference(expected, found, f"{name} at {size}", tolerance))
    return worst


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The exporters' progress lines and warnings about their own parts are not for the user."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
