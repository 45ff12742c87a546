"""Trackers beside metrics.jsonl: what they are told, what a resumed run tells them, what a missing package says."""

import struct
import sys

import pytest

from experiments import runtime, trackers
from tests import toy_run


class FakeWriter:
    """Takes down every call."""

    made: list = []  # noqa: RUF012

    def __init__(self, logdir, purge_step):
        self.calls = [("open", logdir, purge_step)]
        FakeWriter.made.append(self)

    def add_scalar(self, name, value, step):
        self.calls.append((name, value, step))

    def flush(self):
        self.calls.append("flush")

    def close(self):
        self.calls.append("close")


def test_tensorboard_is_told_every_number(monkeypatch, tmp_path):
    monkeypatch.setattr(trackers, "_summary_writer", lambda: FakeWriter)
    FakeWriter.made.clear()
    with trackers.tracker("tensorboard", tmp_path, 5) as write:
        write(5, {"loss": 0.5, "value": 2.0})
    told = [("open", str(tmp_path), 5), ("loss", 0.5, 5), ("value", 2.0, 5), "flush", "close"]
    assert FakeWriter.made[0].calls == told
    with pytest.raises(KeyError), trackers.tracker("tensorboard", tmp_path, 1) as write:
        raise KeyError
    assert FakeWriter.made[1].calls[-1] == "close", "closed when training fails, too"


def test_without_a_tracker_nothing_is_written(tmp_path):
    with trackers.tracker("none", tmp_path, 1) as write:
        write(1, {"loss": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_named_before_any_work(monkeypatch):
    with pytest.raises(runtime.UserError, match=r"tracker must be one of \['none', 'tensorboard'\], got 'wandb'"):
        trackers.check("wandb")
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(runtime.UserError, match=r"pip install 'networld-jax\[tensorboard\]'"):
        trackers.check("tensorboard")
    assert toy_run.get_config().tracker == "none"


@pytest.mark.interop(party="TensorBoard (tensorboardX)", package="tensorboardX", check="event file holds the numbers")
def test_a_real_event_file(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs tensorboardX: pip install 'networld-jax[tensorboard]'")
    from tensorboardX.proto.event_pb2 import Event

    with trackers.tracker("tensorboard", tmp_path, 1) as write:
        for step in (10, 20):
            write(step, {"loss": 1.0 / step})
    (path,) = tmp_path.glob("events.out.tfevents.*")
    content, found = path.read_bytes(), []
    while content:  # TFRecord: length, checksum of it, data, checksum of it
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
        content = content[16 + length :]
    assert found == [("loss", 10, pytest.approx(0.1)), ("loss", 20, pytest.approx(0.05))]
