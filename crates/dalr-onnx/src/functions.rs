//! Functions of a model: operators that are graphs.

use std::collections::HashMap;

use crate::find_layers::has_weight;
use crate::layer::LeftAlone;
use crate::{Error, Result};

/// Functions that call functions. Models have a few.
const DEPTH: usize = 50;

/// Nodes of a graph or function, when the functions that it calls are put in their places, as
/// engines do.
const NODES: u64 = 1 << 20;

/// Domain and name of an operator.
pub type Operator = (String, String);

/// A function that was read.
pub struct Function {
    /// Its position in the file.
    pub start: usize,
    pub operator: Operator,
    /// Operators in it, with the number of nodes.
    pub calls: HashMap<Operator, u64>,
}

/// Refuses functions that call each other in a circle, too deep, or so often that the whole grows
/// without bound; `main` are the calls of the main graph. Lists the layers in functions.
pub fn check(functions: Vec<Function>, main: &HashMap<Operator, u64>, left_alone: &mut Vec<LeftAlone>) -> Result<()> {
    let mut numbers = HashMap::new();
    for (number, function) in functions.iter().enumerate() {
        let (domain, name) = &function.operator;
        if matches!(domain.as_str(), "" | "ai.onnx") {
            return Err(Error::Unsupported(format!("a function replaces ONNX's operator `{name}`")));
        }
        if numbers.insert(&function.operator, number).is_some() {
            return Err(Error::invalid(function.start, format!("two functions have the name `{name}`")));
        }
        for (_, operator) in
            function.calls.keys().filter(|(domain, operator)| domain.is_empty() && has_weight(operator))
        {
            let reason = format!("inside of the function `{name}`");
            left_alone.push(LeftAlone { name: name.clone(), operator: operator.clone(), reason });
        }
    }
    // From the innermost functions outwards: a function is done after those that it calls.
    let mut callers: Vec<Vec<(usize, u64)>> = functions.iter().map(|_| Vec::new()).collect();
    let mut states: Vec<State> = Vec::new();
    for (number, function) in functions.iter().enumerate() {
        let mut state = State { waits_for: 0, nodes: 0, depth: 1 };
        for (operator, &count) in &function.calls {
            match numbers.get(operator).and_then(|&callee| callers.get_mut(callee)) {
                Some(callers) => {
                    callers.push((number, count));
                    state.waits_for += 1;
                }
                None => state.nodes += count,
            }
        }
        states.push(state);
    }
    let mut ready: Vec<usize> =
        (0..states.len()).filter(|&at| states.get(at).is_some_and(|s| s.waits_for == 0)).collect();
    let mut done = 0;
    while let Some((number, inner)) = ready.pop().and_then(|number| Some((number, *states.get(number)?))) {
        done += 1;
        if inner.depth > DEPTH || inner.nodes > NODES {
            let message = format!("functions have {} nodes, {} functions deep", inner.nodes, inner.depth);
            return Err(Error::invalid(0, message));
        }
        for &(caller, count) in callers.get(number).into_iter().flatten() {
            let Some(state) = states.get_mut(caller) else { continue };
            state.nodes = state.nodes.saturating_add(inner.nodes.saturating_mul(count));
            state.depth = state.depth.max(inner.depth + 1);
            state.waits_for -= 1;
            if state.waits_for == 0 {
                ready.push(caller);
            }
        }
    }
    if done < functions.len() {
        return Err(Error::invalid(0, "functions call each other in a circle"));
    }
    let nodes = |operator| numbers.get(operator).and_then(|&number| states.get(number)).map_or(1, |state| state.nodes);
    let total =
        main.iter().map(|(operator, count)| nodes(operator).saturating_mul(*count)).fold(0, u64::saturating_add);
    if total > NODES {
        return Err(Error::invalid(0, format!("the graph has {total} nodes with those of its functions")));
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct State {
    /// Functions that it calls and that are not done.
    waits_for: usize,
    nodes: u64,
    depth: usize,
}
