import torch

from nextembed.core import distributed


def test_without_a_process_group_there_is_one_rank():
    distributed.start("cpu")
    assert not distributed.is_distributed()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert torch.equal(distributed.sum_over_ranks(torch.tensor([1, 2])), torch.tensor([1, 2]))
    assert distributed.gather_objects("a") == ["a"]
    assert distributed.broadcast_object({"b": 1}) == {"b": 1}
