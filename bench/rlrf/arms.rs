//! What the experiment varies, as data: who judges, what an arm trains on and from where, which
//! repetition. Pure. Read it first. Used by everything here.

use std::fmt;
use std::str::FromStr;

use config::{Agent, PairPolicy, Positives, PromptLine, Rejected, StopEarly, Verifier};
use engine::Generation;
use protocol::Objective;

/// Who says which answers are good. Always frozen: generation 0.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Judge {
    /// The model itself.
    Own,
    /// The model itself, beside a comparison of the answer's last number with the reference's. The
    /// reference is not shown to the model: see `shown` for what that does to the nano model.
    Reference,
    /// The verifier alone: the best that any judge could do.
    Gold,
}

/// One training run with what it is about.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Arm {
    /// Supervised fine-tuning on the answers that pass (the paper's RS).
    Rs,
    /// DPO, the best draft against a random worse one by the scalar alone.
    RewardOnly,
    /// DPO by the veto of the aspects, without refinements.
    DraftsOnly,
    /// All of the method, round 1.
    Rlrf1,
    /// All of the method, round 2: explored by, and trained from, [`Arm::Rlrf1`].
    Rlrf2,
    /// Round 2 on top of [`Arm::Rs`].
    RsThenDpo,
}

/// One judge in one repetition.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Unit {
    pub(crate) judge: Judge,
    /// Counted from 1.
    pub(crate) seed: u64,
}

pub(crate) const JUDGES: [Judge; 3] = [Judge::Own, Judge::Reference, Judge::Gold];

/// In an order in which no arm comes before the one that it starts from.
pub(crate) const ARMS: [Arm; 6] =
    [Arm::Rs, Arm::RewardOnly, Arm::DraftsOnly, Arm::Rlrf1, Arm::RsThenDpo, Arm::Rlrf2];

/// The policies that explore: the base, and the arms that a second round goes on from.
pub(crate) const EXPLORERS: [Option<Arm>; 3] = [None, Some(Arm::Rlrf1), Some(Arm::Rs)];

impl Judge {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Reference => "reference",
            Self::Gold => "gold",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Own => "own judge",
            Self::Reference => "own judge and reference",
            Self::Gold => "verifier (gold)",
        }
    }

    /// The agent whose answers this judge judges.
    pub(crate) fn agent(self, agent: &Agent) -> Agent {
        let mut agent = agent.clone();
        // All n + m answers of every problem, as in the paper.
        agent.reflection.stop_early = StopEarly { enough: 0, give_up: 0 };
        agent.reflection.verifier_weight = match self {
            Self::Own => 0.0,
            Self::Reference | Self::Gold => 1.0,
        };
        if self == Self::Gold {
            // The aspects are still judged, but only the verifier counts.
            for rated in &mut agent.aspects {
                rated.weight = 0.0;
            }
        }
        agent
    }

    /// A problem as this judge gets it. A reference is text whose last number is compared, wherever
    /// it stands; the verifier proper wants it in the last line.
    pub(crate) fn line(self, line: &PromptLine) -> PromptLine {
        let mut line = line.clone();
        if self == Self::Reference
            && let Some(Verifier::Numeric { marker, .. }) = &mut line.verifier
        {
            *marker = None;
        }
        line
    }
}

/// The right number, as it would be shown to a judge.
pub(crate) fn reference(line: &PromptLine) -> Option<String> {
    match line.verifier {
        Some(Verifier::Numeric { expected, .. }) => Some(expected.to_string()),
        _ => None,
    }
}

impl Arm {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rs => "rs",
            Self::RewardOnly => "reward_only",
            Self::DraftsOnly => "drafts_only",
            Self::Rlrf1 => "rlrf_1",
            Self::Rlrf2 => "rlrf_2",
            Self::RsThenDpo => "rs_dpo",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Rs => "RS (SFT on positives)",
            Self::RewardOnly => "reward only (DPO)",
            Self::DraftsOnly => "drafts only (DPO)",
            Self::Rlrf1 => "RLRF, round 1 (DPO)",
            Self::Rlrf2 => "RLRF, round 2 (DPO -> DPO)",
            Self::RsThenDpo => "round 2 (RS -> DPO)",
        }
    }

    /// The policy that explores for this arm, and from which it starts; `None`: the base.
    pub(crate) fn start(self) -> Option<Self> {
        match self {
            Self::Rs | Self::RewardOnly | Self::DraftsOnly | Self::Rlrf1 => None,
            Self::Rlrf2 => Some(Self::Rlrf1),
            Self::RsThenDpo => Some(Self::Rs),
        }
    }

    /// Rounds of exploring and training that are behind it.
    pub(crate) fn round(self) -> u32 {
        1 + self.start().map_or(0, Self::round)
    }

    /// The generation that its adapter is loaded as.
    pub(crate) fn generation(self) -> Generation {
        let place = ARMS.iter().position(|&arm| arm == self).expect("ARMS has all of them");
        Generation(u32::try_from(place + 1).expect("there are few arms"))
    }

    pub(crate) fn objective(self, product: Objective) -> Objective {
        if self == Self::Rs { Objective::Sft } else { product }
    }

    /// The product's pairs, but for what the arm is about.
    pub(crate) fn pairs(self, product: &PairPolicy) -> PairPolicy {
        let product = product.clone();
        match self {
            Self::RewardOnly => PairPolicy {
                positives: Positives::Best,
                rejected: Rejected::Random,
                min_margin: 0.0,
                use_refinements: false,
                ..product
            },
            Self::DraftsOnly => PairPolicy { use_refinements: false, ..product },
            Self::Rs | Self::Rlrf1 | Self::Rlrf2 | Self::RsThenDpo => product,
        }
    }
}

/// The generation of an explorer.
pub(crate) fn generation(policy: Option<Arm>) -> Generation {
    policy.map_or(Generation::BASE, Arm::generation)
}

/// The name of a policy.
pub(crate) fn name(policy: Option<Arm>) -> &'static str {
    policy.map_or("m0", Arm::name)
}

impl Unit {
    /// All units by seed, so that the results of the first seed are complete first.
    pub(crate) fn all(seeds: u64) -> Vec<Self> {
        (1..=seeds).flat_map(|seed| JUDGES.map(|judge| Self { judge, seed })).collect()
    }

    /// Of the problems that one of its explorations is about. All judges get the same ones.
    pub(crate) fn prompt_seed(self, policy: Option<Arm>) -> u64 {
        // Far from the small seeds that people use by hand.
        (self.seed << 32) + u64::from(policy.is_some())
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.judge.name(), self.seed)
    }
}

impl FromStr for Unit {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let unit = word.split_once('-').and_then(|(judge, seed)| {
            let judge = JUDGES.into_iter().find(|known| known.name() == judge)?;
            Some(Self { judge, seed: seed.parse().ok().filter(|&seed| 0 < seed)? })
        });
        unit.ok_or_else(|| format!("{word:?} is no unit; name one like own-1, reference-2, gold-3"))
    }
}
