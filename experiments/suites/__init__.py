"""The suites of `experiments.benchmark`, one module each, with a function run(config, workdir) -> rows."""
