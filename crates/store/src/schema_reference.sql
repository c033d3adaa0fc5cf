-- The reference beside which a prompt's answers were judged. A file may name another one since: then what
-- was said of them no longer counts.
ALTER TABLE exchanges ADD COLUMN judged_reference TEXT;
UPDATE exchanges SET judged_reference = reference;
