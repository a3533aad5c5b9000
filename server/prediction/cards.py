"""What a loaded adapter is called down to its contents, and its card, for those who ask what it is worth."""

from blora.client.answers import AdapterRef
from blora.server.engines.handle import AdapterHandle
from blora.server.prediction.policies import default_policy
from blora.server.schemas.cards import AdapterCard

__all__ = ["adapter_card", "adapter_ref"]

# Of the training record: not the command, nor anything else that tells of the machine it ran on.
PUBLIC_RECORD = ("dtype", "settings", "train", "tuning", "validation")


def adapter_card(handle: AdapterHandle) -> AdapterCard:
    """How the adapter was made, how good it was, and what was proved about it."""
    config, policy = handle.config, default_policy(handle)
    return AdapterCard(
        name=handle.name,
        digest=handle.digest,
        calibration_digest=handle.calibration_digest,
        created=handle.created,
        base_model=config.base_model.id,
        target_modules=list(config.target_modules),
        posterior=config.posterior,
        prompt=config.prompt,
        sampling=config.sampling,
        training={name: config.training[name] for name in PUBLIC_RECORD if name in config.training},
        policy=policy.shown() if policy is not None else None,
        calibration=handle.calibration,
    )


def adapter_ref(handle: AdapterHandle) -> AdapterRef:
    """Return the adapter's name and digests."""
    return AdapterRef(name=handle.name, digest=handle.digest, calibration_digest=handle.calibration_digest)
