//! Layers compared up to a tolerance.

use approx::{AbsDiffEq, RelativeEq, UlpsEq, abs_diff_eq, relative_eq, ulps_eq};
use dalr::{Linear, LowRankLinear, Scalar};
use faer::{Col, Mat};

fn linear<T: Scalar>(rows: usize, columns: usize, bias: Option<usize>, changed: (usize, usize), by: f64) -> Linear<T> {
    let entry = |i, j| T::from_f64((1.0 + i as f64 + 10.0 * j as f64) * if (i, j) == changed { 1.0 + by } else { 1.0 });
    Linear::new(Mat::from_fn(rows, columns, entry), bias.map(|n| Col::full(n, T::from_f64(2.0)))).unwrap()
}

#[test]
fn entries_decide() {
    fn check<T>()
    where
        T: Scalar + AbsDiffEq<Epsilon = T> + RelativeEq + UlpsEq,
    {
        let layer = linear::<T>(3, 4, Some(3), (9, 9), 0.0);
        assert!(
            abs_diff_eq!(layer, layer.clone()) && relative_eq!(layer, layer.clone()) && ulps_eq!(layer, layer.clone())
        );
        for place in [(0, 0), (2, 3), (1, 2)] {
            // One entry, of at most 33, differs by 0.001.
            let other = linear::<T>(3, 4, Some(3), place, 1e-3);
            let [near, far] = [2e-3, 5e-4].map(T::from_f64);
            assert!(relative_eq!(layer, other, max_relative = near), "{place:?}");
            assert!(!relative_eq!(layer, other, epsilon = T::from_f64(0.0), max_relative = far), "{place:?}");
            assert!(abs_diff_eq!(layer, other, epsilon = T::from_f64(0.04)), "{place:?}");
            assert!(!abs_diff_eq!(layer, other, epsilon = far), "{place:?}");
            assert!(!ulps_eq!(layer, other), "{place:?}");
            let next = linear::<T>(3, 4, Some(3), place, T::EPSILON);
            assert!(layer != next && ulps_eq!(layer, next, epsilon = T::from_f64(0.0), max_ulps = 2), "{place:?}");
            assert!(!ulps_eq!(layer, next, epsilon = T::from_f64(0.0), max_ulps = 0), "{place:?}");
        }
        let weight = layer.weight().to_owned();
        let biased = |bias: f64| Linear::new(weight.clone(), Some(Col::full(3, T::from_f64(bias)))).unwrap();
        assert!(!abs_diff_eq!(layer, biased(2.1), epsilon = T::from_f64(0.05)));
        assert!(abs_diff_eq!(layer, biased(2.1), epsilon = T::from_f64(0.2)));
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn other_shapes_are_never_equal() {
    let layer = linear::<f64>(3, 4, None, (9, 9), 0.0);
    for other in [linear(4, 3, None, (9, 9), 0.0), linear(3, 4, Some(3), (9, 9), 0.0), linear(3, 5, None, (9, 9), 0.0)]
    {
        assert!(!abs_diff_eq!(layer, other, epsilon = 1e9) && !abs_diff_eq!(other, layer, epsilon = 1e9));
    }
}

#[test]
fn both_factors_count() {
    let layer = |down: f64, up: f64| {
        LowRankLinear::new(Mat::full(2, 5, down), Mat::full(4, 2, up), Some(Col::full(4, 1.0))).unwrap()
    };
    assert!(relative_eq!(layer(1.0, 2.0), layer(1.0 + 1e-9, 2.0 - 1e-9), max_relative = 1e-8));
    assert!(!relative_eq!(layer(1.0, 2.0), layer(1.1, 2.0), max_relative = 1e-2));
    assert!(!relative_eq!(layer(1.0, 2.0), layer(1.0, 2.1), max_relative = 1e-2));
}
