//! What the benchmark varies, as data: which task, how it is learned, which repetition; and the controls.
//! Pure. Read it first. Used by everything here.

use std::fmt;
use std::str::FromStr;

use crate::setting::Scale;
use crate::task::{KINDS, Kind};

/// How a task is learned.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Arm {
    /// Not at all.
    Base,
    /// A run on the examples alone.
    Sft,
    /// The same with the prompts of the night as examples too.
    SftAll,
    /// Supervised fine-tuning on verified answers.
    Rs,
    /// Preferences alone.
    Dpo,
    /// The two, one night after the other.
    RsDpo,
    /// What the product does when nobody says anything.
    Auto,
    /// The same with refinements in any case.
    AutoRefined,
}

pub(crate) const ARMS: [Arm; 8] =
    [Arm::Base, Arm::Sft, Arm::SftAll, Arm::Rs, Arm::Dpo, Arm::RsDpo, Arm::Auto, Arm::AutoRefined];

/// A part of a night, with a run and a gate of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Round {
    /// A run on the owner's examples.
    Examples,
    /// Explores, then trains by this objective; `None`: by the product's own.
    Practice(Option<&'static str>),
}

impl Arm {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Sft => "sft",
            Self::SftAll => "sft_all",
            Self::Rs => "rs",
            Self::Dpo => "dpo",
            Self::RsDpo => "rs_dpo",
            Self::Auto => "auto",
            Self::AutoRefined => "auto_refined",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Sft => "SFT on the examples",
            Self::SftAll => "SFT on examples and practice",
            Self::Rs => "RS",
            Self::Dpo => "DPO",
            Self::RsDpo => "RS, then DPO",
            Self::Auto => "a night (defaults)",
            Self::AutoRefined => "a night with refinements",
        }
    }

    /// Whether the prompts of the night are examples too.
    pub(crate) fn has_all(self) -> bool {
        self == Self::SftAll
    }

    /// In order. A task with examples begins with them.
    pub(crate) fn rounds(self, kind: Kind) -> Vec<Round> {
        let practice: &[Round] = match self {
            Self::Base | Self::Sft | Self::SftAll => &[],
            Self::Rs => &[Round::Practice(Some("rs"))],
            Self::Dpo => &[Round::Practice(Some("dpo"))],
            Self::RsDpo => &[Round::Practice(Some("rs")), Round::Practice(Some("dpo"))],
            Self::Auto | Self::AutoRefined => &[Round::Practice(None)],
        };
        let begins = self != Self::Base && kind.has_examples();
        begins.then_some(Round::Examples).into_iter().chain(practice.iter().copied()).collect()
    }
}

/// One piece of work that `--only` can name.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Unit {
    /// A task and an arm in one repetition, counted from 1.
    Learn(Kind, Arm, u64),
    /// Five nights in a row.
    Nights(Kind),
    /// Nights whose verifier tosses a coin.
    Coin,
    /// An adapter that is equal to what is served, put through the gate.
    Same,
}

impl Unit {
    /// All units. What has a goal in the first table comes first.
    pub(crate) fn all(scale: &Scale, has_data: bool) -> Vec<Self> {
        let seeds = || 1..=scale.seeds;
        let once = |kind, arms: &[Arm]| -> Vec<Self> {
            arms.iter().map(|arm| Self::Learn(kind, *arm, 1)).collect()
        };
        let every = |kind, arm| seeds().map(move |seed| Self::Learn(kind, arm, seed));
        let mut units = KINDS.map(|kind| Self::Learn(kind, Arm::Base, 1)).to_vec();
        units.retain(|unit| !matches!(unit, Self::Learn(Kind::SentenceParts, ..)));
        units.extend(every(Kind::Sentence, Arm::Auto));
        units.extend(every(Kind::Intent, Arm::Auto));
        units.extend(once(Kind::Intent, &[Arm::SftAll]));
        units.extend(once(Kind::Slots, &[Arm::Auto]));
        units.extend(once(Kind::Home, &[Arm::Auto]));
        units.extend(once(Kind::Maths, &[Arm::Auto]));
        units.extend([Self::Same, Self::Nights(Kind::Sentence), Self::Nights(Kind::Home)]);
        let others = [Arm::Rs, Arm::Dpo, Arm::RsDpo, Arm::AutoRefined];
        for kind in [Kind::Sentence, Kind::Intent, Kind::Home] {
            units.extend(once(kind, &others));
        }
        units.extend(once(Kind::SentenceParts, &[Arm::Auto]));
        units.push(Self::Coin);
        units.retain(|unit| has_data || !unit.kind().is_public());
        units
    }

    /// The task that it is about.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Learn(kind, ..) | Self::Nights(kind) => kind,
            Self::Coin | Self::Same => Kind::Sentence,
        }
    }

    /// Whether `--only` with this word means it: its whole name, or the beginning of it up to a `/` or `-`.
    pub(crate) fn is_named(self, word: &str) -> bool {
        let name = self.to_string();
        name.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '-']))
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Learn(kind, Arm::Base, _) => write!(formatter, "{}/base", kind.name()),
            Self::Learn(kind, arm, seed) => {
                write!(formatter, "{}/{}-{seed}", kind.name(), arm.name())
            }
            Self::Nights(kind) => write!(formatter, "{}/nights", kind.name()),
            Self::Coin => formatter.write_str("control/coin"),
            Self::Same => formatter.write_str("control/same"),
        }
    }
}

/// The units that `--only` names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Wanted(String);

impl Wanted {
    pub(crate) fn names(&self, unit: Unit) -> bool {
        unit.is_named(&self.0)
    }
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let seeds = 1..=9;
        let arms = || KINDS.into_iter().flat_map(|kind| ARMS.map(|arm| (kind, arm)));
        let learn = arms()
            .flat_map(|(kind, arm)| seeds.clone().map(move |seed| Unit::Learn(kind, arm, seed)));
        let nights = KINDS.into_iter().map(Unit::Nights);
        let mut all = learn.chain(nights).chain([Unit::Coin, Unit::Same]);
        if all.any(|unit| unit.is_named(word)) {
            return Ok(Self(word.to_owned()));
        }
        let names: Vec<String> =
            Unit::all(&Scale::FULL, true).iter().map(ToString::to_string).collect();
        Err(format!("{word:?} is no unit; name one, or how some begin: {}", names.join(", ")))
    }
}
