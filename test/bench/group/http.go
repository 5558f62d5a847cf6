package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// askHTTP runs client number i over HTTP/1.1: it asks for a batch, which comes at T', and then for the next. What
// it counts are the parts; how long they took cannot be told.
func (c *crowd) askHTTP(ctx context.Context, i int) error {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost, t.DisableCompression = 1, true
	t.DialContext = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	defer t.CloseIdleConnections()
	client := &http.Client{Transport: t}
	// The first requests are spread over T', so that the responses come evenly.
	select {
	case <-time.After(time.Duration(c.timeout) * time.Second * time.Duration(i) / time.Duration(c.clients)):
	case <-ctx.Done():
		return nil
	}
	var body bytes.Buffer
	for ctx.Err() == nil && c.clock() <= c.duration {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%v/hc/coap://%v/b?%08x", c.to, c.group, c.token.Add(1)), nil)
		if err != nil {
			return err
		}
		r.Header.Set("Multicast-Timeout", fmt.Sprint(c.timeout))
		w, err := client.Do(r)
		if err != nil {
			return err
		}
		body.Reset()
		_, err = io.Copy(&body, w.Body)
		_ = w.Body.Close()
		if err != nil {
			return err
		}
		c.mu.Lock()
		if w.StatusCode == http.StatusOK {
			n := bytes.Count(body.Bytes(), []byte("\r\nReply-From: "))
			c.total.Responses += uint64(n)
			if n == c.members {
				c.total.Complete++
			}
		} else {
			c.total.Errors++
		}
		c.total.Exchanges++
		c.mu.Unlock()
	}
	return nil
}
