package notation

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/wire"
)

// Options puts options in words, whose numbers are those. What its methods return
// has no control characters.
type Options struct{ Numbers wire.Numbers }

// standard is the number an option has by default, or 0 for one that is nothing
// because its number was moved (GP-1).
func (w Options) standard(id message.OptionID) message.OptionID {
	switch id {
	case w.Numbers.MulticastTimeout:
		return wire.MulticastTimeout
	case w.Numbers.ReplyFrom:
		return wire.ReplyFrom
	case w.Numbers.GroupETag:
		return wire.GroupETag
	case w.Numbers.ResponseForwarding:
		return wire.ResponseForwarding
	case wire.MulticastTimeout, wire.ReplyFrom, wire.GroupETag, wire.ResponseForwarding:
		return 0
	}
	return id
}

// Definition describes the option with the number.
func (w Options) Definition(id message.OptionID) (wire.Definition, bool) {
	return wire.Lookup(w.standard(id))
}

// name is the registered name or the number.
func (w Options) name(id message.OptionID) string {
	if d, ok := w.Definition(id); ok {
		return d.Name
	}
	return "option " + strconv.Itoa(int(id))
}

// Class names the properties that the number gives an option (RFC 7252 §5.4.6).
func (w Options) Class(id message.OptionID) string {
	words := []string{"elective"}
	if wire.Critical(id) {
		words[0] = "critical"
	}
	switch {
	case wire.Unsafe(id):
		words = append(words, "unsafe")
	case wire.NoCacheKey(id):
		words = append(words, "safe", "nocachekey")
	default:
		words = append(words, "safe")
	}
	if d, ok := w.Definition(id); ok && d.Repeatable {
		words = append(words, "repeatable")
	}
	return strings.Join(words, " ")
}

// All returns the options as "name=value", without those left out.
func (w Options) All(options message.Options, code codes.Code, without func(message.OptionID) bool) string {
	var words []string
	for _, o := range options {
		if without == nil || !without(o.ID) {
			words = append(words, w.name(o.ID)+"="+w.Value(o, code))
		}
	}
	return strings.Join(words, "  ")
}

// Value puts the value of an option of a message with the code in words.
func (w Options) Value(o message.Option, code codes.Code) string {
	d, ok := w.Definition(o.ID)
	if !ok {
		return w.unknown(o.Value)
	}
	if !d.Valid(o.Value) { // FP-22
		return fmt.Sprintf("%s (%d bytes, not %d to %d: counts as unrecognised)", opaque(o.Value), len(o.Value), d.MinLen, d.MaxLen)
	}
	switch id := w.standard(o.ID); id {
	case wire.ReplyFrom:
		return replyFrom(o.Value)
	case wire.ResponseForwarding:
		return responseForwarding(o.Value)
	case wire.ProxyCRI:
		return proxyCRI(o.Value)
	default:
		switch d.Format {
		case wire.FormatEmpty:
			return "present"
		case wire.FormatString:
			return strconv.Quote(string(o.Value))
		case wire.FormatUint:
			v, _ := wire.Uint(o.Value)
			return number(id, v, o.Value, code)
		}
		return opaque(o.Value)
	}
}

func (w Options) unknown(value []byte) string {
	if len(value) > 0 && LooksLikeText(value) {
		return opaque(value) + " " + strconv.Quote(string(value))
	}
	return opaque(value)
}

func opaque(value []byte) string {
	if len(value) == 0 {
		return "empty"
	}
	return "0x" + hex.EncodeToString(value)
}

// number puts a uint in words.
func number(id message.OptionID, v uint32, value []byte, code codes.Code) string {
	plain := strconv.FormatUint(uint64(v), 10)
	switch id {
	case wire.ContentFormat, wire.Accept:
		if name, ok := wire.ContentFormatName(uint16(v)); ok {
			return name + " (" + plain + ")"
		}
	case wire.MaxAge:
		return plain + " s"
	case wire.MulticastTimeout:
		return multicastTimeout(v, code)
	case wire.Observe:
		switch {
		case wire.IsRequest(code) && v == 0:
			return "register (0)"
		case wire.IsRequest(code) && v == 1:
			return "deregister (1)"
		}
	case wire.Block1, wire.Block2, wire.QBlock1, wire.QBlock2:
		b, err := wire.ParseBlock(value)
		if err != nil {
			return plain + " (" + err.Error() + ")"
		}
		more := "last, "
		switch {
		case b.More:
			more = "more, "
		case wire.IsRequest(code) && (id == wire.Block2 || id == wire.QBlock2):
			more = "" // a block is asked for (RFC 7959 §2.2)
		}
		return fmt.Sprintf("num %d, %ssize %d", b.Num, more, b.Size())
	case wire.Size1, wire.Size2:
		return plain + " bytes"
	case wire.NoResponse:
		return noResponse(v)
	case wire.ProxySchemeNumber:
		if name, ok := wire.SchemeName(v); ok {
			return name + " (" + plain + ")"
		}
	case wire.URIPathAbbrev:
		if path, ok := wire.ExpandPathAbbrev(v); ok {
			return "/" + strings.Join(path, "/") + " (" + plain + ")"
		}
	}
	return plain
}

func multicastTimeout(seconds uint32, code codes.Code) string {
	switch {
	case seconds == 0 && wire.IsRequest(code):
		return "0 s (no responses wanted, or no more of them)" // GP-2, GP-40
	case seconds == 0:
		return "empty (it is missing in the request)" // GP-26
	case code == codes.ProxyingNotSupported:
		return fmt.Sprintf("%d s at least", seconds) // GP-96
	}
	return fmt.Sprintf("%d s", seconds)
}

// noResponse puts the classes of RFC 7967 §2.1 in words.
func noResponse(v uint32) string {
	if v == 0 {
		return "0 (all responses wanted)"
	}
	var classes []string
	for _, class := range []codes.Code{2, 4, 5} {
		if wire.Suppressed(v, class<<5) {
			classes = append(classes, fmt.Sprintf("%d.xx", class))
		}
	}
	if len(classes) == 0 {
		return strconv.FormatUint(uint64(v), 10)
	}
	return fmt.Sprintf("%d (no %s)", v, strings.Join(classes, ", "))
}

// criText is the diagnostic notation of CRIs, or their bytes.
func criText(value []byte) string {
	notation, err := Diagnose(value, true)
	if err != nil {
		return opaque(value)
	}
	return Escape(notation)
}

// replyFrom tells the server and, of a second item, where and how a follow-up is
// to be sent (GP-4, GP-118).
func replyFrom(value []byte) string {
	v, err := wire.ParseReplyFrom(value)
	if err != nil {
		return fmt.Sprintf("%s (ignored: %s)", criText(value), Escape(err.Error())) // GP-10
	}
	text := "server " + Escape(v.ServerURI())
	if ref := v.Ref; ref != nil {
		var parts []string
		switch {
		case ref.Addr.IsValid():
			parts = append(parts, "Uri-Host "+ref.Addr.String())
		case ref.Host != "":
			parts = append(parts, "Uri-Host "+strconv.Quote(ref.Host))
		}
		if ref.Port != 0 {
			parts = append(parts, fmt.Sprintf("Uri-Port %d", ref.Port))
		}
		for _, segment := range ref.Path {
			parts = append(parts, "Uri-Path "+strconv.Quote(segment))
		}
		text += ", follow up there with " + Escape(strings.Join(parts, ", "))
	}
	return text + " (CRI " + criText(value) + ")"
}

// responseForwarding is replyFrom of the legacy dialect (GP-120).
func responseForwarding(value []byte) string {
	const someGroupPort = 1
	tp, server, err := wire.ParseResponseForwarding(value, 0)
	onGroupPort := false
	if err != nil {
		// A null port needs the group URI to be understood (GP-121).
		if tp, server, err = wire.ParseResponseForwarding(value, someGroupPort); err != nil {
			return fmt.Sprintf("%s (ignored: %s)", criText(value), Escape(err.Error())) // GP-124
		}
		onGroupPort = true
	}
	text := "server " + wire.ResponseForwardingURI(tp, server)
	if onGroupPort {
		text = "server " + strings.TrimSuffix(wire.ResponseForwardingURI(tp, server), fmt.Sprintf(":%d", someGroupPort)) + " on the port of the group URI"
	}
	return text + " (" + criText(value) + ")"
}

func proxyCRI(value []byte) string {
	u, err := wire.ParseProxyCRI(value)
	if err != nil {
		return fmt.Sprintf("%s (%s)", criText(value), Escape(err.Error()))
	}
	return Escape(u.String()) + " (CRI " + criText(value) + ")"
}
