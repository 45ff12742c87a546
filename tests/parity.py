"""Parity entry points: NumPy in, NumPy out, public functions only. Sizes are read from the inputs, never assumed.

Called by the tests with the fixtures in tests/data, and by anyone with fixtures of other sizes.
"""

from __future__ import annotations
