"""Every objective fulfils its contract on every compatible backbone. New objectives are tested once registered.

MODELS and BATCHES contain a tiny backbone of each kind and its input. SETTINGS are for objectives whose defaults are
too large, and further variants; other objectives are tested with their defaults.
"""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import nextembed
import nextembed.models.loading
import nextembed.objectives  # noqa: F401
from nextembed.core import config as parts
from nextembed.core.config import common_task
from nextembed.core.objective import OBJECTIVES, PretrainingModel, SampleSettings, Verdict
from nextembed.core.types import Batch, Encodes, Hidden, reads_clips
from nextembed.data.collate import Collate
from nextembed.data.draws import DrawnEncode, drawing, signed
from nextembed.data.packing import pack
from nextembed.errors import ConfigError, NotGenerative

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "layerscale_value": 1.0}
NEPA = {**SIZES, "image_size": 16, "patch_size": 4, "drop_path_prob": 0.2}
CLIPS = {**NEPA, "hidden_size": 48, "num_frames": 4}
OF_CLIPS = ("vjepa", "next_embedding", "cpc")  # objectives that also support clips
DRAWN_PATHS = {"architecture": NEPA, "drop_path_prob": 0.2}
UPERNET = {"head": "upernet", "head_width": 16, "architecture": {**NEPA, "num_hidden_layers": 4}}
BOUNDARY = {"text": {}, "image": {"image_size": 8, "patch_size": 4}, "touch": {"kind": "series", "channels": 2,
            "patch_size": 2}}  # fmt: skip
OMNI = {**SIZES, "modalities": BOUNDARY, "drop_path_prob": 0.2, "max_length": 64}
EMU = {
    "vision_config": {"model_type": "vit_nepa", **SIZES, "intermediate_size": 48, "image_size": 8, "patch_size": 4},
    "language_config": {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                        "intermediate_size": 48, "vocab_size": 300, "max_position_embeddings": 256},
    "tokenizer": "bundled", "num_image_latents": 4, "max_length": 64,
    "causal_former": {"d_model": 24, "d_kv": 8, "num_heads": 3, "d_ff": 32, "num_layers": 1, "dropout_rate": 0.0},
}  # fmt: skip
MODELS: dict[str, list[dict[str, Any]]] = {
    "vit_nepa": [NEPA],
    "vit_nepa_classifier": [DRAWN_PATHS],
    "vit_nepa_segmenter": [DRAWN_PATHS, UPERNET],
    "omni": [
        OMNI,
        {**OMNI, "density": "mixture", "orders": {"image": "random"}},
        {**OMNI, "density": "flow"},
        {**OMNI, "density": "energy"},
    ],
    "emu": [EMU],
}
CLASSES = ["a", "b", "c"]
PIXELS = {"kind": "pixels", "image_size": 8, "patch_size": 2, "channels": [8, 16], "head_width": 8}
CODED = {"image_shape": [16, 16], "patch_shape": [4, 4], "num_channels": 3, "num_codes": 8, "code_width": 4, "width": 8,
         "num_blocks": 0}  # fmt: skip
SETTINGS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "next_embedding": {
        "vit_nepa": [
            {}, {"input_mask_rate": 0.4, "every_layer": True}, {"target": "teacher", "target_layer": -1},
            {"distance": "sigreg", "sigreg_width": 8, "steps_ahead": [1, 3]}, {"distance": "info_nce"},
        ],
        "omni": [{"distance": "vocabulary"}, {"distance": "vocabulary", "context_drop_rate": 0.5}],
    },
    "aim": {"vit_nepa": [{"head_blocks": 1}, {"head_blocks": 0, "normalise": False}]},
    "mae": {"vit_nepa": [{"decoder_width": 16, "decoder_layers": 1, "decoder_heads": 2}]},
    "ijepa": {"vit_nepa": [{"predictor_width": 16, "predictor_layers": 1, "predictor_heads": 2}]},
    "mar": {"vit_nepa": [{"num_classes": 3, "decoder_width": 16, "decoder_heads": 2, "ema_decay": 0.9},
                         {"head": "diffusion", "decoder_width": 16, "decoder_heads": 2, "ema_decay": None}]},
    "cpc": {"vit_nepa": [{}]},
    "igpt": {"vit_nepa": [{"num_codes": 8}]},
    "igpt_bert": {"vit_nepa": [{"num_codes": 8}]},
    "beit": {"vit_nepa": [{"num_codes": 8}]},
    "tokenizer": {"vit_nepa": [{"num_codes": 8, "width": 8}, {"num_codes": 8, "width": 8, "scales": [1, 2, 4]}]},
    "llamagen": {"vit_nepa": [{"num_classes": 3, "tokenizer_shape": CODED}]},
    "var": {"vit_nepa": [{"num_classes": 3, "tokenizer_shape": {**CODED, "scales": [1, 2, 4]}}]},
    "simsiam": {"vit_nepa": [{"width": 16}]},
    "lejepa": {"vit_nepa": [{"width": 8, "num_directions": 16}]},
    "classification": {"vit_nepa_classifier": [{}, {"mixup_alpha": 0.8}]},
    "latent_decoder": {"vit_nepa": [{"width": 16, "num_layers": 1, "num_heads": 2, "source": source, "edge_weight": 1.0}
                                    for source in ("latents", "predictions")]},
    "readout": {"omni": [{}, {"source": "predictions", "decoder": "conv", "width": 8}]},
    "emu": {"emu": [{}, {"regression": "flow"}]},
    "visual_decoder": {"emu": [{"decoder": PIXELS, "ema_decay": 0.9}]},
}  # fmt: skip


def build(model: str, model_settings: dict[str, Any], kind: str, settings: dict[str, Any]) -> PretrainingModel:
    torch.manual_seed(0)
    part: Any = parts.MODELS.parse({"kind": model, **copy.deepcopy(model_settings)})
    backbone = part.build(*([CLASSES] if part.task in ("classification", "segmentation") else []))
    made = PretrainingModel(backbone, OBJECTIVES.parse({"kind": kind, **settings}).build(backbone))
    made.part = part
    return made


def cases() -> list[Any]:
    found = []
    for kind, objective in OBJECTIVES.classes.items():
        if ".py:" in kind:
            continue
        for model, given in MODELS.items():
            if common_task(objective, parts.MODELS.classes[model]) is None:
                continue
            for number, model_settings in enumerate(given):
                for settings in SETTINGS.get(kind, {}).get(model, [{}]):
                    name = f"{kind}-{model}{number or ''}-{settings}"
                    found.append(pytest.param(model, model_settings, kind, settings, id=name))
    return found + [pytest.param("vit_nepa", CLIPS, kind, {}, id=f"{kind}-clips") for kind in OF_CLIPS]


CASES = cases()


def test_every_objective_and_model_is_tested() -> None:
    tested = {(case.values[2], case.values[0]) for case in CASES}
    own = {kind for kind in OBJECTIVES.classes if ".py:" not in kind}
    assert {kind for kind, _ in tested} == own
    assert {model for _, model in tested} == set(MODELS) == {k for k in parts.MODELS.classes if ".py:" not in k}


@pytest.fixture(scope="module")
def made() -> dict[str, PretrainingModel]:
    return {}


def images(model: PretrainingModel, num: int) -> Batch:
    settings = model.objective.settings
    generator = torch.Generator().manual_seed(1)
    config = model.backbone.config
    frames = config.num_frames if reads_clips(config) else 1
    pixels = torch.randint(0, 256, (num, 3 * frames, 16, 16), generator=generator).float()
    shape = (num, 16, 16) if settings.task == "segmentation" else (num,)
    labels = torch.randint(0, len(CLASSES), shape, generator=generator)
    collate = Collate(0.5, 0.5, 17 if frames == 1 else 1 + 16 * frames // 2, drawing(settings))
    batch = collate([pixels], [0] * num, torch.zeros(num, 3, dtype=torch.int64), [2**40 + i for i in range(num)])
    batch["labels"] = labels
    batch["latent_mask"][0, 9:] = False  # the number of targets varies between samples
    if settings.views != 1:
        views: Any = settings.views
        many, few, side = (views, 0, 8) if isinstance(views, int) else (views.num_global, views.num_local, 8)
        batch["global_views"] = torch.randn(num, many, 3, 16, 16, generator=generator)
        batch["local_views"] = torch.randn(num, few, 3, side, side, generator=generator)
        batch["pixel_values"] = batch["global_views"][:, 0]
    return batch


def documents(model: PretrainingModel, num: int) -> Batch:
    part: Any = model.part
    draw, encode = drawing(model.objective.settings), part.loader_arguments(model.backbone)["encode"]
    encode = encode if draw is None else DrawnEncode(encode, draw)
    rows = []
    for seed in range(num):
        picture = np.random.default_rng(seed).integers(0, 256, (3, 8, 8), dtype=np.uint8)
        pieces = [("text", "a " * (seed + 1)), ("image", torch.from_numpy(picture)), ("text", "it")]
        if part.kind == "omni":
            pieces.append(("touch", torch.randn(2, 4 + 2 * seed, generator=torch.Generator().manual_seed(seed))))
        segments = [{"kind": name, "value": value} for name, value in pieces]
        rows.append([encode({"key": str(seed), "seed": seed, "segments": segments})])
    batch = pack(rows, 64, [0])
    batch["seeds"] = signed([2**40 + i for i in range(num)])
    return batch


def batch_of(model: PretrainingModel, num: int = 4) -> Batch:
    packed = parts.MODELS.classes[model.part.kind].task == "multimodal"
    return documents(model, num) if packed else images(model, num)


def rows_of(model: PretrainingModel, batch: Batch, rows: slice) -> Batch:
    """A slice of the batch, also of packed documents, where each row has an image and a series."""
    tensors: dict[str, Any] = dict(batch)
    num = len(tensors["position"])
    found = {}
    for name, value in tensors.items():
        if name.startswith("values."):
            kind = 2 + list(model.backbone.config.modalities).index(name.partition(".")[2])
            owner = (tensors["kinds"] == kind).nonzero()[:, 0]
            found[name] = value[(owner >= rows.start) & (owner < rows.stop)]
        else:
            assert len(value) == num
            found[name] = value[rows]
    return found  # type: ignore[return-value]


@pytest.fixture
def model(request: pytest.FixtureRequest, made: dict[str, PretrainingModel]) -> PretrainingModel:
    key = request.node.callspec.id
    if key not in made:
        try:
            made[key] = build(*request.param)
        except ConfigError as err:
            if request.param[-1]:
                raise
            pytest.skip(f"does not fit: {err}")  # a model of the same task that is incompatible with its defaults
    return copy.deepcopy(made[key])


def gradients(model: PretrainingModel, batch: Batch, size: int) -> dict[str, Tensor]:
    """Gradients of a step over micro-batches of `size` as in the training loop, each seeded by its number."""
    num = len(batch["position"])
    parts = [rows_of(model, batch, slice(at, at + size)) for at in range(0, num, size)]
    totals = torch.stack([model.objective.count_targets(part).reshape(-1) for part in parts]).sum(0).clamp(min=1)
    model.train()
    model.prepare(parts)
    for number, part in enumerate(parts):
        torch.manual_seed(number)
        output = model(part)
        assert torch.equal(output.num_targets.reshape(-1), model.objective.count_targets(part).reshape(-1))
        assert output.loss_sum.isfinite().all()
        (output.loss_sum / totals).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def each(function: Any) -> Any:
    return pytest.mark.parametrize("model", [pytest.param(c.values, id=c.id) for c in CASES], indirect=True)(function)


@each
def test_a_step_is_finite_and_exact(model: PretrainingModel) -> None:
    """The loss is finite, exactly the trainable parameters get gradients, and 1 x 4 gives the gradient of 2 x 2."""
    batch = batch_of(model)
    other = copy.deepcopy(model)
    whole = gradients(model, batch, 4)
    for name, parameter in model.named_parameters():
        assert (name in whole) == parameter.requires_grad, name
        assert name not in whole or whole[name].isfinite().all(), name
    trains = model.objective.settings.trains_backbone
    assert any(name.startswith("backbone.") for name in whole) == trains
    assert any(gradient.any() for gradient in whole.values())
    if model.inexact():
        return
    halves = gradients(other, batch, 2)
    scale = max(gradient.abs().max() for gradient in whole.values())
    for name, gradient in whole.items():
        assert (halves[name] - gradient).abs().max() <= 5e-5 * scale, name


@each
def test_build_does_not_change_the_backbone(model: PretrainingModel) -> None:
    backbone = copy.deepcopy(model.backbone).requires_grad_(True).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    config, random = copy.deepcopy(backbone.config.to_dict()), torch.get_rng_state()
    model.objective.settings.build(backbone)
    torch.set_rng_state(random)
    assert backbone.config.to_dict() == config and backbone.training
    assert all(module.training for module in backbone.modules())
    assert all(p.requires_grad for p in backbone.parameters())
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


@each
def test_features_and_samples_have_their_shapes(model: PretrainingModel) -> None:
    batch = batch_of(model)
    model.eval()
    with torch.no_grad():
        hidden = model.objective.read(model.backbone, batch, None, True)
        assert isinstance(hidden, Hidden) and hidden.last.isfinite().all()
        assert hidden.last.ndim == 3 and len(hidden.last) == 4
        assert len(hidden.layers) >= 2 and torch.equal(hidden.layers[-1], hidden.last)
        assert all(layer.shape == hidden.last.shape for layer in hidden.layers)
        try:
            drawn = model.objective.sample(model.backbone, batch, None, torch.Generator().manual_seed(0))
        except NotGenerative as err:
            assert model.objective.settings.kind in str(err) and not model.objective.generates
            return
    assert model.objective.generates and drawn.shape == batch["pixel_values"].shape and drawn.isfinite().all()
    settings = SampleSettings(guidance=2.0, temperature=0.5, top_k=3, num_steps=2, num_denoising_steps=2)
    told: Batch = {"labels": torch.tensor([0, -100])}
    same = [model.objective.sample(model.backbone, told, settings, torch.Generator().manual_seed(1)) for _ in "ab"]
    assert torch.equal(*same) and not same[0].requires_grad and len(same[0]) == 2


@each
def test_save_and_load(model: PretrainingModel, request: pytest.FixtureRequest) -> None:
    batch = batch_of(model)
    model.prepare([batch])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    fresh = build(*next(case.values for case in CASES if case.id == request.node.callspec.id))
    fresh.load_state_dict(model.state_dict())
    losses = []
    for one in (model.eval(), fresh.eval()):
        torch.manual_seed(0)
        losses.append(one(batch).loss_sum.detach())
    assert torch.equal(*losses)


@each
def test_settings_implement_the_interface(model: PretrainingModel) -> None:
    settings = model.objective.settings
    assert len(pickle.dumps(settings.draw)) < 4000  # what is sent to workers contains no network
    assert isinstance(settings.verdict([]), Verdict)
    batch = batch_of(model)
    model.prepare([batch])
    output = model(batch)
    line = {name: float(value[0] / value[1].clamp(min=1)) if isinstance(value, tuple) else float(value)
            for name, value in (output.metrics or {}).items()}  # fmt: skip
    history = [{"step": step, "learning_rate": 1.0, **line} for step in (1, 2)]
    assert isinstance(settings.verdict(history), Verdict) and settings.verdict(history).sentence
    assert all(": " in text for text in settings.warnings(history))
    assert isinstance(model.backbone, Encodes) or settings.kind == "segmentation"
