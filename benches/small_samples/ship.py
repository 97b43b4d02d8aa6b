#!/usr/bin/env python3
"""Writes data/minilm_value.safetensors: one layer of MiniLM and a few hundred of its inputs, in 8 bits.

    ship.py FOLDER/layer0.attention.safetensors OUTPUT

FOLDER comes from `activations.py`. Weights have a step for each output, inputs one for each input: a number is
its 8 bits times the step. Rows are drawn at random, from the calibration texts first, then from the others.
"""
import sys

import torch
from safetensors.torch import load_file, save_file

LAYER = "attention.self.value"
ROWS = {"calibration": 220, "held_out": 200}


def quantised(matrix, axis):
    """The nearest multiples of a step that takes the largest magnitude along the axis to 127."""
    step = matrix.abs().amax(axis, keepdim=True) / 127
    return (matrix / step).round().to(torch.int8), step.flatten().contiguous()


source, output = sys.argv[1:]
tensors = load_file(source)
torch.manual_seed(0)
chosen = [tensors[part][torch.randperm(len(tensors[part]))[:rows]] for part, rows in ROWS.items()]
inputs, input_steps = quantised(torch.cat(chosen).float(), 0)
weight, weight_steps = quantised(tensors[f"{LAYER}.weight"], 1)
shipped = {"weight": weight, "weight.steps": weight_steps, "bias": tensors[f"{LAYER}.bias"]}
shipped |= {"inputs": inputs, "inputs.steps": input_steps}
save_file(shipped, output, metadata={"calibration": str(ROWS["calibration"]), "layer": f"encoder.layer.0.{LAYER}"})
