package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/client"
	"coapproxy/demo"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// demonstration is what the subcommand demo shows.
type demonstration struct {
	out     io.Writer
	program string // for the commands to try
	devices []demo.Device
	group   netip.AddrPort
	proxy   netip.AddrPort
	// http is where it takes HTTP requests, httpWanted the port it was to have.
	http       netip.AddrPort
	httpWanted uint16
	timeout    uint32 // Multicast-Timeout of the requests, in seconds
}

func (d *demonstration) printf(format string, args ...any) { fmt.Fprintf(d.out, format, args...) }

// introduce says who is there.
func (d *demonstration) introduce() {
	const most = 8 // devices that are listed
	noun := "devices"
	if len(d.devices) == 1 {
		noun = "device"
	}
	d.printf("%d simulated %s and a proxy, on this host's loopback interface:\n\n", len(d.devices), noun)
	last := len(d.devices) - 1
	for i, device := range d.devices {
		switch {
		case i < most || i == last:
			d.printf("  %-12s  %s\n", device.Name, uriOf(device.Addr))
		case i == most:
			d.printf("  ... %d more\n", last-most)
		}
	}
	d.printf("  %-12s  %-24s  (multicast: every device hears it)\n", "the group", uriOf(d.group))
	d.printf("  %-12s  %-24s  (unicast: where clients ask)\n", "the proxy", uriOf(d.proxy))
	note := "the same proxy, for HTTP clients"
	if d.httpWanted != 0 && d.http.Port() != d.httpWanted {
		note = fmt.Sprintf("port %d is taken", d.httpWanted)
	}
	d.printf("  %-12s  %-24s  (%s)\n\n", "its web side", "http://"+d.http.String(), note)
}

// ask sends one group request through the proxy, as any client would, prints
// the responses as they come and returns the server of the first one.
func (d *demonstration) ask(ctx context.Context, log *zap.Logger) (server string, err error) {
	// On one host everything is near: a round trip and an ACK take no time.
	c, err := client.Dial(ctx, d.proxy, client.Config{Margin: 100 * time.Millisecond, StopWait: 300 * time.Millisecond, Log: log})
	if err != nil {
		return "", err
	}
	defer c.Close()

	uri := uriOf(d.group) + "/temp"
	d.printf("One request in:     GET %s to the proxy, with Multicast-Timeout %d (seconds)\n", uri, d.timeout)
	d.printf("Many responses out, each with the server it comes from (Reply-From):\n\n")
	responses, servers := 0, map[string]bool{}
	for p, err := range c.Do(ctx, &client.Request{Method: codes.GET, URI: uri, Form: client.ProxyURI, Confirmable: true,
		Timeout: exchange.Timeout{Seconds: d.timeout, Present: true}}) {
		if err != nil {
			return "", fmt.Errorf("GET %s through the proxy: %w", uri, err)
		}
		if p.From == nil {
			return "", fmt.Errorf("the proxy answered %s: %s", wire.CodeString(p.Code), p.Payload)
		}
		responses++
		from := p.From.ServerURI()
		servers[from] = true
		if server == "" {
			server = from
		}
		d.printf("  %6.3f s  %-24s  %s  %s\n", p.Elapsed.Seconds(), from, wire.CodeString(p.Code), p.Payload)
	}
	if responses == 0 {
		return "", errors.New("no device answered; does a packet filter drop multicast on " + demo.Interface + "?")
	}
	d.printf("\n%d responses from %d of %d devices within %d s.\n\n", responses, len(servers), len(d.devices), d.timeout)
	return server, nil
}

// suggest prints what to try next. server is one that has answered: the proxy
// lets a client ask it alone for that (GP-112).
func (d *demonstration) suggest(server string) {
	through := shellWords(d.program, "request", "--via", "coap://"+d.proxy.String())
	group := fmt.Sprintf("%s --multicast-timeout %d", through, d.timeout)
	d.printf("The proxy goes on serving. Try in another terminal:\n\n")
	for i, try := range []struct{ what, command string }{
		{"the same again", group + " GET " + uriOf(d.group) + "/temp"},
		{"all the lights on", group + " --payload on PUT " + uriOf(d.group) + "/light"},
		{"one of them alone, by its Reply-From", through + " GET " + server + "/light"},
		{"what that one's temperature becomes", through + " --observe --stop-after 3 GET " + server + "/temp"},
		{"and everybody's, as long as you like", group + " --observe GET " + uriOf(d.group) + "/temp"},
		{"all of them over HTTP", shellWords("curl", "http://"+localhost(d.http)+"/hc/"+uriOf(d.group)+"/temp", "-H",
			fmt.Sprintf("Multicast-Timeout: %d", d.timeout))},
	} {
		d.printf("  %d. %s\n     %s\n", i+1, try.what, try.command)
	}
	d.printf("\nCtrl-C ends it. %s shows the proxy's log as well, %s its configuration.\n",
		shellWords(d.program, "demo", "--verbose"), "--print-config")
}

// localhost is an authority that is easy to type.
func localhost(a netip.AddrPort) string {
	if a.Addr() == netip.AddrFrom4([4]byte{127, 0, 0, 1}) {
		return fmt.Sprintf("localhost:%d", a.Port())
	}
	return a.String()
}

// uriOf is the coap URI of an address, without a default port.
func uriOf(a netip.AddrPort) string { return peerURI("coap", a) }

// shellWords makes a command line of words; those that a shell would not take
// as they are get quotes.
func shellWords(words ...string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:@%+=,"
	for i, w := range words {
		if w == "" || strings.Trim(w, plain) != "" {
			words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}
