//! Activation pruning: the paper's baseline that drops whole inputs or outputs (Tables 3 to 8).

use crate::error::during;
use crate::factors::{Form, PrunedLinear, Side};
use crate::linalg;
use crate::{ActivationStats, Error, Linear, Rank, Result, Scalar};

/// Keeps the inputs or outputs with the largest activations on the target domain, and drops the
/// others.
///
/// They are ranked by mean or by largest magnitude. After a ReLU these are the mean and the maximum
/// activation of the paper. A rank `k` sets the budget: as many parameters as two factors of that
/// rank, `k(m + n)`. Pruning then keeps `min(n, ⌊k(m + n)/m⌋)` inputs or `min(m, ⌊k(m + n)/n⌋)`
/// outputs.
///
/// ```
/// use dalr::{ActivationPruning, ActivationStats, Linear};
/// use faer::mat;
///
/// # fn main() -> dalr::Result<()> {
/// let layer = Linear::new(mat![[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [9.0, 8.0, 7.0, 6.0]], None)?;
/// let mut stats = ActivationStats::new(4);
/// stats.update(mat![[0.0, 5.0, 0.0, 1.0], [1.0, 3.0, 0.0, 2.0]].as_ref())?;
/// let pruned = ActivationPruning::mean().inputs(&layer, &stats, 1)?;
/// assert_eq!(pruned.kept(), [1, 3]); // ⌊1 · (3 + 4) / 3⌋ = 2 inputs
///
/// // It takes all four inputs and uses two.
/// assert_eq!(pruned.weight(), mat![[2.0, 4.0], [6.0, 8.0], [8.0, 6.0]]);
/// assert_eq!((pruned.bias(), pruned.parameters(), pruned.multiply_adds()), (None, 6, 6));
/// let inputs = mat![[9.0, 1.0, 9.0, 1.0]];
/// assert_eq!(pruned.forward(inputs.as_ref())?, mat![[6.0, 14.0, 14.0]]);
/// assert_eq!(pruned.to_linear()?.forward(inputs.as_ref())?, mat![[6.0, 14.0, 14.0]]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ActivationPruning {
    measure: Measure,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
enum Measure {
    Mean,
    Max,
}

impl ActivationPruning {
    /// Creates pruning that ranks inputs or outputs by their mean magnitude.
    pub fn mean() -> Self {
        Self { measure: Measure::Mean }
    }

    /// Creates pruning that ranks inputs or outputs by their largest magnitude.
    pub fn max() -> Self {
        Self { measure: Measure::Max }
    }

    /// Drops inputs (columns of the weight) by the statistics of the layer's inputs.
    ///
    /// # Errors
    ///
    /// Statistics with another number of inputs or without samples; a rank out of range, or one
    /// that depends on eigenvalues ([`Rank::Energy`], [`Rank::RelativeError`]).
    pub fn inputs<T: Scalar>(
        &self,
        layer: &Linear<T>,
        stats: &ActivationStats<T>,
        rank: impl Into<Rank>,
    ) -> Result<PrunedLinear<T>> {
        during("ActivationPruning::inputs", || {
            stats.require_features(layer.in_features())?;
            self.prune(layer, stats, rank.into(), Side::Inputs)
        })
    }

    /// Drops outputs (rows of the weight) by statistics of the layer's outputs **after** the
    /// activation function. Dropped outputs become zero.
    ///
    /// # Errors
    ///
    /// As [`inputs`](Self::inputs), with one entry of the statistics per output.
    ///
    /// ```
    /// # use dalr::{ActivationPruning, ActivationStats, Linear};
    /// # use faer::mat;
    /// # fn main() -> dalr::Result<()> {
    /// let layer = Linear::new(mat![[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [9.0, 8.0, 7.0, 6.0]], None)?;
    /// let mut output_stats = ActivationStats::new(3);
    /// output_stats.update(mat![[2.0, 0.0, 1.0]].as_ref())?;
    /// let pruned = ActivationPruning::max().outputs(&layer, &output_stats, 1)?;
    /// assert_eq!(pruned.kept(), [0]);
    /// assert_eq!(pruned.forward(mat![[1.0, 1.0, 1.0, 1.0]].as_ref())?, mat![[10.0, 0.0, 0.0]]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn outputs<T: Scalar>(
        &self,
        layer: &Linear<T>,
        output_stats: &ActivationStats<T>,
        rank: impl Into<Rank>,
    ) -> Result<PrunedLinear<T>> {
        during("ActivationPruning::outputs", || {
            if output_stats.features() != layer.out_features() {
                let what = "outputs in the statistics (as the layer has)";
                let (expected, found) = (layer.out_features(), output_stats.features());
                return Err(Error::shape(what, expected, found));
            }
            self.prune(layer, output_stats, rank.into(), Side::Outputs)
        })
    }

    fn prune<T: Scalar>(
        &self,
        layer: &Linear<T>,
        stats: &ActivationStats<T>,
        rank: Rank,
        side: Side,
    ) -> Result<PrunedLinear<T>> {
        stats.require_samples()?;
        let (m, n) = (layer.out_features(), layer.in_features());
        let rank = match rank {
            Rank::Fixed(_) | Rank::ParameterRatio(_) => rank.bound((m, n), 1, Form::Factors)?,
            Rank::Energy(_) | Rank::RelativeError(_) => {
                let expected = "a rank that sets a parameter budget, `Fixed` or `ParameterRatio`".into();
                return Err(Error::rank(expected, format!("{rank:?}")));
            }
        };
        let (units, other) = match side {
            Side::Inputs => (n, m),
            Side::Outputs => (m, n),
        };
        let count = (rank * (m + n) / other).min(units);
        let activity = match self.measure {
            Measure::Mean => stats.mean_absolute()?,
            Measure::Max => stats.max_absolute()?,
        };
        let mut kept: Vec<usize> = (0..units).collect();
        kept.sort_by(|&a, &b| activity[b].total_cmp(&activity[a]));
        kept.truncate(count);
        kept.sort_unstable();
        let mut weight = match side {
            Side::Inputs => linalg::zeros(m, count)?,
            Side::Outputs => linalg::zeros(count, n)?,
        };
        for (index, &unit) in kept.iter().enumerate() {
            match side {
                Side::Inputs => weight.as_mut().col_mut(index).copy_from(layer.weight().col(unit)),
                Side::Outputs => weight.as_mut().row_mut(index).copy_from(layer.weight().row(unit)),
            }
        }
        let bias = layer.bias().map(|bias| match side {
            Side::Inputs => bias.to_owned(),
            Side::Outputs => kept.iter().map(|&unit| bias[unit]).collect(),
        });
        Ok(PrunedLinear { side, kept, weight, bias, in_features: n, out_features: m })
    }
}
