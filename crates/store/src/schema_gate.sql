-- The gate's second set of prompts, the watch over promoted generations, and lookups for both.

-- Ids are unique in a file, and there are two files an agent.
CREATE TABLE evaluations_new (
    id        INTEGER PRIMARY KEY,
    run       INTEGER NOT NULL REFERENCES runs (id),
    candidate INTEGER NOT NULL CHECK (candidate IN (0, 1)),
    -- Empty in rows of the first version, which did not say.
    agent     TEXT NOT NULL,
    -- From the general set, not from the held-out one.
    general   INTEGER NOT NULL CHECK (general IN (0, 1)),
    prompt_id TEXT NOT NULL,
    text      TEXT NOT NULL,
    score     REAL NOT NULL,
    verified  INTEGER CHECK (verified IN (0, 1)),
    UNIQUE (run, candidate, agent, general, prompt_id)
) STRICT;
INSERT INTO evaluations_new (id, run, candidate, agent, general, prompt_id, text, score, verified)
    SELECT id, run, candidate, '', 0, prompt_id, text, score, verified FROM evaluations;
DROP TABLE evaluations;
ALTER TABLE evaluations_new RENAME TO evaluations;

-- One a promoted generation: how it does beside the one before it.
CREATE TABLE watches (
    generation      INTEGER PRIMARY KEY REFERENCES generations (generation),
    parent          INTEGER NOT NULL,
    -- Of the chats while it is a canary; 1: it was none.
    share           REAL NOT NULL,
    started_ms      INTEGER NOT NULL,
    -- The newest candidate when it started.
    after_candidate INTEGER NOT NULL,
    state           TEXT NOT NULL CHECK (state IN
        ('canary', 'watching', 'passed', 'rolled_back', 'ended')),
    ended_ms        INTEGER,
    reason          TEXT
) STRICT;
CREATE UNIQUE INDEX one_watch_is_open ON watches (ended_ms IS NULL) WHERE ended_ms IS NULL;

CREATE INDEX candidates_by_generation ON candidates (generation, id);
CREATE INDEX events_by_kind ON events (kind, id);
