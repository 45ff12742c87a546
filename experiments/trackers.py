"""Where training metrics go beside `metrics.jsonl`, which is always written.

    --config.tracker=tensorboard        event files in the same folder; needs pip install 'networld-jax[tensorboard]'
    tensorboard --logdir runs/small
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from experiments.runtime import UserError

Write = Callable[[int, Mapping[str, float]], None]
"""(step, {name: value})."""


@contextlib.contextmanager
def _none(directory: Path, first_step: int) -> Iterator[Write]:
    del directory, first_step
    yield lambda step, metrics: None


@contextlib.contextmanager
def _tensorboard(directory: Path, first_step: int) -> Iterator[Write]:
    writer = _summary_writer()(str(directory), purge_step=first_step)

    def write(step, metrics):
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    try:
        yield write
    finally:
        writer.close()


def _summary_writer() -> type:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError(f"tracker=tensorboard: {error}; pip install 'networld-jax[tensorboard]'") from error
    return SummaryWriter


TRACKERS = {"none": _none, "tensorboard": _tensorboard}


def check(name: str) -> None:
    """Raises UserError for an unknown tracker, or one whose package is missing."""
    if name not in TRACKERS:
        raise UserError(f"tracker must be one of {sorted(TRACKERS)}, got {name!r}")
    if name == "tensorboard":
        _summary_writer()


@contextlib.contextmanager
def tracker(name: str, directory: Path, first_step: int) -> Iterator[Write]:
    """Yields write(step, metrics) of a tracker by its name.

    Args:
      directory: of the run.
      first_step: the first step that will be written; what an interrupted run wrote from there on is dropped.

    Raises UserError as `check` does.
    """
    check(name)
    with TRACKERS[name](directory, first_step) as write:
        yield write
