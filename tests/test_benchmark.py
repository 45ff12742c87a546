"""The benchmark's bookkeeping: fair turns, whole rows, suites that replace only themselves, paper costs by hand."""

import itertools
import json
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark, cost_model, measure, runtime
from experiments.suites import memory
from tools import render_performance

ROOT = Path(__file__).resolve().parent.parent


def test_variants_take_turns():
    """Every variant runs once per round after one warm-up; none is always the first, none always follows another."""
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = measure.interleaved(calls, seconds=0.0, min_rounds=12)
    rounds = [tuple(order[i : i + 3]) for i in range(3, len(order), 3)]
    assert len(rounds) == 12 and all(sorted(names) == list("abc") for names in rounds)
    assert {names[0] for names in rounds} == set("abc")
    followed = {pair for names in rounds for pair in itertools.pairwise(names)}
    assert followed == {(a, b) for a in "abc" for b in "abc" if a != b}
    assert all(len(t.seconds) == 12 for t in times.values())


def test_times_are_those_of_the_call():
    times = measure.interleaved({"slow": lambda: time.sleep(0.02), "fast": lambda: None}, 0.0, min_rounds=3)
    assert 0.02 <= times["slow"].median < 0.2 and times["fast"].median < 0.01
    assert times["slow"].p95 >= times["slow"].median


def test_a_program_knows_what_it_took():
    program = measure.compiled(lambda x: x @ x, jnp.ones((64, 64)))
    np.testing.assert_allclose(program.call(jnp.ones((64, 64))), 64.0)
    assert program.trace_s > 0 and program.compile_s > 0
    assert program.memory_bytes >= 2 * 64 * 64 * 4


def rows(suite, *names):
    facts = dict(suite=suite, device="d", command="c")
    return [facts | benchmark.row(name, 1.0, "s", baseline=names[0]) for name in names]


def test_a_suite_replaces_its_own_rows_only():
    old = rows("sampler", "a", "b") + rows("train", "c")
    new = benchmark.merge(old, rows("sampler", "d"), "sampler")
    assert [(r["suite"], r["name"]) for r in new] == [("sampler", "d"), ("train", "c")]
    assert all(set(benchmark.FIELDS) <= set(r) for r in new)


def test_an_unknown_suite_is_one_line():
    with pytest.raises(runtime.UserError, match="suite 'speed' is not part"):
        benchmark.load_suite("speed")


def test_published_rows_are_whole():
    """Every ratio has its baseline in the same suite, measured on the same device by the same command."""
    published = render_performance.read()
    for r in published:
        assert set(benchmark.FIELDS) <= set(r) and r["value"] > 0
        assert (r["ratio"] is None) == (r["baseline"] is None)
        if r["baseline"]:
            (base,) = [b for b in published if b["suite"] == r["suite"] and b["name"] == r["baseline"]]
            assert (base["device"], base["command"]) == (r["device"], r["command"])


def test_the_performance_page_is_up_to_date():
    text = render_performance.DOCUMENT.read_text()
    assert render_performance.render(text, render_performance.read()) == text
    with pytest.raises(ValueError, match="sampler:begin"):
        render_performance.render("no block here", [])


def test_boundary_of_a_hexagonal_part():
    """1, 7, 19, 37 cells have 0, 6, 12, 18 on the rim; a single cell still speaks to its neighbours."""
    assert [round(cost_model.boundary_messages(n), 6) for n in (1, 7, 19, 37)] == [1, 6, 12, 18]


def test_costs_of_a_million_agents_by_hand():
    constants = cost_model.Constants("rb", "p", 5000.0, 2048.0, message_bytes=7, obs_dim=14, action_dim=1)
    e = cost_model.estimate(constants, agents=19 * 10, hosts=10)
    assert e.seconds_per_decision == pytest.approx(19 / 5000)
    assert e.memory_bytes_per_host == 19 * 2048
    assert e.host_bytes_out == pytest.approx(12 * 7)
    assert (e.air_bytes, e.central_bytes, e.central_link_bytes) == (7, 60, 190 * 60)
    with pytest.raises(ValueError, match="at least one host"):
        cost_model.estimate(constants, agents=5, hosts=10)
    sizes = dict(agents=9, environments=2, obs_dim=14, action_dim=1)
    measured = dict(plans_per_s=1.0, memory_bytes=18, message_bytes_per_decision=7)
    row = benchmark.row("rb, guided", 1.0, "x", sizes=sizes, **measured)
    quick = benchmark.row("rb, quick", 1.0, "x", sizes=sizes, **measured | {"plans_per_s": 3.9})  # 6 ms: noise
    alone = benchmark.row("rb, environment alone", 1.0, "x", sizes=sizes, plans_per_s=4.0)
    (found,) = cost_model.constants_from(
        [{"suite": "env"} | row, *({"suite": "closed_loop"} | r for r in (row, quick, alone))]
    )
    assert (found.task, found.planner, found.bytes_per_plan) == ("rb", "guided", 1.0)
    assert found.plans_per_s == pytest.approx(1 / (1 / 1 - 1 / 4))  # the simulator's share taken off


def test_results_file_is_a_list():
    path = ROOT / "results/benchmark.json"
    assert not path.exists() or isinstance(json.loads(path.read_text()), list)


def test_peak_memory_is_that_of_the_command(tmp_path):
    peak, _ = memory.peak_of([sys.executable, "-c", "x = b'x' * (100 * 2**20)"], tmp_path / "log")
    assert 100 < peak / 2**20 < 130
    with pytest.raises(runtime.UserError, match="ended with 3: lost"):
        memory.peak_of([sys.executable, "-c", "print('lost'); raise SystemExit(3)"], tmp_path / "log")
