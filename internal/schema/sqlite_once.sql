CREATE TABLE db_onces (
    id            integer  PRIMARY KEY AUTOINCREMENT,
    lock_id       text     NOT NULL,
    creation_time datetime NOT NULL,
    expires_at    datetime,
    holder        text     NOT NULL,
    lease_id      text     NOT NULL,
    token         integer  NOT NULL DEFAULT 0,
    result        text
);

CREATE UNIQUE INDEX idx_db_onces_lock_id ON db_onces (lock_id);
CREATE INDEX idx_db_onces_expires_at ON db_onces (expires_at);
