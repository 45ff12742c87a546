"""The suite `scaling`: its graphs, and its rows on a network small enough for a test."""

import numpy as np
import pytest

from experiments import benchmark
from experiments.configs import default
from experiments.suites import scaling
from networld_jax.mean_field import make_graph


@pytest.mark.parametrize("num_agents", [1, 2, 19, 20, 90])
def test_the_lattice_is_a_symmetric_graph_with_six_neighbours_inside(num_agents):
    edges = scaling.hexagonal_edges(num_agents)
    matrix = make_graph(edges, num_agents, scaling.MAX_NEIGHBOURS, dense_max_agents=1000)
    np.testing.assert_array_equal(matrix, matrix.T)
    side = int(np.ceil(np.sqrt(num_agents)))
    line, place = np.divmod(np.arange(num_agents), side)
    inside = (line > 0) & (place > 0) & (place < side - 1) & (np.arange(num_agents) + side < num_agents)
    assert set(matrix.sum(-1)[inside]) <= {6.0}
    triangles = matrix * (matrix @ matrix)  # touching hexagons share exactly two neighbours
    assert set(triangles[np.ix_(inside, inside)].ravel()) <= {0.0, 2.0}


@pytest.mark.slow
def test_rows_say_what_grows(tmp_path):
    config = default.get_config()
    config.scaling.update(dict(num_agents=(4, 8, 32), chunk=8, matrix_agents=8, seconds=0.0, mean_field_seconds=0.0))
    config.model.update(dict(width=8, width_mults=(1,), inverse_dynamics_hidden=(8,), value_hidden=(8,)))
    rows = {r["name"]: r for r in scaling.run(config, tmp_path)}
    missing = set(benchmark.FIELDS) - {"suite", "device", "command"}
    assert all(missing <= set(r) for r in rows.values())
    assert all(r["baseline"] is None or r["baseline"] in rows for r in rows.values())
    plans = [rows[f"decision of {n} agents"] for n in (4, 8, 32)]
    assert plans[2]["memory_bytes"] < 4 * plans[1]["memory_bytes"]  # four times the agents in the same chunks
    fields = [rows[f"mean field of {n} agents"] for n in (4, 8, 32)]
    assert fields[1]["ratio"] > 0 and fields[2]["ratio"] is None
    assert fields[2]["matrix_memory_bytes"] > 32 * 32 * 4
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
