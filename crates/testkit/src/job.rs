//! The job that trainers of tests and benchmarks are given. Used by the trainer's tests, those of the
//! daemon, and `bench/trainer`.

use protocol::{BaseKind, Compute, Device, Job, Lora, Objective, Optimizer, VERSION};

/// A sound job about files that are not there, for tests, which set what they are about.
pub fn job() -> Job {
    Job {
        version: VERSION,
        run: "example".into(),
        base: "/nowhere/base.gguf".into(),
        base_sha256: "00".into(),
        start: None,
        data: "/nowhere/run/data.jsonl".into(),
        out: "/nowhere/run".into(),
        reference_cache: None,
        objective: Objective::Dpo { beta: 0.1, nll: 1.0 },
        lora: Lora { rank: 8, alpha: 16.0 },
        optimizer: Optimizer {
            learning_rate: 1e-3,
            epochs: 1,
            batch_pairs: 4,
            warmup_ratio: 0.0,
            max_grad_norm: 1.0,
            weight_decay: 0.0,
        },
        validation_share: 0.0,
        validations: 4,
        checkpoint_s: 60.0,
        max_tokens: 4096,
        context_tokens: 4096,
        base_kind: BaseKind::Auto,
        compute: Compute::F32,
        memory_limit_bytes: None,
        threads: 1,
        device: Device::Cpu,
        seed: 7,
    }
}
