-- Prompts that the daemon itself has set aside for the gate, for good: what is here is never practised
-- on or learned from again.
CREATE TABLE set_aside (
    exchange   INTEGER PRIMARY KEY REFERENCES exchanges (id),
    created_ms INTEGER NOT NULL
) STRICT;
