"""The `networld` command: one word per stage.

    networld                     what there is
    networld <stage> --help      what a stage does, its arguments, an example
    networld demo                everything, end to end, in minutes

`networld <stage> ...` is `python -m experiments.<stage> ...` with three conveniences: a configuration of the package
may be given by its name (--config=small for experiments/configs/small.py), a stage that takes a configuration has a
default one, and --workdir defaults to runs/<configuration>. Everything else goes to the stage as it stands.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

CONFIGS = Path(__file__).parent / "configs"
DOCS = "python -m experiments."


class Stage(NamedTuple):
    """A word of the command."""

    module: str
    summary: str
    config: str | None  # configuration used when none is given; None = the stage takes no configuration
    example: str
    reads_and_writes: str = ""


STAGES = {
    "demo": Stage(
        "experiments.demo",
        "The whole story in minutes: data, pre-training on two tasks, adaptation to the third, scores, figures.",
        "demo",
        "networld demo --config=demo:cbf",
        "writes runs/demo; the part after the colon is the held-out task: cbf, rb (default) or ns",
    ),
    "collect": Stage(
        "experiments.collect",
        "Rolls out experts into sharded, checksummed datasets.",
        "small",
        "networld collect --config=small --workdir=runs/small --config.collect.tier=expert",
        "writes <workdir>/data/<task>/<tier>",
    ),
    "pretrain": Stage(
        "experiments.pretrain",
        "Trains the world model on every task but the held-out one.",
        "small",
        "networld pretrain --config=small:rb --workdir=runs/small --config.tracker=tensorboard",
        "reads <workdir>/data, writes <workdir>/pretrain_without_<held-out task>",
    ),
    "adapt": Stage(
        "experiments.adapt",
        "Adapts a pre-trained world model to the held-out task from a few trajectories.",
        "small",
        "networld adapt --config=small:rb --workdir=runs/small --config.adapt.num_trajectories=3",
        "reads <workdir>/pretrain_without_<task>, writes <workdir>/adapt_<task>",
    ),
    "baselines": Stage(
        "experiments.baselines",
        "Trains baselines on the data that adaptation sees.",
        "small",
        "networld baselines --config=small:rb --workdir=runs/small",
        "reads <workdir>/data",
    ),
    "distill": Stage(
        "experiments.distill",
        "Turns a planner into a network that answers in one evaluation.",
        "small",
        "networld distill --config=small:rb --workdir=runs/small",
        "reads <workdir>/adapt_<task>",
    ),
    "evaluate": Stage(
        "experiments.evaluate",
        "Scores adapted models, rules and experts on the same unseen networks.",
        "small",
        "networld evaluate --config=small:rb --workdir=runs/small --config.evaluate.num_instances.rb=4",
        "reads <workdir>/adapt_<task>, writes <workdir>/evaluation_<task>.json",
    ),
    "calibrate": Stage(
        "experiments.calibrate",
        "Measures every rule and expert of the environments: the table that says what a score is worth.",
        "calibrate",
        "networld calibrate --workdir=runs/calibrate",
    ),
    "figures": Stage(
        "experiments.figures",
        "Draws learning curves, scores, diagnostics and networks of a finished run.",
        "small",
        "networld figures --config=small:rb --workdir=runs/small",
        "writes <workdir>/figures",
    ),
    "export": Stage(
        "experiments.export",
        "Writes the adapted agent as two compiled programs that run without this library.",
        "small",
        "networld export --config=small:rb --workdir=runs/small",
        "reads <workdir>/adapt_<task>, writes <workdir>/export_<task>",
    ),
    "vault": Stage(
        "experiments.vault",
        "Exchanges datasets with OG-MARL: a dataset as a Flashbax Vault, a Vault as a dataset.",
        None,
        "networld vault export runs/small/data/rb/mixed vaults/networld/rb/default.vlt/Mixed",
    ),
    "queue": Stage(
        "experiments.queue",
        "Runs a list of experiments (methods, seeds, data sizes) that survives interruption.",
        "evidence",
        "networld queue --config=evidence --workdir=runs/evidence --config.queue.dry_run=True",
    ),
    "bench": Stage(
        "experiments.benchmark",
        "Times sampling, training and simulation on this machine, each against a named baseline.",
        "benchmark",
        "networld bench --suite=env --workdir=runs/benchmark",
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a stage, or explains. A mistake is one line and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    stages = available()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        if arguments[1:] and arguments[0] == "help":
            return main([*arguments[1:], "--help"])
        return print(overview(stages))
    if arguments[0] in ("-V", "--version"):
        return print(f"networld {importlib.metadata.version('networld-jax')}")
    name, *rest = arguments
    if name not in stages:
        missing = "is not part of this version" if name in STAGES else "is no stage"
        _fail(f"{name!r} {missing}; choose one of {', '.join(stages)}, or see networld --help")
    stage = stages[name]
    if stage.config is not None and {"-h", "--help", "-help"} & set(rest):
        return print(explanation(name, stage))
    if stage.config is not None:
        rest = complete(rest, name, stage.config)
    sys.argv = [name, *rest]
    runpy.run_module(stage.module, run_name="__main__", alter_sys=True)


def available() -> dict[str, Stage]:
    """The stages whose module is installed."""
    return {name: stage for name, stage in STAGES.items() if importlib.util.find_spec(stage.module) is not None}


def configurations() -> list[str]:
    """Names that --config accepts."""
    return sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__")


def overview(stages: dict[str, Stage]) -> str:
    """What `networld --help` prints."""
    width = max(map(len, stages))
    lines = [f"  {name:<{width}}  {stage.summary}" for name, stage in stages.items()]
    return "\n".join(
        (
            "usage: networld <stage> [--config=<name or file>] [--workdir=<folder>] [--config.<field>=<value> ...]",
            "",
            "NetWorld in JAX: a diffusion world model that controls wireless networks (arXiv 2602.00558).",
            "",
            "stages, in the order of an experiment:",
            *lines,
            "",
            f"configurations: {', '.join(configurations())}",
            "",
            "Start with `networld demo` (15 minutes on 2 CPU cores; held-out task: --config=demo:cbf, :rb or :ns).",
            "`networld <stage> --help` explains a stage. Every stage resumes where it was stopped: run it again.",
        )
    )


def explanation(name: str, stage: Stage) -> str:
    """What `networld <stage> --help` prints, from the stage's own description."""
    spec = importlib.util.find_spec(stage.module)
    document = _docstring(Path(spec.origin).read_text())
    default = f"{stage.config}" if (CONFIGS / f"{stage.config}.py").exists() else "none"
    lines = [
        f"usage: networld {name} [--config=<name or file>] [--workdir=<folder>] [--config.<field>=<value> ...]",
        "",
        document,
        "",
        "arguments:",
        f"  --config=<name or file>[:<held-out task>]   {', '.join(configurations())}, or a file; default: {default}",
        "  --workdir=<folder>                          what the stage reads and writes; default: runs/<configuration>",
        "  --config.<field>=<value>                    changes one value; experiments/configs/default.py explains all:",
        f"                                              {CONFIGS / 'default.py'}",
        "",
        *([f"files: {stage.reads_and_writes}", ""] if stage.reads_and_writes else []),
        f"example: {stage.example}",
        f"same as: {DOCS}{stage.module.removeprefix('experiments.')} with the same arguments",
    ]
    return "\n".join(lines)


def _docstring(source: str) -> str:
    """The text of a module's docstring, without importing the module."""
    import ast
    import inspect

    return inspect.cleandoc(ast.get_docstring(ast.parse(source)) or "")


def complete(arguments: list[str], name: str, default: str) -> list[str]:
    """Arguments with names of configurations turned into files, and the defaults filled in."""
    arguments, given = list(arguments), {}
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag in ("config", "workdir"):
            if not equals and i + 1 < len(arguments):
                value = arguments[i + 1]
            given[flag] = value
            if flag == "config":
                arguments[i if equals else i + 1] = ("--config=" if equals else "") + config_file(value)
    if "config" not in given:
        given["config"] = default
        arguments.insert(0, f"--config={config_file(default)}")
    if "workdir" not in given:
        arguments.insert(1, f"--workdir={Path('runs') / Path(given['config'].partition(':')[0]).stem}")
    return arguments


def config_file(value: str) -> str:
    """`<name>[:<argument>]` of a configuration of the package -> its file; the path of an existing file as it is."""
    name, colon, argument = value.partition(":")
    if Path(name).exists() or name.endswith(".py"):
        known = CONFIGS / Path(name).name  # experiments/configs/small.py as in the docs, where there is no checkout
        is_ours = not Path(name).exists() and Path(name).parent == Path("experiments/configs") and known.exists()
        return f"{known}{colon}{argument}" if is_ours else value
    if name not in configurations():
        _fail(f"--config must be a file or one of {', '.join(configurations())}, got {name!r}")
    return f"{CONFIGS / name}.py{colon}{argument}"


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
