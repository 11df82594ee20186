"""Curriculum dropout for a small BERT with random weights, in the trainer of transformers.

    pip install 'sitout[huggingface]'
    python examples/huggingface_callback.py

The task is to tell whether a sequence begins with an even token.
"""

from __future__ import annotations

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import sitout
from sitout.integrations.huggingface import DropoutCallback

torch.manual_seed(0)
tokens = torch.randint(4, (512, 6))
even = (tokens[:, 0] % 2 == 0).long()
rows = [{"input_ids": ids, "labels": label} for ids, label in zip(tokens, even, strict=True)]

config = BertConfig(
    vocab_size=4,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=6,
)
model = BertForSequenceClassification(config)

with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=30,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        logging_steps=10,
        disable_tqdm=True,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    # From 0 up to the rates that the config says.
    callback = DropoutCallback(sitout.schedules.curriculum(1.0), relative=True)
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback]).train()

for path, p in callback.scheduler.rates().items():
    print(f"{path}: {p:.5f}")
