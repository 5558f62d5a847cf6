package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// startTime is how long a program may take until it listens, and stopTime how long to end.
const (
	startTime = 10 * time.Second
	stopTime  = 3 * time.Second
)

// A process is a program that was started and runs until stop.
type process struct {
	cmd  *exec.Cmd
	log  string        // file with what it printed
	done chan struct{} // closed when it has ended
}

// start starts a program and waits until it listens on addr. It ends with ctx too.
func (l *lab) start(ctx context.Context, name string, addr netip.AddrPort, args ...string) (*process, error) {
	p := &process{log: filepath.Join(l.dir, strings.ReplaceAll(name, " ", "-")+".log"), done: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd = command(ctx, args[0], args[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // how it ended is of no interest, only that it did
	}()
	for deadline := time.Now().Add(startTime); ; {
		if bound(addr) {
			return p, nil
		}
		select {
		case <-p.done:
			return nil, fmt.Errorf("%s ended at once:\n%s", name, p.output())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			p.stop()
			return nil, fmt.Errorf("%s does not listen on %v:\n%s", name, addr, p.output())
		}
	}
}

// command makes a command that gets SIGTERM when ctx ends, and SIGKILL when that does not help.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTime
	return cmd
}

// output runs a program to its end and returns what it wrote to its standard output.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	out, err := command(ctx, name, args...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, fmt.Errorf("%s: %w\n%s", filepath.Base(name), err, exit.Stderr)
	}
	return out, err
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// output returns the end of what the process printed.
func (p *process) output() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(len(b)-2000, 0):])
}

// stop ends the process and waits for it.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // an error means that it has ended
	select {
	case <-p.done:
	case <-time.After(stopTime):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// bound reports whether a TCP socket listens on addr or a UDP socket is bound to it: if none is, the kernel
// answers a datagram with an ICMP error. The datagram is a CoAP ping.
func bound(addr netip.AddrPort) bool {
	if c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(addr)); err == nil {
		_ = c.Close()
		return true
	}
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return false
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{0x40, 0, 0, 1}); err != nil {
		return false
	}
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		return false
	}
	_, err = conn.Read(make([]byte, 64))
	return !errors.Is(err, syscall.ECONNREFUSED)
}
