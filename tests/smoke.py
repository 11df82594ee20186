"""What an installed wheel must do; it needs torch and numpy, and nothing of the repository."""

from __future__ import annotations

import sys

import torch

import sitout
from sitout._doctor import doctor


def main() -> None:
    """End with what is wrong, or with exit code 0."""
    found = doctor()
    sys.stdout.write(found.text() + "\n")
    if not found.core.targets:
        sys.exit("The wheel has no compiled core.")
    if found.wrong:
        sys.exit("The core differs from the reference.")
    results = {}
    for backend in ("cpu", "reference"):
        x = torch.linspace(-3, 3, 300_000).view(3, -1).requires_grad_()
        with sitout.backends.use(backend):
            y = sitout.functional.dropout(x, 0.3, key=sitout.MaskKey(seed=17))
            y.sum().backward()
        results[backend] = torch.stack([y.detach(), x.grad])
    if not torch.equal(results["cpu"], results["reference"]):
        sys.exit("Forward or backward differs from the reference.")


if __name__ == "__main__":
    main()
