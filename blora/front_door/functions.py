"""The functions of `import blora`: load an adapter, train one, or make a trained LoRA Bayesian."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blora.adapter import load_adapter
from blora.adapter.opening import dtype_for_adapters, open_adapter
from blora.base_model import BaseModel, pick_device
from blora.front_door.model import Model
from blora.hub.fetch import local_folder
from blora.hub.name import HubName, place_of
from blora.training.rows.sources import Rows

if TYPE_CHECKING:
    from transformers import TrainerCallback

__all__ = ["bayesianize", "load", "train"]


def load(
    path: str | PathLike[str],
    *,
    base_model: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    name: str | None = None,
    allow_uncalibrated: bool = False,
) -> Model:
    """Return an adapter that answers questions in this process as `blora serve` would.

    Args:
        path: the adapter's folder, or its name on the Hugging Face hub, "hf://owner/name@revision".
        base_model: `embedded`, a folder, a .gguf file, or a hub id with an optional @revision, and behind a + the
            encoder that linear heads read beside it, as in `embedded+owner/encoder`; by default what the adapter was
            trained on.
        device: a torch device, or auto: cuda, else cpu.
        dtype: float32, bfloat16, float16, or auto: the device's first dtype that the adapter is calibrated for.
        name: name of the adapter in answers; the folder's name by default, or the repository's.
        allow_uncalibrated: whether to answer, with a warning in every prediction, if the adapter's calibration is for
            another dtype or other contents. Required to calibrate for a further dtype.

    Raises:
        ConfigError: if a name on the hub is malformed.
        AdapterError: if the folder holds no adapter of that base model, or the hub does not give it.
        NotCalibratedError: if the adapter's calibration does not hold, unless allow_uncalibrated is set.
        BaseModelError: if the base model, the device or the dtype cannot be used.
    """
    place = place_of(path)
    folder = local_folder(place)
    picked = dtype_for_adapters(dtype, pick_device(device), [folder], allow_uncalibrated=allow_uncalibrated)
    if name is None and isinstance(place, HubName):
        name = place.name
    base, adapter = open_adapter(folder, base_model=base_model, device=device, dtype=picked, name=name)
    return Model(base, adapter, allow_uncalibrated=allow_uncalibrated)


def train(
    rows: Rows,
    *,
    output: str | PathLike[str],
    choices: Sequence[str] | None = None,
    validation: Rows | None = None,
    columns: Mapping[str, str] | None = None,
    base_model: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    callbacks: Sequence["TrainerCallback"] = (),
    **settings: Any,
) -> Model:
    """Train an adapter on labelled rows, write it, and return it ready to answer.

    Args:
        rows: a list of dicts, a pandas or polars DataFrame, a `datasets.Dataset`, a .jsonl, .csv or .parquet file, or a
            hub data set. A row has a question, prompt or messages (or, except in files, a text), and a label; or an
            input and several labelled questions, as requests to /v1/decisions have them.
        output: the adapter directory to write.
        choices: the fixed label set; by default each row's own choices, or else the set of all labels in the rows.
        validation: rows for recalibration and early stopping; by default a tenth of `rows`, to which a head alone is
            fitted in the end too.
        columns: the rows' names for columns with other names, as in {"prompt": "review"}.
        base_model: see `load`; by default that of an `init_from` that `train` made, or else the embedded model.
        device: see `load`.
        dtype: see `load`.
        callbacks: callbacks for the Hugging Face Trainer.
        settings: any other flag of `blora train` with underscores, as in epochs=3, layers="last:10", n_samples=8,
            template="Ticket: {prompt}", report_to="tensorboard". `question` may also be a dict.

    Raises:
        BloraError: for bad rows, a bad base model or bad settings, before training starts.
    """
    from blora.training.recipe import recipe_of
    from blora.training.run import train_adapter

    given = settings | {
        name: value
        for name, value in {"choices": choices, "validation": validation, "columns": columns}.items()
        if value is not None
    }
    where: dict[str, Any] = {"base_model": base_model, "device": device, "dtype": dtype}
    folder = Path(output)
    recipe = recipe_of(
        rows, folder, command=_call("train", rows, output=str(output), **given, **where), **given, **where
    )
    trained = train_adapter(recipe, folder, callbacks=callbacks)
    return _written(folder, trained.base)


def bayesianize(
    lora: str | PathLike[str],
    rows: Rows,
    *,
    output: str | PathLike[str],
    choices: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    base_model: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    **settings: Any,
) -> Model:
    """Make a trained plain PEFT LoRA Bayesian without training, write the adapter, and return it ready to answer.

    Args:
        lora: the LoRA's directory, as PEFT saved it.
        rows: labelled rows that the LoRA was not trained on, as for `train`; they determine the posterior's width.
        output: the adapter directory to write.
        choices: see `train`.
        columns: see `train`.
        base_model: the model that the LoRA was trained on, see `load`; by default that of a LoRA that `train` made, or
            else the embedded model.
        device: see `load`.
        dtype: see `load`.
        settings: any other flag of `blora bayesianize` with underscores, as in n_samples=16, scales=(0.5, 1.0).

    Raises:
        BloraError: for bad rows, a bad base model, a bad LoRA or bad settings.
    """
    from blora.training.bayesianize import bayesianize_lora

    given = settings | {
        name: value for name, value in {"choices": choices, "columns": columns}.items() if value is not None
    }
    where: dict[str, Any] = {"base_model": base_model, "device": device, "dtype": dtype}
    folder = Path(output)
    made, _ = bayesianize_lora(
        Path(lora),
        folder,
        rows,
        command=_call("bayesianize", str(lora), rows, output=str(output), **given, **where),
        **given,
        **where,
    )
    return _written(folder, made.base)


def _written(folder: Path, base: BaseModel) -> Model:
    """Return a model of the adapter that was just written, on the base model of the training."""
    return Model(base, load_adapter(folder, base))


def _call(name: str, *rows: Any, **settings: Any) -> str:
    """Return a call as Python code, for the training record; rows in memory appear as their type's name."""
    told = [_told(value) for value in rows] + [f"{key}={_told(value)}" for key, value in settings.items()]
    return f"blora.{name}({', '.join(told)})"


def _told(value: Any) -> str:
    plain = isinstance(value, str | PathLike | int | float | None) or (
        isinstance(value, list | tuple | dict) and all(isinstance(part, str | int | float) for part in value)
    )
    return (repr(str(value)) if isinstance(value, PathLike) else repr(value)) if plain else f"<{type(value).__name__}>"
