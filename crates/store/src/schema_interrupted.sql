-- A run that goes on with the next training keeps its state ('training' or 'gating') and has this mark.
ALTER TABLE runs ADD COLUMN interrupted INTEGER NOT NULL DEFAULT 0 CHECK (interrupted IN (0, 1));
