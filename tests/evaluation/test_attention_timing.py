"""Who takes turns and how often, and how rows compare contenders: round by round."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from protformer.evaluation.attention_benchmark.cases import Case
from protformer.evaluation.attention_benchmark.contenders import Exact, Performer, Sdpa, Softmax
from protformer.evaluation.attention_benchmark.rows import Measured, Rate, add_ratios, make_row
from protformer.evaluation.attention_benchmark.timing import (
    CALLS,
    Samples,
    number_of_calls,
    scout,
    take_turns,
    times_as_fast,
)
from protformer.surroundings import OtherPrograms

CASE = Case((40,), 2, 8, "float32", backward=False, causal=False, device="cpu")


def samples_of(*rounds, first=()):
    return Samples([list(calls) for calls in rounds], list(first))


def rows_of(*entries):
    """Rows of one group from (contender, samples or None, case)."""
    rows = [make_row("single", contender, case, Measured(samples), {}) for contender, samples, case in entries]
    add_ratios(rows, [samples for _, samples, _ in entries])
    return rows


def test_ratios_are_of_the_same_rounds():
    slow = samples_of([0.002, 0.002], [0.020], [0.002])  # the machine was busy in the second round
    fast = samples_of([0.001], [0.010], [0.001, 0.001])
    assert times_as_fast(slow, fast) == pytest.approx(2.0)
    assert times_as_fast(fast, slow) == pytest.approx(0.5)
    assert times_as_fast(samples_of([], [0.03], []), fast) == pytest.approx(3.0), "the round that both were called in"
    assert times_as_fast(samples_of([], [], [], first=[4.0]), fast) == pytest.approx(4000.0), "no such round: of all"


def test_rows_of_a_group():
    ours = Performer("relu", 8)
    fast, sdpa = samples_of([0.001, 0.002, 0.009], [0.002]), samples_of([0.008], [])
    rows = rows_of((ours, fast, CASE), (Sdpa(), sdpa, CASE), (Softmax(), None, CASE))
    assert [row["ratio"] for row in rows] == [4.0, 1.0, None]
    assert rows[0]["ratios"] == {"protformer-relu 8": 1.0, "sdpa": 4.0}
    assert [rows[0][key] for key in ("ms", "ms_min", "ms_max", "calls")] == [2.0, 1.0, 9.0, 4]
    assert rows[0]["tokens_per_second"] == 20_000
    assert rows_of((ours, fast, CASE))[0]["ratio"] is None, "without sdpa there is nothing to compare with"


def test_pack_overheads():
    pack, ours = replace(CASE, lengths=(15, 25)), Performer("relu", 8)
    entries = [(ours, [0.003], pack), (ours, [0.002], CASE), (Exact(), [1.0], pack), (Sdpa(), [0.006], pack)]
    rows = rows_of(*((contender, samples_of(seconds), case) for contender, seconds, case in entries))
    assert [row["pack_overhead"] for row in rows] == [pytest.approx(1.5), None, None, None]
    assert [row["ratio"] for row in rows] == [pytest.approx(2.0), None, pytest.approx(0.006), 1.0], (
        "of the same sequences"
    )


def test_the_cost_of_a_token():
    ours, other = Performer("relu", 8), Performer("relu", 16)
    longer = replace(CASE, lengths=(160,))
    rows = rows_of(
        (ours, samples_of([0.001]), CASE), (ours, samples_of([0.006]), longer), (other, samples_of([0.1]), longer)
    )
    assert [row["token_cost"] for row in rows] == [None, pytest.approx(1.5), None]
    assert [row["pack_overhead"] for row in rows] == [None] * 3


def test_causal_overheads():
    ours, causal = Performer("relu", 8), replace(CASE, causal=True)
    rows = rows_of(
        (ours, samples_of([0.003]), causal), (Sdpa(), samples_of([0.006]), causal), (ours, samples_of([0.002]), CASE)
    )
    assert [row["causal_overhead"] for row in rows] == [pytest.approx(1.5), None, None]
    assert [row["ratio"] for row in rows] == [pytest.approx(2.0), 1.0, None]


def test_shares_of_the_matrix_product_rate():
    # 4 products of 40 x 2 x 8 x 8, two operations a cell, in a second of a machine that does 81,920 a second
    ours, seconds = Performer("positive", 8), samples_of([1.0])
    measured = Measured(seconds, square=Rate(samples_of([0.5]), 40_960.0), shapes=Rate(samples_of([1e-9]), 1.0))
    row = make_row("single", ours, CASE, measured, {})
    assert row["matmul_share"] == pytest.approx(4 * 2 * 40 * 2 * 8 * 8 / 81_920)
    assert row["matmul_gflops"] == pytest.approx(81_920 / 1e9)
    assert row["matmul_gflops_shapes"] == pytest.approx(1.0)
    assert ours.products(replace(CASE, backward=True)) == ours.products(CASE) * 2.5
    assert Sdpa().products(CASE) == 2 * 2 * 40 * 40 * 2 * 8 == 2 * Sdpa().products(replace(CASE, causal=True))


@pytest.mark.parametrize(
    ("one", "limit", "calls"),
    [(1e-6, 10.0, 96), (0.05, 10.0, 12), (0.9, 10.0, 3), (4.4, 10.0, 2), (9.0, 10.0, 1), (15.0, 10.0, 0)],
)
def test_number_of_calls(one, limit, calls):
    assert number_of_calls(one, limit) == calls


def test_turns_are_interleaved_and_a_noisy_minute_hits_all():
    now, log = [0.0], []

    def contender(name, seconds):
        def call():
            log.append(name)
            now[0] += seconds * (10 if 20 <= len(log) < 40 else 1)
            return ()

        return call

    calls = [contender("a", 0.01), contender("b", 0.02)]
    samples = take_turns(calls, [0.01, 0.02], limit=5.0, device="cpu", clock=lambda: now[0])
    assert [len(taken.seconds) for taken in samples] == [48, 24]
    assert "a" * 9 not in "".join(log)
    assert all(taken.seconds[-1] > 5 * taken.seconds[0] for taken in samples)
    assert times_as_fast(samples[1], samples[0]) == pytest.approx(2.0)


@pytest.mark.parametrize("few", CALLS)
def test_any_two_meet_in_a_round(few):
    for many in CALLS:
        limits = [10 * calls * 1e-3 for calls in (few, many)]
        rounds = [take_turns([lambda: ()], [1e-3], limit=limit, device="cpu")[0].rounds for limit in limits]
        if few >= 3 <= many:
            assert [sum(map(len, taken)) for taken in rounds] == [few, many]
        assert any(a and b for a, b in zip(*rounds, strict=True))


def test_a_long_first_call_counts():
    (samples,) = take_turns([lambda: ()], [4.0], limit=10.0, device="cpu")
    assert samples.first == [4.0]
    assert len(samples.seconds) == 2
    (alone,) = take_turns([lambda: pytest.fail("was called again")], [7.0], limit=10.0, device="cpu")
    assert alone.seconds == [7.0]


def test_scouting_foretells_from_a_part():
    scouted = scout(Sdpa(), replace(CASE, lengths=(1 << 20,)), 1e-6)
    assert scouted.tokens == 1024
    assert scouted.layout in Sdpa.layouts
    assert scouted.seconds > 1.0, "a thousand times longer is a million times slower"
    whole = scout(Performer("relu", 8), CASE, 10.0)
    assert whole.tokens == 40


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="read from /proc")
def test_other_programs_are_seen():
    others = OtherPrograms()
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(0.5)
    process.kill()
    process.wait()
    cores = others.cores()
    assert cores is not None
    assert cores > 0.2
    assert OtherPrograms().cores() is None, "too soon to tell"
