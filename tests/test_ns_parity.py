"""The slot loop against recordings of two published single-cell simulators (trimmed from the full recording)."""

import pathlib

import jax
import numpy as np
import pytest

from tests import parity

FIXTURE = pathlib.Path(__file__).parent / "data" / "ns_reference.npz"
INTEGERS = {"tx", "drop", "succ", "idle", "qpk", "pidx", "ptr_reset", "cell"}
TRACE_INTEGERS = {"band", "nq"}


def load(mode):
    data = np.load(FIXTURE)
    fields = {name[len(mode) + 1 :]: data[name] for name in data.files if name.startswith(mode + "_")}
    expected = {k: v for k, v in fields.items() if k.startswith(("out_", "trace_"))}
    return {k: v for k, v in fields.items() if k not in expected}, expected


def is_integer(name):
    kind, _, field = name.partition("_")
    return field in (INTEGERS if kind == "out" else TRACE_INTEGERS)


@pytest.fixture(scope="module", params=["gan", "mobile"])
def replays(request):
    """(mode, expected, result in float64, result in float32)."""
    inputs, expected = load(request.param)
    with jax.enable_x64(True):
        double = parity.ns_replay(request.param, inputs)
    return request.param, expected, double, parity.ns_replay(request.param, inputs)


def test_float64_replays_the_recording(replays):
    mode, expected, double, _ = replays
    assert set(expected) <= set(double)
    for name, value in expected.items():
        if is_integer(name):
            np.testing.assert_array_equal(double[name], value, err_msg=f"{mode} {name}")
        else:  # what two float64 codes with sums in another order agree to, with head-room
            np.testing.assert_allclose(double[name], value, rtol=1e-9, atol=1e-9, err_msg=f"{mode} {name}")


def test_float32_keeps_every_integer(replays):
    mode, expected, _, single = replays
    for name, value in expected.items():
        if is_integer(name):
            np.testing.assert_array_equal(single[name], value, err_msg=f"{mode} {name}")
        elif name == "trace_buf0":  # what is left of a packet of up to 5.6e6 bit: errors are relative to the packet
            np.testing.assert_allclose(single[name], value, rtol=0, atol=1e-6 * 5.6e6, err_msg=f"{mode} {name}")
        else:  # float32 carries 24 bits
            np.testing.assert_allclose(single[name], value, rtol=1e-6, atol=1e-6, err_msg=f"{mode} {name}")


def drop_case(num_slots=8):
    """One VoLTE user without any RB whose packets come in every slot: five queue up, the rest is dropped."""
    num_packets = 2 * num_slots + 4
    return {
        "cat": np.array([0], np.int8),
        "pos0": np.array([[10.0, 0.0]]),
        "dir0_deg": np.array([0.0]),
        "speed_mps": np.array([0.0]),
        "half_side": 120.0,
        "radius": 40.0,
        "pkt_size": np.full((1, num_packets), 320.0),
        "pkt_gap": np.full((1, num_packets), 0.4e-3),
        "pkt_gap_ifdrop": np.full((1, num_packets), 0.9e-3),  # 2 slots after a drop
        "timer0": np.zeros((1, 1)),
        "cell_ids": np.array([[0]]),
        "shadow_cell_dB": np.zeros((1, num_slots, 1)),
        "alloc_Hz": np.array([[100e3, 5e6, 4.9e6]]),
        "n_slots": num_slots,
        "mimo": 64,
    }


def test_full_queue_drops_and_rearms_with_the_gap_of_a_drop():
    out = parity.ns_replay("mobile", drop_case(num_slots=8))
    # Calls 0..8. Packets join in calls 0-4 (one per call); the queue is full in call 5, which drops and re-arms two
    # slots ahead: drops in calls 5, 7. Call 8 finds the timer at 1.
    np.testing.assert_array_equal(out["out_tx"], [[5, 0, 0]])
    np.testing.assert_array_equal(out["out_drop"], [[2, 0, 0]])
    np.testing.assert_array_equal(out["out_qpk"], [[5, 0, 0]])
    np.testing.assert_array_equal(out["out_pidx"], [[7]])
    assert out["out_idle"][0] == 8  # nothing was ever scheduled
    np.testing.assert_array_equal(out["out_qoe"], [[0, 0, 0]])
    np.testing.assert_array_equal(out["trace_nq"][:, 0], [1, 2, 3, 4, 5, 5, 5, 5])


def test_full_queue_blocks_in_gan_mode():
    case = drop_case(num_slots=8)
    case |= {"pos": case["pos0"], "timer0": case["timer0"][0], "shadow_dB": np.zeros((8, 1))}
    out = parity.ns_replay("gan", case)
    # Period 2: packets in calls 0, 2, 4, 6 of the 8 calls; none is lost.
    np.testing.assert_array_equal(out["out_tx"], [[4, 0, 0]])
    np.testing.assert_array_equal(out["out_drop"], [[0, 0, 0]])
    np.testing.assert_array_equal(out["out_pidx"], [[4]])


def test_unknown_mode_lists_the_choices():
    with pytest.raises(ValueError, match="'gan', 'mobile'"):
        parity.ns_replay("lstm", {})
