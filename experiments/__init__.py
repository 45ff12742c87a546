"""Stages of an experiment: collect -> pretrain -> adapt -> evaluate -> figures. Each is `python -m
experiments.<stage>`."""
