//! The tables and how they came to be. Used by `thread`.

use rusqlite_migration::{M, Migrations};

/// Version 0 (an empty file) to the newest, counted by `user_version`.
pub(super) fn migrations() -> Migrations<'static> {
    Migrations::new(vec![
        M::up(include_str!("schema.sql")),
        M::up(include_str!("schema_gate.sql")),
        M::up(include_str!("schema_owner.sql")),
        M::up(include_str!("schema_interrupted.sql")),
        M::up(include_str!("schema_aspect_choice.sql")),
        M::up(include_str!("schema_trust.sql")),
        M::up(include_str!("schema_reasons.sql")),
        M::up(include_str!("schema_practice.sql")),
        M::up(include_str!("schema_set_aside.sql")),
        M::up(include_str!("schema_expected.sql")),
        M::up(include_str!("schema_reference.sql")),
    ])
}
