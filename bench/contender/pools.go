package contender

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"log"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// openPgx opens pgx's own pool, which prepares statements and keeps them.
func openPgx(ctx context.Context, dsn string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	config.MaxConns = Pool
	return pgxpool.NewWithConfig(ctx, config)
}

// openSQL opens a pool of database/sql.
func openSQL(driver, dsn string) (*sql.DB, error) {
	db, err := sql.Open(driver, dsn)
	if err == nil {
		limit(db)
	}
	return db, err
}

// limit also lets a pool keep its connections: database/sql's default is 2.
func limit(db *sql.DB) {
	db.SetMaxOpenConns(Pool)
	db.SetMaxIdleConns(Pool)
}

// openGORM opens a plain handle, whose log nobody sees.
func openGORM(dialector gorm.Dialector, config gorm.Config) (*gorm.DB, *sql.DB, error) {
	config.Logger = logger.New(log.New(io.Discard, "", 0),
		logger.Config{SlowThreshold: 200 * time.Millisecond, LogLevel: logger.Warn}) // as GORM's default
	db, err := gorm.Open(dialector, &config)
	if err != nil {
		return nil, nil, err
	}
	pool, err := db.DB()
	if err == nil {
		limit(pool)
	}
	return db, pool, err
}

func openRedis(where Where) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: where.Redis, DB: where.RedisDB, PoolSize: Pool})
}

// fillRedis makes n keys whose value is no token of a lock.
func fillRedis(ctx context.Context, client *redis.Client, n int) error {
	const slice = 10_000 // so that the server is not held up for long
	script := redis.NewScript(`for i = ARGV[1], ARGV[2] do redis.call('SET', 'held ' .. i, 'other', 'EX', 3600) end`)
	for from := 1; from <= n; from += slice {
		if err := script.Run(ctx, client, nil, from, min(n, from+slice-1)).Err(); err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
	}
	return nil
}
