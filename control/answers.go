package control

import "time"

// What the proxy answers, for both ends of the socket.

// Status is the answer to GET /v1/status: what an operator asks first.
type Status struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Uptime  float64   `json:"uptime_seconds"`
	Ready   bool      `json:"ready"`
	// Config is the file, Read when it was read last.
	Config    string           `json:"config"`
	Read      time.Time        `json:"config_read"`
	Listeners []string         `json:"listeners"`
	Clients   []ClientStatus   `json:"clients"`
	Groups    []GroupStatus    `json:"groups"`
	NextHops  []HopStatus      `json:"next_hops,omitempty"`
	Exchanges ExchangeStatus   `json:"exchanges"`
	Cache     *CacheStatus     `json:"cache"` // null: not enabled
	Refusals  map[string]int64 `json:"refusals"`
	// Warnings are what should be looked at.
	Warnings []string `json:"warnings"`
}

// ClientStatus is what a client has done.
type ClientStatus struct {
	Name     string     `json:"name"`
	Requests uint64     `json:"requests"` // since the configuration was read
	Last     *time.Time `json:"last"`     // null: never
	Running  int        `json:"group_exchanges"`
}

// GroupStatus is a group of the configuration.
type GroupStatus struct {
	Name       string   `json:"name"`
	URI        string   `json:"uri"`
	Interfaces []string `json:"interfaces"`
	// Heard is how many servers answered in the last hour.
	Heard int `json:"heard"`
}

// HopStatus is a next proxy.
type HopStatus struct {
	Name string `json:"name"`
	URI  string `json:"uri"`
	// Up is how many of its addresses can be reached.
	Up        int64 `json:"up"`
	Requests  int64 `json:"requests"`
	Responses int64 `json:"responses"`
	// RoundTrip is measured or at most, 0 if it is not known.
	RoundTrip float64 `json:"round_trip_seconds"`
}

// ExchangeStatus counts exchanges.
type ExchangeStatus struct {
	Running  int              `json:"running"`
	Queued   int              `json:"queued"`
	Outcomes map[string]int64 `json:"outcomes"`
}

// CacheStatus is the cache in short.
type CacheStatus struct {
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"`
	Hits    int64 `json:"hits"`
	Misses  int64 `json:"misses"`
}

// Reloaded is the answer to POST /v1/reload: what the reload did.
type Reloaded struct {
	// Changed lists what is different now, Restart what is different in the file
	// and takes effect when the proxy is started again.
	Changed []string `json:"changed"`
	Restart []string `json:"restart,omitempty"`
}

// CacheSummary is the answer to GET /v1/cache.
type CacheSummary struct {
	Enabled    bool `json:"enabled"`
	MaxEntries int  `json:"max_entries,omitempty"`
	MaxBytes   int  `json:"max_bytes,omitempty"`
	// Counters has what the metrics have under cache_, without that.
	Counters map[string]int64 `json:"counters,omitempty"`
}

// CacheEntry is one entry in the answer to GET /v1/cache/entries.
type CacheEntry struct {
	URI           string   `json:"uri"`
	Server        string   `json:"server"`
	Method        string   `json:"method"`
	Code          string   `json:"code"`
	ETag          string   `json:"etag,omitempty"`
	ContentFormat *uint32  `json:"content_format,omitempty"`
	Payload       int      `json:"payload_bytes"`
	Bytes         int      `json:"bytes"`
	Age           float64  `json:"age_seconds"`
	Fresh         float64  `json:"fresh_seconds"`
	Private       bool     `json:"private,omitempty"`
	Client        string   `json:"client,omitempty"`
	Groups        []string `json:"groups,omitempty"`
}

// CacheEntries is the answer to GET /v1/cache/entries.
type CacheEntries struct {
	Total   int          `json:"total"`
	Entries []CacheEntry `json:"entries"`
	// Of --group.
	Group *GroupMembers `json:"group,omitempty"`
}

// GroupMembers is what is known of who is in a group.
type GroupMembers struct {
	Name string `json:"name"`
	URI  string `json:"uri"`
	// Source is static, learned, directory or unknown.
	Source string `json:"source"`
	// Complete: these are all current members, as far as the source can tell.
	Complete bool     `json:"complete"`
	Members  []string `json:"members"`
	// Directory is where they are registered, if source is directory.
	Directory *DirectoryStatus `json:"directory,omitempty"`
}

// DirectoryStatus tells how the resource directory of a group does.
type DirectoryStatus struct {
	URI   string  `json:"uri"`
	Valid float64 `json:"valid_seconds"` // how long the list still counts
	Error string  `json:"error,omitempty"`
}

// CacheFlushed is the answer to POST /v1/cache/flush.
type CacheFlushed struct {
	Flushed int `json:"flushed"`
}
