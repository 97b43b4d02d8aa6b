//! Compiles the generic code for both scalars with this library, so that programs built at
//! optimization level 1 or below do not compile it again: at these levels rustc reuses what a
//! dependency has compiled.

use faer::MatRef;

use crate::adapter::Adapter;
use crate::compress::{HiddenUnitSelection, HiddenUnits, OperatorProblem, OutputMetric};
use crate::convolution::{Conv2d, PatchStats};
use crate::covariance::PairedStats;
use crate::network::{Budget, Network, SharedInput};
use crate::solver::PsdOperator;
use crate::{ActivationStats, Calibration, Dalr, Linear, LowRankCompressor, Rank, Result, Scalar, TruncatedSvd};

/// Nothing calls these functions. A static is compiled, and with it all that it refers to.
#[used]
static INSTANCES: (Uses<f32>, Uses<f64>) = (uses, uses);

type Uses<T> = fn(&Linear<T>, MatRef<'_, T>, &dyn PsdOperator<f64>) -> Result<()>;

fn uses<T: Scalar>(layer: &Linear<T>, batch: MatRef<'_, T>, operator: &dyn PsdOperator<f64>) -> Result<()> {
    let mut stats = ActivationStats::<T>::new(0);
    stats.update(batch)?;
    stats.update_weighted(batch, &[])?;
    stats.merge(&stats.clone())?;
    stats.covariance()?;
    let mut pairs = PairedStats::<T>::new(0);
    pairs.update(batch, batch)?;
    pairs.update_weighted(batch, batch, &[])?;
    pairs.merge(&pairs.clone())?;
    pairs.cross_covariance()?;
    let metric = OutputMetric::from_gradients(&stats)?;
    let data = Calibration::from(&pairs).with_output_metric(&metric);

    let methods: [&(dyn LowRankCompressor<T> + Sync); 2] = [&Dalr::new(), &TruncatedSvd::new()];
    for method in methods {
        let decomposition = method.solve(layer, data, 0)?;
        let compressed = decomposition.truncate(0)?;
        compressed.evaluate(layer, data)?;
        compressed.layer().forward(batch)?;
        compressed.to_pivoted()?.forward(batch)?;
        Adapter::truncated(&decomposition, 0)?;
        Network::new().with_layer("", layer, data).compress(method, Budget::ParameterFraction(0.0))?;
        SharedInput::decompose(&[], None, method, data, 0)?.0.split(compressed.layer())?;
    }
    OperatorProblem::new(layer, 0)?.solve(operator, &[], 0)?;
    HiddenUnits::new(layer, layer, data)?.select(0)?;
    HiddenUnitSelection::new().solve_gated(layer, layer, layer, data)?.select(0)?;
    Adapter::extract(batch, batch, data, 0)?;
    Adapter::<T>::merge(&[], Rank::Fixed(0))?.to_linear()?;
    let convolution = Conv2d::new(batch.to_owned(), None, (1, 1), Default::default())?;
    convolution.forward(batch, (1, 1))?;
    PatchStats::new(&convolution, 1.0)?.update(batch, (1, 1))
}
