package proxy

import (
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
)

func init() { languages["postgres"] = language{parsePostgres, onPostgres} }

func parsePostgres(dsn string) (*target, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	return &target{
		address: net.JoinHostPort(config.Host, fmt.Sprint(config.Port)),
		trusts:  config.Password == "" && config.TLSConfig == nil && !strings.HasPrefix(config.Host, "/"),
		at: func(address *net.TCPAddr) string {
			dsn := fmt.Sprintf("host=%v port=%d user=%s dbname=%s sslmode=disable",
				address.IP, address.Port, config.User, config.Database)
			for name, value := range config.RuntimeParams {
				dsn += fmt.Sprintf(" %s='%s'", name, value)
			}
			return dsn
		},
	}, nil
}

// postgres is https://www.postgresql.org/docs/current/protocol-flow.html
type postgres struct {
	*conn
	fromClient *pgproto3.Backend
	fromServer *pgproto3.Frontend
	prepared   map[string]string // texts by name
}

func onPostgres(c *conn) protocol {
	return &postgres{c, pgproto3.NewBackend(c.client, c.client), pgproto3.NewFrontend(c.server, c.server), map[string]string{}}
}

// start passes a client's first message. What the server says of its users, whom it trusts, is an answer already.
func (p *postgres) start() error {
	hello, err := p.fromClient.ReceiveStartupMessage()
	if err != nil {
		return err
	}
	bytes, err := hello.Encode(nil)
	if err != nil {
		return err
	}
	if err := p.send(p.server, bytes); err != nil {
		return err
	}
	if _, cancels := hello.(*pgproto3.CancelRequest); cancels {
		_, _ = io.Copy(p.client, p.server)
		return io.EOF
	}
	return nil
}

func (p *postgres) request() (request []byte, statement string, err error) {
	for whole := false; !whole; {
		message, err := p.fromClient.Receive()
		if err != nil {
			return nil, "", err
		}
		if request, err = message.Encode(request); err != nil {
			return nil, "", err
		}
		switch m := message.(type) {
		case *pgproto3.Parse:
			p.prepared[m.Name] = m.Query
			statement = "PREPARE " + m.Query
		case *pgproto3.Bind:
			statement = p.prepared[m.PreparedStatement]
		case *pgproto3.Query:
			statement, whole = m.String, true
		case *pgproto3.Sync, *pgproto3.Terminate:
			whole = true
		}
	}
	return request, statement, nil
}

func (p *postgres) answer() (bytes []byte, last bool, err error) {
	message, err := p.fromServer.Receive()
	if err != nil {
		return nil, false, err
	}
	bytes, err = message.Encode(nil)
	_, last = message.(*pgproto3.ReadyForQuery)
	return bytes, last, err
}
