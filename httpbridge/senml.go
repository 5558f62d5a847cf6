package httpbridge

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/wire"
)

// record is one SenML record: its fields by their JSON names (RFC 8428 §4).
// Numbers are json.Number as long as nothing was added to them, data values are
// []byte.
type record map[string]any

// The Content-Formats of SenML packs (RFC 8428 §12.3).
const (
	cfSenMLJSON = 110
	cfSenMLCBOR = 112
)

var (
	errSenMLForm     = errors.New("not a SenML pack")
	errSenMLField    = errors.New("a field that has to be understood and is not")
	errSenMLVersion  = errors.New("a version of SenML that is not known")
	errSenMLTooLarge = errors.New("too many records")
)

// senMLLabels are the CBOR labels (RFC 8428 §6).
var senMLLabels = map[string]int64{"bver": -1, "bn": -2, "bt": -3, "bu": -4, "bv": -5, "bs": -6,
	"n": 0, "u": 1, "v": 2, "vs": 3, "vb": 4, "s": 5, "t": 6, "ut": 7, "vd": 8}

const (
	senMLVersion = 10
	// relativeTime is the bound below which times count from now (RFC 8428
	// §4.5.3).
	relativeTime = 1 << 28
	maxRecords   = 100000
)

// writePack answers with one resolved pack (RFC 8428 §4.6): the records of all
// servers, under names that begin with the URI of the server unless they are
// URIs already, in the order of time.
func (q *query) writePack(items []received) *problem {
	var pack []record
	omitted := 0
	for _, r := range items {
		server, ok := q.server(r.Response)
		if r.Code != codes.Content || !ok || len(pack) > maxRecords {
			omitted++
			continue
		}
		records, err := parsePack(r.Payload, r.Options)
		if err == nil {
			records, err = resolvePack(records, baseName(server), r.at)
		}
		if err != nil {
			omitted++
			continue
		}
		q.call.front.Stats.Parts.Add(1)
		pack = append(pack, records...)
	}
	q.omitted(omitted)
	if len(pack) == 0 {
		q.w.WriteHeader(http.StatusNoContent) // a pack has at least one record
		return nil
	}
	slices.SortStableFunc(pack, func(a, b record) int {
		x, y := number(a["t"]), number(b["t"])
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	contentType, body, err := "application/senml+json", []byte(nil), error(nil)
	if q.form == formSenMLCBOR {
		contentType = "application/senml+cbor"
		body, err = encodeCBORPack(pack)
	} else {
		body, err = encodeJSONPack(pack)
	}
	if err != nil {
		return refuse(http.StatusInternalServerError, "the pack cannot be written", "")
	}
	q.open(contentType, items)
	if q.r.Method != http.MethodHead {
		_, _ = q.send.Write(body)
		q.cutOff()
	}
	return nil
}

// baseName is the URI of a server as a SenML name may have it: brackets and the
// percent sign cannot be in one (RFC 8428 §4.5.1), so that an IPv6 address
// stands bare, with its port after an underscore.
func baseName(u wire.URI) string {
	name := u.Authority()
	if u.Addr.Is6() {
		name = u.Addr.String()
		if standard, _ := wire.DefaultPort(u.Scheme); u.Port != standard {
			name += fmt.Sprintf("_%d", u.Port)
		}
	}
	return u.Scheme + "://" + strings.ReplaceAll(name+pathOf(u.Path), "%", "_") + "/"
}

// resolvePack applies base values to records (RFC 8428 §4.6). now is when the
// pack was received.
func resolvePack(records []record, server string, now time.Time) ([]record, error) {
	var name string
	var unit any
	var bases = map[string]any{}
	for _, r := range records {
		for field, value := range r {
			switch field {
			case "bn":
				name, _ = value.(string)
			case "bu":
				unit = value
			case "bt", "bv", "bs":
				bases[field] = value
			case "bver":
				if number(value) > senMLVersion {
					return nil, errSenMLVersion
				}
			case "n", "u", "v", "vs", "vb", "vd", "s", "t", "ut":
			default:
				if strings.HasSuffix(field, "_") || strings.HasPrefix(field, "b") {
					return nil, errSenMLField // RFC 8428 §4.4, §4.6
				}
			}
		}
		own, _ := r["n"].(string)
		full := name + own
		if !isNamedByURI(full) {
			full = server + strings.TrimPrefix(full, "/")
		}
		r["n"] = full
		if _, ok := r["u"]; !ok && unit != nil {
			r["u"] = unit
		}
		for _, sum := range [...]struct{ base, field string }{{"bv", "v"}, {"bs", "s"}} {
			base, based := bases[sum.base]
			value, there := r[sum.field]
			switch {
			case based && there:
				r[sum.field] = number(base) + number(value)
			case based && sum.field == "s", based && !hasValue(r):
				r[sum.field] = base
			}
		}
		r["t"] = absolute(bases["bt"], r["t"], now)
		if !r.sane() {
			return nil, errSenMLForm // a sum that is no number
		}
		for _, base := range [...]string{"bn", "bt", "bu", "bv", "bs", "bver"} {
			delete(r, base)
		}
	}
	return slices.DeleteFunc(records, func(r record) bool { return !hasValue(r) && r["s"] == nil }), nil
}

// hasValue reports whether a record measures something.
func hasValue(r record) bool {
	for _, field := range [...]string{"v", "vs", "vb", "vd"} {
		if _, ok := r[field]; ok {
			return true
		}
	}
	return false
}

// absolute is base time plus time, from now if it is a relative one.
func absolute(base, t any, now time.Time) any {
	sum := number(base) + number(t)
	if sum >= relativeTime {
		if base == nil {
			return t
		}
		return sum
	}
	return math.Round((float64(now.UnixMilli())/1000+sum)*1000) / 1000
}

// isNamedByURI reports whether a name is globally unique by itself.
func isNamedByURI(name string) bool {
	return strings.HasPrefix(name, "urn:") || strings.Contains(name, "://")
}

// number is the value of a numeric field, 0 for anything else.
func number(v any) float64 {
	switch n := v.(type) {
	case json.Number:
		f, _ := n.Float64()
		return f
	case float64:
		return n
	case uint64:
		return float64(n)
	case int64:
		return float64(n)
	}
	return 0
}

func encodeJSONPack(pack []record) ([]byte, error) {
	for _, r := range pack {
		if data, ok := r["vd"].([]byte); ok {
			r["vd"] = base64.RawURLEncoding.EncodeToString(data)
		}
	}
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	err := e.Encode(pack)
	return buf.Bytes(), err
}

func encodeCBORPack(pack []record) ([]byte, error) {
	out := make([]map[any]any, len(pack))
	for i, r := range pack {
		m := make(map[any]any, len(r))
		for field, value := range r {
			if n, ok := value.(json.Number); ok {
				value = plainNumber(n)
			}
			if label, ok := senMLLabels[field]; ok {
				m[label] = value
			} else {
				m[field] = value
			}
		}
		out[i] = m
	}
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, err
	}
	return mode.Marshal(out)
}

func plainNumber(n json.Number) any {
	if i, err := n.Int64(); err == nil {
		return i
	}
	f, _ := n.Float64()
	return f
}

// decimal is the value of a CBOR decimal fraction (RFC 8949 §3.4.4).
func decimal(content any) (float64, bool) {
	parts, ok := content.([]any)
	if !ok || len(parts) != 2 {
		return 0, false
	}
	exponent, mantissa := number(parts[0]), number(parts[1])
	if long, ok := parts[1].(big.Int); ok {
		mantissa, _ = new(big.Float).SetInt(&long).Float64()
	}
	f := mantissa * math.Pow10(int(exponent))
	return f, !math.IsNaN(f) && !math.IsInf(f, 0) && math.Abs(exponent) < 400
}
