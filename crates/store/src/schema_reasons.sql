-- Why a verifier refuses an answer, and who wrote a critique: a judge, or a verifier whose reason it is.

ALTER TABLE assessments ADD COLUMN reason TEXT;
ALTER TABLE candidates ADD COLUMN critic TEXT CHECK (critic IN ('judge', 'verifier'));
UPDATE candidates SET critic = 'judge' WHERE critique IS NOT NULL;
