//! `GET /metrics`: what Prometheus scrapes. Counters of the interface live here; the numbers of the
//! engine and of exploration are read when somebody asks.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::Api;
use super::error::ApiError;
use crate::engine::Engine;
use crate::learn::{Harvest, Learner};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// From a cached prompt on a small model to a long inline reflection.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    route: String,
    status: u16,
}

/// Counters of the interface, and the registry that spells them out.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    admission: Histogram,
    answer: Histogram,
    dropped_reflections: Counter,
}

impl Metrics {
    pub(super) fn new(engine: &Engine, learner: &Learner) -> Self {
        let mut registry = Registry::with_prefix("reflectd");
        let requests = Family::default();
        registry.register("http_requests", "Requests by route and status", requests.clone());
        let admission = Histogram::new(SECONDS);
        registry.register_with_unit(
            "chat_admission",
            "From a chat's arrival to its place in the batch",
            Unit::Seconds,
            admission.clone(),
        );
        let answer = Histogram::new(SECONDS);
        registry.register_with_unit(
            "chat_answer",
            "From a chat's arrival to its stored answer",
            Unit::Seconds,
            answer.clone(),
        );
        let dropped_reflections = Counter::default();
        registry.register(
            "reflections_dropped",
            "Answers whose background reflection was left to exploration",
            dropped_reflections.clone(),
        );
        registry.register_collector(Box::new(EngineNumbers(engine.clone())));
        registry.register_collector(Box::new(ExploreNumbers(learner.clone())));
        Self { registry, requests, admission, answer, dropped_reflections }
    }

    pub(super) fn count(&self, route: &str, status: u16) {
        self.requests.get_or_create(&RequestLabels { route: route.to_owned(), status }).inc();
    }

    pub(super) fn admitted(&self, after: Duration) {
        self.admission.observe(after.as_secs_f64());
    }

    pub(super) fn answered(&self, after: Duration) {
        self.answer.observe(after.as_secs_f64());
    }

    pub(super) fn dropped_reflection(&self) {
        self.dropped_reflections.inc();
    }
}

pub(super) async fn scrape(State(api): State<Api>) -> Result<impl IntoResponse, ApiError> {
    let metrics = Arc::clone(&api.metrics);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &metrics.registry)
        .map_err(|error| ApiError::Internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text))
}

#[derive(Debug)]
struct ExploreNumbers(Learner);

impl Collector for ExploreNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let harvest = self.0.harvest();
        let Harvest { prompts, candidates, positives, generated_tokens, enough, given_up } =
            harvest;
        for (name, help, value) in [
            ("explore_prompts", "Prompts that exploration has left", prompts),
            ("explore_candidates", "Answers of exploration", candidates),
            ("explore_positives", "Of these, answers that pass every aspect", positives),
            ("explore_generated_tokens", "Tokens that exploration has sampled", generated_tokens),
            ("explore_enough", "Prompts left early with enough of good and bad", enough),
            ("explore_given_up", "Prompts given up because nothing passes", given_up),
        ] {
            let counter = ConstCounter::new(u64::try_from(value).unwrap_or(u64::MAX));
            let kind = counter.metric_type();
            counter.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        let gauge = ConstGauge::new(harvest.positives_per_1000_tokens());
        let (name, help) = ("explore_positives_per_1000_tokens", "The yield since the start");
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
    }
}

#[derive(Debug)]
struct EngineNumbers(Engine);

impl Collector for EngineNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.0.stats();
        let counters = [
            ("engine_steps", "Decode calls", stats.steps),
            (
                "engine_interrupted_steps",
                "Steps of idle work broken off for somebody who came",
                stats.interrupted_steps,
            ),
            ("engine_prompt_tokens", "Prompt tokens evaluated", stats.prompt_tokens),
            ("engine_cached_tokens", "Prompt tokens whose KV was there", stats.cached_tokens),
            ("engine_generated_tokens", "Tokens sampled", stats.generated_tokens),
            ("engine_guessed_tokens", "Tokens evaluated ahead", stats.guessed_tokens),
            (
                "engine_right_guesses",
                "Of these, tokens that were then sampled",
                stats.right_guesses,
            ),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(
                name,
                help,
                None,
                counter.metric_type(),
            )?)?;
        }
        let gauges = [
            ("engine_queued", "Requests that wait for room", stats.queued),
            ("engine_running", "Sequences in the batch", stats.running),
            ("engine_cells_used", "KV cells in use", stats.cells_used),
            ("engine_cells", "KV cells", stats.cells),
            (
                "engine_parked_bytes",
                "Memory of prefixes kept outside the context",
                stats.parked_bytes,
            ),
            ("engine_lanes", "Loaded generations", stats.lanes.len()),
            ("engine_generation", "The active generation", stats.active.0 as usize),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
