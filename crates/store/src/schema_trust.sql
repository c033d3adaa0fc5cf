-- Assessments keep their history: the newest counts (is_current), earlier ones stay readable. What
-- calibration found: reports of the judge, and the thresholds that it chose for each version.

CREATE TABLE assessments_with_history (
    id             INTEGER PRIMARY KEY,
    candidate      INTEGER NOT NULL REFERENCES candidates (id),
    created_ms     INTEGER NOT NULL,
    aspect         TEXT NOT NULL,
    rubric_version TEXT NOT NULL,
    judge          TEXT NOT NULL,
    p_minus        REAL NOT NULL,
    p_zero         REAL NOT NULL,
    p_plus         REAL NOT NULL,
    mass           REAL NOT NULL,
    weight         REAL NOT NULL,
    passes         INTEGER NOT NULL CHECK (passes IN (0, 1)),
    is_current     INTEGER NOT NULL CHECK (is_current IN (0, 1))
) STRICT;
INSERT INTO assessments_with_history
    SELECT assessments.id, candidate, created_ms, aspect, rubric_version, judge, p_minus, p_zero,
           p_plus, mass, weight, passes, 1
    FROM assessments JOIN candidates ON candidates.id = assessments.candidate;
DROP TABLE assessments;
ALTER TABLE assessments_with_history RENAME TO assessments;
-- One current assessment an aspect, because a second one would count twice.
CREATE UNIQUE INDEX one_assessment_counts ON assessments (candidate, aspect) WHERE is_current = 1;
CREATE INDEX assessments_by_candidate ON assessments (candidate);

CREATE TABLE judge_reports (
    id         INTEGER PRIMARY KEY,
    created_ms INTEGER NOT NULL,
    agent      TEXT NOT NULL,
    judge      TEXT NOT NULL,
    -- Of all rubrics together: another version is not compared with this one.
    version    TEXT NOT NULL,
    report     TEXT NOT NULL,
    -- What each probe got, for the drift until the next report.
    scores     TEXT NOT NULL
) STRICT;
CREATE INDEX judge_reports_by_version ON judge_reports (agent, judge, version);

CREATE TABLE judge_bars (
    agent          TEXT NOT NULL,
    aspect         TEXT NOT NULL,
    judge          TEXT NOT NULL,
    rubric_version TEXT NOT NULL,
    created_ms     INTEGER NOT NULL,
    pass           REAL NOT NULL CHECK (pass BETWEEN 0 AND 1),
    PRIMARY KEY (agent, aspect, judge, rubric_version)
) STRICT, WITHOUT ROWID;
