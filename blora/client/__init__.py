"""Client of a blora server for applications; needs only httpx and pydantic, not torch.

Every call ends by its deadline, with an answer, an abstention or an exception of `blora.client.errors`.
"""

from blora.client.answers import AbstainReason, Prediction
from blora.client.asynchronous import AsyncClient
from blora.client.errors import (
    ClientError,
    DeadlineError,
    FailedError,
    MalformedAnswerError,
    OverloadedError,
    RefusedError,
    UnavailableError,
    UnreachableError,
)
from blora.client.policies import AbstainAbove, AbstainBelow, AbstainPolicy
from blora.client.retries import Retries
from blora.client.synchronous import Client

__all__ = [
    "AbstainAbove",
    "AbstainBelow",
    "AbstainPolicy",
    "AbstainReason",
    "AsyncClient",
    "Client",
    "ClientError",
    "DeadlineError",
    "FailedError",
    "MalformedAnswerError",
    "OverloadedError",
    "Prediction",
    "RefusedError",
    "Retries",
    "UnavailableError",
    "UnreachableError",
]
