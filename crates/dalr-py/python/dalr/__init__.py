"""Activation-aware low-rank compression of neural networks.

NumPy arrays: `ActivationStats`, `Linear`, `Dalr` and the others mirror the names of the Rust library.
PyTorch models: `calibrate`, `compress`, `load` and `lora_extract`; only these import torch.
"""

from typing import TYPE_CHECKING

from ._dalr import (
    ActivationStats,
    Compressed,
    Dalr,
    Decomposition,
    HiddenUnits,
    LayerPlan,
    LayerProfile,
    Linear,
    LowRankLinear,
    OutputMetric,
    PairedStats,
    PivotedLinear,
    Plan,
    Rank,
    Report,
    Ridge,
    SelectedUnits,
    TruncatedSvd,
    UnitProfile,
    __version__,
    allocate,
    measure_sensitivities,
    select_ridge,
)

if TYPE_CHECKING:
    from .models import Adapter, Calibration, Result, calibrate, compress, load, lora_extract

_MODELS = ("Adapter", "Calibration", "Result", "calibrate", "compress", "load", "lora_extract")

__all__ = [
    "ActivationStats",
    "Adapter",
    "Calibration",
    "Compressed",
    "Dalr",
    "Decomposition",
    "HiddenUnits",
    "LayerPlan",
    "LayerProfile",
    "Linear",
    "LowRankLinear",
    "OutputMetric",
    "PairedStats",
    "PivotedLinear",
    "Plan",
    "Rank",
    "Report",
    "Result",
    "Ridge",
    "SelectedUnits",
    "TruncatedSvd",
    "UnitProfile",
    "__version__",
    "allocate",
    "calibrate",
    "compress",
    "load",
    "lora_extract",
    "measure_sensitivities",
    "select_ridge",
]


def __getattr__(name: str) -> object:
    # Programs without PyTorch can use everything else.
    if name in _MODELS:
        from . import models

        return getattr(models, name)
    raise AttributeError(f"module 'dalr' has no attribute {name!r}")
