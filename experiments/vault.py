"""Exchanges datasets with OG-MARL.

    python -m experiments.vault export <dataset folder> <vaults>/<source>/<environment>/<scenario>.vlt/<uid>
    python -m experiments.vault import <...>.vlt/<uid> <dataset folder> [--adjacency=graph.npy] [--num_steps=200]

A dataset folder is <workdir>/data/<task>/<tier>. A Vault of ours comes back bit for bit; one of somebody else needs the
1-hop graph ([N, N], .npy) and, when its episodes differ in length, a common length to cut them to. Needs
pip install 'networld-jax[vault]'.
"""

from __future__ import annotations

import argparse
import inspect
import json
from pathlib import Path

import numpy as np

from experiments import runtime
from networld_jax.interop import vault


def main(arguments: list[str] | None = None) -> None:
    """The command line. A mistake is one line, exit code 2."""
    parser = argparse.ArgumentParser(
        prog="networld vault",
        description=inspect.cleandoc(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    out = actions.add_parser("export", help="a dataset as a Vault")
    out.add_argument("dataset", type=Path)
    out.add_argument("vault", type=Path, help="<vaults>/<source>/<environment>/<scenario>.vlt/<uid>")
    back = actions.add_parser("import", help="a Vault as a dataset")
    back.add_argument("vault", type=Path)
    back.add_argument("dataset", type=Path)
    back.add_argument("--adjacency", type=Path, help="[N, N] 1-hop graph, .npy")
    back.add_argument("--num_steps", type=int, help="cut episodes into pieces of this many steps")
    given = parser.parse_args(arguments)
    try:
        if given.action == "export":
            path = vault.export_vault(given.dataset, given.vault)
            facts = vault.read_facts(path)["statistics"]
            print(json.dumps({name: facts[name] for name in ("episodes", "transitions", "episode_return")}, indent=1))
        else:
            adjacency = None if given.adjacency is None else np.load(given.adjacency, allow_pickle=False)
            manifest = vault.import_vault(given.vault, given.dataset, adjacency, given.num_steps)
            print(f"{given.dataset}: {len(manifest['shards'])} trajectories")
    except (ValueError, OSError, ImportError) as error:
        runtime.fail(runtime.one_line(error))


if __name__ == "__main__":
    main()
