"""The proofs that an architecture packs and forks, or reads choices one by one, in every dtype, on the processor as it is and on a noisy one."""

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from benchmarks.processors.noise import noisy_processor
from blora.base_model import BaseModel
from blora.errors import BaseModelError
from blora.inference import architecture as checks
from blora.inference.architecture import check_packing
from blora.inference.fork import runs_in_parts, why_whole
from blora.inference.unpacked import unpack, way_of
from blora.posterior.inject import eject, inject
from tests.scenarios import ARCHITECTURES, DECODERS, UNFORKABLE, adapted_modules, tiny_base

# On the processor as it is, and on a noisy one, which moves nothing in float32.
PROCESSORS = [
    (torch.float32, None),
    (torch.bfloat16, None),
    (torch.bfloat16, 0),
    (torch.bfloat16, 1),
    (torch.float16, 0),
]


@pytest.fixture(
    params=PROCESSORS, ids=lambda p: str(p[0]).removeprefix("torch.") + (f"-noisy{p[1]}" if p[1] is not None else "")
)
def dtype(request: pytest.FixtureRequest) -> Any:
    dtype, seed = request.param
    with noisy_processor(seed) if seed is not None else contextlib.nullcontext():
        yield dtype


@pytest.mark.parametrize("architecture", DECODERS)
def test_supported_architectures_pass_and_run_in_parts(architecture: str, dtype: torch.dtype) -> None:
    base = tiny_base(architecture, dtype)
    check_packing(base)
    assert why_whole(base.model) is None


@pytest.mark.parametrize("architecture", DECODERS)
def test_an_injected_model_passes(architecture: str) -> None:
    base = tiny_base(architecture)
    inject(base.model, adapted_modules(base.model))
    check_packing(base)


def without_mask(kwargs: dict[str, Any]) -> None:
    if kwargs.get("attention_mask") is not None:
        length = kwargs["attention_mask"].shape[-1]
        causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        kwargs["attention_mask"] = causal.expand_as(kwargs["attention_mask"])


def with_the_librarys_mask(kwargs: dict[str, Any]) -> None:
    kwargs.pop("attention_mask", None)  # transformers makes one of its own from positions that start again


def without_positions(kwargs: dict[str, Any]) -> None:
    if kwargs.get("position_ids") is None:  # scoring alone has the plain ones
        return
    kwargs["position_ids"] = torch.arange(kwargs["position_ids"].shape[1])[None].expand_as(kwargs["position_ids"])


def with_visible_padding(kwargs: dict[str, Any]) -> None:
    if kwargs.get("attention_mask") is None:
        return
    mask = kwargs["attention_mask"].clone()
    starts = (kwargs["position_ids"] == 1).int().argmax(1) - 1  # the prompt's first column
    for row, start in enumerate(starts.tolist()):
        mask[row, :, :, :start] = 0  # keys to the left of the prompt
    kwargs["attention_mask"] = mask


def spoil(base: BaseModel, change: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the decoder of a model take other inputs than it is given."""
    decoder = type(base.model.get_submodule(base.model.base_model_prefix))
    forward = decoder.forward

    @functools.wraps(forward)
    def spoiled(*args: Any, **kwargs: Any) -> Any:
        change(kwargs)
        return forward(*args, **kwargs)

    monkeypatch.setattr(decoder, "forward", spoiled)


SPOILS = [without_mask, with_the_librarys_mask, without_positions, with_visible_padding]


@pytest.mark.parametrize("change", SPOILS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_that_ignores_what_packing_needs_reads_choices_one_by_one(
    architecture: str, change: Callable[[dict[str, Any]], None], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base(architecture, dtype)
    spoil(base, change, monkeypatch)
    assert way_of(check_packing(base).model) is not None


def test_a_model_whose_window_hides_distant_columns_reads_choices_one_by_one(dtype: torch.dtype) -> None:
    base = tiny_base("gpt_neo", dtype)
    base.model.config.attention_layers = ["global", "local"]
    local = GPTNeoSelfAttention(base.model.config, "local", layer_id=1)
    base.model.transformer.h[1].attn.attention.bias = local.bias
    assert way_of(check_packing(base).model) is not None


@pytest.mark.parametrize("error", [RuntimeError, TypeError, KeyError, ValueError])
def test_a_model_that_fails_is_refused(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()

    def explode(*args: Any, **kwargs: Any) -> Any:
        raise error("boom")

    monkeypatch.setattr(base.model.model.layers[1].mlp, "forward", explode)
    with pytest.raises(BaseModelError, match=rf"tiny/llama, which fails .*{error.__name__}: '?boom") as refused:
        check_packing(base)
    assert isinstance(refused.value.__cause__, error)


def test_a_model_that_gives_no_numbers_is_refused() -> None:
    base = tiny_base()
    with torch.no_grad():
        base.model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(
        BaseModelError, match=r"tiny/llama, which gives no finite numbers in float32.*use another model"
    ):
        check_packing(base)


def test_a_model_that_overflows_is_refused_with_the_dtype_that_would_do() -> None:
    base = tiny_base("llama", torch.float16)
    with torch.no_grad():
        base.model.model.layers[0].mlp.down_proj.weight.fill_(torch.finfo(torch.float16).max)
    with pytest.raises(BaseModelError, match=r"gives no finite numbers in float16, .* use --dtype float32"):
        check_packing(base)


def test_a_model_that_gives_no_numbers_for_packed_choices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = checks._logits
    monkeypatch.setattr(checks, "_logits", lambda *args: torch.nan * logits(*args))
    with pytest.raises(BaseModelError, match="by nan of their standard deviation"):
        check_packing(tiny_base())


# In parts or whole


def test_a_model_whose_layers_share_more_than_states_runs_whole_and_says_so(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny_base(UNFORKABLE, dtype)
    with caplog.at_level(logging.WARNING):
        check_packing(base)
    assert not runs_in_parts(base.model)
    assert [record.getMessage() for record in caplog.records] == [
        f"tiny/{UNFORKABLE} cannot be run in parts, so every layer runs for every draw, at several times the cost: "
        f"{why_whole(base.model)}"
    ]


@pytest.mark.parametrize("factor", [0, torch.nan])
def test_a_model_whose_parts_make_something_else_runs_whole(
    factor: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base("llama", dtype)
    states_of = checks.states_of

    def other(*args: Any) -> Any:
        found = states_of(*args)
        return type(found)(found.layer, factor * found.values)

    monkeypatch.setattr(checks, "states_of", other)
    check_packing(base)
    assert "parts changes the logits by" in (why_whole(base.model) or "")


@pytest.mark.parametrize("spoilt", [0, 1, 2])
def test_no_part_that_gives_no_numbers_is_overlooked(spoilt: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the two copies of the states, and what comes after a remembered beginning."""
    base, distance, calls = tiny_base(), checks.distance, iter(range(100))
    n_before = 3 + 3  # of rounding, and of the proofs
    monkeypatch.setattr(
        checks, "distance", lambda a, b: torch.nan if next(calls) == n_before + spoilt else distance(a, b)
    )
    check_packing(base)
    assert "parts changes the logits by nan" in (why_whole(base.model) or "")


def test_a_model_whose_answers_depend_on_chance_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base, generator = tiny_base(), torch.Generator().manual_seed(0)

    def shaken(module: object, args: object, output: torch.Tensor) -> torch.Tensor:
        return output * (1 + torch.randn(output.shape, generator=generator))

    base.model.model.layers[0].mlp.register_forward_hook(shaken)
    with pytest.raises(BaseModelError, match="is random or depends on the batch"):
        check_packing(base)


# The embedded model


@pytest.fixture(params=["smollm2", "smollm2_bf16"])
def embedded(request: pytest.FixtureRequest) -> Any:
    base = request.getfixturevalue(request.param)
    yield base
    unpack(base.model, None)
    eject(base.model)


@pytest.mark.model
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_the_embedded_model_passes_and_runs_in_parts(embedded: BaseModel, seed: int | None) -> None:
    with noisy_processor(seed) if seed is not None else contextlib.nullcontext():
        check_packing(embedded)
    assert why_whole(embedded.model) is None


@pytest.mark.model
@pytest.mark.parametrize("change", SPOILS)
def test_the_embedded_model_reads_choices_one_by_one_where_it_ignores_what_packing_needs(
    embedded: BaseModel, change: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(embedded, change, monkeypatch)
    with noisy_processor(0):
        assert way_of(check_packing(embedded).model) is not None
