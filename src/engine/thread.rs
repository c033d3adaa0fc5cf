//! The engine thread: takes commands, admits requests, runs one step after another. It owns the
//! backend; nothing here is async and nothing else touches the model. Started by `daemon` through
//! [`spawn`], and by tests through [`spawn_with`] with a fake.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::backend::{Backend, Entry, SequenceId};
use super::door::{Checked, Door};
use super::job::{Job, Purpose, Reply};
use super::kv::Kv;
use super::lane::Lanes;
use super::scheduler::{self, Part, Plan, Turn};
use super::{
    Class, Command, Engine, EngineConfig, EngineError, EngineStats, Generation, Lane, Pulse,
    Shared, Vocabulary, llama,
};

/// How long the loop sleeps when every running sequence waits for its reader.
const READER_PAUSE: Duration = Duration::from_millis(2);

/// Loads the model with llama.cpp. Resolves when it is ready or has failed.
pub async fn spawn(config: &EngineConfig) -> Result<(Engine, EngineThread), EngineError> {
    let config = config.clone();
    spawn_with(config.queue, move || llama::Llama::load(&config)).await
}

/// The same with any backend. `load` runs inside the thread, because a context must not leave it.
pub async fn spawn_with<B, F>(queue: usize, load: F) -> Result<(Engine, EngineThread), EngineError>
where
    B: Backend + 'static,
    F: FnOnce() -> Result<B, EngineError> + Send + 'static,
{
    // Requests are bounded by the two doors; the rest is for lanes and for callers that left
    // while their command was under way.
    let (commands, inbox) = mpsc::channel(2 * queue + 16);
    let (ready, is_ready) = oneshot::channel();
    let (alive, ended) = oneshot::channel();
    let body = move || {
        // Dropped at the end of the thread, by a panic too.
        let _alive: oneshot::Sender<()> = alive;
        match load() {
            Ok(backend) => {
                let engine = Loop::new(backend, inbox);
                if ready.send(Ok(Arc::clone(&engine.shared))).is_ok() {
                    engine.run();
                }
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    };
    let thread = thread::Builder::new()
        .name("engine".to_owned())
        .spawn(body)
        .map_err(|error| EngineError::Failed(format!("start the engine thread: {error}")))?;
    let shared = is_ready.await.map_err(|_| EngineError::Stopped)??;
    let door = || Arc::new(Semaphore::new(queue));
    let engine = Engine { commands, urgent: door(), patient: door(), shared, prober: None };
    Ok((engine, EngineThread { thread, ended }))
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
    /// By class, then by arrival.
    waiting: Vec<Job>,
    /// By admission.
    running: Vec<Job>,
    turn: Turn,
    stats: EngineStats,
}

impl<B: Backend> Loop<B> {
    fn new(backend: B, inbox: mpsc::Receiver<Command>) -> Self {
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
            door: Door::new(limits, &info),
            shared: Arc::new(Shared { info, vocabulary: Arc::clone(&vocabulary), pulse }),
            vocabulary,
            lanes: Lanes::new(),
            kv: Kv::new(limits.cells, limits.sequences),
            waiting: Vec::new(),
            running: Vec::new(),
            turn: Turn::default(),
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
            self.publish(true);
            if !stepped && !self.running.is_empty() {
                // There is no channel to wait on for "a reader has read".
                thread::sleep(READER_PAUSE);
            }
        }
        for job in self.running.drain(..).chain(self.waiting.drain(..)) {
            job.fail(EngineError::Stopped);
        }
    }

    /// Takes all commands; waits for one when there is nothing else to do. False when the last
    /// handle is gone.
    fn receive(&mut self) -> bool {
        if self.running.is_empty() && self.waiting.is_empty() {
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
                self.enqueue(request.lane, reply, span, |door, generation, reply| {
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
                    door.logprobs(&request, generation, reply)
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
        let place = self
            .waiting
            .partition_point(|other| (other.class, other.arrival) <= (job.class, job.arrival));
        self.waiting.insert(place, job);
    }

    fn drop_abandoned(&mut self) {
        self.waiting.retain(|job| !job.is_abandoned());
        for mut job in self.running.extract_if(.., |job| job.is_abandoned()) {
            tracing::debug!(parent: &job.span, "Request cancelled by its caller.");
            job.suspend(&mut self.kv, &mut self.backend);
        }
    }

    /// Starts waiting requests in their order until one does not fit: overtaking would starve it.
    fn admit(&mut self) {
        while !self.waiting.is_empty() {
            let job = self.waiting.remove(0);
            if let Some(job) = self.try_start(job) {
                self.waiting.insert(0, job);
                return;
            }
        }
    }

    /// Starts a request, or gives it back. Makes room at the cost of the prefix cache first, then
    /// of less urgent requests, which begin again later.
    fn try_start(&mut self, mut job: Job) -> Option<Job> {
        loop {
            let source = self.kv.find(job.generation, &job.trunk);
            let n_cached = source.map_or(0, |s| s.1);
            let reserved: usize = self.running.iter().map(|r| r.reserved_cells(&self.kv)).sum();
            if job.needed_cells(n_cached) + reserved <= self.kv.free()
                && job.wanted_sequences() <= self.kv.free_sequences()
            {
                if let Some((id, _)) = source {
                    self.kv.touch(id);
                }
                let shared = n_cached + (job.branches.len() - 1) * job.trunk.len();
                self.stats.cached_tokens += count(shared);
                tracing::debug!(
                    parent: &job.span,
                    n_trunk = job.trunk.len(),
                    n_branches = job.branches.len(),
                    n_cached,
                    generation = %job.generation,
                    "Request admitted."
                );
                job.start(&mut self.kv, &mut self.backend, source);
                self.running.push(job);
                return None;
            }
            let evicted = self.kv.evict(&mut self.backend, source.map(|s| s.0));
            if !evicted && !self.preempt(job.class) {
                return Some(job);
            }
        }
    }

    /// Sends the newest of the least urgent requests below `class` back to the queue.
    fn preempt(&mut self, class: Class) -> bool {
        let lower = self.running.iter().enumerate().filter(|(_, job)| job.class > class);
        let Some((index, _)) = lower.max_by_key(|(_, job)| (job.class, job.arrival)) else {
            return false;
        };
        let mut job = self.running.remove(index);
        tracing::debug!(parent: &job.span, "Request gives way to a more urgent one.");
        job.suspend(&mut self.kv, &mut self.backend);
        self.wait(job);
        true
    }

    /// Evaluates one batch. False when no request can go on.
    fn step(&mut self) -> bool {
        let work: Vec<_> = self.running.iter().map(|job| job.work(&self.kv)).collect();
        let Some(plan) = scheduler::plan(&work, &self.backend.limits(), &mut self.turn) else {
            return false;
        };
        if let Err(error) = self.decode(&plan, &work) {
            tracing::error!(%error, "Step failed.");
            let mut failed: Vec<usize> = plan.slices.iter().map(|slice| slice.work).collect();
            failed.sort_unstable();
            failed.dedup();
            for &index in failed.iter().rev() {
                self.fail(index, error.clone());
            }
            return true;
        }
        self.stats.steps += 1;
        let errors = self.consume(&plan, &work);
        for (index, error) in errors.into_iter().rev() {
            self.fail(index, error);
        }
        for mut job in std::mem::take(&mut self.running) {
            if job.settle(&mut self.kv, &mut self.backend) {
                tracing::debug!(parent: &job.span, "Request done.");
                job.finish();
            } else {
                self.running.push(job);
            }
        }
        true
    }

    fn decode(&mut self, plan: &Plan, work: &[scheduler::Work]) -> Result<(), EngineError> {
        self.backend.select(plan.generation)?;
        let mut batch = Vec::new();
        let mut appended: Vec<(&[SequenceId], &[super::Token])> = Vec::new();
        for slice in &plan.slices {
            let job = &self.running[slice.work];
            // Tokens of the trunk go to all sequences at once: that shares them without a copy.
            let (ids, tokens, offset, silent) = match slice.part {
                Part::Trunk => (&job.sequences[..], &job.trunk, 0, slice.tokens),
                Part::Branch(index) => {
                    let branch = &job.branches[index];
                    let tail = work[slice.work].branches.iter().find(|t| t.branch == index);
                    let silent = tail.expect("the plan is made of the work").silent;
                    let id = branch.sequence.as_ref().expect("only running branches are planned");
                    (std::slice::from_ref(id), &branch.tokens, job.trunk.len(), silent)
                }
            };
            // The trunk may be in this very batch, so that the books are behind.
            let position = self.kv.len(ids[0]).max(offset);
            let tokens = &tokens[position - offset..][..slice.tokens];
            batch.extend(tokens.iter().enumerate().map(|(i, &token)| Entry {
                token,
                position: position + i,
                sequences: ids,
                logits: i >= silent,
            }));
            appended.push((ids, tokens));
        }
        self.backend.decode(&batch)?;
        for (ids, tokens) in appended {
            self.kv.append(ids, tokens);
        }
        Ok(())
    }

    /// Hands the rows of logits to their branches.
    fn consume(&mut self, plan: &Plan, work: &[scheduler::Work]) -> Vec<(usize, EngineError)> {
        let mut errors: Vec<(usize, EngineError)> = Vec::new();
        let mut row = 0;
        for slice in &plan.slices {
            let first = row;
            row += slice.tokens;
            let job = &mut self.running[slice.work];
            let Part::Branch(branch) = slice.part else {
                self.stats.prompt_tokens += count(slice.tokens);
                continue;
            };
            let is_answer = matches!(job.purpose, Purpose::Generate(_));
            let is_prompt = !is_answer || job.branches[branch].tokens.len() == 1;
            self.stats.prompt_tokens += if is_prompt { count(slice.tokens) } else { 0 };
            let tail = work[slice.work].branches.iter().find(|t| t.branch == branch);
            let silent = tail.expect("the plan is made of the work").silent;
            for index in first + silent.min(slice.tokens)..row {
                if errors.last().is_some_and(|(failed, _)| *failed == slice.work) {
                    break;
                }
                let logits = self.backend.logits(index);
                let consumed = logits.and_then(|l| job.consume(branch, l, &*self.vocabulary));
                match consumed {
                    Ok(()) => self.stats.generated_tokens += u64::from(is_answer),
                    Err(error) => errors.push((slice.work, error)),
                }
            }
        }
        errors.sort_by_key(|(index, _)| *index);
        errors.dedup_by_key(|(index, _)| *index);
        errors
    }

    fn fail(&mut self, index: usize, error: EngineError) {
        let mut job = self.running.remove(index);
        job.suspend(&mut self.kv, &mut self.backend);
        job.fail(error);
    }

    fn free_drained(&mut self) {
        let jobs = || self.running.iter().chain(&self.waiting);
        let drained = self.lanes.take_drained(|lane| jobs().any(|job| job.generation == lane));
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
        let running = |generation: Generation| {
            let jobs = self.running.iter().filter(|job| job.generation == generation);
            jobs.map(|job| job.sequences.len()).sum()
        };
        self.stats.active = self.lanes.active();
        self.stats.lanes = self.lanes.loaded().map(|lane| (lane, running(lane))).collect();
        self.stats.running = self.running.iter().map(|job| job.sequences.len()).sum();
        self.stats.queued = self.waiting.len();
        self.stats.cells_used = self.kv.used();
        let is_urgent = self.running.iter().chain(&self.waiting).any(Job::is_urgent);
        let mut pulse = self.shared.pulse.lock().expect("nobody panics while holding the pulse");
        pulse.beat(self.stats.clone(), is_working, is_urgent, Instant::now());
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).expect("a usize has at most 64 bits")
}
