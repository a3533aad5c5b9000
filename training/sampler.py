"""The order of training rows: random, with rows of similar length in one batch, and the same after a resume."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from blora.posterior.noise import generator_of

__all__ = ["LengthGroupedOrder"]

GROUP_BATCHES = 16  # batches among which rows are sorted by length


class LengthGroupedOrder(Sampler[int]):
    """A random order that depends on seed and epoch alone, in which neighbours are about equally long.

    Args:
        lengths: tokens of each row.
        batch_size: rows that will run together.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch; the trainer calls it, after a resume too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = generator_of(self.seed, self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        window = self.batch_size * GROUP_BATCHES
        batches = []
        for start in range(0, len(order), window):
            group = sorted(order[start : start + window], key=self.lengths.__getitem__)
            batches += [group[i : i + self.batch_size] for i in range(0, len(group), self.batch_size)]
        # Only the last group may hold a short batch; it stays last, where it does not shift the others.
        short = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        for batch in [*(batches[i] for i in shuffled), *short]:
            yield from batch
