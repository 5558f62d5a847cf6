package httpbridge

import (
	"strconv"
	"strings"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/wire"
)

// Requests that the proxy makes over HTTP carry its pseudonym and what is left of
// their Hop-Limit in Via:
//
//	Via: CoAP/1 gateway-5f2c81d0a3b4 (hop-limit=14)
//
// One that comes back with its own pseudonym has gone in a circle, even if it came
// by an address that the proxy does not know to be its own (RFC 9110 §7.6.3). Where
// the circle leads through several proxies, the Hop-Limit comes to its end in it.

const hopsMark = "hop-limit="

// viaField is the value of Via for a request with these options (HC-106, FP-55).
func viaField(pseudonym string, options message.Options) string {
	value := "CoAP/1 " + pseudonym
	if hops, ok := wire.First(options, wire.HopLimit); ok && len(hops) == 1 {
		value += " (" + hopsMark + strconv.Itoa(int(hops[0])) + ")"
	}
	return value
}

// readVia reads Via fields: whether the bearer of the pseudonym has passed the
// message on already, and the Hop-Limit that the last proxy left, 0 for none.
func readVia(values []string, pseudonym string) (own bool, hops uint8) {
	for _, value := range values {
		for value != "" {
			var name, comment string
			name, comment, value = cutVia(value)
			own = own || pseudonym != "" && strings.EqualFold(name, pseudonym)
			if text, ok := strings.CutPrefix(comment, hopsMark); ok {
				if n, err := strconv.ParseUint(text, 10, 8); err == nil && n > 0 {
					hops = uint8(n)
				}
			}
		}
	}
	return own, hops
}

// cutVia cuts the first element off a list: who received the message, and the
// comment, which may hold commas and further comments.
func cutVia(list string) (name, comment, rest string) {
	depth, opened, end := 0, -1, len(list)
scan:
	for i := 0; i < len(list); i++ {
		switch c := list[i]; {
		case c == '\\' && depth > 0:
			i++
		case c == '(':
			if depth++; opened < 0 {
				opened = i
			}
		case c == ')' && depth > 0:
			if depth--; depth == 0 && comment == "" {
				comment = list[opened+1 : i]
			}
		case c == ',' && depth == 0:
			end = i
			break scan
		}
	}
	element := list[:end]
	if opened >= 0 && opened < end {
		element = list[:opened]
	}
	if words := strings.Fields(element); len(words) >= 2 {
		name = words[1]
	}
	return name, comment, list[min(end+1, len(list)):]
}
