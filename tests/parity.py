"""Parity entry points: NumPy in, NumPy out, public functions only. Sizes are read from the inputs, never assumed.

Called by the tests with the fixtures in tests/data, and by anyone with fixtures of other sizes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from networld_envs import cbf, cbf_dynamics, cbf_links, ns_single_cell
from networld_envs.cbf_params import make_params
from networld_jax import networks, sampling, schedules, transforms
from networld_jax.interop.diffuser import width_and_mults

# ---------------------------------------------------------------------------------------------------- diffusion core


def two_hot(y, bins):
    """Two-hot weights [m, M] of values y [m] over ascending bins [M]."""
    return np.asarray(transforms.two_hot(jnp.asarray(y), jnp.asarray(bins)))


def from_two_hot(logits, bins):
    """Raw-space mean [m] of softmax(logits [m, M]) over bins [M]."""
    return np.asarray(transforms.from_two_hot(jnp.asarray(logits), jnp.asarray(bins)))


def diffuser_unet(weights, x, t):
    """Output [B, H, D] of Diffuser's temporal U-Net; `weights` as in the fixture after "unet/"."""
    params = nested_params(weights)
    width, mults = width_and_mults(params)
    unet = networks.TemporalUNet(params["final_conv"]["bias"].shape[0], width, mults, layout="diffuser")
    return np.asarray(jax.jit(unet.apply)({"params": params}, jnp.asarray(x), jnp.asarray(t, jnp.int32)))


def diffuser_value(weights, x, t):
    """Output [B, 1] of Diffuser's value network; `weights` as in the fixture after "value/"."""
    params = nested_params(weights)
    width, mults = width_and_mults(params)
    value = networks.ReturnClassifier(width, mults, layout="diffuser", num_outputs=params["fc1"]["bias"].shape[0])
    return np.asarray(jax.jit(value.apply)({"params": params}, jnp.asarray(x), jnp.asarray(t, jnp.int32)))


def diffuser_guided_loop(
    weights,
    schedule,
    cond0,
    x_init_noise,
    step_noise,
    n_guide_steps,
    scale,
    t_stopgrad,
    scale_grad_by_std,
    predict_epsilon,
    clip_denoised,
    action_dim,
):
    """Diffuser's guided reverse process -> (chain [T+1, B, H, D], trajectories and values sorted by falling value).

    The value is the guide's last evaluation at t = 0, before its last update and the last denoising step.
    """
    unet, value = (nested_params(weights, prefix) for prefix in ("unet/", "value/"))
    width, mults = width_and_mults(unet)
    denoiser = networks.TemporalUNet(unet["final_conv"]["bias"].shape[0], width, mults, layout="diffuser")
    classifier = networks.ReturnClassifier(*width_and_mults(value), layout="diffuser")
    schedule = schedules.schedule_from_betas(schedule["betas"])
    noise = jnp.concatenate([jnp.asarray(x_init_noise)[None], jnp.asarray(step_noise)])
    condition_fn = sampling.clamp_first_row(jnp.asarray(cond0), offset=action_dim)

    def value_fn(x, k):
        return classifier.apply({"params": value}, x, k)[..., 0]

    def predict_fn(x, k):
        return denoiser.apply({"params": unet}, x, k)

    def guide(num_guide_steps):
        return sampling.gradient_shift(
            jax.grad(lambda x, k: value_fn(x, k).sum()),
            schedule,
            guide_scale=scale,
            num_guide_steps=num_guide_steps,
            stop_below=t_stopgrad,
            scale_by_variance=scale_grad_by_std,
            condition_fn=condition_fn,
        )

    @jax.jit
    def sample(noise):
        x, chain = sampling.sample_ddpm(
            None,
            sampling.from_noise_prediction(predict_fn, schedule) if predict_epsilon else predict_fn,
            schedule,
            noise.shape[2:],
            condition_fn=condition_fn,
            pre_step_fn=guide(n_guide_steps),
            noise=noise,
            clip=1.0 if clip_denoised else None,
            return_chain=True,
        )
        last, first_level = chain[-2], jnp.zeros(x.shape[0], jnp.int32)
        if t_stopgrad == 0 and n_guide_steps > 1:  # the guide also moves x at t = 0, and its last update comes too late
            last = guide(n_guide_steps - 1)(last, first_level)
        values = value_fn(last, first_level)
        order = jnp.argsort(-values)
        return chain, x[order], values[order]

    return tuple(np.asarray(result) for result in sample(noise))


SOLVERS = {
    "ddpm": functools.partial(sampling.sample_ddpm, variance_floor=1e-8),
    "ddim": sampling.sample_ddim,
    "ode_dpmsolver_1": sampling.sample_dpm_1,
    "ode_dpmsolver++_1": sampling.sample_dpmpp_1,
    "ode_dpmsolver++_2M": sampling.sample_dpmpp_2m,
    "sde_dpmsolver++_1": sampling.sample_sde_dpmpp_1,
}


def solver_loop(solver, predict_fn, log_prob_grad_fn, alpha, sigma, level_idx, noise, cond0, w, kind):
    """CleanDiffuser's solver loop -> x [B, H, D]: evaluated at rising `level_idx` read backwards, ends at level_idx[0].

    Runs without jit, so that `predict_fn(x, n)` and `log_prob_grad_fn(x, n)` get the level as a Python integer.
    """
    schedule = schedules.schedule_from_levels(alpha, sigma)
    noise = jnp.asarray(noise)

    def at_integer_level(fn):
        return lambda x, k: jnp.asarray(fn(x, int(k[0])))

    predict = at_integer_level(predict_fn)
    if kind == "eps":
        predict = sampling.from_noise_prediction(predict, schedule)
    factor_fn = sampling.sigma_squared_over_signal(schedule, w)
    with jax.disable_jit():
        x = SOLVERS[solver](
            None,
            sampling.guided(predict, at_integer_level(log_prob_grad_fn), factor_fn),
            schedule,
            noise.shape[2:],
            levels=np.asarray(level_idx)[::-1],
            noise=noise,
            condition_fn=sampling.clamp_first_row(jnp.asarray(cond0)),
        )
    return np.asarray(x)


def nested_params(weights, prefix=""):
    """Flat {"down0_0/block0/conv/kernel": array} -> the nested parameters of networld_jax.networks, names unchanged."""
    params = {}
    for name, array in weights.items():
        if name.startswith(prefix):
            *path, leaf = name.removeprefix(prefix).split("/")
            node = params
            for part in path:
                node = node.setdefault(part, {})
            node[leaf] = jnp.asarray(array)
    return params


# -------------------------------------------------------------------------------------------------- network slicing


def _slots_of(seconds, slot_s=0.5e-3):
    """Gaps in seconds as slots, ceil(g / dt) with g / dt rounded to 1e-9."""
    return np.ceil(np.round(np.asarray(seconds, np.float64) / slot_s, 9)).astype(np.int32)


def _pointer_resets(window, num_slots, slot_s=0.5e-3):
    """GAN-DDQN resets its round-robin pointers where clock % window == slot; in floating point: now and then."""
    clock_s = np.round((window * num_slots + 1) * slot_s, 4)
    return (clock_s * 10000) % (np.round(num_slots * slot_s, 4) * 10000) == slot_s * 10000


def _mobile_move(position, direction_deg, step_m, half_side):
    """Straight steps with specular reflection at the walls of a square."""
    angle = np.deg2rad(direction_deg)
    position = position + step_m[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    outside = np.abs(position) > half_side
    position = np.where(outside, np.sign(position) * 2 * half_side - position, position)
    direction_deg = np.where(outside[:, 0], np.where(direction_deg >= 0, 180.0, -180.0) - direction_deg, direction_deg)
    return position, np.where(outside[:, 1], -direction_deg, direction_deg)


def _path_loss_db(position):
    return 145.4 + 37.5 * np.log10(np.linalg.norm(position, axis=1) / 1000)


def ns_replay(mode, inputs):
    """Replays recorded windows of a published single-cell simulator of network slicing.

    mode "gan" | "mobile"; inputs: the fixture's arrays without the set prefix (any numbers of windows W, slots S,
    users U): `cat`, `pos` or `path_loss` (gan), `pos0`, `dir0_deg`, `speed_mps`, `half_side`, `radius`, `cell_ids`
    (mobile), `pkt_size`, `pkt_gap`, `pkt_gap_ifdrop` (mobile), `timer0`, `shadow_dB` or `shadow_cell_dB`, `alloc_Hz`,
    `n_slots`, `mimo`. Computes in float64 where x64 is enabled, else in float32. Returns `out_*` [W, ...] as in the
    fixture, and `trace_*`: the first min(100, S) slots of windows 0 and W // 2 (gan) or 0 and W - 1 (mobile).
    """
    if mode not in ns_single_cell.FIDELITY:
        raise ValueError(f"mode must be one of {sorted(ns_single_cell.FIDELITY)}, got {mode!r}")
    dt, rb_hz, band_hz = 0.5e-3, 180e3, 10e6
    is_mobile = mode == "mobile"
    num_slots = int(inputs["n_slots"])
    slice_index = np.asarray(inputs["cat"], np.int32)
    num_users, num_windows = slice_index.size, len(inputs["alloc_Hz"])
    dtype = jnp.zeros(()).dtype
    gap, gap_if_dropped = np.asarray(inputs["pkt_gap"]), np.asarray(inputs.get("pkt_gap_ifdrop", inputs["pkt_gap"]))
    period, period_if_dropped = np.maximum(_slots_of(gap), 1), np.maximum(_slots_of(gap_if_dropped), 1)
    stream = ns_single_cell.PacketStream(
        jnp.asarray(np.asarray(inputs["pkt_size"]).T, dtype), jnp.asarray(period.T), jnp.asarray(period_if_dropped.T)
    )
    index = np.zeros(num_users, np.int32)
    pointer_id = np.zeros(3, np.int32)
    if is_mobile:
        position, direction = np.asarray(inputs["pos0"], np.float64), np.asarray(inputs["dir0_deg"], np.float64)
        slots_left = np.zeros(num_users, np.int32)
    else:
        position = np.asarray(inputs["pos"], np.float64)
        path_loss_db = np.asarray(inputs["path_loss"]) if "path_loss" in inputs else _path_loss_db(position)
        slots_left = _slots_of(inputs["timer0"])
        # Residual seconds behind the whole slots: the timer counts down from timer0, then from each gap.
        armed_s, armed_slots = np.asarray(inputs["timer0"], np.float64), slots_left.copy()
        is_served = np.ones(num_users, bool)
    traced_windows = sorted({0, num_windows - 1 if is_mobile else num_windows // 2})
    results, traces = [], []
    for w in range(num_windows):
        out = {}
        shadow = np.zeros((num_slots, num_users))
        if is_mobile:
            step_m = np.asarray(inputs["speed_mps"], np.float64) * num_slots * dt
            position, direction = _mobile_move(position, direction, step_m, float(inputs["half_side"]))
            is_served = (position**2).sum(axis=1) <= float(inputs["radius"]) ** 2
            path_loss_db = _path_loss_db(position)
            slots_left = np.where(is_served, _slots_of(inputs["timer0"][w]), 0).astype(np.int32)
            armed_s, armed_slots = np.where(is_served, inputs["timer0"][w], 1.0), slots_left.copy()
            ids = np.asarray(inputs["cell_ids"][w])
            shadow[:, ids[ids >= 0]] = np.asarray(inputs["shadow_cell_dB"][w])[:, ids >= 0]
        else:
            shadow = np.asarray(inputs["shadow_dB"], np.float64)[w * num_slots : (w + 1) * num_slots]
        out["out_ptr_reset"] = True if is_mobile else bool(_pointer_resets(w, num_slots))
        if out["out_ptr_reset"]:
            pointer_id = np.zeros(3, np.int32)
        snr_db = 16 - path_loss_db + 20 + 204 - 10 * np.log10(rb_hz)
        before = index
        window = ns_single_cell.single_cell_window(
            mode,
            jnp.asarray(slice_index),
            jnp.asarray(is_served),
            jnp.asarray(10 ** (snr_db / 10), dtype),
            jnp.asarray(shadow, dtype),
            jnp.asarray(np.asarray(inputs["alloc_Hz"])[w] // rb_hz, jnp.int32),
            jnp.asarray(float(inputs["mimo"]), dtype),
            stream,
            ns_single_cell.Timers(jnp.asarray(slots_left), jnp.asarray(index)),
            jnp.asarray(pointer_id),
        )
        slots_left, index = (np.asarray(x) for x in (window.timers.slots_left, window.timers.packet_index))
        pointer_id = np.asarray(window.pointer_id)
        rbs, rate, head, waiting, served = (np.asarray(x, np.float64) for x in window.trace)
        by_slice = np.eye(3)[slice_index]
        tx, drop, succ = (np.asarray(x, np.float64) for x in (window.admitted, window.dropped, window.succeeded))
        with np.errstate(invalid="ignore"):
            qoe = succ / (np.where(tx == 0, 1, tx) + drop) if is_mobile else succ / tx
        idle = int((rbs.sum(axis=1) == 0).sum()) if is_mobile else 0  # slots in which nothing was scheduled
        se_sum = rate.sum() / band_hz
        se = se_sum / max(num_slots - idle, 1)
        generated = index > before
        rows = np.arange(num_users), np.maximum(index - 1, 0)
        armed_s = np.where(generated, gap[rows], armed_s)
        armed_slots = np.where(generated, period[rows], armed_slots)
        timer_s = armed_s - (armed_slots - slots_left) * dt
        out |= dict(
            out_tx=tx, out_drop=drop, out_succ=succ, out_qoe=qoe, out_se=se, out_se_slot_sum=se_sum, out_idle=idle,
            out_util111=qoe.sum() + 0.01 * se, out_util146=qoe @ np.array([1, 4, 6]) + 0.01 * se,
            out_obs=np.zeros(3) if (tx == 0).any() else (tx - tx.mean()) / tx.std(),
            out_qpk=np.asarray(window.queued), out_qbits=np.asarray(window.queued_bits),
            out_served_bits=served.sum(axis=0) @ by_slice, out_rate_bits=rate.sum(axis=0) @ by_slice * dt,
            out_band_mean=rbs.mean(axis=0) @ by_slice * rb_hz, out_pidx=index, out_timer=timer_s,
        )  # fmt: skip
        if is_mobile:
            out |= dict(out_pos=position, out_dirn=direction, out_cell=is_served.astype(np.int8))
        results.append(out)
        traces.append((rbs, rate, head, waiting))
    merged = {name: np.stack([np.asarray(out[name]) for out in results]) for name in results[0]}
    names = ("trace_band", "trace_rate", "trace_buf0", "trace_nq")
    for i, name in enumerate(names):
        merged[name] = np.concatenate([traces[w][i][: min(100, num_slots)] for w in traced_windows])
    return merged


# ---------------------------------------------------------------------------------------------------- beamforming


def cbf_replay(channels, codebook, powers_mw, noise_mw, p_max_mw, num_neighbours, actions=None, beams=None, x64=True):
    """The reference face of the beamforming task over recorded channels; S slots from slot 0.

    Args:
      channels: [S+1, N, N, K] complex amplitude gains, [slot, base station, user, antenna].
      codebook: [K, C] complex unit columns; powers_mw: [Q]; noise_mw, p_max_mw: scalars.
      actions: [S, N] flat indices code * Q + level; -1 where `beams` applies. May be None if every slot has beams.
      beams: complex sqrt(mW), not projected, code index left as it was: [S, N, K], or [S', N, K] for the last S' slots.
    Returns dict: rate, IN [mW], r_power [mW], gain (linear), I, O, reward, obs; each [S, ...], obs[0] is NaN.
    """
    channels = np.asarray(channels)
    num_slots, num_agents = len(channels) - 1, channels.shape[1]
    if actions is None and beams is None:
        raise ValueError("cbf_replay needs actions, beams or both")
    actions = np.full((num_slots, num_agents), -1) if actions is None else np.asarray(actions)
    directions = np.zeros((num_slots, num_agents, channels.shape[-1]), complex)
    powers = np.zeros((num_slots, num_agents))
    if beams is not None:  # split in float64: beams of nearly silent cells have no float32 norm
        norms = np.linalg.norm(beams, axis=-1)
        directions[num_slots - len(beams) :] = beams / np.where(norms > 0, norms, 1.0)[..., None]
        powers[num_slots - len(beams) :] = norms**2 / p_max_mw
    with jax.enable_x64(x64):
        params = make_params(
            "reference",
            codebook=np.asarray(codebook).T,
            power_levels=np.asarray(powers_mw) / p_max_mw,
            noise_dbm=float(10 * np.log10(noise_mw)),
            p_max_dbm=float(10 * np.log10(p_max_mw)),
            num_neighbours=int(num_neighbours),
            adjacency=1.0 - np.eye(num_agents),
            channels=np.concatenate([channels, channels[-1:]]),  # the step after the last slot is never seen
            episode_steps=num_slots,
            warmup_slots=1,
        )
        state = cbf_dynamics.initial_state(jax.random.key(0), params)  # its made-up past is visible in obs[0] only

        def slot(state, inputs):
            action, direction, power = inputs
            coded = cbf_dynamics.decode_index(jnp.maximum(action, 0), params)
            chosen = action >= 0
            direction = jnp.where(chosen[:, None], coded[0], direction)
            power = jnp.where(chosen, coded[1], power)
            code_index = jnp.where(chosen, coded[2], state.code_index)
            draws = cbf_dynamics.CBFDraws(None, None)
            executed = action[:, None].astype(power.dtype)
            state, timestep = cbf.run_slot(state, executed, direction, power, code_index, draws, params)
            links = state.links
            out = {
                "rate": links.rate,
                "IN": links.interference * params.noise_mw,
                "r_power": links.received * params.noise_mw,
                "gain": links.gain / params.max_snr,
                "I": cbf_links.strongest(links.received.T, params.num_neighbours),
                "O": cbf_links.strongest(links.received, params.num_neighbours),
                "reward": timestep.reward,
                "obs": timestep.obs,
            }
            return state, out

        inputs = (jnp.asarray(actions, jnp.int32), jnp.asarray(directions), jnp.asarray(powers))
        result = jax.tree.map(np.array, jax.jit(lambda s: jax.lax.scan(slot, s, inputs)[1])(state))
    result["obs"][0] = np.nan
    return result
