CREATE TABLE db_onces (
    id            bigserial    PRIMARY KEY,
    lock_id       varchar(256) COLLATE "C" NOT NULL,
    creation_time timestamptz  NOT NULL,
    expires_at    timestamptz,
    holder        text         NOT NULL,
    lease_id      varchar(64)  NOT NULL,
    token         bigint       NOT NULL DEFAULT 0,
    result        text
) WITH (vacuum_truncate = off);

CREATE UNIQUE INDEX idx_db_onces_lock_id ON db_onces (lock_id);
CREATE INDEX idx_db_onces_expires_at ON db_onces (expires_at);
