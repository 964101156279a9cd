CREATE TABLE db_mutexes (
    id            bigserial    PRIMARY KEY,
    lock_id       varchar(256) COLLATE "C" NOT NULL,
    creation_time timestamptz  NOT NULL,
    expires_at    timestamptz,
    holder        text         NOT NULL,
    lease_id      varchar(64)  NOT NULL,
    token         bigint       NOT NULL DEFAULT 0
) WITH (vacuum_truncate = off);

CREATE UNIQUE INDEX idx_db_mutexes_lock_id ON db_mutexes (lock_id);
