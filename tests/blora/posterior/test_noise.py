import pytest
import torch

from blora.posterior.noise import standard_normal


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_first_draws_do_not_depend_on_how_many_are_asked_for() -> None:
    like = torch.zeros(3, 2)
    few, many = standard_normal(4, generator()), standard_normal(16, generator())
    for _ in range(3):  # along the whole stream, not only at its start
        assert torch.equal(few.like(like), many.like(like)[:4])


def test_draws_differ_from_each_other_and_along_the_stream() -> None:
    noise = standard_normal(2, generator())
    first, second = noise.like(torch.zeros(5)), noise.like(torch.zeros(5))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


def test_a_seed_determines_every_bit() -> None:
    like = torch.zeros(7, dtype=torch.float64)
    assert torch.equal(standard_normal(3, generator(5)).like(like), standard_normal(3, generator(5)).like(like))
    assert not torch.equal(standard_normal(3, generator(5)).like(like), standard_normal(3, generator(6)).like(like))


def test_one_generator_gives_new_noise_each_time() -> None:
    shared = generator()
    like = torch.zeros(4)
    assert not torch.equal(standard_normal(2, shared).like(like), standard_normal(2, shared).like(like))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype_are_those_asked_for(dtype: torch.dtype) -> None:
    noise = standard_normal(3, generator())
    assert noise.n_samples == 3
    drawn = noise.normal(4, 5, like=torch.zeros(1, dtype=dtype))
    assert drawn.shape == (3, 4, 5)
    assert drawn.dtype == dtype


def test_noise_is_standard_normal() -> None:
    values = standard_normal(50, generator()).normal(2000, like=torch.zeros((), dtype=torch.float64))
    n = values.numel()
    assert abs(values.mean().item()) < 5 / n**0.5
    assert abs(values.square().mean().item() - 1) < 5 * (2 / n) ** 0.5
    between = (values[:-1] * values[1:]).mean()  # neighbouring draws are uncorrelated
    assert abs(between.item()) < 5 / n**0.5


def test_mirrored_noise_comes_in_pairs_around_zero_and_nests() -> None:
    like = torch.zeros(3, 2)
    plain, mirrored, fewer = (standard_normal(n, generator()) for n in (6, 6, 5))
    mirrored, fewer = mirrored.mirrored(), fewer.mirrored()
    assert mirrored.n_samples == 6
    for _ in range(2):
        expected, found = plain.like(like), mirrored.like(like)
        assert torch.equal(found[::2], expected[::2])
        assert torch.equal(found[1::2], -expected[::2])
        assert torch.equal(fewer.like(like), found[:5])


def test_the_global_generator_is_untouched() -> None:
    before = torch.get_rng_state()
    standard_normal(4, generator()).normal(3, like=torch.zeros(1))
    assert torch.equal(torch.get_rng_state(), before)
