"""Early dropout, max-norm and the guard in a plain loop, on the digits of scikit-learn.

pip install 'sitout[study]'
python examples/plain_loop.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

import sitout
from sitout.integrations import guard

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
data = torch.utils.data.TensorDataset(torch.tensor(images / 16).float(), torch.tensor(labels))
train, held_out = torch.utils.data.random_split(data, [1400, len(data) - 1400])
loader = torch.utils.data.DataLoader(train, batch_size=64, shuffle=True)

model = torch.nn.Sequential(
    torch.nn.Linear(64, 128),
    torch.nn.ReLU(),
    sitout.nn.Dropout(0.5),
    torch.nn.Linear(128, 10),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
epochs = 10
schedule = sitout.schedules.early(0.5, until=0.5)
scheduler = sitout.schedules.RateScheduler(model, schedule, total=epochs * len(loader))
max_norm = sitout.MaxNorm(model, 3.0)


def step(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Make one training step, and return its loss."""
    loss = torch.nn.functional.cross_entropy(model(x), target)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    max_norm.step()
    scheduler.step()
    return loss.detach()


for epoch in range(epochs):
    model.train()
    for x, target in loader:
        if scheduler.last_step == 0:
            with guard(model):  # raises if dropout is silent
                loss = step(x, target)
        else:
            loss = step(x, target)
    model.eval()
    with torch.no_grad():
        x, target = held_out[:]
        accuracy = (model(x).argmax(dim=1) == target).float().mean()
    print(f"epoch {epoch}: p = {scheduler.rate:.3f}, loss {loss:.3f}, held out {accuracy:.3f}")
