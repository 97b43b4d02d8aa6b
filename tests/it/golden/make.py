#!/usr/bin/env python3
"""Writes golden.json: what the formulas give in NumPy, written as plainly as they stand in the papers.

    python3 -m venv venv && venv/bin/pip install numpy && venv/bin/python tests/golden/make.py
"""
import json
import pathlib

import numpy as np


def top(matrix, k):
    """Orthonormal basis of the leading eigenvectors."""
    return np.linalg.eigh((matrix + matrix.T) / 2)[1][:, ::-1][:, :k]


def corrected(weight, compressed, bias, mean):
    return bias + (weight - compressed) @ mean


def case(seed, m, n, p, k, lam):
    rng = np.random.default_rng(seed)
    W, b = rng.normal(size=(m, n)), rng.normal(size=m)
    mixing = rng.normal(size=(n, n)) * 0.7 ** np.arange(n)
    X = np.maximum(mixing @ rng.normal(size=(n, p)) + 0.5, 0)  # inputs x samples, after a ReLU
    mean = X.mean(axis=1)
    Xc = X - mean[:, None]
    S = Xc @ Xc.T / p
    results = {}

    def add(name, C, bias=b):
        results[name] = {"weight": C.tolist(), "bias": bias.tolist()}

    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    C = (U[:, :k] * s[:k]) @ Vt[:k]
    add("svd", C)
    add("svd+bc", C, corrected(W, C, b, mean))
    # Eq. 11: Z = W X, A = U_k, B = U_k' Z X' (X X' + lambda I)^-1.
    Z = W @ X
    A = np.linalg.svd(Z)[0][:, :k]
    add("dalr-paper", A @ (A.T @ Z @ X.T @ np.linalg.inv(X @ X.T + lam * np.eye(n))))
    # The minimiser of eq. 7.
    shifted = X @ X.T + lam * np.eye(n)
    R = W @ X @ X.T @ np.linalg.inv(shifted)
    A = top(R @ shifted @ R.T, k)
    add("dalr-exact", A @ (A.T @ R))
    # Uncentred and centred DALR without a ridge.
    A = top(W @ X @ X.T @ W.T, k)
    add("dalr-uncentred", A @ (A.T @ W))
    A = top(W @ S @ W.T, k)
    C = A @ (A.T @ W)
    add("dalr-centred", C, corrected(W, C, b, mean))
    # Centred with shrinkage: between OAS (Chen et al. 2010, eq. 23) of p - 1 samples, the mean taking one, and a ridge as large as the noise
    # outside of a few directions.
    tr, tr2, d = np.trace(S), np.trace(S @ S), p - 1
    rho = min(1.0, ((1 - 2 / n) * tr2 + tr**2) / ((d + 1 - 2 / n) * (tr2 - tr**2 / n)))
    if d <= 8:
        rho = 1.0
    elif rho < 1:
        inside = np.linalg.eigvalsh(S)[::-1][: min(d // 2, 16)].sum()
        lower = rho / (1 - rho)
        upper = max(lower, (1 - inside / tr) * n / (d - 8))
        w = (min(1, n / d) + 8 / d) / 2
        odds = lower ** (1 - w) * upper**w
        rho = odds / (1 + odds)
    keep = max(1 - rho, 2.0**-36)  # full shrinkage leaves enough of the data to decide ties
    shrunk = keep * S + (1 - keep) * tr / n * np.eye(n)
    A = top(W @ shrunk @ W.T, k)
    C = A @ (A.T @ W)
    add("dalr", C, corrected(W, C, b, mean))
    return {
        "rank": k,
        "lambda": lam,
        "shrinkage": rho,
        "energies": np.linalg.eigvalsh(W @ shrunk @ W.T)[::-1][: min(m, n)].tolist(),
        "weight": W.tolist(),
        "bias": b.tolist(),
        "inputs": X.T.tolist(),
        "results": results,
    }


cases = [
    case(1, m=6, n=9, p=40, k=3, lam=5.0),
    case(2, m=9, n=6, p=40, k=3, lam=5.0),
    case(3, m=5, n=12, p=7, k=3, lam=2.0),  # fewer samples than inputs: the dual identity
    case(4, m=12, n=8, p=6, k=4, lam=0.5),
    case(5, m=7, n=7, p=100, k=5, lam=1000.0),
    case(6, m=9, n=14, p=20, k=4, lam=5.0),  # too few samples to trust, enough to learn from: shrunk by more than the oracle
]
path = pathlib.Path(__file__).with_name("golden.json")
path.write_text(json.dumps(cases) + "\n")
