"""Moving averages of weights."""

import pytest
import torch
from torch import nn

from nextembed.nn.ema import Teacher, decay_at, follow


def test_decay_rises_with_the_steps():
    assert [decay_at(0.999, step) for step in (1, 81, 890, 100_000)] == pytest.approx([2 / 11, 82 / 91, 0.99, 0.999])


def test_an_empty_average_is_allowed():
    follow([], [], 0.9)


def test_a_teacher_is_averaged_and_never_trained():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    teacher = Teacher(network)
    before = [p.clone() for p in teacher.network.parameters()]
    network.train()(torch.randn(8, 2))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1)
    teacher.train().follow(network, 0.75)
    assert not teacher.network.training and not any(p.requires_grad for p in teacher.parameters())
    for old, new in zip(before, teacher.network.parameters()):
        torch.testing.assert_close(new, old + 0.25)
    assert torch.equal(teacher.network[1].running_mean, network[1].running_mean)
