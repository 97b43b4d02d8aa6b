"""Loads a model that `dalr compress` or the Python package `dalr` wrote into the PyTorch module that it was made from.

    from load_compressed import load_compressed
    model = load_compressed(build_model(), "compressed.safetensors")

Replaces every layer that the file holds as `NAME.0.weight` and `NAME.1.weight` by two smaller ones, with the file's dtype and on the device
of the original layer; where the file holds `NAME.pivots` too, by a `PivotedLinear`. Layers that share `NAME.0.weight` with another share the
module. Layers around hidden units that were left out become smaller ones of the same kind. Loads the rest of the file as it is.
"""

import json

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.utils import skip_init


class LowRank(nn.Sequential):
    """Two layers in place of one. `weight` and `bias` are those of the layer with the same outputs, for code that reads them."""

    @property
    def weight(self):
        down, up = self[0].weight, self[1].weight
        groups = getattr(self[0], "groups", 1)
        rank = len(down) // groups
        return (up.reshape(groups, -1, rank) @ down.reshape(groups, rank, -1)).reshape(len(up), *down.shape[1:])

    @property
    def bias(self):
        return self[1].bias


class PivotedLinear(LowRank):
    """A layer in pivoted storage: the outputs at the pivots, and the others as combinations of these."""

    def __init__(self, inputs, rank, outputs, bias=True, **options):
        coefficients = nn.Linear(rank, outputs - rank, bias=False, **options)
        super().__init__(nn.Linear(inputs, rank, bias=False, **options), coefficients)
        # Of all outputs, though it has the name that the bias of two factors has.
        coefficients.bias = nn.Parameter(torch.zeros(outputs, **options)) if bias else None
        self.register_buffer("pivots", torch.arange(rank, device=options.get("device")))

    def position(self):
        """Where each output is among the pivots and the others behind them."""
        pivot = torch.zeros(len(self[0].weight) + len(self[1].weight), dtype=torch.bool, device=self.pivots.device)
        pivot[self.pivots] = True
        return torch.where(pivot, pivot.cumsum(0), len(self.pivots) + (~pivot).cumsum(0)) - 1

    def forward(self, inputs):
        kept = self[0](inputs)
        outputs = torch.cat([kept, nn.functional.linear(kept, self[1].weight)], -1)[..., self.position()]
        return outputs if self[1].bias is None else outputs + self[1].bias

    @property
    def weight(self):
        rows = self[0].weight
        return torch.cat([rows, self[1].weight @ rows])[self.position()]


def is_transposed(layer):
    """Whether a layer is the `Conv1D` of transformers, which is linear, with a weight of in x out."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def low_rank(original, rank, bias, dtype=None):
    """Returns two layers of this rank in place of a linear layer or a convolution, with weights that are not set yet."""
    options = {"device": original.weight.device, "dtype": dtype or original.weight.dtype}
    if isinstance(original, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        kind, groups = type(original), original.groups
        window = (original.kernel_size, original.stride, original.padding, original.dilation)
        down = skip_init(kind, original.in_channels, groups * rank, *window, groups, False, original.padding_mode, **options)
        up = skip_init(kind, groups * rank, original.out_channels, 1, groups=groups, bias=bias, **options)
    elif isinstance(original, nn.Linear) or is_transposed(original):
        outputs, inputs = reversed(original.weight.shape) if is_transposed(original) else original.weight.shape
        down = skip_init(nn.Linear, inputs, rank, bias=False, **options)
        up = skip_init(nn.Linear, rank, outputs, bias=bias, **options)
    else:
        raise TypeError(f"expected a linear layer or a convolution, got {type(original).__name__}")
    return like(original, LowRank(down, up))


def pivoted(original, rank, bias, dtype=None):
    """Returns a layer in pivoted storage of this rank in place of a linear layer, with weights that are not set yet."""
    if not isinstance(original, nn.Linear) and not is_transposed(original):
        raise TypeError(f"expected a linear layer, got {type(original).__name__}")
    outputs, inputs = reversed(original.weight.shape) if is_transposed(original) else original.weight.shape
    layer = PivotedLinear(inputs, rank, outputs, bias, device=original.weight.device, dtype=dtype or original.weight.dtype)
    return like(original, layer)


def smaller(original, shape, bias, dtype=None):
    """Returns a linear layer of the same kind with a weight of this shape, with numbers that are not set yet."""
    options = {"device": original.weight.device, "dtype": dtype or original.weight.dtype}
    if is_transposed(original):
        layer = type(original)(shape[1], shape[0]).to(**options)
    elif isinstance(original, nn.Linear):
        layer = skip_init(nn.Linear, shape[1], shape[0], bias=bias, **options)
    else:
        raise TypeError(f"expected a linear layer, got {type(original).__name__}")
    return layer.train(original.training).requires_grad_(original.weight.requires_grad)


def like(original, layers):
    layers.train(original.training).requires_grad_(original.weight.requires_grad)
    # Sizes, strides and so on, for code that reads them.
    for name in getattr(original, "__constants__", ()):
        setattr(layers, name, getattr(original, name))
    return layers


def replacements(module, tensors, metadata, prefix=""):
    """Returns the layers of a file, by the name of the original, given its tensors and its metadata."""
    layers = {}
    for name in json.loads(metadata.get("dalr.smaller", "[]")):
        name = prefix + name
        weight = tensors[f"{name}.weight"]
        layers[name] = smaller(module.get_submodule(name), weight.shape, f"{name}.bias" in tensors, weight.dtype)
    for name, rank in json.loads(metadata["dalr.ranks"]).items():
        name = prefix + name
        original, bias, dtype = module.get_submodule(name), f"{name}.1.bias" in tensors, tensors[f"{name}.0.weight"].dtype
        try:
            layers[name] = (pivoted if f"{name}.pivots" in tensors else low_rank)(original, rank, bias, dtype)
        except (TypeError, AttributeError) as error:
            raise TypeError(f"{name}: {error}") from None
    return layers


def load_compressed(module, path, prefix="", strict=True):
    """`prefix` is what the module's names have before those of the file (`encoder.`, say)."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        shared = json.loads(metadata.get("dalr.shared", "{}"))
        tensors = {prefix + name: file.get_tensor(name) for name in file.keys()}
    for name, first in shared.items():
        tensors[f"{prefix}{name}.0.weight"] = tensors[f"{prefix}{first}.0.weight"]
    for name, layer in replacements(module, tensors, metadata, prefix).items():
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer)
    for name, first in shared.items():
        # The same module, so that its parameters are stored and trained once.
        module.get_submodule(prefix + name)[0] = module.get_submodule(prefix + first)[0]
    module.load_state_dict(tensors, strict=strict)
    return module
