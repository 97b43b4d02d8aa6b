#!/usr/bin/env python3
"""Compresses a synthetic model of 12 GB under a memory limit of 4 GB: large.py PROGRAM FOLDER [--gigabytes 12] [--limit 4]

Needs twice the model's size of free disk in FOLDER, and removes what it writes. The limit is RLIMIT_AS, on all of the program's address space.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import time

import numpy as np

OUT, IN = 8192, 8192
SAMPLES = 512
TABLE = 2 << 30


def write(path, tensors):
    """A safetensors file from (name, shape, function that yields its bytes) in f32, without ever holding a tensor."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in tensors:
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, pieces in tensors:
            for piece in pieces():
                file.write(piece)
    return path.stat().st_size


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("program", type=pathlib.Path)
    arguments.add_argument("folder", type=pathlib.Path)
    arguments.add_argument("--gigabytes", type=float, default=12)
    arguments.add_argument("--limit", type=float, default=4)
    options = arguments.parse_args()
    needed = 2.2 * options.gigabytes * 2**30
    options.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.folder).free
    if free < needed:
        raise SystemExit(f"expected {needed / 2**30:.0f} GB of free disk in {options.folder}, got {free / 2**30:.0f}")
    layers = max(1, int((options.gigabytes * 2**30 - TABLE) / (4 * OUT * IN)))
    random = np.random.default_rng(1)

    def gaussian(rows, columns, decay=1.0):
        scale = (decay ** np.arange(columns)).astype(np.float32)

        def pieces():
            for start in range(0, rows, 256):
                yield (random.standard_normal((min(256, rows - start), columns), np.float32) * scale).tobytes()

        return pieces

    model, calibration, out = (options.folder / f"{name}.safetensors" for name in ("model", "calibration", "out"))
    try:
        tensors = [("embedding.weight", [TABLE // 4 // IN, IN], gaussian(TABLE // 4 // IN, IN))]
        for index in range(layers):
            tensors += [(f"layers.{index}.weight", [OUT, IN], gaussian(OUT, IN)), (f"layers.{index}.bias", [OUT], gaussian(1, OUT))]
        size = write(model, tensors)
        write(calibration, [(f"layers.{index}.input", [4, SAMPLES // 4, IN], gaussian(SAMPLES, IN, 0.98)) for index in range(layers)])
        print(f"model of {size / 2**30:.2f} GB, {layers} layers of {OUT} x {IN}; limit {options.limit} GB", flush=True)
        limit = int(options.limit * 2**30)
        started = time.perf_counter()
        command = [options.program, "compress", model, "--calibration", calibration, "--out", out, "--rank", "64"]
        process = subprocess.Popen([str(part) for part in command], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            raise SystemExit(f"the program ended with status {status}")
        seconds = time.perf_counter() - started
        print(f"compressed to {out.stat().st_size / 2**30:.2f} GB in {seconds:.0f} s, {usage.ru_maxrss / 2**20:.2f} GB of memory at most")
    finally:
        for path in (model, calibration, out):
            path.unlink(missing_ok=True)
        shutil.rmtree(options.folder / "out.safetensors.work", ignore_errors=True)


if __name__ == "__main__":
    main()
