"""A short soak of the simulators; `python -m tools.soak` runs a million steps."""

import pytest

from tools import soak

SHORT = {"cbf": (120, 4, 30, {"num_cells": 7}), "rb": (400, 4, 100, {}), "ns": (16, 2, 8, {"preset": "tiny"})}


@pytest.mark.parametrize("task", sorted(SHORT))
def test_the_laws_hold_under_wild_actions(task):
    total, copies, episode, parameters = SHORT[task]
    done, broken = soak.soak(task, total, copies, episode, **parameters)
    assert done == total
    assert not any(broken.values()), broken


def test_a_broken_law_is_counted(monkeypatch):
    def packets_appear(before, after, step, params):
        return soak.rb_laws(before, after.replace(queue=after.queue + 1), step, params)

    monkeypatch.setitem(soak.LAWS, "rb", packets_appear)
    _, broken = soak.soak("rb", 20, 2, 10)
    assert broken["packets conserved"] == broken["every law"] == 20 and broken["finite"] == 0
