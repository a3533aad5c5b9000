"""Cards and references of loaded adapters."""

from datetime import UTC, datetime

from blora.adapter.card import validation_figures
from blora.client.answers import AdapterRef
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.protocol import ModelInfo
from blora.server.prediction.policies import default_policy
from blora.server.schemas.cards import AdapterCard
from blora.server.schemas.responses import ModelCard, ModelMetadata

__all__ = ["adapter_card", "adapter_ref", "base_card", "model_card", "model_metadata"]

# Public entries of the training record, without the command and other facts about the machine.
PUBLIC_RECORD = ("dtype", "parts", "settings", "train", "tuning", "validation")


def adapter_card(handle: AdapterHandle, drift_since: int | None) -> AdapterCard:
    """Return an adapter's card: training record, validation metrics, calibration and drift.

    Args:
        handle: the adapter.
        drift_since: Unix time at which other questions than the calibration's were noticed; None if never.
    """
    config, policy = handle.config, default_policy(handle)
    return AdapterCard(
        name=handle.name,
        digest=handle.digest,
        calibration_digest=handle.calibration_digest,
        created=handle.created,
        base_model=config.base_model.id,
        companion=config.companion.id if config.companion is not None else None,
        target_modules=list(config.target_modules),
        posterior=config.posterior,
        prompt=config.prompt,
        sampling=config.sampling,
        question=config.question,
        familiarity=handle.familiarity.config if handle.familiarity is not None else None,
        least_familiarity=handle.least_familiarity,
        training={name: config.training[name] for name in PUBLIC_RECORD if name in config.training},
        validation=validation_figures(config.training),
        policy=policy.shown() if policy is not None else None,
        calibration=handle.calibration,
        drift_since=drift_since,
    )


def adapter_ref(handle: AdapterHandle) -> AdapterRef:
    """Return the adapter's name and digests."""
    return AdapterRef(name=handle.name, digest=handle.digest, calibration_digest=handle.calibration_digest)


def base_card(base: ModelInfo, created: int) -> ModelCard:
    """Return the base model's entry in a list of models in OpenAI's format.

    Args:
        base: the base model.
        created: Unix time of the server's start, in seconds.
    """
    return ModelCard(id=base.name, created=created, root=base.id, parent=None, digest=base.fingerprint)


def model_card(handle: AdapterHandle, base: ModelInfo) -> ModelCard:
    """Return the adapter's entry in a list of models in OpenAI's format, as a child of the base model."""
    return ModelCard(
        id=handle.name,
        created=handle.created,
        root=base.id,
        parent=base.name,
        digest=handle.digest,
        calibration_digest=handle.calibration_digest,
    )


def model_metadata(handle: AdapterHandle) -> ModelMetadata:
    """Return the adapter's entry in a list of models: its name, the question that it answers, and its day."""
    question, choices = handle.config.question, handle.config.prompt.choices
    if question is not None:
        description = f"Answers the {question.type} {question.name!r}. {question.instructions}".strip()
    elif choices is not None:
        description = f"Answers with one of {len(choices)} fixed choices."
    else:
        description = "Answers questions that bring their choices."
    day = datetime.fromtimestamp(handle.created, UTC).date()
    return ModelMetadata(name=handle.name, description=description, release_date=day.isoformat())
