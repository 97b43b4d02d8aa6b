//! Whole networks: budgets, decompositions, sensitivities, searches and shared inputs.

mod budgets;
mod compress;
mod decompose;
mod edges;
mod joint;
mod lenet;
mod quality;
mod search;
mod sequential;
mod shared;

use dalr::network::{Choice, Plan};

/// Returns the choices of a plan, in the order of its layers.
pub(crate) fn choices(plan: &Plan) -> Vec<Choice> {
    plan.layers.iter().map(|layer| layer.choice).collect()
}
