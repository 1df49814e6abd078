"""Learning rates against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftx.errors import UserError
from efftx.optim.schedules import learning_rate
from efftx.optim.settings import ScheduleConfig, check_schedule


def test_constant_rises_and_stays():
    config = ScheduleConfig("constant", warmup=4)
    assert [learning_rate(config, 2.0, step, 100) for step in (1, 2, 3, 4, 5, 100)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_without_a_warmup_the_first_step_has_the_full_rate():
    assert learning_rate(ScheduleConfig("constant"), 2.0, 1, 10) == 2.0
    assert learning_rate(ScheduleConfig("rsqrt"), 2.0, 1, 10) == 2.0
    assert learning_rate(ScheduleConfig("rsqrt"), 2.0, 4, 10) == 1.0


def test_rsqrt_is_the_authors_multifactor():
    config = ScheduleConfig("rsqrt", warmup=100)
    assert learning_rate(config, 2.0, 1, 0) == pytest.approx(2.0 * 0.01 / 10)
    assert learning_rate(config, 2.0, 50, 0) == pytest.approx(0.1)
    assert learning_rate(config, 2.0, 100, 0) == pytest.approx(0.2)  # the peak is lr / sqrt(warmup)
    assert learning_rate(config, 2.0, 400, 0) == pytest.approx(0.1)


def test_rsqrt_of_the_best_enwik8_run_peaks_at_seven_ten_thousandths():
    config = ScheduleConfig("rsqrt", warmup=2000)
    assert learning_rate(config, 0.03125, 2000, 100_000) == pytest.approx(0.03125 / math.sqrt(2000))


def test_terraformers_c4_schedule_is_constant_up_to_its_floor_and_has_no_warmup():
    config = ScheduleConfig("rsqrt", floor=10_000)
    assert [learning_rate(config, 1.0, step, 524_288) for step in (1, 2, 9_999, 10_000)] == [0.01] * 4
    assert learning_rate(config, 1.0, 10_001, 524_288) < 0.01
    assert learning_rate(config, 1.0, 40_000, 524_288) == 0.005
    assert learning_rate(config, 1.0, 524_288, 524_288) == pytest.approx(1 / math.sqrt(524_288))


def test_a_floor_beyond_the_warmup_holds_the_rate_between_them():
    config = ScheduleConfig("rsqrt", warmup=100, floor=400)
    assert [learning_rate(config, 2.0, step, 0) for step in (50, 100, 400, 1600)] == [0.05, 0.1, 0.1, 0.05]


@given(warmup=st.integers(0, 50), step=st.integers(1, 200))
def test_without_a_floor_rsqrt_is_bit_for_bit_what_it_is_with_none(warmup, step):
    expected = 0.3 * (min(1.0, step / warmup) if warmup else 1.0) / math.sqrt(max(step, warmup))
    assert learning_rate(ScheduleConfig("rsqrt", warmup), 0.3, step, 200) == expected


def test_cosine_falls_to_zero_at_the_last_step_of_the_training():
    config = ScheduleConfig("cosine", warmup=5000)
    assert learning_rate(config, 1.0, 2500, 25_000) == 0.5
    assert learning_rate(config, 1.0, 5000, 25_000) == 1.0
    assert learning_rate(config, 1.0, 10_000, 25_000) == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert learning_rate(config, 1.0, 15_000, 25_000) == pytest.approx(0.5)
    assert learning_rate(config, 1.0, 25_000, 25_000) == 0.0
    assert learning_rate(config, 1.0, 30_000, 25_000) == 0.0


def test_cosines_of_given_length_follow_one_another():
    config = ScheduleConfig("cosine", warmup=160, steps=4000)
    assert learning_rate(config, 0.0025, 80, 20_000) == pytest.approx(0.00125)
    assert learning_rate(config, 0.0025, 160, 20_000) == pytest.approx(0.0025)
    assert learning_rate(config, 0.0025, 2160, 20_000) == pytest.approx(0.00125)
    assert learning_rate(config, 0.0025, 4160, 20_000) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(config, 0.0025, 4161, 20_000) == learning_rate(config, 0.0025, 161, 20_000) > 0.00249
    assert learning_rate(config, 0.0025, 6160, 20_000) == pytest.approx(0.00125)


def test_linear_falls_in_a_line_and_stays_at_zero():
    config = ScheduleConfig("linear", warmup=2)
    assert [learning_rate(config, 4.0, step, 10) for step in (1, 2, 4, 6, 10, 11)] == [2.0, 4.0, 3.0, 2.0, 0.0, 0.0]
    assert learning_rate(ScheduleConfig("linear", warmup=2, steps=4), 4.0, 5, 1000) == 1.0
    assert learning_rate(ScheduleConfig("linear", warmup=2, steps=4), 4.0, 7, 1000) == 0.0


@given(
    name=st.sampled_from(["constant", "rsqrt", "cosine", "linear"]),
    warmup=st.integers(0, 50),
    step=st.integers(1, 200),
    total=st.integers(51, 200),
)
def test_no_rate_is_negative_or_above_the_constant_and_the_first_one_moves(name, warmup, step, total):
    config = ScheduleConfig(name, warmup)
    assert 0.0 <= learning_rate(config, 0.3, step, total) <= 0.3
    assert learning_rate(config, 0.3, 1, total) > 0.0


def test_a_step_before_the_first_is_a_fault_of_the_caller():
    with pytest.raises(ValueError, match="from 1"):
        learning_rate(ScheduleConfig(), 1.0, 0, 10)


@pytest.mark.parametrize(
    ("config", "total", "says"),
    [
        (ScheduleConfig("cosin"), 10, "schedule.name=cosin"),
        (ScheduleConfig("rsqrt", steps=5), 10, "no effect"),
        (ScheduleConfig("constant", floor=5), 10, "constant does not read it"),
        (ScheduleConfig("rsqrt", warmup=5, floor=5), 10, "schedule.floor=5 has no effect"),
        (ScheduleConfig("cosine", warmup=10), 10, "leaves no step"),
        (ScheduleConfig("linear", warmup=11), 10, "leaves no step"),
        (ScheduleConfig("cosine", warmup=0), 0, "training.steps=0 trains nothing"),
    ],
)
def test_a_wrong_schedule_is_refused_by_name(config, total, says):
    with pytest.raises(UserError) as caught:
        check_schedule(config, total)
    assert says in caught.value.message


@pytest.mark.parametrize("name", ["constant", "rsqrt", "cosine", "linear"])
def test_every_schedule_passes_its_own_check(name):
    check_schedule(ScheduleConfig(name, warmup=3), 10)


def test_a_floor_passes_the_check_of_the_schedule_that_reads_it():
    check_schedule(ScheduleConfig("rsqrt", floor=10_000), 10)
    check_schedule(ScheduleConfig("rsqrt", warmup=3, floor=4), 10)


def test_an_unknown_schedule_has_no_rate():
    with pytest.raises(UserError):
        learning_rate(ScheduleConfig("nothing"), 1.0, 1, 10)
