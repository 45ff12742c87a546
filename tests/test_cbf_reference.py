"""The reference face against numbers recorded from the published simulator (tests/data/cbf_reference.npz)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_envs import cbf_dynamics, channel
from networld_envs.cbf_params import make_params, phase_codebook
from tests import parity

FIXTURE = np.load(pathlib.Path(__file__).parent / "data" / "cbf_reference.npz")
POLICIES = ("rand", "greedy", "fp")


def replay(policy, x64):
    return parity.cbf_replay(
        FIXTURE["H"],
        FIXTURE["codebook"],
        FIXTURE["powers_mW"],
        float(FIXTURE["noise_mW"]),
        float(FIXTURE["p_max_mW"]),
        int(FIXTURE["U"]),
        actions=FIXTURE[f"{policy}_act"].astype(int),
        beams=FIXTURE["fp_W"] if policy == "fp" else None,
        x64=x64,
    )


@pytest.fixture(scope="module", params=POLICIES)
def double(request):
    return request.param, replay(request.param, x64=True)


def defined(policy):
    """[S, N] False where a beam is below 1e-18 mW: its order of interfered users is then arbitrary."""
    if policy != "fp":
        return np.ones((24, 19), bool)
    power_mw = np.sum(np.abs(FIXTURE["fp_W"]) ** 2, -1)
    return np.concatenate([np.ones((10, 19), bool), power_mw > 1e-18])


def test_float64_links_rewards_and_neighbours(double):
    policy, out = double
    for name in ("rate", "IN", "reward"):
        np.testing.assert_allclose(out[name], FIXTURE[f"{policy}_{name}"], rtol=1e-9, atol=1e-9 if name != "IN" else 0)
    for name in ("r_power", "gain"):
        np.testing.assert_allclose(out[name][::6], FIXTURE[f"{policy}_{name}"], rtol=1e-9, atol=0)
    np.testing.assert_array_equal(out["I"], FIXTURE[f"{policy}_I"])
    mask = defined(policy)
    np.testing.assert_array_equal(out["O"][mask], FIXTURE[f"{policy}_O"][mask])


def test_float64_observation(double):
    policy, out = double
    mask = np.broadcast_to(np.arange(62) < 47, (24, 19, 62)) | defined(policy)[..., None]
    assert np.all(np.isnan(out["obs"][0]))
    got, want = out["obs"][1:][mask[1:]], FIXTURE[f"{policy}_obs"][1:][mask[1:]]
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("policy", POLICIES)
def test_float32_parity(policy):
    out = replay(policy, x64=False)
    assert out["rate"].dtype == np.float32
    for name in ("rate", "reward"):
        np.testing.assert_allclose(out[name], FIXTURE[f"{policy}_{name}"], atol=1e-4, rtol=0)
    mask = np.broadcast_to(np.arange(62) < 47, (24, 19, 62)) | defined(policy)[..., None]
    got, want = out["obs"][1:][mask[1:]], FIXTURE[f"{policy}_obs"][1:][mask[1:]]
    # A nulled link is a difference of terms a thousand times larger; 1e-6 is 1e-15 mW, 4000 times below the noise.
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)


def test_codebook_formula():
    np.testing.assert_allclose(phase_codebook(4, 3), FIXTURE["codebook"].T, atol=2e-16)


def test_tap_form_reproduces_recorded_channels():
    """Gains, steering vectors and taps of the published run through our topology and fading."""
    with jax.enable_x64(True):
        params = make_params("reference")
        gain, steering = jnp.asarray(FIXTURE["path_gain"]), jnp.asarray(FIXTURE["steer"])
        topology = cbf_dynamics.make_topology(gain, steering, params)
        taps = jnp.asarray(FIXTURE["g"])
        innovation = (taps[1:] - 0.64 * taps[:-1]) / np.sqrt(1 - 0.64**2)
        g = taps[0]
        for t in range(len(innovation)):
            g = channel.fade(g, innovation[t], params.correlation)
            h = channel.combine_paths(g, topology.responses) / np.sqrt(params.max_snr)
            np.testing.assert_allclose(h, FIXTURE["H"][t + 1], rtol=1e-9, atol=1e-20)
        distance_m = jnp.asarray(FIXTURE["dist"])
        shadowing_db = -10 * np.log10(FIXTURE["path_gain"]) - np.asarray(channel.path_loss_db(distance_m))
        assert abs(shadowing_db.mean()) < 4 * 8 / 19  # 361 draws of N(0, 8^2): four standard errors
        assert 0.85 < shadowing_db.std() / 8 < 1.15  # four standard errors of a standard deviation
        np.testing.assert_allclose(params.bs_xy_m, FIXTURE["bs_xy"], atol=1e-9)
