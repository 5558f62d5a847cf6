package proxy

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

func TestURIMemo(t *testing.T) {
	m := newURIMemo()
	texts := []string{"coap://192.0.2.1/x", "coap://[2001:db8::1]:61616/a/b?c=d", "coap://host.example/%20", "coap://" + strings.Repeat("a", 60) + "/" + strings.Repeat("b", 250)}
	for range 4 {
		for _, text := range texts {
			buffer := []byte(text)
			want, err := wire.ParseURI(text)
			require.NoError(t, err)
			got, err := m.parse(buffer)
			require.NoError(t, err)
			clear(buffer) // which belongs to somebody else
			require.Equal(t, want, got)
		}
		_, err := m.parse([]byte("no URI"))
		require.Error(t, err)
	}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, err := m.parse([]byte("coap://192.0.2.1/x")); err != nil {
			t.Error(err)
		}
	}))
}

// The query is read apart from the rest, with the same outcome.
func TestURIMemoQueries(t *testing.T) {
	m := newURIMemo()
	for _, text := range []string{"coap://192.0.2.1/x?", "coap://192.0.2.1?a=1&b=%26&&c", "coap://192.0.2.1/x?y?z/", "coap://192.0.2.1/x?é",
		"coap://192.0.2.1/x?a#b", "coap://192.0.2.1/x#a?b", "coap://192.0.2.1/x?%ff", "coap://192.0.2.1/x?\"", "coap://192.0.2.1/x?%4",
		"coap://192.0.2.1/x?" + strings.Repeat("q", 256), "http://192.0.2.1/x?" + strings.Repeat("q", 256), "coap://192.0.2.1:0/x?a", "?a", ""} {
		want, wrong := wire.ParseURI(text)
		for range 3 {
			got, err := m.parse([]byte(text))
			require.Equal(t, wrong == nil, err == nil, "%q: %v", text, err)
			if wrong != nil {
				require.Equal(t, errors.Is(wrong, wire.ErrScheme), errors.Is(err, wire.ErrScheme), text)
				continue
			}
			require.Equal(t, want, got)
		}
	}
}

// What comes once does not drive out what comes again and again.
func TestURIMemoKeeps(t *testing.T) {
	m := newURIMemo()
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 5000 {
				once := fmt.Sprintf("coap://192.0.2.%d/%d", worker, i)
				for _, text := range []string{once, "coap://192.0.2.200/always", "coap://192.0.2.200/always"} {
					uri, err := m.parse([]byte(text))
					if err != nil || uri.String() != text {
						t.Errorf("%s became %v: %v", text, uri, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	remembered := 0
	for i := range m.places {
		if u := m.places[i].uri.Load(); u != nil {
			require.Equal(t, "coap://192.0.2.200/always", u.text)
			remembered++
		}
	}
	require.Equal(t, 1, remembered)
}
