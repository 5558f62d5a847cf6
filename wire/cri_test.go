package wire

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// criVectors is testdata/cri/tests.json.
type criVectors struct {
	BaseURI string      `json:"base-uri"`
	BaseCRI string      `json:"base-cri"`
	Vectors []criVector `json:"test-vectors"`
}

type criVector struct {
	Description string
	URI         *string // nil: there is no such URI
	CRI         string
	URIFromCRI  *string `json:"uri-from-cri"`
	ResolvedCRI string  `json:"resolved-cri"`
	ResolvedURI string  `json:"resolved-uri"`
	Invalid     string
}

func readCRIVectors(t testing.TB) criVectors {
	t.Helper()
	var v criVectors
	require.NoError(t, json.Unmarshal(readTestdata(t, "cri/tests.json"), &v))
	require.Greater(t, len(v.Vectors), 100)
	return v
}

// criFromURIDeviations are the vectors, by URI and CRI, whose CRI is not what
// CRIFromURI makes, with what it makes and why. In every other direction these
// vectors hold too.
var criFromURIDeviations = map[[2]string]struct{ cri, reason string }{
	{"", "8100"}: {
		"80", "HREF §5.2 sends [] in place of [0]",
	},
	{"//a%3Aa", "82f681836161413a6161"}: {
		"82f68163613a61", "a colon cannot stand unencoded in a host, so it needs no encoded run; the vector //non%3Aport.x agrees",
	},
	{"/?a%23a", "83f581608183616141236161"}: {
		"83f581608163612361", "likewise for # in a query; the vector /?a%26a agrees",
	},
	{"math://equation=E%3Dmc%C2%B2/", "83646d61746881836a6571756174696f6e3d45413d646d63c2b28160"}: {
		"83646d61746881836a6571756174696f6e3d65413d646d63c2b28160", "HREF §2.1 C5: labels are in lower case",
	},
	{"../a/b/../c/.", "82028261616163"}: {
		"8202836161616360", "RFC 3986 §5.2.4 turns a final /. into an empty segment, the vector drops it",
	},
}

// criUngrammatical are the vectors whose CRI ParseCRI refuses, with the CRI that
// was meant: an array of literal text alone is no text-pet-sequence, which has
// "at least one pet1" (HREF §7.2).
var criUngrammatical = map[string]string{
	"82f68281686e6f6e21706f72746178": "82f682686e6f6e21706f72746178",
	"82218281686e6f6e21706f72746178": "822182686e6f6e21706f72746178",
}

func TestCRIVectors(t *testing.T) {
	vectors := readCRIVectors(t)
	base, err := ParseCRI(unhex(t, vectors.BaseCRI))
	require.NoError(t, err)
	fromURI, err := CRIFromURI(vectors.BaseURI)
	require.NoError(t, err)
	require.Equal(t, base, fromURI)

	deviations := 0
	for _, v := range vectors.Vectors {
		name := v.Description
		if v.URI != nil {
			name += " " + *v.URI
		}
		t.Run(name, func(t *testing.T) {
			v.CRI, v.ResolvedCRI = strings.ToLower(v.CRI), strings.ToLower(v.ResolvedCRI)
			if meant, ok := criUngrammatical[v.CRI]; ok {
				_, err := ParseCRI(unhex(t, v.CRI))
				require.ErrorIs(t, err, errCRIText)
				v.CRI, v.ResolvedCRI = meant, criUngrammatical[v.ResolvedCRI]
			}
			c, err := ParseCRI(unhex(t, v.CRI))
			require.NoError(t, err)
			resolved, err := c.Resolve(base)
			require.NoError(t, err)
			require.Equal(t, v.ResolvedCRI, hex.EncodeToString(resolved.Append(nil)))
			if v.Invalid != "" {
				_, err = c.Reference()
				require.Error(t, err)
				_, err = resolved.Reference()
				require.Error(t, err)
				return
			}
			resolvedURI, err := resolved.Reference()
			require.NoError(t, err)
			require.Equal(t, v.ResolvedURI, resolvedURI)

			uri, err := c.Reference()
			if v.URIFromCRI == nil {
				require.Error(t, err)
				require.Equal(t, v.CRI, hex.EncodeToString(c.Append(nil)))
				return
			}
			require.NoError(t, err)
			require.Equal(t, *v.URIFromCRI, uri)

			encoded := hex.EncodeToString(c.Append(nil))
			made, err := CRIFromURI(*v.URI)
			require.NoError(t, err)
			want := v.CRI
			if d, ok := criFromURIDeviations[[2]string{*v.URI, v.CRI}]; ok {
				deviations++
				want = d.cri
				t.Log(d.reason)
			}
			require.Equal(t, want, hex.EncodeToString(made.Append(nil)))
			if v.CRI != "8100" { // as above
				require.Equal(t, v.CRI, encoded)
			}
		})
	}
	require.Equal(t, len(criFromURIDeviations), deviations)
}

func TestParseCRIErrors(t *testing.T) {
	for _, tt := range []struct {
		name, hex string
		want      error
	}{
		{"nothing", "", errCBORTruncated},
		{"no array", "20", errCBORType},
		{"indefinite array", "9f20816161ff", errCBORForm},
		{"indefinite authority", "82209f6161ff", errCBORForm},
		{"indefinite text", "8220817f6161ff", errCBORForm},
		{"reserved form", "82208178", errCBORTruncated},
		{"reserved additional information", "822081fc", errCBORForm},
		{"trailing byte", "822081616100", errCBORTrailing},
		{"array longer than the data", "9affffffff20", errCBORTruncated},
		{"path longer than the data", "83208161619b7fffffffffffffff", errCBORTruncated},
		{"text longer than the data", "8220817bffffffffffffffff", errCBORTruncated},
		{"text not UTF-8", "82208161ff", errCBORUTF8},
		{"two leading nulls", "83f6f6816161", errCRIEmptyRef},
		{"null alone", "81f6", errCRIEmptyRef},
		{"trailing null", "83208161 61f6", errCRITrailing},
		{"trailing null authority", "8220f6", errCRITrailing},
		{"trailing null after discard", "82f5f6", errCRITrailing},
		{"discard too large", "821880816161", errCRIDiscard},
		{"discard false", "82f4816161", errCBORType},
		{"six sections", "86208161618080616160", errCRIForm},
		{"five sections after discard", "85f580806161f6", errCRITrailing},
		{"text for fragment too early", "83f56161", errCBORType},
		{"scheme name upper case", "82624142816161", errCRIScheme},
		{"scheme name with a colon", "8262613a816161", errCRIScheme},
		{"scheme name empty", "8260816161", errCRIScheme},
		{"unknown scheme number", "823863816161", ErrScheme},
		{"huge scheme number", "823bffffffffffffffff816161", ErrScheme},
		{"stand-in tag for text", "822081c0 6161", errCBORType},
		{"address of three bytes", "82208143c00002", errCRIHost},
		{"zone on IPv4", "82208244c0000207626c6f", errCRIHost},
		{"empty zone", "82208250fe80000000000000000000000000000160", errCRIHost},
		{"port above 65535", "8220826161 1a00010000", errCRIPort},
		{"label after port", "8220836161 01 6161", errCRIForm},
		{"negative port", "8220826161 20", errCBORType},
		{"empty percent-encoded text", "82208180", errCRIText},
		{"encoded text without bytes", "822081816161", errCRIText},
		{"two literal runs", "82208183616161624121", errCRIText},
		{"empty run", "8220818240 6161", errCRIText},
		{"run that needs no encoding", "82208182614141 61", errCRIText},
		{"UTF-8 in an encoded run", "8220818142c3a4", errCRIText},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseCRI(unhex(t, strings.ReplaceAll(tt.hex, " ", "")))
			require.ErrorIs(t, err, tt.want)
		})
	}
}

// FP-3
func TestParseProxyCRI(t *testing.T) {
	for cri, want := range map[string]string{
		"83208150ff0500000000000000000000000000fd816172": "coap://[ff05::fd]/r",
		"83208144e00001bb816172":                         "coap://224.0.1.187/r",
		"8320815000000000000000000000ffffc0000207816172": "coap://192.0.2.7/r", // GP-7
		"82208250fe800000000000000000000000000001626c6f": "coap://[fe80::1%25lo]/",
		"82208261 6119f0b0":                              "coap://a:61616/",
		"822182616119 1634":                              "coaps://a/",
		"8220836141 616219 1633":                         "coap://a.b/",
		"83208161618160":                                 "coap://a/",
		"83208161618260 60":                              "coap://a//",
		"84208161618161618260 6163":                      "coap://a/a?&c",
		"842081616180816163":                             "coap://a/?c",
		"8420816161f6816163":                             "coap://a/?c",
		"8264636f6170816161":                             "coap://a/", // scheme by name
		"822283f4627573 6161":                            "http://us@a/",
		"8320816161 82612e 622e2e":                       "coap://a/./..", // FP-28
		"83208461316130613061 31816172":                  "coap://1.0.0.1/r",
	} {
		u, err := ParseProxyCRI(unhex(t, strings.ReplaceAll(cri, " ", "")))
		require.NoError(t, err, want)
		require.Equal(t, want, u.String())
		parsed, err := ParseURI(want)
		require.NoError(t, err)
		u.ExplicitPort, parsed.ExplicitPort = false, false
		require.Equal(t, parsed, u)
	}
	for name, tt := range map[string]struct {
		cri  string
		want error
	}{
		"empty":                 {"", errProxyCRISize},
		"too long":              {strings.Repeat("00", 1024), errProxyCRISize},
		"reference":             {"82f5816172", errCRINotFull},
		"no scheme":             {"82f6816161", errCRINotFull},
		"no authority":          {"8320f6816172", errCRINotFull},
		"rootless":              {"8320f5816172", errCRINotFull},
		"fragment":              {"8520816161f6f66161", errCRIFragment},
		"encoded path":          {"83208161618181413b", errCRIEncoded},
		"encoded host":          {"822081814121", errCRIEncoded},
		"encoded userinfo":      {"822283f48141216161", errCRIEncoded},
		"dot in a label":        {"82208163612e62", errCRIHost},
		"port 0":                {"822082616100", errCRIPort},
		"other scheme":          {"8263667470816161", ErrScheme},
		"unknown scheme number": {"823863816161", ErrScheme},
		"stand-in item":         {"d86380", errCBORType},
	} {
		_, err := ParseProxyCRI(unhex(t, tt.cri))
		require.ErrorIs(t, err, tt.want, name)
	}
	for name, cri := range map[string]string{
		"no host":       "822080",
		"empty label":   "82208160",
		"long segment":  "8320816161817901 00" + strings.Repeat("61", 256),
		"long host":     "8220817901 00" + strings.Repeat("61", 256),
		"control":       "8220816100",
		"IPv6 as label": "8220816 33a3a31",
	} {
		_, err := ParseProxyCRI(unhex(t, strings.ReplaceAll(cri, " ", "")))
		require.Error(t, err, name)
	}
}

func TestResolveNeedsFullBase(t *testing.T) {
	_, err := CRI{}.Resolve(CRI{Discard: 1})
	require.ErrorIs(t, err, errCRIBase)
}

// What the vectors of the draft leave out.
func TestCRIReference(t *testing.T) {
	for uri, cri := range map[string]string{
		"file:///etc":               "836466696c658081 63657463",
		"coap://a:5683/":            "83208161618160",
		"coap://a:/":                "83208161618160",
		"coap://a:5684/":            "832082616119163481 60",
		"coap://[::ffff:192.0.2.7]": "82208144c0000207",
		"coap://[fe80::1%25lo]":     "82208250fe800000000000000000000000000001626c6f",
		"coap://A.%45x.ample":       "822083616162657865616d706c65",
		"coap://a/%ff":              "83208161618181 41ff",
		"coap://a/x%41%C3%A4%c3":    "8320816161818264784 1c3a441c3",
		"x:?":                       "846178f6f68160",
		"?":                         "8300f68160",
		".":                         "82018160",
		"..":                        "82028160",
		"../..":                     "82038160",
		"a/..":                      "82018160",
		"a/..//b":                   "820182606162",
		"/..":                       "82f58160",
		"/../a":                     "82f5816161",
		"%2e/a":                     "8201816161",
		"x:a/./b":                   "836178f58261616162",
		"//":                        "82f680",
	} {
		t.Run(uri, func(t *testing.T) {
			c, err := CRIFromURI(uri)
			require.NoError(t, err)
			require.Equal(t, strings.ReplaceAll(cri, " ", ""), hex.EncodeToString(c.Append(nil)))
			again, err := c.Reference()
			require.NoError(t, err)
			second, err := CRIFromURI(again)
			require.NoError(t, err)
			require.Equal(t, c, second, again)
		})
	}
	for _, uri := range []string{
		"a b", "%", "1:b", "/.//a", "x:/.//a", "x:..", "//[::1", "//a:b", "//a:65536", "//%zz", "//u[@a", "?%", "#%", "//[v1.x]",
		strings.Repeat("../", 128),
	} {
		_, err := CRIFromURI(uri)
		var bad *URIError
		require.ErrorAs(t, err, &bad, uri)
	}
	for name, cri := range map[string]string{
		"discard 0 with a path":   "8200816161",
		"discard 0 with no query": "8300f680",
		"discard 1 alone":         "8101",
		"discard all alone":       "81f5",
		"empty path with discard": "820180",
		"reads as an authority":   "82f582606161",
		"no authority":            "83 6178 f6 82606161",
		"naked rootless":          "826178f5",
		"rootless, empty segment": "836178f58160",
		"rootless without scheme": "83f6f5816161",
		"dot segment":             "82f581612e",
		"dot segments":            "82f581622e2e",
		"dot in a label":          "82f68163612e62",
	} {
		c, err := ParseCRI(unhex(t, strings.ReplaceAll(cri, " ", "")))
		require.NoError(t, err, name)
		_, err = c.Reference()
		require.Error(t, err, name)
	}
}

func FuzzCRI(f *testing.F) {
	vectors := readCRIVectors(f)
	base, err := ParseCRI(unhex(f, vectors.BaseCRI))
	require.NoError(f, err)
	for _, v := range vectors.Vectors {
		f.Add(unhex(f, v.CRI))
	}
	for _, s := range []string{"82208250fe800000000000000000000000000001626c6f", "8300f680", "9f209f44c0000207ffff", "83208161618181413b"} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseCRI(data)
		if err != nil {
			return
		}
		encoded := c.Append(nil)
		again, err := ParseCRI(encoded)
		require.NoError(t, err)
		require.True(t, bytes.Equal(encoded, again.Append(nil)))

		resolved, err := c.Resolve(base)
		require.NoError(t, err)
		require.NotEmpty(t, resolved.Scheme)
		if u, err := c.URI(); err == nil {
			parsed, err := ParseURI(u.String())
			require.NoError(t, err, u.String())
			u.ExplicitPort, parsed.ExplicitPort = false, false
			require.Equal(t, u, parsed)
		}
		uri, err := c.Reference()
		if err != nil {
			return
		}
		made, err := CRIFromURI(uri)
		require.NoError(t, err, uri)
		made, err = made.Resolve(base)
		require.NoError(t, err)
		want, err := resolved.Reference()
		require.NoError(t, err)
		got, err := made.Reference()
		require.NoError(t, err)
		require.Equal(t, lowerASCII(want), lowerASCII(got))
	})
}

func TestResolveRootlessBase(t *testing.T) {
	base, err := CRIFromURI("x:a/b")
	require.NoError(t, err)
	for ref, want := range map[string]string{"c": "x:a/c", "/c": "x:/c", "//h/c": "x://h/c", "#f": "x:a/b#f"} {
		c, err := CRIFromURI(ref)
		require.NoError(t, err)
		resolved, err := c.Resolve(base)
		require.NoError(t, err)
		uri, err := resolved.Reference()
		require.NoError(t, err)
		require.Equal(t, want, uri)
	}
}
