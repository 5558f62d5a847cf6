package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"coapproxy/client"
	"coapproxy/config"
	"coapproxy/exchange"
)

// printed is an output that can be waited for.
type printed struct {
	mu    sync.Mutex
	text  bytes.Buffer
	added chan struct{}
}

func newPrinted() *printed { return &printed{added: make(chan struct{}, 1)} }

func (p *printed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case p.added <- struct{}{}:
	default:
	}
	return p.text.Write(b)
}

func (p *printed) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// wait waits until something has been printed.
func (p *printed) wait(t *testing.T, pattern string) {
	t.Helper()
	wanted, late := regexp.MustCompile("(?s)"+pattern), time.After(20*time.Second)
	for !wanted.MatchString(p.String()) {
		select {
		case <-p.added:
		case <-late:
			require.Fail(t, "not printed: "+pattern, p.String())
		}
	}
}

// What is printed at the end, and when so many devices have answered.
const (
	atTheEnd  = "Ctrl-C"
	oneHeard  = `2\.05 Content.*\n`
	fiveHeard = `(2\.05 Content.*){5}\n`
)

// startDemo runs the subcommand until stop or the end of the test, and returns
// when it has printed what matches until.
func startDemo(t *testing.T, until string, args ...string) (out, errs *printed, stop func() (code int)) {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(context.Background())
	out, errs = newPrinted(), newPrinted()
	done := make(chan int, 1)
	go func() { done <- runDemo(ctx, stdio{strings.NewReader(""), out, errs}, args) }()
	stop = sync.OnceValue(func() int {
		began := time.Now()
		cancel()
		code := <-done
		require.Less(t, time.Since(began), 2*time.Second)
		goleak.VerifyNone(t, leaks)
		return code
	})
	t.Cleanup(func() { stop() })
	out.wait(t, until)
	return out, errs, stop
}

var responseLine = regexp.MustCompile(`(?m)^ +(\d\.\d{3}) s  (coap://127\.0\.0\.1\d(?::\d+)?) +2\.05 Content  (\d\d\.\d °C)$`)

func TestDemo(t *testing.T) {
	out, errs, stop := startDemo(t, atTheEnd, "--seed", "1")
	lines := responseLine.FindAllStringSubmatch(out.String(), -1)
	require.Len(t, lines, 5, out.String())
	servers, last := map[string]bool{}, "0.000"
	for _, l := range lines {
		require.GreaterOrEqual(t, l[1], last, "in the order they come")
		last = l[1]
		servers[l[2]] = true
	}
	require.Len(t, servers, 5, "five distinct servers")
	require.Contains(t, out.String(), "5 responses from 5 of 5 devices within 2 s.")
	for _, name := range []string{"kitchen", "hall", "bedroom", "study", "bathroom"} {
		require.Contains(t, out.String(), "  "+name+" ")
	}

	commands := regexp.MustCompile(`(?m)^ {5}(.*)$`).FindAllStringSubmatch(out.String(), -1)
	require.Len(t, commands, 6)
	for _, c := range commands[:5] {
		require.True(t, strings.HasPrefix(c[1], shellWords(os.Args[0], "request", "--via")), c[1])
	}
	require.Empty(t, errs.String(), "nothing to warn about")

	t.Run("over HTTP", func(t *testing.T) {
		found := regexp.MustCompile(`^curl (http://localhost:\d+/hc/coap://224\.0\.1\.187(?::\d+)?/temp) -H 'Multicast-Timeout: 2'$`).FindStringSubmatch(commands[5][1])
		require.NotNil(t, found, commands[5][1])
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, found[1], nil)
		require.NoError(t, err)
		r.Header.Set("Multicast-Timeout", "2")
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		p, err := client.Do(r)
		require.NoError(t, err)
		defer p.Body.Close()
		require.Equal(t, http.StatusOK, p.StatusCode)
		text, err := io.ReadAll(p.Body)
		require.NoError(t, err)
		require.Equal(t, 5, strings.Count(string(text), "HTTP/1.1 200 OK\r\n"), "%s", text)
		require.Equal(t, 5, strings.Count(string(text), " °C\r\n"))
	})
	t.Run("commands work", func(t *testing.T) {
		for i, want := range []struct {
			responses int
			code      codes.Code
			payload   string
		}{{5, codes.Content, " °C"}, {5, codes.Changed, ""}, {1, codes.Content, "on"}} {
			responses := carryOut(t, commands[i][1])
			require.Len(t, responses, want.responses, commands[i][1])
			for _, p := range responses {
				require.Equal(t, want.code, p.Code)
				require.True(t, strings.HasSuffix(string(p.Payload), want.payload), "%q", p.Payload)
			}
		}
	})
	// GC-54: whoever fetches the further blocks, the bodies are whole.
	t.Run("bodies in blocks", func(t *testing.T) {
		responses := carryOut(t, strings.Replace(commands[0][1], "/temp", "/big", 1))
		require.Len(t, responses, 5)
		for _, p := range responses {
			require.NoError(t, p.Incomplete)
			require.Len(t, p.Payload, 3000)
		}
	})
	require.Equal(t, exitOK, stop())
}

// carryOut does what a printed command does.
func carryOut(t *testing.T, command string) []*client.Response {
	t.Helper()
	words := strings.Fields(command)
	require.Equal(t, []string{"request", "--via"}, words[1:3])
	proxy, err := netip.ParseAddrPort(strings.TrimPrefix(words[3], "coap://"))
	require.NoError(t, err)
	r := &client.Request{Method: codes.GET, URI: words[len(words)-1], Form: client.ProxyURI, Confirmable: true}
	for i, w := range words {
		switch w {
		case "--multicast-timeout":
			require.Equal(t, "2", words[i+1])
			r.Timeout = exchange.Timeout{Seconds: 2, Present: true}
		case "--payload":
			r.Payload = []byte(words[i+1])
		case "PUT":
			r.Method = codes.PUT
		}
	}
	c, err := client.Dial(t.Context(), proxy, client.Config{Margin: 100 * time.Millisecond})
	require.NoError(t, err)
	defer c.Close()
	var responses []*client.Response
	for p, err := range c.Do(t.Context(), r) {
		require.NoError(t, err)
		responses = append(responses, p)
	}
	return responses
}

// occupy takes a UDP port, unless somebody else has it.
func occupy(t *testing.T, addr string) {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	if errors.Is(err, syscall.EADDRINUSE) {
		return
	}
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
}

func TestDemoTakesAnotherPortForHTTP(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:8080")
	if err == nil {
		t.Cleanup(func() { _ = l.Close() })
	}
	out, errs, stop := startDemo(t, oneHeard, "--leisure", "0", "--devices", "1")
	require.Regexp(t, `its web side +http://127\.0\.0\.1:\d+ +\(port 8080 is taken\)`, out.String())
	require.Empty(t, errs.String())
	require.Equal(t, exitOK, stop())

	var failed, why bytes.Buffer
	require.Equal(t, exitFailed, runDemo(t.Context(), stdio{nil, &failed, &why}, []string{"--http", "127.0.0.1:8080"}), "no other port will do")
	require.Contains(t, why.String(), "listen on http://127.0.0.1:8080")
}

func TestDemoTakesOtherPorts(t *testing.T) {
	for name, taken := range map[string][]string{
		"the proxy's":   {"127.0.0.1:5683"},
		"a device's":    {"127.0.0.13:5683"},
		"both":          {"127.0.0.1:5683", "127.0.0.13:5683"},
		"all addresses": {"0.0.0.0:5683"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, addr := range taken {
				occupy(t, addr)
			}
			out, errs, stop := startDemo(t, fiveHeard, "--leisure", "50ms")
			require.Len(t, responseLine.FindAllString(out.String(), -1), 5, out.String())
			proxy := regexp.MustCompile(`the proxy +coap://127\.0\.0\.1(:\d+)?`).FindStringSubmatch(out.String())
			group := regexp.MustCompile(`the group +coap://224\.0\.1\.187(:\d+)?`).FindStringSubmatch(out.String())
			if taken[0] != "127.0.0.13:5683" {
				require.NotEmpty(t, proxy[1])
			}
			if taken[len(taken)-1] != "127.0.0.1:5683" {
				require.NotEmpty(t, group[1])
				require.Contains(t, out.String(), "GET coap://224.0.1.187"+group[1]+"/temp")
			}
			require.Empty(t, errs.String(), "no warning, whatever was tried")
			require.Equal(t, exitOK, stop())
		})
	}
}

func TestDemoListensWhereAsked(t *testing.T) {
	for listen, want := range map[string]string{
		"127.0.0.9:0":    "the proxy     coap://127.0.0.9:",
		"0.0.0.0:0":      "the proxy     coap://127.0.0.1:",
		"coap://[::1]:0": "the proxy     coap://[::1]:",
		"[::]:0":         "the proxy     coap://[::1]:",
	} {
		out, _, stop := startDemo(t, oneHeard, "--leisure", "0", "--devices", "1", "--listen", listen)
		require.Contains(t, out.String(), want)
		require.Contains(t, out.String(), "1 simulated device and a proxy")
		require.Equal(t, exitOK, stop())
	}

	occupy(t, "127.0.0.9:5683")
	var out, errs bytes.Buffer
	require.Equal(t, exitFailed, runDemo(t.Context(), stdio{nil, &out, &errs}, []string{"--listen", "127.0.0.9:5683"}), "no other port will do")
	require.Contains(t, errs.String(), "127.0.0.9:5683")
	require.Contains(t, errs.String(), "address already in use")
	require.Empty(t, out.String())
}

func TestDemoManyDevices(t *testing.T) {
	out, errs, stop := startDemo(t, atTheEnd, "--devices", "20", "--verbose", "--leisure", "1500ms")
	require.Contains(t, out.String(), "20 responses from 20 of 20 devices within 3 s.")
	require.Contains(t, out.String(), "  ... 11 more\n")
	require.Contains(t, out.String(), "  attic         coap://127.0.0.18")
	require.NotContains(t, out.String(), "  cellar  ")
	require.Contains(t, out.String(), "  attic-2       coap://127.0.0.30")
	require.Contains(t, errs.String(), " DEBUG ", "--verbose shows every exchange")
	require.Equal(t, exitOK, stop())
}

func TestDemoEndsDuringItsFirstRequest(t *testing.T) {
	out, _, stop := startDemo(t, "One request in", "--leisure", "1m")
	require.Equal(t, exitOK, stop())
	require.NotContains(t, out.String(), "Ctrl-C")
}

func TestDemoPrintsConfig(t *testing.T) {
	var out, errs bytes.Buffer
	require.Equal(t, exitOK, runDemo(t.Context(), stdio{nil, &out, &errs}, []string{"--print-config", "--listen", "127.0.0.1:5700"}), errs.String())
	c, err := config.Parse("printed", out.Bytes())
	require.NoError(t, err)
	require.Equal(t, "coap://127.0.0.1:5700", c.Listen[0].String())
	require.Equal(t, "coap://224.0.1.187:5683", c.Groups[0].URI.String())
}

func TestDemoUsage(t *testing.T) {
	for _, c := range []struct {
		args string
		want string
	}{
		{"--devices 0", "--devices 0: not 1 to 250"},
		{"--devices 251", "--devices 251: not 1 to 250"},
		{"--leisure -1s", "--leisure -1s: not 0 to 1m0s"},
		{"--leisure 61s", "--leisure 1m1s: not 0 to 1m0s"},
		{"--listen 5683", `--listen "5683": write e.g. 127.0.0.1:5683`},
		{"--listen 224.0.1.187:5683", `--listen "224.0.1.187:5683": write`},
		{"--http 8080", `--http "8080": write e.g. 127.0.0.1:8080`},
		{"--seed x", "invalid value"},
		{"more", "wrong number of arguments"},
	} {
		var out, errs bytes.Buffer
		require.Equal(t, exitUsage, runDemo(t.Context(), stdio{nil, &out, &errs}, strings.Fields(c.args)), c.args)
		require.Contains(t, errs.String(), c.want)
		require.Empty(t, out.String())
	}
}

func TestShellWords(t *testing.T) {
	require.Equal(t, "./bin/coapproxy request --via coap://127.0.0.1:5683", shellWords("./bin/coapproxy", "request", "--via", "coap://127.0.0.1:5683"))
	require.Equal(t, `'a b' '' 'coap://[::1]:1' 'it'\''s' '$x'`, shellWords("a b", "", "coap://[::1]:1", "it's", "$x"))
}
