"""An ONNX model with dynamic sizes rejects images that are not a multiple of the patch size, as PyTorch does."""

import pytest
import torch

from nextembed.export.formats import export_onnx, onnx_session


@pytest.fixture(scope="module", params=[None, [0.5, 0.4, 0.3]])
def file(request, model, tmp_path_factory):
    std = None if request.param is None else [0.25, 0.5, 1.0]
    return export_onnx(model, tmp_path_factory.mktemp("onnx") / "m.onnx", mean=request.param, std=std).path


@pytest.mark.parametrize(("height", "width"), [(17, 16), (16, 18), (19, 19), (6, 8), (3, 16)])
def test_sizes_that_are_not_a_multiple_of_the_patch_size(file, height, width):
    session = onnx_session(file)
    for shape, dtype in (((2, 3, height, width), torch.float32), ((2, height, width, 3), torch.uint8)):
        with pytest.raises(Exception, match=r"not a multiple of the patch size 4x4|Unexpected input data type"):
            session(torch.zeros(shape, dtype=dtype))
