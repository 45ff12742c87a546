"""ml-collections configurations, loaded by path (`--config=experiments/configs/<name>.py`)."""
