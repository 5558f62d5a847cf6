package httpbridge

import (
	"bufio"
	"encoding/json"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

func TestArray(t *testing.T) {
	f, chain := newFront(t, nil)
	chain.serve = answers(
		member(serverA, codes.Content, "21.5 °C", option(wire.ContentFormat, "")),
		member(serverB, codes.Content, ` {"on" : true}`, option(wire.ContentFormat, "\x32")),
		member(netip.MustParseAddrPort("192.0.2.8:5683"), codes.Content, "\x00\xff"),
		member(netip.MustParseAddrPort("192.0.2.9:5683"), codes.NotFound, "no"),
		member(netip.MustParseAddrPort("192.0.2.10:5683"), codes.Content, "{broken", option(wire.ContentFormat, "\x32")),
		member(netip.MustParseAddrPort("192.0.2.11:5683"), codes.Changed, ""),
		member(netip.MustParseAddrPort("192.0.2.12:5683"), codes.Content, "zz", option(wire.ContentFormat, "\x2b\x2a")),
	)
	w := do(f, "GET", groupTarget, "", "Multicast-Timeout: 2", "Accept: application/json")
	require.Equal(t, 200, w.Code)
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	require.Equal(t, "-", value(chain.last(), wire.Accept), "servers may answer in any form")
	var list []map[string]any
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &list))
	for _, e := range list {
		at, err := time.Parse(time.RFC3339, e["time"].(string))
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), at, time.Minute)
		delete(e, "time")
	}
	require.Equal(t, []map[string]any{
		{"server": "coap://192.0.2.7", "status": 200.0, "contentType": "text/plain; charset=utf-8", "body": "21.5 °C"},
		{"server": "coap://[2001:db8::1]:61616", "status": 200.0, "contentType": "application/json", "body": map[string]any{"on": true}},
		{"server": "coap://192.0.2.8", "status": 200.0, "contentType": "application/octet-stream", "bodyBase64": "AP8="},
		{"server": "coap://192.0.2.9", "status": 404.0, "contentType": "text/plain; charset=utf-8", "body": "no"},
		{"server": "coap://192.0.2.10", "status": 200.0, "contentType": "application/json", "body": "{broken"},
		{"server": "coap://192.0.2.11", "status": 204.0},
		{"server": "coap://192.0.2.12", "status": 200.0, "contentType": "application/json", "contentEncoding": "deflate", "bodyBase64": "eno="},
	}, list)

	chain.serve = answers()
	require.Equal(t, "[]\n", do(f, "GET", groupTarget, "", "Multicast-Timeout: 2", "Accept: application/json").Body.String())
}

func TestForms(t *testing.T) {
	for accept, want := range map[string]struct {
		form    form
		servers string // their Accept
	}{
		"":                                  {formBatch, "-"},
		"*/*":                               {formBatch, "-"},
		"text/plain":                        {formBatch, ""},
		"application/json":                  {formJSON, "-"},
		"multipart/mixed, application/json": {formBatch, "\x32"},
		"application/json;q=0.5, multipart/mixed":                 {formBatch, "\x32"},
		"application/json, multipart/mixed;q=0.5":                 {formJSON, "-"},
		"text/html, application/json;q=0.9":                       {formBatch, "\x32"},
		"application/x-ndjson":                                    {formLines, "-"},
		"application/senml+json":                                  {formSenMLJSON, "\x6e"},
		"application/senml+cbor, application/senml+json;q=0.5":    {formSenMLCBOR, "\x70"},
		"application/json;q=0, application/cbor":                  {formBatch, "\x3c"},
		"multipart/mixed, application/json;q=0, application/cbor": {formBatch, "\x3c"},
	} {
		ranges := parseAccept([]string{accept})
		got, _ := formOf(ranges, nil)
		require.Equal(t, want.form, got, accept)
		f, chain := newFront(t, nil)
		chain.serve = answers()
		do(f, "GET", groupTarget, "", "Multicast-Timeout: 2", "Accept: "+accept)
		require.Equal(t, want.servers, value(chain.last(), wire.Accept), accept)
	}
}

func TestLines(t *testing.T) {
	f, chain := newFront(t, nil)
	exchanges := chain.keepsRunning()
	head, recorder, body, over := stream(t, f, groupTarget, "Multicast-Timeout: 60", "Accept: application/x-ndjson")
	x := <-exchanges
	require.Equal(t, 200, <-head)
	require.Equal(t, "application/x-ndjson", recorder.Header().Get("Content-Type"))
	lines := bufio.NewReader(body)
	for _, want := range []string{"1\n2", "3"} {
		x.sink.Respond(member(serverA, codes.Content, want, option(wire.ContentFormat, "")))
		line, err := lines.ReadBytes('\n') // before the next one comes
		require.NoError(t, err)
		var e element
		require.NoError(t, json.Unmarshal(line, &e))
		var text string
		require.NoError(t, json.Unmarshal(e.Body, &text))
		require.Equal(t, want, text)
	}
	x.end(nil)
	_, err := lines.ReadByte()
	require.Equal(t, io.EOF, err)
	<-over
}

func senML(from netip.AddrPort, pack string) *exchange.Response {
	return member(from, codes.Content, pack, option(wire.ContentFormat, "\x6e"))
}

func TestPack(t *testing.T) {
	senMLCBOR, err := cbor.Marshal([]map[any]any{
		{-3: 1.5e9, 0: "humidity", 2: 40, 4: true},
		{0: "raw", 8: []byte{0xff, 0xfe}, 6: -10},
		{0: "exact", 2: cbor.Tag{Number: 4, Content: []any{-1, 215}}},
	})
	require.NoError(t, err)
	f, chain := newFront(t, nil)
	chain.serve = answers(
		senML(serverA, `[{"bn":"urn:dev:ow:10e2073a01080063:","bt":1.6e9,"bu":"A","bver":5,"n":"voltage","u":"V","v":120.1},
			{"n":"current","t":-5,"v":1.2},{"n":"current","t":-4,"v":1.3,"x":"kept"}]`), // the form of RFC 8428 §5.1.3
		member(serverB, codes.Content, string(senMLCBOR), option(wire.ContentFormat, "\x70")),
		senML(netip.MustParseAddrPort("192.0.2.8:5683"), `[{"bn":"/3303/0/","bv":20,"bs":100,"bt":1.7e9,"n":"5700","v":1.5,"s":1},{"n":"x"}]`),
		senML(netip.MustParseAddrPort("192.0.2.9:5683"), `[{"n":"a","v":1,"must_":1}]`),
		senML(netip.MustParseAddrPort("192.0.2.10:5683"), `[{"n":"a","v":1,"bver":11}]`),
		senML(netip.MustParseAddrPort("192.0.2.11:5683"), `no`),
		member(netip.MustParseAddrPort("192.0.2.12:5683"), codes.Content, "21.5", option(wire.ContentFormat, "")),
		member(netip.MustParseAddrPort("192.0.2.13:5683"), codes.NotFound, ""),
	)
	w := do(f, "GET", groupTarget, "", "Multicast-Timeout: 2", "Accept: application/senml+json")
	require.Equal(t, 200, w.Code, w.Body)
	require.Equal(t, "application/senml+json", w.Header().Get("Content-Type"))
	require.Equal(t, "5", w.Header().Get("Omitted-Responses"))
	require.JSONEq(t, `[
		{"n":"coap://2001:db8::1_61616/raw","t":1499999990,"vd":"__4"},
		{"n":"coap://2001:db8::1_61616/humidity","t":1500000000,"v":40,"vb":true},
		{"n":"coap://2001:db8::1_61616/exact","t":1500000000,"v":21.5},
		{"n":"urn:dev:ow:10e2073a01080063:current","t":1599999995,"u":"A","v":1.2},
		{"n":"urn:dev:ow:10e2073a01080063:current","t":1599999996,"u":"A","v":1.3,"x":"kept"},
		{"n":"urn:dev:ow:10e2073a01080063:voltage","t":1.6e9,"u":"V","v":120.1},
		{"n":"coap://192.0.2.8/3303/0/5700","s":101,"t":1.7e9,"v":21.5},
		{"n":"coap://192.0.2.8/3303/0/x","s":100,"t":1.7e9,"v":20}]`, w.Body.String())

	w = do(f, "GET", groupTarget, "", "Multicast-Timeout: 2", "Accept: application/senml+cbor")
	require.Equal(t, "application/senml+cbor", w.Header().Get("Content-Type"))
	var pack []map[any]any
	require.NoError(t, cbor.Unmarshal(w.Body.Bytes(), &pack))
	require.Equal(t, map[any]any{uint64(0): "coap://2001:db8::1_61616/raw", uint64(6): 1499999990.0, uint64(8): []byte{0xff, 0xfe}}, pack[0])
	require.Equal(t, "kept", pack[4]["x"])
}

// Times below 2^28 count from when the response came (RFC 8428 §4.5.3).
func TestRelativeTime(t *testing.T) {
	now := time.UnixMilli(1764000000500)
	for _, x := range []struct {
		record string
		want   float64
	}{{`{"v":1}`, 1764000000.5}, {`{"v":1,"t":-10}`, 1763999990.5}, {`{"v":1,"bt":1.5e9,"t":2}`, 1500000002}, {`{"v":1,"t":1.5e9}`, 1.5e9}} {
		records, err := parseJSONPack([]byte("[" + x.record + "]"))
		require.NoError(t, err)
		records, err = resolvePack(records, "coap://h/", now)
		require.NoError(t, err)
		require.InDelta(t, x.want, number(records[0]["t"]), 1e-6)
		require.Equal(t, "coap://h/", records[0]["n"])
	}
}

func TestNoPack(t *testing.T) {
	f, chain := newFront(t, nil)
	for _, p := range []*exchange.Response{member(serverA, codes.NotFound, ""), senML(serverA, "[]")} {
		chain.serve = answers(p)
		require.Equal(t, 204, do(f, "GET", groupTarget, "", "Multicast-Timeout: 2", "Accept: application/senml+json").Code)
	}
}

// FuzzPack: no pack of any server can make a document that is none.
func FuzzPack(f *testing.F) {
	f.Add([]byte(`[{"bn":"a","bt":1,"v":1e308,"bv":1e308,"t":2,"vd":"__4"}]`), true)
	f.Add([]byte("\x82\xa2\x00\x61a\x02\xfb\x7f\xf0\x00\x00\x00\x00\x00\x00\xa1\x02\xc4\x82\x18\xff\x01"), false)
	f.Fuzz(func(t *testing.T, pack []byte, asJSON bool) {
		format := "\x70"
		if asJSON {
			format = "\x6e"
		}
		records, err := parsePack(pack, message.Options{option(wire.ContentFormat, format)})
		if err != nil {
			return
		}
		if records, err = resolvePack(records, "coap://192.0.2.7/", time.Unix(1.7e9, 0)); err != nil {
			return
		}
		b, err := encodeCBORPack(records)
		require.NoError(t, err)
		_, err = parseCBORPack(b)
		require.NoError(t, err)
		b, err = encodeJSONPack(records)
		require.NoError(t, err)
		require.True(t, json.Valid(b))
	})
}
