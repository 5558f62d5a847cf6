// Command httpload sends HTTP/1.1 GET requests in a closed loop, each client on a connection of its own, for a
// CoAP URI behind /hc/, and prints what came of it as JSON (measure.Load). Requests are templates, and of a
// response it reads no more than it has to: it shares the machine with what it measures.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"coapproxy/test/bench/internal/measure"
)

type settings struct {
	to       netip.AddrPort
	uri      string // target; {client} becomes the client's number
	clients  int
	duration time.Duration
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("httpload: ")
	var s settings
	flag.TextVar(&s.to, "to", netip.AddrPort{}, "connect to this `address:port`")
	flag.StringVar(&s.uri, "uri", "coap://127.0.0.1:5700/x/{client}", "ask for this URI; {client} is replaced by the client's number")
	flag.IntVar(&s.clients, "clients", 32, "clients, each with its own connection")
	flag.DurationVar(&s.duration, "duration", 3*time.Second, "how long")
	flag.Parse()
	if s.clients < 1 || !s.to.IsValid() {
		flag.Usage()
		os.Exit(2)
	}
	result, err := run(&s)
	if err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		log.Fatal(err)
	}
}

// run lets all clients ask until the time is over.
func run(s *settings) (measure.Load, error) {
	var mu sync.Mutex
	total := measure.Load{Errors: make(map[string]uint64)}
	var latency measure.Histogram
	var g errgroup.Group
	began := time.Now()
	for i := range s.clients {
		g.Go(func() error {
			c := client{errors: make(map[string]uint64)}
			err := c.ask(s, i, began.Add(s.duration))
			mu.Lock()
			defer mu.Unlock()
			total.Exchanges += c.exchanges
			for status, n := range c.errors {
				total.Errors[status] += n
			}
			latency.Merge(&c.latency)
			return err
		})
	}
	err := g.Wait()
	total.Elapsed = time.Since(began)
	total.P50, total.P99 = latency.Quantile(0.5), latency.Quantile(0.99)
	return total, err
}

// client has one connection.
type client struct {
	exchanges uint64
	errors    map[string]uint64
	latency   measure.Histogram
}

func (c *client) ask(s *settings, i int, until time.Time) error {
	conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(s.to))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(until.Add(10 * time.Second)); err != nil {
		return err
	}
	request := []byte("GET /hc/" + strings.ReplaceAll(s.uri, "{client}", strconv.Itoa(i)) + " HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
	in := bufio.NewReader(conn)
	for sent := time.Now(); sent.Before(until); {
		if _, err := conn.Write(request); err != nil {
			return err
		}
		status, err := response(in)
		if err != nil {
			return fmt.Errorf("client %d: %w", i, err)
		}
		now := time.Now()
		if status == "200" {
			c.exchanges++
			c.latency.Add(now.Sub(sent))
		} else {
			c.errors[status]++
		}
		sent = now
	}
	return nil
}

var contentLength = []byte("Content-Length: ")

// response reads one response and returns its status.
func response(in *bufio.Reader) (status string, err error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	if len(line) < 12 {
		return "", fmt.Errorf("no status line: %q", line)
	}
	status = "200"
	if !bytes.Equal(line[9:12], []byte("200")) {
		status = string(line[9:12])
	}
	length := 0
	for {
		if line, err = in.ReadSlice('\n'); err != nil {
			return "", err
		}
		line = bytes.TrimSuffix(line, []byte("\r\n"))
		if len(line) == 0 {
			break
		}
		if value, ok := bytes.CutPrefix(line, contentLength); ok {
			if length, err = strconv.Atoi(string(value)); err != nil {
				return "", err
			}
		}
	}
	if _, err := io.CopyN(io.Discard, in, int64(length)); err != nil {
		return "", err
	}
	return status, nil
}
