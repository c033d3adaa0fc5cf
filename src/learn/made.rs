//! What a training of a run has made: into the run's record, and back from there when the run was
//! interrupted after it. Used by `run` and `resume`.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::child::{self, Product, Trained};

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Made {
    /// The best weights, and the last ones where these are others.
    pub(super) candidates: Vec<Trained>,
    /// How long it took; a second training may take as long.
    pub(super) took: Duration,
}

/// The field of a run's record that says how long its training took, also one that has not ended.
pub(super) const TRAIN_S: &str = "train_s";

/// What of it stands in the record.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Record {
    adapter_sha256: String,
    last_sha256: Option<String>,
    /// Seconds; see [`TRAIN_S`].
    train_s: f64,
}

impl Made {
    pub(super) fn new(product: Product, took: Duration) -> Self {
        Self { candidates: [product.best].into_iter().chain(product.last).collect(), took }
    }

    /// An adapter that was made elsewhere.
    pub(super) fn elsewhere(adapter: Trained) -> Self {
        Self { candidates: vec![adapter], took: Duration::ZERO }
    }

    pub(super) fn record(&self) -> Record {
        let sha256 = |at: usize| self.candidates.get(at).map(|trained| trained.sha256.clone());
        Record {
            adapter_sha256: sha256(0).unwrap_or_default(),
            last_sha256: sha256(1),
            train_s: self.took.as_secs_f64(),
        }
    }

    /// From the record and the folder of a training; `None`: it had not ended, or its files are others now.
    pub(super) async fn read(record: &serde_json::Value, out: &Path) -> Option<Self> {
        let Record { adapter_sha256, last_sha256, train_s } = Record::deserialize(record).ok()?;
        let named = [("", Some(adapter_sha256)), ("last-", last_sha256)];
        let mut candidates = Vec::new();
        for (name, sha256) in named.into_iter().filter_map(|(name, it)| Some((name, it?))) {
            let trained = Trained {
                adapter: out.join(format!("{name}adapter.gguf")),
                sha256,
                probe: Some(out.join(format!("{name}probe.json"))),
            };
            child::check_done(&trained, out).await.ok()?;
            candidates.push(trained);
        }
        let took = Duration::try_from_secs_f64(train_s).ok()?;
        Some(Self { candidates, took })
    }
}
