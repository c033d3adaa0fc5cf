//! SQLite behind one owner thread, and the handle that everyone else has. Only this folder names
//! rusqlite. Every method is one transaction and returns after it is committed. Used by `reflect`,
//! `learn` and `api`.

mod columns;
mod evaluations;
mod exchanges;
mod expected;
mod feedback;
mod filled;
mod generations;
mod journal;
mod practice;
mod require;
mod rows;
mod runs;
mod schema;
mod set_aside;
#[cfg(test)]
mod tests;
mod thread;
mod trust;
mod watches;

use std::collections::HashSet;
use std::path::PathBuf;

use inference::Generation;
use prompt::Message;

pub use rows::{
    Assessment, Author, Candidate, CandidateId, ChosenAspects, Counts, Critic, EarlierPair,
    Evaluation, Event, ExampleRow, Exchange, ExchangeId, Expected, Feedback, FilePrompt, Filled,
    GenerationRow, JudgeReport, JudgeThreshold, Kept, Live, NewCandidate, NewExchange, PairRow,
    Parent, PromptCheck, Relevance, Run, RunId, RunState, Source, Standard, TodaysCheck, Unjudged,
    Watch, WatchState,
};
pub use thread::{Store, StoreThread, spawn};

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such row.
    #[error("no {what} {id}")]
    NotFound {
        /// `exchange`, `candidate`, `run`, `generation`.
        what: &'static str,
        /// The id that was asked for.
        id: i64,
    },
    /// The file was written by a newer version.
    #[error("{path} was written by a newer reflectd; use that version, or another state folder")]
    TooNew {
        /// The database.
        path: PathBuf,
    },
    /// SQLite refused.
    #[error("{action}")]
    Database {
        /// What was tried, on which object.
        action: &'static str,
        /// SQLite's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store thread has ended.
    #[error("the store has stopped")]
    Stopped,
}

type Result<T> = std::result::Result<T, StoreError>;

impl Store {
    /// Stores a prompt with the candidates made so far and the index of the served one.
    pub async fn record_exchange(
        &self,
        exchange: NewExchange,
        candidates: Vec<NewCandidate>,
        served: Option<usize>,
    ) -> Result<(ExchangeId, Vec<CandidateId>)> {
        self.write("store an exchange", move |tx| {
            exchanges::insert(tx, &exchange, &candidates, served)
        })
        .await
    }
    /// Notes by which aspects a prompt's answers are judged from now on.
    pub async fn set_aspect_choice(
        &self,
        exchange: ExchangeId,
        choice: ChosenAspects,
    ) -> Result<()> {
        self.write("store a choice of aspects", move |tx| {
            exchanges::set_aspect_choice(tx, exchange, &choice)
        })
        .await
    }
    /// Adds candidates to a stored prompt.
    pub async fn add_candidates(
        &self,
        exchange: ExchangeId,
        candidates: Vec<NewCandidate>,
    ) -> Result<Vec<CandidateId>> {
        self.write("store candidates", move |tx| {
            exchanges::insert_candidates(tx, exchange, &candidates)
        })
        .await
    }
    /// Adds assessments to a stored candidate (background reflection judges a draft after the
    /// reply). Of several assessments by one aspect the newest counts; the others stay as history.
    pub async fn add_assessments(
        &self,
        candidate: CandidateId,
        assessments: Vec<Assessment>,
    ) -> Result<()> {
        self.write("store assessments", move |tx| {
            exchanges::insert_assessments(tx, candidate, &assessments)
        })
        .await
    }
    /// Judges candidates anew: all that was said of each before becomes history.
    pub async fn replace_assessments(
        &self,
        judged: Vec<(CandidateId, Vec<Assessment>)>,
    ) -> Result<()> {
        self.write("replace assessments", move |tx| exchanges::replace_assessments(tx, &judged))
            .await
    }
    /// Everything that was ever said of a candidate, oldest first.
    pub async fn assessment_history(&self, candidate: CandidateId) -> Result<Vec<Assessment>> {
        self.read("read old assessments", move |tx| exchanges::history(tx, candidate)).await
    }
    /// One exchange with everything that belongs to it.
    pub async fn exchange(&self, id: ExchangeId) -> Result<Exchange> {
        self.read("read an exchange", move |tx| exchanges::one(tx, id)).await
    }
    /// The newest exchanges, newest first; `before` pages.
    pub async fn exchanges(
        &self,
        before: Option<ExchangeId>,
        limit: usize,
    ) -> Result<Vec<Exchange>> {
        self.read("list exchanges", move |tx| exchanges::newest(tx, before, limit)).await
    }
    /// Exchanges of these agents that somebody has judged, the model or the owner, oldest first, for
    /// pairing; a page of `limit` after `after`. Candidates that nobody assessed are there too.
    pub async fn learnable(
        &self,
        agents: Vec<String>,
        after: Option<ExchangeId>,
        limit: usize,
    ) -> Result<Vec<Exchange>> {
        self.read("list exchanges to learn from", move |tx| {
            exchanges::learnable(tx, &agents, after, limit)
        })
        .await
    }
    /// An agent's exchanges that have fewer than n drafts or m refinements of any generation, or with
    /// `anew` of this one, or answers of any that nobody has judged, fewest candidates first. Tries are
    /// those of `generation`.
    pub async fn explorable(
        &self,
        agent: String,
        (n, m): (u32, u32),
        generation: Generation,
        anew: bool,
    ) -> Result<Vec<Filled>> {
        self.read("list exchanges to explore", move |tx| {
            filled::explorable(tx, &agent, (n, m), generation, anew)
        })
        .await
    }
    /// What an agent's judge has still to say.
    pub async fn unjudged(&self, agent: String) -> Result<Unjudged> {
        self.read("count what is not judged", move |tx| filled::unjudged(tx, &agent)).await
    }
    /// Stores prompts of files in one transaction, each once an agent: one that is there gets the
    /// reference, verifier and example that the file says now.
    pub async fn keep_prompts(&self, prompts: Vec<FilePrompt>) -> Result<Vec<(ExchangeId, Kept)>> {
        self.write("store the prompts of a file", move |tx| practice::keep(tx, &prompts)).await
    }
    /// What was said of the model's answers to these prompts beside another reference than that of today
    /// no longer counts: nobody has judged them then.
    pub async fn forget_other_references(&self, prompts: Vec<ExchangeId>) -> Result<()> {
        self.write("forget what was judged beside another reference", move |tx| {
            practice::forget_other_references(tx, &prompts)
        })
        .await
    }
    /// The answers to these prompts that were judged once or are examples, and that another version
    /// than that of today has checked, or none, or with another weight. By prompt.
    pub async fn checked_otherwise(
        &self,
        today: Vec<TodaysCheck>,
    ) -> Result<Vec<(ExchangeId, CandidateId)>> {
        self.read("list answers to check again", move |tx| practice::checked_otherwise(tx, &today))
            .await
    }
    /// From now on a prompt's verifier names this answer whole, which becomes its example; `None`: it
    /// names none, and what it named before is no example any more. Whether that is new. The owner's own
    /// examples stay as they are.
    pub async fn set_expected(
        &self,
        exchange: ExchangeId,
        answer: Option<NewCandidate>,
    ) -> Result<bool> {
        self.write("store the answer that a verifier names", move |tx| {
            expected::set(tx, exchange, answer.as_ref())
        })
        .await
    }
    /// Prompts of an agent whose example is what their verifier names.
    pub async fn expected(&self, agent: String) -> Result<Vec<ExchangeId>> {
        self.read("list the answers that verifiers name", move |tx| expected::all(tx, &agent)).await
    }
    /// The examples for these agents: of each prompt what its verifier names, else the newest one of the
    /// owner unless the verifier refuses it, in the order of the prompts.
    pub async fn examples(&self, agents: Vec<String>) -> Result<Vec<ExampleRow>> {
        self.read("list examples", move |tx| practice::examples(tx, &agents)).await
    }
    /// How answers are checked to the prompts of an agent's examples, also of those that their verifier refuses.
    pub async fn example_checks(&self, agent: String) -> Result<Vec<PromptCheck>> {
        self.read("list the prompts of examples", move |tx| practice::example_checks(tx, &agent))
            .await
    }
    /// Prompts of these agents to which the model itself has given an answer that passes.
    pub async fn n_solved(&self, agents: Vec<String>) -> Result<usize> {
        self.read("count solved prompts", move |tx| practice::n_solved(tx, &agents)).await
    }
    /// Takes these prompts out of training for good.
    pub async fn set_aside(&self, exchanges: Vec<ExchangeId>) -> Result<()> {
        self.write("set prompts aside", move |tx| set_aside::insert(tx, &exchanges)).await
    }
    /// All prompts that were taken out of training, oldest first.
    pub async fn all_set_aside(&self) -> Result<Vec<Exchange>> {
        self.read("list prompts that were set aside", set_aside::all).await
    }
    /// What these agents were asked and no run has learned from, oldest first; no examples.
    pub async fn unlearned_prompts(
        &self,
        agents: Vec<String>,
    ) -> Result<Vec<(ExchangeId, Vec<Message>)>> {
        self.read("list prompts", move |tx| set_aside::unlearned(tx, &agents)).await
    }
    /// The other prompts of these agents: some run has learned from them, or there is an example.
    pub async fn learned_prompts(
        &self,
        agents: Vec<String>,
    ) -> Result<Vec<(ExchangeId, Vec<Message>)>> {
        self.read("list learned prompts", move |tx| set_aside::learned(tx, &agents)).await
    }
    /// Stores a rating of the owner.
    pub async fn add_feedback(&self, feedback: Feedback) -> Result<()> {
        self.write("store feedback", move |tx| feedback::insert(tx, &feedback)).await
    }
    /// Stores an edit of the owner, and the edited text as an answer of its own.
    pub async fn add_edit(&self, feedback: Feedback, edit: NewCandidate) -> Result<CandidateId> {
        self.write("store an edit", move |tx| {
            feedback::insert(tx, &feedback)?;
            let ids = exchanges::insert_candidates(tx, feedback.exchange, &[edit])?;
            Ok(*ids.first().expect("one candidate gives one id"))
        })
        .await
    }
    /// All feedback on one exchange, oldest first.
    pub async fn feedback(&self, exchange: ExchangeId) -> Result<Vec<Feedback>> {
        self.read("read feedback", move |tx| feedback::of(tx, exchange)).await
    }
    /// Stores a run that starts, with its pairs.
    pub async fn start_run(
        &self,
        start: Generation,
        data_sha256: String,
        job: serde_json::Value,
        pairs: Vec<PairRow>,
    ) -> Result<RunId> {
        self.write("store a run", move |tx| runs::insert(tx, start, &data_sha256, &job, &pairs))
            .await
    }
    /// Moves a run on. `metrics` is merged into what is stored; without `reason` the old one stays.
    pub async fn update_run(
        &self,
        run: RunId,
        state: RunState,
        reason: Option<String>,
        metrics: serde_json::Value,
    ) -> Result<()> {
        self.write("update a run", move |tx| runs::update(tx, run, state, reason, metrics)).await
    }
    /// One run.
    pub async fn run(&self, run: RunId) -> Result<Run> {
        self.read("read a run", move |tx| runs::one(tx, run)).await
    }
    /// The newest runs, newest first.
    pub async fn runs(&self, limit: usize) -> Result<Vec<Run>> {
        self.read("list runs", move |tx| runs::newest(tx, limit)).await
    }
    /// All (chosen, rejected) that a run has learned from which came to a verdict.
    pub async fn learned(&self) -> Result<HashSet<(Option<CandidateId>, Option<CandidateId>)>> {
        self.read("read what was learned", runs::learned).await
    }
    /// The pairs of a run, in the order in which they were given.
    pub async fn pairs(&self, run: RunId) -> Result<Vec<PairRow>> {
        self.read("read the pairs of a run", move |tx| runs::pairs(tx, run)).await
    }
    /// Runs that a crash left in `training` or `gating` become `interrupted` with this reason;
    /// returns them.
    pub async fn interrupt_unfinished_runs(&self, reason: String) -> Result<Vec<RunId>> {
        self.write("interrupt unfinished runs", move |tx| runs::interrupt_unfinished(tx, &reason))
            .await
    }
    /// Runs that wait to go on, newest first.
    pub async fn interrupted_runs(&self) -> Result<Vec<Run>> {
        self.read("list interrupted runs", runs::interrupted).await
    }
    /// The number that the next promoted generation gets (one more than the largest ever given).
    pub async fn next_generation(&self) -> Result<Generation> {
        self.read("read the largest generation", generations::next).await
    }
    /// In one transaction: stores the generation, makes it the active one if the row says so, marks
    /// its run promoted, and opens its watch with this share of the chats (`None`: no watch).
    pub async fn promote(&self, row: GenerationRow, share: Option<f64>) -> Result<()> {
        self.write("promote a generation", move |tx| {
            generations::promote(tx, &row)?;
            match share {
                Some(share) => watches::open(tx, row.generation, row.parent, share),
                None => watches::close(tx, "another generation was promoted"),
            }
        })
        .await
    }
    /// The watch that is under way.
    pub async fn watch_under_way(&self) -> Result<Option<Watch>> {
        self.read("read the watch", watches::under_way).await
    }
    /// The newest watches, newest first.
    pub async fn watches(&self, limit: usize) -> Result<Vec<Watch>> {
        self.read("list watches", move |tx| watches::newest(tx, limit)).await
    }
    /// In one transaction: moves the watch of this generation on, says who is active, and writes the
    /// event.
    pub async fn settle_watch(
        &self,
        generation: Generation,
        state: WatchState,
        active: Generation,
        reason: String,
    ) -> Result<()> {
        self.write("settle a watch", move |tx| {
            watches::settle(tx, generation, state, active, &reason)
        })
        .await
    }
    /// What was said of the answers that a generation gave to chats, for candidates in this range:
    /// the newest `limit` of each kind.
    pub async fn live(
        &self,
        generation: Generation,
        candidates: std::ops::RangeInclusive<i64>,
        limit: usize,
    ) -> Result<Live> {
        self.read("read live scores", move |tx| watches::live(tx, generation, candidates, limit))
            .await
    }
    /// All generations ever promoted, oldest first (the base is not a row).
    pub async fn generations(&self) -> Result<Vec<GenerationRow>> {
        self.read("list generations", generations::all).await
    }
    /// In one transaction: makes a generation (0: the base) the active one in the place of whatever
    /// was promoted, which ends the watch under way, and writes the event.
    pub async fn go_to(&self, generation: Generation) -> Result<()> {
        self.write("go to a generation", move |tx| {
            generations::set_active(tx, generation)?;
            watches::close(tx, "another generation was gone to")?;
            let detail = serde_json::json!({ "generation": generation });
            journal::insert_event(tx, "rollback", &detail)
        })
        .await
    }
    /// Makes a generation (0: the base) the active one.
    pub async fn set_active(&self, generation: Generation) -> Result<()> {
        self.write("activate a generation", move |tx| generations::set_active(tx, generation)).await
    }
    /// Stores answers of a gate.
    pub async fn add_evaluations(&self, evaluations: Vec<Evaluation>) -> Result<()> {
        self.write("store evaluations", move |tx| evaluations::insert(tx, &evaluations)).await
    }
    /// Removes the answers of a gate that was interrupted.
    pub async fn forget_evaluations(&self, run: RunId) -> Result<()> {
        self.write("remove evaluations", move |tx| evaluations::forget(tx, run)).await
    }
    /// Answers of a run's gate, in the order in which they were given.
    pub async fn evaluations(&self, run: RunId) -> Result<Vec<Evaluation>> {
        self.read("read evaluations", move |tx| evaluations::of(tx, run)).await
    }
    /// Stores what was found out about a judge.
    pub async fn add_judge_report(&self, report: JudgeReport) -> Result<()> {
        self.write("store a judge's report", move |tx| trust::insert_report(tx, &report)).await
    }
    /// The newest report on an agent's judge; `version`: of this judge and these rubrics.
    pub async fn judge_report(
        &self,
        agent: String,
        version: Option<(String, String)>,
    ) -> Result<Option<JudgeReport>> {
        self.read("read a judge's report", move |tx| {
            let version = version.as_ref().map(|(judge, version)| (&**judge, &**version));
            trust::newest_report(tx, &agent, version)
        })
        .await
    }
    /// Stores calibrated thresholds, and holds what was judged by the same version against them.
    pub async fn set_judge_thresholds(
        &self,
        agent: String,
        thresholds: Vec<JudgeThreshold>,
    ) -> Result<()> {
        self.write("store calibrated thresholds", move |tx| {
            trust::set_thresholds(tx, &agent, &thresholds)
        })
        .await
    }
    /// The calibrated thresholds of an agent, of all versions.
    pub async fn judge_thresholds(&self, agent: String) -> Result<Vec<JudgeThreshold>> {
        self.read("read calibrated thresholds", move |tx| trust::thresholds(tx, &agent)).await
    }
    /// Exchanges of an agent whose answers somebody or a verifier has labelled, newest first; a page
    /// of `limit` before `before`.
    pub async fn labelled(
        &self,
        agent: String,
        before: Option<ExchangeId>,
        limit: usize,
    ) -> Result<Vec<ExchangeId>> {
        let before = before.unwrap_or(ExchangeId(i64::MAX));
        self.read("list labelled exchanges", move |tx| trust::labelled(tx, &agent, before, limit))
            .await
    }
    /// Exchanges of an agent with candidates that were judged by other standards than these, oldest
    /// first; a page of `limit` after `after`.
    pub async fn outdated(
        &self,
        agent: String,
        standards: Vec<Standard>,
        after: Option<ExchangeId>,
        limit: usize,
    ) -> Result<Vec<ExchangeId>> {
        let after = after.unwrap_or(ExchangeId(0));
        self.read("list exchanges to judge again", move |tx| {
            trust::outdated(tx, &agent, &standards, after, limit)
        })
        .await
    }
    /// Appends to the journal of operational events.
    pub async fn add_event(&self, kind: String, detail: serde_json::Value) -> Result<()> {
        self.write("store an event", move |tx| journal::insert_event(tx, &kind, &detail)).await
    }
    /// The newest events of one kind, newest first.
    pub async fn events(&self, kind: &'static str, limit: usize) -> Result<Vec<Event>> {
        self.read("list events", move |tx| journal::events(tx, kind, limit)).await
    }
    /// Ratings and edits since a time (Unix milliseconds).
    pub async fn feedback_since(&self, since_ms: i64) -> Result<usize> {
        self.read("count feedback", move |tx| feedback::since(tx, since_ms)).await
    }
    /// Different pairs of judged runs (promoted or rejected) that came from these agents, those of
    /// the newest runs first.
    pub async fn earlier_pairs(
        &self,
        agents: Vec<String>,
        limit: usize,
    ) -> Result<Vec<EarlierPair>> {
        self.read("list earlier pairs", move |tx| runs::earlier_pairs(tx, &agents, limit)).await
    }
    /// Row counts.
    pub async fn counts(&self) -> Result<Counts> {
        self.read("count rows", journal::counts).await
    }
}
