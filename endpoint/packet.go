package endpoint

import (
	"net/netip"

	"coapproxy/exchange"
)

// Peer is the other side of a packet connection.
type Peer struct {
	// Addr is the transport address; an IPv4 address is never IPv4-mapped, a
	// link-local IPv6 address has a zone.
	Addr netip.AddrPort
	// session is the DTLS session with a client, nil without one.
	session *dtlsSession
	// name is the host that a server reached by DTLS must prove to be, empty for
	// an address.
	name string
}

// Security is what the peer has proven about itself; nil for nothing.
func (p Peer) Security() *exchange.Security {
	if p.session == nil {
		return nil
	}
	return p.session.security
}

// key is the endpoint that Message IDs and Tokens belong to. That of a session
// stands for it even when the client's address changes: an address of the
// discard prefix (RFC 6666), which nobody has.
func (p Peer) key() netip.AddrPort {
	if p.session == nil {
		return p.Addr
	}
	return p.session.key
}

// PeerOf returns the peer with the address.
func PeerOf(addr netip.AddrPort) Peer {
	return Peer{Addr: addr}
}

// NamedPeer returns a server that has to prove, over DTLS, to be name; or, if that is
// empty, its address.
func NamedPeer(addr netip.AddrPort, name string) Peer {
	return Peer{Addr: addr, name: name}
}

// Path is the own side of a datagram's way.
type Path struct {
	// Local is, on receipt, the address the datagram was sent to, and on
	// sending the address it leaves from; invalid where the connection is bound
	// to one address anyway.
	Local netip.Addr
	// Interface is the index of the interface it came by or leaves by; 0 leaves
	// the choice to the routing table.
	Interface int
}

// Datagram is one datagram, received or to be sent.
type Datagram struct {
	Peer Peer
	Path Path
	// Data aliases a buffer of the connection on receipt, of the caller on
	// sending.
	Data []byte
	// Truncated marks a datagram that was longer than the receive buffer.
	Truncated bool
	// Undeliverable, when not nil, says that this is not a datagram of the
	// peer but one that was sent to it and came back with an ICMP error.
	Undeliverable error
	// Gone, when not nil, says that there is no datagram, and that the session
	// with the peer has ended.
	Gone error
}

// PacketConn sends and receives datagrams in batches. ReadBatch is used by one
// goroutine, WriteBatch by one at a time, Close by any.
type PacketConn interface {
	// ReadBatch waits for at least one datagram and fills batch from its
	// start. What it returned is valid until the next call.
	ReadBatch(batch []Datagram) (int, error)
	// WriteBatch sends the datagrams in order and returns how many of them were
	// sent before the first one that failed, and why that one failed. It waits
	// for room in the socket buffer only briefly and then fails with
	// os.ErrDeadlineExceeded.
	WriteBatch(batch []Datagram) (sent int, err error)
	// LocalAddr is the bound address; its address is unspecified for a
	// wildcard.
	LocalAddr() netip.AddrPort
	// Close ends a waiting ReadBatch with net.ErrClosed.
	Close() error
}

// BatchSize is how many datagrams are read or written with one system call.
const BatchSize = 64
