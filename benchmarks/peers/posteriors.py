"""Other posteriors over the weights of the same head, held to the rules that the served one is held to.

- An isotropic Gaussian about the fitted weights, training-free Bayesianization (Shi et al., 2024, arXiv:2412.05723).
- Dropout of the projected states, every draw with a mask of its own (Gal and Ghahramani, 2016, arXiv:1506.02142).
- Independent Gaussians whose means and deviations are trained together, as BLoB's are (Wang et al., 2024,
  arXiv:2406.11675); for fixed labels alone.
- An ensemble of heads, each fitted on rows drawn with replacement; for fixed labels alone.

Their draws come in mirrored pairs too, those of the dropout from u and 1 - u. The width of the isotropic Gaussian and
the rate of the dropout are chosen as the width of the served posterior is: the largest whose recalibrated validation
NLL is within 0.005 nats of the best.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.peers.figures import Scored
from benchmarks.peers.reading import EMPTY_LORA, SEEDS, ReadSet, Rows
from blora.decision.temperature import Recalibration
from blora.posterior.decision_head import DecisionHead, HeadDraws
from blora.posterior.noise import generator_of, standard_normal
from blora.training.config import HEAD_SCALES, N_SAMPLES_HEAD, TOLERANCE_NATS
from blora.training.head.fit import Regression
from blora.training.head.train import TrainedHead
from blora.training.trials import choose, trial_of, try_scales

__all__ = ["mean_field", "other_posteriors"]

DROPOUT_RATES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
N_MEMBERS = 5
# Steps of the variational training, and its learning rates in units of the prior's deviation and of log deviations.
N_STEPS, MEAN_RATE, DEVIATION_RATE = 1000, 0.03, 0.09


def other_posteriors(read: ReadSet, trained: TrainedHead, seconds: float) -> Iterator[Scored]:
    """Yield what each posterior says of the rows, for each of `SEEDS`; the draws of a method are adjacent.

    Args:
        read: the rows.
        trained: the head, whose precisions and fitted weights they start from.
        seconds: time of its training.
    """
    head = trained.fitted["both"].head
    isotropic = replace(
        head,
        deviation=torch.full_like(head.deviation, head.deviation.square().mean().sqrt().item()),
        basis=torch.eye(head.n_outputs),
    )

    def gaussian(width: float, seed: int) -> HeadDraws:
        noise = standard_normal(N_SAMPLES_HEAD, generator_of(seed))
        return isotropic.widen(width).sample_from(noise, EMPTY_LORA.mean())

    def dropout(rate: float, seed: int) -> HeadDraws:
        half = torch.rand(N_SAMPLES_HEAD // 2, 1, len(head.weight), 1, generator=generator_of(seed))
        uniform = torch.cat([half, 1 - half], dim=1).flatten(0, 1)
        return HeadDraws(head, head.weight * (uniform >= rate) / (1 - rate), EMPTY_LORA.mean())

    yield from _chosen(f"head, isotropic Gaussian, {N_SAMPLES_HEAD} draws", read, gaussian, HEAD_SCALES, seconds)
    yield from _chosen(f"head, dropout, {N_SAMPLES_HEAD} draws", read, dropout, DROPOUT_RATES, seconds)
    if read.train.rows[0].row.readout == "linear":
        yield from _variational(read, trained, seconds)
        yield from _ensembles(read, trained, seconds)


def _chosen(
    method: str, read: ReadSet, draws: Callable[[float, int], HeadDraws], scales: tuple[float, ...], seconds: float
) -> Iterator[Scored]:
    """Yield a posterior at the scale that the draws of the first seed choose."""
    validation = read.validation
    trials = try_scales(lambda scale: validation.under(draws(scale, SEEDS[0])), validation.rows, scales, TOLERANCE_NATS)
    trial = choose(trials, TOLERANCE_NATS)
    for seed in SEEDS:
        yield replace(read.under(method, draws(trial.scale, seed), trial, seconds), seed=seed)


def _variational(read: ReadSet, trained: TrainedHead, seconds: float) -> Iterator[Scored]:
    """Yield a mean-field Gaussian over the weights of the states that maximises the ELBO, trained once."""
    fitted = trained.fitted["both"]
    head = fitted.head
    regression = Regression.of(read.config, read.train.features, read.train.rows)
    z, labels = torch.from_numpy(regression.z), torch.from_numpy(regression.labels)
    point = torch.from_numpy(regression.counts @ head.count_weight.numpy()) + head.bias
    mean, deviation = mean_field(z, point, labels, head.weight, regression.precision_of(fitted.precisions[0]))

    def draws(seed: int) -> HeadDraws:
        noise = standard_normal(N_SAMPLES_HEAD, generator_of(seed)).mirrored()
        return HeadDraws(head, mean + noise.like(mean) * deviation, EMPTY_LORA.mean())

    trial = trial_of(0.0, read.validation.under(draws(SEEDS[0])), read.validation.rows)
    for seed in SEEDS:
        method = f"head, mean-field variational, {N_SAMPLES_HEAD} draws"
        yield replace(read.under(method, draws(seed), trial, seconds), seed=seed)


def mean_field(z: Tensor, point: Tensor, labels: Tensor, start: Tensor, precision: float) -> tuple[Tensor, Tensor]:
    """Return the means and deviations (K, O) of independent Gaussian weights that maximise the ELBO of a regression.

    Every row has noise of its own in its logits, which for independent weights has the distribution that the weights'
    noise gives it (the local reparametrisation of Kingma et al., 2015, arXiv:1506.02557).

    Args:
        z: (N, K) projected states.
        point: (N, O) the part of the logits that is known.
        labels: (N,).
        start: (K, O) means to start from.
        precision: precision of the Gaussian prior about zero.
    """
    mean = nn.Parameter(start.clone())
    log_deviation = nn.Parameter(torch.full_like(start, -math.log(precision) / 2 - 1))
    rates = ((mean, MEAN_RATE / math.sqrt(precision)), (log_deviation, DEVIATION_RATE))
    optimizer = torch.optim.Adam([{"params": [weights], "lr": rate} for weights, rate in rates])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_STEPS)
    squares, generator = z.square(), generator_of(SEEDS[0])
    for _ in range(N_STEPS):
        variance = (2 * log_deviation).exp()
        noise = torch.randn(point.shape, generator=generator)
        logits = point + z @ mean + (squares @ variance).sqrt() * noise
        nll = nn.functional.cross_entropy(logits, labels, reduction="sum")
        kl = (precision * (mean.square() + variance) / 2 - log_deviation).sum()  # up to a constant
        optimizer.zero_grad()
        ((nll + kl) / len(z)).backward()
        optimizer.step()
        schedule.step()
    return mean.detach(), log_deviation.detach().exp()


def _ensembles(read: ReadSet, trained: TrainedHead, seconds: float) -> Iterator[Scored]:
    """Yield ensembles of heads at the precisions and powers of the trained one."""
    train = read.train

    def member(generator: torch.Generator) -> DecisionHead:
        rows = torch.randint(len(train.rows), (len(train.rows),), generator=generator).tolist()
        return trained.again(train.features.at(rows), [train.rows[i] for i in rows])

    for seed in SEEDS:
        generator = generator_of(seed)
        members = [member(generator).mean(EMPTY_LORA.mean()) for _ in range(N_MEMBERS)]

        def under(part: Rows, members: list[HeadDraws] = members) -> Tensor:
            return torch.cat([part.under(one) for one in members])

        trial = trial_of(0.0, under(read.validation), read.validation.rows)
        foreign, proof = (under(part) if part is not None else None for part in (read.foreign, read.proof))
        recalibration = Recalibration(trial.temperature, lapse=trial.lapse)
        method = f"heads on {N_MEMBERS} bootstraps"
        yield Scored(method, under(read.test), foreign, recalibration, seconds, seed, proof)
