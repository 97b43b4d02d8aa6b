#!/usr/bin/env python3
"""Times dalr beside what people run in Python, on the same files, in one run, with the same number of threads.

    benches/peers/run.sh [--quick | --tiny | SHAPE ...] [--write]     (run.sh makes the environment first)

--write keeps the numbers in benches/peers/results.json and writes all that are there into docs/benchmarks.md and a picture.

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
STATISTICS = "statistics"  # only the statistics, of samples enough to collapse
SHAPES[STATISTICS] = (1, 4096, 16384, 1)
TITLES = {
    "fc7": "VGG19 fc7",
    "half-fc6": "Half of VGG19's fc6",
    "fc6": "VGG19's fc6",
    "llm-up": "LLM up-projection",
    "llm-down": "LLM down-projection",
    "quick": "Quick",
    STATISTICS: "Statistics alone",
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


def whitening(gram):
    """The Cholesky factor of X'X, and the shift that it took: a singular X'X gets a growing one, as in the published code."""
    import torch

    shift = 0.0
    while True:
        root, failed = torch.linalg.cholesky_ex(gram + shift * torch.eye(len(gram), dtype=gram.dtype))
        if not failed:
            return root, shift
        shift = max(10 * shift, 1e-6 * gram.diagonal().mean().item())


def svd_llm(weight, inputs, rank):
    """Truncation-aware whitening (Wang et al. 2024): S = chol(X X'), SVD of W S, truncated, times S^-1."""
    import torch

    W, X = torch.from_numpy(weight), torch.from_numpy(inputs)
    start = time.perf_counter()
    gram = torch.zeros(X.shape[1], X.shape[1])
    for batch in X.split(2048):
        gram.addmm_(batch.T, batch)
    root, _ = whitening(gram.double())
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


def gram_of(size):
    """What everybody's calibration loop does: X'X in float32, batch by batch."""

    def gram(weight, inputs, rank):
        import torch

        X = torch.from_numpy(inputs)
        start = time.perf_counter()
        total = torch.zeros(X.shape[1], X.shape[1])
        for batch in X.split(size):
            total.addmm_(batch.T, batch)
        seconds = time.perf_counter() - start
        return total[:1, :1].numpy(), total[:1].numpy(), seconds

    return gram


PEERS = {
    "paper (NumPy f64)": paper,
    "SVD-LLM (PyTorch)": svd_llm,
    "output Gram + eigh (PyTorch)": output_gram,
    "svd_lowrank of outputs (PyTorch)": svd_lowrank,
    "SVD of the weight (PyTorch)": plain_svd,
}


GRAMS = {f"X'X in batches of {size} (PyTorch, f32)": gram_of(size) for size in (512, 2048)}


def child(name, folder, shape, threads):
    import numpy
    import torch

    torch.set_num_threads(threads)
    weight, inputs = load(folder, shape)
    up, down, seconds = (PEERS | GRAMS)[name](weight, inputs, shape[3])
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
    measured = {"seconds": float(words[1]) + float(words[4]), "peak": usage.ru_maxrss / 1024}
    if method == STATISTICS:
        return measured
    factors = numpy.fromfile(folder / "factors.f32", numpy.float32)
    return measured | {
        "up": factors[: m * rank].reshape(m, rank),
        "down": factors[m * rank :].reshape(rank, n),
    }


def relative_error(folder, shape, up, down):
    """In a process of its own: the peak memory of a child counts that of its parent when it is born."""
    import numpy

    numpy.save(folder / "up.npy", up)
    numpy.save(folder / "down.npy", down)
    command = [sys.executable, __file__, "--child", "evaluate", "--folder", str(folder), "--shape", *map(str, shape)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def evaluate(folder, shape):
    import numpy

    up, down = numpy.load(folder / "up.npy"), numpy.load(folder / "down.npy")
    weight, inputs = load(folder, shape)
    difference = weight.astype(numpy.float64) - up.astype(numpy.float64) @ down.astype(numpy.float64)
    error = total = 0.0
    for start in range(0, len(inputs), 1024):
        batch = inputs[start : start + 1024].astype(numpy.float64)
        error += numpy.square(batch @ difference.T).sum()
        total += numpy.square(batch @ weight.T.astype(numpy.float64)).sum()
    return (error / total) ** 0.5


def compare(name, threads, limit, repeat, without):
    shape = SHAPES[name]
    alone = name == STATISTICS
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        subprocess.run([sys.executable, __file__, "--child", "generate", "--folder", str(folder), "--shape", *map(str, shape)], check=True)
        ours = {"dalr, statistics": STATISTICS} if alone else {"dalr, no ridge": "dalr-plain", "dalr, default": "dalr"}
        for label in [*ours, *(GRAMS if alone else PEERS)]:
            if any(text in label for text in without):
                continue
            results = []
            for _ in range(repeat if label in ours or alone else 1):
                run = (lambda: run_dalr(ours[label], folder, shape, threads)) if label in ours else (lambda: run_peer(label, folder, shape, threads, limit))
                results.append(run())
            if results[0] is None:
                print(f"{label}: not within {limit:.0f} s", flush=True)
                rows.append({"contender": label, "seconds": None, "limit": limit})
                continue
            results.sort(key=lambda result: result["seconds"])
            result = results[len(results) // 2]
            comparable = not alone and label != "dalr, default"
            error = relative_error(folder, shape, result["up"], result["down"]) if comparable else None
            rows.append({"contender": label, "seconds": result["seconds"], "peak": result["peak"], "error": error})
            print(f"{label}: {result['seconds']:.2f} s", flush=True)
    return {"shape": shape, "threads": threads, "rows": rows}


def table(name, result):
    m, n, p, rank = result["shape"]
    alone = name == STATISTICS
    timed = sorted((row for row in result["rows"] if row["seconds"]), key=lambda row: row["seconds"])
    ours = next(row["seconds"] for row in timed if row["contender"] in ("dalr, no ridge", "dalr, statistics"))
    what = f"{n} inputs, {p} samples" if alone else f"{m} × {n}, {p} samples, rank {rank}"
    lines = [f"### {TITLES.get(name, name)}: {what}, {result['threads']} threads", ""]
    last = "n² p per second" if alone else "relative error"
    lines += [f"| contender | time | × dalr | {last} | peak memory |", "|---|---|---|---|---|"]
    for row in timed:
        number = "–" if row["error"] is None else f"{row['error']:.5f}"
        if alone:
            number = f"{n * n * p / row['seconds'] / 1e9:.0f} G"
        label = f"**{row['contender']}**" if row["contender"].startswith("dalr, ") and row["seconds"] == ours else row["contender"]
        lines.append(f"| {label} | {row['seconds']:.2f} s | {row['seconds'] / ours:.1f} | {number} | {'–' if row['peak'] is None else format(row['peak'], '.0f') + ' MB'} |")
    for row in result["rows"]:
        if not row["seconds"]:
            lines.append(f"| {row['contender']} | over {row['limit']:.0f} s | over {row['limit'] / ours:.0f} | | |")
    lines += ["", f"Weight and inputs take {4 * (m * n + p * n) / 2**20:.0f} MB." if not alone else f"The inputs take {4 * p * n / 2**20:.0f} MB."]
    return "\n".join(lines) + "\n"


def picture(results):
    """Bars of the times, each panel with its own scale, as one SVG."""
    width, label, bar, gap = 860, 270, 18, 6
    parts, y = [], 10
    for name, result in results.items():
        rows = sorted((row for row in result["rows"] if row["seconds"]), key=lambda row: row["seconds"])
        longest = rows[-1]["seconds"]
        m, n, p, rank = result["shape"]
        what = f"{n} inputs, {p} samples" if name == STATISTICS else f"{m} × {n}, {p} samples, rank {rank}"
        y += 16
        parts.append(f'<text x="8" y="{y}" class="title">{TITLES.get(name, name)}: {what}</text>')
        y += 8
        for row in rows:
            length = max(2.0, row["seconds"] / longest * (width - label - 110))
            own = "own" if row["contender"].startswith("dalr") else "peer"
            text = f"{row['seconds']:.2f} s" + (f", error {row['error']:.4f}" if row["error"] else "")
            contender = row["contender"].replace("&", "&amp;")
            parts.append(f'<text x="{label - 8}" y="{y + 13}" text-anchor="end">{contender}</text>')
            parts.append(f'<rect x="{label}" y="{y}" width="{length:.1f}" height="{bar}" class="{own}"/>')
            inside = length > (width - label) * 0.6
            x, anchor, kind = (label + length - 6, "end", ' class="inside"') if inside else (label + length + 6, "start", "")
            parts.append(f'<text x="{x:.1f}" y="{y + 13}" text-anchor="{anchor}"{kind}>{text}</text>')
            y += bar + gap
        y += 12
    style = (
        "text{font:13px sans-serif;fill:#222}.title{font-weight:bold}.own{fill:#c2410c}.peer{fill:#94a3b8}.inside{fill:#fff}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}.peer{fill:#64748b}}"
    )
    body = "\n".join(parts)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" role="img" aria-label="Times of dalr and of its peers">'
    return f"{head}\n<style>{style}</style>\n{body}\n</svg>\n"


def write(results):
    """Merges the numbers with those of earlier runs, and brings the documentation up to them."""
    kept = ROOT / "benches" / "peers" / "results.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    known |= results
    known = {name: known[name] for name in TITLES if name in known}
    kept.write_text(json.dumps(known, indent=1) + "\n")
    (ROOT / "docs" / "benchmarks.svg").write_text(picture(known))
    page = ROOT / "docs" / "benchmarks.md"
    begin, end = "<!-- written by benches/peers/compare.py -->\n", "<!-- end of what is written -->\n"
    before, rest = page.read_text().split(begin)
    after = rest.split(end)[1]
    tables = "\n".join(table(name, result) for name, result in known.items())
    page.write_text(f"{before}{begin}\n{tables}\n{end}{after}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=[], help=", ".join(SHAPES))
    parser.add_argument("--quick", action="store_true", help="one small shape, under two minutes")
    parser.add_argument("--tiny", action="store_true", help="a shape of seconds, and a check of the errors")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--limit", type=float, default=1800, help="seconds a peer may take")
    parser.add_argument("--without", action="append", default=[], help="leave out the peers whose names hold this (some need over 20 GB for fc6)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of dalr, of which the median counts")
    parser.add_argument("--write", action="store_true", help="keep the numbers, and write them into docs/")
    parser.add_argument("--json", type=pathlib.Path, help="file for all numbers")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=int, nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "evaluate":
        return print(evaluate(options.folder, options.shape))
    if options.child == "generate":
        return generate(options.folder, options.shape)
    if options.child:
        return child(options.child, options.folder, options.shape, options.threads)
    shapes = ["quick"] if options.quick else ["tiny"] if options.tiny else options.shapes or ["fc7", "half-fc6"]
    results = {}
    for name in shapes:
        results[name] = compare(name, options.threads, options.limit, options.repeat, options.without)
        print(f"\n{table(name, results[name])}", flush=True)
        if options.write:
            write({name: results[name]})
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.tiny:
        errors = {row["contender"]: row["error"] for row in results["tiny"]["rows"]}
        least = errors["output Gram + eigh (PyTorch)"]
        assert abs(errors["dalr, no ridge"] - least) < 1e-4 * least, errors
        assert errors["SVD of the weight (PyTorch)"] > 1.1 * least, errors


if __name__ == "__main__":
    main()
