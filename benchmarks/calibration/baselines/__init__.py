"""The baselines, each giving `blora.posterior.draws.Draws`, so that one evaluation serves them all.

dropout and blob are trained: each makes the factors of a `Posterior`, which `blora.training.lora.trainer.fit` fits.
ensemble, tfb and laplace_lora start from trained LoRAs.
"""
