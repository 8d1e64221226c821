import json

import pytest
import torch

import nextembed
from nextembed.errors import ConfigError, MissingExtra
from nextembed.export import formats
from nextembed.export.formats import export_onnx, export_program, onnx_session
from nextembed.export.graph import ExportGraph, GraphSpec, greatest_difference
from nextembed.export.int8 import likeness, quantize_int8, speed_ratio
from nextembed.models.nepa_spt import SptNepaConfig, SptNepaForPreTraining

SHAPES = [(1, 16, 16), (5, 8, 24), (2, 32, 8), (3, 64, 64)]


def pixels(batch, height, width, seed=7):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    result = export_onnx(model, tmp_path_factory.mktemp("onnx") / "model.onnx")
    assert result.opset >= 18 and result.difference < 1e-4 and result.path.is_file()
    assert {(size[0], size[1] == size[2]) for size in result.sizes} == {(1, True), (5, False)}
    return result.path


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_onnx_equals_pytorch_at_any_batch_and_size(model, file, shape):
    x = pixels(*shape)
    hidden, embedding = onnx_session(file)(x)
    expected = model(x).last_hidden_state
    assert (hidden - expected).abs().max() < 1e-4
    assert (embedding - expected[:, 1:].mean(1)).abs().max() < 1e-4


def test_onnx_names_and_metadata(file):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file))
    assert [i.name for i in session.get_inputs()] == ["pixel_values"]
    assert {o.name: o.shape for o in session.get_outputs()} == {
        "last_hidden_state": ["batch", "latents", 16],
        "embedding": ["batch", 16],
    }
    about = session.get_modelmeta().custom_metadata_map
    assert (about["layer"], about["attention"], about["pooling"]) == ("2", "causal", "mean")
    assert json.loads(about["patch_size"]) == [4, 4]


@torch.no_grad()
def test_inner_layer_full_attention_with_preprocessing(model, tmp_path):
    spec = GraphSpec(layer=1, attention="full", pooling="first", mean=[0.5, 0.4, 0.3], std=[0.25, 0.5, 1.0])
    path = export_onnx(model, tmp_path / "model.onnx", spec, opset=18).path
    images = torch.randint(0, 256, (3, 12, 20, 3), dtype=torch.uint8)
    hidden, embedding = onnx_session(path)(images)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    normalised = (images.permute(0, 3, 1, 2) / 255 - mean) / std
    expected = model(normalised, is_causal=False, output_hidden_states=True).hidden_states[1]
    assert (hidden - expected).abs().max() < 1e-4
    assert torch.equal(embedding, hidden[:, 0])


@torch.no_grad()
def test_classifier_carries_its_names(classifier, tmp_path):
    import onnxruntime

    path = export_onnx(
        classifier, tmp_path / "c.onnx", task="classification", class_names=["cat", "dog", "eel"], size=(16, 24)
    ).path
    session = onnxruntime.InferenceSession(str(path))
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == ["cat", "dog", "eel"]
    assert session.get_inputs()[0].shape == ["batch", 3, 16, 24]
    x = pixels(4, 16, 24)
    assert (onnx_session(path)(x)[0] - classifier(x).logits).abs().max() < 1e-4


@torch.no_grad()
def test_program_loads_and_equals_eager(model, tmp_path):
    result = export_program(model, tmp_path / "model.pt2", pooling="last")
    run = torch.export.load(result.path).module()
    for shape in SHAPES:
        x = pixels(*shape)
        hidden, embedding = run(x)
        expected = model(x).last_hidden_state
        assert (hidden - expected).abs().max() < 1e-5
        assert torch.equal(embedding, hidden[:, -1])


def test_the_plain_path_is_exported(model):
    """The graph has no fused CPU functions, and LayerScale is folded into the weights."""
    graph = ExportGraph(model, GraphSpec())
    program = torch.export.export(graph, (graph.example(2, 12, 16),), dynamic_shapes=graph.dynamic_shapes())
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("complex" in target or "vector_norm" in target for target in targets)
    assert any("layer_norm" in target for target in targets)
    assert not any("lambda1" in name for name in program.state_dict)
    assert model.vit_nepa.encoder.layer[0].layer_scale.lambda1 is not None  # the model itself is unchanged


@torch.no_grad()
def test_stable_pretraining_model_is_exported_too(tmp_path):
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=10)
    model = SptNepaForPreTraining(SptNepaConfig(**sizes, image_size=16, patch_size=4, layerscale_value=0.5)).eval()
    path = export_program(model, tmp_path / "s.pt2").path
    x = pixels(2, 8, 20)
    assert (torch.export.load(path).module()(x)[0] - model(x).last_hidden_state).abs().max() < 1e-5


@torch.no_grad()
def test_int8_is_smaller_and_nearly_the_same(model, file, tmp_path):
    import onnx

    path = quantize_int8(file, tmp_path / "small.onnx")
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("MatMulInteger") == 2 * 7  # query, key, value, output, gate, up, down
    runs = onnx_session(file, threads=1), onnx_session(path, threads=1)
    batches = [pixels(4, 16, 16, seed) for seed in range(3)]
    found = likeness(*runs, batches)
    assert found.images == 12 and 0.9 < found.lowest <= found.mean < 0.99999 and found.centred > 0.9
    milliseconds, ratio = speed_ratio(*runs, batches[0], rounds=2)
    assert milliseconds > 0 and ratio > 0


def test_int8_of_a_file_that_is_not_onnx(tmp_path):
    (tmp_path / "x.onnx").write_text("no model")
    with pytest.raises(ConfigError, match=r"cannot read .* as ONNX"):
        quantize_int8(tmp_path / "x.onnx", tmp_path / "y.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]


# -- errors


@pytest.mark.parametrize("opset", [9, 17])
def test_old_opset(model, tmp_path, opset):
    with pytest.raises(ConfigError, match=f"opset {opset} is too old: the lowest that works is 18"):
        export_onnx(model, tmp_path / "m.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_future_opset(model, tmp_path):
    with pytest.raises(ConfigError, match="opset 99 is not known here: the highest is"):
        export_onnx(model, tmp_path / "m.onnx", opset=99)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layer": 3}, "layer 3 is not in 0..2"),
        ({"size": (16, 15)}, "size 16,15 is not a multiple of the patch size 4x4"),
        ({"task": "classification"}, "has no classifier"),
        ({"pooling": "first"}, "sees no patch"),
        ({"mean": [0.5], "std": [0.5]}, "do not fit 3 channels"),
        ({"pool": "mean"}, "unexpected keyword argument 'pool'"),
    ],
)
def test_settings_the_model_does_not_support(model, tmp_path, fields, words):
    with pytest.raises(ConfigError, match=words):
        export_program(model, tmp_path / "m.pt2", **fields)
    assert not list(tmp_path.iterdir())


def test_a_deviation_from_pytorch_leaves_no_file(model, tmp_path):
    with pytest.raises(ConfigError, match=r"differs from PyTorch by .*; nothing was saved"):
        export_onnx(model, tmp_path / "m.onnx", tolerance=0.0)
    assert not list(tmp_path.iterdir())


def test_differences_are_measured():
    one = torch.ones(2, 3)
    assert greatest_difference(one, one + 5e-5, "x") == pytest.approx(5e-5, rel=0.01)
    assert greatest_difference(1000 * one, 1000 * one + 0.05, "x") == pytest.approx(0.05, rel=0.01)
    for wrong in (one + 2e-4, one * float("nan"), one[:1]):
        with pytest.raises(ConfigError):
            greatest_difference(one, wrong, "x")


def test_missing_extra(model, tmp_path, monkeypatch):
    def no_onnx(name):
        raise ImportError(name)

    monkeypatch.setattr(formats.importlib, "import_module", no_onnx)
    with pytest.raises(MissingExtra, match=r"pip install 'nextembed\[export\]'"):
        export_onnx(model, tmp_path / "m.onnx")


def test_public_names():
    assert nextembed.export_onnx is export_onnx and nextembed.export_program is export_program
