package config_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"coapproxy/config"
)

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "5": 5 * time.Second, "90s": 90 * time.Second, "2m": 2 * time.Minute, "1m30s": 90 * time.Second,
		"250ms": 250 * time.Millisecond, `"7"`: 7 * time.Second, "0s": 0,
	} {
		c, err := parse("limits:\n  grace: " + text + "\n")
		require.NoError(t, err, text)
		require.Equal(t, want, c.Limits.Grace, text)
	}
	for _, text := range []string{"1.5", "1e3", "5 s", "1d", "s", `""`, "1_0", "0x10", "+5", "010", "9223372036854775807"} {
		_, err := parse("limits:\n  grace: " + text + "\n")
		require.Error(t, err, text)
	}
}

func TestBytes(t *testing.T) {
	for text, want := range map[string]config.Bytes{
		"65536": 65536, "64KiB": 64 << 10, "4MiB": 4 << 20, "1GiB": 1 << 30, "128 KiB": 128 << 10,
	} {
		c, err := parse("limits:\n  receive_buffer: " + text + "\n")
		require.NoError(t, err, text)
		require.Equal(t, want, c.Limits.ReceiveBuffer, text)
	}
	for _, text := range []string{"1.5MiB", "4MB", "4M", "4mib", "KiB", `""`, "0x10000", "99999999999GiB", "-99999999999GiB", "-1MiB"} {
		_, err := parse("limits:\n  receive_buffer: " + text + "\n")
		require.Error(t, err, text)
	}
	require.Equal(t, []string{"0", "1023", "1KiB", "1536", "3MiB", "2GiB"},
		strings.Fields(fmt.Sprint(config.Bytes(0), config.Bytes(1023), config.Bytes(1024), config.Bytes(1536), config.Bytes(3<<20), config.Bytes(2<<30))))
}

// addresses draws an address a URI can have, without a zone.
func addresses() *rapid.Generator[netip.Addr] {
	return rapid.Custom(func(t *rapid.T) netip.Addr {
		if rapid.Bool().Draw(t, "v4") {
			return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "bytes")))
		}
		return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "bytes")))
	}).Filter(func(a netip.Addr) bool { return !a.Is4In6() })
}

// The text of a target pattern reads back as the same pattern.
func TestTargetRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := config.Target{Scheme: rapid.SampledFrom([]string{"coap", "coaps", "coap+tcp", "coaps+tcp", "coap+ws", "coaps+ws"}).Draw(t, "scheme")}
		switch rapid.IntRange(0, 2).Draw(t, "kind") {
		case 0:
			want.Any = true
		case 1:
			want.Host = rapid.StringMatching(`[a-z]([a-z0-9]{0,5}[a-z0-9])?(\.[a-z]{1,5}){0,3}`).Draw(t, "host")
		default:
			addr := addresses().Draw(t, "addr")
			p, err := addr.Prefix(rapid.IntRange(0, addr.BitLen()).Draw(t, "bits"))
			require.NoError(t, err)
			if a := p.Addr(); a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.Is4In6() {
				t.Skip("not a target of the default rules")
			}
			want.Network = p
		}
		if want.AnyPort = rapid.Bool().Draw(t, "any port"); !want.AnyPort {
			want.Port = rapid.Uint16Range(1, 65535).Draw(t, "port")
		}
		c, err := parse(client + "  forward: [\"" + want.String() + "\"]\n")
		require.NoError(t, err)
		require.Equal(t, []config.Target{want}, c.Clients[0].Forward)
	})
}

// So does the text of a host with a port.
func TestHostPortRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := config.HostPort{Addr: addresses().Draw(t, "addr"), Port: rapid.Uint16Range(1, 65535).Draw(t, "port")}
		if want.Addr.IsMulticast() {
			t.Skip("not a server")
		}
		if rapid.Bool().Draw(t, "by name") {
			want = config.HostPort{Host: "device-1.example", Port: want.Port}
		}
		c, err := parse("limits:\n  nstart_targets: [{target: \"" + want.String() + "\"}]\n")
		require.NoError(t, err)
		require.Equal(t, want, c.Limits.NStartTargets[0].Target)
	})
}

func TestGroupURI(t *testing.T) {
	for text, want := range map[string]string{
		"coap://224.0.1.187":           "coap://224.0.1.187:5683",
		"coap://224.0.1.187:5683/":     "coap://224.0.1.187:5683",
		"CoAP://[FF05::FD]:61616":      "coap://[ff05::fd]:61616",
		"coap://[ff02::fd%eth0]":       "coap://[ff02::fd%eth0]:5683",
		"coap://[ff02::fd%25eth0]":     "coap://[ff02::fd%eth0]:5683", // RFC 6874
		"coap://Lights.example":        "coap://lights.example:5683",
		"coap://all_lights.site1:5700": "coap://all_lights.site1:5700",
	} {
		interfaces := "interfaces: [eth0]"
		c, err := parse("groups:\n- name: g\n  " + interfaces + "\n  uri: \"" + text + "\"\n")
		require.NoError(t, err, text)
		require.Equal(t, want, c.Groups[0].URI.String())
	}
	for _, host := range []string{"-a", "a-", "a..b", ".", "a.", "ä.example", "a%", "1.2.3", "256.0.0.1", "[", "]", "[]", "[x]y", "[ff05::fd]x",
		strings.Repeat("a", 64), strings.Repeat("a.", 127) + "a", "a:b:c", "a b", "a\tb"} {
		_, err := parse("groups:\n- name: g\n  interfaces: [lo]\n  uri: " + fmt.Sprintf("%q", "coap://"+host) + "\n")
		require.Error(t, err, host)
	}
}
