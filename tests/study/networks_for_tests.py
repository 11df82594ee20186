"""Networks as a user would bring them."""

from __future__ import annotations

import math
import time

import torch


def convolutional(input_shape, outputs):
    return torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 8, 8)) if len(input_shape) == 1 else torch.nn.Identity(),
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.ReLU(),
        torch.nn.Dropout2d(0.2),
        torch.nn.Flatten(),
        torch.nn.Dropout(0.4),
        torch.nn.Linear(4 * 36, outputs),
    )


def normalised(input_shape, outputs):
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(math.prod(input_shape), 16),
        torch.nn.BatchNorm1d(16),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.3),
        torch.nn.Linear(16, outputs),
    )


def without_dropout(input_shape, outputs):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(input_shape), outputs))


def one_output_short(input_shape, outputs):
    return without_dropout(input_shape, outputs - 1)


def wrong_input(input_shape, outputs):
    return torch.nn.Linear(3, outputs)


def no_module(input_shape, outputs):
    return 3


def raising(input_shape, outputs):
    raise RuntimeError("out of ideas")


ONE = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(13, 3), torch.nn.Dropout(0.5))


def always_the_same(input_shape, outputs):
    return ONE


def seeded_elsewhere(input_shape, outputs):
    network = without_dropout(input_shape, outputs)
    with torch.no_grad():
        network[1].weight.fill_(time.perf_counter() % 1.0)
    return network


class Functional(torch.nn.Module):
    def __init__(self, features, outputs):
        super().__init__()
        self.linear = torch.nn.Linear(features, outputs)
        self.dropout = torch.nn.Dropout(0.2)

    def forward(self, x):
        return self.linear(self.dropout(torch.nn.functional.dropout(x, 0.5, self.training)))


def functional_dropout(input_shape, outputs):
    return Functional(math.prod(input_shape), outputs)


class Thrifty(torch.nn.Module):
    """One dropout layer at two places of different width."""

    def __init__(self, features, outputs):
        super().__init__()
        self.first, self.second = torch.nn.Linear(features, 8), torch.nn.Linear(8, 6)
        self.third, self.dropout = torch.nn.Linear(6, outputs), torch.nn.Dropout(0.2)

    def forward(self, x):
        x = self.dropout(torch.relu(self.first(x)))
        return self.third(self.dropout(torch.relu(self.second(x))))


def one_dropout_twice(input_shape, outputs):
    return Thrifty(math.prod(input_shape), outputs)


def normalised_behind(input_shape, outputs):
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(math.prod(input_shape), 16),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.3),
        torch.nn.LayerNorm(16),
        torch.nn.Linear(16, outputs),
    )


def normalised_wide(input_shape, outputs):
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(math.prod(input_shape), 200),
        torch.nn.BatchNorm1d(200),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.4),
        torch.nn.Linear(200, outputs),
    )
