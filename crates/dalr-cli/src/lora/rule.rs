//! The ranks of an adapter's modules: chosen for each module alone, or by one budget for all.

use std::collections::BTreeMap;

use dalr::network::{Allocator, Budget, LayerProfile, Sensitivities, Strategy};
use dalr::{Decomposition, Rank, Scalar};

use crate::error::{Error, Result};

/// How ranks are chosen.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// For each module alone.
    Each { rank: Rank, max_rank: Option<usize> },
    /// By a budget for all modules together.
    Together { budget: Budget, max_rank: Option<usize> },
}

impl Rule {
    /// Returns the rank up to which a module is solved that can have ranks up to `full`. `shapes`
    /// are the outputs and inputs of all modules.
    pub fn bound(self, full: usize, shapes: &[(usize, usize)]) -> usize {
        // One budget can give a module several times the average rank. Solving for more costs time.
        let average = |budget| match budget {
            Budget::Parameters(count) => {
                let each: u64 = shapes.iter().map(|(m, n)| (m + n) as u64).sum();
                count.div_ceil(each.max(1))
            }
            Budget::TotalRank(rank) => rank.div_ceil(shapes.len().max(1) as u64),
            _ => full as u64,
        };
        let bound = match self {
            Self::Each { rank: Rank::Fixed(rank), .. } => rank,
            Self::Each { max_rank, .. } => max_rank.unwrap_or(full),
            Self::Together { budget, max_rank } => {
                max_rank.unwrap_or(usize::try_from(average(budget)).unwrap_or(full).saturating_mul(4))
            }
        };
        bound.clamp(1, full)
    }

    /// Returns the rank of one module up to its solved ranks, and a remark on it. With a budget for
    /// all modules, this is the largest rank that it can get.
    pub fn choose<T: Scalar>(
        self,
        decomposition: &Decomposition<T>,
        full: usize,
    ) -> Result<(usize, Option<String>), dalr::Error> {
        let solved = decomposition.max_rank();
        match self {
            Self::Each { rank: Rank::Fixed(rank), .. } if rank > full => {
                Ok((full, Some(format!("rank {full} is the largest that it can have"))))
            }
            Self::Each { rank: Rank::Fixed(rank), .. } => Ok((rank, None)),
            Self::Each { rank, max_rank } => {
                let most = max_rank.map_or(solved, |most| most.min(solved));
                match decomposition.rank_for(rank, 1) {
                    Ok(rank) if rank <= most => Ok((rank, None)),
                    Err(error) if most == full || !matches!(error, dalr::Error::Rank { .. }) => Err(error),
                    _ => Ok((most, Some(format!("needs more than rank {most}, the limit")))),
                }
            }
            Self::Together { max_rank, .. } => Ok((max_rank.map_or(solved, |most| most.min(solved)), None)),
        }
    }

    /// Allocates the budget for all modules, if there is one: returns the ranks of the modules that
    /// get one, by name. `energies` are the squared norms of the updates. Their errors count alike,
    /// so an update counts as much as its energy.
    pub fn allocate(self, profiles: &[LayerProfile], energies: &[f64]) -> Result<Option<BTreeMap<String, usize>>> {
        let Self::Together { budget, max_rank } = self else { return Ok(None) };
        let refuse = |error: dalr::Error| Error::Refused(error.to_string());
        let named = profiles.iter().zip(energies).map(|(profile, energy)| (profile.name(), *energy));
        let strategy = Strategy::Sensitivity(Sensitivities::new(named).map_err(refuse)?);
        let mut allocator = Allocator::new(budget).with_strategy(strategy);
        if let Some(rank) = max_rank {
            allocator = allocator.with_max_rank(rank);
        }
        Ok(Some(allocator.allocate(profiles).map_err(refuse)?.ranks()))
    }
}
