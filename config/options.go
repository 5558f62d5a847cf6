package config

import "fmt"

// optionNumbers checks that the numbers of the group options are distinct, are
// not those of other options, and have the class bits that the options'
// definitions ask for (GP-1; RFC 7252 §5.4.6).
func (v *validator) optionNumbers() {
	o := &v.c.Proxy.OptionNumbers
	taken := map[uint16]string{}
	for _, option := range []struct {
		key     string
		number  uint16
		initial uint16
		unsafe  bool
		inKey   bool // must be part of the cache key
	}{
		{"multicast_timeout", o.MulticastTimeout, 2, true, false},
		{"legacy_timeout", o.LegacyTimeout, 0, true, false}, // GP-127
		{"reply_from", o.ReplyFrom, 248, false, false},
		{"group_etag", o.GroupETag, 24, false, true},
		{"response_forwarding", o.ResponseForwarding, 96, false, false}, // GP-120
	} {
		n := option.number
		if option.key == "legacy_timeout" && n == 0 {
			continue
		}
		key := "proxy.option_numbers." + option.key
		hint := fmt.Sprintf("write another, e.g. %d", option.initial)
		if option.initial == 0 {
			hint = "write 0 for none, or another"
		}
		switch first, ok := taken[n]; {
		case ok:
			if v.c.source.lines[key] == 0 { // a default: the mistake is in the other one
				key, first = first, key
			}
			v.add(key, fmt.Sprintf("%d is the number of %s too", n, v.where(first)), "write another number")
		case assigned(n) != "":
			v.add(key, fmt.Sprintf("%d is the number of %s", n, assigned(n)), hint)
		case n&1 != 0:
			v.add(key, fmt.Sprintf("%d is critical, and this option is elective, so its number is even", n), hint)
		case option.unsafe && n&2 == 0:
			v.add(key, fmt.Sprintf("%d is safe to forward, and this option is not", n), hint)
		case !option.unsafe && n&2 != 0:
			v.add(key, fmt.Sprintf("%d is unsafe to forward, and this option is safe", n), hint)
		case option.inKey && n&0x1e == 0x1c:
			v.add(key, fmt.Sprintf("%d is not in the cache key, and this option is", n), hint)
		default:
			taken[n] = key
		}
	}
}

// assigned returns the name of the option that has an elective number, or ""
// when it is free. Critical numbers are refused anyway.
func assigned(n uint16) string {
	switch n {
	case 0, 128, 132, 136, 140:
		return "a reserved option (RFC 7252)"
	case 4:
		return "ETag"
	case 6:
		return "Observe"
	case 8:
		return "Location-Path"
	case 12:
		return "Content-Format"
	case 14:
		return "Max-Age"
	case 16:
		return "Hop-Limit"
	case 18:
		return "Feedback-Divider"
	case 20:
		return "Location-Query"
	case 28:
		return "Size2"
	case 60:
		return "Size1"
	case 252:
		return "Echo"
	case 258:
		return "No-Response"
	case 292:
		return "Request-Tag"
	case 548:
		return "Request-Hash"
	default:
		return ""
	}
}
