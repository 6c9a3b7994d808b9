"""Embeddings -> kernel -> entropy: how far the sampled answers to one question disagree in meaning.

    e_i <- e_i / |e_i|                       unit length
    K_ij = exp(-gamma |e_i - e_j|^2)         "rbf", or  K_ij = e_i . e_j  "cosine"; K_ii = 1 for both
    rho = K / n                              a density matrix: positive semi-definite, trace 1
    H = -tr(rho log rho) = -sum_k lambda_k log lambda_k      in nats, 0 <= H <= log n

n answers that all mean the same give H = 0; n answers with nothing in common give log n under "cosine". Under "rbf" the
kernel between orthogonal unit vectors is exp(-2 gamma), not 0, so H stays below log n: 2.239 instead of 2.303 for
n = 10 and gamma = 1.

Source: the von Neumann entropy of a kernel Gram matrix, Bach, "Information Theory with Kernel Methods", 2022
(arXiv 2202.08545), used on sampled answers by "Spectral Uncertainty", arXiv 2509.22272.

The bias: this plug-in estimate is too low, by about (m - 1) / 2n for m distinct meanings, so that it rises with n.
Meanings of probability .5, .25, .15, .1 give 0.66 on average at n = 3, 1.03 at 10 and 1.20 at 200 ("cosine"); the
truth is 1.21. So entropies of different n do not compare, and a calibrator fitted at one n is wrong at another.

Left out: bias corrections, because Platt scaling at a fixed n absorbs the mean bias; other kernels; and weights of
answers, because each sample already counts once per draw.
"""

import numpy as np

KERNELS = ("rbf", "cosine")


def gram(embeddings, kernel="rbf", gamma=1.0):
    """Kernel Gram matrix of sentence embeddings. (..., n, d) -> (..., n, n) float64, unit diagonal.

    kernel: "rbf", or "cosine": e_i . e_j, in [-1, 1]. Opposite vectors share a direction, so that a pair of them has
        entropy 0 under "cosine".
    gamma: inverse squared length scale of "rbf", positive; it has no unit, because the vectors have length 1.
    Raises ValueError: unknown kernel, gamma not positive, a shape that is not (..., n, d), a zero or non-finite vector.
    """
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}: choose one of {', '.join(KERNELS)}")
    if not 0 < gamma < np.inf:
        raise ValueError(f"gamma must be positive and finite, not {gamma}")
    e = np.asarray(embeddings, dtype=np.float64)
    if e.ndim < 2 or 0 in e.shape[-2:]:
        raise ValueError(f"embeddings must have shape (..., n, d) with n, d >= 1, not {e.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        k = e @ np.swapaxes(e, -1, -2)  # (..., n, n) inner products
    norm = np.sqrt(np.diagonal(k, axis1=-2, axis2=-1))  # (..., n)
    if not ((norm > 1e-100) & (norm < 1e100)).all():  # squares overflowed, vanished, or there is no direction
        largest = np.abs(e).max(axis=-1, keepdims=True)  # (..., n, 1)
        if not (np.isfinite(largest) & (largest > 0)).all():
            raise ValueError("an embedding is zero or non-finite, so it has no direction")
        return gram(e / largest, kernel, gamma)
    k = k / (norm[..., :, None] * norm[..., None, :])  # (..., n, n) cosines
    if kernel == "rbf":
        k = np.exp(-gamma * np.maximum(2 - 2 * k, 0))  # |ei - ej|^2 = 2 - 2 cos for unit vectors
    i = np.arange(e.shape[-2])
    k[..., i, i] = 1.0  # exactly, not up to rounding
    return k


def von_neumann(gram):
    """Von Neumann entropy of K/n. (..., n, n) -> (...) float64, in nats, from 0 to log n.

    Raises ValueError: not square, not finite, or a diagonal that is not 1 (K/n would be no density matrix).
    """
    k = np.asarray(gram, dtype=np.float64)
    if k.ndim < 2 or k.shape[-1] != k.shape[-2] or k.shape[-1] == 0:
        raise ValueError(f"gram must have shape (..., n, n) with n >= 1, not {k.shape}")
    if not np.isfinite(k).all():
        raise ValueError("gram has NaN or infinite entries")
    diagonal = np.diagonal(k, axis1=-2, axis2=-1)  # (..., n)
    if (np.abs(diagonal - 1) > 1e-3).any():  # loose, as it may come in half precision
        raise ValueError("gram must have a unit diagonal; do not divide it by n")
    rho = (k + np.swapaxes(k, -1, -2)) / (2 * k.shape[-1])  # symmetric to the last bit
    lam = np.clip(np.linalg.eigvalsh(rho), 0, 1)  # (..., n); rounding leaves -1e-17 where 0 is meant
    return np.where(lam > 0, -lam * np.log(np.where(lam > 0, lam, 1)), 0).sum(axis=-1)  # 0 log 0 = 0
