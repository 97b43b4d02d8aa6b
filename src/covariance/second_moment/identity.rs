//! `S = I`: every direction of the inputs counts the same.

use faer::{Mat, MatRef};

use super::{Scale, SecondMoment};
use crate::linalg::{self, Par};
use crate::{Result, Scalar};

struct Identity {
    scale: Scale,
}

/// Returns the identity as a second moment.
pub(crate) fn identity<T: Scalar>(features: usize) -> Box<dyn SecondMoment<T>> {
    Box::new(Identity { scale: Scale::new(vec![1.0; features], &vec![0.0; features]) })
}

impl<T: Scalar> SecondMoment<T> for Identity {
    fn scale(&self) -> &Scale {
        &self.scale
    }

    fn multiply(&self, right: MatRef<'_, f64>, _par: Par) -> Result<Mat<f64>> {
        linalg::widened(right, 1.0)
    }

    fn macs(&self) -> f64 {
        0.0
    }
}
