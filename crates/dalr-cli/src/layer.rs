//! A linear layer of the model, as described by the headers of the files.

use dalr::interop::safetensors::FloatDtype;

/// A linear layer of the model.
#[derive(Clone, Debug)]
pub struct Layer {
    pub name: String,
    pub out_features: usize,
    pub in_features: usize,
    pub dtype: FloatDtype,
    pub has_bias: bool,
    /// The name of its input in the calibration data.
    pub input: String,
}

impl Layer {
    pub fn weight(&self) -> String {
        format!("{}.weight", self.name)
    }

    pub fn bias(&self) -> String {
        format!("{}.bias", self.name)
    }

    /// Returns the rank at which the factors have as many parameters as the weight.
    pub fn break_even(&self) -> f64 {
        dalr::Rank::break_even(self.out_features, self.in_features)
    }

    /// Returns the largest rank with fewer parameters than the weight, or 1 if there is none.
    pub fn useful_rank(&self) -> usize {
        let saving = (self.break_even().ceil() as usize).saturating_sub(1);
        saving.clamp(1, self.out_features.min(self.in_features))
    }

    /// Returns the parameters of the original layer, bias included.
    pub fn parameters(&self) -> usize {
        self.out_features * (self.in_features + usize::from(self.has_bias))
    }
}
