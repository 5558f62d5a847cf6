package httpbridge

import (
	"time"

	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Config says what a Front is made of. Next, Clients, Numbers, Engine, Stats and
// Log must be set; zero values elsewhere are the safe defaults.
type Config struct {
	// Next gets requests with a Proxy-Uri option; the layer that finds targets.
	Next    exchange.Handler
	Clients Authenticator
	Numbers *wire.Numbers
	Engine  *exchange.Engine
	Mapping Mapping
	Media   Media
	Origins Origins
	Limits  Limits
	// Identifier names this proxy in the Via fields of responses (HC-106); no spaces.
	// Empty: no Via.
	Identifier string
	// Pseudonym is the name under which this proxy, and no other, makes requests over
	// HTTP: what comes with it in Via has gone in a circle and is refused. Empty: no
	// such requests are made.
	Pseudonym string
	// Query offers the QUERY method for FETCH (HC-20).
	Query bool
	// OSCORE lets requests through that are protected end to end with OSCORE
	// (HC-107).
	OSCORE bool
	// SecureFromPlain lets plain HTTP requests reach coaps targets (HC-102).
	SecureFromPlain bool
	// ZoneInReplyFrom writes the zone of link-local servers into Reply-From
	// (GP-57).
	ZoneInReplyFrom bool
	Stats           *Stats
	Log             *zap.Logger
}

// Limits bound what one request and all of them may hold (HC-97). Zero values
// are replaced by the defaults.
type Limits struct {
	// Exchanges is the number of requests under way, 4096; more get 503.
	Exchanges int
	// ClientExchanges is that number per client entry, or per address while
	// there is none, 256; more get 429.
	ClientExchanges int
	// RequestBody and ResponseBody are the longest bodies of one message in
	// bytes, 1 MiB.
	RequestBody, ResponseBody int
	// BatchBytes and BatchParts bound what is collected for one batch, 16 MiB
	// and 10000 (HC-84); what comes after is dropped and counted.
	BatchBytes, BatchParts int
	// QueueBytes and QueueParts bound what waits for a client that reads a
	// stream slowly, 1 MiB and 1024 (HC-88); a full queue ends the exchange.
	QueueBytes, QueueParts int
	// TotalBytes bounds the bodies and responses that all requests together
	// keep, 256 MiB. Beyond it bodies get 503, batches lose responses and streams
	// end, as at their own bounds.
	TotalBytes int
	// ReceiveTimeout is how long a request body may take as a whole, 30 s;
	// SendTimeout how long the client may take for each 32 KiB of a response,
	// 30 s.
	ReceiveTimeout, SendTimeout time.Duration
}

func (l Limits) withDefaults() Limits {
	for _, d := range []struct {
		value    *int
		standard int
	}{
		{&l.Exchanges, 4096}, {&l.ClientExchanges, 256}, {&l.RequestBody, 1 << 20}, {&l.ResponseBody, 1 << 20},
		{&l.BatchBytes, 16 << 20}, {&l.BatchParts, 10000}, {&l.QueueBytes, 1 << 20}, {&l.QueueParts, 1024}, {&l.TotalBytes, 256 << 20},
	} {
		if *d.value <= 0 {
			*d.value = d.standard
		}
	}
	for _, t := range []*time.Duration{&l.ReceiveTimeout, &l.SendTimeout} {
		if *t <= 0 {
			*t = 30 * time.Second
		}
	}
	return l
}
