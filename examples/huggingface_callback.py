"""Curriculum dropout for a small BERT with random weights, in the trainer of transformers.

    pip install 'sitout[huggingface]'
    python examples/huggingface_callback.py

The task is to tell whether a sequence begins with the token that it ends with.
"""

from __future__ import annotations

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import sitout
from sitout.integrations.huggingface import DropoutCallback

torch.manual_seed(0)
tokens = torch.randint(4, (512, 6))
same = (tokens[:, 0] == tokens[:, -1]).long()
rows = [{"input_ids": ids, "labels": label} for ids, label in zip(tokens, same, strict=True)]

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
        max_steps=60,
        per_device_train_batch_size=32,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        logging_steps=20,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    callback = DropoutCallback(
        sitout.schedules.curriculum(1.0), relative=True
    )  # from 0 up to the rates that the config says
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback]).train()

for path, p in callback.scheduler.rates().items():
    print(f"{path}: {p:.5f}")
