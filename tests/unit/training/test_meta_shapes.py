from functools import cache, partial

import pytest
import torch
from torch import nn

from nextembed import recipes, run
from nextembed.recipes.listing import listed
from nextembed.tasks import model_part, task_of
from nextembed.training import meta_start

BUILT_BY_ALL = {"var", "latent_decoder", "readout", "visual_decoder"}  # objectives that read values as they are built


@cache
def kinds() -> dict[tuple[str, str], str]:
    """A recipe of each kind of model and objective."""
    found: dict[tuple[str, str], str] = {}
    for name in listed():
        config = recipes.load(f"{name}_tiny")
        found.setdefault((model_part(config).kind, config.objective.kind), name)
    return found


def test_shapes_are_those_of_the_model():
    for (_, objective), name in kinds().items():
        config = recipes.load(f"{name}_tiny")
        task, part = task_of(config), model_part(config)
        make = partial(run.build_model, config, task, part, task.class_names(config.data))
        model, why = meta_start.shapes(make)
        if model is not None:
            assert all(param.is_meta for param in model.parameters()), name
            why = meta_start.difference(meta_start.outline(model), meta_start.outline(make()))
            why = why or meta_start.left_behind(model)
        assert bool(why) == (objective in BUILT_BY_ALL), (name, why)


def test_one_rank_builds_the_model_itself():
    model, called = nn.Linear(2, 2), []
    assert meta_start.build(lambda: model, True, called.append) is model
    meta_start.measure(model, lambda: called.append("measured"))
    meta_start.delivery(model)(model)
    assert called == ["measured"] and not model.weight.is_meta


@pytest.mark.parametrize("change", ["shape", "dtype", "frozen", "mode", "tied", "missing"])
def test_models_that_differ_are_noticed(change):
    def made() -> nn.Sequential:
        return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))

    model = made()
    if change == "shape":
        model[1] = nn.Linear(3, 4)
    elif change == "dtype":
        model[1].bfloat16()
    elif change == "frozen":
        model[1].weight.requires_grad_(False)
    elif change == "mode":
        model[1].eval()
    elif change == "tied":
        model[1].weight = model[0].weight
    else:
        del model[1]
    outlines = meta_start.outline(model), meta_start.outline(made())
    assert meta_start.difference(*outlines) and meta_start.difference(*reversed(outlines))
    assert not meta_start.difference(outlines[1], meta_start.outline(made()))


@pytest.mark.parametrize("place", ["object", "alias", "module"])
def test_a_tensor_that_nobody_would_fill_is_noticed(place):
    class Holder:
        def __init__(self, one: object) -> None:
            self.tables = {"all": [one]}

    model = nn.Linear(2, 2, device="meta")
    model.register_buffer("known", torch.zeros(1, device="meta"), persistent=False)
    assert not meta_start.left_behind(model)
    held = {"object": torch.zeros(2, device="meta"), "alias": model.known, "module": nn.Linear(2, 2, device="meta")}
    model.holder = Holder(held[place])
    assert meta_start.left_behind(model)
    model.holder = Holder(model)
    assert not meta_start.left_behind(model)
