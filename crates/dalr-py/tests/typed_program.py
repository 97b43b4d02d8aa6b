"""Not run: `mypy --strict` checks that programs can be typed."""

import dalr
import numpy as np
import torch
from torch import nn
from typing_extensions import assert_type

stats = dalr.ActivationStats(3)
stats.update(np.ones((4, 3), np.float32), weights=[1, 1, 1, 2])
layer = dalr.Linear([[1.0, 2.0, 3.0]], None)
compressed = dalr.Dalr(ridge="relative:0.1").compress(layer, stats, dalr.Rank.Energy(0.9))
assert_type(compressed.report.relative_error, "float | None")
assert_type(compressed.layer, dalr.LowRankLinear)
plan = dalr.allocate([dalr.LayerProfile("fc", dalr.TruncatedSvd().decompose(layer, None))], keep=0.5, strategy={"fc": 1.0})
assert_type(plan.ranks, "dict[str, int]")
units = dalr.UnitProfile("fc1", "fc2", dalr.HiddenUnits(layer, dalr.Linear([[1.0]]), stats))
assert_type(units.loss(1), "float | None")

model = nn.Sequential(nn.Linear(3, 3))
with dalr.calibrate(model, gradients=True) as calibration:
    calibration.backward(model(torch.ones(2, 3)))
dalr.compress(model, calibration, keep=0.5, storage="pivoted", hidden_units=[("0", "1")])
result = dalr.compress(model, calibration, keep=0.5, sequential=[torch.ones(2, 3)], sensitivity=lambda candidate: 1.0)
result.save("model.safetensors")
assert_type(dalr.load(model, "model.safetensors"), nn.Module)
assert_type(result.plan, dalr.Plan)
