//! The steps of reflection on one prompt with their effects: draft, judge, critique, refine. Each
//! adds to one list of entries and ends early when the session is cut. Decides nothing (`budget`,
//! `choose`) and stores nothing. Used by `inline` and `explore`.

use std::future::{Future, pending};

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use config::Agent;
use engine::{Engine, GenerateRequest, Generation, Priority, Sampling, Token, Weights};
use store::{Assessment, CandidateId, NewCandidate, Parent};

use super::assess::refusal;
use super::batch::{Batch, Critique, Sample, Waiting};
use super::budget::Stop;
use super::choose::{Judged, Verdict};
use super::judge::{Critic, Judge, is_spent};
use super::{Progress, ReflectError, Reflector};

/// Answers of one request at most: enough to fill a batch, and fewer than the engine refuses.
const AT_ONCE: u32 = 32;

/// One prompt under reflection.
#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) reflector: &'a Reflector,
    pub(super) agent: &'a Agent,
    pub(super) judge: Judge<'a>,
    pub(super) policy: Policy<'a>,
    pub(super) cut: Cut<'a>,
    /// Tokens that this session may generate.
    pub(super) max_tokens: usize,
    /// Tokens that it has generated.
    pub(super) generated: usize,
    /// Its place in the list is an entry's name.
    pub(super) entries: Vec<Entry>,
    /// The examples that stand before the prompt of its drafts.
    pub(super) shots: Vec<CandidateId>,
}

/// How candidates are sampled.
#[derive(Debug)]
pub(super) struct Policy<'a> {
    pub(super) weights: Weights,
    pub(super) priority: Priority,
    pub(super) sampling: Sampling,
    /// Of refinements.
    pub(super) refine_temperature: f32,
    pub(super) stop: &'a [String],
    pub(super) top_logprobs: u32,
}

/// A candidate of the prompt.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) origin: Origin,
    /// The weights that wrote it.
    pub(super) generation: Generation,
    /// Which entry it revises, and the critique that it answers.
    pub(super) revises: Option<(usize, Critique)>,
    pub(super) text: String,
    /// As they were sampled.
    pub(super) tokens: Vec<Token>,
    /// Empty: not judged.
    pub(super) assessments: Vec<Assessment>,
}

/// Where a candidate is.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// In the store, with or without its assessments.
    Stored { id: CandidateId, is_judged: bool },
    /// Sampled now.
    Sampled(Sample),
}

/// What ends a session before its work is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut<'a> {
    /// Somebody waits on the other end.
    pub(super) client: Option<&'a mpsc::Sender<Progress>>,
    /// An answer must be served then.
    pub(super) deadline: Option<Instant>,
}

/// A step that did not come to its end.
#[derive(Debug)]
pub(super) enum Halt {
    /// The answers so far are to be served and stored.
    Stop(Stop),
    /// It broke.
    Failed(ReflectError),
}

impl<E: Into<ReflectError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Halt {
    /// Once there are answers, a full context or a full queue is the end of the budget and not of
    /// the request, and a prompt that cannot be judged is the end of the reflection.
    fn once_answered(self) -> Self {
        match self {
            Self::Failed(error) if is_spent(&error) => Self::Stop(Stop::Budget),
            Self::Failed(error @ ReflectError::Unjudgeable) => {
                tracing::warn!(%error, "Answers are left unjudged.");
                Self::Stop(Stop::NoJudge)
            }
            other => other,
        }
    }
}

impl Cut<'_> {
    /// Runs work to its end unless the cut comes first.
    async fn or<T, E: Into<Halt>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Halt> {
        let left = async {
            match self.client {
                Some(client) => client.closed().await,
                None => pending().await,
            }
        };
        let late = async {
            match self.deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => pending().await,
            }
        };
        tokio::select! {
            // In this order, so that work that is ready counts.
            biased;
            result = work => result.map_err(Into::into),
            () = left => Err(Halt::Stop(Stop::ClientLeft)),
            () = late => Err(Halt::Stop(Stop::Budget)),
        }
    }
}

impl Session<'_> {
    /// Asks for the first drafts, at most `n` of them and at least the `needed` ones, which are then
    /// waited for whatever it costs.
    pub(super) async fn start_drafts(
        &self,
        prompt: Vec<Token>,
        n: u32,
        needed: u32,
    ) -> Result<Batch, Halt> {
        let n = n.min(AT_ONCE).max(needed);
        let request = self.request(prompt, n, self.policy.sampling);
        let waiting = self.queue(&self.reflector.engine, request, needed).await?;
        if let Some(client) = self.cut.client {
            let told = client.send(Progress::Queued).await;
            told.map_err(|_| Halt::Stop(Stop::ClientLeft))?;
        }
        self.cut_when(needed == 0).or(waiting.started()).await
    }

    /// Takes started drafts in. Those that the budget has cut off are lost, the others count.
    pub(super) async fn draft(&mut self, batch: Batch, needed: u32) -> Result<(), Halt> {
        let (samples, end) = self.finish(batch, needed).await?;
        self.add(samples, None);
        unless_client_left(end)
    }

    /// Drafts that nobody waits for.
    pub(super) async fn draft_all(&mut self, prompt: Vec<Token>, n: u32) -> Result<(), Halt> {
        self.sample(prompt, n, self.policy.sampling, None).await
    }

    /// Judges every entry that nobody has judged.
    pub(super) async fn judge(&mut self) -> Result<(), Halt> {
        let cut = self.cut;
        cut.or(self.judge.choose()).await.map_err(Halt::once_answered)?;
        let unjudged: Vec<&mut Entry> =
            self.entries.iter_mut().filter(|entry| entry.assessments.is_empty()).collect();
        let texts: Vec<&str> = unjudged.iter().map(|entry| entry.text.as_str()).collect();
        let work = self.judge.assess(&texts);
        let assessments = self.cut.or(work).await.map_err(Halt::once_answered)?;
        for (entry, assessments) in unjudged.into_iter().zip(assessments) {
            entry.assessments = assessments;
        }
        Ok(())
    }

    /// What falls short in an entry: a verifier's reason, where one refuses it, else what the judge
    /// writes when it is asked.
    pub(super) async fn critique(&mut self, index: usize) -> Result<Critique, Halt> {
        let entry = self.entries.get(index).ok_or(Halt::Stop(Stop::NoGain))?;
        if let Some(reason) = refusal(&entry.assessments) {
            return Ok(Critique { text: reason.to_owned(), by: store::Critic::Verifier });
        }
        let left = u32::try_from(self.tokens_left()).unwrap_or(u32::MAX);
        let max_tokens = self.agent.reflection.critique_tokens.min(left);
        let critic = self.judge.critique(&entry.text, &entry.assessments, max_tokens)?;
        let text = match critic.ok_or(Halt::Stop(Stop::NoGain))? {
            Critic::Model(engine, request) => {
                let batch = self.start(engine, request).await.map_err(Halt::once_answered)?;
                let (samples, end) = self.finish(batch, 0).await?;
                let Some(critique) = samples.first() else {
                    return Err(Halt::Stop(end.unwrap_or(Stop::Budget)));
                };
                critique.text()
            }
            Critic::Endpoint(endpoint, messages, max_tokens) => {
                let written = self.cut.or(endpoint.write(&messages, max_tokens)).await?;
                self.generated += written.tokens;
                written.text
            }
        };
        match text.trim() {
            "" => Err(Halt::Stop(Stop::NoGain)),
            text => Ok(Critique { text: text.to_owned(), by: store::Critic::Judge }),
        }
    }

    /// Samples `n` refinements of an entry from the policy, which never sees the reference.
    pub(super) async fn refine(
        &mut self,
        index: usize,
        critique: &Critique,
        n: u32,
        seed: Option<u64>,
    ) -> Result<(), Halt> {
        let entry = self.entries.get(index).ok_or(Halt::Stop(Stop::NoGain))?;
        let (question, text) = (&self.judge.question, &critique.text);
        let messages = self.agent.prompts.refine(question, &entry.text, text)?;
        let prompt = self.reflector.tokens(&messages)?;
        let temperature = self.policy.refine_temperature;
        let sampling = Sampling { temperature, seed, ..self.policy.sampling };
        let revises = Some((index, critique.clone()));
        self.sample(prompt, n, sampling, revises).await.map_err(Halt::once_answered)
    }

    /// The entries as `choose` sees them.
    pub(super) fn judged(&self) -> Vec<Judged> {
        self.entries
            .iter()
            .map(|entry| Judged {
                parent: entry.revises.as_ref().map(|&(parent, _)| parent),
                verdict: Verdict::of(&entry.assessments),
            })
            .collect()
    }

    /// The entries that are not stored yet.
    pub(super) fn new_candidates(&self) -> Vec<NewCandidate> {
        let mut n_new = 0;
        // Where each entry will be found as a parent.
        let places: Vec<Parent> = self
            .entries
            .iter()
            .map(|entry| match entry.origin {
                Origin::Stored { id, .. } => Parent::Stored(id),
                Origin::Sampled(_) => {
                    n_new += 1;
                    Parent::Index(n_new - 1)
                }
            })
            .collect();
        self.entries
            .iter()
            .filter_map(|entry| {
                let Origin::Sampled(sample) = &entry.origin else { return None };
                let revises = entry
                    .revises
                    .as_ref()
                    .and_then(|(parent, critique)| Some((*places.get(*parent)?, critique.clone())));
                let candidate = sample.to_candidate(revises, entry.assessments.clone());
                let shots = if entry.revises.is_none() { self.shots.clone() } else { Vec::new() };
                Some(NewCandidate { shots, ..candidate })
            })
            .collect()
    }

    /// Those entries have been stored, under these ids.
    pub(super) fn stored(&mut self, ids: Vec<CandidateId>) {
        let sampled = self.entries.iter_mut();
        let sampled = sampled.filter(|entry| matches!(entry.origin, Origin::Sampled(_)));
        for (entry, id) in sampled.zip(ids) {
            entry.origin = Origin::Stored { id, is_judged: !entry.assessments.is_empty() };
        }
    }

    /// Samples `n` answers and adds those that are complete.
    async fn sample(
        &mut self,
        prompt: Vec<Token>,
        n: u32,
        mut sampling: Sampling,
        revises: Option<(usize, Critique)>,
    ) -> Result<(), Halt> {
        // A refinement mostly keeps what was right in its parent.
        let parent = revises.as_ref().and_then(|(parent, _)| self.entries.get(*parent));
        let prediction = parent.map(|parent| parent.tokens.clone()).unwrap_or_default();
        let mut left = n;
        while 0 < left {
            let now = left.min(AT_ONCE);
            let request = self.request(prompt.clone(), now, sampling);
            let request = GenerateRequest { prediction: prediction.clone(), ..request };
            let batch = self.start(&self.reflector.engine, request).await?;
            let (samples, end) = self.finish(batch, 0).await?;
            self.add(samples, revises.as_ref());
            if end.is_some() {
                return unless_client_left(end);
            }
            left -= now;
            sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(u64::from(now)));
        }
        Ok(())
    }

    fn add(&mut self, samples: Vec<Sample>, revises: Option<&(usize, Critique)>) {
        self.entries.extend(samples.into_iter().map(|sample| Entry {
            text: sample.text(),
            tokens: sample.tokens(),
            generation: sample.generation,
            origin: Origin::Sampled(sample),
            revises: revises.cloned(),
            assessments: Vec::new(),
        }));
    }

    fn tokens_left(&self) -> usize {
        self.max_tokens.saturating_sub(self.generated)
    }

    fn request(&self, prompt: Vec<Token>, n: u32, sampling: Sampling) -> GenerateRequest {
        let Policy { weights, priority, top_logprobs, .. } = self.policy;
        GenerateRequest {
            prompt,
            n,
            sampling,
            stop: self.policy.stop.to_vec(),
            top_logprobs,
            prediction: Vec::new(),
            weights,
            priority,
        }
    }

    async fn start(&self, engine: &Engine, request: GenerateRequest) -> Result<Batch, Halt> {
        let waiting = self.queue(engine, request, 0).await?;
        self.cut.or(waiting.started()).await
    }

    async fn queue(
        &self,
        engine: &Engine,
        request: GenerateRequest,
        needed: u32,
    ) -> Result<Waiting, Halt> {
        if needed == 0 && self.tokens_left() == 0 {
            return Err(Halt::Stop(Stop::Budget));
        }
        self.cut_when(needed == 0).or(Waiting::queue(engine, request)).await
    }

    /// Waits for all answers of a batch; once `needed` are complete, only inside the budget.
    async fn finish(
        &mut self,
        mut batch: Batch,
        needed: u32,
    ) -> Result<(Vec<Sample>, Option<Stop>), ReflectError> {
        let end = loop {
            let enough = needed <= batch.n_complete();
            if enough && self.tokens_left() <= batch.n_tokens() {
                break Some(Stop::Budget);
            }
            match self.cut_when(enough).or(batch.next()).await {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(Halt::Stop(stop)) => break Some(stop),
                Err(Halt::Failed(error)) => return Err(error),
            }
        };
        self.generated += batch.n_tokens();
        Ok((batch.into_samples(), end))
    }

    /// The session's cut; while an answer is still owed only the client can end it.
    fn cut_when(&self, enough: bool) -> Cut<'_> {
        Cut { deadline: self.cut.deadline.filter(|_| enough), ..self.cut }
    }
}

/// A batch that the budget has cut short still leaves answers to judge.
fn unless_client_left(end: Option<Stop>) -> Result<(), Halt> {
    match end {
        Some(Stop::ClientLeft) => Err(Halt::Stop(Stop::ClientLeft)),
        _ => Ok(()),
    }
}
