-- What the owner says is training data: edits are answers, and an answer can be learned from alone.

-- An owner's edit was not sampled: its log-probs are what its generation gives to the text, and its
-- sampling parameters mean nothing.
ALTER TABLE candidates ADD COLUMN author TEXT NOT NULL DEFAULT 'model'
    CHECK (author IN ('model', 'owner'));

-- Like `last_candidate`: what has a larger id is newer, even after the clock was set back.
ALTER TABLE runs ADD COLUMN last_feedback INTEGER NOT NULL DEFAULT 0;

-- A side may be absent: `kto` and `grpo` learn from single answers.
CREATE TABLE sided_pairs (
    run      INTEGER NOT NULL REFERENCES runs (id),
    position INTEGER NOT NULL,
    exchange INTEGER NOT NULL,
    chosen   INTEGER,
    rejected INTEGER,
    margin   REAL NOT NULL,
    CHECK (chosen IS NOT NULL OR rejected IS NOT NULL),
    PRIMARY KEY (run, position),
    FOREIGN KEY (exchange, chosen) REFERENCES candidates (exchange, id),
    FOREIGN KEY (exchange, rejected) REFERENCES candidates (exchange, id)
) STRICT, WITHOUT ROWID;
INSERT INTO sided_pairs SELECT run, position, exchange, chosen, rejected, margin FROM pairs;
DROP TABLE pairs;
ALTER TABLE sided_pairs RENAME TO pairs;
