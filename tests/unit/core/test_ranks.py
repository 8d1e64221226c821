import pytest
import torch

from nextembed.core import distributed


def test_without_a_process_group_there_is_one_rank():
    distributed.start("cpu")
    assert not distributed.is_distributed()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert torch.equal(distributed.sum_over_ranks(torch.tensor([1, 2])), torch.tensor([1, 2]))
    assert distributed.gather_objects("a") == ["a"]
    assert distributed.broadcast_object({"b": 1}) == {"b": 1}


@pytest.mark.parametrize(
    ("machines", "restarts", "shared", "expected"),
    [("2", "3", "True", True), ("1", "3", "True", False), ("2", "0", "True", False), ("2", "3", "False", False),
     (None, None, None, False)],
)  # fmt: skip
def test_a_restart_that_may_hang_is_detected(monkeypatch, machines, restarts, shared, expected):
    names = ("GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_USE_AGENT_STORE")
    for name, value in zip(names, (machines, restarts, shared)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert distributed.restart_may_hang() is expected
