package cache

import (
	"sync/atomic"
	"time"
)

// Stats counts what became of requests and entries.
type Stats struct {
	Hits        atomic.Uint64           `metric:"hits_total" help:"Requests to one server answered from a fresh entry."`
	GroupHits   atomic.Uint64           `metric:"group_hits_total" help:"Group requests answered from a complete set of fresh entries."`
	GroupValid  atomic.Uint64           `metric:"group_valid_total" help:"Group requests answered by one 2.03 because the Group-ETag matched."`
	Served      atomic.Uint64           `metric:"group_responses_served_total" help:"Responses to group requests that came from the cache."`
	Deferred    atomic.Uint64           `metric:"group_responses_deferred_total" help:"Stored responses held back until shortly before the timeout."`
	Overtaken   atomic.Uint64           `metric:"group_responses_overtaken_total" help:"Held back responses not sent because the server answered itself."`
	Misses      atomic.Uint64           `metric:"misses_total" help:"Safe requests that had to go to the server or the group."`
	Stale       atomic.Uint64           `metric:"stale_total" help:"Safe requests to one server that found a stale entry with an ETag and asked whether it still holds."`
	Validated   atomic.Uint64           `metric:"validated_total" help:"Entries made fresh again by a 2.03."`
	Unmatched   atomic.Uint64           `metric:"valid_unmatched_total" help:"2.03 responses whose ETag fits no entry of that server."`
	Coalesced   atomic.Uint64           `metric:"coalesced_total" help:"Requests that joined an exchange under way."`
	Stored      atomic.Uint64           `metric:"stored_total" help:"Responses stored."`
	NotStored   atomic.Uint64           `metric:"not_stored_total" help:"Responses to safe requests that could not be stored."`
	TooLarge    atomic.Uint64           `metric:"too_large_total" help:"Responses not stored because the body is longer than the limit."`
	BadETag     atomic.Uint64           `metric:"invalid_etag_total" help:"Responses stored without a validator because their ETag is not one: repeated, empty or longer than 8 bytes."`
	SharedETag  atomic.Uint64           `metric:"shared_etag_total" help:"ETags that two servers of a group used and that validate there no more."`
	Capped      atomic.Uint64           `metric:"max_age_capped_total" help:"Responses whose Max-Age was beyond the longest time a response counts as fresh."`
	Evicted     atomic.Uint64           `metric:"evicted_total" help:"Entries dropped to keep a bound."`
	Invalidated atomic.Uint64           `metric:"invalidated_total" help:"Entries made stale by an unsafe request."`
	Dropped     atomic.Uint64           `metric:"responses_dropped_total" help:"Responses dropped because a client's exchange had too many waiting."`
	Entries     atomic.Int64            `metric:"entries" help:"Entries stored."`
	Bytes       atomic.Int64            `metric:"bytes" help:"Memory the entries are counted with."`
	Bypassed    [Bypasses]atomic.Uint64 `metric:"bypass_total" help:"Requests the cache let pass." label:"reason"`
}

func (s *Stats) noteStored(v *storability) {
	if v.badETag {
		s.BadETag.Add(1)
	}
	if v.capped {
		s.Capped.Add(1)
	}
}

// Ages counts the responses served from the cache by their age.
type Ages struct {
	Served [len(ageNames)]atomic.Uint64 `metric:"served_age_total" help:"Responses served from the cache, by age." label:"age"`
}

var ageLimits = [...]time.Duration{time.Second, 10 * time.Second, time.Minute, 10 * time.Minute, time.Hour}

var ageNames = [...]string{"1s", "10s", "1m", "10m", "1h", "more"}

// AgeName is the label of an element of Ages.Served: its upper limit.
func AgeName(i int) string {
	if i < len(ageNames) {
		return ageNames[i]
	}
	return "more"
}

func (a *Ages) note(age time.Duration) {
	i := 0
	for i < len(ageLimits) && age >= ageLimits[i] {
		i++
	}
	a.Served[i].Add(1)
}
