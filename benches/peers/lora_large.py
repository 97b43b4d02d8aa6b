#!/usr/bin/env python3
"""Extracts an adapter from a random pair of checkpoints with the shapes of an 8B Llama: time and peak memory.

    lora_large.py PROGRAM FOLDER [--layers 32] [--rank 64]

Writes the pair (bf16, one shard for each block, 2 x 14 GB for 32 layers) tensor by tensor into FOLDER, runs `dalr lora extract`, prints time
and peak memory, and removes the pair. The updates decay and have noise of full rank, like that of the rounding of a fine-tuning to bf16.
"""
import argparse
import json
import os
import pathlib
import subprocess
import time

import torch
from safetensors.torch import save_file

HIDDEN, INNER, HEADS = 4096, 14336, 1024
LATENT = 128
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HEADS, HIDDEN),
    "self_attn.v_proj": (HEADS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def write(folder, layers):
    """Both checkpoints, one shard for each block."""
    maps = {"base": {}, "tuned": {}}
    for layer in range(layers):
        shards = {"base": {}, "tuned": {}}
        for name, (rows, columns) in SHAPES.items():
            weight = torch.empty(rows, columns).uniform_(-0.03, 0.03)
            decay = torch.arange(1, LATENT + 1, dtype=torch.float32) ** -1.0
            update = (torch.randn(rows, LATENT) * decay) @ torch.randn(LATENT, columns)
            key = f"model.layers.{layer}.{name}.weight"
            shards["base"][key] = weight.bfloat16()
            shards["tuned"][key] = weight.add_(update.mul_(2e-3)).bfloat16()
        norm = torch.ones(HIDDEN).bfloat16()
        shards["base"][f"model.layers.{layer}.input_layernorm.weight"] = norm
        shards["tuned"][f"model.layers.{layer}.input_layernorm.weight"] = norm * 1.01
        for which, tensors in shards.items():
            file = f"{which}-{layer:02}.safetensors"
            save_file(tensors, folder / file)
            maps[which] |= {key: file for key in tensors}
    for which, names in maps.items():
        (folder / f"{which}.index.json").write_text(json.dumps({"weight_map": names}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--keep", action="store_true", help="keep the pair, or use the one that is there")
    options = parser.parse_args()
    torch.manual_seed(0)
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tuned.index.json").exists():
        write(folder, options.layers)
    command = [options.program.resolve(), "lora", "extract", "--base", folder / "base.index.json", "--tuned", folder / "tuned.index.json"]
    command += ["--rank", options.rank, "-o", folder / "adapter", "--dtype", "bf16", "--force", "--json", folder / "report.json"]
    since = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - since
    assert status == 0, status
    report = json.loads((folder / "report.json").read_text())
    sizes = sum((folder / name).stat().st_size for name in os.listdir(folder) if name.endswith(".safetensors"))
    print(f"{len(report['modules'])} modules, {sizes / 1e9:.1f} GB of checkpoints, rank {options.rank}: {seconds:.0f} s, "
          f"peak memory {usage.ru_maxrss / 2**20:.2f} GB, error of all updates {report['relative_error']:.4f}")
    if not options.keep:
        for file in folder.glob("*.safetensors"):
            file.unlink()
        for name in ("base.index.json", "tuned.index.json"):
            (folder / name).unlink()


if __name__ == "__main__":
    main()
