//! The engine thread: takes commands, admits requests, runs one step after another. It owns the
//! backend; nothing here is async and nothing else touches the model. Started by `daemon` through
//! [`spawn`], and by tests through [`spawn_with`] with a fake.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::door::{Checked, Door};
use super::floor::{Floor, Seat};
use super::job::{Job, Purpose, Reply};
use super::kv::{Kv, Source, common_prefix};
use super::lane::Lanes;
use super::scheduler::{self, Pace, Plan, Slice, Tail, Turn, Work};
use super::segment::Segment;
use super::{
    Class, Command, Engine, EngineConfig, EngineError, EngineStats, Generation, Lane, Pulse,
    Shared, Vocabulary, llama,
};
use inference::backend::{Backend, Entry, SequenceId};

/// How long the loop sleeps when every running sequence waits for its reader.
const READER_PAUSE: Duration = Duration::from_millis(2);
/// A prefix that somebody else is evaluating is waited for when it is longer than that.
const WORTH_WAITING: usize = 16;

/// Loads the model with llama.cpp. Resolves when it is ready or has failed.
pub async fn spawn(config: &EngineConfig) -> Result<(Engine, EngineThread), EngineError> {
    spawn_beside(&Floor::default(), config, 0).await
}

/// The same for a process that has other engines, whose files take `mapped` bytes of memory.
pub async fn spawn_beside(
    floor: &Floor,
    config: &EngineConfig,
    mapped: u64,
) -> Result<(Engine, EngineThread), EngineError> {
    let config = config.clone();
    spawn_on(floor, config.queue, move || llama::Llama::load_beside(&config, mapped)).await
}

/// The same with any backend. `load` runs inside the thread, because a context must not leave it.
pub async fn spawn_with<B, F>(queue: usize, load: F) -> Result<(Engine, EngineThread), EngineError>
where
    B: Backend + 'static,
    F: FnOnce() -> Result<B, EngineError> + Send + 'static,
{
    spawn_on(&Floor::default(), queue, load).await
}

/// The same for a process that has other engines.
pub async fn spawn_on<B, F>(
    floor: &Floor,
    queue: usize,
    load: F,
) -> Result<(Engine, EngineThread), EngineError>
where
    B: Backend + 'static,
    F: FnOnce() -> Result<B, EngineError> + Send + 'static,
{
    let seat = floor.seat();
    // Requests are bounded by the two doors; the rest is for lanes and for callers that left
    // while their command was under way.
    let (commands, inbox) = mpsc::channel(2 * queue + 16);
    let body = move |ready: oneshot::Sender<Result<Arc<Shared>, EngineError>>| match load() {
        Ok(backend) => {
            let engine = Loop::new(backend, inbox, seat);
            if ready.send(Ok(Arc::clone(&engine.shared))).is_ok() {
                engine.run();
            }
        }
        Err(error) => drop(ready.send(Err(error))),
    };
    let (shared, thread) = own("engine", body).await?;
    let door = || Arc::new(Semaphore::new(queue));
    let engine = Engine { commands, urgent: door(), patient: door(), shared, prober: None };
    Ok((engine, thread))
}

/// Starts a thread that owns a model. Resolves with what it says when it is ready, or has failed.
pub(super) async fn own<T: Send + 'static>(
    name: &str,
    body: impl FnOnce(oneshot::Sender<Result<T, EngineError>>) + Send + 'static,
) -> Result<(T, EngineThread), EngineError> {
    let (ready, is_ready) = oneshot::channel();
    let (alive, ended) = oneshot::channel();
    let thread = thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // Dropped at the end of the thread, by a panic too.
            let _alive: oneshot::Sender<()> = alive;
            body(ready);
        })
        .map_err(|error| EngineError::Failed(format!("start the {name} thread: {error}")))?;
    let said = is_ready.await.map_err(|_| EngineError::Stopped)??;
    Ok((said, EngineThread { thread, ended }))
}

/// The thread's end, held by `daemon` alone.
#[derive(Debug)]
pub struct EngineThread {
    thread: thread::JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

impl EngineThread {
    /// Resolves when the thread has ended. While a handle exists that is a failure.
    pub async fn died(&mut self) {
        // The sender is never used: the error is the message.
        drop((&mut self.ended).await);
    }
    /// Waits for the end; drop all handles before.
    pub fn join(self) -> thread::Result<()> {
        self.thread.join()
    }
}

struct Loop<B> {
    backend: B,
    inbox: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    vocabulary: Arc<dyn Vocabulary>,
    door: Door,
    lanes: Lanes,
    kv: Kv,
    /// By class, then by arrival. A job runs as soon as one of its branches has a sequence.
    jobs: Vec<Job>,
    turn: Turn,
    pace: Pace,
    /// Among the engines of the process.
    seat: Seat,
    stats: EngineStats,
}

/// What became of a branch that wanted to start.
enum Start {
    Started,
    /// Most of what it needs is being evaluated for somebody else.
    SharesSoon,
    NoRoom,
}

impl<B: Backend> Loop<B> {
    fn new(backend: B, inbox: mpsc::Receiver<Command>, seat: Seat) -> Self {
        let limits = backend.limits();
        let info = backend.info();
        let vocabulary = backend.vocabulary();
        let stats = EngineStats {
            cells: limits.cells,
            sequences: limits.sequences,
            ..EngineStats::default()
        };
        let pulse = Mutex::new(Pulse::new(stats.clone()));
        Self {
            door: Door::new(&info),
            shared: Arc::new(Shared {
                info,
                vocabulary: Arc::clone(&vocabulary),
                pulse,
                is_urgent: AtomicBool::new(false),
            }),
            vocabulary,
            lanes: Lanes::new(),
            kv: Kv::new(limits.cells, limits.sequences),
            jobs: Vec::new(),
            turn: Turn::default(),
            pace: Pace::default(),
            seat,
            stats,
            backend,
            inbox,
        }
    }

    fn run(mut self) {
        while self.receive() {
            self.drop_abandoned();
            self.admit();
            let stepped = self.step();
            self.free_drained();
            if stepped {
                continue;
            }
            // A step has done so itself.
            self.publish(true);
            if !self.jobs.is_empty() {
                // There is no channel to wait on for "a reader has read".
                thread::sleep(READER_PAUSE);
            }
        }
        for job in self.jobs.drain(..) {
            job.fail(EngineError::Stopped);
        }
    }

    /// Takes all commands; waits for one when there is nothing else to do. False when the last
    /// handle is gone.
    fn receive(&mut self) -> bool {
        // Before they are taken: who comes from now on sets it again.
        self.shared.is_urgent.store(false, Ordering::Relaxed);
        if self.jobs.is_empty() {
            self.seat.rest();
            self.publish(false);
            match self.inbox.blocking_recv() {
                Some(command) => self.command(command),
                None => return false,
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(command) => self.command(command),
                Err(mpsc::error::TryRecvError::Empty) => return true,
                Err(mpsc::error::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Generate(request, reply, span) => {
                let lane = self.lanes.choose(request.lane, request.class);
                self.enqueue(lane, reply, span, |door, generation, reply| {
                    door.generate(request, generation, reply)
                });
            }
            Command::Score(request, reply, span) => {
                self.enqueue(request.lane, reply, span, |door, generation, reply| {
                    door.score(request, generation, reply)
                });
            }
            Command::Logprobs(request, reply, span) => {
                self.enqueue(request.lane, reply, span, |door, generation, reply| {
                    door.logprobs(request, generation, reply)
                });
            }
            Command::LoadLane(generation, path, reply) => {
                let loaded = self.lanes.check_new(generation).and_then(|()| {
                    self.backend.load(generation, &path)?;
                    self.lanes.insert(generation);
                    tracing::info!(%generation, "Lane loaded.");
                    Ok(())
                });
                // Before the reply: who has it must find it in the stats.
                self.publish(true);
                drop(reply.send(loaded));
            }
            Command::Activate(generation, reply) => {
                let activated = self.lanes.activate(generation);
                self.publish(true);
                drop(reply.send(activated));
            }
            Command::SetCanary(canary, reply) => {
                let set = self.lanes.set_canary(canary);
                self.publish(true);
                drop(reply.send(set));
            }
            Command::Retire(generation, reply) => self.lanes.retire(generation, reply),
        }
    }

    /// Pins a request to its generation, checks it and lets it wait for room.
    fn enqueue<T>(
        &mut self,
        lane: Lane,
        reply: Reply<T>,
        span: tracing::Span,
        check: impl FnOnce(&mut Door, Generation, Reply<T>) -> Checked<T>,
    ) {
        let generation = match self.lanes.resolve(lane) {
            Ok(generation) => generation,
            Err(error) => return drop(reply.send(Err(error))),
        };
        match check(&mut self.door, generation, reply) {
            Ok(job) => self.wait(Job { span, ..job }),
            Err((error, reply)) => drop(reply.send(Err(error))),
        }
    }

    fn wait(&mut self, job: Job) {
        let before = |other: &Job| (other.class, other.arrival) <= (job.class, job.arrival);
        let place = self.jobs.partition_point(before);
        self.jobs.insert(place, job);
    }

    fn drop_abandoned(&mut self) {
        for mut job in self.jobs.extract_if(.., |job| job.is_abandoned()) {
            tracing::debug!(parent: &job.span, "Request cancelled by its caller.");
            job.suspend_all(&mut self.kv, &mut self.backend);
        }
    }

    /// Starts waiting branches in the order of their jobs until one does not fit: overtaking would
    /// starve it.
    fn admit(&mut self) {
        let batch_tokens = self.backend.limits().batch_tokens;
        for index in 0..self.jobs.len() {
            while let Some(branch) = self.jobs[index].next_waiting() {
                if self.jobs[index].fills(&self.kv, batch_tokens) {
                    break;
                }
                match self.try_start(index, branch) {
                    Start::Started => {}
                    Start::SharesSoon => break,
                    Start::NoRoom => return,
                }
            }
        }
    }

    /// Gives a branch a sequence. Makes room at the cost of the prefix cache first, then of less
    /// urgent requests, which go on later.
    fn try_start(&mut self, index: usize, branch: usize) -> Start {
        let mut may_restore = true;
        loop {
            let job = &self.jobs[index];
            let b = &job.branches[branch];
            // The token whose logits are wanted must be evaluated, wherever its KV may be.
            let wanted = &b.tokens[..b.first_output()];
            let source = if may_restore {
                self.kv.find(job.generation, wanted)
            } else {
                self.kv.find_inside(job.generation, wanted)
            };
            let n_cached = source.map_or(0, Source::n_tokens);
            if self.is_under_way(index, wanted, n_cached) {
                return Start::SharesSoon;
            }
            let others = self.jobs.iter().enumerate().filter(|(other, _)| *other != index);
            let reserved: usize = others.map(|(_, o)| o.reserved_cells(&self.kv, None)).sum();
            let needed = reserved
                + job.reserved_cells(&self.kv, Some((branch, n_cached)))
                + source.map_or(0, Source::n_cells);
            if needed <= self.kv.free() && 0 < self.kv.free_sequences() {
                self.stats.cached_tokens += count(n_cached);
                tracing::trace!(parent: &job.span, branch, n_cached, "Branch started.");
                let job = &mut self.jobs[index];
                job.start(branch, &mut self.kv, &mut self.backend, source);
                return Start::Started;
            }
            let class = job.class;
            // In vain nothing is dropped: somebody may come back for it.
            if self.kv.free() + self.kv.evictable() + self.yielded_cells(class) < needed {
                if source.is_none_or(|source| source.n_cells() == 0) {
                    return Start::NoRoom;
                }
                // What is parked may be longer than what is wanted of it.
                may_restore = false;
                continue;
            }
            let evicted = self.kv.evict(&mut self.backend, source.and_then(Source::sequence));
            if !evicted && !self.preempt(class) {
                return Start::NoRoom;
            }
        }
    }

    /// Cells, at most, that would be free without the requests below `class`.
    fn yielded_cells(&self, class: Class) -> usize {
        let lower = self.jobs.iter().filter(|job| class < job.class);
        lower.map(|job| job.reserved_cells(&self.kv, None) + job.held_cells(&self.kv)).sum()
    }

    /// Whether a request at least as urgent is evaluating more of these tokens than are there now.
    fn is_under_way(&self, index: usize, tokens: &[super::Token], n_cached: usize) -> bool {
        let this = &self.jobs[index];
        let others = self.jobs.iter().enumerate().filter(|&(other, job)| {
            other != index
                && job.generation == this.generation
                && job.class <= this.class
                && !job.is_stalled()
        });
        others.flat_map(|(_, job)| &job.branches).any(|b| {
            let Some(id) = b.sequence else { return false };
            let shared = common_prefix(&b.tokens, tokens);
            n_cached + WORTH_WAITING <= shared && self.kv.len(id) < shared
        })
    }

    /// Takes the sequence of the newest branch of the least urgent request below `class`.
    fn preempt(&mut self, class: Class) -> bool {
        let runs = |job: &&mut Job| class < job.class && 0 < job.n_running();
        let Some(job) = self.jobs.iter_mut().rev().find(runs) else { return false };
        let last = job.branches.iter().rposition(|b| b.sequence.is_some());
        tracing::debug!(parent: &job.span, "Request gives way to a more urgent one.");
        job.suspend(last.expect("a branch runs"), &mut self.kv, &mut self.backend);
        true
    }

    /// Evaluates one batch. False when no request can go on.
    fn step(&mut self) -> bool {
        for job in &mut self.jobs {
            job.guess(&self.kv);
        }
        let segments: Vec<_> = self.jobs.iter().map(|job| job.segments(&self.kv)).collect();
        let work: Vec<Work> =
            self.jobs.iter().zip(&segments).map(|(job, segments)| work(job, segments)).collect();
        let limits = self.backend.limits();
        let Some(plan) = scheduler::plan(&work, &limits, &self.pace, &mut self.turn) else {
            self.seat.rest();
            return false;
        };
        let class = self.jobs[plan.slices[0].work].class;
        if !self.seat.take(class) {
            // Another engine has something more urgent; meanwhile something may have come here.
            self.publish(true);
            return true;
        }
        let begun = Instant::now();
        let decoded = self.decode(&plan, &segments);
        self.seat.leave();
        if let Ok(false) = decoded {
            // It is planned again when nobody more urgent has work.
            self.stats.interrupted_steps += 1;
            return true;
        }
        if let Err(error) = decoded {
            tracing::error!(%error, "Step failed.");
            let mut failed: Vec<usize> = plan.slices.iter().map(|slice| slice.work).collect();
            failed.dedup();
            self.fail(&failed, &error);
            self.publish(true);
            return true;
        }
        let tokens = plan.slices.iter().map(|slice| slice.tokens).sum();
        self.pace.learn(tokens, begun.elapsed());
        self.stats.steps += 1;
        self.consume(&plan, &segments);
        let done = self.settle();
        // Before the replies: who has one must find its tokens in the stats.
        self.publish(true);
        for job in done {
            tracing::debug!(parent: &job.span, "Request done.");
            job.finish();
        }
        true
    }

    /// Takes out the jobs that are done, and lets finished branches go.
    fn settle(&mut self) -> Vec<Job> {
        // Most steps finish nothing, and then nothing has become idle either.
        if !self.jobs.iter().any(Job::has_finished) {
            return Vec::new();
        }
        let (kv, backend) = (&mut self.kv, &mut self.backend);
        let done = self.jobs.extract_if(.., |job| job.settle(kv, backend)).collect();
        self.kv.park(&mut self.backend);
        done
    }

    /// False: somebody more urgent has come, and nothing was evaluated.
    fn decode(&mut self, plan: &Plan, segments: &[Vec<Segment>]) -> Result<bool, EngineError> {
        self.backend.select(plan.generation)?;
        // Tokens that branches share go to all their sequences at once: no copy is needed.
        let parts: Vec<(Vec<SequenceId>, Vec<super::Token>)> = plan
            .slices
            .iter()
            .map(|slice| {
                let (job, segment) = (&self.jobs[slice.work], &segments[slice.work][slice.tail]);
                let ids = segment.branches.iter().map(|&b| job.branches[b].sequence);
                let ids = ids.map(|id| id.expect("only running branches are planned"));
                (ids.collect(), tokens(job, segment, slice).collect())
            })
            .collect();
        let mut batch = Vec::new();
        for (slice, (ids, tokens)) in plan.slices.iter().zip(&parts) {
            let segment = &segments[slice.work][slice.tail];
            let silent = silent(&self.jobs[slice.work], segment);
            batch.extend(tokens.iter().enumerate().map(|(i, &token)| Entry {
                token,
                position: segment.positions.start + i,
                sequences: ids,
                logits: silent <= i,
            }));
        }
        let is_urgent = plan.slices.iter().any(|slice| self.jobs[slice.work].is_urgent());
        let is_whole = if is_urgent {
            self.backend.decode(&batch).map(|()| true)
        } else {
            self.backend.decode_unless(&batch, &self.shared.is_urgent)
        }?;
        if is_whole {
            for (ids, tokens) in &parts {
                self.kv.append(ids, tokens);
            }
            return Ok(true);
        }
        // What was done before the interruption would be there twice.
        for &id in parts.iter().flat_map(|(ids, _)| ids) {
            self.backend.truncate(id, self.kv.len(id));
        }
        Ok(false)
    }

    /// Hands the rows of logits to their branches; a request that cannot use its row fails alone.
    fn consume(&mut self, plan: &Plan, segments: &[Vec<Segment>]) {
        let mut failed: Vec<(usize, EngineError)> = Vec::new();
        let mut row = 0;
        for slice in &plan.slices {
            let segment = &segments[slice.work][slice.tail];
            let first = row;
            row += slice.tokens;
            let consumed = self.consume_slice(slice, segment, first);
            if let Err(error) = consumed {
                failed.push((slice.work, error));
            }
        }
        failed.sort_by_key(|(index, _)| *index);
        failed.dedup_by_key(|(index, _)| *index);
        for (index, error) in failed.into_iter().rev() {
            self.fail(&[index], &error);
        }
    }

    fn consume_slice(
        &mut self,
        slice: &Slice,
        segment: &Segment,
        first: usize,
    ) -> Result<(), EngineError> {
        let job = &mut self.jobs[slice.work];
        let silent = silent(job, segment);
        let evaluated: Vec<_> = tokens(job, segment, slice).collect();
        let is_decoding = is_decoding(job, segment);
        let is_answer = matches!(job.purpose, Purpose::Generate(_));
        let mut n_used = 0;
        for (i, &token) in evaluated.iter().enumerate().skip(silent) {
            for &branch in &segment.branches {
                let position = segment.positions.start + i;
                let logits = self.backend.logits(first + i)?;
                let is_used = job.consume(branch, position, token, logits, &*self.vocabulary)?;
                n_used += usize::from(is_used);
            }
        }
        if is_answer {
            self.stats.generated_tokens += count(n_used);
        }
        if !is_decoding {
            self.stats.prompt_tokens += count(slice.tokens);
            self.stats.cached_tokens += count(slice.tokens * (segment.branches.len() - 1));
            return Ok(());
        }
        // The last sampled token is no guess; what follows the first wrong one is taken back.
        let [branch] = segment.branches[..] else { return Ok(()) };
        let (guessed, right) = (slice.tokens - 1, n_used - 1);
        self.stats.guessed_tokens += count(guessed);
        self.stats.right_guesses += count(right);
        job.learn(branch, guessed, right);
        if let Some(id) = job.branches[branch].sequence.filter(|_| right < guessed) {
            self.kv.truncate(&mut self.backend, id, segment.positions.start + n_used);
        }
        Ok(())
    }

    /// `failed` is in order.
    fn fail(&mut self, failed: &[usize], error: &EngineError) {
        for &index in failed.iter().rev() {
            let mut job = self.jobs.remove(index);
            job.suspend_all(&mut self.kv, &mut self.backend);
            job.fail(error.clone());
        }
    }

    fn free_drained(&mut self) {
        let jobs = &self.jobs;
        let drained = self.lanes.take_drained(|lane| jobs.iter().any(|job| job.generation == lane));
        for (generation, waiting) in drained {
            self.kv.forget(&mut self.backend, generation);
            self.backend.free(generation);
            tracing::info!(%generation, "Lane freed.");
            self.publish(true);
            for done in waiting {
                drop(done.send(Ok(())));
            }
        }
    }

    fn publish(&mut self, is_working: bool) {
        let jobs = &self.jobs;
        let running = |generation: Generation| {
            jobs.iter().filter(|job| job.generation == generation).map(Job::n_running).sum()
        };
        self.stats.active = self.lanes.active();
        self.stats.canary = self.lanes.canary();
        self.stats.lanes = self.lanes.loaded().map(|lane| (lane, running(lane))).collect();
        self.stats.running = jobs.iter().map(Job::n_running).sum();
        self.stats.queued = jobs.iter().filter(|job| job.n_running() == 0).count();
        self.stats.cells_used = self.kv.used();
        self.stats.parked_bytes = self.kv.parked_bytes();
        let is_urgent = jobs.iter().any(Job::is_urgent);
        let mut pulse = self.shared.pulse.lock().expect("nobody panics while holding the pulse");
        pulse.beat(self.stats.clone(), is_working, is_urgent, Instant::now());
    }
}

/// A job as the scheduler sees it.
fn work(job: &Job, segments: &[Segment]) -> Work {
    let tail = |segment: &Segment| Tail {
        tokens: segment.positions.len(),
        silent: silent(job, segment),
        parent: segment.parent,
        is_decoding: is_decoding(job, segment),
    };
    let tails = segments.iter().map(tail).collect();
    Work { class: job.class, generation: job.generation, tails }
}

/// Tokens at the beginning of a segment whose logits no branch wants.
fn silent(job: &Job, segment: &Segment) -> usize {
    let first = segment.branches.iter().map(|&b| job.branches[b].first_output()).min();
    let from = segment.positions.start;
    first.unwrap_or(from).saturating_sub(from).min(segment.positions.len())
}

fn is_decoding(job: &Job, segment: &Segment) -> bool {
    segment.branches.iter().all(|&b| job.branches[b].is_decoding(&segment.positions))
}

fn tokens(job: &Job, segment: &Segment, slice: &Slice) -> impl Iterator<Item = super::Token> {
    job.branches[segment.branches[0]].pending(segment.positions.start).take(slice.tokens)
}

fn count(n: usize) -> u64 {
    u64::try_from(n).expect("a usize has at most 64 bits")
}
