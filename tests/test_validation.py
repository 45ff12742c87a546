"""Bad configurations and command lines: one line that names field, value and what is allowed; never a traceback."""

import sys
from pathlib import Path

import pytest

from experiments import runtime, validation
from experiments.configs import default, evidence
from tools import bad_input
from tools.bad_input import GOOD, parse

# How ml_collections loads a file; gone with its next release.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module.*:DeprecationWarning")

CONFIGS = sorted(path for path in Path("experiments/configs").glob("[!_]*.py"))


def line_of(error) -> str:
    message = runtime.one_line(error)
    assert "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("path", [*map(str, CONFIGS), "experiments/configs/evidence.py:paper"])
def test_every_configuration_of_the_repository_is_valid(path):
    config, workdir = parse([f"--config={path}", "--workdir=nowhere"])
    assert str(workdir) == "nowhere" and set(default.get_config()) <= set(config)


def test_600_random_mistakes_are_one_line_each():
    answers = bad_input.draw(600, seed=0)
    assert sum(len(found) for found in answers.values()) == 600 and all(answers.values())
    assert not [answer for found in answers.values() for answer in found if answer]


def test_mistakes_that_pass_would_be_noticed(monkeypatch):
    monkeypatch.setattr(validation, "check", lambda path, value, rule: None)
    answers = bad_input.draw(15, seed=0)
    assert answers["wrong value"].count(None) < len(answers["wrong value"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.horizon": 6}, "model: horizon must be divisible by 4, got 6"),
        ({"model.latent_dim": 8}, "model: latent_dim must be at least 36"),
        ({"held_out": "wifi"}, r"held_out must be one of tasks \('cbf', 'rb', 'ns'\), got 'wifi'"),
        ({"collect.tier": "perfect"}, r"collect\.tier must be one of .*'expert'.*, got 'perfect'"),
        ({"collect.num_steps.ns": 4}, r"collect\.num_steps\.ns must be at least 8, .*got 4"),
        ({"adapt.num_trajectories": 97}, r"at most collect\.num_trajectories\.rb=96, got 97"),
        ({"adapt.num_steps": 2001}, r"adapt\.num_steps must be in 0\.\.2000 .*, got 2001"),
        ({"pretrain.num_updates": 150}, r"pretrain\.num_updates must be a positive multiple"),
        ({"baselines.ma_iql.expectile": 2.0}, r"baselines\.ma_iql: .*expectile must .*got 2\.0"),
        ({"baselines.methods": ("ma_bd",)}, r"baselines\.methods: baseline must be one of .*got 'ma_bd'"),
    ],
)
def test_fields_that_do_not_suit_each_other(change, message):
    config = default.get_config()
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message) as error:
        validation.validate(config)
    line_of(error.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"correlation": 1.5}, r"environment\.cbf: correlation must lie in \[0, 1\), got 1\.5"),
        ({"correlation": "high"}, r"environment\.cbf\.correlation must be a finite number, got 'high'"),
        ({"noise_dbm": float("nan")}, r"environment\.cbf\.noise_dbm must be a finite number, got nan"),
        ({"corelation": 0.5}, r"environment\.cbf: unknown cbf parameter 'corelation'"),
    ],
)
def test_environment_parameters(parameters, message):
    config = default.get_config()
    with config.unlocked():
        config.environment.cbf.update(parameters)
    with pytest.raises(runtime.UserError, match=message) as error:
        validation.validate(config)
    line_of(error.value)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("rb", {"planner": {"guide_scale": -1.0}}, r"expert\.rb\.planner\.guide_scale must be a number >= 0"),
        ("rb", {"planer": {"guide_scale": 1.0}}, r"unknown .*did you mean 'queue.*\.rb\.planner\.guide_scale'"),
        ("rbs", {"planner": {"guide_scale": 1.0}}, r"queue\.settings\.expert must be one of .*, got 'rbs'"),
        ("rb", {"planner": {"inverse_dynamics_noise": 99.0}}, r"noise must be a number in \[0\.1, 10\]"),
    ],
)
def test_settings_by_tier_and_task(task, changes, message):
    config = evidence.get_config()
    with config.unlocked():
        config.queue.settings.update({"expert": {task: changes}})
    with pytest.raises(runtime.UserError, match=message) as error:
        validation.validate(config)
    line_of(error.value)


def test_settings_of_a_task_are_a_section():
    config = evidence.get_config()
    with config.unlocked():
        config.queue.settings.update({"medium": {"rb": 3}})
    with pytest.raises(runtime.UserError, match=r"queue\.settings\.medium\.rb must be a section .*, got 3"):
        validation.validate(config)


def test_a_good_command_line_passes():
    config, workdir = parse([*GOOD, "--config.seed=3", "--config.baselines.ma_bc.hidden=(8, 8)"])
    assert config.seed == 3 and config.baselines.ma_bc.hidden == (8, 8) and workdir == Path("nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
        ("x = 1", "get_config"),
        ("def get_config(): return 1 / 0", "division by zero"),
        ("def get_config(): raise ValueError('two\\nlines')", "lines"),
        ("def get_config(): return None", "--config"),
        ("def get_config(): return {'seed': 1}", "ConfigDict"),
        ("from ml_collections import ConfigDict\ndef get_config(): return ConfigDict()", "lacks 'tasks'"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_broken_configuration_file_is_one_line(tmp_path, monkeypatch, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # or the file before would show through
    with pytest.raises(ValueError, match=message) as error:
        parse([f"--config={path}", GOOD[1]])
    line_of(error.value)
