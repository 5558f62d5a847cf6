package httpbridge

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"math"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dunglas/httpsfv"
	"github.com/fxamacker/cbor/v2"
	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// The header fields of the group proxy draft (GPX §9.1 to §9.3). All of them are
// in the canonical form of net/http.
const (
	fieldTimeout   = "Multicast-Timeout"
	fieldReplyFrom = "Reply-From"
	fieldGroupETag = "Group-Etag"
)

// parseTimeout reads Multicast-Timeout (HC-70, HC-73).
func parseTimeout(values []string) (exchange.Timeout, *problem) {
	var t exchange.Timeout
	for _, value := range values {
		value = strings.Trim(value, " \t")
		seconds := uint64(0)
		for _, c := range []byte(value) {
			if c < '0' || c > '9' {
				return t, refuse(http.StatusBadRequest, "Multicast-Timeout must be a number of whole seconds", "")
			}
			if seconds = seconds*10 + uint64(c-'0'); seconds > math.MaxUint32 {
				return t, refuse(http.StatusBadRequest, "Multicast-Timeout is above 4294967295", "")
			}
		}
		if t.Present && uint64(t.Seconds) != seconds {
			return t, refuse(http.StatusBadRequest, "several different values of Multicast-Timeout", "send one")
		}
		t = exchange.Timeout{Seconds: uint32(seconds), Present: true}
	}
	return t, nil
}

// parseGroupETags reads Group-ETag. A field that breaks its form is ignored as a
// whole (HC-70).
func parseGroupETags(values []string) [][]byte {
	if len(values) == 0 {
		return nil
	}
	list, err := httpsfv.UnmarshalList(values)
	if err != nil {
		return nil
	}
	var tags [][]byte
	for _, member := range list {
		item, ok := member.(httpsfv.Item)
		if !ok {
			return nil
		}
		tag, ok := item.Value.([]byte)
		if !ok || len(tag) < 1 || len(tag) > 8 {
			return nil
		}
		tags = append(tags, tag)
	}
	return tags
}

// byteList writes a structured List of Byte Sequences (HC-70, HC-71).
func byteList(values ...[]byte) string {
	var list []byte
	for i, v := range values {
		if i > 0 {
			list = append(list, ", "...)
		}
		list = append(base64.StdEncoding.AppendEncode(append(list, ':'), v), ':')
	}
	return string(list)
}

// replyFrom is the value of Reply-From for a response, "" if nobody is known to
// have sent it (HC-72).
func (t *translation) replyFrom(p *exchange.Response) string {
	f, value := t.front, p.ReplyFrom
	switch option, ok := wire.First(p.Options, f.Numbers.ReplyFrom); {
	case t.announces(p): // GP-53
		u, ok := t.server(p)
		if !ok {
			return ""
		}
		value = wire.ReplyFromValue{Server: t.self, Ref: &wire.ReplyFromRef{Path: u.Path}}.Append(nil)
	case value != nil:
	case p.From.IsValid():
		return byteList(wire.AppendReplyFrom(nil, wire.SchemeCoAP, f.zoned(p.From)))
	case ok:
		value = option
	default:
		return ""
	}
	if _, err := wire.ParseReplyFrom(value); err != nil {
		return "" // GP-10
	}
	var item cbor.RawMessage
	second, err := cbor.UnmarshalFirst(value, &item)
	switch {
	case err != nil:
		return ""
	case len(second) > 0:
		return byteList(item, second)
	}
	return byteList(item)
}

// zoned is a server's address as clients get to see it (GP-57).
func (f *Front) zoned(server netip.AddrPort) netip.AddrPort {
	addr := server.Addr().Unmap()
	zone := addr.Zone()
	if zone == "" {
		return netip.AddrPortFrom(addr, server.Port())
	}
	if !f.ZoneInReplyFrom {
		zone = ""
	} else if i, err := net.InterfaceByName(zone); err == nil {
		zone = strconv.Itoa(i.Index)
	}
	return netip.AddrPortFrom(addr.WithZone(zone), server.Port())
}

// groupETag is the value of Group-ETag for a response, "" without the option.
func (f *Front) groupETag(options message.Options) string {
	tag, ok := wire.First(options, f.Numbers.GroupETag)
	if !ok || len(tag) < 1 || len(tag) > 8 {
		return ""
	}
	return byteList(tag)
}

// formatETag writes an entity tag as HTTP has it (HC-52).
func formatETag(tag []byte) string { return `"` + hex.EncodeToString(tag) + `"` }

// entityTags reads If-Match and If-None-Match. any is true for "*". Weak tags
// and tags that are none of this proxy's are left out (HC-52, HC-53); whole is
// false if there were such.
func entityTags(values []string) (tags [][]byte, any, whole bool) {
	whole = true
	for _, value := range values {
		for _, element := range splitList(value) {
			if element == "*" {
				any = true
				continue
			}
			tag, ok := decodeETag(element)
			switch {
			case !ok:
				whole = false
			case len(tags) < maxTags && !slices.ContainsFunc(tags, func(t []byte) bool { return bytes.Equal(t, tag) }):
				tags = append(tags, tag)
			}
		}
	}
	return tags, any, whole
}

// maxTags bounds the entity tags that go into one request.
const maxTags = 8

func decodeETag(s string) ([]byte, bool) {
	if len(s) < 4 || s[0] != '"' || s[len(s)-1] != '"' || strings.ContainsAny(s, "ABCDEF") {
		return nil, false // tags are compared as they stand, and ours are in lower case
	}
	tag, err := hex.DecodeString(s[1 : len(s)-1])
	return tag, err == nil && len(tag) >= 1 && len(tag) <= 8
}

// readCacheControl reads what a client wants of stored responses (HC-57, RFC 9111
// §5.2.1). What is not understood is left out.
func readCacheControl(values []string) (s exchange.Stored) {
	for _, value := range values {
		for _, directive := range splitList(value) {
			name, argument, _ := strings.Cut(directive, "=")
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "no-cache":
				s.Confirmed = true
			case "no-store":
				s.Unkept = true
			case "only-if-cached":
				s.Only = true
			case "max-age":
				seconds, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(argument), `"`), 10, 31)
				if age := time.Duration(seconds) * time.Second; err == nil && (!s.Limited || age < s.MaxAge) {
					s.Limited, s.MaxAge = true, age
				}
			}
		}
	}
	return s
}

// preferences reads Prefer (RFC 7240 §2): names in lower case with their values;
// the first of a name counts.
func preferences(values []string) map[string]string {
	prefer := make(map[string]string)
	for _, value := range values {
		for _, element := range splitList(value) {
			element, _, _ = strings.Cut(element, ";")
			name, text, _ := strings.Cut(element, "=")
			name = strings.ToLower(strings.TrimSpace(name))
			if _, known := prefer[name]; !known {
				prefer[name] = strings.Trim(strings.TrimSpace(text), `"`)
			}
		}
	}
	return prefer
}
