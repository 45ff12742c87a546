"""The `networld` command: what it explains, what it passes on, what it refuses."""

from pathlib import Path

import pytest

from experiments import cli

ROOT = Path(__file__).parents[1]


@pytest.fixture
def called(monkeypatch):
    """What would have been run, instead of running it."""
    calls = []
    monkeypatch.setattr(cli.sys, "argv", ["networld"])
    monkeypatch.setattr(cli.runpy, "run_module", lambda module, **_: calls.append((module, cli.sys.argv[1:])))
    return calls


def test_help_names_every_stage_and_what_to_do_first(capsys):
    cli.main([])
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in cli.available()) and "Start with `networld demo`" in text
    assert f"configurations: {', '.join(cli.configurations())}" in text and max(map(len, text.splitlines())) <= 120
    cli.main(["--version"])
    assert capsys.readouterr().out.startswith("networld 0.")


@pytest.mark.parametrize("name", cli.available())
def test_every_stage_explains_itself_without_running(name, called, capsys):
    if cli.STAGES[name].config is None:
        return  # argparse writes that help
    cli.main([name, "--help"])
    text = capsys.readouterr().out
    assert f"usage: networld {name} " in text and "example: networld " in text and "default.py" in text
    assert (ROOT / cli.STAGES[name].module.replace(".", "/")).with_suffix(".py").read_text().splitlines()[0][3:] in text
    assert called == []
    cli.main(["help", name])
    assert capsys.readouterr().out == text


def test_a_configuration_may_be_named(called):
    small, demo = (str(ROOT / f"experiments/configs/{name}.py") for name in ("small", "demo"))
    cli.main(["pretrain", "--config=small:cbf", "--config.seed=3"])
    cli.main(["pretrain", "--config", "small", "--workdir", "here"])
    cli.main(["demo"])
    cli.main(["evaluate", "--workdir=x"])
    assert called == [
        ("experiments.pretrain", [f"--config={small}:cbf", "--workdir=runs/small", "--config.seed=3"]),
        ("experiments.pretrain", ["--config", small, "--workdir", "here"]),
        ("experiments.demo", [f"--config={demo}", "--workdir=runs/demo"]),
        ("experiments.evaluate", [f"--config={small}", "--workdir=x"]),
    ]


def test_a_file_stays_a_file(called, tmp_path, monkeypatch):
    mine = tmp_path / "mine.py"
    mine.write_text("")
    cli.main(["collect", f"--config={mine}"])
    assert called[0][1] == [f"--config={mine}", "--workdir=runs/mine"]
    monkeypatch.chdir(tmp_path)  # outside a checkout the path of the docs means the package's own file
    cli.main(["collect", "--config=experiments/configs/small.py:rb"])
    assert called[1][1][0] == f"--config={ROOT / 'experiments/configs/small.py'}:rb"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train"], "'train' is no stage; choose one of demo, collect"),
        (["pretrain", "--config=smal"], "--config must be a file or one of benchmark, calibrate, default, demo"),
    ],
)
def test_a_mistake_is_one_line(called, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1 and called == []
