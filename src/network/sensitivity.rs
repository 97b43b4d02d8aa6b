//! How much a network cares about the error of each of its layers.

use std::collections::BTreeMap;

use crate::error::during;
use crate::{Error, Result};

/// What a network loses for each unit of a layer's loss, by name: the weights `w` of an allocation. Only their ratios matter.
///
/// As JSON, a plain object: `{"fc1": 0.8, "fc2": 0.1}`. [`Probes`](super::Probes) measures them.
///
/// ```
/// use dalr::network::Sensitivities;
/// # fn main() -> dalr::Result<()> {
/// let sensitivities = Sensitivities::new([("fc1", 0.8), ("fc2", 0.1)])?;
/// assert_eq!((sensitivities.get("fc1"), sensitivities.get("fc3")), (Some(0.8), None));
/// assert!(Sensitivities::new([("fc1", f64::NAN)]).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "BTreeMap<String, f64>", into = "BTreeMap<String, f64>"))]
pub struct Sensitivities(BTreeMap<String, f64>);

impl Sensitivities {
    /// From pairs of a name and a weight.
    ///
    /// # Errors
    ///
    /// A weight that is negative or not finite ([`Error::InLayer`] says whose), a name that comes twice.
    ///
    /// For an example see [`Sensitivities`].
    pub fn new<N: Into<String>>(weights: impl IntoIterator<Item = (N, f64)>) -> Result<Self> {
        during("Sensitivities::new", || {
            let mut map = BTreeMap::new();
            for (name, weight) in weights {
                let name = name.into();
                if !(weight >= 0.0 && weight.is_finite()) {
                    let expected = "finite and at least 0".into();
                    let source = Error::out_of_range("the sensitivity", expected, weight);
                    return Err(Error::InLayer { layer: name, source: Box::new(source) });
                }
                if map.contains_key(&name) {
                    let expected = "one sensitivity for each layer".into();
                    return Err(Error::layers(expected, format!("two for `{name}`")));
                }
                map.insert(name, weight);
            }
            Ok(Self(map))
        })
    }

    /// The weight of a layer. For an example see [`Sensitivities`].
    pub fn get(&self, layer: &str) -> Option<f64> {
        self.0.get(layer).copied()
    }

    /// All names and weights, by name.
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let sensitivities = dalr::network::Sensitivities::new([("fc2", 0.1), ("fc1", 0.8)])?;
    /// assert!(sensitivities.iter().eq([("fc1", 0.8), ("fc2", 0.1)]));
    /// # Ok(())
    /// # }
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, &weight)| (name.as_str(), weight))
    }

    /// Raises every weight to at least this share of their mean. A single probe of a layer that hardly matters is mostly noise, and may
    /// come out as zero, which would let the layer be compressed to nothing.
    ///
    /// # Errors
    ///
    /// A share outside of [0, 1].
    ///
    /// ```
    /// # fn main() -> dalr::Result<()> {
    /// let measured = dalr::network::Sensitivities::new([("fc1", 0.8), ("fc2", 0.0)])?;
    /// assert_eq!(measured.with_floor(0.25)?.get("fc2"), Some(0.1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_floor(mut self, share_of_mean: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&share_of_mean) {
            let parameter = "the share of the mean";
            return Err(Error::out_of_range(parameter, "in [0, 1]".into(), share_of_mean));
        }
        let count = self.0.len().max(1) as f64;
        let floor = self.0.values().map(|weight| weight / count).sum::<f64>() * share_of_mean;
        self.0.values_mut().for_each(|weight| *weight = weight.max(floor));
        Ok(self)
    }
}

impl TryFrom<BTreeMap<String, f64>> for Sensitivities {
    type Error = Error;

    fn try_from(map: BTreeMap<String, f64>) -> Result<Self> {
        Self::new(map)
    }
}

impl From<Sensitivities> for BTreeMap<String, f64> {
    fn from(sensitivities: Sensitivities) -> Self {
        sensitivities.0
    }
}
