CREATE TABLE db_mutexes (
    id            integer  PRIMARY KEY AUTOINCREMENT,
    lock_id       text     NOT NULL,
    creation_time datetime NOT NULL,
    expires_at    datetime,
    holder        text     NOT NULL,
    lease_id      text     NOT NULL,
    token         integer  NOT NULL DEFAULT 0
);

CREATE UNIQUE INDEX idx_db_mutexes_lock_id ON db_mutexes (lock_id);
