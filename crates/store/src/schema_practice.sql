-- Prompts that files name: each is stored once an agent, however often its file is read. An example is
-- an answer of the owner that revises none.
CREATE TABLE file_prompts (
    agent    TEXT NOT NULL,
    -- The conversation, as `exchanges` has it.
    messages TEXT NOT NULL,
    exchange INTEGER NOT NULL REFERENCES exchanges (id),
    PRIMARY KEY (agent, messages)
) STRICT, WITHOUT ROWID;

CREATE INDEX examples ON candidates (exchange, id) WHERE author = 'owner' AND parent IS NULL;

-- The examples, as ids of candidates in JSON, that stood before the prompt when this was sampled; NULL:
-- none did.
ALTER TABLE candidates ADD COLUMN shots TEXT;
