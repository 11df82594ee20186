"""Networks as a user would bring them."""

from __future__ import annotations

import math

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
