"""Angular hashing: the bucket is the nearest signed axis after a random rotation."""

from __future__ import annotations

import pytest
import torch

from efftx.ops.lsh_hashing import auto_buckets, hash_vectors, make_rotations, sort_by_bucket


def rotations(factors: list[int], n_hashes: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return make_rotations((2, 2, 6), n_hashes, factors, device="cpu", dtype=torch.float64, generator=generator)


def queries(length: int = 20) -> torch.Tensor:
    return torch.randn(2, 2, length, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_bucket_is_the_largest_signed_projection() -> None:
    q, r = queries(), rotations([8])
    bucket = hash_vectors(q, r, [8])
    for b, h, s, t in ((0, 0, 0, 0), (1, 0, 2, 5), (1, 1, 1, 19)):
        signed = [float(q[b, h, t] @ r[b, h, :, s, i]) for i in range(4)]
        signed += [-value for value in signed]
        assert bucket[b, h, s, t] == signed.index(max(signed))


def test_factors_combine_as_digits_of_a_mixed_radix() -> None:
    q, r = queries(), rotations([4, 6, 2])
    parts = [hash_vectors(q, r[..., :2], [4]), hash_vectors(q, r[..., 2:5], [6]), hash_vectors(q, r[..., 5:], [2])]
    assert torch.equal(hash_vectors(q, r, [4, 6, 2]), parts[0] + 4 * parts[1] + 24 * parts[2])


def test_length_does_not_matter_and_the_opposite_is_in_the_opposite_bucket() -> None:
    q, r = queries(), rotations([8])
    bucket = hash_vectors(q, r, [8])
    assert torch.equal(hash_vectors(3 * q, r, [8]), bucket)
    assert torch.equal(hash_vectors(-q, r, [8]), (bucket + 4) % 8)


def test_rotations_follow_their_generator_and_differ_between_rounds() -> None:
    assert torch.equal(rotations([8]), rotations([8]))
    assert not torch.equal(rotations([8])[..., 0, :], rotations([8])[..., 1, :])


@pytest.mark.parametrize(
    ("length", "chunk_len", "factors"),
    [
        (1, 64, [2]),
        (1024, 64, [32]),
        (4096, 64, [128]),
        (16384, 64, [32, 16]),
        (12288, 64, [32, 12]),
        (65536, 64, [64, 32]),
        (4160, 64, [16, 8]),
    ],
)
def test_automatic_buckets_are_two_a_chunk_in_even_factors(length: int, chunk_len: int, factors: list[int]) -> None:
    assert auto_buckets(length, chunk_len) == factors


def test_a_sorted_round_is_in_time_order_inside_a_bucket() -> None:
    bucket = torch.tensor([[[2, 0, 2, 1, 0, 2]]])
    assert sort_by_bucket(bucket, 3).tolist() == [[[1, 4, 3, 0, 2, 5]]]


def test_keys_that_need_64_bits_sort_right() -> None:
    bucket = torch.tensor([[[2**40, 0, 2**40 - 1]]])
    assert sort_by_bucket(bucket, 2**40 + 1).tolist() == [[[1, 2, 0]]]


@pytest.mark.parametrize("factors", [[7], [4, 3], [0], []])
def test_an_odd_number_of_buckets_is_refused(factors: list[int]) -> None:
    with pytest.raises(ValueError, match="must be even and at least 2"):
        hash_vectors(queries(), rotations([8]), factors)
    with pytest.raises(ValueError, match="must be even and at least 2"):
        rotations(factors)


def test_rotations_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="The rotations must have the shape"):
        hash_vectors(queries(), rotations([8]), [4])


def test_a_chunk_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        auto_buckets(8, 0)


def test_hashing_runs_on_the_meta_device() -> None:
    r = make_rotations((2, 2, 6), 3, [4, 2], device="meta", dtype=torch.float32)
    assert hash_vectors(torch.empty(2, 2, 20, 6, device="meta"), r, [4, 2]).shape == (2, 2, 3, 20)
