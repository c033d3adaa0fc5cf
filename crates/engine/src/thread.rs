//! The engine thread: takes commands, lets the backend do what the core says, and tells callers what
//! came of it. It owns the backend; nothing here is async and nothing else touches the model.
//! Started by `daemon` through [`spawn`], and by tests through [`spawn_with`] with a scripted model.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::adapters::Adapters;
use super::core::{CachePolicy, Core, Event, Request, RequestId, Validator, execute};
use super::llama::OtherModels;
use super::owner::{EngineThread, own};
use super::step_lock::{StepLock, Ticket};
use super::stream::{Caller, Stream};
use super::{
    Command, Engine, EngineConfig, EngineError, EngineStats, Generation, Piece, Priority, Pulse,
    Shared, llama,
};
use inference::backend::Backend;

/// How long the loop sleeps when every request waits for its reader.
const READER_PAUSE: Duration = Duration::from_millis(2);

/// Loads the model with llama.cpp. Resolves when it is ready or has failed.
pub async fn spawn(config: &EngineConfig) -> Result<(Engine, EngineThread), EngineError> {
    spawn_beside(&StepLock::default(), config, OtherModels::default()).await
}

/// The same for a process that has other models. With a second engine on the same weights for judgements,
/// where that is wanted and there is room.
pub async fn spawn_beside(
    lock: &StepLock,
    config: &EngineConfig,
    others: OtherModels,
) -> Result<(Engine, EngineThread), EngineError> {
    let (config, queue) = (config.clone(), config.queue);
    let (offer, judge) = oneshot::channel();
    let load = move || {
        let mut model = llama::Llama::load_beside(&config, others)?;
        drop(offer.send(model.take_judge()));
        Ok(model)
    };
    let (engine, thread) = spawn_on(lock, queue, load).await?;
    let Ok(Some(judge)) = judge.await else { return Ok((engine, thread)) };
    match spawn_on(lock, queue, move || judge.open()).await {
        Ok((judge, other)) => {
            tracing::info!(model = engine.info().name, "Judgements have a context of their own.");
            Ok((Engine { judge: Some(Arc::new(judge)), ..engine }, thread.and(other)))
        }
        Err(error) => {
            tracing::warn!(
                %error,
                "Judgements have no context of their own: what else is computed changes their rounding."
            );
            Ok((engine, thread))
        }
    }
}

/// The same with any backend. `load` runs inside the thread, because a context must not leave it.
pub async fn spawn_with<B, F>(queue: usize, load: F) -> Result<(Engine, EngineThread), EngineError>
where
    B: Backend + 'static,
    F: FnOnce() -> Result<B, EngineError> + Send + 'static,
{
    spawn_on(&StepLock::default(), queue, load).await
}

/// The same for a process that has other engines.
pub async fn spawn_on<B, F>(
    lock: &StepLock,
    queue: usize,
    load: F,
) -> Result<(Engine, EngineThread), EngineError>
where
    B: Backend + 'static,
    F: FnOnce() -> Result<B, EngineError> + Send + 'static,
{
    let ticket = lock.ticket();
    // Requests are bounded by the two semaphores; the rest is for adapters and for callers that
    // left while their command was under way.
    let (commands, inbox) = mpsc::channel(2 * queue + 16);
    let body = move |ready: oneshot::Sender<Result<Arc<Shared>, EngineError>>| match load() {
        Ok(backend) => {
            let engine = Loop::new(backend, inbox, ticket);
            if ready.send(Ok(Arc::clone(&engine.shared))).is_ok() {
                engine.run();
            }
        }
        Err(error) => drop(ready.send(Err(error))),
    };
    let (shared, thread) = own("engine", body).await?;
    let admission = || Arc::new(Semaphore::new(queue));
    let (urgent, patient, lock) = (admission(), admission(), lock.clone());
    let engine = Engine { commands, urgent, patient, lock, shared, prober: None, judge: None };
    Ok((engine, thread))
}

struct Loop<B> {
    backend: B,
    inbox: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    validator: Validator,
    generations: Adapters,
    core: Core,
    callers: BTreeMap<RequestId, (Caller, tracing::Span)>,
    /// Who waits for a freed adapter.
    freed: Vec<(Generation, Vec<super::adapters::Retired>)>,
    /// Among the engines of the process.
    ticket: Ticket,
    stats: EngineStats,
}

impl<B: Backend> Loop<B> {
    fn new(backend: B, inbox: mpsc::Receiver<Command>, ticket: Ticket) -> Self {
        let limits = backend.limits();
        let info = backend.info();
        let vocabulary = backend.vocabulary();
        let stats = EngineStats {
            cells: limits.cells,
            sequences: limits.sequences,
            ..EngineStats::default()
        };
        let pulse = Mutex::new(Pulse::new(stats.clone()));
        let copies = backend.host_cache_bytes();
        let is_deterministic = backend.is_deterministic();
        let most_copies = copies as u64;
        Self {
            validator: Validator::new(&info),
            core: if is_deterministic {
                Core::deterministic(limits, Arc::clone(&vocabulary))
            } else {
                let cell_bytes = backend.cell_bytes();
                let cache = CachePolicy { cell_bytes, ..CachePolicy::new(copies) };
                Core::new(limits, cache, Arc::clone(&vocabulary))
            },
            shared: Arc::new(Shared { info, vocabulary, most_copies, is_deterministic, pulse }),
            generations: Adapters::new(),
            callers: BTreeMap::new(),
            freed: Vec::new(),
            ticket,
            stats,
            backend,
            inbox,
        }
    }

    fn run(mut self) {
        while self.receive() {
            self.look_after_callers();
            let stepped = self.step();
            self.free_drained();
            if stepped {
                continue;
            }
            // A step has done so itself.
            self.publish(true);
            if !self.callers.is_empty() {
                // There is no channel to wait on for "a reader has read".
                thread::sleep(READER_PAUSE);
            }
        }
        for (caller, _) in std::mem::take(&mut self.callers).into_values() {
            caller.fail(EngineError::Stopped);
        }
    }

    /// Takes all commands; waits for one when there is nothing else to do. False when the last
    /// handle is gone.
    fn receive(&mut self) -> bool {
        // Before they are taken: who comes from now on breaks off a step.
        self.ticket.expect_nobody();
        if self.core.is_idle() && self.callers.is_empty() {
            self.ticket.rest();
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
            Command::Generate(request, checked, reply, span) => {
                let weights = self.generations.choose(request.weights, request.priority);
                let generation = self.generations.resolve(weights);
                let sound = generation.and_then(|g| self.validator.generate(request, g));
                let told = sound.map(|request| {
                    self.enqueue(request, Caller::Generate(Stream::new(reply)), span);
                });
                drop(checked.send(told));
            }
            Command::Score(request, reply, span) => {
                let generation = self.generations.resolve(request.weights);
                let checked = generation.and_then(|g| self.validator.score(request, g));
                self.take(checked, Caller::Score(reply), span);
            }
            Command::Logprobs(request, reply, span) => {
                let generation = self.generations.resolve(request.weights);
                let checked = generation.and_then(|g| self.validator.logprobs(request, g));
                self.take(checked, Caller::Logprobs(reply), span);
            }
            Command::LoadAdapter(generation, path, reply) => {
                let loaded = self.generations.check_new(generation).and_then(|()| {
                    self.backend.load(generation, &path)?;
                    self.generations.insert(generation);
                    tracing::info!(%generation, "Adapter loaded.");
                    Ok(())
                });
                // Before the reply: who has it must find it in the stats.
                self.publish(true);
                drop(reply.send(loaded));
            }
            Command::Activate(generation, reply) => {
                let activated = self.generations.activate(generation);
                self.publish(true);
                drop(reply.send(activated));
            }
            Command::SetCanary(canary, reply) => {
                let set = self.generations.set_canary(canary);
                self.publish(true);
                drop(reply.send(set));
            }
            Command::Retire(generation, reply) => self.generations.retire(generation, reply),
        }
    }

    /// Lets a request wait for room, or tells its caller what is wrong with it.
    fn take(&mut self, checked: Result<Request, EngineError>, caller: Caller, span: tracing::Span) {
        match checked {
            Ok(request) => self.enqueue(request, caller, span),
            Err(error) => caller.fail(error),
        }
    }

    fn enqueue(&mut self, request: Request, caller: Caller, span: tracing::Span) {
        let id = self.core.submit(request);
        self.callers.insert(id, (caller, span));
    }

    /// Drops the requests of callers that have left, and pauses those whose readers are behind.
    fn look_after_callers(&mut self) {
        let mut gone = Vec::new();
        for (&id, (caller, span)) in &mut self.callers {
            if caller.has_left() {
                tracing::debug!(parent: &*span, "Request cancelled by its caller.");
                gone.push(id);
            } else if let Caller::Generate(stream) = caller {
                let is_sent = stream.flush();
                if stream.has_ended && is_sent {
                    gone.push(id);
                } else {
                    self.core.set_stalled(id, stream.is_behind());
                }
            }
        }
        for id in gone {
            self.core.cancel(id);
            self.callers.remove(&id);
        }
    }

    /// Lets the backend do one step. False when no request can go on.
    fn step(&mut self) -> bool {
        // Copies and freed adapters are nobody's request.
        let priority = self.core.next_priority().unwrap_or(Priority::Explore);
        if !self.ticket.take(priority) {
            // Another engine has something more urgent; meanwhile something may have come here.
            self.publish(true);
            return true;
        }
        let Some(step) = self.core.next_step() else {
            self.ticket.leave();
            self.ticket.rest();
            return false;
        };
        let outcome = execute(&mut self.backend, &step, self.ticket.interruption());
        self.ticket.leave();
        let backend = &self.backend;
        self.core.finish(&step, outcome, |entry| backend.logits(entry));
        // Before the replies: who has one must find its tokens in the stats.
        self.publish(true);
        self.tell();
        for (_, waiting) in self.freed.drain(..) {
            for done in waiting {
                drop(done.send(Ok(())));
            }
        }
        true
    }

    fn tell(&mut self) {
        for event in self.core.take_events() {
            match event {
                Event::Started { request, generation, seed, n_cached } => {
                    if let Some(stream) = self.stream(request) {
                        stream.start(generation, seed, n_cached);
                    }
                }
                Event::Token { request, piece } => {
                    if let Some(stream) = self.stream(request) {
                        stream.send(Piece::Token(piece));
                    }
                }
                Event::Finished { request, index, text, reason } => {
                    let index = u32::try_from(index).expect("at most 64 continuations");
                    if let Some(stream) = self.stream(request) {
                        stream.send(Piece::Finished { index, text, reason });
                    }
                }
                Event::Generated { request } => self.end_stream(request),
                Event::Scored { request, scores } => {
                    if let Some((Caller::Score(reply), _)) = self.callers.remove(&request) {
                        drop(reply.send(Ok(scores)));
                    }
                }
                Event::Logprobs { request, logprobs } => {
                    if let Some((Caller::Logprobs(reply), _)) = self.callers.remove(&request) {
                        drop(reply.send(Ok(logprobs)));
                    }
                }
                Event::Failed { request, error } => match self.stream(request) {
                    Some(stream) if stream.has_started() => {
                        stream.send(Piece::Failed(error));
                        self.end_stream(request);
                    }
                    _ => {
                        if let Some((caller, _)) = self.callers.remove(&request) {
                            caller.fail(error);
                        }
                    }
                },
            }
        }
    }

    /// Nothing follows; what its reader has not got yet is kept for it.
    fn end_stream(&mut self, request: RequestId) {
        if let Some(stream) = self.stream(request) {
            stream.has_ended = true;
            if stream.flush() {
                self.callers.remove(&request);
            }
        }
    }

    fn stream(&mut self, request: RequestId) -> Option<&mut Stream> {
        match self.callers.get_mut(&request) {
            Some((Caller::Generate(stream), _)) => Some(stream),
            _ => None,
        }
    }

    fn free_drained(&mut self) {
        let core = &self.core;
        for (generation, waiting) in
            self.generations.take_drained(|generation| core.uses(generation))
        {
            self.core.free(generation);
            self.freed.push((generation, waiting));
            tracing::info!(%generation, "Adapter freed.");
        }
    }

    fn publish(&mut self, is_working: bool) {
        let core = &self.core;
        let counters = core.counters();
        self.stats.active = self.generations.active();
        self.stats.canary = self.generations.canary();
        self.stats.generations =
            self.generations.loaded().map(|g| (g, core.n_running(Some(g)))).collect();
        self.stats.running = core.n_running(None);
        self.stats.queued = core.n_queued();
        self.stats.cells_used = core.cells_used();
        self.stats.host_cache_bytes = core.host_bytes();
        self.stats.steps = counters.steps;
        self.stats.interrupted_steps = counters.interrupted_steps;
        self.stats.prompt_tokens = counters.prompt_tokens;
        self.stats.cached_tokens = counters.cached_tokens;
        self.stats.generated_tokens = counters.generated_tokens;
        self.stats.drafted_tokens = counters.drafted_tokens;
        self.stats.right_drafts = counters.right_drafts;
        self.stats.preemptions = counters.preemptions;
        let is_urgent = core.is_urgent();
        let mut pulse = self.shared.pulse.lock().expect("nobody panics while holding the pulse");
        pulse.beat(self.stats.clone(), is_working, is_urgent, Instant::now());
    }
}
