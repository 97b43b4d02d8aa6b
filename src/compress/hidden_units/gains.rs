//! The gains of hidden units that have several inputs of the layer, such as channels.

use core::ops::Range;

use faer::Mat;

use super::selection::Remaining;
use crate::Result;
use crate::linalg::{self, Par, macs};

impl Remaining {
    /// Returns the inputs that are not selected of the unit with the largest gain, the first of
    /// several; `None` if no unit has a candidate.
    pub(super) fn best_unit(&self, inputs_per_unit: usize, par: Par) -> Result<Option<Vec<usize>>> {
        let mut places = Vec::new();
        let mut start = 0;
        for inputs in self.inputs.chunk_by(|a, b| a / inputs_per_unit == b / inputs_per_unit) {
            places.push(start..start + inputs.len());
            start += inputs.len();
        }
        let mut gains: Vec<Result<f64>> = vec![Ok(0.0); places.len()];
        let work = macs(self.outputs.nrows() + inputs_per_unit, start, inputs_per_unit);
        let parts = places.iter().zip(&mut gains).collect();
        linalg::for_each_part(parts, work, par, |(place, gain): (&Range<usize>, &mut Result<f64>)| {
            *gain = self.gain(place.clone());
        });
        let mut best: Option<(f64, Range<usize>)> = None;
        for (gain, place) in gains.into_iter().zip(places) {
            let gain = gain?;
            let candidate = place.clone().any(|input| self.is_candidate(input, self.residual[(input, input)]));
            if candidate && best.as_ref().is_none_or(|(most, _)| gain > *most) {
                best = Some((gain, place));
            }
        }
        Ok(best.map(|(_, place)| place.filter(|&input| self.selected.get(input) == Some(&false)).collect()))
    }

    /// The gain of the unit with these inputs: the sum of the gains of its inputs, each after those
    /// before it.
    fn gain(&self, place: Range<usize>) -> Result<f64> {
        let count = place.len();
        let outputs = self.outputs.subcols(place.start, count);
        // `T_Jᵀ T_J`, and the lower triangle of `R_JJ`.
        let mut products = linalg::product(outputs.transpose(), outputs, Par::Seq)?;
        let mut residual: Mat<f64> = linalg::zeros(count, count)?;
        residual.copy_from(self.residual.as_ref().submatrix(place.start, place.start, count, count));
        let mut gain = 0.0;
        for (step, input) in place.enumerate() {
            let square = residual[(step, step)];
            if !self.is_candidate(input, square) {
                continue;
            }
            let norm = products[(step, step)].max(0.0);
            gain += norm / square;
            // Removes from the later inputs what this one explains: T_j − T_p R_pj / R_pp.
            for a in step + 1..count {
                let part = residual[(a, step)] / square;
                for b in step + 1..=a {
                    let other = residual[(b, step)] / square;
                    products[(a, b)] += part * (other * norm - products[(b, step)]) - other * products[(a, step)];
                }
            }
            for a in step + 1..count {
                let part = residual[(a, step)] / square;
                for b in step + 1..=a {
                    residual[(a, b)] -= part * residual[(b, step)];
                }
            }
        }
        Ok(gain)
    }
}
