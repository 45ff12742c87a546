"""Bad configurations and command lines: one line that names field, value and what is allowed; never a traceback."""

import random
from pathlib import Path

import pytest
from absl import flags

from experiments import runtime, validation
from experiments.configs import default

# How ml_collections loads a file; gone with its next release.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module.*:DeprecationWarning")

CONFIGS = sorted(path for path in Path("experiments/configs").glob("[!_]*.py"))
FIELDS = runtime.flat(default.get_config())
# Wrong for every field of the kind, whatever its range.
WRONG = {
    bool: (3, "yes", None, 0.5),
    int: ("three", 1.5, None, float("nan"), -(10**9), [1], True),
    float: ("fast", None, float("nan"), float("inf"), -1e9, [0.1]),
    str: ("", 3, None, "no such choice"),
    tuple: (3, None, "('cbf'", {"a": 1}, (None,), (float("nan"),)),
}
FREE_TEXT = ("collect.tier", "held_out")


def line_of(error) -> str:
    message = runtime.one_line(error)
    assert "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_of_the_repository_is_valid(path):
    values = flags.FlagValues()
    argv = ["stage", f"--config={path}", "--workdir=nowhere"]
    runtime.define_flags(values, argv)
    runtime.read_flags(runtime.parse_flags(argv, values), values)


@pytest.mark.parametrize("seed", range(300))
def test_a_bad_value_is_named_with_its_field_and_what_is_allowed(seed):
    rng = random.Random(seed)
    config = default.get_config()
    path = rng.choice(sorted(FIELDS))
    value = rng.choice(WRONG[type(FIELDS[path])])
    section, _, name = path.rpartition(".")
    holder = config[section] if section else config
    with holder.unlocked(), holder.ignore_type():
        holder[name] = value
    with pytest.raises(runtime.UserError) as error:
        validation.validate(config)
    message = line_of(error.value)
    if hasattr(value, "items"):  # a value turned into a section
        assert path in message
    else:
        assert name in message and "must be" in message
        assert repr(value) in message or str(value) in message or isinstance(value, tuple)


def typo(name: str, rng: random.Random) -> str:
    at = rng.randrange(len(name))
    kinds = (name[:at] + name[at + 1 :], name[:at] + name[at] + name[at:], name[:at] + "x" + name[at + 1 :])
    return rng.choice([kind for kind in kinds if kind and kind != name])


@pytest.mark.parametrize("seed", range(100))
def test_a_misspelt_or_missing_field_is_named(seed):
    rng = random.Random(1000 + seed)
    config = default.get_config()
    path = rng.choice(sorted(p for p in FIELDS if len(p.rpartition(".")[2]) > 3 and p != "tasks"))
    section, _, name = path.rpartition(".")
    holder = config[section] if section else config
    value = holder[name]
    with holder.unlocked():
        del holder[name]
        if misspelt := rng.random() < 0.7:
            holder[typo(name, rng)] = value
    with pytest.raises(runtime.UserError) as error:
        validation.validate(config)
    message = line_of(error.value)
    assert path in message
    assert ("did you mean" in message) == misspelt or path == "held_out"


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
        ({"correlation": "high"}, r"environment\.cbf: "),
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


# ------------------------------------------------------------------------------------------------ command lines

GOOD = ("--config=experiments/configs/default.py", "--workdir=nowhere")
BAD_TEXT = {bool: ("maybe", "2"), int: ("three", "1.5", "", "1e3", "-1000000000"), float: ("fast", "", "nan", "-inf")}


def bad_value(rng):
    path = rng.choice(sorted(p for p in FIELDS if type(FIELDS[p]) in BAD_TEXT))
    value = rng.choice(BAD_TEXT[type(FIELDS[path])])
    return [*GOOD, f"--config.{path}={value}"], (path, value)


def misspelt_field(rng):
    path = typo(rng.choice(sorted(p for p in FIELDS if len(p) > 6)), rng)
    while path in FIELDS or any(p.startswith(f"{path}.") for p in FIELDS):
        path += "x"
    return [*GOOD, f"--config.{path}=1"], (path,)


def unknown_flag(rng):
    name = rng.choice(("workdirs", "verbose_", "resume", "gpu", "x"))
    return [*GOOD, f"--{name}={rng.randrange(9)}"], (name,)


def a_section(rng):
    section = rng.choice(sorted({p.rpartition(".")[0] for p in FIELDS if "." in p}))
    return [*GOOD, f"--config.{section}={rng.choice(('5', 'x', '{}'))}"], (section,)


def a_broken_tuple(rng):
    path = rng.choice(sorted(p for p in FIELDS if type(FIELDS[p]) is tuple))
    value = rng.choice(("(1,", "[", "(a b)", "1..2", "('x' 3)"))
    return [*GOOD, f"--config.{path}={value}"], (path,)


def a_surplus_argument(rng):
    word = rng.choice(("surplus", "config.seed=3", "runs/x"))
    return [*GOOD, word], (word,)


def a_missing_file(rng):
    name = f"experiments/configs/{rng.choice(('smal', 'none', 'default'))}{rng.choice(('', '.yaml', '.pyc'))}"
    return [f"--config={name}", GOOD[1]], (name,)


def something_missing(rng):
    i = rng.randrange(2)
    return [GOOD[i]], (("--workdir", "--config")[i],)


def another_held_out_task(rng):
    task = rng.choice(("wifi", "cbf,rb", "RB"))
    return [f"{GOOD[0]}:{task}", GOOD[1]], (task,)


KINDS = (
    bad_value, misspelt_field, unknown_flag, a_section, a_broken_tuple, a_surplus_argument, a_missing_file,
    something_missing, another_held_out_task,
)  # fmt: skip


def parse(arguments):
    values = flags.FlagValues()
    argv = ["stage", *arguments]
    runtime.define_flags(values, argv)
    return runtime.read_flags(runtime.parse_flags(argv, values), values)


def test_a_good_command_line_passes():
    config, workdir = parse([*GOOD, "--config.seed=3", "--config.baselines.ma_bc.hidden=(8, 8)"])
    assert config.seed == 3 and config.baselines.ma_bc.hidden == (8, 8) and workdir == Path("nowhere")


@pytest.mark.parametrize("seed", range(200))
def test_a_bad_command_line_is_one_line(seed):
    rng = random.Random(2000 + seed)
    arguments, named = KINDS[seed % len(KINDS)](rng)
    with pytest.raises(ValueError) as error:
        parse(arguments)
    message = line_of(error.value)
    for word in named:
        assert word in message, (arguments, message)


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
def test_a_broken_configuration_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        parse([f"--config={path}", GOOD[1]])
    line_of(error.value)
