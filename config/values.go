package config

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Dialect is a generation of the group options (GP-127).
type Dialect string

// The dialects.
const (
	DialectDraft07 Dialect = "draft-07" // Reply-From
	DialectLegacy  Dialect = "legacy"   // Response-Forwarding
	DialectBoth    Dialect = "both"     // both response options
)

// Method is the name of a CoAP method, as written in RFC 7252 and RFC 8132.
type Method string

// The methods.
const (
	MethodGET    Method = "GET"
	MethodPOST   Method = "POST"
	MethodPUT    Method = "PUT"
	MethodDELETE Method = "DELETE"
	MethodFETCH  Method = "FETCH"
	MethodPATCH  Method = "PATCH"
	MethodIPATCH Method = "iPATCH"
)

// Echo says when a client is challenged with Echo (FP-81).
type Echo string

// The kinds of challenge.
const (
	EchoOff      Echo = "off"      // the network is trusted
	EchoRequired Echo = "required" // before anything large, or several responses, is sent
)

// ResponseType is the message type of relayed responses (GP-33).
type ResponseType string

// The response types.
const (
	ResponseSame ResponseType = "same" // the type of the client's request
	ResponseCon  ResponseType = "con"
	ResponseNon  ResponseType = "non"
)

// ClientTypes is the message type used towards unicast targets (FP-31).
type ClientTypes string

// The choices of client_types.
const (
	ClientTypesKeep ClientTypes = "keep" // NON when the client used NON
	ClientTypesCon  ClientTypes = "con"  // always CON
)

// Repeat says how a group request is repeated (GC-40).
type Repeat string

// The kinds of repeat.
const (
	RepeatOff     Repeat = "off"
	RepeatSameMID Repeat = "same-mid" // only members that missed it process it
	RepeatNewMID  Repeat = "new-mid"  // every member processes it again
)

// Scope is an IPv6 multicast scope (RFC 7346 §2; GC-1).
type Scope string

// The scopes a group can have.
const (
	ScopeInterfaceLocal    Scope = "interface-local"
	ScopeLinkLocal         Scope = "link-local"
	ScopeRealmLocal        Scope = "realm-local"
	ScopeAdminLocal        Scope = "admin-local"
	ScopeSiteLocal         Scope = "site-local"
	ScopeOrganizationLocal Scope = "organization-local"
	ScopeGlobal            Scope = "global"
)

// Value returns the 4-bit scope field of RFC 4291 §2.7: 1 for interface-local up
// to 14 for global, and 0 for an unknown name.
func (s Scope) Value() uint8 {
	switch s {
	case ScopeInterfaceLocal:
		return 0x1
	case ScopeLinkLocal:
		return 0x2
	case ScopeRealmLocal:
		return 0x3
	case ScopeAdminLocal:
		return 0x4
	case ScopeSiteLocal:
		return 0x5
	case ScopeOrganizationLocal:
		return 0x8
	case ScopeGlobal:
		return 0xe
	default:
		return 0
	}
}

// LogLevel is the least severe level that is logged.
type LogLevel string

// The log levels.
const (
	LogDebug LogLevel = "debug"
	LogInfo  LogLevel = "info"
	LogWarn  LogLevel = "warn"
	LogError LogLevel = "error"
)

// LogFormat is the form of a log line.
type LogFormat string

// The log formats.
const (
	LogConsole LogFormat = "console"
	LogJSON    LogFormat = "json"
)

// LogOutput is where log lines go.
type LogOutput string

// The log outputs.
const (
	LogStderr LogOutput = "stderr"
	LogStdout LogOutput = "stdout"
)

// Bytes is a number of bytes. In the file it is a whole number, alone or with
// KiB, MiB or GiB behind it.
type Bytes int64

// The byte units.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
)

// String returns b in the largest unit that divides it.
func (b Bytes) String() string {
	switch {
	case b != 0 && b%GiB == 0:
		return strconv.FormatInt(int64(b/GiB), 10) + "GiB"
	case b != 0 && b%MiB == 0:
		return strconv.FormatInt(int64(b/MiB), 10) + "MiB"
	case b != 0 && b%KiB == 0:
		return strconv.FormatInt(int64(b/KiB), 10) + "KiB"
	default:
		return strconv.FormatInt(int64(b), 10)
	}
}

// fault is what is wrong with one value, before it is known where the value was
// written.
type fault struct{ message, hint string }

func faultf(hint, format string, args ...any) *fault {
	return &fault{message: fmt.Sprintf(format, args...), hint: hint}
}

// parseDuration reads a Go duration or a plain number of seconds.
func parseDuration(s string) (time.Duration, *fault) {
	const hint = "write e.g. 90s, 10m or a whole number of seconds"
	if n, err := parseWhole(s); err == nil {
		if n > math.MaxInt64/int64(time.Second) || n < math.MinInt64/int64(time.Second) {
			return 0, faultf(hint, "%s seconds is too long", show(s))
		}
		return time.Duration(n) * time.Second, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, faultf(hint, "%s is not a duration", show(s))
	}
	return d, nil
}

// parseBytes reads a number of bytes with an optional unit.
func parseBytes(s string) (Bytes, *fault) {
	const hint = "write e.g. 64KiB, 4MiB or a whole number of bytes"
	number, unit := s, Bytes(1)
	for _, u := range []struct {
		suffix string
		size   Bytes
	}{{"KiB", KiB}, {"MiB", MiB}, {"GiB", GiB}} {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			number, unit = strings.TrimRight(rest, " "), u.size
		}
	}
	n, err := parseWhole(number)
	if err != nil || n > math.MaxInt64/int64(unit) || n < math.MinInt64/int64(unit) {
		return 0, faultf(hint, "%s is not a number of bytes", show(s))
	}
	return Bytes(n) * unit, nil
}

// parseWhole reads a decimal integer. YAML's other spellings are refused: 010
// would be 8 there, which nobody who writes it means.
func parseWhole(s string) (int64, error) {
	if digits := strings.TrimPrefix(s, "-"); len(digits) > 1 && digits[0] == '0' || strings.HasPrefix(s, "+") {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseInt(s, 10, 64)
}

// parseAddr reads an address literal without a zone.
func parseAddr(s string) (netip.Addr, *fault) {
	const hint = "write e.g. 192.0.2.7 or 2001:db8::7"
	addr, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return netip.Addr{}, faultf(hint, "%s is not an IP address", show(s))
	case addr.Zone() != "":
		return netip.Addr{}, faultf("write "+addr.WithZone("").String(), "%s has a zone, which has no meaning here", show(s))
	case addr.Is4In6():
		return netip.Addr{}, faultf("write "+addr.Unmap().String(), "%s is an IPv4 address in IPv6 form", show(s))
	}
	return addr, nil
}

// parseNetwork reads a network in CIDR form, or a single address.
func parseNetwork(s string) (netip.Prefix, *fault) {
	const hint = "write e.g. 192.0.2.0/24, 2001:db8::/64 or a single address"
	if !strings.Contains(s, "/") {
		if !isAddr(s) {
			return netip.Prefix{}, faultf(hint, "%s is not a network", show(s))
		}
		addr, f := parseAddr(s)
		if f != nil {
			return netip.Prefix{}, f
		}
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, faultf(hint, "%s is not a network", show(s))
	case p.Addr().Is4In6():
		return netip.Prefix{}, faultf("write the network in IPv4 form", "%s is an IPv4 network in IPv6 form", show(s))
	case p != p.Masked():
		return netip.Prefix{}, faultf("write "+p.Masked().String(), "%s has bits set behind its prefix length", show(s))
	}
	return p, nil
}

func isAddr(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// staysOnLink reports whether a multicast to addr never leaves the link: IPv6
// interface-local and link-local scope, IPv4 224.0.0.0/24 (GC-6).
func staysOnLink(addr netip.Addr) bool {
	return addr.IsLinkLocalMulticast() || addr.IsInterfaceLocalMulticast()
}

// show makes a value of the file fit for a one-line message.
func show(s string) string {
	const longest = 80
	if len(s) > longest {
		return strconv.QuoteToASCII(s[:longest]) + "..."
	}
	for _, r := range s {
		if r <= ' ' || r > '~' || r == '"' {
			return strconv.QuoteToASCII(s)
		}
	}
	if s == "" {
		return `""`
	}
	return s
}
