package wire

import "strings"

// charset is a set of ASCII characters: those that may stand unencoded in one
// part of a URI (RFC 3986 §3).
type charset [2]uint64

func newCharset(sets ...string) charset {
	var c charset
	for _, set := range sets {
		for i := 0; i < len(set); i++ {
			c[set[i]>>6] |= 1 << (set[i] & 63)
		}
	}
	return c
}

func (c *charset) has(b byte) bool { return b < 0x80 && c[b>>6]&(1<<(b&63)) != 0 }

const (
	alphaChars      = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	digitChars      = "0123456789"
	unreservedChars = alphaChars + digitChars + "-._~" // RFC 3986 §2.3
	subDelimChars   = "!$&'()*+,;="                    // RFC 3986 §2.2
)

// Never written to after initialisation.
var (
	unreserved   = newCharset(unreservedChars)
	schemeSet    = newCharset(alphaChars, digitChars, "+-.")
	regNameSet   = newCharset(unreservedChars, subDelimChars)
	userinfoSet  = newCharset(unreservedChars, subDelimChars, ":")
	segmentSet   = newCharset(unreservedChars, subDelimChars, ":@")
	querySet     = newCharset(unreservedChars, subDelimChars, ":@/?")
	queryItemSet = newCharset(unreservedChars, "!$'()*+,;=", ":@/?") // "&" separates items
)

const upperHex = "0123456789ABCDEF"

// appendEncoded appends s with every byte outside set percent-encoded.
func appendEncoded(buf []byte, s string, set *charset) []byte {
	for i := 0; i < len(s); i++ {
		if set.has(s[i]) {
			buf = append(buf, s[i])
		} else {
			buf = append(buf, '%', upperHex[s[i]>>4], upperHex[s[i]&15])
		}
	}
	return buf
}

// decodePercent undoes percent-encoding. reason is empty on success; raw
// characters outside set are an error.
func decodePercent(s string, set *charset) (decoded, reason string) {
	if reason := checkChars(s, set); reason != "" {
		return "", reason
	}
	if !strings.Contains(s, "%") {
		return s, ""
	}
	buf := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' {
			b, _ := hexByte(s[i+1:])
			buf = append(buf, b)
			i += 2
		} else {
			buf = append(buf, s[i])
		}
	}
	return string(buf), ""
}

// checkChars checks that s consists of characters in set and of complete
// percent-encodings.
func checkChars(s string, set *charset) (reason string) {
	for i := 0; i < len(s); i++ {
		if s[i] == '%' {
			if _, ok := hexByte(s[i+1:]); !ok {
				return "invalid percent-encoding"
			}
			i += 2
		} else if !set.has(s[i]) {
			return "character that must be percent-encoded"
		}
	}
	return ""
}

// hexByte reads the two hexadecimal digits that s begins with.
func hexByte(s string) (byte, bool) {
	if len(s) < 2 {
		return 0, false
	}
	high, ok1 := hexDigit(s[0])
	low, ok2 := hexDigit(s[1])
	return high<<4 | low, ok1 && ok2
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// lowerASCII maps A to Z to lower case and leaves everything else alone, as the
// comparison of host names and schemes wants it (RFC 3986 §6.2.2.1).
func lowerASCII(s string) string {
	for i := 0; i < len(s); i++ {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}
