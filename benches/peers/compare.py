#!/usr/bin/env python3
"""Times dalr beside what people run in Python, on the same files, in one run, with the same number of threads.

    benches/peers/run.sh [--quick | --tiny | SHAPE ...]     (run.sh makes the environment first)

Every contender is a process of its own, so that its peak memory is its own. The clock runs from weight and inputs in
memory (for dalr: from the file, batch by batch, less the reading) to the two factors. The error is computed here, in
float64, from the factors that each returned: |W X - up down X| / |W X|.
"""
import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

SHAPES = {  # out, in, samples, rank
    "fc7": (4096, 4096, 5994, 256),
    "half-fc6": (2048, 12544, 2997, 128),
    "fc6": (4096, 25088, 5994, 256),
    "llm-up": (11008, 4096, 16384, 1024),
    "llm-down": (4096, 11008, 16384, 1024),
    "quick": (1024, 2048, 1500, 64),
    "tiny": (128, 192, 300, 16),
}
ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "target" / "release" / "examples" / "compress_matrices"


def load(folder, shape):
    import numpy

    m, n, p, _ = shape
    weight = numpy.fromfile(folder / "weight.f32", numpy.float32).reshape(m, n)
    inputs = numpy.fromfile(folder / "inputs.f32", numpy.float32).reshape(p, n)
    return weight, inputs


def generate(folder, shape):
    """Inputs like those after a ReLU, with a decaying spectrum; a random weight."""
    import numpy

    m, n, p, _ = shape
    rng = numpy.random.default_rng(0)
    (rng.standard_normal((m, n), numpy.float32) / numpy.float32(n**0.5)).tofile(folder / "weight.f32")
    latent = min(n, 1024)
    decay = numpy.arange(1, latent + 1, dtype=numpy.float32) ** numpy.float32(-0.8)
    mixing = rng.standard_normal((latent, n), numpy.float32) * decay[:, None]
    with open(folder / "inputs.f32", "wb") as file:
        for start in range(0, p, 1024):
            count = min(1024, p - start)
            batch = rng.standard_normal((count, latent), numpy.float32) @ mixing
            batch += numpy.float32(0.1) * rng.standard_normal((count, n), numpy.float32)
            numpy.maximum(batch, 0, out=batch)
            batch.tofile(file)


# The contenders: (weight, inputs, rank) -> (up, down, seconds).


def paper(weight, inputs, rank):
    """Eq. 11 of Masana et al. with their lambda of 1000, NumPy float64, as their code does it but for solve instead of inv."""
    import numpy

    W, X = weight.astype(numpy.float64), inputs.T.astype(numpy.float64)
    start = time.perf_counter()
    Z = W @ X
    up = numpy.linalg.svd(Z, full_matrices=False)[0][:, :rank]
    covariance = X @ X.T
    covariance[numpy.diag_indices_from(covariance)] += 1000.0
    down = numpy.linalg.solve(covariance, X @ (Z.T @ up)).T
    return up, down, time.perf_counter() - start


def svd_llm(weight, inputs, rank):
    """Truncation-aware whitening (Wang et al. 2024): S = chol(X X'), SVD of W S, truncated, times S^-1."""
    import torch

    W, X = torch.from_numpy(weight), torch.from_numpy(inputs)
    start = time.perf_counter()
    gram = torch.zeros(X.shape[1], X.shape[1])
    for batch in X.split(2048):
        gram.addmm_(batch.T, batch)
    gram = gram.double()
    shift = 0.0
    while True:  # a singular covariance gets a growing shift, as in the published code
        root, failed = torch.linalg.cholesky_ex(gram + shift * torch.eye(len(gram), dtype=gram.dtype))
        if not failed:
            break
        shift = max(10 * shift, 1e-6 * gram.diagonal().mean().item())
    root = root.float()
    U, s, Vt = torch.linalg.svd(W @ root, full_matrices=False)
    down = torch.linalg.solve_triangular(root, Vt[:rank], upper=False, left=False)
    balance = s[:rank].sqrt()
    up, down = U[:, :rank] * balance, balance[:, None] * down
    return up.numpy(), down.numpy(), time.perf_counter() - start


def output_gram(weight, inputs, rank):
    """The eigenvectors of the outputs' Gram matrix: the same solution by the shortest way in PyTorch."""
    import torch

    W, X = torch.from_numpy(weight), torch.from_numpy(inputs)
    start = time.perf_counter()
    Z = X @ W.T
    up = torch.linalg.eigh(Z.T @ Z)[1][:, -rank:]
    down = up.T @ W
    return up.numpy(), down.numpy(), time.perf_counter() - start


def svd_lowrank(weight, inputs, rank):
    """torch.svd_lowrank of the outputs (randomised, Halko et al.), four iterations."""
    import torch

    torch.manual_seed(0)
    W, X = torch.from_numpy(weight), torch.from_numpy(inputs)
    start = time.perf_counter()
    up = torch.svd_lowrank(X @ W.T, q=rank + 16, niter=4)[2][:, :rank]
    down = up.T @ W
    return up.numpy(), down.numpy(), time.perf_counter() - start


def plain_svd(weight, inputs, rank):
    """torch.linalg.svd of the weight, blind to the data."""
    import torch

    W = torch.from_numpy(weight)
    start = time.perf_counter()
    U, s, Vt = torch.linalg.svd(W, full_matrices=False)
    return U[:, :rank].numpy(), (s[:rank, None] * Vt[:rank]).numpy(), time.perf_counter() - start


PEERS = {
    "paper (NumPy f64)": paper,
    "SVD-LLM (PyTorch)": svd_llm,
    "output Gram + eigh (PyTorch)": output_gram,
    "svd_lowrank of outputs (PyTorch)": svd_lowrank,
    "SVD of the weight (PyTorch)": plain_svd,
}


def child(name, folder, shape, threads):
    import numpy
    import torch

    torch.set_num_threads(threads)
    weight, inputs = load(folder, shape)
    up, down, seconds = PEERS[name](weight, inputs, shape[3])
    numpy.save(folder / "up.npy", numpy.ascontiguousarray(up, numpy.float32))
    numpy.save(folder / "down.npy", numpy.ascontiguousarray(down, numpy.float32))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def run_peer(name, folder, shape, threads, limit):
    command = [sys.executable, __file__, "--child", name, "--folder", str(folder), "--shape", *map(str, shape)]
    environment = os.environ | {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    for key in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        environment.pop(key, None)
    try:
        done = subprocess.run(command + ["--threads", str(threads)], env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return None
    import numpy

    result = json.loads(done.stdout.splitlines()[-1])
    return result | {"up": numpy.load(folder / "up.npy"), "down": numpy.load(folder / "down.npy")}


def run_dalr(method, folder, shape, threads):
    import numpy

    m, n, p, rank = shape
    files = [str(folder / name) for name in ("weight.f32", "inputs.f32")]
    command = [str(PROGRAM), *files, *map(str, (m, n, p, rank, threads)), str(folder / "factors.f32"), method]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"RAYON_NUM_THREADS": str(threads)})
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"dalr failed: {status}")
    words = output.split()
    factors = numpy.fromfile(folder / "factors.f32", numpy.float32)
    return {
        "seconds": float(words[1]) + float(words[4]),
        "peak": usage.ru_maxrss / 1024,
        "up": factors[: m * rank].reshape(m, rank),
        "down": factors[m * rank :].reshape(rank, n),
    }


def relative_error(folder, shape, up, down):
    import numpy

    weight, inputs = load(folder, shape)
    difference = weight.astype(numpy.float64) - up.astype(numpy.float64) @ down.astype(numpy.float64)
    error = total = 0.0
    for start in range(0, len(inputs), 1024):
        batch = inputs[start : start + 1024].astype(numpy.float64)
        error += numpy.square(batch @ difference.T).sum()
        total += numpy.square(batch @ weight.T.astype(numpy.float64)).sum()
    return (error / total) ** 0.5


def compare(name, threads, limit, repeat):
    shape = SHAPES[name]
    m, n, p, rank = shape
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        generate(folder, shape)
        contenders = [("dalr, no ridge", None), *((peer, peer) for peer in PEERS), ("dalr, default", None)]
        for label, peer in contenders:
            results = []
            for _ in range(repeat if peer is None else 1):
                method = "dalr-plain" if label == "dalr, no ridge" else "dalr"
                results.append(run_peer(peer, folder, shape, threads, limit) if peer else run_dalr(method, folder, shape, threads))
            if results[0] is None:
                print(f"{label}: not within {limit} s", flush=True)
                continue
            results.sort(key=lambda result: result["seconds"])
            result = results[len(results) // 2]
            error = relative_error(folder, shape, result["up"], result["down"]) if label != "dalr, default" else None
            rows.append({"contender": label, "seconds": result["seconds"], "peak": result["peak"], "error": error})
            print(f"{label}: {result['seconds']:.2f} s", flush=True)
    ours = rows[0]["seconds"]
    print(f"\n### {name}: {m} × {n}, {p} samples, rank {rank}, {threads} threads\n")
    print("| contender | time | × dalr | relative error | peak memory |\n|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: row["seconds"]):
        error = "–" if row["error"] is None else f"{row['error']:.5f}"
        print(f"| {row['contender']} | {row['seconds']:.2f} s | {row['seconds'] / ours:.1f} | {error} | {row['peak']:.0f} MB |")
    files = 4 * (m * n + p * n) / 2**20
    print(f"\nWeight and inputs take {files:.0f} MB.\n", flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=[], help=", ".join(SHAPES))
    parser.add_argument("--quick", action="store_true", help="one small shape, under two minutes")
    parser.add_argument("--tiny", action="store_true", help="a shape of seconds, and a check of the errors")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--limit", type=float, default=1800, help="seconds a peer may take")
    parser.add_argument("--repeat", type=int, default=3, help="runs of dalr, of which the median counts")
    parser.add_argument("--json", type=pathlib.Path, help="file for all numbers")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=int, nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.folder, options.shape, options.threads)
    shapes = ["quick"] if options.quick else ["tiny"] if options.tiny else options.shapes or ["fc7", "half-fc6"]
    results = {name: compare(name, options.threads, options.limit, options.repeat) for name in shapes}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.tiny:
        errors = {row["contender"]: row["error"] for row in results["tiny"]}
        least = errors["output Gram + eigh (PyTorch)"]
        assert abs(errors["dalr, no ridge"] - least) < 1e-4 * least, errors
        assert errors["SVD of the weight (PyTorch)"] > 1.1 * least, errors


main()
