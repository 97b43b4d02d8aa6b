#!/usr/bin/env python3
"""Writes what the linear layers of all-MiniLM-L6-v2 read on real texts, for `main.rs` beside this file.

    activations.py MODEL CALIBRATION HELD_OUT OUTPUT

MODEL is a folder with model.safetensors and tokenizer.json; CALIBRATION and HELD_OUT are files with one text a
line; OUTPUT is a folder for 24 safetensors files, one for each distinct input of the 36 layers: `calibration` and
`held_out` (tokens x inputs in the order of the texts, f16 to save half the disk), and NAME.weight and NAME.bias (f32)
of every layer that reads it.
"""
import argparse
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file

sys.path.append(str(pathlib.Path(__file__).parents[2] / "crates" / "dalr-cli" / "python"))
from collect_minilm import READERS, Model


@torch.no_grad()
def main():
    arguments = argparse.ArgumentParser()
    for name in ("model", "calibration", "held_out", "output"):
        arguments.add_argument(name, type=pathlib.Path)
    options = arguments.parse_args()
    weights = load_file(options.model / "model.safetensors")
    model = Model(weights, options.model / "tokenizer.json")
    read = {}
    for part in ("calibration", "held_out"):
        texts = [line for line in getattr(options, part).read_text("utf-8").splitlines() if line.strip()]
        seen = read[part] = {}
        model.embed(texts, lambda block, place, inputs: seen.setdefault((block, place), []).append(inputs.half()))
        print(f"{part}: {len(texts)} texts, {sum(map(len, seen[0, 'hidden']))} tokens")
    options.output.mkdir(parents=True, exist_ok=True)
    for block in range(model.blocks):
        for place, readers in READERS.items():
            tensors = {part: torch.cat(read[part][block, place]) for part in read}
            for reader in readers:
                for kind in ("weight", "bias"):
                    tensors[f"{reader}.{kind}"] = weights[f"encoder.layer.{block}.{reader}.{kind}"].contiguous()
            save_file(tensors, options.output / f"layer{block}.{place}.safetensors")


if __name__ == "__main__":
    main()
