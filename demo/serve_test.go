package demo

import (
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

func TestUnicast(t *testing.T) {
	g := start(t, Options{Devices: 1, Seed: 1})
	to := g.Devices()[0].Addr
	c := newClient(t)
	for _, x := range []struct {
		name    string
		request wire.Message
		code    codes.Code
		payload string // a regular expression
	}{
		{"temperature", get("temp"), codes.Content, `^\d\d\.\d °C$`},
		{"light", get("light"), codes.Content, `^off$`},
		{"info", get("info"), codes.Content, `^{"name":"kitchen","room":"Kitchen"}$`},
		{"core", get(".well-known", "core"), codes.Content, `^</temp>;rt="temperature";if="sensor";obs;ct=0,`},
		{"host and port", with(with(get("light"), wire.URIHost, "kitchen.example"), wire.URIPort, "\x16\x33"), codes.Content, `^off$`},
		{"accepted", with(get("info"), wire.Accept, "\x32"), codes.Content, `kitchen`},
		{"elective option", with(get("light"), 2048, "x"), codes.Content, `^off$`},
		{"observe", with(get("info"), wire.Observe, ""), codes.Content, `kitchen`},
		{"whole block", with(get("light"), wire.Block2, "\x02"), codes.Content, `^off$`},

		{"on", put("on", "light"), codes.Changed, `^$`},
		{"is on", get("light"), codes.Content, `^on$`},
		{"off", with(put("off", "light"), wire.ContentFormat, ""), codes.Changed, `^$`},
		{"is off", get("light"), codes.Content, `^off$`},
		{"if it is there", with(put("off", "light"), wire.IfMatch, ""), codes.Changed, `^$`},

		{"neither on nor off", put("ON", "light"), codes.BadRequest, `^neither on nor off$`},
		{"nothing", put("", "light"), codes.BadRequest, `.`},
		{"JSON", with(put("on", "light"), wire.ContentFormat, "\x32"), codes.UnsupportedMediaType, ``},
		{"if it is not there", with(put("on", "light"), wire.IfNoneMatch, ""), codes.PreconditionFailed, ``},
		{"if it is another", with(put("on", "light"), wire.IfMatch, "other"), codes.PreconditionFailed, ``},
		{"still off", get("light"), codes.Content, `^off$`},

		{"root", get(), codes.NotFound, ``},
		{"no such resource", get("nothing"), codes.NotFound, `.`},
		{"below a resource", get("temp", "now"), codes.NotFound, `.`},
		{"slash in a segment", get(".well-known/core"), codes.NotFound, `.`},
		{"read-only", put("20", "temp"), codes.MethodNotAllowed, ``},
		{"POST", wire.Message{Code: codes.POST, Options: get("light").Options}, codes.MethodNotAllowed, ``},
		{"unknown method", wire.Message{Code: 31, Options: get("light").Options}, codes.MethodNotAllowed, ``},
		{"not acceptable", with(get("temp"), wire.Accept, "\x32"), codes.NotAcceptable, ``},
		{"unknown critical option", with(get("temp"), 9, "x"), codes.BadOption, `.`},
		{"malformed critical option", with(get("temp"), wire.Accept, "\x00\x00\x32"), codes.BadOption, `.`},
		{"repeated critical option", with(with(get("temp"), wire.URIHost, "a"), wire.URIHost, "b"), codes.BadOption, `.`},
		{"block-wise body", with(put("on", "light"), wire.Block1, "\x08"), codes.BadOption, `.`},
		{"proxy request", with(get(), wire.ProxyURI, "coap://127.0.0.12/temp"), codes.ProxyingNotSupported, ``},
	} {
		t.Run(x.name, func(t *testing.T) {
			c.t = t
			answer := c.ask(to, x.request)
			require.Equal(t, wire.CodeString(x.code), wire.CodeString(answer.Code))
			require.Regexp(t, x.payload, string(answer.Payload))
		})
	}
}

func TestOptionsOfResponses(t *testing.T) {
	g := start(t, Options{Devices: 1})
	c := newClient(t)
	for path, want := range map[string]struct{ format, maxAge string }{
		"temp":  {"", "\x05"},
		"light": {"", "\x01"},
		"info":  {"\x32", "\x0e\x10"},
	} {
		answer := c.ask(g.Devices()[0].Addr, get(path))
		require.Equal(t, want.format, option(answer, wire.ContentFormat), path)
		require.Equal(t, want.maxAge, option(answer, wire.MaxAge), path)
		require.Len(t, option(answer, wire.ETag), 4, path)

		valid := c.ask(g.Devices()[0].Addr, with(with(get(path), wire.ETag, "other"), wire.ETag, option(answer, wire.ETag)))
		if path == "temp" && valid.Code == codes.Content {
			continue // it has just become warmer or cooler
		}
		require.Equal(t, wire.CodeString(codes.Valid), wire.CodeString(valid.Code), path)
		require.Empty(t, valid.Payload)
		require.Equal(t, option(answer, wire.ETag), option(valid, wire.ETag))
		require.Equal(t, want.maxAge, option(valid, wire.MaxAge))
	}
}

func TestNonConfirmable(t *testing.T) {
	g := start(t, Options{Devices: 1})
	to := g.Devices()[0].Addr
	c := newClient(t)

	request := get("light")
	request.Type = message.NonConfirmable
	c.send(to, request)
	answer, from := c.receive()
	require.Equal(t, to, from)
	require.Equal(t, message.NonConfirmable, answer.Type)
	require.Equal(t, "off", string(answer.Payload))

	missing := get("nothing")
	missing.Type = message.NonConfirmable
	c.send(to, missing)
	answer, _ = c.receive()
	require.Equal(t, codes.NotFound, answer.Code)

	// Rejected by silence (RFC 7252 §5.4.1): what comes is the answer to the
	// request behind it.
	c.send(to, with(request, 9, "x"))
	require.Equal(t, codes.Content, c.ask(to, get("light")).Code)
}

// GC-32
func TestNoResponse(t *testing.T) {
	g := start(t, Options{Devices: 1})
	to := g.Devices()[0].Addr
	c := newClient(t)
	for _, x := range []struct {
		name    string
		request wire.Message
		want    codes.Code
	}{
		{"no success", with(put("on", "light"), wire.NoResponse, "\x02"), codes.Empty},
		{"no error, and there is none", with(get("light"), wire.NoResponse, "\x18"), codes.Content},
		{"no error", with(get("nothing"), wire.NoResponse, "\x08"), codes.Empty},
		{"no success, and there is none", with(get("nothing"), wire.NoResponse, "\x02"), codes.NotFound},
	} {
		t.Run(x.name, func(t *testing.T) {
			c.t = t
			x.request.Type = message.Confirmable
			id := c.send(to, x.request)
			answer, _ := c.receive()
			require.Equal(t, id, answer.ID)
			require.Equal(t, message.Acknowledgement, answer.Type)
			require.Equal(t, x.want, answer.Code)
		})
	}
}

// GC-54 needs servers with bodies of several blocks.
func TestBlocks(t *testing.T) {
	g := start(t, Options{Devices: 1})
	to := g.Devices()[0].Addr
	c := newClient(t)
	want := string(g.devices[0].bigText())
	require.Len(t, want, bigSize)

	for szx := range uint8(7) {
		size := 16 << szx
		var body []byte
		var etag string
		for block := (wire.Block{More: true}); block.More; {
			next := wire.Block{Num: uint32(len(body) / size), SZX: szx}
			answer := c.ask(to, with(get("big"), wire.Block2, string(next.Append(nil))))
			require.Equal(t, codes.Content, answer.Code)
			var err error
			block, err = wire.ParseBlock([]byte(option(answer, wire.Block2)))
			require.NoError(t, err)
			require.Equal(t, next.Num, block.Num)
			require.Equal(t, szx, block.SZX)
			if len(body) == 0 {
				etag = option(answer, wire.ETag)
				require.Equal(t, "\x0b\xb8", option(answer, wire.Size2))
			}
			require.Equal(t, etag, option(answer, wire.ETag))
			if block.More {
				require.Len(t, answer.Payload, size)
			}
			body = append(body, answer.Payload...)
		}
		require.Equal(t, want, string(body))
	}

	unasked := c.ask(to, get("big"))
	require.Equal(t, "\x0e", option(unasked, wire.Block2), "number 0, more, 1024 bytes")
	require.Equal(t, want[:1024], string(unasked.Payload))

	for name, value := range map[string]string{"behind the end": "\x36", "far behind the end": "\xff\xff\xf6", "reserved size": "\x07"} {
		require.Equal(t, codes.BadRequest, c.ask(to, with(get("big"), wire.Block2, value)).Code, name)
	}
	for _, answer := range c.askGroup(g, get("big")) {
		require.Equal(t, "\x0e", option(answer, wire.Block2), "the first block goes to the group's client too")
	}
}
