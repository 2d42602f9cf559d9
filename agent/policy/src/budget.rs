//! What may be used up in what time, by whom, and what calls to a model cost.
use crate::model::Subject;
use crate::payload::Glob;
use crate::syntax::Location;

/// Money is counted in whole picodollars: 10⁻¹² USD, so that a price for a million tokens with six decimals has no rest.
pub const PICODOLLARS: u64 = 1_000_000_000_000;

/// What those who fit may use up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Its name in the policy.
    pub name: String,
    /// Any of these workloads, in order; none for every workload.
    pub workloads: Vec<String>,
    /// Any of these identities, in order, groups written out; `None` where the identity makes no difference.
    pub identities: Option<Vec<String>>,
    /// Who has an amount of its own; `None` where all who fit share one.
    pub each: Option<Each>,
    /// How much of what; one of them at least is there.
    pub limits: Limits,
    /// Where it is defined.
    pub at: Location,
}

/// Who has an amount of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Each {
    /// Each identity; calls without one are together one more.
    Identity,
    /// Each workload.
    Workload,
}

/// How much of what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes sent and received, together.
    pub bytes: Option<Quota>,
    /// Requests that are let pass.
    pub requests: Option<Quota>,
    /// Tokens of language models, of requests and answers together.
    pub tokens: Option<Quota>,
    /// Money for them, in [`PICODOLLARS`].
    pub usd: Option<Quota>,
}

/// An amount in each window of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// How much.
    pub amount: u64,
    /// In what time.
    pub window: Window,
}

/// Windows begin where the clock says so, in UTC, not when the first byte is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Window {
    /// From `:00` seconds.
    Minute,
    /// From `:00:00`.
    Hour,
    /// From midnight, UTC.
    Day,
}

impl Window {
    /// How long it is, in seconds.
    pub fn seconds(self) -> u64 {
        match self {
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }

    /// As the policy writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "min",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }
}

impl Budget {
    /// Whether what this subject does is counted here.
    pub fn fits(&self, subject: &Subject<'_>) -> bool {
        let listed = |list: &[String], name: &str| {
            let found = list.binary_search_by(|known| known.as_str().cmp(name));
            found.is_ok()
        };
        let identities = self.identities.as_deref();
        (self.workloads.is_empty() || listed(&self.workloads, subject.workload))
            && identities.is_none_or(|list| subject.identity.is_some_and(|one| listed(list, one)))
    }

    /// The workloads whose bytes the kernel counts and stops, and how many each may move: those of a budget that is
    /// somebody's whatever the identity, and of nobody else.
    pub fn kernel_bytes(&self) -> Option<(&[String], Quota)> {
        let own =
            self.each == Some(Each::Workload) || self.workloads.len() == 1 && self.each.is_none();
        let known = own && !self.workloads.is_empty() && self.identities.is_none();
        self.limits
            .bytes
            .filter(|_| known)
            .map(|quota| (self.workloads.as_slice(), quota))
    }

    /// Whether the agent counts any of it.
    pub fn is_the_agents(&self) -> bool {
        let limits = &self.limits;
        let others = limits.requests.or(limits.tokens).or(limits.usd);
        others.or(self.agent_bytes()).is_some()
    }

    /// How many bytes may be moved, where the kernel cannot tell whose they are and the agent counts them.
    pub fn agent_bytes(&self) -> Option<Quota> {
        self.limits.bytes.filter(|_| self.kernel_bytes().is_none())
    }
}

/// How an api's requests name their model, and its answers tell how many tokens they took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Meter {
    /// OpenAI's chat completions, completions, responses and embeddings, and what speaks like them.
    OpenAi,
    /// Anthropic's messages.
    Anthropic,
    /// Google's `generateContent`; the model stands in the path.
    Gemini,
}

/// What a model costs, in picodollars for a token, and how much it says at most.
#[derive(Debug)]
pub struct Price {
    /// The model as the policy names it, with `*` at its end for any rest.
    pub model: String,
    pub(crate) glob: Glob,
    /// For a token of the request.
    pub input: u64,
    /// For one that the provider had kept from an earlier request.
    pub cached: u64,
    /// For one that it keeps for later ones.
    pub cache_write: u64,
    /// For a token of the answer.
    pub output: u64,
    /// Tokens of an answer at most, where the request does not say.
    pub max_output: Option<u64>,
}
