"""Runs docs/examples/*.py and writes each as a page: the script, what it printed, the pictures it saved.

python -m tools.render_examples [name ...]
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

from experiments.runtime import device_name, versions

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs/examples"


def page(script: Path, output: str, seconds: float) -> str:
    """The Markdown page of a script."""
    source = script.read_text()
    docstring = ast.get_docstring(ast.parse(source)) or script.stem
    title, _, text = docstring.partition("\n")
    files = [path for path in sorted(FOLDER.glob(f"{script.stem}.*")) if path.suffix in (".gif", ".png")]
    pictures = [f"![{path.stem}]({path.name})\n" for path in files]
    where = f"{seconds:.0f} s on {device_name()}, jax {versions()['jax']}"
    return "\n".join([
        f"# {title.rstrip('.')}\n", f"{text.strip()}\n", *pictures,
        f"Printed by `python docs/examples/{script.name}` ({where}):\n", f"```\n{output.strip()}\n```\n",
        f"```python\n{source}```\n",
    ])  # fmt: skip


def main() -> int:
    names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.py"))
    for name in names:
        script, started = FOLDER / f"{name}.py", time.monotonic()
        command = [sys.executable, str(script), str(FOLDER)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return 1
        (FOLDER / f"{name}.md").write_text(page(script, done.stdout, time.monotonic() - started))
        print(f"{name}:\n{done.stdout}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
