package proxy

import (
	"bytes"
	"hash/maphash"
	"sync/atomic"

	"coapproxy/wire"
)

// uriMemo remembers how target URIs are taken apart, but for their queries: clients
// ask for the same ones again and again. A URI is remembered when it comes a second time before another
// one with its place, so that those that come once cost a hash and nothing more.
// Safe for concurrent use.
type uriMemo struct {
	seed   maphash.Seed
	places [memoPlaces]struct {
		uri  atomic.Pointer[memoURI]
		seen atomic.Uint64 // hash of the last one that was not found
	}
}

// memoURI is never changed.
type memoURI struct {
	text string
	uri  wire.URI
}

const (
	memoPlaces = 512
	memoLength = 256 // longest URI remembered, in bytes
)

func newURIMemo() *uriMemo { return &uriMemo{seed: maphash.MakeSeed()} }

// parse is wire.ParseURI. What it returns is shared and not to be changed.
func (m *uriMemo) parse(text []byte) (wire.URI, error) {
	text, query, hasQuery := bytes.Cut(text, []byte{'?'})
	uri, err := m.withoutQuery(text)
	if err == nil && hasQuery {
		err = uri.SetQuery(string(query))
	}
	return uri, err
}

func (m *uriMemo) withoutQuery(text []byte) (wire.URI, error) {
	if len(text) > memoLength {
		return wire.ParseURI(string(text))
	}
	hash := maphash.Bytes(m.seed, text)
	place := &m.places[hash%memoPlaces]
	if known := place.uri.Load(); known != nil && known.text == string(text) {
		return known.uri, nil
	}
	own := string(text)
	uri, err := wire.ParseURI(own)
	if err == nil && place.seen.Swap(hash) == hash {
		place.uri.Store(&memoURI{own, uri})
	}
	return uri, err
}
