package httpbridge

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// element is one response in a merged JSON document. It is an extension: the
// draft knows batches only.
type element struct {
	Server          string          `json:"server,omitempty"`
	Status          int             `json:"status"`
	ContentType     string          `json:"contentType,omitempty"`
	ContentEncoding string          `json:"contentEncoding,omitempty"`
	Time            time.Time       `json:"time"`
	Body            json.RawMessage `json:"body,omitempty"`
	BodyBase64      string          `json:"bodyBase64,omitempty"`
}

// newElement puts a body in as it is if it is JSON, as a string if it is text,
// and in base64 otherwise.
func (q *query) newElement(r received, a answer) element {
	e := element{Status: a.status, Time: r.at.UTC().Truncate(time.Millisecond)}
	if values := a.fields["Content-Type"]; len(values) > 0 && len(a.body) > 0 {
		e.ContentType = values[0]
	}
	if values := a.fields["Content-Encoding"]; len(values) > 0 {
		e.ContentEncoding = values[0]
	}
	if r.Response != nil {
		if u, ok := q.server(r.Response); ok {
			e.Server = u.Scheme + "://" + u.Authority() + pathOf(u.Path)
		}
	}
	switch {
	case len(a.body) == 0:
	case e.ContentEncoding == "" && isJSON(e.ContentType) && json.Valid(a.body):
		e.Body = a.body
	case e.ContentEncoding == "" && isText(e.ContentType) && utf8.Valid(a.body):
		e.Body, _ = json.Marshal(string(a.body)) // strings always can be
	default:
		e.BodyBase64 = base64.StdEncoding.EncodeToString(a.body)
	}
	return e
}

func isJSON(mediaType string) bool {
	name, _, _ := strings.Cut(mediaType, ";")
	return name == "application/json" || strings.HasSuffix(name, "+json")
}

func isText(mediaType string) bool {
	name, _, _ := strings.Cut(mediaType, ";")
	return strings.HasPrefix(name, "text/") || isJSON(name) || name == "application/xml" || strings.HasSuffix(name, "+xml") ||
		name == "application/link-format" || name == "application/javascript"
}

// writeArray answers with one JSON array, empty if nobody answered.
func (q *query) writeArray(items []received) *problem {
	contentType := "application/json"
	if q.form == formLines {
		contentType = "application/x-ndjson"
	}
	q.open(contentType, items)
	if q.r.Method == http.MethodHead {
		return nil
	}
	array, written := q.form == formJSON, 0
	if array {
		_, _ = q.send.Write([]byte("["))
	}
	for _, r := range items {
		a, ok := q.partOf(r)
		if !ok {
			continue
		}
		line := q.line(q.newElement(r, a))
		if array && written > 0 {
			line = append([]byte(","), line...)
		}
		if written++; array {
			line = bytes.TrimSuffix(line, []byte("\n"))
		}
		if _, err := q.send.Write(line); err != nil {
			break
		}
	}
	if array {
		_, _ = q.send.Write([]byte("]\n"))
	}
	q.cutOff()
	return nil
}

// line is an element on a line of its own.
func (q *query) line(e any) []byte {
	b, err := json.Marshal(e)
	if err != nil { // what is in it was checked
		return nil
	}
	return append(b, '\n')
}

// lineStream writes newline-delimited JSON.
type lineStream struct{ q *query }

func (s *lineStream) contentType() string { return "application/x-ndjson" }

func (s *lineStream) begin() []byte { return nil }

func (s *lineStream) end() []byte { return nil }

func (s *lineStream) part(r received, a answer) []byte { return s.q.line(s.q.newElement(r, a)) }

// failure is a line without a server.
func (s *lineStream) failure(p *problem) []byte {
	text, _ := json.Marshal(p.detail)
	return s.q.line(element{Status: p.status, ContentType: plainText, Time: time.Now().UTC().Truncate(time.Millisecond), Body: text})
}

// omitted tells the client how many responses a document does not hold.
func (q *query) omitted(n int) {
	if n > 0 {
		q.call.front.Stats.Omitted.Add(uint64(n))
		q.w.Header()["Omitted-Responses"] = []string{strconv.Itoa(n)}
	}
}
