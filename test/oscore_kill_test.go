package test

import (
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
	"coapproxy/test/internal/oscore"
)

// kills is how often TestOSCOREKilled kills the proxy.
const kills = 200

// OH-112, OC-27: killed at random moments while it sends, the proxy never uses a
// nonce twice: neither one with a Partial IV of its own, nor that of a request,
// which only the first response to it may have.
func TestOSCOREKilled(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	b := newOSCOREBed(t, "phone")
	context := b.context("phone")
	s := settings{clients: b.clients("phone"), log: "error"}
	b.start(group, settings{clients: s.clients}).stop() // writes the file, and shows that it is right
	used := nonces{t: t, seen: make(map[string]string)}
	answered := 0
	for range kills {
		answered += used.life(b, context, group)
	}
	require.Greater(t, answered, kills, "responses that were seen")
	require.NotEmpty(t, servers[0].requests())
	t.Logf("%d responses of %d lives, no nonce twice", answered, kills)
}

// nonces are what the proxy has used.
type nonces struct {
	t    *testing.T
	seen map[string]string // and for which message
}

// note takes note of a nonce that must not have been there, for another message
// than this one.
func (n *nonces) note(partialIV []byte, r *oscore.Request, m *coap.Message) {
	n.t.Helper()
	nonce := "own " + hex.EncodeToString(partialIV)
	if partialIV == nil {
		nonce = "request " + hex.EncodeToString(r.PartialIV)
	}
	what := hex.EncodeToString(m.Payload)
	if before, used := n.seen[nonce]; used {
		require.Equal(n.t, before, what, "nonce %s for two messages", nonce)
	}
	n.seen[nonce] = what
}

// life starts the proxy, keeps it busy, and kills it after a random time. It
// returns how many responses came.
func (n *nonces) life(b *oscoreBed, context *oscore.Context, group netip.AddrPort) (answered int) {
	t := n.t
	p := &proxy{process: start(t, here, "coapproxy", program, "serve", "--config", b.config), config: b.config}
	p.waitFor(`"msg":"ready"`)
	addr, err := netip.ParseAddrPort(p.waitFor(`"uri":"coap://([^"]+)","receive`)[1])
	require.NoError(t, err)
	c := newClient(t, here, clientAddr, addr)
	defer c.vanish()
	asked := make(map[string]*oscore.Request)
	ask := func(m *coap.Message) {
		out, r := context.Protect(m)
		c.fresh(out)
		asked[string(out.Token)] = r
		c.send(out)
	}
	uri := groupURI(group, "/x")
	var echo []coap.Option
	dies := time.After(time.Duration(rand.Int64N(int64(30 * time.Millisecond))))
	ask(get(coap.NON, uri, timeout(1)))
	for alive := true; alive; {
		select {
		case in := <-c.inbox:
			r := asked[string(in.Token)]
			if r == nil || !in.Has(oscore.Option) {
				continue
			}
			inner, partialIV, err := context.Open(r, in.Message)
			require.NoError(t, err)
			n.note(partialIV, r, in.Message)
			answered++
			if o, ok := inner.Option(252); ok {
				echo = []coap.Option{o}
			}
			// A group request, and one that fails at once, whose answer has the nonce
			// of the request.
			ask(get(coap.NON, uri, append(echo, timeout(1))...))
			ask(get(coap.NON, "coap://127.0.0.9:1/refused", echo...))
			ask(&coap.Message{Type: coap.NON, Code: coap.GET, Options: append(echo, coap.Opt(coap.URIPath, "nothing"))})
		case <-dies:
			alive = false
		}
	}
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGKILL))
	<-p.ended
	for {
		in := c.next(time.Millisecond)
		if in == nil {
			return answered
		}
		if r := asked[string(in.Token)]; r != nil && in.Has(oscore.Option) {
			_, partialIV, err := context.Open(r, in.Message)
			require.NoError(t, err)
			n.note(partialIV, r, in.Message)
			answered++
		}
	}
}
