"""The PyTorch reference of the benchmarks computes what the library computes: networks, guided samplers, gradients."""

import jax
import numpy as np
import pytest

from experiments.suites import sampler, train
from networld_jax.schedules import cosine_schedule

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[torch]'")
pytestmark = pytest.mark.interop

from benchmarks import torch_reference  # noqa: E402
from experiments.configs import benchmark as benchmark_config  # noqa: E402

LEVELS, BATCH = 4, 3


@pytest.fixture(scope="module", params=["diffuser", "networld"])
def sizes(request):
    c = benchmark_config.get_config().benchmark.sampler
    c.update(dict(layout=request.param, horizon=8, channels=6, width=8, mults=(1, 4)))
    return c


def test_ddpm_and_ddim_are_the_same_maps(sizes):
    """Equal networks, schedules, guidance and updates; float32 through a dozen layers and four denoisings."""
    nets = sampler.make_nets(sizes)
    reference = sampler.TorchSampler(nets, sizes)
    noise, present = sampler.inputs(sizes, LEVELS, BATCH)
    both = lambda p, x, k: (nets.predict(p, x, k), nets.score(p, x, k))  # noqa: E731
    ours = {
        "ddpm": jax.jit(sampler.ddpm_sampler(nets, sizes, LEVELS))(nets.params, noise, present),
        "ddim": jax.jit(sampler.ddim_sampler(both, LEVELS, 3))(nets.params, noise[:1], present),
    }
    theirs = {"ddpm": reference.ddpm(LEVELS, noise, present)(), "ddim": reference.ddim(LEVELS, 3, noise, present)()}
    for name, plan in ours.items():
        np.testing.assert_allclose(theirs[name], plan, atol=2e-5 * np.abs(plan).max())
        assert np.abs(plan[:, 1:]).max() > 0.1


def test_losses_and_gradients_are_the_same(sizes):
    nets = sampler.make_nets(sizes)
    reference = sampler.TorchSampler(nets, sizes)
    batch = train.random_batch(sizes, LEVELS, BATCH)
    step = jax.jit(jax.value_and_grad(train.loss_fn(nets, cosine_schedule(LEVELS))))
    loss, gradients = step(nets.params, *batch)
    schedule = torch_reference.Schedule(cosine_schedule(LEVELS))
    theirs = torch_reference.losses(reference.unet, reference.value, schedule, *train.as_tensors(reference, batch))
    np.testing.assert_allclose(theirs.item(), loss, rtol=1e-5)
    theirs.backward()
    largest = max(np.abs(g).max() for g in torch_reference.flat(gradients).values())
    for net, module in (("denoiser", reference.unet), ("classifier", reference.value)):
        wanted = torch_reference.flat(gradients[net])
        for path, gradient in torch_reference.gradients_by_path(module, nets.params[net]).items():
            np.testing.assert_allclose(gradient, wanted[path], atol=1e-5 * largest, err_msg=path)
