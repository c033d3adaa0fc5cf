-- An example that the prompt's verifier names whole, and that nobody wrote: 1; one that it no longer names
-- stays as what was learned from: 0. NULL: every other answer, the owner's own examples among them.
ALTER TABLE candidates ADD COLUMN expected INTEGER CHECK (expected IN (0, 1));
CREATE UNIQUE INDEX one_expected_answer_counts ON candidates (exchange) WHERE expected = 1;
