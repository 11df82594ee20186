"""Late dropout in one part of a network and max-norm in all of it, with Lightning.

pip install 'sitout[lightning,study]'
python examples/lightning_callback.py
"""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits

import sitout
from sitout.integrations.lightning import DropoutCallback


class Digits(LightningModule):
    """A network for the digits of scikit-learn."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Linear(64, 128), torch.nn.ReLU(), sitout.nn.Dropout(0.5)
        )
        self.head = torch.nn.Linear(128, 10)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """Return the loss of a batch."""
        x, target = batch
        return torch.nn.functional.cross_entropy(self.head(self.body(x)), target)

    def on_train_epoch_end(self) -> None:
        """Print the rate that holds."""
        print(f"epoch {self.current_epoch}, step {self.global_step}: p = {self.body[2].p:.3f}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters())


seed_everything(0, verbose=False)
images, labels = load_digits(return_X_y=True)
data = torch.utils.data.TensorDataset(torch.tensor(images / 16).float(), torch.tensor(labels))
loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)

callback = DropoutCallback(sitout.schedules.late(0.5, start=0.5), where="body.*", max_norm=3.0)
trainer = Trainer(
    max_epochs=6,
    accelerator="cpu",
    accumulate_grad_batches=2,
    callbacks=[callback],
    logger=False,
    enable_checkpointing=False,
    enable_model_summary=False,
    enable_progress_bar=False,
)
trainer.fit(Digits(), loader)
