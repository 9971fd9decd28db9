"""What a study's file holds: its tables, and the researcher's settings."""

from __future__ import annotations

from dataclasses import dataclass

APPLICATION = 0x1457CD1F
"""Application id that marks a SQLite file as a study."""
FORMAT = 1

MOST_SECONDS = 24 * 3600.0
"""Longest viewing time of an answer in seconds; the page counts only while it is visible."""
MOST_TRIALS = 1000
"""Pairs for each participant, and attention checks."""
LONGEST_TEXT = 20_000
"""Characters of each text of the pages."""

SCHEMA = f"""
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {FORMAT};
CREATE TABLE settings (content TEXT NOT NULL) STRICT;
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,        -- random, so that the address of a picture does not reveal its method
    folder TEXT NOT NULL,            -- "photos", "paintings", or a method
    name TEXT NOT NULL,              -- name of the file without ending
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    data BLOB NOT NULL,              -- WebP
    UNIQUE (folder, name)
) STRICT;
CREATE TABLE pairs (
    id INTEGER PRIMARY KEY,
    photo INTEGER NOT NULL REFERENCES pictures,
    painting INTEGER NOT NULL REFERENCES pictures,
    ours INTEGER NOT NULL REFERENCES pictures,
    other INTEGER NOT NULL REFERENCES pictures,
    method TEXT NOT NULL,            -- the method that made `other`
    is_check INTEGER NOT NULL,       -- attention check: `ours` is correct, `other` shows another photo and painting
    UNIQUE (ours, other)
) STRICT;
CREATE TABLE participants (
    id INTEGER PRIMARY KEY,
    token_sha256 TEXT NOT NULL UNIQUE,
    started_at INTEGER NOT NULL,     -- Unix time in seconds
    finished_at INTEGER,
    ranking TEXT                     -- JSON: factors, most important first; NULL if not answered
) STRICT;
CREATE TABLE trials (
    id INTEGER PRIMARY KEY,
    participant INTEGER NOT NULL REFERENCES participants,
    position INTEGER NOT NULL,       -- from 1
    pair INTEGER NOT NULL REFERENCES pairs,
    ours_first INTEGER NOT NULL,     -- whether `ours` is on the left (above, on a phone)
    UNIQUE (participant, position)
) STRICT;
CREATE TABLE answers (               -- all answers; the last answer to a trial is the vote
    id INTEGER PRIMARY KEY,          -- increases with time
    key TEXT NOT NULL UNIQUE,        -- made by the participant's browser, so that a repeated request is not counted
    trial INTEGER NOT NULL REFERENCES trials,
    first INTEGER NOT NULL,          -- whether the first result was chosen
    seconds REAL NOT NULL,           -- viewing time before the choice
    answered_at INTEGER NOT NULL
) STRICT;
CREATE INDEX answers_of_trial ON answers (trial);
CREATE INDEX trials_of_pair ON trials (pair);
CREATE VIEW votes AS
    SELECT trials.participant, trials.position, trials.pair, answers.key, answers.first,
           answers.first = trials.ours_first AS for_ours, answers.seconds
    FROM answers JOIN trials ON trials.id = answers.trial
    WHERE answers.id = (SELECT max(id) FROM answers AS later WHERE later.trial = answers.trial);
"""


@dataclass(frozen=True)
class Settings:
    """The researcher's settings for the study.

    Attributes:
        ours: the method that every other method is compared with.
        trials: number of pairs for each participant, without attention checks.
        checks: number of additional attention checks for each participant.
        title, question, contact, consent: texts of the pages; empty texts are replaced by the default texts.
        seed: random seed of all choices of pairs, sides and orders.
        admin_token: token for the admin page.
    """

    ours: str
    trials: int
    checks: int
    title: str
    question: str
    contact: str
    consent: str
    seed: int
    admin_token: str
