"""Tables and figures say what the rows say: rows with known means in, known verdicts out."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments import evidence, evidence_figures, evidence_tables, methods, rows, runs
from experiments.configs import evidence as configuration
from tests.evidence_rows import few_shot, row, seeds, validated
from tools import render_results

RULES = [row("random", -2.0, tier="none"), row("mf_rule", -0.5, tier="none"), row("expert", -0.4, tier="none")]
PRETRAINED = {"sources": ["cbf", "ns"], "data": "real", "updates": 1000, "trajectories": {"cbf": 32, "ns": 16},
              "steps": {"cbf": 60, "ns": 60}}  # fmt: skip
FOUND = [
    *RULES,
    *seeds("ma_bc", -0.8),
    *seeds("networld_scratch", -0.6),
    *seeds("networld", -0.55, pretrain=PRETRAINED),
    *few_shot("ma_bc", -1.4),
    *few_shot("networld_scratch", -1.2),
    *few_shot("networld", -0.9, pretrain=PRETRAINED),
    *few_shot("random_unet", -1.3),
    *few_shot("networld_shuffled", -1.25, pretrain=PRETRAINED),
    *few_shot("networld_autoregressive", -1.3, pretrain=PRETRAINED),
    *seeds("ma_bc", -0.6, tier="expert"),
    *seeds("networld", -0.61, tier="expert"),
]  # fmt: skip


def line_of(table, method):
    (line,) = [line for line in table.splitlines() if f"`{method}`" in line]
    return [part.strip() for part in line.strip("|").split("|")]


def test_the_headline_table_holds_means_scores_and_paired_differences():
    table = evidence_tables.headline_table(FOUND, "rb", "mixed", ("ma_bc", "networld_scratch", "networld"))
    assert "Target data: 10000 environment steps" in table
    clone = line_of(table, "ma_bc")
    assert clone[1].startswith("-0.8") and clone[3] == "3" and clone[4].startswith("+0.2")
    assert float(clone[2].split()[0]) == pytest.approx(0.8, abs=0.01)  # (-0.8 + 2) / 1.5
    assert clone[5] == "1.00"  # every instance better, since instances are shared
    assert line_of(table, "networld")[4] == ""
    order = [line.split("`")[1] for line in table.splitlines() if "`" in line]
    assert order == ["expert", "mf_rule", "networld", "networld_scratch", "ma_bc", "random"]


def test_the_headline_table_says_how_many_settings_were_tried():
    """Variants count for what they are variants of; other data, test instances and other seeds do not count."""

    def tried(method, seed=0, tier="mixed", **settings):
        return row(method, -0.5, seed=seed, tier=tier, split="validation", settings=settings)

    looked_at = [
        tried("networld_scratch"), tried("networld_scratch", seed=1), tried("scratch_w10", w=10),
        tried("networld", x=1), tried("networld", tier="expert", x=2), tried("ma_bc"), tried("ma_cdmp"),
    ]  # fmt: skip
    table = evidence_tables.headline_table(
        [*FOUND, *looked_at], "rb", "mixed", ("ma_bc", "networld_scratch", "networld")
    )
    column = [part.strip() for part in table.splitlines()[2].strip("|").split("|")].index("tried")
    tries = {name: line_of(table, name)[column] for name in ("ma_bc", "networld_scratch", "networld", "mf_rule")}
    assert tries == {"ma_bc": "1", "networld_scratch": "3", "networld": "3", "mf_rule": ""}


def test_the_ensemble_table_compares_four_with_one_the_rivals_four_and_the_rule():
    """-0.55 against one (-0.6), the better four of a rival (-0.65) and the rule (-0.5)."""
    fours = [*seeds("scratch_ensemble", -0.55), *seeds("ma_dd_ensemble", -0.65), *seeds("filtered_bc_ensemble", -0.7)]
    wanted = (("rb",), "mixed", ("networld_scratch",), ("networld_scratch", "ma_dd", "filtered_bc"))
    lines = evidence_tables.ensemble_table([*FOUND, *fours], *wanted).splitlines()
    parts = [part.strip() for part in lines[2].strip("|").split("|")]
    assert len(lines) == 3 and parts[1].startswith("`scratch_ensemble` -0.5") and parts[7] == "3"
    assert parts[3].startswith("`ma_dd_ensemble` -0.6") and parts[3].endswith("(of 2)")
    assert [float(parts[n].split()[0]) for n in (2, 4, 6)] == pytest.approx([0.05, 0.1, -0.05], abs=0.015)
    assert evidence_tables.ensemble_table(FOUND, *wanted) == "No rows yet.\n"


def test_the_tuned_table_shows_the_best_on_validation_on_test_instances():
    """filtered_bc is better by 0.1 where a quarter is kept; ma_dd's own setting is its best. NetWorld has -0.5 with
    weight decay, once that is tried."""
    quarter = "filtered_bc_keep_fraction_0.25"
    scored = {"filtered_bc": -0.7, quarter: -0.5, "ma_dd": -0.5, "ma_dd_guide_scale_3": -0.9}
    looked_at = [validated(name, reward) for name, reward in scored.items()]
    tested = [*seeds("filtered_bc", -0.75), *seeds(quarter, -0.65), *seeds("ma_dd", -0.7)]
    config, learned = configuration.get_config(), ("networld_scratch", "ma_bc", "ma_dd", "filtered_bc")
    wanted = (config, ("rb",), "mixed", learned, learned)
    lines = evidence_tables.tuned_table([*FOUND, *looked_at, *tested], *wanted).splitlines()[2:]
    better, own = ([part.strip() for part in line.strip("|").split("|")] for line in lines)
    assert better[:4] == ["`rb`", "`filtered_bc`", "2", "`keep_fraction_0.25`"]
    numbers = [float(part.split()[0]) for part in better[5:10]]
    assert numbers == pytest.approx([-0.7, -0.5, -0.75, -0.65, 0.1], abs=0.015) and (better[4], better[10]) == ("1", "")
    assert own[1:4] == ["`ma_dd`", "2", "as it is"] and own[9] == ""

    decay = "networld_scratch_weight_decay_1"
    looked_at += [validated("networld_scratch", -0.6), validated(decay, -0.5)]
    lines = evidence_tables.tuned_table([*FOUND, *looked_at, *tested, *seeds(decay, -0.5)], *wanted).splitlines()[2:]
    ours, better, _ = ([part.strip() for part in line.strip("|").split("|")] for line in lines)
    assert ours[1] == "**`networld_scratch`**" and ours[3] == "`weight_decay_1`" and ours[10] == ""
    assert [float(part.split()[0]) for part in better[10:12]] == pytest.approx([0.05, 0.15], abs=0.015)

    line = evidence_tables.tuned_summary_table(
        [*FOUND, *looked_at, *tested, *seeds(decay, -0.5)], *wanted
    ).splitlines()[2]
    parts = [part.strip() for part in line.strip("|").split("|")]
    assert parts[2].startswith("`weight_decay_1`: -0.5") and parts[4:] == ["2", *better[10:12]]
    assert parts[3].startswith("`filtered_bc`, `keep_fraction_0.25`: ")
    assert evidence_tables.tuned_table([*FOUND, *tested], *wanted) is None


def test_the_summary_compares_the_better_networld_with_the_best_other_method():
    methods = ("ma_bc", "filtered_bc", "networld_scratch", "networld", "idm_only")
    found = [*FOUND, *seeds("filtered_bc", -0.7), *seeds("idm_only", -0.1)]  # the inverse model is a part of ours
    lines = evidence_tables.summary_table(found, ("rb",), ("mixed", "expert"), methods).splitlines()
    mixed, expert = ([part.strip() for part in line.strip("|").split("|")] for line in lines[2:])
    first = lambda text: pytest.approx(float(text.split()[0]), abs=0.02)  # noqa: E731
    assert mixed[:2] == ["`rb`", "mixed"] and "`mf_rule`" in mixed[3]
    assert first(mixed[4]) == -0.55 and first(mixed[5]) == -0.6 and first(mixed[7]) == 0.15
    assert "`filtered_bc`" in mixed[6] and "(of 2)" in mixed[6]
    assert expert[5] == "" and "`ma_bc`" in expert[6] and first(expert[7]) == -0.01


def test_transfer_needs_every_control():
    assert "transfer shown" in evidence_tables.transfer_verdict(FOUND, "rb", "mixed", 1000)
    weaker = [r for r in FOUND if r["method"] != "networld_shuffled"]
    assert "open, no rows of networld_shuffled" in evidence_tables.transfer_verdict(weaker, "rb", "mixed", 1000)
    shuffled = [*weaker, *few_shot("networld_shuffled", -0.9)]
    verdict = evidence_tables.transfer_verdict(shuffled, "rb", "mixed", 1000)
    assert "transfer not shown" in verdict and "`networld_shuffled`" in verdict and "`random_unet`" not in verdict


def rated(method, test, *validation):
    """A way of pre-training with a rate of adaptation: three rows on test instances, rows on validation instances."""
    scored = [row(method, reward, seed=s, size=1000, split="validation") for s, reward in enumerate(validation)]
    return [*few_shot(method, test), *scored]


def test_every_way_of_pretraining_gets_the_rate_that_validation_instances_choose():
    slow = methods.finetuned
    found = [
        *FOUND,
        *rated("networld", -0.9, -1.0, -1.0, -0.2), *rated(slow("networld", 0.1), -0.8, -0.9, -0.9),
        *rated("networld_shuffled", -1.0, -1.0, -1.0), *rated(slow("networld_shuffled", 0.1), -0.7, -1.2, -1.2),
        *rated("networld_autoregressive", -1.0, -1.0, -1.0), *rated(slow("networld_autoregressive", 0.3), -0.95, -0.9),
    ]  # fmt: skip
    rates = evidence.adaptation_rates(found, "rb", "mixed", 1000)
    assert {name: r.best for name, r in rates.items()} == {
        "networld": "networld_finetune_0.1",  # by the two seeds that both rates have
        "networld_shuffled": "networld_shuffled",
        "networld_autoregressive": "networld_autoregressive_finetune_0.3",
    }
    assert [len(r.seeds) for r in rates.values()] == [2, 2, 1]
    table = evidence_tables.rates_table(found, {"rb": 1000, "cbf": 1000}, "mixed")
    assert [line.split("|")[5].strip() for line in table.splitlines()[2:-2] if "|" in line] == [
        "`networld_finetune_0.1`", "`networld_scratch`", "`random_unet`", "`networld_shuffled`",
        "`networld_autoregressive_finetune_0.3`",
    ]  # fmt: skip
    assert re.search(r"\| 1: -\d\.\d{3}; 0\.1: -0\.\d{3} \| 2 \|", table)
    assert "rb: **transfer shown**" in table and "cbf" not in table
    better = [*found, *rated(slow("networld_shuffled", 0.3), -0.79, -0.8, -0.8)]  # as good at a rate of its own
    assert "not above `networld_shuffled`" in evidence_tables.rates_table(better, {"rb": 1000}, "mixed")
    assert evidence_tables.rates_table(FOUND, {"rb": 1000}, "mixed") is None


@pytest.mark.parametrize(("reward", "verdict"), [(-0.61, "not inferior"), (-0.75, "inferior or undecided")])
def test_equality_on_expert_data_is_within_two_percent(reward, verdict):
    found = [r for r in FOUND if (r["method"], r["tier"]) != ("networld", "expert")]
    found += seeds("networld", reward, tier="expert")
    line = evidence_tables.equal_to_clones(found, "rb", ("ma_bc", "networld"))
    assert verdict in line and "allowed -0.032" in line  # 2 % of 1.6


def test_the_chosen_cell_is_the_best_on_validation_and_has_the_most_seeds():
    other = [row("ma_bc", -0.1, obs_set="own")]  # better on test, but that may not choose
    found = [*FOUND, *other]
    assert evidence.cell(found, "rb", "mixed", "ma_bc", target_transitions=10_000).seeds == 3
    validated = [row("ma_bc", r, obs_set=o, split="validation") for o, r in (("own", -0.2), ("own+mf", -0.7))]
    chosen = evidence.cell([*found, *validated], "rb", "mixed", "ma_bc", target_transitions=10_000)
    assert chosen.rows[0]["obs_set"] == "own"
    assert evidence.cell(found, "rb", "mixed", "absent") is None


def test_the_same_data_from_more_networks_is_another_row():
    """Of the points of the second panel of Fig. 6 only the one with as few networks as hold the data is a control's."""
    few, many = seeds("networld", -0.8, size=1000), seeds("networld", -0.7, size=1000, target_topologies=10)
    for found in (few + many, many + few):
        chosen = evidence.cell(found, "rb", "mixed", "networld", target_transitions=1000)
        assert {r["target_topologies"] for r in chosen.rows} == {4}
        chosen = evidence.cell(found, "rb", "mixed", "networld", target_transitions=1000, target_topologies=10)
        assert {r["target_topologies"] for r in chosen.rows} == {10}


def test_without_validation_a_rung_of_the_ladder_is_not_the_headline():
    rungs = [*seeds("ma_dd", -0.9, obs_set="own", label="own"), *seeds("ma_dd", -0.8, label="own")]
    for found in (seeds("ma_dd", -0.7) + rungs, rungs + seeds("ma_dd", -0.7)):
        assert evidence.cell(found, "rb", "mixed", "ma_dd").rewards.mean() == pytest.approx(-0.7, abs=0.02)
    clones = [*seeds("ma_bc", -0.7), *seeds("ma_bc", -0.9, obs_set="own")]
    assert evidence.cell(clones, "rb", "mixed", "ma_bc").rewards.mean() == pytest.approx(-0.7, abs=0.02)


def test_only_the_end_of_training_counts():
    early = [row("ma_bc", 5.0, seed=seed, updates=100) for seed in range(3)]
    assert evidence.cell([*early, *FOUND], "rb", "mixed", "ma_bc", target_transitions=10_000).rewards.mean() < 0


def test_a_training_curve_needs_two_points_at_the_headlines_data():
    early = seeds("ma_bc", -1.5, updates=100)
    curves = evidence.training_curves([*FOUND, *early], "rb", "mixed", ("ma_bc", "networld"))
    assert list(curves) == ["ma_bc"] and list(curves["ma_bc"]) == [100, 1000]
    np.testing.assert_allclose([curve.mean() for curve in curves["ma_bc"].values()], [-1.5, -0.8], atol=0.02)


def test_a_comparison_needs_the_reference_and_one_other():
    compare = lambda *methods: evidence_tables.against_table(FOUND, "rb", "mixed", methods, "networld", 10_000)  # noqa: E731
    assert "`ma_bc`" in compare("networld", "ma_bc")
    assert compare("networld", "ma_dd") is None
    assert evidence_tables.against_table(FOUND, "rb", "mixed", ("networld", "ma_bc"), "ma_dd", 10_000) is None


def test_data_saved_is_read_off_the_curves():
    table = evidence_tables.saved_table(FOUND, ("rb",), "mixed", ("ma_bc", "networld"))
    cells = line_of(table, "ma_bc")
    assert cells[2] == "10000" and cells[4] == "100%"
    # networld: -0.9 at 1000, -0.55 at 10000; -0.8 is reached at 1000 * 10 ** (0.1 / 0.35)
    assert float(cells[3].split()[0]) == pytest.approx(10 ** (1 - 0.1 / 0.35), rel=0.05)


def test_the_data_axis_compares_the_better_networld_with_the_best_other():
    axis = ("networld", "networld_scratch", "ma_bc", "filtered_bc")
    assert evidence_tables.data_axis_table(FOUND, "rb", "mixed", axis) is None  # filtered_bc has no rows
    few = few_shot("filtered_bc", -1.0)
    lines = evidence_tables.data_axis_table([*FOUND, *few], "rb", "mixed", axis).splitlines()
    (line,) = [[part.strip() for part in line.split("|")] for line in lines if line.startswith("| 1000 |")]
    assert not any(line.startswith("| 10000 |") for line in lines)
    assert line[2] == "4" and line[5].startswith("`filtered_bc` ") and line[7] == "3"
    values = [float(line[column].split()[place]) for column, place in ((3, 0), (4, 0), (5, 1), (6, 0))]
    assert values == pytest.approx([-0.9, -1.2, -1.0, 0.1], abs=0.02)


def test_the_ladder_compares_neighbouring_rungs():
    rungs = [*seeds("ma_dd", -0.9), *seeds("ma_dd_clean", -1.3, obs_set="own", label="own")]
    table = evidence_tables.ladder_table([*FOUND, *rungs], "rb", "mixed", 10_000)
    gains = [line.split("|")[-2].strip() for line in table.splitlines() if "`" in line]
    assert gains[0] == ""
    assert [float(g.split()[0]) for g in gains[1:]] == pytest.approx([0.4, 0.3, 0.05], abs=0.02)
    assert evidence_tables.ladder_table(FOUND[:4], "rb", "mixed", 10_000) is None

    aware = {"model.noise_aware_inverse_dynamics": True}
    found = [*RULES, *rungs, *seeds("ma_dd_aware", -0.7), *seeds("networld_scratch", -0.6)]
    assert "ma_dd_aware" not in evidence_tables.ladder_table(found, "rb", "mixed", 10_000)
    found += seeds("networld_scratch", -0.6, settings=aware)
    assert line_of(evidence_tables.ladder_table(found, "rb", "mixed", 10_000), "ma_dd_aware")[-1].startswith(
        ("+0.19", "+0.2")
    )


def test_coverage_counts_what_is_missing():
    config = configuration.get_config()
    config.queue.tasks = ("rb",)
    config.queue.methods = ("ma_bc", "networld")
    wanted = runs.list_runs(config)
    known = methods.table(config)
    columns_of = lambda run: runs.columns(config, known, run)  # noqa: E731
    assert evidence_tables.coverage(FOUND, wanted, "headline", columns_of) == "`headline`: complete (12 runs)."
    assert evidence_tables.coverage(FOUND[:3], wanted, "headline", columns_of) == "`headline`: none of 12 runs done."
    line = evidence_tables.coverage(FOUND[:-1], wanted, "headline", columns_of)
    assert line == "`headline`: 1 of 12 runs missing: rb networld expert (1)."
    config.queue.groups = ("sizes",)  # rows of the headline do not count as points of the curve
    assert "`sizes`: none of 30 runs done." in evidence_tables.coverage(
        [row for row in FOUND if row["target_transitions"] == 10_000], runs.list_runs(config), "sizes", columns_of
    )


def test_figures_need_curves_and_show_them():
    methods = ("ma_bc", "networld", "networld_scratch")
    assert evidence_figures.fig5(FOUND, ("rb",), "mixed", methods) is None
    early = [r for m in methods for r in seeds(m, -1.5, updates=100)]
    curves = evidence_figures.fig5([*FOUND, *early], ("rb",), "mixed", methods)
    assert {line.get_label() for line in curves.axes[0].get_lines()} >= {*methods, "random", "expert", "mf_rule"}
    sizes = evidence_figures.fig6(FOUND, ("rb",), "mixed", methods)
    upper = {line.get_label(): line.get_ydata() for line in sizes.axes[0].get_lines()}
    np.testing.assert_allclose(upper["ma_bc"], [0.4, 0.8], atol=0.02)
    paper = {line.get_label(): line.get_ydata() for line in sizes.axes[1].get_lines()}
    assert list(paper["networld"]) == [1, 1] and list(paper["ma_bc"]) == [0, 0]
    plt.close("all")


def test_the_page_holds_every_section():
    variants = ["scratch_w0", "scratch_ddim_1", "scratch_h2", "paper_reading"]
    variants += ["scratch_ensemble", "filtered_bc_ensemble"]
    found = [*FOUND, *(r for name in variants for r in seeds(name, -0.7)), row("simulator_planner", -0.4, tier="none")]
    page = render_results.page([*found, *few_shot("networld_finetune_0", -0.95)], "small")
    parts = ("## What is missing", "### rb, mixed data", "transfer shown", "| `ma_bc` |", "on a device; jax 1.2.3")
    groups = ("guidance", "planning", "training", "adaptation", "paper_reading")
    for part in (*parts, *(f"### {group}: rb, mixed" for group in groups), "| `simulator_planner` |"):
        assert part in page, part
    assert "rb, mixed: 1000 environment" in page.split("### adaptation: ")[1]
    for name in (*variants, "networld_finetune_0"):
        assert f"| `{name}` | -0." in page, name
    assert "No run of this preset" in render_results.page(FOUND, "paper")


def test_the_published_page_is_what_the_rows_say():
    root = Path(__file__).resolve().parent.parent
    if not (root / "results/runs.jsonl").exists():
        pytest.skip("results/runs.jsonl is not published yet")
    shown = sorted(path.stem for path in (root / "docs/figures").glob("evidence_*.png"))
    assert (root / "docs/results.md").read_text() == render_results.page(
        rows.read(root / "results/runs.jsonl"), "small", shown
    )
