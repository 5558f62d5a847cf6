package config

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// HTTP holds what concerns listeners with the schemes http and https.
type HTTP struct {
	// Redirects is how many redirections of an HTTP server are followed for one
	// request to it (HC-34).
	Redirects int `yaml:"redirects"`
	// HTTP3 says whether https listeners serve HTTP/3 on the same UDP port.
	HTTP3 bool `yaml:"http3"`
	// PlainCredentials takes tokens and passwords without TLS (HC-100).
	PlainCredentials bool `yaml:"plain_credentials"`
	// SessionLifetime is how long a browser that has sent a token or password can
	// go on with the cookie it got for it (HC-92).
	SessionLifetime time.Duration `yaml:"session_lifetime"`
	// Prefix is the path of the base URI (HC-3).
	Prefix string `yaml:"prefix"`
	// Templates are further URI templates relative to it (HC-7, HC-9).
	Templates []string `yaml:"templates"`
	// DefaultScheme stands in for a missing one in the default mapping (HC-6).
	DefaultScheme string `yaml:"default_scheme"`
	// ForwardProxy serves absolute-form request targets (HC-11).
	ForwardProxy bool `yaml:"forward_proxy"`
	CORS         CORS `yaml:"cors"`
	// HostNames are the names under which clients known by their network alone
	// may address the proxy (HC-91).
	HostNames []string `yaml:"host_names"`
	// LooseMediaTypes lets a media type pass as a more general one (HC-45).
	LooseMediaTypes bool `yaml:"loose_media_types"`
	// CoAPPayload lets application/coap-payload pass (HC-44).
	CoAPPayload bool `yaml:"coap_payload"`
	// Query offers the method QUERY for FETCH (HC-20).
	Query bool `yaml:"query"`
	// OSCORE lets requests protected end to end pass (HC-107).
	OSCORE bool `yaml:"oscore"`
	// SecureFromPlain lets plain HTTP requests reach coaps targets (HC-102).
	SecureFromPlain bool       `yaml:"secure_from_plain"`
	Limits          HTTPLimits `yaml:"limits"`
}

// CORS says what web pages of other origins may do (HC-90).
type CORS struct {
	// Origins lists them; "*" is every one. Empty: CORS is off.
	Origins []string `yaml:"origins"`
	// Credentials lets those pages use the browser's certificate, password or
	// cookie.
	Credentials bool `yaml:"credentials"`
	// MaxAge is how long a browser may remember a preflight.
	MaxAge time.Duration `yaml:"max_age"`
}

// HTTPLimits bounds what HTTP clients can make the proxy hold (HC-97).
type HTTPLimits struct {
	// Header, Body and Response are the longest request header, request body and
	// body of a single response.
	Header   Bytes `yaml:"header"`
	Body     Bytes `yaml:"body"`
	Response Bytes `yaml:"response"`
	// BatchBytes and BatchParts bound what is collected for one batch (HC-84).
	BatchBytes Bytes `yaml:"batch_bytes"`
	BatchParts int   `yaml:"batch_parts"`
	// QueueBytes and QueueParts bound what waits for a client that reads a stream
	// slowly (HC-88).
	QueueBytes Bytes `yaml:"queue_bytes"`
	QueueParts int   `yaml:"queue_parts"`
	// TotalBytes bounds what all requests together keep.
	TotalBytes Bytes `yaml:"total_bytes"`
	// Exchanges bounds the requests under way, ClientExchanges those of one
	// client.
	Exchanges       int `yaml:"exchanges"`
	ClientExchanges int `yaml:"client_exchanges"`
	// Connections bounds the open connections, PeerConnections those of one
	// address, Streams the requests at a time on one connection.
	Connections     int `yaml:"connections"`
	PeerConnections int `yaml:"peer_connections"`
	Streams         int `yaml:"streams"`
	// HeaderTimeout is the longest a handshake or a request header may take,
	// BodyTimeout a request body, SendTimeout each 32 KiB of a response,
	// IdleTimeout the wait for the next request.
	HeaderTimeout time.Duration `yaml:"header_timeout"`
	BodyTimeout   time.Duration `yaml:"body_timeout"`
	SendTimeout   time.Duration `yaml:"send_timeout"`
	IdleTimeout   time.Duration `yaml:"idle_timeout"`
}

func defaultHTTP() HTTP {
	return HTTP{
		HTTP3:           true,
		SessionLifetime: 12 * time.Hour, // HC-92
		Prefix:          "/hc/",         // HC-3
		CORS:            CORS{MaxAge: 10 * time.Minute},
		Limits: HTTPLimits{
			Header: 16 * KiB, Body: MiB, Response: MiB, // HC-97
			BatchBytes: 16 * MiB, BatchParts: 10000, // HC-84
			QueueBytes: MiB, QueueParts: 1024, // HC-88
			TotalBytes: 256 * MiB,
			Exchanges:  4096, ClientExchanges: 256,
			Connections: 4096, PeerConnections: 256, Streams: 100,
			HeaderTimeout: 10 * time.Second, BodyTimeout: 30 * time.Second, SendTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		},
	}
}

// http checks http.
func (v *validator) http() {
	h := &v.c.HTTP
	if !strings.HasPrefix(h.Prefix, "/") || !strings.HasSuffix(h.Prefix, "/") || strings.ContainsAny(h.Prefix, "?#% ") {
		v.add("http.prefix", show(h.Prefix)+" is not the path of a base", "write a path that begins and ends with a slash, e.g. /hc/")
	}
	if h.DefaultScheme != "" {
		oneOf(v, "http.default_scheme", h.DefaultScheme, "coap", "coaps", "coap+tcp", "coaps+tcp", "coap+ws", "coaps+ws")
	}
	for i, text := range h.Templates {
		if !templatePattern.MatchString(text) {
			v.add(fmt.Sprintf("http.templates[%d]", i), show(text)+" is not a template",
				`write e.g. "?s={+s}&hp={+hp}&p={+p}&q={+q}", with the variables tu, or s, hp, p, q and qq`) // HC-9
		}
	}
	between(v, "http.redirects", h.Redirects, 0, 10)
	between(v, "http.session_lifetime", h.SessionLifetime, time.Minute, 30*24*time.Hour)
	v.cors()
	unique(v, "http.host_names", h.HostNames)
	for i, name := range h.HostNames {
		if !isHostName(name) {
			v.add(fmt.Sprintf("http.host_names[%d]", i), show(name)+" is not a host name", "write e.g. gateway.example")
		}
	}
	v.httpLimits()
}

// templatePattern is literal text with variables, what httpbridge reads; it
// checks further how they are combined.
var templatePattern = regexp.MustCompile(`^[^{} ]*(?:\{\+(?:tu|s|hp|p|q|qq)\}[^{} ]*)+$`)

func (v *validator) cors() {
	c := &v.c.HTTP.CORS
	unique(v, "http.cors.origins", c.Origins)
	for i, origin := range c.Origins {
		key := fmt.Sprintf("http.cors.origins[%d]", i)
		u, err := url.Parse(origin)
		switch {
		case origin == "*" && c.Credentials:
			v.add(key, "* together with credentials", "name the origins") // HC-90
		case origin == "*":
		case err != nil || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != origin:
			v.add(key, show(origin)+" is not an origin", "write e.g. https://dashboard.example or http://localhost:3000")
		}
	}
	between(v, "http.cors.max_age", c.MaxAge, 0, 24*time.Hour)
}

func (v *validator) httpLimits() {
	l := &v.c.HTTP.Limits
	for _, size := range []struct {
		key       string
		value     Bytes
		low, high Bytes
	}{
		{"header", l.Header, KiB, MiB}, {"body", l.Body, 1, 64 * MiB}, {"response", l.Response, KiB, 64 * MiB},
		{"batch_bytes", l.BatchBytes, KiB, 4 * GiB}, {"queue_bytes", l.QueueBytes, KiB, GiB}, {"total_bytes", l.TotalBytes, MiB, 64 * GiB},
	} {
		between(v, "http.limits."+size.key, size.value, size.low, size.high)
	}
	for _, count := range []struct {
		key   string
		value int
	}{
		{"batch_parts", l.BatchParts}, {"queue_parts", l.QueueParts}, {"exchanges", l.Exchanges}, {"client_exchanges", l.ClientExchanges},
		{"connections", l.Connections}, {"peer_connections", l.PeerConnections}, {"streams", l.Streams},
	} {
		between(v, "http.limits."+count.key, count.value, 1, 1<<20)
	}
	for _, t := range []struct {
		key   string
		value time.Duration
	}{
		{"header_timeout", l.HeaderTimeout}, {"body_timeout", l.BodyTimeout}, {"send_timeout", l.SendTimeout}, {"idle_timeout", l.IdleTimeout},
	} {
		between(v, "http.limits."+t.key, t.value, time.Second, time.Hour)
	}
}
