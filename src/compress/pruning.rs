//! Activation pruning: the paper's baseline that drops whole inputs or outputs (Tables 3 to 8).

use faer::{Col, ColRef, Mat, MatRef};

use crate::error::during;
use crate::layer::{check_inputs, finish};
use crate::linalg;
use crate::{ActivationStats, Error, Linear, Rank, Result, Scalar};

/// Keeps the units that are most active on the target domain and drops the others.
///
/// Activity is the mean or the largest magnitude; after a ReLU these are the mean and the maximum activation
/// of the paper. At the parameter budget of a rank-k factorisation, `k(m + n)`, it keeps `min(n, ⌊k(m + n)/m⌋)`
/// inputs or `min(m, ⌊k(m + n)/n⌋)` outputs.
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
/// // A `PrunedLinear`: it takes all four inputs, and looks at two.
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

/// Which side of the weight was thinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Inputs,
    Outputs,
}

impl ActivationPruning {
    /// Ranks units by their mean magnitude.
    ///
    /// For an example see [`ActivationPruning`].
    pub fn mean() -> Self {
        Self { measure: Measure::Mean }
    }

    /// Ranks units by their largest magnitude.
    ///
    /// For an example see [`outputs`](Self::outputs).
    pub fn max() -> Self {
        Self { measure: Measure::Max }
    }

    /// Drops inputs, that is columns of the weight, by the statistics of the layer's inputs.
    ///
    /// # Errors
    ///
    /// Statistics of another width or without samples; a rank out of range, or one that only a spectrum can tell
    /// ([`Rank::Energy`], [`Rank::RelativeError`]).
    ///
    /// For an example see [`ActivationPruning`].
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

    /// Drops outputs, that is rows of the weight, by statistics of the layer's outputs **after** the activation
    /// function; the dropped ones become zero.
    ///
    /// # Errors
    ///
    /// As [`inputs`](Self::inputs), with statistics as wide as the layer's outputs.
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
            Rank::Fixed(_) | Rank::ParameterRatio(_) => rank.bound((m, n), 1)?,
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

/// A layer with some of its inputs or outputs dropped. It takes and gives as many as the layer it was cut from.
///
/// For an example see [`ActivationPruning`].
#[derive(Clone, Debug, PartialEq)]
pub struct PrunedLinear<T> {
    side: Side,
    kept: Vec<usize>,
    weight: Mat<T>,
    bias: Option<Col<T>>,
    in_features: usize,
    out_features: usize,
}

impl<T: Scalar> PrunedLinear<T> {
    /// Indices, ascending, of the inputs or outputs that are kept.
    ///
    /// For an example see [`PrunedLinear`].
    pub fn kept(&self) -> &[usize] {
        &self.kept
    }

    /// The smaller weight: out × kept when inputs were dropped, kept × in when outputs were.
    ///
    /// For an example see [`PrunedLinear`].
    pub fn weight(&self) -> MatRef<'_, T> {
        self.weight.as_ref()
    }

    /// The bias, of length out when inputs were dropped, one entry per kept output when outputs were.
    ///
    /// For an example see [`PrunedLinear`].
    pub fn bias(&self) -> Option<ColRef<'_, T>> {
        self.bias.as_ref().map(Col::as_ref)
    }

    /// Number of parameters, the bias included.
    ///
    /// For an example see [`PrunedLinear`].
    pub fn parameters(&self) -> usize {
        self.multiply_adds() + self.bias.as_ref().map_or(0, Col::nrows)
    }

    /// Multiply–adds of one sample's forward pass.
    ///
    /// For an example see [`PrunedLinear`].
    pub fn multiply_adds(&self) -> usize {
        self.weight.nrows() * self.weight.ncols()
    }

    /// Outputs, samples × out, of all inputs, samples × in; dropped outputs are zero.
    ///
    /// # Errors
    ///
    /// Inputs of another width, without rows, or not finite; outputs that overflow `T`.
    ///
    /// For an example see [`PrunedLinear`].
    pub fn forward(&self, inputs: MatRef<'_, T>) -> Result<Mat<T>> {
        during("PrunedLinear::forward", || {
            check_inputs(inputs, self.in_features)?;
            let mut outputs = linalg::zeros(inputs.nrows(), self.out_features)?;
            match self.side {
                Side::Inputs => {
                    let mut gathered = linalg::zeros(inputs.nrows(), self.kept.len())?;
                    for (mut column, &unit) in gathered.as_mut().col_iter_mut().zip(&self.kept) {
                        column.copy_from(inputs.col(unit));
                    }
                    let one = T::from_f64(1.0);
                    linalg::add_product(
                        outputs.as_mut(),
                        one,
                        gathered.as_ref(),
                        self.weight.transpose(),
                        linalg::threads(0),
                    );
                    finish(outputs, self.bias())
                }
                Side::Outputs => {
                    let kept = linalg::product(inputs, self.weight.transpose(), linalg::threads(0))?;
                    let kept = finish(kept, self.bias())?;
                    for (column, &unit) in kept.col_iter().zip(&self.kept) {
                        outputs.as_mut().col_mut(unit).copy_from(column);
                    }
                    Ok(outputs)
                }
            }
        })
    }

    /// A dense layer that gives the same outputs, with zeros for what was dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] if it does not fit.
    ///
    /// For an example see [`PrunedLinear`].
    pub fn to_linear(&self) -> Result<Linear<T>> {
        during("PrunedLinear::to_linear", || {
            let mut weight = linalg::zeros(self.out_features, self.in_features)?;
            let mut bias = self.bias.clone();
            for (index, &unit) in self.kept.iter().enumerate() {
                match self.side {
                    Side::Inputs => weight.as_mut().col_mut(unit).copy_from(self.weight.col(index)),
                    Side::Outputs => weight.as_mut().row_mut(unit).copy_from(self.weight.row(index)),
                }
            }
            if let (Side::Outputs, Some(kept)) = (self.side, &self.bias) {
                let mut full = Col::zeros(self.out_features);
                self.kept.iter().zip(kept.iter()).for_each(|(&unit, &entry)| full[unit] = entry);
                bias = Some(full);
            }
            Linear::new(weight, bias)
        })
    }
}
