"""The environments behind the interfaces of other libraries. Import the module you need; each is an optional extra.

`networld_envs.adapters.jaxmarl` (`pip install 'networld-jax[jaxmarl]'`), `networld_envs.adapters.pettingzoo`
(`pip install 'networld-jax[pettingzoo]'`).
"""
