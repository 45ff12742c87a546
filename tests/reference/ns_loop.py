"""Network slicing as loops over cells, slices, users and packets, in float64 NumPy: written from the rules, not the
code.

A queue is a list of [bits left, size, age]; a cell is a list of user ids. Slow and plain on purpose.
"""

from __future__ import annotations

import numpy as np

SLOT_S, RB_HZ, DEPTH = 0.5e-3, 180e3, 5
URLLC_BITS = {"small": [51200.0, 102400.0, 153600.0, 204800.0, 256000.0], "large": [2.4e6, 3.2e6, 4e6, 4.8e6, 5.6e6]}


def gap_slots(slice_index, u, load):
    """Whole slots until a user's next packet."""
    if slice_index == 0:
        gap_s = 0.160 * u
    elif slice_index == 1:
        gap_s = min(0.006 * ((1 - u) ** (-1 / 1.2) - 1), 0.0125)
    else:
        gap_s = -0.180 * np.log(1 - u)
    return max(int(np.ceil(round(gap_s / load[slice_index] / SLOT_S, 5))), 1)


def packet_bits(slice_index, u, urllc_size):
    """Size of a packet in bit."""
    if slice_index == 0:
        return 320.0
    if slice_index == 1:
        return min(800 * ((1 - u) ** (-1 / 1.2) - 1), 2000.0)
    return URLLC_BITS[urllc_size][int(5 * u)]


def round_robin(active, num_rbs, pointer):
    """({user: RBs}, pointer) of one slice in one slot; `active` are sorted user ids."""
    if not active:
        return {}, pointer
    base, spare = divmod(num_rbs, len(active))
    shares = dict.fromkeys(active, base)
    beyond = [u for u in active if u > pointer]
    if len(beyond) >= spare:
        lucky = [u for u in active if u >= pointer][:spare]
        last = lucky[-1] if lucky else None
    else:
        head = active[: spare - len(beyond)]
        lucky, last = beyond + head, head[-1]
    for u in lucky:
        shares[u] += 1
    return shares, pointer if last is None else last + 1


def serve(queue, rate_bps, limit, threshold_bps):
    """Serves one user's queue for a slot in place; returns (packets within SLA, packets missed)."""
    budget, ok, missed = rate_bps * SLOT_S, 0, 0
    while queue and queue[0][0] <= budget:
        bits, size, age = queue.pop(0)
        budget -= bits
        reached = rate_bps if age == 1 else size / (age * SLOT_S)
        good = age <= limit and reached >= threshold_bps
        ok, missed = ok + good, missed + (not good)
    if queue:
        queue[0][0] -= budget
    while queue and queue[0][2] >= limit:  # cannot make it any more
        queue.pop(0)
        missed += 1
    for packet in queue:
        packet[2] += 1
    return ok, missed


def window(params, cell, slice_index, snr_rb, queues, timers, pointers, alloc_hz, load, draws):
    """One window of the default environment for users that already moved.

    cell, slice_index, timers [U]; snr_rb [U, N]; queues: list of lists; pointers [3 N]; load [N]; draws: dict of
    `shadow_db` [S, P], `gap_uniform`, `size_uniform` [S + 1, P], column j for the j-th user in order of (cell, slice,
    id). Returns a dict; queues, timers and pointers are changed in place.
    """
    num_users, num_cells = snr_rb.shape
    order = sorted(range(num_users), key=lambda u: (cell[u], slice_index[u], u))
    column = {u: j for j, u in enumerate(order)}
    members = [[u for u in order if cell[u] == c and slice_index[u] == n] for c in range(num_cells) for n in range(3)]
    total_rbs = params.bandwidth_hz / RB_HZ
    arrived, ok, missed, dropped = (np.zeros((num_cells, 3), int) for _ in range(4))
    rate_sum, used_rbs, loads = np.zeros(num_cells), np.zeros(num_cells), []
    for slot in range(params.window_slots):
        for u in order:
            c, n = cell[u], slice_index[u]
            if timers[u] <= 0:
                arrived[c, n] += 1
                size = packet_bits(n, draws["size_uniform"][slot, column[u]], params.urllc_size)
                if len(queues[u]) < DEPTH:
                    queues[u].append([size, size, 1])
                else:
                    dropped[c, n] += 1
                timers[u] = gap_slots(n, draws["gap_uniform"][slot, column[u]], params.traffic_load)
            timers[u] -= 1
        for group, users in enumerate(members):
            c, n = divmod(group, 3)
            num_rbs = int((alloc_hz[c, n] + 20) // RB_HZ)
            active = [u for u in users if queues[u]]
            shares, pointers[group] = round_robin(active, num_rbs, pointers[group])
            used_rbs[c] += num_rbs if active else 0
            for u in active:
                width = shares[u]
                inr = sum(snr_rb[u, j] / total_rbs * load[j] for j in range(num_cells) if j != c)
                faded = snr_rb[u, c] * 10 ** (-draws["shadow_db"][slot, column[u]] / 10)
                rate = width * RB_HZ * np.log10(1 + faded / (1 + inr) / width) * params.mimo_factor if width else 0.0
                rate_sum[c] += rate
                good, bad = serve(
                    queues[u], rate, params.rules.latency_limit_slots[n], params.rules.rate_threshold_bps[n]
                )
                ok[c, n] += good
                missed[c, n] += bad
        if (slot + 1) % params.interference_slots == 0:
            load = used_rbs / (total_rbs * params.interference_slots)
            loads.append(load)
            used_rbs = np.zeros(num_cells)
    judged = ok + missed + dropped
    backlog = np.array([sum(len(queues[u]) for u in users) for users in members]).reshape(num_cells, 3)
    ssr = np.where(judged > 0, ok / np.maximum(judged, 1), 1.0)
    return {
        "arrived": arrived, "ok": ok, "missed": missed, "dropped": dropped, "backlog": backlog, "ssr": ssr, "load":
        load, "mean_load": np.mean(loads, axis=0),
        "efficiency": rate_sum / (params.window_slots * params.bandwidth_hz),
    }  # fmt: skip
