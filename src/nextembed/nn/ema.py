"""Averages of a network's weights over training: a teacher for targets, and the decay of an average."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def decay_at(decay: float, step: int) -> float:
    """min(decay, (1 + step) / (10 + step)), step from 1: a short run does not average its random start. It is 0.9 after
    81 steps, 0.99 after 890 and 0.999 after 8,990."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def follow(average: Sequence[Tensor], weights: Sequence[Tensor], decay: float) -> None:
    """average := decay * average + (1 - decay) * weights, in place. Empty lists are allowed."""
    if len(average):
        torch._foreach_lerp_(list(average), list(weights), 1 - decay)


class Teacher(nn.Module):
    """A copy of a network whose weights follow those of the network; it does not train and stays in eval mode.

    Source: the mean teacher (arXiv 1703.01780). Parameters are averaged, buffers copied.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Teacher":
        self.training = mode
        return self

    def follow(self, network: nn.Module, decay: float) -> None:
        """Called after each optimizer step. decay: share of the teacher's weights that is kept."""
        follow(list(self.network.parameters()), list(network.parameters()), decay)
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)
