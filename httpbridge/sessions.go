package httpbridge

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// Sessions are the cookies with which browsers go on after they have sent a
// token or a password once: an EventSource can set no field (HC-92). Only hashes
// of them are kept. Safe for concurrent use.
type Sessions struct {
	lifetime time.Duration
	// open holds what was opened last; it locks itself.
	open *lru.Cache[[sha256.Size]byte, session]
	mu   sync.Mutex // for counting
	of   map[string]int
}

type session struct {
	name  string // of the credentials
	until time.Time
}

// maxSessions bounds the open sessions, maxOwnSessions those of one client; the
// least recently used goes first.
const (
	maxSessions    = 4096
	maxOwnSessions = 256
)

// NewSessions returns an empty set of sessions, each of which lasts so long.
func NewSessions(lifetime time.Duration) *Sessions {
	s := &Sessions{lifetime: lifetime, of: make(map[string]int)}
	s.open, _ = lru.NewWithEvict(maxSessions, func(_ [sha256.Size]byte, gone session) { // fails for sizes below 1 only
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.of[gone.name]--; s.of[gone.name] == 0 {
			delete(s.of, gone.name)
		}
	})
	return s
}

// begin opens a session for whom the name stands for. ok is false when the client
// has too many.
func (s *Sessions) begin(name string, now time.Time) (cookie string, ok bool) {
	s.mu.Lock()
	if s.of[name] >= maxOwnSessions {
		s.mu.Unlock()
		s.sweep(now)
		s.mu.Lock()
		if s.of[name] >= maxOwnSessions {
			s.mu.Unlock()
			return "", false
		}
	}
	s.of[name]++
	s.mu.Unlock()
	var secret [24]byte
	_, _ = rand.Read(secret[:]) // never fails
	cookie = base64.RawURLEncoding.EncodeToString(secret[:])
	s.open.Add(sha256.Sum256([]byte(cookie)), session{name, now.Add(s.lifetime)})
	return cookie, true
}

// sweep closes the sessions whose time is over.
func (s *Sessions) sweep(now time.Time) {
	for _, id := range s.open.Keys() {
		if kept, ok := s.open.Peek(id); ok && !now.Before(kept.until) {
			s.open.Remove(id)
		}
	}
}

// find returns whom a cookie stands for.
func (s *Sessions) find(cookie string, now time.Time) (name string, ok bool) {
	id := sha256.Sum256([]byte(cookie))
	kept, ok := s.open.Get(id)
	if ok && !now.Before(kept.until) {
		s.open.Remove(id)
		return "", false
	}
	return kept.name, ok
}

func (s *Sessions) end(cookie string) { s.open.Remove(sha256.Sum256([]byte(cookie))) }

const (
	sessionPath = "/session"
	// cookieName has the prefix by which browsers see to it that the cookie came
	// over TLS, from this very host.
	cookieName = "__Host-coapproxy"
	// plainCookieName is for connections without TLS, where they are allowed to
	// carry credentials.
	plainCookieName = "coapproxy"
)

func cookieNameFor(r *http.Request) string {
	if r.TLS == nil {
		return plainCookieName
	}
	return cookieName
}

// cookieOf is the session that a request belongs to, "" for none.
func cookieOf(r *http.Request) string {
	c, err := r.Cookie(cookieNameFor(r))
	if err != nil {
		return ""
	}
	return c.Value
}

// session opens and closes sessions: POST with credentials, DELETE with the
// cookie.
func (x *call) session() *problem {
	h := x.w.Header()
	h["Cache-Control"] = []string{"no-store"}
	cookie := http.Cookie{Name: cookieNameFor(x.r), Path: "/", Secure: x.r.TLS != nil, HttpOnly: true, SameSite: http.SameSiteStrictMode} //nolint:gosec // without TLS only where the operator has tokens travel like that, too
	switch x.r.Method {
	case http.MethodPost:
		if x.proven != ByCredentials {
			return refuse(http.StatusForbidden, "a session begins with a token or a password", "send credentials in Authorization")
		}
		value, lifetime, ok := x.front.Clients.Begin(x.credentials)
		if !ok {
			return refuse(http.StatusTooManyRequests, "too many sessions of this client are open", "").retryAfter(time.Minute)
		}
		cookie.Value, cookie.MaxAge = value, int(lifetime/time.Second)
	case http.MethodDelete:
		x.front.Clients.End(cookieOf(x.r))
		cookie.MaxAge = -1
	default:
		return refuse(http.StatusMethodNotAllowed, "a session is begun with POST and ended with DELETE", "").with("Allow", "POST, DELETE")
	}
	h["Set-Cookie"] = []string{cookie.String()}
	x.w.WriteHeader(http.StatusNoContent)
	return nil
}
