-- Version 1. A change is a new file and a new line in schema.rs; this one stays as it is.

CREATE TABLE exchanges (
    -- Never reused: clients keep it as a receipt.
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    created_ms    INTEGER NOT NULL,
    agent         TEXT NOT NULL,
    source        TEXT NOT NULL CHECK (source IN ('chat', 'explore')),
    messages      TEXT NOT NULL,
    prompt_tokens BLOB NOT NULL,
    reference     TEXT,
    verifier      TEXT,
    served        INTEGER,
    FOREIGN KEY (id, served) REFERENCES candidates (exchange, id)
) STRICT;
CREATE INDEX exchanges_by_agent ON exchanges (agent);

CREATE TABLE candidates (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    exchange   INTEGER NOT NULL REFERENCES exchanges (id),
    created_ms INTEGER NOT NULL,
    parent     INTEGER,
    generation INTEGER NOT NULL,
    text       TEXT NOT NULL,
    -- Little-endian 32-bit numbers, one log-prob for each token.
    tokens     BLOB NOT NULL,
    logprobs   BLOB NOT NULL CHECK (length(logprobs) = length(tokens)),
    sampling   TEXT NOT NULL,
    finish     TEXT NOT NULL CHECK (finish IN ('stop', 'length')),
    critique   TEXT,
    UNIQUE (exchange, id),
    -- A refinement and its parent answer the same prompt.
    FOREIGN KEY (exchange, parent) REFERENCES candidates (exchange, id)
) STRICT;

CREATE TABLE assessments (
    id             INTEGER PRIMARY KEY,
    candidate      INTEGER NOT NULL REFERENCES candidates (id),
    aspect         TEXT NOT NULL,
    rubric_version TEXT NOT NULL,
    judge          TEXT NOT NULL,
    p_minus        REAL NOT NULL,
    p_zero         REAL NOT NULL,
    p_plus         REAL NOT NULL,
    mass           REAL NOT NULL,
    weight         REAL NOT NULL,
    passes         INTEGER NOT NULL CHECK (passes IN (0, 1)),
    -- One assessment an aspect, because a second one would count twice.
    UNIQUE (candidate, aspect)
) STRICT;

CREATE TABLE feedback (
    id         INTEGER PRIMARY KEY,
    created_ms INTEGER NOT NULL,
    exchange   INTEGER NOT NULL REFERENCES exchanges (id),
    candidate  INTEGER,
    rating     INTEGER CHECK (rating IN (-1, 0, 1)),
    aspect     TEXT,
    edit       TEXT,
    FOREIGN KEY (exchange, candidate) REFERENCES candidates (exchange, id)
) STRICT;
CREATE INDEX feedback_by_exchange ON feedback (exchange);

CREATE TABLE runs (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    started_ms     INTEGER NOT NULL,
    ended_ms       INTEGER,
    state          TEXT NOT NULL CHECK (state IN
        ('training', 'gating', 'promoted', 'rejected', 'failed', 'cancelled')),
    reason         TEXT,
    start          INTEGER NOT NULL,
    data_sha256    TEXT NOT NULL,
    job            TEXT NOT NULL,
    metrics        TEXT NOT NULL,
    generation     INTEGER REFERENCES generations (generation),
    -- The newest candidate when the run started: what has a larger id is newer, even after the
    -- clock was set back.
    last_candidate INTEGER NOT NULL
) STRICT;

CREATE TABLE pairs (
    run      INTEGER NOT NULL REFERENCES runs (id),
    position INTEGER NOT NULL,
    exchange INTEGER NOT NULL,
    chosen   INTEGER NOT NULL,
    rejected INTEGER,
    margin   REAL NOT NULL,
    PRIMARY KEY (run, position),
    FOREIGN KEY (exchange, chosen) REFERENCES candidates (exchange, id),
    FOREIGN KEY (exchange, rejected) REFERENCES candidates (exchange, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE generations (
    generation  INTEGER PRIMARY KEY CHECK (generation > 0),
    run         INTEGER NOT NULL UNIQUE REFERENCES runs (id),
    parent      INTEGER NOT NULL CHECK (parent < generation),
    path        TEXT NOT NULL,
    sha256      TEXT NOT NULL,
    base_sha256 TEXT NOT NULL,
    created_ms  INTEGER NOT NULL,
    active      INTEGER NOT NULL CHECK (active IN (0, 1)),
    verdict     TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_generation_is_active ON generations (active) WHERE active = 1;

CREATE TABLE evaluations (
    id        INTEGER PRIMARY KEY,
    run       INTEGER NOT NULL REFERENCES runs (id),
    candidate INTEGER NOT NULL CHECK (candidate IN (0, 1)),
    prompt_id TEXT NOT NULL,
    text      TEXT NOT NULL,
    score     REAL NOT NULL,
    verified  INTEGER CHECK (verified IN (0, 1)),
    UNIQUE (run, candidate, prompt_id)
) STRICT;

CREATE TABLE events (
    id         INTEGER PRIMARY KEY,
    created_ms INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    detail     TEXT NOT NULL
) STRICT;
