package proxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"

	driver "github.com/go-sql-driver/mysql"
)

func init() { languages["mysql"] = language{parseMySQL, onMySQL} }

func parseMySQL(dsn string) (*target, error) {
	config, err := driver.ParseDSN(dsn)
	if err != nil {
		return nil, err
	}
	return &target{
		address: config.Addr,
		trusts:  config.Net == "tcp" && config.Passwd == "" && config.TLS == nil,
		at: func(address *net.TCPAddr) string {
			through := config.Clone()
			through.Addr = address.String()
			return through.FormatDSN()
		},
	}, nil
}

// The commands that drivers send, by the first byte of a packet.
const (
	comQuit         = 0x01
	comInitDB       = 0x02
	comQuery        = 0x03
	comPing         = 0x0e
	comPrepare      = 0x16
	comExecute      = 0x17
	comSendLongData = 0x18
	comClose        = 0x19
	comReset        = 0x1a
	comResetConn    = 0x1f
)

// What the first byte of a server's packet says, where it is not the length of a value.
const (
	okPacket   = 0x00
	moreData   = 0x01 // while the client logs in
	localFile  = 0xfb
	eofPacket  = 0xfe
	errPacket  = 0xff
	fastLogin  = 0x03 // the second byte of moreData: an OK follows, with nothing from the client before it
	moreStatus = 0x08 // in the status of an OK or EOF: another result follows
)

const deprecateEOF = 1 << 24 // among a client's capabilities

// mysql is https://dev.mysql.com/doc/dev/mysql-server/latest/PAGE_PROTOCOL.html without TLS, compression, cursors, LOCAL
// files, and packets of 16 MB. A message is a packet.
type mysql struct {
	*conn
	fromClient, fromServer *bufio.Reader
	fewEOFs                bool // the client wants none between the columns and the rows

	mu       sync.Mutex
	asked    byte // the command that the server is at
	text     string
	prepared map[uint32]string // texts by number
	left     int               // of an answer to a PREPARE: how many packets; of another's result: how many EOFs
}

func onMySQL(c *conn) protocol {
	return &mysql{
		conn: c, fromClient: bufio.NewReader(c.client), fromServer: bufio.NewReader(c.server), prepared: map[uint32]string{},
	}
}

// packet reads one: its bytes, and what they say without the head of length and number.
func packet(from io.Reader) (bytes, body []byte, err error) {
	bytes = make([]byte, 4)
	if _, err := io.ReadFull(from, bytes); err != nil {
		return nil, nil, err
	}
	length := int(bytes[0]) | int(bytes[1])<<8 | int(bytes[2])<<16
	if length == 1<<24-1 {
		panic("proxy: a packet of 16 MB is not understood")
	}
	bytes = append(bytes, make([]byte, length)...)
	_, err = io.ReadFull(from, bytes[4:])
	return bytes, bytes[4:], err
}

// pass passes the next packet of one side to the other, and returns what it says.
func (m *mysql) pass(from *bufio.Reader, to net.Conn) (body []byte, err error) {
	bytes, body, err := packet(from)
	if err != nil {
		return nil, err
	}
	return body, m.send(to, bytes)
}

// start passes what server and client say in turn until the client is logged in or refused.
func (m *mysql) start() error {
	greeting, err := m.pass(m.fromServer, m.client)
	switch {
	case err != nil:
		return err
	case bytes.HasPrefix(greeting, []byte{errPacket}): // nobody may come in
		return io.EOF
	}
	hello, err := m.pass(m.fromClient, m.server)
	switch {
	case err != nil:
		return err
	case len(hello) == 1 && hello[0] == comQuit: // the client waited no longer
		return io.EOF
	}
	m.fewEOFs = binary.LittleEndian.Uint32(hello)&deprecateEOF != 0
	for {
		said, err := m.pass(m.fromServer, m.client)
		switch {
		case err != nil:
			return err
		case bytes.HasPrefix(said, []byte{okPacket}), bytes.HasPrefix(said, []byte{errPacket}):
			return nil
		case bytes.HasPrefix(said, []byte{moreData, fastLogin}):
			continue
		}
		if _, err := m.pass(m.fromClient, m.server); err != nil {
			return err
		}
	}
}

// request also has the commands before it that get no answer.
func (m *mysql) request() (request []byte, statement string, err error) {
	for {
		bytes, body, err := packet(m.fromClient)
		if err != nil {
			return nil, "", err
		}
		request = append(request, bytes...)
		if command := body[0]; command != comClose && command != comSendLongData {
			return request, m.ask(command, body[1:]), nil
		}
	}
}

// ask notes a command that gets an answer, and returns the text of its statement.
func (m *mysql) ask(command byte, body []byte) (statement string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked, m.text = command, string(body)
	switch command {
	case comQuery:
		return m.text
	case comPrepare:
		return "PREPARE " + m.text
	case comExecute:
		return m.prepared[binary.LittleEndian.Uint32(body)]
	case comQuit, comInitDB, comPing, comReset, comResetConn:
		return ""
	}
	panic(fmt.Sprintf("proxy: command %#x is not understood", command))
}

func (m *mysql) answer() (bytes []byte, last bool, err error) {
	bytes, body, err := packet(m.fromServer)
	if err != nil {
		return nil, false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	begins, more := m.left == 0, false
	switch {
	case body[0] == errPacket:
		m.left = 0
	case begins && m.asked == comPrepare:
		m.left = m.definitions(body)
	case m.asked == comPrepare:
		m.left--
	case begins && body[0] == okPacket:
		more = m.moreFollows(body)
	case begins && body[0] == localFile:
		panic("proxy: LOCAL files are not understood")
	case begins && m.fewEOFs:
		m.left = 1
	case begins:
		m.left = 2
	case body[0] == eofPacket:
		m.left--
		more = m.left == 0 && m.moreFollows(body)
	}
	return bytes, m.left == 0 && !more, nil
}

// definitions notes what a server has prepared, and returns how many packets describe its parameters and its columns.
func (m *mysql) definitions(ok []byte) int {
	m.prepared[binary.LittleEndian.Uint32(ok[1:])] = m.text
	packets := 0
	for _, at := range []int{5, 7} {
		n := int(binary.LittleEndian.Uint16(ok[at:]))
		if n > 0 && !m.fewEOFs {
			n++
		}
		packets += n
	}
	return packets
}

// moreFollows says whether the OK or EOF that ends a result announces another.
func (m *mysql) moreFollows(end []byte) bool {
	at := 3 // after the number of warnings
	if end[0] == okPacket || m.fewEOFs {
		at = 1
		for range 2 { // numbers of their own length: the rows affected, and the id that was inserted
			at += map[byte]int{0xfc: 2, 0xfd: 3, 0xfe: 8}[end[at]] + 1
		}
	}
	return binary.LittleEndian.Uint16(end[at:])&moreStatus != 0
}
