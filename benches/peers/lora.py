#!/usr/bin/env python3
"""Times extraction and resizing of LoRA adapters beside what people run in Python, on the same files, in one run.

    benches/peers/lora.sh [--tiny] [--json FILE]     (lora.sh builds dalr's side and makes the environment first)

Every contender starts from float32 matrices in memory and ends with the two factors. Each is a process of its own with
the same number of threads; the median of several runs counts where a run is short. The errors are computed here, in
float64 for the small problems: |update - up down| / |update|, and how far it is above that of the exact SVD.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "target" / "release" / "examples" / "lora_matrices"

RESIZES = {"resize": (4096, 4096, 128, 32)}  # out, in, rank before, rank
EXTRACTIONS = {"attention": (4096, 4096, 64), "mlp": (11008, 4096, 64)}  # out, in, rank
TINY = ({"resize": (256, 192, 24, 8)}, {"extraction": (256, 192, 8)})


def generate_resize(folder, shape):
    import numpy

    m, n, before, _ = shape
    rng = numpy.random.default_rng(0)
    decay = numpy.arange(1, before + 1, dtype=numpy.float32) ** numpy.float32(-0.5)
    (rng.standard_normal((before, n), numpy.float32) * decay[:, None]).tofile(folder / "first.f32")
    rng.standard_normal((m, before), numpy.float32).tofile(folder / "second.f32")


def generate_extraction(folder, shape):
    """A random weight, and one that a fine-tuning has changed: a decaying update and noise of full rank."""
    import numpy

    m, n, _ = shape
    rng = numpy.random.default_rng(0)
    latent = min(m, n) // 4
    base = rng.standard_normal((m, n), numpy.float32) * numpy.float32(0.02)
    decay = numpy.arange(1, latent + 1, dtype=numpy.float32) ** numpy.float32(-1.0)
    left, right = rng.standard_normal((m, latent), numpy.float32) * decay, rng.standard_normal((latent, n), numpy.float32)
    update = numpy.float32(1e-3) * (left @ right) + numpy.float32(2e-4) * rng.standard_normal((m, n), numpy.float32)
    base.tofile(folder / "first.f32")
    (base + update).tofile(folder / "second.f32")


def load(folder, shape):
    import numpy

    first, second = (numpy.fromfile(folder / name, numpy.float32) for name in ("first.f32", "second.f32"))
    if len(shape) == 4:
        m, n, before, _ = shape
        return first.reshape(before, n), second.reshape(m, before)
    return first.reshape(shape[:2]), second.reshape(shape[:2])


# The contenders get two tensors: (down, up) of an adapter, or (base, tuned). They return up, down and singular values.


def svd_of_update(update, rank):
    import torch

    U, s, Vt = torch.linalg.svd(update, full_matrices=False)
    return U[:, :rank] * s[:rank], Vt[:rank], s


def resize_by_svd(first, second, rank):
    return svd_of_update(second @ first, rank)


def resize_by_qr(first, second, rank):
    """Two thin QR factorizations and the SVD of the small core: the algorithm of dalr in PyTorch."""
    import torch

    Q, R = torch.linalg.qr(second)
    P, S = torch.linalg.qr(first.T)
    U, s, Vt = torch.linalg.svd(R @ S.T)
    return Q @ (U[:, :rank] * s[:rank]), Vt[:rank] @ P.T, s


def resize_by_lowrank(first, second, rank):
    import torch

    torch.manual_seed(0)
    U, s, V = torch.svd_lowrank(second @ first, q=rank + 8, niter=2)
    return U[:, :rank] * s[:rank], V[:, :rank].T, s


def extract_by_svd(first, second, rank):
    return svd_of_update(second - first, rank)


def extract_by_lowrank(niter):
    def extract(first, second, rank):
        import torch

        torch.manual_seed(0)
        U, s, V = torch.svd_lowrank(second - first, q=rank + 8, niter=niter)
        return U[:, :rank] * s[:rank], V[:, :rank].T, s

    return extract


PEERS = {
    4: {
        "torch.linalg.svd of the update": (resize_by_svd, 1),
        "QR and SVD of the core (PyTorch)": (resize_by_qr, 9),
        "torch.svd_lowrank of the update": (resize_by_lowrank, 3),
    },
    3: {
        "torch.linalg.svd of the difference": (extract_by_svd, 1),
        "torch.svd_lowrank, 2 iterations": (extract_by_lowrank(2), 3),
        "torch.svd_lowrank, 8 iterations": (extract_by_lowrank(8), 3),
    },
}


def child(name, folder, shape, threads):
    import numpy
    import torch

    torch.set_num_threads(threads)
    first, second = map(torch.from_numpy, load(folder, shape))
    contender, runs = PEERS[len(shape)][name]
    # The first products of a process are slow; so are dalr's, whose first run counts like the others.
    torch.linalg.svd(torch.randn(64, 64) @ torch.randn(64, 64))
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        up, down, values = contender(first, second, shape[-1])
        seconds.append(time.perf_counter() - start)
    for key, value in (("up", up), ("down", down), ("values", values)):
        numpy.save(folder / f"{key}.npy", numpy.ascontiguousarray(value.numpy(), numpy.float32))
    print(json.dumps(seconds))


def run_peer(name, folder, shape, threads):
    import numpy

    command = [sys.executable, __file__, "--child", name, "--folder", str(folder), "--shape", *map(str, shape), "--threads", str(threads)]
    environment = os.environ | {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]), *(numpy.load(folder / f"{key}.npy") for key in ("up", "down", "values"))


def run_dalr(folder, shape, threads):
    import numpy

    m, n, rank = shape[0], shape[1], shape[-1]
    runs = 9 if len(shape) == 4 else 3
    command = [PROGRAM, "resize" if len(shape) == 4 else "extract", folder / "first.f32", folder / "second.f32", *shape, runs, folder / "factors.f32"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True, env=os.environ | {"RAYON_NUM_THREADS": str(threads)})
    factors = numpy.fromfile(folder / "factors.f32", numpy.float32)
    up, down = factors[: m * rank].reshape(m, rank), factors[m * rank : (m + n) * rank].reshape(rank, n)
    return [float(text) for text in done.stdout.split()], up, down, factors[(m + n) * rank :]


def compare(name, shape, threads):
    import numpy

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (generate_resize if len(shape) == 4 else generate_extraction)(folder, shape)
        first, second = load(folder, shape)
        update = (second.astype(numpy.float64) @ first if len(shape) == 4 else second.astype(numpy.float64) - first)
        norm = numpy.linalg.norm(update)
        results = {"dalr": run_dalr(folder, shape, threads)}
        results |= {peer: run_peer(peer, folder, shape, threads) for peer in PEERS[len(shape)]}
        rank = shape[-1]
        exact = results[next(iter(PEERS[len(shape)]))][3].astype(numpy.float64)
        rows = []
        for contender, (seconds, up, down, values) in results.items():
            error = numpy.linalg.norm(update - up.astype(numpy.float64) @ down) / norm
            apart = numpy.abs(values[:rank] - exact[:rank]).max() / exact[0]
            rows.append({"contender": contender, "seconds": sorted(seconds)[len(seconds) // 2], "error": error, "values": apart})
    least = next(row["error"] for row in rows if row["contender"].startswith("torch.linalg.svd"))
    ours = rows[0]["seconds"]
    what = f"from rank {shape[2]} to {rank}" if len(shape) == 4 else f"extraction at rank {rank}"
    print(f"\n{shape[0]} × {shape[1]}, {what}, float32, {threads} threads\n")
    print("| contender | time | × dalr | relative error | above the exact SVD | singular values, largest difference / σ₁ |\n|---|---|---|---|---|---|")
    for row in rows:
        excess = row["error"] / least - 1
        print(f"| {row['contender']} | {row['seconds']:.3f} s | {row['seconds'] / ours:.1f} | {row['error']:.6f} | {excess:+.1e} | {row['values']:.1e} |", flush=True)
    return {"name": name, "shape": shape, "threads": threads, "rows": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="shapes of seconds, and a check of the errors")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", type=pathlib.Path, help="file for all numbers")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=int, nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.folder, tuple(options.shape), options.threads)
    resizes, extractions = TINY if options.tiny else (RESIZES, EXTRACTIONS)
    results = [compare(name, shape, options.threads) for name, shape in (resizes | extractions).items()]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    for result in results if options.tiny else []:
        errors = {row["contender"]: row["error"] for row in result["rows"]}
        least = min(errors.values())
        assert errors["dalr"] < least * (1 + 1e-4), errors
        assert result["rows"][0]["values"] < 1e-5, result


if __name__ == "__main__":
    main()
