"""The random order of training rows, with similar lengths in one batch; a resumed run repeats it."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from blora.posterior.noise import generator_of

__all__ = ["LengthGroupedOrder"]

GROUP_BATCHES = 16  # rows are sorted by length within groups of this many batches


class LengthGroupedOrder(Sampler[int]):
    """A random order in which neighbouring rows have similar lengths; it depends on seed and epoch alone.

    Args:
        lengths: number of tokens of each row.
        batch_size: number of rows in a batch, over all processes.
        seed: seed of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order comes next; the Trainer calls it before each epoch, also after a resume."""
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
        # Only the last group can end in a short batch; elsewhere it would shift the boundaries of the others.
        short = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        for batch in [*(batches[i] for i in shuffled), *short]:
            yield from batch
