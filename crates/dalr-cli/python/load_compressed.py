"""Loads a model that `dalr compress` wrote into the PyTorch module that it was made from.

    from load_compressed import load_compressed
    model = load_compressed(build_model(), "compressed.safetensors")

Replaces every `nn.Linear` that the file holds as `NAME.0.weight` and `NAME.1.weight` by two smaller ones, with the file's dtype and on the
device of the original layer; where the file holds `NAME.pivots` too, by a `PivotedLinear`. Layers that share `NAME.0.weight` with another share
the module. Loads the rest of the file as it is.
"""

import json

import torch
from safetensors import safe_open
from torch import nn


class PivotedLinear(nn.Sequential):
    """A layer in pivoted storage: the outputs at the pivots, and the others as combinations of these."""

    def __init__(self, inputs, rank, outputs, bias=True, **options):
        coefficients = nn.Linear(rank, outputs - rank, bias=False, **options)
        super().__init__(nn.Linear(inputs, rank, bias=False, **options), coefficients)
        # Of all outputs, though it has the name that the bias of two factors has.
        coefficients.bias = nn.Parameter(torch.zeros(outputs, **options)) if bias else None
        self.register_buffer("pivots", torch.arange(rank, device=options.get("device")))

    def forward(self, inputs):
        kept = self[0](inputs)
        outputs = torch.cat([kept, nn.functional.linear(kept, self[1].weight)], -1)
        pivot = torch.zeros(outputs.shape[-1], dtype=torch.bool, device=outputs.device)
        pivot[self.pivots] = True
        position = torch.where(pivot, pivot.cumsum(0), len(self.pivots) + (~pivot).cumsum(0)) - 1
        outputs = outputs[..., position]
        return outputs if self[1].bias is None else outputs + self[1].bias


def load_compressed(module, path, prefix="", strict=True):
    """`prefix` is what the module's names have before those of the file (`encoder.`, say)."""
    with safe_open(path, "pt") as file:
        ranks = json.loads(file.metadata()["dalr.ranks"])
        shared = json.loads(file.metadata().get("dalr.shared", "{}"))
        tensors = {prefix + name: file.get_tensor(name) for name in file.keys()}
    for name, first in shared.items():
        tensors[f"{prefix}{name}.0.weight"] = tensors[f"{prefix}{first}.0.weight"]
    for name, rank in ranks.items():
        parent, _, child = (prefix + name).rpartition(".")
        parent = module.get_submodule(parent)
        original = getattr(parent, child)
        if not isinstance(original, nn.Linear):
            raise TypeError(f"{name}: expected nn.Linear, got {type(original).__name__}")
        weight = tensors[f"{prefix}{name}.0.weight"]
        options = {"device": original.weight.device, "dtype": weight.dtype}
        sizes, bias = (original.in_features, rank, original.out_features), f"{prefix}{name}.1.bias" in tensors
        if f"{prefix}{name}.pivots" in tensors:
            replacement = PivotedLinear(*sizes, bias, **options)
        else:
            thin = nn.Linear(*sizes[:2], bias=False, **options)
            replacement = nn.Sequential(thin, nn.Linear(*sizes[1:], bias=bias, **options))
        setattr(parent, child, replacement.train(original.training))
    for name, first in shared.items():
        # The same module, so that its parameters are stored and trained once.
        module.get_submodule(prefix + name)[0] = module.get_submodule(prefix + first)[0]
    module.load_state_dict(tensors, strict=strict)
    return module
