"""Committed results: their form, and the orderings that the environments were built for."""

import json
from pathlib import Path

import pytest

from experiments import commands, gates, gates_on_model, rows
from tools import interop

RESULTS = Path(__file__).resolve().parent.parent / "results"
CALIBRATION = json.loads((RESULTS / "calibration.json").read_text())
DEMO = json.loads((RESULTS / "demo.json").read_text())

ORDERINGS = {
    "cbf": ("random", "mrt", "local_fp", "warm_fp10"),
    "rb": ("random", "queue", "share_plus_3", "mf_rule", "expert"),
    "ns": ("random", "equal", "constant", "greedy_oracle", "lookahead_oracle"),
}


@pytest.mark.parametrize("task", sorted(ORDERINGS))
def test_calibration_keeps_the_order(task):
    means = [CALIBRATION[task][name]["mean"] for name in ORDERINGS[task]]
    assert means == sorted(means)


def test_calibration_rows_are_whole():
    for policies in CALIBRATION.values():
        for row in policies.values():
            assert {"mean", "sem", "instances", "steps", "metrics"} <= row.keys()
            assert len(row["instance_rewards"]) == row["instances"] >= 16


def test_demo_beats_random_and_the_simple_local_rules():
    policies = DEMO["policies"]
    few_shot = policies["networld_few_shot"]["reward"]
    local_rules = {"rb": ("random", "share", "queue"), "cbf": ("random",), "ns": ("random",)}[DEMO["held_out"]]
    assert all(few_shot > policies[name]["reward"] for name in local_rules)


def test_interop_page_shows_the_rows_that_were_measured():
    checks = json.loads((RESULTS / "interop.json").read_text())
    assert checks and all({"party", "version", "check", "passed"} <= row.keys() for row in checks)
    assert all(row["passed"] for row in checks), "a published check failed"
    page = interop.PAGE.read_text()
    assert interop.render(page, checks) == page, "run python -m tools.interop --render"


def test_gates_page_shows_what_was_measured():
    page = (RESULTS.parent / gates.PAGE).read_text()
    results = json.loads((RESULTS / "ns_gates.json").read_text())
    assert gates.with_tables(page, gates.tables(results)) == page, "run python -m experiments.gates ... --publish"
    assert gates.gates(results) == results["gates"]


def test_gates_page_shows_what_the_model_says():
    page = (RESULTS.parent / gates.PAGE).read_text()
    stored = json.loads((RESULTS / "ns_gates_on_model.json").read_text())
    assert gates_on_model.with_table(page, stored) == page, "run python -m experiments.gates_on_model ... --publish"


@pytest.mark.filterwarnings("ignore:.*load_module.*:DeprecationWarning")  # of ml_collections
def test_every_row_is_made_by_its_command():
    """Settings change after rows were made; `python -m tools.pin_commands` keeps their commands true."""
    for row in rows.read(RESULTS / "runs.jsonl"):
        assert commands.pinned(row) == row["command"]


@pytest.mark.filterwarnings("ignore:.*load_module.*:DeprecationWarning")  # of ml_collections
def test_a_command_is_pinned_where_settings_have_changed():
    row = next(r for r in rows.read(RESULTS / "runs.jsonl") if (r["tier"], r["method"]) == ("expert", "networld"))
    wanted = row | {"settings": row["settings"] | {"adapt.weight_decay": 0.25, "planner.guide_scale": 7.0}}
    text = commands.pinned(wanted)
    assert f"--config.queue.settings.expert.{row['task']}.adapt.weight_decay=0.25" in text
    assert rows.identity(commands.asked_for(text)) == rows.identity(wanted)
    with pytest.raises(ValueError, match="make it again and drop it"):  # a seed is not a setting
        commands.pinned(row | {"seed": 99})
