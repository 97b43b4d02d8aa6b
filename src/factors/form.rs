//! How a low-rank weight is stored, and what that costs.

/// The form in which a weight of low rank is stored, which decides what a rank costs.
///
/// The forms of one layer differ by rounding only. A compressor's `with_form` makes
/// [`Rank::ParameterRatio`](crate::Rank::ParameterRatio) and the report count the parameters of a
/// form.
///
/// ```
/// use dalr::factors::Form;
/// let shape = (4096, 4096);
/// assert_eq!(Form::Factors.rank_within(0.4, shape), 819);
/// assert_eq!(Form::Pivoted.rank_within(0.4, shape), 923);
/// assert_eq!(Form::Pivoted.parameters(923, shape), 923 * (4096 + 4096 - 923));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Form {
    /// Two factors, a [`LowRankLinear`](crate::LowRankLinear): `k (m + n)` parameters.
    #[default]
    Factors,
    /// Rows of the weight and coefficients, a [`PivotedLinear`](super::PivotedLinear): `k (m + n −
    /// k)` parameters.
    Pivoted,
}

impl Form {
    /// Parameters of an out × in weight at this rank, which are its multiply–adds too. A bias is
    /// not counted. `usize::MAX` if there are more.
    pub fn parameters(self, rank: usize, (out_features, in_features): (usize, usize)) -> usize {
        match self {
            Self::Factors => rank.saturating_mul(out_features.saturating_add(in_features)),
            Self::Pivoted => {
                // There are no more pivots than rows.
                let rank = rank.min(out_features);
                rank.saturating_mul((out_features - rank).saturating_add(in_features))
            }
        }
    }

    /// The largest rank that takes at most this fraction of the parameters of an out × in weight,
    /// up to `min(m, n)`; 0 if rank 1 takes more.
    ///
    /// ```text
    /// Factors:  k = ρ mn / (m + n)
    /// Pivoted:  k = ((m + n) − √((m + n)² − 4 ρ mn)) / 2
    /// ```
    ///
    /// The fraction that a rank takes gives that rank, whatever the rounding.
    pub fn rank_within(self, fraction: f64, (out_features, in_features): (usize, usize)) -> usize {
        let (m, n) = (out_features as f64, in_features as f64);
        let full = out_features.min(in_features);
        // A fraction computed from a rank must give that rank in spite of rounding.
        let allowed = fraction * m * n * (1.0 + 8.0 * f64::EPSILON);
        match self {
            Self::Factors => ((allowed / (m + n)) as usize).min(full),
            Self::Pivoted => {
                let sum = m + n;
                // The formula above, without a difference of almost equal numbers.
                let rank = 2.0 * allowed / (sum + (sum * sum - 4.0 * allowed).max(0.0).sqrt());
                let rank = (rank as usize).min(full);
                let fits = |rank: usize| rank as f64 * (sum - rank as f64) <= allowed;
                match rank {
                    rank if rank < full && fits(rank + 1) => rank + 1,
                    rank if rank > 0 && !fits(rank) => rank - 1,
                    rank => rank,
                }
            }
        }
    }

    /// The rank from which on an out × in weight takes as many parameters as it has:
    /// `mn / (m + n)` for two factors, `min(m, n)` for pivoted storage.
    pub fn break_even(self, (out_features, in_features): (usize, usize)) -> f64 {
        let (m, n) = (out_features as f64, in_features as f64);
        match self {
            Self::Factors => m * n / (m + n),
            Self::Pivoted => m.min(n),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fraction_that_a_rank_takes_gives_that_rank() {
        for shape in [(1_usize, 1_usize), (1, 9), (200, 200), (110, 41), (41, 110), (4096, 11008), (3, 1 << 24)] {
            let full = shape.0.min(shape.1);
            for form in [Form::Factors, Form::Pivoted] {
                for rank in (1..=full).step_by(full.div_ceil(97)) {
                    let all = (shape.0 * shape.1) as f64;
                    let fraction = form.parameters(rank, shape) as f64 / all;
                    assert_eq!(form.rank_within(fraction, shape), rank, "{form:?}, {shape:?}");
                    let less = (form.parameters(rank, shape) as f64 - 0.5) / all;
                    assert_eq!(form.rank_within(less, shape), rank - 1, "{form:?}, {shape:?}");
                }
                assert_eq!(form.rank_within(f64::INFINITY, shape), full);
                assert!(form.parameters(usize::MAX, (usize::MAX, usize::MAX)) == usize::MAX);
                for nothing in [0.0, -1.0, f64::NAN] {
                    assert_eq!(form.rank_within(nothing, shape), 0);
                }
            }
        }
    }

    #[test]
    fn every_rank_but_the_full_one_saves_in_pivoted_storage() {
        for shape in [(7, 5), (5, 7), (6, 6)] {
            for rank in 1..=5 {
                let saves = Form::Pivoted.parameters(rank, shape) < shape.0 * shape.1;
                assert_eq!(saves, (rank as f64) < Form::Pivoted.break_even(shape), "{shape:?}, {rank}");
            }
        }
    }
}
