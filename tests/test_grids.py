"""Every method is given the same number of other settings, and the best on validation instances is the one scored."""

import json

import pytest

from experiments import grids, methods, rows, runs
from experiments.configs import evidence as configuration
from tests.evidence_rows import validated

CONFIG = configuration.get_config()


@pytest.mark.parametrize("method", grids.GRIDS)
def test_every_setting_is_another_one(method):
    """A default among the values to try would be a trial wasted."""
    names = (method, *grids.variants(method))
    for task in CONFIG.tasks:
        started = [runs.row_start(CONFIG, runs.Run(task, "mixed", name, "own+mf", "none"))[1] for name in names]
        assert len({json.dumps([r["settings"], r["updates"]], sort_keys=True) for r in started}) == grids.NUM_TRIED + 1


def test_every_method_of_the_headline_is_tuned():
    """But the pre-trained model, which has the settings of the one from scratch, and its parts."""
    pretrained = {"networld", "idm_only", "idm_only_noise"}
    assert set(configuration.HEADLINE) - pretrained - set(methods.VARIANT_OF) == set(grids.GRIDS)


def test_a_variant_trains_with_what_it_changes():
    run = runs.Run("rb", "mixed", "filtered_bc_num_updates_500", "own+mf", "own")
    resolved, started = runs.row_start(CONFIG, run)
    assert resolved.baselines.num_updates == started["updates"] == 500
    assert runs.columns(CONFIG, methods.table(CONFIG), run) == tuple(started[field] for field in runs.COLUMNS)
    resolved, _ = runs.row_start(CONFIG, runs.Run("rb", "mixed", "ma_dd_guide_scale_3", "own+mf", "own"))
    assert resolved.baselines.ma_dd.guide_scale == 3 and resolved.baselines.ma_dd.label == "own"


def wanted_after(group, scored):
    """What a group runs of filtered_bc after these (method, reward, fields of the row)."""
    config = CONFIG.copy_and_resolve_references()
    config.queue.groups, config.queue.tasks, config.queue.tiers = (group,), ("rb",), ("mixed",)
    config.queue.methods = ("filtered_bc",)
    return runs.list_runs(config, [validated(name, reward, **fields) for name, reward, fields in scored])


def finalists(*scored):
    wanted = wanted_after("tuning_finals", scored)
    assert {run.split for run in wanted} <= {"validation"}
    once, again = ([run.method for run in wanted if run.seed == seed] for seed in (1, 2))
    assert once == again and len(wanted) == 2 * len(once)
    return once


def chosen(*scored):
    """What group `tuned` runs, by seed."""
    wanted = wanted_after("tuned", scored)
    assert [run.seed for run in wanted] == [0, 1, 2] and {run.split for run in wanted} == {"test"}
    (name,) = {run.method for run in wanted}
    return name


def test_the_best_setting_on_validation_is_scored():
    default, narrow = ("filtered_bc", -0.7, {}), ("filtered_bc_keep_fraction_0.25", -0.5, {})
    short = ("filtered_bc_num_updates_500", -0.4, {"updates": 500})
    assert chosen() == "filtered_bc"
    assert chosen(default, narrow) == "filtered_bc_keep_fraction_0.25"
    assert chosen(default, narrow, short) == "filtered_bc_num_updates_500"
    assert chosen(("filtered_bc", -0.3, {}), narrow, short) == "filtered_bc"
    others = {"task": "cbf"}, {"tier": "expert"}, {"size": 1000}, {"obs_set": "own"}, {"settings": {"typed": 1}}
    for elsewhere in ({"split": "test"}, *others):
        assert chosen(default, ("filtered_bc_keep_fraction_0.25", 0.0, elsewhere)) == "filtered_bc"


def test_settings_are_compared_on_the_seeds_they_share():
    lucky = ("filtered_bc", -0.1, {"seed": 1})
    scored = [("filtered_bc", -0.7, {}), lucky, ("filtered_bc_keep_fraction_0.25", -0.5, {})]
    assert chosen(*scored) == "filtered_bc_keep_fraction_0.25"


def test_further_seeds_decide_between_its_own_setting_and_the_two_best_others():
    """On the first seed a quarter kept is best; over both, three quarters; the rest are not asked again."""
    quarter, more, short = (
        f"filtered_bc_{name}" for name in ("keep_fraction_0.25", "keep_fraction_0.75", "num_updates_500")
    )
    first = [(quarter, -0.5, {}), (more, -0.6, {}), (short, -0.9, {"updates": 500}), ("filtered_bc", -0.7, {})]
    first += [("filtered_bc_weight_decay_1", -0.65, {})]
    assert finalists(*first) == ["filtered_bc", quarter, more]
    assert finalists(("filtered_bc", -0.7, {})) == finalists() == []
    second = [("filtered_bc", -0.6, {"seed": 1}), (more, -0.5, {"seed": 1})]
    assert chosen(*first, *second) == quarter  # one of the three lacks the second seed
    assert chosen(*first, *second, (quarter, -0.7, {"seed": 1})) == more
    lucky = ("filtered_bc_weight_decay_1", 0.0, {"seed": 1})
    assert chosen(*first, *second, (quarter, -0.7, {"seed": 1}), lucky) == more
    both = [*first, *second, (quarter, -0.7, {"seed": 1})]
    third = [("filtered_bc", -0.1, {"seed": 2}), (more, -0.6, {"seed": 2})]
    assert chosen(*both, *third) == more  # two of the three have the third seed
    assert chosen(*both, *third, (quarter, -0.6, {"seed": 2})) == "filtered_bc"


def test_all_settings_are_runs_of_the_tuning_group():
    config = CONFIG.copy_and_resolve_references()
    config.queue.groups, config.queue.tasks, config.queue.methods = ("tuning",), ("rb",), ("ma_iql", "networld")
    wanted = [run for run in runs.list_runs(config) if run.tier == "mixed"]
    assert [run.method for run in wanted] == ["ma_iql", *grids.variants("ma_iql"), "networld"]
    assert {(run.split, run.seed) for run in wanted} == {("validation", 0)}
    assert len({rows.identity(runs.row_start(config, run)[1]) for run in wanted}) == len(wanted)
