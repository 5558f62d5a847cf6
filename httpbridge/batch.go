package httpbridge

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"strconv"
)

// batch writes multipart/mixed with one application/http part per response
// (HC-77, HC-79). The delimiter that ends a part goes out with it, so that a
// reader can finish the part without waiting for the next one (HC-89).
type batch struct{ boundary string }

// newBatch returns a batch whose boundary is in none of the bodies.
func newBatch(bodies []received) *batch {
	for {
		var random [18]byte
		_, _ = rand.Read(random[:]) // never fails
		boundary := "part-" + hex.EncodeToString(random[:])
		clash := false
		for _, b := range bodies {
			clash = clash || bytes.Contains(b.Payload, []byte(boundary))
		}
		if !clash {
			return &batch{boundary}
		}
	}
}

func (b *batch) contentType() string { return "multipart/mixed; boundary=" + b.boundary }

func (b *batch) begin() []byte { return []byte("--" + b.boundary) }

func (b *batch) end() []byte { return []byte("--\r\n") }

func (b *batch) part(_ received, a answer) []byte {
	var buf bytes.Buffer
	b.write(&buf, a)
	return buf.Bytes()
}

func (b *batch) write(buf *bytes.Buffer, a answer) {
	buf.Grow(len(a.body) + 512)
	buf.WriteString("\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 ")
	buf.WriteString(strconv.Itoa(a.status) + " " + http.StatusText(a.status) + "\r\n")
	_ = a.fields.Write(buf) // sorted, and nothing in a value can end a line
	buf.WriteString("\r\n")
	buf.Write(a.body)
	buf.WriteString("\r\n--" + b.boundary)
}

// failure is a part without Reply-From: that is how a client sees that no
// server sent it (GP-39).
func (b *batch) failure(p *problem) []byte {
	contentType, body := p.document(nil)
	a := answer{status: p.status, body: body, fields: http.Header{"Content-Type": {contentType},
		"Content-Length": {strconv.Itoa(len(body))}, "Cache-Control": {"no-store"}}}
	for name, values := range p.fields {
		a.fields[name] = values
	}
	return b.part(received{}, a)
}

// writeBatch answers with everything that was collected.
func (q *query) writeBatch(items []received) *problem {
	parts := make([]answer, 0, len(items))
	for _, r := range items {
		if a, ok := q.partOf(r); ok {
			parts = append(parts, a)
		}
	}
	if len(parts) == 0 {
		q.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	b := newBatch(items)
	q.open(b.contentType(), items)
	if q.r.Method == http.MethodHead {
		return nil
	}
	var buf bytes.Buffer
	buf.Write(b.begin())
	for _, a := range parts {
		b.write(&buf, a)
		if buf.Len() < piece {
			continue
		}
		if _, err := q.send.Write(buf.Bytes()); err != nil {
			break
		}
		buf.Reset()
	}
	buf.Write(b.end())
	_, _ = q.send.Write(buf.Bytes())
	q.cutOff()
	return nil
}

// cutOff ends the connection or stream if not everything could be written: the
// client must not take a part for the whole.
func (q *query) cutOff() {
	if q.send.err != nil {
		if stats := q.call.front.Stats; q.send.tooSlow() {
			stats.SlowReaders.Add(1)
		} else {
			stats.Disconnects.Add(1)
		}
		panic(http.ErrAbortHandler)
	}
}
