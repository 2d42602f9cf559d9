//! What calls to language models take: at most, by what is asked; and in truth, by what is answered.
//!
//! Before a call is sent, [`Meter::call`](crate::Meter::call) says which model it names and how much it may take. While the answer
//! passes, [`Answer`] looks for the tokens that the provider counted. Neither holds a body, and neither can fail:
//! what is not understood is not known, and the caller decides what becomes of that.
mod answer;
mod request;
mod scan;
#[cfg(test)]
mod tests;

use crate::budget::Price;

pub use answer::Answer;
pub use request::Call;

/// Tokens of an answer at most, where neither the request nor the price says.
pub const MAX_OUTPUT: u64 = 32_768;

/// What a model costs, in picodollars for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// For a token of the request.
    pub input: u64,
    /// For one that the provider had kept.
    pub cached: u64,
    /// For one that it keeps.
    pub cache_write: u64,
    /// For a token of the answer.
    pub output: u64,
}

impl From<&Price> for Rates {
    fn from(price: &Price) -> Self {
        Self {
            input: price.input,
            cached: price.cached,
            cache_write: price.cache_write,
            output: price.output,
        }
    }
}

/// Tokens, each counted in one place only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of the request, besides the next two.
    pub input: u64,
    /// Of the request, and kept from an earlier one.
    pub cached: u64,
    /// Of the request, and kept for later ones.
    pub cache_write: u64,
    /// Of the answer, thoughts among them.
    pub output: u64,
}

impl Tokens {
    /// All of them.
    pub fn total(&self) -> u64 {
        let sum = self.input.saturating_add(self.cached);
        sum.saturating_add(self.cache_write)
            .saturating_add(self.output)
    }

    /// What they cost, in picodollars.
    pub fn cost(&self, rates: &Rates) -> u64 {
        let each = [
            (self.input, rates.input),
            (self.cached, rates.cached),
            (self.cache_write, rates.cache_write),
            (self.output, rates.output),
        ];
        each.iter().fold(0, |sum: u64, (tokens, price)| {
            sum.saturating_add(tokens.saturating_mul(*price))
        })
    }
}

/// What a call may take at most, as far as its text tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Most {
    /// Tokens of the request: a token is at least a byte.
    pub input: u64,
    /// Tokens of all answers.
    pub output: u64,
}

impl Most {
    /// Both together.
    pub fn total(&self) -> u64 {
        self.input.saturating_add(self.output)
    }

    /// What it costs, in picodollars, whichever of the prices counts for the request.
    pub fn cost(&self, rates: &Rates) -> u64 {
        let dearest = rates.input.max(rates.cached).max(rates.cache_write);
        let input = self.input.saturating_mul(dearest);
        input.saturating_add(self.output.saturating_mul(rates.output))
    }
}
