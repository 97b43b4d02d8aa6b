"""PyTorch models: calibration by hooks, compression in place, and files."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Optional, TypeVar, Union

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from . import _dalr
from .load_compressed import is_transposed, low_rank, pivoted, replacements, smaller

Method = Union[_dalr.Dalr, _dalr.TruncatedSvd]
Array = np.ndarray
Storage = Literal["factors", "pivoted"]
T = TypeVar("T")

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_UNSUPPORTED = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention, nn.RNNBase, nn.Bilinear)


# Layers of a model


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of what `torch.compile` returns."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    return getattr(model, "_orig_mod", model)


def _is_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, _CONVOLUTIONS)


def _groups(layer: nn.Module) -> int:
    return layer.groups if _is_convolution(layer) else 1


def _layers(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers that can be compressed, and the reasons why similar ones cannot."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    layers, skipped = {}, {}
    for name, module in model.named_modules():
        kind = type(module)
        if kind is not nn.Linear and kind not in _CONVOLUTIONS and not is_transposed(module):
            if isinstance(module, _UNSUPPORTED):
                # A subclass may use its weight in another way.
                skipped[name] = f"{kind.__name__} is not supported"
            continue
        others = [other for other in owners.get(id(module.weight), []) if other != name]
        if module._parameters.get("weight") is None:
            skipped[name] = "its weight is not a parameter"
        elif others:
            skipped[name] = f"its weight is also that of `{others[0]}`"
        elif module.weight.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            skipped[name] = f"its weight is {module.weight.dtype}"
        elif _groups(module) == module.weight.shape[0] > 1:
            skipped[name] = "a depthwise convolution has no smaller factors"
        elif not name:
            raise ValueError("the model is a single layer, which cannot be replaced in place: wrap it in nn.Sequential")
        else:
            layers[name] = module
    if not layers:
        reasons = "".join(f"; `{name}`: {reason}" for name, reason in skipped.items())
        raise ValueError(f"the model has no nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d or Conv1D to compress{reasons}")
    return layers, skipped


def _bytes(tensor: torch.Tensor) -> Array:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _fingerprint(name: str, layer: nn.Module) -> int:
    """Changes with the numbers of a layer, and not with its device."""
    if layer.weight.is_meta:
        raise ValueError(f"layer `{name}` is on the meta device: load its weights first")
    checksum = zlib.crc32(_bytes(layer.weight))
    return checksum if layer.bias is None else zlib.crc32(_bytes(layer.bias), checksum)


def _numpy(tensor: torch.Tensor) -> Array:
    """The numbers in float32, or float64 if they are that. A tensor of these on the CPU is not copied."""
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().to("cpu", dtype).numpy()


def _linears(layer: nn.Module) -> list[_dalr.Linear]:
    """The linear layer of each group."""
    weight = layer.weight.T if is_transposed(layer) else layer.weight
    weights = _numpy(weight.reshape(_groups(layer), -1, math.prod(weight.shape[1:])))
    biases = [None] * len(weights) if layer.bias is None else _numpy(layer.bias).reshape(len(weights), -1)
    return [_dalr.Linear(weight, bias) for weight, bias in zip(weights, biases)]


def _replace(model: nn.Module, layers: Mapping[nn.Module, nn.Module]) -> None:
    """Replaces layers wherever they are, also where several modules have the same."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in layers:
                module._modules[name] = layers[child]


@contextlib.contextmanager
def _replaced(model: nn.Module, layers: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    _replace(model, layers)
    try:
        yield
    finally:
        _replace(model, {new: old for old, new in layers.items()})


def _eagerly() -> contextlib.AbstractContextManager[Any]:
    """Compiled code does not see layers that are replaced, or hooks that are added, after it was compiled."""
    stance = getattr(torch.compiler, "set_stance", None) if "torch._dynamo" in sys.modules else None
    return contextlib.nullcontext() if stance is None else stance("force_eager")


def _forget_compiled() -> None:
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _storage(layer: nn.Module, storage: Storage) -> Storage:
    """Only linear layers can have pivots."""
    return "factors" if _is_convolution(layer) else storage


def _compressed(name: str, layer: nn.Module, groups: Sequence[_dalr.Compressed], storage: Storage) -> nn.Module:
    """The layers in place of one, from the factors of each of its groups."""
    if _storage(layer, storage) == "pivoted":
        stored = groups[0].to_pivoted()
        result = pivoted(layer, stored.rank, stored.bias is not None)
        result.pivots.copy_(torch.tensor(stored.pivots))
        return _filled(name, result, [(result[0].weight, [stored.pivot_rows]), (result[1].weight, [stored.coefficients]), (result[1].bias, [stored.bias])])
    factors = [group.layer for group in groups]
    ups, downs = [group.up for group in factors], [group.down for group in factors]
    biases = [group.bias for group in factors if group.bias is not None]
    result = low_rank(layer, factors[0].rank, bool(biases))
    return _filled(name, result, [(result[0].weight, downs), (result[1].weight, ups), (result[1].bias, biases)])


def _filled(name: str, layer: nn.Module, targets: Iterable[tuple[Optional[torch.Tensor], Sequence[Any]]]) -> nn.Module:
    with torch.no_grad():
        for target, parts in targets:
            if target is not None:
                target.copy_(torch.from_numpy(np.concatenate(parts)).reshape(target.shape))
                if not target.isfinite().all():
                    raise OverflowError(f"layer `{name}`: the new numbers overflow {target.dtype}: convert the model to bfloat16 or float32")
    return layer


# Hidden units


def _pairs(declared: Iterable[Sequence[str]], layers: Mapping[str, nn.Module], names: Sequence[str], calibration: Optional[Calibration]) -> list[list[str]]:
    """The names of the layers around hidden units: the first one, perhaps after its gate, and the one that reads the units."""
    pairs: list[list[str]] = []
    for patterns in declared:
        if isinstance(patterns, str) or len(patterns) not in (2, 3):
            raise ValueError(f"hidden_units: expected names of two layers, or of three with a gate first, got {patterns!r}")
        expression = re.compile("(.*)".join(map(re.escape, patterns[0].split("*"))))
        matches = [match for match in map(expression.fullmatch, layers) if match]
        if not matches:
            raise ValueError(f"hidden_units: no layer matches {patterns[0]!r}; there are {', '.join(layers)}")
        pairs += [[match[0], *(_substituted(pattern, match.groups()) for pattern in patterns[1:])] for match in matches]
    if pairs and calibration is None:
        raise ValueError("hidden_units needs a calibration")
    for pair in pairs:
        for name in pair:
            if name not in names or _is_convolution(layers[name]):
                raise ValueError(f"hidden_units: `{name}` is not a linear layer that is considered")
        last = calibration._records[pair[-1]]
        others = [name for name, record in calibration._records.items() if record.input is last.input and name != pair[-1]]
        if others:
            raise ValueError(f"hidden_units: `{others[0]}` reads the units before `{pair[-1]}`, too")
    return pairs


def _substituted(pattern: str, texts: Sequence[str]) -> str:
    """The name that a pattern stands for where the first one has these texts."""
    parts = pattern.split("*")
    if len(parts) != len(texts) + 1:
        raise ValueError(f"hidden_units: expected as many * in {pattern!r} as in the first pattern")
    return "".join(part + text for part, text in zip(parts, [*texts, ""]))


def _units(
    layers: Mapping[str, nn.Module], pair: Sequence[str], stats: Union[_dalr.ActivationStats, _dalr.PairedStats], calibration: Calibration
) -> _dalr.HiddenUnits:
    """Orders the units between layers."""
    *gates, first, second = (_linears(layers[name])[0] for name in pair)
    metric = _metrics(calibration, pair[-1], layers[pair[-1]])[0]
    try:
        return _dalr.HiddenUnits(first, second, stats, gate=gates[0] if gates else None, output_metric=metric)
    except (ValueError, TypeError, MemoryError, OverflowError, RuntimeError) as error:
        raise type(error)(f"hidden units before `{pair[-1]}`: {error}") from None


def _fewer_units(layers: Mapping[str, nn.Module], pair: Sequence[str], units: _dalr.HiddenUnits, kept: int) -> dict[nn.Module, nn.Module]:
    """Smaller layers around the units that are kept."""
    selected = units.select(kept)
    parts = [part for part in (selected.gate, selected.first, selected.second) if part is not None]
    built = {}
    for name, part in zip(pair, parts):
        layer = layers[name]
        weight = part.weight.T if is_transposed(layer) else part.weight
        new = smaller(layer, weight.shape, part.bias is not None)
        built[layer] = _filled(name, new, [(new.weight, [weight]), (new.bias, [part.bias])])
    return built


# Inputs of layers


def _window(layer: nn.Module) -> tuple[Any, ...]:
    """What the samples of a layer depend on besides its inputs."""
    if not _is_convolution(layer):
        return ()
    return (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)


def _patches(layer: nn.Module, images: torch.Tensor, fraction: float, generator: torch.Generator) -> tuple[list[torch.Tensor], int]:
    """The patches at random positions, for each group: positions x inputs. And the number of all positions."""
    axes = len(layer.kernel_size)
    images = images.detach()
    if images.dim() == axes + 1:
        images = images[None]
    # PyTorch has computed the padding for both sides of each axis, the last axis first.
    if any(layer._reversed_padding_repeated_twice):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        images = functional.pad(images, layer._reversed_padding_repeated_twice, mode=mode)
    windows = images
    for axis, (size, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation), 2):
        windows = windows.unfold(axis, (size - 1) * dilation + 1, stride)
        windows = windows[..., ::dilation]
    # images x channels x positions x kernel: only the chosen positions are copied.
    windows = windows.movedim(1, 1 + axes)
    count = math.prod(windows.shape[1 : 1 + axes])
    chosen = _positions(len(windows), count, fraction, generator)
    index = [chosen // count]
    for axis in range(1, 1 + axes):
        index.append(chosen // math.prod(windows.shape[axis + 1 : 1 + axes]) % windows.shape[axis])
    patches = windows[tuple(position.to(windows.device) for position in index)]
    return [group.flatten(1) for group in patches.chunk(layer.groups, 1)], len(windows) * count


def _positions(images: int, positions: int, fraction: float, generator: torch.Generator) -> torch.Tensor:
    """The same number of random positions of each image."""
    count = min(positions, max(1, round(fraction * positions)))
    chosen = torch.rand(images, positions, generator=generator).argsort(1)[:, :count].sort(1).values
    return (chosen + torch.arange(images)[:, None] * positions).reshape(-1)


def _first(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> torch.Tensor:
    """The inputs that a layer is called with, its only argument."""
    inputs: torch.Tensor = arguments[0] if arguments else next(iter(keywords.values()))
    return inputs


def _masked(samples: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
    """The samples, rows, without padded tokens if the mask is one for these inputs."""
    rows = samples.reshape(-1, samples.shape[-1])
    if mask is None:
        return rows
    # Tokens may have been flattened. An input of one row per text has no padded tokens.
    if samples.shape[:-1][: mask.dim()] == mask.shape or len(rows) == mask.numel() > len(mask):
        inner = len(rows) // max(mask.numel(), 1)
        return rows[mask.reshape(-1).to(rows.device, torch.bool).repeat_interleave(inner)]
    return rows


def _padding_mask(arguments: Mapping[str, Any]) -> Optional[torch.Tensor]:
    mask = arguments.get("attention_mask")
    return mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None


class _Input:
    """Statistics of an input, which several layers may read: one object for each group of channels."""

    def __init__(self, stats: list[_dalr.ActivationStats]) -> None:
        self.stats = stats
        self.updates = 0
        # Of the whole input, not of the chosen positions.
        self.rows = 0


class _Record:
    """What is known of one layer."""

    def __init__(self, layer: nn.Module, fingerprint: int) -> None:
        self.fingerprint = fingerprint
        self.window = _window(layer)
        self.calls = 0
        self.input: Optional[_Input] = None
        # The updates of the input that this layer has seen; one less while another layer is ahead.
        self.updates = 0
        self.gradients = [_dalr.ActivationStats(layer.weight.shape[-1 if is_transposed(layer) else 0] // _groups(layer)) for _ in range(_groups(layer))]


class Calibration:
    """Statistics of the inputs of a model's layers, gathered while the model runs in a `with` block.

    With `gradients=True`, `backward` also gathers those of the gradients with respect to the layers'
    outputs, so that errors count as the rest of the network sees them.

    Padded tokens are left out if the model is called with an `attention_mask` of batch x tokens, or
    if `mask` is set to one before the call. Nothing is kept but statistics: the object can be pickled.
    """

    mask: Optional[torch.Tensor]

    def __init__(self, model: nn.Module, *, gradients: bool = False, positions: float = 0.1, share_inputs: bool = True) -> None:
        if not 0 < positions <= 1:
            raise ValueError(f"expected positions in (0, 1], got {positions}")
        self._model: Optional[nn.Module] = _unwrapped(model)
        layers, _ = _layers(self._model)
        self._records = {name: _Record(layer, _fingerprint(name, layer)) for name, layer in layers.items()}
        self._order: list[str] = []
        self._gradients, self._positions, self._share = gradients, positions, share_inputs
        self._runs = 0
        self.mask = None
        self._exit: Optional[contextlib.ExitStack] = None
        self._start()

    def _start(self) -> None:
        self._seen = WeakTensorKeyDictionary()
        self._generator = torch.Generator().manual_seed(self._runs)
        self._padding: Optional[torch.Tensor] = None

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_model", "_seen", "_generator", "_padding", "_exit", "mask")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _model=None, _exit=None, mask=None)
        self._start()

    def __enter__(self) -> Calibration:
        if self._model is None:
            raise RuntimeError("a calibration that was loaded has no model to run: make a new one")
        if self._exit is not None:
            raise RuntimeError("the calibration is running already")
        with contextlib.ExitStack() as stack:
            stack.enter_context(_eagerly())
            if self._gradients:
                # Gradients with respect to parameters would take memory, and add to those of the user.
                parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
                stack.callback(lambda: [parameter.requires_grad_(True) for parameter in parameters])
                for parameter in parameters:
                    parameter.requires_grad_(False)
            root = self._model.register_forward_pre_hook(self._begin, with_kwargs=True)
            stack.callback(root.remove)
            for name in self._records:
                layer = self._model.get_submodule(name)
                stack.callback(layer.register_forward_pre_hook(self._observe(name), with_kwargs=True).remove)
                if self._gradients:
                    stack.callback(layer.register_forward_hook(self._watch(name)).remove)
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *details: object) -> None:
        if self._exit is not None:
            self._exit.close()
        self._exit = None
        self._seen = WeakTensorKeyDictionary()

    def _begin(self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._runs += 1
        self._seen = WeakTensorKeyDictionary()
        self._padding = _padding_mask(keywords) if self.mask is None else self.mask

    def _observe(self, name: str) -> Callable[..., Any]:
        def observe(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            inputs = _first(arguments, keywords)
            with torch.no_grad():
                self._record(name, layer, inputs)
            if self._gradients and torch.is_grad_enabled() and not inputs.requires_grad:
                # The outputs would not depend on anything that has a gradient.
                return (inputs.detach().requires_grad_(),), {}
            return None

        return observe

    def _record(self, name: str, layer: nn.Module, inputs: torch.Tensor) -> None:
        record = self._records[name]
        record.calls += 1
        if record.calls == 1:
            self._order.append(name)
        version = 0 if inputs.is_inference() else inputs._version
        key = (record.window, version)
        known = self._seen.get(inputs, {}).get(key) if self._share else None
        if known is not None:
            source, update = known
            if (record.input is None and update == 1) or (record.input is source and update == record.updates + 1):
                record.input, record.updates = source, update
                return
            if record.input is source and update <= record.updates:
                return
        if record.input is None:
            features = layer.weight.shape[0] if is_transposed(layer) else math.prod(layer.weight.shape[1:])
            record.input = _Input([_dalr.ActivationStats(features) for _ in range(_groups(layer))])
            record.updates = 0
        if record.updates != record.input.updates:
            raise RuntimeError(
                f"layer `{name}` shared its input with another layer, and no longer does: start again with calibrate(…, share_inputs=False)"
            )
        if _is_convolution(layer):
            rows, count = _patches(layer, inputs, self._positions, self._generator)
        else:
            rows = [_masked(inputs, self._padding)]
            count = len(rows[0])
        if count == 0:
            return
        _update(name, record.input.stats, rows)
        record.input.updates += 1
        record.input.rows += count
        record.updates = record.input.updates
        if self._share and known is None:
            self._seen.setdefault(inputs, {})[key] = (record.input, record.updates)

    def _watch(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], None]:
        def watch(layer: nn.Module, arguments: tuple[Any, ...], outputs: torch.Tensor) -> None:
            padding = self._padding

            def gather(gradient: torch.Tensor) -> None:
                if _is_convolution(layer):
                    axes = len(layer.kernel_size)
                    gradient = gradient if gradient.dim() == axes + 2 else gradient[None]
                    rows = gradient.movedim(1, -1).reshape(-1, gradient.shape[1])
                    rows = rows[_positions(len(gradient), len(rows) // len(gradient), self._positions, self._generator).to(rows.device)]
                    groups = list(rows.chunk(layer.groups, 1))
                else:
                    groups = [_masked(gradient, padding)]
                if len(groups[0]):
                    _update(name, self._records[name].gradients, groups)

            if outputs.requires_grad:
                outputs.register_hook(gather)

        return watch

    def backward(self, output: torch.Tensor, probes: int = 1) -> None:
        """Gather gradients: of a loss, or of random combinations of the outputs.

        `output` is what matters of the network: its logits or embeddings, or a loss. `probes` is the
        number of random combinations. The model must have run with gradients enabled, inside of the
        `with` block of `calibrate(model, gradients=True)`. Parameters get no gradients.
        """
        if not self._gradients:
            raise RuntimeError("backward needs calibrate(model, gradients=True)")
        if not isinstance(output, torch.Tensor):
            raise TypeError(f"expected a tensor, such as output.logits or a loss, got {type(output).__name__}")
        if not output.requires_grad:
            raise RuntimeError("the output depends on no layer that was watched: run the model in the `with` block, without torch.no_grad()")
        for probe in range(probes):
            if output.dim() == 0:
                vector = torch.ones_like(output)
            else:
                vector = torch.randn(output.shape, generator=self._generator).to(output)
                if self._padding is not None and output.shape[: self._padding.dim()] == self._padding.shape:
                    mask = self._padding.to(vector)
                    vector = vector * mask.reshape(*mask.shape, *[1] * (vector.dim() - mask.dim()))
            output.backward(vector, retain_graph=probe + 1 < probes)

    def stats(self, layer: str) -> list[_dalr.ActivationStats]:
        """The statistics of a layer's inputs, for each group of channels; none for a layer that was never called."""
        source = self._records[layer].input
        return [] if source is None else source.stats

    def gradient_stats(self, layer: str) -> list[_dalr.ActivationStats]:
        """The statistics of the gradients with respect to a layer's outputs, for each group of channels."""
        return self._records[layer].gradients

    def __repr__(self) -> str:
        inputs = {id(record.input) for record in self._records.values() if record.input is not None}
        called = sum(record.input is not None for record in self._records.values())
        return f"Calibration({called} of {len(self._records)} layers called, {len(inputs)} different inputs, {self._runs} runs)"


def _update(name: str, stats: Sequence[_dalr.ActivationStats], rows: Sequence[torch.Tensor]) -> None:
    for group, samples in zip(stats, rows):
        try:
            group.update(_numpy(samples))
        except (ValueError, TypeError, MemoryError, OverflowError) as error:
            raise type(error)(f"layer `{name}`: {error}") from None


def calibrate(model: nn.Module, *, gradients: bool = False, positions: float = 0.1, share_inputs: bool = True) -> Calibration:
    """Gather statistics of the inputs of a model's layers.

        with dalr.calibrate(model) as calibration:
            for batch in loader:
                model(**batch)

    Layers are `nn.Linear`, `nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d` and the `Conv1D` of transformers. The
    model may be in train or eval mode, in half precision, compiled, and on any device; statistics are
    on the CPU. The inputs of layers that read the same tensor are gathered once, unless
    `share_inputs=False`. Convolutions use a random fraction `positions` of the positions of each image.
    `gradients=True` is for `Calibration.backward`.
    """
    return Calibration(model, gradients=gradients, positions=positions, share_inputs=share_inputs)


# Compression


class Result:
    """A compressed model: the plan, and the layers that were left alone. Print it for a summary.

    `reports` has the report on each compressed layer's groups, and `skipped` the reasons why layers
    were not considered.
    """

    def __init__(self, model: nn.Module, plan: _dalr.Plan, reports: dict[str, list[_dalr.Report]], skipped: dict[str, str]) -> None:
        self.model, self.plan, self.reports, self.skipped = model, plan, reports, skipped

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Write the whole model, as it is now, to a safetensors file that `dalr.load` reads.

        The file appears when it is complete. Tensors that the model has several times are written once.
        """
        path = os.fspath(path)
        temporary = f"{path}.{os.getpid()}.part"
        try:
            metadata = {"format": "pt", "dalr.ranks": json.dumps(self.plan.ranks)}
            metadata["dalr.smaller"] = json.dumps([layer.name for layer in self.plan.layers if layer.hidden_units is not None])
            safetensors.torch.save_model(self.model, temporary, metadata=metadata)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)

    def __repr__(self) -> str:
        lines = [str(self.plan)]
        lines += [f"  {name}: not considered, {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def compress(
    model: nn.Module,
    calibration: Optional[Calibration] = None,
    *,
    keep: Optional[float] = None,
    method: Optional[Method] = None,
    storage: Storage = "factors",
    hidden_units: Iterable[Sequence[str]] = (),
    sensitivity: Union[Callable[[nn.Module], float], Mapping[str, float], None] = None,
    sequential: Optional[Iterable[Any]] = None,
    untouched: Iterable[str] = (),
    rank_multiple: int = 1,
    progress: Optional[bool] = None,
    **budget: Any,
) -> Result:
    """Compress a model in place, and return the plan. After an error, the model is as before.

    The budget is `keep`, a fraction of the parameters of the layers that were considered, or another
    one of `dalr.allocate`. Without a calibration, `method` must be one that needs no data.

    `storage="pivoted"` stores linear layers with pivots, which take k (m + n - k) numbers at rank k
    instead of k (m + n), so that ranks are larger. `hidden_units` declares layers that are connected
    by nothing but a function of each unit, such as an activation function or dropout. The units that
    matter least may then be left out, and the layer behind them is refitted. Each entry has the names
    of the two layers, or those of gate, first and second layer if the units are products with a gate.
    A `*` stands for the same text in all: `("*.gate_proj", "*.up_proj", "*.down_proj")`.

    By default every layer keeps the same fraction, or, if gradients were gathered, more the more its
    errors matter in the output metric. `sensitivity` is a function that returns the loss of a model,
    or a dict. `sequential` is an iterable of batches, such as a DataLoader, that can be read again and
    again: each layer is then fitted to the inputs that the layers compressed before it produce. A
    batch is a dict of keywords, a tuple of arguments, or one argument of the model.

    `untouched` has names of layers that stay as they are, or patterns such as "*.lm_head". Progress is
    shown on a terminal if tqdm is installed, and elsewhere if `progress` is true.
    """
    model = _unwrapped(model)
    layers, skipped = _layers(model)
    method = _dalr.Dalr() if method is None else method
    names = _considered(layers, untouched, skipped)
    _check(layers, names, calibration)
    pairs = _pairs(hidden_units, layers, names, calibration)

    decompositions: dict[str, list[_dalr.Decomposition]] = {}
    profiles, weights = [], {}
    for name in _progress(names, "decompose", progress):
        stats = calibration.stats(name) if calibration is not None else [None] * _groups(layers[name])
        linears, metrics = _linears(layers[name]), _metrics(calibration, name, layers[name])
        own, shape = _storage(layers[name], storage), (linears[0].out_features, linears[0].in_features)
        break_even = min(shape) if own == "pivoted" else math.ceil(_dalr.Rank.break_even(*shape))
        rank = max(1, break_even - 1)
        try:
            decompositions[name] = [
                method.decompose(linear, group, rank, output_metric=metric, storage=own) for linear, group, metric in zip(linears, stats, metrics)
            ]
        except (ValueError, TypeError, MemoryError, OverflowError, RuntimeError) as error:
            raise type(error)(f"layer `{name}`: {error}") from None
        profiles.append(_dalr.LayerProfile(name, *decompositions[name], calls=_calls(calibration, name)))
        rows = calibration._records[name].input.rows if calibration is not None else 1
        weights[name] = rows * sum(group.total_energy for group in decompositions[name])

    units = [_units(layers, pair, calibration.stats(pair[-1])[0], calibration) for pair in _progress(pairs, "hidden units", progress)]
    unit_profiles = [
        _dalr.UnitProfile(pair[-2], pair[-1], one, gate=pair[0] if len(pair) == 3 else None) for pair, one in zip(pairs, units)
    ]

    def build(ranks: Mapping[str, int], counts: Mapping[int, int]) -> tuple[dict[nn.Module, nn.Module], dict[str, list[_dalr.Report]]]:
        compressed = {name: [group.truncate(rank) for group in decompositions[name]] for name, rank in ranks.items()}
        built = {layers[name]: _compressed(name, layers[name], groups, storage) for name, groups in compressed.items()}
        for position, kept in counts.items():
            built.update(_fewer_units(layers, pairs[position], units[position], kept))
        return built, {name: [group.report for group in groups] for name, groups in compressed.items()}

    options = {"keep": keep, "rank_multiple": rank_multiple, **budget}
    strategy: Union[str, dict[str, float]] = "uniform"
    if callable(sensitivity):
        evaluate = _evaluation(model, sensitivity, build, progress, len(profiles) + len(units))
        strategy = _dalr.measure_sensitivities(profiles, _dalr.allocate(profiles, **options), evaluate, hidden_units=unit_profiles)
    elif sensitivity is not None:
        strategy = dict(sensitivity)
    elif calibration is not None and calibration._gradients:
        strategy = weights
    plan = _dalr.allocate(profiles, hidden_units=unit_profiles, **{"strategy": strategy, **options})
    if sequential is None:
        built, reports = build(plan.ranks, plan.hidden_units)
    else:
        if calibration is None:
            raise ValueError("sequential recalibration needs a calibration, which knows the order of the layers")
        fewer = {pairs[position][-1]: (pairs[position], kept) for position, kept in plan.hidden_units.items()}
        built, reports = _sequential(model, layers, calibration, (method, storage), plan.ranks, fewer, sequential, progress)
    _replace(model, built)
    _forget_compiled()
    return Result(model, plan, reports, skipped)


def _considered(layers: Mapping[str, nn.Module], untouched: Iterable[str], skipped: dict[str, str]) -> list[str]:
    names = list(layers)
    for pattern in [untouched] if isinstance(untouched, str) else untouched:
        matched = fnmatch.filter(layers, pattern)
        if not matched and pattern not in skipped:
            raise ValueError(f"untouched: no layer matches {pattern!r}; there are {', '.join(layers)}")
        names = [name for name in names if name not in matched]
        skipped.update({name: "untouched" for name in matched})
    return names


def _check(layers: Mapping[str, nn.Module], names: Iterable[str], calibration: Optional[Calibration]) -> None:
    """Refuses calibration data of another model, or of one that has changed."""
    if calibration is None:
        return
    if calibration._exit is not None:
        raise RuntimeError("the calibration is still running: compress after its `with` block")
    unknown = [name for name in layers if name not in calibration._records]
    unknown += [name for name in calibration._records if name not in layers]
    if unknown:
        raise ValueError(f"the calibration is that of another model: only one of them has the layer `{unknown[0]}`")
    missing = [name for name in names if calibration._records[name].input is None]
    if missing:
        listed = ", ".join(f"`{name}`" for name in missing)
        raise ValueError(f"calibration did not run {listed}: add data that reaches them, or name them in `untouched`")
    for name in names:
        record = calibration._records[name]
        if record.updates != record.input.updates:
            raise ValueError(f"layer `{name}` was called less often than others with its input: calibrate again, with share_inputs=False")
        if record.fingerprint != _fingerprint(name, layers[name]):
            raise ValueError(f"layer `{name}` has changed since the calibration: calibrate again")


def _metrics(calibration: Optional[Calibration], name: str, layer: nn.Module) -> list[Optional[_dalr.OutputMetric]]:
    """The output metric of each group, if there are gradients."""
    if calibration is None or not calibration._gradients:
        return [None] * _groups(layer)
    gradients = calibration.gradient_stats(name)
    if any(group.samples == 0 or not group.mean_absolute.any() for group in gradients):
        raise ValueError(
            f"no gradient has reached layer `{name}`: call `calibration.backward` with an output that depends on it, or name it in `untouched`"
        )
    return [_dalr.OutputMetric.from_gradients(group) for group in gradients]


def _calls(calibration: Optional[Calibration], name: str) -> int:
    """How often a layer runs for one sample of the layer that runs least."""
    if calibration is None:
        return 1
    rows = {other: record.input.rows for other, record in calibration._records.items() if record.input is not None}
    return max(1, round(rows[name] / max(1, min(rows.values()))))


def _progress(items: Iterable[T], title: str, progress: Optional[bool]) -> Iterable[T]:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return items
    # None: on a terminal.
    return tqdm(items, desc=title, disable=None if progress is None else not progress)


def _evaluation(
    model: nn.Module,
    sensitivity: Callable[[nn.Module], float],
    build: Callable[[Mapping[str, int], Mapping[int, int]], tuple[dict[nn.Module, nn.Module], Any]],
    progress: Optional[bool],
    count: int,
) -> Callable[[dict[str, int], dict[int, int]], float]:
    ticks = iter(_progress(range(count + 1), "sensitivities", progress))

    def evaluate(ranks: dict[str, int], counts: dict[int, int]) -> float:
        next(ticks, None)
        with _replaced(model, build(ranks, counts)[0]):
            return float(sensitivity(model))

    return evaluate


class _Reached(Exception):
    """Ends a run of the model behind the layer of interest."""


def _sequential(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    calibration: Calibration,
    method: tuple[Method, Storage],
    ranks: Mapping[str, int],
    fewer: Mapping[str, tuple[list[str], int]],
    batches: Iterable[Any],
    progress: Optional[bool],
) -> tuple[dict[nn.Module, nn.Module], dict[str, list[_dalr.Report]]]:
    if iter(batches) is batches:
        raise TypeError("sequential: expected batches that can be read again for each layer, such as a list or a DataLoader, got an iterator")
    solver, storage = method
    groups: list[list[str]] = []
    for name in calibration._order:
        if name in ranks or name in fewer:
            source = calibration._records[name].input
            if groups and calibration._records[groups[-1][0]].input is source:
                groups[-1].append(name)
            else:
                groups.append([name])
    built: dict[nn.Module, nn.Module] = {}
    reports: dict[str, list[_dalr.Report]] = {}
    training = {module: module.training for module in model.modules()}
    try:
        # Dropout would make the two runs differ.
        model.eval()
        for names in _progress(groups, "sequential", progress):
            record, layer = calibration._records[names[0]], layers[names[0]]
            stats = [_dalr.PairedStats(group.features) for group in calibration.stats(names[0])]
            for seed, batch in enumerate(batches):
                pairs = zip(*(_inputs(model, layer, batch, seed, calibration, record, changed) for changed in ({}, built)))
                for original, compressed in pairs:
                    for group, one, other in zip(stats, original, compressed):
                        if len(one):
                            group.update(_numpy(one), _numpy(other))
            for name in names:
                if name in fewer:
                    pair, kept = fewer[name]
                    built.update(_fewer_units(layers, pair, _units(layers, pair, stats[0], calibration), kept))
                    continue
                own = _storage(layers[name], storage)
                try:
                    compressed = [
                        solver.compress(linear, group, ranks[name], output_metric=metric, storage=own)
                        for linear, group, metric in zip(_linears(layers[name]), stats, _metrics(calibration, name, layers[name]))
                    ]
                except (ValueError, TypeError, MemoryError, OverflowError, RuntimeError) as error:
                    raise type(error)(f"layer `{name}`: {error}") from None
                reports[name] = [group.report for group in compressed]
                built[layers[name]] = _compressed(name, layers[name], compressed, storage)
    finally:
        for module, mode in training.items():
            module.training = mode
    for old, new in built.items():
        new.train(old.training)
    return built, reports


def _inputs(
    model: nn.Module,
    layer: nn.Module,
    batch: Any,
    seed: int,
    calibration: Calibration,
    record: _Record,
    changed: Mapping[nn.Module, nn.Module],
) -> list[list[torch.Tensor]]:
    """The samples of a layer in every call, while the model runs with other layers changed."""
    calls: list[list[torch.Tensor]] = []
    keywords = batch if isinstance(batch, Mapping) else {}
    arguments = () if keywords else batch if isinstance(batch, (tuple, list)) else (batch,)
    generator = torch.Generator().manual_seed(seed)
    padding = _padding_mask(keywords)

    def gather(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        inputs = _first(arguments, keywords)
        if _is_convolution(layer):
            calls.append(_patches(layer, inputs, calibration._positions, generator)[0])
        else:
            calls.append([_masked(inputs, padding)])
        # Layers that run once in every run, as most do, are the last that matter.
        if record.calls == calibration._runs:
            raise _Reached

    hook = layer.register_forward_pre_hook(gather, with_kwargs=True)
    try:
        with _replaced(model, changed), torch.no_grad(), _eagerly(), contextlib.suppress(_Reached):
            model(*arguments, **keywords)
    finally:
        hook.remove()
    return calls


# Files


def load(model: nn.Module, path: Union[str, os.PathLike[str]]) -> nn.Module:
    """Load a file of `Result.save`, or of the program `dalr compress`, into the uncompressed model, in place.

    The compressed layers get the file's dtype and the device of the original ones. After an error, the
    model is as before.
    """
    module = _unwrapped(model)
    path = os.fspath(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if "dalr.ranks" not in metadata:
            raise ValueError(f"{path} has no `dalr.ranks` in its metadata: it is not a compressed model")
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    try:
        built = {module.get_submodule(name): layer for name, layer in replacements(module, tensors, metadata).items()}
    except (AttributeError, KeyError) as error:
        raise ValueError(f"{path} does not fit the model: {error}") from None
    _replace(module, built)
    try:
        _check_tensors(module, tensors, path)
        module.load_state_dict(tensors, strict=False)
    except BaseException:
        _replace(module, {new: old for old, new in built.items()})
        raise
    _forget_compiled()
    return model


def _check_tensors(module: nn.Module, tensors: Mapping[str, torch.Tensor], path: str) -> None:
    state = module.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        if name not in state:
            raise ValueError(f"{path} does not fit the model, which has no `{name}`")
        if state[name].shape != tensor.shape:
            raise ValueError(f"{path} does not fit the model: expected the shape {tuple(state[name].shape)} of `{name}`, got {tuple(tensor.shape)}")
    # A tensor that the model has under several names is stored once.
    stored = {id(state[name]) for name in tensors}
    missing = [name for name, value in state.items() if id(value) not in stored]
    if missing:
        raise ValueError(f"{path} does not fit the model: it has no `{missing[0]}`")


# Adapters


class Adapter:
    """A LoRA adapter: two factors of the change of each layer, in the format of PEFT.

    `skipped` has the tensors that differ as well, and that an adapter cannot hold, with the reasons.
    """

    def __init__(self, layers: dict[str, tuple[torch.Tensor, torch.Tensor]], transposed: bool, skipped: dict[str, str]) -> None:
        self.layers, self.transposed, self.skipped = layers, transposed, skipped

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors of `adapter_model.safetensors`."""
        tensors = {}
        for name, (down, up) in self.layers.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = down
            tensors[f"base_model.model.{name}.lora_B.weight"] = up
        return tensors

    def save(self, folder: Union[str, os.PathLike[str]]) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors` to a folder."""
        os.makedirs(folder, exist_ok=True)
        ranks = {name: len(down) for name, (down, _) in self.layers.items()}
        rank = max(ranks.values())
        config = {
            "peft_type": "LORA",
            "base_model_name_or_path": None,
            "bias": "none",
            "fan_in_fan_out": self.transposed,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "r": rank,
            # The scale alpha / r is 1 for every layer.
            "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
            "alpha_pattern": {name: own for name, own in ranks.items() if own != rank},
            "target_modules": sorted(ranks),
            "task_type": None,
        }
        safetensors.torch.save_file(self.state_dict(), os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
        with open(os.path.join(folder, "adapter_config.json"), "w") as file:
            json.dump(config, file, indent=2)

    def add_to(self, model: nn.Module) -> None:
        """Add the changes to the weights of a model."""
        with torch.no_grad():
            for name, (down, up) in self.layers.items():
                layer = _unwrapped(model).get_submodule(name)
                change = up.to(layer.weight) @ down.to(layer.weight)
                layer.weight += change.T if is_transposed(layer) else change


def lora_extract(
    base: nn.Module,
    tuned: nn.Module,
    rank: Union[int, _dalr.Rank],
    calibration: Optional[Calibration] = None,
    *,
    method: Optional[Method] = None,
) -> Adapter:
    """Extract a LoRA adapter from a model that was tuned from another.

    With a calibration of `base`, the outputs on its data change least; without, the weights.
    """
    base, tuned = _unwrapped(base), _unwrapped(tuned)
    layers, reasons = _layers(base)
    _check(layers, [], calibration)
    method = method or (_dalr.TruncatedSvd() if calibration is None else _dalr.Dalr())
    state, tuned_state = base.state_dict(), tuned.state_dict()
    for name, tensor in state.items():
        if name not in tuned_state or tuned_state[name].shape != tensor.shape:
            raise ValueError(f"the tuned model has no `{name}` of shape {tuple(tensor.shape)}")
    changed = {name for name, tensor in state.items() if not torch.equal(tensor.cpu(), tuned_state[name].cpu())}
    factors, transposed = {}, set()
    for name, layer in layers.items():
        if f"{name}.weight" not in changed or _is_convolution(layer):
            continue
        difference = tuned.get_submodule(name).weight.double() - layer.weight.double()
        difference = difference.T if is_transposed(layer) else difference
        stats = calibration.stats(name)[0] if calibration is not None else None
        narrow = stats is None or stats.dtype == "float32"
        linear = _dalr.Linear(_numpy(difference.float() if narrow else difference))
        try:
            compressed = method.compress(linear, stats, rank).layer
        except ValueError as error:
            raise ValueError(f"layer `{name}`: {error}") from None
        factors[name] = tuple(torch.from_numpy(factor).to(layer.weight.dtype) for factor in (compressed.down, compressed.up))
        transposed.add(is_transposed(layer))
        changed.remove(f"{name}.weight")
    if not factors:
        raise ValueError("no linear layer differs between the two models")
    if len(transposed) > 1:
        raise ValueError("the adapter would have layers of both nn.Linear and Conv1D, which PEFT does not support")
    return Adapter(factors, transposed.pop(), {name: reasons.get(name.rpartition(".")[0], "not a linear weight") for name in sorted(changed)})
