package test

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
	"coapproxy/test/internal/oscore"
)

// oscoreBed is a folder with a configuration whose clients have OSCORE contexts.
type oscoreBed struct {
	t      *testing.T
	dir    string
	config string
}

// newOSCOREBed makes contexts with `coapproxy oscore new`, one for each client.
func newOSCOREBed(t *testing.T, names ...string) *oscoreBed {
	t.Helper()
	b := &oscoreBed{t: t, dir: t.TempDir()}
	b.config = filepath.Join(b.dir, "config.yaml")
	require.NoError(t, os.Mkdir(filepath.Join(b.dir, "oscore"), 0o700))
	for _, name := range names {
		b.pair(name)
	}
	return b
}

// pair makes the contexts of a client, the proxy's end in oscore/.
func (b *oscoreBed) pair(name string, flags ...string) {
	b.t.Helper()
	args := append([]string{program, "oscore", "new"}, flags...)
	r := run(b.t, here, append(args, filepath.Join(b.dir, "oscore", name+".json"), b.file(name))...)
	require.Zero(b.t, r.code, r.stderr)
}

// file is the client's end.
func (b *oscoreBed) file(name string) string { return filepath.Join(b.dir, name+".json") }

// context reads the client's end.
func (b *oscoreBed) context(name string) *oscore.Context {
	b.t.Helper()
	c, err := oscore.Read(b.file(name))
	require.NoError(b.t, err)
	return c
}

// clients are the entries of clients with an OSCORE context and no network.
func (b *oscoreBed) clients(names ...string) string {
	var out strings.Builder
	for _, name := range names {
		fmt.Fprintf(&out, "- name: %s\n  oscore: [%s]\n  groups: \"*\"\n  forward: [\"coap://*:*\"]\n", name, name)
	}
	return out.String()
}

// start starts a proxy.
func (b *oscoreBed) start(group netip.AddrPort, s settings) *proxy {
	b.t.Helper()
	require.NoError(b.t, os.WriteFile(b.config, []byte(s.yaml(group)), 0o600))
	return serveFile(b.t, here, b.config)
}

// protected is what an OSCORE client sends in place of a message.
func (c *client) protected(context *oscore.Context, m *coap.Message) (*coap.Message, *oscore.Request) {
	out, r := context.Protect(m)
	if out.Token == nil {
		out.Token = m.Token
	}
	return out, r
}

// askOSCORE sends a request in a layer and returns the response inside its own.
func (c *client) askOSCORE(context *oscore.Context, m *coap.Message) (*coap.Message, incoming) {
	c.t.Helper()
	out, r := c.protected(context, m)
	in := c.ask(out)
	inner, _, err := context.Open(r, in.Message)
	require.NoError(c.t, err, "%v", in.Message)
	return inner, in
}

// OH-80 to OH-101: a group request by a client that has nothing but an OSCORE
// context, byte by byte: what is outside, what the group sees, and what comes back.
func TestOSCOREGroup(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, content)
	b := newOSCOREBed(t, "phone")
	p := b.start(group, settings{clients: b.clients("phone")})
	c := newClient(t, here, clientAddr, p.addr())
	context := b.context("phone")

	m, r := context.Protect(get(coap.NON, groupURI(group, "/temp"), timeout(4)))
	require.Len(t, m.Options, 1)
	got := c.gatherN(m, len(servers))
	seen := map[netip.AddrPort]bool{}
	numbers := map[string]bool{}
	for _, in := range got {
		require.Equal(t, coap.CodeOf(2, 4), in.Code) // OH-93
		require.Len(t, in.Options, 1, "OSCORE alone is outside")
		inner, partialIV, err := context.Open(r, in.Message)
		require.NoError(t, err)
		require.NotNil(t, partialIV) // OH-100
		require.False(t, numbers[string(partialIV)], "Partial IV %x twice", partialIV)
		numbers[string(partialIV)] = true
		require.Equal(t, coap.CodeOf(2, 5), inner.Code)
		require.Len(t, inner.Options, 1)
		seen[serverOf(t, incoming{inner, in.datagram, nil})] = true // OH-96
	}
	require.Len(t, seen, len(servers))
	for _, s := range servers {
		requests := s.requests()
		require.Len(t, requests, 1)
		require.Equal(t, []coap.Option{coap.Opt(coap.URIPath, "temp"), coap.Uint(coap.HopLimit, 16)}, requests[0].Options)
	}

	// OH-103: the same Token, and the same context.
	stop := &coap.Message{Type: coap.CON, Code: coap.GET, Token: m.Token, Options: []coap.Option{coap.Uint(coap.MulticastTimeout, 0)}}
	bare := *stop
	require.Equal(t, "4.04", c.ask(&bare).Code.String())
	out, _ := context.Protect(stop)
	c.send(c.fresh(out))
	ack := c.expect()
	require.Equal(t, coap.Message{Type: coap.ACK, ID: out.ID, Token: []byte{}}, *ack.Message)
	eventually(t, func() bool { return len(p.entries("early stop")) == 1 }, "the early stop")
}

// GC-91, GP-11, OC-80, OH-11, OH-84, OH-95: what is protected end to end, for a group here, goes
// through as it is, with the options for the proxy inside the hop layer.
func TestOSCOREEndToEnd(t *testing.T) {
	t.Parallel()
	answer, _ := hex.DecodeString("29000573")
	servers, group := members(t, 2, func(s *server, r *request) {
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 4), Options: []coap.Option{{Number: oscore.Option, Value: answer}}, Payload: []byte("secret of " + s.name)})
	})
	b := newOSCOREBed(t, "phone")
	p := b.start(group, settings{clients: b.clients("phone"), group: "nstart: 16\nleisure: 1s\nprobing_rate: 0\nprotected_requests: true"})
	c := newClient(t, here, clientAddr, p.addr())
	context := b.context("phone")

	// Group mode: Group Flag, kid context, kid, Partial IV.
	value, _ := hex.DecodeString("39" + "05" + "03" + "44616c" + "25")
	m, r := context.Protect(&coap.Message{Type: coap.NON, Code: coap.POST, Payload: []byte("ciphertext and signature"), Options: []coap.Option{
		timeout(3), coap.Opt(coap.URIHost, group.Addr().String()), coap.Uint(coap.URIPort, uint32(group.Port())), {Number: oscore.Option, Value: value},
		coap.Uint(coap.HopLimit, 9), coap.Opt(coap.ProxyScheme, "coap")}})
	for _, in := range c.gatherN(m, len(servers)) {
		inner, _, err := context.Open(r, in.Message)
		require.NoError(t, err)
		require.Equal(t, coap.CodeOf(2, 4), inner.Code)
		o, ok := inner.Option(oscore.Option)
		require.True(t, ok)
		require.Equal(t, answer, o.Value)
		require.True(t, strings.HasPrefix(string(inner.Payload), "secret of "))
		serverOf(t, incoming{inner, in.datagram, nil})
	}
	for _, s := range servers {
		q := s.requests()[0]
		require.Equal(t, coap.POST, q.Code)
		require.Equal(t, []coap.Option{{Number: oscore.Option, Value: value}, coap.Uint(coap.HopLimit, 8)}, q.Options) // OH-83, OH-86, OH-87
		require.Equal(t, "ciphertext and signature", string(q.Payload))
	}

	// OC-86: one of them alone, at the address that its Reply-From named, as when it
	// has asked for an Echo: in pairwise mode.
	value, _ = hex.DecodeString("19" + "06" + "03" + "44616c" + "25")
	alone := &coap.Message{Type: coap.CON, Code: coap.POST, Payload: []byte("for one"), Options: []coap.Option{
		coap.Opt(coap.URIHost, servers[1].addr().Addr().String()), coap.Uint(coap.URIPort, uint32(servers[1].addr().Port())),
		{Number: oscore.Option, Value: value}, coap.Opt(coap.ProxyScheme, "coap")}}
	inner, _ := c.askOSCORE(context, alone)
	require.Equal(t, coap.CodeOf(2, 4), inner.Code)
	require.Equal(t, "secret of "+servers[1].name, string(inner.Payload))
	require.Len(t, servers[0].requests(), 1)
	require.Len(t, servers[1].requests(), 2)
	o, ok := servers[1].requests()[1].Option(oscore.Option)
	require.True(t, ok)
	require.Equal(t, value, o.Value)
}

// OH-97: the tag of a complete set of stored responses is inside the layer.
func TestOSCOREGroupETag(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, with("22.5", coap.Uint(coap.MaxAge, 60)))
	b := newOSCOREBed(t, "phone")
	list := fmt.Sprintf("members: [%q, %q]", servers[0].addr(), servers[1].addr())
	p := b.start(group, settings{clients: b.clients("phone"), cache: "enabled: true", group: "nstart: 16\nleisure: 1s\nprobing_rate: 0\n" + list})
	c := newClient(t, here, clientAddr, p.addr())
	context := b.context("phone")
	m, _ := context.Protect(get(coap.NON, groupURI(group, "/temp"), timeout(2)))
	c.gatherN(m, len(servers))

	m, r := context.Protect(get(coap.NON, groupURI(group, "/temp"), timeout(2)))
	var tags [][]byte
	for _, in := range c.gatherN(m, len(servers)) {
		require.Len(t, in.Options, 1, "OSCORE alone is outside")
		inner, _, err := context.Open(r, in.Message)
		require.NoError(t, err)
		tag, ok := inner.Option(coap.GroupETag)
		require.True(t, ok, "%v", inner)
		tags = append(tags, tag.Value)
	}
	require.Equal(t, tags[0], tags[1])
	for _, s := range servers {
		require.Len(t, s.requests(), 1)
	}
}

// OH-113, OH-54: after a restart the first request is challenged, inside the layer
// and with a Partial IV, and is not carried out; a replay of it neither.
func TestOSCORERestart(t *testing.T) {
	t.Parallel()
	s := single(t, content)
	b := newOSCOREBed(t, "phone")
	uri := fmt.Sprintf("coap://%v/r", s.addr())
	set := settings{clients: b.clients("phone")}
	context := b.context("phone")

	p := b.start(netip.AddrPort{}, set)
	c := newClient(t, here, clientAddr, p.addr())
	inner, _ := c.askOSCORE(context, get(coap.CON, uri))
	require.Equal(t, "server/r", string(inner.Payload))
	old, _ := context.Protect(get(coap.CON, uri))
	c.ask(old)
	p.stop()

	p = b.start(netip.AddrPort{}, set)
	c = newClient(t, here, clientAddr, p.addr())
	replay := *old
	replay.Token = []byte("again")
	for range 2 {
		m := replay
		in := c.ask(&m)
		if in.Code == coap.CodeOf(4, 1) {
			require.Equal(t, "Replay detected", string(in.Payload)) // the second time
		} else {
			require.Equal(t, coap.CodeOf(2, 4), in.Code)
		}
	}
	ask := get(coap.CON, uri)
	out, r := context.Protect(ask)
	in := c.ask(out)
	challenge, partialIV, err := context.Open(r, in.Message)
	require.NoError(t, err)
	require.NotNil(t, partialIV)
	require.Equal(t, coap.CodeOf(4, 1), challenge.Code)
	echo, ok := challenge.Option(252)
	require.True(t, ok)
	require.Len(t, challenge.Options, 1)
	require.Empty(t, challenge.Payload)
	require.Len(t, s.requests(), 2, "nothing of this was carried out")
	inner, _ = c.askOSCORE(context, get(coap.CON, uri, echo))
	require.Equal(t, "server/r", string(inner.Payload))
	require.False(t, s.requests()[2].Has(252), "OH-74: the Echo of the hop stays there")
	inner, _ = c.askOSCORE(context, get(coap.CON, uri))
	require.Equal(t, "server/r", string(inner.Payload))
}

// Contexts come, change and go without a restart; a file that is wrong changes
// nothing.
func TestOSCOREReload(t *testing.T) {
	t.Parallel()
	s := single(t, content)
	b := newOSCOREBed(t, "phone", "tablet")
	uri := fmt.Sprintf("coap://%v/r", s.addr())
	p := b.start(netip.AddrPort{}, settings{clients: b.clients("phone")})
	c := newClient(t, here, clientAddr, p.addr())
	phone, tablet := b.context("phone"), b.context("tablet")
	refused := func(context *oscore.Context) {
		t.Helper()
		m, _ := context.Protect(get(coap.CON, uri))
		in := c.ask(m)
		require.Equal(t, "4.01", in.Code.String())
		require.Equal(t, "Security context not found", string(in.Payload)) // OH-51
	}
	works := func(context *oscore.Context) {
		t.Helper()
		inner, _ := c.askOSCORE(context, get(coap.CON, uri))
		require.Equal(t, "server/r", string(inner.Payload))
	}
	reload := func(want string, names ...string) {
		t.Helper()
		p.rewrite(settings{clients: b.clients(names...)}.yaml(netip.AddrPort{}))
		require.Equal(t, want, p.hangup().text("msg"))
	}
	const taken, kept = "configuration read again", "configuration refused, the one before stays"
	works(phone)
	refused(tablet)

	reload(taken, "phone", "tablet")
	works(phone)
	works(tablet)

	// New keys under the old name.
	require.NoError(t, os.Remove(filepath.Join(b.dir, "oscore", "phone.json")))
	require.NoError(t, os.Remove(b.file("phone")))
	b.pair("phone")
	reload(taken, "phone", "tablet")
	refused(phone)
	phone = b.context("phone")
	works(phone)

	// A file that others can read.
	require.NoError(t, os.Chmod(filepath.Join(b.dir, "oscore", "tablet.json"), 0o644))
	reload(kept, "tablet")
	works(phone)
	works(tablet)

	require.NoError(t, os.Chmod(filepath.Join(b.dir, "oscore", "tablet.json"), 0o600))
	reload(taken, "tablet")
	works(tablet)
	refused(phone)
}

// The client side: `coapproxy request --oscore`, to a proxy, to a server, and
// through two proxies that each have a context with the client (OH-1, OH-3, OH-13).
func TestRequestOSCORE(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, content)
	one, two := newOSCOREBed(t, "phone", "other"), newOSCOREBed(t, "phone")
	p := one.start(group, settings{clients: one.clients("phone")})
	q := two.start(group, settings{clients: two.clients("phone") + "- {name: hop, networks: [127.0.0.9]}\n"})
	ask := func(args ...string) result {
		return run(t, here, append([]string{program, "request", "--via", "coap://" + p.addr().String()}, args...)...)
	}
	phone := one.file("phone")

	r := ask("--oscore", phone, "GET", "coap://"+servers[0].addr().String()+"/a")
	require.Zero(t, r.code, r.stderr)
	require.Contains(t, r.stdout, "member1/a")
	r = ask("--oscore", phone, "--multicast-timeout", "3", "--stop-after", "3", "GET", groupURI(group, "/b"))
	require.Zero(t, r.code, r.stderr)
	for _, s := range servers {
		require.Contains(t, r.stdout, s.name+"/b")
	}
	eventually(t, func() bool { return len(p.entries("early stop")) == 1 }, "the early stop")

	// Through both: the second proxy has its own layer, for which the first is only
	// on the way.
	through := []string{"--oscore", phone, "--through", "coap://" + q.addr().String(), "--oscore", two.file("phone")}
	r = ask(append(through, "GET", "coap://"+servers[1].addr().String()+"/c")...)
	require.Zero(t, r.code, r.stderr)
	require.Contains(t, r.stdout, "member2/c")
	require.Len(t, q.refusals(), 0)

	// For the proxy and, beneath, for the second one as a server.
	r = ask("--oscore", phone, "--oscore", two.file("phone"), "GET", "coap://"+q.addr().String()+"/.well-known/core")
	require.Zero(t, r.code, r.stderr)
	require.Contains(t, r.stdout, "2.05")

	// Straight to a server.
	r = run(t, here, program, "request", "--oscore", two.file("phone"), "GET", "coap://"+q.addr().String()+"/.well-known/core")
	require.Zero(t, r.code, r.stderr)

	// A context that the proxy does not know: its answer is not protected.
	r = ask("--oscore", one.file("other"), "GET", "coap://"+servers[0].addr().String()+"/a")
	require.NotZero(t, r.code)
	require.Contains(t, r.stdout, "4.01 Unauthorized")
	require.Contains(t, r.stdout, "not protected")

	for args, want := range map[string]string{
		"--oscore /nowhere.json":                              "no such file",
		"--through coap://127.0.0.1":                          "one --oscore for each proxy",
		"--oscore a --oscore b --oscore c":                    "3 --oscore for 1 proxies",
		"--oscore " + phone + " --through coap://127.0.0.1/x": "not coap://HOST",
		"--oscore " + filepath.Join(one.dir, "config.yaml"):   "not JSON",
	} {
		r := ask(append(strings.Fields(args), "GET", "coap://127.0.0.1/x")...)
		require.NotZero(t, r.code, args)
		require.Contains(t, r.stderr, want)
	}
}

// What is wrong with contexts: check and serve say so and end.
func TestOSCOREFiles(t *testing.T) {
	t.Parallel()
	b := newOSCOREBed(t, "phone")
	file := filepath.Join(b.dir, "oscore", "phone.json")
	write := func(clients string) {
		require.NoError(t, os.WriteFile(b.config, []byte(settings{clients: clients}.yaml(netip.AddrPort{})), 0o600))
	}
	write(b.clients("phone"))
	require.Zero(t, run(t, here, program, "check", b.config).code)

	r := run(t, here, program, "oscore", "new", file, b.file("again"))
	require.NotZero(t, r.code)
	require.Contains(t, r.stderr, "exists")
	r = run(t, here, program, "oscore", "new", filepath.Join(b.dir, "x.json"), b.file("phone"))
	require.NotZero(t, r.code)
	require.NoFileExists(t, filepath.Join(b.dir, "x.json"), "neither or both")
	r = run(t, here, program, "oscore", "show", file)
	require.Zero(t, r.code)
	require.Contains(t, r.stdout, "AES-CCM-16-128-128")
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	secret := strings.SplitN(strings.SplitN(string(data), `"master_secret": "`, 2)[1], `"`, 2)[0]
	require.NotContains(t, r.stdout, secret)

	require.NoError(t, os.Chmod(file, 0o640))
	for _, command := range []string{"check", "serve --config"} {
		r := run(t, here, append(append([]string{program}, strings.Fields(command)...), b.config)...)
		require.NotZero(t, r.code, command)
		require.Contains(t, r.stderr, "chmod 600 "+file)
	}
	require.NoError(t, os.Chmod(file, 0o600))
	write(b.clients("phone", "tablet"))
	r = run(t, here, program, "check", b.config)
	require.NotZero(t, r.code)
	require.Contains(t, r.stderr, "tablet.json: no such file")
	write(b.clients("phone") + "- {name: twin, oscore: [phone]}\n- {name: path, oscore: [../phone]}\n")
	r = run(t, here, program, "check", b.config)
	require.NotZero(t, r.code)
	require.Contains(t, r.stderr, "give it to one client")
	require.Contains(t, r.stderr, "not the name of a context")
}

// OH-102, OH-113, OH-121: the proxy protects requests for a server that it has a
// context with; that the server was restarted is between the two.
func TestOSCOREServer(t *testing.T) {
	t.Parallel()
	b, far := newOSCOREBed(t), newOSCOREBed(t, "near")
	q := far.start(netip.AddrPort{}, settings{clients: far.clients("near")})
	link := q.addr()
	data, err := os.ReadFile(far.file("near"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(b.dir, "oscore", "far.json"), data, 0o600))
	p := b.start(netip.AddrPort{}, settings{client: "forward: [\"coap://*:*\"]", top: fmt.Sprintf("oscore:\n  servers:\n    - {target: %v, context: far}", link)})
	c := newClient(t, here, clientAddr, p.addr())
	ask := func() incoming { return c.ask(get(coap.CON, fmt.Sprintf("coap://%v/.well-known/core", link))) }
	require.Equal(t, "2.05", ask().Code.String())
	q.logged("protected request refused", 0)
	q.stop()

	far.start(netip.AddrPort{}, settings{clients: far.clients("near"), listen: "- coap://" + link.String()})
	require.Equal(t, "2.05", ask().Code.String(), "the Echo is nothing to bother the client with")
	require.Equal(t, "2.05", ask().Code.String())

	// Keys that the server does not have: its refusal is the hop's, not the client's.
	require.NoError(t, os.Remove(filepath.Join(b.dir, "oscore", "far.json")))
	r := run(t, here, program, "oscore", "new", filepath.Join(b.dir, "oscore", "far.json"), filepath.Join(b.dir, "unused.json"))
	require.Zero(t, r.code, r.stderr)
	require.Equal(t, "configuration read again", p.hangup().text("msg"))
	require.Equal(t, "5.02", ask().Code.String()) // OH-45
}

// OH-75: a protected request that somebody on the way has cut into blocks.
func TestOSCOREOuterBlocks(t *testing.T) {
	t.Parallel()
	s := single(t, content)
	b := newOSCOREBed(t, "phone")
	p := b.start(netip.AddrPort{}, settings{clients: b.clients("phone")})
	c := newClient(t, here, clientAddr, p.addr())
	context := b.context("phone")
	body := strings.Repeat("0123456789abcdef", 60)

	whole, r := context.Protect(&coap.Message{Type: coap.CON, Code: coap.PUT, Payload: []byte(body),
		Options: []coap.Option{coap.Opt(coap.ProxyURI, fmt.Sprintf("coap://%v/r", s.addr()))}})
	var last *coap.Message
	const size = 128
	for num, rest := uint32(0), whole.Payload; len(rest) > 0; num++ {
		n, more := min(size, len(rest)), uint32(0)
		if len(rest) > size {
			more = 8
		}
		block := coap.Uint(coap.Block1, num<<4|more|3)
		m := &coap.Message{Type: coap.CON, Code: whole.Code, Payload: rest[:n], Options: append([]coap.Option{block}, whole.Options...)}
		last, rest = c.ask(m).Message, rest[n:]
		acknowledged, ok := last.Option(coap.Block1)
		require.True(t, ok, "%v", last)
		require.Equal(t, block, acknowledged)
		if more != 0 {
			require.Equal(t, "2.31", last.Code.String())
			require.Empty(t, s.requests())
		}
	}
	inner, _, err := context.Open(r, last)
	require.NoError(t, err)
	require.Equal(t, "2.05", inner.Code.String())
	require.Len(t, s.requests(), 1)
	require.Equal(t, body, string(s.requests()[0].Payload))
}

// A request from the command line costs one sequence number, not what its process
// had reserved: the key would be used up by a thousand of them (OC-52).
func TestOSCORERequestsCostOneNumber(t *testing.T) {
	t.Parallel()
	s := single(t, silent)
	b := newOSCOREBed(t, "phone")
	for range 3 {
		run(t, here, program, "request", "--oscore", b.file("phone"), "--non", "--timeout", "100ms", "GET", fmt.Sprintf("coap://%v/r", s.addr()))
	}
	eventually(t, func() bool { return len(s.requests()) == 3 }, "the requests")
	for i, q := range s.requests() {
		o, ok := q.Option(oscore.Option)
		require.True(t, ok)
		require.Equal(t, byte(1), o.Value[0]&7, "%x", o.Value)
		require.Equal(t, byte(i), o.Value[1], "%x", o.Value)
	}
}
