"""The settings of an adapter, as frozen dataclasses."""

from blora.config.adapter import (
    FORMAT_VERSION,
    MOST_LENGTH_POWER,
    MOST_TEMPERATURE,
    AdapterConfig,
    ChoiceEnd,
    FamilyName,
    MethodName,
    NormalizationName,
    PosteriorConfig,
    PromptConfig,
    ReadoutName,
    SamplingConfig,
    ScoringName,
)
from blora.config.base_model import BaseModelRef
from blora.config.head import MOST_CHOICES, CompanionConfig, FamiliarityConfig, FamiliarityKind, HeadConfig
from blora.config.question import QuestionConfig

__all__ = [
    "FORMAT_VERSION",
    "MOST_CHOICES",
    "MOST_LENGTH_POWER",
    "MOST_TEMPERATURE",
    "AdapterConfig",
    "BaseModelRef",
    "ChoiceEnd",
    "CompanionConfig",
    "FamiliarityConfig",
    "FamiliarityKind",
    "FamilyName",
    "HeadConfig",
    "MethodName",
    "NormalizationName",
    "PosteriorConfig",
    "PromptConfig",
    "QuestionConfig",
    "ReadoutName",
    "SamplingConfig",
    "ScoringName",
]
