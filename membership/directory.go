package membership

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// DirectoryConfig says where a Directory looks.
type DirectoryConfig struct {
	// Unicast carries out the lookups; it delivers whole bodies.
	Unicast exchange.Handler
	Engine  *exchange.Engine
	// Target is the resource directory.
	Target exchange.Target
	// Path and Query are the lookup resource and the filter (RFC 9176 §6.1,
	// §6.2), e.g. rd-lookup, ep and et=lamp. Endpoint lookup takes the members
	// from `base`, resource lookup from the targets of the links.
	Path, Query []string
	// Zone is the interface of link-local addresses: registrations have none.
	Zone string
	// MaxMembers bounds the servers.
	MaxMembers int
	Log        *zap.Logger
}

// Directory is a Source for one group whose members are registered in a resource
// directory. Between Start and Close it asks again before the answer's Max-Age
// is over. While there is no valid answer, or one that leaves an address open,
// the latest list is not complete.
type Directory struct {
	config   DirectoryConfig
	deadline exchange.Deadline

	mu      sync.Mutex
	closed  bool
	running exchange.Canceler
	servers []netip.AddrPort
	version uint64
	whole   bool      // the list left nothing open
	expires time.Time // of the answer
	etag    []byte
	backoff time.Duration
}

const (
	minRefresh = 5 * time.Second
	maxBackoff = 5 * time.Minute
	maxBody    = 1 << 20
	linkFormat = 40
)

// NewDirectory returns a Directory that has not asked yet.
func NewDirectory(config DirectoryConfig) *Directory {
	d := &Directory{config: config}
	d.deadline.Fire = func(time.Time) { d.ask() }
	return d
}

// Start asks for the first time, on the engine's goroutine.
func (d *Directory) Start() { d.config.Engine.Schedule(&d.deadline, time.Now()) }

// Close ends the refreshing.
func (d *Directory) Close() {
	d.mu.Lock()
	d.closed = true
	running := d.running
	d.mu.Unlock()
	d.config.Engine.Unschedule(&d.deadline)
	if running != nil {
		running.Cancel()
	}
}

// Members implements Source.
func (d *Directory) Members(string, netip.AddrPort) ([]netip.AddrPort, uint64, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.servers, d.version, d.whole && time.Now().Before(d.expires)
}

func (d *Directory) ask() {
	now := time.Now()
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return
	}
	tag := d.etag
	d.mu.Unlock()
	r := &exchange.Request{ID: d.config.Engine.NextID(), Method: codes.GET, Confirmable: true, Target: d.config.Target, Arrival: now, BodyLimit: maxBody}
	if tag != nil {
		r.Options = append(r.Options, message.Option{ID: wire.ETag, Value: tag})
	}
	for _, s := range d.config.Path {
		r.Options = append(r.Options, message.Option{ID: wire.URIPath, Value: []byte(s)})
	}
	for _, s := range d.config.Query {
		r.Options = append(r.Options, message.Option{ID: wire.URIQuery, Value: []byte(s)})
	}
	r.Options = append(r.Options, message.Option{ID: wire.Accept, Value: []byte{linkFormat}})
	l := &lookup{directory: d, err: errors.New("no response")}
	running := d.config.Unicast.Exchange(r, l)
	d.mu.Lock()
	d.running = running
	closed := d.closed
	d.mu.Unlock()
	if closed {
		running.Cancel()
	}
}

// lookup is the sink of one question.
type lookup struct {
	directory *Directory
	err       error
	maxAge    time.Duration
}

// Respond implements exchange.Sink.
func (l *lookup) Respond(p *exchange.Response) exchange.Verdict {
	l.maxAge = 60 * time.Second
	if value, ok := wire.First(p.Options, wire.MaxAge); ok {
		seconds, _ := wire.Uint(value)
		l.maxAge = time.Duration(seconds) * time.Second
	}
	l.err = l.directory.take(p, l.maxAge)
	return exchange.Stop
}

// End implements exchange.Sink.
func (l *lookup) End(err error) {
	if err != nil {
		l.err = err
	}
	l.directory.asked(l.maxAge, l.err)
}

// asked plans the next question: well before the answer expires, or after a
// failure with growing distance.
func (d *Directory) asked(maxAge time.Duration, err error) {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return
	}
	wait := max(maxAge*4/5, minRefresh)
	if err != nil {
		d.backoff = min(max(2*d.backoff, minRefresh), maxBackoff)
		wait = d.backoff + rand.N(d.backoff/4) //nolint:gosec // spreads load, hides nothing
	} else {
		d.backoff = 0
	}
	d.mu.Unlock()
	if err != nil && d.config.Log != nil {
		d.config.Log.Warn("the resource directory did not tell the members", zap.Stringer("directory", d.config.Target.Addr), zap.Duration("retry", wait), zap.Error(err))
	}
	d.config.Engine.Schedule(&d.deadline, time.Now().Add(wait))
}

// take enters an answer.
func (d *Directory) take(p *exchange.Response, maxAge time.Duration) error {
	expires := time.Now().Add(maxAge)
	tag, _ := wire.First(p.Options, wire.ETag)
	switch {
	case p.Code == codes.Valid:
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.etag == nil || !bytes.Equal(tag, d.etag) {
			d.etag = nil // the next question asks for the list
			return errors.New("2.03 for an ETag that was not sent")
		}
		d.expires = expires
		return nil
	case p.Code != codes.Content:
		return fmt.Errorf("response %s", wire.CodeString(p.Code))
	case wire.Has(p.Options, wire.Block2):
		return errors.New("only a part of the list")
	}
	if value, ok := wire.First(p.Options, wire.ContentFormat); ok {
		if format, _ := wire.Uint(value); format != linkFormat {
			return fmt.Errorf("content-format %d", format)
		}
	}
	servers, whole, err := d.members(string(p.Payload))
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.version == 0 || !slices.Equal(d.servers, servers) {
		d.servers = servers
		d.version++
	}
	d.whole, d.expires, d.etag = whole, expires, nil
	if len(tag) >= 1 && len(tag) <= 8 {
		d.etag = append([]byte(nil), tag...)
	}
	return nil
}

// members reads a list. whole is false if it has members whose address it does
// not tell: such as are registered by name or with another scheme than coap,
// from which responses to group requests come.
func (d *Directory) members(document string) (servers []netip.AddrPort, whole bool, err error) {
	links, err := parseLinks(document, 16*d.config.MaxMembers)
	if err != nil {
		return nil, false, err
	}
	whole = true
	for i := range links {
		base, ok := links[i].param("base")
		if !ok {
			base = links[i].target
		}
		uri, err := wire.ParseURI(base)
		if err != nil || !strings.EqualFold(uri.Scheme, "coap") || !uri.Addr.IsValid() || uri.Addr.IsMulticast() {
			whole = false
			continue
		}
		addr := uri.Addr
		if addr.Is6() && addr.IsLinkLocalUnicast() {
			addr = addr.WithZone(d.config.Zone)
		}
		servers = append(servers, netip.AddrPortFrom(addr, uri.Port))
	}
	servers = unique(servers)
	if len(servers) > d.config.MaxMembers {
		servers, whole = servers[:d.config.MaxMembers], false
	}
	return servers, whole, nil
}
