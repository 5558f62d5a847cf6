package httpbridge

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// form is what the answer to a group request looks like.
type form uint8

const (
	formBatch     form = iota // multipart/mixed, the draft's (HC-77)
	formJSON                  // one array
	formLines                 // newline-delimited JSON, streamed
	formSenMLJSON             // one resolved SenML pack
	formSenMLCBOR
)

// preferStream is the preference that asks for parts as they come (HC-86).
const preferStream = "stream-parts"

// formOf finds out from the Accept field which form is wanted, and what is left
// of the field for the servers.
func formOf(ranges []mediaRange, r *http.Request) (form, []mediaRange) {
	var forServers []mediaRange
	chosen := false
	for _, m := range ranges {
		switch m.name {
		case "multipart/mixed", "multipart/*", "application/http":
			chosen = true
			continue
		}
		if !chosen && m.q > 0 {
			switch m.name {
			case "application/json":
				return formJSON, nil
			case "application/x-ndjson", "application/ndjson":
				return formLines, nil
			case "application/senml+json":
				return formSenMLJSON, []mediaRange{m}
			case "application/senml+cbor":
				return formSenMLCBOR, []mediaRange{m}
			}
			chosen = true
		}
		forServers = append(forServers, m)
	}
	return formBatch, forServers
}

// group carries out a request with a Multicast-Timeout.
func (q *query) group() *problem {
	_, asked := preferences(q.r.Header["Prefer"])[preferStream]
	streams := q.form == formLines || q.form == formBatch && asked
	if streams && q.timeout.Seconds > 0 && q.r.ProtoAtLeast(1, 1) && q.r.Method != http.MethodHead { // HC-86, HC-88
		return q.stream()
	}
	return q.collect()
}

// collect waits until T' and answers with everything at once.
func (q *query) collect() *problem {
	f := q.call.front
	all := newCollection(f.Limits.BatchParts, f.Limits.BatchBytes, f.budget, &f.Stats.Dropped, f.begun())
	defer all.leave()
	cancel := f.Next.Exchange(q.request(0, nil), all)
	f.Engine.Flush()
	items, missed, err := all.wait(q.r.Context())
	if q.r.Context().Err() != nil { // HC-83, HC-60
		cancel.Cancel()
		f.Engine.Flush()
		f.Stats.Disconnects.Add(1)
		return nil
	}
	if missed > 0 { // HC-84
		f.Log.Warn("a batch was full", zap.Uint64("exchange", q.id), zap.Int("dropped", missed))
	}
	switch {
	case len(items) > 0 && q.alone(items[0].Response):
		q.respondAlone(items[0].Response)
		return nil
	case err != nil && len(items) == 0:
		return q.failed(err)
	case q.timeout.Seconds == 0, len(items) == 0 && q.form != formJSON && q.form != formLines: // HC-76, HC-77
		q.w.Header()["Cache-Control"] = []string{"no-store"}
		q.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	switch q.form {
	case formJSON, formLines:
		return q.writeArray(items)
	case formSenMLJSON, formSenMLCBOR:
		return q.writePack(items)
	}
	return q.writeBatch(items)
}

// alone reports whether a response is none of many: it was made by a proxy, or
// the target turned out to be a single server.
func (q *query) alone(p *exchange.Response) bool {
	if p.From.IsValid() {
		return p.GroupPort == 0
	}
	return p.ReplyFrom == nil && !wire.Has(p.Options, q.call.front.Numbers.ReplyFrom)
}

// respondAlone answers with the one response that there is.
func (q *query) respondAlone(p *exchange.Response) {
	tag := q.call.front.groupETag(p.Options)
	if p.Code != codes.Valid || tag == "" {
		q.respond(p)
		return
	}
	h := q.w.Header() // HC-81
	h[fieldGroupETag] = []string{tag}
	h["Cache-Control"] = []string{"private, no-cache"}
	q.call.front.varies(h)
	q.w.WriteHeader(http.StatusNotModified)
}

// partOf translates one of many responses. ok is false when it has to be left
// out (HC-80).
func (q *query) partOf(r received) (answer, bool) {
	a, ok := q.of(r.Response, true)
	if !ok {
		q.call.front.Stats.Omitted.Add(1)
		return a, false
	}
	q.call.front.Stats.Parts.Add(1)
	if from := q.replyFrom(r.Response); from != "" {
		a.fields[fieldReplyFrom] = []string{from} // HC-72
	}
	if u, ok := q.source(r.Response); ok {
		a.fields["Content-Location"] = []string{u.String()}
	}
	if a.status != http.StatusNoContent {
		a.fields["Content-Length"] = []string{strconv.Itoa(len(a.body))} // HC-79
	}
	return a, true
}

// open sets the fields of an outer response.
func (q *query) open(contentType string, items []received) {
	h := q.w.Header()
	h["Content-Type"] = []string{contentType}
	h["Cache-Control"] = []string{"no-store"}
	q.call.front.varies(h)
	for i := len(items) - 1; i >= 0; i-- {
		if tag := q.call.front.groupETag(items[i].Options); tag != "" {
			h[fieldGroupETag] = []string{tag} // HC-81
			h["Cache-Control"] = []string{"private, no-cache"}
			break
		}
	}
	q.w.WriteHeader(http.StatusOK)
}

// streamForm is how a stream of responses is written.
type streamForm interface {
	contentType() string
	begin() []byte
	part(received, answer) []byte
	// failure tells of the end of an exchange that had begun well.
	failure(*problem) []byte
	end() []byte
}

// stream answers with responses as they come (HC-87).
func (q *query) stream() *problem {
	f := q.call.front
	box := newInbox(f.Limits.QueueParts, f.Limits.QueueBytes, f.budget, f.begun())
	cancel := f.Next.Exchange(q.request(0, nil), box)
	f.Engine.Flush()
	defer func() {
		cancel.Cancel()
		f.Engine.Flush()
		box.leave()
	}()
	ctx := q.r.Context()
	waiting, ended, err := box.state()
	switch {
	case ended && !waiting && err != nil:
		return q.failed(err)
	case !waiting && !ended && !q.call.place.uri.Addr.IsMulticast():
		// Only the exchange knows whether a name stands for a group, so that the
		// status is not known before something comes of it.
		waiting = true
	}
	var first received
	if waiting {
		var ok bool
		first, ok, err = box.next(ctx, nil)
		switch {
		case ok && q.alone(first.Response):
			q.respondAlone(first.Response)
			return nil
		case !ok && ctx.Err() != nil:
			f.Stats.Disconnects.Add(1)
			return nil
		case !ok && err != nil:
			return q.failed(err)
		}
	}
	var s streamForm
	if q.form == formLines {
		s = &lineStream{q}
	} else {
		q.w.Header()["Preference-Applied"] = []string{preferStream} // HC-86
		s = newBatch(nil)
	}
	h := q.w.Header()
	h["Content-Type"] = []string{s.contentType()}
	h["Cache-Control"] = []string{"no-store, no-transform"} // HC-89
	h["X-Accel-Buffering"] = []string{"no"}
	h.Add("Vary", "Accept, Prefer")
	q.w.WriteHeader(http.StatusOK)
	_, _ = q.send.Write(s.begin())
	q.relay(ctx, box, s, first)
	return nil
}

// relay writes responses until the exchange ends. Whoever does not take them is
// cut off, without the end of the document (HC-88).
func (q *query) relay(ctx context.Context, box *inbox, s streamForm, r received) {
	f := q.call.front
	for {
		if r.Response != nil {
			if a, ok := q.partOf(r); ok {
				_, _ = q.send.Write(s.part(r, a))
			}
		}
		if waiting, _, _ := box.state(); !waiting {
			_ = q.send.flush()
		}
		var ok bool
		var err error
		r, ok, err = box.next(ctx, nil)
		var slow errSlowReader
		switch {
		case errors.As(err, &slow), q.send.tooSlow():
			f.Stats.SlowReaders.Add(1)
			panic(http.ErrAbortHandler)
		case q.send.err != nil, ctx.Err() != nil: // HC-83
			f.Stats.Disconnects.Add(1)
			panic(http.ErrAbortHandler)
		case ok:
			continue
		case err != nil:
			_, _ = q.send.Write(s.failure(q.failed(err)))
		}
		_, _ = q.send.Write(s.end())
		_ = q.send.flush()
		return
	}
}
