"""Losses on held-out text, one per document; torch."""

import torch
from torch.nn.functional import cross_entropy

from loratree_cli.demo.tokenizer import END_ID, tokens

BATCH = 16
IGNORED = -100


@torch.inference_mode()
def losses(model: torch.nn.Module, documents: list[str]) -> list[float]:
    """Compute each document's mean loss in nats per token, over its bytes and an end token, after a first end token."""
    means: list[float] = []
    for start in range(0, len(documents), BATCH):
        ids, targets = padded(documents[start : start + BATCH])
        logits = model(input_ids=ids, use_cache=False).logits  # [batch, length, vocabulary]
        each = cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
        means += (each.sum(1) / (targets != IGNORED).sum(1)).tolist()
    return means


def padded(documents: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids that the model reads and the targets that come next, both [batch, length], padded at the right."""
    rows = [tokens(document) for document in documents]
    length = 1 + max(map(len, rows))
    ids = torch.full((len(rows), length), END_ID)
    targets = torch.full((len(rows), length), IGNORED)
    for place, row in enumerate(rows):
        ids[place, 1 : len(row) + 1] = torch.tensor(row)
        targets[place, : len(row) + 1] = torch.tensor([*row, END_ID])
    return ids, targets
