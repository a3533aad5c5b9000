"""Reading the weights of a checkpoint, all of which have to be the model's own and in use.

A checkpoint is a causal language model, a model that also reads images, or an encoder (BERT and sentence encoders), of
which only the layers are read.

transformers fills missing weights at random, leaves out weights that it has no place for, such as the scales of a
quantisation that it does not know, and loads a LoRA together with the base model that it names. Each would answer with
wrong numbers, and is refused.
"""

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
)
from transformers.utils.peft_utils import find_adapter_config_file
from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

from blora.errors import BaseModelError

__all__ = ["is_encoder", "read_checkpoint", "read_weights"]

# Quantisations whose weights transformers can turn into plain ones, by the name that a config gives them.
DEQUANTISED = {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}


def read_checkpoint(path: str, name: str, **source: Any) -> PreTrainedModel:
    """Read a language model, the language model of one that also reads images, or the layers of an encoder.

    Args:
        path: a folder, or a hub id.
        name: the model's name, for errors.
        source: the revision of a hub id.

    Raises:
        BaseModelError: if the model is of another kind or quantised in a way that cannot be undone, or for a reason of
            `read_weights`.
    """
    if find_adapter_config_file(path, **source) is not None:
        raise BaseModelError(
            f"got base model {name!r} with an adapter_config.json, which is a LoRA's, expected a model without one; "
            "name the model that the LoRA was trained on, and give the LoRA to `blora bayesianize` or to "
            "`blora train --init-from`"
        )
    config = AutoConfig.from_pretrained(path, trust_remote_code=False, **source)
    options = {"dtype": "auto", "use_safetensors": True, "trust_remote_code": False, **source}
    places = (config, config.get_text_config())
    if quantisation := next(filter(None, (getattr(place, "quantization_config", None) for place in places)), None):
        method = quantisation.get("quant_method")
        if method not in DEQUANTISED:
            raise BaseModelError(
                f"got base model {name!r} with weights that are quantised by {method or 'an unnamed method'}, expected "
                f"plain ones or one of {', '.join(DEQUANTISED)}; use the model that they were made from"
            )
        options["quantization_config"] = DEQUANTISED[method](dequantize=True)
    if is_encoder(config):
        if str(positions := getattr(config, "position_embedding_type", None)).startswith("relative"):
            raise BaseModelError(
                f"got base model {name!r} with positions {positions!r}, which transformers no longer computes, "
                "expected absolute ones; use another model"
            )
        kind = cast(Any, MODEL_MAPPING[type(config)])
        if "add_pooling_layer" in inspect.signature(kind).parameters:  # many checkpoints have no weights of it
            options["add_pooling_layer"] = False
        return read_weights(kind, path, name, **options)
    return read_weights(_kind(config, name), path, name, **options)


def read_weights(kind: Any, path: str, name: str, **options: Any) -> PreTrainedModel:
    """Read a model by a class of transformers, and refuse it unless every weight is there and in use.

    Buffers may be missing, because transformers fills them with the same values every time. Weights of modules that the
    model does not have, such as those that predict several tokens, may be left out.

    Raises:
        BaseModelError: if weights are missing or have other shapes, or are left out although their module is in use.
    """
    with _without_report():
        loaded = kind.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    model, found = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    misshapen = {key for key, *_ in found["mismatched_keys"]}
    wrong = sorted(parameters.keys() & found["missing_keys"] | misshapen)
    if wrong:
        raise BaseModelError(
            f"got base model {name!r}, in which {len(wrong)} weights are missing or have another shape than its "
            f"configuration says, such as {wrong[0]}, expected all {len(parameters)}; download the model again, or use "
            "one with an output head"
        )
    modules = dict(model.named_modules())
    unused = sorted(key for key in found["unexpected_keys"] if _belongs(key, modules, model.base_model_prefix))
    if unused:
        raise BaseModelError(
            f"got base model {name!r} with {len(unused)} weights that its configuration has no place for beside those "
            f"of the same module, such as {unused[0]}, expected none; if they are scales, use the model before it was "
            "quantised, and otherwise the config.json that was published with these weights"
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise BaseModelError(
            f"got base model {name!r} with weights that stay quantised, expected plain ones; use the model that they "
            "were made from"
        )
    return model


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from logging which weights are missing or left out, for `read_weights` judges these."""
    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(_is_no_report)
    try:
        yield
    finally:
        log.removeFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def is_encoder(config: PreTrainedConfig) -> bool:
    """Return whether the tokens of a model see those behind them, as a model of masked tokens has to."""
    decodes = config.is_encoder_decoder or getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not decodes


def _kind(config: PreTrainedConfig, name: str) -> type:
    """Return the class that reads a model of a config."""
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise BaseModelError(
        f"got base model {name!r} of type {config.model_type!r}, which is no causal language model and no encoder, "
        "expected one of these"
    )


def _belongs(key: str, modules: Mapping[str, nn.Module], prefix: str) -> bool:
    """Return whether a weight belongs to a module that has others, by its name with or without the decoder's prefix.

    A weight of a module that is not there belongs to the nearest one around it: experts are one module in the model,
    and many in a checkpoint.
    """
    for name in (key, f"{prefix}.{key}"):
        around = name.rpartition(".")[0]
        while around and around not in modules:
            around = around.rpartition(".")[0]
        if around and any(True for _ in modules[around].parameters(recurse=False)):
            return True
    return False
