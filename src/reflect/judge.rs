//! Asks the judge for levels and critiques: one scoring call an aspect in a fresh context, one short
//! text for what falls short. The judge is generation 0 of the served model, a second model, or an
//! endpoint; the adapter that is being trained never grades itself. Used by `session`, and by
//! [`Reflector::assess`].

pub(super) mod endpoint;
mod http;
pub(super) mod model;
#[cfg(test)]
mod tests;

use config::{Agent, AgentAspect, AspectChoice, JudgeConfig, Pass, Promising, ScalarConfig};
use engine::{EngineError, GenerateRequest, Priority};
use prompt::{Message, PromptError, Role};
use store::{Assessment, ChosenAspects, JudgeThreshold, Standard};

use self::endpoint::Asking;
use self::model::ModelJudge;
use super::assess::{
    Scored, Verification, bar, by_reference, choose, read_scores, reward, shortfalls, standard,
    view, weigh_reward, worst,
};
use super::verify::command::Question;
use super::verify::equals_reference;
use super::{ReflectError, Reflector, question};

/// The judge of one prompt's answers.
#[derive(Debug)]
pub(super) struct Judge<'a> {
    reflector: &'a Reflector,
    agent: &'a Agent,
    source: Source<'a>,
    /// The conversation without the system text.
    turns: Vec<Message>,
    /// See [`super::question`].
    pub(super) question: String,
    /// Shown to the judge only.
    reference: Option<&'a str>,
    verification: Option<Verification>,
    priority: Priority,
    /// By which this prompt is judged; all that may be chosen as long as `is_open`.
    aspects: Vec<AgentAspect>,
    is_open: bool,
    /// The judge's choice, when there is one.
    pub(super) choice: Option<ChosenAspects>,
}

/// Who is asked.
#[derive(Debug)]
enum Source<'a> {
    Nobody,
    Model(ModelJudge<'a>),
    Endpoint(Asking<'a>),
}

/// Who writes a critique.
#[derive(Debug)]
pub(super) enum Critic<'a> {
    /// A model of this process, which wants this request.
    Model(&'a engine::Engine, GenerateRequest),
    /// An endpoint, which wants this conversation and so many tokens at most.
    Endpoint(&'a Asking<'a>, Vec<Message>, u32),
}

impl<'a> Judge<'a> {
    /// `messages`: the conversation whose answers are judged.
    pub(super) fn new(
        reflector: &'a Reflector,
        agent: &'a Agent,
        messages: &[Message],
        priority: Priority,
    ) -> Result<Self, ReflectError> {
        Ok(Self {
            source: reflector.judge_of(agent)?,
            reflector,
            agent,
            turns: messages.iter().filter(|it| it.role != Role::System).cloned().collect(),
            question: question(messages),
            reference: None,
            verification: None,
            priority,
            aspects: agent.aspects.clone(),
            is_open: agent.aspect_choice != AspectChoice::All,
            choice: None,
        })
    }

    /// What the answer is compared with.
    pub(super) fn with(
        self,
        reference: Option<&'a str>,
        verification: Option<Verification>,
    ) -> Self {
        Self { reference, verification, ..self }
    }

    /// Judges by these aspects and asks for no others: an earlier choice, or what the prompt's
    /// answers have been judged by before. Aspects that the agent no longer has are passed over.
    pub(super) fn with_aspects(mut self, names: &[String]) -> Self {
        let is_named = |rated: &AgentAspect| names.contains(&rated.aspect.name);
        if self.is_open && self.aspects.iter().any(is_named) {
            self.aspects.retain(is_named);
            self.is_open = false;
        }
        self
    }

    /// Chooses the aspects, once, where the agent leaves that to the judge. Asked for twice, a
    /// prompt gets the same aspects.
    pub(super) async fn choose(&mut self) -> Result<(), ReflectError> {
        let AspectChoice::Judge(k) = self.agent.aspect_choice else { return Ok(()) };
        if !self.is_open {
            return Ok(());
        }
        let key = self.choice_key(k);
        let cell = self.reflector.choices.cell(key);
        let choice = cell.get_or_try_init(|| self.ask_for_choice(k)).await?.clone();
        self.aspects.retain(|rated| choice.chosen.contains(&rated.aspect.name));
        self.choice = Some(choice);
        self.is_open = false;
        Ok(())
    }

    async fn ask_for_choice(&self, k: usize) -> Result<ChosenAspects, ReflectError> {
        let prompts = &self.agent.prompts;
        let asked = self.aspects.iter().map(|rated| prompts.choose(&self.question, &view(rated)));
        let asked = asked.collect::<Result<Vec<_>, _>>()?;
        let scored = self.score(vec![asked]).await?.pop().flatten();
        Ok(choose(&self.aspects, &scored.ok_or(ReflectError::Unjudgeable)?, k))
    }

    /// What a choice depends on.
    fn choice_key(&self, k: usize) -> String {
        let versions: Vec<&str> =
            self.aspects.iter().map(|rated| rated.aspect.version.as_str()).collect();
        serde_json::json!([self.name(), k, versions, self.question]).to_string()
    }

    /// Judges answers, all aspects of all answers in one request. An answer that cannot be judged,
    /// because it is too long or gets no level, has no assessments: the verifier's word alone would
    /// count as the word of all. Where an answer equals the reference, nobody is asked whether it is
    /// right.
    pub(super) async fn assess(
        &self,
        answers: &[&str],
    ) -> Result<Vec<Vec<Assessment>>, ReflectError> {
        let open: Vec<_> = answers.iter().map(|answer| self.open(answer)).collect();
        let asked = answers.iter().zip(&open).map(|(answer, open)| self.readings(answer, open));
        let scored = self.score(asked.collect::<Result<_, _>>()?).await?;
        let (name, bars) = (self.name(), self.reflector.bars(self.agent).await?);
        let mut assessments = Vec::with_capacity(answers.len());
        for ((answer, open), scored) in answers.iter().zip(open).zip(scored) {
            let Some(scored) = scored else {
                tracing::warn!("An answer is too long for the judge, or gets no level from it.");
                assessments.push(Vec::new());
                continue;
            };
            let scored = worst(open.len(), &scored);
            let mut judged = read_scores(self.agent, &open, &name, &bars, &scored).into_iter();
            let of_aspect = |rated: &AgentAspect| {
                let is_open = open.iter().any(|it| it.aspect.name == rated.aspect.name);
                if is_open { judged.next() } else { Some(by_reference(self.agent, rated, &name)) }
            };
            let mut own: Vec<Assessment> = self.aspects.iter().filter_map(of_aspect).collect();
            if let Some(verification) = &self.verification {
                let question =
                    Question { prompt: &self.question, answer, reference: self.reference };
                own.extend(verification.assess(&self.reflector.programs, question).await?);
            }
            assessments.push(own);
        }
        self.reward(answers, &mut assessments).await?;
        Ok(assessments)
    }

    /// Adds a reward model's number to every judged answer, where the agent has one.
    async fn reward(
        &self,
        answers: &[&str],
        assessments: &mut [Vec<Assessment>],
    ) -> Result<(), ReflectError> {
        let ScalarConfig::Reward(config) = &self.agent.scalar else { return Ok(()) };
        let missing = || ReflectError::NoModel("scalar.reward_model");
        let model = self.reflector.reward.as_ref().ok_or_else(missing)?;
        let mut sequences = Vec::new();
        let mut slots = Vec::new();
        for (answer, slot) in answers.iter().zip(assessments) {
            // The judge has no word on it, and the reward model's alone would count as the word of all.
            if slot.is_empty() && !self.aspects.is_empty() {
                continue;
            }
            let tokens = model.tokens(&self.turns, answer)?;
            if model.limit() < tokens.len() {
                tracing::warn!("An answer is too long for the reward model.");
                slot.clear();
                continue;
            }
            sequences.push(tokens);
            slots.push(slot);
        }
        if sequences.is_empty() {
            return Ok(());
        }
        let rewards = model.score(sequences, self.priority).await?;
        for (slot, value) in slots.into_iter().zip(rewards) {
            slot.push(reward(config, &model.name(), value));
            weigh_reward(slot);
        }
        Ok(())
    }

    /// Who writes a critique of a judged answer; `None` when there is nothing to criticise.
    pub(super) fn critique(
        &self,
        answer: &str,
        assessments: &[Assessment],
        max_tokens: u32,
    ) -> Result<Option<Critic<'_>>, PromptError> {
        let mut aspects = shortfalls(&self.aspects, assessments);
        if aspects.is_empty() && self.agent.reflection.promising == Promising::Best {
            // As in the paper: the best answer is revised whatever its levels are.
            aspects = self.aspects.iter().map(view).collect();
        }
        if aspects.is_empty() {
            return Ok(None);
        }
        let prompts = &self.agent.prompts;
        let messages = prompts.critique(&self.question, answer, self.reference, &aspects)?;
        Ok(match &self.source {
            Source::Nobody => None,
            Source::Model(model) => {
                let request = model.writing(&messages, max_tokens, self.priority)?;
                Some(Critic::Model(model.engine(), request))
            }
            Source::Endpoint(endpoint) => Some(Critic::Endpoint(endpoint, messages, max_tokens)),
        })
    }

    /// The aspects that the judge has to be asked about: those that ask whether the answer is right
    /// are settled where it equals the reference.
    fn open(&self, answer: &str) -> Vec<AgentAspect> {
        let is_equal = || self.reference.is_some_and(|wanted| equals_reference(wanted, answer));
        let mut open = self.aspects.clone();
        if open.iter().any(|rated| rated.aspect.correctness) && is_equal() {
            open.retain(|rated| !rated.aspect.correctness);
        }
        open
    }

    /// One conversation an aspect, for each reading of the answer.
    fn readings(
        &self,
        answer: &str,
        aspects: &[AgentAspect],
    ) -> Result<Vec<Vec<Message>>, PromptError> {
        let prompts = &self.agent.prompts;
        let mut all = Vec::new();
        for reading in prompts.readings(answer) {
            for rated in aspects {
                all.push(prompts.assess(&self.question, &reading, self.reference, &view(rated))?);
            }
        }
        Ok(all)
    }

    /// The levels after each conversation of each group; `None` for a group that gets none.
    async fn score(
        &self,
        groups: Vec<Vec<Vec<Message>>>,
    ) -> Result<Vec<Option<Vec<Scored>>>, ReflectError> {
        if groups.iter().all(Vec::is_empty) {
            return Ok(groups.into_iter().map(|_| Some(Vec::new())).collect());
        }
        match &self.source {
            Source::Nobody => Err(ReflectError::NoModel("judge")),
            Source::Model(model) => model.score(self.agent, groups, self.priority).await,
            Source::Endpoint(endpoint) => {
                Ok(endpoint.score(self.agent.prompts.labels(), groups).await?)
            }
        }
    }

    fn name(&self) -> String {
        self.source.name()
    }
}

impl Source<'_> {
    fn name(&self) -> String {
        match self {
            Self::Nobody => "nobody".to_owned(),
            Self::Model(model) => model.name(),
            Self::Endpoint(endpoint) => endpoint.name(None),
        }
    }
}

impl Reflector {
    /// Who judges this agent's answers, as assessments say it.
    pub fn judge_name(&self, agent: &Agent) -> Result<String, ReflectError> {
        Ok(self.judge_of(agent)?.name())
    }

    /// Whether verdicts on this agent's answers depend on what is judged alone; `None`: no model of this
    /// process judges.
    pub fn judges_deterministically(&self, agent: &Agent) -> Result<Option<bool>, ReflectError> {
        Ok(match self.judge_of(agent)? {
            Source::Nobody | Source::Endpoint(_) => None,
            Source::Model(model) => Some(model.is_deterministic()),
        })
    }

    /// What the agent's aspects are judged by at present, in their order.
    pub fn standards(&self, agent: &Agent) -> Result<Vec<Standard>, ReflectError> {
        let judge = self.judge_name(agent)?;
        Ok(agent.aspects.iter().map(|rated| standard(agent, rated, &judge)).collect())
    }

    /// The bars of the agent's aspects at present, in their order.
    pub async fn bars_in_force(&self, agent: &Agent) -> Result<Vec<f64>, ReflectError> {
        let calibrated = self.bars(agent).await?;
        let standards = self.standards(agent)?.into_iter();
        let rated = agent.aspects.iter().zip(standards);
        Ok(rated.map(|(rated, standard)| bar(rated.pass, &standard, &calibrated)).collect())
    }

    /// What calibration has found, where an aspect wants to know.
    async fn bars(&self, agent: &Agent) -> Result<Vec<JudgeThreshold>, ReflectError> {
        if agent.aspects.iter().all(|rated| rated.pass != Pass::Calibrated) {
            return Ok(Vec::new());
        }
        Ok(self.store.judge_thresholds(agent.name.clone()).await?)
    }

    /// What becomes the one number of this agent's answers.
    pub fn scalar_name(&self, agent: &Agent) -> String {
        match (&agent.scalar, &self.reward) {
            (ScalarConfig::Reward(_), Some(model)) => model.name(),
            _ => "mean of the aspects".to_owned(),
        }
    }

    fn judge_of<'a>(&'a self, agent: &'a Agent) -> Result<Source<'a>, ReflectError> {
        Ok(match &agent.judge {
            JudgeConfig::Nobody => Source::Nobody,
            JudgeConfig::Own => Source::Model(ModelJudge::base(&self.engine, &self.template)),
            JudgeConfig::Model(_) => {
                let second = self.second.as_ref().ok_or(ReflectError::NoModel("judge.model"))?;
                Source::Model(ModelJudge::second(&second.engine, &second.template))
            }
            JudgeConfig::Endpoint(config) => Source::Endpoint(Asking::new(config, &self.calls)),
        })
    }

    /// Checks what only the loaded models can tell of an agent's judge.
    pub(super) fn check_judge(&self, agent: &Agent) -> Result<(), ReflectError> {
        if let (Source::Model(model), [_, ..]) = (self.judge_of(agent)?, agent.aspects.as_slice()) {
            model.labels(agent)?;
            let views: Vec<_> = agent.aspects.iter().map(view).collect();
            model.tokens(&agent.prompts.critique("?", "!", None, &views)?)?;
        }
        if let (ScalarConfig::Reward(_), Some(reward)) = (&agent.scalar, &self.reward) {
            let turn = Message { role: Role::User, content: "?".into() };
            reward.tokens(std::slice::from_ref(&turn), "!")?;
        }
        Ok(())
    }
}

/// Errors after which the answers so far can still be served: the context is full, the generation
/// has been retired, the queue is full.
pub(super) fn is_spent(error: &ReflectError) -> bool {
    matches!(
        error,
        ReflectError::Engine(
            EngineError::TooLong { .. }
                | EngineError::NotLoaded(_)
                | EngineError::Overloaded { .. }
        )
    )
}
