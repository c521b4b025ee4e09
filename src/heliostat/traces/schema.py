"""The bank's tables. Data that many traces share (problem, prompt, sampler) is stored once; traces refer to it.

Rows are final: triggers refuse to change or remove a trace.

Left out: writing and reading rows (``bank``).
"""

APPLICATION_ID = 0x48544231  # "HTB1", so that another program's SQLite file is recognised as such
FORMAT = 3
"""Format 1 had no checksums, and formats 1 and 2 no turns: their rows are read as they are, and the first that writes
brings the file to the current format."""

FORMAT_1 = """
CREATE TABLE problems (id INTEGER PRIMARY KEY, task TEXT NOT NULL, name TEXT NOT NULL UNIQUE);
CREATE TABLE contexts (
    id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, problem INTEGER NOT NULL REFERENCES problems,
    tokenizer TEXT NOT NULL, prompt BLOB NOT NULL, prefix BLOB NOT NULL, cut TEXT NOT NULL
);
CREATE TABLE sources (
    id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, tokenizer TEXT NOT NULL, policy TEXT NOT NULL,
    run TEXT NOT NULL, step INTEGER NOT NULL, temperature REAL, max_new_tokens INTEGER NOT NULL,
    verifier TEXT NOT NULL, reencoded INTEGER NOT NULL
);
CREATE TABLE traces (
    id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, problem INTEGER NOT NULL REFERENCES problems,
    context INTEGER NOT NULL REFERENCES contexts, source INTEGER NOT NULL REFERENCES sources,
    completion BLOB NOT NULL, logp BLOB NOT NULL, text TEXT NOT NULL, reward REAL NOT NULL, success INTEGER NOT NULL,
    stop TEXT NOT NULL, seed INTEGER NOT NULL, flops REAL NOT NULL
);
CREATE INDEX traces_of_problem ON traces(problem, success);
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY, campaign TEXT NOT NULL, problem TEXT NOT NULL, round INTEGER NOT NULL,
    num INTEGER NOT NULL, num_success INTEGER NOT NULL, flops REAL NOT NULL, UNIQUE (campaign, problem, round)
);
CREATE TRIGGER traces_stay BEFORE DELETE ON traces BEGIN SELECT RAISE(ABORT, 'a trace bank is append-only'); END;
CREATE TRIGGER traces_are_final BEFORE UPDATE ON traces BEGIN SELECT RAISE(ABORT, 'a trace bank is append-only'); END;
"""

_CHECKSUMS = (
    "ALTER TABLE traces ADD COLUMN checksum BLOB",
    "CREATE TABLE attempt_checksums (attempt INTEGER PRIMARY KEY REFERENCES attempts, checksum BLOB NOT NULL)",
    "CREATE TABLE marks (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    "INSERT INTO marks SELECT 'unchecked traces', coalesce(max(id), 0) FROM traces",
    "INSERT INTO marks SELECT 'unchecked attempts', coalesce(max(id), 0) FROM attempts",
    "PRAGMA user_version = 2",
)
"""``marks`` say up to which row a missing checksum is no damage."""

_TURNS = (
    "ALTER TABLE traces ADD COLUMN turns TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE sources ADD COLUMN environment TEXT NOT NULL DEFAULT ''",
    "PRAGMA user_version = 3",
)
"""A trace without turns is one span, all of it sampled."""

UPGRADES = {1: _CHECKSUMS, 2: _TURNS}
"""By format, the statements that lead to the next one; a new file takes all of them too."""

ADD_CHECKSUM = """
INSERT OR IGNORE INTO attempt_checksums
SELECT id, ? FROM attempts WHERE campaign = ? AND problem = ? AND round = ?
"""

SELECT_TRACES = """
SELECT t.id, t.digest, p.name, p.task, c.tokenizer, c.prompt, c.prefix, c.cut, t.completion, t.logp, t.text,
       t.reward, t.success, t.stop, t.seed, t.flops, {turns}, t.source, {checksum}
FROM traces t LEFT JOIN contexts c ON c.id = t.context LEFT JOIN problems p ON p.id = t.problem
"""
"""Outer joins, so that a trace whose context was lost is found damaged and does not just fail to appear."""
