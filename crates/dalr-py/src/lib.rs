//! The extension module of the Python package `dalr`; `python/dalr/_dalr.pyi` describes it.

mod array;
mod compress;
mod error;
mod layers;
mod network;
mod pickle;
mod report;
mod stats;
mod units;

/// Statistics, methods and layers on NumPy arrays.
#[pyo3::pymodule]
mod _dalr {
    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "the name that Python packages use")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    #[pymodule_export]
    use crate::compress::{Compressed, Dalr, Decomposition, OutputMetric, Rank, Ridge, TruncatedSvd, select_ridge};
    #[pymodule_export]
    use crate::layers::{Linear, LowRankLinear, PivotedLinear};
    #[pymodule_export]
    use crate::network::{LayerPlan, LayerProfile, Plan, UnitProfile, allocate, measure_sensitivities};
    #[pymodule_export]
    use crate::report::Report;
    #[pymodule_export]
    use crate::stats::{ActivationStats, PairedStats};
    #[pymodule_export]
    use crate::units::{HiddenUnits, SelectedUnits};
}
