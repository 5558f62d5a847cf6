package wire

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"

	"github.com/plgd-dev/go-coap/v3/message"
)

// Lengths of a Reply-From value, in bytes (GP-4).
const (
	minReplyFrom = 5
	maxReplyFrom = 1034
)

// ReplyFromValue is the value of a Reply-From option.
type ReplyFromValue struct {
	Server URI           // first item; scheme, host and port only (GP-4)
	Ref    *ReplyFromRef // second item, for follow-ups through a reverse-proxy; nil when absent
}

// ReplyFromRef is the second item of a Reply-From value: what a follow-up request
// to Server carries in its Uri-* options (GP-118). It has a host, a path, or both.
type ReplyFromRef struct {
	Host string     // registered name, lower case; "" when Addr is valid or there is no host
	Addr netip.Addr // valid when the host is an IP address
	Port uint16     // 0 = not written; without meaning when there is no host
	Path []string   // leading segments; none = not written
}

func (ref *ReplyFromRef) hasHost() bool { return ref.Host != "" || ref.Addr.IsValid() }

// URIHost is the host as Uri-Host has it, without a zone; "" for none.
func (ref *ReplyFromRef) URIHost() string {
	if !ref.Addr.IsValid() {
		return ref.Host
	}
	return string(appendHost(nil, "", ref.Addr.WithZone("")))
}

// FollowUp returns the options of a request to Server for what options ask of the
// server behind it (GP-118). They are sorted, and hold no Uri-Host or Uri-Port yet. It
// reports false for a target that no such request can be sent to: not an address of a
// single host, or not by CoAP.
func (v ReplyFromValue) FollowUp(options message.Options) (message.Options, bool) {
	addr := v.Server.Addr
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() || !isCoAPScheme(v.Server.Scheme) {
		return nil, false
	}
	if v.Ref == nil {
		return options, true
	}
	out := make(message.Options, 0, len(options)+len(v.Ref.Path)+2)
	i := 0
	upTo := func(id message.OptionID) {
		for ; i < len(options) && options[i].ID < id; i++ {
			out = append(out, options[i])
		}
	}
	if host := v.Ref.URIHost(); host != "" {
		upTo(URIHost)
		out = append(out, message.Option{ID: URIHost, Value: []byte(host)})
		if v.Ref.Port != 0 {
			upTo(URIPort)
			out = append(out, message.Option{ID: URIPort, Value: AppendUint(nil, uint32(v.Ref.Port))})
		}
	}
	upTo(URIPath)
	for _, segment := range v.Ref.Path {
		out = append(out, message.Option{ID: URIPath, Value: []byte(segment)})
	}
	return append(out, options[i:]...), true
}

var (
	errReplyFromLen  = errors.New("not 5 to 1034 bytes long")
	errReplyFromItem = errors.New("not one or two CRIs of the right parts")
	errReplyFromHost = errors.New("second host beside a host name")
)

// AppendReplyFrom appends the value of a Reply-From option that names a server by
// its transport address: one item, a CRI of the given scheme number (GP-52). An
// IPv4-mapped address is written as IPv4 (GP-7), the zone of an IPv6 address as
// it is (GP-57): the caller removes it where it must not be told. The port is
// left out when it is the scheme's default (GP-6). It allocates nothing when buf
// has room. server must be valid; otherwise buf is returned as it was.
func AppendReplyFrom(buf []byte, scheme uint32, server netip.AddrPort) []byte {
	addr := server.Addr().Unmap()
	if !addr.IsValid() {
		return buf
	}
	buf = appendCBORHead(buf, cborArray, 2)
	buf = appendCBORHead(buf, cborNegint, uint64(scheme))
	standard, _ := defaultPort(scheme)
	return appendReplyFromHost(buf, "", addr, server.Port(), server.Port() != standard)
}

// appendReplyFromHost appends an authority.
func appendReplyFromHost(buf []byte, name string, addr netip.Addr, port uint16, withPort bool) []byte {
	items := uint64(1)
	switch {
	case !addr.IsValid():
		items = uint64(1 + strings.Count(name, "."))
	case addr.Zone() != "":
		items = 2
	}
	if withPort {
		items++
	}
	buf = appendCBORHead(buf, cborArray, items)
	if addr.IsValid() {
		buf = appendCRIAddr(buf, addr)
	} else {
		for label := range strings.SplitSeq(name, ".") {
			buf = appendCBORText(buf, label)
		}
	}
	if withPort {
		buf = appendCBORHead(buf, cborUint, uint64(port))
	}
	return buf
}

// Append appends the option value. A reference with a path only is written in the
// discard form (GP-8); a port of the reference is written when it differs from
// that of Server, default or not (GP-9). Without a host, or with a scheme outside
// FP-6, in Server there is nothing to write and buf is returned as it was. Path
// and names are taken as they are: the caller sees to the length of GP-4.
func (v ReplyFromValue) Append(buf []byte) []byte {
	scheme, ok := SchemeNumber(v.Server.Scheme)
	addr := v.Server.Addr.Unmap()
	if !ok || v.Server.Host == "" && !addr.IsValid() {
		return buf
	}
	port := v.Server.Port
	standard, _ := defaultPort(scheme)
	buf = appendCBORHead(buf, cborArray, 2)
	buf = appendCBORHead(buf, cborNegint, uint64(scheme))
	buf = appendReplyFromHost(buf, v.Server.Host, addr, port, port != standard && port != 0)

	switch ref := v.Ref; {
	case ref == nil:
	case ref.hasHost():
		items := uint64(2)
		if len(ref.Path) > 0 {
			items = 3
		}
		buf = appendCBORHead(buf, cborArray, items)
		buf = appendCBORHead(buf, cborSimple, simpleNull)
		buf = appendReplyFromHost(buf, ref.Host, ref.Addr.Unmap(), ref.Port, ref.Port != 0 && ref.Port != port)
		buf = appendPlainTexts(buf, ref.Path)
	case len(ref.Path) > 0:
		buf = appendCBORHead(buf, cborArray, 2)
		buf = appendCBORHead(buf, cborSimple, simpleTrue)
		buf = appendPlainTexts(buf, ref.Path)
	}
	return buf
}

// appendPlainTexts appends an array of texts, or nothing if there are none.
func appendPlainTexts(buf []byte, texts []string) []byte {
	if len(texts) == 0 {
		return buf
	}
	buf = appendCBORHead(buf, cborArray, uint64(len(texts)))
	for _, s := range texts {
		buf = appendCBORText(buf, s)
	}
	return buf
}

// ServerURI returns the server as "scheme://host" or "scheme://host:port", the
// default port left out.
func (v ReplyFromValue) ServerURI() string {
	return v.Server.Scheme + "://" + v.Server.Authority()
}

// ParseReplyFrom reads the value of a Reply-From option: GP-4, GP-5 and GP-6,
// with the tolerance of GP-8 and GP-9. After an error the option is to be
// ignored, the response is not (GP-10).
func ParseReplyFrom(value []byte) (ReplyFromValue, error) {
	v, err := parseReplyFrom(value)
	if err != nil {
		return ReplyFromValue{}, fmt.Errorf("bad Reply-From: %w", err)
	}
	return v, nil
}

func parseReplyFrom(value []byte) (v ReplyFromValue, err error) {
	if len(value) < minReplyFrom || len(value) > maxReplyFrom {
		return v, errReplyFromLen
	}
	r := cborReader{data: value}
	if v.Server, err = r.replyFromServer(); err != nil {
		return v, err
	}
	if len(r.data) > 0 {
		if v.Ref, err = r.replyFromRef(); err != nil {
			return v, err
		}
		if v.Ref.hasHost() && !v.Server.Addr.IsValid() {
			return v, errReplyFromHost // GP-5
		}
	}
	return v, r.end()
}

// replyFromServer reads the first item: [scheme-id, authority].
func (r *cborReader) replyFromServer() (u URI, err error) {
	n, err := r.array()
	if err != nil {
		return u, err
	}
	if n != 2 {
		return u, errReplyFromItem
	}
	number, err := r.expect(cborNegint)
	if err != nil {
		return u, err
	}
	var ok bool
	if number <= math.MaxUint32 {
		u.Scheme, ok = SchemeName(uint32(number))
	}
	if !ok {
		return u, ErrScheme
	}
	var port uint16
	if u.Host, u.Addr, port, err = r.replyFromHost(); err != nil {
		return u, err
	}
	u.Port, _ = DefaultPort(u.Scheme)
	if port != 0 {
		u.Port, u.ExplicitPort = port, true
	}
	return u, nil
}

// replyFromRef reads the second item: [null, authority, ?path], or with a path
// alone [true, path], [0, path] or [null, null, path] (GP-8).
func (r *cborReader) replyFromRef() (*ReplyFromRef, error) {
	n, err := r.array()
	if err != nil {
		return nil, err
	}
	ref := new(ReplyFromRef)
	withPath := n == 2
	switch {
	case n < 2 || n > 3:
		return nil, errReplyFromItem
	case r.simple(simpleNull):
		withPath = n == 3
		if !r.simple(simpleNull) {
			if ref.Host, ref.Addr, ref.Port, err = r.replyFromHost(); err != nil {
				return nil, err
			}
		} else if !withPath {
			return nil, errReplyFromItem
		}
	case n == 2 && (r.simple(simpleTrue) || r.simpleZero()):
	default:
		return nil, errReplyFromItem
	}
	if withPath {
		if ref.Path, err = r.replyFromPath(); err != nil {
			return nil, err
		}
	}
	return ref, nil
}

// simpleZero consumes the next item if it is the number 0.
func (r *cborReader) simpleZero() bool {
	if len(r.data) == 0 || r.data[0] != cborUint<<5 {
		return false
	}
	r.data = r.data[1:]
	return true
}

// replyFromHost reads an authority of host and perhaps port; port 0 is none.
func (r *cborReader) replyFromHost() (name string, addr netip.Addr, port uint16, err error) {
	a, err := r.criAuthority()
	if err != nil {
		return "", netip.Addr{}, 0, err
	}
	if a.Kind != AuthorityHost || a.Userinfo != nil || a.HasPort && a.Port == 0 {
		return "", netip.Addr{}, 0, errReplyFromItem
	}
	name, addr, err = a.host()
	if err != nil {
		return "", netip.Addr{}, 0, err
	}
	if addr.IsValid() != a.Addr.IsValid() {
		return "", netip.Addr{}, 0, errReplyFromItem // GP-6: an address as labels of a name
	}
	return name, addr, a.Port, nil
}

// replyFromPath reads a path of at least one segment.
func (r *cborReader) replyFromPath() ([]string, error) {
	n, err := r.array()
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, errReplyFromItem // GP-6: no trailing defaults
	}
	path := make([]string, n)
	for i := range path {
		if path[i], err = r.text(); err != nil {
			return nil, err
		}
		if len(path[i]) > maxNameLen {
			return nil, errReplyFromItem
		}
	}
	return path, nil
}
