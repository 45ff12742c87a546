"""Policies that need no learning: experts that collect data, rules that learned policies have to beat, bounds.

Each module has `policies(params) -> dict[str, Policy]`, with the names used in every table, and `tiers(params) -> dict[str, Policy]`, the data tiers.
"""
