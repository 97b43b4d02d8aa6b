//! The cost of layers of every kind.

use core::iter::Sum;
use core::ops::Add;

use crate::factors::Form;

/// Parameters and multiply–adds (MACs) of a layer, or of several.
///
/// For a layer of `n` inputs and `m` outputs. A bias has `m` parameters more, and no MACs:
///
/// | kind | parameters | MACs for one sample |
/// |---|---|---|
/// | linear, [`of_linear`](Self::of_linear) | `m n` | the same |
/// | two factors of rank `k`, [`of_rank`](Self::of_rank) | `k (m + n)` | the same |
/// | pivoted storage of rank `k` | `k (m + n − k)` | the same |
/// | `k` of `h` hidden units | those of linear layers with `k` outputs and with `k n / h` inputs | the same |
/// | one `down` for several layers | `k (n + Σ mᵢ)` | the same |
/// | convolution of `c` channels and a `kh × kw` kernel | those of a linear layer with `n = c·kh·kw` inputs | times the positions of its output |
/// | convolution of `g` groups | `g` times those of a group | the same, times the positions |
///
/// A convolution takes its positions from the size of the images:
/// [`Conv2d::positions`](crate::convolution::Conv2d::positions). [`at_positions`](Self::at_positions)
/// and [`LayerProfile::with_calls`](super::LayerProfile::with_calls) multiply by them.
///
/// ```
/// use dalr::convolution::{Conv2d, ConvOptions};
/// use dalr::network::Cost;
///
/// # fn main() -> dalr::Result<()> {
/// let conv = Conv2d::<f32>::new(faer::Mat::zeros(16, 6 * 25), None, (5, 5), ConvOptions::new())?;
/// let positions = conv.positions((14, 14))? as u64;
/// let cost = Cost::of_linear((16, 150), false).at_positions(positions);
/// assert_eq!(cost, Cost { parameters: 2400, multiply_adds: 2400 * 100 });
/// assert_eq!(cost.multiply_adds, conv.multiply_adds((14, 14))? as u64);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Cost {
    /// Parameters, biases included.
    pub parameters: u64,
    /// Multiply–adds for one sample of the network.
    pub multiply_adds: u64,
}

impl Cost {
    /// Returns the cost of an out × in layer.
    pub fn of_linear((out_features, in_features): (usize, usize), bias: bool) -> Self {
        Self::of_weight((out_features as u64).saturating_mul(in_features as u64), out_features, bias)
    }

    /// Returns the cost of an out × in layer at this rank, in this form of storage.
    pub fn of_rank(form: Form, rank: usize, shape: (usize, usize), bias: bool) -> Self {
        Self::of_weight(form.parameters(rank, shape) as u64, shape.0, bias)
    }

    fn of_weight(entries: u64, outputs: usize, bias: bool) -> Self {
        let bias = if bias { outputs as u64 } else { 0 };
        Self { parameters: entries.saturating_add(bias), multiply_adds: entries }
    }

    /// Returns the cost of a layer of this many groups, given that of one group.
    #[must_use]
    pub fn in_groups(self, groups: u64) -> Self {
        Self { parameters: self.parameters.saturating_mul(groups), ..self.at_positions(groups) }
    }

    /// Returns the cost of a layer that runs this often for one sample of the network.
    #[must_use]
    pub fn at_positions(self, count: u64) -> Self {
        Self { multiply_adds: self.multiply_adds.saturating_mul(count), ..self }
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            parameters: self.parameters.saturating_add(other.parameters),
            multiply_adds: self.multiply_adds.saturating_add(other.multiply_adds),
        }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Add::add)
    }
}
