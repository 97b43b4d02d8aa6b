//! The network, whose linear layers can be replaced by other modules.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Tensor};
use candle_nn::ops::{layer_norm_slow, softmax, softmax_last_dim};
use candle_nn::{LayerNorm, Linear, Module};
use dalr::interop::candle::LowRankLinear;

/// The tensors of a model file, by name.
pub type Tensors = HashMap<String, Tensor>;

/// A linear layer, or the module that replaces it.
pub type Layer = Box<dyn Module + Send + Sync>;

/// The entries of `config.json` that the network needs.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Config {
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Largest number of tokens of a text.
    pub max_position_embeddings: usize,
    /// The `ε` that layer normalization adds to a variance.
    pub layer_norm_eps: f64,
    /// The activation between the two layers after attention.
    pub hidden_act: String,
}

/// The linear layers of a block, each with the layer whose inputs are recorded for it. Query, key
/// and value read the same input, so that one recording serves all three.
const LAYERS: [(&str, &str); 6] = [
    ("attention.self.query", "attention.self.query"),
    ("attention.self.key", "attention.self.query"),
    ("attention.self.value", "attention.self.query"),
    ("attention.output.dense", "attention.output.dense"),
    ("intermediate.dense", "intermediate.dense"),
    ("output.dense", "output.dense"),
];

impl Config {
    /// Returns the names of all linear layers in order, each with the name of the layer whose
    /// inputs are recorded for it.
    pub fn layers(&self) -> impl Iterator<Item = (String, String)> {
        let blocks = (0..self.num_hidden_layers).map(|block| format!("encoder.layer.{block}"));
        blocks.flat_map(|block| {
            LAYERS.map(|(layer, recorded)| (format!("{block}.{layer}"), format!("{block}.{recorded}")))
        })
    }

    /// Returns the names of the layers before and behind the hidden units of every block.
    pub fn units(&self) -> impl Iterator<Item = [String; 2]> {
        let blocks = (0..self.num_hidden_layers).map(|block| format!("encoder.layer.{block}"));
        blocks.map(|block| ["intermediate.dense", "output.dense"].map(|layer| format!("{block}.{layer}")))
    }
}

struct Block {
    query: Layer,
    key: Layer,
    value: Layer,
    attended: Layer,
    attention_norm: LayerNorm,
    intermediate: Layer,
    output: Layer,
    output_norm: LayerNorm,
}

/// A BERT whose sentence embeddings are means over the tokens.
pub struct Bert {
    words: Tensor,
    positions: Tensor,
    kind: Tensor,
    norm: LayerNorm,
    blocks: Vec<Block>,
    forms: Forms,
}

/// The way of computing that all blocks share.
struct Forms {
    heads: usize,
    epsilon: f64,
    differentiable: bool,
}

impl Forms {
    fn normalize(&self, norm: &LayerNorm, state: &Tensor) -> candle_core::Result<Tensor> {
        match norm.bias().filter(|_| self.differentiable) {
            Some(bias) => layer_norm_slow(state, norm.weight(), bias, self.epsilon as f32),
            None => norm.forward(state),
        }
    }

    fn softmax(&self, scores: &Tensor) -> candle_core::Result<Tensor> {
        if self.differentiable { softmax(scores, D::Minus1) } else { softmax_last_dim(scores) }
    }
}

impl Bert {
    /// Builds the network of these tensors. `replace` gets each linear layer with its name, and
    /// returns the module to use.
    pub fn with_layers(
        tensors: &Tensors,
        config: &Config,
        mut replace: impl FnMut(&str, Linear) -> Result<Layer>,
    ) -> Result<Self> {
        ensure!(config.hidden_act == "gelu", "expected the activation `gelu`, got `{}`", config.hidden_act);
        ensure!(
            config.num_attention_heads > 0 && config.hidden_size.is_multiple_of(config.num_attention_heads),
            "{} heads do not divide a width of {}",
            config.num_attention_heads,
            config.hidden_size
        );
        let norm = |name: &str| -> Result<LayerNorm> {
            let (weight, bias) = (get(tensors, &format!("{name}.weight"))?, get(tensors, &format!("{name}.bias"))?);
            Ok(LayerNorm::new(weight, bias, config.layer_norm_eps))
        };
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for block in 0..config.num_hidden_layers {
            let name = format!("encoder.layer.{block}");
            let mut layer = |part: &str| -> Result<Layer> {
                let name = format!("{name}.{part}");
                // A model that was compressed before keeps its compressed layers.
                if tensors.contains_key(&format!("{name}.0.weight")) {
                    return Ok(Box::new(compressed(tensors, &name)?));
                }
                replace(&name, linear(tensors, &name)?)
            };
            blocks.push(Block {
                query: layer("attention.self.query")?,
                key: layer("attention.self.key")?,
                value: layer("attention.self.value")?,
                attended: layer("attention.output.dense")?,
                attention_norm: norm(&format!("{name}.attention.output.LayerNorm"))?,
                intermediate: layer("intermediate.dense")?,
                output: layer("output.dense")?,
                output_norm: norm(&format!("{name}.output.LayerNorm"))?,
            });
        }
        Ok(Self {
            words: get(tensors, "embeddings.word_embeddings.weight")?,
            positions: get(tensors, "embeddings.position_embeddings.weight")?,
            kind: get(tensors, "embeddings.token_type_embeddings.weight")?.narrow(0, 0, 1)?,
            norm: norm("embeddings.LayerNorm")?,
            blocks,
            forms: Forms { heads: config.num_attention_heads, epsilon: config.layer_norm_eps, differentiable: false },
        })
    }

    /// Uses forms of softmax and layer normalization through which candle propagates gradients. The
    /// fused forms are faster and cut them silently.
    pub fn differentiable(mut self) -> Self {
        self.forms.differentiable = true;
        self
    }

    /// Builds the network without replacing a layer.
    pub fn new(tensors: &Tensors, config: &Config) -> Result<Self> {
        Self::with_layers(tensors, config, |_, layer| Ok(Box::new(layer)))
    }

    /// Returns embeddings of unit length, texts × width. `ids` and `mask` are texts × tokens; the
    /// mask is 1 for a token and 0 for padding.
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> candle_core::Result<Tensor> {
        let mut state = self.start(ids)?;
        for block in 0..self.blocks.len() {
            state = self.block(block, &state, mask)?;
        }
        let sum = state.broadcast_mul(&mask.to_dtype(DType::F32)?.unsqueeze(2)?)?.sum(1)?;
        // The embedding is normalised, so the sum over the tokens gives the same result as their
        // mean.
        sum.broadcast_div(&sum.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
    }

    /// Returns the inputs of the first block, texts × tokens × width.
    pub fn start(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        let (texts, tokens) = ids.dims2()?;
        let words = self.words.index_select(&ids.flatten_all()?, 0)?.reshape((texts, tokens, ()))?;
        let state = words.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?.broadcast_add(&self.kind)?;
        self.forms.normalize(&self.norm, &state)
    }

    /// Returns the outputs of a block for its inputs, both texts × tokens × width.
    pub fn block(&self, index: usize, state: &Tensor, mask: &Tensor) -> candle_core::Result<Tensor> {
        let Some(block) = self.blocks.get(index) else { candle_core::bail!("there is no block {index}") };
        let (texts, tokens) = mask.dims2()?;
        // A large negative score, whose softmax is zero, for padding.
        let absent = mask.to_dtype(DType::F32)?.affine(1e9, -1e9)?.reshape((texts, 1, 1, tokens))?;
        let context = block.attend(state, &absent, &self.forms)?;
        let state = self.forms.normalize(&block.attention_norm, &(block.attended.forward(&context)? + state)?)?;
        let hidden = block.intermediate.forward(&state)?.gelu_erf()?;
        self.forms.normalize(&block.output_norm, &(block.output.forward(&hidden)? + state)?)
    }
}

impl Block {
    fn attend(&self, state: &Tensor, absent: &Tensor, forms: &Forms) -> candle_core::Result<Tensor> {
        let (texts, tokens, width) = state.dims3()?;
        let heads = forms.heads;
        let split = |layer: &Layer| {
            let all = layer.forward(state)?.reshape((texts, tokens, heads, width / heads))?;
            all.transpose(1, 2)?.contiguous()
        };
        let scale = ((width / heads) as f64).sqrt();
        let scores = (split(&self.query)?.matmul(&split(&self.key)?.t()?)? / scale)?.broadcast_add(absent)?;
        let context = forms.softmax(&scores)?.matmul(&split(&self.value)?)?;
        context.transpose(1, 2)?.contiguous()?.reshape((texts, tokens, width))
    }
}

fn get(tensors: &Tensors, name: &str) -> Result<Tensor> {
    tensors.get(name).cloned().with_context(|| format!("the model has no tensor `{name}`"))
}

/// Returns a linear layer of the model file.
pub fn linear(tensors: &Tensors, name: &str) -> Result<Linear> {
    Ok(Linear::new(get(tensors, &format!("{name}.weight"))?, Some(get(tensors, &format!("{name}.bias"))?)))
}

/// Returns a layer that is compressed in the model file.
fn compressed(tensors: &Tensors, name: &str) -> Result<LowRankLinear> {
    let (down, up) = (get(tensors, &format!("{name}.0.weight"))?, get(tensors, &format!("{name}.1.weight"))?);
    let ((rank, inputs), (outputs, _)) = (down.dims2()?, up.dims2()?);
    let bias = tensors.contains_key(&format!("{name}.1.bias"));
    let parts = tensors.iter().filter(|(key, _)| key.starts_with(&format!("{name}.")));
    let parts: Tensors = parts.map(|(key, tensor)| (key.clone(), tensor.clone())).collect();
    let builder = candle_nn::VarBuilder::from_tensors(parts, down.dtype(), down.device());
    Ok(LowRankLinear::load(inputs, rank, outputs, bias, builder.pp(name))?)
}
