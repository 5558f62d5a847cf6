package coap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// cbor reads the few kinds of CBOR items of the address options (RFC 8949 §3).
type cbor struct{ reader }

// head returns major type and argument of the next item.
func (c *cbor) head() (major byte, n uint64) {
	b := c.take(1)[0]
	switch info := b & 31; {
	case info < 24:
		n = uint64(info)
	case info == 24:
		n = uint64(c.take(1)[0])
	case info == 25:
		n = uint64(binary.BigEndian.Uint16(c.take(2)))
	default:
		c.err = errors.Join(c.err, fmt.Errorf("unexpected CBOR head %#x", b))
	}
	return b >> 5, n
}

func (c *cbor) expect(major byte) uint64 {
	got, n := c.head()
	if got != major {
		c.err = errors.Join(c.err, fmt.Errorf("CBOR major type %d, want %d", got, major))
	}
	return n
}

// Major types.
const (
	cborUint  = 0
	cborNeg   = 1
	cborBytes = 2
	cborText  = 3
	cborArray = 4
	cborTag   = 6
)

const defaultPort = 5683

// ReplyFromServer reads a Reply-From of one item that names a server by scheme
// coap and its address, with zone and port where they are written (GP-4, GP-6,
// GP-52).
func ReplyFromServer(value []byte) (netip.AddrPort, error) {
	c := &cbor{reader{data: value}}
	if n := c.expect(cborArray); n != 2 && c.err == nil {
		return netip.AddrPort{}, fmt.Errorf("%d parts, want scheme and authority", n)
	}
	if scheme := c.expect(cborNeg); scheme != 0 && c.err == nil {
		return netip.AddrPort{}, fmt.Errorf("scheme number %d, want 0", scheme)
	}
	items := c.expect(cborArray)
	addr, err := c.address()
	if err != nil {
		return netip.AddrPort{}, err
	}
	items--
	if items > 0 && len(c.data) > 0 && c.data[0]>>5 == cborText {
		addr = addr.WithZone(string(c.take(int(c.expect(cborText)))))
		items--
	}
	port, err := c.port(items)
	return netip.AddrPortFrom(addr, port), err
}

// ForwardingServer reads a Response-Forwarding that names a server by UDP and
// its address (GP-120).
func ForwardingServer(value []byte) (netip.AddrPort, error) {
	c := &cbor{reader{data: value}}
	items := c.expect(cborArray)
	if transport := c.expect(cborUint); transport != 1 && c.err == nil {
		return netip.AddrPort{}, fmt.Errorf("transport %d, want 1", transport)
	}
	if tag := c.expect(cborTag); tag != 260 && c.err == nil {
		return netip.AddrPort{}, fmt.Errorf("tag %d, want 260", tag)
	}
	addr, err := c.address()
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := c.port(items - 2)
	return netip.AddrPortFrom(addr, port), err
}

func (c *cbor) address() (netip.Addr, error) {
	raw := c.take(int(c.expect(cborBytes)))
	addr, ok := netip.AddrFromSlice(raw)
	if !ok || addr.Is4In6() {
		return addr, errors.Join(c.err, fmt.Errorf("%x is no address", raw))
	}
	return addr, c.err
}

// port reads the last of the items, if it is there.
func (c *cbor) port(items uint64) (uint16, error) {
	port := uint64(defaultPort)
	if items == 1 {
		if port = c.expect(cborUint); port == defaultPort {
			return 0, errors.New("the default port is written")
		}
	}
	if items > 1 || len(c.data) > 0 {
		return 0, errors.New("more than scheme, host and port")
	}
	return uint16(port), c.err
}
