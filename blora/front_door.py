"""What `import blora` offers: an adapter by its folder, by training, or around a LoRA that is trained already."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blora.adapter import load_adapter
from blora.base_model import EMBEDDED, BaseModel, pick_device
from blora.model import Model
from blora.opening import open_adapter, pick_dtype
from blora.training.sources import Rows

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
        path: the adapter's folder.
        base_model: `embedded`, a folder, a .gguf file, or a hub id with an optional @revision; by default the
            model that the adapter was trained on.
        device: a torch device, or auto: cuda, else cpu.
        dtype: float32, bfloat16, float16, or auto: the device's first that the adapter is calibrated for.
        name: of the adapter in answers; its folder's name by default.
        allow_uncalibrated: whether to answer where the adapter's calibration is for another dtype or other contents,
            with a warning in every prediction. To calibrate for a further dtype, allow it.

    Raises:
        AdapterError: if there is no adapter of that base model.
        NotCalibratedError: if its calibration does not hold, unless allowed.
        BaseModelError: if the base model, the device or the dtype cannot be used.
    """
    folder = Path(path)
    picked = pick_dtype(dtype, pick_device(device), [folder], allow_uncalibrated=allow_uncalibrated)
    base, adapter = open_adapter(folder, base_model=base_model, device=device, dtype=picked, name=name)
    return Model(base, adapter, allow_uncalibrated=allow_uncalibrated)


def train(
    rows: Rows,
    *,
    output: str | PathLike[str],
    choices: Sequence[str] | None = None,
    validation: Rows | None = None,
    columns: Mapping[str, str] | None = None,
    base_model: str = EMBEDDED,
    device: str = "auto",
    dtype: str = "auto",
    callbacks: Sequence["TrainerCallback"] = (),
    **settings: Any,
) -> Model:
    """Train an adapter on labelled rows, write it, and return it ready to answer.

    Args:
        rows: a list of dicts, a pandas or polars DataFrame, a `datasets.Dataset`, a .jsonl or .csv file, or a hub data
            set. A row has a question, prompt or messages (or, but for files, a text), and a label.
        output: the adapter directory to write.
        choices: the fixed label set; by default rows bring their own choices, or the labels that occur are the set.
        validation: rows to recalibrate and to stop by; by default a tenth of `rows`, which is not trained on.
        columns: the names in the rows of columns that are called otherwise, as in {"prompt": "review"}.
        base_model: see `load`; the embedded one by default.
        device: see `load`.
        dtype: see `load`.
        callbacks: of the Hugging Face Trainer.
        settings: any other flag of `blora train` with underscores, as in epochs=3, layers="last:10", n_samples=8,
            template="Ticket: {prompt}", report_to="tensorboard".

    Raises:
        BloraError: for bad rows, a bad base model or bad settings, before any training.
    """
    from blora.training.recipe import train_adapter
    from blora.training.settings import recipe_of

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
    base_model: str = EMBEDDED,
    device: str = "auto",
    dtype: str = "auto",
    **settings: Any,
) -> Model:
    """Make a trained plain PEFT LoRA Bayesian without training, write the adapter, and return it ready to answer.

    Args:
        lora: its directory, as PEFT saved it.
        rows: labelled rows that it was not trained on, as for `train`; they choose the width of the posterior.
        output: the adapter directory to write.
        choices: see `train`.
        columns: see `train`.
        base_model: that the LoRA was trained on: see `load`, as for device and dtype.
        device: where to compute.
        dtype: of the base model.
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
    """Return the adapter that was just written, on the base model that it was made with."""
    return Model(base, load_adapter(folder, base))


def _call(name: str, *rows: Any, **settings: Any) -> str:
    """Return a call as Python, for the record; rows in memory are named by their type alone."""
    told = [_told(value) for value in rows] + [f"{key}={_told(value)}" for key, value in settings.items()]
    return f"blora.{name}({', '.join(told)})"


def _told(value: Any) -> str:
    plain = isinstance(value, str | PathLike | int | float | None) or (
        isinstance(value, list | tuple | dict) and all(isinstance(part, str | int | float) for part in value)
    )
    return (repr(str(value)) if isinstance(value, PathLike) else repr(value)) if plain else f"<{type(value).__name__}>"
