//! The network, with a place for every linear layer that anything may be put into.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Tensor};
use candle_nn::{LayerNorm, Linear, Module, ops::softmax_last_dim};
use dalr::interop::candle::LowRankLinear;

/// The numbers of a model file, by name.
pub type Tensors = HashMap<String, Tensor>;

/// What stands where a linear layer was.
pub type Slot = Box<dyn Module + Send + Sync>;

/// What is needed of `config.json`.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Config {
    /// Width of the states between the blocks.
    pub hidden_size: usize,
    /// How many blocks there are.
    pub num_hidden_layers: usize,
    /// How many heads attend side by side.
    pub num_attention_heads: usize,
    /// The longest text, in tokens.
    pub max_position_embeddings: usize,
    /// What is added to a variance before its root is divided by.
    pub layer_norm_eps: f64,
    /// The activation between the two layers that follow attention.
    pub hidden_act: String,
}

/// The linear layers of a block, and which of them reads what that layer reads: a recorder needs to see it once.
const LAYERS: [(&str, &str); 6] = [
    ("attention.self.query", "attention.self.query"),
    ("attention.self.key", "attention.self.query"),
    ("attention.self.value", "attention.self.query"),
    ("attention.output.dense", "attention.output.dense"),
    ("intermediate.dense", "intermediate.dense"),
    ("output.dense", "output.dense"),
];

impl Config {
    /// Every linear layer of the blocks in order, and the layer whose inputs are its own.
    pub fn layers(&self) -> impl Iterator<Item = (String, String)> {
        let blocks = (0..self.num_hidden_layers).map(|block| format!("encoder.layer.{block}"));
        blocks.flat_map(|block| LAYERS.map(|(layer, read)| (format!("{block}.{layer}"), format!("{block}.{read}"))))
    }
}

struct Block {
    query: Slot,
    key: Slot,
    value: Slot,
    attended: Slot,
    attention_norm: LayerNorm,
    intermediate: Slot,
    output: Slot,
    output_norm: LayerNorm,
}

/// A BERT whose sentence embeddings are the mean over the tokens.
pub struct Bert {
    words: Tensor,
    positions: Tensor,
    kind: Tensor,
    norm: LayerNorm,
    blocks: Vec<Block>,
    heads: usize,
}

impl Bert {
    /// The network of these tensors, with what `slot` makes of each linear layer.
    pub fn with_slots(
        tensors: &Tensors,
        config: &Config,
        mut slot: impl FnMut(&str, Linear) -> Result<Slot>,
    ) -> Result<Self> {
        ensure!(config.hidden_act == "gelu", "the activation `{}` is not known here, only `gelu`", config.hidden_act);
        ensure!(
            config.num_attention_heads > 0 && config.hidden_size.is_multiple_of(config.num_attention_heads),
            "{} heads do not share a width of {}",
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
            let mut layer = |part: &str| -> Result<Slot> {
                let name = format!("{name}.{part}");
                // A model that was compressed before is run as it is.
                if tensors.contains_key(&format!("{name}.0.weight")) {
                    return Ok(Box::new(compressed(tensors, &name)?));
                }
                slot(&name, dense(tensors, &name)?)
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
            heads: config.num_attention_heads,
        })
    }

    /// The network as the tensors have it.
    pub fn new(tensors: &Tensors, config: &Config) -> Result<Self> {
        Self::with_slots(tensors, config, |_, layer| Ok(Box::new(layer)))
    }

    /// Embeddings of unit length, texts × width, of token numbers and their mask (1 where a token is, 0 for padding), both texts × tokens.
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> candle_core::Result<Tensor> {
        let (texts, tokens) = ids.dims2()?;
        let mut state = self.words.index_select(&ids.flatten_all()?, 0)?.reshape((texts, tokens, ()))?;
        state = state.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?.broadcast_add(&self.kind)?;
        state = self.norm.forward(&state)?;
        let present = mask.to_dtype(DType::F32)?;
        // Minus infinity, near enough, where there is no token to attend to.
        let absent = present.affine(1e9, -1e9)?.reshape((texts, 1, 1, tokens))?;
        for block in &self.blocks {
            let context = block.attend(&state, &absent, self.heads)?;
            state = block.attention_norm.forward(&(block.attended.forward(&context)? + state)?)?;
            let hidden = block.intermediate.forward(&state)?.gelu_erf()?;
            state = block.output_norm.forward(&(block.output.forward(&hidden)? + state)?)?;
        }
        let sum = state.broadcast_mul(&present.unsqueeze(2)?)?.sum(1)?;
        // The number of tokens would cancel: only the direction is left.
        sum.broadcast_div(&sum.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
    }
}

impl Block {
    fn attend(&self, state: &Tensor, absent: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
        let (texts, tokens, width) = state.dims3()?;
        let split = |layer: &Slot| {
            let all = layer.forward(state)?.reshape((texts, tokens, heads, width / heads))?;
            all.transpose(1, 2)?.contiguous()
        };
        let scale = ((width / heads) as f64).sqrt();
        let scores = (split(&self.query)?.matmul(&split(&self.key)?.t()?)? / scale)?.broadcast_add(absent)?;
        let context = softmax_last_dim(&scores)?.matmul(&split(&self.value)?)?;
        context.transpose(1, 2)?.contiguous()?.reshape((texts, tokens, width))
    }
}

fn get(tensors: &Tensors, name: &str) -> Result<Tensor> {
    tensors.get(name).cloned().with_context(|| format!("the model has no tensor `{name}`"))
}

/// A linear layer of the model file.
pub fn dense(tensors: &Tensors, name: &str) -> Result<Linear> {
    Ok(Linear::new(get(tensors, &format!("{name}.weight"))?, Some(get(tensors, &format!("{name}.bias"))?)))
}

/// Two thin layers in its place, as they were saved.
fn compressed(tensors: &Tensors, name: &str) -> Result<LowRankLinear> {
    let (down, up) = (get(tensors, &format!("{name}.0.weight"))?, get(tensors, &format!("{name}.1.weight"))?);
    let ((rank, inputs), (outputs, _)) = (down.dims2()?, up.dims2()?);
    let bias = tensors.contains_key(&format!("{name}.1.bias"));
    let own = tensors.iter().filter(|(key, _)| key.starts_with(&format!("{name}.")));
    let own: Tensors = own.map(|(key, tensor)| (key.clone(), tensor.clone())).collect();
    let builder = candle_nn::VarBuilder::from_tensors(own, down.dtype(), down.device());
    Ok(LowRankLinear::load(inputs, rank, outputs, bias, builder.pp(name))?)
}
