//! HTTP on the Unix socket: the router, what every request passes through, and the state that
//! handlers share. Only this folder names axum. It decides nothing about answers or training:
//! handlers turn JSON into calls of `reflect`, `learn` and `store`, and results into JSON.
//! Called by `daemon`.

mod adapters;
mod chat;
mod error;
mod examples;
mod feedback;
mod follow;
mod health;
mod judge;
mod later;
mod metrics;
mod models;
mod outlet;
mod peer;
mod read;
mod reflections;
mod reply;
mod runs;
pub mod wire;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use crate::learn::Learner;
use crate::reflect::Reflector;
use config::{Agent, Config};
use engine::Engine;
use store::Store;

use error::ApiError;
use later::Later;
use metrics::Metrics;
use peer::Peer;
use wire::ConfigReport;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the daemon hands to the interface.
#[derive(Clone, Debug)]
pub struct Parts {
    /// For numbers and facts.
    pub engine: Engine,
    /// For reflections, feedback, runs and generations.
    pub store: Store,
    /// Answers chats.
    pub reflector: Reflector,
    /// Trains and explores.
    pub learner: Learner,
    /// The configuration in force; a request keeps the one that it began with.
    pub config: watch::Receiver<Arc<Config>>,
    /// How the last reload went.
    pub report: watch::Receiver<ConfigReport>,
    /// How far the daemon's end has come.
    pub phase: watch::Receiver<Phase>,
}

/// How far the daemon's end has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// Requests are accepted.
    Serving,
    /// Requests that run may end; no new one begins.
    Draining,
    /// Requests that still run are ended.
    Ending,
}

/// State of all handlers. Cheap to clone.
#[derive(Clone, Debug)]
struct Api {
    parts: Parts,
    chats: Arc<AtomicUsize>,
    later: Later,
    metrics: Arc<Metrics>,
    ids: Arc<RequestIds>,
    since: Instant,
    created: i64,
}

/// Serves until `phase` leaves [`Phase::Serving`] and the last connection has ended.
pub fn spawn(listener: UnixListener, parts: Parts) -> JoinHandle<io::Result<()>> {
    let mut phase = parts.phase.clone();
    let metrics = Arc::new(Metrics::new(&parts.engine, &parts.reflector, &parts.learner));
    let api = Api {
        chats: Arc::new(AtomicUsize::new(0)),
        later: Later::spawn(&parts, Arc::clone(&metrics)),
        metrics,
        ids: Arc::new(RequestIds::new()),
        since: Instant::now(),
        created: chrono::Utc::now().timestamp(),
        parts,
    };
    let service = router(api).into_make_service_with_connect_info::<Peer>();
    tokio::spawn(async move {
        axum::serve(listener, service)
            .with_graceful_shutdown(async move {
                // An error means that the daemon has gone, which is also a reason to stop.
                drop(phase.wait_for(|phase| *phase != Phase::Serving).await);
            })
            .await
    })
}

fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{name}", get(models::show))
        .route("/health", get(health::health))
        .route("/metrics", get(metrics::scrape))
        .route("/v1/status", get(health::status))
        .route("/v1/reflections", get(reflections::list))
        .route("/v1/reflections/{id}", get(reflections::show))
        .route("/v1/feedback", post(feedback::store))
        .route("/v1/runs", get(runs::list).post(runs::train))
        .route("/v1/runs/current", delete(runs::cancel))
        .route("/v1/runs/resume", post(runs::resume))
        .route("/v1/runs/{id}", get(runs::show))
        .route("/v1/pairs", get(runs::pairs))
        .route("/v1/explore", post(runs::explore))
        .route("/v1/examples", post(examples::learn))
        .route("/v1/judge", get(judge::report))
        .route("/v1/judge/calibrate", post(judge::calibrate))
        .route("/v1/judge/attack", post(judge::attack))
        .route("/v1/judge/rescore", post(judge::rescore))
        .route("/v1/adapters", get(adapters::list))
        .route("/v1/adapters/{generation}", get(adapters::show))
        .route("/v1/adapters/import", post(adapters::import))
        .route("/v1/adapters/rollback", post(adapters::rollback))
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .fallback(async || ApiError::NotFound("no such path".to_owned()))
        .layer(middleware::from_fn_with_state(api.clone(), admit))
        .with_state(api)
}

/// What every request passes through: id, span, who asks, whether we still take requests, count.
async fn admit(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let id = api.ids.of(&request);
    let route = match request.extensions().get::<MatchedPath>() {
        Some(path) => path.as_str().to_owned(),
        // A label of our own: paths that clients make up must not become metric labels.
        None => "unknown".to_owned(),
    };
    let method = request.method().clone();
    let span = tracing::info_span!("request", request_id = %id.0, %method, route);
    let allowed = peer.check(&api.config().server.allow_uids).and_then(|()| api.takes(&method));
    let mut response = match allowed {
        Ok(()) => {
            let mut request = request;
            request.extensions_mut().insert(id.clone());
            next.run(request).instrument(span).await
        }
        Err(error) => span.in_scope(|| error.into_response()),
    };
    api.metrics.count(&route, response.status().as_u16());
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

impl Api {
    /// The configuration in force.
    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.parts.config.borrow())
    }

    /// The agent that a request names.
    fn agent(&self, model: &str) -> Result<Arc<Agent>, ApiError> {
        let config = self.config();
        let name = if model == "default" { &config.default_agent } else { model };
        let agent = config.agents.get(name).ok_or_else(|| {
            // Client text, so bounded before it is repeated.
            ApiError::ModelNotFound(model.chars().take(100).collect())
        })?;
        Ok(Arc::clone(agent))
    }

    /// While the daemon drains, questions about it are still answered.
    fn takes(&self, method: &Method) -> Result<(), ApiError> {
        if *self.parts.phase.borrow() == Phase::Serving || method == Method::GET {
            return Ok(());
        }
        Err(ApiError::Draining)
    }

    /// Room for one more chat. Counted against the limit in force, so that a reload can change it.
    fn permit(&self) -> Result<Permit, ApiError> {
        let permit = Permit::new(&self.chats, self.config().server.max_requests);
        permit.ok_or(ApiError::Overloaded { retry_after: Duration::from_secs(1) })
    }

    /// Resolves when requests that still run must end.
    fn ending(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut phase = self.parts.phase.clone();
        async move {
            drop(phase.wait_for(|phase| *phase == Phase::Ending).await);
        }
    }
}

/// One running chat; room again when dropped.
#[derive(Debug)]
struct Permit {
    chats: Arc<AtomicUsize>,
    is_counted: bool,
}

impl Permit {
    /// One of `limit`, unless all are taken.
    fn new(chats: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let more = |running| (running < limit).then_some(running + 1);
        chats.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Self { chats: Arc::clone(chats), is_counted: true })
    }

    /// Makes room for another chat while this one waits for its client.
    fn give_back(&mut self) {
        if std::mem::take(&mut self.is_counted) {
            self.chats.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Counts again, also beyond the limit: a chat that is under way is not refused.
    fn take_again(&mut self) {
        if !std::mem::replace(&mut self.is_counted, true) {
            self.chats.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Names a request in the log, in `x-request-id` and in the reply's id.
#[derive(Clone, Debug)]
struct RequestId(String);

/// Makes request ids: the daemon's start and a count, which is unique without randomness.
#[derive(Debug)]
struct RequestIds {
    start: i64,
    next: AtomicUsize,
}

impl RequestIds {
    fn new() -> Self {
        Self { start: chrono::Utc::now().timestamp_millis(), next: AtomicUsize::new(1) }
    }

    /// The client's own id where it has a harmless one, else a new one.
    fn of(&self, request: &Request) -> RequestId {
        let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let harmless = |id: &&str| {
            (1..=64).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        RequestId(match given.filter(harmless) {
            Some(id) => id.to_owned(),
            None => {
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                format!("{:x}-{number:x}", self.start)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: &str) -> Request {
        Request::builder().header(REQUEST_ID, id).body(axum::body::Body::empty()).unwrap()
    }

    #[test]
    fn a_harmless_id_of_the_client_is_kept() {
        assert_eq!(RequestIds::new().of(&request("trace-1.a")).0, "trace-1.a");
    }

    #[test]
    fn an_id_that_could_forge_a_log_line_is_replaced() {
        let ids = RequestIds::new();
        assert_ne!(ids.of(&request("a b=\"c\"")).0, "a b=\"c\"");
        assert_ne!(ids.of(&request(&"x".repeat(65))).0, "x".repeat(65));
        assert_ne!(ids.of(&request("")).0, ids.of(&request("")).0);
    }
}
