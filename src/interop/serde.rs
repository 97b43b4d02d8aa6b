//! Layers, decompositions and metrics as data: their sizes, and the numbers of each matrix row by row.
//! Data that are read are validated.

use faer::{Col, Mat, MatRef};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::bias::BiasCorrection;
use crate::compress::{Facts, OutputMetric};
use crate::factors::PivotedLinear;
use crate::{Decomposition, Error, Linear, LowRankLinear, Result, Scalar, rank};

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

#[derive(Serialize, Deserialize)]
#[serde(rename = "Decomposition", deny_unknown_fields)]
struct StoredDecomposition<T> {
    facts: Facts,
    energies: Vec<f64>,
    total_energy: f64,
    explained: Vec<f64>,
    relative_errors: Option<Vec<f64>>,
    metric_errors: Option<Vec<f64>>,
    down: Vec<T>,
    up: Vec<T>,
    kept_bias: Option<Vec<T>>,
    correction: Option<BiasCorrection>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "OutputMetric", deny_unknown_fields)]
struct StoredMetric {
    outputs: usize,
    matrix: Vec<f64>,
    root: Vec<f64>,
    exponent: i32,
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

impl<T: Scalar + Serialize> Serialize for Decomposition<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        StoredDecomposition {
            facts: self.facts.clone(),
            energies: self.energies.clone(),
            total_energy: self.total_energy,
            explained: self.explained.clone(),
            relative_errors: self.relative_errors.clone(),
            metric_errors: self.metric_errors.clone(),
            down: numbers(self.down.as_ref()),
            up: numbers(self.up.as_ref()),
            kept_bias: self.kept_bias.as_ref().map(|bias| numbers(bias.as_ref().as_mat())),
            correction: self.correction.clone(),
        }
        .serialize(serializer)
    }
}

impl<'de, T: Scalar + Deserialize<'de>> Deserialize<'de> for Decomposition<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        decomposition(StoredDecomposition::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

fn decomposition<T: Scalar>(stored: StoredDecomposition<T>) -> Result<Decomposition<T>> {
    let ((m, n), k) = (stored.facts.shape, stored.energies.len());
    rank::validate_fixed(k, (m, n))?;
    let lists = [Some(&stored.explained), stored.relative_errors.as_ref(), stored.metric_errors.as_ref()];
    let corrections = stored.correction.as_ref().map(BiasCorrection::shape).unwrap_or((m, k));
    let bias = stored.kept_bias.as_ref().map_or(m, Vec::len);
    let counts = lists.into_iter().flatten().map(|list| ("numbers by rank in a decomposition", k, list.len()));
    let outputs = [corrections.0, bias].map(|found| ("numbers in a bias of a decomposition", m, found));
    let latent = ("numbers in a bias correction", k, corrections.1);
    if let Some((what, expected, found)) =
        counts.chain(outputs).chain([latent]).find(|(_, expected, found)| expected != found)
    {
        return Err(Error::shape(what, expected, found).during("deserialize"));
    }
    Ok(Decomposition {
        down: matrix("numbers in the factor `down`", &stored.down, k, n)?,
        up: matrix("numbers in the factor `up`", &stored.up, m, k)?,
        energies: stored.energies,
        total_energy: stored.total_energy,
        explained: stored.explained,
        relative_errors: stored.relative_errors,
        metric_errors: stored.metric_errors,
        kept_bias: stored.kept_bias.map(Col::from_iter),
        correction: stored.correction,
        facts: stored.facts,
    })
}

impl Serialize for OutputMetric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (outputs, [matrix, root], exponent) = self.to_stored();
        StoredMetric { outputs, matrix, root, exponent }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for OutputMetric {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let StoredMetric { outputs, matrix, root, exponent } = StoredMetric::deserialize(deserializer)?;
        Self::from_stored(outputs, [matrix, root], exponent)
            .map_err(|error| serde::de::Error::custom(error.during("deserialize")))
    }
}
