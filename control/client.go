package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
)

// maxAnswer bounds what a client reads, in bytes.
const maxAnswer = 256 << 20

// Client asks the proxy that serves a control socket. Safe for concurrent use.
type Client struct{ http http.Client }

// ErrTurnedAway says that the proxy took no request.
var ErrTurnedAway = errors.New("the proxy closed the connection: this user may not ask it, or too many others do now")

// NewClient returns a Client for the socket at path, which is not opened before
// the first request.
func NewClient(path string) *Client {
	return &Client{http: http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}}
}

// Do sends a request with the JSON of in as its body, none if in is nil, and
// reads the JSON of the answer into out, unless out is nil. The error is a
// *StatusError when the proxy refused.
func (c *Client) Do(ctx context.Context, method, path string, query url.Values, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	u := url.URL{Scheme: "http", Host: "coapproxy", Path: path, RawQuery: query.Encode()}
	r, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return err
	}
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	answer, err := c.http.Do(r)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("%w (%w)", ErrTurnedAway, err)
	case err != nil:
		return err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if answer.StatusCode >= http.StatusBadRequest {
		var f failure
		if json.Unmarshal(data, &f) != nil || f.Error == "" {
			f.Error = answer.Status
		}
		return &StatusError{Status: answer.StatusCode, Message: f.Error}
	}
	if out == nil || answer.StatusCode == http.StatusNoContent {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}
