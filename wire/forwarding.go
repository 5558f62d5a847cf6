package wire

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
)

// Transport protocol identifiers of the legacy dialect (GP-120).
const (
	TransportUDP  = 1
	TransportDTLS = 2
	TransportTCP  = 3
	TransportTLS  = 4
	TransportWS   = 5
	TransportWSS  = 6
)

// Lengths of a Response-Forwarding value, in bytes (GP-120).
const (
	minForwarding = 10
	maxForwarding = 25
)

// tagAddress is the CBOR tag of a network address (RFC 9164 deprecates it).
const tagAddress = 260

var (
	errForwardingLen       = errors.New("not 10 to 25 bytes long")
	errForwardingForm      = errors.New("not [tp_id, 260(address), ?port]")
	errForwardingTransport = errors.New("unknown transport")
	errForwardingPort      = errors.New("port out of range")
)

// transportScheme returns the URI scheme of a transport, or "".
func transportScheme(tp uint8) string {
	switch tp {
	case TransportUDP:
		return "coap"
	case TransportDTLS:
		return "coaps"
	case TransportTCP:
		return "coap+tcp"
	case TransportTLS:
		return "coaps+tcp"
	case TransportWS:
		return "coap+ws"
	case TransportWSS:
		return "coaps+ws"
	}
	return ""
}

// SchemeTransport returns the transport of a URI scheme (GP-120); false for one
// that the legacy dialect cannot name.
func SchemeTransport(scheme string) (tp uint8, ok bool) {
	for tp = TransportUDP; tp <= TransportWSS; tp++ {
		if transportScheme(tp) == scheme {
			return tp, true
		}
	}
	return 0, false
}

// AppendResponseForwarding appends the value of a Response-Forwarding option of
// the legacy dialect (GP-120). The port is written unless it is the default of
// the transport, never as null or negative (GP-124); a zone cannot be expressed.
// It allocates nothing when buf has room. tp must be one of the six transports
// and server valid; otherwise buf is returned as it was.
func AppendResponseForwarding(buf []byte, tp uint8, server netip.AddrPort) []byte {
	addr := server.Addr().Unmap()
	standard, ok := DefaultPort(transportScheme(tp))
	if !ok || !addr.IsValid() {
		return buf
	}
	items := uint64(2)
	if server.Port() != standard {
		items = 3
	}
	buf = appendCBORHead(buf, cborArray, items)
	buf = appendCBORHead(buf, cborUint, uint64(tp))
	buf = appendCBORHead(buf, cborTag, tagAddress)
	buf = appendCRIAddr(buf, addr.WithZone(""))
	if items == 3 {
		buf = appendCBORHead(buf, cborUint, uint64(server.Port()))
	}
	return buf
}

// ParseResponseForwarding reads the value of a Response-Forwarding option
// (GP-120). groupPort is the port of the group URI of the request, which a null
// port means; an absent port means the default of the transport (GP-121), and so
// does a negative one (GP-124). After an error the option is to be ignored.
func ParseResponseForwarding(value []byte, groupPort uint16) (tp uint8, server netip.AddrPort, err error) {
	tp, server, err = parseForwarding(value, groupPort)
	if err != nil {
		return 0, netip.AddrPort{}, fmt.Errorf("bad Response-Forwarding: %w", err)
	}
	return tp, server, nil
}

func parseForwarding(value []byte, groupPort uint16) (tp uint8, server netip.AddrPort, err error) {
	if len(value) < minForwarding || len(value) > maxForwarding {
		return 0, server, errForwardingLen
	}
	r := cborReader{data: value}
	n, err := r.array()
	if err != nil {
		return 0, server, err
	}
	if n != 2 && n != 3 {
		return 0, server, errForwardingForm
	}
	id, err := r.expect(cborUint)
	if err != nil {
		return 0, server, err
	}
	if id < TransportUDP || id > TransportWSS {
		return 0, server, errForwardingTransport
	}
	tag, err := r.expect(cborTag)
	if err != nil {
		return 0, server, err
	}
	if tag != tagAddress {
		return 0, server, errForwardingForm
	}
	bytes, err := r.str(cborBytes)
	if err != nil {
		return 0, server, err
	}
	addr, ok := netip.AddrFromSlice(bytes)
	if !ok {
		return 0, server, errForwardingForm
	}
	port, _ := DefaultPort(transportScheme(uint8(id)))
	if n == 3 {
		if port, err = r.forwardingPort(port, groupPort); err != nil {
			return 0, server, err
		}
	}
	return uint8(id), netip.AddrPortFrom(addr.Unmap(), port), r.end()
}

func (r *cborReader) forwardingPort(standard, groupPort uint16) (uint16, error) {
	if r.simple(simpleNull) {
		if groupPort == 0 {
			return 0, errForwardingPort
		}
		return groupPort, nil
	}
	if r.nextIs(cborNegint) {
		_, err := r.expect(cborNegint)
		return standard, err
	}
	port, err := r.expect(cborUint)
	if err != nil {
		return 0, err
	}
	if port == 0 || port > math.MaxUint16 {
		return 0, errForwardingPort
	}
	return uint16(port), nil
}

// ResponseForwardingURI returns the address as the legacy dialect writes it in an
// HTTP header field: "scheme://host:port", the port always written (GP-126). It
// is empty when tp is none of the six transports or server is not valid.
func ResponseForwardingURI(tp uint8, server netip.AddrPort) string {
	scheme := transportScheme(tp)
	if scheme == "" || !server.IsValid() {
		return ""
	}
	buf := append([]byte(scheme), "://"...)
	buf = appendHost(buf, "", server.Addr().Unmap().WithZone(""))
	buf = append(buf, ':')
	return string(strconv.AppendUint(buf, uint64(server.Port()), 10))
}
