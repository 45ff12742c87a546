"""Random corruption of every kind of stored file; `python -m tools.fuzz` draws hundreds more."""

from tools import fuzz


def test_no_corruption_is_accepted_in_silence(tmp_path):
    rows = fuzz.fuzz(corruptions=7 * 6, seed=1, scratch=tmp_path)
    assert len(rows) == 7 and all(row["injected"] == 6 for row in rows)
    assert not [row for row in rows if row["lost"]]


def test_fuzz_itself_can_fail(tmp_path, monkeypatch):
    """A reader that checks nothing is caught."""
    monkeypatch.setitem(fuzz.KINDS, "metrics", fuzz.Kind("run/metrics.jsonl", lambda folder: None))
    rows = {row["stage"]: row for row in fuzz.fuzz(7, 1, tmp_path)}
    assert rows["metrics"]["lost"] == 1
