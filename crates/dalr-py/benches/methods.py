"""Methods for `language_model.py` and `peers.py`: algorithms of others, written from their papers, and those of dalr.

A method gets a task, a model and calibration batches, and returns a function that compresses a copy of the model to a fraction of the
parameters of its layers; see `Task`. All have the same calibration data, and keep the biases. Factors have the uniform ranks that dalr
allocates without data, unless the method's name says otherwise.

- SVD-LLM (Wang et al. 2024, arXiv 2403.07378): the SVD of W S with the Cholesky factor S of the uncentred second moment of the inputs.
  A singular moment gets the smallest shift of 1e-8, 1e-7, ... of its mean diagonal entry that the factorization accepts.
- ASVD (Yuan et al. 2023, arXiv 2312.05821): the SVD of W S with S the diagonal of mean |x| to the power 0.5.
- AA-SVD's objective (Sinha and Fleuret 2026): |W X - C X'|^2 with X' the inputs that the network compressed so far produces, block by
  block. Its refinement of blocks by gradients is left out.
- MoDeGPT's MLP step (Lin et al. 2024, arXiv 2408.09632): the hidden units with the largest ridge leverage scores, the diagonal of
  C (C + lambda I)^-1, and the second layer refitted by W2 C[:, P] C[P, P]^+. The other layers get SVD-LLM's factors.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import dalr
import numpy as np
import torch
from dalr.load_compressed import low_rank, smaller
from torch import nn


@dataclass
class Task:
    """How the models of a comparison run."""

    run: Callable[[nn.Module, Any], torch.Tensor]  # model, batch: the outputs
    loss: Callable[[torch.Tensor], torch.Tensor] = lambda outputs: outputs  # what gradients are of: a loss, or outputs for random combinations
    probes: int = 1  # random combinations
    rows: Callable[[torch.Tensor, Any], torch.Tensor] = lambda inputs, batch: inputs.flatten(0, -2)  # inputs of a layer without padding
    untouched: Iterable[str] = ()
    mlps: Iterable[tuple[str, str]] = ()  # the names of the layers around hidden units
    blocks: str = ""  # the name of the list of blocks
    stride: int = 1  # sequential recalibration by dalr gets every so manieth batch
    ranks: dict[float, dict[str, int]] = field(default_factory=dict)  # known uniform ranks

    def gather(self, model, data, gradients=False):
        with dalr.calibrate(model, gradients=gradients) as calibration, torch.set_grad_enabled(gradients):
            for batch in data:
                outputs = self.run(model, batch)
                if gradients:
                    calibration.backward(self.loss(outputs), self.probes)
        return calibration

    def uniform_ranks(self, model, keep):
        if keep not in self.ranks:
            self.ranks[keep] = dalr.compress(copy.deepcopy(model), keep=keep, method=dalr.TruncatedSvd(), untouched=self.untouched).plan.ranks
        return self.ranks[keep]


def second_moment(stats):
    return stats.covariance() + np.outer(stats.mean, stats.mean)


def cholesky(moment):
    shift = 0.0
    while True:
        try:
            return np.linalg.cholesky(moment + shift * np.eye(len(moment)))
        except np.linalg.LinAlgError:
            shift = max(10 * shift, 1e-8 * moment.trace() / len(moment))


def factors(product, root):
    """The factors of the matrix whose product with a root of the second moment is given, full rank, to be truncated."""
    left, values, right = np.linalg.svd(product, full_matrices=False)
    return left, values[:, None] * np.linalg.solve(root.T, right.T).T


def svd_llm(weight, stats):
    root = cholesky(second_moment(stats))
    return factors(weight @ root, root)


def asvd(weight, stats):
    root = np.diag(np.maximum(stats.mean_absolute, 1e-6) ** 0.5)
    return factors(weight @ root, root)


def weight_of(layer):
    return layer.weight.detach().double().numpy()


def put(model, name, layer):
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


@torch.no_grad()
def put_factors(model, name, pair, rank):
    layer = model.get_submodule(name)
    new = low_rank(layer, rank, layer.bias is not None)
    for target, factor in zip(new, (pair[1][:rank], pair[0][:, :rank])):
        target.weight.copy_(torch.from_numpy(factor))
    if layer.bias is not None:
        new[1].bias.copy_(layer.bias)
    put(model, name, new)


def by_factors(decompose, left_out=()):
    """Factors of each layer on its own."""

    def prepare(task, model, data, calibration=None):
        calibration, known = calibration or task.gather(model, data), {}

        def compress(compressed, keep):
            for name, rank in task.uniform_ranks(model, keep).items():
                if name in left_out:
                    continue
                if name not in known:
                    known[name] = decompose(weight_of(model.get_submodule(name)), calibration.stats(name)[0])
                put_factors(compressed, name, known[name], rank)

        return compress

    return prepare


class Reached(Exception):
    """Ends a run of a block."""


def inputs_of(block, layer, arguments):
    """What a layer inside of a block reads."""
    found = []

    def read(_, inputs):
        found.append(inputs[0])
        raise Reached

    hook = layer.register_forward_pre_hook(read)
    with contextlib.suppress(Reached):
        block(*arguments[0], **arguments[1])
    hook.remove()
    return found[0]


def shared_inputs(task, model, batch):
    """The names of the layers in each group that reads the same input, in the order of execution."""
    order, hooks = [], []

    def note(name):
        def read(_, inputs):
            if order and order[-1][0] is inputs[0]:
                order[-1][1].append(name)
            else:
                order.append((inputs[0], [name]))

        return read

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            hooks.append(layer.register_forward_pre_hook(note(name)))
    task.run(model, batch)
    for hook in hooks:
        hook.remove()
    return [names for _, names in order]


def aa_svd(task, model, data):
    @torch.no_grad()
    def compress(compressed, keep):
        ranks, groups = task.uniform_ranks(model, keep), shared_inputs(task, model, data[0])
        arguments = []
        first = model.get_submodule(task.blocks)[0]
        hook = first.register_forward_pre_hook(lambda _, args, keywords: arguments.append((args, keywords)), with_kwargs=True)
        for batch in data:
            task.run(model, batch)
        hook.remove()
        # The inputs of the current block in both networks, batch by batch.
        states = [(one, one) for one in arguments]
        for index, block in enumerate(model.get_submodule(task.blocks)):
            other = compressed.get_submodule(task.blocks)[index]
            for names in groups:
                names = [name for name in names if name.startswith(f"{task.blocks}.{index}.") and name in ranks]
                if not names:
                    continue
                inside = names[0].removeprefix(f"{task.blocks}.{index}.")
                moment = cross = 0.0
                for batch, (original, now) in zip(data, states):
                    rows, new_rows = (
                        task.rows(inputs_of(run, run.get_submodule(inside), state), batch).numpy() for run, state in ((block, original), (other, now))
                    )
                    # Products of a batch are in single precision, their sums in double.
                    moment, cross = moment + (new_rows.T @ new_rows).astype(float), cross + (rows.T @ new_rows).astype(float)
                root = cholesky(moment)
                for name in names:
                    target = weight_of(model.get_submodule(name)) @ cross
                    put_factors(compressed, name, factors(np.linalg.solve(root, target.T).T, root), ranks[name])
            states = [tuple(after(run, state) for run, state in zip((block, other), pair)) for pair in states]

    return compress


def after(block, arguments):
    """The arguments of the next block."""
    outputs = block(*arguments[0], **arguments[1])
    state = outputs[0] if isinstance(outputs, tuple) else outputs
    return (state, *arguments[0][1:]), arguments[1]


def leverage(ridge):
    """MoDeGPT's MLP step, with lambda as a fraction of the mean diagonal entry of the second moment."""

    def prepare(task, model, data):
        calibration, known = task.gather(model, data), {}
        others = by_factors(svd_llm, {name for pair in task.mlps for name in pair})

        @torch.no_grad()
        def compress(compressed, keep):
            known.setdefault("others", others(task, model, data, calibration))(compressed, keep)
            for names in task.mlps:
                first, second = map(model.get_submodule, names)
                if names not in known:
                    moment = second_moment(calibration.stats(names[1])[0])
                    shift = ridge * moment.trace() / len(moment) * np.eye(len(moment))
                    known[names] = moment, np.argsort(-np.diag(np.linalg.solve(moment + shift, moment)), kind="stable")
                moment, order = known[names]
                inputs, outputs = first.weight.shape[1], len(second.weight)
                budget = keep * sum(parameter.numel() for layer in (first, second) for parameter in layer.parameters())
                kept = np.sort(order[: int((budget - outputs) / (inputs + 1 + outputs))])
                weight = weight_of(second) @ moment[:, kept] @ np.linalg.pinv(moment[np.ix_(kept, kept)], hermitian=True)
                new = smaller(first, (len(kept), inputs), True), smaller(second, (outputs, len(kept)), True)
                new[0].weight.copy_(first.weight[kept])
                new[0].bias.copy_(first.bias[kept])
                new[1].weight.copy_(torch.from_numpy(weight))
                new[1].bias.copy_(second.bias)
                for name, layer in zip(names, new):
                    put(compressed, name, layer)

        return compress

    return prepare


def by_dalr(gradients=False, hidden_units=False, sequential=False, **options):
    def prepare(task, model, data):
        calibration = task.gather(model, data, gradients)
        more = options | {"hidden_units": task.mlps} if hidden_units else options
        batches = data[:: task.stride] if sequential else None
        return lambda compressed, keep: dalr.compress(compressed, calibration, keep=keep, untouched=task.untouched, sequential=batches, **more)

    return prepare


def svd(task, model, data):
    return lambda compressed, keep: dalr.compress(compressed, keep=keep, method=dalr.TruncatedSvd(), untouched=task.untouched)
