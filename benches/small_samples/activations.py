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

import torch
import torch.nn.functional as functional
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

HEADS = 12
EPSILON = 1e-12
TOKENS = 128
# Sums up what each of the four inputs of a block is read by.
READERS = {
    "attention": ["attention.self.query", "attention.self.key", "attention.self.value"],
    "context": ["attention.output.dense"],
    "residual": ["intermediate.dense"],
    "hidden": ["output.dense"],
}


class Model:
    def __init__(self, folder):
        self.weights = load_file(folder / "model.safetensors")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(TOKENS)
        self.blocks = 1 + max(int(name.split(".")[2]) for name in self.weights if name.startswith("encoder.layer."))

    def linear(self, name, inputs):
        return functional.linear(inputs, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def normalised(self, name, inputs):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(inputs, weight.shape, weight, bias, EPSILON)

    def inputs(self, text):
        """What every block reads at its four places, for one text; the sentence embedding under the key None."""
        ids = torch.tensor(self.tokenizer.encode(text).ids)
        tables = {name: self.weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")}
        summed = tables["word"][ids] + tables["position"][: len(ids)] + tables["token_type"][0]
        state = self.normalised("embeddings.LayerNorm", summed)
        read = {}
        for block in range(self.blocks):
            name = f"encoder.layer.{block}"

            def heads(part):
                return self.linear(f"{name}.attention.self.{part}", state).unflatten(-1, (HEADS, -1)).transpose(0, 1)

            context = functional.scaled_dot_product_attention(heads("query"), heads("key"), heads("value"))
            context = context.transpose(0, 1).flatten(1)
            attended = self.linear(f"{name}.attention.output.dense", context)
            residual = self.normalised(f"{name}.attention.output.LayerNorm", state + attended)
            hidden = functional.gelu(self.linear(f"{name}.intermediate.dense", residual))
            read[block] = {"attention": state, "context": context, "residual": residual, "hidden": hidden}
            state = self.normalised(f"{name}.output.LayerNorm", residual + self.linear(f"{name}.output.dense", hidden))
        read[None] = functional.normalize(state.mean(0), dim=0)
        return read


@torch.no_grad()
def main():
    arguments = argparse.ArgumentParser()
    for name in ("model", "calibration", "held_out", "output"):
        arguments.add_argument(name, type=pathlib.Path)
    options = arguments.parse_args()
    model = Model(options.model)
    read = {}
    for part in ("calibration", "held_out"):
        texts = [line for line in getattr(options, part).read_text("utf-8").splitlines() if line.strip()]
        read[part] = [model.inputs(text) for text in texts]
        print(f"{part}: {len(texts)} texts, {sum(len(one[0]['attention']) for one in read[part])} tokens")
    options.output.mkdir(parents=True, exist_ok=True)
    for block in range(model.blocks):
        for place, readers in READERS.items():
            tensors = {part: torch.cat([one[block][place] for one in read[part]]).half() for part in read}
            for reader in readers:
                for kind in ("weight", "bias"):
                    tensors[f"{reader}.{kind}"] = model.weights[f"encoder.layer.{block}.{reader}.{kind}"].contiguous()
            save_file(tensors, options.output / f"layer{block}.{place}.safetensors")


if __name__ == "__main__":
    main()
