"""The README keeps its promises: the example runs as printed, the generated blocks are what results/ say."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from tools import render_readme

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_embedding_example_runs_as_printed():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line and not line.startswith(("import", "from"))]) <= 12
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert float(printed.getvalue()) < 0  # resource blocks cost delay


@pytest.mark.parametrize("name", sorted(render_readme.FILES))
def test_generated_blocks_are_up_to_date(name):
    text = (ROOT / name).read_text()
    assert render_readme.render(text, render_readme.FILES[name], name) == text


def test_a_missing_block_is_named():
    with pytest.raises(ValueError, match="demo:begin"):
        render_readme.render("no block here")


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target
