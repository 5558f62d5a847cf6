package membership

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// DirectoryConfig says where a Directory looks. Path, Zone and Log may be empty.
type DirectoryConfig struct {
	// Group is the name of the group, for the log.
	Group string
	// Unicast carries out the lookups; it delivers whole bodies.
	Unicast exchange.Handler
	Engine  *exchange.Engine
	// Target is the resource directory.
	Target exchange.Target
	// Path and Query are the lookup resource and the filter (RFC 9176 §6.1,
	// §6.2), e.g. rd-lookup, ep and et=lamp. Endpoint lookup takes the members
	// from `base`, resource lookup from the targets of the links. Without a Path
	// the directory is asked where its endpoint lookup is (RFC 9176 §4.3).
	Path, Query []string
	// Zone is the interface of link-local addresses: registrations have none.
	Zone string
	// MaxMembers bounds the servers.
	MaxMembers int
	Stats      *DirectoryStats
	Log        *zap.Logger
}

// DirectoryStats counts what came of asking resource directories.
type DirectoryStats struct {
	Lookups       atomic.Uint64 `metric:"directory_lookups_total" help:"Questions to resource directories, those for notifications included."`
	Failed        atomic.Uint64 `metric:"directory_lookups_failed_total" help:"Questions to resource directories without a usable answer."`
	Notifications atomic.Uint64 `metric:"directory_notifications_total" help:"Lists of members that resource directories sent without being asked again."`
	Joined        atomic.Uint64 `metric:"directory_members_joined_total" help:"Members that appeared in resource directories."`
	Left          atomic.Uint64 `metric:"directory_members_left_total" help:"Members that vanished from resource directories."`
	Members       atomic.Int64  `metric:"directory_members" help:"Members that resource directories list."`
}

// Directory is a Source for one group whose members are registered in a resource
// directory. Between Start and Close it observes the lookup resource, and asks
// again before the answer's Max-Age is over. While there is no valid answer, or
// one that leaves an address open, the latest list is not complete.
type Directory struct {
	config   DirectoryConfig
	deadline exchange.Deadline

	mu      sync.Mutex
	started bool
	closed  bool
	current *lookup           // the question whose answers count
	running exchange.Canceler // of current; nil when it has ended or not begun
	path    []string          // of the lookup resource; nil: not found yet
	servers []netip.AddrPort
	version uint64
	whole   bool      // the list left nothing open
	expires time.Time // of the answer
	etag    []byte
	backoff time.Duration
	failure error // of the latest question
}

const (
	minRefresh = 5 * time.Second
	maxBackoff = 5 * time.Minute
	maxBody    = 1 << 20
	linkFormat = 40
)

// NewDirectory returns a Directory that has not asked yet. It begins with what
// before knew, a Directory with the same configuration or nil.
func NewDirectory(config DirectoryConfig, before *Directory) *Directory {
	d := &Directory{config: config, path: config.Path}
	d.deadline.Fire = exchange.FireFunc(func(time.Time) { d.ask() })
	if before != nil {
		before.mu.Lock()
		defer before.mu.Unlock()
		d.path, d.servers, d.version, d.whole, d.expires, d.etag = before.path, before.servers, before.version, before.whole, before.expires, before.etag
	}
	return d
}

// Start asks for the first time, on the engine's goroutine.
func (d *Directory) Start() {
	d.mu.Lock()
	d.started = true
	d.config.Stats.Members.Add(int64(len(d.servers)))
	d.mu.Unlock()
	d.config.Engine.Schedule(&d.deadline, time.Now())
}

// Close ends the refreshing. The caller flushes the engine.
func (d *Directory) Close() {
	d.mu.Lock()
	if d.closed || !d.started {
		d.closed = true
		d.mu.Unlock()
		return
	}
	d.closed = true
	d.config.Stats.Members.Add(-int64(len(d.servers)))
	running := d.supersede(nil)
	d.mu.Unlock()
	d.config.Engine.Unschedule(&d.deadline)
	if running != nil {
		running.Cancel()
	}
}

// supersede makes l the current question and returns what runs of the one
// before, to be cancelled without the lock. Called under mu.
func (d *Directory) supersede(l *lookup) exchange.Canceler {
	running := d.running
	d.current, d.running = l, nil
	return running
}

// Members implements Source.
func (d *Directory) Members(string, netip.AddrPort) ([]netip.AddrPort, uint64, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.servers, d.version, d.whole && time.Now().Before(d.expires)
}

// Status tells how long the list counts, 0 when it does not any more, and why the
// latest question had no usable answer, nil if it had.
func (d *Directory) Status() (valid time.Duration, failure error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return max(0, time.Until(d.expires)), d.failure
}

// ask asks the next question, in place of one under way.
func (d *Directory) ask() {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return
	}
	l := &lookup{directory: d, discovery: d.path == nil, err: errors.New("no response")}
	r := d.request(l)
	before := d.supersede(l)
	d.mu.Unlock()
	if before != nil {
		before.Cancel()
	}
	d.config.Stats.Lookups.Add(1)
	running := d.config.Unicast.Exchange(r, l)
	d.mu.Lock()
	current := d.current == l
	if current {
		d.running = running
	}
	d.mu.Unlock()
	if !current {
		running.Cancel()
	}
}

// request makes the request of a lookup. Called under mu.
func (d *Directory) request(l *lookup) *exchange.Request {
	r := &exchange.Request{ID: d.config.Engine.NextID(), Method: codes.GET, Confirmable: true, Target: d.config.Target, Arrival: time.Now(), BodyLimit: maxBody}
	path, query := d.path, d.config.Query
	if l.discovery {
		path, query = []string{".well-known", "core"}, []string{"rt=" + lookupType}
	} else {
		if d.etag != nil {
			r.Options = append(r.Options, message.Option{ID: wire.ETag, Value: d.etag})
		}
		r.Options = append(r.Options, message.Option{ID: wire.Observe})
	}
	for _, s := range path {
		r.Options = append(r.Options, message.Option{ID: wire.URIPath, Value: []byte(s)})
	}
	for _, s := range query {
		r.Options = append(r.Options, message.Option{ID: wire.URIQuery, Value: []byte(s)})
	}
	r.Options = append(r.Options, message.Option{ID: wire.Accept, Value: []byte{linkFormat}})
	return r
}

// lookup is the sink of one question.
type lookup struct {
	directory *Directory
	discovery bool // it asks for the lookup resource
	notified  bool // answers after the first are notifications
	err       error
	maxAge    time.Duration
}

// Respond implements exchange.Sink.
func (l *lookup) Respond(p *exchange.Response) exchange.Verdict {
	d := l.directory
	l.maxAge = 60 * time.Second
	if value, ok := wire.First(p.Options, wire.MaxAge); ok {
		seconds, _ := wire.Uint(value)
		l.maxAge = time.Duration(seconds) * time.Second
	}
	if l.discovery {
		l.err = d.find(l, p)
		return exchange.Stop
	}
	if l.notified {
		d.config.Stats.Notifications.Add(1)
	}
	l.err = d.take(l, p, l.maxAge)
	if l.err != nil || !wire.Has(p.Options, wire.Observe) {
		return exchange.Stop
	}
	l.notified = true
	d.plan(l, l.maxAge, nil)
	return exchange.Continue
}

// End implements exchange.Sink.
func (l *lookup) End(err error) {
	if err != nil {
		l.err = err
	}
	d := l.directory
	d.mu.Lock()
	if d.current == l {
		d.running = nil
	}
	d.mu.Unlock()
	if l.discovery && l.err == nil {
		d.config.Engine.Schedule(&d.deadline, time.Now())
		return
	}
	d.plan(l, l.maxAge, l.err)
}

// plan arranges the next question: well before the answer expires, or after a
// failure with growing distance.
func (d *Directory) plan(l *lookup, maxAge time.Duration, err error) {
	d.mu.Lock()
	if d.current != l {
		d.mu.Unlock()
		return
	}
	d.failure = err
	wait := max(maxAge*4/5, minRefresh)
	if err != nil {
		d.backoff = min(max(2*d.backoff, minRefresh), maxBackoff)
		wait = d.backoff + rand.N(d.backoff/4) //nolint:gosec // spreads load, hides nothing
	} else {
		d.backoff = 0
	}
	d.mu.Unlock()
	if err != nil {
		d.config.Stats.Failed.Add(1)
		if d.config.Log != nil {
			d.config.Log.Warn("the resource directory did not tell the members", zap.String("group", d.config.Group), zap.Stringer("directory", d.config.Target.Addr),
				zap.Duration("retry", wait), zap.Error(err))
		}
	}
	d.config.Engine.Schedule(&d.deadline, time.Now().Add(wait))
}

// take enters an answer.
func (d *Directory) take(l *lookup, p *exchange.Response, maxAge time.Duration) error {
	expires := time.Now().Add(maxAge)
	tag, _ := wire.First(p.Options, wire.ETag)
	if p.Code == codes.Valid {
		return d.confirm(l, tag, expires)
	}
	list, err := document(p)
	if err != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		if p.Code == codes.NotFound && d.current == l {
			d.path = d.config.Path // it may have moved
		}
		return err
	}
	servers, whole, err := d.members(list)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current != l {
		return nil
	}
	if d.version == 0 || !slices.Equal(d.servers, servers) {
		d.change(servers)
	}
	d.whole, d.expires, d.etag = whole, expires, nil
	if len(tag) >= 1 && len(tag) <= 8 {
		d.etag = append([]byte(nil), tag...)
	}
	return nil
}

// confirm enters a 2.03.
func (d *Directory) confirm(l *lookup, tag []byte, expires time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current != l {
		return nil
	}
	if d.etag == nil || !bytes.Equal(tag, d.etag) {
		d.etag = nil // the next question asks for the list
		return errors.New("2.03 for an ETag that was not sent")
	}
	d.expires = expires
	return nil
}

// change replaces the servers. Called under mu.
func (d *Directory) change(servers []netip.AddrPort) {
	joined, left := difference(servers, d.servers), difference(d.servers, servers)
	d.servers = servers
	d.version++
	d.config.Stats.Joined.Add(uint64(len(joined)))
	d.config.Stats.Left.Add(uint64(len(left)))
	d.config.Stats.Members.Add(int64(len(joined) - len(left)))
	if d.config.Log != nil {
		d.config.Log.Info("members changed", zap.String("group", d.config.Group), zap.Int("members", len(servers)),
			zap.Stringers("joined", joined), zap.Stringers("left", left))
	}
}

// difference returns what is in a and not in b, both sorted.
func difference(a, b []netip.AddrPort) (only []netip.AddrPort) {
	for _, s := range a {
		if _, found := slices.BinarySearchFunc(b, s, netip.AddrPort.Compare); !found {
			only = append(only, s)
		}
	}
	return only
}
