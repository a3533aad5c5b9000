"""The methods of a benchmark: each turns the training rows into draws of LoRA factors.

All adapt the same modules at the same rank and see the same rows for the same number of epochs, each member of
an ensemble included; the epoch is chosen on the same validation rows. Laplace and TFB find their width on 128 of these.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.calibration.baselines.blob import blob_factors
from benchmarks.calibration.baselines.dropout import dropout_factors
from benchmarks.calibration.baselines.ensemble import ensemble
from benchmarks.calibration.baselines.tfb import isotropic_draws
from benchmarks.calibration.bench import Bench
from benchmarks.calibration.store import Trained, load_trained, save_trained
from blora.config import PosteriorConfig
from blora.posterior.inject import layer_index
from blora.posterior.noise import generator_of
from blora.posterior.posterior import MakeFactor, Posterior
from blora.training.config import TrainConfig
from blora.training.evaluate import evaluate_nested
from blora.training.lora.checkpoints import claimed
from blora.training.lora.trainer import Fitted, fit

__all__ = ["METHODS", "WIDE", "WIDE_KL_WEIGHT", "WIDE_LEARNING_RATE", "Method", "obtain"]

# Chosen on validation rows of ARC-Easy, for plain LoRA: the baselines start from its best.
LORA_LEARNING_RATE = 1e-3
DROPOUT_RATE = 0.1
# Its prior is wide, so that the KL of the start is four nats a weight; it would drown everything else at our weight.
BLOB_KL_WEIGHT = 1e-3
# A posterior that starts wide and stays so: see docs/calibration.md for what it is good at.
WIDE = PosteriorConfig(lambda_init=0.7, scale_init=0.1)
WIDE_LEARNING_RATE, WIDE_KL_WEIGHT = 0.16, 0.1
TFB_SCALES = (0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2)
# Behind each trial of a baseline's own search.
SEARCH_ROWS, SEARCH_DRAWS = 128, 4
ENSEMBLE_SIZE = 3


Make = Callable[[Bench, int], dict[str, Trained]]


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the tables.

    Attributes:
        name: on the command line and in files.
        label: in tables.
        kind: the method it counts as in comparisons.
        make: the draws of a seed; it may leave those of other methods behind, by their names.
        single_model: false where several models are trained.
        seeded: whether seeds make a difference.
    """

    name: str
    label: str
    kind: str
    make: Make
    single_model: bool = True
    seeded: bool = True


def obtain(bench: Bench, name: str, seed: int) -> Trained:
    """Return the draws of a method for a seed, read from disk if an earlier run left them there."""
    if not _file(bench, name, seed).is_file():
        found = METHODS[name].make(bench, seed)
        for made, trained in found.items():
            save_trained(_file(bench, made, seed), trained)
    return load_trained(_file(bench, name, seed))


def _file(bench: Bench, name: str, seed: int) -> Path:
    return bench.work / f"{name}-seed{seed}.safetensors"


def _fit(
    bench: Bench, name: str, seed: int, posterior: Posterior, settings: dict[str, float]
) -> tuple[Fitted, dict[str, object]]:
    """Fit a posterior in place, for the bench's epochs; a killed run goes on from its last epoch."""
    config = TrainConfig(
        work_dir=bench.work / f"{name}-seed{seed}.work",
        epochs=bench.epochs,
        seed=seed,
        patience=bench.epochs,
        **settings,  # type: ignore[arg-type]
    )
    about: dict[str, object] = {"posterior": asdict(posterior.config), "training": _plain(config)}
    with claimed(config.work_dir, about, resume=True) as checkpoint:
        fitted = fit(bench.base, posterior, bench.train, bench.validation, config, checkpoint)
    return fitted, about | {"best_epoch": fitted.best_epoch}


def _plain(config: TrainConfig) -> dict[str, object]:
    settings = asdict(config)
    for name in ("work_dir", "resume"):
        settings.pop(name)
    return settings


def _n_parameters(posterior: Posterior) -> int:
    return sum(parameter.numel() for parameter in posterior.parameters())


def _base(bench: Bench, seed: int) -> dict[str, Trained]:
    return {"base": Trained(None, 0.0, 0)}


def _lora(bench: Bench, seed: int) -> dict[str, Trained]:
    posterior = Posterior(bench.modules, PosteriorConfig(method="lora"), seed)
    fitted, about = _fit(bench, "lora", seed, posterior, {"lora_learning_rate": LORA_LEARNING_RATE})
    count = _n_parameters(posterior)
    best = posterior.mean()
    posterior.load_state_dict(fitted.last)
    return {
        "lora": Trained(posterior.mean(), fitted.seconds, count, about),
        "lora_best": Trained(best, fitted.seconds, count, about),
    }


def _posterior(
    name: str,
    config: PosteriorConfig,
    make: Callable[[int], MakeFactor] | None = None,
    top_layers: int | None = None,
    **settings: float,
) -> Make:
    """Return a method that fits a posterior, in the top layers alone or in all adapted ones, and draws from it."""

    def train(bench: Bench, seed: int) -> dict[str, Trained]:
        adapted = sorted({layer_index(module) or 0 for module in bench.modules})
        form = replace(config, bayesian_layers=tuple(adapted[-top_layers:])) if top_layers is not None else config
        posterior = Posterior(bench.modules, form, seed, make=make(seed) if make is not None else None)
        fitted, about = _fit(bench, name, seed, posterior, settings)
        draws = posterior.requires_grad_(False).sample(bench.n_samples, generator_of(seed))
        return {name: Trained(draws, fitted.seconds, _n_parameters(posterior), about)}

    return train


def _tfb(bench: Bench, seed: int) -> dict[str, Trained]:
    lora = obtain(bench, "lora_best", seed)
    assert lora.draws is not None
    start = lora.draws
    began = time.perf_counter()
    model = bench.base.model
    rows = bench.validation[:SEARCH_ROWS]

    def loss(scale: float) -> float:
        draws = isotropic_draws(start, scale, SEARCH_DRAWS, generator_of(seed))
        return next(evaluate_nested(model, rows, draws, [SEARCH_DRAWS])).metrics.nll

    scale = min(TFB_SCALES, key=loss)
    draws = isotropic_draws(start, scale, bench.n_samples, generator_of(seed))
    seconds = lora.seconds + time.perf_counter() - began
    return {"tfb": Trained(draws, seconds, lora.n_parameters, {"scale": scale})}


def _laplace(bench: Bench, seed: int) -> dict[str, Trained]:
    from benchmarks.calibration.baselines.laplace_lora import PRECISIONS, choose_precision, fit_laplace

    lora = obtain(bench, "lora_best", seed)
    assert lora.draws is not None
    began = time.perf_counter()
    model = bench.base.model
    laplace = fit_laplace(model, lora.draws, bench.train)
    rows = bench.validation[:SEARCH_ROWS]

    def loss(precision: float) -> float:
        draws = laplace.sample(precision, SEARCH_DRAWS, generator_of(seed))
        return next(evaluate_nested(model, rows, draws, [SEARCH_DRAWS])).metrics.nll

    precision = choose_precision(loss, PRECISIONS)
    draws = laplace.sample(precision, bench.n_samples, generator_of(seed))
    seconds = lora.seconds + time.perf_counter() - began
    return {"laplace": Trained(draws, seconds, 2 * lora.n_parameters, {"prior_precision": precision})}


def _ensemble(bench: Bench, seed: int) -> dict[str, Trained]:
    members = [obtain(bench, "lora_best", member) for member in range(ENSEMBLE_SIZE)]
    draws = ensemble([member.draws for member in members if member.draws is not None])
    seconds = sum(member.seconds for member in members)
    return {"ensemble": Trained(draws, seconds, sum(member.n_parameters for member in members))}


METHODS = {
    method.name: method
    for method in (
        Method("base", "base model", "base", _base, seeded=False),
        Method("lora", "LoRA, last epoch", "lora", _lora),
        Method("lora_best", "LoRA, best epoch", "lora_best", _lora),
        Method(
            "dropout",
            "MC dropout",
            "dropout",
            _posterior(
                "dropout",
                PosteriorConfig(),
                lambda seed: dropout_factors(DROPOUT_RATE, generator_of(seed)),
                lora_learning_rate=LORA_LEARNING_RATE,
            ),
        ),
        Method(
            "blob",
            "mean-field LoRA (BLoB)",
            "blob",
            _posterior(
                "blob",
                PosteriorConfig(),
                lambda seed: blob_factors(generator_of(seed)),
                lora_learning_rate=LORA_LEARNING_RATE,
                scale_learning_rate=LORA_LEARNING_RATE,
                kl_weight=BLOB_KL_WEIGHT,
            ),
        ),
        Method("tfb", "training-free (TFB)", "tfb", _tfb),
        Method("laplace", "Laplace", "laplace", _laplace),
        Method("bayesian", "Bayesian-LoRA", "bayesian", _posterior("bayesian", PosteriorConfig())),
        Method(
            "bayesian_wide",
            "Bayesian-LoRA, wide start",
            "bayesian_wide",
            _posterior("bayesian_wide", WIDE, learning_rate=WIDE_LEARNING_RATE, kl_weight=WIDE_KL_WEIGHT),
        ),
        Method(
            "bayesian_top",
            "Bayesian-LoRA, top 2 layers",
            "bayesian_top",
            _posterior("bayesian_top", PosteriorConfig(), top_layers=2),
        ),
        Method("ensemble", "ensemble of 3 LoRAs", "ensemble", _ensemble, single_model=False, seeded=False),
    )
}
