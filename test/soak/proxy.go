package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// proxy is the proxy under load.
type proxy struct {
	cmd     *exec.Cmd
	ended   chan struct{}
	log     string // file
	coap    *net.UDPAddr
	stream  string // address of CoAP over TCP
	http    string // address
	control *http.Client
}

// Clients come from these networks; others are strangers. The unruly ones are known, and have an entry of their own.
const (
	goodNetwork   = "127.1.0.0/16"
	unrulyNetwork = "127.2.0.0/16"
)

func startProxy(ctx context.Context, binary, dir string, devices int) (*proxy, error) {
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	p := &proxy{ended: make(chan struct{}), log: filepath.Join(dir, "log"), coap: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: ports[0]},
		stream: fmt.Sprintf("127.0.0.1:%d", ports[1]), http: fmt.Sprintf("127.0.0.1:%d", ports[2])}
	socket := filepath.Join(dir, "control.sock")
	config := fmt.Sprintf(`listen:
  - coap://%[1]v
  - coap+tcp://%[2]v
  - http://%[3]v
control:
  socket: %[4]s
clients:
  - {name: good, networks: [%[5]s], groups: ["*"], forward: ["coap://127.3.0.0/16:*"], max_exchanges: 1024}
  - {name: unruly, networks: [%[6]s], groups: ["*"], forward: ["coap://127.3.0.0/16:*"], max_exchanges: 16}
groups:
  - name: devices
    uri: coap://224.0.1.187:%[7]d
    interfaces: [lo]
    loopback: true
    nstart: 32
    leisure: 1s
    probing_rate: 0
proxy:
  allow_loopback: true
limits:
  nstart: 32
  upstream_queue: 256
  response_timeout: 3s
log:
  level: warn
`, p.coap, p.stream, p.http, socket, goodNetwork, unrulyNetwork, devices)
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	out, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd = exec.Command(binary, "serve", "--config", file)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	p.control = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}}}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := p.goroutines(ctx); err == nil {
			return p, nil
		}
		if time.Now().After(deadline) {
			p.stop()
			return nil, fmt.Errorf("the proxy does not answer:\n%s", p.tail())
		}
	}
}

// stop ends the proxy.
func (p *proxy) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(15 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

func (p *proxy) tail() string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-4000):])
}

// goroutines asks how many goroutines there are.
func (p *proxy) goroutines(ctx context.Context) (int, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://proxy/debug/pprof/goroutine?debug=1", http.NoBody)
	if err != nil {
		return 0, err
	}
	resp, err := p.control.Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	head, err := io.ReadAll(io.LimitReader(resp.Body, 256))
	if err != nil {
		return 0, err
	}
	_, after, ok := strings.Cut(string(head), "total ")
	if !ok {
		return 0, fmt.Errorf("no goroutine profile: %q", head)
	}
	number, _, _ := strings.Cut(after, "\n")
	return strconv.Atoi(number)
}

// sample looks at the proxy.
func (p *proxy) sample(ctx context.Context) (row, error) {
	select {
	case <-p.ended:
		return row{}, fmt.Errorf("the proxy ended: %v\n%s", p.cmd.ProcessState, p.tail())
	default:
	}
	pid := p.cmd.Process.Pid
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return row{}, err
	}
	rss, err := mebibytes(string(status), "VmRSS:")
	if err != nil {
		return row{}, err
	}
	anon, err := mebibytes(string(status), "RssAnon:")
	if err != nil {
		return row{}, err
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return row{}, err
	}
	goroutines, err := p.goroutines(ctx)
	if err != nil {
		return row{}, fmt.Errorf("the proxy's control socket: %w", err)
	}
	return row{rss: rss, anon: anon, fds: len(fds), goroutines: goroutines}, nil
}

// mebibytes reads a line of /proc/PID/status.
func mebibytes(status, name string) (float64, error) {
	_, after, ok := strings.Cut(status, name)
	fields := strings.Fields(after)
	if !ok || len(fields) == 0 {
		return 0, fmt.Errorf("no %s", name)
	}
	kib, err := strconv.Atoi(fields[0])
	return float64(kib) / 1024, err
}

// heapProfiles takes a heap profile each time a share of the load has passed.
type heapProfiles struct {
	shares []float64 // ascending, those that are still to come
}

func (h *heapProfiles) take(ctx context.Context, p *proxy, at time.Duration, o *options) error {
	if o.profiles == "" || len(h.shares) == 0 || at.Seconds() < h.shares[0]*o.duration.Seconds() {
		return nil
	}
	h.shares = h.shares[1:]
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://proxy/debug/pprof/heap?gc=1", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := p.control.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := os.MkdirAll(o.profiles, 0o755); err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(o.profiles, fmt.Sprintf("heap-%v.pprof", at.Round(time.Second))))
	if err != nil {
		return err
	}
	_, err = io.Copy(out, resp.Body)
	return errors.Join(err, out.Close())
}

// freePorts returns ports of the loopback that are free for UDP and TCP.
func freePorts(n int) ([]int, error) {
	ports := make(map[int]bool)
	for len(ports) < n {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		if port != 0 {
			ports[port] = true
		}
	}
	return slices.Collect(maps.Keys(ports)), nil
}

// freePort returns a port that is free for TCP, or 0 if it is not so for UDP.
func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		return 0, nil //nolint:nilerr // that is what was to be found out
	}
	return port, u.Close()
}
