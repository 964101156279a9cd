CREATE TABLE db_onces (
    id            bigint          PRIMARY KEY AUTO_INCREMENT,
    lock_id       varbinary(1024) NOT NULL,
    creation_time datetime(6)     NOT NULL,
    expires_at    datetime(6),
    holder        mediumtext      CHARACTER SET utf8mb4 NOT NULL,
    lease_id      varchar(64)     NOT NULL,
    token         bigint          NOT NULL DEFAULT 0,
    result        mediumtext      CHARACTER SET utf8mb4,
    UNIQUE INDEX idx_db_onces_lock_id (lock_id),
    INDEX idx_db_onces_expires_at (expires_at)
) ENGINE = InnoDB;
