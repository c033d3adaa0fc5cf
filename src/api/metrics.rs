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
use crate::learn::{Harvest, Learner};
use crate::reflect::{CallCounts, Reflector};
use engine::Engine;

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
    pub(super) fn new(engine: &Engine, reflector: &Reflector, learner: &Learner) -> Self {
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
        registry.register_collector(Box::new(EngineNumbers("engine", engine.clone())));
        if let Some(judge) = reflector.judge_engine() {
            registry.register_collector(Box::new(EngineNumbers("judge_engine", judge.clone())));
        }
        if let Some(judge) = reflector.judge_context() {
            registry.register_collector(Box::new(EngineNumbers("judge_context", judge.clone())));
        }
        registry.register_collector(Box::new(EndpointNumbers(reflector.clone())));
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
        let Harvest {
            prompts,
            candidates,
            positives,
            generated_tokens,
            enough,
            given_up,
            expected,
            unfit,
            unpursued,
        } = harvest;
        for (name, help, value) in [
            ("explore_prompts", "Prompts that exploration has left", prompts),
            ("explore_candidates", "Answers of exploration", candidates),
            ("explore_positives", "Of these, answers that pass every aspect", positives),
            ("explore_generated_tokens", "Tokens that exploration has sampled", generated_tokens),
            ("explore_enough", "Prompts left early with enough of good and bad", enough),
            ("explore_given_up", "Prompts given up because nothing passes", given_up),
            ("explore_expected", "Prompts whose verifier's answer is learned", expected),
            ("explore_unfit", "Prompts whose verifier's answer does not fit", unfit),
            ("explore_unpursued", "Prompts left because next to no answer passes", unpursued),
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

/// An engine's numbers, by what their names begin with.
#[derive(Debug)]
struct EngineNumbers(&'static str, Engine);

impl Collector for EngineNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(prefix, engine) = self;
        let stats = engine.stats();
        let counters = [
            ("steps", "Decode calls", stats.steps),
            (
                "interrupted_steps",
                "Steps of idle work broken off for somebody who came",
                stats.interrupted_steps,
            ),
            ("prompt_tokens", "Prompt tokens evaluated", stats.prompt_tokens),
            ("cached_tokens", "Prompt tokens whose KV was there", stats.cached_tokens),
            ("generated_tokens", "Tokens sampled", stats.generated_tokens),
            ("drafted_tokens", "Tokens evaluated ahead", stats.drafted_tokens),
            ("right_drafts", "Of these, tokens that were then sampled", stats.right_drafts),
            ("preemptions", "Sequences that gave way, to go on later", stats.preemptions),
        ];
        for (name, help, value) in counters {
            count(&mut encoder, &format!("{prefix}_{name}"), help, value)?;
        }
        let gauges = [
            ("queued", "Requests that wait for room", stats.queued),
            ("running", "Sequences in the batch", stats.running),
            ("cells_used", "KV cells in use", stats.cells_used),
            ("cells", "KV cells", stats.cells),
            (
                "host_cache_bytes",
                "Memory of prefixes kept outside the context",
                stats.host_cache_bytes,
            ),
            ("generations", "Loaded generations", stats.generations.len()),
            ("generation", "The active generation", stats.active.0 as usize),
        ];
        for (name, help, value) in gauges {
            let name = format!("{prefix}_{name}");
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(&name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// How asking judges behind HTTP has gone.
#[derive(Debug)]
struct EndpointNumbers(Reflector);

impl Collector for EndpointNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let CallCounts { answered, repeated, failed, .. } = self.0.endpoint_calls();
        let encoder = &mut encoder;
        count(encoder, "judge_answered", "Requests that a judge's endpoint answered", answered)?;
        count(encoder, "judge_repeated", "Requests that were sent to it again", repeated)?;
        count(encoder, "judge_failed", "Requests to it that were given up", failed)
    }
}

fn count(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
}
