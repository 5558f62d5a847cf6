package httpbridge

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Origins says what web pages may do with the proxy (HC-90, HC-91).
type Origins struct {
	// Allow lists the origins whose pages may read responses, for example
	// "https://dashboard.example"; "*" is every origin. None: CORS is off.
	Allow []string
	// Credentials lets those pages use the browser's certificate or stored
	// password; not together with "*".
	Credentials bool
	// MaxAge is how long a browser may remember a preflight, 10 minutes if 0.
	MaxAge time.Duration
	// Hosts are the names, without port, under which clients known by their
	// network alone may address the proxy, beside localhost and address
	// literals. Any other name may be a stranger's page that has resolved its
	// own name to this proxy.
	Hosts []string
}

const (
	allowedMethods = "GET, HEAD, POST, PUT, PATCH, DELETE"
	allowedFields  = "Authorization, Content-Type, Accept, If-Match, If-None-Match, Multicast-Timeout, Group-ETag, OSCORE, Prefer"
	exposedFields  = "ETag, Location, Content-Location, Multicast-Timeout, Reply-From, Group-ETag, OSCORE, Retry-After, Preference-Applied, Omitted-Responses"
)

func (o *Origins) check() error {
	for _, origin := range o.Allow {
		if origin == "*" {
			if o.Credentials {
				return errors.New(`origin "*" together with credentials`) // HC-90
			}
			continue
		}
		u, err := url.Parse(origin)
		if err != nil || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != origin {
			return fmt.Errorf("origin %q: must be scheme://host or scheme://host:port", origin)
		}
	}
	return nil
}

func (o *Origins) allows(origin string) bool {
	return slices.Contains(o.Allow, origin) || slices.Contains(o.Allow, "*")
}

// share sets the fields that let a page of an allowed origin read the response
// (HC-90).
func (o *Origins) share(h http.Header, r *http.Request) {
	if len(o.Allow) == 0 {
		return
	}
	h.Add("Vary", "Origin") // HC-58
	origin := first(r.Header, "Origin")
	if origin == "" || !o.allows(origin) {
		return
	}
	h.Set("Access-Control-Expose-Headers", exposedFields)
	if !o.Credentials && slices.Contains(o.Allow, "*") {
		h.Set("Access-Control-Allow-Origin", "*")
		return
	}
	h.Set("Access-Control-Allow-Origin", origin)
	if o.Credentials {
		h.Set("Access-Control-Allow-Credentials", "true")
	}
}

// preflight answers an OPTIONS request that a browser sends before the request
// of a page; share has been called. It reports false if it is none, or not one
// of an allowed origin.
func (o *Origins) preflight(h http.Header, r *http.Request, query bool) bool {
	if r.Method != http.MethodOptions || first(r.Header, "Access-Control-Request-Method") == "" ||
		!o.allows(first(r.Header, "Origin")) {
		return false
	}
	methods := allowedMethods
	if query {
		methods += ", " + methodQuery
	}
	age := o.MaxAge
	if age == 0 {
		age = 10 * time.Minute
	}
	h.Del("Access-Control-Expose-Headers")
	h.Add("Vary", "Access-Control-Request-Method, Access-Control-Request-Headers")
	h.Set("Access-Control-Allow-Methods", methods)
	h.Set("Access-Control-Allow-Headers", allowedFields)
	h.Set("Access-Control-Max-Age", strconv.Itoa(int(age/time.Second)))
	return true
}

// crossSite refuses what the page of a foreign site makes a browser send
// (HC-91): requests that change something, unless they carry credentials that no
// page can make up, and requests under a foreign name of this proxy.
func (o *Origins) crossSite(r *http.Request, proven ProvenBy, forward bool) *problem {
	if proven == ByNetwork && !forward && !o.KnownHost(r.Host) {
		return refuse(http.StatusMisdirectedRequest, "this proxy does not answer under the name "+strconv.Quote(hostOnly(r.Host)),
			"use its address, or add the name to the proxy's configuration")
	}
	if proven == ByCredentials && strings.HasPrefix(strings.ToLower(first(r.Header, "Authorization")), "bearer ") ||
		isSafe(r.Method) {
		return nil
	}
	origin, site := first(r.Header, "Origin"), first(r.Header, "Sec-Fetch-Site")
	if origin != "" && o.allows(origin) {
		return nil
	}
	foreign := site != "" && site != "same-origin" && site != "none"
	if site == "" && origin != "" {
		u, err := url.Parse(origin)
		foreign = err != nil || !strings.EqualFold(u.Host, r.Host)
	}
	if foreign {
		return refuse(http.StatusForbidden, "a page of another site may not do this", "allow its origin in the proxy's configuration")
	}
	return nil
}

// KnownHost reports whether a Host field names the proxy.
func (o *Origins) KnownHost(host string) bool {
	name := strings.ToLower(strings.TrimSuffix(hostOnly(host), "."))
	if name == "localhost" || strings.HasSuffix(name, ".localhost") || name == "" {
		return true
	}
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return true
	}
	return slices.ContainsFunc(o.Hosts, func(known string) bool { return strings.EqualFold(known, name) })
}

// isSafe reports whether a method only reads (RFC 9110 §9.2.1). A page can make
// a browser send QUERY only after a preflight, like PUT.
func isSafe(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}
