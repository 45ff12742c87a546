"""The distill stage: what counts as equally good, and the whole stage on a toy task."""

import json

import jax
import numpy as np
import pytest

import networld_envs
from experiments import adapt, collect, distill, settings
from networld_jax.evaluation import Scores
from tests import tiny, toy_run


def scores(reward):
    return Scores(np.asarray(reward, np.float64), {}, {})


def test_a_faster_planner_may_lose_two_per_cent_of_the_span():
    """Span 10. A constant loss has no error; a noisy one is held to its one-sided 95 % bound."""
    teacher = np.array([1.0, 2.0, 3.0, 4.0])
    rows = distill.non_inferiority(
        {
            "teacher": scores(teacher),
            "little": scores(teacher - 0.1),
            "much": scores(teacher - 0.3),
            "noisy": scores(teacher + np.array([1.0, -1.0, 1.0, -1.0])),
            "random": scores(teacher - 5),
            "expert": scores(teacher + 5),
        }
    )
    assert rows["little"]["return_delta"] == pytest.approx(-0.01) and rows["little"]["non_inferior"]
    assert rows["much"]["lower_bound"] == pytest.approx(-0.03) and not rows["much"]["non_inferior"]
    error = np.sqrt(4 / 3) / np.sqrt(4)  # of the mean of +1, -1, +1, -1
    assert rows["noisy"]["lower_bound"] == pytest.approx(-1.645 * error / 10) and not rows["noisy"]["non_inferior"]


def test_mistakes_are_named(tmp_path):
    config = toy_run.get_config()
    config.distill.students = ("chian",)
    with pytest.raises(ValueError, match=r"distill.students must be among .* got \['chian'\]"):
        distill.run(config, tmp_path)
    config.distill.model = "teacher"
    with pytest.raises(ValueError, match=r"distill\.model must be 'adapt' or 'scratch'"):
        distill.run(config, tmp_path)


@pytest.mark.slow
def test_the_stage_trains_and_compares_its_students(tmp_path, monkeypatch):
    make = settings.make_world_model
    monkeypatch.setattr(settings, "make_world_model", lambda *args: tiny.linear_nets(make(*args)))
    monkeypatch.setattr(distill.checkpoints, "make_world_model", lambda *args: tiny.linear_nets(make(*args)))
    for name, factory in toy_run.TASKS.items():
        monkeypatch.setitem(networld_envs.ENVIRONMENTS, name, factory)
    config = toy_run.get_config()
    config.collect.tasks = (config.held_out,)
    config.adapt.from_scratch = True
    config.distill.variants.ddpm.num_steps = config.distill.variants.six_evaluations.num_steps = 4  # all levels
    config.distill.update(dict(num_updates=4, updates_per_dispatch=2, sequences=8, warmup_updates=0, hidden=(8,)))
    collect.run(config, tmp_path)
    adapt.run(config, tmp_path)
    result = distill.run(config, tmp_path)
    stored = json.loads((tmp_path / f"distillation_{config.held_out}.json").read_text())
    assert stored == json.loads(json.dumps(result))
    students = ["chain, 1 step", "chain, 2 steps", "row, 1 step"]
    assert list(result["policies"]) == ["teacher", *students, *config.distill.variants, "random", "expert"]
    assert result["policies"]["teacher"]["return_delta"] == 0
    assert all(np.isfinite(r["lower_bound"]) for r in result["policies"].values())
    _, params = distill.load_student(config, tmp_path, "row")
    assert "student" in params.params and jax.tree.leaves(params.params["student"])
