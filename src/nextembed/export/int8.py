"""int8 weights for an ONNX file, and their cost: size, speed, similarity of outputs."""

import logging
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.files import first_line, replacing
from ..errors import ConfigError
from .formats import needs, onnx_session

Run = Callable[[Tensor], list[Tensor]]


class Likeness(NamedTuple):
    """Cosine between float and int8 outputs (embeddings or logits): mean and lowest over images; centred: mean after
    subtracting the float outputs' average from both, since the part that all images share makes any two similar."""

    mean: float
    lowest: float
    centred: float
    images: int


def quantize_int8(source: str | Path, target: str | Path) -> Path:
    """Writes an ONNX file with int8 weights, one scale an output channel, of a float ONNX file.

    Dynamic quantisation: linear layers only (patch embedding, norms and attention stay float), activations to uint8
    with a scale found at run time; no data needed. onnxruntime does it, since torch's own is deprecated.

    Args:
        source: a float ONNX file.
        target: the file to write.

    Returns:
        The file that was written.

    Raises:
        ConfigError: for a file that is not ONNX.
        MissingExtra: without onnxruntime.
    """
    needs("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    try:
        model = onnx.load(source)
    except Exception as err:
        raise ConfigError(f"cannot read {source} as ONNX: {first_line(err)}") from err
    with replacing(target) as file:
        logging.disable(logging.WARNING)  # it recommends a graph clean-up that torch's exporter has done
        try:
            quantize_dynamic(
                model, file, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
            )
        finally:
            logging.disable(logging.NOTSET)
        written = onnx.load(file)
        if not any(node.op_type in ("MatMulInteger", "DynamicQuantizeMatMul") for node in written.graph.node):
            raise ConfigError(f"{source} has no linear layer that could be quantised")
        properties = {item.key: item.value for item in model.metadata_props}
        onnx.helper.set_model_props(written, properties | {"weights": "int8"})
        onnx.save(written, file)
        onnx_session(file)
    return Path(target)


def likeness(float_run: Run, int8_run: Run, batches: Iterable[Tensor]) -> Likeness:
    """Similarity of the last outputs (embedding or logits) of two files, image by image."""
    pairs = [(float_run(x)[-1], int8_run(x)[-1]) for x in batches]
    full, small = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    cosines = F.cosine_similarity(full, small, dim=-1)
    centred = F.cosine_similarity(full - full.mean(0), small - full.mean(0), dim=-1)
    return Likeness(cosines.mean().item(), cosines.min().item(), centred.mean().item(), len(cosines))


def speed_ratio(float_run: Run, int8_run: Run, x: Tensor, rounds: int = 7) -> tuple[float, float]:
    """(milliseconds of a call of the int8 file, how many times faster than the float file): medians over rounds in
    which the two take turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    float_run(x), int8_run(x)  # warm-up
    for _ in range(rounds):
        for run, found in zip((float_run, int8_run), seconds, strict=True):
            start = time.perf_counter()
            run(x)
            found.append(time.perf_counter() - start)
    slow, fast = (statistics.median(found) for found in seconds)
    return 1000 * fast, slow / fast
