//! Layers as data: their sizes, and the numbers of each matrix row by row. The constructors
//! validate data that are read.

use faer::{Col, Mat, MatRef};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::factors::PivotedLinear;
use crate::{Error, Linear, LowRankLinear, Result, Scalar};

#[derive(Serialize, Deserialize)]
#[serde(rename = "Linear", deny_unknown_fields)]
struct StoredLinear<T> {
    out_features: usize,
    in_features: usize,
    weight: Vec<T>,
    bias: Option<Vec<T>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "LowRankLinear", deny_unknown_fields)]
struct StoredLowRankLinear<T> {
    out_features: usize,
    in_features: usize,
    rank: usize,
    down: Vec<T>,
    up: Vec<T>,
    bias: Option<Vec<T>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "PivotedLinear", deny_unknown_fields)]
struct StoredPivotedLinear<T> {
    out_features: usize,
    in_features: usize,
    pivots: Vec<usize>,
    pivot_rows: Vec<T>,
    coefficients: Vec<T>,
    bias: Option<Vec<T>>,
}

fn numbers<T: Scalar>(matrix: MatRef<'_, T>) -> Vec<T> {
    matrix.row_iter().flat_map(|row| row.iter().copied()).collect()
}

fn matrix<T: Scalar>(what: &'static str, numbers: &[T], rows: usize, columns: usize) -> Result<Mat<T>> {
    let expected = rows.saturating_mul(columns);
    if numbers.len() != expected {
        return Err(Error::shape(what, expected, numbers.len()).during("deserialize"));
    }
    if expected == 0 {
        // The constructors reject an empty matrix. A 0 × n matrix is not built here, because n
        // comes from the stored data and can be arbitrarily large.
        return Ok(Mat::new());
    }
    Ok(MatRef::from_row_major_slice(numbers, rows, columns).to_owned())
}

impl<T: Scalar + Serialize> Serialize for Linear<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (out_features, in_features) = (self.out_features(), self.in_features());
        let bias = self.bias().map(|bias| numbers(bias.as_mat()));
        StoredLinear { out_features, in_features, weight: numbers(self.weight()), bias }.serialize(serializer)
    }
}

impl<'de, T: Scalar + Deserialize<'de>> Deserialize<'de> for Linear<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stored = StoredLinear::deserialize(deserializer)?;
        matrix("numbers in the weight", &stored.weight, stored.out_features, stored.in_features)
            .and_then(|weight| Self::new(weight, stored.bias.map(Col::from_iter)))
            .map_err(serde::de::Error::custom)
    }
}

impl<T: Scalar + Serialize> Serialize for LowRankLinear<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        StoredLowRankLinear {
            out_features: self.out_features(),
            in_features: self.in_features(),
            rank: self.rank(),
            down: numbers(self.down()),
            up: numbers(self.up()),
            bias: self.bias().map(|bias| numbers(bias.as_mat())),
        }
        .serialize(serializer)
    }
}

impl<'de, T: Scalar + Deserialize<'de>> Deserialize<'de> for LowRankLinear<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stored = StoredLowRankLinear::deserialize(deserializer)?;
        let down = matrix("numbers in the factor `down`", &stored.down, stored.rank, stored.in_features);
        let up = matrix("numbers in the factor `up`", &stored.up, stored.out_features, stored.rank);
        let layer = down.and_then(|down| Self::new(down, up?, stored.bias.map(Col::from_iter)));
        layer.map_err(serde::de::Error::custom)
    }
}

impl<T: Scalar + Serialize> Serialize for PivotedLinear<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        StoredPivotedLinear {
            out_features: self.out_features(),
            in_features: self.in_features(),
            pivots: self.pivots().into(),
            pivot_rows: numbers(self.pivot_rows()),
            coefficients: numbers(self.coefficients()),
            bias: self.bias().map(|bias| numbers(bias.as_mat())),
        }
        .serialize(serializer)
    }
}

impl<'de, T: Scalar + Deserialize<'de>> Deserialize<'de> for PivotedLinear<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stored = StoredPivotedLinear::deserialize(deserializer)?;
        let rank = stored.pivots.len();
        let rows = matrix("numbers in the pivot rows", &stored.pivot_rows, rank, stored.in_features);
        let coefficients = match stored.out_features.saturating_sub(rank) {
            // A layer of full rank.
            0 if stored.coefficients.is_empty() => Ok(Mat::zeros(0, rank)),
            others => matrix("numbers in the coefficients", &stored.coefficients, others, rank),
        };
        let bias = stored.bias.map(Col::from_iter);
        let layer = rows.and_then(|rows| Self::new(rows, coefficients?, stored.pivots, bias));
        layer.map_err(serde::de::Error::custom)
    }
}
