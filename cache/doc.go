// Package cache answers requests from stored responses: of single servers and
// of whole groups (RFC 7252 §5.6, draft-ietf-core-groupcomm-proxy-07 §7).
//
// Cache is an exchange.Handler in front of the one that chooses a leg. It keeps
// one entry per server and request, whether the response came by unicast or
// from a group (GP-70), answers from fresh entries on the goroutine that brought
// the request, validates stale ones by their ETag, and stores what passes.
//
// It is also the one place where an upstream exchange is shared by several
// clients: identical requests under way to one server (FP-49), a group exchange
// that others join (GC-82), and an observation (FP-60, GP-68) are the same
// thing, type shared, with more than one subscriber.
//
// Who may use an entry is decided before a request gets here (GP-87); entries of
// servers reached over a secured scheme are private to one client (FP-48).
package cache
