package service

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"coapproxy/config"
	"coapproxy/metrics"
	"coapproxy/oscorehop"
	"coapproxy/proxy"
	"coapproxy/wire"
)

// hopBed is the OSCORE side of a proxy with one client, and that client's end.
type hopBed struct {
	*oscoreHop
	t      *testing.T
	client *oscorehop.Context
	log    *observer.ObservedLogs
}

func newHopBed(t *testing.T, options ...uint16) *hopBed {
	t.Helper()
	dir := t.TempDir()
	contexts := filepath.Join(dir, "contexts")
	require.NoError(t, os.Mkdir(contexts, 0o700))
	end, ours, err := oscorehop.NewPair(oscorehop.PairOptions{Algorithm: oscorehop.AESCCM16Tag64})
	require.NoError(t, err)
	require.NoError(t, ours.WriteFile(filepath.Join(contexts, "phone.json")))
	core, logs := observer.New(zapcore.InfoLevel)
	numbers := wire.DefaultNumbers()
	p := &Proxy{numbers: &numbers, metrics: &metrics.Registry{}}
	c := config.Default()
	c.OSCORE.Contexts, c.OSCORE.Store, c.OSCORE.Options = contexts, filepath.Join(dir, "store"), options
	c.Clients = []config.Client{{Name: "phone", OSCORE: []string{"phone"}}}
	protection, err := p.protectionOf(c, &proxy.Targets{}, zap.New(core))
	require.NoError(t, err)
	require.Equal(t, 2, protection.MaxLayers)
	t.Cleanup(p.oscore.close)
	b := &hopBed{oscoreHop: p.oscore, t: t, log: logs}
	b.client, err = oscorehop.Ephemeral(end)
	require.NoError(t, err)
	return b
}

// ask has a request of the client unprotected.
func (b *hopBed) ask() (proxy.Layer, *oscorehop.Requester) {
	b.t.Helper()
	m, r, err := b.client.ProtectRequest(oscorehop.Message{Code: codes.GET}, oscorehop.DefaultClasses)
	require.NoError(b.t, err)
	_, layer, refusal := b.Unprotect(m.OnWire())
	require.Nil(b.t, refusal)
	require.Equal(b.t, "phone", layer.Security().OSCORE)
	require.Equal(b.t, "phone", layer.Context())
	return layer, r
}

// answer is what the client reads of a response.
func (b *hopBed) answer(layer proxy.Layer, r *oscorehop.Requester, m *wire.Message) oscorehop.Message {
	b.t.Helper()
	sealed, err := layer.Protect(m)
	require.NoError(b.t, err)
	out, err := b.hop.UnprotectResponse(r, oscorehop.Message{Code: sealed.Code, Options: sealed.Options, Payload: sealed.Payload})
	require.NoError(b.t, err)
	return out
}

// OH-34, OH-57: a response that cannot be protected becomes a 5.02 inside the
// layer, which still names its server; what the operator allows goes through.
func TestOSCOREUnprotectable(t *testing.T) {
	from := message.Option{ID: wire.ReplyFrom, Value: []byte("r")}
	for name, m := range map[string]*wire.Message{
		"unknown option": {Code: codes.Content, Options: message.Options{from, {ID: 2054, Value: []byte("x")}}},
		"too long":       {Code: codes.Content, Options: message.Options{from}, Payload: make([]byte, 5000)},
	} {
		t.Run(name, func(t *testing.T) {
			b := newHopBed(t)
			layer, r := b.ask()
			got := b.answer(layer, r, m)
			require.Equal(t, codes.BadGateway, got.Code)
			require.Equal(t, message.Options{from}, got.Options)
			require.Equal(t, 1, b.log.FilterMessage("response cannot be protected").Len())
		})
	}
	b := newHopBed(t, 2054)
	layer, r := b.ask()
	got := b.answer(layer, r, &wire.Message{Code: codes.Content, Options: message.Options{{ID: 2054, Value: []byte("x")}}})
	require.Equal(t, codes.Content, got.Code)
	require.Len(t, got.Options, 1)
}

// OC-50, OC-51, OC-54, OC-55, OH-63: the operator hears of half of the failures that
// the key stands, of most of them, and of the end, after which nothing is verified
// any more; before that the context is worn out.
func TestOSCOREWornOut(t *testing.T) {
	b := newHopBed(t)
	m, _, err := b.client.ProtectRequest(oscorehop.Message{Code: codes.GET}, oscorehop.DefaultClasses)
	require.NoError(t, err)
	m.Payload[0] ^= 1
	limit := int(oscorehop.AESCCM16Tag64.Limits().Failures)
	layer, _ := b.ask()
	for i := range limit {
		if i == limit-limit/5 {
			require.True(t, layer.WornOut())
		}
		_, _, refusal := b.Unprotect(m.OnWire())
		require.True(t, refusal.Forged)
		require.False(t, refusal.Authentic)
	}
	warnings := b.log.FilterMessage("OSCORE context: make a new one").All()
	require.Len(t, warnings, 3)
	for i, level := range []string{"watch", "soft limit", "refused"} {
		require.Equal(t, level, warnings[i].ContextMap()["level"])
		require.Equal(t, "failed decryptions", warnings[i].ContextMap()["limit"])
	}
	good, _, err := b.client.ProtectRequest(oscorehop.Message{Code: codes.GET}, oscorehop.DefaultClasses)
	require.NoError(t, err)
	_, _, refusal := b.Unprotect(good.OnWire())
	require.NotNil(t, refusal)
	require.Equal(t, codes.Unauthorized, refusal.Answer.Code)

	// Nor is anything sent once the context is closed.
	_, err = b.ring.Keep()
	require.NoError(t, err)
	_, err = layer.Protect(&wire.Message{Code: codes.Content})
	require.Error(t, err)
	require.EqualValues(t, 1, b.stats.Unsent.Load())
}
