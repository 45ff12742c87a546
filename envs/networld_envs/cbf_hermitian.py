"""Small Hermitian matrices in batches: eigenvalues by Jacobi rotations, functions of a matrix, packing into reals.

Written for the 3 x 3 leakage matrices of the beamforming task (any small K works). Everything is elementwise over the
batch, so it fuses, vectorises and runs inside any jitted scan; batched LAPACK calls do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np


class _Complex(NamedTuple):
    """Real and imaginary part apart: XLA vectorises real arithmetic on CPU, not complex."""

    re: jax.Array
    im: jax.Array

    def __mul__(self, other: _Complex) -> _Complex:  # type: ignore[override]  # a tuple's * repeats it
        return _Complex(self.re * other.re - self.im * other.im, self.re * other.im + self.im * other.re)

    def scaled(self, factor: jax.Array) -> _Complex:
        return _Complex(self.re * factor, self.im * factor)

    def plus(self, other: _Complex) -> _Complex:
        return _Complex(self.re + other.re, self.im + other.im)

    def conj(self) -> _Complex:
        return _Complex(self.re, -self.im)


def _rotate(a, v, p: int, q: int):
    """Annihilates a[p][q] of a Hermitian matrix given as nested lists of [...] entries; v collects the eigenvectors."""
    size = len(a)
    off = a[p][q]
    tiny = jnp.finfo(off.re.dtype).tiny
    largest = jnp.maximum(jnp.abs(off.re), jnp.abs(off.im))
    is_there = largest > tiny
    scale = jnp.where(is_there, largest, 1.0)  # or squares of what sweeps leave behind lose their digits
    re, im = jnp.where(is_there, off.re, 1.0) / scale, jnp.where(is_there, off.im, 0.0) / scale
    norm = jnp.sqrt(re**2 + im**2)
    magnitude = jnp.where(is_there, scale * norm, 0.0)
    phase = _Complex(re / norm, -im / norm)
    gap = a[q][q] - a[p][p]
    # Smaller root of t^2 + t gap / |a_pq| - 1 = 0: a rotation by at most 45 degrees, for which cyclic sweeps converge.
    denominator = jnp.abs(gap) + jnp.sqrt(gap**2 + 4 * magnitude**2)
    t = jnp.where(gap >= 0, 2.0, -2.0) * magnitude / jnp.maximum(denominator, tiny)
    c = jax.lax.rsqrt(1 + t**2)
    s = t * c
    a[p][p], a[q][q] = a[p][p] - t * magnitude, a[q][q] + t * magnitude
    a[p][q] = _Complex(jnp.zeros_like(t), jnp.zeros_like(t))

    def turned(first: _Complex, second: _Complex) -> tuple[_Complex, _Complex]:
        second = phase * second
        return first.scaled(c).plus(second.scaled(-s)), first.scaled(s).plus(second.scaled(c))

    for r in range(size):
        if r not in (p, q):
            rp = a[r][p] if r < p else a[p][r].conj()
            rq = a[r][q] if r < q else a[q][r].conj()
            rp, rq = turned(rp, rq)
            a[min(r, p)][max(r, p)] = rp if r < p else rp.conj()
            a[min(r, q)][max(r, q)] = rq if r < q else rq.conj()
        v[r][p], v[r][q] = turned(v[r][p], v[r][q])


def hermitian_eigen(matrix: jax.Array, num_sweeps: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [..., K] (not sorted) and eigenvectors [..., K, K] (columns) of Hermitian [..., K, K].

    Cyclic Jacobi converges quadratically; four sweeps reach float32 rounding (of 3 x 3, with one to spare), six that
    of float64: the default. Only the upper triangle is read.
    """
    if num_sweeps is None:
        num_sweeps = 4 if matrix.dtype == jnp.complex64 and matrix.shape[-1] <= 3 else 6
    chex.assert_equal(matrix.shape[-1], matrix.shape[-2])
    size = matrix.shape[-1]
    real, imag = matrix.real, matrix.imag
    one, zero = jnp.ones_like(real[..., 0, 0]), jnp.zeros_like(real[..., 0, 0])

    def entry(p: int, q: int):
        if p == q:
            return real[..., p, p]
        return _Complex(real[..., p, q], imag[..., p, q]) if q > p else _Complex(zero, zero)  # below: never read

    a = [[entry(p, q) for q in range(size)] for p in range(size)]
    v = [[_Complex(one if p == q else zero, zero) for q in range(size)] for p in range(size)]

    def sweep(_, carry):
        a, v = jax.tree.map(lambda x: x, carry)  # fresh lists: _rotate assigns into them
        for p in range(size):
            for q in range(p + 1, size):
                _rotate(a, v, p, q)
                if size > 3:  # XLA's fusion of a chain of more than three rotations compiles for minutes
                    a, v = jax.lax.optimization_barrier((a, v))
        return a, v

    a, v = jax.lax.fori_loop(0, num_sweeps, sweep, (a, v))
    values = jnp.stack([a[p][p] for p in range(size)], axis=-1)
    part = lambda name: jnp.stack([jnp.stack([getattr(z, name) for z in row], axis=-1) for row in v], axis=-2)  # noqa: E731
    return values, jax.lax.complex(part("re"), part("im"))


def recompose(values: jax.Array, vectors: jax.Array) -> jax.Array:
    """Q diag(values) Q^H [..., K, K], multiply-and-sum."""
    size = values.shape[-1]
    scaled = vectors * values[..., None, :]
    return sum(scaled[..., :, None, m] * vectors[..., None, :, m].conj() for m in range(size))


def matrix_function(matrix: jax.Array, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Q f(Lambda) Q^H of Hermitian [..., K, K]."""
    values, vectors = hermitian_eigen(matrix)
    return recompose(function(values), vectors)


def hermitian_to_reals(matrix: jax.Array) -> jax.Array:
    """[..., K, K] to [..., K^2]: the diagonal, then the real, then the imaginary parts above it (row by row)."""
    size = matrix.shape[-1]
    rows, columns = np.triu_indices(size, 1)
    diagonal = [matrix[..., k, k].real for k in range(size)]
    upper = [matrix[..., p, q] for p, q in zip(rows, columns, strict=True)]
    return jnp.stack([*diagonal, *(z.real for z in upper), *(z.imag for z in upper)], axis=-1)


def reals_to_hermitian(reals: jax.Array) -> jax.Array:
    """Inverse of `hermitian_to_reals`: [..., K^2] to [..., K, K]. Raises ValueError unless the axis is a square."""
    size = round(reals.shape[-1] ** 0.5)
    if size**2 != reals.shape[-1]:
        raise ValueError(f"the last axis must hold K^2 reals of a K x K Hermitian matrix, got {reals.shape[-1]}")
    rows, columns = np.triu_indices(size, 1)
    num_upper = len(rows)
    index = {(p, q): size + m for m, (p, q) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True))}

    def entry(p: int, q: int) -> jax.Array:
        if p == q:
            return jax.lax.complex(reals[..., p], jnp.zeros_like(reals[..., p]))
        m = index[min(p, q), max(p, q)]
        imag = reals[..., m + num_upper]
        return jax.lax.complex(reals[..., m], imag if p < q else -imag)

    return jnp.stack([jnp.stack([entry(p, q) for q in range(size)], axis=-1) for p in range(size)], axis=-2)
